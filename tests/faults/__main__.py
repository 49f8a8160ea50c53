"""``python -m tests.faults --seeds 20 --first 1``: seeded runs under faults, one after the other."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.faults import planted
from tests.faults.harness import run_seed
from tests.faults.moved_seed import WITHIN, run_moved_seed
from tests.support.wall_clock import WallClocks
from worker.embedded import Services


class _Given(NamedTuple):
    """Which seeds are run. ``moves``: tenants move; ``within``: seconds that they have to be writable."""

    first: int
    seeds: int
    moves: bool
    within: float


async def _seeds(
    root: Path, given: _Given, plant: str | None, told: Callable[[str], None]
) -> tuple[int, int | None]:
    """Run seeds one after the other; return how many passed, and which one found the planted bug."""
    passed, worst, clocks = 0, 0.0, WallClocks()
    code = planted.plant(plant, root / "code") if plant else None
    services = await Services.up(root / "services")
    try:
        if given.moves:
            pass  # no clock is stepped: times of changes of phase are compared
        elif clocks.compiler:
            await clocks.give(services)
        else:
            told("no clock is stepped: that takes a C compiler (cc)")
        for seed in range(given.first, given.first + given.seeds):
            directory = root / f"seed-{seed}"
            began = time.monotonic()
            try:
                if given.moves:
                    report = await run_moved_seed(
                        services, directory, seed, code=code, within=given.within, clocks=clocks
                    )
                    worst = max(worst, report.worst)
                else:
                    report = await run_seed(services, directory, seed, code=code, clocks=clocks)
            except (Exception, pytest.fail.Exception) as error:
                if plant:
                    told(f"seed {seed}: {_line(error)}")
                    return passed, seed
                told(f"seed {seed}: FAILED: {_line(error, 1500)}")
                if not isinstance(error, AssertionError):
                    traceback.print_exc()
                told(f"    repeat it: make faults{' MOVES=1' if given.moves else ''} SEEDS=1 FIRST={seed}")
                continue
            passed += 1
            took = time.monotonic() - began
            told(f"seed {seed}: passed in {took:.0f} s, {report}")
    finally:
        await Services.down(root / "services")
        clocks.remove()
    if given.moves:
        told(f"writable, and at home, within {worst:.1f} s of the faults' end")
    return passed, None


def _tell(line: str) -> None:
    print(line, flush=True)


def _line(error: BaseException, most: int = 300) -> str:
    notes = "".join(f"\n    {note}" for note in getattr(error, "__notes__", ()))
    return f"{type(error).__name__}: {str(error)[:most]}{notes}"


async def _plants(root: Path, given: _Given, names: Sequence[str], told: Callable[[str], None]) -> int:
    """Plant each bug; return how many were not found."""
    missed = 0
    for name in names:
        _, found = await _seeds(root / name, given, name, told)
        missed += found is None
        print(
            f"{name}: {f'found by seed {found}' if found else f'NOT found by {given.seeds} seeds'}",
            flush=True,
        )
    print(f"{len(names)} planted, {len(names) - missed} found")
    return missed


async def _main(given: argparse.Namespace) -> int:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)  # services are ended then too
    bugs = planted.OF_MOVES if given.moves else planted.BUGS
    names = sorted(bugs) if given.plants else [given.plant] if given.plant else []
    seeds = given.seeds or (20 if names else 5)
    which = _Given(given.first, seeds, given.moves, given.within)
    with tempfile.TemporaryDirectory(prefix="crossfade-faults-") as made:
        root = given.keep or Path(made)
        if names:
            quiet: Callable[[str], None] = _tell if given.plant else lambda line: None
            return min(1, await _plants(root, which, names, quiet))
        passed, _ = await _seeds(root, which, None, _tell)
    print(f"{seeds} seeds, {passed} passed")
    return 0 if passed == seeds else 1


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--seeds", type=int, help="how many: 5, or with a planted bug 20 at most")
    parser.add_argument(
        "--plant",
        choices=sorted({**planted.BUGS, **planted.OF_MOVES}),
        help="run a copy of the program with this bug",
    )
    parser.add_argument("--moves", action="store_true", help="tenants move there and back meanwhile")
    parser.add_argument(
        "--within", type=float, default=WITHIN, help="seconds after the faults in which tenants are writable"
    )
    parser.add_argument("--plants", action="store_true", help="plant each bug in turn; 1 if any is not found")
    parser.add_argument("--keep", type=Path, help="keep logs and services' data in this folder")
    given = parser.parse_args()
    sys.exit(asyncio.run(_main(given)))


if __name__ == "__main__":
    main()
