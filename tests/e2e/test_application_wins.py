"""What the application changes by SQL is what a rebuilt document says, not what the notes remember."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from bson import ObjectId

from tests.support.same import assert_same
from tests.support.world import World, world
from worker.embedded import Services
from worker.mapping import CollectionPlan, Rebuilder
from worker.postgres.documents import TargetDocuments

WHEN = datetime(2020, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)


async def rebuilt(w: World, name: str, row_id: UUID) -> dict[str, Any]:
    mapping = w.mapping.collections[name]
    plan = CollectionPlan(mapping)
    documents = TargetDocuments(plan.tables, Rebuilder(mapping))
    connection = await w.connect()
    try:
        return (await documents.read(connection, [row_id]))[row_id]
    finally:
        await connection.close()


async def test_a_typed_column_a_profile_and_child_rows_changed_by_sql(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        await w.load(200)
        user = await w.mongo["users"].find_one_and_update(
            {},
            # Each of these needs a note: types that the columns and plain JSON cannot say.
            {
                "$set": {
                    "name": 5,
                    "loginCount": 7.0,
                    "role": None,
                    "profile": {"since": WHEN, "of": ObjectId()},
                }
            },
            return_document=True,
        )
        activities = [{"type": "call", "at": "soon", "meta": {"when": WHEN}}, {"type": "mail", "note": 3}, 9]
        lead = await w.mongo["leads"].find_one_and_update(
            {}, {"$set": {"activities": activities}}, return_document=True
        )
        await w.start("publish", "publish")
        await w.start("apply", "apply")
        await w.settled()
        assert await w.unequal() == []
        connection = await w.connect()
        await connection.execute(
            """UPDATE users SET name = 'Ada', login_count = 8, role = 'owner',
                   profile = jsonb_set(profile, '{since}', '"2021-01-01T00:00:00.000Z"') WHERE id = $1""",
            user["_id"],
        )
        await connection.execute(
            """UPDATE lead_activities SET occurred_at = $2, note = 'said yes'
               WHERE lead_id = $1 AND position < 2""",
            lead["_id"],
            WHEN,
        )
        await connection.execute(
            "UPDATE lead_activities SET type = 'visit' WHERE lead_id = $1 AND position = 2", lead["_id"]
        )
        await connection.execute(
            """INSERT INTO lead_activities (lead_id, position, tenant_id, type)
               SELECT id, 3, tenant_id, 'new' FROM leads WHERE id = $1""",
            lead["_id"],
        )
        await connection.close()
        found = await rebuilt(w, "users", user["_id"])
        changed = {"name": "Ada", "loginCount": 8, "role": "owner"}
        changed["profile"] = user["profile"] | {"since": "2021-01-01T00:00:00.000Z"}
        changed["updatedAt"] = found["updatedAt"]  # the table's trigger
        assert_same(found, user | changed)
        assert (await rebuilt(w, "leads", lead["_id"]))["activities"] == [
            {"type": "call", "at": WHEN, "note": "said yes", "meta": {"when": WHEN}},
            {"type": "mail", "at": WHEN, "note": "said yes"},
            {"type": "visit"},
            {"type": "new"},
        ]
