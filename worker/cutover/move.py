"""One move of a tenant, or of a group as one, from MongoDB to PostgreSQL; and what aborts or completes it.

    mongo -> draining      in PostgreSQL; only now apply notes what it changes
    look                   at all that changed since the last clean generation, while writes go on
    home -> draining       in MongoDB: the decision's document; here the pause begins
    fence, barrier         validators refuse the tenants; what they let in before is applied
    look                   at the rest
    draining -> left       in MongoDB: decided
    draining -> postgres   in PostgreSQL: here the pause ends

Whatever fails before the decision aborts, by MongoDB alone (D4). Nothing turns a decision back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from uuid import UUID, uuid4

import structlog

from worker import failpoints
from worker.cutover import canary, hooks
from worker.cutover.following import end, follow, quietly
from worker.cutover.ground import Ground
from worker.cutover.reasons import FAULTS, reason
from worker.cutover.steps import Result, Steps
from worker.cutover.succession import let_in
from worker.cutover.verify import Verification
from worker.errors import CrossfadeError, Fatal, Transient, UsageError
from worker.mongo import barrier as barriers_in_mongo
from worker.mongo import in_the_way
from worker.mongo.client import FAULTS as MONGO_FAULTS
from worker.mongo.fence_documents import Fence, State, Unclear, Value
from worker.mongo.fence_lock import Held, InTheWay
from worker.postgres import barriers, evidence, phases
from worker.postgres.move_standing import ABORTED, REHEARSED
from worker.retry import Backoff

_log = structlog.get_logger()
_MOST = 200_000
"""Documents changed since the last clean generation that a move looks at; above, a generation comes first."""
_MOST_IN_PAUSE = 5_000
_LOOKS, _LOOK_AGAIN = 5, 0.3
_FENCE_SHARE, _FENCE_LEAST, _FENCE_MOST = 0.7, 0.02, 2.0  # of the deadline; seconds
_TURN_WITHIN = 2.0  # seconds for another move's collMods, before the pause
_ASK_WHO_WITHIN = 1.0

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Options:
    """How a move is made. Seconds."""

    deadline: float = 1.0
    """From the first refused write to the decision, at most; then the move aborts."""
    rehearse: bool = False
    reason: str = "cutover"
    hooks: hooks.Hooks = field(default_factory=hooks.Hooks)

    @property
    def fence_within(self) -> float:
        """What the fence may take, which waits for open transactions, and lets others wait behind it."""
        return min(self.deadline * _FENCE_SHARE, _FENCE_MOST)

    @property
    def lease(self) -> float:
        """From the pause's begin on, how long its controller may be silent; then others end the move."""
        return self.deadline + 1.0


class _Aborts(Exception):
    """Why a move cannot go on."""


class Move:
    """Moves tenants once. Not to be used again."""

    def __init__(self, ground: Ground, tenants: Sequence[UUID], options: Options, tell: Tell) -> None:
        self._ground, self._tenants, self._options, self._tell = ground, sorted(tenants), options, tell
        self._verification = Verification(ground.sides, ground.real, ground.logical())
        self._epochs: Mapping[UUID, int] = {}
        self._incarnation: UUID | None = None
        self._copies: frozenset[barriers.Copy] = frozenset()
        self._barrier = uuid4()
        self._steps = Steps()
        self._fenced = self._held_up = False
        self._turn = AsyncExitStack()
        """Open from before the pause until the fence stands, or what it has set is taken back."""
        self._values: Mapping[UUID, list[Value]] = {}
        self._since = 0

    async def run(self) -> Result:
        """Make the move; return when the tenants can write again, or the decision to let them stands.

        `UsageError` when it cannot begin, and nothing was changed.
        """
        await self._begin()
        async with self._turn:
            try:
                why = await self._leave()
                if why is None:
                    why = await self._decide()
            except BaseException:  # cancelled, or a fault of ours
                await asyncio.shield(self._abort("it was interrupted"))
                raise
            if why is not None:
                return await self._abort(why)
        settled = await self._open()
        return await self._end(self._result("postgres", "", settled))

    async def _begin(self) -> None:
        """``mongo`` becomes ``draining``."""
        ground = self._ground
        self._values = await ground.values(self._tenants)
        if not await phases.try_hold(ground.control, self._tenants):
            raise UsageError("another command moves it just now", remedy="wait until that has ended")
        try:
            await self._drain_in_postgres()
        except BaseException:
            await quietly(phases.let_go(ground.control, self._tenants))
            raise
        failpoints.reach(failpoints.CUTOVER_DRAINING)

    async def _drain_in_postgres(self) -> None:
        control = self._ground.control
        known = await phases.read(control, self._tenants)
        for tenant in self._tenants:
            phase = known[tenant].phase if tenant in known else None
            if phase != "mongo":
                told = f"is in phase {phase}" if phase else "is not known: no document of it was ever applied"
                raise UsageError(f"tenant {tenant} {told}", remedy="see `crossfade tenants`")
        clean = await self._ground.clean(self._tenants)
        if clean is None:
            raise UsageError(
                "no clean generation of the reconciler stands for it", remedy="run `crossfade reconcile`"
            )
        self._incarnation, self._since = clean.incarnation, clean.since
        self._copies = await self._ground.copies()
        await self._options.hooks.run("before", "draining", self._tenants)
        told = {"generation": clean.generation, "sums": await evidence.sums(control, self._tenants)}
        epochs = {tenant: known[tenant].epoch for tenant in self._tenants}
        try:
            changed = await phases.change(
                control, epochs, "mongo", "draining", self._options.reason, lambda: told
            )
        except phases.Locked as error:
            raise Transient(f"its phase could not be changed: {error}", remedy="try again") from None
        if changed is None:
            raise UsageError("another command moved it in this moment", remedy="see `crossfade tenants`")
        self._epochs = changed

    async def _leave(self) -> str | None:
        """Do all that comes before the decision; return why it cannot be made."""
        try:
            await self._options.hooks.run("after", "draining", self._tenants)
            await self._look_before()
            await self._options.hooks.run("before", "fence", self._tenants)
            await self._turn.enter_async_context(self._ground.validators.turn(_TURN_WITHIN))
            await self._verification.look(self._ground.reader, await self._draining())
            await self._ground.answer_for(self._options.lease)
            self._steps.begin()
            async with self._ground.bounded(self._options.deadline):
                await self._fence()
                await self._turn.aclose()
                await self._drain()
            if self._options.rehearse:
                return REHEARSED
        except _Aborts as error:
            return str(error)
        except TimeoutError:
            if self._steps.pause is None:
                return "PostgreSQL did not answer"
            self._steps.ended("waited")
            return f"not drained within {self._options.deadline:g} s ({self._steps})"
        except InTheWay as error:
            if self._fenced:
                self._steps.ended("fence")
            self._held_up = isinstance(error, Held)
            return f"MongoDB's fence was held up: {error}"
        except Unclear as error:
            return str(error)
        except FAULTS as error:
            return reason(error)
        return None

    async def _who(self) -> str:
        """Tell whose transactions are open for longer than the fence could wait, where MongoDB says."""
        try:
            async with asyncio.timeout(_ASK_WHO_WITHIN):
                found = await in_the_way.open_transactions(self._ground.client, self._options.fence_within)
        except (TimeoutError, CrossfadeError, *MONGO_FAULTS):
            return ""
        return f"; open meanwhile: {', '.join(map(str, found[:3]))}" if found else ""

    async def _look_before(self) -> None:
        """Look at what changed since the last clean generation, so that the pause has little left."""
        ground, verification = self._ground, self._verification
        touched = await barriers.changed(ground.reader, self._tenants, self._since, _MOST + 1)
        if len(touched) > _MOST:
            raise _Aborts(f"more than {_MOST:,} documents changed since the last full generation")
        self._tell(f"looking at {len(touched):,} documents that changed since the last full generation")
        await verification.look(ground.reader, touched)
        for _ in range(_LOOKS):
            await verification.look(ground.reader, await self._draining())
            if not verification.unfit:
                return
            await asyncio.sleep(_LOOK_AGAIN)
        if len(verification.unfit) > _MOST_IN_PAUSE:
            raise _Aborts(f"{len(verification.unfit):,} documents do not fit")

    async def _draining(self) -> list[barriers.Touched]:
        epochs = [self._epochs[tenant] for tenant in self._tenants]
        found = await barriers.draining(self._ground.reader, self._tenants, epochs, _MOST + 1)
        if len(found) > _MOST:
            raise _Aborts(f"more than {_MOST:,} documents changed while it was draining")
        return found

    async def _fence(self) -> None:
        ground = self._ground
        self._fenced = True
        if not await ground.fences.leave(self._epochs, self._values, ground.holder, self._options.lease):
            raise _Aborts("its fence document in MongoDB says otherwise")
        failpoints.reach(failpoints.CUTOVER_FENCE_DECIDED)
        left = self._options.fence_within - (self._steps.pause or 0.0)
        await ground.validators.fence(self._tenants, max(left, _FENCE_LEAST))
        self._steps.ended("fence")
        failpoints.reach(failpoints.CUTOVER_FENCED)

    async def _drain(self) -> None:
        ground = self._ground
        await barriers_in_mongo.write(ground.client, ground.settings.publisher, self._barrier)
        await self._arrived()
        self._steps.ended("barrier")
        if count := await barriers.letters(ground.reader, self._tenants):
            raise _Aborts(f"{count} of its events are dead letters, or parked")
        await self._verification.look(ground.reader, await self._draining())
        if wrong := self._verification.unfit:
            told = ", ".join(f"{one.namespace} {one.row_id}" for one in list(wrong.values())[:3])
            raise _Aborts(f"{len(wrong)} documents do not fit ({told})")
        self._steps.ended("verify")
        if not await ground.validators.read_back(self._tenants):
            raise _Aborts("its validators were changed")
        self._steps.ended("read back")
        failpoints.reach(failpoints.CUTOVER_VERIFIED)

    async def _arrived(self) -> None:
        told = await canary.comes_through(self._ground, self._barrier)
        if told.incarnations != {self._incarnation}:
            raise _Aborts("the change stream began anew since the last clean generation")
        if await self._ground.copies() != self._copies:  # what was dropped or renamed tells no events
            raise _Aborts("a collection was copied again meanwhile")

    async def _decide(self) -> str | None:
        """``draining`` becomes ``left``; return why not, when that is certain.

        After an unclear answer what counts is what a majority has, and that is waited for.
        """
        fences = self._ground.fences
        for delay in Backoff(first=0.02, longest=0.5).delays():
            try:
                if await fences.decide_left(self._epochs, self._ground.holder):
                    return None
                return "another controller aborted it" if not await self._left() else None
            except (Unclear, *MONGO_FAULTS):
                await asyncio.sleep(delay)
            if (self._steps.pause or 0.0) > self._options.deadline:
                break
        for delay in Backoff(first=0.02, longest=0.5).delays():
            try:
                return None if await self._left() else "MongoDB did not take the decision in time"
            except MONGO_FAULTS:
                await asyncio.sleep(delay)
        raise AssertionError

    async def _left(self) -> bool:
        found = await self._ground.fences.read()
        return all(self._says(found, tenant, State.LEFT) for tenant in self._tenants)

    def _says(self, found: Mapping[UUID, Fence], tenant: UUID, state: State) -> bool:
        one = found.get(tenant)
        return one is not None and one.state is state and one.epoch == self._epochs[tenant]

    async def _open(self) -> bool:
        """``draining`` becomes ``postgres``; False when PostgreSQL stays away, and it follows later."""
        failpoints.reach(failpoints.CUTOVER_DECIDED)
        self._steps.ended("decide")
        fits = self._verification.fits.told()
        settled = await follow(
            self._ground,
            self._epochs,
            "draining",
            "postgres",
            self._options.reason,
            lambda: self._steps.told("open") | fits,
            within=30.0,
        )
        self._steps.ended("open")
        return settled

    async def _abort(self, why: str) -> Result:
        """Let the tenants write in MongoDB again."""
        if self._fenced:
            async with self._ground.heard():
                who = asyncio.create_task(self._who()) if self._held_up else None
                aborted = await abort(self._ground, self._epochs, self._tell)
                await self._turn.aclose()
                why += await who if who else ""
            if not aborted:
                if not await self._left():
                    raise Fatal(
                        "MongoDB says that it has left, by another move than PostgreSQL knows of",
                        remedy="was one of them put back? see docs/cutover.md",
                    )
                return await self._end(self._result("postgres", "", await self._open()))
            self._steps.ended("abort")
        pause, told = self._steps.pause, self._steps.told()
        settled = await follow(
            self._ground, self._epochs, "draining", "mongo", f"{ABORTED}{why}", lambda: told, within=1.0
        )
        result = self._result("mongo", why, settled)
        result.pause = pause
        return await self._end(result)

    async def _end(self, result: Result) -> Result:
        epochs = [self._epochs[tenant] for tenant in self._tenants]
        await quietly(barriers.forget(self._ground.control, [self._barrier], self._tenants, epochs))
        ended = {one: epoch + 1 for one, epoch in self._epochs.items()}
        return await end(self._ground, self._options.hooks, result, ended)

    def _result(self, phase: str, why: str, settled: bool) -> Result:
        steps = self._steps
        return Result(
            self._tenants, phase, steps.pause, steps.seconds, why, len(self._verification.fits), settled
        )


async def abort(ground: Ground, epochs: Mapping[UUID, int], tell: Tell = lambda line: None) -> bool:
    """Abort moves of these epochs by MongoDB alone (D2); return when their validators let the tenants in.

    False: some of them has left, for its holder's decision came first. Waits for MongoDB as long as it is
    away, for nobody can write there before.
    """
    left, told = dict(epochs), False
    for delay in Backoff(first=0.02, longest=0.5).delays():
        try:
            if not await ground.fences.decide_abort(left, ground.holder):
                found = await ground.fences.read()
                left = {one: epoch for one, epoch in left.items() if not _at_home(found.get(one), epoch)}
                if not left:
                    return True
                if any(found[one].state is State.LEFT for one in left if one in found):
                    return False
                if not all(one in found and found[one].state is State.ABORTING for one in left):
                    await asyncio.sleep(delay)  # another change of one of them was under way
                    continue
            await let_in(ground)
            if await ground.fences.come_home(left, ground.holder):
                return True
        except (Unclear, *MONGO_FAULTS, InTheWay, CrossfadeError) as error:
            if not told:
                tell(f"aborting waits for MongoDB: {type(error).__name__} {error}")
                told = True
        await asyncio.sleep(delay)
    raise AssertionError


def _at_home(found: Fence | None, epoch: int) -> bool:
    """Whether a move of an epoch was aborted to its end, or was followed by another."""
    return found is not None and (found.epoch > epoch or (found.epoch == epoch and found.state is State.HOME))
