"""Names that hold a tenant: which real collections they are, and how a mapping is told from another."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import pytest

from topics import Collection
from worker.mapping import Mapping, hashes
from worker.mapping.sources import Sources


@pytest.mark.parametrize(
    ("database", "names", "namespace", "found"),
    [
        ("shop_{tenant}", ["orders"], "shop_a.orders", ("orders", "shop_tenant.orders", "a")),
        ("shop_{tenant}", ["orders"], "shop_.orders", None),
        ("shop_{tenant}", ["orders"], "shop.orders", None),
        ("shop_{tenant}", ["orders"], "shop_a.orders2", None),
        ("{tenant}", ["orders"], "crossfade.orders", None),
        ("{tenant}", ["orders"], "admin.orders", None),
        ("s", ["{tenant}_orders"], "s.a.b_orders", ("{tenant}_orders", "s.tenant_orders", "a.b")),
        ("s", ["{tenant}_orders"], "s._orders", None),
        ("s", ["{tenant}_orders", "old_orders"], "s.old_orders", ("old_orders", "s.old_orders", None)),
        (
            "s",
            ["{tenant}_orders", "{tenant}_old_orders"],
            "s.a_old_orders",
            ("{tenant}_old_orders", "s.tenant_old_orders", "a"),
        ),
        ("s", ["{tenant}"], "s.system.views", None),
        ("s+(1)", ["a$b.{tenant}"], "s+(1).a$b.x\ny", ("a$b.{tenant}", "s+(1).a$b.tenant", "x\ny")),
    ],
)
def test_a_namespace_is_found_by_the_nearest_name(
    database: str, names: list[str], namespace: str, found: tuple[str, str, str | None] | None
) -> None:
    sources = Sources(database, names)
    source = sources.find(namespace)
    assert (source and (source.name, str(source.logical), source.tenant)) == found
    if found:  # what is found is watched
        outer, inner = namespace.split(".", 1)
        database, collections = sources.names()
        assert _fits(database, outer) and any(_fits(name, inner) for name in collections)


def _fits(name: str | re.Pattern[str], text: str) -> bool:
    return name == text if isinstance(name, str) else name.fullmatch(text) is not None


def test_only_a_name_without_a_place_for_the_tenant_is_one_collection() -> None:
    sources = Sources("s", ["orders", "{tenant}_orders"])
    assert sources.exact(Collection("s", "orders"))
    assert not sources.exact(Collection("s", "tenant_orders"))
    assert not Sources("s_{tenant}", ["orders"]).exact(Collection("s_tenant", "orders"))


def mapping(**collections: dict[str, Any]) -> Mapping:
    plain = {"rest": "rest", "tenant": {"path": "t", "column": "tenant_id"}, "columns": {}}
    made = {name: {"table": name} | plain | one for name, one in collections.items()}
    return Mapping.model_validate({"version": 1, "database": "s", "collections": made})


COLUMNS = {"a": {"type": "text"}, "b": {"type": "integer", "path": "x.y"}}


@pytest.mark.parametrize(
    "change",
    [
        {"columns": {"a": {"type": "text"}, "b": {"type": "bigint", "path": "x.y"}}},
        {"columns": {"a": {"type": "text"}, "b": {"type": "integer", "path": "x.z"}}},
        {"columns": {"a": {"type": "text"}}},
        {"columns": {"a": {"type": "text"}, "b": {"type": "integer", "path": "x.y", "default": 0}}},
        {"columns": COLUMNS, "ignore": ["c"]},
        {"columns": COLUMNS, "table": "other"},
        {"columns": COLUMNS, "tenant": {"path": "u", "column": "tenant_id"}},
        {"columns": COLUMNS, "tenant": None},
    ],
)
def test_a_change_that_makes_other_rows_changes_the_hash_of_that_collection(change: dict[str, Any]) -> None:
    before, after = hashes(mapping(p={"columns": COLUMNS}, q={})), hashes(mapping(p=change, q={}))
    assert before["s.p"] != after["s.p"] and before["s.q"] == after["s.q"]


def test_the_order_of_columns_and_what_is_default_change_no_hash() -> None:
    turned = {"b": COLUMNS["b"] | {"required": False}, "a": {"type": "text", "misfit": "rest"}}
    assert hashes(mapping(p={"columns": COLUMNS})) == hashes(mapping(p={"columns": turned}))


def test_a_constant_of_any_type_has_a_hash() -> None:
    one, other = (
        hashes(
            mapping(
                p={"columns": {"a": {"type": "timestamptz", "constant": datetime(2020, 1, day, tzinfo=UTC)}}}
            )
        )
        for day in (1, 2)
    )
    assert one != other


def test_a_parents_tenant_is_part_of_its_childrens_hash() -> None:
    below = {"tenant": {"parent": {"collection": "p", "path": "p"}, "column": "tenant_id"}}
    before = hashes(mapping(p={}, q=below))
    after = hashes(mapping(p={"tenant": {"path": "u", "column": "tenant_id"}}, q=below))
    assert before["s.q"] != after["s.q"]
