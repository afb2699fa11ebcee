"""The door of the page: what may be asked of the server at all, how much, and for how long.

Gradio serves more addresses than this page needs, reads whole bodies into memory, and keeps what it sends to a browser until
that is read. So only the addresses that the page itself uses are open, bodies are bounded and must arrive in time, uploads
stop where the folder for them is full, and a visitor is a browser with an open connection (its heartbeat): who has none is
not drawn for.
"""

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

HEARTBEAT = re.compile(r"/gradio_api/heartbeat/([\w-]{1,64})")
READ = re.compile(
    r"/|/(config|theme\.css|favicon\.ico|robots\.txt|manifest\.json|login_check|logout)/?|/(assets|static|svelte)/[\w./@+-]+"
    r"|/gradio_api/(startup-events|theme\.css|app_id|user|token|login_check|queue/(data|status)|upload_progress|file=.+)/?"
    r"|/gradio_api/heartbeat/[\w-]{1,64}"
)
WRITE = re.compile(r"/login/?|/gradio_api/(queue/join|cancel|reset|upload)/?")
MAX_JSON, MAX_UPLOAD, MAX_STORED = 2**18, 20 * 2**20, 2 * 2**30
"""Bytes of a message, of an upload, and of all files that the page holds."""
MAX_READING = 2**28
"""Bytes of all bodies that are being read."""
MAX_VISITORS, BODY_SECONDS, ARRIVAL_SECONDS = 200, 60, 1.5
"""Visitors at a time, and seconds for a body, and for a heartbeat to begin, which may come after a first event."""
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "frame-ancestors 'none'; form-action 'self'"
)
"""Nothing is loaded from elsewhere, and no other page frames this one."""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def host_of(scope: Scope) -> str:
    """The host that a request names, without its port."""
    header = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


class Refused(Exception):
    """A request that is answered here."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class Visitors:
    """Who has the page open: the sessions with a heartbeat."""

    def __init__(self) -> None:
        self.open: Counter[str] = Counter()

    def __contains__(self, session: object) -> bool:
        return self.open[str(session)] > 0 if session in self.open else False


class Guard:
    """An ASGI application before Gradio's."""

    def __init__(self, app: App, visitors: Visitors, folder: Path, policy: str = POLICY, local: bool = False) -> None:
        """local: answer only requests that name this machine as it names itself: a web site's name may lead here, too, and its
        scripts would then be those of this page."""
        self.app, self.visitors, self.folder, self.policy, self.local = app, visitors, folder, policy, local
        self.stored, self.measured, self.reading = 0, -1e9, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close"})
        begun = False

        async def sent(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                message["headers"] = [*message.get("headers", []), *self.headers()]
            await send(message)

        try:
            received = await self.admit(scope, receive)
            beat = HEARTBEAT.fullmatch(scope["path"])
            if beat:
                await self.heartbeat(beat[1], scope, received, sent)
            else:
                await self.app(scope, received, sent)
        except Refused as refused:
            if not begun:
                await answer(send, refused.status, refused.message)
        except Exception:
            if not begun:
                await answer(send, 400, "this request cannot be understood")

    def headers(self) -> list[tuple[bytes, bytes]]:
        policy = [(b"content-security-policy", self.policy.encode())] if self.policy else []
        return [*policy, (b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]

    async def admit(self, scope: Scope, receive: Receive) -> Receive:
        """The body of a request that may pass; Refused for any other."""
        path, method = scope["path"], scope["method"]
        if self.local and not is_loopback(host_of(scope)):
            raise Refused(403, "this page is for its machine alone: open it as localhost; behind a proxy give it a --password")
        if method in ("GET", "HEAD"):
            if not READ.fullmatch(path) or "\0" in path or re.search(r"/gradio_api/file=\w{2,}:", path):
                raise Refused(404, "there is no such page")
            return receive
        if method != "POST" or not WRITE.fullmatch(path):
            raise Refused(405 if READ.fullmatch(path) else 404, "there is no such page")
        upload = path.startswith("/gradio_api/upload")
        if upload and self.bytes_stored() > MAX_STORED:
            raise Refused(507, "the page holds as many files as it may; try again in an hour")
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        limit = MAX_UPLOAD + 2**16 if upload else MAX_JSON
        if not declared.isdigit() or int(declared) > limit:
            raise Refused(413, f"at most {limit} bytes are read")
        body = await self.read_body(receive, limit)
        if path.startswith("/gradio_api/queue/join"):
            await self.check_visitor(body)
        return replay(body, receive)

    async def check_visitor(self, body: bytes) -> None:
        """Refused for events of nobody: what they send would be kept for nobody to read."""
        try:
            message = json.loads(body)
            session = message.get("session_hash")
        except (ValueError, AttributeError, RecursionError):
            raise Refused(422, "this is no event") from None
        end = time.monotonic() + ARRIVAL_SECONDS
        while session not in self.visitors:
            if time.monotonic() > end:
                raise Refused(403, "open the page first")
            await asyncio.sleep(0.05)

    async def read_body(self, receive: Receive, limit: int) -> bytes:
        """A body of at most `limit` bytes; Refused for a longer one, one that breaks off, or one that takes too long."""
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refused(400, "the request broke off")
                    part = message.get("body", b"")
                    body += part
                    self.reading += len(part)
                    if len(body) > limit:
                        raise Refused(413, f"at most {limit} bytes are read")
                    if self.reading > MAX_READING:
                        raise Refused(503, "too much arrives at once; try again")
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError:
            raise Refused(408, f"the request did not arrive within {BODY_SECONDS} s") from None
        finally:
            self.reading -= len(body)

    async def heartbeat(self, session: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a visitor's heartbeat, during which the visitor is there."""
        if session not in self.visitors and len(self.visitors.open) >= MAX_VISITORS:
            raise Refused(503, f"{MAX_VISITORS} visitors are here; try again later")
        self.visitors.open[session] += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.visitors.open[session] -= 1
            if not self.visitors.open[session]:
                del self.visitors.open[session]

    def bytes_stored(self) -> int:
        """Bytes of all files of the page, measured every few seconds."""
        if time.monotonic() - self.measured > 5:
            self.stored = sum(f.stat().st_size for f in self.folder.rglob("*") if f.is_file())
            self.measured = time.monotonic()
        return self.stored


def replay(body: bytes, receive: Receive) -> Receive:
    """A body that was read, to be read again; then what comes of the connection."""
    left = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return left.pop() if left else await receive()

    return again


async def answer(send: Send, status: int, message: str) -> None:
    content = json.dumps({"detail": message}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
