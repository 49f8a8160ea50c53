"""Where a tenant's documents are: the tables they are rebuilt from, the real collection they belong to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from topics import Collection
from worker.mapping import CollectionPlan, Plans, rebuilder
from worker.mapping import Mapping as MappingFile
from worker.mapping.ids import row_id
from worker.mapping.ignored import without_ignored
from worker.mapping.sources import named_tenant
from worker.mongo.client import Client, told_clearly
from worker.mongo.collections import fitting
from worker.postgres.documents import TargetDocuments


@dataclass(frozen=True, slots=True)
class Place:
    """A real collection of MongoDB, and how its documents are read from PostgreSQL."""

    logical: Collection
    real: Collection
    number: int
    plan: CollectionPlan
    documents: TargetDocuments


class Places:
    """The places of a whole mapping; ``numbers`` of the collections in the ledger's keys, by namespace."""

    def __init__(self, client: Client, mapping: MappingFile, numbers: Mapping[str, int]) -> None:
        self._client = client
        self._mapping = mapping
        self._plans = Plans(mapping)
        self._logical = {number: Collection.parse(namespace) for namespace, number in numbers.items()}
        self._numbers = numbers
        self._known: dict[tuple[int, UUID | None], Place | None] = {}

    def namespace(self, number: int) -> str:
        """Return the logical namespace of a collection; empty where the mapping no longer has it."""
        return str(self._logical.get(number, ""))

    async def find(self, number: int, tenant: UUID) -> Place | None:
        """Return the place of a tenant's documents of a collection; None where MongoDB has none, or two.

        `Transient` or `ServiceUnavailable` where MongoDB has to be asked and does not answer.
        """
        logical = self._logical.get(number)
        if logical is None:
            return None
        exact = self._mapping.sources().exact(logical)
        key = (number, None if exact else tenant)
        if self._known.get(key) is None:
            with told_clearly():
                real = await fitting(self._client, self._mapping.sources(), logical)
            fit = [one for one in real if exact or self._named(one) == tenant]
            self._known[key] = self._place(number, logical, fit[0]) if len(fit) == 1 else None
        return self._known[key]

    def _named(self, real: Collection) -> UUID | None:
        source = self._mapping.sources().find(str(real))
        return row_id(named_tenant(source.tenant)) if source and source.tenant is not None else None

    def _place(self, number: int, logical: Collection, real: Collection) -> Place | None:
        planned, source = self._plans.find(str(real)), self._mapping.sources().find(str(real))
        if planned is None or source is None:
            return None
        documents = TargetDocuments(
            planned.plan.tables, rebuilder(self._mapping, planned.name, source.tenant)
        )
        return Place(logical, real, number, planned.plan, documents)


def visible(
    mapping: MappingFile, plans: Plans
) -> Callable[[str], Callable[[dict[str, Any]], dict[str, Any]]]:
    """Return what returns, for a real namespace, what leaves out of its documents all that is ignored."""

    def of(namespace: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
        planned = plans.find(namespace)
        if planned is None:
            return lambda document: document
        one = mapping.collections[planned.name]
        return lambda document: without_ignored(one, document)

    return of
