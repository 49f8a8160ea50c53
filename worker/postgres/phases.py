"""Tenants' phases: read, and changed by one compare-and-set on phase and exact epoch, with its audit row."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg
import orjson

from worker.postgres.audit import os_user
from worker.postgres.connect import Connection


class Standing(NamedTuple):
    """A tenant's phase. ``seconds``: since it changed last, by PostgreSQL's clock."""

    tenant: UUID
    phase: str
    epoch: int
    floor: int
    seconds: float


class Locked(Exception):
    """Somebody holds what a change of phase needs; nothing changed. The text says who."""


_READ = """
SELECT tenant_id, phase::text, epoch, floor,
    extract(epoch FROM clock_timestamp() - changed_at)::float8 AS seconds
FROM crossfade.tenant WHERE $1::uuid[] IS NULL OR tenant_id = ANY($1) ORDER BY tenant_id
"""
_MOVING = """
SELECT tenant_id, phase::text, epoch, floor,
    extract(epoch FROM clock_timestamp() - changed_at)::float8 AS seconds
FROM crossfade.tenant WHERE phase NOT IN ('mongo', 'postgres', 'complete') ORDER BY tenant_id
"""
# In one order, so that two changes of several tenants do not wait for each other.
_LOCK = """
SELECT tenant_id FROM crossfade.tenant WHERE tenant_id = ANY($1::uuid[]) ORDER BY tenant_id FOR UPDATE
"""
_CHANGE = """
UPDATE crossfade.tenant t SET phase = $3::crossfade.phase, epoch = t.epoch + 1,
    floor = greatest(t.floor, coalesce($5::bigint, 0)), changed_at = clock_timestamp()
FROM unnest($1::uuid[], $2::bigint[]) AS k(tenant_id, epoch)
WHERE t.tenant_id = k.tenant_id AND t.epoch = k.epoch AND t.phase = $4::crossfade.phase
RETURNING t.tenant_id, t.epoch
"""
_NOTE = """
INSERT INTO crossfade.transition (tenant_id, from_phase, to_phase, epoch, os_user, reason, evidence)
SELECT k.tenant_id, $3::crossfade.phase, $4::crossfade.phase, k.epoch, $5, $6, $7::jsonb
FROM unnest($1::uuid[], $2::bigint[]) AS k(tenant_id, epoch)
"""
# A decision counts when its COMMIT is durable, whatever the database's default is (D1). Who stands still in a
# change keeps writers waiting, but not for ever.
_SETTINGS = """
SELECT set_config('lock_timeout', $1, true), set_config('idle_in_transaction_session_timeout', '3s', true),
    set_config('synchronous_commit',
    CASE WHEN current_setting('synchronous_commit') IN ('off', 'local') THEN 'on'
    ELSE current_setting('synchronous_commit') END, true)
"""
_COUNTS = "SELECT phase::text, count(*) FROM crossfade.tenant GROUP BY phase"
_CLOSE = "SELECT pg_advisory_xact_lock(crossfade.tenant_lock($1))"
# A lock of one bigint is told as its two halves. Whoever waits for it is not in the way, nor who began after
# we did ($2: seconds ago). A prepared transaction keeps the virtual id of the session that began it until the
# server restarts; its own id is in pg_locks as well.
_HOLDERS = """
SELECT DISTINCT coalesce('pid ' || a.pid, 'prepared transaction ' || coalesce(x.gid, '?')),
    coalesce(a.usename, x.owner)::text, a.application_name, a.state,
    extract(epoch FROM clock_timestamp() - coalesce(a.xact_start, x.prepared))::float8
FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
LEFT JOIN pg_locks i ON l.pid IS NULL AND i.pid IS NULL AND i.locktype = 'transactionid'
    AND i.virtualtransaction = l.virtualtransaction
LEFT JOIN pg_prepared_xacts x ON x.transaction = i.transactionid
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND (l.classid::bigint << 32 | l.objid::bigint) = ANY(
        SELECT crossfade.tenant_lock(tenant) FROM unnest($1::uuid[]) AS tenant)
    AND l.pid IS DISTINCT FROM pg_backend_pid()
    AND (coalesce(a.xact_start, x.prepared) < clock_timestamp() - make_interval(secs => $2)) IS NOT FALSE
"""
_HISTORY = """
SELECT from_phase::text, to_phase::text, epoch, at, database_user::text, os_user, reason, evidence
FROM crossfade.transition WHERE tenant_id = $1 ORDER BY transition_id DESC LIMIT $2
"""


class Transition(NamedTuple):
    """A change of phase, as it was noted. ``epoch``: after it."""

    before: str
    after: str
    epoch: int
    at: datetime
    database_user: str
    os_user: str
    reason: str
    evidence: Mapping[str, Any]


async def read(connection: Connection, tenants: Collection[UUID] | None = None) -> dict[UUID, Standing]:
    """Return the phases of these tenants, those that are known, or of all."""
    rows = await connection.fetch(_READ, None if tenants is None else list(tenants))
    return {UUID(int=row[0].int): Standing(UUID(int=row[0].int), *row[1:]) for row in rows}


async def moving(connection: Connection) -> list[Standing]:
    """Return the tenants that are on the move."""
    return [Standing(UUID(int=row[0].int), *row[1:]) for row in await connection.fetch(_MOVING)]


async def count(connection: Connection) -> dict[str, int]:
    """Return how many tenants are in each phase; a phase without tenants is missing."""
    return {row[0]: row[1] for row in await connection.fetch(_COUNTS)}


async def change(
    connection: Connection,
    epochs: Mapping[UUID, int],
    before: str,
    after: str,
    reason: str,
    evidence: Callable[[], Mapping[str, Any]] = dict,
    *,
    floor: int | None = None,
    closes: bool = False,
    within: float = 0.5,
) -> dict[UUID, int] | None:
    """Change the phase of all these tenants, or of none; return their new epochs.

    None: some tenant's phase or epoch is another. `Locked` when their rows, or with ``closes`` their writers
    in PostgreSQL, were not to be had within ``within`` seconds, which must be shorter than deadlock_timeout.
    ``evidence`` is asked for when nothing but the COMMIT is left, for a pause may last until then.
    ``floor``: a clusterTime below which nothing may change their rows any more.
    """
    tenants, began = sorted(epochs), time.monotonic()
    try:
        async with connection.transaction():
            await connection.execute(_SETTINGS, f"{round(within * 1000)}ms")
            if closes:
                for tenant in tenants:
                    await connection.execute(_CLOSE, tenant)
            await connection.fetch(_LOCK, tenants)
            rows = await connection.fetch(
                _CHANGE, tenants, [epochs[tenant] for tenant in tenants], after, before, floor
            )
            if len(rows) != len(tenants):
                raise _Another
            changed = {UUID(int=row[0].int): int(row[1]) for row in rows}
            await connection.execute(
                _NOTE,
                list(changed),
                list(changed.values()),
                before,
                after,
                os_user(),
                reason,
                orjson.dumps(evidence()),
            )
    except _Another:
        return None
    except asyncpg.LockNotAvailableError:
        raise Locked(await _told(connection, tenants, time.monotonic() - began)) from None
    return changed


class _Another(Exception):
    pass


async def _told(connection: Connection, tenants: list[UUID], waited: float) -> str:
    found = await connection.fetch(_HOLDERS, tenants, waited)
    if not found:
        return "a batch of apply, or another change of phase, was under way"
    return "; ".join(_holder(*row) for row in found)


def _holder(
    name: str, role: str | None, application: str | None, state: str | None, age: float | None
) -> str:
    known = [" ".join(filter(None, (role, application))), state]
    if age is not None:
        known.append(f"open for {age:.1f} s")
    return f"{name} ({', '.join(filter(None, known))})"


_TRY_HOLD = "SELECT bool_and(pg_try_advisory_lock(hashtextextended(t::text, 1))) FROM unnest($1::uuid[]) AS t"
_LET_GO = "SELECT pg_advisory_unlock(hashtextextended(t::text, 1)) FROM unnest($1::uuid[]) AS t"


async def try_hold(connection: Connection, tenants: Collection[UUID]) -> bool:
    """Become the one who moves these tenants, until `let_go` or the session's end; False: another is.

    So whoever finds a tenant on the move and gets this knows that its mover is dead.
    """
    if await connection.fetchval(_TRY_HOLD, sorted(tenants)):
        return True
    await let_go(connection, tenants)
    return False


async def let_go(connection: Connection, tenants: Collection[UUID]) -> None:
    """Give `try_hold` back."""
    await connection.fetch(_LET_GO, sorted(tenants))


async def history(connection: Connection, tenant: UUID, most: int) -> list[Transition]:
    """Return a tenant's changes of phase, the newest first."""
    rows = await connection.fetch(_HISTORY, tenant, most)
    return [Transition(*row[:7], evidence=orjson.loads(row[7])) for row in rows]
