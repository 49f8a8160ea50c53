"""What must be true before a migration can go well, each a `Check` with a name, an answer and a remedy.

A check never changes anything. Where it depends on another that failed, it is told as not made.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from topics import TopicNames, declare_all
from worker.broker.access import access
from worker.broker.admin import advice, look_at_topics, misfits
from worker.errors import ConfigurationError, MappingError, ServiceUnavailable, UsageError
from worker.mapping import Mapping, load
from worker.mongo.client import connect as connect_mongo
from worker.mongo.missing import missing_collections
from worker.postgres.connect import ANSWER_WITHIN, Connection, connect
from worker.postgres.faults import FAULTS, describe
from worker.postgres.orphans import Orphans, find_orphans
from worker.postgres.replication import cascades, why_no_replica
from worker.postgres.standing import read_standing
from worker.postgres.tables import table_faults
from worker.postgres.triggers import disabled, enable
from worker.settings import Settings


@dataclass(frozen=True, slots=True)
class Check:
    """One precondition. ``ok`` is None where it could not be made; ``findings`` is the detail as data."""

    name: str
    ok: bool | None
    detail: str
    remedy: str = ""
    findings: Sequence[dict[str, Any]] = ()


_TABLES, _TRIGGERS, _ROLE, _ORPHANS = "tables", "triggers", "replication role", "orphans"
_COLLECTIONS = "collections"


async def run_checks(settings: Settings, *, limit: int, seconds: float) -> list[Check]:
    """Make every check. ``limit``: row ids named of each reference that dangles; ``seconds``: for each."""
    mapping, first = valid_mapping(settings)
    made = await asyncio.gather(
        _postgresql(settings, mapping),
        _orphans(settings, mapping, limit, seconds),
        _mongodb(settings, mapping),
        _kafka(settings, mapping),
    )
    return [*first, *(check for checks in made for check in checks)]


def valid_mapping(settings: Settings) -> tuple[Mapping | None, list[Check]]:
    """Check the mapping file alone, and name what MongoDB will not be able to fence."""
    try:
        mapping = load(settings.mapping)
    except MappingError as error:
        return None, [Check("mapping", False, error.message, error.remedy)]
    tables = sum(len(one.tables()) for one in mapping.collections.values())
    told = f"{len(mapping.collections)} collections, {tables} tables"
    unfenceable = [{"collection": name, "reason": why} for name, why in mapping.unfenceable().items()]
    lines = "".join(f"\n{one['collection']}: {one['reason']}" for one in unfenceable)
    but = f" but {len(unfenceable)}" if unfenceable else ""
    fences = f"MongoDB can refuse writes by tenant in all collections{but}{lines}"
    return mapping, [Check("mapping", True, told), Check("fences", True, fences, findings=unfenceable)]


async def tables(connection: Connection, mapping: Mapping) -> Check:
    """Check that the live tables take every row of the mapping."""
    faults = await table_faults(connection, mapping)
    if not faults:
        return Check(_TABLES, True, "the live tables fit the mapping")
    return Check(
        _TABLES,
        False,
        f"{len(faults)} faults" + "".join(f"\n{fault}" for fault in faults),
        "mend each as it says; apply does not start before",
        [
            {"table": one.table, "column": one.column, "wrong": one.wrong, "remedy": one.remedy}
            for one in faults
        ],
    )


async def triggers(connection: Connection, mapping: Mapping) -> Check:
    """Check that no trigger of the mapped tables is disabled."""
    found = await disabled(connection, mapping)
    if not found:
        return Check(_TRIGGERS, True, "no trigger of the mapped tables is disabled")
    lines = "".join(f"\n{one}: {enable(one)}" for one in found)
    told = f"{len(found)} disabled: rows lack what they make{lines}"
    again = "enable each, then `crossfade copy start --collection ...` makes the rows anew"
    return Check(_TRIGGERS, False, told, again, [one._asdict() for one in found])


async def replication_role(connection: Connection, mapping: Mapping, wanted: str) -> Check:
    """Check how apply will write: past foreign keys and triggers, or with them."""
    why = await why_no_replica(connection, mapping)
    if why is not None and wanted == "replica":
        return Check(_ROLE, False, why[0], f"{why[1]}, or set CROSSFADE_REPLICATION_ROLE=auto")
    if why is None and wanted != "origin":
        return Check(_ROLE, True, "replica: apply's writes pass by foreign keys and ordinary triggers")
    told = "origin: foreign keys and triggers see apply's writes; what violates one is parked"
    if following := await cascades(connection, mapping):
        lines = "".join(f"\n{one}" for one in following)
        told += f"; these foreign keys would change rows whose documents are still there{lines}"
        other = f", or {why[1]}" if why else ", or set CROSSFADE_REPLICATION_ROLE=auto"
        return Check(_ROLE, False, told, f"make them ON DELETE NO ACTION{other}")
    return Check(_ROLE, True, told)


async def orphans(connection: Connection, mapping: Mapping, limit: int, seconds: float) -> Check:
    """Check that every reference finds its row."""
    found = await find_orphans(connection, mapping, limit=limit, seconds=seconds)
    rows = sum(one.count for one in found.orphans)
    told = f"{rows} rows of {found.looked_at} references refer to rows that are not there"
    lines = [*map(_line, found.orphans), *(f"not looked at: {one}" for one in found.not_looked_at)]
    detail = told + "".join(f"\n{line}" for line in lines)
    findings = [
        {
            "table": one.reference.table,
            "columns": list(one.reference.columns),
            "refers_to": one.reference.target,
            "rows": one.count,
            "row_ids": list(one.rows),
        }
        for one in found.orphans
    ]
    if found.orphans:
        remedy = "when all copies are done, mend these documents in MongoDB or bring back what they refer to"
        return Check(_ORPHANS, False, detail, remedy, findings)
    if found.not_looked_at:
        remedy = (
            "let CROSSFADE_POSTGRES_READER_DSN name a role with SELECT and a policy USING (true) on these "
            "tables, or give --timeout more seconds"
        )
        return Check(_ORPHANS, None, detail, remedy)
    return Check(_ORPHANS, True, detail)


def _line(found: Orphans) -> str:
    more = ", ..." if found.count > len(found.rows) else ""
    rows = f": {', '.join(found.rows)}{more}" if found.rows else ""
    return f"{found.reference}: {found.count} rows{rows}"


async def _postgresql(settings: Settings, mapping: Mapping | None) -> list[Check]:
    name, dependent = "postgresql", (_TABLES, _TRIGGERS, _ROLE)
    try:
        dsn = settings.postgres_dsn.get_secret_value()
        connection = await connect(dsn, "check", statement_timeout=ANSWER_WITHIN)
    except UsageError as error:
        return [failed(name, error), *not_made(dependent, name)]
    try:
        first = await answered(name, lambda: _control_schema(connection))
        if mapping is None:
            return [first, *not_made(dependent, "mapping")]
        wanted = settings.replication_role
        return [
            first,
            await answered(_TABLES, lambda: tables(connection, mapping)),
            await answered(_TRIGGERS, lambda: triggers(connection, mapping)),
            await answered(_ROLE, lambda: replication_role(connection, mapping, wanted)),
        ]
    finally:
        connection.terminate()


async def _control_schema(connection: Connection) -> Check:
    standing = await read_standing(connection)
    known = sum(standing.tenants.values())
    return Check("postgresql", True, f"reached; the control schema knows {known} tenants")


async def _orphans(settings: Settings, mapping: Mapping | None, limit: int, seconds: float) -> list[Check]:
    if mapping is None:
        return not_made((_ORPHANS,), "mapping")
    try:
        connection = await connect_reader(settings, seconds)
    except UsageError as error:
        return [failed(_ORPHANS, error)]
    try:
        return [await answered(_ORPHANS, lambda: orphans(connection, mapping, limit, seconds))]
    finally:
        connection.terminate()


async def connect_reader(settings: Settings, seconds: float) -> Connection:
    """Return a connection that sees every tenant's rows; ``seconds``: the server's limit of a statement."""
    if settings.postgres_reader_dsn is None:
        raise ConfigurationError(
            "needs a role that sees the rows of every tenant",
            remedy="set CROSSFADE_POSTGRES_READER_DSN, as crossfade_reader",
        )
    return await connect(
        settings.postgres_reader_dsn.get_secret_value(),
        "check",
        setting="CROSSFADE_POSTGRES_READER_DSN",
        statement_timeout=seconds + ANSWER_WITHIN,
    )


async def _mongodb(settings: Settings, mapping: Mapping | None) -> list[Check]:
    name, dependent = "mongodb", (_COLLECTIONS,)
    try:
        client = await connect_mongo(settings.mongo_uri.get_secret_value(), "check")
    except UsageError as error:
        return [failed(name, error), *not_made(dependent, name)]
    try:
        first = Check(name, True, "reached; it is a replica set or mongos")
        if mapping is None:
            return [first, *not_made(dependent, "mapping")]

        async def collections() -> Check:
            missing = await missing_collections(client, mapping)
            if not missing:
                return Check(_COLLECTIONS, True, f"MongoDB has all {len(mapping.collections)}")
            told = f"database {mapping.database} lacks {', '.join(missing)}"
            if settings.allow_missing_collections:
                return Check(_COLLECTIONS, True, f"{told}; they may come later")
            remedy = "mend the mapping, or set CROSSFADE_ALLOW_MISSING_COLLECTIONS=true when they come later"
            return Check(_COLLECTIONS, False, told, remedy)

        return [first, await answered(_COLLECTIONS, collections)]
    finally:
        client.close()


async def _kafka(settings: Settings, mapping: Mapping | None) -> list[Check]:
    if mapping is None:
        return not_made(("kafka",), "mapping")
    declared = declare_all(
        TopicNames(settings.topic_prefix),
        list(mapping.namespaces()),
        partitions=settings.topic_partitions,
        replication=settings.topic_replication,
    )

    async def topics() -> Check:
        found, missing = await look_at_topics(await access(settings), declared)
        faults = [fault for one in found for fault in misfits(one)] + [why for why in missing.values() if why]
        if faults:
            lines = "".join(f"\n{fault}" for fault in faults)
            return Check("kafka", False, f"{len(faults)} faults{lines}", "mend each as it says")
        told = [line for one in found for line in advice(one)]
        lines = "".join(f"\n{line}" for line in told)
        of_them = f"reached; of {len(declared)} topics {len(missing)} are to be created"
        return Check("kafka", True, of_them + lines)

    return [await answered("kafka", topics)]


async def answered(name: str, check: Callable[[], Awaitable[Check]]) -> Check:
    """Make a check; an error that a person can mend is its answer."""
    try:
        return await check()
    except UsageError as error:
        return failed(name, error)
    except FAULTS as error:
        return Check(name, None, f"PostgreSQL does not answer ({describe(error)})", "check the server")


def failed(name: str, error: UsageError) -> Check:
    """Return what an error makes of a check: unknown where it could not be asked, else false."""
    ok = None if isinstance(error, ServiceUnavailable | ConfigurationError) else False
    return Check(name, ok, error.message, error.remedy)


def not_made(names: Iterable[str], because: str) -> list[Check]:
    """Return checks that another one comes before."""
    return [Check(name, None, f"not made: {because} comes first") for name in names]
