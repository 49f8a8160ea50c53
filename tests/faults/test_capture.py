"""The rules of capture (docs/protocol.md C2, C4, C6), each where the program would lose without it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.support.paused import paused
from tests.support.things import things, until_equal
from topics.envelope import MAX_ORDER
from worker.embedded import Services


async def test_a_snapshot_read_is_newer_than_what_it_shows_and_older_than_what_it_does_not(
    services: Services, tmp_path: Path
) -> None:
    """C2, C3: by versions alone, a copied document is in its place among the changes of the stream."""
    async with things(services, tmp_path, "things") as w:
        rows = w.mongo["things"]
        await rows.insert_many([{"_id": id_, "n": 0} for id_ in range(3)])
        await w.start("apply", "apply")
        await w.start("publish", "publish", CROSSFADE_FAILPOINTS="copy.before_read=hold:1:4")
        log = tmp_path / "publish.log"
        await w.until("held", lambda: "copy.before_read holds" in log.read_text())
        # Nobody else writes, so the copy reads at this transaction's own time.
        async with await w.client.start_session() as session, session.start_transaction():
            for n in (1, 2):
                await rows.replace_one({"_id": 1}, {"n": n}, session=session)
        await w.until("copied", lambda: '"copied"' in log.read_text())
        await rows.replace_one({"_id": 1}, {"n": 3})
        await until_equal(w, "things")
        events = [event for event in await w.events() if event.document]
        copied = [event for event in events if event.source == "copy"]
        streamed = [event for event in events if event.source == "stream"]
        assert len(copied) == 3 and [e.document and e.document["n"] for e in streamed] == [1, 2, 3]
        started = await w.value("SELECT started_time FROM crossfade.checkpoint")
        [one] = [event for event in copied if event.id == 1]
        assert one.document is not None
        for event in streamed:
            assert event.document is not None
            assert (event.version < one.version) == (event.document["n"] <= one.document["n"]), event.version
        assert streamed[0].version.time == streamed[1].version.time
        for one in copied:
            assert one.version.order == MAX_ORDER and one.version.time >= started


async def test_a_stream_that_has_saved_no_token_goes_on_where_it_began(
    services: Services, tmp_path: Path
) -> None:
    """C4: what was copied before publish died changes while it is away."""
    async with things(services, tmp_path, "things") as w:
        rows = w.mongo["things"]
        await rows.insert_many([{"_id": id_, "n": 0} for id_ in range(300)])
        await w.start("apply", "apply")
        dying = {"CROSSFADE_COPY_CHUNK": "50", "CROSSFADE_FAILPOINTS": "copy.after_chunk=exit:2"}
        await w.start("publish", "dying", **dying)
        assert await w.ended("dying") == 86
        started = await w.value("SELECT started_time FROM crossfade.checkpoint")
        connection = await w.connect()  # as if it had died before its first save
        await connection.execute("UPDATE crossfade.checkpoint SET token = NULL, token_time = NULL")
        await connection.close()
        await rows.update_many({"_id": {"$lt": 20}}, {"$set": {"n": 1}})
        await rows.delete_many({"_id": {"$gte": 20, "$lt": 40}})
        await rows.insert_one({"_id": -1, "n": 2})  # before the copy's place
        await w.start("publish", "publish")
        await until_equal(w, "things")
        assert await w.value("SELECT started_time FROM crossfade.checkpoint") == started
        assert await w.value("SELECT copies FROM crossfade.collection") == 1


async def test_no_token_is_saved_for_what_kafka_has_not_acknowledged(
    services: Services, tmp_path: Path
) -> None:
    """C6: Kafka stands still, publish dies with what it has read, Kafka goes on."""
    async with things(services, tmp_path, "things") as w:
        await w.start("apply", "apply")
        await w.start("publish", "publish")
        await until_equal(w, "things")
        log = tmp_path / "publish.log"
        with paused(services, "kafka"):
            id_ = 0
            # Several batches: the first may lie in a socket already, which outlives the process.
            while "Kafka does not acknowledge" not in log.read_text():
                await w.mongo["things"].insert_many([{"_id": id_ + n, "n": n} for n in range(20)])
                id_ += 20
                await asyncio.sleep(0.1)
            await w.kill("publish")
        await w.start("publish", "publish")
        await until_equal(w, "things")
