"""A claim and its end with so many jobs pending, next to a table of SQLite and a heap."""

from __future__ import annotations

import queue as standard
import sqlite3

import coresident as co
import pytest

USERS = 20
pending = pytest.mark.parametrize(
    "count", [10, 1000, 100_000], ids=[f"{count:,} pending" for count in (10, 1000, 100_000)]
)
# Some rounds of the slowest take a good part of a second.
CALLS = 200


def measure(benchmark, turn):
    """Times what takes one job and puts another in its place, so that as many are pending."""
    benchmark.extra_info.update(calls=CALLS, figure="median")

    def loop():
        for _ in range(CALLS):
            turn()

    benchmark.pedantic(loop, rounds=5, warmup_rounds=1)


def user(number):
    return f"user {number % USERS}"


def ours(path, count):
    jobs = co.JobQueue(path, devices="virtual:0", history=0)
    for number in range(USERS):
        jobs.submit_many([b"x"] * -(-count // USERS), user=user(number))
    return jobs


@pending
@pytest.mark.benchmark(group="claim, finish and submit")
def test_ours_queue_in_memory(benchmark, count):
    jobs = ours(None, count)

    def turn():
        claim = jobs.claim("virtual:0")
        claim.finish()
        jobs.submit(b"x", user=claim.job.user)

    measure(benchmark, turn)


@pending
@pytest.mark.benchmark(group="claim, finish and submit")
def test_peer_priority_queue(benchmark, count):
    jobs = standard.PriorityQueue()
    for number in range(count):
        jobs.put((0, number, b"x"))
    numbers = iter(range(count, 1 << 40))

    def turn():
        jobs.get()
        jobs.task_done()
        jobs.put((0, next(numbers), b"x"))

    measure(benchmark, turn)


@pending
@pytest.mark.benchmark(group="claim, finish and submit in a file")
def test_ours_queue_in_a_file(benchmark, count, tmp_path):
    jobs = ours(tmp_path / "jobs.sqlite", count)

    def turn():
        claim = jobs.claim("virtual:0")
        claim.finish()
        jobs.submit(b"x", user=claim.job.user)

    measure(benchmark, turn)
    jobs.close()


@pending
@pytest.mark.benchmark(group="claim, finish and submit in a file")
def test_peer_table(benchmark, count, tmp_path):
    """First come, first served, with an index: what people write. It knows no users."""
    table = sqlite3.connect(tmp_path / "table.sqlite", isolation_level=None)
    table.execute("PRAGMA journal_mode = WAL")
    table.execute("PRAGMA synchronous = NORMAL")
    table.execute("CREATE TABLE jobs (id INTEGER PRIMARY KEY, user TEXT, state TEXT, payload BLOB)")
    table.execute("CREATE INDEX by_state ON jobs (state, id)")
    submit = "INSERT INTO jobs (user, state, payload) VALUES (?, 'queued', ?)"
    table.execute("BEGIN")
    table.executemany(submit, ((user(number), b"x") for number in range(count)))
    table.execute("COMMIT")
    claim = (
        "UPDATE jobs SET state = 'running' WHERE id ="
        " (SELECT id FROM jobs WHERE state = 'queued' ORDER BY id LIMIT 1) RETURNING id, user"
    )

    def turn():
        ((number, who),) = table.execute(claim).fetchall()
        table.execute("UPDATE jobs SET state = 'done' WHERE id = ?", (number,))
        table.execute(submit, (who, b"x"))

    measure(benchmark, turn)
    table.close()


@pytest.mark.parametrize("count", [10, 1000], ids=["10 pending", "1,000 pending"])
@pytest.mark.benchmark(group="claim, finish and submit, by turns, in a file")
def test_peer_table_by_turns(benchmark, count, tmp_path):
    """The user who was served longest ago is next, found in the history; slow from 1,000 on."""
    table = sqlite3.connect(tmp_path / "table.sqlite", isolation_level=None)
    table.execute("PRAGMA journal_mode = WAL")
    table.execute("PRAGMA synchronous = NORMAL")
    table.execute(
        "CREATE TABLE jobs (id INTEGER PRIMARY KEY, user TEXT, state TEXT, started INTEGER)"
    )
    submit = "INSERT INTO jobs (user, state) VALUES (?, 'queued')"
    table.executemany(submit, ((user(number),) for number in range(count)))
    claim = (
        "UPDATE jobs SET state = 'running', started = ? WHERE id = ("
        " WITH served AS (SELECT user, max(started) AS last FROM jobs GROUP BY user)"
        " SELECT jobs.id FROM jobs JOIN served USING (user) WHERE state = 'queued'"
        " ORDER BY served.last, jobs.id LIMIT 1) RETURNING id, user"
    )
    clock = iter(range(1 << 40))

    def turn():
        ((number, who),) = table.execute(claim, (next(clock),)).fetchall()
        table.execute("DELETE FROM jobs WHERE id = ?", (number,))
        table.execute(submit, (who,))

    measure(benchmark, turn)
    table.close()


@pytest.mark.parametrize("count", [10, 1000], ids=["10 pending", "1,000 pending"])
@pytest.mark.benchmark(group="claim, finish and submit, by turns, in a file")
def test_ours_fair_queue_in_a_file(benchmark, count, tmp_path):
    jobs = ours(tmp_path / "jobs.sqlite", count)

    def turn():
        claim = jobs.claim("virtual:0")
        claim.finish()
        jobs.submit(b"x", user=claim.job.user)

    measure(benchmark, turn)
    jobs.close()
