"""`crossfade finish`: remove everything of ours, when all tenants are complete."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from pathlib import Path

import click
import orjson

from topics import Collection, TopicNames, declare_all
from worker.broker.access import access
from worker.broker.admin import delete_groups, delete_topics, existing_groups, existing_topics
from worker.errors import ConfigurationError, UsageError
from worker.mapping import Mapping
from worker.mapping import load as load_mapping
from worker.mongo import finish as mongo
from worker.mongo.client import Client, told_clearly
from worker.mongo.client import connect as connect_mongo
from worker.mongo.fence_documents import FenceDocuments, State
from worker.mongo.fence_lock import InTheWay
from worker.mongo.validators import Validators
from worker.postgres import finish as postgres
from worker.postgres import mapping_versions
from worker.postgres.connect import Connection, connect
from worker.settings import Settings, load

_FENCE_WITHIN = 2.0


@click.command()
@click.option("--dry-run", is_flag=True, help="List what would be removed, and change nothing.")
@click.option(
    "--export",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where transitions.jsonl and audit.jsonl are written; needed, unless --dry-run.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
def finish(dry_run: bool, directory: Path | None, yes: bool) -> None:
    """Remove everything of Crossfade from both databases and Kafka. Nothing can be undone.

    Only when every tenant is complete, and no process of ours runs any more. First the audit log is exported;
    then go consumer groups and topics, what is ours in MongoDB, where applications' validators are put back,
    and at last all of it in PostgreSQL, in one transaction. Where it was interrupted, it is run again.

    \b
    Examples:
      crossfade finish --dry-run
      crossfade finish --export ./crossfade-audit
    """
    settings = load()
    if settings.postgres_admin_dsn is None:
        raise ConfigurationError(
            "CROSSFADE_POSTGRES_ADMIN_DSN: not set", remedy="name a role that may drop our schema and roles"
        )
    if not dry_run and directory is None:
        raise UsageError("--export is missing", remedy="name a directory for the audit log, or --dry-run")
    if not dry_run and not yes:
        click.confirm("This removes all that would bring a tenant back. Go on?", abort=True)
    asyncio.run(_finish(settings, settings.postgres_admin_dsn.get_secret_value(), directory, dry_run))


async def _finish(settings: Settings, dsn: str, directory: Path | None, dry_run: bool) -> None:
    mapping = load_mapping(settings.mapping)
    connection = await connect(dsn, "finish", setting="CROSSFADE_POSTGRES_ADMIN_DSN", statement_timeout=300)
    client = await connect_mongo(settings.mongo_uri.get_secret_value(), "finish")
    try:
        found = await postgres.ours(connection)
        await _require_finished(connection, found.schema, client, mapping, settings.publisher)
        kafka = await access(settings)
        namespaces = set(map(str, mapping.namespaces()))
        if found.schema:  # the file may have lost some since
            namespaces |= (await mapping_versions.known(connection)).keys()
        topics = await existing_topics(kafka, _topics(settings, namespaces))
        groups = await existing_groups(kafka, (settings.apply_group, settings.reverse_group))

        def mapped(namespace: str) -> bool:
            return namespace in namespaces or mapping.sources().find(namespace) is not None

        documents = await mongo.ours(client, mapped, settings.publisher)
        for line in _lines(found, list(topics), groups, documents):
            click.echo(line)
        if dry_run:
            return
        assert directory is not None
        if found.schema:
            directory.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - nothing else goes on
            await _export(connection, directory)
        await delete_groups(kafka, groups)
        await delete_topics(kafka, topics)
        try:
            await Validators(client, mapping, settings.publisher, "finish").restore(_FENCE_WITHIN)
        except InTheWay as error:
            raise UsageError(f"a validator cannot be put back: {error}", remedy="try again") from None
        await mongo.remove(client, mapped, settings.publisher)
        for role in await postgres.remove(connection):
            click.echo(f"role {role} stays: other databases need it, or it may not be dropped", err=True)
        click.echo("finished: nothing of Crossfade is left", err=True)
    finally:
        client.close()
        connection.terminate()


async def _require_finished(
    connection: Connection, schema: bool, client: Client, mapping: Mapping, migration: str
) -> None:
    """See that nobody needs it any more: without it both databases would take a switched tenant's writes."""
    with told_clearly():
        fences = await FenceDocuments(client, migration).read()
    if not schema:
        if fences or await mongo.known(client, migration):
            raise UsageError(
                "MongoDB has this migration, but the database of CROSSFADE_POSTGRES_ADMIN_DSN has no schema "
                "crossfade, so it cannot be told whether all tenants are complete",
                remedy="name its own database; where that is lost, make our schema in another one",
            )
        return
    if left := await postgres.unfinished(connection):
        told = ", ".join(f"{count} in {phase}" for phase, count in left.items())
        raise UsageError(f"not every tenant is complete: {told}", remedy="see `crossfade tenants`")
    away = {tenant for tenant, fence in fences.items() if fence.state is not State.HOME}
    complete = await postgres.complete(connection)
    if missing := away - complete:
        raise UsageError(
            f"MongoDB refuses the writes of {len(missing)} tenants that are not complete here",
            remedy="name the migration's own database in CROSSFADE_POSTGRES_ADMIN_DSN",
        )
    if strangers := await mongo.strangers(client, mapping, complete):
        raise UsageError(
            f"PostgreSQL has nothing of these tenants: {', '.join(strangers)}",
            remedy="let publish and apply bring them, and move them; or delete them in MongoDB",
        )
    if running := await postgres.connected(connection):
        raise UsageError(f"these still run: {', '.join(running)}", remedy="stop them first")


def _topics(settings: Settings, namespaces: Iterable[str]) -> list[str]:
    names, collections = TopicNames(settings.topic_prefix), list(map(Collection.parse, namespaces))
    return [topic.name for topic in declare_all(names, collections, partitions=1, replication=1)]


def _lines(
    found: postgres.Ours, topics: list[str], groups: list[str], documents: dict[str, int]
) -> list[str]:
    lines = [f"Kafka       topic {name}" for name in sorted(topics)]
    lines += [f"Kafka       consumer group {name}" for name in groups]
    lines += [f"MongoDB     {name}, {count} documents" for name, count in documents.items()]
    lines += [f"PostgreSQL  trigger {trigger} on {table}" for table, trigger in found.triggers]
    lines += [f"PostgreSQL  policy {policy} on {table}" for table, policy in found.policies]
    lines += [f"PostgreSQL  default of {table}.{column}" for table, column in found.defaults]
    if found.schema:
        lines.append("PostgreSQL  schema crossfade")
        lines += [f"PostgreSQL  role {role}, with its privileges" for role in postgres.ROLES]
    return lines


async def _export(connection: Connection, directory: Path) -> None:
    """Write both logs, whole and on disk, before anything is removed."""
    for what in ("transitions", "audit"):
        path = directory / f"{what}.jsonl"
        with path.open("wb") as file:
            count = 0
            async for row in postgres.export(connection, what):
                file.write(orjson.dumps(row) + b"\n")
                count += 1
            file.flush()
            os.fsync(file.fileno())
        click.echo(f"{path}: {count} lines", err=True)
