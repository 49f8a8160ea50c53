"""Servers whose clocks are hours apart: nothing waits for a lag that there is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.wall_clock import WallClocks
from tests.support.world import world
from worker.embedded import Services

_HOURS = 10 * 3600  # seconds


@pytest.mark.timeout(300)
async def test_a_clock_that_is_hours_ahead_does_not_hold_the_copy(tmp_path: Path) -> None:
    clocks = WallClocks()
    if not clocks.compiler:
        pytest.skip("no clock is stepped: that takes a C compiler (cc)")
    services = await Services.up(tmp_path / "services")
    try:
        await clocks.give(services)
        clocks.step("postgres", _HOURS)
        async with world(services, tmp_path / "world") as w:
            await w.load(1000)
            rate = {"CROSSFADE_COPY_RATE": "200", "CROSSFADE_COPY_CHUNK": "50"}
            await w.start("publish", "publish", **rate)
            await w.start("apply", "apply")
            heartbeats = "SELECT count(*) FROM crossfade.partition_progress WHERE heartbeat_at IS NOT NULL"
            await w.until_value(heartbeats, 1)
            assert await w.value("SELECT count(*) FROM crossfade.collection WHERE copy_state <> 'copied'") > 0
            await w.settled()
            await w.assert_nothing_lost()
    finally:
        await Services.down(tmp_path / "services")
        clocks.remove()


@pytest.mark.timeout(300)
async def test_a_publisher_whose_clock_is_hours_off_has_its_records_taken(
    services: Services, tmp_path: Path
) -> None:
    """Where the producer dates its records, a broker refuses those of more than an hour ahead."""
    clocks = WallClocks()
    if not clocks.compiler:
        pytest.skip("no clock is stepped: that takes a C compiler (cc)")
    try:
        async with world(services, tmp_path) as w:
            await w.load(200)
            wrong = clocks.env("publish")
            clocks.step("publish", _HOURS)
            await w.start("publish", "publish", **wrong)
            await w.start("apply", "apply")
            await w.settled()
            clocks.step("publish", -_HOURS)
            await w.mongo["forms"].update_many({}, {"$set": {"name": "of another time"}})
            await w.settled()
            await w.assert_nothing_lost()
            assert await w.stop("publish") == 0
    finally:
        clocks.remove()
