"""What an apply worker tells of itself in metrics: counted once a batch or chunk, never once an event."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

from topics import Source
from worker import metrics
from worker.apply.batch import Item
from worker.errors import CrossfadeError
from worker.postgres import dead_letters
from worker.postgres.connect import connect
from worker.postgres.faults import FAULTS, RETRY_REASONS, retry_reason
from worker.postgres.migration_log import OUTCOMES, Partition, PartitionTally
from worker.settings import Settings

DEAD_LETTERS_EVERY = 5.0  # seconds between counts of the dead letters that stand


class Observed:
    """Turns what an apply worker does into metrics.

    The heartbeats are PostgreSQL's, read when partitions are assigned, then this worker's own. Only those of
    assigned partitions are shown: another worker moves the others on.
    """

    def __init__(self, collections: Mapping[str, str]) -> None:
        """``collections``: namespaces by topic."""
        self._collections = collections
        self._assigned: frozenset[Partition] = frozenset()
        self._heartbeats: dict[Partition, datetime] = {}
        metrics.apply_begins(set(self._collections.values()), OUTCOMES, RETRY_REASONS)

    def assigned(self, partitions: Iterable[Partition]) -> None:
        """Take over the partitions of a new assignment, which replaces the old one."""
        self._assigned = frozenset(partitions)
        self._show()

    def heartbeats(self, newest: Mapping[Partition, datetime]) -> None:
        """Take in the newest heartbeat of partitions."""
        for place, moment in newest.items():
            self._heartbeats[place] = max(moment, self._heartbeats.get(place, moment))
        self._show()

    def taken(self, chunk: Sequence[Any]) -> None:
        """Note how long a chunk's last record has been in Kafka."""
        metrics.KAFKA_LAG.observe(max(0.0, time.time() - chunk[-1].timestamp / 1000))

    def committed(self, tallies: Mapping[Partition, PartitionTally], seconds: float) -> None:
        """Count a transaction's outcomes, after its COMMIT."""
        records = self._count(metrics.APPLIED, tallies)
        metrics.BATCH_EVENTS.observe(records)
        metrics.BATCH_SECONDS.observe(seconds)
        beats = {place: tally.heartbeat_at for place, tally in tallies.items() if tally.heartbeat_at}
        if beats:
            self.heartbeats(beats)

    def retried_parked(self, tallies: Mapping[Partition, PartitionTally]) -> None:
        """Count what became of parked events, after the COMMIT."""
        self._count(metrics.PARKED_RETRIED, tallies)

    def applied(self, chunks: Iterable[Sequence[Item]]) -> None:
        """Note the age of each chunk's last live event, after the COMMIT. A copied document has none."""
        now = time.time()
        for chunk in chunks:
            event = chunk[-1].event
            if event is not None and event.source is not Source.COPY:
                metrics.APPLY_LAG.observe(max(0.0, now - event.wall.timestamp()))

    def retry(self, error: BaseException) -> None:
        """Count a transaction that is begun again because of an error."""
        metrics.RETRIES.labels(retry_reason(error)).inc()

    def _count(self, counter: Any, tallies: Mapping[Partition, PartitionTally]) -> int:
        records = 0
        for (topic, _), tally in tallies.items():
            collection = self._collections.get(topic, "")
            for outcome, count in tally.outcomes.items():
                counter.labels(collection, str(outcome)).inc(count)
                records += count
        return records

    def _show(self) -> None:
        oldest: dict[tuple[str, ...], float] = {}
        for place, moment in self._heartbeats.items():
            collection = self._collections.get(place[0])
            if place in self._assigned and collection is not None:
                seconds = moment.timestamp()
                oldest[(collection,)] = min(seconds, oldest.get((collection,), seconds))
        metrics.END_TO_END_LAG.since(oldest)


async def count_dead_letters(settings: Settings) -> None:
    """Keep the gauge of dead letters up to date until cancelled, if anyone can see it.

    While PostgreSQL is away it stays as it was.
    """
    while settings.metrics_port:
        # The writer, which needs PostgreSQL more, tells of its absence.
        with suppress(CrossfadeError, *FAULTS):
            await _count_while_connected(settings.postgres_dsn.get_secret_value())
        await asyncio.sleep(DEAD_LETTERS_EVERY)


async def _count_while_connected(dsn: str) -> None:
    connection = await connect(dsn, "apply metrics")
    try:
        while True:
            for state, count in (await dead_letters.count_standing(connection)).items():
                metrics.DEAD_LETTERS.labels(state).set(count)
            await asyncio.sleep(DEAD_LETTERS_EVERY)
    finally:
        connection.terminate()
