"""The kinds of corruption. Each plants one at random and says how the reconciler must tell it."""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import asyncpg

from tests.corruption.planter import Field, NothingFits, Planted, Planter, Table, fields, inside, places
from worker.mapping import Mapping

Plant = Callable[[Planter], Awaitable[Planted]]

_OTHER = {
    "text": "{} || 'x'",
    "uuid": "md5({}::text)::uuid",
    "boolean": "NOT {}",
    "integer": "{} + 1",
    "double precision": "{} + 1",
    "timestamptz": "{} + interval '1 day'",
}
"""Another value of a column, by its type; jsonb has kinds of its own."""
_NOTE = "{rest} #> ARRAY['$notes', {path}]"
_TRIES = 50


def _at(kind: str, field: Field, row: asyncpg.Record, path: str | None = None) -> Planted:
    where = field.place(row) if path is None else path
    return Planted(kind, field.collection, row[field.key[0]], "different", frozenset({where}))


def _changed(base: str) -> Plant:
    async def plant(to: Planter) -> Planted:
        fields = [one for one in to.fields if one.base == base]
        field, row = await to.field(fields, "{column} IS NOT NULL")
        await to.set(
            field.table, field.key, row, f'"{field.column}" = ' + _OTHER[base].format(f'"{field.column}"')
        )
        return _at(f"changed {base}", field, row)

    return plant


async def _lost(to: Planter) -> Planted:
    field, row = await to.field([one for one in to.fields if not one.required], "{column} IS NOT NULL")
    await to.set(field.table, field.key, row, f'"{field.column}" = NULL')
    return _at("value lost", field, row)


async def _trailing_space(to: Planter) -> Planted:
    field, row = await to.field([one for one in to.fields if one.base == "text"], "{column} LIKE '% '")
    await to.set(field.table, field.key, row, f'"{field.column}" = left("{field.column}", -1)')
    return _at("trailing space lost", field, row)


async def _one_ulp(to: Planter) -> Planted:
    fields = [one for one in to.fields if one.base == "double precision"]
    field, row = await to.field(fields, "{column} NOT IN (0, 'NaN', 'Infinity', '-Infinity')")
    away = math.nextafter(row[field.column], to.rng.choice([-math.inf, math.inf]))
    await to.set(field.table, field.key, row, f'"{field.column}" = $1', away)
    return _at("float one ulp away", field, row)


async def _truncated(to: Planter) -> Planted:
    fields = [one for one in to.fields if one.base == "timestamptz"]
    field, row = await to.field(fields, "{column} <> date_trunc('second', {column})")
    await to.set(field.table, field.key, row, f'"{field.column}" = date_trunc(\'second\', "{field.column}")')
    return _at("timestamp truncated", field, row)


async def _in_json(
    to: Planter, kind: str, change: Callable[[Planter, Any], tuple[Any, ...] | None]
) -> Planted:
    """Change jsonb: ``change`` edits the value and returns the way to what it edited; None: it cannot."""
    fields = [one for one in to.fields if one.base == "jsonb"]
    for _ in range(_TRIES):
        field, row = await to.field(fields, "{column} IS NOT NULL")
        value = json.loads(row[field.column])
        if (way := change(to, value)) is not None:
            await to.set(field.table, field.key, row, f'"{field.column}" = $1::jsonb', json.dumps(value))
            return _at(kind, field, row, ".".join([field.place(row), *map(str, way)]))
        to.used.discard(row[field.key[0]])
    raise NothingFits(kind)


def _edit(
    fits: Callable[[tuple[Any, ...], Any], bool], other: Callable[[Any], Any]
) -> Callable[[Planter, Any], tuple[Any, ...] | None]:
    """Return what replaces a random value that fits by another one."""

    def change(to: Planter, value: Any) -> tuple[Any, ...] | None:
        ways = [way for way, one in places(value) if way and fits(way, one)]
        if not ways:
            return None
        *above, last = way = to.rng.choice(ways)
        inside(value, above)[last] = other(inside(value, way))
        return tuple(way)

    return change


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _another(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    return value + 1 if _number(value) else value + "x" if isinstance(value, str) else "x"


async def _deep(to: Planter) -> Planted:
    change = _edit(lambda way, one: len(way) > 1 and not isinstance(one, dict | list), _another)
    return await _in_json(to, "deep inside jsonb", change)


async def _number_as_string(to: Planter) -> Planted:
    return await _in_json(to, "number as string", _edit(lambda way, one: _number(one), json.dumps))


async def _one_ulp_in_json(to: Planter) -> Planted:
    change = _edit(
        lambda way, one: isinstance(one, float) and one != 0, lambda one: math.nextafter(one, math.inf)
    )
    return await _in_json(to, "float one ulp away in jsonb", change)


async def _null_for_missing(to: Planter) -> Planted:
    field, row = await to.field(to.fields, "{column} IS NULL AND " + _NOTE + " IS NULL")
    rest = json.loads(row[field.rest] or "{}")
    rest.setdefault("$notes", {})[field.path] = None
    await to.set(field.table, field.key, row, f'"{field.rest}" = $1::jsonb', json.dumps(rest))
    return _at("null for missing", field, row)


async def _missing_for_null(to: Planter) -> Planted:
    field, row = await to.field(to.fields, "{column} IS NULL AND " + _NOTE + " = 'null'")
    rest = json.loads(row[field.rest])
    del rest["$notes"][field.path]
    await to.set(field.table, field.key, row, f'"{field.rest}" = $1::jsonb', json.dumps(rest))
    return _at("missing for null", field, row)


async def _null_in_json(to: Planter) -> Planted:
    def change(to: Planter, value: Any) -> tuple[Any, ...] | None:
        objects = [way for way, one in places(value) if isinstance(one, dict)]
        if not objects:
            return None
        way = to.rng.choice(objects)
        inside(value, way)["planted"] = None
        return (*way, "planted")

    return await _in_json(to, "null for missing in jsonb", change)


async def _no_null_in_json(to: Planter) -> Planted:
    def change(to: Planter, value: Any) -> tuple[Any, ...] | None:
        ways = [way for way, one in places(value) if one is None and isinstance(way[-1], str)]
        if not ways:
            return None
        *above, last = way = to.rng.choice(ways)
        del inside(value, above)[last]
        return way

    return await _in_json(to, "missing for null in jsonb", change)


async def _row(to: Planter, tables: list[Table], where: str = "true") -> tuple[Table, asyncpg.Record]:
    for table in to.shuffled(tables):
        if (row := await to.pick(table.name, table.key, where)) is not None:
            return table, row
    raise NothingFits(where)


def _own(to: Planter) -> list[Table]:
    return [one for one in to.tables if not one.array]


def _children(to: Planter) -> list[Table]:
    return [one for one in to.tables if one.array]


async def _removed(to: Planter) -> Planted:
    table, row = await _row(to, _own(to))
    await to.connection.execute(f'DELETE FROM "{table.name}" WHERE "{table.key[0]}" = $1', row[table.key[0]])
    return Planted("removed row", table.collection, row[table.key[0]], "missing")


async def _extra(to: Planter) -> Planted:
    collection, new = to.without_document([one.collection for one in _own(to)])
    (table,) = (one for one in _own(to) if one.collection == collection)
    other: dict[str, Any] = {"users": {"email": str(new)}, "tenants": {"subdomain": str(new)}}.get(
        collection, {}
    )
    (key,) = table.key
    await to.copy(table.name, table.key, await to.some(table.name, table.key), {**other, key: new})
    return Planted("extra row", collection, new, "extra")


async def _wrong_tenant(to: Planter) -> Planted:
    table, row = await _row(to, [one for one in _own(to) if one.path != "_id"])
    await to.set(table.name, table.key, row, f'"{table.tenant}" = $1', await _tenant(to, row[table.tenant]))
    return Planted("wrong tenant", table.collection, row[table.key[0]], "tenant", frozenset({table.path}))


async def _child_of_wrong_tenant(to: Planter) -> Planted:
    table, row = await _row(to, [one for one in _children(to) if one.tenant])
    await to.set(table.name, table.key, row, f'"{table.tenant}" = $1', await _tenant(to, row[table.tenant]))
    return Planted(
        "child row of wrong tenant", table.collection, row[table.key[0]], "tenant", told=table.name
    )


async def _tenant(to: Planter, other_than: UUID) -> UUID:
    found = (
        await to.mongo["tenants"].find({"_id": {"$ne": UUID(int=other_than.int)}}, {"_id": 1}).to_list(None)
    )
    return to.rng.choice(sorted(one["_id"] for one in found))


async def _parent(to: Planter, least: int) -> tuple[Table, UUID, list[asyncpg.Record]]:
    """Return a child table, a document with so many of its rows at least, and these."""
    table = to.rng.choice(_children(to))
    (own,) = (one for one in _own(to) if one.collection == table.collection)
    number = f'(SELECT count(*) FROM "{table.name}" c WHERE c."{table.key[0]}" = t."{own.key[0]}")'
    row = await to.pick(own.name, own.key, f"{number} >= {least}")
    if row is None:
        raise NothingFits(f"{least} rows of {table.name}")
    query = f'SELECT * FROM "{table.name}" WHERE "{table.key[0]}" = $1 ORDER BY "{table.key[1]}"'
    return table, row[own.key[0]], await to.connection.fetch(query, row[own.key[0]])


async def _extra_child(to: Planter) -> Planted:
    table, parent, rows = await _parent(to, 0)
    document = await to.document(table.collection, parent)
    first, position = table.key
    model = await to.some(table.name, table.key)
    other = {first: parent, position: len(rows), table.tenant: document["tenantId"]}
    await to.copy(table.name, table.key, model, other)
    there = isinstance(document.get(table.array), list)
    path = f"{table.array}.{len(rows)}" if there else table.array
    return Planted("extra child row", table.collection, parent, "different", frozenset({path}))


async def _missing_child(to: Planter) -> Planted:
    table, parent, rows = await _parent(to, 1)
    gone = to.rng.randrange(len(rows))
    where = " AND ".join(f'"{name}" = ${number}' for number, name in enumerate(table.key, 1))
    await to.connection.execute(f'DELETE FROM "{table.name}" WHERE {where}', parent, rows[gone][table.key[1]])
    # Those after it move up by one.
    paths = {f"{table.array}.{place}" for place in range(gone, len(rows))} if len(rows) > 1 else {table.array}
    return Planted("missing child row", table.collection, parent, "different", frozenset(paths))


async def _swapped(to: Planter) -> Planted:
    table, parent, rows = await _parent(to, 2)
    position = table.key[1]
    one, other = to.rng.sample([row[position] for row in rows], 2)
    for before, after in ((one, -1), (other, one), (-1, other)):
        key = {table.key[0]: parent, position: before}
        await to.set(table.name, table.key, key, f'"{position}" = $1', after)  # pyright: ignore
    paths = frozenset({f"{table.array}.{one}", f"{table.array}.{other}"})
    return Planted("child rows swapped", table.collection, parent, "different", paths)


async def _orphan(to: Planter) -> Planted:
    tables = _children(to)
    collection, new = to.without_document([one.collection for one in tables])
    table = to.rng.choice([one for one in tables if one.collection == collection])
    model = await to.some(table.name, table.key)
    await to.copy(table.name, table.key, model, {table.key[0]: new})
    return Planted("orphaned child row", collection, new, "orphan")


KINDS: list[Plant] = [
    *map(_changed, _OTHER),
    *(_deep, _lost, _trailing_space, _one_ulp, _one_ulp_in_json, _truncated, _number_as_string),
    *(_null_for_missing, _missing_for_null, _null_in_json, _no_null_in_json),
    *(_removed, _extra, _wrong_tenant, _child_of_wrong_tenant),
    *(_extra_child, _missing_child, _swapped, _orphan),
]


def every_type(mapping: Mapping) -> bool:
    """Whether there is a kind for every column type that the mapping has."""
    return {one.base for one in fields(mapping)} == {*_OTHER, "jsonb"}
