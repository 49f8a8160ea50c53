"""A tenant's phases, and what each means for reads and writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args
from uuid import UUID

Phase = Literal["mongo", "draining", "postgres", "complete", "aborting", "rolling_back", "opening"]
Store = Literal["mongo", "postgres"]
PHASES: frozenset[str] = frozenset(get_args(Phase))

SETTLED: frozenset[Phase] = frozenset({"mongo", "postgres", "complete"})
"""Nobody is moving the tenant."""

# `draining` and `aborting`: MongoDB's own fence knows best; nobody else may be written.
_WRITES: dict[Phase, Store | None] = {
    "mongo": "mongo",
    "draining": "mongo",
    "aborting": "mongo",
    "postgres": "postgres",
    "complete": "postgres",
    "rolling_back": None,
    "opening": None,
}
# `rolling_back` may still turn back to `postgres`. At `opening` all of it is in MongoDB, which is the next to
# be written: whoever read PostgreSQL then would miss that.
_READS: dict[Phase, Store] = {
    "mongo": "mongo",
    "draining": "mongo",
    "aborting": "mongo",
    "opening": "mongo",
    "postgres": "postgres",
    "complete": "postgres",
    "rolling_back": "postgres",
}


class NotUnderstood(ValueError):
    """An answer that this version cannot read."""


class State(NamedTuple):
    """What was heard of a tenant. ``as_of``: it was so at this moment or later, by the monotonic clock."""

    phase: Phase
    epoch: int
    as_of: float

    def same_as(self, other: State) -> bool:
        """Whether the tenant has not moved between the two."""
        return (self.phase, self.epoch) == (other.phase, other.epoch)


@dataclass(frozen=True, slots=True)
class Side:
    """Where a unit of work is to be done: ``name`` is "mongo" or "postgres".

    ``attempt``: 1, then one more each time the unit is done again.
    """

    name: Store
    tenant: UUID
    phase: Phase
    epoch: int
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class Reading:
    """Where to read. ``epoch`` belongs into cache keys. ``age``: seconds since this was known to be so.

    ``stale``: it is older than the router's bound, for nobody answers; a tenant may have moved since.
    """

    name: Store
    tenant: UUID
    phase: Phase
    epoch: int
    age: float
    stale: bool


def writes_to(phase: Phase) -> Store | None:
    """Return where a tenant in this phase is written; None: nowhere, as yet."""
    return _WRITES[phase]


def reads_from(phase: Phase) -> Store:
    """Return where a tenant in this phase is read."""
    return _READS[phase]


def other(store: Store) -> Store:
    """Return the other database."""
    return "postgres" if store == "mongo" else "mongo"


def known_phase(name: str) -> Phase:
    """Return a phase by its name; `NotUnderstood` for one that this version does not know."""
    if name not in PHASES:
        raise NotUnderstood(f"unknown phase {name!r}: upgrade crossfade-client")
    return name  # pyright: ignore[reportReturnType]
