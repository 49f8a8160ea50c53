"""How moves stand: which are under way, how the others ended, and what is in the way of going back.

Moves are made by commands that end, and brought to their end by others when those die: so what is told of
them is read from the table of transitions, whoever made them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from worker.gauges import Distribution, Pauses
from worker.postgres import outbox
from worker.postgres.connect import Connection

REHEARSED = "it is a rehearsal"
"""Why a rehearsal ends as it does."""
ABORTED = "aborted: "
"""How the reason of a transition begins that ends a move without its decision."""
ENDS: Sequence[tuple[str, str]] = (
    ("cutover", "done"),
    ("cutover", "rehearsed"),
    ("cutover", "aborted"),
    ("rollback", "done"),
    ("rollback", "rehearsed"),
    ("rollback", "aborted"),
    ("complete", "done"),
)
"""The kinds of moves, and how each can end."""


class Moving(NamedTuple):
    """A tenant on the move; ``seconds``: since it came into its phase."""

    tenant: UUID
    phase: str
    epoch: int
    seconds: float


class Ended(NamedTuple):
    """A tenant's move that has ended. ``pause``: seconds; None: `control` ended it, or it never began."""

    tenant: UUID
    kind: str
    outcome: str
    at: datetime
    pause: float | None
    reason: str


class Broken(NamedTuple):
    """Why a tenant's way back is broken. ``subject``: a column or a row id."""

    tenant: UUID
    kind: str
    namespace: str
    subject: str
    reason: str
    since: datetime


@dataclass(frozen=True, slots=True)
class MoveStanding:
    """Everything at one moment. ``pauses``: of moves that their own command ended, by kind and outcome."""

    moving: Sequence[Moving] = ()
    """The tenants on the move, those first that have been longest."""
    moving_tenants: int = 0
    oldest: Mapping[str, float] = field(default_factory=dict[str, float])
    """Seconds in it of the tenant that has been longest in a phase of a move, by phase."""
    last: Sequence[Ended] = ()
    """The newest first."""
    ended: Mapping[tuple[str, str], int] = field(default_factory=lambda: dict.fromkeys(ENDS, 0))
    pauses: Mapping[tuple[str, str], Pauses] = field(default_factory=dict[tuple[str, str], Pauses])
    rogue: int = 0
    """Dead letters that stand of writes in MongoDB for tenants that had left it."""
    broken: Sequence[Broken] = ()
    broken_tenants: int = 0
    outbox_rows: int = 0
    outbox_seconds: float = 0.0
    """How long the first row of the outbox has been waiting; 0: none does."""
    back_lag: float | None = None
    """As `outbox.Standing.lag`."""


_SECONDS = "extract(epoch FROM clock_timestamp() - changed_at)::float8"
_MOVING = f"""
SELECT tenant_id, phase::text, epoch, greatest({_SECONDS}, 0)
FROM crossfade.tenant WHERE phase NOT IN ('mongo', 'postgres', 'complete')
ORDER BY changed_at, tenant_id LIMIT $1
"""  # noqa: S608 - our own text
_OLDEST = f"""
SELECT phase::text, greatest(max({_SECONDS}), 0), count(*)
FROM crossfade.tenant WHERE phase NOT IN ('mongo', 'postgres', 'complete') GROUP BY phase
"""  # noqa: S608 - our own text
# One row for each tenant of a group. What leads from one phase of a move to another ends nothing.
_ENDED = f"""
SELECT transition_id, tenant_id, at, reason, (evidence->>'pause_ms')::float8 / 1000 AS pause,
    CASE from_phase WHEN 'draining' THEN 'cutover' WHEN 'postgres' THEN 'complete' ELSE 'rollback' END
        AS kind,
    CASE WHEN (from_phase, to_phase) NOT IN (('draining', 'mongo'), ('rolling_back', 'postgres')) THEN 'done'
        WHEN reason = '{ABORTED}{REHEARSED}' THEN 'rehearsed' ELSE 'aborted' END AS outcome
FROM crossfade.transition WHERE (from_phase, to_phase) IN (('draining', 'postgres'), ('draining', 'mongo'),
    ('opening', 'mongo'), ('rolling_back', 'postgres'), ('postgres', 'complete'))
"""  # noqa: S608 - our own texts
_LAST = f"""
SELECT tenant_id, kind, outcome, at, pause, reason FROM ({_ENDED}) AS e ORDER BY transition_id DESC LIMIT $1
"""  # noqa: S608 - our own text
_COUNTS = f"""
SELECT kind, outcome, CASE WHEN pause IS NOT NULL THEN
        (SELECT count(*) FROM unnest($1::float8[]) AS b(bound) WHERE pause > bound) END,
    count(*), coalesce(sum(pause), 0)::float8
FROM ({_ENDED}) AS e GROUP BY 1, 2, 3
"""  # noqa: S608 - our own text
_ROGUE = "SELECT count(*) FROM crossfade.dead_letter WHERE state = 'dead' AND kind = 'rogue'"
_BROKEN = """
SELECT tenant_id, kind, namespace, subject, reason, first_seen_at FROM crossfade.way_back_fault
ORDER BY first_seen_at, tenant_id, subject LIMIT $1
"""


async def read_moves(connection: Connection, most: int) -> MoveStanding:
    """Return how moves stand, with at most so many of each list."""
    ended = dict.fromkeys(ENDS, 0)
    pauses = {place: _none() for place in ENDS if place[0] != "complete"}
    for kind, outcome, bucket, count, seconds in await connection.fetch(_COUNTS, list(Distribution.BUCKETS)):
        ended[kind, outcome] += count
        if bucket is not None:
            known = pauses[kind, outcome]
            counts = [n + (count if place == bucket else 0) for place, n in enumerate(known.counts)]
            pauses[kind, outcome] = Pauses(counts, known.seconds + seconds)
    phases = await connection.fetch(_OLDEST)
    back = await outbox.standing(connection)
    return MoveStanding(
        [Moving(UUID(int=row[0].int), *row[1:]) for row in await connection.fetch(_MOVING, most)],
        sum(row[2] for row in phases),
        {row[0]: row[1] for row in phases},
        [Ended(UUID(int=row[0].int), *row[1:]) for row in await connection.fetch(_LAST, most)],
        ended,
        pauses,
        await connection.fetchval(_ROGUE) or 0,
        [Broken(UUID(int=row[0].int), *row[1:]) for row in await connection.fetch(_BROKEN, most)],
        back.broken,
        back.rows,
        back.waiting,
        back.lag,
    )


def _none() -> Pauses:
    return Pauses([0] * (len(Distribution.BUCKETS) + 1), 0.0)
