"""Where a corruption goes: rows chosen at random, each of another document, and how they are written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg

from examples.spaces.rebuild import document_id
from worker.mapping import Mapping

Step = str | int


class Planted(NamedTuple):
    """A corruption, and how the reconciler must tell it.

    ``paths``: where the document must be told to differ, at or below each of them and nowhere else.
    ``told``: what its reason must say.
    """

    kind: str
    collection: str
    row_id: UUID
    found_as: str
    paths: frozenset[str] = frozenset()
    told: str = ""

    @property
    def id(self) -> str:
        """Return the document's id as the command line prints it."""
        return str(document_id(self.row_id))


class Field(NamedTuple):
    """A column, and the field that it holds. ``array``: the path of the array, in a child table."""

    collection: str
    table: str
    key: tuple[str, ...]
    rest: str
    column: str
    path: str
    base: str
    required: bool
    array: str

    def place(self, row: asyncpg.Record) -> str:
        """Return the field's path in a row's document."""
        return f"{self.array}.{row[self.key[1]]}.{self.path}" if self.array else self.path


class Table(NamedTuple):
    """A table; ``tenant``: its tenant column, and the field that holds it; ``array`` as in `Field`."""

    collection: str
    name: str
    key: tuple[str, ...]
    tenant: str
    path: str
    array: str


class NothingFits(Exception):
    """No document has the shape that a kind of corruption needs."""


class Planter:
    """Chooses rows and writes them as a superuser whom no trigger sees. A document is chosen once.

    ``among``: row ids of the documents to choose from, where not all are. ``gone``: by collection, row ids
    of documents that were deleted, for rows that must have none; used up, then new ones are made.
    """

    def __init__(
        self,
        connection: asyncpg.Connection,
        mongo: Any,
        mapping: Mapping,
        rng: Random,
        used: set[UUID],
        among: Sequence[UUID] | None = None,
        gone: dict[str, list[UUID]] | None = None,
    ) -> None:
        self.connection, self.mongo, self.rng = connection, mongo, rng
        self.used, self._among = used, None if among is None else list(among)
        self._gone = gone or {}
        self.fields, self.tables = list(fields(mapping)), list(_tables(mapping))

    def shuffled(self, some: Sequence[Any]) -> list[Any]:
        """Return these in random order."""
        return self.rng.sample(some, len(some))

    async def pick(self, table: str, key: Sequence[str], where: str = "true") -> asyncpg.Record | None:
        """Return a random row, called ``t`` in the condition; its document is not chosen again."""
        row = await self.connection.fetchrow(
            f'SELECT * FROM "{table}" t WHERE "{key[0]}" <> ALL($1::uuid[]) AND ({where}) '
            f'AND ($2::uuid[] IS NULL OR "{key[0]}" = ANY($2)) ORDER BY {_random(key, 3)} LIMIT 1',
            list(self.used),
            self._among,
            str(self.rng.random()),
        )
        if row is not None:
            self.used.add(row[key[0]])
        return row

    async def some(self, table: str, key: Sequence[str]) -> asyncpg.Record:
        """Return a row to copy; its document may be chosen still."""
        query = f'SELECT * FROM "{table}" ORDER BY {_random(key, 1)} LIMIT 1'
        row = await self.connection.fetchrow(query, str(self.rng.random()))
        assert row is not None
        return row

    async def field(self, fields: Sequence[Field], where: str) -> tuple[Field, asyncpg.Record]:
        """Return one of the fields at random, and a row for which the condition holds.

        In the condition, ``{column}`` and ``{rest}`` are columns of ``t`` and ``{path}`` a text.
        """
        for field in self.shuffled(fields):
            names = {"column": f't."{field.column}"', "rest": f't."{field.rest}"', "path": f"'{field.path}'"}
            if (row := await self.pick(field.table, field.key, where.format(**names))) is not None:
                return field, row
        raise NothingFits(where)

    async def set(
        self, table: str, key: Sequence[str], row: asyncpg.Record, setting: str, *more: Any
    ) -> None:
        """Update one row: ``setting`` is SQL; its arguments begin at $1."""
        where = " AND ".join(f'"{name}" = ${number}' for number, name in enumerate(key, len(more) + 1))
        done = await self.connection.execute(
            f'UPDATE "{table}" SET {setting} WHERE {where}', *more, *(row[name] for name in key)
        )
        assert done == "UPDATE 1", done

    async def copy(self, table: str, key: Sequence[str], row: asyncpg.Record, other: dict[str, Any]) -> None:
        """Insert a copy of a row with other values in some columns."""
        where = " AND ".join(f't."{name}" = ${number}' for number, name in enumerate(key, 2))
        done = await self.connection.execute(
            f'INSERT INTO "{table}" SELECT (jsonb_populate_record(t, $1::jsonb)).* FROM "{table}" t '
            f"WHERE {where}",
            json.dumps(other, default=str),
            *(row[name] for name in key),
        )
        assert done == "INSERT 0 1", done

    def without_document(self, collections: Sequence[str]) -> tuple[str, UUID]:
        """Return a collection and a row id that no document of it has."""
        for collection in self.shuffled(collections):
            if self._gone.get(collection):
                return collection, self._gone[collection].pop()
        new = UUID(int=self.rng.getrandbits(128), version=4)
        self.used.add(new)
        return self.rng.choice(list(collections)), new

    async def document(self, collection: str, row_id: UUID) -> dict[str, Any]:
        """Return the document in MongoDB."""
        return await self.mongo[collection].find_one({"_id": document_id(row_id)})


def _random(key: Sequence[str], argument: int) -> str:
    """Return the SQL of an order that the argument alone decides."""
    names = ", ".join(f'"{name}"' for name in key)
    return f"md5(concat_ws('/', {names}, ${argument}::text))"


def fields(mapping: Mapping) -> Iterator[Field]:
    """Yield every column that holds a field."""
    for name, one in mapping.collections.items():
        parts = [(one.table, (one.id,), one, "")]
        parts += [
            (child.table, (*child.parent, child.position), child, path)
            for path, child in one.children.items()
        ]
        for table, key, part, array in parts:
            for column, of in part.columns.items():
                path, base = of.path or column, of.parsed.base
                yield Field(name, table, key, part.rest, column, path, base, of.required, array)


def _tables(mapping: Mapping) -> Iterator[Table]:
    for name, one in mapping.collections.items():
        assert one.tenant is not None and one.tenant.path is not None
        tenant = one.tenant.column, one.tenant.path
        yield Table(name, one.table, (one.id,), *tenant, "")
        for path, child in one.children.items():
            key = (*child.parent, child.position)
            yield Table(name, child.table, key, child.tenant or "", "", path)


def places(value: Any, way: tuple[Step, ...] = ()) -> Iterator[tuple[tuple[Step, ...], Any]]:
    """Yield every value inside JSON with the way to it, outer ones first."""
    yield way, value
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, item in inner:
        yield from places(item, (*way, step))


def inside(value: Any, way: Sequence[Step]) -> Any:
    """Return what stands at the end of a way."""
    for step in way:
        value = value[step]
    return value
