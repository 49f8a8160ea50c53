"""Mends what does not fit: sends each document, or its absence, as MongoDB has it (C2, C3). Writes no row.

Only what two looks of the reconciler have proved is sent, so no row that is right is touched. Rows may stand
where the ledger does not know them, or under another tenant: the event names the tenants, and apply lets
row-level security show it their rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import UUID

from topics import Collection, document_key, key_to_id
from worker import failpoints
from worker.errors import UsageError
from worker.mapping import Plans
from worker.mapping.ids import HASHED
from worker.mapping.values import back_to_id
from worker.postgres import audit, mismatches, reconciliation
from worker.postgres.connect import Connection
from worker.postgres.mismatches import Key, MismatchRow, Which
from worker.postgres.row_keys import tenants_of_rows
from worker.repair.send import Sender

LEAST_LIMIT = 1000
"""Repairs that are always allowed; above it, as many as one in a hundred documents."""
_AT_ONCE = 1000
REPAIR, REPAIRED = "repair", "repaired"


class Outlook(NamedTuple):
    """What there is to repair, what was repaired by itself within a day, and how much may be."""

    mismatches: int
    before: int
    limit: int

    @property
    def too_many(self) -> bool:
        """Whether so much is wrong that its cause should be known first."""
        return self.mismatches > self.allowed

    @property
    def allowed(self) -> int:
        """How many repairs are left of the limit."""
        return max(0, self.limit - self.before)


@dataclass(slots=True)
class Sent:
    """What was sent. ``lost``: documents whose id or collection cannot be told, of which nothing was sent."""

    documents: int = 0
    absences: int = 0
    lost: int = 0
    keys: list[Key] = field(default_factory=list[Key])


@dataclass(frozen=True, slots=True)
class Repair:
    """Sends mismatches anew. Used by one task at a time.

    ``store`` keeps what is found, as the sync role; ``reader`` sees the rows of every tenant.
    """

    sender: Sender
    store: Connection
    reader: Connection
    plans: Plans
    limit: int | None = None
    """Most repairs; None: 1,000, or one in a hundred documents where that is more."""

    async def outlook(self, which: Which, *, by_itself: bool) -> Outlook:
        """Return what there is to repair, and whether that is too much."""
        limit = self.limit
        if limit is None:
            limit = max(LEAST_LIMIT, await mismatches.documents(self.store) // 100)
        before = await audit.count(self.store, REPAIR, of={"by_itself": True}) if by_itself else 0
        return Outlook(await mismatches.count_repairable(self.store, which), before, limit)

    async def run(
        self, which: Which, most: int, *, by_itself: bool, told: Callable[[Sent], None] = lambda _: None
    ) -> Sent:
        """Send what there is to repair now, ``most`` of it; return when Kafka has it.

        Each is in the audit log before it is sent. May be done again at any time. `Sender.send` says what is
        raised.
        """
        sent = Sent()
        keys = await mismatches.repairable(self.store, which, most)
        for start in range(0, len(keys), _AT_ONCE):
            await self._send(await mismatches.of(self.store, keys[start : start + _AT_ONCE]), sent, by_itself)
            told(sent)
        return sent

    async def _send(self, page: Sequence[MismatchRow], sent: Sent, by_itself: bool) -> None:
        wanted: dict[Collection, dict[bytes, Any]] = defaultdict(dict)
        tenants: dict[Collection, dict[bytes, tuple[UUID, ...]]] = defaultdict(dict)
        found: list[MismatchRow] = []
        for row, id_, seen in await self._named(page):
            collection, key = Collection.parse(row["collection"]), document_key(id_)
            wanted[collection][key], tenants[collection][key] = id_, tuple(sorted(seen))
            found.append(row)
        sent.lost += len(page) - len(found)
        async with self.store.transaction():
            # Those of which nothing can be sent too: they are tried no oftener.
            await mismatches.note_repair(self.store, [(one["namespace"], one["row_id"]) for one in page])
            told = [
                evidence(
                    one["collection"],
                    one["row_id"],
                    one["tenant_id"],
                    one["kind"],
                    one["mongo_digest"],
                    one["postgres_digest"],
                )
                for one in found
            ]
            await audit.notes(self.store, REPAIR, [one | {"by_itself": by_itself} for one in told])
        failpoints.reach(failpoints.REPAIR_BEFORE_SEND)
        report = await self.sender.send({at: some.values() for at, some in wanted.items()}, tenants)
        sent.documents += report.documents
        sent.absences += report.absences
        sent.keys += [(one["namespace"], one["row_id"]) for one in found]

    async def _named(self, page: Sequence[MismatchRow]) -> list[tuple[MismatchRow, Any, set[UUID]]]:
        """Return rows with the document's id and the tenants of its rows, where they can be told.

        An event with a guessed id, or of another tenant's collection, would be about another document.
        """
        by_collection: dict[str, list[MismatchRow]] = defaultdict(list)
        for row in page:
            by_collection[row["collection"]].append(row)
        found: list[tuple[MismatchRow, Any, set[UUID]]] = []
        for namespace, rows in by_collection.items():
            if (planned := self.plans.find(namespace)) is None:
                continue
            plan, row_ids = planned.plan, [row["row_id"] for row in rows]
            seen = await tenants_of_rows(self.reader, plan.tables, row_ids)
            known = await reconciliation.document_ids(self.reader, str(planned.logical), row_ids)
            for row in rows:
                row_id, tenants = row["row_id"], seen.get(row["row_id"], set[UUID]())
                text = row["document_id"] or known.get(row_id)
                guessed = text is None and row_id.version == HASHED and row_id not in known
                if guessed and row["mongo_digest"] is None:
                    continue  # a hash of which nobody knows what it was made of
                id_ = back_to_id(row_id) if text is None else key_to_id(text)
                elsewhere = plan.named is not None and tenants and plan.named not in tenants
                if plan.row_id(id_) == row_id and not elsewhere:
                    found.append((row, id_, tenants))
        return found


def evidence(
    collection: str,
    row_id: UUID,
    tenant: UUID | None,
    kind: str | None,
    mongo: int | None,
    postgres: int | None,
) -> dict[str, Any]:
    """Return what the audit log tells before a repair and after it: both sides' digests, never a value."""
    return {
        "collection": collection,
        "row_id": str(row_id),
        "tenant": tenant and str(tenant),
        "kind": kind,
        "mongo": None if mongo is None else f"{mongo:032x}",
        "postgres": None if postgres is None else f"{postgres:032x}",
    }


def refuse(outlook: Outlook) -> UsageError:
    """Return the error of a repair that would be too large."""
    return UsageError(
        f"{outlook.mismatches:,} documents to repair, and the limit is {outlook.limit:,}; nothing was sent",
        remedy="find out what made them first (`crossfade mismatches list`); then `--limit N`, or copy the "
        "collection again by `crossfade copy start --collection ...`",
    )
