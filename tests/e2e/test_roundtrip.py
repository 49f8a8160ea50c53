"""Every kind of value and array through the whole pipeline: MongoDB, Kafka, PostgreSQL, and back."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import bson
import yaml
from pymongo.errors import BulkWriteError

from bench.roundtrip import tables
from bench.roundtrip.generate import Documents
from bench.roundtrip.mappings import content
from tests.support.same import CODEC, whole
from tests.support.world import World, world
from worker.embedded import Services
from worker.mapping import CollectionPlan, Mapping, Unmappable
from worker.mapping.sources import PLACEHOLDER

DOCUMENTS = int(os.environ.get("ROUNDTRIP_DOCUMENTS", "4000"))
NAMED = re.compile(r"field \S+(, which tells the tenant,)? (holds \w+|is missing|is null)")
CONTENT = content("NAME")
WHOLE = Mapping.model_validate(CONTENT)


@asynccontextmanager
async def roundtrip_world(services: Services, directory: Path) -> AsyncIterator[World]:
    target = directory / "target"
    target.mkdir()
    (target / "001_tables.sql").write_text(f"{tables.definitions(WHOLE)}\n{tables.access(WHOLE)}\n")
    text = yaml.safe_dump(CONTENT, allow_unicode=True, sort_keys=False)
    async with world(services, directory, text, target) as w:
        for name in WHOLE.collections:
            await w.mongo.create_collection(real(name))
        await w.start("apply", "apply")
        yield w


def real(name: str) -> str:
    """Return the collection that stands for a name of the mapping."""
    return name.replace(PLACEHOLDER, "acme")


def mapped(name: str, document: dict[str, Any]) -> bool:
    plan = CollectionPlan(WHOLE.collections[name])
    try:
        plan.rows(bson.decode(bson.encode(document, codec_options=CODEC), codec_options=CODEC))
    except Unmappable:
        return False
    return True


async def insert(w: World, name: str, documents: list[dict[str, Any]]) -> int:
    """Insert documents; return how many MongoDB refuses, which is a matter of ids only."""
    collection = w.mongo[name]
    try:
        await collection.insert_many(documents, ordered=False)
    except BulkWriteError as error:
        assert {one["code"] for one in error.details["writeErrors"]} <= {2, 52, 53}  # bad _id, `$` in it
        return len(error.details["writeErrors"])
    return 0


async def test_every_document_arrives_equal_or_is_a_dead_letter_with_a_named_reason(
    services: Services, tmp_path: Path
) -> None:
    async with roundtrip_world(services, tmp_path) as w:
        each = DOCUMENTS // len(WHOLE.collections)
        parents: list[Any] = []
        for name, one in WHOLE.collections.items():
            documents = [Documents(one, 11, parents).document(number) for number in range(each)]
            if name == "shared":
                documents[0] = {"_id": "odd", "$ref": "looks", "$id": "like", "more": "a DBRef"}
            refused = await insert(w, real(name), documents[: each // 2])
            if "publish" not in w.processes:
                await w.start("publish", "publish")
            refused += await insert(w, real(name), documents[each // 2 :])
            assert refused < each / 10
            if name == "flat":
                parents = [
                    whole(held)["_id"]
                    async for held in w.mongo[name].with_options(codec_options=CODEC).find()
                    if mapped(name, whole(held))
                ]
        await w.settled(40 + DOCUMENTS / 100)
        assert await w.unequal() == []
        connection = await w.connect()
        # Parts that came before the document that tells their tenant were parked, and healed.
        letters = await connection.fetch(
            "SELECT namespace, row_id, kind, reason FROM crossfade.dead_letter WHERE state = 'dead'"
        )
        for name, one in WHOLE.collections.items():
            dead = {row["row_id"] for row in letters if row["namespace"] == f"{w.name}.{real(name)}"}
            ids = await connection.fetch(f'SELECT "{one.id}" FROM "{one.table}"')
            assert not dead & {row[0] for row in ids}
            assert await w.mongo[real(name)].count_documents({}) == len(ids) + len(dead)
        await connection.close()
        assert 0 < len(letters) < DOCUMENTS / 5
        assert {row["kind"] for row in letters} == {"mapping", "tenant"}
        assert [row["reason"] for row in letters if not NAMED.match(row["reason"])] == []


def twig(*leaves: int, names: Any = ()) -> dict[str, Any]:
    return {"n": len(leaves), "in": {"leaves": [{"n": leaf} for leaf in leaves]}, "names": list(names)}


def tree(*branches: Any, **more: Any) -> dict[str, Any]:
    return {"branches": list(branches)} | more


WAYS: list[list[dict[str, Any] | None]] = [
    # The states of one document, one after the other; None: it is not there.
    [tree({"text": "a"}), {"branches": None}, {}, {"branches": {"no": "array"}}, tree({"text": "b"}), tree()],
    [
        tree(*({"text": f"{n}"} for n in range(9))),
        tree({"text": "0"}),
        tree(*({"text": "x"} for _ in range(5))),
    ],
    [
        tree({"twigs": [twig(1, 2, 3), twig(4)]}, {"twigs": [twig(5)]}),
        tree({"twigs": [twig(1)]}, {"twigs": [twig(5), twig(6, 7)]}),
        tree({"twigs": []}, {"twigs": [twig(), {"in": None}, {"in": {"leaves": None}}, {}]}),
        tree({"twigs": None}, {"twigs": {"n": 1}}, {"twigs": [twig(8, 9, names=["n"])]}),
    ],
    [
        tree({"twigs": [twig(1, 2, names=["a", "b", None, 5])]}),
        None,
        tree({"twigs": [twig(3, names=["c"])]}),
        tree({"twigs": [twig(3, names=[["c"], "d"])]}),
        None,
    ],
    [tree({"integer": 1}), tree({"integer": "one"}), tree(1), tree("one"), tree([1]), tree({"integer": 1.0})],
    [{"at": {"sizes": [1.0, 2.0]}}, {"at": {"sizes": [2, "x", None]}}, {"at": {"sizes": []}}, {"at": None}],
    [{"any": [1, {"a": 1}, [2]]}, {"any": [{"a": 1}]}, {"any": [5.0]}, {"any": [5]}],
    [{"rows": [["a"], {"n": 1}, {"below": [5]}]}, {"rows": [{"n": 2}, ["b", None]]}, {"rows": [["a"], 7]}],
    [tree({"words": ["a", {"n": 1}]}), tree({"words": [{"n": 1}, "a"]}), tree({"words": [None]}), tree({})],
]


async def test_arrays_that_change_their_shape_at_any_level_leave_no_row_behind(
    services: Services, tmp_path: Path
) -> None:
    plan = CollectionPlan(WHOLE.collections["trees"])
    async with roundtrip_world(services, tmp_path) as w:
        trees = w.mongo["trees"]
        await w.start("publish", "publish")
        for step in range(max(map(len, WAYS)) + 1):
            expected = dict.fromkeys([table.table for table in plan.children], 0)
            for number, way in enumerate(WAYS):
                # At the end every document goes, with all that lies below it.
                state = way[min(step, len(way) - 1)] if step < max(map(len, WAYS)) else None
                if state is None:
                    await trees.delete_one({"_id": UUID(int=number)})
                    continue
                document = {"_id": UUID(int=number)} | state
                await trees.replace_one({"_id": UUID(int=number)}, document, upsert=True)
                for table, rows in zip(plan.children, plan.rows(document).children, strict=True):
                    expected[table.table] += len(rows)
            await w.settled()
            assert await w.unequal() == [], step
            held = {table: await w.value(f'SELECT count(*) FROM "{table}"') for table in expected}
            assert held == expected, step
        assert await w.value("SELECT count(*) FROM crossfade.dead_letter") == 0
        assert set(held.values()) == {0}


async def test_one_changed_element_of_a_large_array_rewrites_its_row_alone(
    services: Services, tmp_path: Path
) -> None:
    async with roundtrip_world(services, tmp_path) as w:
        branches = [{"text": f"{n}", "double": n + 0.5, "twigs": [twig(n)]} for n in range(1000)]
        await w.mongo["trees"].insert_one({"_id": UUID(int=1), "branches": branches})
        await w.start("publish", "publish")
        await w.settled()
        before = await _places(w)
        assert len(before) == 3000
        await w.mongo["trees"].update_one({"_id": UUID(int=1)}, {"$set": {"branches.500.double": 5}})
        await w.settled()
        assert await w.unequal() == []
        changed = await _places(w)
        assert {key for key in before if before[key] != changed[key]} == {("branches", 500)}
        await w.mongo["trees"].update_one(
            {"_id": UUID(int=1)}, {"$set": {"branches.7.twigs.0.in.leaves.0.n": -1}}
        )
        await w.mongo["trees"].update_one({"_id": UUID(int=1)}, {"$pop": {"branches": 1}})
        await w.settled()
        assert await w.unequal() == []
        after = await _places(w)
        assert before.keys() - after.keys() == {(table, 999) for table in ("branches", "twigs", "leaves")}
        assert {key for key in after if after[key] != changed[key]} == {("leaves", 7)}


async def _places(w: World) -> dict[tuple[str, int], tuple[Any, Any]]:
    """Return where each child row lies, and which transaction wrote it."""
    connection = await w.connect()
    rows = [
        (table, row)
        for table in ("branches", "twigs", "leaves")
        for row in await connection.fetch(f'SELECT i1, ctid, xmin::text FROM "{table}"')
    ]
    await connection.close()
    return {(table, row["i1"]): (row["ctid"], row["xmin"]) for table, row in rows}
