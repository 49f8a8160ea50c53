"""What becomes of a batch's dead letters, and of those that stand of its documents. In its transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from topics import id_to_bson, key_to_id
from worker.apply.batch import EXPIRED, ROGUE, ROLLING_BACK, Item, Outcome, collides, overtaken, same_id
from worker.mapping.ids import reversible
from worker.postgres import dead_letters, ledger
from worker.postgres.connect import Connection
from worker.postgres.ledger import LedgerRow

_STATES = {Outcome.PARKED: "parked", Outcome.DEAD: "dead"}


async def settle(connection: Connection, batch_id: int, items: Sequence[Item], *, retry: bool) -> None:
    """Keep what could not be applied; on a ``retry``, tell each letter what became of it.

    An event that something newer has overtaken is no letter but superseded: another worker's, an earlier
    batch's when a record is read again, or a newer one of this batch.
    """
    failing = [item for item in items if item.outcome in _STATES]
    keys = sorted({item.key for item in failing if item.key is not None})
    known = await ledger.read(connection, keys) if keys else {}
    tenants: dict[int, UUID | None] = {}
    for item in failing:
        row = known.get(item.key) if item.key else None
        if overtaken(item, row) and not collides(item, row) and not item.replayed:
            item.outcome = Outcome.SUPERSEDED
            continue
        overdue = item.parked is not None and item.parked.overdue and item.kind != ROLLING_BACK
        if item.outcome is Outcome.PARKED and overdue:
            assert item.parked is not None
            tries = item.parked.attempts + 1
            item.fail(Outcome.DEAD, item.kind, f"{item.reason}; still so after {tries} tries")
        tenants[id(item)] = _tenant(item, row)
    if retry:
        await dead_letters.settle_parked(
            connection, [_verdict(item, tenants.get(id(item))) for item in items]
        )
    elif letters := [_letter(item, tenants[id(item)]) for item in failing if id(item) in tenants]:
        await dead_letters.save(connection, batch_id, letters)


async def close_older(connection: Connection, items: Sequence[Item]) -> None:
    """Close the letters that stand of the documents that these applied events are about, and are no newer."""
    applied: dict[tuple[str, UUID], Item] = {}
    for item in items:
        if item.outcome is Outcome.APPLIED and item.event and item.key:
            place = item.event.namespace, item.key[1]
            other = applied.get(place)
            if other is None or item.version > other.version:
                applied[place] = item
    found = await dead_letters.standing(connection, [row_id for _, row_id in applied])
    healed: list[int] = []
    for letter in found:
        item = applied.get((letter.namespace, letter.row_id))
        if item is None or letter.version > item.version:
            continue
        if same_id(item.document_id, _kept(letter.document_id)):
            healed.append(letter.dead_letter_id)
    if healed:
        await dead_letters.heal(connection, healed)


async def close_overtaken(connection: Connection) -> None:
    """Close letters of the last minutes that another worker overtook while they were being written.

    Neither transaction saw the other: the document was new to both, or the letter's was of no ledger row.
    """
    found = await dead_letters.overtaken(connection)
    healed = [one.dead_letter_id for one in found if same_id(one.ledger_id, _kept(one.document_id))]
    if healed:
        await dead_letters.heal(connection, healed)


def _kept(document_id: bytes) -> bytes | None:
    return None if reversible(key_to_id(document_id)) else document_id


def _tenant(item: Item, known: LedgerRow | None) -> UUID | None:
    """Return the tenant that a letter holds back; None holds back all.

    A rogue event is of the tenant that the document has in PostgreSQL, whatever it names itself.
    """
    if item.kind in (ROGUE, EXPIRED, ROLLING_BACK) and known is not None and known.tenant_id is not None:
        return known.tenant_id
    if item.mapped is not None and item.event is not None and item.event.document is None:
        return known.tenant_id if known and item.kind != "collision" else None
    return item.tenant


def _verdict(item: Item, tenant: UUID | None) -> dict[str, Any]:
    assert item.parked is not None
    state = _state(item)
    verdict: dict[str, Any] = {"id": item.parked.dead_letter_id, "state": state or "healed"}
    if state is not None:
        verdict |= {
            "kind": item.kind,
            "reason": item.reason,
            "tenant_id": tenant and str(tenant),  # the driver's UUIDs are not the encoder's
            "row_id": item.key and str(item.key[1]),
        }
    return verdict


def _state(item: Item) -> str | None:
    """Return the state of an event's letter. Nobody has to act on what has expired."""
    state = _STATES.get(item.outcome or Outcome.APPLIED)
    return "discarded" if state == "dead" and item.kind == EXPIRED else state


def _letter(item: Item, tenant: UUID | None) -> dead_letters.DeadLetter:
    event = item.event
    return dead_letters.DeadLetter(
        state=_state(item) or "dead",
        kind=item.kind,
        reason=item.reason,
        namespace=event.namespace if event else "",
        document_id=id_to_bson(event.id) if event else None,
        row_id=item.key[1] if item.key else None,
        tenant_id=tenant,
        version_time=event.version.time if event else None,
        version_order=event.version.order if event else None,
        topic=item.topic,
        partition=item.partition,
        offset=item.offset,
        event=item.value,
    )
