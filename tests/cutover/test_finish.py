"""`finish` exports the audit log and removes everything of ours, as if the databases had never seen us."""

from __future__ import annotations

import asyncio
from importlib.resources import files
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import orjson
import yaml
from aiokafka.admin import AIOKafkaAdminClient

from tests.support.moving import application, cutover, moving, tenants_of
from tests.support.schema_dump import schema_dump
from tests.support.world import World, once
from worker.embedded import Services
from worker.mongo.fence_documents import FenceDocuments

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
        code, results = await cutover(w, "--all", "--at-once", "2", "--window", "60")
        assert code == 0 and sorted(one["tenants"] for one in results) == [[str(one)] for one in tenants], (
            results
        )
        export = tmp_path / "audit"
        code, told = await once(w, "finish", "--export", str(export), "--yes")
        assert code == 2 and "not every tenant is complete: 2 in postgres" in told, told
        await _completed(w, tenants, tmp_path / "hooked")
        code, told = await once(w, "finish", "--export", str(export), "--yes")
        assert code == 2 and "these still run" in told, told
        await _another_database(w, export)
        for name in list(w.processes):
            await w.stop(name)
        stranger = await w.mongo["tenants"].find_one() | {"_id": uuid4(), "subdomain": "late"}
        await w.mongo["tenants"].insert_one(stranger)
        code, told = await once(w, "finish", "--dry-run")
        assert code == 2 and f"nothing of these tenants: {w.name}.tenants {stranger['_id']}" in told, told
        await w.mongo["tenants"].delete_one({"_id": stranger["_id"]})
        code, listed = await once(w, "finish", "--dry-run")
        assert code == 0, listed
        for line in (
            f"Kafka       topic {w.name}.reverse.{w.name}.leads",
            f"Kafka       consumer group {w.name}",
            f"Kafka       consumer group {w.name}-reverse",
            "MongoDB     crossfade.fence, 2 documents",
            "PostgreSQL  schema crossfade",
            "PostgreSQL  trigger !crossfade_fence on leads",
        ):
            assert line in listed.splitlines(), listed
        barrier = {"_id": {"barrier": uuid4(), "topic": "another migration's", "partition": 0}}
        await w.client["crossfade"]["reverse_barrier"].insert_one(barrier)
        await w.client["crossfade"]["heartbeat"].insert_one({"_id": f"another of {uuid4()}"})
        assert await w.value("SELECT count(*) FROM crossfade.tenant") == 2
        await _left_by_another(w, export)
        _no_longer_mapped(w, "forms")
        code, told = await once(w, "finish", "--export", str(export), "--yes")
        assert code == 0, told
        lines = (export / "transitions.jsonl").read_text().splitlines()
        exported = [orjson.loads(line) for line in lines]
        assert [one["to_phase"] for one in exported].count("complete") == 2
        for one in exported:
            if (one["from_phase"], one["to_phase"]) == ("draining", "postgres"):
                _assert_both_sides_are_told(one["evidence"])
            if one["to_phase"] == "draining":
                sums = one["evidence"]["sums"][one["tenant_id"]]
                assert one["evidence"]["generation"] > 0 and f"{w.name}.leads" in sums, one
            assert one["database_user"] == "crossfade_control" and one["os_user"] and one["at"], one
        await _never_saw_us(w, f"{w.name}_bare")
        assert await schema_dump(services, w.name) == await schema_dump(services, f"{w.name}_bare")
        async with application(w, tenants[0]) as app:
            assert await app.fetchval("SELECT count(*) FROM leads") > 0
            await app.execute("UPDATE leads SET name = 'free'")
        await _mongo_is_as_before(w, before)
        admin = AIOKafkaAdminClient(bootstrap_servers=w.kafka)
        await admin.start()
        assert [name for name in await admin.list_topics() if name.startswith(f"{w.name}.")] == []
        groups = {name for name, _ in await admin.list_consumer_groups()}
        assert not {name for name in groups if name.startswith(w.name)}
        await admin.close()
        assert await w.client["crossfade"]["reverse_barrier"].find_one(barrier), "it is another migration's"
        code, told = await once(w, "finish", "--export", str(export), "--yes")
        assert code == 0, told  # done again, it finds nothing


async def _completed(w: World, tenants: list[UUID], told_in: Path) -> None:
    """Complete both, the first of which a hook holds up for once."""
    names = list(map(str, tenants))
    code, told = await once(w, "complete", *names, "--yes", "--before", "echo not yet >&2; exit 1")
    assert code == 2 and "the hook before complete failed with exit code 1: mend it" in told, told
    assert "not yet" in told  # its last words are shown, and kept nowhere
    hook = f'echo "$CROSSFADE_TRANSITION $CROSSFADE_TENANTS" >> {told_in}'
    code, told = await once(w, "complete", *names, "--yes", "--before", hook, "--after", hook)
    assert code == 0, told
    assert (await asyncio.to_thread(told_in.read_text)).splitlines() == [
        f"complete {one}" for one in names for _ in range(2)
    ]
    code, told = await once(w, "tenants", "--history", names[0], "--json")
    assert code == 0, told
    history = orjson.loads(told[told.index("[\n") : told.rindex("]") + 1])
    assert [one["change"] for one in history][:2] == ["postgres -> complete", "draining -> postgres"]
    _assert_both_sides_are_told(history[1]["evidence"])


def _assert_both_sides_are_told(evidence: dict[str, Any]) -> None:
    compared = evidence["compared"].values()
    assert sum(one["mongo"][0] for one in compared) == evidence["looked_at"]
    assert all(one["mongo"] == one["postgres"] for one in compared)


async def _another_database(w: World, export: Path) -> None:
    """Of a wrong one it must not be believed that all tenants are complete: it knows of none."""
    refused = await w.client["crossfade"]["fence"].count_documents({"_id.migration": w.name})
    elsewhere = {"CROSSFADE_POSTGRES_ADMIN_DSN": w.services.postgres_admin_dsn}
    for arguments in (("--dry-run",), ("--export", str(export), "--yes")):
        code, told = await once(w, "finish", *arguments, **elsewhere)
        assert code == 2 and "MongoDB has this migration, but the database" in told, told
    assert await w.client["crossfade"]["fence"].count_documents({"_id.migration": w.name}) == refused == 2


async def _left_by_another(w: World, export: Path) -> None:
    """A tenant that MongoDB refuses, and of which this database does not know that it is complete."""
    tenant, fences = uuid4(), FenceDocuments(w.client, w.name)
    assert await fences.leave({tenant: 1}, {tenant: [tenant]}, "test")
    assert await fences.decide_left({tenant: 1}, "test")
    code, told = await once(w, "finish", "--export", str(export), "--yes")
    assert code == 2 and "refuses the writes of 1 tenants that are not complete here" in told, told
    assert await fences.come_back({tenant: 3}, {tenant: 30}, "test")


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
    assert await ours["fence_lock"].count_documents({"_id": w.name}) == 0
    assert await ours["fence_set_aside"].count_documents({"_id.migration": w.name}) == 0
