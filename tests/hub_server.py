"""A stand-in for the Hub's HTTP interface, on this machine: repositories with commits, files in ranges, faults on request."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def sha1(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


class HubServer(ThreadingHTTPServer):
    """Repositories as {name: {revision: {path: bytes}}}; `requests` has what was asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.private: set[str] = set()
        self.requests: list[str] = []
        self.cut_after: int | None = None
        """bytes of the next file after which its connection is cut"""
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def commit_of(self, name: str, revision: str) -> str:
        hashes = sorted((path, sha1(data)) for path, data in self.repositories[name][revision].items())
        return sha1(repr(hashes).encode())

    def files(self, name: str, revision: str) -> dict[str, bytes] | None:
        branches = self.repositories.get(name, {})
        if revision in branches:
            return branches[revision]
        return next((files for branch, files in branches.items() if self.commit_of(name, branch) == revision), None)


class Handler(BaseHTTPRequestHandler):
    server: HubServer  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        self.server.requests.append(f"{self.command} {self.path}")

    def answer(self, status: int, content: bytes | dict[str, Any] = b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, name: str, revision: str | None = None) -> bool:
        """Answer what is missing as the Hub does."""
        allowed = self.headers.get("authorization") == "Bearer friend"
        if name not in self.server.repositories or (name in self.server.private and not allowed):
            self.answer(401 if not allowed else 404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            return True
        if revision is not None and self.server.files(name, revision) is None:
            self.answer(404, {"error": "Revision not found"}, X_Error_Code="RevisionNotFound")
            return True
        return False

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].replace("%2F", "/")
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            name, revision = found[1], found[2] or "main"
            if not self.refuse(name, revision):
                files = self.server.files(name, revision) or {}
                siblings = [{"rfilename": path, "size": len(data)} for path, data in files.items()]
                commit = revision if re.fullmatch("[0-9a-f]{40}", revision) else self.server.commit_of(name, revision)
                self.answer(200, {"id": name, "sha": commit, "siblings": siblings, "private": name in self.server.private})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)(?:/.*)?", path):
            if not self.refuse(found[1], found[2]):
                files = self.server.files(found[1], found[2]) or {}
                entries = [{"type": "file", "path": p, "size": len(d), "oid": sha1(d)} for p, d in files.items()]
                self.answer(200, json.dumps(entries).encode())
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            name, revision, file = found.groups()
            if self.refuse(name, revision):
                return
            content = (self.server.files(name, revision) or {}).get(file)
            if content is None:
                self.answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
                return
            commit = revision if re.fullmatch("[0-9a-f]{40}", revision) else self.server.commit_of(name, revision)
            about = {"ETag": f'"{sha1(content)}"', "X_Repo_Commit": commit, "Accept_Ranges": "bytes"}
            start = int(m[1]) if (m := re.fullmatch(r"bytes=(\d+)-", self.headers.get("range", ""))) else 0
            rest = content[start:]
            if start:
                about["Content_Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            if self.command == "GET" and self.server.cut_after is not None and len(rest) > self.server.cut_after:
                kept, self.server.cut_after = self.server.cut_after, None
                self.send_response(206 if start else 200)
                for key, value in {**about, "Content_Length": str(len(rest))}.items():
                    self.send_header(key.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(rest[:kept])
                self.wfile.flush()
                self.close_connection = True
                self.connection.shutdown(2)
                return
            self.answer(206 if start else 200, rest, **about)
        else:
            self.answer(404, {"error": f"nothing at {path}"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        path = self.path.partition("?")[0].replace("%2F", "/")
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            if name in self.server.repositories:
                self.answer(409, {"error": "it exists", "url": f"{self.server.endpoint}/{name}"})
                return
            self.server.repositories[name] = {"main": {}}
            if asked.get("private") or asked.get("visibility") == "private":
                self.server.private.add(name)
            self.answer(200, {"url": f"{self.server.endpoint}/{name}", "name": name, "id": name})
        elif path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/(.+)", path):
            self.server.repositories[found[1]].setdefault(found[2], dict(self.server.repositories[found[1]]["main"]))
            self.answer(200, {})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)", path):
            if not self.refuse(found[1], found[2]):
                files = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]]
                self.answer(200, {"files": files})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", path):
            if self.refuse(found[1], found[2]):
                return
            branch = self.server.repositories[found[1]][found[2]]
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    branch[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "deletedFile":
                    branch.pop(line["value"]["path"], None)
            commit = self.server.commit_of(found[1], found[2])
            url = f"{self.server.endpoint}/{found[1]}/commit/{commit}"
            self.answer(200, {"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})
        else:
            self.answer(404, {"error": f"nothing at {path}"})
