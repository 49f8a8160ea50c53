"""`crossfade mismatches show`: one document as both databases have it now, and what was known of it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bson import ObjectId

from tests.support.letters import command, running
from tests.support.things import things
from tests.support.world import World, once
from worker.embedded import Services
from worker.mapping import row_id

OBJECTID = ObjectId("65f1c0ffee65f1c0ffee65f1")
SECRET = "a value of a customer"


async def show(w: World, id_: str, *options: str) -> tuple[int, dict[str, Any]]:
    code, out, err = await command(w, "mismatches", "show", f"{w.name}.a", id_, *options, "--json")
    assert out, err
    return code, json.loads(out)


async def test_a_document_is_shown_as_both_sides_have_it_now(services: Services, tmp_path: Path) -> None:
    async with things(services, tmp_path, "a", tenant="path: t") as w:
        at = datetime(2024, 1, 1, tzinfo=UTC)
        other = {"of": [{"a.b": at}]}
        await w.mongo["a"].insert_many(
            [
                {"_id": OBJECTID, "t": "one", "n": 1, "text": SECRET, "other": other},
                {"_id": "missing", "t": "one", "text": SECRET},
                {"_id": 7, "t": "one", "n": 1},
            ]
        )
        await running(w)
        missing, objectid, seven = '"missing"', str(OBJECTID), "7"
        for id_ in (missing, objectid, seven, str(row_id(OBJECTID)), str(row_id("missing"))):
            code, told = await show(w, id_)
            assert (code, told["fits"], told["known"], told["fields"]) == (0, True, None, []), id_
            assert told["mongo"] == told["postgres"] and told["ledger"]["state"] == "live"
        assert (await show(w, str(row_id("missing"))))[1]["id"] == "missing"

        await w.execute("DELETE FROM a WHERE id = $1", row_id("missing"))
        changed = (
            "UPDATE a SET text = 'another', rest = replace(rest::text, 'a.b', 'a.c')::jsonb WHERE id = $1"
        )
        await w.execute(changed, row_id(OBJECTID))
        await w.execute("UPDATE a SET tenant_id = $2 WHERE id = $1", row_id(7), row_id("two"))

        code, told = await show(w, objectid)
        assert (code, told["kind"], told["known"]) == (1, "different", None)
        fields = {one["path"]: (one["mongo"], one["postgres"]) for one in told["fields"]}
        assert fields["text"] == ("string", "string")
        assert fields["other.of.0.a.b"] == ("date", None) and fields["other.of.0.a.c"] == (None, "date")
        assert told["mongo"]["digest"] != told["postgres"]["digest"]
        code, out, _ = await command(w, "mismatches", "show", f"{w.name}.a", objectid)
        assert code == 1 and SECRET not in out and SECRET not in json.dumps(told)
        _, told = await show(w, objectid, "--values")
        values = {one["path"]: (one["mongo_value"], one["postgres_value"]) for one in told["fields"]}
        assert values["text"] == (SECRET, "another")
        assert values["other.of.0.a.b"] == ({"$date": {"$numberLong": str(int(at.timestamp() * 1000))}}, None)

        code, told = await show(w, missing)
        assert (code, told["kind"], told["postgres"]["there"]) == (1, "missing", False)
        _, told = await show(w, missing, "--values")
        assert told["mongo"]["document"]["text"] == SECRET and told["postgres"]["document"] is None
        code, told = await show(w, seven)
        assert (code, told["kind"]) == (1, "tenant")
        assert told["mongo"]["tenant"] == str(row_id("one"))
        assert told["postgres"]["tenant"] == str(row_id("two"))

        code, _ = await once(w, "reconcile", "--once", "--within", "20")
        assert code == 1
        # A row id alone: what the reconciler has found knows the document's.
        code, told = await show(w, str(row_id("missing")))
        assert (code, told["id"], told["known"]["state"], told["known"]["kind"]) == (
            1,
            "missing",
            "real",
            "missing",
        )
        assert told["known"]["version"] == told["ledger"]["version"]
        assert told["known"]["mongo_digest"] == told["mongo"]["digest"]
        code, out, _ = await command(w, "mismatches", "show", f"{w.name}.a", missing)
        assert code == 1 and "known            real, missing" in out and "sent anew        0 times" in out
        code, out, _ = await command(w, "mismatches", "list", "--json")
        assert code == 1 and {"$oid": objectid} in [one["id"] for one in json.loads(out)]
        # What fits again does so at once, whatever was known of it.
        await w.execute("UPDATE a SET tenant_id = $2 WHERE id = $1", row_id(7), row_id("one"))
        code, told = await show(w, seven)
        assert (code, told["fits"], told["known"]["kind"]) == (0, True, "tenant")


async def test_what_cannot_be_shown_is_told_with_what_to_do(services: Services, tmp_path: Path) -> None:
    async with things(services, tmp_path, "a") as w:
        await running(w)
        for collection, id_, why in (
            (f"{w.name}.b", "1", "the mapping names no collection"),
            (f"{w.name}.a", "home", "neither a row id, nor an ObjectId, nor JSON"),
        ):
            code, out, err = await command(w, "mismatches", "show", collection, id_)
            assert (code, out) == (2, "") and why in err, err
        code, told = await show(w, "1")
        assert (code, told["fits"], told["mongo"]["there"], told["ledger"]) == (0, True, False, None)
