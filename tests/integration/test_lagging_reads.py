"""Reads from a member that is behind: they wait, or the rows would be older than their versions (C3, C5)."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.support.mongods import delayed_pair, direct, direct_uri, mongod
from topics import Collection, document_key
from worker.mongo.client import connect
from worker.mongo.lookup import absent, look_up
from worker.mongo.preference import read_preference
from worker.mongo.snapshot import read_chunk

_BEHIND = 3  # seconds


async def test_reads_wait_for_a_member_that_is_behind(tmp_path: Path) -> None:
    options = ("--replSet", "pair", "--oplogSize", "50")
    async with mongod(tmp_path / "a", *options) as primary, mongod(tmp_path / "b", *options) as secondary:
        await delayed_pair(primary, secondary, _BEHIND)
        things = Collection("shop", "things")
        behind = await connect(direct_uri(secondary), "test")
        async with direct(primary) as client, await client.start_session() as session:
            rows = client["shop"]["things"]
            await rows.insert_one({"_id": 1, "n": 1})
            async with asyncio.timeout(60):
                while await behind["shop"]["things"].count_documents({}) == 0:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            one, two = {document_key(1): 1}, {document_key(2): 2}

            # C5: a look-up sees at least the event whose document it looks up.
            await rows.update_one({"_id": 1}, {"$set": {"n": 2}}, session=session)
            assert session.operation_time is not None
            found = await look_up(behind, things, one, session.operation_time)
            assert [document["n"] for document in found.documents.values()] == [2]

            # C3: no snapshot is older than it may be.
            await rows.insert_one({"_id": 2, "n": 3}, session=session)
            reply = await read_chunk(
                behind, things, None, 10, session.operation_time, read_preference("nearest", ())
            )
            assert [document["n"] for document in reply.documents] == [2, 3]
            assert reply.at_cluster_time >= session.operation_time
            await rows.delete_one({"_id": 1}, session=session)
            missing, at = await absent(behind, things, one | two, session.operation_time)
            assert list(missing.values()) == [1] and at >= session.operation_time
        behind.close()
