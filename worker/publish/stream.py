"""The live half of the publisher: the change stream into Kafka, its resume token after it (C6)."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, NamedTuple

import structlog
from bson import Timestamp
from bson.errors import InvalidBSON
from bson.raw_bson import RawBSONDocument
from pymongo.errors import OperationFailure, PyMongoError

from worker import failpoints, metrics
from worker.broker.producer import Producer
from worker.errors import Fatal
from worker.mongo.changes import (
    CHANGE_STREAM_HISTORY_LOST,
    TOO_LARGE,
    ChangeStream,
    Fetched,
    token_time,
)
from worker.mongo.client import REFUSED, Client, describe, transient
from worker.postgres.checkpoints import Checkpoints
from worker.publish.events import EventMaker, Whole
from worker.publish.target import Incarnation, Targets
from worker.publish.window import Window
from worker.retry import Backoff

_log = structlog.get_logger()

_IN_FLIGHT = 8
_SAVE_EVERY = 1.0
_GRACE = 3.0  # seconds for the batch at hand when told to stop
_LAST_SAVE = 5.0
# Every fetch costs a look-up, a send for each partition and, at the other end, a transaction. So when changes
# come singly the next fetch waits a little: a rate of 500/s then costs a third, for half of this lag.
_FEW, _GATHER = 100, 0.005
_LATE = 5.0  # seconds without an acknowledgement that are worth a line
# An event that fits, in a reply that does not: MongoDB 6.0 closes the connection, which looks like any other
# interruption. So after as many without a step forward the next opening is without documents.
_TRIES = 2


class _Mark(NamedTuple):
    time: int
    token: RawBSONDocument


class StreamPublisher:
    """Follows the change stream from the last saved token until it is told to stop."""

    def __init__(
        self,
        client: Client,
        producer: Producer,
        checkpoints: Checkpoints,
        targets: Targets,
        incarnation: Incarnation,
        publisher: str,
        token: bytes | None,
    ) -> None:
        self._client = client
        self._producer = producer
        self._checkpoints = checkpoints
        self._targets = targets
        self._incarnation = incarnation
        self._publisher = publisher
        self._position = _position(token) if token else incarnation.started
        self._window: Window[_Mark | None] = Window(_IN_FLIGHT)
        self._saved = 0
        self._before = _time(self._position)

    def saved(self) -> int:
        """Return the clusterTime where the stream would go on if it began now."""
        return self._saved or self._before

    async def run(self, stop: asyncio.Event) -> None:
        """Publish until ``stop``; then wait for acknowledgements and save the last safe token."""
        saver = asyncio.create_task(self._save_regularly())
        follower = asyncio.create_task(self._follow(stop))
        stopped = asyncio.create_task(stop.wait())
        tasks = {saver, follower, stopped}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if stop.is_set():
                await asyncio.wait({follower}, timeout=_GRACE)
            for task in (saver, follower):
                if task.done():
                    task.result()  # raises what ended it
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        try:
            async with asyncio.timeout(_LAST_SAVE):
                await self._window.drain()
                await self._save()
        except TimeoutError:
            _log.warning("the last token was not saved; the next start sends a little again")

    async def _follow(self, stop: asyncio.Event) -> None:
        delays = Backoff().delays()
        failures, whole = 0, True
        while not stop.is_set():
            stream, began = None, _time(self._position)
            proven = isinstance(self._position, Timestamp)
            try:
                stream = await ChangeStream.open(
                    self._client, self._targets.sources, self._position, whole=whole
                )
                maker = EventMaker(
                    self._client, self._targets, self._incarnation, self._publisher, self._tell_whole
                )
                while not stop.is_set():
                    fetched = await stream.fetch()
                    proven = True
                    await self._publish(maker, fetched)
                    if 0 < len(fetched.changes) < _FEW:
                        await asyncio.sleep(_GATHER)
                    if _time(self._position) == began:
                        continue  # no step forward, or inside one clusterTime still
                    if failures:
                        _log.info("change stream resumed")
                        failures, delays = 0, Backoff().delays()
                    if not whole:  # what was too large lay before this place, or is met again
                        whole = True
                        break
            except PyMongoError as error:
                _stop_if_hopeless(error, proven, whole)
                if not failures:
                    _log.warning("change stream interrupted, resuming", error=describe(error))
                    metrics.STREAM_RESUMED.inc()
                failures += 1
                whole = not _too_large(error) and failures % (_TRIES + 1) < _TRIES
                await asyncio.sleep(next(delays))
            finally:
                if stream is not None:
                    with suppress(PyMongoError):
                        await stream.close()

    async def _publish(self, maker: EventMaker, fetched: Fetched) -> None:
        acknowledgements: list[asyncio.Future[Any]] = []
        async for outgoing in maker.make(fetched):
            acknowledgements += await self._producer.send_all(outgoing.records)
        if fetched.changes:
            failpoints.reach(failpoints.PUBLISH_AFTER_SEND)
            age = datetime.now(UTC) - fetched.changes[-1]["wallTime"]
            metrics.PUBLISH_LAG.observe(max(0.0, age.total_seconds()))
        safe = maker.order.safe
        if safe is not None:
            self._position = safe  # only now: everything up to it has been handed over
        mark = None if safe is None else _Mark(token_time(safe), safe)
        await self._window.add(acknowledgements, mark)

    async def _tell_whole(self, one: Whole) -> None:
        """Have a collection copied again that changed as a whole; saved before the token passes that."""
        await self._checkpoints.invalidate(one.collection, one.namespace, one.change)
        _log.error(
            "collection changed as a whole: it is copied again, over its rows",
            collection=one.namespace,
            change=one.change,
        )

    async def _save_regularly(self) -> None:
        told = False
        while True:
            await asyncio.sleep(_SAVE_EVERY)
            await self._window.settle()
            late = self._window.waiting > _LATE
            if late and not told:
                _log.warning("Kafka does not acknowledge, waiting", seconds=round(self._window.waiting))
            elif told and not late:
                _log.info("Kafka acknowledges again")
            told = late
            await self._save()

    async def _save(self) -> None:
        mark = self._window.durable
        if mark is None or mark.time <= self._saved:
            return
        failpoints.reach(failpoints.PUBLISH_BEFORE_TOKEN)
        token = bytes(mark.token.raw)
        await self._checkpoints.save_token(self._incarnation.id, token, mark.time, self._saved)
        self._saved = mark.time
        metrics.TOKEN_AGE.since({(): mark.time >> 32})
        failpoints.reach(failpoints.PUBLISH_AFTER_TOKEN)


def _time(position: RawBSONDocument | Timestamp) -> int:
    if isinstance(position, Timestamp):
        return position.time << 32 | position.inc
    return token_time(position)


def _position(token: bytes) -> RawBSONDocument:
    try:
        document = RawBSONDocument(token)
        token_time(document)
    except (InvalidBSON, KeyError, TypeError, ValueError):
        raise TokenLost("the saved token is damaged") from None
    return document


class TokenLost(Exception):
    """The change stream cannot go on from the saved token; the text says why."""


def _too_large(error: PyMongoError) -> bool:
    return isinstance(error, OperationFailure) and error.code == TOO_LARGE


def _stop_if_hopeless(error: PyMongoError, proven: bool, whole: bool) -> None:
    """Raise what a retry would not mend. ``proven``: the stream has gone on from its position before."""
    if _too_large(error):
        if whole:
            return
        raise TokenLost("an event is too large for MongoDB to tell, even without its document") from None
    code = error.code if isinstance(error, OperationFailure) else None
    if code == CHANGE_STREAM_HISTORY_LOST:
        raise TokenLost("MongoDB's oplog no longer holds the place where the change stream stopped") from None
    if transient(error):
        return
    if code is not None and code not in REFUSED and not proven:
        raise TokenLost(f"MongoDB does not take the saved token ({describe(error)})") from None
    raise Fatal(f"MongoDB refuses the change stream ({describe(error)})") from None
