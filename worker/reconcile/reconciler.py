"""One reconciler: full generations chunk by chunk, and between chunks whatever was changed or did not fit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

from topics import TopicNames, declare
from worker import failpoints, metrics
from worker.broker.access import access
from worker.broker.admin import existing_topics
from worker.broker.changes import ChangeReader
from worker.errors import ConfigurationError
from worker.mapping import Mapping, Plans, load
from worker.mongo.client import Client, connect
from worker.mongo.preference import read_preference
from worker.postgres import audit, migration_log, mismatches, reconciliation
from worker.postgres.checkpoints import Checkpoints
from worker.postgres.connect import ANSWER_WITHIN, Connection
from worker.postgres.connect import connect as connect_postgres
from worker.postgres.reconciliation import Generation
from worker.publish.real_collections import RealCollections
from worker.reconcile import recheck
from worker.reconcile.judge import Look, Mismatch, first
from worker.reconcile.sides import Sides
from worker.reconcile.walk import Step, Walk
from worker.repair.repair import REPAIRED, Repair, evidence
from worker.repair.send import Sender
from worker.settings import Settings, tag_sets

SWEEP_EVERY = 1.0  # seconds between looks at what was changed or did not fit
_CHANGES_AT_ONCE = 5000
_MISMATCHES_AT_ONCE = 1000
_MOST_IN_SWEEP = 10_000  # changed documents, and mismatches, of one sweep
_FIRST = ("", UUID(int=0))


@dataclass(slots=True)
class Reconciler:
    """Looks at both sides and keeps what it finds. Opened by `opened`; used by one task."""

    settings: Settings
    mapping: Mapping
    client: Client
    store: Connection
    """As the sync role: keeps what is found."""
    reader: Connection
    """As the role that sees every tenant's rows."""
    sides: Sides
    real: RealCollections
    copies: dict[str, tuple[str, int]]
    """Each collection's copy topic, and its partitions."""
    changes: ChangeReader
    _offsets: dict[tuple[str, int], int] = field(default_factory=dict)
    _after: tuple[str, UUID] = _FIRST

    # -- full generations

    async def begin_full(self, tenant: UUID | None = None, *, afresh: bool = False) -> Generation:
        """Return the full generation that is under way, or a new one."""
        return await reconciliation.resume_or_begin(
            self.store, self.settings.publisher, "full", tenant, afresh=afresh
        )

    async def steps(self, generation: Generation) -> AsyncIterator[Step]:
        """Yield each chunk's step of a full generation, when it is saved.

        `NotWanted` when it ended meanwhile.
        """
        walk = Walk(
            self.client,
            self.reader,
            self.sides,
            self.mapping,
            self.real,
            read_preference(self.settings.copy_read_preference, tag_sets(self.settings.copy_read_tags)),
            self.settings.reconcile_chunk,
            generation.tenant_id,
            frozenset(await reconciliation.switched(self.reader)),
        )
        began = time.monotonic()
        async for step in walk.steps(generation.place):
            at = datetime.now(UTC)
            found = [recheck.to_row(first(look, at, generation.number)) for look in step.looks]
            now = time.monotonic()
            async with self.store.transaction():
                await mismatches.add(self.store, found)
                wanted = await reconciliation.advance(
                    self.store,
                    generation.number,
                    step.place,
                    step.sums,
                    documents=step.documents,
                    rows=step.rows,
                    seconds=now - began,
                )
                failpoints.reach(failpoints.RECONCILE_BEFORE_COMMIT)
            failpoints.reach(failpoints.RECONCILE_AFTER_CHUNK)
            if not wanted:
                raise NotWanted
            began = now
            metrics.RECONCILED.labels("full").inc(step.documents)
            yield step
            await self._held_back(step, now)
            began = max(began, time.monotonic()) if self.settings.reconcile_rate else began
        failpoints.reach(failpoints.RECONCILE_BEFORE_FINISH)

    async def _held_back(self, step: Step, since: float) -> None:
        if rate := self.settings.reconcile_rate:
            due = since + (step.documents + step.rows) / rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def finish(self, generation: Generation) -> tuple[int, int]:
        """End a generation; return how many documents are settling, and how many mismatches there are."""
        if (ended := await reconciliation.finish(self.store, generation)) is None:
            raise NotWanted
        if generation.kind == "full":
            failpoints.reach(failpoints.RECONCILE_AFTER_FINISH)
        return ended

    # -- what was changed, and what did not fit

    async def follow(self, offsets: dict[tuple[str, int], int]) -> None:
        """Follow changes from offsets on; `Lost` where Kafka no longer has them."""
        self._offsets = await self.changes.open(offsets)

    @property
    def offsets(self) -> dict[tuple[str, int], int]:
        """How far changes were looked at."""
        return self._offsets

    async def look_at_changes(self, generation: int, copying: set[str]) -> int:
        """Look at documents that were changed, and that apply has read; return how many."""
        until = await migration_log.offsets(self.reader)
        looked_at = 0
        while looked_at < _MOST_IN_SWEEP:
            changes = await self.changes.read(until, _CHANGES_AT_ONCE)
            if not changes.offsets:
                break
            number, found = await recheck.changed(self.sides, self.reader, changes.ids, copying, generation)
            await mismatches.add(self.store, map(recheck.to_row, found))
            self._offsets |= changes.offsets
            looked_at += number
        metrics.RECONCILED.labels("changes").inc(looked_at)
        return looked_at

    async def look_again(self, copying: set[str], tenant: UUID | None = None) -> int:
        """Look again at what did not fit, as much as one sweep may; return how many documents."""
        looked_at = 0
        while looked_at < _MOST_IN_SWEEP:
            rows = await mismatches.read(self.store, self._after, tenant=tenant, limit=_MISMATCHES_AT_ONCE)
            before = [recheck.from_row(row) for row in rows]
            if before:
                await self.look_at(before, copying)
                looked_at += len(before)
            if len(rows) < _MISMATCHES_AT_ONCE:
                self._after = _FIRST
                break
            self._after = rows[-1]["namespace"], rows[-1]["row_id"]
        metrics.RECONCILED.labels("again").inc(looked_at)
        return looked_at

    async def look_at(self, before: Sequence[Mismatch], copying: set[str]) -> None:
        """Look again at these mismatches; keep what does not fit, and forget what does."""
        now, fit = await recheck.recheck(self.sides, self.reader, before, copying)
        async with self.store.transaction():
            await mismatches.save(self.store, map(recheck.to_row, now))
            await self._forget(fit)
        failpoints.reach(failpoints.RECONCILE_AFTER_LOOK)

    def repair(self, sender: Sender, limit: int | None) -> Repair:
        """Return what mends mismatches that are kept here; ``limit`` as `Repair.limit`."""
        return Repair(sender, self.store, self.reader, Plans(self.mapping), limit)

    async def _forget(self, fit: list[Look]) -> None:
        """Forget what fits now; of what was repaired the audit log is told. In one transaction."""
        looks = {(one.identity.namespace, one.identity.row_id): one for one in fit}
        repaired = await mismatches.drop(self.store, list(looks))
        if repaired:
            found = [looks[key] for key in sorted(repaired)]
            await audit.notes(
                self.store,
                REPAIRED,
                [
                    evidence(
                        one.identity.collection,
                        one.identity.row_id,
                        one.tenant,
                        one.kind,
                        one.mongo,
                        one.postgres,
                    )
                    for one in found
                ],
            )

    async def copying(self) -> set[str]:
        """Return the collections whose copy is not yet applied."""
        namespaces = {topic: name for name, (topic, _) in self.copies.items()}
        ends = await self.changes.ends(dict(self.copies.values()))
        by_collection = {(namespaces[topic], topic, n): end for (topic, n), end in ends.items()}
        return await reconciliation.copying(self.reader, list(self.copies), by_collection)


class NotWanted(Exception):
    """The generation proves nothing any more: the stream began anew, or another process began it."""


@asynccontextmanager
async def opened(settings: Settings, role: str) -> AsyncIterator[Reconciler]:
    """Yield a reconciler with connections of its own; a `UsageError` says which service is away."""
    if settings.postgres_reader_dsn is None:
        raise ConfigurationError(
            "CROSSFADE_POSTGRES_READER_DSN: not set",
            remedy="name a role that sees the rows of every tenant, as crossfade_reader does",
        )
    mapping = load(settings.mapping)
    async with AsyncExitStack() as stack:
        dsn = settings.postgres_dsn.get_secret_value()
        store = await connect_postgres(dsn, role, statement_timeout=ANSWER_WITHIN)
        stack.callback(store.terminate)
        reader = await connect_postgres(
            settings.postgres_reader_dsn.get_secret_value(),
            f"{role} reader",
            setting="CROSSFADE_POSTGRES_READER_DSN",
            statement_timeout=ANSWER_WITHIN,
        )
        stack.callback(reader.terminate)
        await reconciliation.require(store, reader, [table.table for table in Plans(mapping).tables()])
        checkpoints = Checkpoints(dsn, settings.publisher)
        await checkpoints.open()
        stack.push_async_callback(checkpoints.close)
        client = await connect(settings.mongo_uri.get_secret_value(), role)
        stack.callback(client.close)
        kafka = await access(settings)
        names, logicals = TopicNames(settings.topic_prefix), list(mapping.namespaces())
        declared = declare(
            names, logicals, partitions=settings.topic_partitions, replication=settings.topic_replication
        )
        there = await existing_topics(kafka, [topic.name for topic in declared])
        if lacking := [topic.name for topic in declared if topic.name not in there]:
            raise ConfigurationError(
                f"Kafka has not {len(lacking)} of this migration's topics, {lacking[0]} among them",
                remedy="start `crossfade run` first, and check CROSSFADE_TOPIC_PREFIX",
            )
        stream = {names.stream(one): there[names.stream(one)] for one in logicals}
        topics = {str(one): (names.stream(one), there[names.stream(one)]) for one in logicals}
        changes = ChangeReader(kafka, stream)
        stack.push_async_callback(changes.close)
        yield Reconciler(
            settings,
            mapping,
            client,
            store,
            reader,
            Sides(client, mapping, topics),
            RealCollections(client, checkpoints, mapping.sources()),
            {str(one): (names.copy(one), there[names.copy(one)]) for one in logicals},
            changes,
        )
