"""What comes in PostgreSQL after a decision, or an abort: phases follow, holds are given back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

import structlog

from worker.cutover.ground import Ground
from worker.cutover.hooks import Hooks
from worker.cutover.steps import Result
from worker.errors import CrossfadeError
from worker.postgres import phases
from worker.postgres.faults import FAULTS
from worker.retry import Backoff

_log = structlog.get_logger()
MOVED_SINCE = "another command has moved it since: see `crossfade tenants`"
LOST = "PostgreSQL has lost what was decided: see `crossfade tenants`, and docs/cutover.md, Limits"
TRY_WITHIN = 3.0
"""Seconds for a change of phases; then PostgreSQL is silent, and is asked over a new connection."""


async def follow(
    ground: Ground,
    epochs: Mapping[UUID, int],
    before: str,
    after: str,
    reason: str,
    evidence: Callable[[], Mapping[str, Any]],
    *,
    within: float,
) -> bool:
    """Let PostgreSQL's phases follow what MongoDB has decided; False: not within ``within`` seconds.

    ``evidence`` as for `phases.change`.
    """
    until = time.monotonic() + within
    for delay in Backoff(first=0.02, longest=0.5).delays():
        left = until - time.monotonic()
        if left <= 0:
            break
        try:
            async with ground.bounded(min(left, TRY_WITHIN)):
                await ground.again()
                if await phases.change(ground.control, epochs, before, after, reason, evidence) is None:
                    for one, epoch in epochs.items():  # some have followed already
                        await phases.change(ground.control, {one: epoch}, before, after, reason, evidence)
            return True
        except (phases.Locked, CrossfadeError, *FAULTS) as error:
            _log.warning("PostgreSQL does not follow yet", phase=after, reason=type(error).__name__)
        await asyncio.sleep(min(delay, left))
    return False


async def end(ground: Ground, hooks: Hooks, result: Result, epochs: Mapping[UUID, int]) -> Result:
    """Give the hold on tenants back, and run the hook behind their move, which ended with these epochs.

    No hook where they cannot write yet. Where another command has moved one of them since, or PostgreSQL was
    put back behind the move, the result says so instead.
    """
    otherwise = await _otherwise(ground, epochs, result.settled)
    await quietly(phases.let_go(ground.control, result.tenants))
    if otherwise:
        result.phase, result.why = "", otherwise
    elif result.writable:
        await hooks.run("after", result.phase, result.tenants)
    return result


async def _otherwise(ground: Ground, epochs: Mapping[UUID, int], settled: bool) -> str:
    """Return why a move that ended with these epochs is not how a tenant stands; "" where it is.

    Somebody else has moved it, which takes a controller that stood still, and so lost its hold; or a failover
    lost the move's last change. Where PostgreSQL is away, or is yet to follow, neither is known.
    """
    try:
        async with ground.bounded(TRY_WITHIN):
            known = await phases.read(ground.control, list(epochs))
    except (CrossfadeError, *FAULTS):
        return ""
    ahead = [known[one].epoch - epoch for one, epoch in epochs.items() if one in known]
    if any(by > 0 for by in ahead):
        return MOVED_SINCE
    return LOST if settled and any(by < 0 for by in ahead) else ""


async def quietly(work: Any) -> None:
    """Do what only tidies up; where it fails, the session's end or the next move does it."""
    try:
        async with asyncio.timeout(2.0):
            await work
    except (TimeoutError, CrossfadeError, *FAULTS):
        pass
