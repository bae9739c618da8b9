"""The services finder: an answer is a login, and whatever is missing is one sentence."""

import socket
from collections.abc import Iterator

import pytest

from tests import services
from tests.logins import NoServiceError, NotListeningError, address, broker_version


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
