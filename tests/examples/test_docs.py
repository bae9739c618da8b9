"""What the documents say is tried: their Python runs, their links and proofs exist."""

import asyncio
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.conftest import Cleanup

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


async def test_the_tour_of_the_readme_works(
    tmp_path: Path, broker_url: str, unique: str, cleanup: Cleanup
) -> None:
    hello = blocks(ROOT / "README.md", "python")[0]
    named = hello.replace('Plugin("hello")', f'Plugin("{unique}")')  # and so its queues
    assert named != hello
    (tmp_path / "hello.py").write_text(named)
    queue = cleanup.queue(f"{unique}.greet", retry_delays=("1s", "5s", "30s"))
    cleanup.queue(f"{unique}.unrouted")
    cleanup.exchange(f"{unique}.unrouted")
    cleanup.exchange(unique)
    environment = {**os.environ, "EVWORKER_BROKER_URL": broker_url, "EVWORKER_EXCHANGE": unique}

    def evworker(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "evworker", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )

    await asyncio.to_thread(evworker, "topology", "apply", "-A", "hello")
    for data in (
        '{"user_id": "7", "email": "ada@example.com"}',
        '{"user_id": "8", "email": "nobody"}',
    ):
        await asyncio.to_thread(evworker, "publish", "users.registered", data, "-A", "hello")
    worked = await asyncio.to_thread(evworker, "run", "hello", "--burst")
    assert "ada@example.com" in worked.stderr
    listed = await asyncio.to_thread(evworker, "dlq", "list", "-A", "hello")
    assert listed.stdout.splitlines()[-1].split()[:2] == [f"{queue}.dlq", "1"]
    shown = await asyncio.to_thread(evworker, "dlq", "show", queue)
    assert "given-up: its error is one that the policy does not retry" in shown.stdout
    assert "hello.NoSuchMailbox: nobody" in shown.stdout
