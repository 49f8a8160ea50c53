"""What is done to a run. Each fault is over when it returns, and tells itself with its parameters."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Container, Coroutine, Mapping
from contextlib import suppress
from random import SystemRandom
from typing import Any

import asyncpg
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from pymongo.errors import PyMongoError

from examples.spaces.shapes import Document, Shapes
from tests.faults.run import Run
from tests.support.signals import send
from worker import failpoints
from worker.embedded.state import ServiceName

SERVICES: tuple[ServiceName, ...] = ("mongod", "kafka", "postgres")
_PLACES = {
    "apply": ("apply.",),
    "reconcile": ("reconcile.",),
    "reverse": ("reverse.",),
    "control": (failpoints.CUTOVER_ABORTING,),
}
"""Failpoints that a role comes by, by how they begin."""
_LONG = 1300  # documents: with two changes of each, more events than the publisher fetches at once


async def kill_role(run: Run) -> str:
    name = run.rng.choice(sorted(run.roles))
    run.signal(name)
    return f"kill {name}"


async def die_at_failpoint(run: Run) -> str:
    name = run.rng.choice(sorted(run.roles))
    ours = _PLACES.get(name.split()[0], ("publish.", "copy.", "removal."))
    place = run.rng.choice([p for p in sorted(failpoints.NAMES) if p.startswith(ours)])
    kind = run.rng.choice(["exit", "raise", f"hold:1:{run.rng.uniform(0.5, 4):.1f}"])
    count = run.rng.randint(1, 5)
    armed = f"{place}={kind}" if ":" in kind else f"{place}={kind}:{count}"
    run.armed[name] = armed
    run.signal(name)
    return f"start {name} with {armed}"


async def pause_role(run: Run) -> str:
    name, seconds = run.rng.choice(sorted([*run.roles, *run.movers])), run.rng.uniform(0.5, 6)
    run.signal(name, signal.SIGSTOP)
    process = run.w.processes.get(name)
    await asyncio.sleep(seconds)
    if process is not None:
        send(process, signal.SIGCONT)
    return f"pause {name} for {seconds:.1f} s"


async def kill_mover(run: Run) -> str:
    if not run.movers:
        return "kill no mover"
    name = run.rng.choice(sorted(run.movers))
    run.struck.add(name)
    run.signal(name)
    return f"kill {name}"


async def restart_service(run: Run) -> str:
    name, seconds = run.rng.choice(SERVICES), run.rng.uniform(0, 4)
    async with run.killed(name):
        await asyncio.sleep(seconds)
    return f"kill {name}, start it after {seconds:.1f} s"


async def pause_service(run: Run) -> str:
    name, seconds = run.rng.choice(SERVICES), run.rng.uniform(0.5, 5)
    async with run.paused(name):
        await asyncio.sleep(seconds)
    return f"pause {name} for {seconds:.1f} s"


async def kill_while_it_waits(run: Run) -> str:
    """Kill a role with work in flight: what it has handed over is known to nobody."""
    service: ServiceName
    service, role = run.rng.choice([("kafka", "publish"), ("kafka", "publish"), ("postgres", "apply")])
    seconds = run.rng.uniform(1.5, 4)
    async with run.paused(service):
        await asyncio.sleep(seconds)
        run.signal(role)
        await asyncio.sleep(0.2)
    return f"pause {service}, and kill {role} after {seconds:.1f} s"


async def kill_in_the_copy(run: Run) -> str:
    """Kill the publisher while Kafka takes nothing of what the copy has read."""
    begun = "SELECT count(*) FROM crossfade.collection WHERE copied > 0"
    await run.w.until_value(begun, 1, 60)
    seconds = run.rng.uniform(1.5, 4)
    async with run.paused("kafka"):
        await asyncio.sleep(seconds)
        run.signal("publish")
    return f"pause kafka in the copy, and kill publish after {seconds:.1f} s"


async def cut(run: Run) -> str:
    name = run.rng.choice(sorted(run.proxies))
    run.proxies[name].cut()
    return f"cut connections to {name}"


async def half_close(run: Run) -> str:
    name = run.rng.choice(sorted(run.proxies))
    run.proxies[name].half_close()
    return f"half-close connections to {name}"


async def delay(run: Run) -> str:
    name, seconds = run.rng.choice(sorted(run.proxies)), run.rng.uniform(0.005, 0.05)
    run.proxies[name].delay = seconds
    await asyncio.sleep(3)
    run.proxies[name].delay = 0.0
    return f"delay {name} by {seconds * 1000:.0f} ms"


async def silence(run: Run) -> str:
    name, seconds = run.rng.choice(sorted(run.proxies)), run.rng.uniform(0.5, 5)
    run.proxies[name].open.clear()
    await asyncio.sleep(seconds)
    run.proxies[name].open.set()
    return f"silence to {name} for {seconds:.1f} s"


async def refuse(run: Run) -> str:
    name, seconds = run.rng.choice(sorted(run.proxies)), run.rng.uniform(0.5, 4)
    run.proxies[name].refuses = True
    run.proxies[name].cut()
    await asyncio.sleep(seconds)
    run.proxies[name].refuses = False
    return f"no connections to {name} for {seconds:.1f} s"


async def join_and_leave(run: Run) -> str:
    """Let another worker of a role come and go; a second publisher takes over where the first one dies."""
    others = ["reverse", "control"] if "reverse" in run.roles else []
    role, seconds = run.rng.choice(["apply", "apply", "publish", *others]), run.rng.uniform(1, 5)
    name, dies = f"{role} passing {len(run.report.faults)}", role == "publish" and run.rng.random() < 0.5
    run.keep(name)
    await asyncio.sleep(seconds / 2)
    if dies:
        run.signal(role)
    await asyncio.sleep(seconds / 2)
    await run.leave(name)
    return f"another {role} for {seconds:.1f} s{', the first dies meanwhile' if dies else ''}"


async def send_again(run: Run) -> str:
    try:
        async with asyncio.timeout(30):
            sent = await run.w.send_again(seed=run.rng.randint(0, 99))
    except (KafkaError, OSError, TimeoutError):  # another fault has Kafka
        return "send some records again"
    return f"send all {sent} records again, in random order"


async def terminate_backend(run: Run) -> str:
    """End a random session of the program in PostgreSQL, as an administrator would."""
    told = "nobody"
    try:
        connection: asyncpg.Connection = await asyncio.wait_for(run.w.connect(), 10)
        sessions = await connection.fetch(
            """SELECT pid, application_name FROM pg_stat_activity WHERE datname = current_database()
               AND pid <> pg_backend_pid() AND backend_type = 'client backend' ORDER BY pid""",
            timeout=10,
        )
        if sessions:
            pid, told = run.rng.choice(sessions)
            await connection.fetchval("SELECT pg_terminate_backend($1)", pid, timeout=10)
        connection.terminate()
    except (OSError, TimeoutError, asyncpg.PostgresError) as error:
        told = f"nobody ({type(error).__name__})"
    return f"terminate the session of {told}"


async def delete_topic(run: Run) -> str:
    """Delete a topic by hand."""
    admin = AIOKafkaAdminClient(bootstrap_servers=run.services.kafka_bootstrap, request_timeout_ms=5000)
    name = "none"
    try:
        async with asyncio.timeout(15):
            await admin.start()
            ours = sorted(name for name in await admin.list_topics() if name.startswith(f"{run.w.name}."))
            if ours:
                name = run.rng.choice(ours)
                await admin.delete_topics([name])
    except (KafkaError, OSError, TimeoutError):
        name = f"{name}, perhaps"
    finally:
        await admin.close()
    return f"delete topic {name.removeprefix(f'{run.w.name}.')}"


async def step_clock(run: Run) -> str:
    """Step the wall clock of a process by minutes to hours, and half the time back again."""
    if not run.clocks.names:
        return "step no clock"
    name = run.rng.choice(run.clocks.names)
    minutes = run.rng.choice([-1, 1]) * run.rng.choice([2, 30, 90, 600])
    back = run.rng.random() < 0.5
    run.clocks.step(name, minutes * 60)
    await asyncio.sleep(run.rng.uniform(1, 4))
    if back and name in run.clocks.names:
        run.clocks.step(name, 0)
    return f"step the clock of {name} by {minutes} minutes{' and back' if back else ''}"


async def lose_open_transaction(run: Run) -> str:
    """Kill mongod with a transaction open: what it wrote never was."""
    lead = (await _leads(run, 1))[0]
    with suppress(PyMongoError):
        async with await run.w.client.start_session() as session:
            session.start_transaction()
            await run.w.mongo["leads"].insert_one(lead, session=session)
            async with run.killed("mongod"):
                run.w.ledger.record("leads", lead["_id"], None)
                await asyncio.sleep(run.rng.uniform(0, 2))
    return "kill mongod with a transaction open"


async def die_in_transaction(run: Run) -> str:
    """Kill the publisher half-way through a transaction that changes each of its documents twice.

    So that it saves a token meanwhile, if it takes one for safe, MongoDB's replies are slow.
    """
    leads = await _leads(run, _LONG)
    collection = run.w.mongo["leads"]
    before = await _sent(run, 0)
    run.proxies["mongod"].delay = 0.15
    try:
        async with await run.w.client.start_session() as session, session.start_transaction():
            await collection.insert_many(leads, session=session)
            for lead in leads:
                lead["score"] = -1.5
                await collection.replace_one({"_id": lead["_id"]}, lead, session=session)
    except PyMongoError:
        for lead in leads:
            run.w.ledger.record_unknown("leads", lead["_id"])
    else:
        for lead in leads:
            run.w.ledger.record("leads", lead["_id"], lead)
    sent = await _sent(run, before + _LONG + 100)
    await asyncio.sleep(1.3)  # it saves every second
    run.signal("publish")
    run.proxies["mongod"].delay = 0.0
    return f"a transaction of {2 * _LONG} changes, kill publish after {sent - before}"


async def _sent(run: Run, least: int) -> int:
    """Wait until the stream has sent so many changes of leads, a while at most; return how many."""
    sent = 0
    with suppress(KafkaError, OSError, TimeoutError):
        async with asyncio.timeout(40):
            while True:
                ends = await run.w.ends()
                sent = sum(end for (topic, _), end in ends.items() if topic.endswith(".leads"))
                if sent >= least:
                    break
                await asyncio.sleep(0.1)
    return sent


async def _leads(run: Run, count: int) -> list[Document]:
    """Return new documents of a tenant that is there."""
    shapes = Shapes(run.rng, SystemRandom())
    tenant = None
    while tenant is None:
        try:
            tenant = (await run.w.mongo["tenants"].find_one())["_id"]
        except PyMongoError:
            await asyncio.sleep(0.2)
    return [shapes.lead(tenant, None, []) for _ in range(count)]


Fault = Callable[[Run], Coroutine[Any, Any, str]]
# How often each is chosen.
FAULTS: dict[Fault, int] = {
    kill_role: 2,
    die_at_failpoint: 4,
    pause_role: 2,
    restart_service: 2,
    pause_service: 2,
    kill_while_it_waits: 2,
    cut: 2,
    half_close: 2,
    delay: 2,
    silence: 2,
    refuse: 2,
    join_and_leave: 2,
    send_again: 2,
    terminate_backend: 2,
    step_clock: 2,
    lose_open_transaction: 1,
    die_in_transaction: 2,
    delete_topic: 1,
}


# Those under which tenants move. Times of changes of phase are compared: no clock is stepped.
WHILE_MOVING: dict[Fault, int] = {
    kill_role: 3,
    kill_mover: 3,
    die_at_failpoint: 3,
    pause_role: 3,
    restart_service: 3,
    pause_service: 2,
    kill_while_it_waits: 1,
    cut: 2,
    half_close: 1,
    delay: 1,
    silence: 2,
    refuse: 2,
    join_and_leave: 1,
    send_again: 1,
    terminate_backend: 2,
}


def choose(run: Run, without: Container[Fault] = (), *, among: Mapping[Fault, int] = FAULTS) -> list[Fault]:
    """Return one fault, or two that happen together."""
    count = 2 if run.rng.random() < 0.4 else 1
    chosen: list[Fault] = []
    while len(chosen) < count:
        one = run.rng.choices(list(among), list(among.values()))[0]
        if one not in chosen and one not in without:
            chosen.append(one)
    return chosen
