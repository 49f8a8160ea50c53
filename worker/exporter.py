"""Serves the metrics of this process to Prometheus, from a thread of its own."""

from __future__ import annotations

from prometheus_client import ProcessCollector, disable_created_metrics, start_http_server

from worker.errors import ConfigurationError, UsageError
from worker.metrics import REGISTRIES

HIGHEST_PORT = 65535


class MetricsNotServed(UsageError):
    """The address of the metrics cannot be listened on."""


def serve(role: str, host: str, port: int) -> None:
    """Serve the role's metrics and the process's own on ``http://host:port/metrics``; port 0: not at all.

    `MetricsNotServed` when another program has the port.
    """
    if not port or role not in REGISTRIES:
        return
    registry = REGISTRIES[role]
    disable_created_metrics()  # a series for each counter's first moment, which nothing here asks for
    ProcessCollector(registry=registry)
    try:
        start_http_server(port, host, registry)
    except OSError as error:
        raise MetricsNotServed(
            f"metrics cannot be served on {host}:{port} ({error.strerror or type(error).__name__})",
            remedy="set CROSSFADE_METRICS_PORT to a free port, or to 0 for no metrics",
        ) from None


def port_of(place: int, first: int) -> int:
    """Return the port of the role at a place (0, 1, ...) below one parent: the first port and those after it.

    0 stays 0: no metrics.
    """
    if first and first + place > HIGHEST_PORT:
        raise ConfigurationError(
            f"CROSSFADE_METRICS_PORT: {first} leaves no port for every process",
            remedy=f"`crossfade run` needs the ports from it up to {first + place}; name a lower one",
        )
    return first + place if first else 0
