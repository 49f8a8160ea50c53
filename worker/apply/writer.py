"""One batch, one transaction: ledger, rows, child rows, dead letters, counts and offsets together."""

from __future__ import annotations

import os
import socket
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import IntEnum
from uuid import UUID

import asyncpg

from topics import Operation
from worker import failpoints, metrics
from worker.apply import letters, moves
from worker.apply.batch import (
    Item,
    Outcome,
    SeveralDocuments,
    collides,
    fold,
    judge,
    judge_unmapped,
    late_echo,
    overtaken,
    parent_key,
    rounds,
    tally,
    tenants_of,
)
from worker.apply.expired import Expiry, Unlearned
from worker.clock import SYSTEM_CLOCK
from worker.errors import Fatal, Transient
from worker.postgres import ledger, migration_log, outbox
from worker.postgres import moves as moving
from worker.postgres.batch_sessions import BatchSessions, declare
from worker.postgres.connect import Connection
from worker.postgres.constraints import Constraints
from worker.postgres.faults import Action, action_for, describe, kind_for, refusal, retry_reason
from worker.postgres.ledger import Entry, Key, LedgerRow, Phase
from worker.postgres.migration_log import Partition, PartitionTally
from worker.postgres.target import TargetTable

WORKER = f"{socket.gethostname()}:{os.getpid()}"

_DEPTH = 20  # times that what cannot fit is taken out of a set, before it is halved


class Care(IntEnum):
    """How a transaction is tried."""

    PLAIN = 0  # all at once
    TOGETHER = 1  # all at once, constraints checked at the end: rows may fit only together
    APART = 2  # with savepoints, each document's events one after the other; what is refused is set aside


class _Refused(Exception):
    """Rolls back a savepoint: some events cannot be among those that fit."""


class BatchWriter:
    """Writes batches over one connection. Settings are local to each transaction (docs/protocol.md A10)."""

    def __init__(
        self,
        tables: Sequence[TargetTable],
        constraints: Constraints,
        *,
        heirs: Mapping[int, Sequence[str]],
        replica: bool,
        mapping_changes: int,
        expiry: Expiry,
    ) -> None:
        self._tables = {table.name: table for table in tables}
        self._constraints = constraints
        self._sessions = BatchSessions(replica=replica)
        self._mapping_changes = mapping_changes
        self._expiry = expiry
        self._heirs = heirs  # collections whose documents have the tenant of this one's

    async def write(
        self, connection: Connection, items: Sequence[Item], *, source: str = "topic"
    ) -> dict[Partition, PartitionTally]:
        """Apply items and COMMIT; return what became of them. Data errors are settled within; all others are
        raised, and nothing is written.

        The first try is the cheapest. When the data of some event is refused, the transaction is done again
        with more care. A ``retry`` of parked events begins with them together.
        """
        started = SYSTEM_CLOCK.now()
        care = Care.TOGETHER if source == "retry" else Care.PLAIN
        while True:
            for item in items:
                item.reset()
            try:
                return await self._try(connection, items, source, started, care)
            except SeveralDocuments:
                care = Care.APART
            except Unlearned as unlearned:
                await self._expiry.learn(unlearned.namespaces)
            except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                action = action_for(error)[0]
                if care is Care.APART or action not in (Action.PARK, Action.DEAD):
                    raise
                metrics.RETRIES.labels(retry_reason(error)).inc()
                waits = action is Action.PARK and care is Care.PLAIN
                care = Care.TOGETHER if waits else Care.APART

    async def _try(
        self,
        connection: Connection,
        items: Sequence[Item],
        source: str,
        started: datetime,
        care: Care,
    ) -> dict[Partition, PartitionTally]:
        standing = False
        async with self._sessions.begun(connection) as (batch_id, mapping_changes):
            if mapping_changes != self._mapping_changes:
                raise Fatal(
                    "the mapping of a collection was changed",
                    remedy="start apply again with the new mapping file",
                )
            if care is Care.TOGETHER:
                await connection.execute("SET CONSTRAINTS ALL DEFERRED")
            for events in rounds(items) if care is Care.APART else [fold(items)]:
                standing |= await self._apply(connection, batch_id, events, care)
            if care is Care.TOGETHER:
                await connection.execute("SET CONSTRAINTS ALL IMMEDIATE")  # checks them
            if unmapped := [item for item in items if item.unmapped]:
                await self._unmapped(connection, unmapped)
            if standing:
                await letters.close_older(connection, items)
            await letters.settle(connection, batch_id, items, retry=source == "retry")
            if arrivals := moves.barriers(items):
                await moving.arrived(connection, arrivals)
            tallies = await self._log(connection, batch_id, items, source, started)
            failpoints.reach(failpoints.APPLY_BEFORE_COMMIT)
        return tallies

    async def _apply(self, connection: Connection, batch_id: int, events: list[Item], care: Care) -> bool:
        """Apply one event of each document; return whether any dead letter stands."""
        if not events:
            return False
        known = await ledger.read(connection, [item.key for item in events if item.key])
        for item in events:
            before = known.get(_key(item))
            if collides(item, before):
                item.fail(Outcome.DEAD, "collision", "another document of the collection has the same row id")
            elif overtaken(item, before) and not late_echo(item, before):
                item.outcome = Outcome.SUPERSEDED
        await self._parents(connection, [item for item in events if item.outcome is None])
        events = [item for item in events if item.outcome is None]
        tenants = {t for item in events for t in tenants_of(item, known.get(_key(item)))}
        phases = await ledger.share_phases(connection, tenants)
        standing = await declare(connection, tenants)
        winners: list[Item] = []
        for item in events:
            judge(item, known.get(_key(item)), phases)
            if item.outcome is Outcome.APPLIED:
                winners.append(item)
        if echoes := [item for item in events if item.outcome is Outcome.ECHO]:
            await self._echoes(connection, batch_id, echoes, known, phases)
        await self._expiry.judge(connection, events)
        if documents := moves.to_restore(events, known, phases):
            await outbox.note(connection, documents)
        if winners:
            write = self._fitting if care is Care.APART else self._write
            await write(connection, batch_id, winners, known)
            await self._follow(connection, winners, known)
            if documents := moves.draining(winners, known, phases):
                await moving.note_draining(connection, documents)
        return standing

    async def _unmapped(self, connection: Connection, events: Sequence[Item]) -> None:
        """Judge events that have no rows, behind all others: they may be rogue too (docs/protocol.md A5)."""
        known = await ledger.read(connection, [_key(item) for item in events])
        events = [item for item in events if not overtaken(item, known.get(_key(item)))]
        tenants = {t for item in events for t in tenants_of(item, known.get(_key(item)))}
        phases = await ledger.share_phases(connection, tenants)
        for item in events:
            judge_unmapped(item, known.get(_key(item)), phases)
        if documents := moves.to_restore(events, known, phases):
            await outbox.note(connection, documents)

    async def _fitting(
        self, connection: Connection, batch_id: int, winners: list[Item], known: dict[Key, LedgerRow]
    ) -> None:
        """Write those that fit beside each other, and park the others.

        What cannot fit whatever else is written is found by constraint, and taken out; what remains may be
        rows that fit only together. Where that does not find it, the events are halved.
        """
        left = winners
        for _ in range(_DEPTH):
            try:
                async with connection.transaction():
                    await connection.execute("SET CONSTRAINTS ALL DEFERRED")
                    await self._write(connection, batch_id, left, known)
                    if await self._park_refused(connection, left):
                        raise _Refused
                    await connection.execute("SET CONSTRAINTS ALL IMMEDIATE")  # checks them
                return
            except _Refused:
                left = [item for item in left if item.outcome is Outcome.APPLIED]
                if not left:
                    return
            except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                if action_for(error)[0] not in (Action.PARK, Action.DEAD):
                    raise
                break
        await self._halve(connection, batch_id, left, known)

    async def _park_refused(self, connection: Connection, items: list[Item]) -> bool:
        """Park the events that cannot fit, given the rows of all others; return whether there are any."""
        by_table: dict[str, dict[UUID, Item]] = defaultdict(dict)
        for item in items:
            assert item.mapped is not None
            for table in item.mapped.plan.tables:
                by_table[table.table][_key(item)[1]] = item
        refused = await self._constraints.refused(connection, {t: [*ids] for t, ids in by_table.items()})
        for one in refused:
            item = by_table[one.table][one.row_id]
            item.fail(Outcome.PARKED, one.kind, refusal(one.kind, one.constraint, one.table))
        return bool(refused)

    async def _parents(self, connection: Connection, events: list[Item]) -> None:
        """Give documents whose tenant is their parent's that tenant; park them where it is not known yet."""
        waiting = [(item, key) for item in events if (key := parent_key(item)) is not None]
        if not waiting:
            return
        tenants = await ledger.tenants(connection, {key for _, key in waiting})
        tenants |= {_key(i): i.rows.tenant_id for i in events if i.rows and i.rows.tenant_id}
        for item, key in waiting:
            assert item.mapped is not None and item.rows is not None and item.rows.parent is not None
            tenant = tenants.get(key)
            if tenant is None:
                told = (
                    f"its tenant is that of a document of {item.rows.parent.collection} that is not there yet"
                )
                item.fail(Outcome.PARKED, "parent", told)
            else:
                item.rows = item.mapped.plan.of_tenant(item.rows, tenant)

    async def _follow(self, connection: Connection, winners: list[Item], known: dict[Key, LedgerRow]) -> None:
        """Where a document moved to another tenant, let those that have their tenant from it be copied again.

        In one transaction with the move: the copy begins after it, so whatever took the old tenant is mended.
        """
        moved: set[int] = set()
        for item in winners:
            before = known.get(_key(item))
            old = before.tenant_id if before else None
            new = item.rows.tenant_id if item.rows else None
            if item.outcome is Outcome.APPLIED and None not in (old, new) and old != new:
                moved.add(_key(item)[0])
        if heirs := sorted({heir for number in moved for heir in self._heirs.get(number, ())}):
            await migration_log.invalidate_copies(connection, heirs)

    async def _halve(
        self, connection: Connection, batch_id: int, winners: list[Item], known: dict[Key, LedgerRow]
    ) -> None:
        try:
            async with connection.transaction():
                await connection.execute("SET CONSTRAINTS ALL DEFERRED")
                await self._write(connection, batch_id, winners, known)
                await connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
        except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            action, why = action_for(error)
            if action not in (Action.PARK, Action.DEAD):
                raise
            if len(winners) > 1:
                middle = len(winners) // 2
                await self._halve(connection, batch_id, winners[:middle], known)
                await self._halve(connection, batch_id, winners[middle:], known)
                return
            outcome = Outcome.PARKED if action is Action.PARK else Outcome.DEAD
            winners[0].fail(outcome, kind_for(error), f"{why}: {describe(error)}")

    async def _echoes(
        self,
        connection: Connection,
        batch_id: int,
        echoes: list[Item],
        known: dict[Key, LedgerRow],
        phases: Mapping[UUID, Phase],
    ) -> None:
        """Write echoes into the ledger, and never their rows (docs/protocol.md A6).

        Where a delete came first, whose tenant nobody knew, its row could not be seen: now it goes.
        """
        late = [item for item in echoes if late_echo(item, known.get(_key(item)))]
        await self._ledger(connection, batch_id, [item for item in echoes if item not in late], known)
        if late:
            entries = [moves.told_tenant(item, known[_key(item)]) for item in late]
            await ledger.update(connection, batch_id, entries)
        gone: dict[str, list[UUID]] = defaultdict(list)
        for item in late:
            assert item.mapped is not None
            if moves.at_home(item, phases):
                for table in item.mapped.plan.tables:
                    gone[table.table].append(_key(item)[1])
        for name, table in reversed(self._tables.items()):
            if name in gone:
                await table.delete(connection, gone[name])

    async def _write(
        self, connection: Connection, batch_id: int, winners: list[Item], known: dict[Key, LedgerRow]
    ) -> None:
        await self._ledger(connection, batch_id, winners, known)
        await self._rows(connection, winners, known)

    async def _ledger(
        self, connection: Connection, batch_id: int, winners: list[Item], known: dict[Key, LedgerRow]
    ) -> None:
        new = [_entry(item, None) for item in winners if _key(item) not in known]
        old = [_entry(item, known[_key(item)]) for item in winners if _key(item) in known]
        # Another worker may have added a document between our read and now (a rebalance); its tenant is not
        # among those declared, so begin again and read it.
        if new and not await ledger.insert(connection, batch_id, new):
            raise Transient("another worker applied one of these documents first")
        if old:
            await ledger.update(connection, batch_id, old)

    async def _rows(self, connection: Connection, winners: list[Item], known: dict[Key, LedgerRow]) -> None:
        gone: dict[str, list[UUID]] = defaultdict(list)
        rows: dict[str, list[dict[str, object]]] = defaultdict(list)
        changed: dict[str, list[UUID]] = defaultdict(list)
        for item in winners:
            assert item.mapped is not None
            plan, key = item.mapped.plan, _key(item)
            seen = known.get(key)
            if item.rows is None:
                if item.repairs or (seen is not None and seen.state != "deleted"):
                    for table in plan.tables:
                        gone[table.table].append(key[1])
                continue
            rows[plan.table.table].append(item.rows.row)
            for table, children in zip(plan.children, item.rows.children, strict=True):
                rows[table.table].extend(children)
                if item.repairs or seen is not None:  # a new document has no child rows to remove
                    changed[table.table].append(key[1])
        # Foreign keys: what lies below goes first and comes last.
        for name, table in reversed(self._tables.items()):
            if name in gone:
                await table.delete(connection, gone[name])
            if name in changed:
                await table.truncate_arrays(connection, changed[name], rows.get(name, ()))
        for name, table in self._tables.items():
            if name in rows:
                await table.upsert(connection, rows[name])

    async def _log(
        self, connection: Connection, batch_id: int, items: Sequence[Item], source: str, started: datetime
    ) -> dict[Partition, PartitionTally]:
        partitions = tally(items)
        if any(item.outcome is not Outcome.CONTROL for item in items):
            await migration_log.save_batch(
                connection,
                batch_id,
                source=source,
                worker=WORKER,
                started_at=started,
                partitions=partitions,  # pyright: ignore
            )
        if source != "retry":
            await migration_log.save_progress(connection, partitions)
        return partitions


def _key(item: Item) -> Key:
    assert item.key is not None
    return item.key


def _entry(item: Item, known: LedgerRow | None) -> Entry:
    if item.rows is None:  # a tombstone keeps the tenant that the document had (A1)
        assert item.event is not None and item.event.operation is Operation.DELETE
        assert item.mapped is not None
        tenant = known.tenant_id if known else item.mapped.plan.named
        return Entry(_key(item), tenant, item.version, "deleted", item.document_id)
    return Entry(_key(item), item.rows.tenant_id, item.version, "live", item.rows.document_id)
