"""D1: what one member of three has does not count. Decisions, fences and barriers wait for a majority."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest
from pymongo.errors import PyMongoError

from tests.support.replica_set import MEMBERS, index_being_built, replica_set
from tests.support.world import world
from worker.embedded import Services
from worker.mongo import barrier
from worker.mongo.fence_documents import FenceDocuments, State, Unclear
from worker.mongo.fence_lock import InTheWay
from worker.mongo.validators import Validators


@pytest.mark.timeout(300)
async def test_no_validator_changes_while_an_index_is_built(services: Services, tmp_path: Path) -> None:
    async with (
        replica_set(tmp_path / "set") as members,
        world(services, tmp_path, mongo_uri=members.uri) as w,
    ):
        tenant = uuid4()
        await w.mongo["leads"].insert_one({"email": "a@b.example"})
        fences = FenceDocuments(w.client, w.name)
        validators = Validators(w.client, w.mapping, w.name, "one")
        assert await fences.leave({tenant: 1}, {tenant: [tenant]}, "one", 600)
        async with index_being_built(w, members):
            with pytest.raises(InTheWay, match="an index is being built there"):
                await validators.fence([tenant], 5)
        await validators.fence([tenant], 30)


@pytest.mark.timeout(300)
async def test_a_primary_without_a_majority_decides_nothing(services: Services, tmp_path: Path) -> None:
    async with (
        replica_set(tmp_path / "set") as members,
        world(services, tmp_path, mongo_uri=members.uri) as w,
    ):
        for name in w.mapping.collections:
            await w.mongo.create_collection(name)
        tenant, other = uuid4(), uuid4()
        fences = FenceDocuments(w.client, w.name)
        validators = Validators(w.client, w.mapping, w.name, "one")
        for one in (tenant, other):
            assert await fences.leave({one: 1}, {one: [one]}, "one", 600)
        await validators.fence([tenant], 30)
        primary = await members.primary()
        one_is_enough = {"setDefaultRWConcern": 1, "defaultWriteConcern": {"w": 1}}  # unless we say otherwise
        await members.admin(primary, one_is_enough)
        async with members.electing_after(120):
            others = [number for number in range(MEMBERS) if number != primary]
            for number in others:
                members.freeze(number)
            try:
                with pytest.raises(Unclear):
                    await fences.decide_left({tenant: 1}, "one")
                assert (await fences.read())[tenant].state is State.DRAINING, "only the primary has it"
                with pytest.raises(PyMongoError):
                    await barrier.write(w.client, w.name, uuid4())
                with pytest.raises((InTheWay, Unclear, PyMongoError)):
                    await validators.fence([tenant, other], 4)
            finally:
                await members.healed()
        assert (await fences.read())[tenant].state is State.LEFT, "unclear is not undone"
