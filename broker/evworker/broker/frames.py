"""Where in the user's code an error was raised: what tells one kind of failure from another.

A frame is written ``module:function``, without the line number, which moves with every release.
"""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

LONGEST_BYTES = 255

# Neither the standard library nor evworker tells one failure from another; what is installed does
# only where nothing else was passed.
_NOBODYS = re.compile(
    r"^<|[/\\]lib(?:64)?[/\\]python3[^/\\]*[/\\](?!(?:site|dist)-packages)"
    r"|[/\\]evworker[/\\](?:broker|workers|cli)[/\\]"
)
_INSTALLED = re.compile(r"[/\\](?:site|dist)-packages[/\\]")

_IN_TEXT = re.compile(
    r'^[ |+]*File "(?P<file>[^"\n]+)", line \d+, in (?P<function>.+)$', re.MULTILINE
)
_CHAINED = re.compile(
    r"^[ |+]*(?:The above exception was|During handling of the above)", re.MULTILINE
)


def frame_of(error: BaseException) -> str | None:
    """The innermost frame in the user's code; None when there is none, or no traceback.

    Where the user's code is installed like a library, it is the first frame after evworker's: the
    handler.
    """
    frames = []
    trace = error.__traceback__
    while trace is not None:
        code, module = trace.tb_frame.f_code, trace.tb_frame.f_globals.get("__name__")
        if not isinstance(module, str) or module == "__main__":
            module = _module_of(code.co_filename)
        frames.append((code.co_filename, f"{module}:{code.co_qualname}"))
        trace = trace.tb_next
    return _telling(frames)


def frame_in(traceback: str) -> str | None:
    """The same, as far as the text of a traceback knows it: modules are guessed from paths."""
    last = _CHAINED.split(traceback)[-1]
    return _telling(
        (found["file"], f"{_module_of(found['file'])}:{found['function'].strip()}")
        for found in _IN_TEXT.finditer(last)
    )


def _telling(frames: Iterable[tuple[str, str]]) -> str | None:
    first_installed = last_own = None
    for file, frame in frames:
        if _NOBODYS.search(file):
            continue
        if not _INSTALLED.search(file):
            last_own = frame
        elif first_installed is None:
            first_installed = frame
    telling = last_own or first_installed
    if telling is None:
        return None
    return telling.encode("utf-8", "backslashreplace")[:LONGEST_BYTES].decode("utf-8", "ignore")


def _module_of(file: str) -> str:
    path = PurePath(file)
    parts = [path.parent.name, "" if path.stem == "__init__" else path.stem]
    return ".".join(part for part in parts if part)
