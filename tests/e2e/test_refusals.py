"""Bad input and missing services: a dead letter or one clear line, and nothing is lost."""

from __future__ import annotations

from pathlib import Path

import bson
import pytest

from examples.spaces.oracle import Difference
from tests.support.followed import followed
from tests.support.world import World, once, world
from worker.embedded import Services


async def test_an_unmappable_document_is_a_dead_letter_and_its_neighbours_arrive(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        await w.load(400)
        page = await w.mongo["pages"].find_one_and_update({}, {"$set": {"title": {"no": "text"}}})
        await w.start("publish", "publish")
        await w.start("apply", "apply")
        await w.settled()
        connection = await w.connect()
        letters = await connection.fetch("SELECT * FROM crossfade.dead_letter")
        await connection.close()
        assert [(letter["kind"], letter["namespace"]) for letter in letters] == [
            ("mapping", f"{w.name}.pages")
        ]
        assert bson.decode(letters[0]["document_id"])[""] == page["_id"]
        assert "title" in letters[0]["reason"] and "text" in letters[0]["reason"]
        assert (await w.compare()).differences == [Difference("pages", page["_id"], "missing")]


async def test_old_records_read_again_change_nothing_and_are_counted_superseded(
    services: Services, tmp_path: Path
) -> None:
    async with followed(services, tmp_path, 400) as w:
        await w.mongo["leads"].update_many(
            {}, {"$set": {"email": "new@example.com"}, "$unset": {"activities": 1}}
        )
        await w.mongo["pages"].delete_many({})
        await w.settled()
        sent = await w.send_again(lambda topic: topic.endswith(("pages.copy", "leads.copy")))
        await w.settled()
        await w.assert_nothing_lost()
        assert await w.value("SELECT count(*) FROM pages") == 0
        superseded = await w.value("SELECT sum(superseded) FROM crossfade.partition_progress")
        assert superseded >= sent > 0


NOWHERE = "127.0.0.1:9"


@pytest.mark.parametrize(
    ("role", "env", "told"),
    [
        ("publish", {"CROSSFADE_MONGO_URI": f"mongodb://{NOWHERE}/"}, "MongoDB"),
        (
            "publish",
            {"CROSSFADE_KAFKA_BOOTSTRAP": NOWHERE, "CROSSFADE_ALLOW_MISSING_COLLECTIONS": "true"},
            "Kafka",
        ),
        ("apply", {"CROSSFADE_KAFKA_BOOTSTRAP": NOWHERE}, "Kafka"),
        ("publish", {"CROSSFADE_POSTGRES_DSN": f"postgresql://x:s3cret@{NOWHERE}/x"}, "PostgreSQL"),
        ("apply", {"CROSSFADE_POSTGRES_DSN": f"postgresql://x:s3cret@{NOWHERE}/x"}, "PostgreSQL"),
        ("apply", {"CROSSFADE_MAPPING": "nowhere.yaml"}, "mapping"),
        ("publish", {}, "collections that database"),
        ("apply", {"CROSSFADE_APPLY_BATCH": "many"}, "CROSSFADE_APPLY_BATCH"),
    ],
)
async def test_what_is_wrong_at_start_is_one_clear_line_and_exit_2(
    services: Services, tmp_path: Path, role: str, env: dict[str, str], told: str
) -> None:
    async with world(services, tmp_path) as w:
        code, output = await once(w, role, **env)
        lines = [line for line in output.splitlines() if not line.startswith("{")]
        assert code == 2, output
        assert "Traceback" not in output and "s3cret" not in output
        assert len(lines) == 1 and told in lines[0], output


async def test_a_replica_session_that_would_let_duplicates_in_is_not_used(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        trigger = await w.value(
            "SELECT g.tgname FROM pg_trigger g JOIN pg_constraint c ON c.oid = g.tgconstraint "
            "WHERE c.conname = 'unique_email_per_tenant'"
        )
        connection = await w.connect()
        await connection.execute(f'ALTER TABLE users ENABLE TRIGGER "{trigger}"')  # as a restored dump has it
        await connection.close()
        code, output = await once(w, "apply", CROSSFADE_REPLICATION_ROLE="replica")
        assert code == 2 and f'ALTER TABLE users ENABLE ALWAYS TRIGGER "{trigger}"' in output
        await w.load(100)
        await w.start("publish", "publish")
        await w.start("apply", "apply")
        await w.settled()
        assert '"replication_role": "origin"' in log(w, "apply")
        await w.assert_nothing_lost()


def log(w: World, name: str) -> str:
    return (w.directory / f"{name}.log").read_text()
