"""The Faust application of an apply worker: one agent over all topics, acknowledging by hand."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import faust
from faust.assignor import PartitionAssignor
from faust.types.auth import CredentialsT
from mode.supervisors import CrashingSupervisor
from yarl import URL

from worker.broker.access import Access
from worker.broker.batch_consumer import DurableOffsets, TooSlow, transport_with

Take = Callable[[Any], Awaitable[None]]
Acknowledge = Callable[[Any], Awaitable[None]]
Assigned = Callable[[Iterable[tuple[str, int]]], None]
Missing = Callable[[int], None]


def build(
    *,
    kafka: Access,
    group: str,
    topics: Sequence[str],
    chunk: int,
    durable_offsets: DurableOffsets,
    too_slow: TooSlow,
    take: Take,
    assigned: Assigned,
    missing: Missing,
) -> tuple[faust.App, Acknowledge]:
    """Return the application and the function that acknowledges one of its messages.

    ``take`` gets each message (a chunk of one partition's records) in order; it must be acknowledged after
    its COMMIT. An error that leaves ``take`` ends the process: Faust would otherwise go on behind it.
    ``assigned`` hears of each new assignment, whole; ``missing``, in the consumer's thread, of an assignment
    that this worker made for its group without some topics, and of how many.
    """
    urls = [URL(f"kafka://{server}") for server in kafka.bootstrap.split(",")]
    app = faust.App(
        group,
        broker=urls,
        broker_credentials=_credentials(kafka),
        store="memory://",
        processing_guarantee="at_least_once",
        consumer_auto_offset_reset="earliest",
        broker_max_poll_records=chunk,
        broker_commit_interval=1.0,
        broker_session_timeout=10.0,
        broker_heartbeat_interval=2.0,
        broker_request_timeout=30.0,
        consumer_metadata_max_age_ms=10_000,  # after which added partitions are noticed
        stream_buffer_maxsize=16,
        stream_wait_empty=True,
        topic_disable_leader=True,
        topic_allow_declare=False,
        web_enabled=False,
        web_bind="127.0.0.1",
        agent_supervisor=CrashingSupervisor,
        autodiscover=False,
        PartitionAssignor=_assignor(missing),
    )
    app.transport = transport_with(app, urls, durable_offsets, too_slow)
    channel = app.topic(
        *topics, value_type=None, value_serializer="raw", key_type=bytes, key_serializer="raw"
    )
    streams: list[Any] = []

    @app.agent(channel, concurrency=1)
    async def apply(stream: Any) -> None:  # pyright: ignore[reportUnusedFunction]
        manual = stream.noack()
        streams[:] = [manual]
        async for event in manual.events():
            await take(event)

    async def tell_assigned(_: Any, partitions: set[Any], **__: Any) -> None:
        assigned((partition.topic, partition.partition) for partition in partitions)

    on_assigned: Any = app.on_partitions_assigned  # its type asks for arguments that Faust never gives
    on_assigned.connect(tell_assigned)

    async def acknowledge(event: Any) -> None:
        await streams[0].ack(event)

    return app, acknowledge


def _credentials(kafka: Access) -> CredentialsT | None:
    if kafka.tokens is not None:
        return faust.OAuthCredentials(oauth_cb=kafka.tokens, ssl_context=kafka.tls)
    return None if kafka.tls is None else faust.SSLCredentials(kafka.tls)


def _assignor(missing: Missing) -> type[PartitionAssignor]:
    """Return Faust's assignor, telling of topics that the metadata lacks.

    A broker that has just started may not list them yet. Faust then leaves them out, and nothing makes the
    group assign again: nobody would ever read them.
    """

    class _Assignor(PartitionAssignor):
        def assign(self, cluster: Any, member_metadata: Any) -> Any:
            topics = {topic for member in member_metadata.values() for topic in member.subscription}
            if lacking := [topic for topic in topics if not cluster.partitions_for_topic(topic)]:
                missing(len(lacking))
            return super().assign(cluster, member_metadata)

    return _Assignor
