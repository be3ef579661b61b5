"""A worker for each device over one list of sessions, as frontends run them."""

from __future__ import annotations

import threading
from collections.abc import Callable

from peers import Line


class Session:
    def __init__(self, processor: SessionProcessor, payload: str) -> None:
        self.processor = processor
        self.payload = payload
        self.state = "queued"
        self.error = ""

    def wait(self) -> str:
        over = ("done", "failed", "cancelled")
        with self.processor.condition:
            self.processor.sleep_until(lambda: self.state in over)
        return self.state

    def cancel(self) -> None:
        """Told to the worker that runs it; one that is queued only changes its state."""
        with self.processor.condition:
            if self.state == "running":
                self.processor.cancelled.set()
            self.state = "cancelled"
            self.processor.condition.notify_all()


class SessionProcessor(Line):
    """One worker. ``claimed`` is called between the claim and what comes after it."""

    def __init__(
        self,
        handler: Callable[[Session], object],
        claimed: Callable[[Session], object] = lambda _session: None,
    ) -> None:
        super().__init__()
        self.cancelled = threading.Event()
        self._handler = handler
        self._claimed = claimed
        self._sessions: list[Session] = []
        self._ends = False
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def submit(self, payload: str) -> Session:
        session = Session(self, payload)
        with self.condition:
            self._sessions.append(session)
            self.condition.notify_all()
        return session

    def open(self) -> None:
        self._ends = True
        super().open()
        self._thread.join()

    def _serve(self) -> None:
        try:
            while True:
                with self.condition:
                    self.condition.wait_for(lambda: self._sessions or self._ends)
                    if self._ends:
                        return
                    session = self._sessions.pop(0)
                    if session.state != "queued":
                        continue
                    session.state = "running"
                self._claimed(session)
                self.cancelled.clear()  # also what has come since the claim
                try:
                    self._handler(session)
                    self._over(session, "done")
                except Exception as error:
                    session.error = str(error)  # what this raises ends the worker
                    self._over(session, "failed")
        except BaseException:
            return

    def _over(self, session: Session, state: str) -> None:
        with self.condition:
            session.state = state
            self.condition.notify_all()
