"""Order lines as they really come: fees, floats, blanks, gaps, and things that are no orders."""

import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from evworker.broker import Envelope
from shop.events import Fee, OrderCancelled, OrderLine, OrderPlaced
from shop.orders_from_csv import convert, main

EXAMPLES = Path(__file__).parents[2] / "examples"

COLUMNS = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country"

DIRTY = """\
536365,85123A,WHITE HANGING  HEART ,6,2010-12-01 08:26:00,2.55,17850.0,United Kingdom
536365,71053,WHITE METAL LANTERN,1,2010-12-01 08:26:00,3.39,17850.0,United Kingdom
536370,POST,POSTAGE,3,2010-12-01 08:45:00,18.0,12583.0,France
536370,22728,"RECORD FRAME 7"" SINGLE, SIZE",24,2010-12-01 08:45:00,3.75,12583.0,France
C536379,D,Discount,-1,2010-12-01 09:41:00,27.5,14527.0,United Kingdom
C536391,22556,PLASTERS IN TIN ,-12,2010-12-01 10:24:00,1.65,17548.0,United Kingdom
536414,22139,,56,2010-12-01 11:52:00,0.0,,United Kingdom
536544,21773,DECORATIVE ROSE,1,2010-12-01 14:32:00,2.51,,United Kingdom
536589,21777,,-10,2010-12-01 16:50:00,0.0,,United Kingdom
"""


def converted(
    rows: str, capsys: pytest.CaptureFixture[str]
) -> tuple[Counter[str], list[Envelope], list[str]]:
    counts = convert([COLUMNS, *rows.splitlines()], "day.csv")
    written = capsys.readouterr()
    envelopes = [Envelope.parse(line.encode()) for line in written.out.splitlines()]
    return counts, envelopes, written.err.splitlines()


def test_every_invoice_is_an_event_or_is_named_with_the_reason(
    capsys: pytest.CaptureFixture[str],
) -> None:
    counts, envelopes, refused = converted(DIRTY, capsys)
    assert counts == {
        "lines": 9,
        "invoices": 7,
        "orders.placed": 3,
        "orders.cancelled": 2,
        "no event": 2,
    }
    assert len(envelopes) == 5
    assert refused == [
        f"day.csv: invoice {number}: nothing has a price: a correction of the stock, and no order"
        for number in (536414, 536589)
    ]


def test_an_order_carries_all_there_is_to_know(capsys: pytest.CaptureFixture[str]) -> None:
    _, [first, second, *_], _ = converted(DIRTY, capsys)
    assert first.topic == "orders.placed"
    assert first.time == datetime(2010, 12, 1, 8, 26, tzinfo=UTC)
    assert first.key == "536365"
    assert first.decode(OrderPlaced) == OrderPlaced(
        order_id="536365",
        customer_id="17850",
        country="United Kingdom",
        total=Decimal("18.69"),
        lines=(
            OrderLine("85123A", "WHITE HANGING HEART", 6, Decimal("2.55")),
            OrderLine("71053", "WHITE METAL LANTERN", 1, Decimal("3.39")),
        ),
    )
    order = second.decode(OrderPlaced)
    assert order.lines == (OrderLine("22728", 'RECORD FRAME 7" SINGLE, SIZE', 24, Decimal("3.75")),)
    assert order.fees == (Fee("POST", "POSTAGE", Decimal("54.0")),)
    assert order.total == Decimal("144.00")


def test_a_cancellation_gives_back_goods_and_fees(capsys: pytest.CaptureFixture[str]) -> None:
    _, envelopes, _ = converted(DIRTY, capsys)
    discount, goods = (
        envelope.decode(OrderCancelled)
        for envelope in envelopes
        if envelope.topic == "orders.cancelled"
    )
    assert (discount.total, discount.lines) == (Decimal("27.5"), ())
    assert discount.fees == (Fee("D", "Discount", Decimal("27.5")),)
    assert goods.lines == (OrderLine("22556", "PLASTERS IN TIN", 12, Decimal("1.65")),)
    assert goods.total == Decimal("19.80")


def test_an_order_without_a_customer_is_an_order(capsys: pytest.CaptureFixture[str]) -> None:
    _, envelopes, _ = converted(DIRTY, capsys)
    orders = [e.decode(OrderPlaced) for e in envelopes if e.topic == "orders.placed"]
    assert [order.customer_id for order in orders] == ["17850", "12583", None]


def test_the_same_file_gives_the_same_events(capsys: pytest.CaptureFixture[str]) -> None:
    _, once, _ = converted(DIRTY, capsys)
    _, again, _ = converted(DIRTY, capsys)
    assert once == again
    assert len({envelope.id for envelope in once}) == len(once)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("1,22139,X,six,2010-12-01 11:52:00,1.5,,UK", "line 2: Quantity is 'six'"),
        ("1,22139,X,6,2010-12-01 11:52:00,NaN,,UK", "line 2: UnitPrice is 'NaN'"),
        ("1,22139,X,6,2010-12-01 11:52:00,-1.5,,UK", "line 2: UnitPrice is '-1.5'"),
        ("1,22139,X,6,yesterday,1.5,,UK", "line 2: InvoiceDate is 'yesterday'"),
        ("1,22139,X,6,2010-12-01 11:52:00,1.5,ada,UK", "line 2: CustomerID is 'ada'"),
        ("1,22139,X,6,2010-12-01 11:52:00,1.5,1", "line 2: Country is None"),
        ("1,22139,X,-6,2010-12-01 11:52:00,1.5,,UK", "a line with a negative quantity"),
        ("C1,22139,X,6,2010-12-01 11:52:00,1.5,,UK", "a line with a positive quantity"),
        ("1,D,Discount,-1,2010-12-01 11:52:00,1.5,,UK", "its total is -1.5"),
        ("A1,B,Adjust,1,2010-12-01 11:52:00,1.5,,UK", "not a number of an order"),
        (",22139,X,6,2010-12-01 11:52:00,1.5,,UK", "no invoice number"),
        (
            "1,1,X,6,2010-12-01 11:52:00,1.5,7,UK\n1,2,Y,6,2010-12-01 11:52:00,1.5,8,UK",
            "its lines name different customers",
        ),
    ],
)
def test_what_cannot_become_an_event_says_why(
    row: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    counts, envelopes, refused = converted(row, capsys)
    assert not envelopes
    assert counts["no event"] == counts["invoices"] == 1
    assert refused[0].endswith(f": {reason}")


def test_lines_of_one_invoice_need_not_stand_together(capsys: pytest.CaptureFixture[str]) -> None:
    apart = [
        "1,22139,X,1,2010-12-01 11:53:00,1.5,7,UK",
        "2,22139,X,1,2010-12-01 11:52:00,1.5,8,UK",
        "1,22140,Y,1,2010-12-01 11:52:00,2.5,7,UK",
    ]
    _, envelopes, _ = converted("\n".join(apart), capsys)
    first = envelopes[0]
    assert first.decode(OrderPlaced).total == Decimal("4.0")
    assert first.time == datetime(2010, 12, 1, 11, 52, tzinfo=UTC)


def test_a_file_without_the_columns_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong.csv"
    wrong.write_text("a,b\n1,2\n")
    with pytest.raises(SystemExit, match=r"no column Country, .*UnitPrice"):
        main([str(wrong)])
    with pytest.raises(SystemExit, match="can't read"):
        main([str(tmp_path / "missing.csv")])
    assert not capsys.readouterr().out


def test_as_a_command_it_reads_stdin_and_reports_on_stderr() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "shop.orders_from_csv", "-"],
        input=f"{COLUMNS}\n{DIRTY}",
        cwd=EXAMPLES,
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(result.stdout.splitlines()) == 5
    assert result.stderr.splitlines()[-1] == (
        "-: 9 lines, 7 invoices: 3 placed, 2 cancelled, 2 without an event"
    )
