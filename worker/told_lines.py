"""Lines on the way: what a command tells while it works, not too often."""

from __future__ import annotations

import time
from collections.abc import Callable

import click


def every(seconds: float) -> Callable[[str], None]:
    """Return what tells a line on stderr, first after so many seconds and then no oftener."""
    last = time.monotonic()

    def tell(line: str) -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            click.echo(line, err=True)

    return tell
