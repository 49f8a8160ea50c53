"""Strategies for values of every BSON type, and for documents of a mapping."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from bson import Binary, Code, DBRef, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp
from bson.datetime_ms import DatetimeMS
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from worker.mapping.ids import objectid_to_uuid

ints = st.one_of(
    st.integers(-3, 3), st.sampled_from([2**15, -(2**31), 2**31, 2**53 + 1, 2**63 - 1, -(2**63)])
)
texts = st.one_of(
    st.sampled_from(["", "a\0b", "5", "NaN", "2020-01-02T03:04:05.678Z", "\ufffd", "$x"]),
    st.just("11111111-1111-4111-8111-111111111111"),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
)
dates = st.one_of(
    st.integers(-62135596800000, 253402300799999).map(
        lambda ms: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)
    ),
    st.sampled_from([DatetimeMS(2**62), DatetimeMS(-(2**63))]),
)
bits = st.binary(min_size=16, max_size=16)
decimals = st.one_of(
    st.sampled_from(
        ["0", "-0", "0.00", "0E+3", "1E+3", "10000", "120000.00", "1E+6144", "1E-6176", "NaN"]
    ).map(Decimal128),
    st.sampled_from(["-NaN", "Infinity", "-Infinity", "1.20", "-0.00001200", "9" * 34]).map(Decimal128),
    bits.map(Decimal128.from_bid),
)
oids = st.binary(min_size=12, max_size=12).map(ObjectId)
ids = st.one_of(st.uuids(), oids, oids.map(objectid_to_uuid))
floats = st.one_of(
    st.floats(),
    st.sampled_from([-0.0, 5.0, 1e15, 1e16, 5.129148864682219e16, 5e-324, 1.7976931348623157e308]),
)
leaves = st.one_of(
    st.none(),
    st.booleans(),
    ints,
    ints.map(Int64),
    floats,
    texts,
    dates,
    decimals,
    ids,
    st.binary(max_size=3),
    st.builds(Binary, st.binary(max_size=3), st.sampled_from([1, 2, 5, 6, 7, 8, 9, 128, 255])),
    st.builds(Binary, bits, st.just(3)),
    st.builds(Timestamp, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
    st.builds(Regex, st.sampled_from(["", "a/b"]), st.sampled_from(["", "imx", "ls"])),
    st.builds(Code, texts),
    st.builds(Code, texts, st.dictionaries(st.sampled_from(["a", "$b"]), ints, max_size=2)),
    st.builds(DBRef, texts, ids, st.sampled_from([None, "db"])),
    st.builds(lambda id_, more: DBRef("c", id_, None, {"x": more}), ints, floats),
    st.sampled_from([MinKey(), MaxKey()]),
)
plain_names = ["a", "", ".", "a.b", "~", "~1", "0", "n", "j", "o", "m"]
type_names = ["$notes", "$value", "$$x", "$oid", "$date", "$numberInt", "$minKey", "$code", "$scope"]
names = st.sampled_from(plain_names + type_names)
one_deep = st.one_of(leaves, st.lists(leaves, max_size=2), st.dictionaries(names, leaves, max_size=2))
two_deep = st.one_of(one_deep, st.lists(one_deep, max_size=2), st.dictionaries(names, one_deep, max_size=2))
anything = st.one_of(leaves, st.lists(two_deep, max_size=3), st.dictionaries(names, two_deep, max_size=3))
quick = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=400,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
