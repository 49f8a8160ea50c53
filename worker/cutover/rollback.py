"""The way back of a tenant, or of a group as one: from PostgreSQL to MongoDB.

    look                        for what Kafka lost, and at all that the way back wrote, while writes go on
    postgres -> rolling_back    in PostgreSQL, which waits for its writers; here the pause begins
    drain, barrier              the outbox is empty, and MongoDB has all of it, nothing was lost
    barrier                     through the change stream: its clusterTime is the floor
    look                        at what was written since; no write of MongoDB's own may wait to be undone
    rolling_back -> opening     in PostgreSQL: decided
    left -> home, unfence       in MongoDB: here the pause ends
    opening -> mongo            in PostgreSQL

Whatever fails before the decision lets the tenants write in PostgreSQL again, with MongoDB away too. Nothing
turns the decision back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID, uuid4

from worker import failpoints
from worker.cutover import canary
from worker.cutover.checks import LONG
from worker.cutover.following import TRY_WITHIN, end, follow, quietly
from worker.cutover.ground import Ground
from worker.cutover.move import Options, Tell
from worker.cutover.reasons import FAULTS, reason
from worker.cutover.returned import Returned
from worker.cutover.steps import Result, Steps
from worker.cutover.succession import let_in
from worker.errors import CrossfadeError, Transient, UsageError
from worker.mongo import barrier as barriers_in_mongo
from worker.mongo import in_the_way, reverse
from worker.mongo.client import FAULTS as MONGO_FAULTS
from worker.mongo.client import OURS
from worker.mongo.fence_documents import State, Unclear
from worker.mongo.fence_lock import InTheWay
from worker.postgres import barriers, outbox, phases
from worker.postgres.move_standing import ABORTED, REHEARSED
from worker.retry import Backoff

_MOST, _MOST_IN_PAUSE = 500_000, 5_000
_LOOKS, _LITTLE = 5, 500
"""Looks while writes go on, at most, and the documents of one that is the last."""
_CLOSE_WITHIN = 0.4
_THERE_WITHIN = 1.0
_LOST = "that were sent did not come to MongoDB: Kafka has lost them"


class _Aborts(Exception):
    """Why a rollback cannot go on."""


class Rollback:
    """Brings tenants back once. Not to be used again."""

    def __init__(self, ground: Ground, tenants: Sequence[UUID], options: Options, tell: Tell) -> None:
        self._ground, self._tenants, self._options, self._tell = ground, sorted(tenants), options, tell
        self._epochs: Mapping[UUID, int] = {}
        self._barrier = uuid4()
        self._decided = False
        self._copies: frozenset[barriers.Copy] = frozenset()
        self._returned = Returned(ground, self._tenants)
        self._steps = Steps()

    async def run(self) -> Result:
        """Bring them back; return when they can write again, or the decision to let them stands.

        `UsageError` when it cannot begin, and nothing was changed.
        """
        ground = self._ground
        if not await phases.try_hold(ground.control, self._tenants):
            raise UsageError("another command moves it just now", remedy="wait until that has ended")
        try:
            epochs = await self._may()
            await self._look_before()
            await self._options.hooks.run("before", "rolling_back", self._tenants)
            await self._require_way_there()
            await self._may_open()
            await self._close(epochs)
        except BaseException:
            await quietly(phases.let_go(ground.control, self._tenants))
            raise
        try:
            floor, why = await self._drain()
            if why is None:
                return await self._end(await self._open(floor))
        except _Aborts as error:
            why = str(error)
        except BaseException:  # cancelled, or a fault of ours
            if self._decided:  # `control` does the rest
                await quietly(phases.let_go(ground.control, self._tenants))
            else:
                await asyncio.shield(self._back("it was interrupted"))
            raise
        return await self._back(why)

    async def _may(self) -> dict[UUID, int]:
        """Return the epochs of tenants that may come back."""
        control = self._ground.control
        known = await phases.read(control, self._tenants)
        for tenant in self._tenants:
            standing = known.get(tenant)
            if standing is None or standing.phase != "postgres":
                told = f"is in phase {standing.phase}" if standing else "is not known"
                raise UsageError(f"tenant {tenant} {told}", remedy="see `crossfade tenants`")
        await self._require_way_back()
        self._copies = await self._ground.copies()
        return {tenant: known[tenant].epoch for tenant in self._tenants}

    async def _require_way_back(self) -> None:
        for tenant in self._tenants:
            if broken := await outbox.faults(self._ground.control, tenant):
                told = "; ".join(f"{one.namespace} {one.subject}: {one.reason}" for one in broken[:3])
                raise UsageError(
                    f"the way back of tenant {tenant} is broken: {told}",
                    remedy="mend it in PostgreSQL: docs/way_back.md, Broken",
                )

    async def _require_way_there(self) -> None:
        """See that publish and apply bring what MongoDB has: the pause would wait for it in vain."""
        within = max(self._options.deadline, _THERE_WITHIN)
        if not await canary.comes(self._ground, within):
            raise Transient(
                f"what MongoDB has does not come to PostgreSQL within {within:g} s",
                remedy="see that `crossfade publish` and `apply` run; then try again",
            )

    async def _may_open(self) -> None:
        """See that no transaction stands open in MongoDB: once it is decided, opening would wait for it."""
        found = await in_the_way.open_transactions(self._ground.client, LONG)
        others = [one for one in found if not one.client.startswith(OURS)]  # our own end by themselves
        if others:
            told = ", ".join(map(str, others[:3]))
            raise Transient(f"MongoDB could not let it in: {told}", remedy="end it, then try again")
        if building := await self._building():
            raise Transient(f"MongoDB could not let it in: {building}", remedy="try again when it is done")

    async def _building(self) -> str:
        """Tell of which mapped collections an index is being built: meanwhile nobody is let in there."""
        found = await in_the_way.index_builds(self._ground.client, self._ground.maps)
        return ", ".join(f"an index of {one.namespace} is being built" for one in found)

    async def _close(self, epochs: Mapping[UUID, int]) -> None:
        """``postgres`` becomes ``rolling_back``, when PostgreSQL has no writer of the tenants any more."""
        await self._ground.answer_for(self._options.lease)
        self._steps.begin()
        try:
            changed = await phases.change(
                self._ground.control,
                epochs,
                "postgres",
                "rolling_back",
                self._options.reason,
                closes=True,
                within=_CLOSE_WITHIN,
            )
        except phases.Locked as error:
            raise Transient(f"its writers in PostgreSQL do not end: {error}", remedy="try again") from None
        if changed is None:
            raise UsageError("another command moved it in this moment", remedy="see `crossfade tenants`")
        self._epochs = changed
        self._steps.ended("close")
        failpoints.reach(failpoints.ROLLBACK_CLOSED)

    async def _drain(self) -> tuple[int, str | None]:
        """Do all that comes before the decision; return the floor, or why it cannot be made."""
        try:
            async with self._ground.bounded(self._options.deadline):
                return await self._drained(), None
        except _Aborts as error:
            return 0, str(error)
        except TimeoutError:
            told = f"not drained within {self._options.deadline:g} s ({self._steps})"
            back = "barrier" in self._steps.seconds  # the rest comes by the way there
            roles = "do `crossfade publish` and `apply`" if back else "does `crossfade reverse`"
            return 0, f"{told}: {roles} run?"
        except FAULTS as error:
            return 0, reason(error)

    async def _drained(self) -> int:
        ground = self._ground
        await self._taken()
        self._steps.ended("drain")
        await canary.goes_back(ground)
        await self._require_way_back()  # what MongoDB refused is not lost
        if lost := await self._returned.find_lost():
            raise _Aborts(f"{lost:,} documents {_LOST}, and are sent again: try again")
        self._steps.ended("barrier")
        # What the way back wrote came before this: nothing below it may change rows afterwards (A4).
        # And what a rogue write did is either parked when it has come through, or newer, and is done at home.
        floor = await barriers_in_mongo.write(ground.client, ground.settings.publisher, self._barrier)
        arriving = asyncio.create_task(canary.comes_through(ground, self._barrier))
        try:
            if wrong := (await self._returned.look(_MOST_IN_PAUSE)).unfit:
                told = ", ".join(wrong[:3])
                raise _Aborts(f"{len(wrong)} documents do not fit ({told})")
            await arriving
        finally:  # whoever goes back needs the connection by which it asks
            arriving.cancel()
            await asyncio.gather(arriving, return_exceptions=True)
        self._steps.ended("verify")
        # What was dropped, or lies where no event was read, is found by a copy alone, and restored behind it.
        if await ground.copies() != self._copies:
            raise _Aborts("a collection was copied again meanwhile")
        if count := await barriers.parked_by_rollback(ground.control, self._tenants):
            raise _Aborts(f"{count} writes in MongoDB are to be undone first, which happens now: try again")
        if building := await self._building():
            raise _Aborts(f"MongoDB could not let it in: {building}")
        if self._options.rehearse:
            raise _Aborts(REHEARSED)
        failpoints.reach(failpoints.ROLLBACK_VERIFIED)
        return floor

    async def _taken(self, upto: int = outbox.ALL) -> None:
        """Wait until the outbox has no row of the tenants up to one, held or not (R3)."""
        for tenant in self._tenants:
            while not await outbox.drained(self._ground.control, tenant, upto):  # noqa: ASYNC110
                await asyncio.sleep(canary.ASK_EVERY)

    async def _look_before(self) -> None:
        """Look while writes go on, so that the pause has little left; again, until there is little."""
        lost = 0
        for _ in range(_LOOKS):
            through = await self._caught_up()
            await self._require_way_back()  # what MongoDB refuses is not lost
            if lost := await self._returned.find_lost(through):
                self._tell(f"{lost:,} documents that were sent did not come to MongoDB: they are sent again")
                await self._returned.send_again()
                continue
            looked = await self._returned.look(_MOST)
            self._returned.above = through
            if looked.at < _LITTLE:
                break
        if lost:
            raise Transient(f"{lost:,} documents {_LOST}", remedy="they are sent again: try again")

    async def _caught_up(self) -> int:
        """Return a version up to which MongoDB has all that the way back will ever write for the tenants.

        Versions are drawn when rows have been taken (R2), and come by many partitions. Who has drawn a lower
        one than MongoDB knows holds rows that the outbox has now; or they are gone, and its records sent.
        """
        ground = self._ground
        within = canary.within(ground)
        try:
            async with asyncio.timeout(within):
                through = await reverse.greatest(ground.client)
                await self._taken(await outbox.newest(ground.control))
                await canary.goes_back(ground)
        except TimeoutError:
            raise Transient(
                f"what it has written does not come to MongoDB within {within:g} s",
                remedy="see that `crossfade reverse` runs, and read its log; then try again",
            ) from None
        return through

    async def _open(self, floor: int) -> Result:
        """``rolling_back`` becomes ``opening``, which decides; then MongoDB takes the tenants' writes."""
        ground = self._ground
        told = {"floor": str(floor), "expired": len(self._returned.gone)} | self._returned.fits.told()
        decided = await self._decide(floor, told)
        if decided is None:
            return self._result("postgres", "another controller took it back")
        self._decided = True
        failpoints.reach(failpoints.ROLLBACK_DECIDED)
        async with ground.heard():
            await open_mongodb(ground, decided, floor, self._tell)
        self._steps.ended("open")
        pause, opened = self._steps.pause or 0.0, self._steps.told()
        settled = await follow(
            ground, decided, "opening", "mongo", self._options.reason, lambda: opened, within=30.0
        )
        result = self._result("mongo", "", settled)
        result.pause = pause
        return result

    async def _decide(self, floor: int, told: Mapping[str, Any]) -> dict[UUID, int] | None:
        """Return the epochs of the decision; None when it was not taken. Waits while that is unclear.

        `_Aborts` when it is certain that it was not, for somebody holds what it needs beyond the deadline.
        """
        ground, unclear = self._ground, False
        for delay in Backoff(first=0.02, longest=0.5).delays():
            try:
                async with ground.bounded(TRY_WITHIN):
                    await ground.again()
                    changed = await phases.change(
                        ground.control,
                        self._epochs,
                        "rolling_back",
                        "opening",
                        self._options.reason,
                        lambda: told,
                        floor=floor,
                    )
                    if changed is None:
                        known = await phases.read(ground.control, self._tenants)
                        if all(self._is_decided(known[one]) for one in self._tenants):
                            changed = {one: epoch + 1 for one, epoch in self._epochs.items()}
                self._steps.ended("decide")
                return changed
            except phases.Locked as error:
                if not unclear and (self._steps.pause or 0.0) > self._options.deadline:
                    raise _Aborts(f"its phase could not be changed: {error}") from None
            except FAULTS:
                unclear = True
            await asyncio.sleep(delay)
        raise AssertionError

    def _is_decided(self, now: phases.Standing) -> bool:
        """Whether a tenant's decision was taken, and perhaps brought to its end by `control` since."""
        after = {"opening": 1, "mongo": 2}.get(now.phase)
        return after is not None and now.epoch == self._epochs[now.tenant] + after

    async def _back(self, why: str) -> Result:
        """Let the tenants write in PostgreSQL again."""
        self._steps.ended("give up")
        settled = await follow(
            self._ground,
            self._epochs,
            "rolling_back",
            "postgres",
            f"{ABORTED}{why}",
            lambda: self._steps.told("open"),
            within=30.0,
        )
        if settled:
            await quietly(self._returned.send_again())  # if it fails, the next try's does it
        return await self._end(self._result("postgres", why, settled))

    async def _end(self, result: Result) -> Result:
        await quietly(barriers.forget(self._ground.control, [self._barrier], [], []))
        after = 2 if result.phase == "mongo" else 1
        ended = {one: epoch + after for one, epoch in self._epochs.items()}
        return await end(self._ground, self._options.hooks, result, ended)

    def _result(self, phase: str, why: str, settled: bool = True) -> Result:
        steps = self._steps
        return Result(
            self._tenants, phase, steps.pause, steps.seconds, why, len(self._returned.fits), settled
        )


async def open_mongodb(ground: Ground, epochs: Mapping[UUID, int], floor: int, tell: Tell) -> None:
    """Let tenants write in MongoDB again, for which their phases say ``opening``, of these epochs.

    Waits for MongoDB as long as it is away.
    """
    left, told = dict(epochs), False
    for delay in Backoff(first=0.02, longest=0.5).delays():
        try:
            if not await ground.fences.come_back(left, dict.fromkeys(left, floor), ground.holder):
                found = await ground.fences.read()
                left = {
                    one: epoch
                    for one, epoch in left.items()
                    if one in found and found[one].state is State.LEFT and found[one].epoch < epoch
                }
            else:
                left = {}
            if not left:
                await let_in(ground, aborting=False)
                return
        except (Unclear, *MONGO_FAULTS, InTheWay, CrossfadeError) as error:
            if not told:
                tell(f"opening waits for MongoDB: {type(error).__name__} {error}")
                told = True
        await asyncio.sleep(delay)
