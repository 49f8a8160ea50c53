"""`crossfade inspect`: look at a live MongoDB, draft its mapping and tables, check a mapping."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import orjson
from bson import json_util
from bson.binary import UuidRepresentation

from schema.targets import BUILT_IN, MigrationError, read_target
from worker.errors import ConfigurationError
from worker.inspect import report
from worker.inspect.check import Check, as_json, check
from worker.inspect.ddl import ddl
from worker.inspect.draft import Draft, draft
from worker.inspect.indexes import DraftIndexes, draft_indexes
from worker.inspect.mapping_text import mapping_text
from worker.inspect.names import shown, snake
from worker.inspect.references import find_references
from worker.inspect.survey import Survey, database_of, known_database, survey
from worker.inspect.tenants import choose_tenants
from worker.mapping import load as load_mapping
from worker.mongo.client import connect
from worker.settings import load_mongo

_EXTENDED = json_util.JSONOptions(
    json_mode=json_util.JSONMode.CANONICAL, uuid_representation=UuidRepresentation.STANDARD
)


class _Size(click.ParamType):
    """A number of documents, or "all" (None)."""

    name = "N|all"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """Return the number; None is all."""
        if value == "all":
            return None
        if not str(value).isdecimal() or not 1 <= int(value) <= 10_000_000:
            self.fail("write a number of documents from 1, or all", param, ctx)
        return int(value)


@click.command()
@click.option("--database", help="The database. Default: the one that CROSSFADE_MONGO_URI names.")
@click.option("--collection", "only", multiple=True, help="Only this collection; may be given again.")
@click.option(
    "--sample", "size", type=_Size(), default="2000", show_default=True, help="Documents of each collection."
)
@click.option("--tenant-path", help="The field that tells the tenant, in all collections that have it.")
@click.option(
    "--tenant",
    "tenants",
    multiple=True,
    metavar="COLLECTION=PATH",
    help="The field that tells the tenant of one collection; `-`: it has none.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write the draft into this folder: mapping.yaml, and a folder of SQL files.",
)
@click.option("--force", is_flag=True, help="Let --out write over a draft that is there.")
@click.option(
    "--check",
    "checked",
    is_flag=False,
    flag_value="",
    metavar="[FILE]",
    help="Map live documents with this mapping, or with CROSSFADE_MAPPING, and report what does not fit.",
)
@click.option("--json", "as_json_", is_flag=True, help="Print the report as JSON.")
def inspect(
    database: str | None,
    only: tuple[str, ...],
    size: int | None,
    tenant_path: str | None,
    tenants: tuple[str, ...],
    out: Path | None,
    force: bool,
    checked: str | None,
    as_json_: bool,
) -> None:
    """Look at a live MongoDB: report its fields, draft mapping and tables, or check a mapping.

    Only reads, a bounded sample of each collection, from a secondary where there is one. Needs
    CROSSFADE_MONGO_URI alone. What a person should decide is marked `# decide:` in the draft.

    With --check, exit 1 when a document would be a dead letter or a collection cannot be migrated.

    \b
    Examples:
      crossfade inspect --database shop
      crossfade inspect --database shop --tenant-path tenantId --out draft
      crossfade schema apply --target draft/shop
      crossfade inspect --check draft/mapping.yaml --sample all
    """
    if checked is not None:
        if out or tenant_path or tenants or database:
            raise ConfigurationError("--check takes only --collection, --sample and --json with it")
        sys.exit(_check(checked, only, size, as_json_))
    given = dict(_given(tenants))
    found, made = asyncio.run(_survey(database, only, size, tenant_path, given))
    indexes = draft_indexes(found, made)
    if out is not None:
        _write(out, force, found, made, indexes)
    if as_json_:
        _echo(report.as_json(found, made, indexes))
    elif out is None:
        for line in report.lines(found, indexes):
            click.echo(line)


def _given(tenants: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for one in tenants:
        name, equals, path = one.rpartition("=")
        if not (name and equals and path):
            raise ConfigurationError(f"--tenant {one}: write COLLECTION=PATH")
        yield name, path


async def _survey(
    database: str | None,
    only: tuple[str, ...],
    size: int | None,
    tenant_path: str | None,
    given: dict[str, str],
) -> tuple[Survey, Draft]:
    uri = load_mongo().mongo_uri.get_secret_value()
    database = database or database_of(uri)
    if database is None:
        raise ConfigurationError("no database named", remedy="name it with --database")
    client = await connect(uri, "inspect")
    try:
        await known_database(client, database)
        found = await survey(client, database, only, size, _progress)
        if not found.collections:
            raise ConfigurationError(f"database {database} has no collection that can be migrated")
        await find_references(client, found)
    finally:
        client.close()
    return found, draft(found, choose_tenants(found, tenant_path, given))


def _progress(told: str) -> None:
    click.echo(f"inspect: {told}", err=True)


def _write(out: Path, force: bool, found: Survey, made: Draft, indexes: DraftIndexes) -> None:
    name = snake(made.database)
    target = out / (f"{name}_target" if name in BUILT_IN else name)
    file = out / "mapping.yaml"
    if not force and (file.exists() or target.exists()):
        raise ConfigurationError(f"{out} holds a draft already", remedy="name another folder, or --force")
    try:
        target.mkdir(parents=True, exist_ok=True)
        for old in target.glob("*.sql"):
            old.unlink()
        for file_name, text in ddl(made, indexes).items():
            (target / file_name).write_text(text, encoding="utf-8")
        told = report.all_unsupported(found, indexes)
        file.write_text(mapping_text(made, told), encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"cannot write {error.filename} ({error.strerror})") from None
    # What is written must be what the other commands read.
    load_mapping(file)
    try:
        read_target(target)
    except MigrationError as error:
        raise ConfigurationError(str(error)) from None
    click.echo(f"{file}\n{target}/", err=True)
    click.echo(
        f"next: read what is marked `# decide:`, then\n"
        f"  crossfade schema apply --target {out.resolve() / target.name}\n"
        f"  crossfade inspect --check {file}",
        err=True,
    )


def _check(file: str, only: tuple[str, ...], size: int | None, as_json_: bool) -> int:
    settings = load_mongo()
    path = Path(file) if file else settings.mapping
    if path is None:
        raise ConfigurationError("no mapping named", remedy="write --check FILE, or set CROSSFADE_MAPPING")
    mapping = load_mapping(path)
    for name in only:
        if name not in mapping.collections:
            raise ConfigurationError(f"{path} has no collection {name}")

    async def run() -> Check:
        client = await connect(settings.mongo_uri.get_secret_value(), "inspect")
        try:
            return await check(client, mapping, only, size, _progress)
        finally:
            client.close()

    done = asyncio.run(run())
    if as_json_:
        _echo(as_json(done, lambda id_: json.loads(_extended(id_))))
    else:
        for line in _lines(done):
            click.echo(line)
    return 0 if done.fits else 1


def _extended(id_: Any) -> str:
    return json_util.dumps(id_, json_options=_EXTENDED)


def _lines(done: Check) -> Iterator[str]:
    for one in done.collections:
        whole = "all " if one.taken.whole and not one.taken.cut_short else "a sample of "
        yield f"{shown(one.name)}: {whole}{one.taken.documents:,} documents, {one.dead:,} dead letters"
        for letter in one.dead_letters.values():
            examples = ", ".join(shown(_extended(id_)) for id_ in letter.examples)
            yield f"  dead letter ({letter.kind}): {letter.count:,}: {shown(letter.reason)}; ids {examples}"
        for told, counted in (("noted", one.noted), ("no column", one.unmapped)):
            for (path, kind), n in counted.most_common():
                yield f"  {told}: {n:,} x {shown(path)}, {kind}"
        for path, n in one.ignored.most_common():
            yield f"  ignored: {n:,} x {shown(path)}"
    for name, near in done.missing.items():
        yield f"{name}: MongoDB has no such collection" + (f"; did you mean {shown(near)}?" if near else "")
    for one in done.unsupported:
        yield f"{shown(one.collection)}: {one.what}: {one.why}"
    for name in done.unmapped_collections:
        yield f"{shown(name)}: not in the mapping"


def _echo(told: Any) -> None:
    click.echo(orjson.dumps(told, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS).decode())
