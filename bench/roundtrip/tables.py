"""The tables that a mapping needs, as SQL: made of the mapping alone, with the types that it names."""

from __future__ import annotations

from collections.abc import Iterator

from worker.mapping import Mapping, Plans, TablePlan
from worker.mapping.model import Child, CollectionMapping
from worker.mapping.types import parse_type


def definitions(mapping: Mapping, *, unlogged: bool = False) -> str:
    """Return the statements that make enumerated types and tables in an empty database."""
    kind = "UNLOGGED TABLE" if unlogged else "TABLE"
    tables = [f"CREATE {kind} {_table(table)};" for table in Plans(mapping).tables()]
    return "\n".join([*_enums(mapping), *tables])


def _enums(mapping: Mapping) -> Iterator[str]:
    labels: dict[str, tuple[str, ...]] = {}
    for collection in mapping.collections.values():
        for _, part in collection.tables():
            labels |= _labels(part)
    for name, values in labels.items():
        listed = ", ".join("'{}'".format(value.replace("'", "''")) for value in values)
        yield f'CREATE TYPE "{name}" AS ENUM ({listed});'


def _labels(part: CollectionMapping | Child) -> dict[str, tuple[str, ...]]:
    typed = ((parse_type(column.type).name, column.values) for column in part.columns.values())
    return {name: values for name, values in typed if name is not None and values is not None}


def _table(table: TablePlan) -> str:
    columns = [f'"{name}" {type_}' for name, type_ in table.columns.items()]
    key = ", ".join(f'"{name}"' for name in table.key)
    return f'"{table.table}" ({", ".join(columns)}, PRIMARY KEY ({key}))'
