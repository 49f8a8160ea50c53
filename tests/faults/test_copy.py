"""The copy: paused, killed, resumed and throttled while the application writes."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support import mixed, secondary
from tests.support.busy import busy
from tests.support.world import World, once
from topics import TopicNames
from worker import copy_report
from worker.embedded import Services
from worker.mongo.replication_lag import replication_lag
from worker.postgres.standing import read_standing

LAG = """
SELECT extract(epoch FROM max(greatest(clock_timestamp() - heartbeat_at - interval '1 second',
    heartbeat_applied_at - heartbeat_at))) FROM crossfade.partition_progress
"""
RATE = 100
THINGS = 2000
MANY = 16_000
PACE = 900  # rows a second that apply writes at most, with SLOW
SLOW = """
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.001); RETURN NEW; END';
CREATE TRIGGER slow BEFORE INSERT OR UPDATE ON things FOR EACH ROW EXECUTE FUNCTION slow();
ALTER TABLE things ENABLE ALWAYS TRIGGER slow;
"""
_COPIED = "SELECT copied FROM crossfade.collection WHERE namespace LIKE '%.things'"
_BY_COPY = "SELECT sum(records) FROM crossfade.partition_progress WHERE topic LIKE '%.things.copy'"


async def _copy(w: World, *arguments: str) -> Any:
    code, told = await once(w, "copy", *arguments, "--json")
    assert code == 0, told
    return json.loads(told)


async def _look(w: World) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what `copy status` tells of the collection and of the publisher's copy; {} before there is."""
    connection = await w.connect()
    try:
        standing = await read_standing(connection)
    finally:
        await connection.close()
    told = copy_report.collections(standing, TopicNames(w.name), None)
    things = [one for one in told if one["collection"].endswith(".things")]
    copies = [copy_report.throttle(one, standing.at) for one in standing.publishers]
    return (things or [{}])[0], (copies or [None])[0] or {}


async def _until(w: World, told: str, holds: Any, seconds: float = 90) -> dict[str, Any]:
    """Look until something holds of the collection and of the publisher's copy; return both."""
    one, copy = dict[str, Any](), dict[str, Any]()
    try:
        async with asyncio.timeout(seconds):
            while not (one and copy and holds(one, copy)):
                await asyncio.sleep(0.1)
                one, copy = await _look(w)
    except TimeoutError:
        pytest.fail(f"{told}: {one} {copy}")
    return one | {"copy": copy}


async def _stands_still(w: World) -> int:
    copied = await w.value(_COPIED)
    await asyncio.sleep(2)
    assert await w.value(_COPIED) == copied
    return copied


@pytest.mark.timeout(600)
async def test_a_copy_of_mixed_ids_goes_on_through_pauses_and_kills_and_knows_when_it_ends(
    services: Services, tmp_path: Path
) -> None:
    env = {"CROSSFADE_COPY_CHUNK": "20", "CROSSFADE_ALLOW_MISSING_COLLECTIONS": "true"}
    async with mixed.mixed(services, tmp_path) as w:
        things, later = w.mongo["things"], w.mongo["later"]
        await things.insert_many(mixed.documents(THINGS))
        assert (await _copy(w, "throttle", "--rate", "20"))["rate"] == 20
        await w.start("publish", "publish", **env)
        await w.start("apply", "apply")
        await _until(w, "copying at the rate", lambda one, copy: one["copied"] > 60)
        # Below the cursor, above it, and under it.
        await things.insert_many([{"_id": id_, "tenant": mixed.TENANT} for id_ in (mixed.BELOW, mixed.ABOVE)])
        await things.update_many({"n": {"$gte": 0}}, {"$inc": {"n": 10_000}})
        assert (await _copy(w, "pause", "--collection", "things"))[0]["changed"]
        paused = await _until(w, "paused", lambda _, copy: copy["held_by"] == "pause")
        assert (paused["state"], paused["paused"], paused["eta_seconds"]) == ("copying", True, None)
        shown = await _copy(w, "status", "--collection", "things")
        assert [one["paused"] for one in shown["collections"]] == [True]
        assert shown["publishers"][0]["copy"]["held_by"] == "pause"
        copied = await _stands_still(w)
        # The stream goes on: also for a collection that was not there when publish began.
        await later.insert_many(mixed.documents(50))
        await things.delete_many({"n": {"$mod": [97, 0]}})
        await w.until_value("SELECT count(*) FROM later", 50)
        await w.kill("publish")
        before = await w.value("SELECT now()")
        await w.start("publish", "publish", **env)
        told = f"SELECT (copy_standing_at > '{before}')::integer FROM crossfade.checkpoint"
        await w.until_value(told, 1)
        assert await _stands_still(w) == copied
        assert not (await _copy(w, "pause", "--all"))[0]["changed"]
        await _copy(w, "throttle", "--rate", str(RATE))
        await _copy(w, "resume", "--all")
        await _until(w, "held by the rate", lambda _, copy: copy["held_by"] == "rate")
        await _assert_it_knows_when_it_ends(w)
        await w.settled()
        assert await w.unequal() == []
        # The kill cost the last chunks, and no more.
        assert await w.value(_BY_COPY) < THINGS + 100
        await _killed_at_every_chunk(w, env)


async def _assert_it_knows_when_it_ends(w: World) -> None:
    seen: list[tuple[float, float]] = []
    while (one := (await _look(w))[0])["state"] == "copying":
        left = 1 - one["copied"] / one["estimated"]
        if left < 0.5 and one["eta_seconds"]:
            seen.append((time.monotonic(), one["eta_seconds"]))
        await asyncio.sleep(0.1)
        assert one["copies"] == 1
    ended = time.monotonic()
    assert len(seen) > 3
    share = 0.5 if busy(4) else 0.15
    wrong = [
        (round(ended - at, 1), eta) for at, eta in seen if abs(eta - (ended - at)) > share * (ended - at) + 1
    ]
    assert wrong == []


async def _killed_at_every_chunk(w: World, env: dict[str, str]) -> None:
    """A second copy, at full speed: the publisher dies in it again and again."""
    await _copy(w, "throttle", "--rate", "none")
    assert await w.stop("publish") == 0
    await _copy(w, "start", "--collection", "things", "--yes")
    for count in (1, 7, 30):
        await w.start("publish", "dying", CROSSFADE_FAILPOINTS=f"copy.after_chunk=exit:{count}", **env)
        assert await w.ended("dying") == 86
    await w.start("publish", "publish", **env)
    await w.settled()
    assert await w.unequal() == []
    assert await w.value("SELECT count(*) FROM things") == await w.mongo["things"].count_documents({})


@pytest.mark.timeout(600)
async def test_the_copy_yields_while_apply_is_behind(services: Services, tmp_path: Path) -> None:
    async with mixed.mixed(services, tmp_path) as w:
        await w.mongo["things"].insert_many(mixed.documents(MANY))
        await w.mongo["later"].insert_one({"_id": 1, "tenant": mixed.TENANT})
        await _copy(w, "throttle", "--rate", "20", "--max-lag", "4")
        await w.start("apply", "apply")
        await w.start("publish", "publish", CROSSFADE_COPY_CHUNK="250")
        await _until(w, "applied", lambda one, copy: one["arrived"] > 20 and copy["lag_seconds"] is not None)
        await w.kill("apply")
        held = await _until(w, "held", lambda _, copy: copy["held_by"] == "apply lag")
        assert held["copy"]["lag_seconds"] > 2 and held["copy"]["max_lag_seconds"] == 4
        code, told = await once(w, "copy", "status")
        assert code == 0 and "held by apply lag" in told and "apply lag at most 4.0 s" in told, told
        copied = await _stands_still(w)
        await w.start("apply", "apply")
        await _until(w, "going on", lambda one, copy: copy["held_by"] == "rate" and one["copied"] > copied)
        await _assert_the_stream_is_not_kept_waiting(w, 10)
        await w.settled()
        assert await w.unequal() == []
        log = (w.directory / "publish.log").read_text()
        assert '"by": "apply lag"' in log and "Traceback" not in log
        audited = "SELECT count(*) FROM crossfade.audit WHERE action = 'copy throttle'"
        assert await w.value(audited) == 2


async def _assert_the_stream_is_not_kept_waiting(w: World, limit: float) -> None:
    """Let the rest be copied at full speed into a slow PostgreSQL, while the application writes.

    Given all at once, the stream's changes would come behind that.
    """
    await w.execute(SLOW)
    await _copy(w, "throttle", "--rate", "none", "--max-lag", str(limit))
    lags, waiting, numbers = [0.0], [0], itertools.count()
    began, before = time.monotonic(), (await _look(w))[0]["arrived"]
    while (one := (await _look(w))[0])["arrived"] < MANY:
        waiting.append(one["copied"] - one["arrived"])
        await w.mongo["things"].update_one({"n": next(numbers)}, {"$inc": {"n": MANY}})
        lags.append(float(await w.value(LAG)))
    pace = (MANY - before) / (time.monotonic() - began)
    print("waited", max(waiting), "lag", max(lags), "pace", pace)
    assert 250 < max(waiting) < PACE * limit
    if not busy(4):  # such a machine lags by itself
        assert max(lags) < limit * max(1.0, PACE / pace)  # what waits takes longer where apply is slower


@pytest.mark.timeout(600)
async def test_the_copy_reads_from_a_secondary_never_less_than_the_stream_began_with(
    services: Services, tmp_path: Path
) -> None:
    env = {"CROSSFADE_COPY_READ_PREFERENCE": "secondary", "CROSSFADE_COPY_READ_TAGS": "role:etl"}
    async with (
        secondary.pair(tmp_path / "pair") as pair,
        mixed.mixed(pair.beside(services), tmp_path) as w,
    ):
        lag = await replication_lag(w.client)
        assert lag.seconds is not None and lag.unknown is None
        await w.mongo.create_collection("later")
        await pair.hold_secondary()
        # The primary has them before the stream begins, so no event tells of them; the secondary has not.
        await w.mongo["things"].insert_many(mixed.documents(300))
        await _copy(w, "throttle", "--max-replication-lag", "none")
        await w.start("publish", "publish", **env)
        await w.start("apply", "apply")
        await _until(w, "not held", lambda one, copy: one["state"] == "copying" and not copy["held_by"])
        assert await _stands_still(w) == 0
        await pair.release_secondary()
        await w.settled()
        assert await w.unequal() == []
        assert await w.value("SELECT count(*) FROM things") == 300
        await _copy(w, "throttle", "--max-replication-lag", "2")
        await pair.hold_secondary()
        await _until(w, "lags", lambda _, copy: (copy["replication_lag_seconds"] or 0) > 2)
        await _copy(w, "start", "--collection", "things", "--yes")
        held = await _until(w, "yields", lambda _, copy: copy["held_by"] == "replication lag")
        assert held["copied"] == 0 and held["copy"]["max_replication_lag_seconds"] == 2
        await pair.release_secondary()
        await w.settled()
        assert await w.value(_COPIED) == 300 and await w.unequal() == []
        assert await w.stop("publish") == 0
        await w.start("publish", "limited", CROSSFADE_MONGO_URI=pair.limited_uri, **env)
        unknown = await _until(w, "unknown", lambda _, copy: copy["replication_lag_unknown"])
        assert "clusterMonitor" in unknown["copy"]["replication_lag_unknown"]
        await w.mongo["things"].delete_one({"_id": None})
        await _copy(w, "start", "--collection", "things", "--yes")
        await w.settled()
        assert await w.value("SELECT count(*) FROM things") == 299
        assert "grant it clusterMonitor" in (w.directory / "limited.log").read_text()
