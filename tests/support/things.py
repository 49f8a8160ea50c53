"""The smallest application: collections of things, all of one tenant, each a table of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import bson

from tests.support.tables import target
from tests.support.world import PATIENCE, World, world
from worker.embedded import Services

_COLLECTION = """
  {name}:
    table: {name}
    tenant: {{{tenant}, column: tenant_id}}
    rest: rest
    columns:
      n: {{type: bigint}}
      text: {{type: text}}
"""
_COLUMNS = "id uuid PRIMARY KEY, tenant_id uuid NOT NULL, n bigint, text text, rest jsonb"


@asynccontextmanager
async def things(
    services: Services, directory: Path, *names: str, tenant: str = "constant: house"
) -> AsyncIterator[World]:
    """Make a world of these collections, which exist and are empty."""
    collections = "".join(_COLLECTION.format(name=name, tenant=tenant) for name in names)
    mapping = f"version: 1\ndatabase: NAME\ncollections:{collections}"
    tables = target(directory / "tables", dict.fromkeys(names, _COLUMNS))
    async with world(services, directory, mapping, tables) as w:
        for name in names:
            await w.mongo.create_collection(name)
        yield w


async def keep_images(w: World, *names: str) -> None:
    """Have MongoDB keep pre- and post-images of collections."""
    for name in names:
        await w.mongo.command({"collMod": name, "changeStreamPreAndPostImages": {"enabled": True}})


async def until_equal(w: World, *names: str, seconds: float = PATIENCE) -> None:
    """Wait until all is applied; every document then equals its row, and each table holds no other row."""
    await w.settled(seconds)
    assert await w.unequal() == []
    for name in names:
        rows = await w.value(f"SELECT count(*) FROM {name}")
        assert rows == await w.mongo[name].count_documents({}), name


def large(id_: Any, size: int) -> dict[str, Any]:
    """Return a document of exactly as many bytes."""
    document = {"_id": id_, "n": 1, "text": ""}
    return document | {"text": "x" * (size - len(bson.encode(document)))}
