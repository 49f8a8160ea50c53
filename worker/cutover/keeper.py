"""Keeps moves going when their controller has died, and validators as the fence documents say.

What a dead controller left is aborted, or brought to its end where it was decided; so a tenant ends in
``mongo`` or ``postgres`` by itself. What MongoDB alone decides, and what PostgreSQL alone decides, are looked
at side by side: a database that is away, or silent, never holds up the other one's part (D4).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from uuid import UUID

import structlog

from worker import metrics
from worker.cutover import move, rollback
from worker.cutover.ground import Ground, opened
from worker.errors import ConfigurationError, CrossfadeError, MappingError
from worker.mongo.client import FAULTS as MONGO_FAULTS
from worker.mongo.client import describe as describe_mongo
from worker.mongo.fence_documents import Fence, State, Unclear
from worker.mongo.fence_lock import InTheWay
from worker.postgres import phases
from worker.postgres.faults import FAULTS, describe, unusable
from worker.retry import pause
from worker.settings import Settings

_log = structlog.get_logger()
LOOK_EVERY = 0.5
_HEAL_WITHIN = 0.2
_EACH_WITHIN = 2.0
_ANSWER_WITHIN = 1.0  # seconds for MongoDB, where PostgreSQL's part can do without it
_CONNECT_WITHIN = 3.0
_SUCCESSION = "its controller died"


async def run(settings: Settings, stop: asyncio.Event) -> None:
    """Look until ``stop`` is set, whatever is away. `UsageError` where settings or the mapping are wrong."""
    told = False
    while not stop.is_set():
        try:
            async with opened(settings, "control", alone=True) as ground:
                told = False
                await Keeper(ground).run(stop)
        except (MappingError, ConfigurationError):
            raise
        except CrossfadeError as error:
            if not told:
                _log.warning("moves are not looked after yet", reason=error.message)
            told = True
            await pause(stop, LOOK_EVERY)


async def _repeat(part: Callable[[], Awaitable[None]], stop: asyncio.Event) -> None:
    while not stop.is_set():
        await part()
        await pause(stop, LOOK_EVERY)


class Keeper:
    """Looks, and mends. Several at once do no harm: each step is a compare-and-set."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._told: dict[str, str] = {}
        self._wrong: set[str] = set()

    async def run(self, stop: asyncio.Event) -> None:
        """Look until ``stop``; whatever is away is looked at again the next time."""
        parts = [asyncio.create_task(_repeat(part, stop)) for part in (self._by_mongodb, self._by_postgresql)]
        try:
            await asyncio.gather(*parts)
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)

    async def _by_mongodb(self) -> None:
        """End what overdue fence documents tell of, and heal validators."""
        ground = self._ground
        try:
            for one in (await ground.fences.read()).values():
                if one.overdue and one.state in (State.DRAINING, State.ABORTING):
                    _log.warning("a move is aborted", tenant=str(one.tenant), reason=_SUCCESSION)
                    await self._patiently(move.abort(ground, {one.tenant: one.epoch}))
            await self._heal()
        except (*MONGO_FAULTS, Unclear) as error:
            told = describe_mongo(error) if isinstance(error, MONGO_FAULTS) else type(error).__name__
            self._tell("MongoDB", told)
            return
        self._tell("MongoDB", "")

    async def _heal(self) -> None:
        """Make validators what the fence documents say, where two looks found them otherwise.

        A move that is under way changes the one a moment after the other.
        """
        validators = self._ground.validators
        wrong = set(await validators.wrong())
        if wrong & self._wrong:
            if await validators.busy():
                return
            try:
                if mended := await validators.heal(_HEAL_WITHIN):
                    metrics.VALIDATORS_MENDED.inc()
                    _log.error("validators were not what the fences say; they are again", collections=mended)
            except InTheWay as error:
                self._tell("a collection of MongoDB", str(error))
                self._wrong = wrong
                return
        self._tell("a collection of MongoDB", "")
        self._wrong = wrong

    async def _patiently(self, work: Awaitable[object]) -> None:
        """Do work for a tenant, but not so long that others wait for it: the next look goes on."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_EACH_WITHIN):
                await work

    async def _by_postgresql(self) -> None:
        """Let phases follow what MongoDB has decided; end what was begun in PostgreSQL alone."""
        ground = self._ground
        try:
            async with asyncio.timeout(_CONNECT_WITHIN):
                await ground.again()
            if await phases.moving(ground.control):
                # Before the phases: a tenant whose rollback is decided in between must not seem to be lost.
                fences = await self._fences()
                for one in await phases.moving(ground.control):
                    await self._one(one, fences)
        except (CrossfadeError, *FAULTS) as error:
            if isinstance(error, FAULTS) and unusable(error):
                ground.end()
            self._tell("PostgreSQL", describe(error) if isinstance(error, FAULTS) else str(error))
            return
        self._tell("PostgreSQL", "")

    async def _one(self, one: phases.Standing, fences: Mapping[UUID, Fence] | None) -> None:
        """Look at one tenant; what is in its way is not in the way of others."""
        try:
            if one.phase == "rolling_back":
                await self._back(one, fences.get(one.tenant) if fences else None)
            elif fences is not None and one.phase == "opening":
                await self._opening(one)
            elif fences is not None and one.phase == "draining":
                await self._draining(one, fences.get(one.tenant))
        except phases.Locked as error:
            self._tell(f"the row of tenant {one.tenant}", str(error))
            return
        self._tell(f"the row of tenant {one.tenant}", "")

    async def _fences(self) -> Mapping[UUID, Fence] | None:
        """Return the fence documents; None while MongoDB does not tell."""
        try:
            async with asyncio.timeout(_ANSWER_WITHIN):
                return await self._ground.fences.read()
        except (TimeoutError, *MONGO_FAULTS):
            return None

    @asynccontextmanager
    async def _alone(self, tenant: UUID) -> AsyncIterator[bool]:
        """Hold a tenant's move, and tell whether that was to be had: else its controller lives."""
        control = self._ground.control
        held = await phases.try_hold(control, [tenant])
        try:
            yield held
        finally:
            if held and not control.is_closed():
                await phases.let_go(control, [tenant])

    async def _draining(self, one: phases.Standing, fence: Fence | None) -> None:
        decided = fence is not None and fence.epoch == one.epoch and fence.state in (State.LEFT, State.HOME)
        begun = fence is None or (fence.epoch < one.epoch and fence.state is State.HOME)
        if not (decided or begun):
            return
        async with self._alone(one.tenant) as alone:
            if not alone:
                return
            epochs = {one.tenant: one.epoch}
            if begun:
                await self._patiently(move.abort(self._ground, epochs))
                fence = (await self._fences() or {}).get(one.tenant)
                if fence is None or fence.epoch != one.epoch or fence.state is not State.HOME:
                    return
            after = "postgres" if fence is not None and fence.state is State.LEFT else "mongo"
            await phases.change(self._ground.control, epochs, "draining", after, _SUCCESSION)

    async def _opening(self, one: phases.Standing) -> None:
        """It is decided: MongoDB opens."""
        async with self._alone(one.tenant) as alone:
            if not alone:
                return
            epochs = {one.tenant: one.epoch}
            await self._patiently(rollback.open_mongodb(self._ground, epochs))
            fences = await self._fences()
            if fences is None:
                return
            fence = fences.get(one.tenant)
            if fence is None or fence.state is not State.LEFT:
                await phases.change(self._ground.control, epochs, "opening", "mongo", _SUCCESSION)

    async def _back(self, one: phases.Standing, fence: Fence | None) -> None:
        """Before the decision a tenant without controller stays in PostgreSQL, with MongoDB away too."""
        if fence is not None and fence.state is State.HOME and fence.epoch > one.epoch:
            # PostgreSQL has lost what it had decided: the tenant writes in MongoDB, and must not here.
            self._tell(f"tenant {one.tenant}", "MongoDB has it, though PostgreSQL says rolling_back")
            return
        async with self._alone(one.tenant) as alone:
            if alone:
                epochs = {one.tenant: one.epoch}
                await phases.change(self._ground.control, epochs, "rolling_back", "postgres", _SUCCESSION)

    def _tell(self, what: str, why: str) -> None:
        """Log what is in the way when it changes."""
        if self._told.get(what, "") != why:
            if why:
                _log.warning(f"{what} is in the way", reason=why)
            else:
                _log.info(f"{what} goes along again")
            self._told[what] = why
