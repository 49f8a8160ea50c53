"""The copy: every document that was there, chunk by chunk in ``_id`` order, beside the stream."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import bson
import structlog
from bson.raw_bson import RawBSONDocument
from pymongo.errors import PyMongoError

from topics import Event, Operation, Source, Version, document_key, encode
from worker import failpoints, metrics
from worker.broker.producer import Producer, acknowledged
from worker.errors import Fatal
from worker.mongo.client import RAW, Client, describe, transient
from worker.mongo.snapshot import After, Reply, estimated_count, read_chunk
from worker.postgres.checkpoints import Checkpoints, CopyProgress
from worker.publish.target import Incarnation, Outgoing, Target
from worker.retry import Backoff

_log = structlog.get_logger()

_IN_FLIGHT = 2
_SLICE = 200  # documents encoded before the stream gets its turn


@dataclass(slots=True)
class _Place:
    """Where the copy of a collection stands: the last document in Kafka for certain."""

    after: After | None
    copied: int


@dataclass(slots=True)
class _Sent:
    acknowledgements: Sequence[asyncio.Future[Any]]
    last: Any
    documents: int


@dataclass(slots=True)
class Copier:
    """Copies collections one after the other, each from where it stopped."""

    client: Client
    producer: Producer
    checkpoints: Checkpoints
    incarnation: Incarnation
    chunk: int
    _sent: deque[_Sent] = field(default_factory=deque)

    async def run(self, work: Sequence[tuple[Target, CopyProgress]]) -> None:
        """Copy what is not copied in this incarnation."""
        for target, progress in work:
            begun = progress.incarnation == self.incarnation.id
            if progress.state == "copied" and begun:
                continue
            place = _Place(None, 0)
            if progress.state == "copying" and begun:
                after = After(bson.decode(progress.cursor, RAW)[""]) if progress.cursor else None
                place = _Place(after, progress.copied)
            else:
                await self._begin(target)
            _log.info("copy begins", collection=target.namespace, after=place.copied)
            await self._retried(target, place)
            await self.checkpoints.finish_copy(target.namespace, self.incarnation.id)
            _log.info("copied", collection=target.namespace, documents=place.copied)

    async def _begin(self, target: Target) -> None:
        delays = Backoff().delays()
        while True:
            try:
                estimated = await estimated_count(self.client, target.collection)
                break
            except PyMongoError as error:
                await _wait_after(error, target, next(delays))
        metrics.COPY_ESTIMATED.labels(target.namespace).set(estimated)
        await self.checkpoints.begin_copy(target.namespace, self.incarnation.id, estimated)

    async def _retried(self, target: Target, place: _Place) -> None:
        delays = Backoff().delays()
        while True:
            before = place.copied
            try:
                await self._copy(target, place)
                return
            except PyMongoError as error:
                if place.copied > before:
                    delays = Backoff().delays()
                await _wait_after(error, target, next(delays))
            finally:
                self._sent.clear()

    async def _copy(self, target: Target, place: _Place) -> None:
        """Send every reply while the next one is being read."""
        replies = self._replies(target, place.after)
        following = asyncio.create_task(_next(replies))
        try:
            while (reply := await following) is not None:
                following = asyncio.create_task(_next(replies))
                outgoing = await self._encode(target, reply)
                acknowledgements = await self.producer.send_all(outgoing.records)
                last = reply.documents[-1]["_id"]
                self._sent.append(_Sent(acknowledgements, last, len(reply.documents)))
                while len(self._sent) > _IN_FLIGHT:
                    await self._advance(target, place)
            while self._sent:
                await self._advance(target, place)
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            await replies.aclose()

    async def _replies(self, target: Target, after: After | None) -> AsyncGenerator[Reply, None]:
        while True:
            count = 0
            chunk = read_chunk(self.client, target.collection, after, self.chunk, self.incarnation.started)
            async for reply in chunk:
                if reply.documents:
                    count += len(reply.documents)
                    after = After(reply.documents[-1]["_id"])
                    yield reply
            if count < self.chunk:
                return

    async def _encode(self, target: Target, reply: Reply) -> Outgoing:
        outgoing = Outgoing()
        version = Version.snapshot(reply.at_cluster_time)
        wall = datetime.now(UTC)
        for start in range(0, len(reply.documents), _SLICE):
            for document in reply.documents[start : start + _SLICE]:
                self._add(outgoing, target, document, version, wall)
            await asyncio.sleep(0)
        metrics.PUBLISHED.labels(target.namespace, "copy").inc(len(reply.documents))
        metrics.PUBLISHED_BYTES.labels("copy").inc(outgoing.bytes)
        return outgoing

    def _add(
        self, outgoing: Outgoing, target: Target, document: RawBSONDocument, version: Version, wall: datetime
    ) -> None:
        id_ = document["_id"]
        event = Event(
            operation=Operation.UPSERT,
            namespace=target.namespace,
            id=id_,
            version=version,
            wall=wall,
            source=Source.COPY,
            origin=self.incarnation.origin,
            document=document,
        )
        outgoing.add(target.copy_topic, target.copy_partitions, document_key(id_), encode(event))

    async def _advance(self, target: Target, place: _Place) -> None:
        """Wait for the oldest send; then save how far the copy is."""
        sent = self._sent.popleft()
        await acknowledged(sent.acknowledgements)
        copied = place.copied + sent.documents
        cursor = bson.encode({"": sent.last}, codec_options=RAW)
        await self.checkpoints.advance_copy(target.namespace, self.incarnation.id, cursor, copied)
        place.after, place.copied = After(sent.last), copied
        metrics.COPIED.labels(target.namespace).inc(sent.documents)
        failpoints.reach(failpoints.COPY_AFTER_CHUNK)


async def _next(replies: AsyncIterator[Reply]) -> Reply | None:
    return await anext(replies, None)


async def _wait_after(error: PyMongoError, target: Target, seconds: float) -> None:
    if not transient(error):
        raise Fatal(f"MongoDB refuses to read {target.namespace} ({describe(error)})") from None
    _log.warning("copy interrupted, trying again", collection=target.namespace, error=describe(error))
    await asyncio.sleep(seconds)
