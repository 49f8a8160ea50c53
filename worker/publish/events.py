"""Changes of the stream to records: order, look-ups, envelopes."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

import structlog
from bson import Timestamp
from bson.raw_bson import RawBSONDocument

from topics import Collection, Event, Operation, Origin, Source, Version, document_key, encode
from worker import metrics
from worker.mongo import heartbeat
from worker.mongo.changes import Fetched, token_time
from worker.mongo.client import Client
from worker.mongo.lookup import look_up
from worker.publish.order import OrderCounter
from worker.publish.target import Incarnation, Outgoing, Target, Targets

_log = structlog.get_logger()

_UPSERTS = frozenset({"insert", "update", "replace"})
_LOOK_UPS = 8  # at once; a batch may touch the collections of many tenants


class _Change(NamedTuple):
    target: Target | None  # None: a heartbeat
    namespace: str  # the real collection's
    key: bytes
    id: Any
    order: int
    upsert: bool
    fields: RawBSONDocument
    document: RawBSONDocument | None


class EventMaker:
    """Turns fetched batches into records for Kafka. One for each opening of the stream."""

    def __init__(self, client: Client, targets: Targets, incarnation: Incarnation, publisher: str) -> None:
        self._client = client
        self._targets = targets
        self._incarnation = incarnation
        self._publisher = publisher
        self.order: OrderCounter[RawBSONDocument] = OrderCounter()

    async def make(self, fetched: Fetched) -> Outgoing:
        """Return a batch's records; `order` has then seen its events."""
        changes, missing = self._read(fetched)
        found = await self._look_up(missing, fetched.changes[-1]["clusterTime"]) if missing else {}
        outgoing = Outgoing()
        published: dict[str, int] = {}
        for change in changes:
            target = change.target
            if target is None:
                self._heartbeat(change, outgoing)
                continue
            document = change.document
            if document is None and change.upsert:
                document = found[change.namespace].get(change.key)
                if document is None:
                    metrics.ABSENT.labels(target.namespace).inc()
                    continue
            value = target.value(self._event(change, document), change.key, target.stream_room)
            outgoing.add(target.stream_topic, target.stream_partitions, change.key, value)
            published[target.namespace] = published.get(target.namespace, 0) + 1
        for namespace, count in published.items():
            metrics.PUBLISHED.labels(namespace, "stream").inc(count)
        metrics.PUBLISHED_BYTES.labels("stream").inc(outgoing.bytes)
        return outgoing

    def _read(self, fetched: Fetched) -> tuple[list[_Change], dict[str, dict[bytes, Any]]]:
        """Count every change's order; return the changes, and the ids to look up by namespace."""
        order, find = self.order, self._targets.find
        changes: list[_Change] = []
        missing: dict[str, dict[bytes, Any]] = {}
        for fields in fetched.changes:
            namespace, operation = fields["ns"], fields["operationType"]
            target = find(namespace)
            at: Timestamp = fields["clusterTime"]
            time = at.time << 32 | at.inc
            delete = operation == "delete"
            if target is None or not (delete or operation in _UPSERTS):
                order.control(time, fields["_id"])
                if namespace == heartbeat.NAMESPACE:
                    self._beat(fields, operation, changes)
                else:
                    self._whole(fields, namespace, operation)
                continue
            id_ = fields["id"]
            key = document_key(id_)
            document = None if delete else fields.get("fullDocument")
            if document is None and not delete:
                missing.setdefault(namespace, {})[key] = id_
            number = order.next(time, fields["_id"], namespace, key)
            changes.append(_Change(target, namespace, key, id_, number, not delete, fields, document))
        order.batch_ended(token_time(fetched.token), fetched.token)
        return changes, missing

    def _beat(self, fields: RawBSONDocument, operation: str, changes: list[_Change]) -> None:
        if operation in _UPSERTS and fields["id"] == self._publisher:
            document = fields.get("fullDocument")
            changes.append(_Change(None, heartbeat.NAMESPACE, b"", None, 0, True, fields, document))

    def _whole(self, fields: RawBSONDocument, namespace: str, operation: str) -> None:
        """Tell of a collection that changed as a whole, which the stream says nothing more of."""
        if self._targets.find(namespace) is not None:
            _log.error("collection changed as a whole; its rows stay", collection=namespace, change=operation)
        if operation == "rename":
            renamed = f"{fields['to']['db']}.{fields['to']['coll']}"
            if target := self._targets.find(renamed):
                told = "a collection was renamed to this name: crossfade copy start --collection"
                _log.error(f"{told} {target.namespace}", collection=renamed)

    async def _look_up(
        self, missing: dict[str, dict[bytes, Any]], newest: Timestamp
    ) -> dict[str, dict[bytes, RawBSONDocument]]:
        """Return the documents of each real collection; ids are unique only within one."""
        gate = asyncio.Semaphore(_LOOK_UPS)

        async def one(namespace: str, ids: dict[bytes, Any]) -> dict[bytes, RawBSONDocument]:
            async with gate:
                return await look_up(self._client, Collection.parse(namespace), ids, newest)

        found = await asyncio.gather(*(one(namespace, ids) for namespace, ids in missing.items()))
        return dict(zip(missing, found, strict=True))

    def _event(self, change: _Change, document: RawBSONDocument | None) -> Event:
        fields = change.fields
        origin = self._incarnation.origin
        if (transaction := fields.get("txnNumber")) is not None:
            origin = Origin(self._incarnation.id, fields["lsid"], transaction)
        return Event(
            operation=Operation.UPSERT if change.upsert else Operation.DELETE,
            namespace=change.namespace,
            id=change.id,
            version=Version.of(fields["clusterTime"], change.order),
            wall=fields["wallTime"],
            source=Source.STREAM,
            origin=origin,
            document=document,
        )

    def _heartbeat(self, change: _Change, outgoing: Outgoing) -> None:
        if change.document is None:
            return
        at = change.document["at"]
        event = Event(
            operation=Operation.HEARTBEAT,
            namespace="",
            id=at,
            version=Version.of(change.fields["clusterTime"], 0),
            wall=at,
            source=Source.STREAM,
            origin=self._incarnation.origin,
        )
        outgoing.add_everywhere(self._targets.all, document_key(at), encode(event))
