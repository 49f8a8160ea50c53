"""Reads documents in snapshots of their own, and sends them, or their absence, through Kafka (C2, C3).

Used by whoever finds that PostgreSQL must hear of documents anew. Rows are never written here: apply does
that, where the version is newer than the ledger's, or as new while the ledger waits for it (A1).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

from topics import Collection, Event, Operation, Source, Version, document_key
from worker.broker.access import Access, access
from worker.broker.producer import Producer, acknowledged
from worker.errors import UsageError
from worker.mapping import Mapping as MappingFile
from worker.mongo.client import Client, connect, told_clearly
from worker.mongo.heartbeat import Heartbeat
from worker.mongo.lookup import Shown, in_snapshot
from worker.postgres.checkpoints import Checkpoints
from worker.publish.removal import slices
from worker.publish.target import Incarnation, Outgoing, Target, Targets, targets_of
from worker.settings import Settings

Tenants = Mapping[bytes, tuple[UUID, ...]]
"""Tenants by document key."""


class Told(NamedTuple):
    """What was sent of one document."""

    id: Any
    version: Version
    there: bool
    """Whether MongoDB had it; otherwise a delete was sent."""


@dataclass(slots=True)
class Report:
    """What was sent, and is in Kafka for certain."""

    documents: int = 0
    absences: int = 0
    told: dict[Collection, dict[bytes, Told]] = field(default_factory=dict)
    """By real collection and document key."""


@dataclass(frozen=True, slots=True)
class Sender:
    """Sends documents as MongoDB has them now. May be used by one task at a time."""

    client: Client
    producer: Producer
    checkpoints: Checkpoints
    targets: Targets
    heartbeat: Heartbeat
    kafka: Access
    """How Kafka is reached, for whoever waits until apply has read so far."""

    async def send(
        self, ids: Mapping[Collection, Iterable[Any]], tenants: Mapping[Collection, Tenants] | None = None
    ) -> Report:
        """Send these documents of real, mapped collections; return when Kafka has acknowledged them all.

        ``tenants``: those under which rows of a document were seen, where that may be wrong.

        They are read and sent in parts of at most 1,000 ids, 8 MB of ids and 16 MB of documents; but the
        report tells of each: give as many ids as may be held in memory. What was sent before an error does
        no harm, and may be sent again.

        `Transient` while MongoDB does not answer, `UsageError` where it refuses or nothing was published yet,
        `Fatal` when Kafka does not take a record.
        """
        incarnation = await self._incarnation()
        with told_clearly():
            # Written now, so newer than all that was applied before: than the ledger's versions, which a read
            # at the same clusterTime could not beat, than a tenant's floor (A4), and than S (C3).
            not_before = max(await self.heartbeat.beat(), incarnation.started)
        report = Report()
        for collection, some in ids.items():
            target = self.targets.find(str(collection))
            assert target is not None, "the collection is not mapped"
            for part in slices({document_key(id_): id_ for id_ in some}):
                left: Mapping[bytes, Any] = part
                while left:
                    with told_clearly():
                        shown = await in_snapshot(self.client, collection, left, not_before)
                    outgoing = _outgoing(
                        target,
                        collection,
                        shown,
                        left,
                        incarnation,
                        report,
                        (tenants or {}).get(collection, {}),
                    )
                    await acknowledged(await self.producer.send_all(outgoing.records))
                    left = shown.left
        return report

    async def _incarnation(self) -> Incarnation:
        """Return the present one, whose stream tells all that changes after what is read here."""
        if (checkpoint := await self.checkpoints.load()) is None:
            raise UsageError("nothing has been published yet", remedy="start `crossfade run` first")
        return Incarnation.of(checkpoint.incarnation, checkpoint.started_time)


def _outgoing(
    target: Target,
    collection: Collection,
    shown: Shown,
    ids: Mapping[bytes, Any],
    incarnation: Incarnation,
    report: Report,
    tenants: Tenants,
) -> Outgoing:
    """Return the records of what a snapshot shows, and note them in the report."""
    outgoing, wall, version = Outgoing(), datetime.now(UTC), Version.snapshot(shown.at)
    told = report.told.setdefault(collection, {})
    for key in (*shown.documents, *shown.absent):
        document = shown.documents.get(key)
        # As MongoDB has it: the ledger may have 1 for a document whose id is 1.0.
        id_ = ids[key] if document is None else document["_id"]
        event = Event(
            operation=Operation.DELETE if document is None else Operation.UPSERT,
            namespace=str(collection),
            id=id_,
            version=version,
            wall=wall,
            source=Source.REPAIR,
            origin=incarnation.origin,
            document=document,
            tenants=tenants.get(key, ()),
        )
        value = target.value(event, key, target.copy_room)
        outgoing.add(target.copy_topic, target.copy_partitions, key, value)
        told[key] = Told(id_, version, document is not None)
    report.documents += len(shown.documents)
    report.absences += len(shown.absent)
    return outgoing


@asynccontextmanager
async def opened(settings: Settings, mapping: MappingFile, role: str) -> AsyncIterator[Sender]:
    """Yield a sender with connections of its own; a `UsageError` says which service is away.

    ``role`` names us to the services. The topics of the mapping are made where they are missing.
    """
    async with AsyncExitStack() as stack:
        checkpoints = Checkpoints(settings.postgres_dsn.get_secret_value(), settings.publisher)
        await checkpoints.open()
        stack.push_async_callback(checkpoints.close)
        client = await connect(settings.mongo_uri.get_secret_value(), role)
        stack.callback(client.close)
        kafka = await access(settings)
        targets = await targets_of(settings, kafka, mapping, checkpoints)
        producer = Producer(kafka, role, targets.topics())
        await producer.start()
        stack.push_async_callback(producer.stop)
        # Not the publisher's heartbeat: by that one apply's lag is told.
        yield Sender(
            client, producer, checkpoints, targets, Heartbeat(client, f"{settings.publisher} repair"), kafka
        )
