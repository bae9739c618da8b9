"""Settings: `[tool.evworker]` of the nearest pyproject.toml, as defaults for the options.

::

    [tool.evworker]
    broker-url = "amqp://localhost"      # for every verb that has it: broker-url, database-url,
    database-url = "sqlite:///shop.db"   # inbox-window, app, exchange
    app = ["shop.billing", "shop.notifications"]

    [tool.evworker.run]                  # for one verb: its options, by their long names
    concurrency = 20

    [tool.evworker.dlq.show]
    limit = 100

The environment goes before the file, and the command line before both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from evworker.cli.failures import UsageError

SHARED = ("broker-url", "database-url", "inbox-window", "app", "exchange")


@dataclass(frozen=True, slots=True)
class Settings:
    """What one pyproject.toml says: for every verb, and for each."""

    file: Path | None = None
    shared: Mapping[str, Any] = field(default_factory=dict)
    tables: Mapping[str, Any] = field(default_factory=dict)
    """By verb; for a verb of a group, by group and then by verb."""

    def table(self, path: Iterable[str]) -> Mapping[str, Any]:
        """The table of one verb, such as ``("dlq", "show")``; empty when there is none."""
        table: Any = self.tables
        for verb in path:
            table = table.get(verb, {})
            if not isinstance(table, dict):
                raise UsageError(f"{self.where(path)} must be a table")
        return dict(table)

    def where(self, path: Iterable[str] = ()) -> str:
        return f"[{'.'.join(('tool', 'evworker', *path))}] of {self.file}"


def read_settings(verbs: Iterable[str]) -> Settings:
    """The settings that hold in the working directory; refuses what no verb could use."""
    file = _nearest_pyproject(Path.cwd())
    if file is None:
        return Settings()
    found = _read_table(file)
    tables = {name: value for name, value in found.items() if isinstance(value, dict)}
    settings = Settings(
        file, {name: value for name, value in found.items() if name not in tables}, tables
    )
    _refuse_unknown(settings.shared, SHARED, settings.where(), or_else=verbs)
    _refuse_unknown(settings.tables, verbs, settings.where(), or_else=SHARED)
    return settings


class Verb(click.Command):
    """A command that takes its options' defaults from the settings, and refuses unknown ones."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        settings, path = _found(info_name, parent)
        options = {
            option.removeprefix("--"): param
            for param in self.params
            for option in param.opts
            if option.startswith("--")
        }
        table = settings.table(path)
        _refuse_unknown(table, options, settings.where(path))
        values = {name: settings.shared[name] for name in settings.shared if name in options}
        extra["default_map"] = {
            str(options[name].name): _as_given(options[name], value)
            for name, value in (values | dict(table)).items()
        }
        return super().make_context(info_name, args, parent, **extra)


class VerbGroup(click.Group):
    """A group whose unknown verbs are answered with the known ones."""

    command_class = Verb

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        settings, path = _found(info_name, parent)
        _refuse_unknown(settings.table(path), self.commands, settings.where(path))
        return super().make_context(info_name, args, parent, **extra)

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002 - click asks so
        formatter: click.HelpFormatter,
    ) -> None:
        lines = self.lines()
        if lines:
            with formatter.section("Verbs"):
                formatter.write_dl(lines)

    def lines(self) -> list[tuple[str, str]]:
        """Each verb with the line that says what it does."""
        return [(verb, command.get_short_help_str(80)) for verb, command in self.commands.items()]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        command = self.get_command(ctx, name)
        if command is None and not ctx.resilient_parsing:
            if name.startswith("-"):
                self.parse_args(ctx, args)  # an option that doesn't exist: click says so
            known = self.list_commands(ctx)
            there = f"{did_you_mean(name, known)} There are: {', '.join(known)}"
            raise click.UsageError(f"there is no verb {name!r}{there}", ctx)
        return name, command, args[1:]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'publish'?`` where something comes close, else a full stop."""
    from difflib import get_close_matches

    close = get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else "."


def _found(name: str | None, parent: click.Context | None) -> tuple[Settings, tuple[str, ...]]:
    """The settings that the root has read, and the path of the verb that is being called."""
    if parent is None:
        return Settings(), ()
    settings = parent.find_object(Settings) or Settings()
    path = [name or ""]
    while parent is not None and parent.parent is not None:
        path.insert(0, parent.info_name or "")
        parent = parent.parent
    return settings, tuple(path)


def _as_given(option: click.Parameter, value: Any) -> Any:
    # click would take a lone string for a list of letters.
    return [value] if getattr(option, "multiple", False) and isinstance(value, str) else value


def _nearest_pyproject(start: Path) -> Path | None:
    candidates = (folder / "pyproject.toml" for folder in (start, *start.parents))
    return next((file for file in candidates if file.is_file()), None)


def _read_table(file: Path) -> dict[str, Any]:
    import tomllib

    try:
        tools = tomllib.loads(file.read_text(encoding="utf-8")).get("tool", {})
    except (OSError, ValueError) as error:  # what TOML and UTF-8 raise are ValueErrors
        raise UsageError(f"can't read {file}: {error}") from error
    table = tools.get("evworker", {})
    if not isinstance(table, dict):
        raise UsageError(f"evworker in {file} must be a table: [tool.evworker]")
    hyphened: dict[str, Any] = _hyphened(table)
    return hyphened


def _hyphened(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {name.replace("_", "-"): _hyphened(inner) for name, inner in value.items()}


def _refuse_unknown(
    found: Iterable[str], known: Iterable[str], where: str, *, or_else: Iterable[str] = ()
) -> None:
    known = list(known)
    for name in found:
        if name not in known:
            suggestion = did_you_mean(name, [*known, *or_else])
            raise UsageError(
                f"unknown setting {name!r} in {where}{suggestion} There are: {', '.join(known)}",
            )
