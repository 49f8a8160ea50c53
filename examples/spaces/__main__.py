"""The reference application on the command line: fill its MongoDB, and write to it as if live."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import click

from examples.spaces.generate import Generator
from examples.spaces.writer import Counters, Writer

URI = click.option(
    "--uri",
    envvar="CROSSFADE_MONGO_URI",
    default="mongodb://127.0.0.1:27017",
    show_default=True,
    help="MongoDB, a replica set.",
)
DATABASE = click.option("--database", default="spaces", show_default=True, help="Name of the database.")
SEED = click.option("--seed", default=0, show_default=True, help="Equal seeds make equal data.")


@asynccontextmanager
async def _client(uri: str) -> AsyncIterator[Any]:
    # Motor makes its thread pool when it is imported; its default, a few threads, caps what waits at once.
    os.environ.setdefault("MOTOR_MAX_WORKERS", "48")
    from motor.motor_asyncio import AsyncIOMotorClient

    client: Any = AsyncIOMotorClient(uri)
    try:
        yield client
    finally:
        client.close()


@click.group(
    epilog="""Examples:

    python -m examples.spaces load --tenants 50 --documents 200000

    python -m examples.spaces write --rate 500 --seconds 60
    """
)
def main() -> None:
    """Spaces, the reference application of Crossfade."""


@main.command()
@URI
@DATABASE
@SEED
@click.option("--tenants", default=20, show_default=True, type=click.IntRange(1), help="How many tenants.")
@click.option(
    "--documents",
    default=50_000,
    show_default=True,
    type=click.IntRange(1),
    help="Number of documents in all, the tenants' own included.",
)
def load(uri: str, database: str, seed: int, tenants: int, documents: int) -> None:
    """Fill an empty database.

    Example: python -m examples.spaces load --tenants 50 --documents 200000
    """

    async def run() -> int:
        async with _client(uri) as client:
            with click.progressbar(length=documents, label="loading") as bar:
                return await Generator(seed).load(
                    client[database], tenants, documents, on_progress=lambda done: bar.update(done - bar.pos)
                )

    click.echo(f"{asyncio.run(run())} documents in {database}")


@main.command()
@URI
@DATABASE
@SEED
@click.option(
    "--rate", default=100.0, show_default=True, type=click.FloatRange(0, min_open=True), help="Changes/s."
)
@click.option("--seconds", type=click.FloatRange(0), help="How long; without it, until Ctrl-C.")
def write(uri: str, database: str, seed: int, rate: float, seconds: float | None) -> None:
    """Write to a loaded database as a live application does, and say at the end what was done.

    Example: python -m examples.spaces write --rate 500 --seconds 60
    """

    async def run() -> Counters:
        async with _client(uri) as client:
            writer, stop = Writer(client, database, rate, seed), asyncio.Event()
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, stop.set)
            if seconds is not None:
                loop.call_later(seconds, stop.set)
            await writer.run(stop)
            return writer.counters

    done = asyncio.run(run())
    for kind, count in sorted(done.by_kind.items()):
        click.echo(f"{kind:>14} {count}")
    click.echo(
        f"{done.changes} documents changed; {done.retries} retries, {done.conflicts} conflicts, "
        f"{done.refused} refused, {done.unknown} with unknown outcome"
    )


if __name__ == "__main__":
    main()
