"""Keeps moves going when their controller has died, and validators as the fence documents say.

Each look reads both databases. What a dead controller left is aborted, or brought to its end where it was
decided; so a tenant ends in ``mongo`` or ``postgres`` by itself. While PostgreSQL is away, MongoDB's part is
done alone (D4).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from uuid import UUID

import structlog
from pymongo.errors import PyMongoError

from worker.cutover import move, rollback
from worker.cutover.ground import Ground, opened
from worker.errors import ConfigurationError, CrossfadeError, MappingError
from worker.mongo.client import describe as describe_mongo
from worker.mongo.fence_documents import Fence, State, Unclear
from worker.mongo.validators import InTheWay
from worker.postgres import phases
from worker.postgres.faults import FAULTS, describe
from worker.settings import Settings

_log = structlog.get_logger()
LOOK_EVERY = 0.5
_HEAL_WITHIN = 0.2
_SUCCESSION = "its controller died"


async def run(settings: Settings, stop: asyncio.Event) -> None:
    """Look until ``stop`` is set, whatever is away. `UsageError` where settings or the mapping are wrong."""
    told = False
    while not stop.is_set():
        try:
            async with opened(settings, "control", alone=True) as ground:
                keeper, told = Keeper(ground), False
                while not stop.is_set():
                    await keeper.look()
                    await _wait(stop)
        except (MappingError, ConfigurationError):
            raise
        except CrossfadeError as error:
            if not told:
                _log.warning("moves are not looked after yet", reason=error.message)
            told = True
            await _wait(stop)


async def _wait(stop: asyncio.Event) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(LOOK_EVERY):
            await stop.wait()


class Keeper:
    """Looks, and mends. Several at once do no harm: each step is a compare-and-set."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._told: dict[str, str] = {}

    async def look(self) -> None:
        """Look once; whatever is away is looked at again the next time."""
        fences = await self._by_mongodb()
        if fences is not None:
            await self._by_postgresql(fences)

    async def _by_mongodb(self) -> Mapping[UUID, Fence] | None:
        """End what overdue fence documents tell of, and heal validators; None while MongoDB is away."""
        ground = self._ground
        try:
            fences = await ground.fences.read()
            for one in fences.values():
                if one.overdue and one.state in (State.DRAINING, State.ABORTING):
                    _log.warning("a move is aborted", tenant=str(one.tenant), reason=_SUCCESSION)
                    async with asyncio.timeout(LOOK_EVERY * 10):
                        await move.abort(ground, {one.tenant: one.epoch})
            if wrong := await ground.validators.heal(_HEAL_WITHIN):
                _log.error("validators were not what the fences say; they are again", collections=wrong)
            fences = await ground.fences.read()
        except (PyMongoError, Unclear, TimeoutError) as error:
            told = describe_mongo(error) if isinstance(error, PyMongoError) else type(error).__name__
            self._tell("MongoDB", told)
            return None
        except InTheWay as error:
            self._tell("MongoDB", str(error))
            return await self._ground.fences.read()
        self._tell("MongoDB", "")
        return fences

    async def _by_postgresql(self, fences: Mapping[UUID, Fence]) -> None:
        """Let phases follow what MongoDB has decided; abort what was begun in PostgreSQL alone."""
        ground = self._ground
        try:
            await ground.again()
            for one in await phases.moving(ground.control):
                match one.phase:
                    case "draining":
                        await self._draining(one, fences.get(one.tenant))
                    case "rolling_back" | "opening":
                        await self._back(one)
        except (CrossfadeError, phases.Locked, *FAULTS) as error:
            told = describe(error) if isinstance(error, FAULTS) else str(error)
            self._tell("PostgreSQL", told)
            return
        self._tell("PostgreSQL", "")

    async def _draining(self, one: phases.Standing, fence: Fence | None) -> None:
        decided = fence is not None and fence.epoch == one.epoch and fence.state in (State.LEFT, State.HOME)
        begun = fence is None or (fence.epoch < one.epoch and fence.state is State.HOME)
        # Its own controller does all this at once, unless it is dead or cannot reach PostgreSQL.
        if not (decided or begun) or not await phases.try_hold(self._ground.control, [one.tenant]):
            return
        try:
            epochs = {one.tenant: one.epoch}
            if begun and not await move.abort(self._ground, epochs):
                return
            after = "postgres" if fence is not None and decided and fence.state is State.LEFT else "mongo"
            await phases.change(self._ground.control, epochs, "draining", after, _SUCCESSION)
        finally:
            if not self._ground.control.is_closed():
                await phases.let_go(self._ground.control, [one.tenant])

    async def _back(self, one: phases.Standing) -> None:
        """What is ``opening`` is decided; before that, a tenant without controller stays in PostgreSQL."""
        ground = self._ground
        if not await phases.try_hold(ground.control, [one.tenant]):
            return
        try:
            epochs = {one.tenant: one.epoch}
            if one.phase == "opening":
                async with asyncio.timeout(LOOK_EVERY * 10):
                    await rollback.open_mongodb(ground, epochs)
                await phases.change(ground.control, epochs, "opening", "mongo", _SUCCESSION)
            else:
                await phases.change(ground.control, epochs, "rolling_back", "postgres", _SUCCESSION)
        finally:
            if not ground.control.is_closed():
                await phases.let_go(ground.control, [one.tenant])

    def _tell(self, what: str, why: str) -> None:
        """Log what is in the way when it changes."""
        if self._told.get(what, "") != why:
            if why:
                _log.warning(f"{what} is in the way", reason=why)
            else:
                _log.info(f"{what} goes along again")
            self._told[what] = why
