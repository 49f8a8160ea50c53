"""`crossfade check`: whether a migration can go well, before and while it runs. Keys: docs/check.md."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Any

import click
import orjson

from worker.prechecks import Check, run_checks
from worker.settings import load

_LIMIT, _SECONDS = 20, 60.0
_ANSWERS = {True: "ok", False: "FALSE", None: "unknown"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; its keys are stable.")
@click.option(
    "--limit",
    type=click.IntRange(0),
    default=_LIMIT,
    show_default=True,
    help="Row ids to name of each reference that dangles.",
)
@click.option(
    "--timeout",
    "seconds",
    type=click.FloatRange(0.1, 86_400),
    default=_SECONDS,
    show_default=True,
    help="Seconds to search one reference for rows that are not there.",
)
def check(as_json: bool, limit: int, seconds: float) -> None:
    """Check mapping, tables, services, rights and references; changes nothing.

    Each check has a name, an answer and what to do. Exit 0 when all are true, 1 when one is false, 2 when one
    could not be made: a service is away, a setting is missing, or another check comes first.

    \b
    Examples:
      crossfade check
      crossfade check --json | jq .checks
      crossfade check --limit 1000 --timeout 600
    """
    made = asyncio.run(run_checks(load(), limit=limit, seconds=seconds))
    if as_json:
        click.echo(orjson.dumps(report(made), option=orjson.OPT_INDENT_2).decode())
    else:
        click.echo("\n".join(lines(made)))
    sys.exit(exit_code(made))


def exit_code(made: Sequence[Check]) -> int:
    """Return 2 where a check could not be made, else 1 where one is false."""
    answers = {one.ok for one in made}
    return 2 if None in answers else int(False in answers)


def report(made: Sequence[Check]) -> dict[str, Any]:
    """Return what `--json` prints."""
    return {
        "ok": exit_code(made) == 0,
        "checks": [
            {
                "name": one.name,
                "ok": one.ok,
                "detail": one.detail,
                "remedy": one.remedy,
                "findings": list(one.findings),
            }
            for one in made
        ],
    }


def lines(made: Sequence[Check]) -> list[str]:
    """Return a report for people."""
    width = max(len(one.name) for one in made)
    shown: list[str] = []
    for one in made:
        first, *more = one.detail.split("\n")
        shown.append(f"{_ANSWERS[one.ok]:<7}  {one.name:<{width}}  {first}")
        shown += [f"{'':<7}  {'':<{width}}    {line}" for line in more]
        if one.remedy:
            shown.append(f"{'':<7}  {'':<{width}}  -> {one.remedy}")
    return shown
