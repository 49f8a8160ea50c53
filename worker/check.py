"""`crossfade check`: whether a migration can go well, before and while it runs. Keys: docs/check.md."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

import click
import orjson

from worker.clock import SYSTEM_CLOCK, Clock
from worker.errors import ConfigurationError
from worker.integrity import run_integrity
from worker.prechecks import Check, run_checks
from worker.settings import load

_LIMIT, _SECONDS = 20, 60.0
_SILENT = 2.0  # seconds between two lines of progress, and before the first
_ANSWERS = {True: "ok", False: "FALSE", None: "unknown"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; its keys are stable.")
@click.option(
    "--limit",
    type=click.IntRange(0),
    default=_LIMIT,
    show_default=True,
    help="Row ids to name of each thing that is wrong.",
)
@click.option(
    "--timeout",
    "seconds",
    type=click.FloatRange(0.1, 86_400),
    default=_SECONDS,
    show_default=True,
    help="Seconds that one statement may take: the search of one reference, or one chunk of a table.",
)
@click.option(
    "--integrity",
    is_flag=True,
    help="Look at the rows instead: counts, orphans, tenants, child rows, search vectors, uniqueness, dead "
    "letters.",
)
@click.option("--tenant", type=click.UUID, help="With --integrity: only the rows of this tenant.")
def check(as_json: bool, limit: int, seconds: float, integrity: bool, tenant: UUID | None) -> None:
    """Check mapping, tables, services, rights and references; changes nothing.

    Each check has a name, an answer and what to do. Exit 0 when all are true, 1 when one is false, 2 when one
    could not be made: a service is away, a setting is missing, or another check comes first.

    \b
    Examples:
      crossfade check
      crossfade check --json | jq .checks
      crossfade check --limit 1000 --timeout 600
      crossfade check --integrity
      crossfade check --integrity --tenant 6f1c2a4e-8d2b-4b57-9f5e-0a7d4c3b2a19 --json
    """
    if tenant is not None and not integrity:
        raise ConfigurationError("--tenant goes with --integrity", remedy="give both, or none")
    settings = load()
    made = asyncio.run(
        run_integrity(
            settings, tenant=tenant, limit=limit, seconds=seconds, progress=progress(SYSTEM_CLOCK, _told)
        )
        if integrity
        else run_checks(settings, limit=limit, seconds=seconds)
    )
    if as_json:
        click.echo(orjson.dumps(report(made), option=orjson.OPT_INDENT_2).decode())
    else:
        click.echo("\n".join(lines(made)))
    sys.exit(exit_code(made))


def _told(line: str) -> None:
    click.echo(f"check: {line}", err=True)


def progress(clock: Clock, tell: Callable[[str], None]) -> Callable[[str], None]:
    """Return what tells a line every two seconds at most: none of work that is done before."""
    last = clock.monotonic()

    def told(line: str) -> None:
        nonlocal last
        if clock.monotonic() - last >= _SILENT:
            last = clock.monotonic()
            tell(line)

    return told


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
