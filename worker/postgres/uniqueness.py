"""Rows that a unique index or constraint should have kept apart and did not.

A valid index that is checked at once does. One that is not valid, as CREATE INDEX CONCURRENTLY leaves it when
it fails, does not; nor does a deferrable constraint for a session_replication_role = replica, unless its
trigger is ENABLE ALWAYS; nor does the mapping's key where the table has no index on it. There rows are looked
for that are equal: NULLs are not, unless the index says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from worker.postgres.catalog import Catalog
from worker.postgres.constraints import skipped_by_replica
from worker.postgres.findings import Finding, Findings, some
from worker.postgres.target import quoted
from worker.postgres.walk import NotLookedAt, Rows, Walked, Walker


class _Index(NamedTuple):
    name: str
    working: bool
    immediate: bool


@dataclass(slots=True)
class _Rule:
    """What must be unique: ``columns`` and ``predicate`` as SQL writes them, and the indexes that say so."""

    table: Walked
    columns: tuple[str, ...]
    predicate: str | None
    nulls_equal: bool
    key: bool = False
    indexes: list[_Index] = field(default_factory=list[_Index])

    def enforced(self) -> bool:
        return any(one.working and one.immediate for one in self.indexes)

    def deferrable(self) -> bool:
        return any(one.working for one in self.indexes)

    def broken(self) -> list[str]:
        return [one.name for one in self.indexes if not one.working]

    def __str__(self) -> str:
        where = f" where {self.predicate}" if self.predicate else ""
        return f"{self.table.name} ({', '.join(self.columns)}){where}"


_RULES = """
SELECT t.name, i.indexrelid::regclass::text, i.indisvalid, i.indimmediate, ARRAY(
    SELECT pg_get_indexdef(i.indexrelid, n, false) FROM generate_series(1, i.indnkeyatts) AS n ORDER BY n),
    pg_get_expr(i.indpred, i.indrelid),
    coalesce((to_jsonb(i)->>'indnullsnotdistinct')::boolean, false)
FROM unnest($1::text[]) AS t(name)
JOIN pg_catalog.pg_index i ON i.indrelid = to_regclass(quote_ident(t.name))
WHERE i.indisunique ORDER BY 1, 2
"""
_EXCLUSIONS = """
SELECT t.name, c.conname::text
FROM unnest($1::text[]) AS t(name)
JOIN pg_catalog.pg_constraint c ON c.conrelid = to_regclass(quote_ident(t.name))
WHERE c.contype = 'x' AND c.condeferrable ORDER BY 1, 2
"""


async def look_for_duplicates(walker: Walker, catalog: Catalog, tables: Mapping[str, Walked]) -> Findings:
    """Look at every unique index of these tables, and at their keys."""
    findings = Findings()
    names = list(tables)
    rules = _rules(tables, await walker.ask("the catalog", _RULES, names))
    for rule in rules:
        findings.looked_at += 1
        if rule.enforced():
            continue
        if unseen := catalog.unseen(catalog.tables[rule.table.name].qualified):
            findings.not_looked_at.append(f"{rule}: {unseen}")
            rows = None
        else:
            rows = await _duplicates(walker, rule, findings)
        if finding := _finding(rule, rows):
            findings.found.append(finding)
            findings.remedies.append(_remedy(rule, finding.rows))
    for name, constraint in await walker.ask("the catalog", _EXCLUSIONS, names):
        findings.not_looked_at.append(f"{name} ({constraint}): a deferrable exclusion constraint is not")
    if any(one.rows for one in findings.found):
        async with walker.bounded("the catalog"):
            findings.remedies += await skipped_by_replica(walker.connection, names)
    return findings


def _rules(tables: Mapping[str, Walked], rows: Iterable[Any]) -> Iterable[_Rule]:
    """Return each rule once, however many indexes say it; each table's key first."""
    rules: dict[Any, _Rule] = {}
    for table in tables.values():
        key = tuple(quoted(name) for name in table.key)
        rules[table.name, frozenset(table.key), None] = _Rule(table, key, None, False, key=True)
    for name, index, working, immediate, columns, predicate, nulls_equal in rows:
        same = (name, frozenset(column.strip('"') for column in columns), predicate)
        rule = rules.setdefault(same, _Rule(tables[name], tuple(columns), predicate, nulls_equal))
        rule.indexes.append(_Index(index, working, immediate))
    return rules.values()


async def _duplicates(walker: Walker, rule: _Rule, findings: Findings) -> Rows | None:
    try:
        if rule.deferrable() and not rule.nulls_equal:
            seen = await walker.look(rule.table, {"": _twin(rule)}, f"equal rows of {rule}")
            return seen.met[""]
        rows = await walker.ask(str(rule), _all_at_once(rule), walker.limit)
        return Rows(rows[0][0], list(rows[0][1]))
    except NotLookedAt as error:
        findings.not_looked_at.append(str(error))
    return None


def _twin(rule: _Rule) -> str:
    """Return the condition on a row ``t`` that another is equal: the index finds it."""
    same = " AND ".join(f"o.{column} = t.{column}" for column in rule.columns)
    other = "(o.tableoid, o.ctid) <> (t.tableoid, t.ctid)"
    return f"EXISTS (SELECT FROM {rule.table.qualified} AS o WHERE {same} AND {other})"


def _all_at_once(rule: _Rule) -> str:
    """Return the query for how many rows are equal to others, and the first of their keys: no index helps."""
    columns = ", ".join(rule.columns)
    conditions = [] if rule.nulls_equal else [f"({column}) IS NOT NULL" for column in rule.columns]
    conditions += [f"({rule.predicate})"] if rule.predicate else []
    return (
        f"WITH equal(id, rows) AS MATERIALIZED (SELECT id, rows FROM ("  # noqa: S608
        f"SELECT {rule.table.named} AS id, count(*) OVER (PARTITION BY {columns}) AS rows "
        f"FROM {rule.table.qualified} AS t WHERE {' AND '.join(conditions) or 'true'}) AS every "
        f"WHERE rows > 1) "
        f"SELECT (SELECT count(*) FROM equal), ARRAY(SELECT id FROM equal ORDER BY id LIMIT $1)"
    )


def _finding(rule: _Rule, rows: Rows | None) -> Finding | None:
    """Return what is wrong, if anything: equal rows, or that nothing refuses them."""
    if rule.deferrable() and not (rows and rows.count):
        return None
    if rule.deferrable():
        why = "deferrable"
    elif broken := rule.broken():
        why = f"not valid: {', '.join(broken)}"
    else:
        why = "no unique index"
    equal = "equal rows were not looked for" if rows is None else f"equal: {some(rows.count, rows.ids)}"
    data = {
        "table": rule.table.name,
        "columns": [column.strip('"') for column in rule.columns],
        "indexes": [one.name for one in rule.indexes],
        "why": why,
        "rows": rows.count if rows else None,
        "row_ids": rows.ids if rows else [],
    }
    return Finding(f"{rule}: {why}; {equal}", True, rows.count if rows else 0, data)


def _remedy(rule: _Rule, rows: int) -> str:
    first = "make the documents of equal rows differ in MongoDB; then " if rows else ""
    if rule.deferrable():
        return "make the documents of equal rows differ in MongoDB"
    if broken := rule.broken():
        return f"{first}REINDEX INDEX CONCURRENTLY {broken[0]}, unless it is being built now"
    if rule.key:
        return f"{first}ALTER TABLE {rule.table.qualified} ADD PRIMARY KEY ({', '.join(rule.columns)})"
    return first
