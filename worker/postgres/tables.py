"""Whether the live tables take every row that the mapping makes, and give every document back.

A column must hold all values of the mapping's type, unchanged: what PostgreSQL would round, pad or convert on
the way in cannot be rebuilt. A table must take INSERT ... ON CONFLICT on its key from the sync role, and wall
its tenants off from each other.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from worker.errors import SchemaError
from worker.mapping import Mapping, Plans
from worker.mapping.types import ColumnType, parse_type
from worker.postgres.catalog import (
    KINDS,
    PARTITIONED,
    TABLE,
    WRITES,
    Catalog,
    LiveColumn,
    LiveTable,
    read_catalog,
)
from worker.postgres.connect import Connection
from worker.postgres.target import quoted

ACCESS = "as schema/spaces/004_crossfade_access.sql does"


@dataclass(frozen=True, slots=True)
class TableFault:
    """One thing that is wrong with a table, or with the role where ``table`` is None, and what to do."""

    table: str | None
    column: str | None
    wrong: str
    remedy: str

    def __str__(self) -> str:
        place = f"table {self.table}" if self.table else ""
        place += f", column {self.column}" if self.column else ""
        return ": ".join(part for part in (place, self.wrong, self.remedy) if part)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A column as the mapping writes it."""

    type: ColumnType
    filled: bool  # never NULL
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Table:
    """A table as the mapping writes it."""

    name: str
    key: tuple[str, ...]
    tenant: str | None
    rest: str
    columns: dict[str, _Wanted]


async def require_tables(connection: Connection, mapping: Mapping) -> None:
    """Raise a `SchemaError` with every fault of the live tables, one a line."""
    if faults := await table_faults(connection, mapping):
        told = "".join(f"\n  {fault}" for fault in faults)
        raise SchemaError(f"the tables in PostgreSQL do not fit the mapping{told}")


async def table_faults(connection: Connection, mapping: Mapping) -> list[TableFault]:
    """Return what is wrong with the live tables, as the connection's role, the sync role, finds them."""
    wanted = _wanted(mapping)
    catalog = await read_catalog(connection, {table.name: quoted(table.name) for table in wanted})
    faults = [fault for table in wanted for fault in _faults(table, catalog)]
    if catalog.unwalled and any(table.tenant for table in wanted):
        told = f"role {catalog.role} passes by row-level security, so no wrong tenant would be refused"
        faults.insert(
            0, TableFault(None, None, told, "connect as crossfade_sync, NOSUPERUSER and NOBYPASSRLS")
        )
    return faults


def _wanted(mapping: Mapping) -> list[_Table]:
    parts = [part for collection in mapping.collections.values() for _, part in collection.tables()]
    tables: list[_Table] = []
    for part, plan in zip(parts, Plans(mapping).tables(), strict=True):
        columns: dict[str, _Wanted] = {}
        for name, sql in plan.columns.items():
            if (column := part.columns.get(name)) is None:
                columns[name] = _Wanted(parse_type(sql), name != part.rest, ())
            else:
                filled = column.required or column.constant is not None or column.default is not None
                columns[name] = _Wanted(column.parsed, filled, column.values or ())
        tables.append(_Table(plan.table, plan.key, plan.tenant, part.rest, columns))
    return tables


def _faults(wanted: _Table, catalog: Catalog) -> Iterator[TableFault]:
    live = catalog.tables.get(wanted.name)
    if live is None:
        yield _missing(wanted, catalog)
        return
    if live.kind not in (TABLE, PARTITIONED):
        kind = KINDS.get(live.kind, "no table")
        yield TableFault(wanted.name, None, f"is {kind}", "name the table that holds the rows")
        return
    if live.unlogged:
        told = "is unlogged: a crash of PostgreSQL empties it, and the ledger would not know"
        yield TableFault(wanted.name, None, told, f"ALTER TABLE {live.qualified} SET LOGGED")
    yield from _columns(wanted, live)
    yield from _key(wanted, live)
    yield from _access(wanted, live, catalog)


def _missing(wanted: _Table, catalog: Catalog) -> TableFault:
    if schemas := catalog.elsewhere.get(wanted.name):
        schema = schemas[0]
        return TableFault(
            wanted.name,
            None,
            f"is in schema {schema}, where {catalog.role} does not look",
            f'GRANT USAGE ON SCHEMA "{schema}" TO {catalog.role}, and ALTER ROLE {catalog.role} SET '
            f'search_path = "{schema}"',
        )
    near = difflib.get_close_matches(wanted.name, catalog.others, n=1)
    return TableFault(
        wanted.name,
        None,
        "is missing" + (f" (did you mean {near[0]}?)" if near else ""),
        "run `crossfade schema apply --target` with the folder of its SQL, or mend the mapping",
    )


def _columns(wanted: _Table, live: LiveTable) -> Iterator[TableFault]:
    table = wanted.name
    for name, column in wanted.columns.items():
        if (found := live.columns.get(name)) is None:
            near = difflib.get_close_matches(name, live.columns.keys() - wanted.columns.keys(), n=1)
            told = "is missing" + (f" (did you mean {near[0]}?)" if near else "")
            added = f"ALTER TABLE {live.qualified} ADD COLUMN {quoted(name)} {column.type.sql}"
            yield TableFault(table, name, told, f"{added}, or mend the mapping")
            continue
        changed = f"ALTER TABLE {live.qualified} ALTER COLUMN {quoted(name)}"
        if found.always:
            how = "a generated column" if found.always == "generated" else "GENERATED ALWAYS AS IDENTITY"
            drop = "EXPRESSION" if found.always == "generated" else "IDENTITY"
            yield TableFault(table, name, f"is {how}, which takes no value", f"{changed} DROP {drop}")
        if not _holds(found, column.type):
            told = f"is {found.shown}, which does not hold all that {column.type.sql} does"
            yield TableFault(table, name, told, _mend(found, f"{changed} TYPE {column.type.sql}"))
        elif lacking := [label for label in column.labels if label not in (found.labels or ())]:
            told = f"its type {found.shown} has no label {', '.join(map(repr, lacking))}"
            near = difflib.get_close_matches(lacking[0], set(found.labels or ()) - set(column.labels), n=1)
            told += f" (did you mean {near[0]!r}?)" if near else ""
            added = f"ALTER TYPE {quoted(column.type.name or '')} ADD VALUE, or mend `values`"
            yield TableFault(table, name, told, added)
        if found.not_null and not column.filled:
            told = "is NOT NULL, and documents without a fitting value would write NULL"
            more = (
                "" if name == wanted.rest else ", or give the column `required` or `default` in the mapping"
            )
            yield TableFault(table, name, told, f"{changed} DROP NOT NULL{more}")
    for name, found in live.columns.items():
        if name not in wanted.columns and found.not_null and not found.filled and not found.always:
            told = "is NOT NULL without a default, and the mapping gives it no value"
            dropped = f"ALTER TABLE {live.qualified} ALTER COLUMN {quoted(name)} DROP NOT NULL"
            yield TableFault(table, name, told, f"map it, give it a default, or {dropped}")


_TEXTS = ("text", "varchar", "citext")
_HOLDERS: dict[str, Sequence[str]] = {
    "text": _TEXTS,
    "varchar": _TEXTS,
    "uuid": ("uuid",),
    "boolean": ("bool",),
    "smallint": ("int2", "int4", "int8"),
    "integer": ("int4", "int8"),
    "bigint": ("int8",),
    "double precision": ("float8",),
    "numeric": ("numeric",),
    "timestamptz": ("timestamptz",),
    "date": ("date",),
    "bytea": ("bytea",),
    "jsonb": ("jsonb",),
}
"""The types whose values are read back as those of the mapping's type, and that hold all of them."""


def _holds(live: LiveColumn, wanted: ColumnType) -> bool:
    if live.array != wanted.array:
        return False
    if wanted.base == "enum":  # no type is cast to another enumerated one
        return live.labels is not None and live.type == wanted.name and live.visible
    if live.type not in _HOLDERS[wanted.base] or not (live.builtin or live.type == "citext"):
        return False
    if live.modifier == -1:
        return True
    match live.type:
        case "varchar":
            return wanted.length is not None and live.modifier - 4 >= wanted.length
        case "timestamptz":
            return live.modifier >= 3  # BSON's dates are milliseconds
        case _:
            return False  # numeric(p, s) rounds


def _mend(live: LiveColumn, change: str) -> str:
    """Return what to do about a type: change it, or say in the mapping what it holds."""
    if live.type == "varchar" and live.modifier > 4:
        return f"{change}, or say varchar({live.modifier - 4}){'[]' if live.array else ''} in the mapping"
    says = next((base for base, holders in _HOLDERS.items() if holders[0] == live.type), None)
    if says and live.builtin and live.modifier == -1:
        return f"{change}, or say {says}{'[]' if live.array and says != 'jsonb' else ''} in the mapping"
    return change


def _key(wanted: _Table, live: LiveTable) -> Iterator[TableFault]:
    """Find out whether ON CONFLICT on the key finds an index.

    A deferrable constraint on these columns makes it fail, also where another index would do.
    """
    key = frozenset(wanted.key)
    if not key <= live.columns.keys():
        return
    columns = ", ".join(wanted.key)
    found = [one.immediate for one in live.keys if one.columns == key]
    if not found:
        told = f"has no primary key or unique index on exactly ({columns})"
        listed = ", ".join(map(quoted, wanted.key))
        yield TableFault(wanted.name, None, told, f"ALTER TABLE {live.qualified} ADD PRIMARY KEY ({listed})")
    elif not all(found):
        told = f"its unique constraint on ({columns}) is deferrable, so ON CONFLICT cannot use it"
        yield TableFault(wanted.name, None, told, "make the constraint again, NOT DEFERRABLE")


def _access(wanted: _Table, live: LiveTable, catalog: Catalog) -> Iterator[TableFault]:
    role = catalog.role
    if live.lacks:
        privileges = ", ".join(live.lacks)
        told = f"{role} has no privilege to {privileges}"
        yield TableFault(wanted.name, None, told, f"GRANT {privileges} ON {live.qualified} TO {role}")
    if wanted.tenant and not (live.secured and live.forced):
        told = "row-level security is off" if not live.secured else "row-level security is not forced"
        yield TableFault(
            wanted.name,
            None,
            f"{told}, and its rows are of many tenants",
            f"ALTER TABLE {live.qualified} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
        )
    if catalog.unwalled or not (live.secured or wanted.tenant):
        return
    permissive = [policy for policy in live.policies if policy.permissive]
    refused = [one for one in WRITES if not any(one in policy.commands for policy in permissive)]
    if refused:
        told = f"no policy lets {role} {', '.join(refused)}"
        yield TableFault(wanted.name, None, told, f"CREATE POLICY crossfade_sync, {ACCESS}")
    for policy in permissive:
        if wanted.tenant and (policy.reads_all or policy.writes_all):
            told = f"policy {policy.name} lets {role} at the rows of every tenant"
            yield TableFault(wanted.name, None, told, f"let it compare with crossfade.tenants, {ACCESS}")
