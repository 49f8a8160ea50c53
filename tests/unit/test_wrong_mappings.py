"""Each way to get a mapping wrong has one message: file, line, place, what is wrong, the nearest name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.wrong_mappings import RIGHT, WHOLE, WRONG
from worker.errors import MappingError
from worker.mapping import load


def told_of(text: str | bytes, directory: Path) -> str:
    file = directory / "mapping.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(MappingError) as raised:
        load(file)
    return str(raised.value).replace(f"{file}:", "")


def test_the_mapping_that_is_broken_below_is_right(tmp_path: Path) -> None:
    file = tmp_path / "mapping.yaml"
    file.write_text(RIGHT)
    assert list(load(file).collections) == ["customers", "orders"]


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_mapping_is_told_in_one_precise_line(tmp_path: Path, name: str) -> None:
    old, new, message = WRONG[name]
    assert old in RIGHT
    assert told_of(RIGHT.replace(old, new, 1), tmp_path) == message


@pytest.mark.parametrize("name", WHOLE)
def test_a_file_that_is_wrong_as_a_whole(tmp_path: Path, name: str) -> None:
    text, message = WHOLE[name]
    assert told_of(text, tmp_path) == message


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    file = tmp_path / "nowhere.yaml"
    with pytest.raises(MappingError) as raised:
        load(file)
    assert (
        str(raised.value) == f"cannot read mapping {file} (No such file or directory): set CROSSFADE_MAPPING"
    )
