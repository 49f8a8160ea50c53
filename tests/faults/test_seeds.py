"""Seeded runs under faults, a few; `make faults SEEDS=200` is the long proof.

And bugs that they find for certain; `make faults ARGS=--plants` plants them all.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import planted
from tests.faults.harness import run_seed
from tests.support.wall_clock import WallClocks
from worker.embedded import Services


@pytest.fixture
def clocks() -> Iterator[WallClocks]:
    made = WallClocks()
    yield made
    made.remove()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [1, 2])
async def test_nothing_is_lost_stale_or_resurrected(
    services: Services, tmp_path: Path, clocks: WallClocks, seed: int
) -> None:
    report = await run_seed(services, tmp_path, seed, clocks=clocks)
    assert len(report.faults) >= 3 and report.changes > 0


@pytest.mark.timeout(600)
@pytest.mark.parametrize("bug", ["guard-at-least", "array-end-kept"])
async def test_a_planted_bug_is_found(
    services: Services, tmp_path: Path, clocks: WallClocks, bug: str
) -> None:
    code = planted.plant(bug, tmp_path / "code")
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        await run_seed(services, tmp_path / "world", 3, code=code, seconds=8, clocks=clocks)
