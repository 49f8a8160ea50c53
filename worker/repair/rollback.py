"""Rolls a batch back: what it was the last to write is removed, in one transaction (docs/protocol.md A9)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

from worker import failpoints
from worker.errors import ConfigurationError, MappingError, UsageError
from worker.mapping import Mapping as MappingFile
from worker.mapping import Plans, hashes
from worker.postgres import audit, batches, ledger, mapping_versions, outbox
from worker.postgres.batches import Batch, Locked
from worker.postgres.connect import Connection
from worker.postgres.replication import cascades
from worker.postgres.target import TargetTable

_AT_ONCE = 10_000  # documents whose rows one statement deletes
_SETTINGS = f"""
SELECT {mapping_versions.SHARE_CHANGES},
    set_config('lock_timeout', '10s', true), set_config('statement_timeout', '10min', true)
"""
_REPLICA = ", set_config('session_replication_role', 'replica', true)"
_TOLD = 20  # tenants named in one message


class Outlook(NamedTuple):
    """What a rollback would do. Of ``overwritten`` documents newer batches have made the rows."""

    live: int
    deleted: int
    overwritten: int


class Undone(NamedTuple):
    """What a rollback has done: ``documents`` are held now, ``deleted`` of them had no rows."""

    documents: int
    deleted: int
    rows: int
    overwritten: int


async def find(connection: Connection, batch_id: int) -> Batch:
    """Return a batch; `ConfigurationError` where there is none of this number."""
    if (batch := await batches.one(connection, batch_id)) is None:
        raise ConfigurationError(f"there is no batch {batch_id}", remedy="`crossfade batches list`")
    return batch


async def outlook(connection: Connection, batch_id: int) -> Outlook:
    """Return what a rollback would do now; a `UsageError` says why it would be refused."""
    batch = await find(connection, batch_id)
    if batch.rolled_back_at is not None:
        raise _twice(batch_id)
    states = (await batches.last_wrote(connection, [batch_id]))[batch_id]
    found = Outlook(states.get("live", 0), states.get("deleted", 0), overwritten(batch, states))
    if not found.live + found.deleted:
        raise _empty(batch_id, found.overwritten)
    if away := await batches.away(connection, batch_id):
        raise _switched(batch_id, away)
    return found


def overwritten(batch: Batch, states: Mapping[str, int]) -> int:
    """Return how many of a batch's events newer batches have overwritten since."""
    return max(batch.outcomes["applied"] - sum(states.values()), 0)


@dataclass(frozen=True, slots=True)
class Rollback:
    """Rolls back, as the sync role, by the mapping that made the rows.

    ``replica``: whether it writes as apply does where that is a replica: then no foreign key and no trigger
    sees the rows go.
    """

    mapping: MappingFile
    replica: bool

    async def run(self, connection: Connection, batch_id: int, *, refetch: bool) -> Undone:
        """Remove the rows and child rows that a batch was the last to write, and hold their documents.

        One transaction, in apply's order of locks: the mapping, the ledger's rows, the tenants' phases (A3).
        A `UsageError` says why it is refused; then nothing has changed.
        """
        async with connection.transaction():
            await connection.execute(_SETTINGS + _REPLICA if self.replica else _SETTINGS)
            batch = await find(connection, batch_id)
            if not await batches.mark(connection, batch_id):
                raise _twice(batch_id)
            locked = await batches.lock(connection, batch_id)
            over = max(batch.outcomes["applied"] - len(locked), 0)
            if not locked:
                raise _empty(batch_id, over)
            await self._declare(connection, batch_id, {one.tenant_id for one in locked if one.tenant_id})
            rows = await self._delete(connection, locked)
            await batches.hold(connection, [one.key for one in locked])
            undone = Undone(len(locked), sum(one.deleted for one in locked), rows, over)
            subject = {"batch_id": batch_id, **undone._asdict(), "refetch": refetch}
            await audit.note(connection, "batches rollback", subject)
            failpoints.reach(failpoints.ROLLBACK_BEFORE_COMMIT)
        return undone

    async def _declare(self, connection: Connection, batch_id: int, tenants: Collection[UUID]) -> None:
        phases = await ledger.share_phases(connection, tenants)
        if away := {tenant: one.phase for tenant, one in phases.items() if one.phase != "mongo"}:
            raise _switched(batch_id, away)
        await outbox.declare(connection, tenants)

    async def _delete(self, connection: Connection, locked: list[Locked]) -> int:
        """Delete the documents' rows, what lies below others first; return how many there were."""
        tables = await self._tables(connection, {one.key[0] for one in locked})
        ids: dict[str, list[UUID]] = defaultdict(list)
        for one in locked:
            for name in tables[one.key[0]]:
                ids[name].append(one.key[1])
        if not self.replica and (found := await cascades(connection, self.mapping, ids)):
            raise UsageError(
                f"rows of other documents would go with these, by foreign keys of {', '.join(found)}; "
                "nothing was changed",
                remedy="let the sync role set session_replication_role (`crossfade check` says how)",
            )
        rows = 0
        for plan in reversed(Plans(self.mapping).tables()):
            table, own = TargetTable(plan), ids.get(plan.table, ())
            for start in range(0, len(own), _AT_ONCE):
                rows += await table.delete(connection, own[start : start + _AT_ONCE])
        return rows

    async def _tables(self, connection: Connection, numbers: Collection[int]) -> dict[int, list[str]]:
        """Return the tables of collections, by their numbers; `MappingError` where the file is not theirs."""
        known = await mapping_versions.known(connection)
        mapped, tables = hashes(self.mapping), dict[int, list[str]]()
        names = {str(self.mapping.logical(name)): one for name, one in self.mapping.collections.items()}
        for namespace, one in known.items():
            if one.number not in numbers:
                continue
            if mapped.get(namespace) != one.mapping_hash:
                raise MappingError(
                    f"the rows of {namespace} were not made by the mapping that the file has now; "
                    "nothing was changed",
                    remedy="put the mapping of the rows back, then try again",
                )
            tables[one.number] = [table for table, _ in names[namespace].tables()]
        return tables


def _twice(batch_id: int) -> UsageError:
    return UsageError(
        f"batch {batch_id} was rolled back before",
        remedy=f"`crossfade batches refetch {batch_id}` fetches what is still held",
    )


def _empty(batch_id: int, over: int) -> UsageError:
    return UsageError(
        f"batch {batch_id} is the last writer of no document: there is nothing to roll back",
        remedy=f"newer batches have overwritten what it wrote ({over:,})" if over else "it wrote none",
    )


def _switched(batch_id: int, away: Mapping[UUID, str]) -> UsageError:
    told = [f"{tenant} ({phase})" for tenant, phase in sorted(away.items())]
    more = f" and {len(told) - _TOLD:,} more" if len(told) > _TOLD else ""
    return UsageError(
        f"batch {batch_id} wrote rows of tenants that are not in phase mongo: {', '.join(told[:_TOLD])}{more}"
        "; nothing was changed",
        remedy="their rows are the application's: MongoDB's state would undo what it has written",
    )
