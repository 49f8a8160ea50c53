"""`crossfade topics`: create what the mapping needs, and read what lies in a topic."""

from __future__ import annotations

import asyncio
import difflib
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import click
import orjson
from bson import Binary, json_util
from bson.binary import UuidRepresentation
from bson.errors import BSONError

from topics import EnvelopeError, TopicNames, declare_all, decode, key_to_id
from topics.envelope import MAX_ORDER
from worker.broker.access import access
from worker.broker.admin import Found, advice, create_topics, existing_topics, misfits
from worker.broker.reader import Record, TopicReader, reading
from worker.errors import ConfigurationError
from worker.mapping import load as load_mapping
from worker.settings import Settings, load

_NEWEST = 20
_UNDECODABLE = "undecodable"
# Canonical: whoever looks into a topic may be looking for a value's type.
_EXTENDED = json_util.JSONOptions(
    json_mode=json_util.JSONMode.CANONICAL,
    uuid_representation=UuidRepresentation.STANDARD,
)


@click.group()
def topics() -> None:
    """Kafka's topics of this migration: each mapped collection's stream, copy and way back."""


@topics.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array, one object for each topic.")
def create(as_json: bool) -> None:
    """Create the declared topics that are missing, and see that those that exist fit.

    `publish`, `apply` and `reverse` create missing topics by themselves; this is for those who may not let
    them, and to see what is there. Nothing that exists is changed. What would be better otherwise is told: a
    short retention, a record's size that is less than a document may have. Exit 2 when a topic has another
    number of partitions than CROSSFADE_TOPIC_PARTITIONS, or is compacted, or may lose what it has
    acknowledged.

    \b
    Examples:
      crossfade topics create
      CROSSFADE_TOPIC_PARTITIONS=12 CROSSFADE_TOPIC_REPLICATION=3 crossfade topics create
      crossfade topics create --json
    """
    settings = load()
    declared = declare_all(
        TopicNames(settings.topic_prefix),
        list(load_mapping(settings.mapping).namespaces()),
        partitions=settings.topic_partitions,
        replication=settings.topic_replication,
    )

    async def create() -> list[Found]:
        return await create_topics(await access(settings), declared)

    found = asyncio.run(create())
    if as_json:
        click.echo(orjson.dumps([_as_json(one) for one in found], option=orjson.OPT_INDENT_2).decode())
    else:
        width = max((len(one.topic.name) for one in found), default=0)
        for one in found:
            state = "created" if one.created else "exists"
            click.echo(f"{one.topic.name:<{width}}  {state:<7}  {one.partitions:>4} partitions")
    for one in found:
        for told in advice(one):
            click.echo(told, err=True)
    if faults := [fault for one in found for fault in misfits(one)]:
        raise ConfigurationError("; ".join(faults))


def _as_json(found: Found) -> dict[str, Any]:
    return {
        "topic": found.topic.name,
        "state": "created" if found.created else "exists",
        "partitions": found.partitions,
        "max_message_bytes": found.max_message_bytes,
        "retention_ms": found.retention_ms,
        "holds": found.topic.holds,
        "produced_by": found.topic.produced_by,
        "consumed_by": found.topic.consumed_by,
        "misfits": misfits(found),
        "advice": advice(found),
    }


@topics.command(name="print")
@click.argument("topic")
@click.option("--limit", type=click.IntRange(0), help=f"At most so many records.  [default: {_NEWEST}]")
@click.option("--from-beginning", is_flag=True, help="From the oldest record kept; all, unless limited.")
@click.option("--follow", is_flag=True, help="Then go on with what arrives, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@click.option("--documents", is_flag=True, help="Print documents too. They are your customers' data.")
def print_(
    topic: str, limit: int | None, from_beginning: bool, follow: bool, as_json: bool, documents: bool
) -> None:
    """Print the newest records of a TOPIC, ids as Extended JSON; without the documents unless asked.

    A line has partition:offset, operation, clusterTime and order, source, wall time, collection and id.
    Records that are no events of Crossfade are printed as `undecodable`, with the reason. Reading disturbs
    nothing: it belongs to no consumer group. Order holds within a partition only.

    \b
    Examples:
      crossfade topics print crossfade.spaces.pages
      crossfade topics print crossfade.spaces.pages --follow --limit 0
      crossfade topics print crossfade.spaces.pages.copy --from-beginning --limit 5 --documents
      crossfade topics print crossfade.spaces.pages --from-beginning --json | jq .id
    """
    try:
        asyncio.run(_print(load(), topic, limit, from_beginning, follow, as_json, documents))
    except KeyboardInterrupt:
        if not follow:
            raise


async def _print(
    settings: Settings,
    topic: str,
    limit: int | None,
    from_beginning: bool,
    follow: bool,
    as_json: bool,
    documents: bool,
) -> None:
    kafka = await access(settings)
    existing = await existing_topics(kafka)
    if topic not in existing:
        raise _no_such_topic(settings, topic, list(existing))
    async with (
        reading(kafka, topic, existing[topic]) as reader,
        aclosing(_records(reader, limit, from_beginning, follow)) as records,
    ):
        async for record in records:
            told = tell(record, documents=documents)
            click.echo(_dumps(told) if as_json else _line(told))


async def _records(
    reader: TopicReader, limit: int | None, from_beginning: bool, follow: bool
) -> AsyncGenerator[Record, None]:
    """Yield what is to be printed. What follows the newest records is not limited."""
    if from_beginning:
        count = 0
        if limit == 0:
            return
        async for record in _oldest(reader, follow):
            yield record
            count += 1
            if count == limit:
                return
        return
    wanted = _NEWEST if limit is None else limit
    newest = await reader.newest(wanted)
    for record in newest if follow else newest[max(0, len(newest) - wanted) :]:
        yield record
    if follow:
        async for record in reader.following():
            yield record


async def _oldest(reader: TopicReader, follow: bool) -> AsyncIterator[Record]:
    async for record in reader.all():
        yield record
    if follow:
        async for record in reader.following():
            yield record


def _no_such_topic(settings: Settings, topic: str, existing: list[str]) -> ConfigurationError:
    full = f"{settings.topic_prefix}.{topic}"  # a collection's name alone
    near = [full] if full in existing else difflib.get_close_matches(topic, existing, n=1)
    return ConfigurationError(
        f"Kafka has no topic {topic}",
        remedy=f"did you mean {near[0]}?" if near else "`crossfade topics create` names those of the mapping",
    )


def tell(record: Record, *, documents: bool) -> dict[str, Any]:
    """Return what is told of a record, ready for JSON: id and document as canonical Extended JSON.

    The document, or the bytes of what cannot be decoded, only when asked.
    """
    told: dict[str, Any] = {"partition": record.partition, "offset": record.offset}
    value = record.value or b""
    try:
        event = decode(value)
    except EnvelopeError as error:
        told |= {"operation": _UNDECODABLE, "reason": str(error), "id": _key(record.key), "bytes": len(value)}
        return told | ({"value": _extended(Binary(value))} if documents else {})
    told |= {
        "operation": event.operation.value,
        "collection": event.namespace,
        "id": _extended(event.id),
        "version": {
            "t": event.version.timestamp.time,
            "i": event.version.timestamp.inc,
            "order": event.version.order,
        },
        "source": event.source.value,
        "wall": f"{event.wall:%Y-%m-%dT%H:%M:%S}.{event.wall.microsecond // 1000:03d}Z",
        "incarnation": str(event.origin.incarnation),
        "bytes": len(value),
    }
    if event.origin.transaction is not None:
        told["transaction"] = int(event.origin.transaction)
    if documents and event.document is not None:
        told["document"] = _extended(event.document)
    return told


def _key(key: bytes | None) -> Any:
    try:
        return _extended(key_to_id(key or b""))
    except (BSONError, KeyError, TypeError, ValueError, OverflowError, RecursionError):
        return None


def _line(told: dict[str, Any]) -> str:
    place = f"{told['partition']}:{told['offset']}"
    if told["operation"] == _UNDECODABLE:
        line = f"{place:<10} {_UNDECODABLE}, {told['bytes']} bytes: {told['reason']}"
    else:
        version = told["version"]
        order = "snapshot" if version["order"] == MAX_ORDER else version["order"]
        time = f"{version['t']}.{version['i']}+{order}"
        line = (
            f"{place:<10} {told['operation']:<9} {time:<22} {told['source']:<6} {told['wall']} "
            f"{told['collection'] or '-'} {_dumps(told['id'])}"
        )
    content = told.get("document", told.get("value"))
    return line if content is None else f"{line}\n    {_dumps(content)}"


def _extended(value: Any) -> Any:
    return json.loads(json_util.dumps(value, json_options=_EXTENDED))


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
