"""How many documents MongoDB has of each mapped collection."""

from __future__ import annotations

from typing import Any, NamedTuple
from uuid import UUID

from pymongo.errors import ExecutionTimeout, PyMongoError
from pymongo.read_preferences import ReadPreference

from topics import Collection
from worker.errors import ServiceUnavailable
from worker.mapping import Mapping, Plans, row_id
from worker.mapping.ids import uuid_to_objectid
from worker.mapping.model import Tenant
from worker.mapping.sources import named_tenant
from worker.mongo.client import Client, describe
from worker.mongo.collections import fitting

_NOT_TOLD = "the collection does not tell the tenant"
_FROM_TEXT = "the tenant's id in MongoDB is neither a UUID nor an ObjectId"
_TEXT = 5  # the version of a UUID made from another id


class Documents(NamedTuple):
    """A collection's documents: counted one by one, or MongoDB's own estimate; or None, and why."""

    number: int | None
    exact: bool
    why: str = ""


async def count_documents(
    client: Client, mapping: Mapping, *, tenant: UUID | None, seconds: float
) -> dict[str, Documents]:
    """Return the documents of each collection of the mapping.

    Of all tenants: MongoDB's estimate, which costs nothing and may be off after a crash or on shards. Of one:
    counted, ``seconds`` at most for each collection. A collection without a tenant is left out then.
    """
    counts: dict[str, Documents] = {}
    try:
        for name, one in mapping.collections.items():
            logical = mapping.logical(name)
            if tenant is None:
                real = await fitting(client, mapping.sources(), logical)
                total = sum([await client[c.database][c.name].estimated_document_count() for c in real])
                counts[name] = Documents(total, False)
            elif one.tenant is not None:
                counts[name] = await _of_tenant(client, mapping, logical, one.tenant, tenant, seconds)
    except PyMongoError as error:
        raise ServiceUnavailable(
            f"MongoDB does not count its documents ({describe(error)})",
            remedy="see that the user of CROSSFADE_MONGO_URI may read them",
        ) from None
    return counts


async def _of_tenant(
    client: Client, mapping: Mapping, logical: Collection, told: Tenant, tenant: UUID, seconds: float
) -> Documents:
    """Count one tenant's documents, where a filter can say whose they are."""
    real = await fitting(client, mapping.sources(), logical)
    filter_: dict[str, Any] = {}
    if told.parent is not None:
        return Documents(None, True, _NOT_TOLD)
    if told.path is not None:
        if tenant.version == _TEXT:
            return Documents(None, True, _FROM_TEXT)
        same = uuid_to_objectid(tenant)
        filter_ = {told.path: tenant if same is None else {"$in": [tenant, same]}}
    elif told.constant is not None:
        value = told.constant
        of = row_id(named_tenant(value) if isinstance(value, str) else value)
        real = real if of == tenant else []
    else:
        plans = Plans(mapping)
        real = [one for one in real if (found := plans.find(str(one))) and found.plan.named == tenant]
    try:
        total = 0
        for one in real:
            collection = client[one.database].get_collection(
                one.name, read_preference=ReadPreference.SECONDARY_PREFERRED
            )
            total += await collection.count_documents(filter_, maxTimeMS=max(1, round(seconds * 1000)))
    except ExecutionTimeout:
        return Documents(None, True, f"counting took longer than {seconds:g} s")
    return Documents(total, True)
