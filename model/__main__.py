"""``python -m model``: check the protocol's models with Spin, and that each fails without each rule."""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from model.checks import Check, all_checks
from worker.embedded.prerequisites import program
from worker.embedded.processes import outcome
from worker.embedded.processes import run as run_command
from worker.errors import CrossfadeError

_MEMORY = 6000  # MB that one run may take
_DEPTH = 1_000_000  # steps
_COMPILED = ["-O2", "-w", "-DSAFETY", "-DCOLLAPSE", "-DVECTORSZ=4096", f"-DMEMLIM={_MEMORY}"]


@dataclass(frozen=True, slots=True)
class Result:
    """What a run has shown. ``complete``: every state within the bounds was looked at."""

    errors: int
    states: int
    complete: bool
    seconds: float

    def expected(self, check: Check) -> bool:
        """Whether it is what the check wants: a proof, or a counterexample to what lacks a rule."""
        return self.errors > 0 if check.variant else self.errors == 0 and self.complete


async def run(check: Check) -> Result:
    """Make the verifier and run it; `CrossfadeError` when Spin or the compiler refuses the model."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="crossfade-model-") as name:
        folder = Path(name)
        spin, cc = await program("spin", "spin", _tell), await program("cc", "build-essential", _tell)
        verifier = [spin, "-a", *check.flags, str(check.model.path)]
        await run_command(verifier, what=f"spin for {check}", directory=folder)
        await run_command([cc, *_COMPILED, "-o", "pan", "pan.c"], what=f"cc for {check}", directory=folder)
        # -E: that a process waits for ever for a database that is away is no error of the protocol.
        _, told = await outcome([str(folder / "pan"), "-E", f"-m{_DEPTH}"], folder)
    found = re.search(r"errors: (\d+)", told)
    states = re.search(r"^\s*([\d.e+]+) states, stored", told, re.MULTILINE)
    if found is None or states is None:
        raise CrossfadeError(f"{check}: the verifier ended without a result: {told[-500:]}")
    cut = "max search depth too small" in told or "reached -DMEMLIM" in told or "out of memory" in told
    return Result(int(found[1]), int(float(states[1])), not cut, time.monotonic() - began)


async def _all(checks: list[Check], at_once: int) -> int:
    """Run the checks, the long ones first; return how many were not as expected."""
    free, wrong = asyncio.Semaphore(at_once), 0

    async def one(check: Check) -> None:
        nonlocal wrong
        async with free:
            result = await run(check)
        as_expected = result.expected(check)
        wrong += not as_expected
        _tell(_line(check, result, as_expected))

    await asyncio.gather(*map(one, checks))
    return wrong


def _line(check: Check, result: Result, as_expected: bool) -> str:
    if result.errors:
        what = "fails, as it must" if as_expected else "FAILS"
    elif not result.complete:
        what = "NOT all states were looked at: more memory or depth is needed"
    else:
        what = "holds" if as_expected else "HOLDS, though it must not"
    return f"{check}: {what} ({result.states:,} states, {result.seconds:.0f} s)"


def _tell(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    """Check, and exit 1 when something is not as it must be."""
    parser = argparse.ArgumentParser(prog="python -m model", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only the whole models, at small bounds")
    given = parser.parse_args()
    checks = all_checks(quick=given.quick)
    try:
        wrong = asyncio.run(_all(checks, max(1, (os.cpu_count() or 2) // 2)))
    except CrossfadeError as error:
        sys.exit(str(error))
    proofs = sum(check.variant is None for check in checks)
    _tell(f"{proofs} proofs, {len(checks) - proofs} without a rule, {wrong} not as expected")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
