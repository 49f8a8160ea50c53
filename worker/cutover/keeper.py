"""Keeps moves going when their controller has died, and validators as the fence documents say.

What a dead controller left is aborted, or brought to its end where it was decided; so a tenant ends in
``mongo`` or ``postgres`` by itself. What MongoDB alone decides, and what PostgreSQL alone decides, are looked
at side by side: a database that is away, or silent, never holds up the other one's part (D4).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from uuid import UUID

import structlog

from worker import metrics
from worker.cutover.ground import Ground, opened
from worker.cutover.succession import end_in_mongodb
from worker.errors import ConfigurationError, CrossfadeError, MappingError
from worker.mapping import hashes
from worker.mongo.client import FAULTS as MONGO_FAULTS
from worker.mongo.client import describe as describe_mongo
from worker.mongo.fence_documents import Fence, State, Unclear
from worker.mongo.fence_lock import InTheWay
from worker.postgres import mapping_versions, phases
from worker.postgres.faults import FAULTS, describe, unusable
from worker.retry import pause
from worker.settings import Settings

_log = structlog.get_logger()
LOOK_EVERY = 0.5
_HEAL_WITHIN = 0.2
_WORK_WITHIN = 2.0
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
        self._hashes = hashes(ground.mapping)
        self._told: dict[str, str] = {}
        self._wrong: set[str] = set()
        self._locked: list[str] = []
        self._sent: set[str] = set()
        """Collections that we tried to mend, and do not know of yet whether we have."""

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
            found = (await ground.fences.read()).values()
            overdue = [one for one in found if one.overdue and one.state in (State.DRAINING, State.ABORTING)]
            for one in overdue:
                _log.warning("a move is aborted", tenant=str(one.tenant), reason=_SUCCESSION)
            if overdue:
                epochs = {one.tenant: one.epoch for one in overdue}
                await end_in_mongodb(ground, epochs, (), _WORK_WITHIN)
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
        self._tell_mended(self._sent - wrong)
        self._sent &= wrong
        if wrong & self._wrong:
            if await validators.busy():
                return
            try:
                self._tell_mended(await validators.heal(_HEAL_WITHIN))
            except InTheWay as error:  # the next look tells whether it was mended for all that
                self._sent |= set(error.sent)
                self._tell("a collection of MongoDB", str(error))
                self._wrong = wrong
                return
        self._tell("a collection of MongoDB", "")
        self._wrong = wrong

    def _tell_mended(self, collections: Collection[str]) -> None:
        if collections:
            metrics.VALIDATORS_MENDED.inc()
            told = sorted(collections)
            _log.error("validators were not what the fences say; they are again", collections=told)

    async def _by_postgresql(self) -> None:
        """Let phases follow what MongoDB has decided; end what was begun in PostgreSQL alone."""
        ground, self._locked = self._ground, []
        try:
            async with asyncio.timeout(_CONNECT_WITHIN):
                await ground.again()
            await self._same_mapping()
            if await phases.moving(ground.control):
                # Before the phases: a tenant whose rollback is decided in between must not seem to be lost.
                fences = await self._fences()
                moving = await phases.moving(ground.control)
                # Nobody whose home is certain waits for those whose home is not.
                await self._decided([one for one in moving if one.phase != "opening"], fences or {})
                if fences is not None:
                    await self._undecided(moving, fences)
        except (CrossfadeError, *FAULTS) as error:
            if isinstance(error, FAULTS) and unusable(error):
                ground.end()
            self._tell("PostgreSQL", describe(error) if isinstance(error, FAULTS) else str(error))
            return
        self._tell("PostgreSQL", "")
        self._tell("a tenant's row", "; ".join(self._locked[:3]))

    async def _same_mapping(self) -> None:
        """Tell where our mapping is not that of the rows: then we mend some collections, but not others."""
        try:
            await mapping_versions.require(self._ground.control, self._hashes)
        except MappingError as error:
            self._tell("the mapping", str(error))
        else:
            self._tell("the mapping", "")

    async def _fences(self) -> Mapping[UUID, Fence] | None:
        """Return the fence documents; None while MongoDB does not tell."""
        try:
            async with asyncio.timeout(_ANSWER_WITHIN):
                return await self._ground.fences.read()
        except (TimeoutError, *MONGO_FAULTS):
            return None

    @asynccontextmanager
    async def _alone(self, tenants: Iterable[phases.Standing]) -> AsyncIterator[list[phases.Standing]]:
        """Hold those tenants' moves that are to be had, and tell which: the others' controllers live.

        Those that are taken from the list are the block's to give back.
        """
        control, held = self._ground.control, list[phases.Standing]()
        try:
            for one in tenants:
                if await phases.try_hold(control, [one.tenant]):
                    held.append(one)
            known = await phases.read(control, [one.tenant for one in held]) if held else {}
            for one in list(held):
                now = known.get(one.tenant)
                if now is None or (now.phase, now.epoch) != (one.phase, one.epoch):
                    await self._let_go(one, held)  # it has gone on since we looked
            yield held
        finally:
            if held and not control.is_closed():
                await phases.let_go(control, [one.tenant for one in held])

    async def _let_go(self, one: phases.Standing, held: list[phases.Standing]) -> None:
        await phases.let_go(self._ground.control, [one.tenant])
        held.remove(one)

    async def _follows(
        self, one: phases.Standing, after: str, why: str = _SUCCESSION, floor: int | None = None
    ) -> None:
        """Change a tenant's phase; what is in its way is not in the way of others."""
        control, epochs = self._ground.control, {one.tenant: one.epoch}
        try:
            await phases.change(control, epochs, one.phase, after, why, floor=floor)
        except phases.Locked as error:
            self._locked.append(f"{one.tenant} {error}")

    async def _decided(self, tenants: Iterable[phases.Standing], fences: Mapping[UUID, Fence]) -> None:
        """Let PostgreSQL follow what is decided; with MongoDB away, so are rollbacks that were only begun."""
        for one in tenants:
            fence = fences.get(one.tenant)
            if one.phase == "rolling_back" and fence is not None and _is_home_since(one, fence):
                await self._decide_again(one, fence)
            elif after := _after(one, fence):
                async with self._alone([one]) as alone:
                    if alone:
                        await self._follows(one, after)

    async def _decide_again(self, one: phases.Standing, fence: Fence) -> None:
        """Let PostgreSQL decide again what it has lost: the tenant writes in MongoDB, and must not here."""
        told = "MongoDB has it, though PostgreSQL says rolling_back"
        # A phase that is younger than the homecoming is another rollback's: more than a decision was lost.
        if fence.floor is None or fence.epoch != one.epoch + 1 or one.seconds < fence.seconds:
            self._tell(f"tenant {one.tenant}", told)
            return
        async with self._alone([one]) as alone:
            if alone:
                _log.error("PostgreSQL has lost a decision; it is taken again", tenant=str(one.tenant))
                await self._follows(one, "opening", f"decided before, and lost: {told}", fence.floor)

    async def _undecided(self, moving: Iterable[phases.Standing], known: Mapping[UUID, Fence]) -> None:
        """Bring moves to their end in MongoDB: whom it is to open for, and those that it knows nothing of."""
        wanted = [one for one in moving if one.phase == "opening" or _only_begun(one, known.get(one.tenant))]
        async with self._alone(wanted) as alone:
            if not alone:
                return
            opening = [one for one in alone if one.phase == "opening"]
            begun = {one.tenant: one.epoch for one in alone if one.phase == "draining"}
            all_in = await end_in_mongodb(self._ground, begun, opening, _WORK_WITHIN)
            if (fences := await self._fences()) is None:
                return
            for one in list(alone):
                # At home by its document, it is refused until the validators have followed.
                if (after := _after(one, fences.get(one.tenant))) and (all_in or one.phase != "opening"):
                    await self._follows(one, after)
                await self._let_go(one, alone)

    def _tell(self, what: str, why: str) -> None:
        """Log what is in the way when it changes."""
        if self._told.get(what, "") != why:
            if why:
                _log.warning(f"{what} is in the way", reason=why)
            else:
                _log.info(f"{what} goes along again")
            self._told[what] = why


def _after(one: phases.Standing, fence: Fence | None) -> str | None:
    """Return the phase that is certain to be next."""
    match one.phase:
        case "rolling_back":  # before the decision it stays in PostgreSQL
            return "postgres"
        case "draining" if fence is not None and fence.epoch == one.epoch:
            return {State.LEFT: "postgres", State.HOME: "mongo"}.get(fence.state)
        case "opening" if fence is None or fence.state is not State.LEFT:
            return "mongo"
        case _:
            return None


def _is_home_since(one: phases.Standing, fence: Fence) -> bool:
    return fence.state is State.HOME and fence.epoch > one.epoch


def _only_begun(one: phases.Standing, fence: Fence | None) -> bool:
    """Whether a tenant drains of which MongoDB knows nothing."""
    if one.phase != "draining":
        return False
    return fence is None or (fence.epoch < one.epoch and fence.state is State.HOME)
