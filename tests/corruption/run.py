"""A settled database, corruptions planted in it, and whether the program finds these and nothing else."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import orjson
from bson import json_util
from bson.binary import UuidRepresentation

from bench.usage import Reading
from examples.spaces.rebuild import document_id
from tests.corruption.kinds import KINDS
from tests.corruption.planter import Planted, Planter
from tests.support.world import World, once, world
from worker.embedded import Services

TENANTS = 20
_TOUCHED = 120  # documents of each collection that are changed, of which some are corrupted
_DELETED = ("leads", "pages")
_FULL = "SELECT count(*) FROM crossfade.generation WHERE kind = 'full' AND finished_at IS NOT NULL"
_NEWEST = "SELECT coalesce(max(generation), 0) FROM crossfade.generation WHERE kind = 'full'"
_WITHIN = 10.0  # seconds in which corruptions of touched documents are found


@dataclass
class Verdict:
    """What became of the planted corruptions. ``wrong``: planted ones told otherwise; ``false``: others."""

    planted: Sequence[Planted]
    found: int = 0
    exact: set[Planted] = field(default_factory=set)
    missed: list[Planted] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    false: list[str] = field(default_factory=list)
    seconds: float = 0.0
    """From the end of the planting to the last one that was found."""

    @property
    def perfect(self) -> bool:
        """Whether each was found, told as it is, and nothing else."""
        return len(self.exact) == len(self.planted) and not self.false


@dataclass
class Pass:
    """What one `reconcile --once` took."""

    documents: int
    seconds: float
    wall: float
    cpu: float
    peak_mb: float

    @property
    def per_second(self) -> float:
        """Return documents compared in a second of the walk."""
        return self.documents / self.seconds


class Corrupted:
    """A settled world, and all that was planted in it so far."""

    def __init__(self, w: World, seed: int) -> None:
        self.world, self._seed = w, seed
        self._used: set[UUID] = set()
        self._planted: list[Planted] = []

    async def plant(
        self, number: int, among: Sequence[UUID] | None = None, gone: dict[str, list[UUID]] | None = None
    ) -> list[Planted]:
        """Plant corruptions of every kind by turns."""
        rng = Random(f"{self._seed}/{len(self._planted)}")
        connection = await self.world.connect()
        try:
            await connection.execute("SET session_replication_role = replica")
            args = connection, self.world.mongo, self.world.mapping, rng, self._used, among, gone
            planter = Planter(*args)
            kinds = [kind for _ in range(0, number, len(KINDS)) for kind in planter.shuffled(KINDS)]
            planted = [await kind(planter) for kind in kinds[:number]]
        finally:
            await connection.close()
        self._planted += planted
        return planted

    async def once(self) -> Pass:
        """Compare everything by `crossfade reconcile --once`."""
        w, began = self.world, time.monotonic()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "worker", "reconcile", "--once", "--json", "--within", "60"),
            env=w.env,
            cwd=w.code,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        reading = asyncio.create_task(_read(process.pid))
        out, told = await process.communicate()
        wall = time.monotonic() - began
        cpu, peak = await reading
        if process.returncode not in (0, 1):
            raise RuntimeError(f"reconcile ended with {process.returncode}: {told.decode()[-2000:]}")
        result = orjson.loads(out)
        number = result["generation"]
        seconds = await w.value("SELECT seconds FROM crossfade.generation WHERE generation = $1", number)
        return Pass(result["documents"], seconds, wall, cpu, peak)

    async def verdict(self, planted: Sequence[Planted], *, settled: bool = True) -> Verdict:
        """Compare what was planted with `crossfade mismatches list`. ``settled``: each must be real."""
        code, told = await once(self.world, "mismatches", "list", "--json", "--limit", "100000")
        listed = orjson.loads(told)
        assert code == (1 if listed else 0), (code, told)
        found = {(one["collection"].rpartition(".")[2], _id(one["id"])): one for one in listed}
        verdict = Verdict(planted)
        for one in planted:
            row = found.get((one.collection, one.id))
            if row is None:
                verdict.missed.append(one)
                continue
            verdict.found += 1
            if faults := list(_faults(one, row, settled)):
                verdict.wrong.append(f"{one.kind}, {one.collection} {one.id}: {'; '.join(faults)}")
            else:
                verdict.exact.add(one)
        known = {(one.collection, one.id) for one in self._planted}
        verdict.false = [f"{key[0]} {key[1]}: {found[key]['kind']}" for key in found.keys() - known]
        verdict.false += ["a document is listed twice"] * (len(listed) - len(found))
        return verdict

    async def touched(self, number: int) -> Verdict:
        """Corrupt documents that were changed just before, while a reconciler runs.

        It stands still, as on a busy machine, until the rows are corrupted: else it might look before that.
        """
        w, rng = self.world, Random(f"{self._seed}/touched")
        finished = await w.value(_FULL)
        await w.start("reconcile", "reconcile", CROSSFADE_RECONCILE_FULL_EVERY="86400")
        log = w.directory / "reconcile.log"
        await w.until("it goes on where `--once` ended", lambda: '"reconciling"' in log.read_text())
        process = w.processes["reconcile"]
        process.send_signal(signal.SIGSTOP)
        try:
            among: list[UUID] = []
            gone: dict[str, list[UUID]] = {}
            for name in w.mapping.collections:
                ids = await self._some(name, rng)
                if name in _DELETED:
                    gone[name] = [ids.pop() for _ in range(len(ids) // 10)]
                    removed = [document_id(one) for one in gone[name]]
                    await w.mongo[name].delete_many({"_id": {"$in": removed}})
                    self._used |= set(gone[name])
                changed = {"_id": {"$in": [document_id(one) for one in ids]}}
                await w.mongo[name].update_many(changed, {"$set": {"touched": True}})
                among += ids
            await w.settled()
            planted = await self.plant(number, among, gone)
        finally:
            process.send_signal(signal.SIGCONT)
        verdict = await self._found(planted, 6 * _WITHIN)
        assert await w.value(_FULL) == finished, "a full pass helped"
        assert await w.stop("reconcile") == 0
        return verdict

    async def untouched(self, number: int) -> Verdict:
        """Corrupt documents while a reconciler runs; all must be there at the end of the next full pass."""
        w = self.world
        await w.start("reconcile", "reconcile", CROSSFADE_RECONCILE_FULL_EVERY="0")
        before = await w.value(_NEWEST)
        await w.until_value(_NEWEST, before + 1)
        planted = await self.plant(number)
        newest = await w.value(_NEWEST)
        ended = f"SELECT min(generation) FROM crossfade.generation WHERE generation > {newest} "
        await w.until_value(ended + "AND kind = 'full' AND finished_at IS NOT NULL", 1, 600)
        at_end = await self.verdict(planted, settled=False)
        verdict = await self._found(planted, 6 * _WITHIN)
        assert await w.stop("reconcile") == 0
        return verdict if at_end.perfect else at_end

    async def _found(self, planted: Sequence[Planted], within: float) -> Verdict:
        """Wait until all are told as real; return what there is then, and when that was."""
        began = time.monotonic()
        connection = await self.world.connect()
        real = "SELECT count(*) FROM crossfade.mismatch WHERE state = 'real' AND row_id = ANY($1::uuid[])"
        ids = [one.row_id for one in planted]
        try:
            while time.monotonic() < began + within:
                if await connection.fetchval(real, ids) == len(ids):
                    break
                await asyncio.sleep(0.05)
        finally:
            await connection.close()
        seconds = time.monotonic() - began
        verdict = await self.verdict(planted)
        verdict.seconds = seconds
        return verdict

    async def _some(self, collection: str, rng: Random) -> list[UUID]:
        table = self.world.mapping.collections[collection]
        connection = await self.world.connect()
        try:
            rows = await connection.fetch(
                f'SELECT "{table.id}" FROM "{table.table}" WHERE "{table.id}" <> ALL($1::uuid[]) ORDER BY 1',
                list(self._used),
            )
        finally:
            await connection.close()
        return [UUID(int=row[0].int) for row in rng.sample(rows, min(_TOUCHED, len(rows)))]


def _id(extended: Any) -> str:
    """Return a listed id, canonical Extended JSON, as what was planted names it."""
    options = json_util.JSONOptions(uuid_representation=UuidRepresentation.STANDARD)
    return str(json_util.loads(orjson.dumps(extended), json_options=options))


def _faults(one: Planted, row: dict[str, Any], settled: bool) -> list[str]:
    """Return what is told otherwise than planted."""
    paths = [field["path"] for field in row["fields"]]
    faults: list[str] = []
    if row["kind"] != one.found_as:
        faults.append(f"told as {row['kind']}, it is {one.found_as}")
    if settled and row["state"] != "real":
        faults.append(f"it is {row['state']} ({row['reason']})")
    if one.told and settled and one.told not in row["reason"]:
        faults.append(f"the reason does not say {one.told}")

    def below(path: str, root: str) -> bool:
        return path == root or path.startswith(f"{root}.")

    lacking = [root for root in one.paths if not any(below(path, root) for path in paths)]
    more = [path for path in paths if not any(below(path, root) for root in one.paths)]
    if lacking or more:
        faults.append(f"fields told: {', '.join(paths)}; planted: {', '.join(sorted(one.paths))}")
    return faults


async def _read(pid: int) -> tuple[float, float]:
    """Return the CPU seconds and the peak memory of a process, when it has ended."""
    cpu, peak = 0.0, 0.0
    while True:
        reading = Reading.of({"": pid})
        if not reading.peak_mb.get(""):
            return cpu, peak
        cpu, peak = reading.cpu[""], reading.peak_mb[""]
        await asyncio.sleep(0.05)


@asynccontextmanager
async def corrupted(
    services: Services,
    directory: Path,
    documents: int,
    seed: int,
    told: Callable[[str], None] = lambda _: None,
) -> AsyncIterator[Corrupted]:
    """Load a database as the reference application would, copy it, and wait until it is settled."""
    async with world(services, directory) as w:
        began = time.monotonic()
        await w.load(documents, tenants=TENANTS, seed=seed)
        await _give_spaces(w)
        told(f"{documents:,} documents loaded in {time.monotonic() - began:.0f} s")
        began = time.monotonic()
        await w.start("publish", "publish")
        await w.start("apply", "apply")
        await w.settled(60 + documents / 500)
        told(f"copied and settled in {time.monotonic() - began:.0f} s")
        yield Corrupted(w, seed)


async def _give_spaces(w: World) -> None:
    """Let some texts end in a space, as people leave them."""
    for name, path, by in (("pages", "title", "version"), ("users", "name", "loginCount")):
        ends = [{"$set": {path: {"$concat": [f"${path}", " "]}}}]
        await w.mongo[name].update_many({by: {"$mod": [7, 3]}}, ends)
