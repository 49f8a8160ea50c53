"""Settings: environment ``CROSSFADE_*``, over a YAML file named by ``CROSSFADE_CONFIG``; one model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from topics.declared import LARGEST_RECORD
from worker.errors import ConfigurationError

_MongoUri = Annotated[SecretStr, Field(description="MongoDB connection string of the replica set or mongos")]


class _Sources(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="CROSSFADE_", extra="ignore", frozen=True)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources: arguments, environment, then the file."""
        sources: list[PydanticBaseSettingsSource] = [init_settings, env_settings]
        if file := os.environ.get("CROSSFADE_CONFIG"):
            if not Path(file).is_file():
                raise ConfigurationError(f"CROSSFADE_CONFIG names {file}, which is no file")
            sources.append(YamlConfigSettingsSource(settings_cls, yaml_file=file))
        return tuple(sources)


class MongoSettings(_Sources):
    """What looking at MongoDB alone needs; ``mapping`` only where one is checked."""

    mongo_uri: _MongoUri
    mapping: Path | None = None


class Settings(_Sources):
    """Every setting of Crossfade. Connection strings may hold passwords and are never printed."""

    mongo_uri: _MongoUri
    postgres_dsn: SecretStr = Field(description="PostgreSQL as the sync role")
    postgres_admin_dsn: SecretStr | None = Field(
        None,
        description="PostgreSQL as a role that may create roles and schemas, owns the mapped tables and is a "
        "member of crossfade_owner, or a superuser; for `schema apply`, `cutover prepare` and `finish` alone",
    )
    postgres_reader_dsn: SecretStr | None = Field(
        None,
        description="PostgreSQL as a role that sees the rows of every tenant, as crossfade_reader does; "
        "`reconcile` compares with it, and `check` looks for orphans",
    )
    postgres_control_dsn: SecretStr | None = Field(
        None,
        description="PostgreSQL as the role that may change tenants' phases, as crossfade_control does; "
        "`cutover` and `control` use it",
    )
    kafka_bootstrap: str = Field(description="Kafka's bootstrap servers, host:port,...")
    mapping: Path = Field(description="the mapping YAML")

    topic_prefix: str = Field("crossfade", description="first part of every topic's name")
    topic_partitions: int = Field(4, ge=1, le=1000, description="partitions of each topic at creation")
    kafka_tls: bool = Field(
        False,
        description="reach Kafka by TLS; its certificate is checked by the system's CAs or SSL_CERT_FILE's",
    )
    kafka_token_provider: str | None = Field(
        None,
        description="`package.module:factory`, which returns an aiokafka AbstractTokenProvider: Kafka is "
        "reached by SASL OAUTHBEARER with its tokens",
    )
    kafka_largest_record: int = Field(
        LARGEST_RECORD,
        ge=10_000,
        le=LARGEST_RECORD,
        description="most bytes of a record given to Kafka; an event above it, or above what its topic "
        "takes, carries no document: apply reads that from MongoDB",
    )
    topic_replication: int = Field(1, ge=1, le=10, description="replicas of each topic at creation")

    publisher: str = Field("default", description="name of this migration's publisher; its checkpoint's key")
    copy_chunk: int = Field(5000, ge=1, le=1_000_000, description="documents in one chunk of the copy")
    copy_enabled: bool = Field(True, description="copy existing documents; off: only follow changes")
    copy_rate: float = Field(
        0,
        ge=0,
        description="documents a second that the copy reads at most; 0: no limit. `crossfade copy throttle` "
        "changes this and the next two while it runs",
    )
    copy_max_lag: float = Field(
        30,
        ge=0,
        description="seconds that apply may be behind while the copy goes on; it yields at half. 0: any",
    )
    copy_max_replication_lag: float = Field(
        10,
        ge=0,
        description="seconds that a secondary of MongoDB may be behind while the copy goes on; 0: any",
    )
    copy_read_preference: Literal[
        "primary", "primaryPreferred", "secondary", "secondaryPreferred", "nearest"
    ] = Field(
        "primary",
        description="members of the replica set that the copy reads from: primary, primaryPreferred, "
        "secondary, secondaryPreferred or nearest",
    )
    copy_read_tags: str = Field(
        "",
        description="tags of these members, as region:eu,role:etl; after a semicolon, what to take where no "
        "member has them",
    )
    allow_missing_collections: bool = Field(
        False, description="accept mapped collections that MongoDB does not have (yet)"
    )
    oplog_margin: float = Field(
        0.25,
        gt=0,
        lt=1,
        description="share of the oplog's window: when less is left before MongoDB drops the place of the "
        "saved token, `status` and publish warn",
    )
    heartbeat_interval: float = Field(1.0, gt=0, le=60, description="seconds between heartbeats")

    apply_group: str = Field("crossfade-apply", description="Kafka consumer group of the apply workers")
    apply_batch: int = Field(2000, ge=1, le=100_000, description="events in one transaction, at most")
    replication_role: Literal["auto", "replica", "origin"] = Field(
        "auto",
        description="replica: skip foreign keys and triggers by session_replication_role; origin: keep them, "
        "park what violates a foreign key; auto: replica where the privilege was granted",
    )

    parked_within: float = Field(
        900,
        gt=0,
        description="seconds after which an event that waits for another one (a unique value, a referenced "
        "row) becomes a dead letter; the time of copies and of apply's lag does not count",
    )

    reverse_group: str = Field(
        "crossfade-reverse", description="Kafka consumer group of the processes that write the way back"
    )

    reconcile_chunk: int = Field(1000, ge=1, le=10_000, description="documents compared at once")
    reconcile_rate: float = Field(
        0, ge=0, description="documents and rows a second that full generations read at most; 0: no limit"
    )
    reconcile_full_every: float = Field(
        3600, ge=0, description="seconds from the end of one full generation to the next one"
    )

    repair_after: float | None = Field(
        None,
        gt=0,
        description="seconds after which `reconcile` mends a mismatch by itself; not set: never",
    )
    repair_limit: int | None = Field(
        None,
        ge=1,
        description="most mismatches that are mended at once, and by itself within a day; above it, none is. "
        "Not set: 1,000, or one in a hundred documents where that is more",
    )

    log_format: Literal["json", "console", "auto"] = Field(
        "auto", description="how log lines look: json, console, or auto: console on a terminal, else json"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="least level logged: DEBUG, INFO, WARNING or ERROR"
    )
    metrics_host: str = Field("127.0.0.1", description="address that metrics are served on")
    metrics_port: int = Field(
        0,
        ge=0,
        le=65535,
        description="port of this process's metrics; 0: none. `run` gives publish this port, apply and "
        "the others those after it",
    )
    run_roles: str = Field(
        "", description="what `run` runs, as publish,apply; empty: every role that the settings suffice for"
    )

    control_host: str = Field(
        "127.0.0.1", description="address that `control` serves its API on; another one needs a token and TLS"
    )
    control_port: int = Field(9480, ge=0, le=65535, description="port of the control API; 0: any free one")
    control_token: SecretStr | None = Field(
        None, min_length=16, description="what callers of the control API must send, `Authorization: Bearer`"
    )
    control_tls_cert: Path | None = Field(
        None, description="the control API's certificate and its chain, PEM"
    )
    control_tls_key: Path | None = Field(None, description="the certificate's private key, PEM")
    control_allow_plain: bool = Field(
        False, description="serve beyond this machine without TLS, as behind a proxy that does it"
    )

    @field_validator("copy_read_tags")
    @classmethod
    def _readable(cls, text: str, info: ValidationInfo) -> str:
        if tag_sets(text) and info.data.get("copy_read_preference") == "primary":
            raise ValueError("tags choose among secondaries: set CROSSFADE_COPY_READ_PREFERENCE as well")
        return text


def tag_sets(text: str) -> list[dict[str, str]]:
    """Return the tag sets of ``copy_read_tags``, the first choice first; `ValueError` when misspelt."""
    sets: list[dict[str, str]] = []
    for part in text.split(";") if text.strip() else ():
        pairs = [tag.split(":") for tag in part.split(",") if tag.strip()]
        if any(len(pair) != 2 or not all(map(str.strip, pair)) for pair in pairs):
            raise ValueError("write tags as region:eu,role:etl")
        sets.append({name.strip(): value.strip() for name, value in pairs})
    return sets


def load(**given: object) -> Settings:
    """Return the settings; `ConfigurationError` names each one that is missing or wrong, never its value."""
    return _read(Settings, given)


def load_mongo(**given: object) -> MongoSettings:
    """Return only what looking at MongoDB needs; otherwise as `load`."""
    return _read(MongoSettings, given)


_S = TypeVar("_S", bound=_Sources)


def _read(settings: type[_S], given: dict[str, Any]) -> _S:
    try:
        return settings(**given)
    except ValidationError as error:
        faults = "; ".join(
            f"CROSSFADE_{'_'.join(str(part) for part in fault['loc']).upper()}: {fault['msg'].lower()}"
            for fault in error.errors(include_input=False, include_url=False)
        )
        raise ConfigurationError(
            faults, remedy="set it in the environment or in the file that CROSSFADE_CONFIG names"
        ) from None
