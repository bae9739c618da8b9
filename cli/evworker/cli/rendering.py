"""What goes to stdout: tables for people, aligned lines for pipes, JSON for programs."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterable, Sequence
from datetime import datetime

import click

GAP = "  "

# Marks that have what follows shown from right to left, or in another order.
_REORDERING = frozenset(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A))))


def on_terminal() -> bool:
    return sys.stdout.isatty()


def show_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on a terminal; in a pipe a heading and lines with aligned columns, nothing cut off.

    Numbers are aligned to the right, and None is shown as a dash.
    """
    rows = list(rows)
    numeric = [any(isinstance(row[index], int) for row in rows) for index in range(len(columns))]
    cells = [[_cell(value) for value in row] for row in rows]
    show = _show_rich if on_terminal() else _show_plain
    show(columns, cells, numeric)


def show_json(value: object) -> None:
    """One JSON document, indented. ``msgspec.Raw`` in it stays as it was written."""
    import msgspec

    encoded = msgspec.json.encode(value)
    click.echo(msgspec.json.format(encoded, indent=2).decode())


def show_json_line(value: object) -> None:
    """One JSON document on one line, for verbs that stream."""
    import msgspec

    encoded = msgspec.json.encode(value)
    click.echo(msgspec.json.format(encoded, indent=-1).decode())


def printable(text: str) -> str:
    """The text without what a terminal would obey: anybody may have published it."""
    return "".join(
        char if char in "\n\t" or not _is_obeyed(char) else _escape(char) for char in text
    )


def escaped(body: bytes) -> str:
    """Bytes as text; what is no UTF-8, and no printable character, as escapes."""
    text = body.decode("utf-8", "backslashreplace")
    return "".join(_escape(char) if _is_obeyed(char) else char for char in text)


def clock_time(time: datetime | None) -> str:
    """The local time, to the second; a dash for none."""
    return time.astimezone().strftime("%Y-%m-%d %H:%M:%S") if time else "-"


def age(seconds: float) -> str:
    """``12d 4h``, ``3m 20s``, ``0.4s``: as much as a person wants to know."""
    if seconds < 10:
        return f"{max(seconds, 0):.1f}".removesuffix(".0") + "s"
    left, told = round(seconds), []
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        number, left = divmod(left, length)
        if number:
            told.append(f"{number:,}{unit}")
        elif told:
            break
    return " ".join(told[:2])


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """``1 queue``, ``1,200 queues``."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def _is_obeyed(char: str) -> bool:
    return char in _REORDERING or unicodedata.category(char) in ("Cc", "Cs")


def _escape(char: str) -> str:
    return char.encode("unicode_escape", "surrogatepass").decode()


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else printable(str(value)).replace("\n", " ")


def _show_plain(
    columns: Sequence[str], cells: Sequence[Sequence[str]], numeric: Sequence[bool]
) -> None:
    headings = [column.upper() for column in columns]
    widths = [max(map(len, texts)) for texts in zip(headings, *cells, strict=True)]
    for row in (headings, *cells):
        aligned = [
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(row, widths, numeric, strict=True)
        ]
        click.echo(GAP.join(aligned).rstrip())


def _show_rich(
    columns: Sequence[str], cells: Sequence[Sequence[str]], numeric: Sequence[bool]
) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for name, right in zip(columns, numeric, strict=True):
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in cells:
        table.add_row(*map(Text, row))  # as Text: a queue named "[red]" is no markup
    Console().print(table)
