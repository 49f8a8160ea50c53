"""Bugs to be found: each a change of the program's text, made in a copy of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Bug(NamedTuple):
    """One change: in a file, this text becomes that."""

    file: str
    right: str
    wrong: str


BUGS: dict[str, Bug | tuple[Bug, ...]] = {
    # C6: the token is saved before Kafka has what comes before it.
    "token-before-acknowledgement": Bug(
        "worker/publish/window.py",
        "        self._sent.append(_Sent(acknowledgements, mark, time.monotonic()))\n",
        "        self._sent.append(_Sent(acknowledgements, mark, time.monotonic()))\n        self.durable = mark\n",
    ),
    # C6 for the copy: its cursor is saved before Kafka has the documents.
    "cursor-before-acknowledgement": Bug(
        "worker/publish/copy.py",
        "                acknowledgements = await self.producer.send_all(outgoing.records)\n",
        "                last = read.reply.documents[-1]['_id']\n"
        "                self._sent.append(_Sent([], read.collection, last, 0, {}))\n"
        "                while self._sent:\n"
        "                    await self._advance(target, place)\n"
        "                acknowledgements = await self.producer.send_all(outgoing.records)\n",
    ),
    # C1: a token inside a clusterTime is taken for safe.
    "order-reset-on-resume": Bug(
        "worker/publish/order.py",
        "        self._last = token\n        counts = self._counts\n",
        "        self._last = self.safe = token\n        counts = self._counts\n",
    ),
    # C2: a copied document counts as newer than it was when it was read.
    "copy-version-too-late": Bug(
        "worker/publish/copy.py",
        "version = Version.snapshot(reply.at_cluster_time)",
        "version = Version.snapshot(type(reply.at_cluster_time)(reply.at_cluster_time.time + 3, 0))",
    ),
    # A1: what is as new as the ledger is applied again.
    "guard-at-least": Bug(
        "worker/apply/batch.py", "return item.version <= known.version", "return item.version < known.version"
    ),
    # A1: that a document was deleted is forgotten.
    "tombstone-dropped": Bug(
        "worker/apply/batch.py",
        '    if known is None:\n        return False\n    if known.state == "refetch":\n',
        '    if known is None or known.state == "deleted":\n        return False\n    if known.state == "refetch":\n',
    ),
    # A1: of several events of a document in one batch the oldest wins.
    "oldest-of-a-batch": Bug(
        "worker/apply/batch.py",
        "if other is None or item.version > other.version:",
        "if other is None or item.version < other.version:",
    ),
    # A2: offsets are durable before the rows are, and apply begins at them alone.
    "offsets-before-rows": (
        Bug(
            "worker/apply/worker.py",
            "        tallies = await self._writer.write(self._connected(), items)\n        self.observed.committed(",
            "        await self._connected().executemany(\n"
            "            'INSERT INTO crossfade.partition_progress (topic, partition, next_offset, records, applied, '\n"
            "            'superseded, absent, echo, switched, parked, dead_lettered, control) '\n"
            "            'VALUES ($1, $2, $3, 0, 0, 0, 0, 0, 0, 0, 0, 0) ON CONFLICT (topic, partition) DO UPDATE '\n"
            "            'SET next_offset = greatest(partition_progress.next_offset, excluded.next_offset)',\n"
            "            [(item.topic, item.partition, item.offset + 1) for item in items],\n"
            "        )\n"
            "        tallies = await self._writer.write(self._connected(), items)\n        self.observed.committed(",
        ),
        Bug(
            "worker/broker/batch_consumer.py",
            "min(offset or 0, durable.get((tp.topic, tp.partition), 0))",
            "durable.get((tp.topic, tp.partition), 0)",
        ),
    ),
    # A document that moves to another tenant keeps the child rows beyond its array's new end.
    "moved-with-old-children": Bug(
        "worker/apply/writer.py",
        "                if item.repairs or seen is not None:  # a new document has no child rows to remove\n",
        "                if seen is not None and seen.tenant_id == item.rows.tenant_id:\n",
    ),
    # Rows of an array's elements that are gone stay.
    "array-end-kept": Bug(
        "worker/apply/writer.py",
        "                if item.repairs or seen is not None:  # a new document has no child rows to remove\n",
        "                if seen is not None and item.rows.children[0][2:]:\n",
    ),
    # A deletion of a document that was never seen is not remembered.
    "unseen-delete-forgotten": Bug(
        "worker/apply/writer.py",
        "        new = [_entry(item, None) for item in winners if _key(item) not in known]\n",
        "        new = [_entry(item, None) for item in winners if _key(item) not in known and item.rows]\n",
    ),
    # What waits for another event is counted as parked, and kept nowhere.
    "parked-forgotten": Bug(
        "worker/apply/letters.py",
        "    failing = [item for item in items if item.outcome in _STATES]\n",
        "    failing = [item for item in items if item.outcome is Outcome.DEAD]\n",
    ),
}

# Found by seeds in which tenants move.
OF_MOVES: dict[str, Bug | tuple[Bug, ...]] = {
    # A cutover decides before apply has what MongoDB took before the fence.
    "decided-without-barrier": Bug(
        "worker/cutover/move.py", "        await self._arrived()\n        self._steps", "        self._steps"
    ),
    # Insertions pass PostgreSQL's fence.
    "insertions-unfenced": Bug(
        "worker/postgres/fences.py",
        'writes, all_rows = "INSERT OR UPDATE OR DELETE", ',
        'writes, all_rows = "UPDATE OR DELETE", ',
    ),
    # A rollback whose controller died stays half-way.
    "left-rolling-back": Bug(
        "worker/cutover/keeper.py",
        "                    if alone:\n",
        "                    if not alone:\n",
    ),
    # A rollback decides before MongoDB has what was written in PostgreSQL.
    "opened-before-drained": Bug(
        "worker/cutover/rollback.py",
        "while not await outbox.drained(self._ground.control, tenant, upto):",
        "while False:",
    ),
    # A rollback does not wait for the tenant's writers in PostgreSQL.
    "closed-over-writers": Bug("worker/cutover/rollback.py", "closes=True", "closes=False"),
    # MongoDB decides without refusing anybody.
    "left-without-fence": (
        Bug(
            "worker/cutover/move.py",
            "        await ground.validators.fence(self._tenants, max(left, _FENCE_LEAST))\n",
            "",
        ),
        Bug(
            "worker/cutover/move.py",
            "        if not await ground.validators.read_back(self._tenants):\n",
            "        if not self._tenants:\n",
        ),
    ),
}


def plant(name: str, folder: Path) -> Path:
    """Copy the program with a bug in it; return the copy's folder."""
    bugs = BUGS[name] if name in BUGS else OF_MOVES[name]
    for package in ("worker", "topics", "schema", "examples"):
        shutil.copytree(ROOT / package, folder / package)
    for bug in (bugs,) if isinstance(bugs, Bug) else bugs:
        file = folder / bug.file
        text = file.read_text()
        assert text.count(bug.right) == 1, f"{name}: the text to change stands {text.count(bug.right)} times"
        file.write_text(text.replace(bug.right, bug.wrong))
    return folder
