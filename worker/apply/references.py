"""References: events that were too large for their topic, whose documents are read from MongoDB.

What is read is no older than its event, and may be newer: harmless, because it is applied under the event's
own version, and what made it newer follows with a greater one. So it is for the copy: its version is above
every event of its clusterTime, and what is read differs from the snapshot only by later events, which the
stream has. Where nothing is found the event is absent: the delete follows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

import structlog

from topics import Collection, document_key
from worker.apply.batch import Item, Outcome, complete
from worker.errors import Transient
from worker.mongo.client import WhenAsked
from worker.mongo.documents import Documents, Refused
from worker.retry import Backoff

_log = structlog.get_logger()


class References:
    """Completes the references of a batch, of which there must be no more than fit into memory."""

    def __init__(self, mongo: WhenAsked) -> None:
        self._documents = Documents(mongo)

    async def complete(self, items: Iterable[Item]) -> None:
        """Read the documents that are missing, waiting while MongoDB is away."""
        waiting, told = list(items), False
        for delay in Backoff().delays():
            try:
                await self.try_to_complete(waiting)
                return
            except Transient as error:
                if not told:
                    _log.warning("documents not read yet, trying again", reason=str(error))
                told = True
                await asyncio.sleep(delay)

    async def try_to_complete(self, items: Iterable[Item]) -> None:
        """Read the documents that are missing; `Transient` while MongoDB is away, with some still missing."""
        by_namespace: dict[str, list[Item]] = {}
        for item in items:
            if (event := item.reference) is not None:
                by_namespace.setdefault(event.namespace, []).append(item)
        for namespace, missing in by_namespace.items():
            await self._complete(Collection.parse(namespace), missing)

    async def _complete(self, collection: Collection, items: Sequence[Item]) -> None:
        """Complete the references of one collection, together; where that is refused, each alone."""
        ids, by_key = dict[bytes, Any](), dict[bytes, list[Item]]()
        for item in items:
            assert item.event is not None
            key = document_key(item.event.id)
            ids[key] = item.event.id
            by_key.setdefault(key, []).append(item)
        newest = max(item.version for item in items).timestamp
        while ids:  # a reply may not hold them all
            try:
                found = await self._documents.read(collection, ids, newest)
            except Refused as refused:
                if len(items) == 1:
                    items[0].fail(Outcome.DEAD, "reference", str(refused))
                    return
                for item in (item for key in ids for item in by_key[key]):
                    await self._complete(collection, [item])
                return
            for key in ids.keys() - found.left.keys():
                for item in by_key[key]:
                    complete(item, found.documents.get(key))
            ids = found.left
