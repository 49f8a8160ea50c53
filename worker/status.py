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
from worker.errors import CrossfadeError, MappingError
from worker.mapping import hashes
from worker.mapping import load as load_mapping
from worker.oplog_forecast import lines_of_oplog, look_at_oplog, told_of_oplog
from worker.postgres.connect import connect
from worker.postgres.migration_log import OUTCOMES
from worker.postgres.standing import CopyStanding, PublisherStanding, Standing, read_standing
from worker.settings import Settings, load

_EVERY = 2.0  # seconds between looks of --watch
_INCIDENTS = 3  # lines of them; --json has more
_LETTERS = ("dead", "parked", "healed", "discarded")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; its keys are stable.")
@click.option("--watch", is_flag=True, help=f"Look again every {_EVERY:.0f} s, until Ctrl-C.")
def status(as_json: bool, watch: bool) -> None:
    """Show how the migration stands: copies, lag, dead letters, tenants, how long publish may be down.

    Reads PostgreSQL, so it answers while all else is down: then the lag grows. Lag is the age of the
    newest heartbeat applied, in the partition where it is oldest. A copy's rate is the average since its
    beginning. MongoDB is asked only for its oplog, for two seconds.

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
    finally:
        connection.terminate()
    told = report(standing, TopicNames(settings.topic_prefix), _hashes(settings))
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


def report(standing: Standing, names: TopicNames, mapping: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return what `--json` prints. ``mapping``: the file's hashes by namespace, where there is a file."""
    # What is no longer mapped is no longer read: its last heartbeat is no lag.
    read = None if mapping is None else names.namespaces(map(Collection.parse, mapping))
    beats = [one for one in standing.partitions if one.heartbeat_at and (read is None or one.topic in read)]
    oldest = min(beats, key=lambda one: one.heartbeat_at or standing.at, default=None)
    outcomes = {name: sum(one.outcomes[name] for one in standing.partitions) for name in OUTCOMES}
    arrived: dict[str, int] = {}
    for one in standing.partitions:
        arrived[one.topic] = arrived.get(one.topic, 0) + one.records
    return {
        "at": standing.at.isoformat(),
        "collections": [
            _copy(copy, standing.at, arrived.get(names.copy(Collection.parse(copy.namespace)), 0), mapping)
            for copy in standing.copies
        ],
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
        "tenants": dict(sorted(standing.tenants.items())),
        "incidents": [
            {"at": one.at.isoformat(), "what": one.action, "subject": one.subject, "reason": one.reason}
            for one in standing.incidents
        ],
    }


def _copy(
    copy: CopyStanding, at: datetime, arrived: int, mapping: Mapping[str, str] | None
) -> dict[str, Any]:
    rate = eta = None
    if copy.started_at is not None and copy.state in ("copying", "copied"):
        took = ((copy.finished_at or at) - copy.started_at).total_seconds()
        rate = copy.copied / took if took > 0 else None
        left = copy.estimated - copy.copied
        if copy.state == "copied":
            eta = 0.0
        elif rate and left > 0:  # below 0: the estimate was too low, and nothing is known
            eta = round(left / rate, 1)
    return {
        "collection": copy.namespace,
        "state": copy.state,
        "copies": copy.copies,
        "mapping": _mapping(copy, mapping),
        "copied": copy.copied,
        "estimated": copy.estimated,
        "arrived": arrived,
        "rate_per_second": None if rate is None else round(rate, 1),
        "eta_seconds": eta,
        "started_at": copy.started_at and copy.started_at.isoformat(),
        "finished_at": copy.finished_at and copy.finished_at.isoformat(),
    }


def _mapping(copy: CopyStanding, mapping: Mapping[str, str] | None) -> str | None:
    if mapping is None:
        return None
    if copy.namespace not in mapping:
        return "unmapped"
    return "same" if mapping[copy.namespace] == copy.mapping_hash else "differs"


def _publisher(one: PublisherStanding, at: datetime) -> dict[str, Any]:
    # A clusterTime's upper half is seconds since 1970.
    token_age = None if one.token_time is None else at.timestamp() - (one.token_time >> 32)
    return {
        "publisher": one.publisher,
        "incarnation": str(one.incarnation),
        "incarnations": one.incarnations,
        "token_age_seconds": None if token_age is None else max(0.0, round(token_age, 1)),
        "saved_age_seconds": _age(at, one.saved_at),
    }


def _age(at: datetime, moment: datetime | None) -> float | None:
    # Never below 0: the heartbeat's time is another machine's clock.
    return None if moment is None else max(0.0, round((at - moment).total_seconds(), 3))


def lines(told: dict[str, Any]) -> list[str]:
    """Return a report for people, aligned."""
    shown = _table(
        ("collection", "copy", "copied", "of about", "docs/s", "ETA", "arrived"),
        [
            (
                one["collection"],
                _state(one),
                f"{one['copied']:,}",
                f"{one['estimated']:,}",
                "-" if one["rate_per_second"] is None else f"{one['rate_per_second']:,.0f}",
                "-" if one["state"] != "copying" else _span(one["eta_seconds"]),
                f"{one['arrived']:,}",
            )
            for one in told["collections"]
        ],
    )
    shown.append("")
    for one in told["publishers"]:
        shown.append(
            f"publish  {one['publisher']}: token {_span(one['token_age_seconds'])} old, "
            f"saved {_span(one['saved_age_seconds'])} ago"
        )
    apply, letters = told["apply"], told["dead_letters"]
    outcomes = [f"{n:,} {name.replace('_', '-')}" for name, n in apply["outcomes"].items() if n]
    shown += [
        f"apply    lag {_span(apply['lag_seconds'])} over {apply['heartbeat_partitions']} partitions, "
        f"last batch {_span(apply['last_batch_age_seconds'])} ago",
        f"records  {apply['records']:,}" + (f": {', '.join(outcomes)}" if outcomes else ""),
        f"letters  {letters['dead']:,} dead, {letters['parked']:,} parked",
        "tenants  " + (", ".join(f"{n:,} {phase}" for phase, n in told["tenants"].items()) or "none yet"),
    ]
    for one in told["collections"]:
        if one["mapping"] == "differs":
            shown.append(
                f"mapping  {one['collection']}: not that of its rows: "
                f"crossfade copy --collection {one['collection']}"
            )
        elif one["mapping"] == "unmapped":
            shown.append(f"mapping  {one['collection']}: no longer mapped; its rows fall behind")
    if told["tenant_unknown"]:
        shown.append(
            f"{told['tenant_unknown']:,} of the dead letters: tenant unknown: blocks every tenant's cutover "
            "(crossfade dead-letters list --tenant unknown)"
        )
    if not told["publishers"]:
        shown.append("nothing has been published yet: crossfade run")
    return shown + lines_of_oplog(told, _span) + _incidents(told["incidents"])


def _incidents(incidents: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the newest of what publish did by itself."""
    return [
        f"by itself, {one['at'][:19]}  {one['what']} "
        f"({one['subject'].get('namespace') or one['subject'].get('publisher')}): {one['reason']}"
        for one in incidents[:_INCIDENTS]
    ]


def _state(one: dict[str, Any]) -> str:
    """Return a copy's state, with whether rows of an earlier copy are there."""
    if one["state"] == "copying" and one["copies"] > 1:
        return "re-copying"
    if one["state"] == "pending" and one["copies"]:
        return "re-copy pending"
    return one["state"]


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        "  ".join(
            f"{cell:<{width}}" if place < 2 else f"{cell:>{width}}"
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (head, *rows)
    ]


def _span(seconds: float | None) -> str:
    """Return a length of time in the unit that a person would say it in."""
    if seconds is None:
        return "-"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
