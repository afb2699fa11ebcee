"""The door of the page: who may open it, what is served and to whom, bounded, and answered whatever is sent."""

import io
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from justimage.cli import play
from justimage.web import Page, build, check_host, for_others
from tests.visitor import Fuzz, Visitor


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.0.1", "::", "example.org"])
def test_other_hosts_need_a_password(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUSTIMAGE_PASSWORD", raising=False)
    with pytest.raises(ValueError, match=f"host {host} is open to others: give --password"):
        play.main(["--host", host])


def test_a_password_opens_all_addresses() -> None:
    check_host("0.0.0.0", "secret")
    assert for_others("http://localhost:7861/", "0.0.0.0") == f", for others http://{socket.gethostname()}:7861/"
    assert for_others("http://127.0.0.1:7861/", "127.0.0.1") == ""


@pytest.mark.parametrize("host", ["nosuch.invalid", "192.0.2.1", "a" * 70, "no name"])
def test_a_host_that_is_not_this_machine_is_one_line(host: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=f"host {host} cannot be served from here; allowed: localhost"):
        play.main(["--host", host, "--password", "secret"])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--from nowhere", "nowhere does not exist"),
        ("--port 70000", "port is 70000; allowed: 1 to 65535"),
        ("--max-images 1000", "max-images is 1000; allowed: 1 to 64"),
        ("--device tpu", "device 'tpu' is not available here"),
    ],
)
def test_what_the_command_cannot_do_is_one_line(words: str, message: str) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        play.main(words.split())


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def page(run: Path) -> Iterator[tuple[Page, str]]:
    """The page, served."""
    page = build([run])
    yield page, page.launch(port=free_port(), wait=False)
    page.close()


def test_a_drawing_arrives_and_its_file_is_served(page: tuple[Page, str]) -> None:
    visitor = Visitor(page[1])
    data = visitor.event("draw")[1]
    data[1], data[14] = page[0].models.given[0], None
    good, said = visitor.ask("draw", data)
    assert good, said
    served = [part["path"] for _, m in said if m["msg"] == "process_completed" for part in downloads(m)]
    answer = visitor.client.get(f"/gradio_api/file={served[0]}")
    assert answer.status_code == 200 and "Command" in Image.open(io.BytesIO(answer.content)).text
    visitor.leave()


def test_a_web_site_whose_name_leads_here_gets_nothing(page: tuple[Page, str]) -> None:
    """Its scripts could else read what the page shows: a browser takes the page for the site's own."""
    client = Visitor(page[1]).client
    strangers, own = ("example.org:7860", "127.0.0.1.example.org", ""), ("localhost:1", "[::1]", "127.0.0.1:7860")
    for host, status in [*((host, 403) for host in strangers), *((host, 200) for host in own)]:
        answer = client.get("/config", headers={"host": host})
        assert answer.status_code == status, host
    assert "open it as localhost" in client.get("/", headers={"host": "example.org"}).json()["detail"]


def test_no_number_is_rounded_and_the_line_says_why(page: tuple[Page, str]) -> None:
    visitor = Visitor(page[1])
    data = visitor.event("draw")[1]
    data[1], data[6], data[14] = page[0].models.given[0], 2.5, None
    good, said = visitor.ask("draw", data)
    assert not good and "seed is 2.5; allowed: whole numbers from 0 to 9007199254740991</p>" in json.dumps(said)
    visitor.leave()


def downloads(message: dict[str, Any]) -> list[dict[str, Any]]:
    """Files that a message offers."""
    values = [part.get("value") if isinstance(part, dict) else None for part in message["output"]["data"]]
    return [value for value in values if isinstance(value, dict) and "path" in value]


def test_nothing_else_is_served(page: tuple[Page, str], run: Path) -> None:
    visitor = Visitor(page[1])
    for path in (
        "/etc/passwd", run / "recipe.json", page[0].files.root / "made", "../../etc/passwd", "https://example.org/",
        f"{page[0].files.root}/served/../../{run.name}/recipe.json",
    ):  # fmt: skip
        assert visitor.client.get(f"/gradio_api/file={path}").status_code in (403, 404), path
    for path in "/docs", "/openapi.json", "/gradio_api/info", "/monitoring", "/gradio_api/proxy=http://example.org", "/x":
        assert visitor.client.get(path).status_code == 404, path
    for path in (
        "/gradio_api/vibe-edit/",
        "/gradio_api/component_server",
        "/gradio_api/process_recording",
        "/gradio_api/call/draw",
        "/gradio_api/api/draw",
    ):
        assert visitor.client.post(f"/gradio_api/{path}", json={}).status_code == 404, path
    visitor.leave()


def test_who_has_no_page_open_is_not_drawn_for(page: tuple[Page, str]) -> None:
    visitor = Visitor(page[1])
    number, data = visitor.event("draw")
    assert visitor.join(number, data, "somebody-else").status_code == 403
    visitor.leave()


def test_bodies_are_bounded(page: tuple[Page, str]) -> None:
    visitor = Visitor(page[1])
    assert visitor.client.post("/gradio_api/queue/join", content=b"[" * 2**20).status_code == 413
    endless = (b"x" * 2**16 for _ in range(1000))
    assert visitor.client.post("/gradio_api/upload", content=endless).status_code == 413
    visitor.leave()


def test_odd_requests_are_all_answered(page: tuple[Page, str], tmp_path: Path) -> None:
    """None crashes the page, none leaves the folder of its files, and afterwards it draws as before."""
    secret = "b7f3-kept-outside"
    (tmp_path / "secret.txt").write_text(secret)
    before = sorted(Path.cwd().iterdir())
    fuzz = Fuzz(page[1], 0, secret)
    for _ in range(300):
        fuzz.request()
    assert not [status for status in fuzz.statuses if status.split()[1].startswith("5")], fuzz.statuses
    assert fuzz.statuses["event done"] and fuzz.statuses["event refused"]
    assert sorted(Path.cwd().iterdir()) == before
    assert not page[0].models.turns.drawings and not page[0].models.turns.taken
    fuzz.visitor.leave()
    test_a_drawing_arrives_and_its_file_is_served(page)


def test_every_visitor_is_served(page: tuple[Page, str]) -> None:
    """Beside one who asks for fifty drawings at a time, of whom most are refused."""
    greedy, visitors = Visitor(page[1]), [Visitor(page[1]) for _ in range(8)]
    number, data = greedy.event("draw")
    data[1], data[14] = page[0].models.given[0], None
    for _ in range(50):
        assert greedy.join(number, data).status_code == 200
    answers: list[bool] = []
    threads = [threading.Thread(target=lambda v=v: answers.append(v.ask("draw", data)[0])) for v in visitors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == [True] * 8
    ends = [message["success"] for message in greedy.messages() if message["msg"] == "process_completed"]
    assert len(ends) == 50 and any(ends) and not all(ends)
    for visitor in greedy, *visitors:
        visitor.leave()


def test_the_password_is_asked_for(run: Path) -> None:
    page = build([run])
    address = page.launch(port=free_port(), password="pass wörd", wait=False)
    try:
        import httpx

        with httpx.Client(base_url=address) as client:
            assert client.get("/config").status_code == 401
            assert client.post("/login", data={"username": "me", "password": "wrong"}).status_code == 400
            assert client.post("/login", data={"username": "me", "password": "pass wörd"}).status_code == 200
            assert client.get("/config").status_code == 200
    finally:
        page.close()


def test_help_needs_no_gradio() -> None:
    code = "import sys; from justimage.cli import play; assert not {'gradio', 'fastapi'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
