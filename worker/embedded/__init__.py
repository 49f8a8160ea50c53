"""Real MongoDB, Kafka and PostgreSQL as child services: for `crossfade dev`, demo, tests, benchmarks.

The packages behind it come with ``crossfade[embedded]``; nothing of it is imported until a name is used,
so that the command line works without them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.errors import ServiceUnavailable

if TYPE_CHECKING:
    from worker.embedded.services import Services
    from worker.embedded.state import Ports, ServiceName

__all__ = ["Ports", "ServiceName", "Services"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from worker.embedded import services
    except ModuleNotFoundError as error:
        raise ServiceUnavailable(
            f"the package {error.name} is not installed", remedy="pip install 'crossfade[embedded]'"
        ) from None
    return getattr(services, name)
