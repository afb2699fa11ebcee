"""The page under load: how soon it draws, how often it shows a frame, 10,000 odd requests, and twenty visitors at once.

    python -m benchmarks.play runs/digits                       # from the repository's root
    python -m benchmarks.play runs/digits --requests 1000 --visitors 8

Starts `justimage play` in a process of its own, in an empty folder beside which a secret lies, and asks it over HTTP as a
browser does (tests/visitor.py). Says how requests were answered, what memory the page took, and which files changed.
"""

import argparse
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.visitor import Fuzz, Visitor

SECRET = "b7f3-kept-outside"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=4, help="odd visitors at a time")
    parser.add_argument("--visitors", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    o = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "served"
        place.mkdir()
        (Path(folder) / "secret.txt").write_text(SECRET)
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
        words = ["play", "--from", str(o.run.resolve()), "--port", str(port)]
        with open(Path(folder) / "log", "wb") as log:
            server = subprocess.Popen([sys.executable, "-m", "justimage", *words], cwd=place, stdout=log, stderr=log)
        try:
            address = f"http://127.0.0.1:{port}/"
            print(f"the page is there after {wait_for(port):.1f} s, with {memory(server.pid):.0f} MB")
            data = first_image(address, str(o.run.resolve()))
            twenty(address, o.visitors, data)
            before = sorted(map(str, Path(folder).rglob("*")))
            fuzzed(address, o.requests, o.workers, o.seed, server.pid)
            print(f"files changed outside its own: {len({*before} ^ {*map(str, Path(folder).rglob('*'))})}")
            twenty(address, o.visitors, data)
            print(f"the page {'is alive' if server.poll() is None else 'ended'}")
        finally:
            server.terminate()
            server.wait(60)


def wait_for(port: int) -> float:
    started = time.monotonic()
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return time.monotonic() - started
        except OSError:
            time.sleep(0.05)


def memory(pid: int) -> float:
    """Resident megabytes of a process (Linux)."""
    words = Path(f"/proc/{pid}/status").read_text().split()
    return int(words[words.index("VmRSS:") + 1]) / 1024


def first_image(address: str, run: str) -> list[Any]:
    """How soon after a click there is a picture, and how often a new one; returns the inputs of a drawing."""
    visitor = Visitor(address)
    _, data = visitor.event("draw")
    data[1], data[14] = run, None
    for name, changes in (
        ("first drawing", {}),
        ("second drawing", {}),
        ("200 steps of Heun", {8: "heun", 10: 200, 11: "linear"}),
    ):
        chosen = [changes.get(i, value) for i, value in enumerate(data)]
        started = time.monotonic()
        good, said = visitor.ask("draw", chosen)
        assert good, said
        pictures = [t for t, message in said if "base64" in json.dumps(message)]
        gaps = [later - earlier for earlier, later in pairwise(pictures)]
        took = f"first picture after {pictures[0] - started:.2f} s, {len(pictures)} in {said[-1][0] - started:.2f} s"
        print(f"{name}: {took}, at most {max(gaps, default=0):.2f} s apart")
    visitor.leave()
    return data


def twenty(address: str, count: int, data: list[Any]) -> None:
    """Visitors who all click at once, three times each, beside one who clicks fifty times."""
    greedy, visitors = Visitor(address), [Visitor(address, timeout=300) for _ in range(count)]
    number, _ = greedy.event("draw")
    started, took, outcomes = time.monotonic(), [], Counter[str]()

    def draw(visitor: Visitor) -> None:
        for again in range(3):
            good, _ = visitor.ask("draw", data)
            outcomes["drawn" if good else "failed"] += 1
            if not again:
                took.append(time.monotonic() - started)

    threads = [threading.Thread(target=draw, args=[visitor]) for visitor in visitors]
    for thread in threads:
        thread.start()
    for _ in range(50):
        greedy.join(number, data)
    for thread in threads:
        thread.join()
    ends = [message["success"] for message in greedy.messages() if message["msg"] == "process_completed"]
    print(f"{count} visitors, 3 drawings each: {dict(outcomes)} in {time.monotonic() - started:.1f} s")
    soonest, middle, last = min(took), statistics.median(took), max(took)
    print(f"their first ones after {soonest:.1f} s at the soonest, {middle:.1f} s in the middle, {last:.1f} s at last")
    print(f"of the 50 clicks of one beside them {sum(ends)} were drawn, the others refused")
    for visitor in greedy, *visitors:
        visitor.leave()


def fuzzed(address: str, count: int, workers: int, seed: int, pid: int) -> None:
    """Odd requests by several visitors."""
    all_of_them = [Fuzz(address, seed + i, SECRET) for i in range(workers)]
    peak, started, broken = memory(pid), time.monotonic(), []

    def send(fuzz: Fuzz) -> None:
        for _ in range(count // workers):
            try:
                fuzz.request()
            except Exception as error:
                broken.append(f"{type(error).__name__}: {error}"[:200])

    threads = [threading.Thread(target=send, args=[fuzz]) for fuzz in all_of_them]
    print(f"before the odd requests: {peak:.0f} MB")
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        peak = max(peak, memory(pid))
        time.sleep(0.5)
    total = sum((fuzz.statuses for fuzz in all_of_them), Counter[str]())
    print(f"{count // workers * workers} odd requests in {time.monotonic() - started:.0f} s: {dict(sorted(total.items()))}")
    print(f"not answered: {len(broken)} {sorted(set(broken))[:5]}; memory at most {peak:.0f} MB, now {memory(pid):.0f} MB")
    for fuzz in all_of_them:
        fuzz.visitor.leave()


if __name__ == "__main__":
    main()
