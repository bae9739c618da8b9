"""Groups and surveys: what there is of which kind, and when."""

from __future__ import annotations

from datetime import timedelta

from evworker.broker import (
    Connection,
    LetterFilter,
    group_dead_letters,
    purge_dead_letters,
    survey_dead_letters,
)
from tests.broker.deadletters.letters import AT, Sent, failed, ids_in, order, put

HOUR = timedelta(hours=1)


async def test_letters_are_grouped_by_how_they_failed(connection: Connection, letters: str) -> None:
    declined = failed("shop.CardDeclined")
    elsewhere = failed("shop.CardDeclined", frame="shop.refunds:refund")
    away = failed("builtins.ConnectionError", error_message="first", failed_at=AT + HOUR)
    later = failed("builtins.ConnectionError", error_message="last", failed_at=AT + 2 * HOUR)
    sent = [declined, elsewhere, away, declined, later, declined, away]
    await put(connection, letters, [order(n, failure=one) for n, one in enumerate(sent)])
    await put(connection, letters, [Sent(id="x", body=b"[")])
    groups = await group_dead_letters(connection, letters)
    assert [(one.count, one.error_type, one.frame) for one in groups] == [
        (3, "shop.CardDeclined", "shop.billing:charge"),
        (3, "builtins.ConnectionError", "shop.billing:charge"),
        (1, "shop.CardDeclined", "shop.refunds:refund"),
        (1, None, None),
    ]
    assert (groups[1].first_seen, groups[1].last_seen) == (AT + HOUR, AT + 2 * HOUR)
    assert (groups[1].example_id, groups[1].error_message) == ("id-4", "last")
    assert groups[3].reason == "unknown"
    # The fingerprint is what every other verb takes.
    only = LetterFilter(groups=(groups[1].group,))
    survey = await survey_dead_letters(connection, letters, only)
    assert (survey.waiting, survey.matched) == (8, 3)
    assert (survey.oldest, survey.newest) == (AT + HOUR, AT + 2 * HOUR)
    assert survey.reasons == {("failed", "builtins.ConnectionError"): 3}
    assert await purge_dead_letters(connection, letters, only) == 3
    assert await ids_in(connection, letters) == ["id-0", "id-1", "id-3", "id-5", "x"]


async def test_a_purge_has_a_limit_and_keeps_the_order_of_the_rest(
    connection: Connection, letters: str
) -> None:
    await put(connection, letters, map(order, range(100)))
    assert await purge_dead_letters(connection, letters, limit=30) == 30
    assert await ids_in(connection, letters) == [f"id-{number}" for number in range(30, 100)]
    assert await purge_dead_letters(connection, letters) == 70
    assert await purge_dead_letters(connection, letters) == 0
