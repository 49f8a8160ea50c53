"""In which real collection a document of a logical one is, from its tenant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar
from uuid import UUID

from topics import Collection
from worker.mapping.ids import row_id
from worker.mapping.sources import Sources, named_tenant
from worker.mongo.client import Client
from worker.mongo.collections import fitting
from worker.postgres.checkpoints import Checkpoints


class _OfTenant(Protocol):
    @property
    def tenant_id(self) -> UUID | None: ...


D = TypeVar("D", bound=_OfTenant)


@dataclass(frozen=True, slots=True)
class RealCollections:
    """Finds them, also those that were dropped since: their documents are absent."""

    client: Client
    checkpoints: Checkpoints
    sources: Sources

    async def find(
        self, logical: Collection, documents: Sequence[D]
    ) -> tuple[dict[Collection, list[D]], list[D]]:
        """Return documents by real collection, and those of which it cannot be told.

        Where names hold the tenant, theirs tells it: unless no collection has its name, or two have.
        """
        if self.sources.exact(logical):
            return {logical: list(documents)}, []
        real: dict[UUID | None, Collection | None] = {}
        there = await fitting(self.client, self.sources, logical)
        gone = map(Collection.parse, await self.checkpoints.gone(str(logical)))
        for collection in {*there, *gone}:
            source = self.sources.find(str(collection))
            assert source is not None and source.tenant is not None
            tenant = row_id(named_tenant(source.tenant))
            # Two names for one tenant (a UUID in capitals): which one a document was in cannot be told.
            real[tenant] = None if tenant in real else collection
        found: dict[Collection, list[D]] = {}
        lost: list[D] = []
        for one in documents:
            if (collection := real.get(one.tenant_id)) is None:
                lost.append(one)
            else:
                found.setdefault(collection, []).append(one)
        return found, lost
