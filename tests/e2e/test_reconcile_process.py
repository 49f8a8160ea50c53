"""The reconciler as a process: it goes on while writes go on, and raises no false alarm."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.world import World, once, world
from worker.embedded import Services

_REAL = "SELECT count(*) FROM crossfade.mismatch WHERE state = 'real'"
_FULL = "SELECT count(*) FROM crossfade.generation WHERE kind = 'full' AND finished_at IS NOT NULL"
_ANY = "SELECT count(*) FROM crossfade.mismatch"


async def _nothing_open(w: World) -> None:
    await w.until_value(f"SELECT (({_ANY}) = 0)::integer", 1)


@pytest.mark.timeout(900)
async def test_under_live_writes_and_deaths_there_is_no_false_alarm(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        await w.load(1500, tenants=4)
        await w.start("publish", "publish", CROSSFADE_COPY_RATE="400")
        await w.start("apply", "apply")
        await w.until_value("SELECT count(*) FROM crossfade.checkpoint", 1)  # it has made the topics
        # Full generations one after the other, beside the copy, the writes and the deaths of all.
        every = {"CROSSFADE_RECONCILE_FULL_EVERY": "0", "CROSSFADE_RECONCILE_CHUNK": "50"}
        await w.start("reconcile", "reconcile", **every)
        alarms = 0
        async with w.writes(100):
            for _ in range(3):
                done = await w.value(_FULL)
                await w.until_value(_FULL, done + 2)
                alarms += await w.value(_REAL)
                await w.kill("apply")
                await w.start("apply", "apply")
                await w.until_value(_FULL, done + 3)
                alarms += await w.value(_REAL)
                await w.kill("reconcile")
                await w.start("reconcile", "reconcile", **every)
        await w.settled()
        await w.assert_nothing_lost()
        await _nothing_open(w)
        told = (tmp_path / "reconcile.log").read_text()
        assert alarms == 0 and "Traceback" not in told
        assert '"mismatches": 0' in told and '"mismatches": 1' not in told
        assert await w.stop("reconcile") == 0


async def test_what_is_changed_by_hand_is_found_and_forgotten_when_it_is_mended(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        await w.load(600, tenants=3)
        await w.start("publish", "publish")
        await w.start("apply", "apply")
        await w.settled()
        await w.start("reconcile", "reconcile", CROSSFADE_RECONCILE_FULL_EVERY="1")
        await w.until_value(_FULL, 1)
        code, told = await once(w, "reconcile", "--once")
        assert code == 2 and "a reconciler is running" in told
        connection = await w.connect()
        await connection.execute("SET session_replication_role = replica")
        lead = await connection.fetchval("SELECT lead_id FROM lead_activities LIMIT 1")
        await connection.execute("DELETE FROM lead_activities WHERE lead_id = $1 AND position = 0", lead)
        await w.until_value(_REAL, 1)
        (row,) = await connection.fetch("SELECT * FROM crossfade.mismatch")
        assert (row["row_id"], row["kind"], row["namespace"]) == (lead, "different", f"{w.name}.leads")
        await w.mongo["leads"].update_one(
            {"_id": (await w.mongo["leads"].find_one({"activities.0": {"$exists": True}}))["_id"]},
            {"$set": {"note": "another one"}},
        )
        code, told = await once(w, "mismatches", "list", "--state", "real")
        assert code == 1 and "activities" in told
        # The document is written anew, and with it all its rows.
        await w.mongo["leads"].update_many({}, {"$set": {"touched": True}})
        await w.settled()
        await _nothing_open(w)
        await connection.close()
        assert await w.stop("reconcile") == 0
        code, told = await once(w, "generations")
        assert code == 0 and "changes" in told


@pytest.mark.parametrize(
    "place", ["before_commit", "after_chunk", "after_look", "before_finish", "after_finish"]
)
async def test_a_killed_reconciler_goes_on_and_counts_no_unfinished_generation(
    services: Services, tmp_path: Path, place: str
) -> None:
    async with world(services, tmp_path) as w:
        await w.load(600, tenants=3)
        await w.start("publish", "publish")
        await w.start("apply", "apply")
        await w.settled()
        if place == "after_look":
            await w.value("WITH d AS (DELETE FROM lead_activities RETURNING 1) SELECT count(*) FROM d")
        dies = {"CROSSFADE_FAILPOINTS": f"reconcile.{place}=exit:1", "CROSSFADE_RECONCILE_CHUNK": "40"}
        await w.start("reconcile", "first", **dies)
        assert await w.ended("first") == 86
        finished = await w.value(_FULL)
        assert finished == (1 if place in ("after_finish",) else 0) or place == "after_look"
        await w.start("reconcile", "second", CROSSFADE_RECONCILE_CHUNK="40")
        told = tmp_path / "second.log"
        await w.until("it goes on", lambda: '"reconciling"' in told.read_text())
        await w.until_value(_FULL, 1)
        sums = "SELECT count(*) FROM crossfade.generation_sum"
        documents = "SELECT sum(mongo_documents) FROM crossfade.generation_sum WHERE generation = 1"
        if place != "after_look":
            there = sum([await w.mongo[name].count_documents({}) for name in w.mapping.collections])
            # Counted once, though the walk was interrupted.
            full = "SELECT min(generation) FROM crossfade.generation WHERE kind = 'full'"
            documents = documents.replace("= 1", f"= ({full})")
            assert (await w.value(sums) > 0, await w.value(documents)) == (True, there)
        assert await w.stop("second") == 0
