"""What is wrong with the rows as they are: `crossfade check --integrity`, each check a `Check`.

Nothing is changed: rows and dead letters are read by the reader's role, documents are counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

from worker.errors import UsageError
from worker.mapping import Mapping as MappingFile
from worker.mongo.client import connect as connect_mongo
from worker.mongo.counts import Documents, count_documents
from worker.postgres.findings import Findings
from worker.postgres.integrity import (
    CHECKS,
    CHILDREN,
    LETTERS,
    ORPHANS,
    ROWS,
    TENANTS,
    UNIQUENESS,
    VECTORS,
    Looked,
    look_at_integrity,
)
from worker.prechecks import Check, connect_reader, failed, not_made, valid_mapping
from worker.settings import Settings

_MOST_TENANTS = 10_000  # told of each table, those with most rows

_SUMMARIES = {
    ORPHANS: "{rows:,} rows of {looked_at} references refer to rows that are not there",
    TENANTS: "{rows:,} rows of {looked_at} tables have a tenant that is not there",
    CHILDREN: "{rows:,} rows break {looked_at} rules of child tables: the parent is there, and of one tenant",
    VECTORS: "{rows:,} of the vectors in {looked_at} columns are null or stale",
    UNIQUENESS: "{rows:,} rows break {looked_at} rules of uniqueness",
    LETTERS: "`crossfade dead-letters list` tells why; mend the documents, then replay what still stands",
}
_REMEDIES = {
    ORPHANS: "when all copies are done, mend these documents in MongoDB or bring back what they refer to",
    TENANTS: "when all copies are done, bring back the tenants' documents, or delete what is left of them",
    CHILDREN: "`crossfade copy start --collection` with the collection makes its rows anew",
    VECTORS: "enable the trigger ALWAYS, or mend what makes the vector (coalesce each column), then let it "
    "make these rows' vectors anew: `crossfade copy start --collection`, or UPDATE once they are the "
    "application's",
    UNIQUENESS: "mend each as it says",
    LETTERS: "`crossfade dead-letters list` tells why; mend the documents, then replay what still stands",
}
_UNSEEN = (
    "let CROSSFADE_POSTGRES_READER_DSN name a role that may do so, as crossfade_reader, or give --timeout "
    "more seconds"
)


async def run_integrity(
    settings: Settings,
    *,
    tenant: UUID | None,
    limit: int,
    seconds: float,
    progress: Callable[[str], None],
) -> list[Check]:
    """Make every check. ``limit``: row ids named of each finding; ``seconds``: for each statement."""
    mapping, [first, *_] = valid_mapping(settings)
    if mapping is None:
        return [first, *not_made(CHECKS, "mapping")]
    looked, documents = await asyncio.gather(
        _rows(settings, mapping, tenant, limit, seconds, progress),
        _documents(settings, mapping, tenant, seconds),
    )
    if isinstance(looked, UsageError):
        return [first, *(failed(name, looked) for name in CHECKS)]
    return [first, *(_check(name, looked, mapping, documents) for name in CHECKS)]


async def _rows(
    settings: Settings,
    mapping: MappingFile,
    tenant: UUID | None,
    limit: int,
    seconds: float,
    progress: Callable[[str], None],
) -> Looked | UsageError:
    try:
        connection = await connect_reader(settings, seconds)
        try:
            return await look_at_integrity(
                connection, mapping, tenant=tenant, limit=limit, seconds=seconds, progress=progress
            )
        finally:
            connection.terminate()
    except UsageError as error:
        return error


async def _documents(
    settings: Settings, mapping: MappingFile, tenant: UUID | None, seconds: float
) -> dict[str, Documents] | UsageError:
    try:
        client = await connect_mongo(settings.mongo_uri.get_secret_value(), "check")
        try:
            return await count_documents(client, mapping, tenant=tenant, seconds=seconds)
        finally:
            client.close()
    except UsageError as error:
        return error


def _check(
    name: str,
    looked: Looked,
    mapping: MappingFile,
    documents: dict[str, Documents] | UsageError,
) -> Check:
    findings = looked.findings[name]
    if name == ROWS:
        return _counts(findings, looked.tenants, mapping, documents)
    lines = [one.told for one in findings.found] + [f"not looked at: {one}" for one in findings.not_looked_at]
    told = _SUMMARIES[name].format(rows=findings.rows(), looked_at=findings.looked_at)
    detail = told + "".join(f"\n{line}" for line in lines)
    data = [one.data for one in findings.found]
    if findings.wrong():
        own = dict.fromkeys(findings.remedies)
        return Check(name, False, detail, "; ".join(own) or _REMEDIES[name], data)
    if findings.not_looked_at:
        return Check(name, None, detail, "; ".join(findings.remedies) or _UNSEEN, data)
    return Check(name, True, detail, findings=data)


def _counts(
    findings: Findings,
    tenants: Mapping[str, Mapping[UUID | None, int]],
    mapping: MappingFile,
    documents: dict[str, Documents] | UsageError,
) -> Check:
    """Return the rows of each table, and beside those of a document the documents of its collection.

    They are of different moments: whether they are equal is the reconciler's to say.
    """
    lines: list[str] = []
    data: list[dict[str, Any]] = []
    for collection, one in mapping.collections.items():
        counted = None if isinstance(documents, UsageError) else documents.get(collection)
        for table, _ in one.tables():
            if table not in tenants:
                continue
            rows = sum(tenants[table].values())
            lines.append(f"{table}: {rows:,} rows")
            entry: dict[str, Any] = {"table": table, "rows": rows, **_by_tenant(tenants[table])}
            if table == one.table:
                lines[-1] += f"; {collection} in MongoDB: {_shown(counted)}"
                entry |= {"collection": collection, "documents": counted.number if counted else None}
                entry["documents_are"] = _kind(counted)
            data.append(entry)
    lines += [f"not looked at: {why}" for why in findings.not_looked_at]
    total = sum(sum(table.values()) for table in tenants.values())
    detail = f"{total:,} rows in {len(tenants)} tables" + "".join(f"\n{line}" for line in lines)
    if isinstance(documents, UsageError):
        return Check(ROWS, None, f"{detail}\n{documents.message}", documents.remedy, data)
    if findings.not_looked_at:
        return Check(ROWS, None, detail, _UNSEEN, data)
    return Check(ROWS, True, detail, findings=data)


def _by_tenant(rows: Mapping[UUID | None, int]) -> dict[str, Any]:
    most = sorted(rows.items(), key=lambda one: (-one[1], str(one[0])))
    told = [{"tenant": str(tenant) if tenant else None, "rows": n} for tenant, n in most[:_MOST_TENANTS]]
    return {"tenants": told, "tenants_left_out": max(0, len(rows) - _MOST_TENANTS)}


def _kind(counted: Documents | None) -> str | None:
    if counted is None or counted.number is None:
        return None
    return "exact" if counted.exact else "estimated"


def _shown(counted: Documents | None) -> str:
    if counted is None:
        return "not counted"
    if counted.number is None:
        return f"not counted, as {counted.why}"
    return f"{counted.number:,} documents ({_kind(counted)})"
