"""Walks a table of any size in the order of its key, one bounded statement after another.

Each chunk is a transaction of its own, which takes no lock but what every SELECT takes. No snapshot outlives
it: one for a whole table would keep VACUUM from the application's dead rows, and DDL waits for a chunk at
most. A row is seen whole, with what it refers to, as of one moment; and a row that is there all the time is
met once, as keys do not change. Rows that come and go meanwhile may be counted or not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar
from uuid import UUID

import asyncpg

from worker.mapping import Plans
from worker.mapping.model import Mapping as MappingFile
from worker.postgres.connect import Connection
from worker.postgres.faults import FAULTS, describe
from worker.postgres.target import quoted

CHUNK = 10_000
"""Rows of one statement."""

_CHUNK_BYTES = 16 << 20
_T = TypeVar("_T", bound=Hashable)


class NotLookedAt(Exception):
    """A table could not be walked to its end; the message says why."""


@dataclass(frozen=True, slots=True)
class Walked:
    """A mapped table as it is walked: in the order of an index on its key, where there is one."""

    name: str
    qualified: str  # with its schema: a temporary table may have the same name
    key: tuple[str, ...]
    order: tuple[str, ...]  # the key's columns as that index has them
    tenant: str | None
    indexed: bool
    unique: bool  # by an index that holds at once
    about: int  # rows, as PostgreSQL last estimated
    size: int  # bytes, with what is stored out of line

    @property
    def narrow_chunk(self) -> int:
        """Return how many whole rows are some 16 MB, by their average."""
        if not self.about or not self.size:
            return min(CHUNK, 500)
        return min(CHUNK, max(20, self.about * _CHUNK_BYTES // self.size))

    @property
    def ordered(self) -> str:
        """Return the columns of a row ``t`` that it is walked by, as SQL lists them."""
        return ", ".join(f"t.{quoted(name)}" for name in self.order)

    @property
    def named(self) -> str:
        """Return the SQL that names a row ``t``: its key as text, a slash between the columns."""
        return " || '/' || ".join(f"t.{quoted(name)}::text" for name in self.key)


class Range(NamedTuple):
    """A chunk: the condition on its rows, called ``t``, and the arguments that stand for $1 and on."""

    where: str
    arguments: tuple[object, ...]

    def more(self, *arguments: object) -> list[object]:
        """Return the arguments with further ones."""
        return [*self.arguments, *arguments]

    def next(self, n: int = 1) -> str:
        """Return the placeholder of the nth further argument."""
        return f"${len(self.arguments) + n}"


@dataclass(slots=True)
class Rows:
    """Rows of one kind: how many, and the keys of the first."""

    count: int = 0
    ids: list[str] = field(default_factory=list[str])


@dataclass(slots=True)
class Seen(Generic[_T]):
    """A table's rows, by tenant, and those that met each condition."""

    tenants: Counter[UUID | None]
    met: dict[_T, Rows]

    @property
    def rows(self) -> int:
        """Return how many rows there were."""
        return self.tenants.total()


@dataclass(frozen=True, slots=True)
class Walker:
    """Walks tables for one reader. ``seconds``: for each statement. ``only``: this tenant's rows."""

    connection: Connection
    seconds: float
    limit: int
    only: UUID | None = None
    progress: Callable[[str], None] = lambda told: None

    async def walk(
        self,
        table: Walked,
        read: Callable[[Range], Awaitable[int]],
        *,
        chunk: int | None = None,
        told: str = "",
        temporary: bool = False,
    ) -> None:
        """Give each chunk to ``read``, which returns how many rows it saw; `NotLookedAt` where it cannot.

        Without an index on the key the table is one chunk. ``temporary``: ``read`` may make temporary tables,
        and commits nothing.
        """
        key = table.ordered
        after: tuple[object, ...] | None = None
        seen = 0
        while True:
            async with self.bounded(told or table.name, temporary=temporary):
                start = self._range(table, key, after)
                upto = None
                if table.indexed:
                    upto = await self.connection.fetchrow(
                        f"SELECT {key} FROM {table.qualified} AS t WHERE {start.where} "  # noqa: S608
                        f"ORDER BY {key} OFFSET {start.next()} LIMIT 1",
                        *start.more((chunk or CHUNK) - 1),
                    )
                seen += await read(start if upto is None else _up_to(start, key, tuple(upto)))
            of = f" of about {table.about:,}" if table.about > seen else ""
            self.progress(f"{told or table.name}: {seen:,}{of} rows")
            if upto is None:
                return
            after = tuple(upto)

    async def look(self, table: Walked, conditions: Mapping[_T, str], told: str = "") -> Seen[_T]:
        """Count a table's rows by tenant, and those that meet each condition on ``t``."""
        found = Seen(Counter[UUID | None](), {one: Rows() for one in conditions})
        flags = "".join(f", ({sql}) AS f{n}" for n, sql in enumerate(conditions.values()))
        counts = "".join(f", count(*) FILTER (WHERE f{n})" for n in range(len(conditions)))
        tenant = f"t.{quoted(table.tenant)}" if table.tenant else "NULL::uuid"

        async def read(range_: Range) -> int:
            rows = await self.connection.fetch(
                f"SELECT tenant, count(*){counts} FROM (SELECT {tenant} AS tenant{flags} "  # noqa: S608
                f"FROM {table.qualified} AS t WHERE {range_.where}) AS seen GROUP BY tenant",
                *range_.arguments,
            )
            for row in rows:
                found.tenants[row[0]] += row[1]
            for n, (one, sql) in enumerate(conditions.items()):
                here, met = sum(row[n + 2] for row in rows), found.met[one]
                met.count += here
                if here and (wanted := self.limit - len(met.ids)) > 0:
                    more = await self.connection.fetch(
                        f"SELECT {table.named} FROM {table.qualified} AS t WHERE {range_.where} AND ({sql}) "  # noqa: S608
                        f"ORDER BY {table.ordered} LIMIT {range_.next()}",
                        *range_.more(wanted),
                    )
                    met.ids += [row[0] for row in more]
            return sum(row[1] for row in rows)

        await self.walk(table, read, told=told)
        return found

    async def ask(self, told: str, query: str, *arguments: object) -> Sequence[asyncpg.Record]:
        """Return a query's rows, within the time of one statement; else `NotLookedAt`."""
        async with self.bounded(told):
            return await self.connection.fetch(query, *arguments)

    def _range(self, table: Walked, key: str, after: tuple[object, ...] | None) -> Range:
        conditions: list[str] = []
        arguments: list[object] = []
        if self.only is not None and table.tenant is not None:
            arguments.append(self.only)
            conditions.append(f"t.{quoted(table.tenant)} = $1")
        if after is not None:
            places = ", ".join(f"${len(arguments) + n}" for n in range(1, len(after) + 1))
            arguments += after
            conditions.append(f"({key}) > ({places})")
        return Range(" AND ".join(conditions) or "true", tuple(arguments))

    @asynccontextmanager
    async def bounded(self, told: str, *, temporary: bool = False) -> AsyncIterator[None]:
        """A transaction whose statements are bounded; what goes wrong in it is `NotLookedAt`.

        All is LOCAL: there may be a pooler in between.
        """
        try:
            transaction = self.connection.transaction(isolation="repeatable_read", readonly=not temporary)
            await transaction.start()
            try:
                if temporary:  # a reader may be read-only by default
                    await self.connection.execute("SET LOCAL transaction_read_only = off")
                limit = f"{max(1, round(self.seconds * 1000))}"
                await self.connection.execute(f"SET LOCAL statement_timeout = {limit}")
                yield
            finally:
                await transaction.rollback()
        except asyncpg.QueryCanceledError:
            raise NotLookedAt(f"{told}: a statement took longer than {self.seconds:g} s") from None
        except asyncpg.UndefinedColumnError as error:
            unfit = f"does not fit the mapping ({describe(error)}), `crossfade check` says how"
            raise NotLookedAt(f"{told}: {unfit}") from None
        except FAULTS as error:
            what = "refuses" if isinstance(error, asyncpg.PostgresError) else "does not answer"
            raise NotLookedAt(f"{told}: PostgreSQL {what} ({describe(error)})") from None


def _up_to(start: Range, key: str, upto: tuple[object, ...]) -> Range:
    """Return the part of a range that ends with this key: all of its rows, where it is there twice."""
    places = ", ".join(start.next(n) for n in range(1, len(upto) + 1))
    return Range(f"{start.where} AND ({key}) <= ({places})", tuple(start.more(*upto)))


_TABLES = "tables AS (SELECT n AS name, to_regclass(quote_ident(n)) AS oid FROM unnest($1::text[]) AS n)"
# By what ANALYZE and VACUUM wrote down: asking for the size of a file would wait for a lock.
_SIZES = f"""
WITH {_TABLES}
SELECT t.name, (SELECT format('%I.%I', n.nspname, own.relname) FROM pg_catalog.pg_class own
        JOIN pg_catalog.pg_namespace n ON n.oid = own.relnamespace WHERE own.oid = t.oid),
    coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint,
    coalesce(sum(c.relpages::bigint + coalesce(o.relpages, 0)), 0)::bigint
        * current_setting('block_size')::bigint
FROM tables t CROSS JOIN LATERAL (
    SELECT t.oid::oid AS oid UNION SELECT relid::oid FROM pg_partition_tree(t.oid)
) AS part LEFT JOIN pg_catalog.pg_class c ON c.oid = part.oid AND c.relkind = 'r'
LEFT JOIN pg_catalog.pg_class o ON o.oid = c.reltoastrelid
GROUP BY t.name, t.oid
"""  # noqa: S608 - our own names
_INDEXES = f"""
WITH {_TABLES}
SELECT t.name, i.indisunique AND i.indimmediate, ARRAY(
    SELECT a.attname::text FROM unnest((i.indkey::smallint[])[0:i.indnkeyatts - 1])
        WITH ORDINALITY AS k(number, place)
    JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number ORDER BY k.place)
FROM tables t JOIN pg_catalog.pg_index i ON i.indrelid = t.oid
JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid JOIN pg_catalog.pg_am m ON m.oid = c.relam
WHERE m.amname = 'btree' AND i.indisvalid AND i.indisready AND i.indpred IS NULL AND i.indexprs IS NULL
"""  # noqa: S608


async def walked_tables(connection: Connection, mapping: MappingFile) -> dict[str, Walked]:
    """Return the mapped tables, which all exist, by name, parents before children."""
    plans = Plans(mapping).tables()
    names = [plan.table for plan in plans]
    sizes = {row[0]: tuple(row)[1:] for row in await connection.fetch(_SIZES, names)}
    orders: dict[str, list[tuple[bool, tuple[str, ...]]]] = {}
    for name, unique, columns in await connection.fetch(_INDEXES, names):
        orders.setdefault(name, []).append((unique, tuple(columns)))
    tables: dict[str, Walked] = {}
    for plan in plans:
        wanted, size = frozenset(plan.key), len(plan.key)
        found = [one for one in orders.get(plan.table, []) if frozenset(one[1][:size]) == wanted]
        qualified, about, bytes_ = sizes[plan.table]
        tables[plan.table] = Walked(
            plan.table,
            qualified,
            plan.key,
            found[0][1][:size] if found else plan.key,
            plan.tenant,
            bool(found),
            any(unique and len(columns) == size for unique, columns in found),
            about,
            bytes_,
        )
    return tables
