"""`crossfade run` keeps its processes alive, and ends them all."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil

from tests.support.world import once, world
from worker.embedded import Services


async def test_a_killed_process_is_started_again_and_sigterm_leaves_none(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        await w.load(300)
        await w.start("run", "run")
        await w.settled()
        parent = psutil.Process(w.processes["run"].pid)
        before = parent.children()
        assert {child.cmdline()[-1] for child in before} == {"publish", "apply"}
        for child in before:
            child.kill()
        await w.mongo["leads"].update_many({}, {"$set": {"email": "new@example.com"}})
        await w.settled()
        await w.assert_nothing_lost()
        after = parent.children()
        assert {child.cmdline()[-1] for child in after} == {"publish", "apply"}
        assert await w.stop("run") == 0
        async with asyncio.timeout(5):
            while any(child.is_running() for child in after):  # noqa: ASYNC110
                await asyncio.sleep(0.05)


async def test_what_a_person_must_mend_ends_all_with_exit_2(services: Services, tmp_path: Path) -> None:
    async with world(services, tmp_path) as w:
        code, output = await once(w, "run", CROSSFADE_MAPPING="nowhere.yaml")
        assert code == 2 and "cannot read mapping nowhere.yaml" in output
