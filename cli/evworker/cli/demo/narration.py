"""How the demo looks: colours and boxes on a terminal, the same lines plain in a pipe."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

_PIPE_WIDTH = 110
_INDENT = 4


class Narration:
    """Tells a story on stdout, step by step."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        if not self._console.is_terminal:
            self._console = Console(highlight=False, width=_PIPE_WIDTH)
        self._steps = 0

    def title(self, text: str, subtitle: str) -> None:
        self._console.print()
        self._print(Text.assemble((text, "bold"), "  ", (subtitle, "dim")), indent=1)

    def step(self, heading: str) -> None:
        """A numbered heading."""
        self._steps += 1
        self._console.print()
        self._print(
            Text.assemble((f"{self._steps}", "bold cyan"), "  ", (heading, "bold")), indent=1
        )

    def say(self, text: str, style: str = "") -> None:
        self._print(Text(text, style=style))

    def code(self, *objects: Callable[..., Any]) -> None:
        """The source of classes and functions as their author wrote it, decorators included."""
        source = "\n\n".join(textwrap.dedent(inspect.getsource(one)).strip() for one in objects)
        if self._console.is_terminal:
            syntax = Syntax(source, "python", theme="ansi_dark", background_color="default")
            self._print(Panel(syntax, box=box.ROUNDED, border_style="dim", expand=False))
        else:
            self.say(f"{source}\n")

    def fields(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Names and values, one pair a line."""
        width = max(len(name) for name, _ in pairs)
        for name, value in pairs:
            self._print(Text.assemble((f"{name:<{width}}  ", "cyan"), value))

    def command(self, command: str, purpose: str) -> None:
        """A command to copy, under what it is for."""
        self._print(Text(f"# {purpose}", style="dim"))
        self._print(Text(command, style="bold"))

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str | int]]) -> None:
        """Numbers are aligned to the right; the last row is set apart as a total."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
        for index, name in enumerate(columns):
            numeric = all(isinstance(row[index], int) for row in rows)
            table.add_column(name, justify="right" if numeric else "left")
        for row in rows[:-1]:
            table.add_row(*(Text(str(cell)) for cell in row))
        table.add_section()
        table.add_row(*(Text(str(cell), style="bold") for cell in rows[-1]))
        self._print(table)

    def moment(self, seconds: float, who: str, what: str, sign: str, style: str, text: str) -> None:
        """One line of what happens while the audience watches."""
        self._print(
            Text.assemble(
                (f"{seconds:6.2f} s  ", "dim"),
                (f"{who:<14}", "cyan"),
                f"{what:<28}",
                (f"{sign} {text}", style),
            )
        )

    def _print(self, thing: Any, indent: int = _INDENT) -> None:
        if isinstance(thing, Text):
            margin = " " * indent
            lines = [
                Text(margin) + line if line else line
                for line in thing.split("\n", allow_blank=True)
            ]
            # Wrapped by the terminal and not by us: a line in a pipe stays a line.
            self._console.print(Text("\n").join(lines), soft_wrap=True)
            return
        with self._console.capture() as drawn:
            self._console.print(Padding(thing, (0, 0, 0, indent)))
        for line in drawn.get().rstrip().splitlines():
            self._console.out(line.rstrip(), highlight=False)
