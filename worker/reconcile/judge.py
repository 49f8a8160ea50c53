"""What one look at a document says, given the looks before: it fits, it is on the way, or it is wrong.

Each look reads PostgreSQL first, in one snapshot with how far apply is, and MongoDB after it. Whatever
PostgreSQL shows had been in MongoDB before that was read. So when two looks show the very same unequal pair,
and apply has all changes up to the first look's reading of MongoDB, then nothing that is still on its way
could have made them equal: the second look proves a mismatch, however long apply lags or how busy a machine
is. A pair that has changed since begins anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from topics import Version
from worker.reconcile.compare import Difference

HOT = 5
"""Times that a document was seen otherwise, after which it is told that it changes faster than it is read."""


class Identity(NamedTuple):
    """A document of a mapped collection, or rows that stand for none."""

    namespace: str
    """The logical collection's."""
    row_id: UUID
    collection: str
    """The real collection's namespace."""
    document_id: bytes | None
    """BSON ``{"": _id}``."""


@dataclass(frozen=True, slots=True)
class Look:
    """Both sides as they were read. ``kind`` None: they fit. Digests: None where there is nothing.

    ``tenant`` is the document's, or that of the rows where it has none.
    """

    identity: Identity
    kind: str | None
    mongo: int | None
    postgres: int | None
    tenant: UUID | None = None
    version: Version | None = None
    fields: Sequence[Difference] = ()
    told: str = ""
    """What more there is to say of the kind."""
    row_tenant: UUID | None = None
    """The tenant that a row stands under, where ``tenant``, which is the document's, is another one."""
    parked: bool = False
    """Whether an event of the document waits for another one, and is still to be applied."""

    @property
    def key(self) -> tuple[str, UUID]:
        """What a mismatch is known by."""
        return self.identity.namespace, self.identity.row_id

    @property
    def tenants(self) -> set[UUID]:
        """Whose rows and document these are; empty: that cannot be told, and it may be anyone's."""
        return {one for one in (self.tenant, self.row_tenant) if one is not None}


class Moment(NamedTuple):
    """When a look was taken. ``applied``: clusterTime up to which the collection's changes are applied."""

    at: datetime
    read: int
    """clusterTime at which MongoDB was read."""
    applied: int | None
    copying: bool


@dataclass(frozen=True, slots=True)
class Mismatch:
    """What does not fit, as the looks so far have shown it."""

    look: Look
    state: str
    """``settling`` or ``real``."""
    reason: str
    generation: int
    first_seen_at: datetime
    since: datetime
    checked_at: datetime
    changes: int
    observed_time: int | None
    repaired_at: datetime | None = None
    repairs: int = 0


def first(look: Look, at: datetime, generation: int) -> Mismatch:
    """Return what a first look found that proves nothing: MongoDB was read first."""
    return Mismatch(look, "settling", "seen once", generation, at, at, at, 0, None)


def judge(before: Mismatch, look: Look, moment: Moment) -> Mismatch | None:
    """Return what a further look makes of a mismatch; None: it fits now."""
    if look.kind is None:
        return None
    if before.observed_time is None or _pair(look) != _pair(before.look):
        changes = before.changes + (before.observed_time is not None)
        reason = "it changes faster than it can be compared" if changes >= HOT else "seen once"
        return replace(
            before,
            look=look,
            state="settling",
            reason=reason,
            since=moment.at,
            checked_at=moment.at,
            changes=changes,
            observed_time=moment.read,
        )
    if moment.copying and before.state != "real":  # what was proved before a copy or a repair began stays so
        state, reason = "settling", "its collection's copy is not yet applied"
    elif look.parked:
        state, reason = "settling", "an event of it is parked"
    elif moment.applied is None or moment.applied < before.observed_time:
        state, reason = "settling", "apply has not come so far"
    else:
        state, reason = "real", look.told or _REASONS[look.kind]
    return replace(before, look=look, state=state, reason=reason, checked_at=moment.at)


_REASONS = {
    "missing": "PostgreSQL has no row of the document",
    "extra": "PostgreSQL has a row of a document that MongoDB has not",
    "different": "the document that the rows make is another one",
    "tenant": "a row stands under another tenant than the document's",
    "orphan": "child rows stand without their parent row",
    "duplicate": "several rows stand for one document",
    "unreadable": "the rows or the document cannot be read",
}


def _pair(look: Look) -> tuple[object, ...]:
    return look.kind, look.version, look.mongo, look.postgres, look.tenant, look.row_tenant
