"""A mapping that changes while everything runs: rows of two mappings never mix, and a copy makes all anew."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.followed import followed
from tests.support.world import World, once, world
from worker.embedded import Services

CHANGED = {
    "      version: {type: integer}\n": "      version: {type: integer}\n      tags: {type: 'text[]'}\n",
    "      score: {type: double precision}\n": "      score: {type: numeric}\n"
    "      custom_fields: {path: customFields, type: jsonb}\n",
}
ALTERED = """
ALTER TABLE pages ADD COLUMN tags text[];
ALTER TABLE leads ALTER COLUMN score TYPE numeric, ADD COLUMN custom_fields jsonb;
"""


def change(w: World) -> None:
    text = w.mapping_file.read_text()
    for before, after in CHANGED.items():
        assert text.count(before) == 1
        text = text.replace(before, after)
    w.mapping_file.write_text(text)


async def alter(w: World) -> None:
    await w.execute(ALTERED)


async def states(w: World) -> dict[str, tuple[str, str, int]]:
    code, told = await once(w, "status", "--json")
    assert code == 0, told
    return {
        one["collection"].split(".")[1]: (one["state"], one["mapping"], one["copies"])
        for one in json.loads(told)["collections"]
    }


async def assert_made_by_the_new_mapping(w: World) -> None:
    assert await w.unequal() == []
    with_tags = await w.mongo["pages"].count_documents({"tags": {"$exists": True}})
    assert await w.value("SELECT count(*) FROM pages WHERE tags IS NOT NULL") == with_tags > 0
    custom = await w.mongo["leads"].count_documents({"customFields": {"$exists": True}})
    assert await w.value("SELECT count(*) FROM leads WHERE custom_fields IS NOT NULL") == custom > 0
    assert await w.value("SELECT count(*) FROM pages WHERE rest ? 'tags'") == 0
    assert await w.value("SELECT count(*) FROM leads WHERE rest ? 'customFields'") == 0


async def test_a_changed_mapping_is_refused_until_its_collections_are_copied_again_under_live_writes(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        await w.load(2000)
        async with w.writes(100) as writer:
            await w.start("publish", "publish")
            await w.start("apply", "apply")
            await w.settled()
            assert set((await states(w)).values()) == {("copied", "same", 1)}
            change(w)
            code, told = await once(w, "apply")
            assert code == 2 and "table pages, column tags: is missing" in told, told
            await alter(w)
            for role in ("apply", "publish"):
                code, told = await once(w, role)
                assert code == 2 and "Traceback" not in told, told
                command = f"crossfade copy start --collection {w.name}.pages --collection {w.name}.leads"
                assert f"{w.name}.pages, {w.name}.leads" in told and command in told, told
            assert (await states(w))["pages"] == ("copied", "differs", 1)
            changes = writer.counters.changes
            await w.until("those of before go on", lambda: writer.counters.changes > changes + 100)
            code, told = await once(w, "copy", "start", "--collection", "pages", "--yes")
            assert code == 0 and f"still of another mapping: {w.name}.leads" in told, told
            assert await w.ended("apply") == 1
            assert await w.ended("publish") == 1
            # By the batch that found it, or before, as a table no longer fits the old mapping.
            told = (tmp_path / "apply.log").read_text()
            assert "the mapping of a collection was changed" in told or "do not fit the mapping" in told
            assert (await once(w, "apply"))[0] == 2
            code, told = await once(w, "copy", "start", "--collection", f"{w.name}.leads", "--yes", "--json")
            assert code == 0 and json.loads(told) == [
                {"collection": f"{w.name}.leads", "mapping": "accepted", "paused": False}
            ]
            assert (await states(w))["leads"] == ("pending", "same", 1)
            await w.start("publish", "publish again", CROSSFADE_COPY_CHUNK="100")
            await w.start("apply", "apply again")
            changes = writer.counters.changes
            await w.until("writes go on", lambda: writer.counters.changes > changes + 300)
        await w.settled()
        after = await states(w)
        assert {after["pages"], after["leads"]} == {("copied", "same", 2)}
        assert after["users"] == ("copied", "same", 1)
        assert await w.ledger.compare(w.mongo) == []
        await assert_made_by_the_new_mapping(w)


async def test_supervised_processes_take_the_new_mapping_by_themselves(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        await w.load(600)
        async with w.writes(50):
            await w.start("run", "run")
            await w.settled()
            change(w)
            await alter(w)
            code, told = await once(w, "copy", "start", "--all", "--yes")
            assert code == 0, told
            await w.settled()
        await w.settled()
        await assert_made_by_the_new_mapping(w)
        # The same mapping: nothing ends, and rows that someone spoiled are made anew.
        ended = (tmp_path / "run.log").read_text().count("starting it again")
        assert ended == 2
        await w.execute("UPDATE users SET name = 'spoiled'")
        assert len(await w.unequal()) > 0
        assert (await once(w, "copy", "start", "--collection", "users", "--yes"))[0] == 0
        await w.settled()
        assert await w.unequal() == []
        assert (tmp_path / "run.log").read_text().count("starting it again") == ended


async def test_a_collection_that_was_not_mapped_for_a_while_is_copied_when_it_comes_back(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        await w.load(300)
        whole = w.mapping_file.read_text()
        await w.start("publish", "publish")
        await w.start("apply", "apply")
        await w.settled()
        assert await w.stop("publish") == 0
        assert await w.stop("apply") == 0
        start, end = whole.index("  pages:\n"), whole.index("  forms:\n")
        w.mapping_file.write_text(whole[:start] + whole[end:])
        await w.start("publish", "publish without")
        await w.until_value("SELECT count(*) FROM crossfade.collection WHERE copy_state = 'invalid'", 1)
        assert (await states(w))["pages"] == ("invalid", "unmapped", 1)
        before = await w.value("SELECT token_time FROM crossfade.checkpoint")
        await w.mongo["pages"].update_many({}, {"$set": {"title": "changed meanwhile"}})
        await w.until_value("SELECT token_time FROM crossfade.checkpoint", before + (5 << 32))
        assert await w.stop("publish without") == 0
        w.mapping_file.write_text(whole)
        await w.start("publish", "publish again")
        await w.start("apply", "apply again")
        await w.settled()
        assert await w.unequal() == []
        assert await w.value("SELECT count(*) FROM pages WHERE title <> 'changed meanwhile'") == 0


async def test_two_publishers_of_different_names_do_not_copy_in_turns(
    services: Services, tmp_path: Path
) -> None:
    async with followed(services, tmp_path, 200) as w:
        await w.start("publish", "other", CROSSFADE_PUBLISHER=f"{w.name}b")
        await w.until_value("SELECT count(*) FROM crossfade.collection WHERE copies = 2", 6)
        await w.settled()
        token = await w.value("SELECT max(token_time) FROM crossfade.checkpoint")
        await w.until_value("SELECT min(token_time) FROM crossfade.checkpoint", token + (4 << 32))
        assert set((await states(w)).values()) == {("copied", "same", 2)}
        await w.assert_nothing_lost()


async def test_what_cannot_be_meant_is_refused(services: Services, tmp_path: Path) -> None:
    async with world(services, tmp_path) as w:
        for arguments, told in (
            ((), "--collection NAME, or --all"),
            (("--all", "--collection", "pages"), "--collection NAME, or --all"),
            (("--collection", "page", "--yes"), "did you mean pages?"),
            (("--collection", "pages"), "add --yes"),
        ):
            code, output = await once(w, "copy", "start", *arguments)
            assert code == 2 and told in output and "Traceback" not in output, output
