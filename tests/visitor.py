"""A visitor of the page without a browser: the requests that one makes, and whatever else a test wants to send."""

import json
import random
import secrets
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
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
        address = f"{self.client.base_url}gradio_api/heartbeat/{self.session}"
        with suppress(httpx.HTTPError), httpx.stream("GET", address, timeout=30) as answer:
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


# fuzzing ----------------------------------------------------------------------------------------------------------------

ODD: list[Any] = [
    None, True, 0, -1, 7, 2**31, 2**63, 10**400, 1e308, 0.5, "", "7", "../../etc/passwd", "/etc/passwd", "runs",
    "hf://a/b", "<script>alert(1)</script>", "\x00", "\ud83d\ude00" * 50, "x" * 5000, [], [[]], [1, "2", None], ["7"]
    * 300, {}, {"value": 3}, {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}, {"path":
    "http://169.254.169.254/latest"}, {"url": "http://127.0.0.1:1/x.png", "path": None}, {"background": {"path":
    "/etc/hostname"}, "layers": [], "composite": None}, {"background": {"url": "file:///etc/passwd", "path": "x"},
    "layers": [None] * 9, "composite": {"path": ".."}}, {"id": "no"}, {"__type__": "update", "choices": [1]},
    float("nan"), float("inf"),
]  # fmt: skip
"""Values that no field sends."""
PATHS = [
    "/", "/config", "/gradio_api/info", "/gradio_api/file=/etc/passwd", "/gradio_api/file=../../etc/passwd", "/docs",
    "/openapi.json", "/gradio_api/file=%2e%2e%2f%2e%2e%2fetc/passwd", "/static/../../../etc/passwd",
    "/assets/%2e%2e/%2e%2e/secret.txt", "/gradio_api/file=secret.txt", "/gradio_api/file=http://127.0.0.1:1/",
    "/gradio_api/proxy=http://127.0.0.1:1/", "/theme.css", "/gradio_api/file=/proc/self/environ",
    "/gradio_api/queue/data", "/gradio_api/upload_progress?upload_id=1", "/monitoring", "/gradio_api/heartbeat/../x",
    "/custom_component/a/b/c/d", "/gradio_api/stream/a/b/c/d.ts", "/gradio_api/queue/status", "/%00",
]  # fmt: skip


def odd_json(rng: random.Random) -> bytes:
    """A body that is no event, or no JSON."""
    return rng.choice([
        b"", b"{", b"null", b"[]", b"[" * 100_000, b"\xff\xfe", b'{"fn_index": 0}',
        b'{"fn_index": 1e999, "data": 3, "session_hash": 4}', b'{"session_hash": ["a"], "fn_index": {}, "data": []}',
        b'{"data": [' + b"1," * 60_000 + b'1], "fn_index": 0, "session_hash": "a"}',
    ])  # fmt: skip


def half_sent(address: str, rng: random.Random) -> None:
    """Begin an upload, and go away."""
    host, port = address.removeprefix("http://").strip("/").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as one:
        length = rng.choice([10**4, 10**6, 10**12])
        kind = "multipart/form-data; boundary=x"
        head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: {host}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
        one.sendall(
            head.encode()
            + b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
            + rng.randbytes(999)
        )


class Fuzz:
    """Requests that nobody should send, one after the other, each from a seed; `statuses` counts how they were answered."""

    def __init__(self, address: str, seed: int, secret: str) -> None:
        self.address, self.rng, self.secret = address, random.Random(seed), secret
        self.visitor = Visitor(address)
        self.statuses: Counter[str] = Counter()
        events = self.visitor.config["dependencies"]
        self.lengths = {d["id"]: len(d["inputs"]) for d in events}
        values = {c["id"]: c["props"].get("value") for c in self.visitor.config["components"]}
        self.usual = {d["id"]: [values.get(i) for i in d["inputs"]] for d in events}

    def request(self) -> None:
        """Send one, and read the whole answer; AssertionError for a secret in it."""
        kind = self.rng.choices(["event", "json", "path", "upload", "half", "cancel"], [38, 14, 18, 14, 8, 8])[0]
        for answer in getattr(self, kind)():
            self.statuses[f"{kind} {answer.status_code}"] += 1
            assert self.secret not in answer.text, answer.url

    def data(self, number: int) -> Any:
        """The inputs of an event, some of them odd."""
        if self.rng.random() < 0.1:
            return self.rng.choice(ODD)
        values = list(self.usual.get(number, [None] * 9))
        for i in self.rng.sample(range(len(values)), min(len(values), self.rng.choice([0, 1, 1, 2, 9]))):
            values[i] = self.rng.choice(ODD)
        return values if self.rng.random() < 0.9 else values[:-1]

    def body(self, number: Any) -> bytes:
        session = self.visitor.session if self.rng.random() < 0.97 else self.rng.choice(["nobody", "", "../x"])
        return json.dumps({"fn_index": number, "data": self.data(number), "session_hash": session}).encode()

    def event(self) -> Iterator[httpx.Response]:
        number = self.rng.choice([*self.lengths, self.rng.randrange(-2, 99)])
        if number in self.demo_events:
            return
        answer = self.post("/gradio_api/queue/join", self.body(number))
        yield answer
        if answer.status_code == 200:
            for message in self.visitor.messages():
                assert self.secret not in json.dumps(message)
                if message["msg"] == "process_completed":
                    self.statuses[f"event {'done' if message['success'] else 'refused'}"] += 1

    @property
    def demo_events(self) -> set[int]:
        """Events that begin a training: not these."""
        parts = {c["id"] for c in self.visitor.config["components"] if c["props"].get("elem_id") == "train"}
        return {d["id"] for d in self.visitor.config["dependencies"] if any(t[0] in parts for t in d["targets"])}

    def json(self) -> Iterator[httpx.Response]:
        where = self.rng.choice(["queue/join", "run/predict", "cancel", "reset", "upload"])
        yield self.post(f"/gradio_api/{where}", odd_json(self.rng))

    def path(self) -> Iterator[httpx.Response]:
        path = self.rng.choice(PATHS)
        if path != "/gradio_api/queue/data":
            yield self.visitor.client.request(self.rng.choice(["GET", "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"]), path)

    def upload(self) -> Iterator[httpx.Response]:
        name = self.rng.choice(["a.png", "../../a.png", "/etc/x", "", "a" * 300, "\u00e4.html", "a.svg", "..", "a\x00b"])
        content = self.rng.choice([b"", b"GIF89a", b"\x89PNG\r\n\x1a\n" + self.rng.randbytes(50), self.rng.randbytes(10**5)])
        many = self.rng.choice([1, 1, 1, 5])
        yield self.visitor.client.post("/gradio_api/upload", files=[("files", (name, content))] * many)

    def half(self) -> Iterator[httpx.Response]:
        half_sent(self.address, self.rng)
        yield self.visitor.client.get("/theme.css")  # the page still answers

    def cancel(self) -> Iterator[httpx.Response]:
        body = {
            "session_hash": self.rng.choice(ODD[:8]),
            "fn_index": self.rng.choice(ODD[:8]),
            "event_id": self.rng.choice(ODD[:16]),
        }
        yield self.post("/gradio_api/cancel", json.dumps(body, default=str).encode())

    def post(self, path: str, body: bytes) -> httpx.Response:
        return self.visitor.client.post(path, content=body, headers={"content-type": "application/json"})
