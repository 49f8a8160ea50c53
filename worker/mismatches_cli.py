"""`crossfade mismatches`: what the reconciler has found, and one document as both sides have it now."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any
from uuid import UUID

import click

from topics import TopicNames, Version, key_to_id
from topics.envelope import MAX_ORDER
from worker import mismatch_report as report
from worker.errors import ConfigurationError
from worker.extended_json import extended, parse_id
from worker.mapping import Plans, hashes
from worker.mapping import load as load_mapping
from worker.mongo.client import connect as connect_mongo
from worker.postgres import ledger, mapping_versions, mismatches, reconciliation
from worker.postgres.connect import connect
from worker.postgres.mismatches import STATES, MismatchRow
from worker.reconcile.judge import Identity
from worker.reconcile.sides import Both, Sides
from worker.settings import Settings, load

_LISTED = 100
_MISSING = object()


@click.group(name="mismatches")
def mismatches_() -> None:
    """Documents that do not fit: what the reconciler has found.

    \b
    Examples:
      crossfade mismatches list --state real
      crossfade mismatches list --tenant 6f9619ff-8b86-d011-b42d-00c04fc964ff --json
      crossfade mismatches show spaces.pages 6f9619ff-8b86-d011-b42d-00c04fc964ff
    """


@mismatches_.command(name="list")
@click.option("--tenant", type=click.UUID, help="Of one tenant, and of documents whose tenant none can tell.")
@click.option("--collection", help="Of one collection: database.name, as the mapping has it.")
@click.option("--state", type=click.Choice(STATES), help="Only these.")
@click.option("--limit", default=_LISTED, show_default=True, type=click.IntRange(1, 100_000), help="At most.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
def list_(tenant: UUID | None, collection: str | None, state: str | None, limit: int, as_json: bool) -> None:
    """List mismatches: ids, the fields that differ, and both types; never a value.

    Exit 1 where there are any.

    \b
    Examples:
      crossfade mismatches list --state real
      crossfade mismatches list --collection spaces.pages --json
    """
    rows = asyncio.run(_read(tenant=tenant, namespace=collection, state=state, limit=limit))
    found = [report.told(row) for row in rows]
    if as_json:
        report.print_json(found)
    elif found:
        report.print_table(found)
    else:
        click.echo("none")
    sys.exit(1 if found else 0)


async def _read(**which: Any) -> list[MismatchRow]:
    connection = await connect(load().postgres_dsn.get_secret_value(), "mismatches")
    try:
        return await mismatches.read(connection, **which)
    finally:
        connection.terminate()


@mismatches_.command()
@click.argument("collection", metavar="COLLECTION")
@click.argument("id_", metavar="ID")
@click.option(
    "--values", is_flag=True, help="Print the values that differ too. WARNING: they are your customers' data."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(collection: str, id_: str, values: bool, as_json: bool) -> None:
    """Read one document from both databases now, and tell how it fits and what was known of it.

    COLLECTION is database.name; ID a row id, an ObjectId's 24 digits, or an _id as extended JSON, as `list`
    prints it. Values are printed only with --values: then those of the fields that differ, or the whole
    document where there is nothing to compare it with.

    Exit 0 where it fits now, 1 where it does not. One look cannot tell a lag from a mismatch: the state can.

    \b
    Examples:
      crossfade mismatches show spaces.pages 6f9619ff-8b86-d011-b42d-00c04fc964ff
      crossfade mismatches show shop.orders '"home"' --values
      crossfade mismatches show shop.orders 65f1c0ffee65f1c0ffee65f1 --json
    """
    told = asyncio.run(_look(load(), collection, id_, values))
    if as_json:
        report.print_json(told)
    else:
        click.echo("\n".join(_lines(told)))
    sys.exit(0 if told["fits"] else 1)


async def _look(settings: Settings, namespace: str, text: str, values: bool) -> dict[str, Any]:
    if settings.postgres_reader_dsn is None:
        raise ConfigurationError(
            "CROSSFADE_POSTGRES_READER_DSN: not set",
            remedy="name a role that sees the rows of every tenant, as crossfade_reader does",
        )
    mapping, names = load_mapping(settings.mapping), TopicNames(settings.topic_prefix)
    if Plans(mapping).find(namespace) is None:
        raise ConfigurationError(
            f"the mapping names no collection {namespace}", remedy="write it as database.name"
        )
    async with AsyncExitStack() as stack:
        store = await connect(settings.postgres_dsn.get_secret_value(), "mismatches")
        stack.callback(store.terminate)
        reader = await connect(
            settings.postgres_reader_dsn.get_secret_value(),
            "mismatches reader",
            setting="CROSSFADE_POSTGRES_READER_DSN",
        )
        stack.callback(reader.terminate)
        await reconciliation.require(store, reader, [table.table for table in Plans(mapping).tables()])
        await mapping_versions.agree(store, hashes(mapping))
        client = await connect_mongo(settings.mongo_uri.get_secret_value(), "mismatches")
        stack.callback(client.close)
        topics = {str(one): (names.stream(one), settings.topic_partitions) for one in mapping.namespaces()}
        sides = Sides(client, mapping, topics)
        source, id_ = sides.source(namespace), parse_id(text, "ID")
        row_id = id_ if isinstance(id_, UUID) else source.plan.row_id(id_)
        rows = await mismatches.read(store, namespace=source.namespace, row_id=row_id)
        if isinstance(id_, UUID) and rows and rows[0]["document_id"] is not None:
            source, id_ = sides.source(rows[0]["collection"]), key_to_id(rows[0]["document_id"])
            identity = source.identity(row_id, id_)
        elif isinstance(id_, UUID):
            identity = await sides.named(reader, source, row_id)
        else:
            identity = source.identity(row_id, id_)
        both = await sides.both(reader, source, identity)
        entry = await ledger.standing(store, source.namespace, row_id)
        return _told(identity, both, rows[0] if rows else None, entry, values)


def _told(
    identity: Identity, both: Both, row: MismatchRow | None, entry: ledger.Standing | None, values: bool
) -> dict[str, Any]:
    look = both.look
    told: dict[str, Any] = {
        "collection": identity.collection,
        "row_id": str(identity.row_id),
        "id": None if identity.document_id is None else extended(key_to_id(identity.document_id)),
        "fits": look.kind is None,
        "kind": look.kind,
        "told": look.told or None,
        "mongo": {
            "there": both.in_mongo,
            "tenant": str(look.tenant) if both.in_mongo and look.tenant else None,
            "digest": _hex(look.mongo),
        },
        "postgres": {
            "there": both.in_postgres,
            "tenant": str(look.row_tenant or look.tenant) if both.in_postgres and look.tenant else None,
            "digest": _hex(look.postgres),
        },
        "fields": report.fields(look.fields),
        "ledger": entry
        and {
            "state": "held" if entry.state == "refetch" else entry.state,
            "version": _version(entry.version),
            "tenant": entry.tenant_id and str(entry.tenant_id),
            "batch_id": entry.batch_id,
        },
        "known": row and _known(row),
    }
    if values:
        _add_values(told, both)
    return told


def _known(row: MismatchRow) -> dict[str, Any]:
    version = None if row["version_time"] is None else Version(row["version_time"], row["version_order"])
    return report.told(row) | {
        "version": None if version is None else _version(version),
        "mongo_digest": _hex(row["mongo_digest"]),
        "postgres_digest": _hex(row["postgres_digest"]),
        "repaired_at": row["repaired_at"],
    }


def _add_values(told: dict[str, Any], both: Both) -> None:
    for side, document in (("mongo", both.document), ("postgres", both.rebuilt)):
        if not told["fields"]:
            told[side]["document"] = None if document is None or told["fits"] else extended(document)
        for field in told["fields"]:
            found = next(_at(document, field["path"]), _MISSING)
            field[f"{side}_value"] = None if found is _MISSING else extended(found)


def _at(value: Any, path: str) -> Iterator[Any]:
    """Yield the value at a path; a name may have dots in it."""
    if not path:
        yield value
    elif isinstance(value, dict):
        for name in value:
            if path == name or path.startswith(f"{name}."):
                yield from _at(value[name], path[len(name) + 1 :])
    elif isinstance(value, list):
        place, _, rest = path.partition(".")
        if place.isdecimal() and int(place) < len(value):
            yield from _at(value[int(place)], rest)


def _lines(told: dict[str, Any]) -> list[str]:
    kind = "fits" if told["fits"] else f"{told['kind']}" + (f": {told['told']}" if told["told"] else "")
    shown = [f"{'now':<16} {kind}"]
    for name in ("collection", "row_id"):
        shown.append(f"{name:<16} {told[name]}")
    shown.append(f"{'id':<16} {report.shown_id(told)}")
    for side in ("mongo", "postgres"):
        one = told[side]
        what = f"tenant {one['tenant'] or '-'}, digest {one['digest'] or '-'}" if one["there"] else "nothing"
        shown.append(f"{side:<16} {what}")
        if one.get("document") is not None:
            shown.append(f"{'':<16} {json.dumps(one['document'], ensure_ascii=False)}")
    for line, field in zip(report.lines_of_fields(told["fields"]), told["fields"], strict=True):
        shown.append(f"{'differs':<16} {line}")
        for side in ("mongo", "postgres"):
            if f"{side}_value" in field and field[side] is not None:
                shown.append(f"{'':<16} {side}: {json.dumps(field[f'{side}_value'], ensure_ascii=False)}")
    if entry := told["ledger"]:
        shown.append(
            f"{'ledger':<16} {entry['state']}, version {_shown_version(entry['version'])}, "
            f"batch {entry['batch_id']}"
        )
    if (known := told["known"]) is None:
        return [*shown, f"{'known':<16} not as a mismatch"]
    repaired = f", last {known['repaired_at']:%Y-%m-%d %H:%M:%SZ}" if known["repaired_at"] else ""
    return [
        *shown,
        f"{'known':<16} {known['state']}, {known['kind']}: {known['reason']}",
        f"{'first seen':<16} {known['first_seen_at']:%Y-%m-%d %H:%M:%SZ}",
        f"{'as it is since':<16} {known['since']:%Y-%m-%d %H:%M:%SZ}",
        f"{'looked at':<16} {known['checked_at']:%Y-%m-%d %H:%M:%SZ}",
        f"{'seen otherwise':<16} {known['changes']} times",
        f"{'sent anew':<16} {known['repairs']} times{repaired}",
    ]


def _version(version: Version) -> dict[str, Any]:
    order = "snapshot" if version.order == MAX_ORDER else version.order
    return {"t": version.time >> 32, "i": version.time & 0xFFFFFFFF, "order": order}


def _shown_version(version: dict[str, Any]) -> str:
    return f"{version['t']}.{version['i']} {version['order']}"


def _hex(digest: int | None) -> str | None:
    return None if digest is None else f"{digest:032x}"
