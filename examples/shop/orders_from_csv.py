"""Order lines in, events out: one CloudEvents document a line, for `evworker publish --ndjson -`.

    python -m shop.orders_from_csv day.csv | evworker publish --ndjson -

Reads CSV files with the columns of the "Online Retail" data set (InvoiceNo, StockCode, Description,
Quantity, InvoiceDate, UnitPrice, CustomerID, Country). Each invoice becomes one OrderPlaced, or one
OrderCancelled if its number begins with C. What can't become an event is named on stderr, with the
reason, and counted: no invoice is dropped silently.
"""

import csv
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path

from evworker.broker import Envelope
from shop.events import Fee, OrderCancelled, OrderLine, OrderPlaced, id_of

COLUMNS = {
    "InvoiceNo", "StockCode", "Description", "Quantity",
    "InvoiceDate", "UnitPrice", "CustomerID", "Country",
}  # fmt: skip

# Lines with these codes are no goods: postage, carriage, a discount, a manual entry, …
FEES = {"POST", "DOT", "C2", "D", "M", "S", "BANK CHARGES", "AMAZONFEE", "CRUK"}


class NotAnEvent(Exception):  # noqa: N818 - it need not be an error
    """Why an invoice can't become an event."""


@dataclass(frozen=True)
class Row:
    """One line of the CSV, cleaned."""

    code: str
    description: str
    quantity: int
    price: Decimal
    time: datetime
    customer: str | None
    country: str


def invoices(
    lines: Iterable[str], file: str
) -> Iterator[tuple[str, list[tuple[int, dict[str, str]]]]]:
    """Each invoice's number and its lines, which need not stand together, with their positions."""
    reader = csv.DictReader(lines)
    if missing := COLUMNS - set(reader.fieldnames or ()):
        raise SystemExit(f"{file}: no column {', '.join(sorted(missing))}")
    found: dict[str, list[tuple[int, dict[str, str]]]] = {}
    for line in reader:
        number = (line["InvoiceNo"] or "").strip().upper()
        found.setdefault(number, []).append((reader.line_num, line))
    yield from found.items()


def clean(position: int, line: dict[str, str]) -> Row:
    """Read one line; raises NotAnEvent that says which field is wrong."""
    field = ""
    try:
        values = {}
        for field in COLUMNS:  # a short line has None where fields are missing
            values[field] = " ".join(line[field].split())  # no blanks around, none doubled
        field = "Quantity"
        quantity = int(values[field])
        field = "UnitPrice"
        price = Decimal(values[field])
        if not price.is_finite() or price < 0:
            raise ValueError(price)
        field = "InvoiceDate"
        # The data names no time zone; London's winter time is UTC.
        time = datetime.fromisoformat(values[field]).replace(tzinfo=UTC)
    except (AttributeError, ValueError, InvalidOperation):
        raise NotAnEvent(f"line {position}: {field} is {line[field]!r}") from None
    return Row(
        code=values["StockCode"].upper(),
        description=values["Description"],
        quantity=quantity,
        price=price,
        time=time,
        customer=customer_id(position, values["CustomerID"]),
        country=values["Country"],
    )


def customer_id(position: int, text: str) -> str | None:
    """Some program took the ids for floats: 17850.0 is customer 17850."""
    if not text:
        return None
    if number := re.fullmatch(r"(\d+)(\.0*)?", text):
        return number[1]
    raise NotAnEvent(f"line {position}: CustomerID is {text!r}")


def envelope(invoice: str, lines: list[tuple[int, dict[str, str]]]) -> Envelope:
    """The invoice as an event in its envelope; raises NotAnEvent.

    Its id is made from the invoice's number, and its time is the invoice's: the same file gives the
    same events, and whoever keeps ids can tell that they came twice.
    """
    if not re.fullmatch(r"C?\d+", invoice):
        raise NotAnEvent("no invoice number" if not invoice else "not a number of an order")
    cancelled = invoice.startswith("C")
    rows = [clean(position, line) for position, line in lines]
    customers = {row.customer for row in rows}
    if len(customers) > 1:
        raise NotAnEvent("its lines name different customers")
    if all(row.price == 0 for row in rows):
        raise NotAnEvent("nothing has a price: a correction of the stock, and no order")
    sign = -1 if cancelled else 1  # what comes back has a negative quantity
    goods = [row for row in rows if row.code not in FEES]
    if any(sign * row.quantity <= 0 for row in goods):
        raise NotAnEvent(f"a line with a {'positive' if cancelled else 'negative'} quantity")
    total = sum((sign * row.quantity * row.price for row in rows), Decimal(0))
    if total <= 0:
        raise NotAnEvent(f"its total is {total}")
    order_lines = tuple(
        OrderLine(row.code, row.description, sign * row.quantity, row.price) for row in goods
    )
    fees = tuple(
        Fee(row.code, row.description, sign * row.quantity * row.price)
        for row in rows
        if row.code in FEES
    )
    event: OrderPlaced | OrderCancelled
    if cancelled:
        event = OrderCancelled(
            cancellation_id=invoice,
            customer_id=rows[0].customer,
            country=rows[0].country,
            total=total,
            lines=order_lines,
            fees=fees,
        )
    else:
        event = OrderPlaced(
            order_id=invoice,
            customer_id=rows[0].customer,
            country=rows[0].country,
            total=total,
            lines=order_lines,
            fees=fees,
        )
    return Envelope.wrap(
        event,
        source="shop.orders_from_csv",
        id=id_of(f"invoice {invoice}"),
        key=invoice,
        time=min(row.time for row in rows),
    )


def convert(lines: Iterable[str], file: str) -> Counter[str]:
    """Write the events of one file to stdout, and what is none to stderr; returns how many."""
    counts: Counter[str] = Counter()
    for invoice, its_lines in invoices(lines, file):
        counts["invoices"] += 1
        counts["lines"] += len(its_lines)
        try:
            document = envelope(invoice, its_lines)
        except NotAnEvent as reason:
            counts["no event"] += 1
            print(f"{file}: invoice {invoice or '?'}: {reason}", file=sys.stderr)
        else:
            counts[document.topic] += 1
            print(document.encode().decode())
    return counts


def main(files: list[str]) -> None:
    if not files:
        raise SystemExit("usage: python -m shop.orders_from_csv FILE.csv…    (- is stdin)")
    for file in files:
        try:
            if file == "-":
                counts = convert(sys.stdin, "stdin")
            else:
                with Path(file).open(newline="", encoding="utf-8") as lines:
                    counts = convert(lines, Path(file).name)
        except BrokenPipeError:
            raise SystemExit("whoever was to read the events has gone") from None
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise SystemExit(f"can't read {file}: {error}") from error
        print(
            f"{file}: {counts['lines']} lines, {counts['invoices']} invoices: "
            f"{counts['orders.placed']} placed, {counts['orders.cancelled']} cancelled, "
            f"{counts['no event']} without an event",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
