"""One apply worker: chunks wait, one writer takes all that wait, and acknowledges after COMMIT."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple

import asyncpg
import structlog

from topics import TopicNames
from worker import failpoints
from worker.apply import letters, preconditions
from worker.apply.batch import Item, Mapped, parts, read
from worker.apply.continuity import Continuity, Work
from worker.apply.expired import Expiry
from worker.apply.observed import Observed
from worker.apply.references import References
from worker.apply.replays import Replays
from worker.apply.writer import BatchWriter
from worker.broker.access import Access
from worker.broker.faust_app import Acknowledge
from worker.clock import SYSTEM_CLOCK
from worker.errors import CrossfadeError, Fatal, SchemaError, ServiceUnavailable, Transient
from worker.mapping import Mapping as MappingFile
from worker.mapping import Plans, hashes
from worker.mongo.client import WhenAsked
from worker.postgres import dead_letters, mapping_versions, migration_log
from worker.postgres.connect import ANSWER_WITHIN, Connection, connect
from worker.postgres.constraints import Constraints
from worker.postgres.faults import FAULTS, Action, action_for, describe, unusable
from worker.postgres.migration_log import Partition
from worker.postgres.replication import why_no_replica
from worker.postgres.target import TargetTable
from worker.retry import Backoff
from worker.settings import Settings

_log = structlog.get_logger()
RETRY_EVERY = 0.5  # seconds between looks for parked events whose time has come
PARKED_AT_ONCE = 500
PARKED_BYTES = 16 * 1024 * 1024  # of their events, beyond the first
OVERTAKEN_EVERY = 30.0  # seconds between looks for letters that another worker overtook
# A transaction costs some milliseconds of CPU over all processes, however few its events: when they come
# singly, one is begun every 10 ms at most.
_FEW, _GATHER = 100, 0.01
OFFSETS_WITHIN = 20.0  # seconds
BATCH_BYTES = 16 * 1024 * 1024  # of record values in one transaction, beyond its first chunk


class _Chunk(NamedTuple):
    event: Any  # Faust's, to be acknowledged; None where more of its records follow
    items: list[Item]
    size: int  # bytes of record values, and of what they refer to


class ApplyWorker:
    """Holds what waits to be written, and writes it: one transaction for everything waiting."""

    def __init__(self, settings: Settings, kafka: Access, mapping: MappingFile) -> None:
        self._settings = settings
        self._mapping = mapping
        self._plans = Plans(mapping)
        self._mongo = WhenAsked(settings.mongo_uri.get_secret_value(), "apply")
        self._references = References(self._mongo)
        self._expiry = Expiry(self._mongo, mapping)
        self._numbers: dict[str, int] = {}
        self._find = lru_cache(maxsize=10_000)(self._mapped)
        self._waiting: deque[_Chunk] = deque()
        self._records = self._fetched_bytes = 0
        self._arrived, self._room = asyncio.Event(), asyncio.Event()
        self._room.set()
        self._connection: asyncpg.Connection | None = None
        self._overtaken_at = 0.0
        self._retried_fit = 0  # of the parked events last retried
        self.namespaces = TopicNames(settings.topic_prefix).namespaces(mapping.namespaces())
        self.continuity = Continuity(kafka, self.namespaces, self._do)
        self.observed = Observed(self.namespaces)
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.acknowledge: Acknowledge | None = None

    async def open(self) -> None:
        """Connect, number the collections and find out what the sync role may do."""
        connection = self._connection = await self._connect()
        try:
            await preconditions.require(connection, self._mapping)
            agreed = await mapping_versions.agree(connection, hashes(self._mapping))
            tables = self._plans.tables()
            replica = await self._may_be_replica(connection)
            constraints = await Constraints.read(connection, tables, foreign_keys=not replica)
        except (
            asyncpg.UndefinedTableError,
            asyncpg.InvalidSchemaNameError,
            asyncpg.InsufficientPrivilegeError,
        ):
            raise SchemaError(
                "PostgreSQL lacks Crossfade's schema, or the sync role may not use it",
                remedy="run `crossfade schema apply --target spaces`",
            ) from None
        except FAULTS as error:
            action, told = action_for(error)
            kind = Transient if action is Action.RETRY else ServiceUnavailable
            raise kind(f"PostgreSQL refuses apply's start ({describe(error)})", remedy=told) from None
        for name in self._mapping.collections:
            self._numbers[name] = agreed.numbers[str(self._mapping.logical(name))]
        self._writer, self._replays = (
            kind(
                [TargetTable(table) for table in tables],
                constraints,
                heirs=self._heirs(),
                replica=replica and kind is BatchWriter,
                mapping_changes=agreed.changes,
                expiry=self._expiry,
            )
            for kind in (BatchWriter, Replays)
        )
        _log.info(
            "apply ready", collections=len(self._numbers), replication_role="replica" if replica else "origin"
        )

    async def forget_topics(self, missing: Collection[str]) -> None:
        """Take note of topics that Kafka does not have, before they are made."""
        topics = {topic: self.namespaces[topic] for topic in missing}

        async def forget(connection: Connection) -> None:
            await migration_log.forget_topics(connection, topics)

        await self._do(forget)

    def _mapped(self, namespace: str) -> Mapped | None:
        found = self._plans.find(namespace)
        if found is None:
            return None
        tenant = self._mapping.collections[found.name].tenant
        parent = self._numbers[tenant.parent.collection] if tenant and tenant.parent else None
        return Mapped(self._numbers[found.name], found.plan, parent)

    def _heirs(self) -> dict[int, list[str]]:
        """Return, by a collection's number, the namespaces of those whose documents have its tenants."""
        heirs: dict[int, list[str]] = {}
        for name, mapping in self._mapping.collections.items():
            if mapping.tenant and mapping.tenant.parent:
                above = self._numbers[mapping.tenant.parent.collection]
                heirs.setdefault(above, []).append(str(self._mapping.logical(name)))
        return heirs

    async def _may_be_replica(self, connection: asyncpg.Connection) -> bool:
        wanted = self._settings.replication_role
        if wanted == "origin":
            return False
        if (why := await why_no_replica(connection, self._mapping)) is None:
            return True
        fault, remedy = why
        if wanted == "replica":
            raise SchemaError(fault, remedy=f"{remedy}, or set CROSSFADE_REPLICATION_ROLE=auto")
        _log.warning(f"{fault}: writing as origin", remedy=remedy)
        return False

    async def take(self, event: Any) -> None:
        """Decode a chunk and queue it; waits while two batches are queued, so memory stays bounded."""
        self.observed.taken(event.message.value)
        items = [
            read(Item(r.topic, r.partition, r.offset, r.value or b""), self._find)
            for r in event.message.value
        ]
        await self._room.wait()
        for part, size in parts(items, BATCH_BYTES):
            last = part[-1] is items[-1]
            self._waiting.append(_Chunk(event if last else None, part, size))
            self._records += len(part)
            self._fetched_bytes += size
        if self._full():
            self._room.clear()
        self._arrived.set()

    async def durable_offsets(self, earliest: Mapping[Partition, int]) -> Mapping[Partition, int]:
        """Return PostgreSQL's offsets over a connection of its own: the writer's may be in a transaction.

        Where Kafka's ``earliest`` is past one, its records are lost, and no later one may ever tell.

        Faust gives an assignment 30 s, and after that would hold its partitions without ever reading them. So
        this worker ends before, and whoever supervises it starts it again.
        """
        until = asyncio.get_running_loop().time() + OFFSETS_WITHIN
        for delay in Backoff().delays():
            try:
                connection = await connect(
                    self._settings.postgres_dsn.get_secret_value(), "apply offsets", statement_timeout=10
                )
                try:
                    stored = await migration_log.offsets(connection)
                    self.continuity.require_not_older(stored)
                    stored |= await self.continuity.passed_over(connection, earliest)
                    self.observed.heartbeats(await migration_log.heartbeats(connection))
                finally:
                    connection.terminate()
                self.continuity.reached(stored)
                return stored
            except Fatal as error:
                raise self._fail(error) from None
            except (CrossfadeError, *FAULTS) as error:
                if asyncio.get_running_loop().time() > until:
                    raise self._fail(
                        Fatal("PostgreSQL is away, and with it where to begin reading")
                    ) from None
                _log.warning("offsets not read yet, trying again", reason=describe(error))
                await asyncio.sleep(delay)
        raise AssertionError

    def began_too_slowly(self) -> None:
        """End this worker: Kafka did not tell in time where to begin, and Faust would go on regardless."""
        self._fail(Fatal("where to begin reading was not found out in time; beginning again"))

    def lacks_topics(self, count: int) -> None:
        """End this worker, from any thread, so that the group assigns again: a start sees to the topics."""
        told = f"Kafka does not list {count} of this migration's topics; beginning again"
        self.failed.get_loop().call_soon_threadsafe(self._fail, Fatal(told))

    def _fail(self, error: Fatal) -> Fatal:
        if not self.failed.done():
            self.failed.set_exception(error)
        return error

    async def run(self) -> None:
        """Write until cancelled; look for parked events at their time, however much arrives."""
        loop = asyncio.get_running_loop()
        look_at = loop.time() + RETRY_EVERY
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(look_at):
                    await self._arrived.wait()
            if loop.time() >= look_at:
                await self._retrying(self._retry_parked)
                # After a replay there are many that fit: then only a batch's time lies between two looks.
                look_at = loop.time() + (0 if self._retried_fit >= PARKED_AT_ONCE // 2 else RETRY_EVERY)
            batch = self._take_waiting()
            if not batch:
                continue
            began = loop.time()
            items = [item for chunk in batch for item in chunk.items]
            await self._references.complete(items)
            following = await self.continuity.following(chunk.items for chunk in batch)
            await self._retrying(lambda: self._write(items))  # noqa: B023 - awaited at once
            failpoints.reach(failpoints.APPLY_AFTER_COMMIT)
            self.observed.applied(chunk.items for chunk in batch)
            self.continuity.reached(following)
            failpoints.reach(failpoints.APPLY_BEFORE_ACKNOWLEDGE)
            assert self.acknowledge is not None
            for chunk in batch:  # after COMMIT, in order: the last step of the chain
                if chunk.event is not None:
                    await self.acknowledge(chunk.event)
            if len(items) < _FEW:
                await asyncio.sleep(_GATHER - (loop.time() - began))

    async def _do(self, work: Work) -> None:
        await self._retrying(lambda: work(self._connected()))

    def _full(self) -> bool:
        return self._records >= 2 * self._settings.apply_batch or self._fetched_bytes >= 2 * BATCH_BYTES

    def _take_waiting(self) -> list[_Chunk]:
        batch: list[_Chunk] = []
        records = size = 0
        while self._waiting:
            chunk = self._waiting[0]
            records, size = records + len(chunk.items), size + chunk.size
            if batch and (records > self._settings.apply_batch or size > BATCH_BYTES):
                break
            batch.append(self._waiting.popleft())
            self._records -= len(chunk.items)
            self._fetched_bytes -= chunk.size
        if not self._full():
            self._room.set()
        if not self._waiting:
            self._arrived.clear()
        return batch

    async def _write(self, items: list[Item]) -> None:
        began = SYSTEM_CLOCK.monotonic()
        tallies = await self._writer.write(self._connected(), items)
        self.observed.committed(tallies, SYSTEM_CLOCK.monotonic() - began)

    async def _retry_parked(self) -> None:
        connection = self._connected()
        async with connection.transaction():
            await connection.execute("SET LOCAL idle_in_transaction_session_timeout = '60s'")
            if SYSTEM_CLOCK.monotonic() >= self._overtaken_at:
                await letters.close_overtaken(connection)
                self._overtaken_at = SYSTEM_CLOCK.monotonic() + OVERTAKEN_EVERY
            parked = await dead_letters.take_parked(
                connection,
                most=PARKED_AT_ONCE,
                size=PARKED_BYTES,
                overdue_after=self._settings.parked_within,
                topics=list(self.namespaces),
            )
            self._retried_fit = 0
            if not parked:
                return
            items = [read(Item(p.topic, p.partition, p.offset, p.event, p), self._find) for p in parked]
            items, _ = next(parts(items, PARKED_BYTES))  # the others stay parked
            replayed = [item for item in items if item.replayed]
            items = [item for item in items if not item.replayed]
            try:
                await self._references.try_to_complete(items)
            except Transient:
                items = [item for item in items if item.reference is None]
            told = [
                await writer.write(connection, some, source="retry")
                for writer, some in ((self._replays, replayed), (self._writer, items))
                if some
            ]
        for tallies in told:
            self._retried_fit += sum(tally.outcomes.get("applied", 0) for tally in tallies.values())
            self.observed.retried_parked(tallies)

    async def _retrying(self, work: Any) -> None:
        """Do work until it succeeds; transient errors are waited out, others end the process."""
        for delay in Backoff().delays():
            try:
                if self._connection is None or self._connection.is_closed():
                    await self._reconnect()
                await work()
                return
            except (Transient, *FAULTS) as error:
                action, why = action_for(error)
                if isinstance(error, Transient):
                    action, why = Action.RETRY, str(error)
                if action is not Action.RETRY:
                    await self._name_misfits()
                    raise Fatal(f"PostgreSQL refuses the batch: {describe(error)}", remedy=why) from None
                if unusable(error) and self._connection is not None:
                    self._connection.terminate()
                _log.warning("batch not committed, trying again", reason=why, error=describe(error))
                self.observed.retry(error)
                await asyncio.sleep(delay)

    async def _name_misfits(self) -> None:
        """Raise an error that says what to run, where the tables no longer fit."""
        with suppress(ServiceUnavailable, *FAULTS):
            connection = await self._connect()
            try:
                await preconditions.require_still(connection, self._mapping)
            finally:
                connection.terminate()

    async def _reconnect(self) -> None:
        self._connection = None
        try:
            connection = await self._connect()
        except Exception as error:
            raise Transient(str(error)) from None
        self.continuity.require_not_older(await migration_log.offsets(connection))
        self._connection = connection

    async def _connect(self) -> asyncpg.Connection:
        dsn = self._settings.postgres_dsn.get_secret_value()
        return await connect(dsn, "apply", statement_timeout=ANSWER_WITHIN)

    def _connected(self) -> asyncpg.Connection:
        assert self._connection is not None
        return self._connection

    async def close(self) -> None:
        """Close the connections."""
        self._mongo.close()
        if self._connection is not None:
            self._connection.terminate()
