"""`crossfade copy`: begin, pause, resume and throttle copies while they run, and look at them."""

from __future__ import annotations

import asyncio
import difflib
import math
import sys
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, TypeVar

import click
import orjson

from topics import TopicNames
from worker import copy_report
from worker.errors import ConfigurationError, MappingError, UsageError
from worker.mapping import Mapping as MappingFile
from worker.mapping import hashes
from worker.mapping import load as load_mapping
from worker.postgres import audit, copy_control, mapping_versions
from worker.postgres.connect import ANSWER_WITHIN, Connection, connect
from worker.postgres.mapping_versions import Known
from worker.postgres.standing import read_standing
from worker.settings import Settings, load

ACCEPTED = "accepted"
_TOLD = {
    ACCEPTED: "another mapping than its rows have: accepted, and every document copied again",
    "same": "the mapping of its rows: every document copied again",
    "new": "not copied yet",
}
F = TypeVar("F", bound=Callable[..., Any])


@click.group()
def copy() -> None:
    """Copies: begin, pause, resume, throttle, look.

    A running `publish` follows within a second or two; without one, what is said here holds from its start.

    \b
    Examples:
      crossfade copy status
      crossfade copy throttle --rate 2000
      crossfade copy pause --all
      crossfade copy resume --all
      crossfade copy start --collection pages
    """


def _which(command: F) -> F:
    for option in (
        click.option("--all", "every", is_flag=True, help="Every collection of the mapping."),
        click.option("--collection", "names", multiple=True, help="A collection of the mapping; repeatable."),
    ):
        command = option(command)
    return command


def _json(what: str) -> Callable[[F], F]:
    return click.option("--json", "as_json", is_flag=True, help=f"Print {what}.")


@copy.command()
@_which
@click.option("--yes", is_flag=True, help="Do not ask.")
@_json("a JSON array, one object for each collection")
def start(names: tuple[str, ...], every: bool, yes: bool, as_json: bool) -> None:
    """Copy collections again, over the live rows, by the mapping file as it is now.

    After a change of the mapping, `publish` and `apply` do not start until it is accepted by this command,
    for each collection whose rows change. Those that run end within seconds, and start again with the new
    file if they are supervised. Where the mapping is the same, a running `publish` begins the copy; that of
    a paused collection begins when it is resumed.

    Change the tables first. Nothing is deleted: rows are replaced one by one while the application writes.
    What the mapping no longer names, a table or a column, keeps what it holds.

    \b
    Examples:
      crossfade copy start --collection pages
      crossfade copy start --collection pages --collection users --yes
      crossfade copy start --all --yes --json
    """
    chosen = _Chosen.of(names, every)
    asyncio.run(_start(chosen, yes, as_json))


@copy.command()
@_which
@_json("a JSON array, one object for each collection")
def pause(names: tuple[str, ...], every: bool, as_json: bool) -> None:
    """Let copies wait until they are resumed; the change stream goes on.

    A pause holds whatever is started again, `publish` or the copy. Documents that Kafka has are applied.

    \b
    Examples:
      crossfade copy pause --collection pages
      crossfade copy pause --all
    """
    asyncio.run(_pause(_Chosen.of(names, every), True, as_json))


@copy.command()
@_which
@_json("a JSON array, one object for each collection")
def resume(names: tuple[str, ...], every: bool, as_json: bool) -> None:
    """Let paused copies go on after their last document.

    \b
    Examples:
      crossfade copy resume --collection pages
      crossfade copy resume --all
    """
    asyncio.run(_pause(_Chosen.of(names, every), False, as_json))


@copy.command()
@click.option("--collection", "names", multiple=True, help="Only this collection; may be repeated.")
@_json("one JSON object; its keys are those of `status --json`")
def status(names: tuple[str, ...], as_json: bool) -> None:
    """Show how far copies are, how long they will take, and which throttle holds now.

    Rate and time left are of the last minute or so; pauses are left out.

    \b
    Examples:
      crossfade copy status
      crossfade copy status --collection pages --json | jq '.collections[0].eta_seconds'
    """
    asyncio.run(_status(load(), names, as_json))


class _Given(NamedTuple):
    limit: float | None  # as it is stored


class _Limit(click.ParamType):
    name = "number|none|default"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> _Given:
        if value in ("none", "default"):
            return _Given(0.0 if value == "none" else None)
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not (number > 0 and math.isfinite(number)):
            self.fail(f"{value} is no number above 0, nor `none` or `default`", param, ctx)
        return _Given(number)


@copy.command()
@click.option("--rate", type=_Limit(), help="Documents a second, over all collections.")
@click.option("--max-lag", type=_Limit(), help="Seconds that apply may be behind; the copy yields at half.")
@click.option("--max-replication-lag", type=_Limit(), help="Seconds that a MongoDB secondary may be behind.")
@_json("a JSON object of the limits as they are stored: 0 is none, null as publish's settings say")
def throttle(
    rate: _Given | None, max_lag: _Given | None, max_replication_lag: _Given | None, as_json: bool
) -> None:
    """Change what holds the copy back, while it runs; without an option, show what was set here.

    `none` takes a limit away, `default` leaves it to the settings of `publish` (CROSSFADE_COPY_RATE,
    CROSSFADE_COPY_MAX_LAG, CROSSFADE_COPY_MAX_REPLICATION_LAG).

    \b
    Examples:
      crossfade copy throttle --rate 2000
      crossfade copy throttle --rate none --max-lag 5
      crossfade copy throttle --max-replication-lag default
      crossfade copy throttle --json
    """
    given = {"rate": rate, "max_lag": max_lag, "max_replication_lag": max_replication_lag}
    limits = {name: one.limit for name, one in given.items() if one is not None}
    asyncio.run(_throttle(load(), limits, as_json))


class _Chosen(NamedTuple):
    """Collections that a person named, and the hashes of all in the mapping file."""

    settings: Settings
    wanted: Mapping[str, str]
    names: Sequence[str]

    @classmethod
    def of(cls, names: Sequence[str], every: bool) -> _Chosen:
        if bool(names) == every:
            raise ConfigurationError("say which collections are meant", remedy="--collection NAME, or --all")
        settings = load()
        mapping = load_mapping(settings.mapping)
        wanted = hashes(mapping)
        chosen = list(wanted) if every else list(dict.fromkeys(_namespace(mapping, name) for name in names))
        return cls(settings, wanted, chosen)


def _namespace(mapping: MappingFile, name: str) -> str:
    """Return the logical namespace of a collection, named as in the file or as in `status`."""
    known = {written: str(mapping.logical(written)) for written in mapping.collections}
    if name in known:
        return known[name]
    if name in known.values():
        return name
    near = difflib.get_close_matches(name, [*known, *known.values()], n=1)
    raise MappingError(
        f"the mapping has no collection {name}", remedy=f"did you mean {near[0]}?" if near else ""
    )


@asynccontextmanager
async def _connected(settings: Settings) -> AsyncIterator[Connection]:
    dsn = settings.postgres_dsn.get_secret_value()
    connection = await connect(dsn, "copy", statement_timeout=ANSWER_WITHIN)
    try:
        with mapping_versions.told_clearly():
            yield connection
    finally:
        connection.terminate()


async def _start(chosen: _Chosen, yes: bool, as_json: bool) -> None:
    wanted = chosen.wanted
    async with _connected(chosen.settings) as connection:
        known = await mapping_versions.known(connection)
        states = {name: _state(known.get(name), wanted[name]) for name in chosen.names}
        if not yes:
            _ask(states)
        async with connection.transaction():
            await mapping_versions.accept(connection, wanted, chosen.names)
            await audit.note(connection, "copy start", {"collections": chosen.names})
        paused = await copy_control.paused_copies(connection)
    left = [
        name
        for name, hash_ in wanted.items()
        if name not in chosen.names and _state(known.get(name), hash_) == ACCEPTED
    ]
    if as_json:
        _print([{"collection": n, "mapping": state, "paused": n in paused} for n, state in states.items()])
    else:
        waits = "; it is paused, and begins when it is resumed"
        click.echo("\n".join(f"{n}: {_TOLD[state]}{waits * (n in paused)}" for n, state in states.items()))
    if left:
        click.echo(f"still of another mapping: {', '.join(left)}", err=True)


def _state(known: Known | None, hash_: str) -> str:
    if known is not None and known.mapping_hash != hash_:
        return ACCEPTED
    return "same" if known is not None and known.copies else "new"


def _ask(states: Mapping[str, str]) -> None:
    if not sys.stdin.isatty():
        raise UsageError("nobody is there to be asked", remedy="add --yes")
    click.echo("\n".join(f"{name}: {_TOLD[state]}" for name, state in states.items()), err=True)
    click.confirm("Go on?", abort=True, err=True)


async def _pause(chosen: _Chosen, paused: bool, as_json: bool) -> None:
    async with _connected(chosen.settings) as connection:
        # A collection that no publisher has seen yet can be paused before its copy begins.
        await mapping_versions.make_known(connection, {name: chosen.wanted[name] for name in chosen.names})
        changed = await copy_control.pause(connection, chosen.names, paused)
    if as_json:
        _print([{"collection": n, "paused": paused, "changed": n in changed} for n in chosen.names])
        return
    now, before = ("paused", "was paused already") if paused else ("resumed", "was not paused")
    click.echo("\n".join(f"{name}: {now if name in changed else before}" for name in chosen.names))


async def _status(settings: Settings, names: Collection[str], as_json: bool) -> None:
    mapping = load_mapping(settings.mapping)
    wanted = {_namespace(mapping, name) for name in names}
    async with _connected(settings) as connection:
        standing = await read_standing(connection)
    told = copy_report.collections(standing, TopicNames(settings.topic_prefix), hashes(mapping))
    shown = [one for one in told if not wanted or one["collection"] in wanted]
    copies = {one.publisher: copy_report.throttle(one, standing.at) for one in standing.publishers}
    if as_json:
        publishers = [{"publisher": name, "copy": copy} for name, copy in copies.items()]
        _print({"at": standing.at.isoformat(), "collections": shown, "publishers": publishers})
        return
    click.echo("\n".join(copy_report.table(shown)))
    for name, copy in copies.items():
        if copy is not None:
            lines = [copy_report.held(copy), *copy_report.limits(copy)]
            click.echo("\n".join(("", f"publish  {name}", *(f"         {line}" for line in lines))))


async def _throttle(settings: Settings, limits: Mapping[str, float | None], as_json: bool) -> None:
    async with _connected(settings) as connection:
        stored = await copy_control.limit(connection, limits)
    if as_json:
        _print(stored)
        return
    said = {None: "as publish's settings say", 0: "none"}
    click.echo("\n".join(f"{n.replace('_', ' ')}: {said.get(v, f'{v or 0:g}')}" for n, v in stored.items()))


def _print(told: object) -> None:
    click.echo(orjson.dumps(told, option=orjson.OPT_INDENT_2).decode())
