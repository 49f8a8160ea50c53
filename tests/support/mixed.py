"""A collection whose ids are of every type that an id can have, and one that comes later."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

from bson import Binary, Decimal128, Int64, MaxKey, MinKey, ObjectId, Timestamp

from tests.support.tables import target
from tests.support.world import world
from worker.embedded import Services

MAPPING = """
version: 1
database: NAME
collections:
  things:
    table: things
    tenant: {path: tenant, column: tenant_id}
    rest: rest
    columns: {n: {type: integer}}
  later:
    table: later
    tenant: {path: tenant, column: tenant_id}
    rest: rest
    columns: {n: {type: integer}}
"""
COLUMNS = "id uuid PRIMARY KEY, tenant_id uuid NOT NULL, n integer, rest jsonb"
TENANT = UUID(int=7)
BELOW, ABOVE = MinKey(), MaxKey()
"""Ids before and after all others."""


def ids(count: int) -> list[Any]:
    """Return different ids, of each type as many as of any other; null is among them."""
    kinds = (
        lambda n: n,
        lambda n: n + 0.5,
        lambda n: Int64(2**40 + n),
        lambda n: Decimal128(f"{n}.25"),
        lambda n: f"thing {n}",
        lambda n: {"n": n, "of": [n]},
        lambda n: Binary(n.to_bytes(3, "big"), 0),
        lambda n: uuid5(TENANT, str(n)),
        lambda n: ObjectId(n.to_bytes(12, "big")),
        lambda n: datetime(2020, 1, 1, tzinfo=UTC) + timedelta(minutes=n),
        lambda n: Timestamp(n, 1),
    )
    return [None, True, False, *(kinds[n % len(kinds)](n) for n in range(count - 3))]


def documents(count: int) -> list[dict[str, Any]]:
    return [{"_id": id_, "tenant": TENANT, "n": n} for n, id_ in enumerate(ids(count))]


def mixed(services: Services, tmp_path: Path) -> Any:
    """Make a world of it; `later` is not there yet."""
    tables = target(tmp_path / "sql", dict.fromkeys(("things", "later"), COLUMNS))
    return world(services, tmp_path / "world", MAPPING, tables)
