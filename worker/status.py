"""`crossfade status`: how the migration stands, from what PostgreSQL holds. Keys: docs/status.md."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import click
import orjson

from topics import Collection, TopicNames
from worker import copy_report, moves_shown, reconcile_report
from worker.copy_report import span
from worker.errors import CrossfadeError, MappingError
from worker.mapping import hashes
from worker.mapping import load as load_mapping
from worker.oplog_forecast import lines_of_oplog, look_at_oplog, told_of_oplog
from worker.postgres import proof
from worker.postgres.connect import connect
from worker.postgres.mapping_versions import told_clearly
from worker.postgres.migration_log import OUTCOMES
from worker.postgres.move_standing import MoveStanding, read_moves
from worker.postgres.proof import Proof
from worker.postgres.shadow_reads import ShadowReads, read_shadow_reads
from worker.postgres.standing import PublisherStanding, Standing, read_standing
from worker.settings import Settings, load

_EVERY = 2.0  # seconds between looks of --watch
_INCIDENTS = 3  # lines of them; --json has more
_LETTERS = ("dead", "parked", "healed", "discarded")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; its keys are stable.")
@click.option("--watch", is_flag=True, help=f"Look again every {_EVERY:.0f} s, until Ctrl-C.")
def status(as_json: bool, watch: bool) -> None:
    """Show how the migration stands: copies, lag, what is proven, dead letters, how long publish may be down.

    Reads PostgreSQL, so it answers while all else is down: then the lag grows. Lag is the age of the
    newest heartbeat applied, in the partition where it is oldest. A copy's rate is of the last minute or so,
    pauses left out. MongoDB is asked only for its oplog, for two seconds.

    \b
    Examples:
      crossfade status
      crossfade status --watch
      crossfade status --json | jq .apply.lag_seconds
    """
    settings = load()
    try:
        asyncio.run(_watch(settings, as_json) if watch else _show_once(settings, as_json))
    except KeyboardInterrupt:
        if not watch:
            raise


async def _show_once(settings: Settings, as_json: bool) -> None:
    click.echo(_shown(await _look(settings), as_json))


async def _watch(settings: Settings, as_json: bool) -> None:
    """Look again and again. Only the first look may fail: after it, a server that is away may come back."""
    shown = await _look(settings)
    while True:
        if not as_json:
            click.clear()  # does nothing where the output is no terminal
        click.echo(_shown(shown, as_json, line=True))
        while True:
            await asyncio.sleep(_EVERY)
            try:
                shown = await _look(settings)
                break
            except CrossfadeError as error:
                click.echo(f"crossfade: {error}", err=True)


async def _look(settings: Settings) -> dict[str, Any]:
    connection = await connect(settings.postgres_dsn.get_secret_value(), "status")
    try:
        standing = await read_standing(connection)
        with told_clearly():
            proven = await proof.read(connection, settings.publisher)
            moves = await read_moves(connection, moves_shown.MOST)
            shadows = await read_shadow_reads(connection, moves_shown.MOST)
    finally:
        connection.terminate()
    told = report(standing, TopicNames(settings.topic_prefix), _hashes(settings), proven, moves, shadows)
    oplog = await look_at_oplog(settings.mongo_uri.get_secret_value())
    return told | told_of_oplog(oplog, standing.publishers, time.time(), settings.oplog_margin)


def _hashes(settings: Settings) -> Mapping[str, str] | None:
    """Return the mapping file's hashes; None without one, which is no reason to tell nothing."""
    try:
        return hashes(load_mapping(settings.mapping))
    except MappingError:
        return None


def _shown(told: dict[str, Any], as_json: bool, *, line: bool = False) -> str:
    if as_json:
        return orjson.dumps(told, option=0 if line else orjson.OPT_INDENT_2).decode()
    return "\n".join(lines(told))


def report(
    standing: Standing,
    names: TopicNames,
    mapping: Mapping[str, str] | None = None,
    proven: Proof = proof.NOTHING,
    moves: MoveStanding = MoveStanding(),  # noqa: B008 - nothing changes it
    shadows: ShadowReads = ShadowReads(),  # noqa: B008
) -> dict[str, Any]:
    """Return what `--json` prints. ``mapping``: the file's hashes by namespace, where there is a file."""
    read = None if mapping is None else names.namespaces(map(Collection.parse, mapping))
    beats = standing.beating(read)
    oldest = min(beats, key=lambda one: one.heartbeat_at or standing.at, default=None)
    outcomes = {name: sum(one.outcomes[name] for one in standing.partitions) for name in OUTCOMES}
    return {
        "at": standing.at.isoformat(),
        "collections": copy_report.collections(standing, names, mapping),
        "publishers": [_publisher(one, standing.at) for one in standing.publishers],
        "apply": {
            "lag_seconds": _age(standing.at, oldest.heartbeat_at if oldest else None),
            "lag_partition": f"{oldest.topic}:{oldest.partition}" if oldest else None,
            "heartbeat_partitions": len(beats),
            "last_batch_at": standing.last_batch_at and standing.last_batch_at.isoformat(),
            "last_batch_age_seconds": _age(standing.at, standing.last_batch_at),
            "records": sum(one.records for one in standing.partitions),
            "outcomes": outcomes,
        },
        "dead_letters": {state: standing.dead_letters.get(state, 0) for state in _LETTERS},
        "tenant_unknown": standing.tenant_unknown,
        "held": standing.held,
        "reconcile": reconcile_report.told(proven, standing.at),
        "tenants": dict(sorted(standing.tenants.items())),
        "incidents": [
            {"at": one.at.isoformat(), "what": one.action, "subject": one.subject, "reason": one.reason}
            for one in standing.incidents
        ],
        **moves_shown.told(moves, shadows),
    }


def _publisher(one: PublisherStanding, at: datetime) -> dict[str, Any]:
    # A clusterTime's upper half is seconds since 1970.
    token_age = None if one.token_time is None else at.timestamp() - (one.token_time >> 32)
    return {
        "publisher": one.publisher,
        "incarnation": str(one.incarnation),
        "incarnations": one.incarnations,
        "token_age_seconds": None if token_age is None else max(0.0, round(token_age, 1)),
        "saved_age_seconds": _age(at, one.saved_at),
        "copy": copy_report.throttle(one, at),
    }


def _age(at: datetime, moment: datetime | None) -> float | None:
    # Never below 0: the heartbeat's time is another machine's clock.
    return None if moment is None else max(0.0, round((at - moment).total_seconds(), 3))


def lines(told: dict[str, Any]) -> list[str]:
    """Return a report for people, aligned."""
    shown = copy_report.table(told["collections"])
    shown.append("")
    for one in told["publishers"]:
        shown.append(
            f"publish  {one['publisher']}: token {span(one['token_age_seconds'])} old, "
            f"saved {span(one['saved_age_seconds'])} ago"
        )
        if one["copy"] and any(copy["state"] != "copied" for copy in told["collections"]):
            shown.append(f"copy     {copy_report.held(one['copy'])}")
    apply, letters = told["apply"], told["dead_letters"]
    outcomes = [f"{n:,} {name.replace('_', '-')}" for name, n in apply["outcomes"].items() if n]
    shown += [
        f"apply    lag {span(apply['lag_seconds'])} over {apply['heartbeat_partitions']} partitions, "
        f"last batch {span(apply['last_batch_age_seconds'])} ago",
        f"records  {apply['records']:,}" + (f": {', '.join(outcomes)}" if outcomes else ""),
        f"letters  {letters['dead']:,} dead, {letters['parked']:,} parked",
        "tenants  " + (", ".join(f"{n:,} {phase}" for phase, n in told["tenants"].items()) or "none yet"),
    ]
    shown += moves_shown.lines(told, span)
    shown += reconcile_report.lines(told["reconcile"], span)
    for one in told["collections"]:
        if one["mapping"] == "differs":
            shown.append(
                f"mapping  {one['collection']}: not that of its rows: "
                f"crossfade copy start --collection {one['collection']}"
            )
        elif one["mapping"] == "unmapped":
            shown.append(f"mapping  {one['collection']}: no longer mapped; its rows fall behind")
    if told["tenant_unknown"]:
        shown.append(
            f"{told['tenant_unknown']:,} of the dead letters: tenant unknown: blocks every tenant's cutover "
            "(crossfade dead-letters list --tenant unknown)"
        )
    if told["held"]:
        shown.append(
            f"held     {told['held']:,} documents of batches that were rolled back: crossfade batches refetch"
        )
    if not told["publishers"]:
        shown.append("nothing has been published yet: crossfade run")
    return shown + lines_of_oplog(told, span) + _incidents(told["incidents"])


def _incidents(incidents: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the newest of what publish did by itself."""
    return [
        f"by itself, {one['at'][:19]}  {one['what']} "
        f"({one['subject'].get('namespace') or one['subject'].get('publisher')}): {one['reason']}"
        for one in incidents[:_INCIDENTS]
    ]
