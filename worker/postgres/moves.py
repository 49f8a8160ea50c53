"""What apply notes for tenants that move, in the transaction of the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

from worker.postgres.connect import Connection
from worker.postgres.ledger import Key


class Arrival(NamedTuple):
    """A barrier in one partition. ``partitions``: to how many its publisher sent it."""

    barrier_id: UUID
    topic: str
    partition: int
    partitions: int
    incarnation: UUID


_ARRIVED = """
INSERT INTO crossfade.barrier (barrier_id, topic, partition, partitions, incarnation)
SELECT * FROM unnest($1::uuid[], $2::text[], $3::integer[], $4::integer[], $5::uuid[])
ON CONFLICT DO NOTHING
"""


async def arrived(connection: Connection, arrivals: Sequence[Arrival]) -> None:
    """Note barriers: all before them in their partitions is applied once this transaction commits."""
    await connection.execute(_ARRIVED, *map(list, zip(*arrivals, strict=True)))


class Draining(NamedTuple):
    """A document that was changed while a tenant of its was ``draining``."""

    tenant_id: UUID
    epoch: int
    key: Key


_DRAINING = """
INSERT INTO crossfade.draining_document (tenant_id, epoch, collection_id, row_id)
SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::smallint[], $4::uuid[])
ON CONFLICT DO NOTHING
"""


async def note_draining(connection: Connection, documents: Sequence[Draining]) -> None:
    """Note documents that are to be verified before their tenant is switched."""
    await connection.execute(
        _DRAINING,
        [one.tenant_id for one in documents],
        [one.epoch for one in documents],
        [one.key[0] for one in documents],
        [one.key[1] for one in documents],
    )
