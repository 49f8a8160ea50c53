"""A short storm; `make storm MINUTES=10` is the long one."""

from __future__ import annotations

from pathlib import Path

from tests.storm.__main__ import report
from tests.storm.run import storm
from worker.embedded import Services


async def test_tenants_move_there_and_back_under_writes(services: Services, tmp_path: Path) -> None:
    # How long pauses are is the long one's business: here a move has the time that a busy machine needs.
    result = await storm(services, tmp_path, tenants=6, rate=100, moves=6, seconds=3, deadline=4.0)
    report(result)
    assert len(result.cutovers) == 6 and len(result.rollbacks) == 6
    assert result.held
