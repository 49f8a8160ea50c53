"""Writes a draft as a target: numbered SQL files for `crossfade schema apply --target`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from worker.inspect.draft import Draft, DraftTable
from worker.inspect.indexes import DraftIndexes
from worker.inspect.names import quoted, shown

_CURRENT = "(SELECT nullif(current_setting('app.current_tenant_id', true), '')::uuid)"
_DECLARED = """ANY ((
        SELECT string_to_array(nullif(current_setting('crossfade.tenants', true), ''), ',')::uuid[]
    )::uuid[])"""

_TABLES = """\
-- Drafted by `crossfade inspect` from MongoDB's database {database}. mapping.yaml says which fields fill the
-- columns; `rest` holds, at its path, what no other column can say.
--
-- Nothing is NOT NULL but keys and tenants: what a document does not say is NULL.
"""
_INDEXES = """\
-- MongoDB's indexes, as far as PostgreSQL has their like, and those that policies and foreign keys need.
--
-- Unique constraints are DEFERRABLE, so that one transaction may swap two rows' values. A unique index of
-- MongoDB takes a missing field for a value: hence NULLS NOT DISTINCT.
"""
_COLLATION = """\
-- A PostgreSQL that was built without ICU compares by code points instead: it takes fewer values for equal.
DO $$
BEGIN
    CREATE COLLATION public.{name} (provider = icu, locale = '{locale}', deterministic = false);
EXCEPTION WHEN feature_not_supported THEN
    RAISE WARNING 'no ICU: collation {name} tells apart what MongoDB does not';
    CREATE COLLATION public.{name} (provider = libc, locale = 'C');
END
$$;
"""
_FOREIGN_KEYS = """\
-- Where every id that was looked up is there. Foreign keys do nothing on delete: a cascade would remove rows
-- whose documents still exist.
"""
_WALLS = """\
-- The application sees and writes one tenant: app.current_tenant_id. With none set it sees nothing. The
-- sub-select makes PostgreSQL read the setting once per statement and use the index; the nullif is for pooled
-- connections, where a setting that was once LOCAL is '' ever after. FORCE binds the tables' owner too.

GRANT USAGE ON SCHEMA public TO application_role;
"""
_ACCESS = """\
-- Crossfade's own way to the tables. The sync writes only the tenants that its transaction declares in
-- crossfade.tenants (comma-separated), so a wrong tenant in an event is an error, not a row in a stranger's
-- data.

GRANT USAGE ON SCHEMA public TO crossfade_sync, crossfade_reader;
"""


def ddl(draft: Draft, indexes: DraftIndexes) -> dict[str, str]:
    """Return the target's files: name to text."""
    tables = [table for one in draft.collections for table in one.table.all()]
    parts = {
        "tables": [_TABLES.format(database=shown(draft.database)), *_tables(draft)],
        "indexes": [_INDEXES, *_indexes(indexes)],
        "foreign_keys": [_FOREIGN_KEYS, *_foreign_keys(draft)],
        "tenant_walls": [_WALLS, *(text for table in tables for text in _walls(table))],
        "crossfade_access": [_ACCESS, *(text for table in tables for text in _access(table))],
    }
    filled = [(name, texts) for name, texts in parts.items() if len(texts) > 1]
    return {
        f"{n:03d}_{name}.sql": "\n".join(texts).rstrip() + "\n" for n, (name, texts) in enumerate(filled, 1)
    }


def _tables(draft: Draft) -> Iterator[str]:
    for one in draft.collections:
        for table in one.table.all():
            of = f"{shown(one.name)}.{shown(table.path)}" if table.path else shown(one.name)
            shared = "" if table.tenant else ": no tenant, so no row-level security; shared by all tenants"
            lines = [f"    {line}" for line in _columns(table)]
            yield (
                f"-- {of}{shared}\nCREATE TABLE public.{quoted(table.name)} (\n"
                + ",\n".join(lines)
                + "\n);\n"
            )


def _columns(table: DraftTable) -> Iterator[str]:
    if table.path:
        first, *positions = table.key
        yield f"{quoted(first)} uuid NOT NULL"
        yield from (f"{quoted(name)} integer NOT NULL" for name in positions)
    else:
        yield f"{quoted(table.own_key)} uuid PRIMARY KEY DEFAULT gen_random_uuid()"
    if table.tenant and table.tenant != table.own_key:
        yield f"{quoted(table.tenant)} uuid NOT NULL"
    yield from (f"{quoted(column.name)} {column.type}" for column in table.columns)
    yield f"{quoted(table.rest)} jsonb"
    if table.path:
        yield f"PRIMARY KEY ({_listed(table.key)})"


def _indexes(indexes: DraftIndexes) -> Iterator[str]:
    for name, locale in sorted(indexes.collations.items()):
        yield _COLLATION.format(name=quoted(name), locale=locale)
    for index in indexes.indexes:
        yield "".join(f"-- {remark}\n" for remark in index.remarks) + f"{index.sql};"
    for one in indexes.unsupported:
        yield f"-- not drafted: {shown(one.collection)}, {one.what}: {one.why}"
    if indexes.indexes or indexes.unsupported:
        yield ""


def _foreign_keys(draft: Draft) -> Iterator[str]:
    tenants = next((one.table for one in draft.collections if one.tenant.path == "_id"), None)
    for one in draft.collections:
        for table in one.table.all():
            if table.above is not None:
                yield _foreign_key(draft, table, table.parent, table.above, table.above.key)
            elif tenants and table.tenant and table is not tenants and one.tenant.firm:
                yield _foreign_key(draft, table, (table.tenant,), tenants, tenants.key)
            for column in table.columns:
                if column.references and column.refers_firmly:
                    target = draft.table_of(column.references.collection)
                    yield _foreign_key(draft, table, (column.name,), target, target.key)


def _foreign_key(
    draft: Draft, table: DraftTable, columns: tuple[str, ...], target: DraftTable, key: tuple[str, ...]
) -> str:
    name = draft.relations.new(f"{table.name}_{columns[-1]}_fkey")
    return (
        f"ALTER TABLE public.{quoted(table.name)} ADD CONSTRAINT {quoted(name)}\n"
        f"    FOREIGN KEY ({_listed(columns)}) REFERENCES public.{quoted(target.name)} ({_listed(key)}) "
        "DEFERRABLE;"
    )


def _walls(table: DraftTable) -> Iterator[str]:
    name = f"public.{quoted(table.name)}"
    yield f"GRANT SELECT, INSERT, UPDATE, DELETE ON {name} TO application_role;"
    if table.tenant is None:
        yield "-- no tenant: all tenants read and write it\n"
        return
    yield f"ALTER TABLE {name} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;"
    own = f"{quoted(table.tenant)} = {_CURRENT}"
    if table.above is None:
        yield f"CREATE POLICY current_tenant ON {name} TO application_role\n    USING ({own});\n"
        return
    root = table
    while root.above is not None:
        root = root.above
    # Its key begins with the document's: a row under another tenant's document would take that one's place.
    exists = (
        f"EXISTS (SELECT FROM public.{quoted(root.name)} AS document WHERE document.{quoted(root.own_key)} = "
        f"{quoted(table.name)}.{quoted(table.key[0])})"
    )
    yield (
        f"CREATE POLICY current_tenant ON {name} TO application_role\n    USING ({own})\n"
        f"    WITH CHECK (\n        {own}\n        AND {exists}\n    );\n"
    )


def _access(table: DraftTable) -> Iterator[str]:
    name = f"public.{quoted(table.name)}"
    if table.tenant is not None:
        yield (
            f"CREATE POLICY crossfade_sync ON {name} TO crossfade_sync\n"
            f"    USING ({quoted(table.tenant)} = {_DECLARED});"
        )
        yield f"CREATE POLICY crossfade_reader ON {name} FOR SELECT TO crossfade_reader USING (true);"
    yield f"GRANT SELECT, INSERT, UPDATE, DELETE ON {name} TO crossfade_sync;"
    yield f"GRANT SELECT ON {name} TO crossfade_reader;\n"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(quoted, names))
