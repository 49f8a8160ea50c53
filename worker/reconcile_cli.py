"""`crossfade reconcile --once`, and what was found: `crossfade mismatches` and `crossfade generations`."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar
from uuid import UUID

import click
import orjson
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from topics import key_to_id
from worker.broker.changes import Lost
from worker.errors import Transient, UsageError
from worker.mapping.extended import as_id
from worker.postgres import mismatches, reconciliation
from worker.postgres.connect import connect
from worker.postgres.leadership import Leadership
from worker.postgres.reconciliation import Generation
from worker.reconcile.reconciler import NotWanted, Reconciler, opened
from worker.settings import Settings, load

F = TypeVar("F", bound=Callable[..., Any])
_LISTED = 100
_AGAIN_EVERY = 0.5  # seconds


async def once(
    settings: Settings, tenant: UUID | None, within: float, told: Callable[[int, int], None]
) -> dict[str, Any]:
    """Compare everything, or one tenant's part, and wait until nothing is settling; return what was found.

    ``within``: seconds for what is settling, after everything was compared. ``told`` is called with documents
    compared and rows looked at. A reconciler that was interrupted is gone on with.
    """
    lock = Leadership(settings.postgres_dsn.get_secret_value(), f"reconcile {tenant or settings.publisher}")
    if not await lock.try_once():
        raise UsageError(
            "a reconciler is running",
            remedy="`crossfade mismatches list` tells what it finds; or stop it first",
        )
    holding = asyncio.create_task(lock.hold())
    try:
        async with opened(settings, "reconcile once") as reconciler:
            working = asyncio.create_task(_once(reconciler, tenant, within, told))
            await asyncio.wait({holding, working}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                working.cancel()
                holding.result()
            return working.result()
    finally:
        holding.cancel()
        lock.release()


async def _once(
    reconciler: Reconciler, tenant: UUID | None, within: float, told: Callable[[int, int], None]
) -> dict[str, Any]:
    changes = await _follow(reconciler, tenant)
    await _copied(reconciler, within)
    while True:
        # A part of one tenant's that was left under way is of changes that nobody follows.
        generation = await reconciler.begin_full(tenant, afresh=tenant is not None)
        documents, rows = generation.documents, generation.rows
        try:
            async for step in reconciler.steps(generation):
                documents, rows = documents + step.documents, rows + step.rows
                told(documents, rows)
            until = time.monotonic() + within
            while True:
                # Also at what was changed while it walked.
                swept = await reconciler.sweep(generation.number, tenant)
                if changes is not None and not await reconciler.note_changes(changes, swept.looked_at):
                    changes = await reconciler.begin_changes()
                counts = await mismatches.counts(reconciler.store, tenant)
                settling = sum(count for state, _, count, _ in counts if state == "settling")
                if (swept.complete and not settling) or time.monotonic() > until:
                    break
                await asyncio.sleep(_AGAIN_EVERY)
            if not swept.complete:
                raise Transient(
                    f"not all that was changed meanwhile was looked at in {within:.0f} s",
                    remedy="try again, with a longer --within",
                )
            ended = await reconciler.finish(generation)
        except NotWanted:
            continue
        except Lost:
            raise Transient(
                "Kafka no longer has all that was changed meanwhile", remedy="try again"
            ) from None
        found = await mismatches.read(reconciler.store, tenant=tenant, limit=_LISTED)
        sums = await reconciliation.sums(reconciler.store, generation.number)
        return {
            "generation": generation.number,
            "equal": not any(ended),
            "documents": documents,
            "rows": rows,
            **ended._asdict(),
            "sums": [_sum(row) for row in sums],
            "listed": [told_mismatch(row) for row in found],
        }


async def _follow(reconciler: Reconciler, tenant: UUID | None) -> Generation | None:
    """Follow changes: for all tenants as the reconciler's process does, which may go on from there."""
    if tenant is None:
        return (await reconciler.go_on())[0]
    await reconciler.follow({})
    return None


async def _copied(reconciler: Reconciler, within: float) -> None:
    """Wait until every copy is applied: what it writes anew would have been compared before."""
    until = time.monotonic() + within
    while copying := await reconciler.copying():
        if time.monotonic() > until:
            raise Transient(
                f"{', '.join(sorted(copying))}: not all copied and applied in {within:.0f} s",
                remedy="`crossfade status` tells how far it is",
            )
        await asyncio.sleep(_AGAIN_EVERY)


def _sum(row: Any) -> dict[str, Any]:
    return {
        "collection": row["namespace"],
        "tenant": row["tenant_id"] and str(row["tenant_id"]),
        "mongo_documents": row["mongo_documents"],
        "mongo_hash": f"{int(row['mongo_hash']):032x}",
        "postgres_documents": row["postgres_documents"],
        "postgres_hash": f"{int(row['postgres_hash']):032x}",
        "first_read_at": row["first_read_at"],
        "last_read_at": row["last_read_at"],
    }


def told_mismatch(row: mismatches.MismatchRow) -> dict[str, Any]:
    """Return a mismatch as it is printed; ids, paths and types, never a value."""
    id_ = None if row["document_id"] is None else as_id(key_to_id(row["document_id"]))
    return {
        "collection": row["collection"],
        "row_id": str(row["row_id"]),
        "id": id_,
        "tenant": row["tenant_id"] and str(row["tenant_id"]),
        "row_tenant": row["row_tenant_id"] and str(row["row_tenant_id"]),
        "state": row["state"],
        "kind": row["kind"],
        "reason": row["reason"],
        "fields": [
            {"path": path, "mongo": mongo, "postgres": postgres} for path, mongo, postgres in row["fields"]
        ],
        "first_seen_at": row["first_seen_at"],
        "since": row["since"],
        "checked_at": row["checked_at"],
        "changes": row["changes"],
        "repairs": row["repairs"],
    }


def print_json(value: Any) -> None:
    """Print JSON to stdout."""
    click.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2, default=str).decode())


def run_once(tenant: UUID | None, within: float, as_json: bool) -> None:
    """Run `once` with a progress bar; exit 1 unless equal."""
    settings = load()
    columns = (
        TextColumn("compared {task.fields[documents]:,} documents, looked at {task.fields[rows]:,} rows"),
        BarColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None, documents=0, rows=0)
        result = asyncio.run(
            once(settings, tenant, within, lambda d, r: progress.update(task, documents=d, rows=r))
        )
    if as_json:
        print_json(result)
    else:
        _tell(result)
    sys.exit(0 if result["equal"] else 1)


def _tell(result: dict[str, Any]) -> None:
    what = f"{result['documents']:,} documents compared, {result['rows']:,} rows looked at"
    if result["equal"]:
        click.echo(f"equal: {what}")
        return
    click.echo(f"NOT equal: {what}; {result['mismatches']:,} mismatches, {result['settling']:,} settling")
    _table(result["listed"])
    click.echo("More: crossfade mismatches list", err=True)


def _table(listed: list[dict[str, Any]]) -> None:
    table = Table(box=None)
    for name in ("collection", "id", "state", "kind", "fields", "reason"):
        table.add_column(name, overflow="fold")
    for one in listed:
        fields = ", ".join(
            f"{field['path']} ({field['mongo'] or 'missing'}, {field['postgres'] or 'missing'})"
            for field in one["fields"][:3]
        )
        id_ = one["row_id"] if one["id"] is None else orjson.dumps(one["id"]).decode()
        table.add_row(one["collection"], id_, one["state"], one["kind"], fields, one["reason"])
    Console(width=None if sys.stdout.isatty() else 200).print(table)


@click.group(name="mismatches")
def mismatches_() -> None:
    """Documents that do not fit: what the reconciler has found.

    \b
    Examples:
      crossfade mismatches list --state real
      crossfade mismatches list --tenant 6f9619ff-8b86-d011-b42d-00c04fc964ff --json
    """


@mismatches_.command(name="list")
@click.option("--tenant", type=click.UUID, help="Of one tenant.")
@click.option("--collection", help="Of one collection: database.name, as the mapping has it.")
@click.option("--state", type=click.Choice(["settling", "real"]), help="Only these.")
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
    found = [
        told_mismatch(row)
        for row in asyncio.run(_read(tenant=tenant, namespace=collection, state=state, limit=limit))
    ]
    if as_json:
        print_json(found)
    elif found:
        _table(found)
    else:
        click.echo("none")
    sys.exit(1 if found else 0)


async def _read(**which: Any) -> list[mismatches.MismatchRow]:
    connection = await connect(load().postgres_dsn.get_secret_value(), "mismatches")
    try:
        return await mismatches.read(connection, **which)
    finally:
        connection.terminate()


@click.command()
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 1000), help="At most.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
def generations(limit: int, as_json: bool) -> None:
    """List the reconciler's generations, the newest first.

    \b
    Examples:
      crossfade generations
      crossfade generations --limit 5 --json
    """
    rows = [dict(row) for row in asyncio.run(_history(limit))]
    if as_json:
        print_json(rows)
        return
    table = Table(box=None)
    for name in ("generation", "kind", "tenant", "began", "ended", "documents", "settling", "mismatches"):
        table.add_column(name)
    for row in rows:
        ended = "given up" if row["given_up"] else row["finished_at"] or "under way"
        shown = (
            row["generation"], row["kind"], row["tenant_id"] or "all", row["started_at"], ended,
            row["documents"], row["settling"], row["mismatches"],
        )  # fmt: skip
        table.add_row(*("" if one is None else str(one) for one in shown))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


async def _history(limit: int) -> Any:
    connection = await connect(load().postgres_dsn.get_secret_value(), "generations")
    try:
        return await reconciliation.history(connection, limit)
    finally:
        connection.terminate()
