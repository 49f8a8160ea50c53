"""Each table has a capture function of its own."""

from __future__ import annotations

from worker.postgres.capture import function_name

LONGEST = 63  # bytes that PostgreSQL keeps of a name


def test_long_tables_share_no_function() -> None:
    tables = [f"{'a' * 58}{n}" for n in range(3)] + [f"{'ä' * 29}{n}" for n in range(3)]
    names = {function_name(table) for table in tables}
    assert len(names) == len(tables)
    assert all(len(name.encode()) <= LONGEST for name in names)
    assert function_name("leads") == "capture_leads"
