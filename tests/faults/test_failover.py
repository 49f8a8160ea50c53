"""Another member becomes primary, in every way that happens, while documents are copied and written."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import pytest_asyncio
from pymongo import WriteConcern
from pymongo.errors import DuplicateKeyError, PyMongoError

from tests.support.replica_set import MEMBERS, ReplicaSet, failover_world, replica_set
from tests.support.world import World, once
from topics import Collection, document_key
from worker.embedded import Services
from worker.mongo.client import Client, connect
from worker.mongo.heartbeat import Heartbeat
from worker.mongo.lookup import look_up

_COPIED = "SELECT sum(copied) FROM crossfade.collection"
_COPYING = "SELECT count(*) FROM crossfade.collection WHERE copy_state <> 'copied'"

_NEVER = "to be rolled back"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def members(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ReplicaSet]:
    async with replica_set(tmp_path_factory.mktemp("set")) as started:
        yield started


class Transactions:
    """Transactions of several changes each, two of them of one document, repeated until they are committed.

    What a transaction that was given up has done must be nowhere.
    """

    def __init__(self, w: World) -> None:
        self._client, self._pages = w.client, w.mongo["pages"]
        self._template: dict[str, Any] = {}
        self.committed: list[UUID] = []
        self.aborted: list[UUID] = []

    async def run(self, stop: asyncio.Event) -> None:
        """Commit one after the other until told to stop."""
        self._template = await self._pages.find_one() or {}
        while not stop.is_set():
            id_ = uuid4()
            while not await self._committed(id_):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            self.committed.append(id_)

    async def _committed(self, id_: UUID) -> bool:
        """Try once; not by motor's `with_transaction`, which does not repeat a commit that failed."""
        try:
            async with (
                await self._client.start_session() as session,
                session.start_transaction(write_concern=WriteConcern("majority")),
            ):
                await self._change(id_, session)
        except DuplicateKeyError:
            return True  # an earlier try of which no answer came
        except PyMongoError:
            return False
        return True

    async def _change(self, id_: UUID, session: Any) -> None:
        page = {**self._template, "_id": id_, "slug": f"t-{id_}", "title": "first"}
        await self._pages.insert_one(page, session=session)
        await self._pages.update_one({"_id": id_}, {"$set": {"title": "second"}}, session=session)
        await self._pages.insert_one({**page, "_id": uuid4(), "slug": f"u-{id_}"}, session=session)
        await self._pages.update_one(
            {"_id": id_}, {"$set": {"title": "third"}, "$unset": {"seo": 1}}, session=session
        )

    async def die_with(self, members: ReplicaSet, number: int) -> None:
        """Have a transaction open, all its changes made, when a member dies; give it up."""
        id_ = uuid4()
        async with await self._client.start_session() as session:
            session.start_transaction(write_concern=WriteConcern("majority"))
            await self._change(id_, session)
            await members.kill(number)
            with pytest.raises(PyMongoError):
                await session.commit_transaction()
        self.aborted.append(id_)


@pytest.mark.timeout(400)
async def test_members_die_freeze_and_step_down_during_copy_stream_and_transactions(
    services: Services, members: ReplicaSet, tmp_path: Path
) -> None:
    async with failover_world(services, members, tmp_path) as w:
        await w.load(3000, tenants=4)
        # A user of MongoDB may well have this in the string that everybody uses: our reads need the primary.
        careless = f"{members.uri}&readPreference=secondaryPreferred"
        await w.start("publish", "publish", CROSSFADE_COPY_CHUNK="20", CROSSFADE_MONGO_URI=careless)
        await w.start("apply", "apply")
        stop, transactions = asyncio.Event(), Transactions(w)
        async with w.writes(60) as writer, asyncio.TaskGroup() as tasks:
            tasks.create_task(transactions.run(stop))
            await w.until_value(_COPIED, 200)
            assert await w.value(_COPYING)
            with suppress(PyMongoError):  # it may close the connection that asked
                await members.admin(await members.primary(), {"replSetStepDown": 10, "force": True})
            await w.until_value(_COPIED, 1000)
            assert await w.value(_COPYING)
            died = [await members.primary()]
            await transactions.die_with(members, died[0])
            await members.primary()
            await members.healed()

            for number in range(MEMBERS):
                if number not in died:
                    changes = writer.counters.changes
                    await members.kill(number)
                    await w.until("writes go on", lambda n=changes: writer.counters.changes > n + 50)
                    await members.healed()

            frozen = await members.primary()
            members.freeze(frozen)
            await members.primary(but=frozen)
            now = await w.value("SELECT clock_timestamp()")
            await w.until_value(
                f"SELECT count(*) FROM crossfade.partition_progress WHERE heartbeat_at > '{now}'", 1
            )
            members.thaw(frozen)
            stop.set()
        await w.settled()
        await w.assert_nothing_lost()
        count = "SELECT count(*) FROM pages WHERE id = ANY($1)"
        assert await w.value(f"{count} AND title = 'third'", transactions.committed) > 20
        assert await w.value(count, transactions.committed) == len(transactions.committed)
        assert await w.value(count, transactions.aborted) == 0
        log = (tmp_path / "publish.log").read_text()
        assert "Traceback" not in log and "beginning anew" not in log
        assert log.count('"copy": 1') == log.count("copy begins") == 6


async def _write_what_will_be_rolled_back(members: ReplicaSet, number: int, name: str) -> UUID:
    """Change every document, and make a new one, on a member that no majority follows."""
    async with members.client(number) as client:
        database = client.get_database(name, write_concern=WriteConcern(1))
        await database["users"].update_many({}, {"$set": {"name": _NEVER}})
        await database["leads"].update_many({}, {"$set": {"name": _NEVER}})
        await database["pages"].update_many({}, {"$set": {"title": _NEVER}})
        page = await database["pages"].find_one()
        assert page is not None
        born = uuid4()
        await database["pages"].insert_one({**page, "_id": born, "slug": str(born)})
        return born


@pytest.mark.timeout(400)
async def test_what_is_rolled_back_is_seen_by_neither_copy_nor_stream_nor_look_up(
    services: Services, members: ReplicaSet, tmp_path: Path
) -> None:
    # So that a primary without its majority goes on for long enough.
    async with members.electing_after(60), failover_world(services, members, tmp_path) as w:
        await w.load(1500)
        old = await members.primary()
        others = [number for number in range(MEMBERS) if number != old]
        await w.start("publish", "publish", CROSSFADE_COPY_CHUNK="10")
        await w.start("apply", "apply")
        pages = "SELECT coalesce(max(copied), 0) FROM crossfade.collection WHERE namespace LIKE '%pages'"
        await w.until_value(pages, 50)
        publish = w.processes["publish"]
        publish.send_signal(signal.SIGSTOP)
        copied = await w.value(pages)
        some = [user["_id"] async for user in w.mongo["users"].find({}, limit=20)]
        await w.mongo["users"].update_many({"_id": {"$in": some}}, {"$set": {"name": "committed"}})

        for number in others:  # not frozen: they would find in their sockets what was sent to them
            await members.kill(number)
        born = await _write_what_will_be_rolled_back(members, old, w.name)
        publish.send_signal(signal.SIGCONT)
        client = await connect(members.uri, "test")
        beat = asyncio.create_task(_beaten(client))
        await w.until_value(pages, copied + 100)  # chunks and look-ups of that primary
        looked_up = f"SELECT count(*) FROM users WHERE name IN ('committed', '{_NEVER}')"
        await w.until_value(looked_up, len(some))
        rollbacks = await members.rollbacks(old)
        await members.admin(old, {"replSetStepDown": 120, "force": True})
        members.freeze(old)

        await asyncio.gather(*(members.start(number) for number in others))
        new = await members.elect(*others)
        await members.primary(but=old)
        time = await asyncio.wait_for(beat, 60)
        client.close()
        async with members.client(new) as there:  # or it was rolled back, and no place to begin at
            assert await there.local["oplog.rs"].find_one({"ts": time})
        await w.mongo["users"].update_one({"_id": some[0]}, {"$set": {"name": "later"}})
        await w.until_value("SELECT count(*) FROM users WHERE name = 'later'", 1)

        members.thaw(old)
        await members.rolled_back(old, rollbacks)
        await members.healed()
        await w.settled()
        await w.assert_nothing_lost()
        assert await w.value("SELECT count(*) FROM pages WHERE id = $1", born) == 0
        assert not [one for one in await w.records() if _NEVER.encode() in one.value]


async def _beaten(client: Client) -> Any:
    """Return the clusterTime of a heartbeat, tried again as publish does while no member takes it."""
    while True:
        with suppress(PyMongoError):
            return await Heartbeat(client, "isolated").beat()


async def test_a_look_up_waits_for_a_member_that_lags_behind_its_event(members: ReplicaSet) -> None:
    primary = await members.primary()
    lagging = (primary + 1) % MEMBERS
    place = Collection(f"w{uuid4().hex[:10]}", "things")
    key = {document_key(1): 1}
    client = await connect(members.uri, "test")
    things = client[place.database][place.name]
    await things.with_options(write_concern=WriteConcern(MEMBERS)).insert_one({"_id": 1, "state": "old"})
    async with members.client(lagging) as there, await client.start_session() as session:
        await there.admin.command({"fsync": 1, "lock": True})
        await things.update_one({"_id": 1}, {"$set": {"state": "new"}}, session=session)
        time: Any = session.operation_time
        waiting = asyncio.create_task(look_up(there, place, key, time))
        await asyncio.wait({waiting}, timeout=1)
        await there.admin.command({"fsyncUnlock": 1})
        found = await asyncio.wait_for(waiting, 30)
    assert found.documents[document_key(1)]["state"] == "new"
    await client.drop_database(place.database)
    client.close()


async def test_what_keeps_publish_from_mongodb_is_told_and_a_dead_seed_does_not(
    services: Services, members: ReplicaSet, tmp_path: Path
) -> None:
    async with failover_world(services, members, tmp_path) as w:
        primary = await members.primary()
        at = f"127.0.0.1:{members.members[primary].port}"
        others = [number for number in range(MEMBERS) if number != primary]
        silent = await connect(
            f"mongodb://127.0.0.1:{members.members[others[0]].port}/?directConnection=true", "test"
        )
        members.freeze(*others)
        with suppress(PyMongoError):
            await members.admin(primary, {"replSetStepDown": 60, "force": True})

        async def publish(uri: str) -> str:
            code, told = await once(w, "publish", CROSSFADE_MONGO_URI=uri)
            assert code == 2 and "Traceback" not in told
            return told

        async def given_up() -> None:
            with pytest.raises(PyMongoError):  # within 10 s; by default the driver takes 20 to 30
                await asyncio.wait_for(silent.admin.command("ping"), 19)
            silent.close()

        dead, other, headless, _ = await asyncio.gather(
            publish("mongodb://127.0.0.1:9/?replicaSet=rs0"),
            publish(f"mongodb://{at}/?replicaSet=other"),
            publish(f"mongodb://127.0.0.1:9,{at}/?replicaSet=rs0"),
            given_up(),
        )
        assert "MongoDB at 127.0.0.1:9 cannot be reached" in dead
        assert f"MongoDB at {at} is no member of the replica set" in other and "replicaSet=" in other
        assert "has no primary" in headless
        await members.healed()
        seeds = await connect(f"mongodb://127.0.0.1:9,{at}/?replicaSet=rs0", "test")
        seeds.close()
