"""Rogue events that a person wants in PostgreSQL: written there as the application would have, when told to.

The way back has undone such an event in MongoDB. Written as the application writes, with foreign keys, the
application's triggers, and capture, it comes to MongoDB by the way back again. So it is done only while its
tenants write in PostgreSQL; and the ledger, which knows newer events by then, is not asked, nor changed: the
echo of the way back will (docs/protocol.md A6).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from uuid import UUID

from topics import Operation
from worker.apply.batch import ROGUE, Item, Outcome, collides, tenants_of
from worker.apply.moves import AWAY
from worker.apply.writer import BatchWriter, Care
from worker.clock import SYSTEM_CLOCK
from worker.postgres import ledger, outbox
from worker.postgres.connect import Connection
from worker.postgres.faults import FAULTS, Action, action_for, describe
from worker.postgres.ledger import Key, LedgerRow, Phase
from worker.postgres.migration_log import Partition, PartitionTally

_CAPTURED = "SELECT set_config('crossfade.replay', $1, true)"


class Replays(BatchWriter):
    """Writes rogue events, the oldest of each document first; what cannot be written stays a dead letter."""

    async def write(
        self, connection: Connection, items: Sequence[Item], *, source: str = "retry"
    ) -> dict[Partition, PartitionTally]:
        """Write events and COMMIT; return what became of them. All but data errors are raised.

        The session must be no replica, nor have been one in this transaction.
        """
        for item in items:
            if item.reference is not None:
                told = "it cannot be replayed: its document was too large for Kafka, and is not kept"
                item.fail(Outcome.DEAD, ROGUE, told)
        tallies = await self._try(connection, items, source, SYSTEM_CLOCK.now(), Care.APART)
        await connection.execute(_CAPTURED, "")
        return tallies

    async def _apply(self, connection: Connection, batch_id: int, events: list[Item], care: Care) -> bool:
        await connection.execute(_CAPTURED, "on")
        known = await ledger.read(connection, [item.key for item in events if item.key])
        await self._parents(connection, events)
        for item in events:
            if item.outcome is not None:  # its parent is not there
                item.fail(Outcome.DEAD, ROGUE, f"it cannot be replayed: {item.reason}")
        events = [item for item in events if item.outcome is None]
        tenants = {tenant for item in events for tenant in tenants_of(item, _known(item, known))}
        phases = await ledger.share_phases(connection, tenants)
        await outbox.declare(connection, tenants)
        for item in sorted(events, key=self._place):
            if refused := self._refused(item, _known(item, known), phases):
                item.fail(refused[0], ROGUE, refused[1])
            else:
                await self._replay(connection, item, known)
        return False  # a replay makes no other letter good

    async def _unmapped(self, connection: Connection, events: Sequence[Item]) -> None:
        for item in events:
            item.fail(Outcome.DEAD, ROGUE, f"it cannot be replayed: {item.reason}")

    def _place(self, item: Item) -> int:
        """Return where an event comes among others: what lies below goes first and comes last."""
        assert item.mapped is not None and item.event is not None
        place = list(self._tables).index(item.mapped.plan.table.table)
        return -place if item.event.operation is Operation.DELETE else place

    def _refused(
        self, item: Item, known: LedgerRow | None, phases: Mapping[UUID, Phase]
    ) -> tuple[Outcome, str] | None:
        """Return why an event is not written, and whether it waits; None: it is."""
        involved = tenants_of(item, known)
        if collides(item, known):
            return Outcome.DEAD, "it cannot be replayed: another document has the same row id"
        if any(phases[tenant].phase == "rolling_back" for tenant in involved):
            return Outcome.PARKED, "to be replayed, when it is decided whether its tenant is rolled back"
        if home := [tenant for tenant in involved if phases[tenant].phase not in AWAY]:
            return Outcome.DEAD, f"it cannot be replayed: tenant {home[0]} does not write in PostgreSQL"
        old, new = known and known.tenant_id, item.rows and item.rows.tenant_id
        if None not in (old, new) and old != new and item.key and self._heirs.get(item.key[0]):
            return Outcome.DEAD, "it cannot be replayed: others have their tenant from what it moves"
        return None if involved else (Outcome.DEAD, "it cannot be replayed: nobody knows its tenant")

    async def _replay(self, connection: Connection, item: Item, known: dict[Key, LedgerRow]) -> None:
        try:
            async with connection.transaction():
                await self._rows(connection, [item], known)
                await connection.execute("SET CONSTRAINTS ALL IMMEDIATE")  # checks them
        except FAULTS as error:
            action, why = action_for(error)
            if action not in (Action.PARK, Action.DEAD):
                raise
            item.fail(Outcome.DEAD, ROGUE, f"it cannot be replayed: {why}: {describe(error)}")
        else:
            item.outcome = Outcome.APPLIED


def _known(item: Item, known: Mapping[Key, LedgerRow]) -> LedgerRow | None:
    return known.get(item.key) if item.key else None
