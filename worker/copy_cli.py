"""`crossfade copy`: accept the mapping file for collections, and copy them again over the live rows."""

from __future__ import annotations

import asyncio
import difflib
import sys
from collections.abc import Mapping, Sequence

import click
import orjson

from worker.errors import ConfigurationError, MappingError, UsageError
from worker.mapping import Mapping as MappingFile
from worker.mapping import hashes
from worker.mapping import load as load_mapping
from worker.postgres import mapping_versions
from worker.postgres.connect import ANSWER_WITHIN, connect
from worker.postgres.mapping_versions import Known
from worker.settings import Settings, load

ACCEPTED = "accepted"
_TOLD = {
    ACCEPTED: "another mapping than its rows have: accepted, and every document copied again",
    "same": "the mapping of its rows: every document copied again",
    "new": "not copied yet",
}


@click.command()
@click.option("--collection", "names", multiple=True, help="A collection of the mapping; may be repeated.")
@click.option("--all", "every", is_flag=True, help="Every collection of the mapping.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array, one object for each collection.")
def copy(names: tuple[str, ...], every: bool, yes: bool, as_json: bool) -> None:
    """Copy collections again, over the live rows, by the mapping file as it is now.

    After a change of the mapping, `publish` and `apply` do not start until it is accepted by this command,
    for each collection whose rows change. Those that run end within seconds, and start again with the new
    file if they are supervised. Where the mapping is the same, a running `publish` begins the copy.

    Change the tables first. Nothing is deleted: rows are replaced one by one while the application writes.
    What the mapping no longer names, a table or a column, keeps what it holds.

    \b
    Examples:
      crossfade copy --collection pages
      crossfade copy --collection pages --collection users --yes
      crossfade copy --all --yes --json
    """
    if bool(names) == every:
        raise ConfigurationError(
            "say which collections are copied again", remedy="--collection NAME, or --all"
        )
    settings = load()
    mapping = load_mapping(settings.mapping)
    wanted = hashes(mapping)
    chosen = list(wanted) if every else list(dict.fromkeys(_namespace(mapping, name) for name in names))
    asyncio.run(_copy(settings, wanted, chosen, yes, as_json))


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


async def _copy(
    settings: Settings, wanted: Mapping[str, str], chosen: Sequence[str], yes: bool, as_json: bool
) -> None:
    connection = await connect(
        settings.postgres_dsn.get_secret_value(), "copy", statement_timeout=ANSWER_WITHIN
    )
    try:
        with mapping_versions.told_clearly():
            known = await mapping_versions.known(connection)
            states = {name: _state(known.get(name), wanted[name]) for name in chosen}
            if not yes:
                _ask(states)
            await mapping_versions.accept(connection, wanted, chosen)
    finally:
        connection.terminate()
    left = [
        name
        for name, hash_ in wanted.items()
        if name not in chosen and _state(known.get(name), hash_) == ACCEPTED
    ]
    if as_json:
        shown = [{"collection": name, "mapping": state} for name, state in states.items()]
        click.echo(orjson.dumps(shown, option=orjson.OPT_INDENT_2).decode())
    else:
        click.echo("\n".join(f"{name}: {_TOLD[state]}" for name, state in states.items()))
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
