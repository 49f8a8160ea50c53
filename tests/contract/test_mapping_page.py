"""Every example of docs/mapping.md is a mapping, and every setting is told there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from worker.mapping import load
from worker.mapping.load import _BLOCKS, _LISTS
from worker.mapping.model import Mapping
from worker.mapping.types import SCALARS

PAGE = (Path(__file__).parents[2] / "docs/mapping.md").read_text("utf-8")
EXAMPLES = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def collection(table: str, **more: Any) -> dict[str, Any]:
    return {"table": table, "tenant": None, "rest": "rest", "columns": {}} | more


def whole(example: str) -> str:
    """An example as a file: what it does not show is added."""
    shown = yaml.safe_load(example)
    if "version" in shown:
        return example
    head = "version: 1\ndatabase: shop\n"
    if "collections" in shown:
        return head + example
    others = {name: collection(name) for name in ("customers", "orders")}
    return head + yaml.safe_dump({"collections": others | {"things": collection("things", **shown)}})


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_is_a_mapping(tmp_path: Path, example: str) -> None:
    file = tmp_path / "mapping.yaml"
    file.write_text(whole(example))
    assert load(file).collections


def test_every_setting_and_every_type_is_told() -> None:
    models = {Mapping, *_LISTS.values(), *_BLOCKS.values()}
    shown = "\n".join(EXAMPLES)
    for name in {name for model in models for name in model.model_fields}:
        assert re.search(rf"\b{name}:", shown), name
    for name in (*SCALARS, "jsonb"):
        assert re.search(rf"`{name}\b", PAGE), name


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 12
