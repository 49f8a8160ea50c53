"""`crossfade repair`: sends what does not fit anew, and waits until it fits."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID

import click
import orjson

from worker.errors import ConfigurationError, Transient
from worker.extended_json import parse_id
from worker.mongo.client import told_clearly as mongodb_told_clearly
from worker.postgres import mismatches
from worker.postgres.mapping_versions import told_clearly
from worker.postgres.mismatches import Key, Which
from worker.postgres.row_keys import tenants_of_rows
from worker.reconcile import recheck
from worker.reconcile.judge import first, judge
from worker.reconcile.reconciler import Reconciler, opened
from worker.repair import send
from worker.repair.repair import Outlook, Sent, refuse
from worker.settings import Settings, load
from worker.told_lines import every

_AGAIN_EVERY = 0.3  # seconds
_TELL_EVERY = 2.0  # seconds
_SURE_WITHIN = 10.0  # seconds
_AT_ONCE = 1000


@dataclass(slots=True)
class Repaired:
    """What was sent, and how much of it does not fit yet."""

    mismatches: int = 0
    documents: int = 0
    absences: int = 0
    lost: int = 0
    left: int = 0


@click.command()
@click.option("--tenant", type=click.UUID, help="Of one tenant.")
@click.option("--collection", help="Of one collection: database.name.")
@click.option(
    "--id",
    "id_",
    help="One document, with --collection: its row id, an ObjectId's 24 digits, or its _id as extended JSON. "
    "It is looked at first, and need not have been found before.",
)
@click.option(
    "--limit",
    type=click.IntRange(1),
    help="Refuse where there is more to repair.  [default: 1,000, or one in a hundred documents]",
)
@click.option("--dry-run", is_flag=True, help="Tell how much there is to repair; send nothing.")
@click.option(
    "--wait",
    type=click.FloatRange(0),
    default=60,
    show_default=True,
    help="Seconds that apply may take for the documents.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def repair(
    tenant: UUID | None,
    collection: str | None,
    id_: str | None,
    limit: int | None,
    dry_run: bool,
    wait: float,
    as_json: bool,
) -> None:
    """Mend what the reconciler has found to be wrong for certain (state `real`).

    Each document is read from MongoDB in a snapshot and sent through Kafka, or its absence is; apply writes
    the rows. What is right is not touched. Each repair is in the audit log, with the digests of both sides
    before and after. Documents that a rolled-back batch holds are left to `crossfade batches refetch`.

    Exit 0 when all of it fits now, 1 when some does not yet, 2 when there is more to repair than the limit.

    \b
    Examples:
      crossfade repair --dry-run
      crossfade repair --tenant 6f9619ff-8b86-d011-b42d-00c04fc964ff
      crossfade repair --collection spaces.pages --id 65f1c0ffee65f1c0ffee65f1
    """
    if id_ is not None and collection is None:
        raise click.UsageError("--id needs --collection")
    settings = load()
    with mongodb_told_clearly(), told_clearly():
        done = asyncio.run(_repair(settings, Which(tenant, collection), id_, limit, dry_run, wait))
    if isinstance(done, Outlook):
        told: dict[str, Any] = {"mismatches": done.mismatches, "limit": done.limit}
        line = f"{done.mismatches:,} documents to repair; the limit is {done.limit:,}"
    else:
        told = asdict(done)
        line = f"{done.documents:,} documents sent, {done.absences:,} are gone in MongoDB"
        if done.lost:
            line += f"; of {done.lost:,} the id or collection cannot be told, and nothing was sent"
        line += f"; {done.left:,} do not fit yet" if done.left else "; all of it fits now"
        if not done.mismatches:
            line = "nothing to repair"
    click.echo(orjson.dumps(told, option=orjson.OPT_INDENT_2).decode() if as_json else line)
    if isinstance(done, Repaired) and (done.left or done.lost):
        click.echo("Why: crossfade mismatches list; crossfade dead-letters list", err=True)
        sys.exit(1)


async def _repair(
    settings: Settings,
    which: Which,
    id_: str | None,
    limit: int | None,
    dry_run: bool,
    wait: float,
) -> Outlook | Repaired:
    async with AsyncExitStack() as stack:
        reconciler = await stack.enter_async_context(opened(settings, "repair"))
        await reconciler.follow({})
        if which.collection is not None:
            if reconciler.sides.planned(which.collection) is None:
                raise ConfigurationError(
                    f"the mapping names no collection {which.collection}", remedy="write it as database.name"
                )
            if id_ is not None:
                which = which._replace(row_id=await _look_at_one(reconciler, which.collection, id_))
        sender = await stack.enter_async_context(send.opened(settings, reconciler.mapping, "repair"))
        mend = reconciler.repair(sender, limit if limit is not None else settings.repair_limit)
        outlook = await mend.outlook(which, by_itself=False)
        if dry_run:
            return outlook
        if outlook.too_many:
            raise refuse(outlook)
        sent = await mend.run(which, outlook.allowed, by_itself=False, told=_progress())
        done = Repaired(outlook.mismatches, sent.documents, sent.absences, sent.lost)
        done.left = await _fitting(reconciler, sent.keys, wait)
        return done


async def _look_at_one(reconciler: Reconciler, namespace: str, text: str) -> UUID:
    """Look at one document until it fits or is known to be wrong, and keep that; return its row id."""
    source, id_ = reconciler.sides.source(namespace), parse_id(text, "--id")
    if isinstance(id_, UUID):
        identity = await reconciler.sides.named(reconciler.reader, source, id_)
    else:
        identity = source.identity(source.plan.row_id(id_), id_)
    if source.plan.named is not None:
        tables = source.plan.tables
        seen = await tenants_of_rows(reconciler.reader, tables, [identity.row_id])
        if (others := seen.get(identity.row_id)) and source.plan.named not in others:
            raise ConfigurationError(
                f"the rows of this id are of another tenant than {namespace}'s",
                remedy="name the collection of that tenant",
            )
    copying = await reconciler.copying()
    for look, moment in await recheck.look_at(reconciler.sides, reconciler.reader, [identity], copying):
        if (found := judge(first(look, moment.at, 0), look, moment)) is not None:
            await mismatches.add(reconciler.store, [recheck.to_row(found)])
    until = time.monotonic() + _SURE_WITHIN
    while rows := await mismatches.read(
        reconciler.store, namespace=source.namespace, row_id=identity.row_id, state="settling"
    ):
        if time.monotonic() >= until:
            raise Transient(f"it is not yet certain whether it is wrong: {rows[0]['reason']}")
        await asyncio.sleep(_AGAIN_EVERY)
        await reconciler.look_at([recheck.from_row(row) for row in rows], copying)
    return identity.row_id


async def _fitting(reconciler: Reconciler, keys: Sequence[Key], wait: float) -> int:
    """Look again at what was sent until all of it fits; return how much does not when time is over."""
    until, tell = time.monotonic() + wait, every(_TELL_EVERY)
    while True:
        left, copying = list[Key](), await reconciler.copying()
        for start in range(0, len(keys), _AT_ONCE):
            some = keys[start : start + _AT_ONCE]
            rows = await mismatches.of(reconciler.store, some)
            await reconciler.look_at([recheck.from_row(row) for row in rows], copying)
            still = await mismatches.of(reconciler.store, some)
            left += [(row["namespace"], row["row_id"]) for row in still]
        if not left or time.monotonic() >= until:
            return len(left)
        keys = left
        tell(f"{len(left):,} do not fit yet; waiting for apply")
        await asyncio.sleep(_AGAIN_EVERY)


def _progress() -> Callable[[Sent], None]:
    tell = every(_TELL_EVERY)
    return lambda sent: tell(f"{sent.documents + sent.absences:,} sent")
