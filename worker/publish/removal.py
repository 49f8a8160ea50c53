"""After a copy over live rows: documents that the ledger knows and MongoDB no longer has are deleted (C7).

A candidate is a document that nothing has shown since the copy began. Only once apply has all that Kafka held
at the copy's end is it looked for, in a snapshot; what is not there gets a delete at the snapshot's time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog

from topics import Event, Operation, Source, Version, document_key, encode
from worker import failpoints
from worker.broker.access import Access
from worker.broker.offsets import end_offsets
from worker.broker.producer import Producer, acknowledged
from worker.mongo.client import Client
from worker.mongo.lookup import absent
from worker.postgres.checkpoints import Candidate, Checkpoints
from worker.publish.real_collections import RealCollections
from worker.publish.target import Incarnation, Outgoing, Target

_log = structlog.get_logger()

_AT_ONCE = 1000
_BYTES = 8 * 1024 * 1024  # of ids in one command, which ends at 16 MB
_ASK_EVERY = 0.5  # seconds
_LATE = 10.0  # seconds of waiting that are worth a line

StillWanted = Callable[[], Any]
"""Awaited now and then; raises when the copy is no longer the one that is wanted."""


@dataclass(slots=True)
class Removal:
    """Sends deletes for what is gone."""

    kafka: Access
    client: Client
    producer: Producer
    checkpoints: Checkpoints
    real: RealCollections

    async def run(
        self, target: Target, incarnation: Incarnation, began: int, still_wanted: StillWanted
    ) -> int:
        """Return how many documents were gone. ``began``: clusterTime at which the copy began."""
        await self._barrier(target, began, still_wanted)
        gone, after = 0, None
        while candidates := await self.checkpoints.candidates(target.namespace, began, after, _AT_ONCE):
            await still_wanted()
            gone += await self._remove(target, incarnation, candidates)
            after = candidates[-1].row_id
            failpoints.reach(failpoints.REMOVAL_AFTER_SEND)
        if gone:  # only then is the collection copied: a rollback relies on that
            await self._applied(target, still_wanted)
        return gone

    async def _barrier(self, target: Target, began: int, still_wanted: StillWanted) -> None:
        """Wait until apply has the copy, and all that was changed before it began.

        A document may have come just before its collection was dropped, which tells no delete. Were its
        insert still on the way to Kafka when Kafka's ends are asked for, its row would outlive the removal.
        So first the saved token must be past the copy's begin: Kafka has all before it (C6).
        """
        while not await self.checkpoints.followed(began):
            await still_wanted()
            await asyncio.sleep(_ASK_EVERY)
        await self._applied(target, still_wanted)

    async def _applied(self, target: Target, still_wanted: StillWanted) -> None:
        """Wait until apply has all that Kafka holds now."""
        topics = {
            target.stream_topic: target.stream_partitions,
            target.copy_topic: target.copy_partitions,
        }
        ends = await end_offsets(self.kafka, topics)
        waited = 0.0
        while not await self.checkpoints.applied(ends):
            await still_wanted()
            await asyncio.sleep(_ASK_EVERY)
            waited += _ASK_EVERY
            if waited == _LATE:
                _log.info("waiting for apply, at the end of a copy", collection=target.namespace)

    async def _remove(self, target: Target, incarnation: Incarnation, candidates: Sequence[Candidate]) -> int:
        outgoing, wall, gone = Outgoing(), datetime.now(UTC), 0
        found, lost = await self.real.find(target.collection, candidates)
        if lost:
            _log.error(
                "rows stay of which the tenant's collection cannot be told: none has its name, or two have",
                collection=target.namespace,
                documents=len(lost),
            )
        for collection, some in found.items():
            for ids in slices({document_key(one.id): one.id for one in some}):
                missing, time = await absent(self.client, collection, ids, incarnation.started)
                for key, id_ in missing.items():
                    event = Event(
                        operation=Operation.DELETE,
                        namespace=str(collection),
                        id=id_,
                        version=Version.snapshot(time),
                        wall=wall,
                        source=Source.COPY,
                        origin=incarnation.origin,
                    )
                    outgoing.add(target.copy_topic, target.copy_partitions, key, encode(event))
                gone += len(missing)
        await acknowledged(await self.producer.send_all(outgoing.records))
        return gone


def slices(ids: Mapping[bytes, Any], most: int = _BYTES) -> Iterator[dict[bytes, Any]]:
    """Yield ids by document key in parts of ``most`` bytes and 1,000, or one id where it alone is longer."""
    part, size = dict[bytes, Any](), 0
    for key, id_ in ids.items():
        if part and (size + len(key) > most or len(part) >= _AT_ONCE):
            yield part
            part, size = {}, 0
        part[key] = id_
        size += len(key)
    if part:
        yield part
