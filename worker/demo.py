"""The demo: from nothing to a compared copy, on embedded services, while the application writes."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import click
import orjson

from examples.spaces.comparison import differences
from examples.spaces.generate import Generator
from worker.embedded import Services
from worker.errors import CrossfadeError
from worker.mongo.client import connect as connect_mongo
from worker.postgres.connect import connect
from worker.postgres.migration_log import settled_since

TENANTS, WRITES_AFTER_COPY = 20, 20.0
MAPPING = Path(__file__).parents[1] / "schema/spaces/mapping.yaml"


async def run(documents: int) -> dict[str, Any]:
    """Run the demo and return its summary; leaves nothing running and no file behind."""
    directory = Path(tempfile.mkdtemp(prefix="crossfade-demo-"))
    try:
        services = await Services.up(directory / "services", report=_say)
        return await _migrate(services, directory, documents)
    finally:
        await Services.down(directory / "services")
        shutil.rmtree(directory, ignore_errors=True)


async def _migrate(services: Services, directory: Path, documents: int) -> dict[str, Any]:
    async with AsyncExitStack() as stack:
        client = await connect_mongo(services.mongo_uri, "demo")
        stack.callback(client.close)
        database: Any = client["spaces"]
        _say(f"loading {documents} documents of {TENANTS} tenants")
        await Generator(1).load(database, tenants=TENANTS, documents=documents)
        env = {**os.environ, **services.env(), "CROSSFADE_MAPPING": str(MAPPING)}
        await _command(env, directory, "schema", "apply", "--target", "spaces")
        postgres = await connect(services.postgres_admin_dsn, "demo")
        stack.push_async_callback(postgres.close)
        started = time.monotonic()
        for role in ("publish", "apply"):
            process = await _start(env, directory, role)
            stack.push_async_callback(_stop, process)
        stop = asyncio.Event()
        writing = asyncio.create_task(_write(database, stop))
        rate = await _watch_copy(postgres, documents, started)
        _say(f"writing for {WRITES_AFTER_COPY:.0f} s more")
        lags = await _watch_lag(postgres, WRITES_AFTER_COPY)
        stop.set()
        changes = await writing
        await _until_settled(postgres)
        _say("comparing every document with its rows")
        different = await differences(database, postgres)
        lags.sort()
        return {
            "documents": sum([await database[name].count_documents({}) for name in _names()]),
            "copied_per_second": round(rate),
            "changes": changes,
            "heartbeat_lag_p50_ms": round(lags[len(lags) // 2]),
            "heartbeat_lag_p99_ms": round(lags[int(len(lags) * 0.99)]),
            "differences": different[:20],
            "equal": not different,
        }


def _names() -> tuple[str, ...]:
    return ("tenants", "users", "passwords", "pages", "forms", "leads")


def _say(line: str) -> None:
    click.echo(line, err=True)


async def _start(env: dict[str, str], directory: Path, *arguments: str) -> asyncio.subprocess.Process:
    with (directory / f"{arguments[0]}.log").open("ab") as log:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "worker", *arguments, env=env, stdout=log, stderr=log
        )


async def _command(env: dict[str, str], directory: Path, *arguments: str) -> None:
    process = await _start(env, directory, *arguments)
    if await process.wait():
        told = (directory / f"{arguments[0]}.log").read_text()[-2000:]
        raise CrossfadeError(f"crossfade {' '.join(arguments)} failed: {told}")


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(15):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


async def _watch_copy(postgres: Any, documents: int, started: float) -> float:
    """Show progress until as many copied documents are applied as there were; return documents a second."""
    with click.progressbar(length=documents, label="copying", file=sys.stderr) as bar:
        done = 0
        while not await postgres.fetchval(
            "SELECT coalesce(bool_and(copy_state = 'copied'), false) AND sum(copied) <= (SELECT "
            "coalesce(sum(records), 0) FROM crossfade.partition_progress WHERE topic LIKE '%.copy') "
            "FROM crossfade.collection"
        ):
            if time.monotonic() - started > 240:
                raise CrossfadeError("the copy did not end within 240 s", remedy="see the processes' logs")
            applied = await postgres.fetchval(
                "SELECT coalesce(sum(records), 0)::bigint FROM crossfade.partition_progress "
                "WHERE topic LIKE '%.copy'"
            )
            bar.update(applied - done)
            done = applied
            await asyncio.sleep(0.2)
        bar.update(max(0, documents - done))
    return documents / (time.monotonic() - started)


async def _watch_lag(postgres: Any, seconds: float) -> list[float]:
    """Sample, for each newest heartbeat, the milliseconds from its writing to its application."""
    lags: list[float] = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        lags += [
            row[0]
            for row in await postgres.fetch(
                "SELECT extract(epoch FROM changed_at - heartbeat_at)::float8 * 1000 "
                "FROM crossfade.partition_progress WHERE heartbeat_at IS NOT NULL"
            )
        ]
        await asyncio.sleep(1)
    return lags


async def _until_settled(postgres: Any) -> None:
    now = await postgres.fetchval("SELECT clock_timestamp()")
    async with asyncio.timeout(60):
        while not await settled_since(postgres, now):  # noqa: ASYNC110 - another process settles it
            await asyncio.sleep(0.2)


async def _write(database: Any, stop: asyncio.Event) -> int:
    """Insert, change and delete pages and change leads, some 300 times a second at most."""
    tenants = [tenant["_id"] async for tenant in database["tenants"].find()]
    generator, changes = Generator(99), 0
    while not stop.is_set():
        page = generator.page(changes) | {"tenantId": tenants[changes % len(tenants)]}
        await database["pages"].insert_one(page)
        await database["pages"].update_one({"_id": page["_id"]}, {"$set": {"version": changes}})
        if changes % 3 == 0:
            await database["pages"].delete_one({"_id": page["_id"]})
        if lead := await database["leads"].find_one(skip=changes % 50):
            await database["leads"].update_one({"_id": lead["_id"]}, {"$inc": {"score": 0.5}})
        changes += 1
        await asyncio.sleep(0.01)
    return changes


@click.command()
@click.option("--documents", default=50_000, show_default=True, help="documents to load")
@click.option("--json", "as_json", is_flag=True, help="print the summary as JSON")
def demo(documents: int, as_json: bool) -> None:
    """Copy and follow a generated application on embedded services, then compare every document.

    Exit 1 when anything differs.
    """
    summary = asyncio.run(run(documents))
    if as_json:
        click.echo(orjson.dumps(summary, option=orjson.OPT_INDENT_2).decode())
    else:
        for name, value in summary.items():
            click.echo(f"{name.replace('_', ' '):>22}  {value}")
    sys.exit(0 if summary["equal"] else 1)
