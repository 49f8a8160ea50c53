"""What a batch says of tenants that move: barriers that arrived, documents that changed while draining."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from uuid import UUID

from topics import Operation
from worker.apply.batch import Item, Outcome, tenants_of
from worker.postgres.ledger import Key, LedgerRow, Phase
from worker.postgres.moves import Arrival, Draining


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
