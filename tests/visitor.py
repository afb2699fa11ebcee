"""A visitor of the page without a browser: the requests that one makes, and whatever else a test wants to send."""

import json
import secrets
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx


class Visitor:
    """A session with an open connection to the page at an address."""

    def __init__(self, address: str, timeout: float = 60) -> None:
        self.session, self.events = secrets.token_hex(5), {}
        self.client = httpx.Client(base_url=address, timeout=timeout)
        self.config = self.client.get("/config").json()
        self.leaving = threading.Event()
        self.here = threading.Event()
        threading.Thread(target=self.beat, daemon=True).start()
        self.here.wait(10)

    def beat(self) -> None:
        """Hold the heartbeat open until the visitor leaves."""
        with httpx.stream("GET", f"{self.client.base_url}gradio_api/heartbeat/{self.session}", timeout=30) as answer:
            self.here.set()
            for _ in answer.iter_lines():
                if self.leaving.is_set():
                    return

    def leave(self) -> None:
        self.leaving.set()
        self.client.close()

    def event(self, element: str, what: str = "click") -> tuple[int, list[Any]]:
        """The number of an event by the element that sends it, and its inputs as they are at first."""
        parts = self.config["components"]
        component = next(c["id"] for c in parts if c["props"].get("elem_id") == element)
        found = next(d for d in self.config["dependencies"] if [component, what] in [list(t) for t in d["targets"]])
        values = {c["id"]: c["props"].get("value") for c in parts}
        return found["id"], [values.get(i) for i in found["inputs"]]

    def join(self, number: Any, data: Any, session: str | None = None) -> httpx.Response:
        body = {
            "fn_index": number,
            "data": data,
            "session_hash": session or self.session,
            "event_data": None,
            "trigger_id": None,
        }
        return self.client.post("/gradio_api/queue/join", json=body)

    def messages(self) -> Iterator[dict[str, Any]]:
        """What the page sends, until it has nothing more to say."""
        with self.client.stream("GET", "/gradio_api/queue/data", params={"session_hash": self.session}) as answer:
            for line in answer.iter_lines():
                if line.startswith("data:"):
                    message = json.loads(line[5:])
                    yield message
                    if message["msg"] == "close_stream":
                        return

    def ask(self, element: str, data: Any = None, what: str = "click") -> tuple[bool, list[tuple[float, dict[str, Any]]]]:
        """Send an element's event and wait for its end: whether it succeeded, and its messages with their times."""
        number, usual = self.event(element, what)
        answer = self.join(number, usual if data is None else data)
        if answer.status_code != 200:
            return False, [(time.monotonic(), {"msg": "refused", "output": {"error": answer.text}})]
        said = [(time.monotonic(), message) for message in self.messages()]
        ends = [message for _, message in said if message["msg"] == "process_completed"]
        return bool(ends) and all(message["success"] for message in ends), said
