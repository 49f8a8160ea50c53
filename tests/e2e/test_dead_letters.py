"""What could not be applied: found, told, tried again, closed, and never in the way of anything else."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import asyncpg
import pytest
from bson import ObjectId

from examples.spaces.oracle import Difference
from tests.support.letters import STANDING, command, edit, letters, running, told
from tests.support.world import once, world
from worker.embedded import Services
from worker.mapping import row_id


async def test_replay_after_the_mapping_was_mended_and_newer_events_leave_nothing_standing(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        await w.load(300)
        edit(w, "title: {type: text", "title: {path: heading, type: text")
        await running(w)
        pages = await w.mongo["pages"].find().sort("_id", 1).to_list(None)
        found = await told(w, "list", "--collection", "pages", "--limit", "5")
        assert found["counts"] == {"dead": len(pages), "parked": 0} and len(found["letters"]) == 5
        assert {one["tenant"] for one in found["letters"]} <= {str(page["tenantId"]) for page in pages}
        assert await told(w, "list", "--kind", "tenant") == {
            "letters": [],
            "counts": {"dead": 0, "parked": 0},
            "tenant_unknown": 0,
        }
        one = found["letters"][0]
        other = next(page for page in pages if str(row_id(page["_id"])) != one["row_id"])
        await w.mongo["pages"].delete_one({"_id": other["_id"]})
        await w.settled()
        closed = "SELECT count(*) FROM crossfade.dead_letter WHERE state = 'healed' AND row_id = $1"
        assert await w.value(closed, row_id(other["_id"])) == 1  # a delete is newer too

        again = await told(w, "replay", str(one["dead_letter_id"]))
        assert again == {"replayed": [one["dead_letter_id"]], "unchanged": {}}
        await w.settled()  # nothing is parked: the mapping of apply is the wrong one still
        assert (await told(w, "show", str(one["dead_letter_id"])))["state"] == "dead"

        edit(w, "title: {path: heading, type: text", "title: {type: text")
        assert await w.stop("apply") == 0 and await w.stop("publish") == 0
        code, _, err = await command(w, "copy", "start", "--collection", "pages", "--yes")
        assert code == 0, err
        await w.start("apply", "apply")
        replayed = await told(w, "replay", "--all", "--kind", "mapping", "--collection", f"{w.name}.pages")
        assert len(replayed["replayed"]) == len(pages) - 1
        await w.until_value(f"SELECT (count(*) = 0)::integer FROM ({STANDING}) s(n) WHERE n > 0", 1)
        assert await w.value("SELECT count(*) FROM pages") == len(pages) - 1
        await w.start("publish", "publish")
        await w.settled()
        await w.assert_nothing_lost()

        shown = await told(w, "show", str(one["dead_letter_id"]))
        assert shown["state"] == "healed" and "document" not in shown
        assert [did["action"] for did in shown["audit"]] == ["dead-letters replay"] * 2
        assert {did["database_user"] for did in shown["audit"]} == {"crossfade_sync"}
        assert await told(w, "replay", str(one["dead_letter_id"])) == {
            "replayed": [],
            "unchanged": {str(one["dead_letter_id"]): "healed"},
        }


async def test_records_read_again_and_orders_within_one_batch_leave_no_letter_that_something_newer_made_good(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        await w.load(200)
        await running(w)
        assert await w.stop("apply") == 0
        pages = w.mongo["pages"]
        before = await pages.find().to_list(5)
        [good_last, bad_last, dies, stays, given_up] = [page["_id"] for page in before]
        for page, titles in zip(before, ([7, "good"], ["good", 7], [7], [7], [7]), strict=True):
            for title in titles:  # replaced: an update's event may already show the next one's state
                await pages.replace_one({"_id": page["_id"]}, {**page, "title": title})
        await pages.delete_one({"_id": dies})
        await w.start("apply", "apply")
        await w.settled()
        assert {letter["row_id"] for letter in await letters(w)} == {
            row_id(bad_last),
            row_id(stays),
            row_id(given_up),
        }
        assert await w.value("SELECT title FROM pages WHERE id = $1", row_id(good_last)) == "good"
        assert await w.value("SELECT title FROM pages WHERE id = $1", row_id(bad_last)) == "good"

        for page in (bad_last, stays):
            await pages.update_one({"_id": page}, {"$set": {"title": "mended"}})
        await w.settled()
        [discarded] = (await told(w, "list"))["letters"]
        assert discarded["row_id"] == str(row_id(given_up))
        await told(w, "discard", str(discarded["dead_letter_id"]), "--reason", "a test")
        expected = {row_id(bad_last): "healed", row_id(stays): "healed", row_id(given_up): "discarded"}
        assert {letter["row_id"]: letter["state"] for letter in await letters(w)} == expected
        # All records again, behind the others: what nothing newer has made good is dead once more.
        await w.send_again(lambda topic: "pages" in topic)
        await w.settled()
        [again] = (await told(w, "list"))["letters"]
        assert again["row_id"] == str(row_id(given_up))
        await told(w, "discard", str(again["dead_letter_id"]), "--reason", "a test")
        # The same records at their own offsets; and a letter that another worker overtook unseen.
        assert await w.stop("apply") == 0
        connection = await w.connect()
        await connection.execute("UPDATE crossfade.partition_progress SET next_offset = 0")
        await connection.execute(
            "UPDATE crossfade.dead_letter SET state = 'dead' WHERE row_id = $1", row_id(stays)
        )
        await connection.close()
        await w.start("apply", "apply", CROSSFADE_APPLY_GROUP=f"{w.name}-2")
        await w.settled()
        assert await w.value(STANDING) == 0
        assert {letter["row_id"]: letter["state"] for letter in await letters(w)} == expected
        assert (await w.compare()).differences == [Difference("pages", given_up, "different", ("title",))]


async def test_two_documents_with_one_row_id_are_told_apart_and_neither_overwrites_the_other(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        await w.load(100)
        leads = w.mongo["leads"]
        lead = {k: v for k, v in (await leads.find_one()).items() if k != "_id"}
        oid, late = ObjectId(), ObjectId()
        await leads.insert_one({"_id": "a string", **lead, "name": "string"})
        await leads.insert_one({"_id": oid, **lead, "name": "objectid"})
        await running(w)
        assert await w.stop("apply") == 0
        strangers = [row_id("a string"), row_id(oid), row_id(late), row_id("another")]
        await leads.insert_one({"_id": strangers[0], **lead, "name": "stranger"})
        await leads.insert_one({"_id": strangers[1], **lead, "name": "stranger"})
        await leads.insert_one({"_id": strangers[2], **lead, "name": "first"})
        await leads.insert_one({"_id": late, **lead, "name": "second"})
        await leads.insert_one({"_id": "another", **lead, "name": "first"})
        await leads.insert_one({"_id": strangers[3], **lead, "name": "second"})
        await leads.update_one({"_id": "a string"}, {"$set": {"name": "string, newer"}})
        await w.start("apply", "apply")
        await w.settled()
        names = "SELECT name FROM leads WHERE id = $1"
        assert await w.value(names, strangers[0]) == "string, newer"
        assert await w.value(names, strangers[1]) == "objectid"
        for both_new in strangers[2:]:  # in partitions of their own: either may be read first
            assert await w.value(names, both_new) in ("first", "second")
        assert [(letter["kind"], letter["state"]) for letter in await letters(w)] == [
            ("collision", "dead")
        ] * 4
        await leads.delete_one({"_id": strangers[0]})
        await leads.delete_one({"_id": oid})
        await w.settled()
        assert await w.value(names, strangers[0]) == "string, newer"
        assert await w.value("SELECT count(*) FROM leads WHERE id = $1", strangers[1]) == 0
        await leads.update_one({"_id": strangers[1]}, {"$set": {"name": "stranger, newer"}})  # a tombstone's
        await w.settled()
        assert len(await letters(w)) == 6
        assert await w.value("SELECT count(*) FROM leads WHERE id = $1", strangers[1]) == 0
        assert await w.value(STANDING + " AND kind = 'collision'") == 6
        assert await w.stop("apply") == 0
        await leads.insert_one({"_id": "brief", **lead, "name": "brief"})
        await leads.delete_one({"_id": "brief"})  # a tombstone is all that the ledger ever has of it
        await w.start("apply", "apply")
        await w.settled()
        await leads.insert_one({"_id": 1, **lead, "name": "number"})  # 1 and 1.0 are one id in MongoDB
        await leads.delete_one({"_id": 1.0})
        await leads.insert_one({"_id": 1.0, **lead, "name": "double"})
        await leads.insert_one({"_id": "brief", **lead, "name": "again"})
        await w.settled()
        assert await w.value(names, row_id("brief")) == "again"
        assert await w.value(names, row_id(1)) == "double"
        assert len(await letters(w)) == 6


async def test_a_trigger_that_fails_on_one_document_stops_that_document_alone(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        await w.load(200)
        await running(w, CROSSFADE_REPLICATION_ROLE="origin")
        assert await w.stop("apply") == 0
        lead = await w.mongo["leads"].find_one()
        generator = random.Random(1)
        words = " ".join(f"{generator.getrandbits(64):x}" for _ in range(90_000))  # a vector over 1 MB
        await w.mongo["leads"].update_many({}, {"$set": {"phone": "1"}})
        await w.mongo["leads"].update_one({"_id": lead["_id"]}, {"$set": {"name": words}})
        await w.start("apply", "apply", CROSSFADE_REPLICATION_ROLE="origin")
        await w.settled()
        dead = [letter for letter in await letters(w) if letter["state"] == "dead"]
        assert {(letter["row_id"], letter["kind"]) for letter in dead} == {(row_id(lead["_id"]), "data")}
        assert all("54000" in one["reason"] and words[:16] not in one["reason"] for one in dead)
        [difference] = (await w.compare()).differences
        assert (difference.id, difference.kind) == (lead["_id"], "different") and "name" in difference.paths


async def test_a_document_of_no_known_tenant_is_told_to_hold_back_all(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        await w.load(100)
        lost, known = [page["_id"] for page in await w.mongo["pages"].find().to_list(2)]
        await w.mongo["pages"].update_one({"_id": lost}, {"$unset": {"tenantId": 1}})
        await w.mongo["pages"].update_one({"_id": known}, {"$set": {"title": {"secret": "word"}}})
        await running(w)
        found = await told(w, "list", "--tenant", "unknown")
        assert [(one["kind"], one["tenant"], one["row_id"]) for one in found["letters"]] == [
            ("tenant", None, str(row_id(lost)))
        ]
        assert found["tenant_unknown"] == 1 == (await w.value(STANDING)) - 1
        blocks = "tenant unknown: blocks every tenant's cutover"
        _, out, _ = await command(w, "dead-letters", "list")
        assert out.count(blocks) == 2 and "secret" not in out and "2 dead, 0 parked" in out
        code, status = await once(w, "status")
        assert code == 0 and blocks in status

        [other] = (await told(w, "list", "--kind", "mapping"))["letters"]
        number = str(other["dead_letter_id"])
        for arguments in ((), ("--json",)):
            assert "secret" not in (await command(w, "dead-letters", "show", number, *arguments))[1]
            assert "secret" in (await command(w, "dead-letters", "show", number, "--document", *arguments))[1]
        assert (await command(w, "dead-letters", "discard", number))[0] == 2
        assert (await command(w, "dead-letters", "discard", number, "--reason", " "))[0] == 2
        assert (await command(w, "dead-letters", "replay"))[0] == 2
        assert (await command(w, "dead-letters", "show", "999"))[0] == 2
        assert (await command(w, "dead-letters", "discard", number, "999", "--reason", "x"))[0] == 2
        assert (await told(w, "show", number))["state"] == "dead"
        await told(w, "discard", number, "--reason", "a test page")
        assert await told(w, "discard", number, "--reason", "again") == {
            "discarded": [],
            "unchanged": {number: "discarded"},
        }
        [did] = (await told(w, "show", number))["audit"]
        assert (did["action"], did["reason"]) == ("dead-letters discard", "a test page")
        assert did["os_user"] and did["at"]

        sync = await asyncpg.connect(w.env["CROSSFADE_POSTGRES_DSN"])
        for statement in (
            "UPDATE crossfade.audit SET reason = ''",
            "DELETE FROM crossfade.audit",
            "INSERT INTO crossfade.audit (at, os_user, action, subject) VALUES (now(), 'b', '', '1')",
            "INSERT INTO crossfade.audit (database_user, os_user, action, subject) "
            "VALUES ('a', 'b', '', '1')",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await sync.execute(statement)
        await sync.close()


async def test_a_letter_that_apply_heals_meanwhile_is_not_discarded(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        await w.load(100)
        await w.mongo["pages"].update_one({}, {"$set": {"title": 7}})
        await running(w)
        [letter] = await letters(w)
        number = letter["dead_letter_id"]
        connection = await w.connect()
        async with connection.transaction():
            await connection.execute(
                "UPDATE crossfade.dead_letter SET state = 'healed' WHERE dead_letter_id = $1", number
            )
            discarding = asyncio.create_task(told(w, "discard", str(number), "--reason", "late"))
            await w.until_value(
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
                "AND application_name = 'crossfade dead-letters'",
                1,
            )
        assert await discarding == {"discarded": [], "unchanged": {str(number): "healed"}}
        assert await w.value("SELECT count(*) FROM crossfade.audit") == 0
        await connection.close()
