"""The rules of InvokeAI's session queue, as far as they decide who is next and what a cancel ends.

A table of SQLite: the user who was served longest ago is next, which is looked up in the history; a
cancel ends what is queued and one item that runs; an item's event is cleared when it is dequeued.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable


class SessionQueue:
    """Items of users, with a status each."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.table = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        self.table.execute(
            "CREATE TABLE items (id INTEGER PRIMARY KEY, user TEXT, batch TEXT,"
            " status TEXT DEFAULT 'pending', started INTEGER)"
        )
        self.served = 0

    def enqueue(self, user: str, batch: str = "") -> int:
        """Queues an item."""
        cursor = self.table.execute("INSERT INTO items (user, batch) VALUES (?, ?)", (user, batch))
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def dequeue(self) -> tuple[int, str] | None:
        """The next item: of the user who was served longest ago, or never."""
        with self.lock:
            row = self.table.execute(
                "SELECT id, user FROM items AS item WHERE status = 'pending' ORDER BY"
                " (SELECT coalesce(max(started), 0) FROM items WHERE user = item.user), id LIMIT 1"
            ).fetchone()
            if row is None:
                return None
            self.served += 1
            self.table.execute(
                "UPDATE items SET status = 'in_progress', started = ? WHERE id = ?",
                (self.served, row[0]),
            )
            id_, user = row
            return int(id_), str(user)

    def complete(self, id_: int) -> None:
        """Ends an item, which has to be there."""
        self.status(id_)
        self.table.execute("UPDATE items SET status = 'completed' WHERE id = ?", (id_,))

    def status(self, id_: int) -> str:
        """How an item stands."""
        (status,) = self.table.execute("SELECT status FROM items WHERE id = ?", (id_,)).fetchone()
        return str(status)

    def cancel_batch(self, batch: str) -> int:
        """Cancels what is pending of a batch, and the current item if it is one of them."""
        pending = self.table.execute(
            "UPDATE items SET status = 'canceled' WHERE batch = ? AND status = 'pending'", (batch,)
        ).rowcount
        current = self.table.execute(
            "SELECT id, batch FROM items WHERE status = 'in_progress' LIMIT 1"
        ).fetchone()
        if current is None or current[1] != batch:
            return pending
        self.table.execute("UPDATE items SET status = 'canceled' WHERE id = ?", (current[0],))
        return pending + 1

    def delete_batch(self, batch: str) -> int:
        """Deletes a batch, after the current item was cancelled if it is one of it."""
        cancelled = self.cancel_batch(batch)
        self.table.execute("DELETE FROM items WHERE batch = ?", (batch,))
        return cancelled

    def delete_history(self, user: str) -> None:
        """Deletes what a user has had."""
        self.table.execute("DELETE FROM items WHERE user = ? AND status = 'completed'", (user,))


class Worker:
    """The loop of one worker: dequeue, forget the last cancel, run, and report what went wrong."""

    def __init__(self, queue: SessionQueue, report: Callable[[Exception], None]) -> None:
        self.queue = queue
        self.report = report
        self.cancelled = threading.Event()

    def run_one(
        self, run: Callable[[threading.Event], None], claimed: Callable[[int], None]
    ) -> bool:
        """Runs one item; false when there is none."""
        item = self.queue.dequeue()
        if item is None:
            return False
        claimed(item[0])
        self.cancelled.clear()
        try:
            run(self.cancelled)
        except Exception as error:
            self.report(error)
        self.queue.complete(item[0])
        return True
