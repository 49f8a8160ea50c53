"""Collections that are dropped, renamed or overwritten as a whole: the rows follow, never by a truncate."""

from __future__ import annotations

from pathlib import Path

from tests.support.things import keep_images, things, until_equal
from tests.support.world import World, once
from worker.embedded import Services

NAMES = ("first", "second")


async def _fill(w: World, name: str, ids: range, n: int) -> None:
    await w.mongo[name].insert_many([{"_id": one, "n": n, "text": f"{name} {one}"} for one in ids])


async def _refuse_truncate(w: World) -> None:
    connection = await w.connect()
    await connection.execute(
        """CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
           BEGIN RAISE 'truncated'; END $$"""
    )
    for name in NAMES:
        await connection.execute(
            f"CREATE TRIGGER refuse BEFORE TRUNCATE ON {name} EXECUTE FUNCTION refuse();"
            f"ALTER TABLE {name} ENABLE ALWAYS TRIGGER refuse"
        )
    await connection.close()


async def test_rows_follow_when_collections_are_dropped_renamed_and_overwritten(
    services: Services, tmp_path: Path
) -> None:
    async with things(services, tmp_path, *NAMES) as w:
        await _refuse_truncate(w)
        await _fill(w, "first", range(40), 1)
        await _fill(w, "second", range(30, 60), 2)
        await w.start("publish", "publish")
        await w.start("apply", "apply")
        await until_equal(w, *NAMES)

        # Dropped and made anew: some ids come back with other content, some do not, one is new.
        await w.mongo["first"].drop()
        await _fill(w, "first", range(35, 45), 3)
        await until_equal(w, *NAMES)
        # Changed, then renamed before the change's document could be looked up.
        await w.mongo["second"].update_many({}, {"$set": {"n": 4}})
        await w.mongo["second"].rename("first", dropTarget=True)
        await until_equal(w, *NAMES)
        assert await w.value("SELECT count(*) FROM first WHERE n = 4") == 30
        # An unmapped collection takes a mapped name; the stream has told none of its documents.
        await _fill(w, "loading", range(100, 120), 5)
        await w.mongo["loading"].rename("second")
        await until_equal(w, *NAMES)
        # Renamed away, and another in its place.
        await w.mongo["second"].rename("away")
        await _fill(w, "second", range(110, 115), 6)
        await until_equal(w, *NAMES)
        await w.mongo["away"].aggregate([{"$out": "first"}]).to_list(None)
        await until_equal(w, *NAMES)
        # A publisher that dies before it has saved the token meets the event again.
        assert await w.stop("publish") == 0
        await w.mongo["first"].drop()
        await w.start("publish", "dying", CROSSFADE_FAILPOINTS="publish.before_token=exit")
        assert await w.ended("dying") == 86
        await w.start("publish", "publish")
        await until_equal(w, *NAMES)
        await _fill(w, "first", range(3), 7)
        await until_equal(w, *NAMES)
        # A stream on the deployment goes on after what would invalidate one on a database or a collection.
        await w.client.drop_database(w.name)
        await until_equal(w, *NAMES)
        await w.mongo.create_collection("first")
        await keep_images(w, "first")
        await _fill(w, "first", range(5), 8)
        await w.mongo["first"].update_one({"_id": 3}, {"$inc": {"n": 1}})
        await until_equal(w, *NAMES)

        assert await w.value("SELECT incarnations FROM crossfade.checkpoint") == 1
        log = (tmp_path / "publish.log").read_text()
        assert "changed as a whole" in log and "interrupted" not in log and "Traceback" not in log
        assert await w.value("SELECT count(*) FROM crossfade.dead_letter") == 0
        audited = "SELECT count(*) FROM crossfade.audit WHERE reason LIKE '%another was renamed to it'"
        assert await w.value(audited) >= 3
        code, told = await once(w, "status")
        assert code == 0 and f"({w.name}.second): changed as a whole: drop" in told, told


async def test_what_the_stream_wrote_goes_with_a_collection_that_is_dropped_before_its_first_copy(
    services: Services, tmp_path: Path
) -> None:
    async with things(services, tmp_path, *NAMES) as w:
        await _fill(w, "first", range(100), 1)
        await w.start("publish", "publish", CROSSFADE_COPY_RATE="1")  # it does not come to the second
        await w.start("apply", "apply")
        await w.until_value("SELECT count(*) FROM crossfade.checkpoint WHERE token IS NOT NULL", 1)
        await _fill(w, "second", range(5), 2)
        await w.until_value("SELECT count(*) FROM second", 5)
        await w.mongo["second"].drop()
        await _fill(w, "second", range(3, 7), 3)
        await w.published()
        assert await w.stop("publish") == 0
        await w.start("publish", "publish again")
        await until_equal(w, *NAMES)
