"""The way back as a process: one publisher of the outbox, and one consumer that writes into MongoDB."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any
from uuid import UUID

import structlog

from topics import TopicNames, declare_reverse
from worker import metrics
from worker.broker.access import access
from worker.broker.admin import ensure_topics, largest_records
from worker.broker.faust_app import build
from worker.broker.producer import Producer, Takes
from worker.errors import CrossfadeError, Fatal
from worker.mapping import hashes, load
from worker.mongo import in_the_way, reverse
from worker.mongo.client import Client, connect
from worker.postgres import mapping_versions, outbox
from worker.postgres.connect import Connection
from worker.postgres.connect import connect as connect_postgres
from worker.postgres.faults import FAULTS, beginning, describe
from worker.postgres.outbox import Fault
from worker.postgres.sent import remembered
from worker.retry import Backoff
from worker.reverse.apply import ReverseApplier
from worker.reverse.documents import Places
from worker.reverse.publish import ReversePublisher
from worker.settings import Settings

_log = structlog.get_logger()

ROLE = "reverse"
CHUNK = 500  # records of one partition fetched at once
STOP_WITHIN = 3.0  # seconds for Faust to leave its group, and for the publisher to come to an end
CLOSE_WITHIN = 2.0  # seconds for what is being written into MongoDB
TOLD_EVERY = 1.0  # seconds between looks at what waits
TIDY_FOR = 60.0  # seconds after which MongoDB itself has ended what was open at the start
MARGIN = 1_000_000  # versions that may be in Kafka and not in MongoDB, where PostgreSQL was put back
_FAR = 2**62  # an offset beyond all: the group's own is where to begin


async def run(settings: Settings, stop: asyncio.Event) -> None:
    """Bring the application's writes back until ``stop``.

    Raises `CrossfadeError` when a person or a restart is needed.
    """
    began = time.monotonic()
    mapping = load(settings.mapping)
    dsn = settings.postgres_dsn.get_secret_value()
    async with AsyncExitStack() as stack:
        client = await connect(settings.mongo_uri.get_secret_value(), ROLE)
        stack.callback(client.close)
        connection = await connect_postgres(dsn, "reverse", statement_timeout=90)
        stack.callback(connection.terminate)
        with beginning("the way back"):
            numbers = (await mapping_versions.agree(connection, hashes(mapping))).numbers
            async for _ in remembered(connection, UUID(int=0), 0, 0):
                pass  # an older schema is told at once
            await _prepare(client, connection)
        kafka = await access(settings)
        names = TopicNames(settings.topic_prefix)
        collections = list(mapping.namespaces())
        declared = declare_reverse(
            names, collections, partitions=settings.topic_partitions, replication=settings.topic_replication
        )
        partitions = await ensure_topics(kafka, declared)
        rooms = await largest_records(kafka, declared)
        takes = {
            name: Takes(number, min(rooms[name], settings.kafka_largest_record))
            for name, number in partitions.items()
        }
        metrics.reverse_begins(map(str, collections))
        producer = Producer(kafka, "reverse", takes)
        await producer.start()
        stack.push_async_callback(producer.stop)
        places = Places(client, mapping, numbers)
        publisher = ReversePublisher(connection, producer, takes, names, places, settings.heartbeat_interval)
        namespaces = {names.reverse(one): str(one) for one in collections}
        applier = ReverseApplier(client, mapping, namespaces, _Faults(dsn).tell)
        app, applier.acknowledge = build(
            kafka=kafka,
            group=settings.reverse_group,
            topics=[topic.name for topic in declared],
            chunk=CHUNK,
            durable_offsets=_by_group,
            too_slow=lambda: _fail(applier, "where to begin reading was not found out in time"),
            take=applier.take,
            assigned=lambda places: None,
            missing=lambda count: _fail_from_any_thread(
                applier, f"Kafka does not list {count} of the reverse topics"
            ),
        )
        looking = _look(dsn, applier, partitions)
        aside = [asyncio.create_task(work) for work in (looking, _tidy(client, began))]
        await _until(stop, publisher, applier, app, aside)
    _log.info("the way back stopped")


async def _prepare(client: Client, connection: Connection) -> None:
    """Make our collections in MongoDB, and see to it that versions go on from those that it knows (R4)."""
    await reverse.prepare(client)
    known = await reverse.greatest(client)
    if await outbox.not_below(connection, known, MARGIN):
        _log.warning("MongoDB knows versions that PostgreSQL has forgotten: going on above them", known=known)


async def _until(
    stop: asyncio.Event,
    publisher: ReversePublisher,
    applier: ReverseApplier,
    app: Any,
    aside: Sequence[asyncio.Task[None]],
) -> None:
    publishing = asyncio.create_task(publisher.run(stop))
    stopping = asyncio.create_task(stop.wait())
    ended = asyncio.create_task(_started_and_ended(app))
    _log.info("bringing writes back")
    await asyncio.wait({publishing, stopping, ended, applier.failed}, return_when=asyncio.FIRST_COMPLETED)
    if stopping.done():
        await asyncio.wait({publishing}, timeout=STOP_WITHIN)
    for task in aside:
        task.cancel()
    app.conf.stream_wait_empty = False  # what was read and not written will be read again
    await applier.close(CLOSE_WITHIN)
    if not app.crashed:  # else its partitions would have no reader until Kafka misses this one
        leaving = asyncio.create_task(app.stop())
        await asyncio.wait({leaving}, timeout=STOP_WITHIN)
    if applier.failed.done():
        applier.failed.result()
    if publishing.done():
        try:
            publishing.result()
        except FAULTS as error:
            # What the session held is free: another publisher, or this one begun again, sends it anew (R2).
            raise Fatal(f"PostgreSQL ended the publisher's session ({describe(error)})") from None
    if not stopping.done():
        raise Fatal(f"the Kafka consumer ended ({type(app.crash_reason).__name__})", remedy="start it again")


async def _started_and_ended(app: Any) -> None:
    await app.start()
    while not app.crashed and not app.should_stop:  # noqa: ASYNC110 - Faust offers no event for both
        await asyncio.sleep(0.2)


async def _by_group(earliest: Mapping[tuple[str, int], int]) -> Mapping[tuple[str, int], int]:
    """Begin at the group's offsets: MongoDB's own ledger makes what is read again harmless."""
    return dict.fromkeys(earliest, _FAR)


def _fail(applier: ReverseApplier, reason: str) -> None:
    if not applier.failed.done():
        applier.failed.set_exception(Fatal(reason, remedy="beginning again"))


def _fail_from_any_thread(applier: ReverseApplier, reason: str) -> None:
    applier.failed.get_loop().call_soon_threadsafe(_fail, applier, reason)


class _Faults:
    """Notes refused documents in PostgreSQL, over a connection of its own for each: they are rare."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn

    async def tell(self, faults: Sequence[Fault]) -> None:
        """As `Tell`."""
        for delay in Backoff().delays():
            try:
                connection = await connect_postgres(self._dsn, "reverse faults", statement_timeout=10)
                try:
                    new = await outbox.broken(connection, faults)
                finally:
                    connection.terminate()
                for one in new:
                    _log.error(
                        "MongoDB refuses a document of the way back",
                        tenant=str(one.tenant_id),
                        collection=one.namespace,
                        row_id=one.subject,
                        reason=one.reason,
                    )
                return
            except (CrossfadeError, *FAULTS):
                await asyncio.sleep(delay)


async def _tidy(client: Client, began: float) -> None:
    """End what a process before this one left open: it would hold up writes, and moves, for 60 s."""
    told = False
    while (age := time.monotonic() - began) < TIDY_FOR:
        try:
            await in_the_way.end_left(client, ROLE, age)
        except CrossfadeError as error:
            if not told:
                _log.warning("what a killed process left open is not ended", error=error.message)
            told = True
        await asyncio.sleep(TOLD_EVERY)


async def _look(dsn: str, applier: ReverseApplier, partitions: Mapping[str, int]) -> None:
    """Note heartbeats, and keep the gauges up to date. While PostgreSQL is away both stay as they were."""
    while True:
        with suppress(CrossfadeError, *FAULTS):
            connection = await connect_postgres(dsn, "reverse metrics", statement_timeout=10)
            try:
                while True:
                    await outbox.only(connection, partitions)
                    await outbox.progressed(connection, applier.heartbeats)
                    standing = await outbox.standing(connection)
                    metrics.REVERSE_OUTBOX.set_to({(): standing.rows})
                    metrics.REVERSE_WAITING.set_to({(): standing.waiting})
                    metrics.REVERSE_BROKEN.set_to({(): standing.broken})
                    if standing.lag is not None:
                        metrics.REVERSE_END_TO_END.since({(): time.time() - standing.lag})
                    await asyncio.sleep(TOLD_EVERY)
            finally:
                connection.terminate()
        await asyncio.sleep(TOLD_EVERY)
