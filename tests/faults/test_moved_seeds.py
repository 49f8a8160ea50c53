"""Seeded runs in which tenants move, short ones; `make faults MOVES=1 SEEDS=100` is the long proof.

And bugs that they find for certain; `make faults MOVES=1 ARGS=--plants` plants them all.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import planted
from tests.faults.lanes import steps
from tests.faults.moved_seed import run_moved_seed
from tests.support.wall_clock import WallClocks
from worker.embedded import Services

WITHIN = 20.0  # seconds, on a machine that does ten other things


@pytest.fixture
def clocks() -> Iterator[WallClocks]:
    made = WallClocks()
    yield made
    made.remove()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [1, 2])
async def test_tenants_that_move_lose_nothing(
    services: Services, tmp_path: Path, clocks: WallClocks, seed: int
) -> None:
    report = await run_moved_seed(services, tmp_path, seed, rounds=2, within=WITHIN, clocks=clocks)
    print(report)
    assert report.changes > 0 and report.cutovers + report.rollbacks + report.aborted > 0


@pytest.mark.timeout(900)
@pytest.mark.parametrize("bug", ["insertions-unfenced"])
async def test_a_bug_planted_in_the_moves_is_found(
    services: Services, tmp_path: Path, clocks: WallClocks, bug: str
) -> None:
    code = planted.plant(bug, tmp_path / "code")
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        await run_moved_seed(
            services, tmp_path / "world", 3, code=code, rounds=1, within=WITHIN, clocks=clocks
        )


def test_a_lane_makes_the_same_steps_for_the_same_seed() -> None:
    first, again, other = steps("1 A"), steps("1 A"), steps("2 A")
    one = [next(first) for _ in range(20)]
    assert one == [next(again) for _ in range(20)] != [next(other) for _ in range(20)]
