"""`finish` exports the audit log and removes everything of ours, as if the databases had never seen us."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import asyncpg
import orjson
import yaml
from aiokafka.admin import AIOKafkaAdminClient

from tests.support.moving import application, cutover, moving, tenants_of
from tests.support.schema_dump import schema_dump
from tests.support.world import World, once
from worker.embedded import Services

OWN = (("leads", "strict", "error"), ("forms", "moderate", "error"), ("pages", "strict", "warn"))
DEFAULTS = {"validator": {}, "validationLevel": "strict", "validationAction": "error"}  # as without
APPLICATIONS_OWN = ("001_tables", "002_triggers", "003_tenant_walls", "005_deferrable")


async def _never_saw_us(w: World, name: str) -> None:
    """Make a database with the application's tables alone."""
    admin = await asyncpg.connect(w.services.postgres_admin_dsn)
    await admin.execute(f'CREATE DATABASE "{name}"')
    await admin.close()
    connection = await asyncpg.connect(w.services.dsn("postgres", name))
    for file in APPLICATIONS_OWN:
        await connection.execute((files("schema") / "spaces" / f"{file}.sql").read_text())
    await connection.close()


async def test_finish_leaves_nothing_behind(services: Services, tmp_path: Path) -> None:
    careless = {"CROSSFADE_MONGO_URI": f"{services.mongo_uri}&readPreference=secondaryPreferred"}
    async with moving(services, tmp_path, tenants=2, documents=200, **careless) as w:
        tenants = await tenants_of(w)
        for name, level, action in OWN:
            own = {"validator": {"tenantId": {"$exists": True}}, "validationLevel": level}
            await w.mongo.command({"collMod": name, **own, "validationAction": action})
        before = {one["name"]: one async for one in await w.mongo.list_collections()}
        for tenant in tenants:
            code, results = await cutover(w, str(tenant), "--window", "60")
            assert code == 0, results
        export = tmp_path / "audit"
        code, told = await once(w, "finish", "--export", str(export), "--yes")
        assert code == 2 and "not every tenant is complete: 2 in postgres" in told, told
        code, told = await once(w, "complete", *map(str, tenants), "--yes")
        assert code == 0, told
        code, told = await once(w, "finish", "--export", str(export), "--yes")
        assert code == 2 and "these still run" in told, told
        await _another_database(w, export)
        for name in list(w.processes):
            await w.stop(name)
        code, listed = await once(w, "finish", "--dry-run")
        assert code == 0 and "schema crossfade" in listed and "trigger !crossfade_fence on leads" in listed, (
            listed
        )
        assert await w.value("SELECT count(*) FROM crossfade.tenant") == 2
        _no_longer_mapped(w, "forms")
        code, told = await once(w, "finish", "--export", str(export), "--yes")
        assert code == 0, told
        lines = (export / "transitions.jsonl").read_text().splitlines()
        assert [orjson.loads(line)["to_phase"] for line in lines].count("complete") == 2
        await _never_saw_us(w, f"{w.name}_bare")
        assert await schema_dump(services, w.name) == await schema_dump(services, f"{w.name}_bare")
        async with application(w, tenants[0]) as app:
            assert await app.fetchval("SELECT count(*) FROM leads") > 0
            await app.execute("UPDATE leads SET name = 'free'")
        await _mongo_is_as_before(w, before)
        admin = AIOKafkaAdminClient(bootstrap_servers=w.kafka)
        await admin.start()
        assert [name for name in await admin.list_topics() if name.startswith(f"{w.name}.")] == []
        await admin.close()
        code, told = await once(w, "finish", "--export", str(export), "--yes")
        assert code == 0, told  # done again, it finds nothing


async def _another_database(w: World, export: Path) -> None:
    """Of a wrong one it must not be believed that all tenants are complete: it knows of none."""
    refused = await w.client["crossfade"]["fence"].count_documents({"_id.migration": w.name})
    elsewhere = {"CROSSFADE_POSTGRES_ADMIN_DSN": w.services.postgres_admin_dsn}
    for arguments in (("--dry-run",), ("--export", str(export), "--yes")):
        code, told = await once(w, "finish", *arguments, **elsewhere)
        assert code == 2 and "MongoDB has this migration, but the database" in told, told
    assert await w.client["crossfade"]["fence"].count_documents({"_id.migration": w.name}) == refused == 2


def _no_longer_mapped(w: World, name: str) -> None:
    mapping = yaml.safe_load(w.mapping_file.read_text())
    del mapping["collections"][name]
    w.mapping_file.write_text(yaml.safe_dump(mapping, sort_keys=False))


async def _mongo_is_as_before(w: World, before: dict[str, dict[str, Any]]) -> None:
    async for one in await w.mongo.list_collections():
        assert DEFAULTS | one["options"] == DEFAULTS | before[one["name"]]["options"], one
    ours = w.client["crossfade"]
    assert await ours["fence"].count_documents({"_id.migration": w.name}) == 0
    assert await ours["heartbeat"].count_documents({"_id": {"$regex": w.name}}) == 0
    assert await ours["reverse"].count_documents({"_id.ns": {"$regex": w.name}}) == 0
