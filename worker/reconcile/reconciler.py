"""One reconciler: full generations chunk by chunk, and between chunks whatever was changed or did not fit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from collections.abc import Collection as Container
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

from topics import Collection, TopicNames, declare
from worker import failpoints, metrics
from worker.broker.access import access
from worker.broker.admin import existing_topics
from worker.broker.changes import ChangeReader, Lost
from worker.errors import ConfigurationError, Transient
from worker.mapping import Mapping, Plans, hashes, load
from worker.mongo.client import Client, connect
from worker.mongo.preference import read_preference
from worker.postgres import audit, batches, mapping_versions, migration_log, mismatches, proof, reconciliation
from worker.postgres.checkpoints import Checkpoints
from worker.postgres.connect import ANSWER_WITHIN, Connection
from worker.postgres.connect import connect as connect_postgres
from worker.postgres.ledger import Key
from worker.postgres.reconciliation import Ended, Generation
from worker.publish.real_collections import RealCollections
from worker.reconcile import recheck
from worker.reconcile.judge import Identity, Look, Mismatch, first
from worker.reconcile.sides import Sides
from worker.reconcile.walk import Step, Walk
from worker.repair.repair import REPAIRED, Repair, evidence
from worker.repair.send import Sender
from worker.settings import Settings, tag_sets

SWEEP_EVERY = 1.0  # seconds between looks at what was changed or did not fit
_CHANGES_AT_ONCE = 5000
_MISMATCHES_AT_ONCE = 1000
_MOST_IN_SWEEP = 10_000  # changed documents, and mismatches, of one sweep
_HELD_AT_ONCE = 1000
_SWITCHED_EVERY = 1.0  # seconds
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
    mapping_changes: int
    """How often the mapping was changed, when this one was read."""
    _offsets: dict[tuple[str, int], int] = field(default_factory=dict)
    _after: tuple[str, UUID] = _FIRST
    _held_after: Key = batches.FIRST

    # -- full generations

    async def begin_full(self, tenant: UUID | None = None, *, afresh: bool = False) -> Generation:
        """Return the full generation that is under way, or a new one.

        Not to be asked while a copy is not applied: that writes rows anew that were compared already.
        """
        now = await self.sides.now()
        return await reconciliation.resume_or_begin(
            self.store,
            self.settings.publisher,
            "full",
            tenant,
            afresh=afresh,
            began_time=now.time << 32 | now.inc,
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
            await reconciliation.switched(self.reader),
        )
        began = asked = time.monotonic()
        async for step in walk.steps(generation.place):
            if time.monotonic() > asked + _SWITCHED_EVERY:
                walk.switched, asked = await reconciliation.switched(self.reader), time.monotonic()
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
                    publisher=self.settings.publisher,
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

    async def finish(self, generation: Generation) -> Ended:
        """End a generation, when a sweep has told that all was looked at; return what does not fit."""
        ended = await reconciliation.finish(self.store, generation, self.settings.publisher)
        if ended is None:
            raise NotWanted
        if generation.kind == "full":
            failpoints.reach(failpoints.RECONCILE_AFTER_FINISH)
        return ended

    # -- what was changed, and what did not fit

    async def go_on(self) -> tuple[Generation, bool]:
        """Follow changes from where the reconciler before was; return the generation of changes.

        And whether that could not be: then nothing that was compared before proves anything any more.
        """
        changes = await self.begin_changes()
        known = changes.place.get("offsets", {})
        offsets = {(topic, int(n)): offset for topic, some in known.items() for n, offset in some.items()}
        lost = not offsets
        try:
            await self.follow(offsets)
        except Lost:
            lost = True
        if lost:
            await self.begin_anew(changes)
        return changes, lost

    async def begin_anew(self, changes: Generation) -> None:
        """Follow changes from now on, and let nothing that was compared before prove anything any more."""
        await self.follow({})
        await reconciliation.forget(self.store, changes.number)

    async def begin_changes(self) -> Generation:
        """Return the generation of changes that is under way, or a new one that goes on where we are."""
        return await reconciliation.resume_or_begin(
            self.store, self.settings.publisher, "changes", None, place=self._place()
        )

    async def note_changes(self, changes: Generation, looked_at: int) -> bool:
        """Save how far changes were looked at; False: what the generation is about is no more."""
        return await reconciliation.advance(
            self.store,
            changes.number,
            self._place(),
            {},
            publisher=self.settings.publisher,
            documents=looked_at,
        )

    def _place(self) -> dict[str, Any]:
        offsets: dict[str, dict[str, int]] = {}
        for (topic, number), offset in self._offsets.items():
            offsets.setdefault(topic, {})[str(number)] = offset
        return {"offsets": offsets} if offsets else {}

    async def follow(self, offsets: dict[tuple[str, int], int]) -> None:
        """Follow changes from offsets on; `Lost` where Kafka no longer has them."""
        self._offsets = await self.changes.open(offsets)

    @property
    def offsets(self) -> dict[tuple[str, int], int]:
        """How far changes were looked at."""
        return self._offsets

    async def sweep(self, generation: int, tenant: UUID | None = None) -> Swept:
        """Look at what was changed, at what is held, and again at what did not fit, up to a limit.

        `Lost` where Kafka no longer has what was changed. ``tenant``: look again at its mismatches only.
        """
        standing = await reconciliation.standing(self.store, self.settings.publisher)
        if standing.mapping_changes != self.mapping_changes:
            raise Transient("the mapping was changed", remedy="start again with the new one")
        copying = await self.copying()
        switched = await reconciliation.switched(self.reader)
        looked_at, all_seen = await self._look_at_changes(generation, copying, switched)
        looked_at += await self._look_at_held(generation, copying, switched)
        looked_at += await self._look_again(copying, switched, tenant)
        return Swept(looked_at, all_seen, copying)

    async def _look_at_changes(
        self, generation: int, copying: set[str], switched: set[UUID]
    ) -> tuple[int, bool]:
        """Look at changed documents that apply has read; return how many, and whether that was all."""
        until = await migration_log.offsets(self.reader)
        looked_at = 0
        while looked_at < _MOST_IN_SWEEP:
            changes = await self.changes.read(until, _CHANGES_AT_ONCE)
            if not changes.offsets:
                break
            number, found = await recheck.changed(
                self.sides, self.reader, changes.ids, copying, generation, switched
            )
            await mismatches.add(self.store, map(recheck.to_row, found))
            self._offsets |= changes.offsets
            looked_at += number
        metrics.RECONCILED.labels("changes").inc(looked_at)
        return looked_at, all(offset >= until.get(place, 0) for place, offset in self._offsets.items())

    async def _look_at_held(self, generation: int, copying: set[str], switched: set[UUID]) -> int:
        """Look at some of the documents that a rolled-back batch left to be fetched again.

        Their rows are gone without a change in MongoDB, so nothing else tells of them.
        """
        held = await batches.held(self.reader, None, self._held_after, _HELD_AT_ONCE)
        self._held_after = held[-1].key if held else batches.FIRST
        by_logical: dict[str, list[batches.Held]] = {}
        for one in held:
            if one.namespace in self.copies:
                by_logical.setdefault(one.namespace, []).append(one)
        identities: list[Identity] = []
        for namespace, some in by_logical.items():
            found, _ = await self.real.find(Collection.parse(namespace), some)
            for collection, them in found.items():
                source = self.sides.source(str(collection))
                identities += [source.identity(UUID(int=one.key[1].int), one.id) for one in them]
        looks = await recheck.look_at(self.sides, self.reader, identities, copying)
        unfit = recheck.first_looks(looks, generation, switched)
        await mismatches.add(self.store, map(recheck.to_row, unfit))
        metrics.RECONCILED.labels("again").inc(len(looks))
        return len(looks)

    async def _look_again(self, copying: set[str], switched: set[UUID], tenant: UUID | None) -> int:
        """Look again at what did not fit; forget what fits, or whose tenant was switched."""
        looked_at = 0
        while looked_at < _MOST_IN_SWEEP:
            rows = await mismatches.read(self.store, self._after, tenant=tenant, limit=_MISMATCHES_AT_ONCE)
            if before := [recheck.from_row(row) for row in rows]:
                await self.look_at(before, copying, switched)
                looked_at += len(before)
            if len(rows) < _MISMATCHES_AT_ONCE:
                self._after = _FIRST
                break
            self._after = rows[-1]["namespace"], rows[-1]["row_id"]
        metrics.RECONCILED.labels("again").inc(looked_at)
        return looked_at

    async def look_at(
        self, before: Sequence[Mismatch], copying: set[str], switched: Container[UUID] = ()
    ) -> None:
        """Look again at these mismatches; keep what does not fit, and forget what does."""
        now, done = await recheck.recheck(self.sides, self.reader, before, copying, switched)
        were = {one.look.key: one.state for one in before}
        async with self.store.transaction():
            await mismatches.lock(self.store, list(were))
            await mismatches.save(self.store, map(recheck.to_row, now))
            turned = [one.look for one in now if one.state == "real" != were[one.look.key]]
            await proof.spoil(self.store, [look.key for look in turned])
            await self._forget(done)
        failpoints.reach(failpoints.RECONCILE_AFTER_LOOK)

    def repair(self, sender: Sender, limit: int | None) -> Repair:
        """Return what mends mismatches that are kept here; ``limit`` as `Repair.limit`."""
        return Repair(sender, self.store, self.reader, Plans(self.mapping), limit)

    async def _forget(self, done: list[Look]) -> None:
        """Forget these; of what was repaired and fits the audit log is told. In one transaction."""
        looks = {one.key: one for one in done}
        repaired = await mismatches.drop(self.store, list(looks))
        if found := [looks[key] for key in sorted(repaired) if looks[key].kind is None]:
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


class Swept(NamedTuple):
    """What a sweep looked at. ``all_seen``: whatever was changed, as far as apply has read.

    ``copying``: collections whose copy is not applied, which writes rows that were compared before.
    """

    looked_at: int
    all_seen: bool
    copying: Container[str]

    @property
    def complete(self) -> bool:
        """Whether a generation may end with it."""
        return self.all_seen and not self.copying


class NotWanted(Exception):
    """The generation proves nothing any more: what it is about has changed, or another process began it."""


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
        agreed = await mapping_versions.agree(store, hashes(mapping))
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
            agreed.changes,
        )
