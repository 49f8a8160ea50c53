from __future__ import annotations

from collections import Counter
from itertools import islice

import bson
from bson import Decimal128, Int64

from examples.spaces.generate import COLLECTIONS, Generator
from examples.spaces.shapes import CODEC


def _encoded(seed: int, count: int = 3000) -> list[bytes]:
    return [
        bson.encode(document, codec_options=CODEC) for _, document in Generator(seed).documents(10, count)
    ]


def test_equal_seeds_make_equal_documents_and_other_seeds_others() -> None:
    assert _encoded(1) == _encoded(1)
    assert not set(_encoded(1)) & set(_encoded(2))


def test_one_generator_yields_the_same_documents_again() -> None:
    generator = Generator(4)
    first = list(generator.documents(3, 500))
    generator.page(7)
    assert list(generator.documents(3, 500)) == first


def test_exactly_as_many_documents_as_asked_for() -> None:
    for tenants, documents in ((1, 1), (20, 5), (3, 4), (7, 1234)):
        made = list(Generator().documents(tenants, documents))
        assert len(made) == documents
        counts = Counter(name for name, _ in made)
        assert counts["tenants"] == min(tenants, documents)
        assert counts["users"] == counts["passwords"]


def test_parents_come_before_what_refers_to_them() -> None:
    seen: dict[str, set[object]] = {name: set() for name in COLLECTIONS}
    for name, document in Generator(3).documents(10, 5000):
        if name != "tenants":
            assert document["tenantId"] in seen["tenants"]
        for reference, parent in (("userId", "users"), ("authorId", "users"), ("assignedTo", "users")):
            assert reference not in document or document[reference] in seen[parent]
        assert document.get("formId") is None or document["formId"] in seen["forms"]
        seen[name].add(document["_id"])


def test_emails_are_unique_and_tenants_differ_in_size() -> None:
    users = [document for name, document in Generator(5).documents(20, 20_000) if name == "users"]
    assert len({user["email"] for user in users}) == len(users)
    sizes = sorted(Counter(user["tenantId"] for user in users).values())
    assert sizes[-1] > 3 * sizes[0]


def test_pages_are_about_one_kilobyte_and_decided_by_their_number() -> None:
    generator = Generator(6)
    pages = [generator.page(number) for number in range(2000)]
    pages += [document for name, document in generator.documents(5, 5000) if name == "pages"]
    assert all(900 <= len(bson.encode(page, codec_options=CODEC)) <= 1150 for page in pages)
    assert Generator(6).page(1234) == pages[1234]
    assert len({page["_id"] for page in pages}) == len(pages)
    assert len({page["tenantId"] for page in pages[:2000]}) == 20


def test_absent_null_empty_and_unmapped_fields_all_occur() -> None:
    leads = [document for name, document in Generator(7).documents(10, 5000) if name == "leads"]
    for name in ("phone", "activities"):
        assert any(name not in lead for lead in leads)
        assert any(lead.get(name, "") is None for lead in leads)
        assert any(lead.get(name) for lead in leads)
    assert any(lead.get("activities") == [] for lead in leads)
    assert any(isinstance(lead.get("legacyId"), Int64) for lead in leads)
    assert any(isinstance(lead.get("customFields", {}).get("budget"), Decimal128) for lead in leads)
    assert max(len(lead.get("activities") or []) for lead in leads) == 6


def test_dates_are_utc_and_survive_bson() -> None:
    for _, document in islice(Generator(8).documents(5, 3000), 3000):
        assert bson.decode(bson.encode(document, codec_options=CODEC), codec_options=CODEC) == document
