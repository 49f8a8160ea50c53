"""A provider of tokens that gives none is told in one line, at once, and nothing of a token is."""

from __future__ import annotations

from pathlib import Path

import pytest
from aiokafka.errors import KafkaError

from worker.broker.access import access
from worker.errors import ConfigurationError
from worker.settings import Settings

PROVIDERS = """
class Provider:
    def __init__(self, token):
        self.given = token

    async def token(self):
        if isinstance(self.given, Exception):
            raise self.given
        return self.given

    def extensions(self):
        return None

def good(): return Provider("abc.d-e_f.")
def raising(): return Provider(RuntimeError("s3cret"))
def empty(): return Provider("")
def several(): return Provider("s3cret\\nauth=s3cret")
def number(): return Provider(7)
broken = 7
turn = iter(["abc"])

class Later:
    async def token(self):
        return next(turn)

failing_later = Later
"""


def settings(provider: str | None) -> Settings:
    given = {"mongo_uri": "mongodb://x", "postgres_dsn": "x", "mapping": Path("x")}
    return Settings(**given, kafka_bootstrap="x:1", kafka_token_provider=provider)


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token_providers.py").write_text(PROVIDERS)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize(
    ("provider", "why"),
    [
        ("token_providers:raising", "raised RuntimeError"),
        ("token_providers:empty", "returned no bearer token"),
        ("token_providers:several", "returned no bearer token"),
        ("token_providers:number", "returned no bearer token"),
        ("token_providers:broken", "raised TypeError"),
        ("token_providers:missing", "cannot be imported (AttributeError)"),
        ("elsewhere:good", "cannot be imported (ModuleNotFoundError)"),
        ("token_providers", "is not package.module:factory"),
    ],
)
async def test_a_provider_that_gives_no_token_is_told_without_it(provider: str, why: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        await access(settings(provider))
    assert f"CROSSFADE_KAFKA_TOKEN_PROVIDER: {provider} {why}" in str(refused.value)
    assert "s3cret" not in str(refused.value)
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


async def test_a_provider_that_fails_later_fails_the_connection_and_not_the_process() -> None:
    kafka = await access(settings("token_providers:failing_later"))
    assert kafka.tokens is not None
    with pytest.raises(KafkaError) as failed:
        await kafka.tokens.token()
    assert "s3cret" not in str(failed.value)


async def test_what_every_client_is_given() -> None:
    plain = (await access(settings(None))).options()
    assert plain == {"bootstrap_servers": "x:1", "security_protocol": "PLAINTEXT", "ssl_context": None}
    kafka = await access(settings("token_providers:good"))
    told = kafka.options()
    assert told["security_protocol"] == "SASL_PLAINTEXT" and told["sasl_mechanism"] == "OAUTHBEARER"
    assert await told["sasl_oauth_token_provider"].token() == "abc.d-e_f."
    assert "abc" not in repr(kafka)
