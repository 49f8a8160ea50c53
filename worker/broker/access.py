"""How Kafka is reached: brokers, TLS, and tokens from a provider of the user's own."""

from __future__ import annotations

import asyncio
import importlib
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import structlog
from aiokafka.abc import AbstractTokenProvider
from aiokafka.errors import KafkaConnectionError

from worker.errors import ConfigurationError, ServiceUnavailable
from worker.settings import Settings

_log = structlog.get_logger()

_SETTING = "CROSSFADE_KAFKA_TOKEN_PROVIDER"
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750, section 2.1
_WITHIN = 30.0  # seconds for one token

Factory = Callable[[], Any]


class Tokens(AbstractTokenProvider):
    """Tokens of the user's provider, for aiokafka. No token, and nothing of an error's text, is ever logged.

    Faust's consumer has a thread and an event loop of its own, and a provider may belong to its loop: so each
    loop has a provider of its own.
    """

    def __init__(self, name: str, factory: Factory) -> None:
        self.name = name
        self.given = 0
        self._factory = factory
        self._providers: WeakKeyDictionary[asyncio.AbstractEventLoop, Any] = WeakKeyDictionary()

    async def prove(self) -> None:
        """Get one token; `ConfigurationError` says why there is none."""
        _, fault = await self._get()
        if fault:
            raise ConfigurationError(f"{_SETTING}: {self.name} {fault}", remedy="mend the provider")

    async def token(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride] - it says None
        """Return a token. Without one the connection fails, and aiokafka tries again."""
        token, fault = await self._get()
        if fault:
            _log.warning("no token for Kafka, trying again", provider=self.name, reason=fault)
            raise KafkaConnectionError("the token provider has failed")
        self.given += 1
        return token

    def extensions(self) -> dict[str, str]:
        """Return the SASL extensions that the provider has for its tokens."""
        return dict(self._provider().extensions() or {})

    async def _get(self) -> tuple[str, str]:
        """Return a token, and what is wrong with it or with getting it."""
        try:
            async with asyncio.timeout(_WITHIN):
                token = await self._provider().token()
        except Exception as error:  # whatever the user's code raises
            return "", f"raised {type(error).__name__}"
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            return "", "returned no bearer token (RFC 6750)"
        return token, ""

    def _provider(self) -> Any:
        loop = asyncio.get_running_loop()
        if loop not in self._providers:
            self._providers[loop] = self._factory()
        return self._providers[loop]


@dataclass(frozen=True, slots=True)
class Access:
    """Where Kafka is, and how this process shows who it is."""

    bootstrap: str
    tokens: Tokens | None = None
    tls: ssl.SSLContext | None = field(default=None, repr=False)

    def options(self) -> dict[str, Any]:
        """Return the arguments that every client of aiokafka's takes."""
        protocol = f"{'SASL_' if self.tokens else ''}{'SSL' if self.tls else 'PLAINTEXT'}"
        options: dict[str, Any] = {
            "bootstrap_servers": self.bootstrap,
            "security_protocol": protocol,
            "ssl_context": self.tls,
        }
        if self.tokens:
            options |= {"sasl_mechanism": "OAUTHBEARER", "sasl_oauth_token_provider": self.tokens}
        return options

    def unreachable(self, error: BaseException) -> ServiceUnavailable:
        """Return the error that says Kafka cannot be used."""
        # To aiokafka a refused token looks like a connection that has ended.
        if self.tokens and self.tokens.given:
            return ServiceUnavailable(
                f"Kafka at {self.bootstrap} has taken no token of {self.tokens.name}, or has gone away "
                f"({type(error).__name__})",
                remedy=f"its log says why; mend the provider that {_SETTING} names",
            )
        return ServiceUnavailable(
            f"Kafka at {self.bootstrap} cannot be reached ({type(error).__name__})",
            remedy="start it, or mend CROSSFADE_KAFKA_BOOTSTRAP",
        )


async def access(settings: Settings) -> Access:
    """Return how the settings say that Kafka is reached; `ConfigurationError` where they say it wrongly."""
    tls = ssl.create_default_context() if settings.kafka_tls else None
    if settings.kafka_token_provider is None:
        return Access(settings.kafka_bootstrap, tls=tls)
    tokens = Tokens(settings.kafka_token_provider, _factory(settings.kafka_token_provider))
    await tokens.prove()
    return Access(settings.kafka_bootstrap, tokens, tls)


def _factory(name: str) -> Factory:
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise ConfigurationError(f"{_SETTING}: {name} is not package.module:factory")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever the user's module raises
        raise ConfigurationError(
            f"{_SETTING}: {name} cannot be imported ({type(error).__name__})",
            remedy="install the package beside Crossfade, or put it on PYTHONPATH",
        ) from None
