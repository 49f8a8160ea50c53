"""Statements on dead letters as people list, replay and discard them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg

from worker.errors import SchemaError, ServiceUnavailable
from worker.postgres.connect import Connection, connect
from worker.postgres.faults import FAULTS, describe

STANDING = ("dead", "parked")
STATES = (*STANDING, "healed", "discarded")


@asynccontextmanager
async def opened(dsn: str) -> AsyncGenerator[Connection]:
    """Yield a connection. `SchemaError` without our schema, `ServiceUnavailable` where it does not answer."""
    connection = await connect(dsn, "dead-letters")
    try:
        yield connection
    except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError, asyncpg.UndefinedColumnError):
        raise SchemaError(
            "the database has no control schema, or an older one", remedy="run `crossfade schema apply`"
        ) from None
    except asyncpg.InsufficientPrivilegeError:
        raise SchemaError(
            "the role of CROSSFADE_POSTGRES_DSN may not do this", remedy="connect as crossfade_sync"
        ) from None
    except asyncpg.LockNotAvailableError:
        raise ServiceUnavailable(
            "another transaction holds one of these letters; nothing was changed", remedy="try again"
        ) from None
    except FAULTS as error:
        raise ServiceUnavailable(
            f"PostgreSQL does not answer ({describe(error)})", remedy="check the server, then try again"
        ) from None
    finally:
        connection.terminate()


@dataclass(frozen=True, slots=True)
class Filter:
    """Which letters; None and empty: all. ``collection``: `database.name`, or the name alone."""

    ids: Sequence[int] | None = None
    states: Sequence[str] = STATES
    kinds: Sequence[str] = ()
    collection: str | None = None
    tenant: UUID | None = None
    tenant_unknown: bool = False

    @property
    def arguments(self) -> tuple[object, ...]:
        """What stands for $1 to $6 in a statement."""
        ids = None if self.ids is None else list(self.ids)
        return ids, self.states, self.kinds, self.collection, self.tenant, self.tenant_unknown


_CHOSEN = """
($1::bigint[] IS NULL OR dead_letter_id = ANY($1))
AND state::text = ANY($2::text[])
AND (cardinality($3::text[]) = 0 OR kind = ANY($3))
AND ($4::text IS NULL OR namespace = $4 OR substr(namespace, strpos(namespace, '.') + 1) = $4)
AND ($5::uuid IS NULL OR tenant_id = $5)
AND (NOT $6::boolean OR tenant_id IS NULL)
"""


class Letter(NamedTuple):
    """A dead letter, without its event."""

    dead_letter_id: int
    state: str
    kind: str
    reason: str
    namespace: str
    document_id: bytes | None
    row_id: UUID | None
    tenant_id: UUID | None
    version_time: int | None
    version_order: int | None
    topic: str
    partition: int
    offset: int
    size: int
    attempts: int
    first_seen_at: datetime
    next_attempt_at: datetime | None
    batch_id: int


_LETTER = """
dead_letter_id, state::text, kind, reason, namespace, document_id, row_id, tenant_id, version_time,
version_order, topic, partition, "offset", octet_length(event), attempts, first_seen_at, next_attempt_at,
batch_id
"""
_LIST = f"""
SELECT {_LETTER} FROM crossfade.dead_letter WHERE {_CHOSEN} ORDER BY dead_letter_id DESC LIMIT $7
"""  # noqa: S608 - our own columns
_COUNT = f"""
SELECT state::text, tenant_id IS NULL, count(*) FROM crossfade.dead_letter WHERE {_CHOSEN} GROUP BY 1, 2
"""  # noqa: S608


async def letters(connection: Connection, chosen: Filter, limit: int | None) -> list[Letter]:
    """Return letters, the newest first."""
    return [Letter(*row) for row in await connection.fetch(_LIST, *chosen.arguments, limit)]


async def counts(connection: Connection, chosen: Filter) -> tuple[dict[str, int], int]:
    """Return how many letters there are by state, and how many of those that stand are of no known tenant."""
    states: dict[str, int] = {}
    unknown = 0
    for state, nobody, count in await connection.fetch(_COUNT, *chosen.arguments):
        states[state] = states.get(state, 0) + count
        unknown += count if nobody and state in STANDING else 0
    return states, unknown


async def event(connection: Connection, dead_letter_id: int) -> bytes:
    """Return a letter's event as it was read from Kafka."""
    value: bytes = await connection.fetchval(  # pyright: ignore[reportAssignmentType]
        "SELECT event FROM crossfade.dead_letter WHERE dead_letter_id = $1", dead_letter_id
    )
    return value


class Audited(NamedTuple):
    """What somebody did to a letter."""

    at: datetime
    database_user: str
    os_user: str
    action: str
    reason: str | None


_AUDIT = """
SELECT at, database_user, os_user, action, reason FROM crossfade.audit
WHERE subject->>'dead_letter_id' = $1::text ORDER BY audit_id
"""


async def audit(connection: Connection, dead_letter_id: int) -> list[Audited]:
    """Return what was done to a letter, in order."""
    return [Audited(*row) for row in await connection.fetch(_AUDIT, str(dead_letter_id))]


# The rows are locked in order first, so that two people never wait for each other; apply never waits for a
# letter. After a wait a row is read anew: one that was healed meanwhile is not chosen.
_SETTLE = f"""
WITH chosen AS (
    SELECT dead_letter_id, state::text AS before FROM crossfade.dead_letter
    WHERE {_CHOSEN} AND state IN ('dead', 'parked')
        AND (kind <> 'rogue' OR $1 IS NOT NULL OR kind = ANY($3)) ORDER BY dead_letter_id FOR UPDATE
), changed AS (
    UPDATE crossfade.dead_letter d SET {{change}}
    FROM chosen WHERE d.dead_letter_id = chosen.dead_letter_id
    RETURNING d.dead_letter_id, chosen.before
), noted AS (
    INSERT INTO crossfade.audit (os_user, action, subject, reason)
    SELECT $7, $8, jsonb_build_object('dead_letter_id', dead_letter_id, 'state', before), $9 FROM changed
)
SELECT dead_letter_id FROM changed ORDER BY 1
"""  # noqa: S608
_REPLAY = _SETTLE.format(change="state = 'parked', next_attempt_at = now(), parked_at = now()")
_DISCARD = _SETTLE.format(change="state = 'discarded', next_attempt_at = NULL")


async def replay(
    connection: Connection, chosen: Filter, *, os_user: str, reason: str | None = None
) -> list[int]:
    """Park the chosen letters that stand, for apply to try at once; return them. Audited.

    Rogue ones only where they are chosen by number or by kind: they are written over what PostgreSQL has.
    """
    return await _settle(connection, _REPLAY, chosen, os_user, "dead-letters replay", reason)


async def discard(connection: Connection, chosen: Filter, *, os_user: str, reason: str) -> list[int]:
    """Discard the chosen letters that stand; return them. Audited."""
    return await _settle(connection, _DISCARD, chosen, os_user, "dead-letters discard", reason)


async def _settle(
    connection: Connection, statement: str, chosen: Filter, os_user: str, action: str, reason: Any
) -> list[int]:
    async with connection.transaction():
        await connection.execute("SET LOCAL lock_timeout = '10s'")
        rows = await connection.fetch(statement, *chosen.arguments, os_user, action, reason)
    return [row[0] for row in rows]
