"""Ten thousand letters of ten kinds: grouped, one kind replayed, one edited, the rest purged."""

from __future__ import annotations

from evworker.broker import (
    Connection,
    LetterFilter,
    browse_dead_letters,
    count_messages,
    edit_dead_letter,
    edited_envelope,
    group_dead_letters,
    purge_dead_letters,
    replay_dead_letters,
)
from tests.broker.deadletters.letters import Sent, failed, ids_in, order, put

KINDS = 10
OF_EACH = 1_000


def one(number: int) -> Sent:
    return order(number, failure=failed(f"shop.Kind{number % KINDS}", traceback="t" * 2_000))


async def test_the_sums_are_right_of_ten_kinds_of_letters(
    connection: Connection, queue: str, letters: str
) -> None:
    for start in range(0, KINDS * OF_EACH, OF_EACH):
        await put(connection, letters, map(one, range(start, start + OF_EACH)))
    groups = await group_dead_letters(connection, letters)
    assert [group.count for group in groups] == [OF_EACH] * KINDS

    kind = next(group for group in groups if group.error_type == "shop.Kind3")
    done = await replay_dead_letters(connection, letters, LetterFilter(groups=(kind.group,)))
    assert (done.waiting, done.replayed) == (KINDS * OF_EACH, OF_EACH)

    (letter,) = await browse_dead_letters(connection, letters, 5, LetterFilter(ids=("id-5004",)))
    assert await edit_dead_letter(connection, letters, letter, edited_envelope(letter, b"{}"))
    left = [n for n in range(KINDS * OF_EACH) if n % KINDS != 3 and n != 5_004]
    assert await ids_in(connection, letters) == [f"id-{n}" for n in left]
    assert await purge_dead_letters(connection, letters) == len(left)
    assert await count_messages(connection, letters) == 0
    there = await ids_in(connection, queue)
    assert there[:OF_EACH] == [f"id-{n}" for n in range(3, KINDS * OF_EACH, KINDS)]
    assert len(there) == OF_EACH + 1
