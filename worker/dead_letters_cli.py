"""`crossfade dead-letters`: list, show, replay and discard events that could not be applied."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar
from uuid import UUID

import click
import orjson
from bson import Binary
from bson.errors import BSONError

from topics import EnvelopeError, decode, key_to_id
from topics.envelope import MAX_ORDER
from worker.errors import ConfigurationError
from worker.extended_json import extended
from worker.postgres import dead_letter_office as office
from worker.postgres.audit import os_user
from worker.postgres.connect import Connection
from worker.postgres.dead_letter_office import STANDING, STATES, Filter, Letter
from worker.settings import load

UNKNOWN_TENANT = "tenant unknown: blocks every tenant's cutover"
_T = TypeVar("_T")
_NUMBER = click.IntRange(1, 2**63 - 1)  # a bigint
_kind = click.option("--kind", "kinds", multiple=True, help="Of this kind; may be given several times.")
_collection = click.option("--collection", help="Of this collection: `database.name`, or the name alone.")


@click.group(name="dead-letters")
def dead_letters() -> None:
    """Events that could not be applied as they are: list, show, replay, discard.

    State `dead`: a person must act. `parked`: waits for another event and is retried. `healed`: applied
    since, or overtaken by something newer. `discarded`: given up, with a reason. The first two stand.
    """


class _Tenant(click.ParamType):
    name = "UUID|unknown"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> UUID | str:
        if value == "unknown":
            return value
        try:
            return UUID(value)
        except ValueError:
            self.fail(f"{value} is neither a UUID nor `unknown`", param, ctx)


@dead_letters.command(name="list")
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice(STATES),
    help="In this state; may be given several times.  [default: dead, parked]",
)
@_kind
@_collection
@click.option("--tenant", type=_Tenant(), help="Of this tenant; `unknown`: of none that could be told.")
@click.option("--limit", type=_NUMBER, default=50, show_default=True, help="At most so many.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: `letters` and `counts`.")
def list_(
    states: Sequence[str],
    kinds: Sequence[str],
    collection: str | None,
    tenant: UUID | str | None,
    limit: int,
    as_json: bool,
) -> None:
    """List dead letters, the newest first; never a value of a document.

    A line has number, state, kind, collection, id, tenant, when it was first seen, tries and reason. The last
    line counts all that the filters choose.

    \b
    Examples:
      crossfade dead-letters list
      crossfade dead-letters list --kind mapping --collection pages
      crossfade dead-letters list --tenant unknown
      crossfade dead-letters list --state discarded --state healed --json
    """
    chosen = Filter(
        states=states or STANDING,
        kinds=kinds,
        collection=collection,
        tenant=tenant if isinstance(tenant, UUID) else None,
        tenant_unknown=tenant == "unknown",
    )

    async def look(connection: Connection) -> tuple[list[Letter], tuple[dict[str, int], int]]:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            return await office.letters(connection, chosen, limit), await office.counts(connection, chosen)

    letters, (counts, unknown) = _ask(look)
    if as_json:
        told = {
            "letters": [tell(letter) for letter in letters],
            "counts": {state: counts.get(state, 0) for state in chosen.states},
            "tenant_unknown": unknown,
        }
        click.echo(orjson.dumps(told, option=orjson.OPT_INDENT_2).decode())
        return
    for letter in letters:
        click.echo(line(tell(letter)))
    total = ", ".join(f"{counts.get(state, 0):,} {state}" for state in chosen.states)
    shown = "" if sum(counts.values()) == len(letters) else f"; the newest {len(letters):,} are shown"
    click.echo(total + shown)
    if unknown:
        click.echo(f"{unknown:,} of them: {UNKNOWN_TENANT} (dead-letters list --tenant unknown)")


@dead_letters.command()
@click.argument("dead_letter_id", metavar="ID", type=_NUMBER)
@click.option("--document", is_flag=True, help="Print the document too. It is your customers' data.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(dead_letter_id: int, document: bool, as_json: bool) -> None:
    """Show all that is known of a dead letter, and what was done to it; the document only when asked.

    \b
    Examples:
      crossfade dead-letters show 17
      crossfade dead-letters show 17 --document
      crossfade dead-letters show 17 --json --document | jq .document
    """

    async def look(connection: Connection) -> tuple[Letter, list[office.Audited], bytes | None]:
        found = await office.letters(connection, Filter(ids=[dead_letter_id]), 1)
        if not found:
            raise _no_such([dead_letter_id])
        value = await office.event(connection, dead_letter_id) if document else None
        return found[0], await office.audit(connection, dead_letter_id), value

    letter, audited, value = _ask(look)
    told = tell(letter)
    told["audit"] = [one._asdict() | {"at": one.at.isoformat()} for one in audited]
    if value is not None:
        told |= _content(value)
    if as_json:
        click.echo(json.dumps(told, ensure_ascii=False, indent=2))
        return
    for name, of_it in told.items():
        if name == "audit":
            for one in audited:
                reason = f": {one.reason}" if one.reason else ""
                click.echo(f"{'audit':<16} {one.at:%Y-%m-%d %H:%M:%S%z} {_who(one)} {one.action}{reason}")
        elif name == "tenant" and of_it is None and letter.state in STANDING:
            click.echo(f"{name:<16} {UNKNOWN_TENANT}")
        elif of_it is not None:
            click.echo(f"{name:<16} {of_it if isinstance(of_it, str) else json.dumps(of_it)}")


@dead_letters.command()
@click.argument("ids", metavar="[ID]...", nargs=-1, type=_NUMBER)
@click.option("--all", "all_", is_flag=True, help="All that stand, narrowed by --kind and --collection.")
@_kind
@_collection
@click.option("--reason", default="", help="Why; kept in the audit log. Needed for rogue ones.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def replay(
    ids: tuple[int, ...],
    all_: bool,
    kinds: Sequence[str],
    collection: str | None,
    reason: str,
    as_json: bool,
) -> None:
    """Have apply try dead letters again, once the mapping, the table or the other document was mended.

    They are parked, and a running apply takes them within a second, with the mapping that it was started
    with: start it again first when that was changed. The newest state wins: a letter whose document has a
    newer event in PostgreSQL is healed and changes nothing. One that still does not fit is dead again.
    Audited.

    A rogue one is applied to PostgreSQL as the application would have written it, whole, over whatever is
    there; the way back brings that to MongoDB, where it had undone the write. --all leaves rogue ones out,
    unless --kind names them.

    \b
    Examples:
      crossfade dead-letters replay 17 18
      crossfade dead-letters replay --all --kind mapping --collection pages
      crossfade dead-letters replay 19 --reason "the import should have gone to PostgreSQL"
    """
    if bool(ids) == all_:
        raise click.UsageError("give either IDs or --all")
    if ids and (kinds or collection):
        raise click.UsageError("--kind and --collection narrow --all, not IDs")
    chosen = Filter(ids=ids or None, kinds=kinds, collection=collection)
    why = reason.strip() or None

    async def work(connection: Connection) -> list[int]:
        if why is None and await _any_rogue(connection, chosen):
            raise click.UsageError("rogue ones are replayed for a reason: say --reason")
        return await office.replay(connection, chosen, os_user=os_user(), reason=why)

    _settle(chosen, work, "replayed", as_json)


async def _any_rogue(connection: Connection, chosen: Filter) -> bool:
    if chosen.ids is None:
        return "rogue" in chosen.kinds
    rogue = Filter(ids=chosen.ids, kinds=["rogue"], states=STANDING)
    return bool(await office.letters(connection, rogue, 1))


@dead_letters.command()
@click.argument("ids", metavar="ID...", nargs=-1, required=True, type=_NUMBER)
@click.option("--reason", required=True, help="Why the event may be given up; kept in the audit log.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def discard(ids: tuple[int, ...], reason: str, as_json: bool) -> None:
    """Give dead letters up: the event is kept, but no longer stands in anyone's way. Audited.

    The document itself is not changed: where MongoDB has it, PostgreSQL now differs, until a newer event.

    \b
    Examples:
      crossfade dead-letters discard 17 --reason "test account, removed in MongoDB"
    """
    if not reason.strip():
        raise click.UsageError("--reason says nothing")
    chosen = Filter(ids=ids)
    _settle(
        chosen,
        lambda connection: office.discard(connection, chosen, os_user=os_user(), reason=reason.strip()),
        "discarded",
        as_json,
    )


def _settle(
    chosen: Filter, work: Callable[[Connection], Awaitable[list[int]]], done: str, as_json: bool
) -> None:
    """Change letters, and say which stood no longer; `ConfigurationError` for a number that none has."""

    async def change(connection: Connection) -> tuple[list[int], dict[int, str]]:
        before = await office.letters(connection, chosen, None) if chosen.ids else []
        if missing := sorted(set(chosen.ids or ()) - {letter.dead_letter_id for letter in before}):
            raise _no_such(missing)
        changed = await work(connection)
        after = await office.letters(connection, chosen, None) if chosen.ids else []
        return changed, {
            letter.dead_letter_id: letter.state for letter in after if letter.dead_letter_id not in changed
        }

    changed, others = _ask(change)
    if as_json:
        others_told = {str(number): state for number, state in others.items()}
        click.echo(orjson.dumps({done: changed, "unchanged": others_told}).decode())
        return
    click.echo(f"{len(changed):,} {done}")
    for number, state in sorted(others.items()):
        click.echo(f"{number} stood no longer: {state}")


def tell(letter: Letter) -> dict[str, Any]:
    """Return what is told of a letter, ready for JSON; nothing of its document but the id."""
    version = None
    if letter.version_time is not None:
        time, order = letter.version_time, letter.version_order
        version = {"t": time >> 32, "i": time & 0xFFFFFFFF, "order": order}
    return {
        "dead_letter_id": letter.dead_letter_id,
        "state": letter.state,
        "kind": letter.kind,
        "reason": letter.reason,
        "collection": letter.namespace or None,
        "id": None if letter.document_id is None else extended(key_to_id(letter.document_id)),
        "row_id": letter.row_id and str(letter.row_id),
        "tenant": letter.tenant_id and str(letter.tenant_id),
        "version": version,
        "record": f"{letter.topic}:{letter.partition}:{letter.offset}",
        "bytes": letter.size,
        "attempts": letter.attempts,
        "first_seen_at": letter.first_seen_at.isoformat(),
        "next_attempt_at": letter.next_attempt_at and letter.next_attempt_at.isoformat(),
        "batch_id": letter.batch_id,
    }


def line(told: dict[str, Any]) -> str:
    """Return a letter in one line."""
    tenant = told["tenant"] or ("-" if told["state"] not in STANDING else f"[{UNKNOWN_TENANT}]")
    id_ = "-" if told["id"] is None else json.dumps(told["id"], ensure_ascii=False)
    tries = f"{told['attempts']} {'try' if told['attempts'] == 1 else 'tries'}"
    place = f"{told['collection'] or '-'} {id_} {tenant}"
    return (
        f"{told['dead_letter_id']:>6} {told['state']:<9} {told['kind']:<11} {place} "
        f"{told['first_seen_at'][:19]}Z {tries}: {told['reason']}"
    )


def _content(value: bytes) -> dict[str, Any]:
    try:
        event = decode(value)
        document = None if event.document is None else extended(event.document)
        order = "snapshot" if event.version.order == MAX_ORDER else event.version.order
        return {"operation": event.operation.value, "order": order, "document": document}
    except (EnvelopeError, BSONError, RecursionError):
        return {"value": extended(Binary(value))}


def _ask(work: Callable[[Connection], Awaitable[_T]]) -> _T:
    return asyncio.run(_asked(work))


async def _asked(work: Callable[[Connection], Awaitable[_T]]) -> _T:
    async with office.opened(load().postgres_dsn.get_secret_value()) as connection:
        return await work(connection)


def _no_such(ids: Sequence[int]) -> ConfigurationError:
    numbers = ", ".join(map(str, ids))
    return ConfigurationError(
        f"there is no dead letter {numbers}; nothing was changed", remedy="`crossfade dead-letters list`"
    )


def _who(one: office.Audited) -> str:
    return f"{one.database_user} ({one.os_user})"
