"""The demo: from nothing to a compared copy, on embedded services, while the application writes."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import orjson

from examples.spaces import oracle
from examples.spaces.generate import Generator
from examples.spaces.ledger import Ledger
from examples.spaces.meanwhile import writing
from examples.spaces.writer import Counters, Writer
from topics import Collection, TopicNames
from worker.errors import CrossfadeError
from worker.mongo.client import connect as connect_mongo
from worker.postgres.connect import connect
from worker.postgres.migration_log import settled_since
from worker.postgres.standing import Standing, read_standing
from worker.supervise import end

if TYPE_CHECKING:
    from worker.embedded import Services

TENANTS, WRITES_PER_SECOND, WRITES_AFTER_COPY = 20, 200.0, 20.0
COPY_WITHIN, SETTLE_WITHIN, STOP_WITHIN = 240.0, 60.0, 15.0
MAPPING = Path(__file__).parents[1] / "schema/spaces/mapping.yaml"


async def run(documents: int) -> dict[str, Any]:
    """Run the demo and return its summary; leaves nothing running and no file behind."""
    from worker.embedded import Services  # only here: the other commands work without its packages

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
        with _bar(documents, f"loading {TENANTS} tenants") as bar:
            await Generator(1).load(
                database, TENANTS, documents, on_progress=lambda done: bar.update(done - bar.pos)
            )
        env = {**os.environ, **services.env(), "CROSSFADE_MAPPING": str(MAPPING)}
        await _command(env, directory, "schema", "apply", "--target", "spaces")
        postgres = await connect(services.postgres_admin_dsn, "demo")
        stack.push_async_callback(postgres.close)
        started = time.monotonic()
        for role in ("publish", "apply"):
            process = await _start(env, directory, role)
            stack.push_async_callback(end, process, STOP_WITHIN)
        writer = Writer(client, "spaces", WRITES_PER_SECOND, 2, ledger=Ledger())
        try:
            async with writing(writer):
                rate = await _watch_copy(postgres, documents, started)
                lags = await _watch_lag(postgres, WRITES_AFTER_COPY)
            await _until_settled(postgres)
        except TimeoutError as error:
            raise CrossfadeError(f"{error}{_ends_of_logs(directory)}") from None
        assert writer.ledger is not None
        wrong = await writer.ledger.compare(database)
        with _bar(documents, "comparing") as bar:
            compared = await oracle.compare(
                database, postgres, on_progress=lambda done: bar.update(done - bar.pos)
            )
        told = summary(rate, writer.counters, lags, compared, len(wrong))
        try:
            await postgres.execute("ANALYZE")
            told |= await _moves(services, database, env, directory, stack)
        except TimeoutError as error:
            raise CrossfadeError(f"{error}{_ends_of_logs(directory)}") from None
        return told


async def _moves(
    services: Services, database: Any, env: dict[str, str], directory: Path, stack: AsyncExitStack
) -> dict[str, Any]:
    """Move one tenant there, back, and there for good."""
    # Only here: the other commands work without their packages.
    from worker import demo_moves
    from worker.embedded.state import free_port

    more = {"CROSSFADE_RECONCILE_FULL_EVERY": "5", "CROSSFADE_CONTROL_PORT": str(free_port(set()))}
    for role in ("reverse", "reconcile", "control"):
        process = await _start(env | more, directory, role)
        stack.push_async_callback(end, process, STOP_WITHIN)
    await _command(env, directory, "cutover", "prepare")
    with _bar(len(demo_moves.MOVES), "moving a tenant") as bar:
        return await demo_moves.moves(
            services.dsn("application_role"),
            database,
            lambda *arguments: _output(env, directory, *arguments),
            lambda done: bar.update(done - bar.pos),
        )


def summary(
    rate: float, written: Counters, lags: list[float], compared: oracle.Comparison, wrong: int
) -> dict[str, Any]:
    """Return the demo's figures and verdict. ``wrong``: acknowledged writes that MongoDB does not show."""
    lags.sort()
    return {
        "documents": compared.documents,
        "copied_per_second": round(rate),
        "changes": written.changes,
        "lag_p50_ms": _percentile(lags, 0.5),
        "lag_p99_ms": _percentile(lags, 0.99),
        "compared_per_second": round(compared.documents / compared.seconds),
        "acknowledged_writes_lost": wrong,
        "documents_differing": compared.differing,
        "first_differences": [
            f"{one.collection} {one.id} {one.kind} {' '.join(one.paths)}".strip()
            for one in compared.differences
        ],
        "equal": compared.equal and not wrong,
    }


def _percentile(ordered: list[float], share: float) -> int | None:
    return round(ordered[int(len(ordered) * share)]) if ordered else None


def _ends_of_logs(directory: Path) -> str:
    return "".join(f"\n{path.name}:\n{path.read_text()[-1500:]}" for path in directory.glob("*.log"))


def _bar(length: int, label: str) -> Any:
    return click.progressbar(length=length, label=f"{label:<18}", file=sys.stderr)


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


async def _output(env: dict[str, str], directory: Path, *arguments: str) -> str:
    """Run a command to its end; return what it printed, without what it told on the way."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "worker",
        *arguments,
        env=env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, told = await process.communicate()
    if process.returncode:
        last = f"{output.decode()}{told.decode()}"[-2000:]
        raise CrossfadeError(f"crossfade {' '.join(arguments)} failed: {last}{_ends_of_logs(directory)}")
    return output.decode()


async def _watch_copy(postgres: Any, documents: int, started: float) -> float:
    """Show progress until every copied document is applied; return documents a second from the start."""
    with _bar(documents, "copying") as bar:
        while True:
            standing = await read_standing(postgres)
            published, applied = _copied(standing)
            whole = bool(standing.copies) and all(copy.state == "copied" for copy in standing.copies)
            if whole and applied >= published:
                bar.update(documents - bar.pos)
                return applied / (time.monotonic() - started)
            if time.monotonic() - started > COPY_WITHIN:
                raise TimeoutError(f"the copy did not end within {COPY_WITHIN:.0f} s")
            bar.update(min(applied, documents) - bar.pos)
            await asyncio.sleep(0.1)


def _copied(standing: Standing) -> tuple[int, int]:
    """Return how many documents the copy has published, and how many of these records are applied."""
    names = TopicNames("crossfade")
    topics = {names.copy(Collection.parse(copy.namespace)) for copy in standing.copies}
    applied = sum(place.records for place in standing.partitions if place.topic in topics)
    return sum(copy.copied for copy in standing.copies), applied


async def _watch_lag(postgres: Any, seconds: float) -> list[float]:
    """Return, for each partition's newest heartbeat each second, milliseconds from writing to applying."""
    lags: list[float] = []
    with _bar(round(seconds), "writing on") as bar:
        for _ in range(round(seconds)):
            lags += [
                row[0]
                for row in await postgres.fetch(
                    "SELECT extract(epoch FROM heartbeat_applied_at - heartbeat_at)::float8 * 1000 "
                    "FROM crossfade.partition_progress WHERE heartbeat_at > now() - interval '1 minute'"
                )
            ]
            await asyncio.sleep(1)
            bar.update(1)
    return lags


async def _until_settled(postgres: Any) -> None:
    now = await postgres.fetchval("SELECT clock_timestamp()")
    try:
        async with asyncio.timeout(SETTLE_WITHIN):
            while not await settled_since(postgres, now):  # noqa: ASYNC110 - another process settles it
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise TimeoutError(f"not everything was applied within {SETTLE_WITHIN:.0f} s") from None


@click.command()
@click.option("--documents", default=50_000, show_default=True, help="documents to load")
@click.option("--json", "as_json", is_flag=True, help="print the summary as JSON")
def demo(documents: int, as_json: bool) -> None:
    """Copy and follow a generated application on embedded services, and move one of its tenants.

    Compares every document with its rows. Then a tenant's move is rehearsed, and it moves to PostgreSQL,
    back, and there for good, while it writes through the client. Exit 1 when anything differs or was lost.
    """
    told = asyncio.run(run(documents))
    if as_json:
        click.echo(orjson.dumps(told, option=orjson.OPT_INDENT_2).decode())
    else:
        for name, value in told.items():
            click.echo(f"{name.replace('_', ' '):>22}  {value}")
    sys.exit(0 if told["equal"] and not told["moving_writes_lost"] else 1)
