"""What inspect keeps of documents, and what it drafts from that; no service."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from bson import Binary, Decimal128, Int64, ObjectId, Regex
from hypothesis import given, settings
from hypothesis import strategies as st

from schema.targets import read_target
from tests.support import shapes
from tests.support.same import assert_same
from tests.support.stored import stored
from worker.errors import ConfigurationError
from worker.inspect.choices import Holder, choose
from worker.inspect.ddl import ddl
from worker.inspect.draft import Draft, draft
from worker.inspect.indexes import DraftIndexes, draft_indexes
from worker.inspect.mapping_text import mapping_text
from worker.inspect.names import shown, singular, snake
from worker.inspect.profile import DISTINCT, Budget, Profile
from worker.inspect.survey import Survey, Surveyed, database_of
from worker.inspect.tenants import candidates, choose_tenants
from worker.mapping import CollectionPlan, Mapping, Rebuilder, load, scopes
from worker.mongo.sample import CollectionInfo


def profile(values: Iterable[Any], budget: Budget | None = None) -> Profile:
    made = Profile(budget)
    for value in values:
        made.add(value)
    made.settle()
    return made


def surveyed(name: str, documents: list[dict[str, Any]], *indexes: dict[str, Any]) -> Surveyed:
    one = Surveyed(
        CollectionInfo(name, "collection", {}, indexes, len(documents)), profile=profile(documents)
    )
    one.taken.documents, one.taken.whole = len(documents), True
    return one


def drafted(survey: Survey, tenant: str | None = None, **given: str) -> tuple[Draft, DraftIndexes, Mapping]:
    """Draft, write and read it all back as the other commands do."""
    made = draft(survey, choose_tenants(survey, tenant, given))
    indexes = draft_indexes(survey, made)
    with tempfile.TemporaryDirectory() as folder:
        file, target = Path(folder) / "mapping.yaml", Path(folder) / "tables"
        file.write_text(mapping_text(made, indexes.unsupported))
        target.mkdir()
        for name, text in ddl(made, indexes).items():
            (target / name).write_text(text)
        read_target(target)
        return made, indexes, load(file)


def one_collection(documents: list[dict[str, Any]], *indexes: dict[str, Any]) -> Survey:
    return Survey("db", [surveyed("things", documents, *indexes)], [])


def assert_kept(mapping: Mapping, content: shapes.Database) -> None:
    """Every document has rows under a mapping, and comes back from them."""
    for name, documents in content.items():
        one, all_scopes = mapping.collections[name], scopes(mapping, None)
        plan, rebuilder = CollectionPlan(one, None, all_scopes), Rebuilder(one, None, all_scopes)
        for document in documents:
            made = plan.rows(document)
            (row,) = stored([made.row], plan.table.columns)
            children = [stored(rows, t.columns) for rows, t in zip(made.children, plan.children, strict=True)]
            assert_same(rebuilder.document(row, children), document)


SHAPES = [(shapes.shop, "tenantId"), (shapes.blog, "site.org"), (shapes.telemetry, "owner")]


@pytest.mark.parametrize(("shape", "tenant"), SHAPES, ids=["shop", "blog", "telemetry"])
@pytest.mark.parametrize("seen", [1, 20, 1000])
def test_a_draft_of_a_part_keeps_all_documents(shape: Any, tenant: str, seen: int) -> None:
    content = shape(seed=seen)
    survey = Survey("db", [surveyed(name, some[:seen]) for name, some in content.items()], [])
    _, _, mapping = drafted(survey, tenant)
    assert_kept(mapping, content)


_names = st.one_of(
    st.sampled_from(
        ["a", "A", "aB", "a_b", "id", "_id", "rest", "tenant_id", "position", "xmin", "on", "null"]
    ),
    st.sampled_from(
        ["a.b", "", "$", "$a", "a b", "é", "名", "1", "2024-01-01", "a\nb", "'", '"', ": {", "# x", "a'b"]
    ),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5),
)
_leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(0, 9).map(Int64),
    st.floats(allow_nan=False),
    st.sampled_from(["", "a\0", "text", "2024-01-01", "x" * 300]),
    st.sampled_from([datetime(2024, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)]),
    st.sampled_from([Decimal128("1.50"), Decimal128("NaN"), Decimal128("1E+40")]),
    st.binary(max_size=3),
    st.sampled_from([ObjectId("0123456789abcdef01234567"), Binary(b"x", 5), Regex("a", "i")]),
    st.uuids(version=4),
)
_values = st.recursive(
    _leaves,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(_names, inner, max_size=4)),
    max_leaves=12,
)
_documents = st.lists(st.dictionaries(_names, _values, max_size=6), min_size=1, max_size=6)


@settings(max_examples=300, deadline=None)
@given(_documents, st.integers(1, 6))
def test_whatever_was_seen_is_drafted_and_whatever_comes_is_kept(
    documents: list[dict[str, Any]], seen: int
) -> None:
    for document in documents:
        document["_id"] = uuid4()
    _, _, mapping = drafted(one_collection(documents[:seen]), things="-")
    assert_kept(mapping, {"things": documents})


ID = ObjectId("0123456789abcdef01234567")
NOW = datetime(2024, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("values", "type_"),
    [
        (["a", "b", None], "text"),
        ([True], "boolean"),
        ([1, -5], "integer"),
        ([1, 2**30], "bigint"),
        ([Int64(1)], "bigint"),
        ([1.5], "double precision"),
        ([1.5, 2], "double precision"),
        ([1.5, Int64(2**60)], "jsonb"),
        ([Decimal128("1")], "numeric"),
        ([Decimal128("1"), 1, 2.5], "numeric"),
        ([NOW], "timestamptz"),
        ([ID], "uuid"),
        ([ID, uuid4()], "uuid"),
        ([b"x"], "bytea"),
        ([None], "jsonb"),
        (["a"] * 95 + [1] * 5, "text"),
        (["a"] * 94 + [1] * 6, "jsonb"),
        ([["a"], [], None], "text[]"),
        ([[1.5, None]], "double precision[]"),
        ([[1, "a"]], "jsonb"),
        ([[]], "jsonb"),
        ([[[1]]], "jsonb"),
        ([{}], "jsonb"),
        ([{f"k{n}": 1} for n in range(300)], "jsonb"),
        ([{"2024-01-01": 1, "2024-01-02": 2}], "jsonb"),
    ],
)
def test_a_type_is_chosen_where_nearly_all_values_fit_it(values: list[Any], type_: str) -> None:
    choice = choose(profile(values))
    assert (choice.holder, choice.type) == (Holder.COLUMN, type_)


@pytest.mark.parametrize(
    ("values", "holder"),
    [
        ([{"a": 1}], Holder.FIELDS),
        ([[{"a": 1}], []], Holder.TABLE),
        ([Regex("a")], Holder.REST),
        ([Binary(b"secret", 6)], Holder.REST),
    ],
)
def test_objects_become_columns_and_arrays_of_them_tables(values: list[Any], holder: Holder) -> None:
    assert choose(profile(values)).holder is holder


def test_memory_is_bounded_whatever_the_documents() -> None:
    budget = Budget(paths=100, hashes=2000, ids=50)
    made = Profile(budget)
    for n in range(5000):
        made.add({f"field{n}": n, "same": f"text {n}", "deep": {f"k{n}": {f"k{n}": n}}})
    assert len(made.fields) + len(made.fields["deep"].fields) <= 100 and made.more_names
    assert sum(len(field._hashes) for field in made.fields.values()) <= 2000
    made.settle()
    assert made.fields["same"].different == DISTINCT and made.fields["same"].more_different
    assert not made.fields["same"]._hashes


def test_a_profile_tells_shares_sizes_and_bounds() -> None:
    told = profile([{"a": 1}, {"a": "xyz"}, {"a": None, "b": [1, 2]}, {"b": []}]).as_json(4)
    fields = told["fields"]
    assert fields["a"]["presence"] == 0.75 and fields["a"]["nulls"] == round(1 / 3, 4)
    assert fields["a"]["types"] == {"int": 0.3333, "string": 0.3333, "null": 0.3333}
    assert (fields["a"]["least"], fields["a"]["greatest"], fields["a"]["longest"]) == (1, 1, 3)
    assert fields["b"]["sizes"] == {"least": 0, "average": 1.0, "greatest": 2}


def test_names_are_as_postgresql_writes_them() -> None:
    names = {
        "createdAt": "created_at",
        "HTTPServer": "http_server",
        "a.b": "a_b",
        "1st": "f_1st",
        "名": "field",
    }
    assert {name: snake(name) for name in names} == names
    many = {
        "categories": "category",
        "boxes": "box",
        "addresses": "address",
        "status": "status",
        "lines": "line",
    }
    assert {name: singular(name) for name in many} == many
    assert "\n" not in shown("a\nb") and len(shown("x" * 500)) < 100


@pytest.mark.parametrize(
    "name",
    ["pg_class", "user", "select", "xmin", "no", "null", "x" * 200, "тест", "drop table x; --"],
)
def test_any_name_makes_a_table_and_a_column(name: str) -> None:
    survey = Survey("db", [surveyed(name, [{"_id": ID, name: 1, f"{name}s": [{name: 2}]}])], [])
    made, _, mapping = drafted(survey)
    assert list(mapping.collections) == [name]
    (table, child) = made.collections[0].table.all()
    assert not table.name.startswith("pg_") and [column.name for column in table.columns] != ["xmin"]
    assert len(child.name) <= 63


def test_arrays_in_arrays_become_tables_keyed_by_every_position() -> None:
    survey = Survey("db", [surveyed("posts", shapes.blog()["posts"])], [])
    made, _, mapping = drafted(survey, "site.org")
    names = [name for name, _ in mapping.collections["posts"].tables()]
    assert names == ["posts", "post_comments", "post_comment_replies", "post_comment_reply_reactions"]
    keys = [table.key for table in made.collections[0].table.all()]
    assert keys[-1] == ("post_id", "comment_position", "reply_position", "position")


def things(*indexes: dict[str, Any], **fields: Any) -> tuple[list[str], list[str], str]:
    """Return the SQL of indexes, what was unsupported, and all files, for one collection."""
    documents = [{"_id": ObjectId(), **fields} for _ in range(3)]
    made, done, _ = drafted(one_collection(documents, {"name": "_id_", "key": {"_id": 1}}, *indexes))
    return (
        [one.sql for one in done.indexes],
        [one.what for one in done.unsupported],
        "".join(ddl(made, done).values()),
    )


def index(**more: Any) -> dict[str, Any]:
    key = more.pop("key", {"a": 1})
    return {"name": "_".join(f"{name}_{way}" for name, way in key.items()), "key": key, **more}


@pytest.mark.parametrize(
    ("wanted", "sql"),
    [
        (index(), '("a")'),
        (index(key={"a": 1, "b": -1}), '("a", "b" DESC)'),
        (index(unique=True), 'UNIQUE NULLS NOT DISTINCT ("a") DEFERRABLE'),
        (index(key={"a": 1, "n": 1}, unique=True), 'UNIQUE NULLS NOT DISTINCT ("a", "n") DEFERRABLE'),
        (
            index(unique=True, sparse=True),
            'UNIQUE INDEX "things_a_1" ON public."things" ("a") WHERE "a" IS NOT NULL',
        ),
        (index(partialFilterExpression={"n": {"$gte": 5}}), '("a") WHERE "n" >= 5'),
        (index(partialFilterExpression={"b": "it's"}), "(\"a\") WHERE \"b\" = 'it''s'"),
        (
            index(partialFilterExpression={"$and": [{"a": {"$exists": True}}, {"n": {"$in": [1, 2]}}]}),
            'WHERE (("a" IS NOT NULL) AND (("n" = 1 OR "n" = 2)))',
        ),
        (index(collation={"locale": "en", "strength": 2}), '("a" COLLATE public."en_u_ks_level2_ci")'),
        (index(key={"o.x": 1}), '("o_x")'),
        (index(key={"tags": 1}), 'USING gin ("tags")'),
        (index(key={"map.2024-01-01": 1}), 'USING gin ("map" jsonb_path_ops)'),
        (index(key={"items.sku": 1}), 'public."thing_items" ("sku")'),
        (index(key={"long": 1}), 'USING hash ("long")'),
        (index(key={"when": 1}, expireAfterSeconds=5), '("when")'),
    ],
)
def test_an_index_has_an_equivalent(wanted: dict[str, Any], sql: str) -> None:
    made, _, _ = things(wanted, **FIELDS)
    assert any(sql in one for one in made), made


FIELDS: dict[str, Any] = {
    "a": "x",
    "b": "y",
    "n": 7,
    "o": {"x": 1},
    "tags": ["t"],
    "map": {"2024-01-01": 1, "2024-01-02": 2},
    "items": [{"sku": "s"}],
    "long": "x" * 3000,
    "when": NOW,
}


@pytest.mark.parametrize(
    "wanted",
    [
        index(key={"a": "text"}),
        index(key={"a": "2dsphere"}),
        index(key={"_id": "hashed"}),
        index(key={"$**": 1}),
        index(key={"items.sku": 1, "a": 1}),
        index(key={"items.sku": 1}, unique=True),
        index(key={"tags": 1}, unique=True),
        index(key={"tags": 1, "a": 1}),
        index(key={"long": 1}, unique=True),
        index(key={"unknown": 1}),
        index(partialFilterExpression={"a": {"$regex": "x"}}),
        index(partialFilterExpression={"n": "text"}),
        index(partialFilterExpression={"unknown": 1}),
    ],
    ids=str,
)
def test_an_index_without_an_equivalent_is_named(wanted: dict[str, Any]) -> None:
    made, unsupported, text = things(wanted, **FIELDS)
    assert made == [] and len(unsupported) == 1
    assert f"-- not drafted: things, {unsupported[0]}: " in text


def test_an_expiry_asks_for_an_owner() -> None:
    assert things(index(key={"when": 1}, expireAfterSeconds=5), **FIELDS)[1] == [
        "expiry (TTL) of index when_1"
    ]


def test_values_that_do_not_fit_are_not_taken_for_each_others_duplicates() -> None:
    documents = [{"_id": ObjectId(), "a": "x" if n else 5} for n in range(100)]
    _, indexes, _ = drafted(one_collection(documents, index(unique=True)))
    (unique,) = indexes.indexes
    assert "NULLS NOT DISTINCT" not in unique.sql and any("decide:" in one for one in unique.remarks)


def with_tenants(*names: str, **fields: Any) -> Survey:
    return Survey("db", [surveyed(name, [{"_id": ObjectId(), **fields}] * 4) for name in names], [])


def test_the_field_that_looks_like_the_tenant_is_taken_and_said() -> None:
    survey = with_tenants("a", "b", tenantId="x", orgName="y", companyId="z")
    assert [one.path for one in candidates(survey)] == ["tenantId", "companyId"]
    made, indexes, mapping = drafted(survey)
    assert {one.tenant and one.tenant.path for one in mapping.collections.values()} == {"tenantId"}
    assert "decide: tenantId looks like the tenant" in mapping_text(made, indexes.unsupported)
    walls = ddl(made, indexes)["003_tenant_walls.sql"]
    assert walls.count("FORCE ROW LEVEL SECURITY;") == 2


def test_a_collection_without_tenant_is_shared_and_says_so() -> None:
    made, indexes, mapping = drafted(with_tenants("a", x=1))
    assert mapping.collections["a"].tenant is None
    files = "".join(ddl(made, indexes).values())
    assert "POLICY" not in files and "no row-level security" in files
    assert 'GRANT SELECT, INSERT, UPDATE, DELETE ON public."a" TO crossfade_sync;' in files


def test_a_tenant_inside_an_object_is_not_in_the_objects_column() -> None:
    survey = with_tenants("a", meta={f"2024-01-{n:02}": n for n in range(10, 20)} | {"org": "x"})
    _, _, mapping = drafted(survey, "meta.org")
    assert_kept(mapping, {"a": [{"_id": ObjectId(), "meta": {"org": "y", "2024-01-10": 5, "other": 1}}]})


@pytest.mark.parametrize(("path", "given"), [("nope", {}), (None, {"nope": "x"}), (None, {"a": "nope"})])
def test_a_tenant_that_is_nowhere_is_refused(path: str | None, given: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="nope"):
        choose_tenants(with_tenants("a", x=1), path, given)


def test_documents_without_tenant_are_counted() -> None:
    documents = [{"_id": ObjectId(), **({"t": 1} if n else {})} for n in range(4)]
    made, _, _ = drafted(one_collection(documents), "t")
    assert "1 documents (25 %)" in made.collections[0].tenant.decide[0]


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("mongodb://a:b@h:1,i:2/shop?replicaSet=r", "shop"),
        ("mongodb+srv://h/shop", "shop"),
        ("mongodb://h/?x=/y", None),
        ("mongodb://h", None),
    ],
)
def test_the_database_of_a_connection_string(uri: str, name: str | None) -> None:
    assert database_of(uri) == name
