"""The protocol's models hold at small bounds, and each lacks something without each of its rules."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.__main__ import run
from model.checks import MODELS, VACUOUS, Check, all_checks, variants

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()


@pytest.mark.parametrize("check", all_checks(quick=True), ids=str)
async def test_a_model_holds_and_does_reach_its_end(check: Check) -> None:
    assert (await run(check)).expected(check)
    vacuous = Check(check.model, check.bounds, VACUOUS)
    assert (await run(vacuous)).errors == 1


@pytest.mark.parametrize(
    "check",
    [
        Check(MODELS[0], MODELS[0].quick, "WITHOUT_A1_TOMBSTONE"),
        Check(MODELS[1], MODELS[1].quick, "WITHOUT_D6_FENCE_AGAIN"),
        Check(MODELS[2], MODELS[2].quick, "WITHOUT_BARRIER_IN_STREAM"),
        Check(MODELS[3], MODELS[3].quick, "WITHOUT_VALIDATORS_COMPUTED"),
    ],
    ids=str,
)
async def test_a_model_fails_without_a_rule(check: Check) -> None:
    result = await run(check)
    assert result.errors == 1 and result.expected(check)


def test_every_rule_that_can_be_taken_out_is_on_the_protocols_page() -> None:
    for model in MODELS:
        assert f"| `{model.name}` |" in PAGE
        for variant in model.without():
            assert f"{variant}`" in PAGE, f"{model.name} {variant}"


def test_each_rule_is_taken_out_once() -> None:
    for model in MODELS:
        names = [check.variant for check in variants(model)]
        assert len(names) == len(set(names)) > 8
        assert model.larger.keys() <= set(names)
