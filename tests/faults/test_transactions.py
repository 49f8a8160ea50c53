"""Many changes of one document in one transaction, of which publish dies and stops in the middle (C1)."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from tests.support.things import keep_images, things, until_equal
from tests.support.world import World
from topics import Event, Operation
from worker.embedded import Services

NAMES = ("plain", "imaged")
_DOCUMENTS = 900  # of each collection; a publisher's batch is of 2,000 events
_GONE = 300


async def _transaction(w: World) -> None:
    """Insert, update, delete and insert again every document, and delete a third: all at one clusterTime."""
    collections = [w.mongo[name] for name in NAMES]
    async with await w.client.start_session() as session, session.start_transaction():
        for n in (1, 2):
            for one in collections:
                some = [{"_id": id_, "n": n} for id_ in range(_DOCUMENTS)]
                await one.insert_many(some, session=session)
            for one in collections if n == 1 else ():
                await one.update_many({"n": 1}, {"$set": {"text": "updated"}}, session=session)
                await one.delete_many({"n": 1}, session=session)
        for one in collections:
            await one.delete_many({"_id": {"$lt": _GONE}, "n": 2}, session=session)


async def test_the_order_within_a_transaction_survives_a_death_and_a_stop_in_the_middle(
    services: Services, tmp_path: Path
) -> None:
    async with things(services, tmp_path, *NAMES) as w:
        await keep_images(w, "imaged")
        await w.mongo["plain"].insert_one({"_id": "before", "n": 0})
        await w.start("publish", "publish")
        await w.start("apply", "apply")
        await until_equal(w, *NAMES)
        assert await w.stop("publish") == 0
        await _transaction(w)
        await w.mongo["plain"].insert_one({"_id": "behind", "n": 0})

        saved = "SELECT token_time FROM crossfade.checkpoint"
        await w.start("publish", "killed", CROSSFADE_FAILPOINTS="publish.after_send=exit:2")
        assert await w.ended("killed") == 86
        after_death = await w.value(saved)
        # It saves once more when it is told to stop, here in the middle.
        await w.start("publish", "stopped", CROSSFADE_FAILPOINTS="publish.after_send=hold:2:3")
        log = tmp_path / "stopped.log"
        await w.until("held", lambda: "publish.after_send holds" in log.read_text())
        assert await w.stop("stopped") == 0
        after_stop = await w.value(saved)
        await w.start("publish", "publish")
        await until_equal(w, *NAMES)

        events = await w.events(lambda name: not name.endswith(".copy"))
        at = max(event.version.time for event in events if event.id == _DOCUMENTS - 1)
        of_transaction = [event for event in events if event.version.time == at and not event.control]
        assert len({(e.namespace, e.id, e.version.order) for e in of_transaction}) < len(of_transaction)
        _assert_ordered([event for event in of_transaction if event.namespace.endswith(".imaged")])
        # Deleted at the end, so their updates found no document: nothing was sent, and their deletes follow.
        updates = [e for e in of_transaction if e.namespace.endswith(".plain") and e.version.order == 1]
        assert {event.id for event in updates} == set(range(_GONE, _DOCUMENTS))
        assert max(after_death, after_stop) < at < await w.value(saved)


def _assert_ordered(events: list[Event]) -> None:
    """Whatever came twice came with the same order, and orders are those of the writes."""
    orders: dict[Any, dict[int, tuple[Any, ...]]] = defaultdict(dict)
    for event in events:
        document = event.document and (event.document["n"], event.document.get("text"))
        told = (event.operation, document)
        assert orders[event.id].setdefault(event.version.order, told) == told
    upsert, delete = Operation.UPSERT, (Operation.DELETE, None)
    written = {0: (upsert, (1, None)), 1: (upsert, (1, "updated")), 2: delete, 3: (upsert, (2, None))}
    for id_ in range(_DOCUMENTS):
        assert orders[id_] == (written | {4: delete} if id_ < _GONE else written), id_
