"""MongoDB's indexes as PostgreSQL's: the same promises on the drafted columns, or a reason why not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from worker.inspect.draft import Draft, DraftCollection, DraftColumn, DraftTable
from worker.inspect.filters import Untranslatable, condition
from worker.inspect.names import quoted, shown, snake
from worker.inspect.survey import Survey, Unsupported

_LONGEST_KEY = 2000  # bytes; PostgreSQL refuses an index's row above a third of a page
_KINDS = {
    "text": "a text index: a tsvector column with a GIN index, as the application searches",
    "2dsphere": "a geospatial index: PostGIS, or numeric columns for latitude and longitude",
    "2d": "a geospatial index: PostGIS, or the type point",
    "hashed": "a hashed index serves MongoDB's sharding: PostgreSQL needs none for it",
    "columnstore": "a columnstore index has no equivalent",
}


@dataclass(slots=True)
class DraftIndex:
    """An index or unique constraint, ready to be written; ``remarks`` go above it as comments."""

    sql: str
    remarks: list[str] = field(default_factory=list)


@dataclass(slots=True)
class DraftIndexes:
    """What becomes of all indexes. ``collations``: those that they need, name to ICU's locale."""

    indexes: list[DraftIndex] = field(default_factory=list)
    collations: dict[str, str] = field(default_factory=dict)
    unsupported: list[Unsupported] = field(default_factory=list)


class _No(Exception):
    """The index has no equivalent; the text says why."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a path of MongoDB's is: a table, and a column's name and type."""

    table: DraftTable
    name: str
    type: str
    exact: bool = True
    longest: int = 0
    inside: bool = False  # within the jsonb of that column


def draft_indexes(survey: Survey, draft: Draft) -> DraftIndexes:
    """Return PostgreSQL's form of every index, and those that the tables need for themselves."""
    done = DraftIndexes()
    for surveyed, collection in zip(survey.collections, draft.collections, strict=True):
        leading: set[tuple[str, str]] = set()
        for index in surveyed.info.indexes:
            if dict(index["key"]) == {"_id": 1}:
                continue
            try:
                made = _Index(draft, collection, index, done).make()
            except (_No, Untranslatable) as why:
                told = f"index {shown(str(index['name']))}"
                done.unsupported.append(Unsupported(collection.name, told, str(why)))
                continue
            leading.add(made)
            if "expireAfterSeconds" in index:
                done.unsupported.append(
                    Unsupported(
                        collection.name,
                        f"expiry (TTL) of index {shown(str(index['name']))}",
                        "PostgreSQL deletes nothing by itself: name the job that will, before the switch",
                    )
                )
        for table in collection.table.all():
            done.indexes.extend(_own(draft, table, leading))
    return done


def _own(draft: Draft, table: DraftTable, leading: set[tuple[str, str]]) -> Iterator[DraftIndex]:
    """Index the tenant, for the policies, and what refers to another table, for its foreign key."""
    columns = [table.tenant] if table.tenant and table.tenant != table.own_key else []
    columns += [column.name for column in table.columns if column.references and column.type == "uuid"]
    for column in columns:
        if (table.name, column) not in leading:
            name = draft.relations.new(f"{table.name}_{column}")
            yield DraftIndex(f"CREATE INDEX {quoted(name)} ON public.{quoted(table.name)} ({quoted(column)})")


class _Index:
    """One index of MongoDB."""

    def __init__(
        self, draft: Draft, collection: DraftCollection, index: dict[str, Any], done: DraftIndexes
    ) -> None:
        self._draft, self._collection, self._index, self._done = draft, collection, index, done
        self._unique = bool(index.get("unique"))
        self._remarks: list[str] = []

    def make(self) -> tuple[str, str]:
        """Draft it; return its table and first column."""
        places = list(self._places())
        tables = {place.table.name for place in places}
        if len(tables) > 1:
            raise _No(f"its fields are in several tables: {', '.join(sorted(tables))}")
        table = places[0].table
        if self._unique and table.path:
            raise _No("unique across documents, but not within one: no constraint of PostgreSQL says that")
        odd = [place for place in places if place.type == "jsonb" or place.type.endswith("[]")]
        where = self._where(places)
        name = self._draft.relations.new(f"{table.name}_{snake(str(self._index['name']))}")
        remarks = [f"index {shown(str(self._index['name']))}"]
        if odd:
            sql = self._gin(table, places, name, where)
            self._done.indexes.append(DraftIndex(sql, [*remarks, *self._remarks]))
            return table.name, ""
        if self._unique:
            sql = self._unique_sql(table, places, name, where, remarks)
        else:
            sql = self._plain_sql(table, places, name, where, remarks)
        self._done.indexes.append(DraftIndex(sql, [*remarks, *dict.fromkeys(self._remarks)]))
        return table.name, "" if where else places[0].name

    def _places(self) -> Iterator[_Place]:
        for path, direction in self._index["key"].items():
            if isinstance(direction, str):
                raise _No(_KINDS.get(direction, f"an index of kind {shown(direction)}"))
            if "$**" in path:
                raise _No("a wildcard index: a GIN index on the jsonb columns that are searched")
            yield self._place(path)

    def _place(self, path: str) -> _Place:
        tenant = self._collection.tenant.path
        table = self._collection.table
        if path == "_id":
            return _Place(table, table.own_key, "uuid")
        if tenant is not None and path == tenant:
            assert table.tenant is not None
            return _Place(table, table.tenant, "uuid")
        place = _find(table, path)
        if place is None:
            raise _No(f"field {shown(path)} has no column")
        return place

    def _gin(self, table: DraftTable, places: list[_Place], name: str, where: str) -> str:
        if len(places) > 1:
            raise _No("several fields, one of them an array or jsonb: index them apart, as they are searched")
        (place,) = places
        if self._unique:
            raise _No("unique over values inside an array or jsonb: no constraint of PostgreSQL says that")
        operators = " jsonb_path_ops" if place.type == "jsonb" else ""
        return (
            f"CREATE INDEX {quoted(name)} ON public.{quoted(table.name)} "
            f"USING gin ({quoted(place.name)}{operators}){where}"
        )

    def _plain_sql(
        self, table: DraftTable, places: list[_Place], name: str, where: str, remarks: list[str]
    ) -> str:
        if long := [place.name for place in places if place.longest > _LONGEST_KEY]:
            if len(places) > 1:
                raise _No(f"texts in {', '.join(long)} are longer than PostgreSQL's index rows")
            remarks.append("a hash index: the texts are longer than a B-tree's rows")
            return (
                f"CREATE INDEX {quoted(name)} ON public.{quoted(table.name)} "
                f"USING hash ({quoted(places[0].name)}){where}"
            )
        keys = [
            f"{self._key(place)}{' DESC' if direction == -1 else ''}"
            for place, direction in zip(places, self._index["key"].values(), strict=True)
        ]
        return f"CREATE INDEX {quoted(name)} ON public.{quoted(table.name)} ({', '.join(keys)}){where}"

    def _unique_sql(
        self, table: DraftTable, places: list[_Place], name: str, where: str, remarks: list[str]
    ) -> str:
        if long := [place.name for place in places if place.longest > _LONGEST_KEY]:
            raise _No(f"texts in {', '.join(long)} are longer than PostgreSQL's index rows")
        nulls = ""
        if inexact := [place.name for place in places if not place.exact]:
            remarks.append(
                f"decide: values of {', '.join(inexact)} that do not fit are NULL: they are not kept unique"
            )
        elif not self._index.get("sparse") or len(places) > 1:
            nulls = " NULLS NOT DISTINCT"
        if not inexact:
            told = "a value that the column cannot hold would be NULL, which may be there once"
            remarks.append(f"decide: the sample had none, but {told}")
        keys = [self._key(place) for place in places]
        if where or any("COLLATE" in key for key in keys):
            remarks.append(
                "an index, for no constraint is partial or has a collation: values that swap are retried"
            )
            return (
                f"CREATE UNIQUE INDEX {quoted(name)} ON public.{quoted(table.name)} "
                f"({', '.join(keys)}){nulls}{where}"
            )
        return (
            f"ALTER TABLE public.{quoted(table.name)} ADD CONSTRAINT {quoted(name)} "
            f"UNIQUE{nulls} ({', '.join(keys)}) DEFERRABLE"
        )

    def _key(self, place: _Place) -> str:
        if place.type == "text" and (collation := self._collation()):
            return f"{quoted(place.name)} COLLATE public.{quoted(collation)}"
        return quoted(place.name)

    def _collation(self) -> str | None:
        """Return the collation that compares as the index does, where that is not by code points."""
        told: dict[str, Any] = self._index.get("collation") or {}
        locale, strength = str(told.get("locale", "simple")), int(told.get("strength", 3))
        if locale == "simple" or not re.fullmatch(r"[A-Za-z_@=;-]+", locale):
            return None
        tag = [locale.split("@")[0].replace("_", "-"), "u"]
        tag += [f"ks-level{strength}"] if strength != 3 else []
        tag += ["kn-true"] if told.get("numericOrdering") else []
        tag += ["kc-true"] if told.get("caseLevel") else []
        tag += [f"kf-{told['caseFirst']}"] if told.get("caseFirst", "off") != "off" else []
        tag += ["ka-shifted"] if told.get("alternate") == "shifted" else []
        icu = "-".join(tag if len(tag) > 2 else tag[:1])
        name = f"{snake(icu)}_ci" if strength < 3 else snake(icu)
        self._remarks.append("decide: ICU's versions differ in how they compare; see that this one fits")
        self._done.collations[name] = icu
        return name

    def _where(self, places: Iterable[_Place]) -> str:
        partial = self._index.get("partialFilterExpression")
        if partial:
            return f" WHERE {condition(partial, self._filtered)}"
        if self._index.get("sparse"):
            held = " OR ".join(f"{quoted(place.name)} IS NOT NULL" for place in places)
            return f" WHERE {held}"
        return ""

    def _filtered(self, path: str) -> tuple[str, str]:
        """Return the column and type of a field in the filter."""
        place = self._place(path)
        if place.table.path or place.inside:
            raise Untranslatable(f"its filter is on {shown(path)}, which has no column in that table")
        if not place.exact:
            self._remarks.append(
                f"decide: some values of {place.name} are NULL here, so the filter misses them"
            )
        return place.name, place.type


def _find(table: DraftTable, path: str) -> _Place | None:
    """Return where a path below a table's rows is."""
    for column in table.columns:
        if column.path == path:
            return _of(table, column)
        if column.type == "jsonb" and path.startswith(f"{column.path}."):
            return _Place(table, column.name, "jsonb", inside=True)
    for child in table.children:
        if path.startswith(f"{child.path}."):
            return _find(child, path.removeprefix(f"{child.path}."))
    return None


def _of(table: DraftTable, column: DraftColumn) -> _Place:
    return _Place(table, column.name, column.type, column.exact, column.longest)
