"""What `crossfade dead-letters` refuses before it asks PostgreSQL."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from worker.dead_letters_cli import dead_letters

TOO_LARGE = str(2**63)


@pytest.mark.parametrize(
    "arguments",
    [
        ("show", TOO_LARGE),
        ("replay", "1", TOO_LARGE),
        ("discard", TOO_LARGE, "--reason", "x"),
        ("list", "--limit", TOO_LARGE),
        ("show", "0"),
    ],
)
def test_a_number_that_no_letter_can_have_is_refused_as_one(arguments: tuple[str, ...]) -> None:
    done = CliRunner().invoke(dead_letters, arguments)
    assert done.exit_code == 2 and "not in the range" in done.output, done.output
