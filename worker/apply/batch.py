"""A batch: records as read, what each one means, and what becomes of it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from uuid import UUID

from bson.errors import BSONError
from bson.raw_bson import RawBSONDocument

from topics import (
    EnvelopeError,
    Event,
    Operation,
    Source,
    Version,
    decode,
    document_key,
    encode,
    id_to_bson,
    key_to_id,
    resolved,
)
from worker.mapping import CollectionPlan, Rows, Unmappable
from worker.mapping.ids import reversible
from worker.postgres.dead_letters import Parked
from worker.postgres.ledger import Key, LedgerRow, Phase
from worker.postgres.migration_log import Partition, PartitionTally


class Outcome(StrEnum):
    """What becomes of a record; every record has exactly one (docs/protocol.md A8)."""

    APPLIED = "applied"  # the rows and the ledger show it
    SUPERSEDED = "superseded"  # something newer, or as new, is known already
    ABSENT = "absent"  # it named a document that was gone when it was looked up
    ECHO = "echo"  # the way back caused it
    SWITCHED = "switched"  # its tenant has left MongoDB
    PARKED = "parked"  # it waits for another event
    DEAD = "dead_lettered"  # it cannot be applied as it is
    CONTROL = "control"  # it is about the stream, not a document


WRITABLE = frozenset({"mongo", "draining", "aborting", "opening"})
"""Phases in which forward events may change a tenant's rows (docs/protocol.md A4)."""


ROGUE, EXPIRED, ROLLING_BACK = "rogue", "expired", "rolling_back"
"""Kinds of dead letters: what a raw client wrote, what a TTL index deleted, and what is parked until a
rollback is decided (A5, A7).
"""


UNREADABLE = (KeyError, ValueError, TypeError, OverflowError, RecursionError, BSONError)
"""What a document may raise that no mapping foresaw."""


class SeveralDocuments(Exception):
    """Events of one key must each be judged by the ledger, one after the other.

    They are not of one document; or some are echoes, which tell the ledger what the others are judged by.
    """


@dataclass(frozen=True, slots=True)
class Mapped:
    """A mapped collection as apply uses it."""

    number: int
    plan: CollectionPlan
    parent: int | None = None  # the number of the collection whose documents tell the tenant


Find = Callable[[str], Mapped | None]
"""Returns the mapped collection that a namespace belongs to."""


@dataclass(slots=True, eq=False)
class Item:
    """One record, decoded. ``outcome`` is set on the way."""

    topic: str
    partition: int
    offset: int
    value: bytes = field(repr=False)
    parked: Parked | None = None  # the dead letter that it comes from, on a retry
    event: Event | None = None
    key: Key | None = None
    mapped: Mapped | None = None
    rows: Rows | None = None
    outcome: Outcome | None = None
    kind: str = ""
    reason: str = ""
    _as_read: tuple[Outcome | None, str, str] | None = None

    @property
    def reference(self) -> Event | None:
        """The event, where its document is still to be read from MongoDB."""
        event = self.event
        waits = event is not None and event.operation is Operation.REFERENCE and self.outcome is None
        return event if waits else None

    @property
    def document_id(self) -> bytes | None:
        """The document id as the ledger keeps it: None where the row id tells it."""
        if self.rows is not None:
            return self.rows.document_id
        assert self.event is not None
        return None if reversible(self.event.id) else id_to_bson(self.event.id)

    @property
    def repairs(self) -> bool:
        """Whether the rows may be others than the ledger tells."""
        return self.replayed or (self.event is not None and self.event.source is Source.REPAIR)

    @property
    def echo(self) -> bool:
        """Whether the way back caused the event."""
        return self.event is not None and self.event.origin.echo

    @property
    def unmapped(self) -> bool:
        """Whether it tells of a document that has no rows, for it cannot be mapped."""
        event = self.event
        if self.outcome is not Outcome.DEAD or self.rows is not None or event is None or self.key is None:
            return False
        return event.operation is not Operation.DELETE and not self.echo

    @property
    def tenant(self) -> UUID | None:
        """The tenant that the document names itself, as far as that can be read."""
        if self.rows is not None:
            return self.rows.tenant_id
        if self.event is None or self.event.document is None or self.mapped is None:
            return None
        try:
            return self.mapped.plan.tenant(dict(self.event.document))
        except (Unmappable, *UNREADABLE):
            return None

    @property
    def replayed(self) -> bool:
        """Whether it is a rogue event that a person wants in PostgreSQL: else it would not be parked."""
        return self.parked is not None and self.parked.kind == ROGUE

    @property
    def expired(self) -> bool:
        """Whether it is a TTL index's delete, from while its tenant was away."""
        return self.parked is not None and self.parked.kind == EXPIRED

    @property
    def version(self) -> Version:
        """The event's version."""
        assert self.event is not None
        return self.event.version

    def fail(self, outcome: Outcome, kind: str, reason: str) -> None:
        """Give the record an outcome that needs a reason."""
        self.outcome, self.kind, self.reason = outcome, kind, reason

    def reset(self) -> None:
        """Forget what one try of the transaction decided, not what reading did."""
        if self._as_read is None:
            self._as_read = self.outcome, self.kind, self.reason
        self.outcome, self.kind, self.reason = self._as_read


def read(item: Item, find: Find) -> Item:
    """Decode a record and map its document; what fails is dead-lettered, never raised."""
    try:
        event = item.event = decode(item.value)
        if event.control:
            item.outcome = Outcome.CONTROL
            return item
    except EnvelopeError as error:
        item.fail(Outcome.DEAD, "envelope", str(error))
        return item
    mapped = item.mapped = find(event.namespace)
    if mapped is None:
        item.fail(Outcome.DEAD, "collection", "the mapping does not name this collection")
        return item
    item.key = (mapped.number, mapped.plan.row_id(event.id))
    if event.operation is Operation.UPSERT:
        _map(item, mapped)
    return item


def complete(item: Item, document: RawBSONDocument | None) -> None:
    """Give a reference the document that MongoDB has for it; where it has none, the delete follows."""
    assert item.event is not None and item.mapped is not None
    if document is None:
        item.outcome = Outcome.ABSENT
        return
    try:
        # Encoded and decoded, so that it reads exactly as if it had come with the event.
        item.event = decode(encode(resolved(item.event, document)))
    except EnvelopeError as error:
        item.fail(Outcome.DEAD, "envelope", str(error))
        return
    _map(item, item.mapped)


def _map(item: Item, mapped: Mapped) -> None:
    assert item.event is not None and item.event.document is not None
    try:
        item.rows = mapped.plan.rows(item.event.document)  # pyright: ignore[reportArgumentType]
    except Unmappable as error:
        item.fail(Outcome.DEAD, error.kind, str(error))
    except UNREADABLE as error:
        item.fail(Outcome.DEAD, "mapping", f"the document cannot be mapped ({type(error).__name__})")


_LEAST = 1024 * 1024  # bytes that a reference counts as: its document may have grown


def parts(items: Sequence[Item], most: int) -> Iterator[tuple[list[Item], int]]:
    """Yield records in order, in parts of ``most`` bytes, or one record alone, and how many bytes they have.

    What a reference stands for counts, so that a chunk of them is not read into memory all at once.
    """
    part, size = list[Item](), 0
    for item in items:
        bytes_ = len(item.value)
        if item.reference is not None:
            bytes_ += max(item.reference.size or 0, _LEAST)
        if part and size + bytes_ > most:
            yield part, size
            part, size = [], 0
        part.append(item)
        size += bytes_
    if part:
        yield part, size


def fold(items: Iterable[Item]) -> list[Item]:
    """Return the newest undecided event of each document, in the ledger's order.

    Raises `SeveralDocuments` where two documents have one key, or an echo stands beside another event.
    """
    newest: dict[Key, Item] = {}
    for item in items:
        if item.outcome is not None or item.key is None:
            continue
        other = newest.get(item.key)
        if other is not None and (item.echo != other.echo or not same_document(item, other)):
            raise SeveralDocuments
        if other is None or item.version > other.version:
            newest[item.key] = item
            item = other
        if item is not None:
            item.outcome = Outcome.SUPERSEDED
    return [newest[key] for key in sorted(newest)]


def rounds(items: Sequence[Item]) -> Iterator[list[Item]]:
    """Yield the undecided events in as many rounds as one document has, each document's oldest first.

    Where some event's data is refused, the one before it must have had its chance.
    """
    by_document: dict[Key, list[Item]] = {}
    for item in items:
        if item.outcome is None and item.key is not None:
            by_document.setdefault(item.key, []).append(item)
    for events in by_document.values():
        events.sort(key=lambda item: item.version)
    for number in range(max(map(len, by_document.values()), default=0)):
        yield [by_document[key][number] for key in sorted(by_document) if number < len(by_document[key])]


def parent_key(item: Item) -> Key | None:
    """Return the ledger's key of the document that tells an event's tenant, where that is not known yet."""
    rows, mapped = item.rows, item.mapped
    if rows is None or mapped is None or rows.parent is None or mapped.parent is None:
        return None
    return mapped.parent, rows.parent.row_id


def same_document(one: Item, other: Item) -> bool:
    """Whether two events of one key are of one document."""
    assert one.event is not None and other.event is not None
    if one.event.namespace != other.event.namespace:
        return False
    return one.event.id == other.event.id or document_key(one.event.id) == document_key(other.event.id)


def same_id(one: bytes | None, other: bytes | None) -> bool:
    """Whether two documents with one row id are the same, from their ids as the ledger keeps them."""
    if one == other:  # None: the row id tells both
        return True
    if one is None or other is None:
        return False
    return document_key(key_to_id(one)) == document_key(key_to_id(other))  # 1 and 1.0


def collides(item: Item, known: LedgerRow | None) -> bool:
    """Whether the ledger's row belongs to another document, which has the same row id.

    Where a name tells the tenant, a document cannot change it: another tenant's is another document.
    """
    if known is None:
        return False
    named = item.mapped.plan.named if item.mapped else None
    if named is not None and known.tenant_id is not None and known.tenant_id != named:
        return True
    return not same_id(item.document_id, known.document_id)


def overtaken(item: Item, known: LedgerRow | None) -> bool:
    """Whether the ledger knows something newer, or the same, of its document (docs/protocol.md A1)."""
    if known is None:
        return False
    if known.state == "refetch":
        return item.version < known.version
    return item.version <= known.version


def late_echo(item: Item, known: LedgerRow | None) -> bool:
    """Whether an echo tells a tombstone the tenant that it never knew (docs/protocol.md A6)."""
    return (
        item.echo
        and item.rows is not None
        and known is not None
        and known.tenant_id is None
        and known.state == "deleted"
        and overtaken(item, known)
    )


def decide(item: Item, known: LedgerRow | None, phases: Mapping[UUID, Phase]) -> Outcome:
    """Return what becomes of an event, from the ledger's row and the phases of all tenants involved.

    DEAD is a rogue event, PARKED one that waits for the end of a rollback: see `judge`. SWITCHED tells what
    MongoDB had, not that somebody wrote there: the way back sees to it that it has what PostgreSQL has.
    """
    if late_echo(item, known):
        return Outcome.ECHO
    if overtaken(item, known):
        return Outcome.SUPERSEDED
    if item.echo:
        return Outcome.ECHO
    involved = [phases[tenant] for tenant in tenants_of(item, known)]
    # What has expired is below the floor, and counts at home: what came after it the ledger knows.
    if not item.expired and any(item.version.time <= phase.floor for phase in involved):
        return Outcome.SUPERSEDED
    if all(phase.phase in WRITABLE for phase in involved):
        return Outcome.APPLIED
    if any(phase.phase == "rolling_back" for phase in involved):
        return Outcome.PARKED
    assert item.event is not None
    return Outcome.DEAD if item.event.source is Source.STREAM else Outcome.SWITCHED


def judge(item: Item, known: LedgerRow | None, phases: Mapping[UUID, Phase]) -> None:
    """Give an event the outcome that `decide` returns, with kind and reason where it needs them."""
    item.outcome = decide(item, known, phases)
    if item.outcome is Outcome.DEAD:
        item.fail(Outcome.DEAD, ROGUE, "written in MongoDB after its tenant had left it")
    elif item.outcome is Outcome.PARKED:
        item.fail(Outcome.PARKED, ROLLING_BACK, "its tenant is being rolled back")


def judge_unmapped(item: Item, known: LedgerRow | None, phases: Mapping[UUID, Phase]) -> None:
    """Let an event that cannot be mapped be rogue, or wait, as others: it has changed MongoDB like them."""
    if collides(item, known):
        return
    dead = item.kind, item.reason
    judge(item, known, phases)
    if item.outcome is Outcome.APPLIED:
        item.fail(Outcome.DEAD, *dead)


def tenants_of(item: Item, known: LedgerRow | None) -> set[UUID]:
    """Return the tenants that an event touches: its own, the one the document had, those its rows have."""
    old = known.tenant_id if known else None
    seen = item.event.tenants if item.event else ()
    return {tenant for tenant in (item.tenant, old, *seen) if tenant is not None}


def tally(items: Iterable[Item]) -> dict[Partition, PartitionTally]:
    """Count the outcomes by partition; every item must have one by now."""
    tallies: dict[Partition, PartitionTally] = {}
    for item in items:
        assert item.outcome is not None
        place = (item.topic, item.partition)
        one = tallies.get(place)
        if one is None:
            one = tallies[place] = PartitionTally(item.offset, item.offset)
        one.first_offset = min(one.first_offset, item.offset)
        one.last_offset = max(one.last_offset, item.offset)
        one.outcomes[item.outcome] = one.outcomes.get(item.outcome, 0) + 1
        if item.outcome is Outcome.CONTROL and item.event and item.event.operation is Operation.HEARTBEAT:
            one.heartbeat_at = max(one.heartbeat_at or item.event.wall, item.event.wall)
            one.heartbeat_time = max(one.heartbeat_time or 0, item.event.version.time)
    return tallies
