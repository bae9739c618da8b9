"""The house: three source roots, one namespace, rooms of a readable size."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = ("broker", "workers", "cli")
MODULES = sorted(path for floor in FLOORS for path in (ROOT / floor).rglob("*.py"))
MAX_LINES = 400
# `python -m evworker`, and what pytest loads everywhere, which must not bring a whole floor.
BESIDE = {"cli": ["__main__.py"], "workers": ["pytest_plugin.py"]}
NAMELESS = {"utils", "helpers", "common", "base", "misc"}


def test_nothing_turns_the_namespace_into_a_package() -> None:
    assert not list(ROOT.glob("*/evworker/__init__.py"))
    assert not (ROOT / "evworker").exists()


@pytest.mark.parametrize("floor", FLOORS)
def test_a_root_holds_its_own_portion_only(floor: str) -> None:
    namespace = ROOT / floor / "evworker"
    own = {floor, *BESIDE.get(floor, ())}
    found = {path.name for path in namespace.iterdir()} - {"__pycache__"}
    assert floor in found
    assert found <= own
    assert {path.name for path in (ROOT / floor).iterdir()} - {"__pycache__"} == {"evworker"}


@pytest.mark.parametrize("floor", FLOORS)
def test_a_portion_says_that_it_is_typed(floor: str) -> None:
    assert (ROOT / floor / "evworker" / floor / "py.typed").is_file()


def test_rooms_are_of_a_readable_size() -> None:
    sizes = {room(path): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    too_long = {name: lines for name, lines in sizes.items() if lines > MAX_LINES}
    assert not too_long, "split them by subject"


def test_rooms_are_named_after_what_lives_there() -> None:
    nameless = [
        room(path)
        for path in MODULES
        if NAMELESS
        & {part.removesuffix(".py").strip("_") for part in path.parts[len(ROOT.parts) :]}
    ]
    assert not nameless


def room(path: Path) -> str:
    return str(path.relative_to(ROOT))
