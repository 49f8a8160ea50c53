"""Dead letters in a test: the command, and what the table holds."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import asyncpg
from click.testing import CliRunner

from tests.support.world import World
from worker.cli import main

STANDING = "SELECT count(*) FROM crossfade.dead_letter WHERE state IN ('dead', 'parked')"


async def command(w: World, *arguments: str) -> tuple[int, str, str]:
    """Run a command in a thread of this process: starting Python takes longer than what it does."""
    done = await asyncio.to_thread(CliRunner().invoke, main, [*arguments], env=w.env)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


async def told(w: World, *arguments: str) -> Any:
    code, out, err = await command(w, "dead-letters", *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


async def letters(w: World) -> list[asyncpg.Record]:
    connection = await w.connect()
    try:
        return await connection.fetch("SELECT * FROM crossfade.dead_letter ORDER BY dead_letter_id")
    finally:
        await connection.close()


def edit(w: World, before: str, after: str) -> None:
    mapping = Path(w.env["CROSSFADE_MAPPING"])
    text = mapping.read_text()
    assert before in text
    mapping.write_text(text.replace(before, after))


async def running(w: World, **env: str) -> None:
    await w.start("publish", "publish")
    await w.start("apply", "apply", **env)
    await w.settled()


def log(w: World, name: str) -> str:
    return (w.directory / f"{name}.log").read_text()
