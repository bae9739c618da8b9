"""Plugins and event types by name: ``module``, ``module:attribute``, or the entry points.

A mistake in what is loaded is its author's: it is told with the file and the line that made it, and
without a traceback.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import click

import evworker.broker
import evworker.cli
import evworker.workers
from evworker.broker import Event
from evworker.cli.failures import NotImportedError
from evworker.cli.settings import did_you_mean
from evworker.workers import Plugin

ENTRY_POINT_GROUP = "evworker.plugins"

EXPECTED = "a Plugin, several Plugins, or a function without arguments that returns them"

# Frames of these say nothing about a user's mistake.
_FLOORS = tuple(
    str(Path(str(floor.__file__)).parent)
    for floor in (evworker.broker, evworker.workers, evworker.cli)
)
_STANDARD_LIBRARY = str(Path(traceback.__file__).parent)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the named modules hold."""

    plugins: tuple[Plugin, ...]
    event_types: dict[str, type[Event]]
    """By topic; of two versions the higher one."""


def load(names: Iterable[str], *, plugins_expected: bool = False) -> Loaded:
    """Import what is named, or all entry points when nothing is; raises NotImportedError.

    With `plugins_expected` each name must bring one; without, a module of event types will do.
    """
    _make_working_directory_importable()
    plugins: list[Plugin] = []
    kinds: list[type] = []
    names = tuple(names)
    for name in names:
        module, found = _load_named(name)
        if plugins_expected and not found:
            _refuse_empty(module)
        plugins += found
        kinds += _members(module, type)
    if not names:
        for point in entry_points(group=ENTRY_POINT_GROUP):
            plugins += _load_entry_point(point)
    if plugins_expected and not plugins:
        raise click.UsageError(
            "no plugins: name the modules that hold them, as in `evworker run shop.billing`, or in "
            f"EVWORKER_APP, or install a package with the entry point {ENTRY_POINT_GROUP!r}"
        )
    kinds += [kind for plugin in plugins for one in plugin.consumers for kind in one.event_types]
    return Loaded(tuple(dict.fromkeys(plugins)), _by_topic(kinds))


def _make_working_directory_importable() -> None:
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)


def _load_named(name: str) -> tuple[ModuleType, list[Plugin]]:
    module_name, colon, attribute = name.partition(":")
    module = _import(module_name)
    if not colon:
        return module, list(_members(module, Plugin))
    value: Any = module
    for part in attribute.split("."):
        if not hasattr(value, part):
            _refuse_attribute(module, name, part)
        value = getattr(value, part)
    return module, _plugins_of(value, name)


def _import(name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        meant = name.removesuffix(".py").strip("./").replace("/", ".")
        raise NotImportedError(
            f"{name!r} is not the name of a module{did_you_mean(name, [meant])} "
            "Write it as an import does, with dots: shop.billing"
        )
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise NotImportedError(_missing(name, error.name)) from error
        _refuse(f"can't import {name!r}", error)
    # Whatever a module does when it is imported, sys.exit() included, is its author's mistake.
    except (Exception, SystemExit) as error:  # noqa: BLE001
        _refuse(f"can't import {name!r}", error)


def _missing(name: str, missing: str) -> str:
    parent, _, last = missing.rpartition(".")
    if parent:
        places = [*getattr(sys.modules.get(parent), "__path__", [])]
        where = f"in {parent!r}"
    else:
        places = [str(Path.cwd())]
        where = f"in {Path.cwd()} or among the installed packages"
    near = [name for place in places for name in _importable(Path(place))]
    prefix = f"{parent}." if parent else ""
    suggestion = did_you_mean(last, near).replace("mean '", f"mean '{prefix}")
    told = f"can't import {name!r}: " if name != missing else ""
    return f"{told}there is no module {missing!r} {where}{suggestion}"


def _importable(folder: Path) -> Iterator[str]:
    """The modules and packages in a folder, those without an ``__init__.py`` included."""
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    for path in paths:
        if path.stem.isidentifier() and (path.suffix == ".py" or path.is_dir()):
            yield path.stem


def _plugins_of(value: object, name: str) -> list[Plugin]:
    if callable(value) and not isinstance(value, Plugin | type):
        try:
            value = value()
        except Exception as error:  # noqa: BLE001 - their function may raise anything
            _refuse(f"{name!r} failed", error)
    if isinstance(value, Plugin):
        return [value]
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        plugins = list(value)
        if plugins and all(isinstance(plugin, Plugin) for plugin in plugins):
            return plugins
    raise NotImportedError(f"{name!r} is of type {type(value).__name__}; expected {EXPECTED}")


def _load_entry_point(point: EntryPoint) -> list[Plugin]:
    where = f"the entry point {point.name!r} of {point.dist.name if point.dist else 'a package'}"
    try:
        value = point.load()
    except Exception as error:  # noqa: BLE001 - and so may their module
        _refuse(f"can't load {where} ({point.value})", error)
    if isinstance(value, ModuleType):
        return list(_members(value, Plugin))
    return _plugins_of(value, where)


def _members(module: ModuleType, kind: type) -> Iterator[Any]:
    for value in vars(module).values():
        if isinstance(value, kind):
            yield value


def _by_topic(kinds: Iterable[type]) -> dict[str, type[Event]]:
    topics: dict[str, type[Event]] = {}
    for kind in kinds:
        if issubclass(kind, Event) and kind.__topic__:
            known = topics.get(kind.__topic__)
            if known is None or known.__version__ < kind.__version__:
                topics[kind.__topic__] = kind
    return topics


def _refuse_attribute(module: ModuleType, name: str, part: str) -> NoReturn:
    plugins = [key for key, value in vars(module).items() if isinstance(value, Plugin)]
    suggestion = did_you_mean(part, [key for key in vars(module) if not key.startswith("__")])
    there = f" Its plugins: {', '.join(plugins)}" if plugins else ""
    raise NotImportedError(f"{name!r}: {module.__name__!r} has no {part!r}{suggestion}{there}")


def _refuse_empty(module: ModuleType) -> NoReturn:
    name = module.__name__
    places = map(Path, getattr(module, "__path__", ()))
    inner = [
        f"{name}.{found}" for place in places for found in _importable(place) if found[0] != "_"
    ]
    raise NotImportedError(
        f"there is no plugin in {name!r}; "
        + (
            f"name one of its modules: {', '.join(inner)}"
            if inner
            else 'make one there: Plugin("…")'
        )
    )


def _refuse(what: str, error: BaseException) -> NoReturn:
    place = _place_of(error)
    raise NotImportedError(
        f"{what}: {_described(error)}{f' ({place})' if place else ''}"
    ) from error


def _described(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg}"
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _place_of(error: BaseException) -> str:
    """The file and line to look at: the last one that its author wrote."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(("<frozen", *_FLOORS))
    ]
    written = [frame for frame in frames if not _is_installed(frame.filename)]
    for frame in reversed(written or frames):
        if frame.filename != import_module.__code__.co_filename:
            return f"{frame.filename}, line {frame.lineno}"
    return ""


def _is_installed(filename: str) -> bool:
    return "site-packages" in Path(filename).parts or filename.startswith(_STANDARD_LIBRARY)
