"""Deletes by a TTL index, told from rogue ones (docs/protocol.md A5).

A change event does not say who deleted, nor what. So the rows do: a delete has expired when MongoDB has a TTL
index on the collection, and the document as PostgreSQL has it was due by then, or is not there either.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from bson.datetime_ms import DatetimeMS

from topics import Operation
from worker.apply.batch import EXPIRED, ROGUE, UNREADABLE, Item, Outcome
from worker.clock import SYSTEM_CLOCK
from worker.mapping import Mapping, Unrebuildable, rebuilder
from worker.mapping.extended import milliseconds
from worker.mongo.client import WhenAsked
from worker.mongo.in_the_way import TtlIndex
from worker.mongo.ttl import TtlIndexes
from worker.postgres.connect import Connection
from worker.postgres.documents import Stored, TargetDocuments

_FOR = 10.0  # seconds for which an answer of MongoDB counts


class Unlearned(Exception):
    """Collections' TTL indexes have to be asked for first."""

    def __init__(self, namespaces: Sequence[str]) -> None:
        self.namespaces = namespaces
        super().__init__()


class Expiry:
    """Knows the TTL indexes of the collections in which something was deleted."""

    def __init__(self, mongo: WhenAsked, mapping: Mapping) -> None:
        self._ttl = TtlIndexes(mongo)
        self._mapping = mapping
        self._known: dict[str, tuple[float, list[TtlIndex]]] = {}

    async def learn(self, namespaces: Sequence[str]) -> None:
        """Ask MongoDB for these collections' TTL indexes. `Transient` while it is away."""
        found = await self._ttl.read(namespaces)
        for namespace in namespaces:
            indexes = [one for one in found if one.namespace == namespace]
            self._known[namespace] = SYSTEM_CLOCK.monotonic(), indexes

    async def judge(self, connection: Connection, items: Iterable[Item]) -> None:
        """Let rogue deletes that are a TTL index's be told so; their tenants must be declared.

        `Unlearned` where MongoDB must be asked, which is not for a transaction that holds locks.
        """
        deletes: dict[str, list[Item]] = {}
        for item in items:
            rogue = item.outcome is Outcome.DEAD and item.kind == ROGUE
            if rogue and item.event is not None and item.event.operation is Operation.DELETE:
                deletes.setdefault(item.event.namespace, []).append(item)
        since = SYSTEM_CLOCK.monotonic() - _FOR
        if unknown := [one for one in deletes if self._known.get(one, (since, []))[0] <= since]:
            raise Unlearned(unknown)
        for namespace, some in deletes.items():
            if indexes := self._known[namespace][1]:
                await self._judge(connection, namespace, some, indexes)

    async def _judge(
        self, connection: Connection, namespace: str, items: Sequence[Item], indexes: Sequence[TtlIndex]
    ) -> None:
        documents = self._documents(namespace, items[0])
        found = await documents.rows(connection, [item.key[1] for item in items if item.key])
        rows = {UUID(int=row_id.int): stored for row_id, stored in found.items()}
        for item in items:
            assert item.key is not None and item.event is not None
            told = _told(documents, rows.get(item.key[1]), indexes, milliseconds(item.event.wall))
            if told is not None:
                item.fail(Outcome.DEAD, EXPIRED, told)

    def _documents(self, namespace: str, item: Item) -> TargetDocuments:
        source = self._mapping.sources().find(namespace)
        assert source is not None and item.mapped is not None  # for it has a row id
        return TargetDocuments(item.mapped.plan.tables, rebuilder(self._mapping, source.name, source.tenant))


def _told(
    documents: TargetDocuments, stored: Stored | None, indexes: Sequence[TtlIndex], at: int
) -> str | None:
    """Return why a delete is a TTL index's; None where it is not."""
    if stored is None or not stored.number:
        return f"deleted as its TTL index {indexes[0].name} does; PostgreSQL has no row of it either"
    try:
        document = documents.rebuild(stored)
    except (Unrebuildable, *UNREADABLE):
        return None
    for index in indexes:
        if due(document, index, at):
            return f"its TTL index {index.name} deletes it; its row stays until PostgreSQL's own deletion"
    return None


def due(document: dict[str, Any], index: TtlIndex, at: int) -> bool:
    """Whether a TTL index may delete a document at ``at``, in milliseconds: the least of its dates counts."""
    dates = list(_dates(document, index.path.split(".")))
    # NaN, which some versions take for never and some for at once, is never.
    return bool(dates) and min(dates) + index.seconds * 1000 <= at


def _dates(value: Any, path: Sequence[str]) -> Iterator[int]:
    if isinstance(value, list):
        if path and path[0].isdecimal() and int(path[0]) < len(value):
            yield from _dates(value[int(path[0])], path[1:])
        for element in value:
            if not isinstance(element, list):
                yield from _dates(element, path)
    elif not path:
        if isinstance(value, datetime | DatetimeMS):
            yield milliseconds(value)
    elif isinstance(value, dict) and path[0] in value:
        yield from _dates(value[path[0]], path[1:])
