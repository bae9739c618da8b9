"""Where in the user's code an error was raised, from a traceback and from its text."""

from __future__ import annotations

import json
import traceback
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest

from evworker.broker import parse_duration
from evworker.broker.frames import LONGEST_BYTES, frame_in, frame_of


def raised(call: Any) -> BaseException:
    """The error, as if it had come by way of evworker's own frames only."""
    with pytest.raises(Exception) as caught:
        call()
    trace = caught.value.__traceback__
    return caught.value.with_traceback(trace and trace.tb_next)


def function_in(file: str, source: str, module: str = "handlers") -> FunctionType:
    """A function as if it stood in that file."""
    names: dict[str, Any] = {"__name__": module, "json": json, "parse_duration": parse_duration}
    exec(compile(source, file, "exec"), names)
    found = names["handle"]
    assert isinstance(found, FunctionType)
    return found


IN_LIBRARY = "def handle():\n    return json.loads('{')\n"
IN_EVWORKER = "def handle():\n    return parse_duration('x')\n"


@pytest.mark.parametrize("source", [IN_LIBRARY, IN_EVWORKER])
def test_it_is_the_innermost_one_that_the_user_wrote(source: str) -> None:
    error = raised(function_in("/app/shop/handlers.py", source, "shop.handlers"))
    assert frame_of(error) == "shop.handlers:handle"
    text = "".join(traceback.format_exception(error))
    assert frame_in(text) == "shop.handlers:handle"


def test_an_installed_application_is_told_by_its_handler() -> None:
    folder = "/venv/lib/python3.11/site-packages"
    inner = function_in(f"{folder}/client/api.py", IN_LIBRARY, "client.api")

    def outer_source() -> FunctionType:
        names: dict[str, Any] = {"__name__": "shop.handlers", "inner": inner}
        exec(compile("def handle(): inner()", f"{folder}/shop/handlers.py", "exec"), names)
        found = names["handle"]
        assert isinstance(found, FunctionType)
        return found

    error = raised(outer_source())
    assert frame_of(error) == "shop.handlers:handle"
    assert frame_in("".join(traceback.format_exception(error))) == "shop.handlers:handle"


def test_a_script_is_named_after_its_file() -> None:
    error = raised(function_in("/app/worker.py", IN_LIBRARY, "__main__"))
    assert frame_of(error) == "app.worker:handle"


def test_line_numbers_do_not_count() -> None:
    one = raised(function_in("/app/a.py", IN_LIBRARY))
    other = raised(function_in("/app/a.py", "\n\n\n" + IN_LIBRARY))
    assert frame_of(one) == frame_of(other)


def test_of_chained_errors_the_last_counts() -> None:
    source = (
        "def handle():\n    try:\n        json.loads('{')\n    except ValueError:\n        fail()\n"
    )
    function = function_in("/app/a.py", source)
    exec(compile("def fail(): raise KeyError(1)", "/app/b.py", "exec"), function.__globals__)
    error = raised(function)
    assert frame_of(error) == "handlers:fail"
    assert frame_in("".join(traceback.format_exception(error))) == "app.b:fail"


def test_where_nobody_was_there_is_none() -> None:
    assert frame_of(ValueError("never raised")) is None
    assert frame_of(raised(lambda: json.loads("{"))) is not None  # this file
    error = raised(function_in(f"{Path(json.__file__)}", IN_LIBRARY, "json"))
    assert frame_of(error) is None
    assert frame_in("no traceback at all") is None


def test_it_is_bounded_and_encodable() -> None:
    error = raised(function_in("/app/a.py", IN_LIBRARY, "m\ud800" * 500))
    frame = frame_of(error)
    assert frame is not None
    assert len(frame.encode()) <= LONGEST_BYTES
