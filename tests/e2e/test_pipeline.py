"""The real program, as processes, between real services."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.world import world
from worker.embedded import Services

MODES = pytest.mark.parametrize("role", ["replica", "origin"])


@MODES
async def test_copy_and_live_writes_arrive_whole_though_processes_are_killed(
    services: Services, tmp_path: Path, role: str
) -> None:
    async with world(services, tmp_path) as w:
        await w.load(4000, tenants=5)
        mode = {"CROSSFADE_REPLICATION_ROLE": role}
        async with w.writes(100) as writer:
            await w.start("publish", "publish")
            await w.start("apply", "apply one", **mode)
            await w.start("apply", "apply two", **mode)
            await w.until_value("SELECT sum(applied) FROM crossfade.partition_progress", 1000)
            await w.kill("apply two")
            for _ in range(2):
                await w.kill("publish")
                changes = writer.counters.changes
                await w.start("publish", "publish")
                await w.until("writes went on", lambda n=changes: writer.counters.changes > n + 100)
        await w.settled()
        await w.assert_nothing_lost()
        assert await w.stop("publish") == 0
        assert await w.stop("apply one") == 0


@MODES
async def test_every_record_delivered_twice_and_out_of_order_changes_nothing(
    services: Services, tmp_path: Path, role: str
) -> None:
    async with world(services, tmp_path) as w:
        await w.load(1500, tenants=4)
        mode = {"CROSSFADE_REPLICATION_ROLE": role}
        await w.start("publish", "publish")
        async with w.writes(150) as writer:
            await w.start("apply", "apply", **mode)
            await w.until("writes", lambda: writer.counters.changes > 500)
            await w.kill("apply")
            sent = await w.send_again(seed=1)
            await w.until("writes go on", lambda: writer.counters.changes > 1000)
        sent += await w.send_again(seed=2)
        await w.start("apply", "apply again", **mode)
        await w.settled()
        await w.assert_nothing_lost()
        # Of two equal events one at most is applied, also where both were parked first and retried.
        applied = await w.value("SELECT sum(applied)::bigint FROM crossfade.batch")
        records = await w.value("SELECT sum(records)::bigint FROM crossfade.partition_progress")
        assert 0 < applied <= records - sent
