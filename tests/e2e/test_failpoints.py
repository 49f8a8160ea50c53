"""Processes that die at each named place, under live writes: starting again is the whole recovery."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.world import world
from worker import failpoints
from worker.embedded import Services

# These have tests of their own (test_lost_token.py, test_batches.py, test_way_back.py): a first copy has
# no removal.
ELSEWHERE = {failpoints.REMOVAL_AFTER_SEND, failpoints.ROLLBACK_BEFORE_COMMIT, failpoints.REPAIR_BEFORE_SEND}
ELSEWHERE |= {
    name for name in failpoints.NAMES if name.startswith(("reconcile.", "reverse.", "cutover.", "rollback."))
}


@pytest.mark.parametrize("place", sorted(failpoints.NAMES - ELSEWHERE))
async def test_a_process_that_dies_there_loses_nothing(
    services: Services, tmp_path: Path, place: str
) -> None:
    async with world(services, tmp_path) as w:
        await w.load(600)
        dying = {"CROSSFADE_FAILPOINTS": f"{place}=exit:2", "CROSSFADE_COPY_CHUNK": "50"}
        role = "apply" if place.startswith("apply") else "publish"
        other = "publish" if role == "apply" else "apply"
        async with w.writes(100):
            await w.start(other, other)
            for _ in range(2):
                await w.start(role, role, **dying)
                assert await w.ended(role) == failpoints.EXIT_CODE
            await w.start(role, role)
            await w.settled()
        await w.settled()
        await w.assert_nothing_lost()
