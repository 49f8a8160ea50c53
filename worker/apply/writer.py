"""One batch, one transaction: ledger, rows, child rows, dead letters, counts and offsets together."""

from __future__ import annotations

import os
import socket
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import asyncpg

from topics import Operation, id_to_bson
from worker import failpoints, metrics
from worker.apply.batch import Item, Outcome, decide, fold, parent_key, rounds, superseded, tally, tenants_of
from worker.clock import SYSTEM_CLOCK
from worker.errors import Fatal, Transient
from worker.postgres import ledger, migration_log
from worker.postgres.connect import Connection
from worker.postgres.faults import Action, action_for, describe, retry_reason
from worker.postgres.ledger import Entry, Key, LedgerRow
from worker.postgres.mapping_versions import SHARE_CHANGES
from worker.postgres.migration_log import Partition, PartitionTally
from worker.postgres.target import TargetTable

WORKER = f"{socket.gethostname()}:{os.getpid()}"

# Generic plans: the arrays' sizes vary, the right plan (look up each key by index) does not.
_SETTINGS = f"""
SELECT nextval('crossfade.batch_id_seq'), {SHARE_CHANGES},
    set_config('plan_cache_mode', 'force_generic_plan', true),
    set_config('lock_timeout', '10s', true),
    set_config('statement_timeout', '60s', true)
"""
_REPLICA = ", set_config('session_replication_role', 'replica', true)"
_DECLARE = "SELECT set_config('crossfade.tenants', $1, true)"
_HEALED = {Outcome.PARKED: "parked", Outcome.DEAD: "dead"}


class BatchWriter:
    """Writes batches over one connection. Every setting is local to its transaction (PROTOCOL.md A10)."""

    def __init__(self, tables: Sequence[TargetTable], *, replica: bool, mapping_changes: int) -> None:
        self._tables = {table.name: table for table in tables}
        self._replica = replica
        self._mapping_changes = mapping_changes

    async def write(
        self, connection: Connection, items: Sequence[Item], *, source: str = "topic"
    ) -> dict[Partition, PartitionTally]:
        """Apply items and COMMIT; return what became of them. Data errors are settled within; all others are
        raised, and nothing is written.

        The first try has no savepoints. When the data of some event is refused, the transaction is done
        again with savepoints, each document's events one after the other, halving the events until the
        refused ones stand alone.
        """
        started = SYSTEM_CLOCK.now()
        for careful in (False, True):
            for item in items:
                item.reset()
            try:
                async with connection.transaction():
                    batch_id = await self._settings(connection)
                    for events in rounds(items) if careful else [fold(items)]:
                        await self._apply(connection, batch_id, events, careful)
                    tallies = await self._log(connection, batch_id, items, source, started)
                    failpoints.reach(failpoints.APPLY_BEFORE_COMMIT)
                return tallies
            except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                if careful or action_for(error)[0] not in (Action.PARK, Action.DEAD):
                    raise
                metrics.RETRIES.labels(retry_reason(error)).inc()
        raise AssertionError

    async def _settings(self, connection: Connection) -> int:
        query = _SETTINGS + _REPLICA if self._replica else _SETTINGS
        row = await connection.fetchrow(query)
        assert row is not None
        if row[1] != self._mapping_changes:
            raise Fatal(
                "the mapping of a collection was changed",
                remedy="start apply again with the new mapping file",
            )
        return row[0]

    async def _apply(self, connection: Connection, batch_id: int, events: list[Item], careful: bool) -> None:
        if not events:
            return
        known = await ledger.read(connection, [item.key for item in events if item.key])
        for item in events:
            if superseded(item, known.get(_key(item))):
                item.outcome = Outcome.SUPERSEDED
        await self._parents(connection, [item for item in events if item.outcome is None])
        events = [item for item in events if item.outcome is None]
        tenants = {t for item in events for t in tenants_of(item, known.get(_key(item)))}
        phases = await ledger.share_phases(connection, tenants)
        await connection.execute(_DECLARE, ",".join(map(str, tenants)))
        winners: list[Item] = []
        for item in events:
            item.outcome = decide(item, known.get(_key(item)), phases)
            if item.outcome is Outcome.APPLIED:
                winners.append(item)
        if winners:
            await (self._halve if careful else self._write)(connection, batch_id, winners, known)

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

    async def _halve(
        self, connection: Connection, batch_id: int, winners: list[Item], known: dict[Key, LedgerRow]
    ) -> None:
        try:
            async with connection.transaction():
                await self._write(connection, batch_id, winners, known)
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
            winners[0].fail(outcome, "data", f"{why}: {describe(error)}")

    async def _write(
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
        await self._rows(connection, winners, known)

    async def _rows(self, connection: Connection, winners: list[Item], known: dict[Key, LedgerRow]) -> None:
        gone: dict[str, list[UUID]] = defaultdict(list)
        rows: dict[str, list[dict[str, object]]] = defaultdict(list)
        changed: dict[str, list[UUID]] = defaultdict(list)
        for item in winners:
            assert item.mapped is not None
            plan, key = item.mapped.plan, _key(item)
            seen = known.get(key)
            if item.rows is None:
                if seen is not None and seen.state != "deleted":
                    for table in (plan.table, *plan.children):
                        gone[table.table].append(key[1])
                continue
            rows[plan.table.table].append(item.rows.row)
            for table, children in zip(plan.children, item.rows.children, strict=True):
                rows[table.table].extend(children)
                if seen is not None:  # a new document has no child rows to remove
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
        if source == "retry":
            verdicts = [
                {"id": i.parked_id, "state": _HEALED.get(i.outcome, "healed"), "reason": i.reason or None}  # pyright: ignore
                for i in items
            ]
            await migration_log.settle_parked(connection, verdicts)
            return partitions
        letters = [_letter(item) for item in items if item.outcome in _HEALED]
        if letters:
            await migration_log.save_dead_letters(connection, batch_id, letters)
        await migration_log.save_progress(connection, partitions)
        return partitions


def _key(item: Item) -> Key:
    assert item.key is not None
    return item.key


def _entry(item: Item, known: LedgerRow | None) -> Entry:
    if item.rows is None:  # a tombstone keeps the tenant that the document had (A1)
        assert item.event is not None and item.event.operation is Operation.DELETE
        return Entry(_key(item), known.tenant_id if known else None, item.version, "deleted", None)
    return Entry(_key(item), item.rows.tenant_id, item.version, "live", item.rows.document_id)


def _letter(item: Item) -> migration_log.DeadLetter:
    event = item.event
    return migration_log.DeadLetter(
        state="parked" if item.outcome is Outcome.PARKED else "dead",
        kind=item.kind,
        reason=item.reason,
        namespace=event.namespace if event else "",
        document_id=id_to_bson(event.id) if event else None,
        row_id=item.key[1] if item.key else None,
        tenant_id=item.rows.tenant_id if item.rows else None,
        version_time=event.version.time if event else None,
        version_order=event.version.order if event else None,
        topic=item.topic,
        partition=item.partition,
        offset=item.offset,
        event=item.value,
    )
