"""What is kept of a sample's documents: by path, counts and bounds, in bounded memory."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, cast
from uuid import UUID

from bson import Binary, Code, DBRef, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp
from bson.datetime_ms import DatetimeMS

DISTINCT = 1000
"""Different values counted at a path; from there on it is "at least"."""
_PATHS = 5000  # of a collection
_HASHES = 200_000
_IDS = 20_000
_NAMES = 200  # different names in the objects at a path; ten times that in documents
_DEPTH = 24  # what lies deeper is jsonb anyway
_REFERENCES = 50  # different id-like values kept at a path, to look them up
_LONGEST_ID = 100

_KINDS: dict[type, str] = {
    type(None): "null",
    str: "string",
    bool: "bool",
    int: "int",
    Int64: "long",
    float: "double",
    Decimal128: "decimal",
    datetime: "date",
    DatetimeMS: "date beyond the years 1 to 9999",
    UUID: "uuid",
    ObjectId: "objectId",
    bytes: "binary",
    dict: "object",
    list: "array",
    Regex: "regex",
    Timestamp: "timestamp",
    DBRef: "dbRef",
    MinKey: "minKey",
    MaxKey: "maxKey",
}
_ENCRYPTED = 6
_DATE = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:?\d\d)?)?")
_ID_TEXT = re.compile(r"[0-9a-fA-F]{24}|[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_DATA_NAME = re.compile(rf"\d+|{_ID_TEXT.pattern}|{_DATE.pattern}")


def kind_of(value: Any) -> str:
    """Return the BSON type of a decoded value, as MongoDB names it."""
    if kind := _KINDS.get(type(value)):
        return kind
    if isinstance(value, Binary):
        return "encrypted" if value.subtype == _ENCRYPTED else f"binary({value.subtype})"
    if isinstance(value, Code):
        return "javascript" if value.scope is None else "javascriptWithScope"
    return type(value).__name__


class Budget:
    """How much more may be kept of a collection: paths, and values to tell apart or to look up."""

    def __init__(self, paths: int = _PATHS, hashes: int = _HASHES, ids: int = _IDS) -> None:
        self.paths, self.hashes, self.ids = paths, hashes, ids


@dataclass(frozen=True, slots=True)
class Reference:
    """The collection among whose ids ``found`` of ``looked`` different values were."""

    collection: str
    looked: int
    found: int


class Profile:
    """What the values at one path are. An array's elements, and an object's fields, have profiles below."""

    def __init__(self, budget: Budget | None = None, depth: int = 0) -> None:
        self._budget, self._depth = budget or Budget(), depth
        self.count = 0
        self.kinds: Counter[str] = Counter()
        self.longest = self.longest_bytes = 0
        self.least: int | None = None
        self.greatest: int | None = None
        self.midnights = self.date_texts = self.id_texts = self.nuls = 0
        self.fields: dict[str, Profile] = {}
        self.more_names = False  # than are followed
        self.elements: Profile | None = None
        self.sizes: tuple[int, int] | None = None
        self.total_size = self.empty = 0
        self.id_values: dict[Any, None] = {}
        self.reference: Reference | None = None  # set when the values were looked up
        self._hashes: set[int] = set()
        self.different = 0  # scalars; set when all is counted
        self.more_different = False

    def add(self, value: Any) -> None:
        """Count one value."""
        self.count += 1
        kind = kind_of(value)
        self.kinds[kind] += 1
        if note := _NOTED.get(kind):
            note(self, value)
        if kind not in ("null", "object", "array"):
            self._distinct(value)

    def settle(self) -> None:
        """Count what was different, here and below, and forget it. Nothing is added any more."""
        self.different = len(self._hashes)
        self._hashes.clear()
        for inner in (*self.fields.values(), *([self.elements] if self.elements else [])):
            inner.settle()

    def of(self, *kinds: str) -> int:
        """Return how many values are of these types."""
        return sum(self.kinds[kind] for kind in kinds)

    @property
    def objects(self) -> int:
        """How many of the values are objects."""
        return self.kinds["object"]

    @property
    def values(self) -> int:
        """How many values there are but nulls."""
        return self.count - self.kinds["null"]

    @property
    def like_a_map(self) -> bool:
        """Whether the names in the objects look like data: very many, seldom the same, or ids and dates."""
        names, objects = len(self.fields), self.kinds["object"]
        if self.more_names:
            return True
        if names >= 2 and sum(_DATA_NAME.fullmatch(name) is not None for name in self.fields) >= 0.8 * names:
            return True
        return names >= 12 and sum(field.count for field in self.fields.values()) < 0.2 * names * objects

    def _distinct(self, value: Any) -> None:
        if self.more_different:
            return
        try:
            hashed = hash(value)
        except TypeError:  # a regex, code, a DBRef to an object
            hashed = hash(repr(value))
        if hashed in self._hashes:
            return
        if len(self._hashes) >= DISTINCT or self._budget.hashes <= 0:
            self.more_different = True
            return
        self._budget.hashes -= 1
        self._hashes.add(hashed)

    def _string(self, value: str) -> None:
        self.longest = max(self.longest, len(value))
        self.longest_bytes = max(self.longest_bytes, len(value.encode("utf-8", "surrogatepass")))
        self.nuls += "\0" in value
        if len(value) <= _LONGEST_ID:
            self.date_texts += _DATE.fullmatch(value) is not None
            self.id_texts += _ID_TEXT.fullmatch(value) is not None
            self._id(value)

    def _integer(self, value: int) -> None:
        number = int(value)
        self.least = number if self.least is None else min(self.least, number)
        self.greatest = number if self.greatest is None else max(self.greatest, number)
        self._id(number)

    def _id(self, value: Any) -> None:
        if len(self.id_values) < _REFERENCES and self._budget.ids > 0 and value not in self.id_values:
            self._budget.ids -= 1
            self.id_values[value] = None

    def _date(self, value: datetime) -> None:
        self.midnights += not (value.hour or value.minute or value.second or value.microsecond)

    def _object(self, value: dict[str, Any]) -> None:
        if self._depth >= _DEPTH:
            self.more_names = True
            return
        for name, inner in value.items():
            field = self.fields.get(name)
            if field is None:
                if self._budget.paths <= 0 or len(self.fields) >= (_NAMES if self._depth else 10 * _NAMES):
                    self.more_names = True
                    continue
                field = self.fields[name] = self._below()
            field.add(inner)

    def _array(self, value: list[Any]) -> None:
        size = len(value)
        low, high = self.sizes or (size, size)
        self.sizes = (min(low, size), max(high, size))
        self.total_size += size
        self.empty += not size
        if self._depth >= _DEPTH:
            return
        if self.elements is None:
            self.elements = self._below()
        for element in value:
            self.elements.add(element)

    def _below(self) -> Profile:
        self._budget.paths -= 1
        return Profile(self._budget, self._depth + 1)

    def as_json(self, of: int) -> dict[str, Any]:
        """Return the profile as `inspect --json` prints it; ``of``: how many values there could be."""
        told: dict[str, Any] = {
            "presence": _share(self.count, of),
            "count": self.count,
            "nulls": _share(self.kinds["null"], self.count),
            "types": {kind: _share(n, self.count) for kind, n in self.kinds.most_common()},
        }
        if self.different:
            told["different"] = self.different
            told["different_is_at_least"] = self.more_different
        if self.kinds["string"]:
            told["longest"] = self.longest
        if self.least is not None:
            told |= {"least": self.least, "greatest": self.greatest}
        if self.reference is not None:
            told["refers_to"] = asdict(self.reference)
        if self.sizes:
            average = round(self.total_size / self.kinds["array"], 2)
            told["sizes"] = {"least": self.sizes[0], "average": average, "greatest": self.sizes[1]}
        if self.elements is not None and self.elements.count:
            told["elements"] = self.elements.as_json(self.total_size)
        if self.kinds["object"]:
            told["names_look_like_data"] = self.like_a_map
            told["fields"] = {
                name: field.as_json(self.kinds["object"]) for name, field in sorted(self.fields.items())
            }
        return told


def _share(part: int, whole: int) -> float:
    return round(part / whole, 4) if whole else 0.0


_NOTED: dict[str, Callable[[Profile, Any], None]] = {
    "string": Profile._string,
    "int": Profile._integer,
    "long": Profile._integer,
    "uuid": Profile._id,
    "objectId": Profile._id,
    "date": Profile._date,
    "object": lambda profile, value: profile._object(cast("dict[str, Any]", value)),
    "array": lambda profile, value: profile._array(cast("list[Any]", value)),
}
