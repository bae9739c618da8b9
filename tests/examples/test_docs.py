"""What the documents say is tried: their Python runs, their links and proofs exist."""

import re
import shlex
import signal
import tomllib
from pathlib import Path
from typing import Any

import pytest

from evworker.cli.embedded import DEFAULT_PORT, url_at
from tests.cli.command import Command, line_with
from tests.database_node import free_port
from tests.waiting import eventually

ROOT = Path(__file__).resolve().parent.parent.parent
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").rglob("*.md")]
)
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```$",
        document.read_text(encoding="utf-8"),
        re.DOTALL | re.MULTILINE,
    )


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_python_in_a_document_runs_from_top_to_bottom(document: Path) -> None:
    """All but what stands under `if __name__ == "__main__"`."""
    namespace: dict[str, object] = {"__name__": "document"}
    for number, code in enumerate(blocks(document, "python"), start=1):
        exec(compile(code, f"{document.name}, block {number}", "exec"), namespace)


@pytest.mark.parametrize(("document", "count"), [("README.md", 1), ("docs/testing.md", 4)])
async def test_tests_in_a_document_pass(document: str, count: int) -> None:
    namespace: dict[str, Any] = {"__name__": "document"}
    for code in blocks(ROOT / document, "python"):
        exec(compile(code, document, "exec"), namespace)
    tests = [test for name, test in namespace.items() if name.startswith("test_")]
    assert len(tests) == count
    for test in tests:
        await test()


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_toml_in_a_document_can_be_read(document: Path) -> None:
    for block in blocks(document, "toml"):
        assert tomllib.loads(block)


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8"))
    local = [link.partition("#")[0] for link in links if not link.startswith("http")]
    assert not [link for link in local if not (document.parent / link).exists()]


def test_a_guarantee_names_tests_that_exist() -> None:
    text = (ROOT / "GUARANTEES.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert len(named) > 20
    missing = [f"{file}::{test}" for file, test in named if test not in functions_of(ROOT / file)]
    assert not missing


def functions_of(file: Path) -> set[str]:
    if not file.is_file():
        return set()
    text = file.read_text(encoding="utf-8")
    return set(re.findall(r"^ *(?:async )?def (\w+)", text, re.MULTILINE))


async def test_the_tour_of_the_readme_works_with_no_server(tmp_path: Path) -> None:
    """Its commands as they stand there, but for the port, which another program may have."""
    readme = ROOT / "README.md"
    (tmp_path / "hello.py").write_text(blocks(readme, "python")[0])
    tour = readme.read_text(encoding="utf-8").partition("## Sixty seconds")[2].partition("\n## ")[0]
    typed = re.findall(r"^(?:\$ )?((?:evworker|export) .*)$", tour, re.MULTILINE)
    start, export, *others = typed
    evworker = Command(tmp_path)
    port = str(free_port())
    name, _, url = export.removeprefix("export ").partition("=")
    assert url == url_at(DEFAULT_PORT)
    evworker.environment[name] = url_at(int(port))
    options = ("--embedded-port", port, "--log-format", "console")
    async with evworker.started(*shlex.split(start)[1:], *options) as worker:
        await line_with(worker.stderr, "ready")
        published, refused, listed, shown = [shlex.split(line)[1:] for line in others]
        assert (await evworker(*published)).code == 0
        await line_with(worker.stderr, "email=ada@example.com")
        assert (await evworker(*refused)).code == 0
        await line_with(worker.stderr, "NoSuchMailbox")

        async def dead() -> bool:
            last = (await evworker(*listed)).out.splitlines()[-1]
            return last.split()[:2] == ["hello.greet.dlq", "1"]

        await eventually(dead)
        letter = await evworker(*shown)
        assert "given-up: its error is one that the policy does not retry" in letter.out
        assert "hello.NoSuchMailbox: nobody" in letter.out
        worker.send_signal(signal.SIGINT)
        assert await worker.wait() == 0
