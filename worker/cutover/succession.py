"""Ends in MongoDB what dead controllers left: of many tenants at once, and each by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from uuid import UUID

from worker import failpoints
from worker.cutover.ground import Ground
from worker.errors import CrossfadeError
from worker.mongo.client import FAULTS
from worker.mongo.fence_documents import Unclear
from worker.mongo.fence_lock import InTheWay
from worker.postgres.phases import Standing
from worker.retry import Backoff

_AT_ONCE = 8  # changes of fence documents
_HEAL_WITHIN = 1.0  # seconds for all collections; writers wait behind each
Epochs = Mapping[UUID, int]


async def end_in_mongodb(
    ground: Ground, aborting: Epochs, opening: Sequence[Standing], within: float
) -> bool:
    """Abort moves of these epochs (D2), and let those in whom PostgreSQL has decided to bring home.

    Return whether MongoDB takes the writes of all whom their documents let in.

    Returns after ``within`` seconds at the latest, whatever is in the way; the next call does the rest. What
    is in the way of one document is not in the way of the others. All share one collMod of each collection.
    """
    fences, by, all_in = ground.fences, ground.holder, False
    floors = {one.tenant: one.floor for one in opening}
    with suppress(TimeoutError, CrossfadeError, *FAULTS):
        async with asyncio.timeout(within):
            aborted, _ = await asyncio.gather(
                _each(aborting, lambda epochs: fences.decide_abort(epochs, by)),
                _each(
                    {one.tenant: one.epoch for one in opening},
                    lambda epochs: fences.come_back(epochs, floors, by),
                ),
            )
            await _let_in_at_last(ground, bool(aborted))
            all_in = True
            await _each(aborted, lambda epochs: fences.come_home(epochs, by))
    return all_in


async def _each(epochs: Epochs, change: Callable[[Epochs], Awaitable[bool]]) -> dict[UUID, int]:
    """Change the documents of tenants one by one; return those that were changed."""
    some, changed = asyncio.Semaphore(_AT_ONCE), dict[UUID, int]()

    async def one(tenant: UUID, epoch: int) -> None:
        async with some:
            with suppress(Unclear, *FAULTS):
                if await change({tenant: epoch}):
                    changed[tenant] = epoch

    await asyncio.gather(*(one(tenant, epoch) for tenant, epoch in epochs.items()))
    return changed


async def let_in(ground: Ground, aborting: bool = True) -> None:
    """Let MongoDB take the writes of all whom the documents let in; `InTheWay` when it is busy.

    ``aborting``: some are let in because their moves are aborted.
    """
    if aborting:
        failpoints.reach(failpoints.CUTOVER_ABORTING)
    await ground.validators.heal(_HEAL_WITHIN)


async def _let_in_at_last(ground: Ground, aborting: bool) -> None:
    for delay in Backoff(first=0.02, longest=0.5).delays():
        try:
            await let_in(ground, aborting)
            return
        except InTheWay:
            await asyncio.sleep(delay)
