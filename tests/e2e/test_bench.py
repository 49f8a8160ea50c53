"""The benchmark itself: every stage at a tiny size, and its refusal to report what was not finished."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import orjson

ROOT = Path(__file__).parents[2]
TINY = ("--copy", "400", "--changes", "300", "--rate", "60", "--seconds", "2", "--copy-rate", "50")


async def _bench(*arguments: str) -> tuple[int, bytes, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench", *TINY, *arguments),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, told = await process.communicate()
    return process.returncode or 0, output, told.decode()


async def test_every_stage_reports_its_figures(tmp_path: Path) -> None:
    code, output, told = await _bench("--output", str(tmp_path / "figures.json"))
    assert code == 0, told
    results = orjson.loads(output)
    assert results == orjson.loads((tmp_path / "figures.json").read_bytes())
    stages = results["stages"]
    events = {name: stage["events"] for name, stage in stages.items()}
    assert events.pop("beside") > 400
    assert events == {"copy": 400, "drain": 300, "kafka": 300, "live": 300, "steady": 120}
    for stage in stages.values():
        assert stage["per_second"] >= stage["per_second_from_start"] > 0
        for name in ("publish", "apply", "mongod", "kafka", "postgres"):
            assert stage["processes"][name]["cpu_us_per_event"] >= 0
            assert stage["processes"][name]["peak_mb"] > 1
    for name in ("steady", "beside"):
        lag = stages[name]["lag_ms"]
        assert 0 < lag["p50"] <= lag["p99"] <= lag["max"]
    assert stages["steady"]["timed"] == 120
    assert "steady" in told


async def test_a_stage_that_does_not_end_in_time_is_a_failure() -> None:
    code, output, told = await _bench("--only", "copy", "--patience", "0.01")
    assert code == 1
    assert output == b""
    assert "did not end within" in told.splitlines()[-1]
