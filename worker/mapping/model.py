"""The mapping file as a model: which collection's fields become which columns of which table."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from topics import Collection
from worker.mapping.sources import PLACEHOLDER, Sources, check_template
from worker.mapping.types import IDENTIFIER, ColumnType, parse_type
from worker.mapping.values import literal

ELEMENT = "$"
"""The path, in a child table, of an array's element itself."""

_ID = "_id"

Place = tuple[str, ...]
Fault = tuple[Place, str]


class Faults(ValueError):
    """What is wrong inside a part of the file, each with its place below that part."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = list(faults)
        super().__init__("; ".join(message for _, message in self.faults))


def _identifier(name: str) -> str:
    # Names go into SQL inside double quotes; this leaves no way out of them.
    if not IDENTIFIER.fullmatch(name):
        raise ValueError("must be a plain SQL name (letters, digits, '_', at most 63)")
    return name


def _path(path: str) -> str:
    if not all(path.split(".")):
        raise ValueError("must be field names joined by dots")
    return path


def _type(written: str) -> str:
    parse_type(written)
    return " ".join(written.split())


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Identifier = Annotated[str, AfterValidator(_identifier)]
Path = Annotated[str, AfterValidator(_path)]
TypeName = Annotated[str, AfterValidator(_type)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Column(_Model):
    """One column: where its value is in the document, and its type in PostgreSQL."""

    type: TypeName
    path: Path | None = Field(None, description="default: the column's name")
    required: bool = Field(False, description="a document without a fitting value becomes a dead letter")
    misfit: Literal["rest", "dead_letter"] = Field(
        "rest", description="a value that the column cannot hold: kept in the rest column, or a dead letter"
    )
    constant: Any = Field(None, description="every row's value, instead of one of the document's")
    default: Any = Field(None, description="the value where the document has none that fits")
    values: tuple[str, ...] | None = Field(None, description="an enumerated type's labels")
    references: str | None = Field(
        None, description="the collection whose document ids these are; they become row ids"
    )

    @property
    def parsed(self) -> ColumnType:
        """Return the type, read."""
        return parse_type(self.type)

    @model_validator(mode="after")
    def _makes_sense(self) -> Column:
        faults: list[Fault] = []
        if (self.parsed.base == "enum") != (self.values is not None):
            faults.append((("values",), "enum needs its labels in `values`, and no other type has any"))
        if self.constant is not None and self.model_fields_set & {"path", "required", "misfit", "default"}:
            faults.append(
                (("constant",), "a constant comes from no field: leave path, required, misfit, default out")
            )
        if self.default is not None and self.required:
            faults.append((("default",), "a required column takes no default: choose one of the two"))
        if self.references is not None and self.parsed.base != "uuid":
            faults.append((("references",), f"only a uuid column refers to documents, not {self.type}"))
        for name, value in (("constant", self.constant), ("default", self.default)):
            if value is not None and not faults:
                try:
                    literal(self.parsed, self.values, value)
                except ValueError as error:
                    faults.append(((name,), str(error)))
        if faults:
            raise Faults(faults)
        return self


class Parent(_Model):
    """The document whose tenant this one has: its collection, and the field that holds its id."""

    collection: str
    path: Path


class Tenant(_Model):
    """Where a document's tenant comes from, and the column that says it in PostgreSQL."""

    column: Identifier
    path: Path | None = Field(None, description="a field of the document")
    constant: str | int | None = Field(None, description="one tenant for the whole collection")
    name: Literal["database", "collection"] | None = Field(
        None, description=f"the part of that name where the mapping has {PLACEHOLDER}"
    )
    parent: Parent | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Tenant:
        if sum(value is not None for value in (self.path, self.constant, self.name, self.parent)) != 1:
            raise ValueError("say where the tenant comes from: one of path, constant, name, parent")
        return self


def _taken(columns: dict[str, Column]) -> dict[str, str]:
    """Return the path that each column takes from the document."""
    return {name: column.path or name for name, column in columns.items() if column.constant is None}


def _distinct(names: list[str], columns: Iterable[str]) -> Iterator[Fault]:
    """Find columns that have two purposes."""
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            yield (), f"column {name} has two purposes"
    for name in columns:
        if name in names:
            yield ("columns", name), f"column {name} is listed and also id, tenant, parent, position or rest"


def _apart(paths: list[Fault], id_: str | None = None) -> Iterator[Fault]:
    """Find fields that two columns or tables would hold: neither could then be read back alone."""
    seen: dict[str, Place] = {}
    for place, path in paths:
        if id_ and path.split(".")[0] == id_:
            yield place, f"field {path} is mapped, but {id_} has its own column"
        if path in seen:
            yield place, f"field {path} is mapped twice, by {seen[path][-1]} too"
        seen.setdefault(path, place)
    for place, path in paths:
        for other in seen:
            if path.startswith(f"{other}."):
                yield place, f"field {path} lies inside {other}, which is mapped as a whole"


class Child(_Model):
    """The table of an array's elements, keyed by the parent's key and the position from 0."""

    table: Identifier
    parent: Annotated[tuple[Identifier, ...], BeforeValidator(_listed)] = Field(
        description="the columns that hold the parent's key: the document's row id, then each position above"
    )
    position: Identifier
    tenant: Identifier | None = Field(None, description="left out where the collection has no tenant")
    rest: Identifier
    columns: dict[Identifier, Column]
    children: dict[Path, Child] = Field(default_factory=dict)
    ignore: tuple[Path, ...] = ()

    @property
    def whole(self) -> str | None:
        """Return the column that holds an element itself, if there is one."""
        return next((name for name, column in self.columns.items() if column.path == ELEMENT), None)

    @model_validator(mode="after")
    def _every_name_once(self) -> Child:
        own = [*self.parent, self.position, self.rest, *([self.tenant] if self.tenant else [])]
        faults = [*_distinct(own, self.columns), *_apart(_places(self))]
        whole = self.whole
        others = len(self.columns) > 1 or bool(self.children)
        if whole and others and self.columns[whole].parsed.base == "jsonb":
            faults.append(
                (("columns", whole), "it takes elements whole, so no other column or table gets any")
            )
        if whole and (self.columns[whole].default is not None or (others and self.columns[whole].required)):
            told = f"{ELEMENT} takes no default, and is required only where it is the only column"
            faults.append((("columns", whole), told))
        if faults:
            raise Faults(faults)
        return self


class CollectionMapping(_Model):
    """One collection's documents as rows of one table and its child tables."""

    table: Identifier
    tenant: Tenant | None = Field(description="null: the rows are shared by all tenants")
    id: Identifier = Field("id", description="the primary key's column")
    rest: Identifier = Field(description="the jsonb column for what no other column holds")
    columns: dict[Identifier, Column]
    children: dict[Path, Child] = Field(default_factory=dict)
    ignore: tuple[Path, ...] = Field((), description="fields that are left behind on purpose")

    @model_validator(mode="after")
    def _every_name_once(self) -> CollectionMapping:
        tenant = self.tenant
        own, taken = [self.id, self.rest], _places(self)
        if tenant and (tenant.path, tenant.column) != (_ID, self.id):
            own.append(tenant.column)
        if tenant and tenant.path and tenant.path != _ID:
            taken.append((("tenant", "path"), tenant.path))
        faults = [*_distinct(own, self.columns), *_apart(taken, _ID), *_shape(self.children, 1, tenant)]
        for name, column in self.columns.items():
            if column.path == ELEMENT:
                faults.append(
                    (("columns", name, "path"), f"{ELEMENT} is an array's element: only in children")
                )
        if faults:
            raise Faults(faults)
        return self

    def tables(self) -> list[tuple[str, CollectionMapping | Child]]:
        """Return every table with its name, parents before children."""
        return [(self.table, self), *((child.table, child) for child in _descendants(self.children))]


def _places(part: CollectionMapping | Child) -> list[tuple[Place, str]]:
    places: list[tuple[Place, str]] = [
        (("columns", name), path) for name, path in _taken(part.columns).items()
    ]
    places += [(("children", path), path) for path in part.children]
    return places + [(("ignore",), path) for path in part.ignore]


def _descendants(children: dict[str, Child]) -> Iterator[Child]:
    for child in children.values():
        yield child
        yield from _descendants(child.children)


def _shape(children: dict[str, Child], depth: int, tenant: Tenant | None) -> Iterator[Fault]:
    """Find child tables whose key or tenant does not go with what they are below."""
    for path, child in children.items():
        place = ("children", path)
        if len(child.parent) != depth:
            key = "the document's row id" + (f" and {depth - 1} position(s)" if depth > 1 else "")
            yield (*place, "parent"), f"the parent's key is {key}: {depth} column(s), not {len(child.parent)}"
        if (child.tenant is None) != (tenant is None):
            told = "name its tenant column" if tenant else "its collection has no tenant"
            yield (*place, "tenant"), told
        for below, message in _shape(child.children, depth + 1, tenant):
            yield (*place, *below), message


class Mapping(_Model):
    """A whole mapping file."""

    version: Literal[1]
    database: str = Field(min_length=1)
    collections: dict[str, CollectionMapping] = Field(min_length=1)

    @model_validator(mode="after")
    def _fits_together(self) -> Mapping:
        faults = [*self._names(), *self._tables(), *self._references(), *self._parents()]
        if faults:
            raise Faults(faults)
        return self

    def _names(self) -> Iterator[Fault]:
        for where, template in (
            (("database",), self.database),
            *((("collections", n), n) for n in self.collections),
        ):
            if fault := check_template(template):
                yield where, fault
        owners: dict[Collection, str] = {}
        for name in self.collections:
            other = owners.setdefault(self.logical(name), name)
            if other != name:
                yield (
                    ("collections", name),
                    f"its topics would be {other}'s: rename or leave out one of the two",
                )
        for name, mapping in self.collections.items():
            wanted = mapping.tenant.name if mapping.tenant else None
            for kind, template in (("database", self.database), ("collection", name)):
                if (PLACEHOLDER in template) != (wanted == kind):
                    has = f"has no {PLACEHOLDER}" if wanted == kind else f"has {PLACEHOLDER}"
                    told = f"the {kind}'s name {has}, so tenant.name must be {kind} exactly where it has one"
                    yield ("collections", name, "tenant"), told

    def _tables(self) -> Iterator[Fault]:
        owners: dict[str, str] = {}
        for name, mapping in self.collections.items():
            for table, _ in mapping.tables():
                if table in owners:
                    yield ("collections", name), f"table {table} is {owners[table]}'s already"
                owners.setdefault(table, name)

    def _known(self, name: str) -> str | None:
        """Return what is wrong with a collection's name, if anything."""
        if name in self.collections:
            return None
        near = difflib.get_close_matches(name, self.collections, n=1)
        return f"the mapping has no collection {name}" + (f"; did you mean {near[0]}?" if near else "")

    def _references(self) -> Iterator[Fault]:
        for name, mapping in self.collections.items():
            named = mapping.tenant and mapping.tenant.name
            for place, column in _columns(mapping, ("collections", name)):
                if not column.references:
                    continue
                if fault := self._known(column.references):
                    yield (*place, "references"), fault
                    continue
                other = self.collections[column.references].tenant
                if other and other.name and not named:
                    told = f"{column.references} has its tenant in its name, this one has not"
                    yield (*place, "references"), told

    def _parents(self) -> Iterator[Fault]:
        for name in self.collections:
            seen = [name]
            while (above := self._parent_of(seen[-1])) is not None:
                place = ("collections", name, "tenant", "parent")
                if fault := self._known(above):
                    if len(seen) == 1:
                        yield place, fault
                    break
                above_tenant = self.collections[above].tenant
                if above_tenant and above_tenant.name:
                    yield place, f"{above} has its tenant in its name, so ids are not unique across it"
                    break
                if above in seen:
                    yield place, f"goes round: {' -> '.join([*seen, above])}"
                    break
                seen.append(above)

    def _parent_of(self, name: str) -> str | None:
        tenant = self.collections[name].tenant
        return tenant.parent.collection if tenant and tenant.parent else None

    def namespaces(self) -> dict[Collection, CollectionMapping]:
        """Return each logical collection with its mapping, in the file's order."""
        return {self.logical(name): mapping for name, mapping in self.collections.items()}

    def logical(self, name: str) -> Collection:
        """Return a collection of the file as topics and the ledger name it.

        Where a name has a place for the tenant, one logical collection stands for all that fit.
        """
        return Sources.logical(self.database, name)

    def sources(self) -> Sources:
        """Return what finds the logical collection and the tenant's name of a real namespace."""
        return Sources(self.database, self.collections)

    def unfenceable(self) -> dict[str, str]:
        """Return collections whose writes MongoDB cannot refuse by tenant, each with the reason."""
        reasons: dict[str, str] = {}
        for name, mapping in self.collections.items():
            if mapping.tenant is None:
                reasons[name] = "its documents have no tenant; it switches last, with all tenants"
            elif mapping.tenant.parent is not None:
                reasons[name] = "its tenant is its parent document's, which a validator cannot see"
        return reasons


def _columns(part: CollectionMapping | Child, place: Place) -> Iterator[tuple[Place, Column]]:
    for name, column in part.columns.items():
        yield (*place, "columns", name), column
    for path, child in part.children.items():
        yield from _columns(child, (*place, "children", path))
