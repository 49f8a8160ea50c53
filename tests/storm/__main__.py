"""``python -m tests.storm --minutes 10``: 200 moves there and back under 1,000 writes a second."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.storm.run import Storm, percentile, storm
from worker.embedded import Services

MOVES_A_MINUTE = 20


def _tell(line: str) -> None:
    print(line, flush=True)


def report(result: Storm) -> None:
    """Print what became of a storm."""
    _tell(f"{result.accepted:,} writes acknowledged, {result.unclear} without an answer, {result.errors}")
    _tell(f"lost, stale, resurrected or applied twice: {len(result.wrong)} {result.wrong[:3]}")
    _tell(f"taken by a database that had not the tenant: {len(result.both)} {result.both[:3]}")
    for name, pauses in (("cutovers", result.cutovers), ("rollbacks", result.rollbacks)):
        _tell(f"{len(pauses)} {name}: pause {_told(pauses)}")
    for name, steps in sorted(result.steps.items()):
        _tell(f"  {name}: {_told(steps)}")
    _tell(f"tried again or given up: {len(result.aborted)} {result.aborted[:3]}")
    _tell(
        f"writes of tenants that stay, while none moves: {_told(result.calm)}; during: {_told(result.beside)}"
    )
    _tell("held" if result.held else "FAILED")


def _told(milliseconds: Sequence[float]) -> str:
    p50, p99 = percentile(milliseconds, 0.5), percentile(milliseconds, 0.99)
    return f"p50 {p50:.1f} ms, p99 {p99:.1f}, max {max(milliseconds, default=0):.1f}"


async def _main(given: argparse.Namespace) -> bool:
    with tempfile.TemporaryDirectory(prefix="crossfade-storm-") as directory:
        root = Path(directory)
        services = await Services.up(root / "services", report=_tell)
        try:
            result = await storm(
                services,
                root / "world",
                tenants=given.tenants,
                rate=given.rate,
                moves=given.moves or round(given.minutes * MOVES_A_MINUTE),
                seconds=given.calm,
                tell=_tell,
            )
        finally:
            await Services.down(root / "services")
    report(result)
    return result.held


def main() -> None:
    """Run it; exit 1 when something did not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.storm", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--tenants", type=int, default=50)
    parser.add_argument("--rate", type=float, default=1000, help="writes a second over all tenants")
    parser.add_argument("--calm", type=float, default=15, help="seconds without moves before each ten")
    parser.add_argument("--moves", type=int, default=0, help="there and back; otherwise 20 a minute")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sys.exit(0 if asyncio.run(_main(given)) else 1)


if __name__ == "__main__":
    main()
