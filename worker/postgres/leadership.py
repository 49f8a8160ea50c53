"""One active process of a kind: the leader holds an advisory lock, the others wait for it.

The lock belongs to a transaction that stays open, not to a session: so it works through a transaction pooler.
That transaction has no snapshot and no id, and holds up no vacuum.
"""

from __future__ import annotations

import asyncio

import asyncpg
import structlog

from worker.errors import Fatal, ServiceUnavailable
from worker.postgres.connect import connect
from worker.postgres.faults import FAULTS, describe
from worker.retry import Backoff

_log = structlog.get_logger()

_BEGIN = "BEGIN; SET LOCAL idle_in_transaction_session_timeout = 0"
_TRY = "SELECT pg_try_advisory_xact_lock(hashtextextended($1, 0))"
_ASK_EVERY = 1.0  # seconds
_ANSWER_WITHIN = 5.0  # seconds


class Leadership:
    """The lock named ``name``. Two leaders at once, while a connection dies, must do no harm."""

    def __init__(self, dsn: str, name: str) -> None:
        self._dsn, self._name = dsn, f"crossfade {name}"
        self._connection: asyncpg.Connection | None = None

    async def acquire(self) -> None:
        """Return as the leader; until then stand by."""
        told = False
        while not await self._try():
            if not told:
                _log.info("standing by: another process leads", lock=self._name)
                told = True
            await asyncio.sleep(_ASK_EVERY)
        if told:
            _log.info("leading from now on", lock=self._name)

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
                await self._connection.fetchval("SELECT 1")
                await asyncio.sleep(_ASK_EVERY)
        except FAULTS as error:
            _log.warning("the lock's connection was lost, taking it again", reason=describe(error))

    async def _take_again(self) -> None:
        for delay in Backoff().delays():
            try:
                if await self._try():
                    return
            except (*FAULTS, ServiceUnavailable):
                await asyncio.sleep(delay)
                continue
            raise Fatal("another process leads now", remedy="start again, to stand by")

    async def _try(self) -> bool:
        self.release()
        connection = await connect(self._dsn, "leader", statement_timeout=_ANSWER_WITHIN)
        try:
            await connection.execute(_BEGIN)
            if await connection.fetchval(_TRY, self._name):
                self._connection = connection
                return True
        except BaseException:
            connection.terminate()
            raise
        connection.terminate()
        return False

    def release(self) -> None:
        """Let another process lead."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None
