"""`crossfade batches`: the migration log: list, show, roll back, fetch again."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any

import click
import orjson

from worker.errors import CrossfadeError, Transient, UsageError
from worker.extended_json import extended
from worker.mapping import load as load_mapping
from worker.postgres import batches as log
from worker.postgres.batches import Batch, Written
from worker.postgres.connect import Connection
from worker.postgres.replication import why_no_replica
from worker.repair import rollback as rolling
from worker.repair import send
from worker.repair.refetch import Fetched, Progress, Refetch
from worker.repair.rollback import Outlook, Rollback, Undone
from worker.settings import Settings, load
from worker.told_lines import every

_NUMBER = click.IntRange(1, 2**63 - 1)  # a bigint
_TELL_EVERY = 2.0  # seconds
_STATES = {"live": "live", "deleted": "deleted", "refetch": "held"}
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
_wait = click.option(
    "--wait",
    type=click.FloatRange(0),
    default=60,
    show_default=True,
    help="Seconds that apply may take for the documents.",
)


@click.group()
def batches() -> None:
    """The migration log: what apply wrote in one transaction each; list, show, roll back, fetch again.

    \b
    Examples:
      crossfade batches list
      crossfade batches show 17
      crossfade batches rollback 17
    """


@batches.command(name="list")
@click.option(
    "--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="At most so many."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
def list_(limit: int, as_json: bool) -> None:
    """List batches, the newest first.

    A line has number, when it was applied, in how many milliseconds, source, worker, what became of its
    records, and how many documents no newer batch has written since. For these the whole ledger is read: some
    seconds for each ten million documents.

    \b
    Examples:
      crossfade batches list
      crossfade batches list --limit 200 --json
    """

    async def look() -> list[dict[str, Any]]:
        async with _connected(load()) as connection:
            found = await log.newest(connection, limit)
            states = await log.last_wrote(connection, [batch.batch_id for batch in found])
        return [tell(batch, states[batch.batch_id]) for batch in found]

    told = asyncio.run(look())
    if as_json:
        _print(told)
    else:
        click.echo("\n".join(map(line, told)) if told else "nothing has been applied yet")


@batches.command()
@click.argument("batch_id", metavar="N", type=_NUMBER)
@click.option(
    "--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="Documents at most."
)
@click.option("--skip", type=click.IntRange(0), default=0, help="Pass over so many documents first.")
@_json
def show(batch_id: int, limit: int, skip: int, as_json: bool) -> None:
    """Show a batch: where it read, and the documents that it was the last to write; never their values.

    A document is `live`, `deleted`, or `held`: rolled back, and waiting to be fetched again. For them the
    whole ledger is read.

    \b
    Examples:
      crossfade batches show 17
      crossfade batches show 17 --skip 50
      crossfade batches show 17 --limit 2000 --json
    """

    async def look() -> tuple[dict[str, Any], list[dict[str, Any]]]:
        async with _connected(load()) as connection:
            batch = await rolling.find(connection, batch_id)
            states = (await log.last_wrote(connection, [batch_id]))[batch_id]
            documents = await log.written(connection, batch_id, limit, skip)
        return tell(batch, states), [_document(one) for one in documents]

    told, documents = asyncio.run(look())
    if as_json:
        _print(told | {"documents": documents})
        return
    click.echo(line(told))
    for one in told["partitions"]:
        click.echo(f"read     {one['topic']}:{one['partition']} {one['first_offset']}-{one['last_offset']}")
    for one in documents:
        id_ = json.dumps(one["id"], ensure_ascii=False)
        click.echo(f"{one['state']:<8} {one['collection']} {id_} {one['tenant'] or '-'}")
    if (total := sum(told["last_wrote"].values())) > skip + len(documents):
        click.echo(f"{len(documents):,} of {total:,} documents; more: --skip {skip + len(documents)}")


@batches.command()
@click.argument("batch_id", metavar="N", type=_NUMBER)
@click.option(
    "--hold", is_flag=True, help="Do not fetch the documents again; `batches refetch` does it later."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@_wait
@_json
def rollback(batch_id: int, hold: bool, yes: bool, wait: float, as_json: bool) -> None:
    """Remove the rows and child rows that a batch was the last to write, and fetch its documents again.

    One transaction removes the rows. What newer batches have written since is left alone. The ledger keeps
    every version, so that no older event brings a row back; a newer one does. Then MongoDB's present
    documents, or that they are gone, are sent through Kafka, and apply writes them; a document that the batch
    had deleted is asked for too. With --hold they stay away until `crossfade batches refetch`: until then
    they differ from MongoDB, and no tenant of theirs can be switched.

    Refused where a tenant of the batch is not in phase `mongo`. Audited. Exit 1 when documents are still held
    at the end.

    \b
    Examples:
      crossfade batches rollback 17
      crossfade batches rollback 17 --hold --yes
      crossfade batches rollback 17 --yes --wait 300 --json
    """
    asyncio.run(_rollback(load(), batch_id, hold, yes, wait, as_json))


@batches.command()
@click.argument("batch_id", metavar="[N]", type=_NUMBER, required=False)
@_wait
@_json
def refetch(batch_id: int | None, wait: float, as_json: bool) -> None:
    """Fetch held documents again, of one batch or of all that were rolled back.

    May be run as often as wanted. Exit 1 when documents are still held at the end: apply does not run, is far
    behind, or could not write them (`crossfade dead-letters list`).

    \b
    Examples:
      crossfade batches refetch
      crossfade batches refetch 17 --wait 300
    """
    asyncio.run(_refetch(load(), batch_id, wait, as_json))


async def _rollback(
    settings: Settings, batch_id: int, hold: bool, yes: bool, wait: float, as_json: bool
) -> None:
    mapping = load_mapping(settings.mapping)
    async with AsyncExitStack() as stack:
        connection = await stack.enter_async_context(_connected(settings))
        outlook = await rolling.outlook(connection, batch_id)
        # Before anything is removed: without them nothing could be fetched again.
        opened = send.opened(settings, mapping, "batches")
        sender = None if hold else await stack.enter_async_context(opened)
        if not yes:
            _ask(batch_id, outlook, hold)
        replica = settings.replication_role != "origin" and await why_no_replica(connection, mapping) is None
        undone = await Rollback(mapping, replica).run(connection, batch_id, refetch=not hold)
        if not as_json:
            click.echo(_told(batch_id, undone))
        fetched = None
        if sender is not None:
            try:
                fetched = await Refetch(sender, _progress()).run(connection, batch_id, within=wait)
            except CrossfadeError:
                click.echo(f"its documents are held: crossfade batches refetch {batch_id}", err=True)
                raise
    if as_json:
        told = {"batch_id": batch_id, **undone._asdict()}
        _print(told | {"refetch": None if fetched is None else _fetched(fetched)})
    elif fetched is None:
        click.echo(f"they are held: crossfade batches refetch {batch_id}")
    else:
        click.echo(_of(fetched))
    if fetched is not None:
        _require_none_held(fetched, wait)


async def _refetch(settings: Settings, batch_id: int | None, wait: float, as_json: bool) -> None:
    mapping = load_mapping(settings.mapping)
    async with _connected(settings) as connection:
        if batch_id is not None:
            await rolling.find(connection, batch_id)
        fetched = Fetched(applied=True)
        if await log.count_held(connection, batch_id):
            async with send.opened(settings, mapping, "batches") as sender:
                fetched = await Refetch(sender, _progress()).run(connection, batch_id, within=wait)
    if as_json:
        _print({"batch_id": batch_id, **_fetched(fetched)})
    else:
        click.echo(_of(fetched) if fetched.sent or fetched.absent or fetched.held else "nothing is held")
    _require_none_held(fetched, wait)


def _connected(settings: Settings) -> AbstractAsyncContextManager[Connection]:
    return log.opened(settings.postgres_dsn.get_secret_value())


def _ask(batch_id: int, outlook: Outlook, hold: bool) -> None:
    if not sys.stdin.isatty():
        raise UsageError("nobody is there to be asked; nothing was changed", remedy="add --yes")
    after = "They stay away until `batches refetch`" if hold else "Then they are fetched again"
    click.echo(
        f"batch {batch_id}: the rows of {outlook.live:,} documents are removed, {outlook.deleted:,} deleted "
        f"documents are asked for again. {outlook.overwritten:,} were overwritten since, and stay. {after}.",
        err=True,
    )
    click.confirm("Go on?", abort=True, err=True)


def _progress() -> Progress:
    """Return what tells on a terminal, every two seconds, how far it is."""
    tell = every(_TELL_EVERY)
    return lambda what, documents: tell(
        f"{documents:,} {what}{'; waiting for apply' if what == 'held' else ''}"
    )


def tell(batch: Batch, states: dict[str, int]) -> dict[str, Any]:
    """Return what is told of a batch, ready for JSON. ``states``: documents that it was the last to write."""
    undone = batch.rolled_back_at
    return {
        "batch_id": batch.batch_id,
        "source": batch.source,
        "worker": batch.worker,
        "started_at": batch.started_at.isoformat(),
        "applied_at": batch.applied_at.isoformat(),
        "records": batch.records,
        "outcomes": batch.outcomes,
        "partitions": [
            {"topic": topic, "partition": number, "first_offset": first, "last_offset": last}
            for topic, number, first, last in batch.partitions
        ],
        "last_wrote": {told: states.get(state, 0) for state, told in _STATES.items()},
        "overwritten": rolling.overwritten(batch, states),
        "rolled_back_at": undone and undone.isoformat(),
        "seconds": round((batch.applied_at - batch.started_at).total_seconds(), 3),
    }


def line(told: dict[str, Any]) -> str:
    """Return a batch in one line."""
    outcomes = ", ".join(f"{n:,} {name.replace('_', '-')}" for name, n in told["outcomes"].items() if n)
    states = ", ".join(f"{n:,} {state}" for state, n in told["last_wrote"].items() if n) or "none"
    undone = f"; rolled back {told['rolled_back_at'][:19]}Z" if told["rolled_back_at"] else ""
    took = f"{told['seconds'] * 1000:.0f} ms"
    return (
        f"{told['batch_id']:>7} {told['applied_at'][:19]}Z {took:>8} {told['source']:<5} {told['worker']} "
        f"{outcomes}; last writer of {states}{undone}"
    )


def _document(one: Written) -> dict[str, Any]:
    return {
        "collection": one.namespace,
        "id": extended(one.id),
        "row_id": str(one.row_id),
        "tenant": one.tenant_id and str(one.tenant_id),
        "state": _STATES[one.state],
    }


def _told(batch_id: int, undone: Undone) -> str:
    return (
        f"batch {batch_id} is rolled back: {undone.documents:,} documents, {undone.rows:,} rows removed, "
        f"{undone.deleted:,} were deleted ones; {undone.overwritten:,} overwritten since are left alone"
    )


def _of(fetched: Fetched) -> str:
    gone = f"{fetched.absent:,} are gone in MongoDB"
    return f"{fetched.sent:,} documents sent, {gone}; {fetched.held:,} still held"


def _fetched(fetched: Fetched) -> dict[str, int]:
    return {name: getattr(fetched, name) for name in ("sent", "absent", "lost", "held")}


def _require_none_held(fetched: Fetched, wait: float) -> None:
    if fetched.lost:
        raise CrossfadeError(
            f"of {fetched.lost:,} documents the collection in MongoDB cannot be told",
            remedy="the mapping no longer names it, or none or two have their tenant's name",
        )
    if fetched.held and not fetched.applied:
        raise Transient(
            f"apply has not taken all in {wait:.0f} s; they are in Kafka, and held until it does",
            remedy="see that apply runs; `crossfade status` tells how many are held",
        )
    if fetched.held:
        raise CrossfadeError(
            f"apply has read all, and {fetched.held:,} are still held",
            remedy="`crossfade dead-letters list` says why they do not fit; then `crossfade batches refetch`",
        )


def _print(told: object) -> None:
    click.echo(orjson.dumps(told, option=orjson.OPT_INDENT_2).decode())
