"""Seeded runs under faults, a few; `make faults SEEDS=200` is the long proof."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.harness import run_seed
from worker.embedded import Services


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [1, 2])
async def test_nothing_is_lost_stale_or_resurrected(services: Services, tmp_path: Path, seed: int) -> None:
    report = await run_seed(services, tmp_path, seed)
    assert len(report.faults) >= 3 and report.changes > 0
