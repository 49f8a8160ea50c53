"""Which mapped collections MongoDB does not have."""

from __future__ import annotations

import difflib

from pymongo.errors import PyMongoError

from worker.errors import ServiceUnavailable
from worker.mapping import Mapping
from worker.mapping.sources import PLACEHOLDER
from worker.mongo.client import Client, describe


async def missing_collections(client: Client, mapping: Mapping) -> list[str]:
    """Return the names of the mapping that no collection fits, each with the nearest real one."""
    sources, database = mapping.sources(), mapping.database
    anyone = next(iter(mapping.collections)).replace(PLACEHOLDER, "x")
    found: set[str] = set()
    names: set[str] = set()
    try:
        databases = [database] if PLACEHOLDER not in database else await client.list_database_names()
        for one in databases:
            if sources.find(f"{one}.{anyone}") is None:
                continue
            for name in await client[one].list_collection_names():
                names.add(name)
                if (source := sources.find(f"{one}.{name}")) is not None:
                    found.add(source.name)
    except PyMongoError as error:
        raise ServiceUnavailable(f"MongoDB does not list its collections ({describe(error)})") from None
    missing: list[str] = []
    for name in mapping.collections:
        if name not in found:
            near = difflib.get_close_matches(name, names - mapping.collections.keys(), n=1)
            missing.append(f"{name} (did you mean {near[0]}?)" if near else name)
    return missing
