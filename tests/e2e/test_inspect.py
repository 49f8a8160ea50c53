"""`crossfade inspect` on databases that it has never seen: what it drafts is accepted, copied and rebuilt."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import shapes
from tests.support.world import World, world
from worker.embedded import Services
from worker.mapping import load

# Nothing is mapped yet when a world is made.
UNMAPPED = "version: 1\ndatabase: NAME\ncollections: {x: {table: x, tenant: null, rest: rest, columns: {}}}\n"


async def inspect(w: World, *arguments: str, **env: str) -> tuple[int, str, str]:
    """Run the command with MongoDB's connection string alone."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "worker", "inspect", *arguments),
        env={"PATH": w.env["PATH"], "CROSSFADE_MONGO_URI": w.services.mongo_uri} | env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def drafted(w: World, *arguments: str) -> Path:
    """Draft mapping and tables, and take them for the world's."""
    folder = w.directory / "draft"
    code, _, err = await inspect(w, "--database", w.name, "--out", str(folder), *arguments)
    assert code == 0, err
    w.mapping_file.write_text((folder / "mapping.yaml").read_text())
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "worker", "schema", "apply", "--target", str(folder / w.name)),
        env=w.env | {"CROSSFADE_POSTGRES_ADMIN_DSN": w.services.dsn("postgres", w.name)},
        stderr=asyncio.subprocess.PIPE,
    )
    _, told = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, told.decode()
    return folder


Shape = Callable[[], shapes.Database]


@pytest.mark.parametrize(
    ("shape", "arguments"),
    [
        (shapes.shop, ("--tenant-path", "tenantId")),
        (shapes.blog, ("--tenant-path", "site.org")),
        (shapes.telemetry, ("--tenant", "devices=owner", "--tenant", "readings=-")),
    ],
    ids=["shop", "blog", "telemetry"],
)
@pytest.mark.parametrize("role", ["auto", "origin"])
async def test_a_draft_is_accepted_copied_and_rebuilt_with_no_hand_edit(
    services: Services, tmp_path: Path, shape: Shape, arguments: tuple[str, ...], role: str
) -> None:
    async with world(services, tmp_path, UNMAPPED, target=None) as w:
        content = shape()
        await shapes.load(w.mongo, content)
        await drafted(w, *arguments)
        code, out, err = await inspect(w, "--check", "--json", CROSSFADE_MAPPING=str(w.mapping_file))
        assert code == 0, err
        assert json.loads(out)["fits"] and json.loads(out)["missing_collections"] == []
        await w.start("publish", "publish")
        await w.start("apply", "apply", CROSSFADE_REPLICATION_ROLE=role)
        await w.settled()
        assert await w.value("SELECT count(*) FROM crossfade.dead_letter WHERE state <> 'healed'") == 0
        assert await w.unequal() == []
        rows = sum([await w.value(f'SELECT count(*) FROM "{one.table}"') for one in maps(w).values()])
        assert rows == sum(map(len, content.values()))


def maps(w: World) -> dict[str, Any]:
    return load(w.mapping_file).collections
