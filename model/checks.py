"""What is checked: each model at its bounds, and each without one rule, where it must fail."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
VACUOUS = "NEVER_SETTLED"
"""Asserts that no run ever settles. Must fail, or a promise about settled runs would say nothing."""
Bounds = dict[str, int]


@dataclass(frozen=True, slots=True)
class Model:
    """A model; ``full`` and ``quick`` are the bounds it is checked at, ``variants`` those of its variants."""

    name: str
    full: tuple[Bounds, ...]
    quick: Bounds
    variants: Bounds
    larger: dict[str, Bounds]
    """The bounds of variants that need others to show what is wrong."""

    @property
    def path(self) -> Path:
        """The model in Promela."""
        return HERE / f"{self.name}.pml"

    def without(self) -> list[str]:
        """Return the rules that can be taken out."""
        return sorted(set(re.findall(r"#ifn?def (WITHOUT_\w+)", self.path.read_text())))


@dataclass(frozen=True, slots=True)
class Check:
    """One run of Spin's verifier."""

    model: Model
    bounds: Bounds
    variant: str | None = None
    """A rule that is taken out; then the run must end with an error."""

    @property
    def flags(self) -> list[str]:
        """What Spin is told: bounds, and the rule that is taken out."""
        flags = [f"-D{name}={value}" for name, value in self.bounds.items()]
        return [*flags, f"-D{self.variant}"] if self.variant else flags

    def __str__(self) -> str:
        bounds = " ".join(f"{name}={value}" for name, value in self.bounds.items())
        return f"{self.model.name} {self.variant or ''} {bounds}".replace("  ", " ")


MODELS = (
    Model(
        "capture",
        full=({"COMMITS": 3, "CHANGES": 4, "FAULTS": 1}, {"COMMITS": 2, "CHANGES": 2, "FAULTS": 2}),
        quick={"COMMITS": 2, "CHANGES": 2, "FAULTS": 1},
        variants={"COMMITS": 3, "CHANGES": 4, "FAULTS": 1},
        larger={},
    ),
    Model(
        "cutover",
        full=({"MOVES": 2, "FAULTS": 2},),
        quick={"MOVES": 1, "FAULTS": 0},
        variants={"MOVES": 2, "FAULTS": 1},
        larger={"WITHOUT_D4_LOOKING": {"MOVES": 2, "FAULTS": 2}},
    ),
    Model(
        "roundtrip",
        full=(
            {"WRITES": 3, "MOVES": 2, "ROGUES": 0, "KILLS": 0},
            {"WRITES": 2, "MOVES": 2, "ROGUES": 1, "KILLS": 1},
        ),
        quick={"WRITES": 2, "MOVES": 1, "ROGUES": 0, "KILLS": 0},
        variants={"WRITES": 3, "MOVES": 1, "ROGUES": 0, "KILLS": 0},
        larger={
            "WITHOUT_A5": {"WRITES": 3, "MOVES": 1, "ROGUES": 1, "KILLS": 0},
            "WITHOUT_A7": {"WRITES": 3, "MOVES": 1, "ROGUES": 1, "KILLS": 0},
            "WITHOUT_R2_ACKNOWLEDGED": {"WRITES": 3, "MOVES": 1, "ROGUES": 0, "KILLS": 1},
            "WITHOUT_R3": {"WRITES": 3, "MOVES": 1, "ROGUES": 0, "KILLS": 1},
            "WITHOUT_R4": {"WRITES": 3, "MOVES": 1, "ROGUES": 0, "KILLS": 1},
        },
    ),
    Model(
        "rollback",
        full=({"WRITES": 3, "ROLLBACKS": 3, "CUTOVERS": 2, "FAULTS": 2},),
        quick={"WRITES": 2, "ROLLBACKS": 2, "CUTOVERS": 1, "FAULTS": 1},
        variants={"WRITES": 3, "ROLLBACKS": 2, "CUTOVERS": 1, "FAULTS": 2},
        larger={},
    ),
)


def variants(model: Model) -> Iterator[Check]:
    """Yield the runs that must fail."""
    for variant in (VACUOUS, *model.without()):
        yield Check(model, model.larger.get(variant, model.variants), variant)


def all_checks(*, quick: bool) -> list[Check]:
    """Return every run; ``quick``: the models alone, at small bounds."""
    if quick:
        return [Check(model, model.quick) for model in MODELS]
    proofs = [Check(model, bounds) for model in MODELS for bounds in model.full]
    return proofs + [check for model in MODELS for check in variants(model)]
