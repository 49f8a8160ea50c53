"""Tenants that move there and back while faults strike. A lane's steps come from the seed alone."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from random import Random
from typing import NamedTuple
from uuid import UUID

from tests.faults.run import Failed, Run
from tests.support.world import World
from worker import failpoints
from worker.failpoints import EXIT_CODE
from worker.postgres.faults import FAULTS

_THERE = (
    failpoints.CUTOVER_DRAINING,
    failpoints.CUTOVER_FENCE_DECIDED,
    failpoints.CUTOVER_FENCED,
    failpoints.CUTOVER_VERIFIED,
    failpoints.CUTOVER_DECIDED,
)
_BACK = (failpoints.ROLLBACK_CLOSED, failpoints.ROLLBACK_VERIFIED, failpoints.ROLLBACK_DECIDED)
# How often each is chosen.
_KINDS = {
    "undisturbed": 6,
    "dies": 5,  # at a failpoint, as by kill -9
    "stands": 2,  # still at a failpoint, for longer than it has
    "fails": 1,
    "dies aborting": 1,
    "rehearses": 1,
    "hurries": 1,  # its deadline is too short
    "is killed": 2,
    "is stopped": 2,
    "is two": 2,
}
_ENDS_WITHIN = 150.0  # seconds; a command's own limits are far below
_ROGUES = """
UPDATE crossfade.dead_letter SET state = 'discarded'
WHERE state = 'dead' AND kind = 'rogue' AND tenant_id = ANY($1::uuid[])
"""
_HOME = "SELECT tenant_id, phase::text, epoch FROM crossfade.tenant WHERE tenant_id = ANY($1::uuid[])"


class Standing(NamedTuple):
    """A tenant's phase, as PostgreSQL has it."""

    phase: str
    epoch: int


class Step(NamedTuple):
    """One move. ``there``, ``back``: the failpoints of a cutover and of a rollback; seconds."""

    kind: str
    there: str
    back: str
    seconds: float
    window: int
    deadline: float
    pause: float


_LAST = Step("undisturbed", _THERE[0], _BACK[0], 0.0, 60, 4.0, 0.0)


def steps(seed: str) -> Iterator[Step]:
    """Yield a lane's steps, without end."""
    rng = Random(seed)
    while True:
        kind = rng.choices(list(_KINDS), list(_KINDS.values()))[0]
        yield Step(
            kind,
            rng.choice(_THERE),
            rng.choice(_BACK),
            rng.uniform(0.5, 4),
            rng.choice([0, 0, 4]),
            rng.uniform(0.05, 0.2) if kind == "hurries" else rng.choice([1.0, 2.0, 4.0]),
            rng.uniform(0, 0.5),
        )


async def standing(w: World, tenants: Sequence[UUID]) -> dict[UUID, Standing]:
    """Return tenants' phases; nothing while PostgreSQL is away."""
    with suppress(*FAULTS):
        async with asyncio.timeout(5):
            connection = await w.connect()
            try:
                rows = await connection.fetch(_HOME, tenants)
            finally:
                connection.terminate()
        return {UUID(int=row[0].int): Standing(row[1], row[2]) for row in rows}
    return {}


class Lane:
    """One tenant, or two as a group, that are moved by one command after the other."""

    def __init__(self, run: Run, name: str, tenants: Sequence[UUID], began: float) -> None:
        self._run, self.name, self.tenants = run, name, tenants
        self._steps, self._count, self._began = steps(f"{run.report.seed} {name}"), 0, began
        self.deadline = 0.0
        """Seconds for which its present move may keep it from writing."""
        self.told: list[str] = []
        """What was done, and how it ended."""

    async def go(self, stop: asyncio.Event) -> None:
        """Move until told to stop; return when the last command has ended. `Failed` when one does not."""
        while not stop.is_set():
            home = await self._home()
            if home is None:  # PostgreSQL is away, or `control` is yet to end what a dead command left
                await asyncio.sleep(0.1)
                continue
            step = next(self._steps)
            if home == "mongo":
                await self._discard()
            await self._step(step, home)
            await asyncio.sleep(step.pause)

    async def move_at_last(self) -> None:
        """Move once more, when nothing is in the way."""
        while (home := await self._home()) is None:  # noqa: ASYNC110 - PostgreSQL tells
            await asyncio.sleep(0.1)
        if home == "mongo":
            await self._discard()
        await self._step(_LAST, home)

    async def _home(self) -> str | None:
        phases = {one.phase for one in (await standing(self._run.w, self.tenants)).values()}
        return phases.pop() if len(phases) == 1 and phases <= {"mongo", "postgres"} else None

    async def _discard(self) -> None:
        """Discard the tenants' rogue writes, as a person does who has looked at them."""
        with suppress(*FAULTS):
            async with asyncio.timeout(5):
                await self._run.w.execute(_ROGUES, self.tenants)

    async def _step(self, step: Step, home: str) -> None:
        command = "cutover" if home == "mongo" else "rollback"
        arguments = [*map(str, self.tenants), "--window", str(step.window), "--reason", step.kind]
        arguments += ["--deadline", f"{step.deadline:.2f}"]
        if home == "mongo":
            # Kafka's groups take longer to be whole again than a command has patience; and when tables were
            # analysed PostgreSQL forgets with a crash.
            arguments += ["--force", "way-back", "--force", "analysed"]
        if len(self.tenants) > 1:
            arguments.append("--group")
        kind, place, told = step.kind, step.there if home == "mongo" else step.back, ""
        match kind:
            case "dies":
                told = f"{place}=exit"
            case "fails":
                told = f"{place}=raise"
            case "stands":
                told = f"{place}=hold:1:{step.seconds:.1f}"
            case "dies aborting":
                told = f"{failpoints.CUTOVER_ABORTING}=exit"
                arguments.append("--rehearse")
            case "rehearses":
                arguments.append("--rehearse")
        began, self.deadline = time.monotonic(), step.deadline
        names = [self._name() for _ in range(2 if kind == "is two" else 1)]
        for name in names:
            await self._run.w.start(command, name, *arguments, CROSSFADE_FAILPOINTS=told)
            self._run.movers.add(name)
        try:
            if kind in ("is killed", "is stopped"):
                await self._disturb(names[0], kind, step.seconds)
            codes = await asyncio.gather(*(self._ended(name) for name in names))
        finally:
            self._run.movers.difference_update(names)
        for name, code in zip(names, codes, strict=True):
            died = kind in ("dies", "dies aborting") and code == EXIT_CODE
            killed = (kind == "is killed" or name in self._run.struck) and code == -signal.SIGKILL
            if code not in (0, 1, 2) and not died and not killed:
                raise Failed(f"{name}: `{command}` ended with {code}")
            self._run.may_end(name, code)
        self.told.append(
            f"{began - self._began:.1f}-{time.monotonic() - self._began:.1f} s {names[-1]}: {command}, "
            f"{kind}{f' {told}' if told else ''}, window {step.window}: {', '.join(map(str, codes))}"
        )

    def _name(self) -> str:
        self._count += 1
        return f"move {self.name}{self._count}"

    async def _disturb(self, name: str, kind: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if kind == "is killed":
            self._run.signal(name)
            return
        self._run.signal(name, signal.SIGSTOP)
        await asyncio.sleep(seconds)
        self._run.signal(name, signal.SIGCONT)

    async def _ended(self, name: str) -> int:
        try:
            return await asyncio.wait_for(self._run.w.processes[name].wait(), _ENDS_WITHIN)
        except TimeoutError:
            log = (self._run.w.directory / f"{name}.log").read_text()[-1000:]
            raise Failed(f"{name} does not end: {log}") from None
