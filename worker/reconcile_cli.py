"""`crossfade reconcile --once`, and `crossfade generations`."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar
from uuid import UUID

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from worker import mismatch_report as report
from worker.broker.changes import Lost
from worker.errors import Transient, UsageError
from worker.postgres import mismatches, proof, reconciliation
from worker.postgres.connect import Connection, connect
from worker.postgres.leadership import Leadership
from worker.postgres.mapping_versions import told_clearly
from worker.postgres.reconciliation import Generation
from worker.reconcile.reconciler import NotWanted, Reconciler, opened
from worker.settings import Settings, load

_LISTED = 100
_AGAIN_EVERY = 0.5  # seconds
T = TypeVar("T")


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
            "listed": [report.told(row) for row in found],
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
        report.print_json(result)
    else:
        _tell(result)
    sys.exit(0 if result["equal"] else 1)


def _tell(result: dict[str, Any]) -> None:
    what = f"{result['documents']:,} documents compared, {result['rows']:,} rows looked at"
    if result["equal"]:
        click.echo(f"equal: {what}")
        return
    held = f", {result['held']:,} held (crossfade batches refetch)" if result["held"] else ""
    unequal = f"{result['mismatches']:,} mismatches, {result['settling']:,} settling{held}"
    click.echo(f"NOT equal: {what}; {unequal}")
    report.print_table(result["listed"])
    click.echo("More: crossfade mismatches list", err=True)


@click.command()
@click.option("--kind", type=click.Choice(["full", "changes"]), help="Of this kind.")
@click.option(
    "--by-tenant",
    is_flag=True,
    help="The last clean generation of each tenant instead, those that have none first.",
)
@click.option("--tenant", type=click.UUID, help="With --by-tenant: of this tenant alone.")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 100_000), help="At most.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
def generations(kind: str | None, by_tenant: bool, tenant: UUID | None, limit: int, as_json: bool) -> None:
    """List the reconciler's generations, the newest first; or the last clean one of each tenant.

    A generation is clean when all was looked at, and at its end nothing was wrong. With --by-tenant, exit 1
    where a tenant has no clean generation. Tenants whose writes go to PostgreSQL are left out.

    \b
    Examples:
      crossfade generations --kind full
      crossfade generations --by-tenant --limit 10000 --json
      crossfade generations --by-tenant --tenant 6f9619ff-8b86-d011-b42d-00c04fc964ff
    """
    if tenant is not None and not by_tenant:
        raise click.UsageError("--tenant needs --by-tenant")
    if kind is not None and by_tenant:
        raise click.UsageError("--kind and --by-tenant exclude each other")
    if by_tenant:
        _by_tenant(tenant, limit, as_json)
        return
    rows = [dict(row) for row in asyncio.run(_ask(lambda one: reconciliation.history(one, limit, kind)))]
    if as_json:
        report.print_json(rows)
        return
    shown: list[tuple[Any, ...]] = []
    for row in rows:
        ended = row["finished_at"] or ("given up" if row["given_up"] else "under way")
        if row["finished_at"] and row["given_up"]:
            ended = f"{ended} (proves nothing any more)"
        shown.append(
            (
                *(row["generation"], row["kind"], row["tenant_id"] or "all", row["started_at"], ended),
                *(row["documents"], row["settling"], row["mismatches"], row["held"]),
            )
        )
    heads = ("generation", "kind", "tenant", "began", "ended", "documents", "settling", "mismatches", "held")
    _table(heads, shown)


def _by_tenant(tenant: UUID | None, limit: int, as_json: bool) -> None:
    publisher = load().publisher
    found = asyncio.run(_ask(lambda one: proof.clean_by_tenant(one, publisher, tenant, limit)))
    told = [
        {
            "tenant": str(one.tenant_id),
            "clean_generation": one.clean and one.clean.generation,
            "clean_ended_at": one.clean and one.clean.ended_at,
        }
        for one in found
    ]
    if as_json:
        report.print_json(told)
    else:
        heads = ("tenant", "last clean generation", "ended")
        rows = [(one["tenant"], one["clean_generation"] or "none", one["clean_ended_at"]) for one in told]
        _table(heads, rows)
    sys.exit(1 if any(one.clean is None for one in found) else 0)


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    table = Table(box=None)
    for head in heads:
        table.add_column(head)
    for row in rows:
        table.add_row(*("" if one is None else str(one) for one in row))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


async def _ask(work: Callable[[Connection], Awaitable[T]]) -> T:
    connection = await connect(load().postgres_dsn.get_secret_value(), "generations")
    try:
        with told_clearly():
            return await work(connection)
    finally:
        connection.terminate()
