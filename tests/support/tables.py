"""Tables of a test's own application, as a target that `schema apply` takes."""

from __future__ import annotations

from pathlib import Path

_WALL = """
ALTER TABLE public.{table} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
GRANT SELECT, INSERT, UPDATE, DELETE ON public.{table} TO application_role, crossfade_sync;
GRANT SELECT ON public.{table} TO crossfade_reader;
CREATE POLICY crossfade_reader ON public.{table} FOR SELECT TO crossfade_reader USING (true);
"""
_TENANT = """
CREATE POLICY current_tenant ON public.{table} TO application_role
    USING (tenant_id = (SELECT nullif(current_setting('app.current_tenant_id', true), '')::uuid));
CREATE POLICY crossfade_sync ON public.{table} TO crossfade_sync USING (tenant_id = ANY ((
    SELECT string_to_array(nullif(current_setting('crossfade.tenants', true), ''), ',')::uuid[])::uuid[]));
"""
_SHARED = """
CREATE POLICY shared ON public.{table} TO application_role, crossfade_sync USING (true);
"""


def target(directory: Path, tables: dict[str, str]) -> Path:
    """Write the tables, each with its columns, as a target; those with a tenant_id get walls."""
    directory.mkdir()
    sql = "GRANT USAGE ON SCHEMA public TO application_role, crossfade_sync, crossfade_reader;\n"
    for table, columns in tables.items():
        sql += f"CREATE TABLE public.{table} ({columns});\n"
        sql += (_WALL + (_TENANT if "tenant_id" in columns else _SHARED)).format(table=table)
    (directory / "001_tables.sql").write_text(sql)
    return directory
