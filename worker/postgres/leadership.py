"""One active process of a kind: the leader holds an advisory lock, the others wait for it.

The lock belongs to a transaction that stays open, not to a session: so it works through a transaction pooler.
That transaction has no snapshot and no id, and holds up no vacuum. PostgreSQL ends it when the leader has not
been heard for a while: a leader that is frozen, or whose network is gone without a word, would else hold the
lock for hours.
"""

from __future__ import annotations

import asyncio

import asyncpg
import structlog

from worker.errors import Fatal, ServiceUnavailable, Transient
from worker.postgres.connect import connect
from worker.postgres.faults import FAULTS, Action, action_for, describe
from worker.retry import Backoff

_log = structlog.get_logger()

_LEASE = 10  # seconds that a leader may be silent
_BEGIN = f"BEGIN; SET LOCAL idle_in_transaction_session_timeout = '{_LEASE}s'"
_TRY = "SELECT pg_try_advisory_xact_lock(hashtextextended($1, 0))"
_ASK_EVERY = 1.0  # seconds
_ANSWER_WITHIN = 5.0  # seconds


class Leadership:
    """The lock named ``name``. Two leaders at once, while a connection dies, must do no harm."""

    def __init__(self, dsn: str, name: str) -> None:
        self._dsn, self._name = dsn, f"crossfade {name}"
        self._connection: asyncpg.Connection | None = None

    async def acquire(self) -> None:
        """Return as the leader; until then stand by, while PostgreSQL is away too.

        `UsageError` when PostgreSQL cannot be asked at all at first.
        """
        if await self._try_at_first():
            return
        leads = False
        _log.info("standing by: another process leads", lock=self._name)
        away = False
        while not leads:
            await asyncio.sleep(_ASK_EVERY)
            try:
                leads = await self._try()
                away = False
            except (ServiceUnavailable, Transient) as error:
                if not away:
                    _log.warning("still standing by, but cannot ask for the lock", error=error.message)
                away = True
        _log.info("leading from now on", lock=self._name)

    async def try_once(self) -> bool:
        """Whether nobody else leads, and we do from now on, while our connection lasts and is not idle."""
        return await self._try_at_first()

    async def _try_at_first(self) -> bool:
        for delay in Backoff().delays():
            try:
                return await self._try()
            except Transient as error:
                _log.warning("cannot ask for the lock, trying again", error=error.message)
                await asyncio.sleep(delay)
        raise AssertionError

    async def hold(self) -> None:
        """See that the lock is still ours, for ever; `Fatal` when another process has it."""
        while True:
            await self._ask()
            await self._take_again()

    async def _ask(self) -> None:
        """Return when the connection, and with it the lock, is lost."""
        assert self._connection is not None
        try:
            while True:
                # As a plain query: what fetches values leaves a cursor open, and with it a snapshot.
                await self._connection.execute("SELECT 1")
                await asyncio.sleep(_ASK_EVERY)
        except FAULTS as error:
            _log.warning("the lock's connection was lost, taking it again", reason=describe(error))

    async def _take_again(self) -> None:
        for delay in Backoff().delays():
            try:
                if await self._try():
                    _log.info("leading again", lock=self._name)
                    return
            except (ServiceUnavailable, Transient):
                await asyncio.sleep(delay)
                continue
            raise Fatal("another process leads now", remedy="start again, to stand by")

    async def _try(self) -> bool:
        self.release()
        connection = await connect(self._dsn, "leader", statement_timeout=_ANSWER_WITHIN)
        leads = False
        try:
            await connection.execute(_BEGIN)
            leads = bool(await connection.fetchval(_TRY, self._name))
        except FAULTS as error:
            action, why = action_for(error)
            kind = Transient if action is Action.RETRY else ServiceUnavailable
            raise kind(f"PostgreSQL does not give its lock ({describe(error)})", remedy=why) from None
        finally:
            if leads:
                self._connection = connection
            else:
                connection.terminate()
        return leads

    def release(self) -> None:
        """Let another process lead."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None


async def leads(leadership: Leadership, stop: asyncio.Event) -> bool:
    """Wait until no other process leads; False when told to stop before."""
    leading, stopping = asyncio.create_task(leadership.acquire()), asyncio.create_task(stop.wait())
    await asyncio.wait({leading, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if leading.done():
        leading.result()
        return True
    leading.cancel()
    return False
