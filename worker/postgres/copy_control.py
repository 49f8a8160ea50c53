"""How people hold the copy back: pauses and limits, and what a publisher tells of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from worker.postgres import audit
from worker.postgres.connect import Connection

LIMITS = ("rate", "max_lag", "max_replication_lag")
"""Documents a second; seconds; seconds. Stored as NULL: as publish's settings say; 0: none."""


class Control(NamedTuple):
    """What holds the copy back at one moment.

    ``applied``: clusterTime of the heartbeat up to which apply has read every stream topic that has brought
    one, None where none has; ``offsets``: how far it has read copy topics.
    """

    limits: Mapping[str, float | None]
    paused: frozenset[str]
    applied: int | None
    offsets: Mapping[tuple[str, int], int]


_CONTROL = """
SELECT rate, max_lag, max_replication_lag,
    (SELECT array_agg(namespace) FROM crossfade.collection WHERE copy_paused) AS paused,
    (SELECT min(heartbeat_time) FROM crossfade.partition_progress WHERE topic = ANY($1::text[])) AS applied
FROM crossfade.copy_limits
"""
_OFFSETS = """
SELECT topic, partition, next_offset FROM crossfade.partition_progress WHERE topic = ANY($1::text[])
"""
_STANDING = """
UPDATE crossfade.checkpoint SET copy_standing = $2, copy_standing_at = clock_timestamp() WHERE publisher = $1
"""
_PAUSE = """
UPDATE crossfade.collection SET copy_paused = $2
WHERE namespace = ANY($1::text[]) AND copy_paused <> $2 RETURNING namespace
"""
_PAUSED = "SELECT namespace FROM crossfade.collection WHERE copy_paused"
_LIMITS = "SELECT rate, max_lag, max_replication_lag FROM crossfade.copy_limits"


async def read(connection: Connection, topics: Sequence[str], copy_topics: Sequence[str]) -> Control:
    """Return what holds now; ``topics``: the stream topics whose heartbeats tell apply's lag."""
    row = await connection.fetchrow(_CONTROL, topics)
    assert row is not None
    offsets = {(one[0], one[1]): one[2] for one in await connection.fetch(_OFFSETS, copy_topics)}
    return Control(
        {name: row[name] for name in LIMITS}, frozenset(row["paused"] or ()), row["applied"], offsets
    )


async def tell(connection: Connection, publisher: str, standing: Mapping[str, Any]) -> None:
    """Store what a publisher's copy goes by."""
    await connection.execute(_STANDING, publisher, orjson.dumps(standing))


async def pause(connection: Connection, namespaces: Sequence[str], paused: bool) -> list[str]:
    """Pause collections' copies, or let them go on; return those that were otherwise before. Audited."""
    async with connection.transaction():
        changed = sorted(row[0] for row in await connection.fetch(_PAUSE, namespaces, paused))
        if changed:
            action = "copy pause" if paused else "copy resume"
            await audit.note(connection, action, {"collections": changed})
    return changed


async def paused_copies(connection: Connection) -> set[str]:
    """Return the collections whose copies are paused."""
    return {row[0] for row in await connection.fetch(_PAUSED)}


async def limit(connection: Connection, limits: Mapping[str, float | None]) -> dict[str, float | None]:
    """Change these limits, by name; return all as they are stored. Audited when any changes."""
    async with connection.transaction():
        if limits:
            unknown = set(limits) - set(LIMITS)
            assert not unknown, unknown
            changes = ", ".join(f"{name} = ${number}" for number, name in enumerate(limits, start=1))
            await connection.execute(
                f"UPDATE crossfade.copy_limits SET {changes}",  # noqa: S608 - names of our own columns
                *limits.values(),
            )
            await audit.note(connection, "copy throttle", limits)
        row = await connection.fetchrow(_LIMITS)
    assert row is not None
    return {name: row[name] for name in LIMITS}
