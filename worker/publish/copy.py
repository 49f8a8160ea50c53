"""The copy: every document that was there, chunk by chunk in ``_id`` order, beside the stream."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple

import bson
import structlog
from bson.raw_bson import RawBSONDocument
from pymongo.errors import PyMongoError

from topics import Collection, Event, Operation, Source, Version, document_key
from worker import failpoints, metrics
from worker.broker.producer import Producer, acknowledged
from worker.errors import Fatal
from worker.mongo.client import RAW, Client, describe, transient
from worker.mongo.collections import fitting
from worker.mongo.heartbeat import Heartbeat
from worker.mongo.preference import ReadPreference
from worker.mongo.snapshot import After, Reply, estimated_count, read_chunk
from worker.postgres.checkpoints import Checkpoints, CopyProgress
from worker.publish.pace import Pace
from worker.publish.removal import Removal
from worker.publish.target import Incarnation, Outgoing, Target, Targets
from worker.publish.throttle import Hold, Paused, Throttle
from worker.retry import Backoff

_log = structlog.get_logger()

_IN_FLIGHT = 2
_SLICE = 200  # documents encoded before the stream gets its turn
LOOK_EVERY = 1.0  # seconds between looks for a collection that is to be copied


class _NotWanted(Exception):
    """This copy of the collection was asked for anew, ended by another publisher, or found incomplete."""


@dataclass(slots=True)
class _Place:
    """Where a copy stands: its last document that is in Kafka for certain, and that one's real collection."""

    number: int
    collection: Collection | None
    after: After | None
    copied: int
    began: int
    seconds: float = 0.0  # spent on it, pauses left out
    pace: Pace = field(default_factory=Pace)
    since: float = 0.0  # what is counted in seconds, by the clock that never goes backwards

    @classmethod
    def of(cls, target: Target, progress: CopyProgress) -> _Place:
        """Return where a copy that has begun goes on."""
        began = progress.began or 0
        if progress.cursor is None:
            return cls(progress.number, None, None, 0, began, progress.seconds)
        cursor = bson.decode(progress.cursor, RAW)
        namespace = cursor.get("ns")
        collection = Collection.parse(namespace) if namespace else target.collection
        return cls(progress.number, collection, After(cursor[""]), progress.copied, began, progress.seconds)


_Work = Callable[[Target, _Place], Awaitable[None]]


class _Read(NamedTuple):
    collection: Collection
    reply: Reply


@dataclass(slots=True)
class _Sent:
    acknowledgements: Sequence[asyncio.Future[Any]]
    collection: Collection
    last: Any
    documents: int
    records: Mapping[tuple[str, int], int]  # how many, by topic and partition


@dataclass(slots=True)
class Copier:
    """Copies collections one after the other, each from where it stopped."""

    client: Client
    producer: Producer
    checkpoints: Checkpoints
    heartbeat: Heartbeat
    removal: Removal
    targets: Targets
    throttle: Throttle
    preference: ReadPreference
    hashes: Mapping[str, str]
    incarnation: Incarnation
    first_life: bool
    chunk: int
    enabled: bool = True
    _sent: deque[_Sent] = field(default_factory=deque)

    async def run(self) -> None:
        """Copy what is not copied in this incarnation, and what is asked for anew, until cancelled.

        `Fatal` when another mapping was accepted for a collection: it may name other collections.
        """
        elsewhere: set[str] | None = None
        while True:
            copies = await self.checkpoints.copies()
            self._require_same_mapping(copies)
            if elsewhere is None:
                # Once: two publishers of different names would otherwise copy in turns for ever.
                elsewhere = {name for name in self.hashes if not self._ours(copies[name])}
            if not self.enabled or not await self._next(copies, elsewhere):
                await asyncio.sleep(LOOK_EVERY)

    async def _next(self, copies: Mapping[str, CopyProgress], elsewhere: set[str]) -> bool:
        """Copy the next collection; return whether there was one that is not paused."""
        for target in self.targets.all:
            progress = copies[target.namespace]
            if target.namespace not in elsewhere and not self._wanted(progress):
                continue
            if progress.paused:
                self.throttle.note(Hold.PAUSE)
                continue
            elsewhere.discard(target.namespace)
            return await self._run(target, progress)
        return False

    def _require_same_mapping(self, copies: Mapping[str, CopyProgress]) -> None:
        for namespace, hash_ in self.hashes.items():
            if namespace not in copies:  # restored to a state before this publisher's start
                raise Fatal("PostgreSQL does not know the collections", remedy="start publish again")
            if copies[namespace].mapping_hash != hash_:
                raise Fatal(f"the mapping of {namespace} was changed", remedy="start publish again")

    def _wanted(self, progress: CopyProgress) -> bool:
        return progress.state in ("pending", "invalid") or (
            progress.state in ("copying", "removing") and self._ours(progress)
        )

    def _ours(self, progress: CopyProgress) -> bool:
        return progress.incarnation == self.incarnation.id

    async def _run(self, target: Target, progress: CopyProgress) -> bool:
        """Copy a collection, from where it stopped; False when it is paused meanwhile."""
        removing = progress.state == "removing" and self._ours(progress)
        if progress.state in ("copying", "removing") and self._ours(progress):
            place = _Place.of(target, progress)
        elif (begun := await self._begin(target, progress)) is not None:
            place = begun
        else:
            return True
        try:
            if not removing:
                _log.info("copy begins", collection=target.namespace, copy=place.number, after=place.copied)
                await self._retried(target, place, self._copy)
            if place.number > 1 or not self.first_life:  # else nothing could be known that is gone
                if not await self.checkpoints.begin_removal(target.namespace, place.number):
                    raise _NotWanted
                await self._retried(target, place, self._remove)
            if not await self.checkpoints.finish_copy(target.namespace, place.number):
                raise _NotWanted
        except Paused:
            _log.info("copy paused", collection=target.namespace, after=place.copied)
            return False
        except _NotWanted:
            _log.info("copy is no longer wanted as it was begun", collection=target.namespace)
        else:
            _log.info("copied", collection=target.namespace, documents=place.copied)
        return True

    async def _remove(self, target: Target, place: _Place) -> None:
        still_wanted = partial(self._still_wanted, target, place)
        gone = await self.removal.run(target, self.incarnation, place.began, still_wanted)
        _log.info("removed what MongoDB no longer has", collection=target.namespace, documents=gone)
        metrics.REMOVED.labels(target.namespace).inc(gone)

    async def _still_wanted(self, target: Target, place: _Place) -> None:
        progress = (await self.checkpoints.copies())[target.namespace]
        if progress.number != place.number or progress.state != "removing":
            raise _NotWanted
        if progress.paused:
            raise Paused

    async def _begin(self, target: Target, progress: CopyProgress) -> _Place | None:
        delays = Backoff().delays()
        while True:
            try:
                sources = await fitting(self.client, self.targets.sources, target.collection)
                estimated = sum([await estimated_count(self.client, one) for one in sources])
                at = await self.heartbeat.beat()
                break
            except PyMongoError as error:
                await _wait_after(error, target, next(delays))
        metrics.COPY_ESTIMATED.labels(target.namespace).set(estimated)
        began = at.time << 32 | at.inc
        number = await self.checkpoints.begin_copy(
            target.namespace, progress, self.incarnation.id, estimated, began
        )
        return None if number is None else _Place(number, None, None, 0, began)

    async def _retried(self, target: Target, place: _Place, work: _Work) -> None:
        delays = Backoff().delays()
        while True:
            before = place.copied
            try:
                await work(target, place)
                return
            except PyMongoError as error:
                if place.copied > before:
                    delays = Backoff().delays()
                await _wait_after(error, target, next(delays))
            finally:
                self._sent.clear()

    async def _copy(self, target: Target, place: _Place) -> None:
        """Send every reply while the next one is being read."""
        place.since = time.monotonic()
        reads = self._reads(target, place)
        following = asyncio.create_task(_following(reads))
        try:
            while (read := await self._advanced_until(following, target, place)) is not None:
                following = asyncio.create_task(_following(reads))
                outgoing = await self._encode(target, read)
                acknowledgements = await self.producer.send_all(outgoing.records)
                documents = read.reply.documents
                records = {place: len(some) for place, some in outgoing.records.items()}
                last = documents[-1]["_id"]
                self._sent.append(_Sent(acknowledgements, read.collection, last, len(documents), records))
                while len(self._sent) > _IN_FLIGHT:
                    await self._advance(target, place)
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            await reads.aclose()

    async def _advanced_until(
        self, following: asyncio.Task[_Read | None], target: Target, place: _Place
    ) -> _Read | None:
        """Wait for the next read; meanwhile save how far the copy is, for the throttle may let it wait long.

        At the end all that was sent is saved, and so it is at a pause.
        """
        while self._sent:
            pending = [one for one in self._sent[0].acknowledgements if not one.done()]
            if pending:
                await asyncio.wait({following, *pending}, return_when=asyncio.FIRST_COMPLETED)
            if following.done() and not following.exception() and following.result():
                break
            if following.done() or not pending:
                await self._advance(target, place)
        return await following

    async def _reads(self, target: Target, place: _Place) -> AsyncGenerator[_Read, None]:
        """Read each real collection in order, from the copy's place on, when the throttle lets it.

        Every snapshot is at or after a heartbeat written now, so it is newer than: S (C3); the token that the
        stream has gone on from, before which a collection that is new in the mapping was not watched; and
        every event applied before this copy was asked for, so that it makes all of those rows anew (A1).

        A collection that appears after they were listed, or that stands before the place of a copy that goes
        on and was not listed when it began, was born after S: the stream has all of it.
        """
        not_before = await self.heartbeat.beat()
        failpoints.reach(failpoints.COPY_BEFORE_READ)
        begun, last = place.collection, place.after
        for collection in await fitting(self.client, self.targets.sources, target.collection):
            if begun is not None and collection < begun:
                continue
            after = last if collection == begun else None
            while True:
                await self.throttle.turn(target.namespace)
                most = self.throttle.most(self.chunk)
                reply = await read_chunk(self.client, collection, after, most, not_before, self.preference)
                if not reply.documents:
                    break
                self.throttle.took(len(reply.documents))
                after = After(reply.documents[-1]["_id"])
                yield _Read(collection, reply)

    async def _encode(self, target: Target, read: _Read) -> Outgoing:
        outgoing, reply, namespace = Outgoing(), read.reply, str(read.collection)
        version = Version.snapshot(reply.at_cluster_time)
        wall = datetime.now(UTC)
        for start in range(0, len(reply.documents), _SLICE):
            for document in reply.documents[start : start + _SLICE]:
                self._add(outgoing, target, namespace, document, version, wall)
            await asyncio.sleep(0)
        metrics.PUBLISHED.labels(target.namespace, "copy").inc(len(reply.documents))
        metrics.PUBLISHED_BYTES.labels("copy").inc(outgoing.bytes)
        return outgoing

    def _add(
        self,
        outgoing: Outgoing,
        target: Target,
        namespace: str,
        document: RawBSONDocument,
        version: Version,
        wall: datetime,
    ) -> None:
        id_ = document["_id"]
        event = Event(
            operation=Operation.UPSERT,
            namespace=namespace,
            id=id_,
            version=version,
            wall=wall,
            source=Source.COPY,
            origin=self.incarnation.origin,
            document=document,
        )
        key = document_key(id_)
        value = target.value(event, key, target.copy_room)
        outgoing.add(target.copy_topic, target.copy_partitions, key, value)

    async def _advance(self, target: Target, place: _Place) -> None:
        """Wait for the oldest send; then save how far the copy is."""
        sent = self._sent.popleft()
        await acknowledged(sent.acknowledgements)
        self.throttle.backlog.sent(_ends(sent))
        copied = place.copied + sent.documents
        cursor: dict[str, Any] = {"": sent.last}
        if not self.targets.sources.exact(target.collection):
            cursor["ns"] = str(sent.collection)
        encoded = bson.encode(cursor, codec_options=RAW)
        now = time.monotonic()
        seconds, rate = place.seconds + now - place.since, place.pace.add(sent.documents, now - place.since)
        if not await self.checkpoints.advance_copy(
            target.namespace, place.number, encoded, copied, seconds, rate
        ):
            raise _NotWanted
        place.seconds, place.since = seconds, now
        place.collection, place.after, place.copied = sent.collection, After(sent.last), copied
        metrics.COPIED.labels(target.namespace).inc(sent.documents)
        failpoints.reach(failpoints.COPY_AFTER_CHUNK)


async def _following(reads: AsyncGenerator[_Read, None]) -> _Read | None:
    return await anext(reads, None)


def _ends(sent: _Sent) -> dict[tuple[str, int], int]:
    """Return where each partition ended with what was sent: its first offset, and how many from there on."""
    firsts: dict[tuple[str, int], int] = {}
    for acknowledgement in sent.acknowledgements:
        known = acknowledgement.result()
        place = known.topic, known.partition
        firsts[place] = min(known.offset, firsts.get(place, known.offset))
    return {place: first + sent.records[place] for place, first in firsts.items()}


async def _wait_after(error: PyMongoError, target: Target, seconds: float) -> None:
    if not transient(error):
        raise Fatal(f"MongoDB refuses to read {target.namespace} ({describe(error)})") from None
    _log.warning("copy interrupted, trying again", collection=target.namespace, error=describe(error))
    await asyncio.sleep(seconds)
