"""Seeded runs under faults, a few; `make faults SEEDS=200` is the long proof."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.harness import Failed, run_seed
from tests.faults.planted import plant
from worker.embedded import Services


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [1, 2])
async def test_nothing_is_lost_stale_or_resurrected(services: Services, tmp_path: Path, seed: int) -> None:
    report = await run_seed(services, tmp_path, seed)
    assert len(report.faults) >= 3 and report.changes > 0


@pytest.mark.timeout(600)
async def test_a_planted_bug_is_found(services: Services, tmp_path: Path) -> None:
    """Deletes forgotten: what is sent again must bring deleted documents back."""
    code = plant("tombstone-dropped", tmp_path / "code")
    with pytest.raises((AssertionError, Failed)):
        await run_seed(services, tmp_path / "run", 1, code=code, seconds=5)
