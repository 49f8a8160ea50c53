"""The outbox to Kafka: sets of documents, read after their version is drawn (docs/protocol.md R2)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import structlog
from bson import Timestamp

from topics import (
    Event,
    Operation,
    Origin,
    Source,
    TopicNames,
    Version,
    document_key,
    encode,
    key_to_id,
    partition_of,
)
from worker import failpoints, metrics
from worker.broker.producer import Producer, Record, Takes, acknowledged
from worker.errors import CrossfadeError
from worker.mapping import Unrebuildable
from worker.mapping.values import back_to_id
from worker.postgres import outbox, phases, reconciliation
from worker.postgres.connect import Connection
from worker.postgres.documents import Stored
from worker.postgres.outbox import Fault, Touched
from worker.postgres.sent import Sent, remember
from worker.reverse.documents import Place, Places

_log = structlog.get_logger()

AT_ONCE = 500  # rows of the outbox in one transaction
LOOK_EVERY = 0.02  # seconds between looks into an empty outbox
AGAIN_EVERY = 15.0  # seconds between tries of what MongoDB refused, or could not be read
_SENDING = frozenset({"postgres", "rolling_back"})
_FIRST, _MOST = 8, 64  # documents that are read at once
_PART = 8 * 1024 * 1024  # bytes that Kafka must have before the next documents are read
_SETTINGS = """
SELECT set_config('lock_timeout', '10s', true), set_config('statement_timeout', '60s', true),
    set_config('idle_in_transaction_session_timeout', '90s', true)
"""
_UNREADABLE = (Unrebuildable, KeyError, ValueError, TypeError, OverflowError, RecursionError)


class _Read(NamedTuple):
    """A document as its rows make it; None: there are no rows."""

    touched: Touched
    id: Any
    document: dict[str, Any] | None


class ReversePublisher:
    """Sends what the outbox has, over one connection. A lost connection ends it: what it held is free then.

    There may be several at once: each takes what the others do not hold, and of one document the greatest
    version shows the last commit.
    """

    def __init__(
        self,
        connection: Connection,
        producer: Producer,
        topics: Mapping[str, Takes],
        names: TopicNames,
        places: Places,
        beat_every: float,
    ) -> None:
        """``beat_every``: seconds between heartbeats."""
        self._connection = connection
        self._producer = producer
        self._topics = topics
        self._names = names
        self._places = places
        self._beat_every = beat_every
        self._origin = Origin(uuid4())
        self._unmapped: dict[str, list[outbox.Unmapped]] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Publish until ``stop``. Errors of any service are raised, and nothing is lost."""
        clock = asyncio.get_running_loop()
        again_at = clock.time() + AGAIN_EVERY
        beating = asyncio.create_task(asyncio.sleep(0))
        try:
            while not stop.is_set():
                if beating.done():
                    beating.result()
                    beating = asyncio.create_task(self._beat(await outbox.sent_upto(self._connection)))
                if clock.time() >= again_at:
                    await outbox.try_again(self._connection)
                    self._unmapped.clear()  # columns may have been added
                    again_at = clock.time() + AGAIN_EVERY
                if not await outbox.waiting(self._connection) or not await self._publish():
                    await asyncio.sleep(LOOK_EVERY)
        finally:
            beating.cancel()

    async def _beat(self, moment: datetime) -> None:
        """Send a heartbeat to every partition, beside all else: one of them may have no leader for a time.

        One that Kafka does not take is not missed: the next comes.
        """
        with suppress(CrossfadeError):
            await self._send_everywhere([self._control(Operation.HEARTBEAT, moment, moment)])
        await asyncio.sleep(self._beat_every)

    async def _publish(self) -> bool:
        """Send what there is to take; return whether there was anything."""
        connection = self._connection
        async with connection.transaction(isolation="read_committed"):
            await connection.execute(_SETTINGS)
            touched, sent = await outbox.take(connection, AT_ONCE), list[Sent]()
            failpoints.reach(failpoints.REVERSE_AFTER_TAKE)
            if touched:
                sent = await self._send_all(touched, await outbox.draw(connection))
            if barriers := await outbox.asked(connection):
                await self._send_barriers(barriers)
            await remember(connection, sent)  # at last: another may wait for these rows
            failpoints.reach(failpoints.REVERSE_AFTER_SEND)
        failpoints.reach(failpoints.REVERSE_AFTER_COMMIT)
        return bool(touched or barriers)

    async def _send_all(self, touched: Sequence[Touched], version: int) -> list[Sent]:
        """Read and send documents; return them when Kafka has them. Every statement has a snapshot newer than
        the version.

        Few at first, for nobody knows how large they are.
        """
        faults, all_sent = list[Fault](), list[Sent]()
        unacknowledged, size = list[asyncio.Future[Any]](), 0
        for place, some in await self._by_place(touched, faults):
            left, most = some, _FIRST
            while left:
                found = await self._documents(place, left[:most], faults)
                failpoints.reach(failpoints.REVERSE_AFTER_READ)
                futures, bytes_ = await self._send(found, version, faults, all_sent)
                left, most = left[most:], max(1, most // 4) if bytes_ >= _PART else min(_MOST, most * 2)
                unacknowledged, size = unacknowledged + futures, size + bytes_
                if size >= _PART:
                    await acknowledged(unacknowledged)
                    unacknowledged, size = [], 0
        await self._broken(faults)
        await acknowledged(unacknowledged)
        return all_sent

    async def _by_place(
        self, touched: Sequence[Touched], faults: list[Fault]
    ) -> list[tuple[Place, list[Touched]]]:
        """Return the documents that are to be sent; their tenants' rows can be seen then."""
        tenants = {one.tenant_id for one in touched}
        standing = await phases.read(self._connection, tenants)
        await outbox.declare(self._connection, tenants)
        found: dict[tuple[int, UUID], tuple[Place, list[Touched]]] = {}
        for one in touched:
            known = standing.get(one.tenant_id)
            if known is None or known.phase not in _SENDING:
                continue  # complete: it has no way back; at home: MongoDB has its own
            place = await self._places.find(one.collection_id, one.tenant_id)
            if place is None:
                faults.append(
                    Fault(
                        one.tenant_id,
                        "nowhere",
                        self._places.namespace(one.collection_id),
                        str(one.row_id),
                        "MongoDB has no collection for this tenant's documents, or has two",
                    )
                )
                continue
            found.setdefault((place.number, one.tenant_id), (place, []))[1].append(one)
        return list(found.values())

    async def _documents(
        self, place: Place, touched: Sequence[Touched], faults: list[Fault]
    ) -> list[tuple[Place, _Read]]:
        connection, namespace = self._connection, str(place.logical)
        by_row = {one.row_id: one for one in touched}
        stored = await place.documents.rows(connection, list(by_row))
        # A child row of another tenant than its document's is seen only with that tenant's documents.
        held = {UUID(int=id_.int): rows for id_, rows in stored.items()}
        await self._look_for_unmapped(place, by_row, faults)
        gone = [row_id for row_id in by_row if not _there(held.get(row_id))]
        known = await reconciliation.document_ids(connection, namespace, gone) if gone else {}
        found: list[tuple[Place, _Read]] = []
        for row_id, one in by_row.items():
            rows = held.get(row_id)
            if rows is None or not rows.number:
                kept = known.get(row_id)
                id_ = back_to_id(row_id) if kept is None else key_to_id(kept)
                found.append((place, _Read(one, id_, None)))
                continue
            try:
                document = place.documents.rebuild(rows)
            except _UNREADABLE as error:
                why = str(error) if isinstance(error, Unrebuildable) else type(error).__name__
                faults.append(Fault(one.tenant_id, "unreadable", namespace, str(row_id), why))
                continue
            found.append((place, _Read(one, document["_id"], document)))
        return found

    async def _look_for_unmapped(
        self, place: Place, by_row: Mapping[UUID, Touched], faults: list[Fault]
    ) -> None:
        for table in place.plan.tables:
            if table.table not in self._unmapped:
                self._unmapped[table.table] = await outbox.unmapped(self._connection, table)
            if not (columns := self._unmapped[table.table]):
                continue
            found = await outbox.carried_not(self._connection, table, columns, list(by_row))
            faults += [
                Fault(
                    by_row[row_id].tenant_id,
                    "unmapped",
                    str(place.logical),
                    f"{table.table}.{column}",
                    "the column has a value, and the mapping does not know it",
                )
                for row_id, column in found.items()
            ]

    async def _broken(self, faults: Sequence[Fault]) -> None:
        for one in await outbox.broken(self._connection, list(dict.fromkeys(faults))):
            _log.error(
                "a tenant's way back is broken",
                tenant=str(one.tenant_id),
                kind=one.kind,
                collection=one.namespace,
                subject=one.subject,
                reason=one.reason,
            )

    async def _send(
        self,
        found: Sequence[tuple[Place, _Read]],
        version: int,
        faults: list[Fault],
        all_sent: list[Sent],
    ) -> tuple[list[asyncio.Future[Any]], int]:
        """Give documents to Kafka; return what tells that it has them, and their bytes."""
        records: dict[tuple[str, int], list[Record]] = {}
        size = 0
        for place, one in found:
            topic = self._names.reverse(place.logical)
            takes, key = self._topics[topic], document_key(one.id)
            value = self._value(place, one, version)
            if value is None or len(key) + len(value) > takes.room:
                told = "the document is larger than its topic or BSON takes"
                faults.append(
                    Fault(one.touched.tenant_id, "large", str(place.logical), str(one.touched.row_id), told)
                )
                continue
            records.setdefault((topic, partition_of(key, takes.partitions)), []).append((key, value))
            touched = one.touched
            names = touched.tenant_id, touched.collection_id, touched.row_id
            all_sent.append(Sent(*names, str(place.real), key, version))
            size += len(value)
            metrics.REVERSE_SENT.labels(str(place.logical)).inc()
        return await self._producer.send_all(records), size

    def _value(self, place: Place, one: _Read, version: int) -> bytes | None:
        event = Event(
            operation=Operation.DELETE if one.document is None else Operation.UPSERT,
            namespace=str(place.real),
            id=one.id,
            version=Version(version, 0),
            wall=one.touched.at,
            source=Source.REVERSE,
            origin=self._origin,
            document=one.document,
            tenants=(one.touched.tenant_id,),
        )
        try:
            return encode(event)
        except (ValueError, OverflowError, RecursionError):
            return None

    async def _send_barriers(self, barriers: Sequence[UUID]) -> None:
        """Send barriers to every partition, behind all that was sent before; then note that they are sent."""
        partitions, now = sum(takes.partitions for takes in self._topics.values()), datetime.now(UTC)
        asked = [{"barrier": one, "partitions": partitions} for one in barriers]
        await self._send_everywhere([self._control(Operation.BARRIER, one, now) for one in asked])
        await outbox.sent(self._connection, barriers, partitions)

    def _control(self, operation: Operation, id_: Any, wall: datetime) -> Event:
        return Event(
            operation=operation,
            namespace="",
            id=id_,
            version=Version.of(Timestamp(0, 0), 0),
            wall=wall,
            source=Source.REVERSE,
            origin=self._origin,
        )

    async def _send_everywhere(self, events: Sequence[Event]) -> None:
        """Send events to every partition; return when Kafka has them, behind all that was sent before."""
        some: list[Record] = [(document_key(one.id), encode(one)) for one in events]
        await acknowledged(
            await self._producer.send_all(
                {
                    (topic, partition): some
                    for topic, takes in self._topics.items()
                    for partition in range(takes.partitions)
                }
            )
        )


def _there(stored: Stored | None) -> bool:
    return stored is not None and bool(stored.number)
