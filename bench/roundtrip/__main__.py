"""`python -m bench.roundtrip`: progress on stderr, the outcome as text or JSON on stdout."""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import click
import orjson

from bench.roundtrip.run import Judged, database, roundtrip
from worker.embedded import Services
from worker.errors import CrossfadeError

_EVERY = 5.0  # seconds between two lines of progress
_EXAMPLES = """
Examples:

\b
    python -m bench.roundtrip                              # 100,000 documents
    python -m bench.roundtrip --documents 1000000 --json
    python -m bench.roundtrip --seed 7 --only 123456       # one document again
    make roundtrip N=1000000
"""


@asynccontextmanager
async def _server(dsn: str | None) -> AsyncIterator[str]:
    """Give the superuser's connection string, of a server of our own where none is named."""
    if dsn is not None:
        yield dsn
        return
    directory = Path(tempfile.mkdtemp(prefix="crossfade-roundtrip-"))
    try:
        services = await Services.up(directory / "services", report=_say)
        await services.stop("kafka")
        await services.stop("mongod")
        yield services.postgres_admin_dsn
    finally:
        await Services.down(directory / "services")
        shutil.rmtree(directory, ignore_errors=True)


async def _run(dsn: str | None, numbers: range, seed: int) -> Judged:
    async with _server(dsn) as admin, database(admin) as connection:
        return await roundtrip(connection, numbers, seed, _progress(len(numbers)))


def _progress(total: int) -> Callable[[Judged], None]:
    began = last = time.monotonic()

    def report(judged: Judged) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < _EVERY and judged.documents < total:
            return
        last = now
        rate = judged.documents / (now - began)
        left = (total - judged.documents) / rate
        _say(
            f"{judged.documents:,} of {total:,} documents, {rate:,.0f}/s, {left:.0f} s left; "
            f"{judged.refused.total():,} refused, {len(judged.differences)} different"
        )

    return report


def _outcome(judged: Judged, seed: int, seconds: float) -> dict[str, Any]:
    return {
        "seed": seed,
        "seconds": round(seconds, 1),
        "documents": judged.documents,
        "rows": judged.rows,
        "equal": judged.equal,
        "refused": dict(judged.refused.most_common()),
        "differences": [
            {"number": one.number, "collection": one.collection, "paths": list(one.paths)}
            for one in judged.differences
        ],
    }


def _text(outcome: dict[str, Any]) -> str:
    lines = [
        f"{outcome['documents']:,} documents, {outcome['rows']:,} rows in {outcome['seconds']:,} s: "
        f"{outcome['equal']:,} equal, {sum(outcome['refused'].values()):,} refused, "
        f"{len(outcome['differences'])} different"
    ]
    lines += [f"  refused {times:,} x {reason}" for reason, times in outcome["refused"].items()]
    for one in outcome["differences"]:
        lines.append(f"  different: {one['collection']} {one['number']} at {', '.join(one['paths'])}")
        again = f"python -m bench.roundtrip --seed {outcome['seed']} --only {one['number']}"
        lines.append(f"    again: {again}")
    return "\n".join(lines)


@click.command(epilog=_EXAMPLES)
@click.option("--documents", default=100_000, show_default=True, help="how many")
@click.option("--seed", default=1, show_default=True, help="of the generated documents")
@click.option("--only", type=int, metavar="NUMBER", help="this document alone")
@click.option("--dsn", help="a superuser's, of a server to use  [default: an embedded one]")
@click.option("--json", "as_json", is_flag=True, help="the outcome as JSON")
def main(documents: int, seed: int, only: int | None, dsn: str | None, as_json: bool) -> None:
    """Generate documents of every BSON type, write them to PostgreSQL as rows, and rebuild them.

    Each must come back equal, but for the order of fields and the width of integers, or be refused by name.
    Exit 1 when one does not; it is told how to make that one again. The database is made and dropped here.
    """
    numbers = range(documents) if only is None else range(only, only + 1)
    began = time.monotonic()
    try:
        judged = asyncio.run(_run(dsn, numbers, seed))
    except CrossfadeError as error:
        _say(f"roundtrip: {error}")
        sys.exit(2)
    outcome = _outcome(judged, seed, time.monotonic() - began)
    click.echo(orjson.dumps(outcome, option=orjson.OPT_INDENT_2).decode() if as_json else _text(outcome))
    sys.exit(1 if judged.differences else 0)


def _say(line: str) -> None:
    click.echo(line, err=True)


if __name__ == "__main__":
    main()
