"""The services finder: an answer is a login, and whatever is missing is one sentence."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import services
from tests.databases import own_database
from tests.logins import (
    NoServiceError,
    NotListeningError,
    address,
    broker_version,
    database_answers,
    mysql_version,
)

Asked = Callable[[str], object]


@pytest.fixture
def free_port() -> Iterator[int]:
    """A port that is bound, so that nobody takes it, but on which nothing listens."""
    with socket.socket() as placeholder:
        placeholder.bind(("127.0.0.1", 0))
        yield placeholder.getsockname()[1]


def test_a_broker_tells_its_version(broker_url: str) -> None:
    assert int(broker_version(broker_url).split(".")[0]) >= 3


def test_a_wrong_password_is_told_as_such(broker_url: str) -> None:
    url = f"amqp://guest:not-the-password@{address(broker_url)}/"
    with pytest.raises(NoServiceError, match="refuses the login of 'guest'") as refused:
        broker_version(url)
    assert "not-the-password" not in str(refused.value)


def test_a_missing_virtual_host_is_told_as_such(broker_url: str) -> None:
    with pytest.raises(NoServiceError, match="virtual host 'nowhere'"):
        broker_version(f"amqp://guest:guest@{address(broker_url)}/nowhere")


def test_a_closed_port_is_not_listening(free_port: int) -> None:
    with pytest.raises(NotListeningError, match=f"nothing listens on 127.0.0.1:{free_port}"):
        broker_version(f"amqp://127.0.0.1:{free_port}/")


def test_something_silent_on_the_port_is_no_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.logins.ANSWER_TIMEOUT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"amqp://127.0.0.1:{server.getsockname()[1]}/"
        with pytest.raises(NoServiceError, match="is no AMQP broker"):
            broker_version(url)


def test_listed_brokers_may_stand_between_commas_and_spaces(
    broker_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(services.BROKER_VARIABLE, f"{broker_url}, {broker_url}")
    assert services.main(["--need", "broker"]) == 0
    assert capsys.readouterr().out == f"{services.BROKER_VARIABLE}='{broker_url} {broker_url}'\n"


def test_the_embedded_broker_is_not_looked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(services.BROKER_VARIABLE, "embedded")
    assert services.main(["--need", "broker"]) == 0
    assert capsys.readouterr().out == f"{services.BROKER_VARIABLE}=embedded\n"
    (url,) = services.broker_urls()
    assert broker_version(url) == "4.0.5"


def test_a_listed_broker_that_is_absent_is_an_error(
    free_port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(services.BROKER_VARIABLE, f"amqp://x:secret@127.0.0.1:{free_port}/")
    assert services.main(["--need", "broker"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("EVWORKER_TEST_BROKER_URL is set, but nothing listens on")
    assert printed.err.count("\n") == 1
    assert "secret" not in printed.err


def test_without_any_way_to_a_broker_every_way_is_named(
    free_port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(services.BROKER_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(services, "LOCAL_BROKER", f"amqp://127.0.0.1:{free_port}/")
    assert services.main(["--need", "broker"]) == 1
    sentence = capsys.readouterr().err
    assert sentence.startswith("No RabbitMQ for the tests: nothing listens on 127.0.0.1:")
    for way in ("no Docker engine is running", "root on Debian", "set EVWORKER_TEST_BROKER_URL"):
        assert way in sentence


@pytest.fixture
def mysql_url(tmp_path: Path) -> Iterator[str]:
    with own_database("mariadb", tmp_path) as url:
        yield url


@pytest.mark.database
def test_a_mariadb_tells_its_version(mysql_url: str) -> None:
    assert int(mysql_version(mysql_url).split(".")[0]) >= 8


@pytest.mark.database
def test_a_mariadb_that_refuses_says_why(mysql_url: str) -> None:
    where = address(mysql_url)
    with pytest.raises(NoServiceError, match="Access denied for user 't_nobody'") as refused:
        mysql_version(f"mysql://t_nobody:secret@{where}/")
    assert "secret" not in str(refused.value)
    with pytest.raises(NoServiceError, match="Unknown database 't_nowhere'"):
        mysql_version(services.mysql_url().rstrip("/") + "/t_nowhere")


@pytest.mark.parametrize(
    ("url", "ask"),
    [("mysql://127.0.0.1:{}", mysql_version), ("postgresql://127.0.0.1:{}", database_answers)],
)
def test_a_closed_port_is_no_database(free_port: int, url: str, ask: Asked) -> None:
    with pytest.raises(NotListeningError, match=f"nothing listens on 127.0.0.1:{free_port}"):
        ask(url.format(free_port))


def test_another_protocol_is_no_mariadb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.logins.ANSWER_TIMEOUT_S", 0.1)
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        pytest.raises(NoServiceError, match="is no MariaDB or MySQL"),
    ):
        mysql_version(f"mysql://127.0.0.1:{server.getsockname()[1]}")
    with pytest.raises(NoServiceError, match="does not begin with mysql:// or mariadb://"):
        mysql_version("postgresql://127.0.0.1")


@pytest.mark.database
def test_every_service_that_is_asked_for_gets_a_line(
    mysql_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(services.MYSQL_VARIABLE, mysql_url)
    assert services.main(["--need", "database,mysql"]) == 0
    database, mysql = capsys.readouterr().out.splitlines()
    assert database.startswith(f"{services.DATABASE_VARIABLE}=postgresql://")
    assert mysql == f"{services.MYSQL_VARIABLE}={mysql_url}"


def test_a_listed_mariadb_that_is_absent_is_an_error(
    free_port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(services.MYSQL_VARIABLE, f"mysql://x:secret@127.0.0.1:{free_port}/")
    assert services.main(["--need", "mysql"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("EVWORKER_TEST_MYSQL_URL is set, but nothing listens on")
    assert "secret" not in told


def test_without_any_way_to_a_mariadb_every_way_is_named(
    free_port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(services.MYSQL_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(services, "LOCAL_MYSQLS", (f"mysql://127.0.0.1:{free_port}",))
    assert services.main(["--need", "mysql"]) == 1
    sentence = capsys.readouterr().err
    assert sentence.startswith("No MariaDB for the tests: nothing listens on 127.0.0.1:")
    for way in ("no Docker engine is running", "root on Debian", "set EVWORKER_TEST_MYSQL_URL"):
        assert way in sentence
