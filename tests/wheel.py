"""Build the distributions and use the wheel as a stranger would: `python -m tests.wheel`.

The editable install and the wheel each hide a fault of the other: an accidental
`evworker/__init__.py` blinds the first and goes unnoticed in the second, while a file that is not
packaged is missing only from the second. The wheel is built from the sdist, so both are proved.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FLOORS = ("broker", "workers", "cli")
USE_IT = """
import evworker.broker, evworker.workers, evworker.cli.main
from importlib.metadata import version
assert "site-packages" in evworker.broker.__file__, evworker.broker.__file__
print("imported evworker", version("evworker"))
"""


def run(*command: str | Path, cwd: Path) -> str:
    """The command's stdout. One that fails ends the check, with what it printed."""
    result = subprocess.run(command, cwd=cwd, check=False, capture_output=True, text=True)
    if result.returncode != 0:
        shown = " ".join(str(part) for part in command)
        sys.exit(f"wheel-test: `{shown}` failed:\n{result.stdout}{result.stderr}")
    return result.stdout


def check_contents(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    faults = [f"{name} is in it" for name in names if name == "evworker/__init__.py"]
    for floor in FLOORS:
        expected = {
            str(path.relative_to(ROOT / floor))
            for path in (ROOT / floor / "evworker").rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        } | {f"evworker/{floor}/py.typed"}
        faults += [f"{name} is missing" for name in sorted(expected - names)]
    others = {name.split("/")[0] for name in names} - {"evworker"}
    faults += [f"{name} would land beside evworker" for name in others if "dist-info" not in name]
    if faults:
        sys.exit(f"wheel-test: {wheel.name}: {'; '.join(faults)}")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        away = Path(folder)
        # Without --wheel or --sdist, build makes the sdist and then the wheel out of it.
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", away, ROOT, cwd=ROOT)
        (wheel,) = away.glob("*.whl")
        check_contents(wheel)
        venv.create(away / "venv", with_pip=True)
        binaries = away / "venv" / "bin"
        pins = ROOT / "constraints.txt"
        quiet = ("--quiet", "--disable-pip-version-check")
        run(binaries / "pip", "install", *quiet, "--constraint", pins, wheel, cwd=away)
        print(run(binaries / "python", "-c", USE_IT, cwd=away).strip())
        print(run(binaries / "evworker", "--version", cwd=away).strip())
        if "Usage:" not in run(binaries / "evworker", "--help", cwd=away):
            sys.exit("wheel-test: `evworker --help` does not say how to use it")
        if "None is lost" not in run(binaries / "evworker", "demo", cwd=away):
            sys.exit("wheel-test: `evworker demo` does not play with nothing but the wheel")
        print(f"{wheel.name}: installs, imports and runs")


if __name__ == "__main__":
    main()
