"""A table is altered while apply runs: it stops with what to run, and goes on once that was done."""

from __future__ import annotations

from pathlib import Path

from tests.support.letters import STANDING, log
from tests.support.long import LONG
from tests.support.world import World, world
from worker.embedded import Services


async def _alter(w: World, statement: str) -> None:
    connection = await w.connect()
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def _change(w: World, title: str) -> None:
    await w.mongo["pages"].update_many({}, {"$set": {"title": title}})


async def _stops_until_mended(w: World, broken: str, told: str, mended: str) -> None:
    await _alter(w, broken)
    await _change(w, broken[:20])
    await w.until(f"told {told}", lambda: told in log(w, "run"))
    await _alter(w, mended)
    await w.settled()
    assert (await w.compare()).differences == []


async def test_an_altered_table_stops_apply_with_what_to_run_until_it_is_mended(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        await w.load(300)
        await w.start("run", "run")
        await w.settled()
        before = log(w, "run").count("ended, starting it again")
        await _alter(w, "ALTER TABLE pages ADD COLUMN notes text")
        await _change(w, "with a column more")
        await w.settled()
        assert log(w, "run").count("ended, starting it again") == before

        await _stops_until_mended(
            w,
            "ALTER TABLE pages RENAME COLUMN title TO heading",
            "column title: is missing",
            "ALTER TABLE pages RENAME COLUMN heading TO title",
        )
        if LONG:
            await _stops_until_mended(
                w,
                "ALTER TABLE pages RENAME TO sheets",
                "table pages: is missing",
                "ALTER TABLE sheets RENAME TO pages",
            )
        # No statement fails of this one.
        await _stops_until_mended(
            w,
            "ALTER TABLE pages ALTER COLUMN version TYPE text",
            "column version: is text, which does not hold all that integer does",
            "ALTER TABLE pages ALTER COLUMN version TYPE integer USING version::integer",
        )
        trigger = "TRIGGER search_vector_follows"
        await _alter(w, f"ALTER TABLE leads DISABLE {trigger}")
        await w.until("told", lambda: "a trigger is disabled: rows lack what it makes" in log(w, "run"))
        await _alter(w, f"ALTER TABLE leads ENABLE ALWAYS {trigger}")
        await w.until("told", lambda: "a trigger is enabled again" in log(w, "run"))

        async with w.writes(80) as writer:
            await w.until("writes", lambda: writer.counters.changes > 100)
        await w.settled()
        await w.assert_nothing_lost()
        assert await w.value(STANDING) == 0
        assert "Traceback" not in log(w, "run")
        assert await w.stop("run") == 0
