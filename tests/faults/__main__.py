"""``python -m tests.faults --seeds 20 --first 1``: seeded runs under faults, one after the other."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
import traceback
from pathlib import Path

import pytest

from tests.faults import planted
from tests.faults.harness import run_seed
from worker.embedded import Services


async def _main(first: int, seeds: int, plant: str | None, keep: Path | None) -> int:
    passed = 0
    with tempfile.TemporaryDirectory(prefix="crossfade-faults-") as made:
        root = keep or Path(made)
        code = planted.plant(plant, root / "code") if plant else None
        services = await Services.up(root / "services")
        try:
            for seed in range(first, first + seeds):
                directory = root / f"seed-{seed}"
                directory.mkdir(parents=True)
                began = time.monotonic()
                try:
                    report = await run_seed(services, directory, seed, code=code)
                except (Exception, pytest.fail.Exception) as error:
                    told = f"{type(error).__name__}: {str(error)[:1500]}"
                    if plant:
                        print(f"seed {seed}: {told}\n{plant}: found by seed {seed}")
                        return 0
                    print(f"seed {seed}: FAILED: {told}")
                    if not isinstance(error, AssertionError):
                        traceback.print_exc()
                    again = f"make faults SEEDS=1 FIRST={seed}" + (
                        f" ARGS='--plant {plant}'" if plant else ""
                    )
                    print(f"    repeat it: {again}", flush=True)
                    continue
                passed += 1
                took = time.monotonic() - began
                print(
                    f"seed {seed}: passed in {took:.0f} s, {report.changes} changes, "
                    f"{report.restarts} restarts; {'; '.join(report.faults)}",
                    flush=True,
                )
        finally:
            await Services.down(root / "services")
    if plant:
        print(f"{plant}: not found by {seeds} seeds")
        return 1
    print(f"{seeds} seeds, {passed} passed")
    return 0 if passed == seeds else 1


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument(
        "--plant", choices=sorted(planted.BUGS), help="run a copy of the program with this bug"
    )
    parser.add_argument("--keep", type=Path, help="keep logs and services' data in this folder")
    given = parser.parse_args()
    sys.exit(asyncio.run(_main(given.first, given.seeds, given.plant, given.keep)))


if __name__ == "__main__":
    main()
