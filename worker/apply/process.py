"""The apply worker as a process: Faust delivers chunks to it, and what may end it is watched."""

from __future__ import annotations

import asyncio
from typing import Any

import structlog

from topics import TopicNames, declare
from worker.apply import preconditions, retention
from worker.apply.observed import count_dead_letters
from worker.apply.worker import ApplyWorker
from worker.broker.access import access
from worker.broker.admin import ensure_topics, missing_topics
from worker.broker.faust_app import build
from worker.errors import Fatal
from worker.mapping import load
from worker.settings import Settings

_log = structlog.get_logger()
STOP_WITHIN = 5.0  # seconds for Faust to leave its group, and for the batches at hand before
CHUNK = 500  # records of one partition fetched at once


async def run(settings: Settings, stop: asyncio.Event) -> None:
    """Apply until ``stop`` is set. Raises `CrossfadeError` when a person or a restart is needed."""
    mapping = load(settings.mapping)
    kafka = await access(settings)
    worker = ApplyWorker(settings, kafka, mapping)
    await worker.open()
    names = TopicNames(settings.topic_prefix)
    topics = declare(
        names,
        mapping.namespaces(),
        partitions=settings.topic_partitions,
        replication=settings.topic_replication,
    )
    await worker.forget_topics(await missing_topics(kafka, topics))
    await ensure_topics(kafka, topics)
    app, worker.acknowledge = build(
        kafka=kafka,
        group=settings.apply_group,
        topics=[topic.name for topic in topics],
        chunk=CHUNK,
        durable_offsets=worker.durable_offsets,
        too_slow=worker.began_too_slowly,
        take=worker.take,
        assigned=worker.observed.assigned,
        missing=worker.lacks_topics,
    )
    writing = asyncio.create_task(worker.run())
    dsn = settings.postgres_dsn.get_secret_value()
    fitting = asyncio.create_task(preconditions.watch(dsn, mapping))
    beside = [
        asyncio.create_task(count_dead_letters(settings)),
        asyncio.create_task(retention.watch(kafka, dsn, worker.namespaces, worker.continuity)),
    ]
    stopping = asyncio.create_task(stop.wait())
    ended = asyncio.create_task(_started_and_ended(app))
    ending = {writing, fitting, stopping, ended, worker.failed}
    await asyncio.wait(ending, return_when=asyncio.FIRST_COMPLETED)
    # Where the writer or Faust has failed there is nothing to end in order: what was not committed is not
    # acknowledged, and the caller ends the process.
    for failing in (worker.failed, writing, fitting):
        if failing.done():
            failing.result()
    if not stopping.done():
        reason = type(app.crash_reason).__name__
        raise Fatal(f"the Kafka consumer ended ({reason})", remedy="start apply again")
    leaving = asyncio.create_task(app.stop())
    await asyncio.wait({leaving}, timeout=STOP_WITHIN)
    if not leaving.done():
        _log.warning("the Kafka consumer did not stop in time; its group will notice")
    for task in (writing, fitting, *beside):
        task.cancel()
    await worker.close()


async def _started_and_ended(app: Any) -> None:
    await app.start()
    while not app.crashed and not app.should_stop:  # noqa: ASYNC110 - Faust offers no event for both
        await asyncio.sleep(0.2)
