"""What is wrong with the rows of the mapped tables: the statements of `crossfade check --integrity`.

Everything comes from the mapping and PostgreSQL's catalog, so it holds for any application.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import UUID

from worker.errors import ServiceUnavailable
from worker.mapping import Mapping as MappingFile
from worker.postgres.catalog import Catalog
from worker.postgres.connect import Connection
from worker.postgres.findings import Finding, Findings, some
from worker.postgres.orphans import Reference, dangles, nested, read_references
from worker.postgres.search_vectors import look_at_vectors
from worker.postgres.target import quoted
from worker.postgres.uniqueness import look_for_duplicates
from worker.postgres.walk import NotLookedAt, Walked, Walker, walked_tables

ROWS, ORPHANS, TENANTS, CHILDREN = "rows", "orphans", "tenants", "child rows"
VECTORS, UNIQUENESS, LETTERS = "search vectors", "uniqueness", "dead letters"
CHECKS = (ROWS, ORPHANS, TENANTS, CHILDREN, VECTORS, UNIQUENESS, LETTERS)


@dataclass(slots=True)
class Looked:
    """What each check found; and each table's rows by tenant, where it was walked."""

    findings: dict[str, Findings]
    tenants: dict[str, Mapping[UUID | None, int]] = field(default_factory=dict)


class _Fault(NamedTuple):
    """Something that a row can have: ``condition`` on it as ``t``, and the tables that it needs to see."""

    check: str
    table: str
    told: str
    condition: str
    needs: tuple[str, ...]
    data: dict[str, Any]


async def look_at_integrity(
    connection: Connection,
    mapping: MappingFile,
    *,
    tenant: UUID | None,
    limit: int,
    seconds: float,
    progress: Callable[[str], None],
) -> Looked:
    """Make every check; of each thing that is wrong at most ``limit`` rows are named.

    ``seconds`` bounds each statement. ``tenant``: only this one's rows, and only tables that have a tenant.
    `SchemaError`, `ServiceUnavailable`: nothing could be looked at.
    """
    looked = Looked({check: Findings() for check in CHECKS})
    walker = Walker(connection, seconds, limit, tenant, progress)
    try:
        async with walker.bounded("the catalog"):
            catalog, references = await read_references(connection, mapping)
            tables = await walked_tables(connection, mapping)
    except NotLookedAt as error:
        raise ServiceUnavailable(str(error), remedy="see what holds a table, then try again") from None
    chosen = {name: table for name, table in tables.items() if tenant is None or table.tenant}
    faults = [
        *_dangling(mapping, tables, references, catalog),
        *_without_tenant(mapping, tables, catalog),
        *_children(mapping, tables, catalog),
    ]
    for name, table in chosen.items():
        await _walk(walker, catalog, table, [one for one in faults if one.table == name], looked)
    for check, more in (
        (TENANTS, lambda: _known(walker, mapping, catalog, tables, looked)),
        (VECTORS, lambda: look_at_vectors(walker, catalog, chosen)),
        (UNIQUENESS, lambda: look_for_duplicates(walker, catalog, chosen)),
        (LETTERS, lambda: _letters(walker)),
    ):
        try:
            looked.findings[check] = await more()
        except NotLookedAt as error:
            looked.findings[check].not_looked_at.append(str(error))
    return looked


async def _walk(
    walker: Walker, catalog: Catalog, table: Walked, faults: list[_Fault], looked: Looked
) -> None:
    """Walk one table, looking for all of its faults that can be seen."""
    found = looked.findings
    if unseen := catalog.unseen(catalog.tables[table.name].qualified):
        for check in {ROWS, *(one.check for one in faults)}:
            found[check].not_looked_at.append(f"{table.name}: {unseen}")
        return
    looked_for: dict[int, str] = {}
    for n, fault in enumerate(faults):
        if unseen := catalog.unseen(*fault.needs):
            found[fault.check].not_looked_at.append(f"{fault.told}: {unseen}")
        else:
            looked_for[n] = fault.condition
    try:
        seen = await walker.look(table, looked_for)
    except NotLookedAt as error:
        for check in {ROWS, *(one.check for one in faults)}:
            found[check].not_looked_at.append(str(error))
        return
    found[ROWS].looked_at += 1
    looked.tenants[table.name] = seen.tenants
    for n, rows in seen.met.items():
        fault = faults[n]
        found[fault.check].looked_at += 1
        if rows.count:
            told = f"{fault.told}: {some(rows.count, rows.ids)}"
            data = {"table": table.name, **fault.data, "rows": rows.count, "row_ids": rows.ids}
            found[fault.check].found.append(Finding(told, True, rows.count, data))


def _by_live_name(tables: Mapping[str, Walked], catalog: Catalog) -> dict[str, str]:
    return {catalog.tables[name].qualified: name for name in tables}


def _dangling(
    mapping: MappingFile, tables: Mapping[str, Walked], references: list[Reference], catalog: Catalog
) -> Iterator[_Fault]:
    """References but those that other checks look at: a child's to its parent, a tenant's to its row."""
    names = _by_live_name(tables, catalog)
    parents = {(below.table, above.table, below.parent) for above, below in nested(mapping)}
    homes = _homes(mapping)
    for one in references:
        table, target = names[one.table], names.get(one.target)
        if (table, target, one.columns) in parents:
            continue
        if target in homes and one.columns == (tables[table].tenant,):
            continue
        data = {"columns": list(one.columns), "refers_to": one.target}
        yield _Fault(ORPHANS, table, str(one), dangles(one), (one.target,), data)


def _homes(mapping: MappingFile) -> dict[str, str]:
    """Return the tables whose rows are the tenants themselves, with the column that tells the tenant."""
    return {
        one.table: one.tenant.column
        for one in mapping.collections.values()
        if one.tenant and one.tenant.path == "_id"
    }


def _without_tenant(mapping: MappingFile, tables: Mapping[str, Walked], catalog: Catalog) -> Iterator[_Fault]:
    """Rows whose tenant is in none of the tenants' tables, or that have no tenant."""
    homes = _homes(mapping)
    for table in tables.values():
        if table.tenant is None or table.name in homes:
            continue
        column = f"t.{quoted(table.tenant)}"
        lacking = " AND ".join(
            f"NOT EXISTS (SELECT FROM {tables[home].qualified} AS o WHERE o.{quoted(id_)} = {column})"
            for home, id_ in homes.items()
        )
        condition = f"{column} IS NULL" + (f" OR {lacking}" if lacking else "")
        needs = tuple(catalog.tables[home].qualified for home in homes)
        told = f"{table.name} ({table.tenant})" + (f" -> {', '.join(homes)}" if homes else " is NULL")
        data = {"columns": [table.tenant], "refers_to": list(homes)}
        yield _Fault(TENANTS, table.name, told, condition, needs, data)


def _children(mapping: MappingFile, tables: Mapping[str, Walked], catalog: Catalog) -> Iterator[_Fault]:
    """Child rows without their parent's row, and those of another tenant than it."""
    for above, below in nested(mapping):
        parent, child = tables[above.table], tables[below.table]
        target = catalog.tables[parent.name].qualified
        live = catalog.tables[child.name].qualified
        pairs = list(zip(below.parent, parent.key, strict=True))
        one = Reference(live, child.key, below.parent, parent.qualified, parent.key)
        told = f"{child.name} ({', '.join(below.parent)}) -> {parent.name}"
        data = {"columns": list(below.parent), "refers_to": parent.name}
        missing = f"{told}: parent missing"
        yield _Fault(
            CHILDREN, child.name, missing, dangles(one), (target,), {**data, "wrong": "parent missing"}
        )
        if child.tenant and parent.tenant:
            same = " AND ".join(f"o.{quoted(key)} = t.{quoted(column)}" for column, key in pairs)
            differs = f"o.{quoted(parent.tenant)} IS DISTINCT FROM t.{quoted(child.tenant)}"
            condition = f"EXISTS (SELECT FROM {parent.qualified} AS o WHERE {same} AND {differs})"
            wrong = {**data, "wrong": "another tenant"}
            other = f"{told}: of another tenant"
            yield _Fault(CHILDREN, child.name, other, condition, (target,), wrong)


async def _known(
    walker: Walker, mapping: MappingFile, catalog: Catalog, tables: Mapping[str, Walked], looked: Looked
) -> Findings:
    """Look for the row of the tenant that was asked for, too: without it none of its rows may be there."""
    findings, homes = looked.findings[TENANTS], _homes(mapping)
    if (
        walker.only is None
        or not homes
        or catalog.unseen(*(catalog.tables[home].qualified for home in homes))
    ):
        return findings
    each = " OR ".join(
        f"EXISTS (SELECT FROM {tables[home].qualified} WHERE {quoted(id_)} = $1)"
        for home, id_ in homes.items()
    )
    rows = await walker.ask("the tenant's own row", f"SELECT {each}", walker.only)
    if not rows[0][0]:
        data = {"table": next(iter(homes)), "columns": [], "refers_to": list(homes)}
        data |= {"rows": 0, "row_ids": [str(walker.only)]}
        told = f"tenant {walker.only} has no row in {', '.join(homes)}"
        findings.found.insert(0, Finding(told, True, 0, data))
    return findings


_MOST = 10_000
"""Groups of dead letters told; there may be as many tenants as there are."""

_LETTERS = """
SELECT tenant_id, namespace, kind, state::text, count(*), min(dead_letter_id)
FROM crossfade.dead_letter
WHERE state IN ('dead', 'parked') AND ($1::uuid IS NULL OR tenant_id = $1 OR tenant_id IS NULL)
GROUP BY 1, 2, 3, 4 ORDER BY 5 DESC, 1, 2, 3, 4 LIMIT $2
"""


async def _letters(walker: Walker) -> Findings:
    """Dead letters and parked events that stand, by tenant, collection, state and kind.

    Those of no known tenant are every tenant's: they hold back all cutovers.
    """
    findings = Findings()
    try:
        rows = await walker.ask("dead letters", _LETTERS, walker.only, _MOST + 1)
    except NotLookedAt as error:
        findings.not_looked_at.append(str(error))
        findings.remedies.append("run `crossfade schema apply`, and connect as crossfade_reader")
        return findings
    findings.looked_at = 1
    for tenant, collection, kind, state, count, first in rows[:_MOST]:
        told = f"tenant {tenant or 'unknown'}, {collection}: {count:,} {state} ({kind}), the first is {first}"
        data = {
            "tenant": str(tenant) if tenant else None,
            "collection": collection,
            "state": state,
            "kind": kind,
            "letters": count,
            "first_letter": first,
        }
        findings.found.append(Finding(told, True, count, data))
    if len(rows) > _MOST:
        findings.not_looked_at.append(f"only the {_MOST:,} largest groups of dead letters are told")
    return findings
