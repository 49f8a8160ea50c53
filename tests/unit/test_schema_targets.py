from __future__ import annotations

from pathlib import Path

import pytest

from schema.targets import BUILT_IN, BadTarget, read_target


def write(directory: Path, **files: str) -> Path:
    directory.mkdir(exist_ok=True)
    for name, sql in files.items():
        (directory / f"{name}.sql").write_text(sql)
    return directory


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "shop"


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_targets_are_read_from_the_package(name: str) -> None:
    target = read_target(name)
    assert target.name == name
    assert [each.number for each in target.migrations] == list(range(1, len(target.migrations) + 1))
    assert all(each.target == name and each.sql.strip() for each in target.migrations)


def test_own_target_takes_its_directory_s_name_and_leaves_other_files_alone(directory: Path) -> None:
    write(directory, **{"002_more": "SELECT 2;", "001_first": "SELECT 1;"})
    (directory / "mapping.yaml").write_text("version: 1")
    target = read_target(directory)
    assert target.name == "shop"
    assert [each.file for each in target.migrations] == ["shop/001_first.sql", "shop/002_more.sql"]
    assert read_target(str(directory)) == target


@pytest.mark.parametrize(
    "names",
    [("001_a", "003_c"), ("002_b",), ("001_a", "001_b"), ("000_z", "001_a"), ("1_a",), ("first",), ()],
    ids=repr,
)
def test_files_that_are_no_sequence_are_refused(directory: Path, names: tuple[str, ...]) -> None:
    write(directory, **dict.fromkeys(names, "SELECT 1;"))
    with pytest.raises(BadTarget):
        read_target(directory)


def test_missing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadTarget, match="control, spaces"):
        read_target(tmp_path / "nothing")


@pytest.mark.parametrize("name", BUILT_IN)
def test_own_target_cannot_take_the_name_of_ours(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadTarget, match="rename"):
        read_target(write(tmp_path / name, **{"001_a": "SELECT 1;"}))


def test_checksum_follows_the_text_and_not_the_line_ends(directory: Path) -> None:
    def checksum(text: bytes) -> str:
        (directory / "001_a.sql").write_bytes(text)
        return read_target(directory).migrations[0].checksum

    directory.mkdir()
    assert checksum(b"SELECT 1;\nSELECT 2;\n") == checksum(b"SELECT 1;\r\nSELECT 2;\r\n")
    assert checksum(b"SELECT 1;\n") != checksum(b"SELECT 1; \n")


@pytest.mark.parametrize(
    "sql",
    [
        "BEGIN;\nSELECT 1;\nCOMMIT;",
        "SELECT 1; commit;",
        "SELECT 1;\n-- done\nCOMMIT WORK;",
        "START TRANSACTION;",
    ],
)
def test_file_with_transactions_of_its_own_is_refused(directory: Path, sql: str) -> None:
    with pytest.raises(BadTarget, match=r"shop/001_a\.sql: remove"):
        read_target(write(directory, **{"001_a": sql}))


@pytest.mark.parametrize(
    "sql",
    [
        "DO $$ BEGIN; COMMIT; END $$;",
        "CREATE PROCEDURE p() LANGUAGE plpgsql AS $body$ BEGIN DELETE FROM t; COMMIT; END $body$;",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT 1; END;",
        "-- first BEGIN; then COMMIT;\nSELECT 1;",
        "/* ; COMMIT; */ SELECT 1;",
    ],
)
def test_words_inside_bodies_and_comments_are_no_transactions(directory: Path, sql: str) -> None:
    assert read_target(write(directory, **{"001_a": sql})).migrations[0].sql == sql
