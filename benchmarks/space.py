"""
What a visitor of the Space waits for, and fifty visitors at once, two of them hostile: nobody else
gets an error or another's picture, and memory stays bounded.

    python benchmarks/space.py

Starts the Space, draws the default 16 images in a browser, and gives each time as a share of what a
visitor may have to wait. Then each visitor draws with a seed of its own, several times over, and
what each got is compared with what it gets alone: first among themselves, then while one client
posts the largest jobs there are and another one garbage, as fast as they are answered. All is sent
to 127.0.0.1; the Space is told to believe the address that each visitor writes.
"""

import argparse
import os
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import psutil
from gradio_client import Client
from PIL import Image
from playwright.sync_api import sync_playwright


PATIENCE = {"first paint": 2.0, "first picture": 2.0, "16 images, 18 steps": 15.0}  # seconds


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--visitors", type=int, default=50, help="two of them hostile (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="drawings per visitor (default: %(default)s)")
    parser.add_argument(
        "--steps", type=int, default=2, help="steps of Heun per drawing (default: %(default)s)"
    )
    parser.add_argument("--port", type=int, default=7870)
    parser.add_argument("--browser", default="/usr/bin/chromium")
    args = parser.parse_args()
    env = {**os.environ, "GRADIO_SERVER_PORT": str(args.port), "FORWARDED_ALLOW_IPS": "127.0.0.1"}
    folder = Path(__file__).parent.parent / "space"
    server = subprocess.Popen([sys.executable, "app.py"], cwd=folder, env=env, stderr=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{args.port}"
        connect(address)
        for name, seconds in waits(address, args.browser).items():
            print(f"{name}: {seconds / PATIENCE[name]:.2f} of {PATIENCE[name]:g} s")
        measure(args, server, address)
    finally:
        server.kill()


def forwarded(visitor):
    """The header that gives a visitor an address of its own."""
    return {"X-Forwarded-For": f"198.51.100.{visitor}"}


def connect(address, visitor=0):
    for _ in range(100):
        try:
            return Client(address, verbose=False, headers=forwarded(visitor))
        except Exception:
            time.sleep(0.5)
    raise SystemExit("The Space does not start.")


def waits(address, browser):
    """Seconds that a visitor waits for, in a browser, once the server is up."""
    with sync_playwright() as playwright:
        page = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"]).new_page()
        page.goto(address)
        page.get_by_text("parameters").wait_for()
        paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime") / 1000
        start = time.perf_counter()
        page.get_by_role("button", name="Draw", exact=True).click()
        page.locator(".grid-wrap img").first.wait_for()
        first = time.perf_counter() - start
        page.get_by_text("35 of 35 calls").wait_for()
        return dict(zip(PATIENCE, (paint, first, time.perf_counter() - start)))


def draw(client, seed, steps):
    arguments = ["Fashion-MNIST", 7, None, "any", 4, steps, "heun", 1, seed]
    gallery, *_ = client.predict(*arguments, api_name="/sample")
    images = [item["image"] for item in gallery]
    paths = [image["path"] if isinstance(image, dict) else image for image in images]
    return np.stack([np.asarray(Image.open(path).convert("L")) for path in paths])


class Hostile:
    """
    A visitor that does as much harm as it can until it is told to stop, with at most `most` requests.

    Args:
        address (`str`): The address of the Space.
        visitor (`int`): The number of the visitor, which gives its address.
        most (`int`): The largest number of requests.
    """

    def __init__(self, address: str, visitor: int, most: int = 5000):
        self.routes = f"{address}/gradio_api"
        self.client = httpx.Client(headers=forwarded(visitor), timeout=600)
        self.stopped = threading.Event()
        self.answers = Counter()
        self.most = most

    def attack(self):
        for number in range(self.most):
            if self.stopped.is_set():
                break
            self.answers[self.send(number).status_code] += 1


class Flood(Hostile):
    """Posts the largest jobs that are taken, listens to every other one, and leaves the rest alone."""

    def send(self, number):
        job = {"data": ["Fashion-MNIST", 7, None, "any", 64, 25, "heun", 1, 0]}
        response = self.client.post(f"{self.routes}/call/sample", json=job)
        if response.status_code == 200 and number % 2:
            threading.Thread(target=self.listen, args=[response.json()["event_id"]], daemon=True).start()
        time.sleep(0.02)
        return response

    def listen(self, event):
        with self.client.stream("GET", f"{self.routes}/call/sample/{event}") as response:
            for _ in response.iter_lines():
                if self.stopped.is_set():
                    break


class Garbage(Hostile):
    """
    Uploads files, sends bodies that are too large or no JSON, and events that do not exist or lack
    what they need.
    """

    def send(self, number):
        requests = [
            ("upload", {"files": {"files": ("picture.png", b"x" * 2**22)}}),
            ("queue/join", {"content": b" " * 2**22}),
            ("queue/join", {"content": b"[" * 60_000}),
            ("queue/join", {"json": {"data": [{}] * 9, "fn_index": number % 30, "session_hash": "garbage"}}),
            ("run/follow", {"json": {"data": [None] * 6}}),
            ("call/sample", {"json": {"data": ["x"] * 9}}),
        ]
        path, content = requests[number % len(requests)]
        return self.client.post(f"{self.routes}/{path}", **content)


def draw_together(args, clients, alone, process):
    """
    Lets all visitors draw at once, round after round; gives the time of a round and the most memory
    of each.
    """
    start = time.perf_counter()
    peaks = []
    with ThreadPoolExecutor(len(clients)) as pool:
        for _ in range(args.rounds):
            jobs = [
                pool.submit(draw, client, 100 * visitor, args.steps) for visitor, client in enumerate(clients)
            ]
            peaks.append(process.memory_info().rss)
            while not all(job.done() for job in jobs):
                peaks[-1] = max(peaks[-1], process.memory_info().rss)
                time.sleep(0.05)
            for expected, job in zip(alone, jobs):
                np.testing.assert_array_equal(job.result(), expected)  # raises what the visitor was told, too
    return (time.perf_counter() - start) / args.rounds, peaks


def time_page(address):
    """Seconds until the page is there, for somebody new."""
    start = time.perf_counter()
    httpx.get(address, headers=forwarded(254), timeout=600).raise_for_status()
    return time.perf_counter() - start


def measure(args, server, address):
    count = args.visitors - 2
    clients = [connect(address, visitor) for visitor in range(count)]
    start = time.perf_counter()
    alone = [draw(client, 100 * visitor, args.steps) for visitor, client in enumerate(clients)]
    one = time.perf_counter() - start
    process = psutil.Process(server.pid)
    memory = process.memory_info().rss
    together, peaks = draw_together(args, clients, alone, process)
    print(
        f"{count} visitors, {args.rounds} drawings each: every picture was the visitor's own, and nobody got an error."
    )
    print(f"Time together / one after the other: {together / one:.2f}.")
    calm = [time_page(address) for _ in range(10)]

    hostile = [Flood(address, count), Garbage(address, count + 1)]
    threads = [threading.Thread(target=each.attack) for each in hostile]
    for thread in threads:
        thread.start()
    try:
        under_fire, more = draw_together(args, clients, alone, process)
        fire = [time_page(address) for _ in range(10)]
    finally:
        for each in hostile:
            each.stopped.set()
        for thread in threads:
            thread.join()
    print(
        "The same with two hostile visitors beside them: every picture was the visitor's own, and nobody got an error."
    )
    print(f"Time with the hostile two / without: {under_fire / together:.2f}.")
    print(f"The page loads, with them / without: {statistics.median(fire) / statistics.median(calm):.2f}.")
    taken = [each.answers[200] / each.answers.total() for each in hostile]
    print(f"Of their requests were taken: {taken[0]:.3f} of the large jobs, {taken[1]:.3f} of the garbage.")
    print(
        f"Memory at most / before, round after round: {', '.join(f'{peak / memory:.2f}' for peak in [*peaks, *more])}."
    )


if __name__ == "__main__":
    main()
