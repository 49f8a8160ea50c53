"""Which real collections there are for a mapping's names."""

from __future__ import annotations

import re

from topics import Collection
from worker.mapping.sources import Sources
from worker.mongo.client import Client

_FOLLOWED = {"type": "collection"}


async def existing(client: Client, sources: Sources) -> list[Collection]:
    """Return all collections of the databases that the mapping's database name fits, in order.

    No views and time series, which have no change stream. Both lists come from the primary, whatever the
    connection string prefers to read from.
    """
    database, _ = sources.names()
    databases = [database] if isinstance(database, str) else await _fitting(client, database)
    return [
        Collection(name, collection)
        for name in databases
        for collection in sorted(await client[name].list_collection_names(filter=_FOLLOWED))
    ]


async def fitting(client: Client, sources: Sources, logical: Collection) -> list[Collection]:
    """Return the real collections of a logical one, in order of database and name.

    A collection that is mapped by its very name is returned whether it is there or not.
    """
    if sources.exact(logical):
        return [logical]
    return [one for one in await existing(client, sources) if _is(sources, one, logical)]


async def _fitting(client: Client, database: re.Pattern[str]) -> list[str]:
    return sorted(name for name in await client.list_database_names() if database.fullmatch(name))


def _is(sources: Sources, collection: Collection, logical: Collection) -> bool:
    source = sources.find(str(collection))
    return source is not None and source.logical == logical
