"""The publisher as a process: MongoDB's documents and changes into Kafka until it is told to stop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from uuid import uuid4

import structlog
from pymongo.errors import PyMongoError

from worker import metrics
from worker.broker.access import Access, access
from worker.broker.offsets import end_offsets
from worker.broker.producer import Producer
from worker.errors import CrossfadeError, MappingError, ServiceUnavailable
from worker.mapping import Mapping, hashes, load
from worker.mapping.sources import Sources
from worker.mongo.client import Client, connect, describe
from worker.mongo.heartbeat import Heartbeat
from worker.mongo.missing import missing_collections
from worker.mongo.preference import read_preference
from worker.postgres.checkpoints import Checkpoint, Checkpoints, CopyProgress
from worker.postgres.leadership import Leadership, leads
from worker.postgres.migration_log import Partition
from worker.publish.copy import Copier
from worker.publish.oplog_watch import OplogWatch
from worker.publish.real_collections import RealCollections
from worker.publish.removal import Removal
from worker.publish.stream import StreamPublisher, TokenLost
from worker.publish.target import Incarnation, Targets, targets_of
from worker.publish.throttle import Throttle
from worker.settings import Settings, tag_sets

_log = structlog.get_logger()

_OFFSETS_WITHIN = 30.0  # seconds

Offsets = dict[Partition, int]


async def run(settings: Settings, stop: asyncio.Event) -> None:
    """Publish until ``stop`` is set. Raises `CrossfadeError` when a person or a restart is needed."""
    mapping = load(settings.mapping)
    async with AsyncExitStack() as stack:
        checkpoints = Checkpoints(settings.postgres_dsn.get_secret_value(), settings.publisher)
        await checkpoints.open()
        stack.push_async_callback(checkpoints.close)
        leadership = Leadership(settings.postgres_dsn.get_secret_value(), f"publish {settings.publisher}")
        stack.callback(leadership.release)
        client = await connect(settings.mongo_uri.get_secret_value(), "publish")
        stack.callback(client.close)
        if not settings.allow_missing_collections:
            await _require_collections(client, settings, mapping, await checkpoints.copies())
        await checkpoints.agree(hashes(mapping))
        kafka = await access(settings)
        targets = await targets_of(settings, kafka, mapping, checkpoints)
        if not await leads(leadership, stop):
            return
        producer = Producer(kafka, "publish", targets.topics())
        await producer.start()
        stack.push_async_callback(producer.stop)
        await _publish(settings, stop, kafka, mapping, targets, client, producer, checkpoints, leadership)


async def _publish(
    settings: Settings,
    stop: asyncio.Event,
    kafka: Access,
    mapping: Mapping,
    targets: Targets,
    client: Client,
    producer: Producer,
    checkpoints: Checkpoints,
    leadership: Leadership,
) -> None:
    heartbeat = Heartbeat(client, settings.publisher)
    read_to = await checkpoints.read_to()
    ends = await _ends(kafka, targets)  # asked second, for apply may be reading on
    checkpoint = await _checkpoint(checkpoints, heartbeat, _namespaces(targets), ends)
    for namespace in await checkpoints.forget_partitions(_made_anew(read_to, ends, _namespaces(targets))):
        _log.error(
            "a topic was made anew, perhaps with records unread; its collection is copied again",
            collection=namespace,
        )
    metrics.publish_begins(target.namespace for target in targets.all)
    throttle = _throttle(settings, client, checkpoints, targets, heartbeat)
    removal = Removal(
        kafka, client, producer, checkpoints, RealCollections(client, checkpoints, targets.sources)
    )
    while True:
        incarnation = Incarnation.of(checkpoint.incarnation, checkpoint.started_time)
        copier = Copier(
            client,
            producer,
            checkpoints,
            heartbeat,
            removal,
            targets,
            throttle,
            read_preference(settings.copy_read_preference, tag_sets(settings.copy_read_tags)),
            hashes(mapping),
            incarnation,
            checkpoint.incarnations == 1,
            settings.copy_chunk,
            settings.copy_enabled,
        )
        metrics.TOKEN_AGE.since({(): (checkpoint.token_time or checkpoint.started_time) >> 32})
        _log.info("publishing", collections=len(targets.all), incarnation=str(incarnation.id))
        try:
            stream = StreamPublisher(
                client, producer, checkpoints, targets, incarnation, settings.publisher, checkpoint.token
            )
            async with _told_once(), asyncio.TaskGroup() as tasks:
                beating = tasks.create_task(heartbeat.run(settings.heartbeat_interval))
                copying = tasks.create_task(copier.run())
                throttling = tasks.create_task(throttle.run())
                leading = tasks.create_task(leadership.hold())
                watch = OplogWatch(client, stream.saved, settings.oplog_margin)
                watching = tasks.create_task(watch.run())
                tasks.create_task(stream.run(stop))
                await stop.wait()
                for task in (leading, beating, copying, throttling, watching):
                    task.cancel()
            break
        except TokenLost as lost:
            metrics.TOKENS_LOST.inc()
            _log.error("beginning anew: everything is copied again, over the rows", reason=str(lost))
            checkpoint = await _begin_anew(checkpoints, checkpoint, heartbeat, str(lost))
    _log.info("publisher stopped")


@asynccontextmanager
async def _told_once() -> AsyncIterator[None]:
    """Raise the first of a group of errors alone, so that it is told in one line."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            ours = [inner for inner in error.exceptions if isinstance(inner, CrossfadeError)]
            error = (ours or error.exceptions)[0]
        raise error from None


async def _require_collections(
    client: Client, settings: Settings, mapping: Mapping, copies: dict[str, CopyProgress]
) -> None:
    logical = {name: str(Sources.logical(mapping.database, name)) for name in mapping.collections}
    copied = {name for name, one in logical.items() if one in copies and copies[one].number > 0}
    faults = await missing_collections(client, mapping, copied)
    if faults:
        raise MappingError(
            f"{settings.mapping} maps collections that database {mapping.database} does not have: "
            + ", ".join(faults),
            remedy="mend the mapping, or set CROSSFADE_ALLOW_MISSING_COLLECTIONS=true when they come later",
        )


def _throttle(
    settings: Settings, client: Client, checkpoints: Checkpoints, targets: Targets, heartbeat: Heartbeat
) -> Throttle:
    limits = {
        "rate": settings.copy_rate,
        "max_lag": settings.copy_max_lag,
        "max_replication_lag": settings.copy_max_replication_lag,
    }
    topics = [target.stream_topic for target in targets.all]
    return Throttle(
        client,
        checkpoints,
        settings.publisher,
        topics,
        [target.copy_topic for target in targets.all],
        heartbeat,
        limits,
        settings.copy_enabled,
    )


def _made_anew(read_to: Offsets, ends: Offsets, namespaces: dict[str, str]) -> list[tuple[str, str, int]]:
    """Return partitions that end before what apply has read of them, or are no more.

    Their topic was deleted and made anew, by this start perhaps. Later nothing might show it: the offsets of
    the new topic soon pass those of the old one.
    """
    return [
        (namespaces[place[0]], *place)
        for place, offset in read_to.items()
        if place[0] in namespaces and offset > ends.get(place, 0)
    ]


async def _ends(kafka: Access, targets: Targets) -> Offsets:
    """Return the next offset to come of each partition."""
    try:
        async with asyncio.timeout(_OFFSETS_WITHIN):
            return await end_offsets(kafka, {name: one.partitions for name, one in targets.topics().items()})
    except TimeoutError as error:
        raise kafka.unreachable(error) from None


def _namespaces(targets: Targets) -> dict[str, str]:
    """Return each topic's collection."""
    return {topic: one.namespace for one in targets.all for topic in (one.stream_topic, one.copy_topic)}


async def _checkpoint(
    checkpoints: Checkpoints, heartbeat: Heartbeat, namespaces: dict[str, str], ends: Offsets
) -> Checkpoint:
    """Return where the stream goes on, or begin an incarnation at the clusterTime of a heartbeat (C4).

    Where Kafka has records already, they may be of a publisher that PostgreSQL knows nothing of. Apply reads
    them, and nobody tells what was deleted since they were sent: so the copies end with a removal, as after a
    lost token. Saved before the incarnation, for a start that is killed in between.
    """
    if checkpoint := await checkpoints.load():
        return checkpoint
    if earlier := {namespaces[topic] for (topic, _), end in ends.items() if end}:
        await checkpoints.distrust(sorted(earlier))
        _log.warning(
            "Kafka has records that this PostgreSQL may know nothing of; copies end with a removal",
            collections=len(earlier),
        )
    return await checkpoints.create(uuid4(), await _started(heartbeat))


async def _begin_anew(
    checkpoints: Checkpoints, before: Checkpoint, heartbeat: Heartbeat, reason: str
) -> Checkpoint:
    """Begin another incarnation (C7); what happened in between, the copy and the removal after it find."""
    return await checkpoints.begin_anew(before, uuid4(), await _started(heartbeat), reason)


async def _started(heartbeat: Heartbeat) -> int:
    """Return the clusterTime of a heartbeat, as one integer."""
    try:
        started = await heartbeat.beat()
    except PyMongoError as error:
        raise ServiceUnavailable(
            f"MongoDB does not take the heartbeat ({describe(error)})",
            remedy="allow the user to write database crossfade, and check the replica set's majority",
        ) from None
    return started.time << 32 | started.inc
