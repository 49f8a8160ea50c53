"""What becomes of an event, without any service."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import bson
import pytest
from bson import Int64, ObjectId
from bson.binary import UuidRepresentation
from bson.raw_bson import RawBSONDocument

from topics import Collection, Event, Operation, Origin, Source, Version, encode
from worker.apply import moves
from worker.apply.batch import (
    Item,
    Mapped,
    Outcome,
    SeveralDocuments,
    collides,
    complete,
    decide,
    fold,
    judge,
    overtaken,
    parts,
    read,
    rounds,
    tally,
)
from worker.mapping import CollectionPlan, row_id
from worker.mapping.model import CollectionMapping
from worker.postgres.ledger import LedgerRow, Phase

STANDARD: bson.CodecOptions[Any] = bson.CodecOptions(uuid_representation=UuidRepresentation.STANDARD)
TENANT, OTHER = uuid4(), uuid4()
NOTES = Collection("db", "notes")
MAPPED = {
    str(NOTES): Mapped(
        1,
        CollectionPlan(
            CollectionMapping.model_validate(
                {
                    "table": "notes",
                    "tenant": {"path": "tenantId", "column": "tenant_id"},
                    "rest": "rest",
                    "columns": {"size": {"type": "integer", "required": True}},
                }
            )
        ),
    )
}


def item(
    document_id: Any,
    time: int,
    order: int = 0,
    *,
    operation: Operation = Operation.UPSERT,
    tenant: UUID = TENANT,
    size: object = 1,
    offset: int = 0,
    stands_for: int = 0,
    source: Source = Source.STREAM,
    echo: bool = False,
) -> Item:
    document = None
    if operation is Operation.UPSERT:
        document = {"_id": document_id, "tenantId": tenant, "size": size}
    event = Event(
        operation=operation,
        namespace=str(NOTES),
        id=document_id,
        version=Version(time, order),
        wall=datetime.now(UTC),
        source=source,
        origin=Origin(uuid4(), {"id": uuid4()}, 1, echo) if echo else Origin(uuid4()),
        document=document,
        size=stands_for if operation is Operation.REFERENCE else None,
    )
    return read(Item("t", 0, offset, encode(event)), MAPPED.get)


def home(*tenants: UUID, phase: str = "mongo", floor: int = 0) -> dict[UUID, Phase]:
    return {tenant: Phase(phase, floor) for tenant in tenants}


@pytest.mark.parametrize(
    ("version", "outcome"),
    [
        ((10, 5), Outcome.SUPERSEDED),
        ((10, 4), Outcome.SUPERSEDED),
        ((9, 9), Outcome.SUPERSEDED),
        ((10, 6), Outcome.APPLIED),
        ((11, 0), Outcome.APPLIED),
    ],
)
def test_only_a_strictly_greater_version_changes_a_row(version: tuple[int, int], outcome: Outcome) -> None:
    known = LedgerRow(TENANT, Version(10, 5), "live")
    assert decide(item(uuid4(), *version), known, home(TENANT)) is outcome


def test_a_tombstone_holds_back_an_older_event_too() -> None:
    known = LedgerRow(TENANT, Version(10, 0), "deleted")
    assert decide(item(uuid4(), 9), known, home(TENANT)) is Outcome.SUPERSEDED


def test_a_refetched_document_may_come_at_the_version_it_had() -> None:
    known = LedgerRow(TENANT, Version(10, 5), "refetch")
    assert decide(item(uuid4(), 10, 5), known, home(TENANT)) is Outcome.APPLIED
    assert decide(item(uuid4(), 10, 4), known, home(TENANT)) is Outcome.SUPERSEDED


@pytest.mark.parametrize(
    ("phase", "source", "restored"),
    [
        ("postgres", Source.STREAM, True),
        ("complete", Source.STREAM, True),  # whatever the way back then makes of it
        ("rolling_back", Source.STREAM, False),
        ("postgres", Source.COPY, True),
        ("complete", Source.COPY, False),
        ("rolling_back", Source.COPY, False),
    ],
)
def test_what_mongodb_may_have_otherwise_is_brought_back(phase: str, source: Source, restored: bool) -> None:
    known = LedgerRow(TENANT, Version(1, 0), "live")
    for operation in (Operation.UPSERT, Operation.DELETE):
        one, phases = item(uuid4(), 5, operation=operation, source=source), home(TENANT, phase=phase)
        one.key = (1, uuid4())
        judge(one, known, phases)
        assert bool(moves.to_restore([one], {one.key: known}, phases)) is restored
        if source is Source.COPY:  # what PostgreSQL never had is not taken from MongoDB
            assert not moves.to_restore([one], {}, phases)


@pytest.mark.parametrize(
    ("phase", "outcome"),
    [("postgres", Outcome.DEAD), ("complete", Outcome.DEAD), ("rolling_back", Outcome.PARKED)],
)
def test_no_row_changes_when_any_tenant_involved_has_left(phase: str, outcome: Outcome) -> None:
    known = LedgerRow(OTHER, Version(1, 0), "live")
    phases = home(TENANT) | home(OTHER, phase=phase)
    assert decide(item(uuid4(), 5), known, phases) is outcome
    for source in (Source.COPY, Source.REPAIR, Source.REPLAY):  # never rogue
        waits = phase == "rolling_back"
        found = decide(item(uuid4(), 5, source=source), known, phases)
        assert found is (Outcome.PARKED if waits else Outcome.SWITCHED)


@pytest.mark.parametrize("phase", ["mongo", "postgres", "rolling_back"])
def test_an_echo_tells_the_ledger_in_every_phase(phase: str) -> None:
    known = LedgerRow(TENANT, Version(5, 0), "live")
    assert decide(item(uuid4(), 6, echo=True), known, home(TENANT, phase=phase)) is Outcome.ECHO
    assert decide(item(uuid4(), 6, echo=True), None, home(TENANT, phase=phase, floor=9)) is Outcome.ECHO
    assert decide(item(uuid4(), 5, echo=True), known, home(TENANT, phase=phase)) is Outcome.SUPERSEDED


def test_an_echo_that_is_late_tells_a_tombstone_its_tenant() -> None:
    late = item(uuid4(), 5, echo=True)
    for state, tenant, outcome in (
        ("deleted", None, Outcome.ECHO),
        ("deleted", TENANT, Outcome.SUPERSEDED),
        ("live", None, Outcome.SUPERSEDED),
    ):
        assert decide(late, LedgerRow(tenant, Version(6, 0), state), home(TENANT)) is outcome


def test_an_echo_beside_another_event_of_its_document_is_judged_alone() -> None:
    one = uuid4()
    echo, deleted = item(one, 5, echo=True), item(one, 6, operation=Operation.DELETE)
    with pytest.raises(SeveralDocuments):
        fold([echo, deleted])
    assert list(rounds([deleted, echo])) == [[echo], [deleted]]


def test_nothing_at_or_below_the_floor_changes_a_row() -> None:
    assert decide(item(uuid4(), 7), None, home(TENANT, floor=7)) is Outcome.SUPERSEDED
    assert decide(item(uuid4(), 8), None, home(TENANT, floor=7)) is Outcome.APPLIED


def test_fold_keeps_the_newest_whatever_the_order_of_arrival() -> None:
    one, two = uuid4(), uuid4()
    items = [item(one, 3), item(two, 1), item(one, 5), item(one, 4), item(one, 5)]
    assert {(i.key[1], i.version.time) for i in fold(items) if i.key} == {(one, 5), (two, 1)}
    assert sum(i.outcome is Outcome.SUPERSEDED for i in items) == 3


def test_a_document_that_cannot_be_mapped_is_dead_without_its_value() -> None:
    bad = item(uuid4(), 1, size="a secret")
    assert (bad.outcome, bad.kind) == (Outcome.DEAD, "mapping")
    assert "size" in bad.reason and "secret" not in bad.reason


def test_bytes_that_are_no_event_are_dead_not_raised() -> None:
    broken = read(Item("t", 0, 0, b"\x05\x00\x00\x00\x00"), MAPPED.get)
    assert (broken.outcome, broken.kind) == (Outcome.DEAD, "envelope")


def test_every_record_is_counted_once() -> None:
    one = uuid4()
    items = [item(one, 1, offset=4), item(one, 2, offset=5), item(uuid4(), 1, size=None, offset=6)]
    for winner in fold(items):
        winner.outcome = decide(winner, None, home(TENANT))
    (counts,) = tally(items).values()
    assert counts.outcomes == {"applied": 1, "superseded": 1, "dead_lettered": 1}
    assert (counts.first_offset, counts.last_offset) == (4, 6)


OBJECT = ObjectId()


@pytest.mark.parametrize("operation", [Operation.UPSERT, Operation.DELETE])
@pytest.mark.parametrize(
    ("known", "arriving"),
    [("a", row_id("a")), (row_id("a"), "a"), (OBJECT, row_id(OBJECT)), (row_id(OBJECT), OBJECT)],
)
def test_another_documents_row_id_is_a_collision(known: Any, arriving: Any, operation: Operation) -> None:
    before = item(known, 5)
    row = LedgerRow(TENANT, before.version, "live", before.document_id)
    for time in (4, 5, 6):
        one = item(arriving, time, operation=operation)
        assert one.key == before.key and collides(one, row)


@pytest.mark.parametrize("operation", [Operation.UPSERT, Operation.DELETE])
@pytest.mark.parametrize(
    ("known", "arriving"), [("a", "a"), (OBJECT, OBJECT), (1, 1.0), (Int64(7), 7), (row_id("a"), row_id("a"))]
)
def test_a_documents_own_row_id_is_no_collision(known: Any, arriving: Any, operation: Operation) -> None:
    before = item(known, 5, operation=operation)
    row = LedgerRow(TENANT, before.version, "live", before.document_id)
    for again in Operation.UPSERT, Operation.DELETE:
        assert not collides(item(arriving, 6, operation=again), row)
    assert overtaken(item(arriving, 4), row)


def test_two_documents_with_one_row_id_in_a_batch_are_judged_one_after_the_other() -> None:
    string, uuid = item("a", 5), item(row_id("a"), 6)
    with pytest.raises(SeveralDocuments):
        fold([string, uuid])
    assert list(rounds([uuid, string])) == [[string], [uuid]]
    assert fold([item(1, 5), newest := item(1.0, 6)]) == [newest]


def test_what_reading_decided_outlives_a_try_and_nothing_else_does() -> None:
    unfit, fit = item(uuid4(), 1, size="large"), item(uuid4(), 1)
    for one in (unfit, fit):
        one.reset()
        one.outcome, one.reason = Outcome.SUPERSEDED, "of a try"
        one.reset()
    assert (unfit.outcome, unfit.kind) == (Outcome.DEAD, "mapping") and "size" in unfit.reason
    assert (fit.outcome, fit.kind, fit.reason) == (None, "", "")


def test_a_refetch_that_fails_is_not_overtaken_by_what_it_was_to_replace() -> None:
    one = item(uuid4(), 10, 5)
    for state, expected in (("refetch", False), ("live", True), ("deleted", True)):
        assert overtaken(one, LedgerRow(TENANT, Version(10, 5), state)) is expected
    assert overtaken(one, LedgerRow(TENANT, Version(10, 6), "refetch"))
    assert not overtaken(one, None)


# ---- references


def test_a_reference_becomes_the_upsert_that_it_stands_for_under_its_own_version() -> None:
    whole, one = item(7, 5, 1), item(7, 5, 1, operation=Operation.REFERENCE)
    assert one.reference is not None and one.rows is None and one.key == whole.key
    assert whole.event is not None and whole.event.document is not None
    complete(one, RawBSONDocument(bson.encode(whole.event.document, codec_options=STANDARD)))
    assert one.reference is None and one.outcome is None
    assert one.rows == whole.rows and one.version == Version(5, 1)


def test_a_reference_to_nothing_is_absent_and_one_that_does_not_fit_is_dead() -> None:
    gone, unfit = (item(7, 5, operation=Operation.REFERENCE) for _ in range(2))
    complete(gone, None)
    assert gone.outcome is Outcome.ABSENT and gone.reference is None
    complete(unfit, RawBSONDocument(bson.encode({"_id": 7, "size": "large"})))
    assert unfit.outcome is Outcome.DEAD and unfit.kind == "tenant"


def test_references_count_as_what_they_stand_for_when_a_chunk_is_cut() -> None:
    mb = 1024 * 1024
    sizes = [10 * mb, 5 * mb, 5 * mb, 20 * mb, 0, 0]
    items = [item(n, 1, operation=Operation.REFERENCE, stands_for=size) for n, size in enumerate(sizes)]
    items += [item(n, 1) for n in range(6, 9)]
    cut = list(parts(items, 16 * mb))
    assert [len(part) for part, _ in cut] == [2, 1, 1, 5]  # the empty ones may have grown: 1 MB each
    assert [one for part, _ in cut for one in part] == items
    assert [size // mb for _, size in cut] == [15, 5, 20, 2]
    assert list(parts([], 1)) == []
