"""What applications' shadow reads have found, as their clients told it (crossfade.tell_shadow_reads)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from worker.postgres.connect import Connection

OUTCOMES = ("equal", "different", "unsettled", "failed", "left_out")


class Place(NamedTuple):
    """Where the two sides differed: an id and a path, as the application's comparison named them."""

    tenant: UUID
    subject: str
    path: str
    reports: int
    last_at: datetime


@dataclass(frozen=True, slots=True)
class ShadowReads:
    """Of all tenants. ``counts``: reads by outcome; ``places``: the newest of ``different_places``."""

    counts: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    tenants: int = 0
    last_at: datetime | None = None
    different_places: int = 0
    places: Sequence[Place] = ()


_COUNTS = f"""
SELECT {", ".join(f"coalesce(sum({name}), 0)::bigint" for name in OUTCOMES)}, count(*), max(last_at),
    (SELECT count(*) FROM crossfade.shadow_difference)
FROM crossfade.shadow_read
"""  # noqa: S608 - names of our own columns
_PLACES = """
SELECT tenant_id, subject, path, reports, last_at FROM crossfade.shadow_difference
ORDER BY last_at DESC, tenant_id, subject, path LIMIT $1
"""


async def read_shadow_reads(connection: Connection, most: int) -> ShadowReads:
    """Return what was told so far, with so many places at most."""
    row = await connection.fetchrow(_COUNTS)
    assert row is not None
    counts = {name: row[place] for place, name in enumerate(OUTCOMES)}
    places = [Place(UUID(int=one[0].int), *one[1:]) for one in await connection.fetch(_PLACES, most)]
    tenants, last_at, different = row[len(OUTCOMES) :]
    return ShadowReads(counts, tenants, last_at, different, places)
