"""A service that stands still: it answers nobody, and goes on as if no time had passed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

from worker.embedded import Services
from worker.embedded.state import ServiceName


@contextmanager
def paused(services: Services, name: ServiceName) -> Iterator[None]:
    process = services.process(name)
    assert process is not None
    family = [process, *process.children(recursive=True)]
    for one in family:
        with suppress(psutil.NoSuchProcess):
            one.suspend()
    try:
        yield
    finally:
        for one in family:
            with suppress(psutil.NoSuchProcess):
                one.resume()
