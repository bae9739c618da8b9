"""The transaction of one attempt: the inbox row first, then all that the handler does, or nothing.

Nobody ends it but the attempt. A handler that commits is refused there and then; whatever else may
have ended or broken it, a rollback, a deadlock, an error of a constraint that was caught, is found
out before the commit: it must be the transaction that was begun, with the inbox row in it. The row
alone would not tell, since a duplicate that waited for it writes the same one.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, cast

import structlog
from sqlalchemy import Connection, bindparam, event, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from evworker.broker import DatabaseError, DatabaseUnreachableError, TransactionError
from evworker.broker.database.engine import address_of, explained
from evworker.broker.database.tables import inbox

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import CursorResult
    from sqlalchemy.engine import ExceptionContext

    from evworker.broker import Envelope, Event, Outbox

log = structlog.get_logger("evworker.transaction")

COMMIT_TIMEOUT_S = 60.0
_ROLLBACK_TIMEOUT_S = 5.0

_STILL_THERE = select(inbox.c.event_id).where(
    inbox.c.consumer == bindparam("consumer"), inbox.c.event_id == bindparam("event_id")
)


class Transaction:
    """What is begun with its inbox row written, and ends once."""

    def __init__(self, engine: AsyncEngine, outbox: Outbox, ended: Callable[[], None]) -> None:
        """`ended` is called once, when the database is done with it."""
        self.session = AsyncSession(engine, expire_on_commit=False, close_resets_only=False)
        self._engine = engine
        self._outbox = outbox
        self._ended = ended
        self._publishing = asyncio.Lock()
        self._row: dict[str, str] = {}
        self._begun: object = None
        self._open = True

    async def insert(self, statement: Any, row: dict[str, str]) -> bool:
        """Write the inbox row; False when it is there. Waits for who is about to commit it.

        Raises what the driver raises.
        """
        self._row = row
        result = cast("CursorResult[Any]", await self.session.execute(statement, row))
        self._begun = (await self.session.run_sync(Session.connection)).get_transaction()
        return result.rowcount > 0

    async def publish(
        self,
        event: Event,
        *,
        cause: Envelope,
        key: str | None,
        priority: int | None,
        id: str | None,
        headers: Mapping[str, str | int | float | bool | None] | None,
    ) -> Envelope:
        """Write an event into the outbox; raises as `Outbox.add` does."""
        async with self._publishing:  # a session does one thing at a time, a handler may gather
            return await self._outbox.add(
                self.session,
                event,
                key=key,
                priority=priority,
                id=id,
                headers=headers,
                cause=cause,
            )

    async def commit(self) -> None:
        """Make it all so; raises TransactionError if there is no longer a whole to commit.

        An error of the connection is a DatabaseUnreachableError, and the database may have
        committed: the next delivery will find the inbox row, or find nothing.
        """
        try:
            async with asyncio.timeout(COMMIT_TIMEOUT_S):
                await self.session.run_sync(self._commit)
        except TimeoutError as error:
            raise DatabaseUnreachableError(
                f"no answer to a commit in {address_of(self._engine)} for {COMMIT_TIMEOUT_S:g} s"
            ) from error
        self._open = False
        self._ended()

    def _commit(self, session: Session) -> None:
        session.flush()
        connection = session.connection()
        if (
            connection.get_transaction() is not self._begun
            or connection.info.get(_LOST) is self._begun
            or session.execute(_STILL_THERE, self._row).first() is None
        ):
            raise TransactionError(
                "the handler's transaction was rolled back before the handler returned, so that "
                "nothing of it can be committed; roll back a part with "
                "`async with ctx.session.begin_nested()`, and let errors of the database through"
            )
        token = _may_commit.set(True)
        try:
            session.commit()
        except BaseException:
            _roll_back_underneath(connection)
            raise
        finally:
            _may_commit.reset(token)
        session.close()

    async def roll_back(self) -> None:
        """Leave nothing behind; does nothing after a commit. Never raises, and can't be cancelled.

        A connection over which the database can't be told is closed, which tells it too.
        """
        if not self._open:
            return
        self._open = False
        closing = asyncio.ensure_future(self._close())
        while not closing.done():
            try:
                await asyncio.shield(closing)
            except asyncio.CancelledError:
                continue  # whoever cancels waits, and `_close` does not take long
        self._ended()

    async def _close(self) -> None:
        for close in (Session.close, Session.invalidate):
            try:
                async with asyncio.timeout(_ROLLBACK_TIMEOUT_S):
                    await self.session.run_sync(close)
            except Exception as error:  # noqa: BLE001 - of a driver whose connection is broken
                log.debug("could not roll back", error=str(error))
            else:
                return

    def told(self, error: BaseException) -> BaseException:
        """The error as the kill switch knows it, if it says that the database is away."""
        if isinstance(error, SQLAlchemyError) and not isinstance(error, DatabaseError):
            known = explained(error, f"the transaction was lost in {address_of(self._engine)}")
            if isinstance(known, DatabaseUnreachableError):
                known.__cause__ = error
                return known.with_traceback(error.__traceback__)
        return error


_may_commit: ContextVar[bool] = ContextVar("evworker_may_commit", default=False)


# What ends a transaction when it is sent as text; MySQL commits it for each of `_COMMITS_ON_MYSQL`
# too (https://mariadb.com/kb/en/sql-statements-that-cause-an-implicit-commit/).
_BLANK = r"(\s|/\*(?!!).*?\*/|--[^\n]*\n)*"
_ENDS = re.compile(
    _BLANK + r"(COMMIT|END|ABORT|ROLLBACK(?!(\s+(WORK|TRANSACTION))?\s+TO))\b",
    re.IGNORECASE | re.DOTALL,
)
_COMMITS_ON_MYSQL = re.compile(
    _BLANK + r"(BEGIN|START\s+TRANSACTION|(CREATE|DROP)\s+(?!TEMPORARY\b)|ALTER|RENAME|TRUNCATE"
    r"|LOCK\s+TABLES?|GRANT|REVOKE|ANALYZE|OPTIMIZE|REPAIR|FLUSH"
    r"|SET\s+(SESSION\s+|@@|@@SESSION\.)?AUTOCOMMIT)\b",
    re.IGNORECASE | re.DOTALL,
)

# MySQL rolls all back for these, and begins another transaction with the next statement.
_LOST_ALL = (1020, 1213)
_LOST = "evworker lost"


def guarded(engine: AsyncEngine) -> AsyncEngine:
    """The engine, over the same pool, with all refused that would end the attempt's transaction."""
    ours = engine.execution_options()
    event.listen(ours.sync_engine, "commit", _refuse)
    event.listen(ours.sync_engine, "before_cursor_execute", _refuse_statement)
    event.listen(ours.sync_engine, "handle_error", _remember)
    return ours


def _roll_back_underneath(connection: Connection) -> None:
    """Roll back what the driver has begun, after a commit that failed or was refused.

    SQLAlchemy takes its transaction for over then, and gives the connection back to the pool
    without a rollback. Where the database has not ended it, and it does not know of a refusal, the
    locks would stay, and whoever has the connection next would commit the inbox row of this
    attempt with its own.
    """
    if connection.closed or connection.invalidated:
        return
    try:
        connection.dialect.do_rollback(connection.connection)
    except BaseException as error:
        connection.invalidate()
        if not isinstance(error, Exception):
            raise
        log.debug("could not roll back", error=str(error))


def _refuse(connection: Connection) -> None:
    if not _may_commit.get():
        _roll_back_underneath(connection)
        raise TransactionError(
            "the handler can't commit: its transaction is committed when it returns, together "
            "with the inbox row; remove the commit"
        )


def _refuse_statement(
    connection: Connection, _cursor: object, statement: str, *_others: object
) -> None:
    is_mysql = connection.dialect.name in ("mysql", "mariadb")
    if _ENDS.match(statement) or (is_mysql and _COMMITS_ON_MYSQL.match(statement)):
        raise TransactionError(
            f"the handler can't send {statement.strip()[:40]!r}: it would end the transaction, "
            "which is committed when the handler returns, together with the inbox row"
        )


def _remember(context: ExceptionContext) -> None:
    number = next(iter(context.original_exception.args), None)
    if number in _LOST_ALL and context.connection is not None:
        context.connection.info[_LOST] = context.connection.get_transaction()
