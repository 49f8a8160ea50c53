"""Collections whose documents have ObjectIds for ids."""

from __future__ import annotations

from worker.mapping import Mapping
from worker.mongo.client import Client, told_clearly
from worker.mongo.collections import fitting


async def with_objectids(client: Client, mapping: Mapping) -> list[str]:
    """Return the names, as in the mapping, of collections of tenants with some document of such an id.

    One look into the index of ids of each real collection. Errors as those of `told_clearly`.
    """
    found: list[str] = []
    with told_clearly():
        for name, one in mapping.collections.items():
            if one.tenant is None:
                continue
            for real in await fitting(client, mapping.sources(), mapping.logical(name)):
                some = {"_id": {"$type": "objectId"}}
                if await client[real.database][real.name].find_one(some, {"_id": 1}) is not None:
                    found.append(name)
                    break
    return found
