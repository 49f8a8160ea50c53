"""What a batch says of tenants that move: barriers that arrived, documents that changed while draining."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from uuid import UUID

from topics import Operation
from worker.apply.batch import ROGUE, WRITABLE, Item, Outcome, tenants_of
from worker.postgres.ledger import Entry, Key, LedgerRow, Phase
from worker.postgres.moves import Arrival, Draining
from worker.postgres.outbox import Noted


def barriers(items: Iterable[Item]) -> list[Arrival]:
    """Return the barriers among records; one whose id is of another form stands for nothing."""
    return list(_barriers(items))


def _barriers(items: Iterable[Item]) -> Iterator[Arrival]:
    for item in items:
        event = item.event
        if event is None or item.outcome is not Outcome.CONTROL or event.operation is not Operation.BARRIER:
            continue
        match event.id:
            case {"barrier": UUID() as barrier, "partitions": int(partitions)}:
                yield Arrival(barrier, item.topic, item.partition, partitions, event.origin.incarnation)
            case _:
                pass


def draining(
    items: Sequence[Item], known: Mapping[Key, LedgerRow], phases: Mapping[UUID, Phase]
) -> list[Draining]:
    """Return, of applied events, the documents that some tenant takes or had which is draining now."""
    found: list[Draining] = []
    for item in items:
        if item.outcome is not Outcome.APPLIED or item.key is None:
            continue
        for tenant in tenants_of(item, known.get(item.key)):
            if (phase := phases[tenant]).phase == "draining":
                found.append(Draining(tenant, phase.epoch, item.key))
    return found


AWAY = ("postgres", "complete")
"""Phases in which a tenant writes in PostgreSQL (R1)."""


def to_restore(
    items: Sequence[Item], known: Mapping[Key, LedgerRow], phases: Mapping[UUID, Phase]
) -> list[Noted]:
    """Return the documents that MongoDB may have otherwise than PostgreSQL, for the way back to see to (A5).

    Those of rogue events, and those that a copy read, or found to be gone: what was written or dropped there
    came with no event of its own. Where the ledger has a tenant that is at home, its document is not ours to
    write there: the letter tells. What a copy reads and the ledger never knew stays in MongoDB: PostgreSQL
    may never have had its collection.
    """
    found: list[Noted] = []
    for item in items:
        rogue = item.outcome is Outcome.DEAD and item.kind == ROGUE
        if not (rogue or item.outcome is Outcome.SWITCHED) or item.key is None:
            continue
        before = known.get(item.key)
        if before is None and not rogue:
            continue
        tenant = before.tenant_id if before else None
        if tenant is None:
            tenant = item.tenant
        # A copy has as many as there are, and of those that are complete none is brought back.
        if tenant is not None and (phase := phases[tenant]).phase in (AWAY if rogue else ("postgres",)):
            found.append(Noted(*item.key, tenant, phase.epoch))
    return found


def told_tenant(echo: Item, tombstone: LedgerRow) -> Entry:
    """Return a tombstone with the tenant that an echo told, all else as it was."""
    assert echo.key is not None and echo.rows is not None
    return Entry(echo.key, echo.rows.tenant_id, tombstone.version, tombstone.state, tombstone.document_id)


def at_home(item: Item, phases: Mapping[UUID, Phase]) -> bool:
    """Whether rows of an event's own tenant may be changed by the sync."""
    tenant = item.rows.tenant_id if item.rows else None
    return tenant is not None and phases[tenant].phase in WRITABLE
