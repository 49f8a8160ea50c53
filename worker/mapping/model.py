"""The mapping file as a model: which collection's fields become which columns of which table."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from topics import Collection

ColumnType = Literal[
    "text",
    "uuid",
    "boolean",
    "smallint",
    "integer",
    "bigint",
    "double precision",
    "numeric",
    "timestamptz",
    "bytea",
    "jsonb",
]


def _identifier(name: str) -> str:
    # Names go into SQL inside double quotes; this leaves no way out of them.
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_$]{0,62}", name):
        raise ValueError("must be a plain SQL name (letters, digits, '_', at most 63)")
    return name


def _path(path: str) -> str:
    if not all(path.split(".")):
        raise ValueError("must be field names joined by dots")
    return path


Identifier = Annotated[str, AfterValidator(_identifier)]
Path = Annotated[str, AfterValidator(_path)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Column(_Model):
    """One column: where its value is in the document, and its type in PostgreSQL."""

    type: ColumnType
    path: Path | None = Field(None, description="default: the column's name")
    required: bool = Field(False, description="a document without a fitting value becomes a dead letter")


def _paths(columns: dict[str, Column]) -> list[str]:
    return [column.path or name for name, column in columns.items()]


def _distinct(names: list[str]) -> None:
    """Refuse a column that has two purposes."""
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"column {name} is listed and also id, tenant, position or rest")


def _apart(paths: list[str], id_: str | None = None) -> None:
    """Refuse a field that two columns or tables would hold: neither could then be read back alone."""
    for path in paths:
        if id_ and path.split(".")[0] == id_:
            raise ValueError(f"field {path} is mapped, but {id_} has its own column")
        if paths.count(path) > 1:
            raise ValueError(f"field {path} is mapped twice")
        if inside := [other for other in paths if other.startswith(f"{path}.")]:
            raise ValueError(f"field {inside[0]} lies inside {path}, which is mapped as a whole")


class Tenant(_Model):
    """Where a document says whose it is, and the column that says it in PostgreSQL."""

    path: Path
    column: Identifier


class Child(_Model):
    """The table of an array's elements, keyed by the parent's id and the position from 0."""

    table: Identifier
    parent: Identifier
    position: Identifier
    tenant: Identifier
    rest: Identifier
    columns: dict[Identifier, Column]

    @model_validator(mode="after")
    def _every_name_once(self) -> Child:
        _distinct([self.parent, self.position, self.tenant, self.rest, *self.columns])
        _apart(_paths(self.columns))
        return self


class CollectionMapping(_Model):
    """One collection's documents as rows of one table and its child tables."""

    table: Identifier
    tenant: Tenant
    id: Identifier = Field("id", description="the primary key's column")
    rest: Identifier = Field(description="the jsonb column for what no other column holds")
    columns: dict[Identifier, Column]
    children: dict[Path, Child] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _every_name_once(self) -> CollectionMapping:
        itself = self.tenant.path == "_id" and self.tenant.column == self.id
        own = [self.id, self.rest] if itself else [self.id, self.rest, self.tenant.column]
        _distinct([*own, *self.columns])
        tenant = [] if self.tenant.path == "_id" else [self.tenant.path]
        _apart([*tenant, *_paths(self.columns), *self.children], "_id")
        return self


class Mapping(_Model):
    """A whole mapping file."""

    version: Literal[1]
    database: str = Field(min_length=1)
    collections: dict[str, CollectionMapping] = Field(min_length=1)

    def namespaces(self) -> dict[Collection, CollectionMapping]:
        """Return each collection with its mapping, in the file's order."""
        return {Collection(self.database, name): mapping for name, mapping in self.collections.items()}

    @staticmethod
    def hash_of(mapping: CollectionMapping) -> str:
        """Return a hash that changes whenever a collection's rows would."""
        return hashlib.sha256(mapping.model_dump_json().encode()).hexdigest()
