"""What the transaction of a batch sets for its session; all of it is local to it (docs/protocol.md A10)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import NamedTuple
from uuid import UUID

from worker.postgres.connect import Connection
from worker.postgres.faults import FAULTS, retry_reason
from worker.postgres.mapping_versions import SHARE_CHANGES

# Generic plans: the arrays' sizes vary, the right plan (look up each key by index) does not.
_SETTINGS = f"""
SELECT nextval('crossfade.batch_id_seq'), {SHARE_CHANGES},
    set_config('plan_cache_mode', 'force_generic_plan', true),
    set_config('lock_timeout', '10s', true),
    set_config('statement_timeout', '60s', true),
    set_config('idle_in_transaction_session_timeout', $1, true)
"""
_REPLICA = ", set_config('session_replication_role', 'replica', true)"
# And whether any dead letter stands: asked after the ledger's rows are locked, so that a letter that another
# worker wrote for one of these documents is seen.
_DECLARE = """
SELECT set_config('crossfade.tenants', $1, true),
    EXISTS (SELECT FROM crossfade.dead_letter WHERE state IN ('parked', 'dead'))
"""
_SILENT, _SILENT_AT_MOST = 5, 60  # seconds


class Begun(NamedTuple):
    """A batch. ``mapping_changes``: how often the mapping of a collection was changed, which cannot happen
    until the batch has ended.
    """

    batch_id: int
    mapping_changes: int


class BatchSessions:
    """Begins batches, one after the other.

    PostgreSQL ends one that nobody goes on with: it keeps documents, and phases of tenants, from others. It
    does so after 5 s; as a batch may need longer between two statements, twice as long is given when one was
    ended, up to a minute, until one is committed.
    """

    def __init__(self, *, replica: bool) -> None:
        self._query = _SETTINGS + _REPLICA if replica else _SETTINGS
        self._silent = _SILENT

    @asynccontextmanager
    async def begun(self, connection: Connection) -> AsyncIterator[Begun]:
        """Yield a batch, which is committed when the block ends."""
        try:
            async with connection.transaction():
                row = await connection.fetchrow(self._query, f"{self._silent}s")
                assert row is not None
                yield Begun(row[0], row[1])
        except FAULTS as error:
            if retry_reason(error) in ("connection", "session"):
                self._silent = min(2 * self._silent, _SILENT_AT_MOST)
            raise
        self._silent = _SILENT


async def declare(connection: Connection, tenants: Collection[UUID]) -> bool:
    """Let the batch touch these tenants' rows; return whether any dead letter stands."""
    row = await connection.fetchrow(_DECLARE, ",".join(map(str, tenants)))
    assert row is not None
    return row[1]
