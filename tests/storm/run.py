"""The storm: an application writes through the client while its tenants move, and what became of all that."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import orjson
from pymongo import AsyncMongoClient

from examples.spaces.meanwhile import writing
from examples.spaces.moved_writer import Accepted, Away, Wrong, application, away_of, two_writers
from tests.support.moving import moving, tenants_of
from tests.support.world import World, once
from worker.embedded import Services
from worker.embedded.state import free_port

Tell = Callable[[str], None]
_AT_ONCE, _BATCH = 2, 10
_MOVES = """
SELECT tenant_id, from_phase::text, to_phase::text, extract(epoch FROM at)::float8, evidence::text
FROM crossfade.transition ORDER BY transition_id
"""


@dataclass(slots=True)
class Storm:
    """What became of a storm. Pauses in milliseconds, as the controllers measured them."""

    moves: int = 0
    """Wanted, there and back."""
    accepted: int = 0
    unclear: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    wrong: list[Wrong] = field(default_factory=list)
    both: list[Accepted] = field(default_factory=list)
    cutovers: list[float] = field(default_factory=list)
    rollbacks: list[float] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    steps: dict[str, list[float]] = field(default_factory=dict)
    calm: list[float] = field(default_factory=list)
    """Milliseconds that writes of tenants took that never moved, while none did."""
    beside: list[float] = field(default_factory=list)
    """And during them."""
    batches: list[float] = field(default_factory=list)
    """Seconds that each command took, which moved ten tenants."""

    @property
    def held(self) -> bool:
        """Whether all that was promised held."""
        lost = self.errors.get("NotThere", 0)
        all_moved = len(self.cutovers) == len(self.rollbacks) == self.moves > 0
        return self.accepted > 0 and all_moved and not (self.wrong or self.both or lost)


def percentile(values: Sequence[float], share: float) -> float:
    """Return a percentile; 0 of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


async def storm(
    services: Services,
    directory: Path,
    *,
    tenants: int,
    rate: float,
    moves: int,
    seconds: float,
    deadline: float = 1.0,
    tell: Tell = lambda line: None,
) -> Storm:
    """Let ``moves`` cutovers and as many rollbacks happen while ``rate`` writes a second go on.

    Before each ten of them it writes for ``seconds`` in which nothing moves, to compare with: machines do
    not stay as fast as they are. A fifth of the tenants never moves. ``deadline``: of each move, seconds.
    """
    result = Storm(moves)
    fast = {"CROSSFADE_RECONCILE_FULL_EVERY": "3"}
    async with moving(services, directory, tenants=tenants, documents=tenants * 20, **fast) as w:
        await w.start("control", "control", CROSSFADE_CONTROL_PORT=str(free_port(set())))
        everyone = await tenants_of(w)
        movers, staying = everyone[tenants // 5 or 1 :], set(everyone[: tenants // 5 or 1])
        dsn = services.dsn("application_role", w.name)
        async with (
            # Not motor, which has ten threads on two cores: writes that wait for a fence fill them.
            AsyncMongoClient(w.env["CROSSFADE_MONGO_URI"], uuidRepresentation="standard") as client,
            application(dsn, client[w.name], everyone, rate, 7) as writer,
        ):
            calm: list[tuple[float, float]] = []
            async with writing(writer):
                await _moves(w, movers, moves, seconds, deadline, calm, result, tell)
            written = writer.written
            for one in written.accepted:
                if one.tenant in staying:
                    still = any(since <= one.sent and one.answered <= until for since, until in calm)
                    (result.calm if still else result.beside).append((one.answered - one.sent) * 1000)
            tell(f"{len(written.accepted):,} writes acknowledged; comparing")
            await w.settled()
            result.wrong = await writer.compare(await _sides(w))
        result.accepted, result.unclear = len(written.accepted), written.unclear
        result.errors = written.errors
        result.both = two_writers(written.accepted, await _away(w, result))
    return result


async def _moves(
    w: World,
    movers: list[UUID],
    moves: int,
    seconds: float,
    deadline: float,
    calm: list[tuple[float, float]],
    result: Storm,
    tell: Tell,
) -> None:
    """Move tenants there and back, in batches of tenants, until there were so many moves."""
    done, place = 0, 0
    while done < moves:
        since = time.time()
        await asyncio.sleep(seconds)
        calm.append((since, time.time()))
        batch = [movers[(place + n) % len(movers)] for n in range(min(_BATCH, moves - done, len(movers)))]
        place += len(batch)
        for command in ("cutover", "rollback"):
            began = time.monotonic()
            await _move(w, command, batch, deadline, result)
            result.batches.append(time.monotonic() - began)
        done += len(batch)
        there, back = result.batches[-2:]
        tell(f"{done} of {moves} there and back ({there:.1f} and {back:.1f} s)")


async def _move(w: World, command: str, batch: list[UUID], deadline: float, result: Storm) -> None:
    given = (*map(str, batch), "--at-once", str(_AT_ONCE), "--window", "120", "--json")
    given += ("--deadline", str(deadline))
    code, told = await once(w, command, *given, within=_BATCH * 130 / _AT_ONCE)
    start = told.find("[\n")
    assert start >= 0, told
    failed = [one["reason"] for one in orjson.loads(told[start : told.rindex("]") + 1]) if one["reason"]]
    assert (code == 0) is not bool(failed), told
    result.aborted += [f"{command}: {reason}" for reason in failed]
    result.aborted += [line for line in told[:start].splitlines() if "trying again" in line]


async def _sides(w: World) -> dict[UUID, str]:
    connection = await w.connect()
    try:
        rows = await connection.fetch("SELECT tenant_id, phase::text FROM crossfade.tenant")
        return {UUID(int=row[0].int): "postgres" if row[1] == "postgres" else "mongo" for row in rows}
    finally:
        await connection.close()


async def _away(w: World, result: Storm) -> list[Away]:
    """Return when tenants were PostgreSQL's, by the transitions; and note what the pauses were made of."""
    connection = await w.connect()
    try:
        rows = await connection.fetch(_MOVES)
    finally:
        await connection.close()
    for _, before, after, _, evidence in rows:
        told = orjson.loads(evidence)
        if (before, after) == ("draining", "postgres"):
            result.cutovers.append(told.get("pause_ms", 0.0))
        elif (before, after) == ("opening", "mongo"):
            result.rollbacks.append(told.get("pause_ms", 0.0))
        for name, milliseconds in told.get("steps_ms", {}).items():
            result.steps.setdefault(f"{after} {name}", []).append(milliseconds)
    return away_of((UUID(int=row[0].int), *row[1:4]) for row in rows)
