"""The reconciler raises no false alarm, whatever fails; the long form is half an hour at 500 changes/s."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.alarms import run_alarms
from tests.support.long import LONG
from tests.support.wall_clock import WallClocks
from worker.embedded import Services


@pytest.mark.timeout(4000 if LONG else 600)
async def test_no_false_alarm_beside_a_copy_writes_and_faults(services: Services, tmp_path: Path) -> None:
    clocks = WallClocks()
    try:
        done = await run_alarms(
            services, tmp_path, 1, seconds=1800 if LONG else 40, rate=500 if LONG else 100, clocks=clocks
        )
    finally:
        clocks.remove()
    faults = len(done.report.faults)
    print(
        f"{done.report.changes} changes, {faults} faults, {done.report.restarts} restarts, "
        f"{done.generations} full generations, {done.compared} documents compared, no alarm"
    )
    assert done.report.changes > 0 and faults >= 3 and done.generations >= 2
