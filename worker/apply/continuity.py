"""Whether what Kafka gives follows on what PostgreSQL has: none is skipped silently (docs/protocol.md A2)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

import structlog

from worker.apply.batch import Item
from worker.broker.access import Access
from worker.broker.offsets import end_offsets, next_record
from worker.errors import Fatal
from worker.postgres import migration_log
from worker.postgres.connect import Connection
from worker.postgres.migration_log import Partition

_log = structlog.get_logger()

Work = Callable[[Connection], Awaitable[Any]]
Do = Callable[[Work], Awaitable[None]]
"""Does work in PostgreSQL, again and again until it is done."""


class Continuity:
    """The next offset of each partition, as PostgreSQL was last seen to have it."""

    def __init__(self, kafka: Access, namespaces: Mapping[str, str], do: Do) -> None:
        self._kafka, self._namespaces, self._do = kafka, namespaces, do
        self._next: dict[Partition, int] = {}

    def require_not_older(self, stored: Mapping[Partition, int]) -> None:
        """Raise `Fatal` where PostgreSQL has less than this worker wrote."""
        if any(stored.get(place, 0) < offset for place, offset in self._next.items()):
            # restored or failed over to an older state: Kafka must be read again from there
            raise Fatal("PostgreSQL is older than what this worker wrote; starting again from its offsets")

    def reached(self, offsets: Mapping[Partition, int]) -> None:
        """Take note of offsets that PostgreSQL has.

        They may come late: read for a new assignment, while the writer committed a batch.
        """
        for place, offset in offsets.items():
            self._next[place] = max(offset, self._next.get(place, 0))

    async def passed_over(
        self, connection: Connection, earliest: Mapping[Partition, int]
    ) -> dict[Partition, int]:
        """Return where to go on in partitions whose next records Kafka no longer has; tell of each.

        ``earliest``: the first offsets that Kafka has. Where nothing new arrives, as in a copy's topic,
        nothing else would show it.
        """
        begins = [(self._namespaces[place[0]], *place, first) for place, first in earliest.items() if first]
        lost = {place: earliest[place] for place in await migration_log.pass_over(connection, begins)}
        self.reached(lost)
        for place in lost:
            self._tell_gap(place)
        return lost

    async def following(self, chunks: Iterable[Sequence[Item]]) -> dict[Partition, int]:
        """Return each partition's next offset after these chunks; tell of what does not follow on."""
        following: dict[Partition, int] = {}
        for items in chunks:
            first, last = items[0], items[-1]
            place = first.topic, first.partition
            expected = following.get(place, self._next.get(place, 0))
            if first.offset < expected and await self._is_another(place, expected):
                await self._begin_again(place, first.offset)
                expected = first.offset
            following[place] = max(expected, last.offset + 1)
            if first.offset > expected:
                await self._gap(place, expected, first.offset)
        return following

    async def _gap(self, place: Partition, expected: int, offset: int) -> None:
        """Copy the collection again, or raise `Fatal` where Kafka still has what did not come."""
        if await next_record(self._kafka, *place, expected) < offset:
            raise Fatal("Kafka delivered records out of their order; reading again from PostgreSQL's offsets")
        begin = [(self._tell_gap(place, records=offset - expected), *place, offset)]
        await self._do(lambda connection: migration_log.pass_over(connection, begin))

    def _tell_gap(self, place: Partition, **more: int) -> str:
        namespace = self._namespaces[place[0]]
        _log.error(
            "Kafka no longer has records that were not applied; publish copies the collection again",
            collection=namespace,
            topic=place[0],
            partition=place[1],
            **more,
        )
        return namespace

    async def _is_another(self, place: Partition, expected: int) -> bool:
        """Whether a partition ends before what was read of it: then its topic was deleted and made anew.

        Else a rebalance has brought again what is read already.
        """
        topic, partition = place
        ends = await end_offsets(self._kafka, {topic: partition + 1})
        return ends[place] < expected

    async def _begin_again(self, place: Partition, offset: int) -> None:
        namespace = self._namespaces[place[0]]
        _log.error(
            "a topic was deleted and made anew, perhaps with records that were not applied; "
            "publish copies the collection again",
            collection=namespace,
            topic=place[0],
            partition=place[1],
        )
        self._next[place] = offset
        await self._do(
            lambda connection: migration_log.begin_partition_again(connection, place, offset, namespace)
        )
