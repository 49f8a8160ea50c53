"""`python -m bench`: the figures as JSON on stdout, as a table on stderr."""

from __future__ import annotations

import asyncio
import os
import platform
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import orjson

from bench.report import table
from bench.site import say, site
from bench.stages import STAGES, Sizes
from worker.errors import CrossfadeError

_EXAMPLES = """
Examples:

\b
    python -m bench                                   # all stages, three to five minutes
    python -m bench --copy 20000 --changes 10000      # small ones
    python -m bench --only steady --rate 1000         # after a copy, always
    make bench ARGS="--only copy,drain --output bench/results/today.json"
    make bench ARGS="--copy 1000000 --only beside --patience 600"   # memory and lag of a large copy
"""


async def run(sizes: Sizes, only: list[str], seed: int, patience: float) -> dict[str, Any]:
    """Run the stages and return the figures; `BenchFailed` when one loses something or is too slow."""
    began = time.monotonic()
    stages: dict[str, Any] = {}
    machine = {
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "load_average_before": round(os.getloadavg()[0], 2),
    }
    async with site(seed, patience) as place:
        for name, stage in STAGES.items():
            if name in only:
                stages[name] = await stage(place, sizes)
    seconds = round(time.monotonic() - began, 1)
    settings = asdict(sizes) | {"seed": seed}
    return {"machine": machine, "settings": settings, "seconds": seconds, "stages": stages}


def _chosen(_context: click.Context, _parameter: click.Parameter, value: str | None) -> list[str]:
    names = value.split(",") if value else list(STAGES)
    if unknown := [name for name in names if name not in STAGES]:
        raise click.BadParameter(f"no such stage: {', '.join(unknown)}; there are {', '.join(STAGES)}")
    return ["copy", *names]


@click.command(epilog=_EXAMPLES)
@click.option("--copy", default=200_000, show_default=True, help="pages of 1 KB to copy")
@click.option("--changes", default=100_000, show_default=True, help="changes of drain, kafka and live, each")
@click.option("--rate", default=500, show_default=True, help="changes a second of steady")
@click.option("--seconds", default=30, show_default=True, help="seconds of steady")
@click.option("--copy-rate", default=3000, show_default=True, help="documents copied a second of beside")
@click.option("--only", callback=_chosen, metavar="STAGE,...", help="only these; copy always runs")
@click.option("--seed", default=1, show_default=True, help="of the generated pages")
@click.option(
    "--patience", default=60.0, show_default=True, help="seconds for a stage, beside 1 for each 500 events"
)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="write the JSON here as well")
def main(
    copy: int,
    changes: int,
    rate: int,
    seconds: int,
    copy_rate: int,
    only: list[str],
    seed: int,
    patience: float,
    output: Path | None,
) -> None:
    """Measure copy, drain and lag on embedded services.

    \b
    copy     copies what is there
    drain    a backlog of changes that waits in MongoDB, drained by publish and apply
    kafka    the same, drained by publish alone and then by apply alone
    live     the same, drained while it is being written
    steady   changes one by one, each timed from before its write to its COMMIT in PostgreSQL
    beside   the same, while everything is copied again at a rate

    Of ten changes six update, three insert and one deletes. Exit 1 when a stage does not end in time, or
    when the databases do not agree after it.
    """
    sizes = Sizes(copy, changes, rate, seconds, copy_rate)
    if min(copy, changes, sizes.steady) < 10:
        raise click.UsageError("every stage needs at least 10 events")
    if copy < sizes.least_copy:
        raise click.UsageError(f"these changes need a copy of {sizes.least_copy} pages at least")
    try:
        results = asyncio.run(run(sizes, only, seed, patience))
    except CrossfadeError as error:
        say(f"bench: {error}")
        sys.exit(1)
    text = orjson.dumps(results, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    say(table(results))
    click.echo(text, nl=False)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_bytes(text)


main()
