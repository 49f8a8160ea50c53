"""Kafka to MongoDB: the newest of each document in a chunk, in transactions; then it is acknowledged.

Chunks of one partition follow each other. Those of several are written at once: each waits for a majority,
and a barrier, which is in every partition, would wait for all of them in turn.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import structlog

from topics import EnvelopeError, Event, Operation, decode, document_key
from worker import failpoints, metrics
from worker.broker.faust_app import Acknowledge
from worker.errors import Fatal, Transient
from worker.mapping import Mapping as MappingFile
from worker.mapping import Plans
from worker.mongo import reverse
from worker.mongo.client import Client
from worker.mongo.reverse import Refused, Write, Written
from worker.postgres.outbox import Fault
from worker.retry import Backoff
from worker.reverse.arrivals import Arrivals, arrival
from worker.reverse.documents import visible

_log = structlog.get_logger()

AT_ONCE = 100  # documents in one transaction
_BYTES = 8 * 1024 * 1024  # of their events, beyond the first
_CHUNKS_AT_ONCE = 16
_BREAK_WITHIN = 0.5  # seconds for a transaction that is broken off
_REFUSED_TRIES = 6  # a unique value may be freed by what another partition holds

Tell = Callable[[Sequence[Fault]], Awaitable[None]]
"""Notes in PostgreSQL that MongoDB refuses documents; returns when that is committed."""


class _Closing(Exception):
    """What is yet to be written will be read again."""


class ReverseApplier:
    """Writes chunks of the reverse topics into MongoDB, each whole before it is acknowledged."""

    def __init__(
        self, client: Client, mapping: MappingFile, namespaces: Mapping[str, str], tell: Tell
    ) -> None:
        """``namespaces``: the logical collection's by topic."""
        self._client = client
        self._plans = Plans(mapping)
        self._visible = visible(mapping, self._plans)
        self._namespaces = namespaces
        self._tell = tell
        self._free = asyncio.Semaphore(_CHUNKS_AT_ONCE)
        self._last: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._arrivals = Arrivals(client)
        self._closing = False
        self.heartbeats: dict[tuple[str, int], datetime] = {}
        """The newest that has come through, by topic and partition; all before it is in MongoDB."""
        self.acknowledge: Acknowledge | None = None
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def take(self, event: Any) -> None:
        """Have a chunk written and acknowledged, behind those of its partition; return when there is room.

        What it cannot get over ends the process.
        """
        await self._free.acquire()
        record = event.message.value[-1]
        place = record.topic, record.partition
        self._last[place] = asyncio.create_task(self._behind(self._last.get(place), place, event))

    async def close(self, within: float) -> None:
        """Begin no other transaction; wait ``within`` seconds for those under way, and then break them off.

        One that is left open holds its documents, and every collMod, for 60 s.
        """
        self._closing = True
        if self._last and (await asyncio.wait(self._last.values(), timeout=within))[1]:
            for task in self._last.values():
                task.cancel()
            await asyncio.wait(self._last.values(), timeout=_BREAK_WITHIN)

    async def _behind(self, before: asyncio.Task[None] | None, place: tuple[str, int], event: Any) -> None:
        try:
            if before is not None:
                await before
            # Behind one that was not written nothing is, and no barrier has arrived.
            if not self.failed.done() and not self._closing:
                await self._whole(event)
        except _Closing:
            pass
        except Exception as error:
            if not self.failed.done() and not self._closing:
                self.failed.set_exception(error)
        finally:
            self._free.release()
            if self._last.get(place) is asyncio.current_task():
                del self._last[place]

    async def _whole(self, event: Any) -> None:
        chunk = event.message.value
        events = [self._decoded(record.topic, record.partition, record.value or b"") for record in chunk]
        namespace = self._namespaces.get(chunk[-1].topic, "")
        sizes = [len(record.value or b"") for record in chunk]
        for some in _parts(_newest(zip(events, sizes, strict=True))):
            await self._write(namespace, [self._of(one) for one in some])
        failpoints.reach(failpoints.REVERSE_AFTER_WRITE)
        place = chunk[-1].topic, chunk[-1].partition
        if barriers := [one for each in events if (one := arrival(each, *place)) is not None]:
            await self._arrivals.note(barriers)
        for one in events:
            if one.operation is Operation.HEARTBEAT:
                self.heartbeats[place] = max(one.wall, self.heartbeats.get(place, one.wall))
        if walls := [one.wall for one in events if not one.control]:
            metrics.REVERSE_LAG.observe(max(0.0, time.time() - walls[-1].timestamp()))
        assert self.acknowledge is not None
        await self.acknowledge(event)

    def _decoded(self, topic: str, partition: int, value: bytes) -> Event:
        try:
            return decode(value)
        except EnvelopeError as error:
            # Nobody else writes there: passing it over might lose a document.
            raise Fatal(
                f"a record of {topic}, partition {partition}, is none of the way back ({error})",
                remedy="find out who writes into this topic",
            ) from None

    def _of(self, event: Event) -> Write:
        return Write(
            event.namespace,
            event.id,
            document_key(event.id),
            event.version.time,
            event.tenants[0] if event.tenants else None,
            None if event.document is None else dict(event.document),
            self._visible(event.namespace),
        )

    async def _write(self, namespace: str, writes: list[Write]) -> None:
        try:
            written = await self._tried(writes)
        except Refused as error:
            if len(writes) > 1:
                middle = len(writes) // 2
                await self._write(namespace, writes[:middle])
                await self._write(namespace, writes[middle:])
                return
            await self._refuse(namespace, writes[0], str(error))
            return
        for outcome, count in written._asdict().items():
            metrics.REVERSE_WRITTEN.labels(namespace, outcome).inc(count)

    async def _tried(self, writes: Sequence[Write]) -> Written:
        """Write until it succeeds. One that is refused alone is tried for a second or two."""
        refusals, told = 0, False
        for delay in Backoff(first=0.05, longest=2.0).delays():
            if self._closing:
                raise _Closing
            try:
                return await reverse.write(self._client, writes)
            except Refused:
                refusals += 1
                if len(writes) > 1 or refusals >= _REFUSED_TRIES:
                    raise
            except Transient as error:
                if not told:
                    _log.warning("MongoDB does not answer, trying again", error=error.message)
                told = True
            await asyncio.sleep(delay)
        raise AssertionError

    async def _refuse(self, namespace: str, one: Write, reason: str) -> None:
        metrics.REVERSE_WRITTEN.labels(namespace, "refused").inc()
        planned = self._plans.find(one.namespace)
        row_id = planned.plan.row_id(one.id) if planned else UUID(int=0)
        tenant = one.tenant or UUID(int=0)
        await self._tell([Fault(tenant, "refused", namespace, str(row_id), reason)])


def _newest(events: Iterable[tuple[Event, int]]) -> list[tuple[Event, int]]:
    """Return the newest event of each document, with its bytes."""
    newest: dict[tuple[str, bytes], tuple[Event, int]] = {}
    for one, size in events:
        if one.operation not in (Operation.UPSERT, Operation.DELETE):
            continue
        key = (one.namespace, document_key(one.id))
        if key not in newest or one.version > newest[key][0].version:
            newest[key] = one, size
    return list(newest.values())


def _parts(events: Iterable[tuple[Event, int]]) -> Iterator[list[Event]]:
    part, bytes_ = list[Event](), 0
    for one, size in events:
        if part and (len(part) == AT_ONCE or bytes_ + size > _BYTES):
            yield part
            part, bytes_ = [], 0
        part.append(one)
        bytes_ += size
    if part:
        yield part
