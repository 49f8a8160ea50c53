"""One seeded run: real processes under live writes, faults from a list, then every document compared.

All choices come from the seed; when each thing happens comes from the machine too, so a failing seed may have
to be run more than once.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from tests.faults.faults import Fault, choose, kill_in_the_copy
from tests.faults.run import Failed, Report, Run
from tests.support.proxy import Proxy, proxy
from tests.support.wall_clock import WallClocks
from tests.support.world import World, world
from worker.embedded import Services

WRITE_SECONDS = 20.0
SETTLE_SECONDS = 300.0  # on a machine that does ten other things


@asynccontextmanager
async def proxied(w: World) -> AsyncIterator[dict[str, Proxy]]:
    """Put proxies before MongoDB and PostgreSQL. Kafka's clients follow what the broker advertises."""
    async with AsyncExitStack() as stack:
        proxies: dict[str, Proxy] = {}
        for name, setting in (("mongod", "CROSSFADE_MONGO_URI"), ("postgres", "CROSSFADE_POSTGRES_DSN")):
            match = re.search(r"127\.0\.0\.1:(\d+)", w.env[setting])
            assert match is not None
            one = proxies[name] = await stack.enter_async_context(proxy(int(match[1])))
            for each in [key for key in w.env if key.startswith(setting.removesuffix("DSN"))]:
                w.env[each] = w.env[each].replace(match[0], f"127.0.0.1:{one.port}")
        w.env["CROSSFADE_MONGO_URI"] = re.sub(
            r"/\?.*", "/?directConnection=true", w.env["CROSSFADE_MONGO_URI"]
        )
        yield proxies


async def run_seed(
    services: Services,
    directory: Path,
    seed: int,
    *,
    code: Path | None = None,
    seconds: float = WRITE_SECONDS,
    clocks: WallClocks,
) -> Report:
    """Run one seed; `Failed` or an assertion says what went wrong. ``code``: the program's folder."""
    async with world(services, directory) as w, proxied(w) as proxies:
        w.code = code or w.code
        w.env["PYTHONFAULTHANDLER"] = "1"
        run = Run(w, services, seed, proxies, clocks)
        rng = run.rng
        w.env["CROSSFADE_COPY_CHUNK"] = str(rng.choice([20, 100, 500]))
        slow_copy = rng.random() < 0.5  # else it is over before faults meet it
        w.env["CROSSFADE_COPY_RATE"] = "50" if slow_copy else "0"
        w.env["CROSSFADE_REPLICATION_ROLE"] = rng.choice(["replica", "replica", "origin"])
        await w.load(rng.choice([200, 600, 2000]), tenants=rng.randint(2, 8), seed=seed)
        try:
            await _under_faults(run, seconds, [kill_in_the_copy] if slow_copy and rng.random() < 0.6 else [])
            await _at_rest(run)
        except (Exception, pytest.fail.Exception) as error:
            error.add_note(f"faults: {'; '.join(run.report.faults)}")
            await run.tell_stacks()
            raise
        finally:
            await run.end()
        return run.report


async def _under_faults(run: Run, seconds: float, first: Sequence[Fault]) -> None:
    rng, loop = run.rng, asyncio.get_running_loop()
    async with run.w.writes(rng.choice([40, 80, 150]), seed=run.report.seed) as writer:
        for name in ("publish", "apply", *(["apply second"] if rng.random() < 0.4 else [])):
            run.keep(name)
        if rng.random() < 0.75:  # else faults meet the start
            leads = "SELECT count(*) FROM crossfade.checkpoint"
            await run.together(run.w.until_value(leads, 1, SETTLE_SECONDS))
        run.report.faults += [told for fault in first for told in await run.together(fault(run))]
        until, least = loop.time() + seconds, rng.randint(3, 6)
        while loop.time() < until or len(run.report.faults) < least:
            await asyncio.sleep(rng.uniform(0.2, 2.5))
            run.report.faults += await run.together(*(fault(run) for fault in choose(run)))
    run.report.changes = writer.counters.changes


async def _at_rest(run: Run) -> None:
    await run.together(run.w.settled(SETTLE_SECONDS))
    await run.w.assert_nothing_lost()
    applied = "SELECT sum(applied) FROM crossfade.partition_progress"
    before = await run.w.value(applied)
    await run.w.send_again(seed=run.report.seed)  # whatever arrives twice, and late, changes nothing
    await run.together(run.w.settled(SETTLE_SECONDS))
    await run.w.assert_nothing_lost()
    if (again := await run.w.value(applied) - before) > 0:
        raise Failed(f"{again} events were applied that had been applied before")
    no_traceback(run)


def no_traceback(run: Run) -> None:
    """`Failed` where a process told one."""
    for log in run.w.directory.glob("*.log"):
        _, found, told = log.read_text().partition("Traceback")
        if found:
            error = Failed(f"{log.stem} told a traceback")
            error.add_note(f"{log.stem}: {told[:2500]}")
            raise error
