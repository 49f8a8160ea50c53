"""What of a collection's validation is ours."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID, uuid4

from bson import Binary

from topics import Collection
from worker.mongo.fence_documents import Fence, State
from worker.mongo.validation import NONE, Rule, Validation, ours, own_of, refuses, with_ours

LEADS = Rule(Collection("spaces", "leads"), "tenantId", None)
OWN = Validation({"email": {"$type": "string"}}, "strict", "error")


def fence(tenant: UUID) -> Fence:
    return Fence(tenant, 1, State.LEFT, (tenant,), "me", datetime.now(UTC), False, 0.0, None)


def test_an_applications_validator_stands_beside_ours_where_it_was_strict_and_an_error() -> None:
    part = ours(LEADS, [fence(tenant := uuid4())])
    assert part == {"tenantId": {"$nin": [Binary.from_uuid(tenant)]}}
    assert with_ours(part, OWN).validator == {"$and": [{"$comment": "crossfade", **part}, OWN.validator]}
    for level, action in (("moderate", "error"), ("strict", "warn")):
        aside = OWN._replace(level=level, action=action)
        assert with_ours(part, aside) == Validation(
            {"$and": [{"$comment": "crossfade", **part}]}, "strict", "error"
        )
    assert with_ours({}, OWN) == OWN


def test_ours_is_never_taken_for_the_applications_whatever_its_level() -> None:
    now = with_ours(ours(LEADS, [fence(uuid4())]), OWN)
    for level, action in (("strict", "error"), ("moderate", "error"), ("strict", "warn")):
        assert own_of("spaces.leads", OWN, now._replace(level=level, action=action)) == OWN
    assert own_of("spaces.leads", None, now) == NONE
    assert own_of("spaces.leads", OWN, changed := OWN._replace(validator={"email": 1})) == changed


def test_a_fence_is_read_back_for_its_own_tenants_whatever_the_others_do() -> None:
    mine, other = fence(uuid4()), fence(uuid4())
    both = with_ours(ours(LEADS, [mine, other]), NONE)
    assert refuses(both, ours(LEADS, [mine]))
    assert not refuses(both, ours(LEADS, [mine]), exactly=True)
    assert not refuses(with_ours(ours(LEADS, [other]), NONE), ours(LEADS, [mine]))
    assert not refuses(NONE, ours(LEADS, [mine]))
    # An application has changed the level alone, and so lets existing documents be changed.
    assert not refuses(both._replace(level="moderate"), ours(LEADS, [mine]))
    assert not refuses(both._replace(action="warn"), ours(LEADS, [mine]))
    assert refuses(NONE, {}, exactly=True) and not refuses(both, {}, exactly=True)


def test_a_collection_of_one_tenant_takes_nothing_while_that_is_refused() -> None:
    rule = Rule(Collection("spaces", "own"), None, tenant := uuid4())
    assert ours(rule, [fence(uuid4())]) == {}
    part = ours(rule, [fence(tenant)])
    assert part == {"_id": {"$exists": False}}
    assert refuses(with_ours(part, NONE), part)
