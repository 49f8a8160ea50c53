"""``python -m tests.corruption --planted 100``: corruptions of every kind, which the reconciler must find."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.corruption.kinds import KINDS
from tests.corruption.run import Corrupted, Verdict, corrupted
from worker.embedded import Services


def _tell(line: str) -> None:
    print(line, flush=True)


def _table(verdict: Verdict) -> None:
    planted = Counter(one.kind for one in verdict.planted)
    missed = Counter(one.kind for one in verdict.missed)
    exact = Counter(one.kind for one in verdict.exact)
    _tell(f"  {'kind':32} {'planted':>8} {'found':>8} {'told right':>12}")
    for kind in sorted(planted):
        _tell(f"  {kind:32} {planted[kind]:8} {planted[kind] - missed[kind]:8} {exact[kind]:12}")
    _tell(f"  {'all':32} {len(verdict.planted):8} {verdict.found:8} {len(verdict.exact):12}")
    for one in verdict.missed:
        _tell(f"  MISSED: {one.kind}, {one.collection} {one.id}")
    for line in verdict.wrong:
        _tell(f"  WRONG: {line}")
    for line in verdict.false:
        _tell(f"  FALSE: {line}")
    _tell(f"  false alarms: {len(verdict.false)}")


async def _proof(c: Corrupted, planted: int) -> bool:
    """Plant and find, three times; return whether all was found and told right."""
    some = await c.plant(planted)
    took = await c.once()
    _tell(f"\n{planted} planted in a settled database; `crossfade reconcile --once`:")
    first = await c.verdict(some)
    _table(first)
    _tell(
        f"  {took.documents:,} documents in {took.seconds:.1f} s: {took.per_second:,.0f} documents/s; "
        f"{took.wall:.1f} s with its start and further looks\n"
        f"  CPU {took.cpu:.1f} s, {took.cpu / took.documents * 1e6:.0f} us a document; "
        f"peak memory {took.peak_mb:.0f} MB"
    )
    touched = await c.touched(len(KINDS))
    _tell(f"\n{len(KINDS)} in documents touched while `crossfade reconcile` runs: {touched.seconds:.1f} s")
    _table(touched)
    in_time = touched.seconds <= 10
    if not in_time:
        _tell("  LATE: they must be found within 10 s")
    untouched = await c.untouched(len(KINDS))
    _tell(f"\n{len(KINDS)} in untouched documents while it runs: there at the end of the next full pass")
    _table(untouched)
    return first.perfect and touched.perfect and in_time and untouched.perfect


async def _main(given: argparse.Namespace) -> int:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)  # services are ended then too
    with tempfile.TemporaryDirectory(prefix="crossfade-corruption-") as made:
        root = given.keep or Path(made)
        services = await Services.up(root / "services")
        try:
            async with corrupted(services, root / "world", given.documents, given.seed, _tell) as c:
                proved = await _proof(c, given.planted)
        finally:
            await Services.down(root / "services")
    _tell("\nall found, each told right, none false" if proved else "\nNOT proved")
    return 0 if proved else 1


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.corruption", description=__doc__)
    parser.add_argument("--planted", type=int, default=100, help="how many corruptions: 100")
    parser.add_argument("--documents", type=int, default=100_000, help="how many documents: 100,000")
    parser.add_argument("--seed", type=int, default=1, help="decides the data and what is planted where")
    parser.add_argument("--keep", type=Path, help="keep logs and services' data in this folder")
    sys.exit(asyncio.run(_main(parser.parse_args())))


if __name__ == "__main__":
    main()
