"""Which mapped collections MongoDB does not have."""

from __future__ import annotations

import difflib
from collections.abc import Container

from pymongo.errors import PyMongoError

from worker.errors import ServiceUnavailable
from worker.mapping import Mapping
from worker.mongo.client import Client, describe
from worker.mongo.collections import existing


async def missing_collections(
    client: Client, mapping: Mapping, known: Container[str] = frozenset()
) -> list[str]:
    """Return the names of the mapping that no collection fits, each with the nearest real one.

    Not those that are ``known`` to have been there: they were dropped, and may come again.
    A view, a time series or a capped collection cannot be followed, and fits none.
    """
    sources = mapping.sources()
    try:
        there = await existing(client, sources)
        every = await existing(client, sources, followed=False)
    except PyMongoError as error:
        raise ServiceUnavailable(f"MongoDB does not list its collections ({describe(error)})") from None
    names = {one.name for one in there}
    found = {source.name for one in there if (source := sources.find(str(one)))}
    unfit = {source.name for one in every if (source := sources.find(str(one)))} - found
    missing: list[str] = []
    for name in mapping.collections:
        if name in unfit:
            missing.append(f"{name} (it is a view, a time series or capped, and cannot be followed)")
        elif name not in found and name not in known:
            near = difflib.get_close_matches(name, names - mapping.collections.keys(), n=1)
            missing.append(f"{name} (did you mean {near[0]}?)" if near else name)
    return missing
