"""`crossfade demo`, as a person runs it: ends equal, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from examples.spaces.oracle import Comparison
from examples.spaces.writer import Counters
from tests.support.processes import processes_of
from worker.demo import summary


@pytest.mark.alone
async def test_the_demo_ends_equal_and_leaves_nothing(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "worker", "demo", "--documents", "2000", "--json"),
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    told, progress = await asyncio.wait_for(process.communicate(), 280)
    assert process.returncode == 0, progress.decode()
    figures = json.loads(told)
    assert figures["equal"] and figures["documents"] >= 2000 and figures["changes"] > 2000
    assert figures["documents_differing"] == figures["acknowledged_writes_lost"] == 0
    assert figures["moving_writes"] > figures["of_them_in_postgresql"] > 0 == figures["moving_writes_lost"]
    assert all(
        0 < figures[f"{move}_pause_ms"] < 1000
        for move in ("rehearsal", "cutover", "rollback", "cutover_again")
    )
    assert figures["moved_tenant_phase"] == "complete"
    assert 0 < figures["lag_p50_ms"] <= figures["lag_p99_ms"]
    assert not _left(tmp_path)


def _left(directory: Path) -> list[object]:
    """Return the files and processes of a directory."""
    return [*directory.iterdir(), *processes_of(directory)]


def test_a_difference_or_a_lost_write_is_not_equal() -> None:
    same, different = Comparison(documents=1, seconds=1), Comparison(documents=1, seconds=1)
    different.add("pages", 1, "missing")
    assert summary(1, Counters(), [1.0], same, wrong=0)["equal"]
    assert not summary(1, Counters(), [1.0], different, wrong=0)["equal"]
    assert not summary(1, Counters(), [1.0], same, wrong=1)["equal"]
