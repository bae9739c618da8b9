"""The store beside a model of it: any order of claims, publishes, refusals, crashes and retries.

The model says which rows a claim must take, to the row; the machine checks that no row has two live
claims, that a claim which is over ends nothing, that the first arrivals of a key are in order, and
that in the end everything has arrived.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from evworker.broker.database.engine import open_engine
from evworker.broker.database.schema import make_tables
from evworker.broker.outbox import store as store_room
from evworker.broker.outbox.operating import retry_dead
from evworker.broker.outbox.store import OutboxStore, Refusal
from tests.broker.outbox.written import let_time_pass, states, write
from tests.databases import own_database

T = TypeVar("T")

RELAYS = 3
ATTEMPTS = 2
HIDDEN = ("claimed", "waiting")


@dataclass
class ModelRow:
    seq: int
    key: str | None
    state: str = "ready"
    attempts: int = 0
    is_scheduled: bool = False
    is_over: bool = False
    """Its wait or its lease is: the next claim, by whomever, makes it ready."""
    token: str | None = None


@dataclass
class ModelClaim:
    relay: int
    token: str
    unsent: list[int]
    confirmed: list[int] = field(default_factory=list)


class StoreMachine(RuleBasedStateMachine):
    kind: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.opened = ExitStack()
        self.runner = self.opened.enter_context(asyncio.Runner())
        folder = Path(self.opened.enter_context(TemporaryDirectory()))
        self.engine = open_engine(self.opened.enter_context(own_database(self.kind, folder)))
        self.run(make_tables(self.engine))
        self.stores = [OutboxStore(self.engine, name="model") for _ in range(RELAYS)]
        self.rows: dict[int, ModelRow] = {}
        self.claims: list[ModelClaim] = []
        self.arrived: list[int] = []
        self.written: dict[int, ModelRow] = {}

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    @rule(keys=st.lists(st.sampled_from(["a", "a", "b", None]), min_size=1, max_size=5))
    def commit(self, keys: list[str | None]) -> None:
        for seq, key in zip(self.run(write(self.engine, *keys)), keys, strict=True):
            self.rows[seq] = self.written[seq] = ModelRow(seq, key)

    @rule(key=st.sampled_from([None, "a"]))
    def schedule(self, key: str | None) -> None:
        (seq,) = self.run(write(self.engine, key, due_in_s=3600.0))
        self.rows[seq] = self.written[seq] = ModelRow(seq, key, "waiting", is_scheduled=True)

    @rule(relay=st.integers(0, RELAYS - 1), limit=st.integers(1, 6))
    def claim_some(self, relay: int, limit: int) -> None:
        self.claim(relay, limit)

    def claim(self, relay: int, limit: int) -> None:
        for row in self.rows.values():
            if row.is_over:
                row.state, row.token, row.is_over = "ready", None, False
        expected = [row.seq for row in self.in_order() if self.is_claimable(row)][:limit]
        claim = self.run(self.stores[relay].claim(limit))
        assert (claim.seqs if claim else []) == expected
        if claim:
            for seq in expected:
                self.rows[seq].state, self.rows[seq].token = "claimed", claim.token
            self.claims.append(ModelClaim(relay, claim.token, expected))

    @precondition(lambda self: self.unsent())
    @rule(data=st.data(), rows=st.integers(1, 4))
    def publish(self, data: st.DataObject, rows: int) -> None:
        """Some rows more of a claim, as long as its lease lasts."""
        claim = data.draw(st.sampled_from(self.unsent()))
        for seq in claim.unsent[:rows]:
            if not self.is_live(seq, claim) or self.rows[seq].is_over:
                return
            claim.unsent.remove(seq)
            claim.confirmed.append(seq)
            self.arrived.append(seq)

    @precondition(lambda self: self.unsettled())
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        claim = data.draw(st.sampled_from(self.unsettled()))
        mine = [seq for seq in claim.confirmed if self.is_live(seq, claim)]
        settled = self.run(self.stores[claim.relay].settle(claim.token, claim.confirmed))
        assert settled == len(mine)
        for seq in mine:
            del self.rows[seq]
        claim.confirmed = []

    @precondition(lambda self: self.unsent())
    @rule(data=st.data())
    def refuse(self, data: st.DataObject) -> None:
        """The broker refuses the next row: it waits, and what is behind it goes back."""
        claim = data.draw(st.sampled_from(self.unsent()))
        seq, *others = claim.unsent
        key = self.written[seq].key
        behind = [other for other in others if key and self.written[other].key == key]
        store = self.stores[claim.relay]
        row = self.rows.get(seq)
        attempts = row.attempts + 1 if row else 1
        refusal = Refusal(seq, attempts, "no", 3600.0)
        is_live = row is not None and self.is_live(seq, claim)
        dead = self.run(
            store.back_off(claim.token, [refusal], dead_after_attempts=ATTEMPTS, dead_after_s=0.0)
        )
        if is_live and row is not None:
            assert dead == (attempts >= ATTEMPTS)
            row.state, row.attempts = ("dead" if dead else "waiting"), attempts
            row.token, row.is_over = None, False
        released = self.run(store.release(claim.token, behind)) if behind else 0
        mine = [other for other in behind if self.is_live(other, claim)]
        assert released == len(mine)
        for other in mine:
            row = self.rows[other]
            row.state, row.token, row.is_over = "ready", None, False
        claim.unsent = [other for other in others if other not in behind]
        self.claim(claim.relay, 6)

    @precondition(lambda self: any(row.state in HIDDEN for row in self.rows.values()))
    @rule(data=st.data())
    def let_it_end(self, data: st.DataObject) -> None:
        """A lease is over, after a crash or not; or a wait is."""
        hidden = [row.seq for row in self.in_order() if row.state in HIDDEN]
        some = data.draw(st.lists(st.sampled_from(hidden), min_size=1, unique=True))
        self.run(let_time_pass(self.engine, *some))
        for seq in some:
            self.rows[seq].is_over = True

    @precondition(lambda self: any(row.state == "claimed" for row in self.rows.values()))
    @rule(relay=st.integers(0, RELAYS - 1))
    def stand_still(self, relay: int) -> None:
        """Every relay does, for longer than its lease; the first to go on is this one."""
        held = [row.seq for row in self.in_order() if row.state == "claimed"]
        self.run(let_time_pass(self.engine, *held))
        for seq in held:
            self.rows[seq].is_over = True
        self.claim(relay, 6)

    @precondition(lambda self: any(row.state == "dead" for row in self.rows.values()))
    @rule()
    def retry(self) -> None:
        dead = [row for row in self.rows.values() if row.state == "dead"]
        assert self.run(retry_dead(self.engine)) == len(dead)
        for row in dead:
            row.state, row.attempts = "ready", 0

    @invariant()
    def first_arrivals_of_a_key_are_in_order(self) -> None:
        for key in ("a", "b"):
            first = [
                seq
                for seq in dict.fromkeys(self.arrived)
                if self.written[seq].key == key and not self.written[seq].is_scheduled
            ]
            assert first == sorted(first)

    def teardown(self) -> None:
        try:
            self.drain()
        finally:
            self.run(self.engine.dispose())
            self.opened.close()

    def drain(self) -> None:
        """A healthy relay comes by: nothing may be left, and nothing lost."""
        kept = {seq: row.state for seq, row in self.rows.items()}
        found = self.run(states(self.engine))
        assert found == kept
        self.run(retry_dead(self.engine))
        self.run(let_time_pass(self.engine))
        while claim := self.run(self.stores[0].claim(100)):
            self.arrived += claim.seqs
            assert self.run(self.stores[0].settle(claim.token, claim.seqs)) == len(claim.seqs)
        self.first_arrivals_of_a_key_are_in_order()
        assert set(self.arrived) == set(self.written)
        assert not self.run(states(self.engine))

    def unsent(self) -> list[ModelClaim]:
        return [claim for claim in self.claims if claim.unsent]

    def unsettled(self) -> list[ModelClaim]:
        return [claim for claim in self.claims if claim.confirmed]

    def in_order(self) -> list[ModelRow]:
        return sorted(self.rows.values(), key=lambda row: row.seq)

    def is_claimable(self, row: ModelRow) -> bool:
        return row.state == "ready" and not (
            row.key is not None
            and any(
                other.state in ("claimed", "dead")
                or (other.state == "waiting" and other.attempts > 0)
                for other in self.rows.values()
                if other.key == row.key and other.seq < row.seq
            )
        )

    def is_live(self, seq: int, claim: ModelClaim) -> bool:
        row = self.rows.get(seq)
        return row is not None and row.token == claim.token


class OnSqlite(StoreMachine):
    kind = "sqlite"


class OnPostgresql(StoreMachine):
    kind = "postgresql"


class OnMariadb(StoreMachine):
    kind = "mariadb"


QUICK = settings(
    stateful_step_count=40,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    # A failure is told at once: each step towards a shorter one would take a database of its own.
    phases=(Phase.explicit, Phase.generate),
    print_blob=True,
)

OnSqlite.TestCase.settings = settings(QUICK, max_examples=40)
OnPostgresql.TestCase.settings = settings(QUICK, max_examples=4)
OnMariadb.TestCase.settings = settings(QUICK, max_examples=4)


@pytest.fixture(autouse=True)
def _promoting_at_every_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_room, "_PROMOTE_EVERY_S", 0.0)


TestOnSqlite = OnSqlite.TestCase
TestOnPostgresql = pytest.mark.database(OnPostgresql.TestCase)
TestOnMariadb = pytest.mark.database(OnMariadb.TestCase)
