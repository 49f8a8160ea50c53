"""Changes of the stream to records: order, look-ups, envelopes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Any, NamedTuple

import structlog
from bson import Timestamp
from bson.raw_bson import RawBSONDocument

from topics import Collection, Event, Operation, Origin, Source, Version, document_key, encode
from worker import metrics
from worker.mongo import barrier, heartbeat, reverse
from worker.mongo.changes import Fetched, token_time
from worker.mongo.client import Client
from worker.mongo.lookup import Found, look_up
from worker.publish.order import OrderCounter
from worker.publish.target import Incarnation, Outgoing, Target, Targets

_log = structlog.get_logger()

_UPSERTS = frozenset({"insert", "update", "replace"})
_LOOK_UPS = 8  # at once; a batch may touch the collections of many tenants
_PART = 8 * 1024 * 1024  # bytes handed over at once; a batch may be of many large documents
_Ids = dict[str, dict[bytes, Any]]
"""Ids of documents by document key, by the real collection's namespace."""


class Whole(NamedTuple):
    """A mapped collection that changed as a whole, of which the stream tells no document's event."""

    collection: str  # the logical one
    namespace: str  # the real one
    change: str


class _Change(NamedTuple):
    target: Target
    namespace: str  # the real collection's
    key: bytes
    id: Any
    order: int
    upsert: bool
    fields: RawBSONDocument
    document: RawBSONDocument | None
    echo: bool


class EventMaker:
    """Turns fetched batches into records for Kafka. One for each opening of the stream."""

    def __init__(
        self,
        client: Client,
        targets: Targets,
        incarnation: Incarnation,
        publisher: str,
        tell_whole: Callable[[Whole], Awaitable[None]],
    ) -> None:
        self._client = client
        self._targets = targets
        self._incarnation = incarnation
        self._publisher = publisher
        self.order: OrderCounter[RawBSONDocument] = OrderCounter()
        self._tell_whole = tell_whole
        self._whole: list[Whole] = []
        self._beats: list[RawBSONDocument] = []
        # Transactions of the way back at the newest clusterTime: their ledger's change comes first, and the
        # others perhaps with a later reply. No stream begins inside a clusterTime (C1).
        self._echoes: tuple[int, set[bytes]] = 0, set()

    async def make(self, fetched: Fetched) -> AsyncIterator[Outgoing]:
        """Yield a batch's records in parts that memory holds; at the end `order` has seen its events.

        A document that is looked up may come behind a newer event of its own: versions tell (A1).
        """
        changes, missing = self._read(fetched)
        while self._whole:
            await self._tell_whole(self._whole.pop(0))
        for outgoing in self._parts(one for one in changes if one.document is not None or not one.upsert):
            yield outgoing
        waiting = [one for one in changes if one.document is None and one.upsert] if missing else []
        while waiting:
            found, missing = await self._look_up(missing, fetched.changes[-1]["clusterTime"])
            told, still = list[_Change](), list[_Change]()
            for change in waiting:
                if (document := found[change.namespace].get(change.key)) is not None:
                    told.append(change._replace(document=document))
                elif change.key in missing.get(change.namespace, ()):
                    still.append(change)
                else:
                    metrics.ABSENT.labels(change.target.namespace).inc()
            waiting = still
            for outgoing in self._parts(told):
                yield outgoing
        if self._beats:  # last, for they say that all before them is sent
            yield self._heartbeats()

    def _parts(self, changes: Iterable[_Change]) -> Iterator[Outgoing]:
        outgoing, published = Outgoing(), dict[str, int]()
        for change in changes:
            target = change.target
            value = target.value(self._event(change), change.key, target.stream_room)
            outgoing.add(target.stream_topic, target.stream_partitions, change.key, value)
            published[target.namespace] = published.get(target.namespace, 0) + 1
            if change.echo:
                metrics.ECHOES.labels(target.namespace).inc()
            if outgoing.bytes >= _PART:
                metrics.PUBLISHED_BYTES.labels("stream").inc(outgoing.bytes)
                yield outgoing
                outgoing = Outgoing()
        for namespace, count in published.items():
            metrics.PUBLISHED.labels(namespace, "stream").inc(count)
        metrics.PUBLISHED_BYTES.labels("stream").inc(outgoing.bytes)
        if outgoing.records:
            yield outgoing

    def _read(self, fetched: Fetched) -> tuple[list[_Change], _Ids]:
        """Count every change's order; return the changes, and the ids to look up."""
        order, find = self.order, self._targets.find
        changes: list[_Change] = []
        missing: _Ids = {}
        for fields in fetched.changes:
            namespace, operation = fields["ns"], fields["operationType"]
            target = find(namespace)
            at: Timestamp = fields["clusterTime"]
            time = at.time << 32 | at.inc
            delete = operation == "delete"
            if target is None or not (delete or operation in _UPSERTS):
                order.control(time, fields["_id"])
                if namespace == heartbeat.NAMESPACE:
                    self._beat(fields, operation)
                elif namespace == reverse.NAMESPACE:
                    self._way_back(fields, time)
                else:
                    self._changed(fields, namespace, operation)
                continue
            id_ = fields["id"]
            key = document_key(id_)
            document = None if delete else fields.get("fullDocument")
            if document is None and not delete:
                missing.setdefault(namespace, {})[key] = id_
            number = order.next(time, fields["_id"], namespace, key)
            echo = self._echoes[0] == time and _transaction(fields) in self._echoes[1]
            changes.append(_Change(target, namespace, key, id_, number, not delete, fields, document, echo))
        order.batch_ended(token_time(fetched.token), fetched.token)
        return changes, missing

    def _beat(self, fields: RawBSONDocument, operation: str) -> None:
        # Without its document, where the stream is opened so, it is not told: another follows.
        ours = (self._publisher, f"{self._publisher} {barrier.FIELD}")
        if operation in _UPSERTS and fields["id"] in ours and "fullDocument" in fields:
            self._beats.append(fields)

    def _way_back(self, fields: RawBSONDocument, time: int) -> None:
        """Take note of a transaction of the way back, by its first write."""
        if (transaction := _transaction(fields)) is not None:
            if self._echoes[0] != time:
                self._echoes = time, set()
            self._echoes[1].add(transaction)

    def _changed(self, fields: RawBSONDocument, namespace: str, operation: str) -> None:
        """Take note of a collection that changed as a whole: dropped, renamed, or another renamed to it."""
        if (target := self._targets.find(namespace)) is not None:
            self._whole.append(Whole(target.namespace, namespace, operation))
        if operation == "rename":
            renamed = f"{fields['to']['db']}.{fields['to']['coll']}"
            if (target := self._targets.find(renamed)) is not None:
                self._whole.append(Whole(target.namespace, renamed, "another was renamed to it"))

    async def _look_up(
        self, missing: _Ids, newest: Timestamp
    ) -> tuple[dict[str, dict[bytes, RawBSONDocument]], _Ids]:
        """Return documents of each real collection (ids are unique only within one), and what is left."""
        gate = asyncio.Semaphore(_LOOK_UPS)

        async def one(namespace: str, ids: dict[bytes, Any]) -> Found:
            async with gate:
                return await look_up(self._client, Collection.parse(namespace), ids, newest)

        replies = await asyncio.gather(*(one(namespace, ids) for namespace, ids in missing.items()))
        found = dict(zip(missing, replies, strict=True))
        left = {namespace: reply.left for namespace, reply in found.items() if reply.left}
        return {namespace: reply.documents for namespace, reply in found.items()}, left

    def _event(self, change: _Change) -> Event:
        fields = change.fields
        origin = self._incarnation.origin
        if (transaction := fields.get("txnNumber")) is not None:
            origin = Origin(self._incarnation.id, fields["lsid"], transaction, change.echo)
        return Event(
            operation=Operation.UPSERT if change.upsert else Operation.DELETE,
            namespace=change.namespace,
            id=change.id,
            version=Version.of(fields["clusterTime"], change.order),
            wall=fields["wallTime"],
            source=Source.STREAM,
            origin=origin,
            document=change.document,
        )

    def _heartbeats(self) -> Outgoing:
        """Return heartbeats and barriers, for every partition, in order."""
        outgoing, beats = Outgoing(), self._beats
        self._beats = []
        partitions = sum(target.stream_partitions for target in self._targets.all)
        for fields in beats:
            document = fields["fullDocument"]
            at = document["at"]
            id_: Any = at
            if (asked := document.get(barrier.FIELD)) is not None:
                id_ = {"barrier": asked, "partitions": partitions}
            event = Event(
                operation=Operation.HEARTBEAT if asked is None else Operation.BARRIER,
                namespace="",
                id=id_,
                version=Version.of(fields["clusterTime"], 0),
                wall=at,
                source=Source.STREAM,
                origin=self._incarnation.origin,
            )
            outgoing.add_everywhere(self._targets.all, document_key(at), encode(event))
        return outgoing


def _transaction(fields: RawBSONDocument) -> bytes | None:
    """Return what tells a change's transaction from others; None: it is of none."""
    number = fields.get("txnNumber")
    return None if number is None else b"%d %b" % (number, fields["lsid"].raw)
