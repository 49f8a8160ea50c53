"""`crossfade check`, and apply's own look at the tables: what is wrong is told before anything is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from tests.e2e.test_commands import command
from tests.support.followed import followed
from tests.support.world import World, once, world
from worker.broker.access import Access
from worker.broker.admin import existing_topics
from worker.embedded import Services

NOWHERE = "127.0.0.1:9"
NAMES = [
    "mapping",
    "fences",
    "postgresql",
    "tables",
    "triggers",
    "replication role",
    "orphans",
    "mongodb",
    "collections",
    "kafka",
]


async def checked(w: World, *arguments: str, **env: str) -> tuple[int, dict[str, dict[str, Any]]]:
    code, out, err = await command(w, "check", "--json", *arguments, **env)
    assert err == ""
    report = json.loads(out)
    assert [one["name"] for one in report["checks"]] == NAMES
    assert report["ok"] == (code == 0)
    return code, {one["name"]: one for one in report["checks"]}


def answers(checks: dict[str, dict[str, Any]]) -> dict[str, bool | None]:
    """Those that are not true."""
    return {name: one["ok"] for name, one in checks.items() if one["ok"] is not True}


async def test_before_the_first_event_everything_is_true_and_nothing_is_changed(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        await w.load(300)
        code, checks = await checked(w)
        assert (code, answers(checks)) == (0, {})
        assert checks["kafka"]["detail"] == "reached; of 18 topics 18 are to be created"
        assert not [
            name for name in await existing_topics(Access(services.kafka_bootstrap)) if w.name in name
        ]
        assert await w.value("SELECT count(*) FROM crossfade.collection") == 0
        code, out, _ = await command(w, "check")
        assert code == 0 and "FALSE" not in out and "unknown" not in out
        assert [line[9:].split("  ")[0] for line in out.splitlines()] == NAMES


async def test_tables_that_do_not_fit_are_told_by_check_and_by_apply(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        await w.load(100)
        connection = await w.connect()
        await connection.execute(
            "ALTER TABLE pages DROP version, ALTER title TYPE varchar(80); "
            "ALTER TABLE users NO FORCE ROW LEVEL SECURITY; "
            "ALTER TABLE leads DISABLE TRIGGER search_vector_follows"
        )
        await connection.close()
        code, checks = await checked(w)
        assert (code, answers(checks)) == (1, {"tables": False, "triggers": False})
        enable = 'ALTER TABLE "leads" ENABLE ALWAYS TRIGGER "search_vector_follows"'
        assert enable in checks["triggers"]["detail"]
        assert [(one["table"], one["column"]) for one in checks["tables"]["findings"]] == [
            ("users", None),
            ("pages", "title"),
            ("pages", "version"),
        ]
        code, output = await once(w, "apply")
        assert code == 2 and "Traceback" not in output
        told = [line for line in output.splitlines() if not line.startswith("{")]
        assert told[0] == "crossfade apply: the tables in PostgreSQL do not fit the mapping"
        assert [f"  {line}" for line in checks["tables"]["detail"].splitlines()[1:]] == [
            f"  {line.strip()}" for line in told[1:]
        ]
        assert len(told) == 4
        # Refused before the mapping was registered: a mended one is not a changed one.
        assert await w.value("SELECT count(*) FROM crossfade.collection") == 0


async def test_a_reference_that_dangles_in_mongodb_is_an_orphan(services: Services, tmp_path: Path) -> None:
    async with followed(services, tmp_path, 400) as w:
        assert (await checked(w))[0] == 0
        page = await w.mongo["pages"].find_one({})
        assert page is not None
        await w.mongo["users"].delete_one({"_id": page["authorId"]})
        await w.settled()
        code, checks = await checked(w, "--limit", "1000")
        assert (code, answers(checks)) == (1, {"orphans": False})
        found = {
            (one["table"], *one["columns"]): (one["rows"], one["row_ids"])
            for one in checks["orphans"]["findings"]
        }
        count, rows = found["pages", "author_id"]
        assert count == len(rows) == await w.mongo["pages"].count_documents({"authorId": page["authorId"]})
        dangling = [
            row["id"]
            for row in await rows_of(
                w, "SELECT id::text FROM pages WHERE author_id NOT IN (SELECT id FROM users)"
            )
        ]
        assert sorted(rows) == sorted(dangling)


async def test_the_integrity_of_rows_that_the_pipeline_made(services: Services, tmp_path: Path) -> None:
    async with followed(services, tmp_path, 400) as w:
        code, out, err = await command(w, "check", "--integrity")
        assert (code, err) == (0, "")
        assert "FALSE" not in out and "unknown" not in out
        users = await w.mongo["users"].count_documents({})
        assert f"users: {users:,} rows; users in MongoDB: {users:,} documents (estimated)" in out
        user = await w.mongo["users"].find_one({})
        assert user is not None
        await w.mongo["users"].delete_one({"_id": user["_id"]})
        await w.settled()
        tenant = str(user["tenantId"])
        code, out, err = await command(w, "check", "--integrity", "--json", "--tenant", tenant)
        assert (code, err) == (1, "")
        checks = {one["name"]: one for one in json.loads(out)["checks"]}
        assert answers(checks) == {"orphans": False}
        counted = {one["table"]: one for one in checks["rows"]["findings"]}
        assert counted["users"]["documents_are"] == "exact"
        assert counted["users"]["documents"] == counted["users"]["rows"]
        assert counted["users"]["tenants"] == [{"tenant": tenant, "rows": counted["users"]["rows"]}]
        nobody = {"CROSSFADE_POSTGRES_READER_DSN": f"postgresql://x:s3cret@{NOWHERE}/x"}
        code, out, _ = await command(w, "check", "--integrity", **nobody)
        assert code == 2 and out.count("unknown") == 7 and "s3cret" not in out
        code, out, err = await command(w, "check", "--tenant", tenant)
        assert (code, out) == (2, "") and "--tenant goes with --integrity" in err


async def rows_of(w: World, query: str) -> list[Any]:
    connection = await w.connect()
    try:
        return await connection.fetch(query)
    finally:
        await connection.close()


@pytest.mark.parametrize(
    ("env", "unanswered"),
    [
        (
            {"CROSSFADE_POSTGRES_DSN": f"postgresql://x:s3cret@{NOWHERE}/x"},
            {"postgresql", "tables", "triggers", "replication role"},
        ),
        ({"CROSSFADE_POSTGRES_READER_DSN": f"postgresql://x:s3cret@{NOWHERE}/x"}, {"orphans"}),
        ({"CROSSFADE_POSTGRES_READER_DSN": "SYNC"}, {"orphans"}),
        (
            {"CROSSFADE_MONGO_URI": f"mongodb://x:s3cret@{NOWHERE}/?serverSelectionTimeoutMS=500"},
            {"mongodb", "collections"},
        ),
        ({"CROSSFADE_KAFKA_BOOTSTRAP": NOWHERE}, {"kafka"}),
    ],
)
async def test_what_cannot_be_asked_is_unknown_and_the_rest_is_answered(
    services: Services, tmp_path: Path, env: dict[str, str], unanswered: set[str]
) -> None:
    async with world(services, tmp_path) as w:
        await w.load(100)
        env = {
            name: w.env["CROSSFADE_POSTGRES_DSN"] if value == "SYNC" else value for name, value in env.items()
        }
        code, checks = await checked(w, **env)
        assert (code, answers(checks)) == (2, dict.fromkeys(unanswered))
        assert all(checks[name]["remedy"] or "not made" in checks[name]["detail"] for name in unanswered)
        assert "s3cret" not in str(checks)


async def test_a_wrong_mapping_is_false_and_what_needs_it_is_not_made(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        w.mapping_file.write_text(w.mapping_file.read_text().replace("type: uuid", "type: uid", 1))
        code, out, _ = await command(w, "check", "--json")
        checks = {one["name"]: one for one in json.loads(out)["checks"]}
        assert code == 2
        assert checks["mapping"]["ok"] is False and "did you mean uuid?" in checks["mapping"]["detail"]
        assert checks["postgresql"]["ok"] and checks["mongodb"]["ok"]
        assert {name for name, one in checks.items() if one["ok"] is None} == {
            "tables",
            "triggers",
            "replication role",
            "orphans",
            "collections",
            "kafka",
        }


async def test_what_is_missing_in_mongodb_and_wrong_in_kafka_is_false(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        await w.load(100)
        await w.mongo["pages"].rename("page")
        admin = AIOKafkaAdminClient(bootstrap_servers=services.kafka_bootstrap)
        await admin.start()
        hourly = {"retention.ms": "3600000"}
        await admin.create_topics(
            [
                NewTopic(f"{w.name}.{w.name}.pages", 5, 1),
                NewTopic(f"{w.name}.{w.name}.users", 2, 1, topic_configs=hourly),
            ]
        )
        await admin.close()
        code, checks = await checked(w, CROSSFADE_TOPIC_REPLICATION="3")
        assert (code, answers(checks)) == (1, {"collections": False, "kafka": False})
        assert checks["collections"]["detail"] == f"database {w.name} lacks pages (did you mean page?)"
        # one topic has other partitions, the sixteen that are missing could not have three replicas
        assert f"topic {w.name}.{w.name}.pages has 5 partitions, not 2" in checks["kafka"]["detail"]
        assert checks["kafka"]["detail"].count("Kafka refuses to create topic") == 16
        code, checks = await checked(w, CROSSFADE_ALLOW_MISSING_COLLECTIONS="true")
        assert answers(checks) == {"kafka": False}


async def test_without_the_control_schema_or_the_right_to_replicate(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        await w.load(100)
        await w.execute("DROP SCHEMA crossfade CASCADE")
        code, checks = await checked(w, CROSSFADE_REPLICATION_ROLE="origin")
        assert (code, answers(checks)) == (1, {"postgresql": False})
        assert "crossfade schema apply" in checks["postgresql"]["remedy"]
        assert checks["replication role"]["detail"].startswith("origin: ")
