"""Search vectors that are null, or are not what their row's text gives today.

A generated column is made by PostgreSQL with each write: only NULL is looked for. One that a BEFORE INSERT
trigger makes is made anew: in a transaction that is rolled back the rows of a chunk are copied into a
temporary table that has the same trigger, and both vectors compared. That transaction is read-only before the
trigger runs, so PostgreSQL itself refuses whatever else the trigger would write; the application's tables are
read, as by any SELECT.

Which triggers make a column: those of tsvector_update_trigger that name it, and those whose function or
arguments do. A vector that no trigger names is looked at for NULL alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from worker.postgres.catalog import Catalog
from worker.postgres.findings import Finding, Findings, some
from worker.postgres.target import quoted
from worker.postgres.walk import NotLookedAt, Range, Rows, Walked, Walker


@dataclass(frozen=True, slots=True)
class _Maker:
    """A trigger: ``rest`` is its definition behind the table's name; None where it does not fire in time."""

    name: str
    rest: str | None


@dataclass(slots=True)
class _Vector:
    column: str
    generated: bool
    makers: list[_Maker]
    null: Rows
    stale: Rows | None = None

    @property
    def made_by(self) -> str:
        if self.generated:
            return "generated"
        return "trigger" if self.makers else "nothing known"


# Ours fence and capture, and make nothing. A disabled trigger counts: its vectors are the first to be stale.
_TRIGGERS = """
SELECT t.name, g.tgname::text, g.tgtype & 7 = 7, pg_get_triggerdef(g.oid),
    format(' ON %I.%I FOR EACH ROW ', n.nspname, c.relname), encode(g.tgargs, 'escape'), p.prosrc
FROM unnest($1::text[]) AS t(name)
JOIN pg_catalog.pg_trigger g ON g.tgrelid = to_regclass(quote_ident(t.name))
JOIN pg_catalog.pg_class c ON c.oid = g.tgrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_proc p ON p.oid = g.tgfoid
WHERE NOT g.tgisinternal AND p.pronamespace IS DISTINCT FROM to_regnamespace('crossfade')
ORDER BY g.tgname
"""


async def look_at_vectors(walker: Walker, catalog: Catalog, tables: Mapping[str, Walked]) -> Findings:
    """Look at every tsvector column of these tables."""
    findings = Findings()
    triggers = await walker.ask("the catalog", _TRIGGERS, list(tables))
    for table in tables.values():
        vectors = [
            _Vector(name, made, [] if made else _makers(table, name, triggers), Rows())
            for name, one in catalog.tables[table.name].columns.items()
            if one.type == "tsvector" and one.builtin and not one.array
            for made in (one.always == "generated",)
        ]
        if not vectors:
            continue
        if unseen := catalog.unseen(catalog.tables[table.name].qualified):
            findings.not_looked_at.append(f"{table.name}: {unseen}")
            continue
        try:
            nulls = {one.column: f"t.{quoted(one.column)} IS NULL" for one in vectors}
            seen = await walker.look(table, nulls, f"search vectors of {table.name}")
        except NotLookedAt as error:
            findings.not_looked_at.append(str(error))
            continue
        for vector in vectors:
            vector.null = seen.met[vector.column]
        await _make_anew(walker, table, [one for one in vectors if one.makers], findings)
        findings.looked_at += len(vectors)
        findings.found += [_finding(table, vector) for vector in vectors]
    return findings


def _makers(table: Walked, column: str, triggers: Sequence[Any]) -> list[_Maker]:
    word = re.compile(rf"(?<!\w){re.escape(column)}(?!\w)")
    return [
        _Maker(name, definition.partition(place)[2] if in_time else None)
        for of, name, in_time, definition, place, arguments, source in triggers
        if of == table.name and (word.search(arguments.replace("\\000", " ")) or word.search(source or ""))
    ]


async def _make_anew(walker: Walker, table: Walked, vectors: list[_Vector], findings: Findings) -> None:
    """Count the vectors that are not NULL and come out otherwise; or tell why they cannot be made."""
    made = [one for one in vectors if all(maker.rest for maker in one.makers)]
    for vector in vectors:
        if vector not in made:
            names = ", ".join(maker.name for maker in vector.makers if not maker.rest)
            told = f"{table.name} ({vector.column}): trigger {names} is no BEFORE INSERT ... FOR EACH ROW one"
            findings.not_looked_at.append(f"{told}: whether vectors are stale is unknown")
    if not made:
        return
    if not table.unique:
        findings.not_looked_at.append(f"{table.name}: without a unique index on its key nothing is compared")
        return
    found = {one.column: Rows() for one in made}
    copy, compare = _copy(table, made), _Compare(table, made)

    async def read(range_: Range) -> int:
        await walker.connection.execute(copy)
        await walker.connection.execute("SET LOCAL transaction_read_only = on")
        for id_, *changed in await walker.connection.fetch(compare.sql(range_), *range_.arguments):
            for vector, differs in zip(made, changed, strict=True):
                rows = found[vector.column]
                rows.count += differs
                if differs and len(rows.ids) < walker.limit:
                    rows.ids.append(id_)
        count = f"SELECT count(*) FROM pg_temp.{quoted(table.name)}"  # noqa: S608
        return await walker.connection.fetchval(count) or 0

    names = ", ".join(sorted({maker.name for one in made for maker in one.makers}))
    told = f"{table.name}: trigger {names} on a temporary copy"
    try:
        await walker.walk(table, read, chunk=table.narrow_chunk, told=told, temporary=True)
    except NotLookedAt as error:
        findings.not_looked_at.append(str(error))
        return
    for vector in made:
        vector.stale = found[vector.column]


def _copy(table: Walked, vectors: Sequence[_Vector]) -> str:
    """Return the statements that make an empty copy of the table, of the same name, with these triggers.

    Of the same name, as a function that serves many tables may go by it.
    """
    copy = f"pg_temp.{quoted(table.name)}"
    rests = {maker.name: maker.rest for vector in vectors for maker in vector.makers}
    return f"CREATE TEMPORARY TABLE {quoted(table.name)} (LIKE {table.qualified}) ON COMMIT DROP" + "".join(
        f"; CREATE TRIGGER {quoted(name)} BEFORE INSERT ON {copy} FOR EACH ROW {rest}"
        for name, rest in rests.items()
    )


@dataclass(frozen=True, slots=True)
class _Compare:
    """The statement that copies a chunk and returns the rows whose vectors differ, with which of them."""

    table: Walked
    vectors: Sequence[_Vector]

    def sql(self, range_: Range) -> str:
        """Return it for a chunk."""
        key = [quoted(name) for name in self.table.key]
        names = [quoted(one.column) for one in self.vectors]
        same = " AND ".join(f"made.{name} = t.{name}" for name in key)
        differ = [f"t.{name} IS NOT NULL AND made.{name} IS DISTINCT FROM t.{name}" for name in names]
        copy, source = f"pg_temp.{quoted(self.table.name)}", f"{self.table.qualified} AS t"
        return (
            f"WITH made AS (INSERT INTO {copy} SELECT t.* FROM {source} WHERE {range_.where} "  # noqa: S608
            f"RETURNING {', '.join(dict.fromkeys([*key, *names]))}) "
            f"SELECT {self.table.named}, {', '.join(differ)} FROM {source} LEFT JOIN made ON {same} "
            f"WHERE {range_.where} AND ({' OR '.join(differ)}) "
            f"ORDER BY {self.table.ordered}"
        )


def _finding(table: Walked, vector: _Vector) -> Finding:
    names = ", ".join(maker.name for maker in vector.makers)
    by = {
        "generated": "generated by PostgreSQL, so never stale",
        "trigger": f"made by trigger {names}",
        "nothing known": "no trigger makes it",
    }[vector.made_by]
    stale = vector.stale
    told = f"{table.name} ({vector.column}): {by}; null: {some(vector.null.count, vector.null.ids)}"
    if stale is not None:
        told += f"; stale: {some(stale.count, stale.ids)}"
    rows = vector.null.count + (stale.count if stale else 0)
    data = {
        "table": table.name,
        "column": vector.column,
        "made_by": vector.made_by,
        "triggers": [maker.name for maker in vector.makers],
        "null": vector.null.count,
        "null_row_ids": vector.null.ids,
        "stale": stale.count if stale else None,
        "stale_row_ids": stale.ids if stale else [],
    }
    return Finding(told, rows > 0, rows, data)
