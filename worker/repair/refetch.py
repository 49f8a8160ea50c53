"""Fetches held documents again, from MongoDB through Kafka, and waits until apply has them (A9)."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from topics import Collection
from worker.broker.offsets import end_offsets
from worker.postgres import audit, batches
from worker.postgres.batches import FIRST, Held
from worker.postgres.connect import Connection
from worker.publish.real_collections import RealCollections
from worker.publish.target import Target
from worker.repair.send import Sender

_ASK_EVERY = 0.2  # seconds

Progress = Callable[[str, int], None]
"""Called now and then with what is under way, `sent` or `held`, and how many documents that is."""


@dataclass(slots=True)
class Fetched:
    """What became of held documents. ``held`` still are; apply has read all that was sent if ``applied``."""

    sent: int = 0
    absent: int = 0
    lost: int = 0
    """Not sent: which collection of MongoDB they are of cannot be told."""
    held: int = 0
    applied: bool = False


@dataclass(frozen=True, slots=True)
class Refetch:
    """Sends what is held, and watches until it no longer is."""

    sender: Sender
    progress: Progress

    async def run(self, connection: Connection, batch_id: int | None, *, within: float) -> Fetched:
        """Fetch the held documents of a batch, or all. Wait for apply at most ``within`` seconds. Audited.

        May be done again at any time: documents that were sent before are sent as they are now.
        """
        fetched, targets, after = Fetched(), set[Target](), FIRST
        while page := await batches.held(connection, batch_id, after):
            await self._send(page, fetched, targets)
            after = page[-1].key
            self.progress("sent", fetched.sent + fetched.absent)
        if targets:
            subject = {"batch_id": batch_id, "documents": fetched.sent, "absent": fetched.absent}
            await audit.note(connection, "batches refetch", subject)
        try:
            async with asyncio.timeout(within):
                await self._wait(connection, batch_id, targets, fetched)
        except TimeoutError:
            pass
        fetched.held = await batches.count_held(connection, batch_id)
        return fetched

    async def _send(self, page: Sequence[Held], fetched: Fetched, targets: set[Target]) -> None:
        by_namespace: dict[str, list[Held]] = defaultdict(list)
        for one in page:
            by_namespace[one.namespace].append(one)
        real = RealCollections(self.sender.client, self.sender.checkpoints, self.sender.targets.sources)
        logical = {target.namespace: target for target in self.sender.targets.all}
        ids: dict[Collection, list[Any]] = {}
        for namespace, some in by_namespace.items():
            if (target := logical.get(namespace)) is None:
                fetched.lost += len(some)
                continue
            found, lost = await real.find(target.collection, some)
            fetched.lost += len(lost)
            targets.add(target)
            ids |= {collection: [one.id for one in them] for collection, them in found.items()}
        report = await self.sender.send(ids)
        fetched.sent += report.documents
        fetched.absent += report.absences

    async def _wait(
        self, connection: Connection, batch_id: int | None, targets: set[Target], fetched: Fetched
    ) -> None:
        """Return when nothing is held any more but what was not sent, or apply has read all that was sent."""
        topics = {target.copy_topic: target.copy_partitions for target in targets}
        ends = await end_offsets(self.sender.kafka, topics) if topics else {}
        while not fetched.applied:
            # Asked in this order: what is read now was applied before it is counted.
            fetched.applied = await self.sender.checkpoints.applied(ends)
            left = await batches.count_held(connection, batch_id)
            self.progress("held", left)
            if left <= fetched.lost:
                fetched.applied = True
            elif not fetched.applied:
                await asyncio.sleep(_ASK_EVERY)
