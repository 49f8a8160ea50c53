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


def access(mapping: Mapping) -> str:
    """Return the statements that let the sync write a transaction's own tenants (schema/spaces/004)."""
    return "\n".join(
        [
            "GRANT USAGE ON SCHEMA public TO crossfade_sync;",
            *(line for table in Plans(mapping).tables() for line in _access(table)),
        ]
    )


def _access(table: TablePlan) -> Iterator[str]:
    yield f'GRANT SELECT, INSERT, UPDATE, DELETE ON "{table.table}" TO crossfade_sync;'
    if table.tenant is not None:
        yield f'ALTER TABLE "{table.table}" ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;'
        declared = "string_to_array(nullif(current_setting('crossfade.tenants', true), ''), ',')::uuid[]"
        yield (
            f'CREATE POLICY crossfade_sync ON "{table.table}" TO crossfade_sync '
            f'USING ("{table.tenant}" = ANY ((SELECT {declared})::uuid[]));'
        )


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
