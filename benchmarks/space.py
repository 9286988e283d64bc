"""
Measure how long a visitor of the Space waits, and how it serves fifty visitors at once, two of them
hostile:

    python benchmarks/space.py

The benchmark starts the Space, moves the live dial in a browser, and draws 16 images in many steps; each
wait is printed as a share of its limit. Then every visitor draws with its own seed, several times, and
the images are compared with those that the visitor gets alone: first without the hostile visitors, then
while one of them sends the largest jobs that there are, and the other sends garbage, both as fast as they
are answered.

All requests go to 127.0.0.1. The Space is told to believe the address that each visitor claims.
"""

import argparse
import base64
import io
import os
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import psutil
from gradio_client import Client
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from pipeline_pfgmpp.records.commands import format_command
from pipeline_pfgmpp.records.measurements import write_measurement


SPACE = Path(__file__).parent.parent / "space"
MODEL = "Fashion-MNIST"
# What a visitor waits for, and the limit in seconds.
LIMITS = {
    "first paint": 2.0,
    "images on the page": 5.0,
    "first images after a move of the dial": 0.3,
    "all 16 images after a move of the dial": 1.0,
    "16 images of 18 steps": 15.0,
}
MOVES = 10  # of the dial
# Promises the seconds from the next key to a frame with other images, and to one with the finished images.
# The page watches itself: asking it again and again would slow it, and would notice late.
WATCH = """() => {
    const findImage = () => document.querySelector('.gallery img').src;
    const texts = () => [...document.querySelectorAll('.prose')].map(part => part.textContent);
    const findSummary = () => texts().find(text => text.includes('network calls'));
    const image = findImage(), summary = findSummary();
    const everything = {subtree: true, childList: true, characterData: true, attributes: true};
    let start, first;
    window.waits = new Promise(resolve => {
        const look = () => {
            const seconds = (performance.now() - start) / 1000;
            if (findImage() !== image) first ??= seconds;
            if (first === undefined || findSummary() === summary) return;
            if (!findSummary()?.includes('2 of 2')) return;
            observer.disconnect();
            resolve([first, seconds]);
        };
        const observer = new MutationObserver(() => requestAnimationFrame(look));
        document.addEventListener('keydown', event => {
            start = event.timeStamp;
            observer.observe(document.body, everything);
        }, {once: true, capture: true});
    });
}"""
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
HOSTILE = 2
LATECOMER = 254  # the number of a visitor who only loads the page
BACKSTOP = 600  # seconds after which a request is given up


class Round(NamedTuple):
    """
    What all visitors together experienced.

    Args:
        seconds (`float`): Time until everybody was served, per drawing.
        peaks (`list[int]`): Largest memory of the Space during each drawing, in bytes.
        failures (`int`): Drawings that were refused or that were not the visitor's own.
    """

    seconds: float
    peaks: list[int]
    failures: int


def name_address(visitor: int) -> dict[str, str]:
    """Return the header that gives a visitor its own address."""
    return {"X-Forwarded-For": f"198.51.100.{visitor}"}


def connect(address: str, visitor: int) -> Client:
    """Connect a visitor to the Space."""
    options = {"timeout": BACKSTOP}
    return Client(address, verbose=False, headers=name_address(visitor), httpx_kwargs=options)


def wait_for_space(address: str, server: subprocess.Popen) -> None:
    """Wait until the Space answers."""
    while server.poll() is None:
        try:
            httpx.get(address, timeout=BACKSTOP).raise_for_status()
            return
        except httpx.HTTPError:
            time.sleep(0.5)
    raise SystemExit("The Space does not start. `cd space && python app.py` shows why.")


def measure_waits(address: str, browser: str) -> list[dict[str, Any]]:
    """Measure what a visitor waits for in a browser once the server is up, as shares of the limits."""
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = launched.new_page()
        page.set_default_timeout(1000 * BACKSTOP)
        page.goto(address)
        page.get_by_text("parameters").wait_for()
        paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime") / 1000
        page.get_by_text("2 of 2 network calls").wait_for()
        opened = page.evaluate("performance.now()") / 1000
        moves = [move_dial(page, key) for key in ("ArrowRight", "ArrowLeft") * (MOVES // 2)]
        first, last = (statistics.median(waits) for waits in zip(*moves))
        start = time.perf_counter()
        page.get_by_label("Model").click()
        page.get_by_role("option", name=MODEL, exact=True).click()
        page.get_by_text("35 of 35 network calls").wait_for()
        seconds = [paint, opened, first, last, time.perf_counter() - start]
        launched.close()
    return [
        {"name": name, "limit_in_seconds": limit, "share": wait / limit}
        for (name, limit), wait in zip(LIMITS.items(), seconds)
    ]


def move_dial(page: Page, key: str) -> list[float]:
    """Move the dial by a key; return the seconds until the images change, and until all are finished."""
    page.get_by_label("range slider for Augmented dimension D").filter(visible=True).focus()
    page.evaluate(WATCH)
    page.keyboard.press(key)
    return page.evaluate("window.waits")


def draw(client: Client, seed: int, steps: int) -> np.ndarray:
    """Draw four images."""
    arguments = [MODEL, 7, None, "any", 4, steps, "heun", 1, seed, 0]
    images, *_ = client.predict(*arguments, api_name="/sample")
    pictures = re.findall('src="data:image/png;base64,(.*?)"', images)
    return np.stack([np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for data in pictures])


class Hostile:
    """
    A visitor that sends requests until it is told to stop.

    Args:
        address (`str`): Address of the Space.
        visitor (`int`): Number of the visitor, which gives its address.
        most (`int`, defaults to 5000): The largest number of requests.
    """

    def __init__(self, address: str, visitor: int, most: int = 5000):
        self.routes = f"{address}/gradio_api"
        self.client = httpx.Client(headers=name_address(visitor), timeout=BACKSTOP)
        self.stopped = threading.Event()
        self.answers: Counter[int] = Counter()
        self.most = most

    def attack(self) -> None:
        """Send requests, one after another."""
        for number in range(self.most):
            if self.stopped.is_set():
                break
            self.answers[self.send(number).status_code] += 1

    def send(self, number: int) -> httpx.Response:
        """Send one request."""
        raise NotImplementedError

    def get_accepted_share(self) -> float:
        """Return the share of the requests that the Space accepted."""
        return self.answers[200] / max(1, self.answers.total())


class Flood(Hostile):
    """A visitor that sends the largest jobs, listens for every other accepted one, and abandons the rest."""

    def send(self, number: int) -> httpx.Response:
        job = {"data": [MODEL, 7, None, "any", 64, 25, "heun", 1, 0, 0]}
        response = self.client.post(f"{self.routes}/call/sample", json=job)
        if response.status_code == 200 and number % 2:
            threading.Thread(target=self.listen, args=[response.json()["event_id"]], daemon=True).start()
        time.sleep(0.02)
        return response

    def listen(self, event: str) -> None:
        """Listen for the results of a job."""
        with self.client.stream("GET", f"{self.routes}/call/sample/{event}") as response:
            for _ in response.iter_lines():
                if self.stopped.is_set():
                    break


class Garbage(Hostile):
    """
    A visitor that uploads files, and sends bodies that are too large or not JSON, events that do not
    exist, and events without their values.
    """

    def send(self, number: int) -> httpx.Response:
        event = {"data": [{}] * 10, "fn_index": number % 30, "session_hash": "garbage"}
        requests: list[tuple[str, dict[str, Any]]] = [
            ("upload", {"files": {"files": ("picture.png", b"x" * 2**22)}}),
            ("queue/join", {"content": b" " * 2**22}),
            ("queue/join", {"content": b"[" * 60_000}),
            ("queue/join", {"json": event}),
            ("run/follow_sample", {"json": {"data": [None] * 6}}),
            ("call/sample", {"json": {"data": ["x"] * 10}}),
        ]
        path, content = requests[number % len(requests)]
        return self.client.post(f"{self.routes}/{path}", **content)


def is_own(job: Future, expected: np.ndarray) -> bool:
    """Tell whether a visitor got its own images."""
    error = job.exception()
    if error is not None:
        print(f"A visitor got an error: {error}", file=sys.stderr)
        return False
    return np.array_equal(job.result(), expected)


def draw_together(
    clients: list[Client], expected: list[np.ndarray], steps: int, rounds: int, process: psutil.Process
) -> Round:
    """Let all visitors draw at once, several times, and compare what they get with what they should."""
    start = time.perf_counter()
    peaks = []
    failures = 0
    with ThreadPoolExecutor(len(clients)) as pool:
        for _ in range(rounds):
            jobs = [pool.submit(draw, client, 100 * visitor, steps) for visitor, client in enumerate(clients)]
            peak = process.memory_info().rss
            while not all(job.done() for job in jobs):
                peak = max(peak, process.memory_info().rss)
                time.sleep(0.05)
            peaks.append(peak)
            failures += sum(not is_own(job, images) for job, images in zip(jobs, expected))
    return Round((time.perf_counter() - start) / rounds, peaks, failures)


def time_page(address: str) -> float:
    """Return the median time in which the page loads for somebody new, in seconds."""
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        httpx.get(address, headers=name_address(LATECOMER), timeout=BACKSTOP).raise_for_status()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def measure_visitors(args: argparse.Namespace, server: subprocess.Popen, address: str) -> dict[str, Any]:
    """Measure how many visitors are served, without and with hostile ones."""
    count = args.visitors - HOSTILE
    clients = [connect(address, visitor) for visitor in range(count)]
    start = time.perf_counter()
    expected = [draw(client, 100 * visitor, args.steps) for visitor, client in enumerate(clients)]
    one_by_one = time.perf_counter() - start
    process = psutil.Process(server.pid)
    memory = process.memory_info().rss
    calm = draw_together(clients, expected, args.steps, args.rounds, process)
    calm_page = time_page(address)

    flood = Flood(address, count)
    garbage = Garbage(address, count + 1)
    threads = [threading.Thread(target=visitor.attack) for visitor in (flood, garbage)]
    for thread in threads:
        thread.start()
    try:
        attacked = draw_together(clients, expected, args.steps, args.rounds, process)
        attacked_page = time_page(address)
    finally:
        flood.stopped.set()
        garbage.stopped.set()
        for thread in threads:
            thread.join()
    return {
        "visitors": count,
        "rounds": args.rounds,
        "failures": calm.failures,
        "failures_under_attack": attacked.failures,
        "accepted_shares": {
            "large jobs": flood.get_accepted_share(),
            "garbage": garbage.get_accepted_share(),
        },
        "together_over_one_by_one": calm.seconds / one_by_one,
        "attacked_over_calm": attacked.seconds / calm.seconds,
        "page_attacked_over_calm": attacked_page / calm_page,
        "peak_memory_over_before": [peak / memory for peak in [*calm.peaks, *attacked.peaks]],
    }


def print_results(results: dict[str, Any]) -> None:
    """Print the results as sentences."""
    for wait in results["waits"]:
        print(f"{wait['name']}: {wait['share']:.2f} of {wait['limit_in_seconds']:g} s")
    drawings = f"{results['visitors']} visitors with {results['rounds']} drawings each"
    print(f"{drawings}: {results['failures']} errors or images of another visitor")
    print(f"  time together / one by one: {results['together_over_one_by_one']:.2f}")
    print(f"The same with two hostile visitors: {results['failures_under_attack']}")
    print(f"  time with them / without: {results['attacked_over_calm']:.2f}")
    print(f"  time to load the page with them / without: {results['page_attacked_over_calm']:.2f}")
    for name, share in results["accepted_shares"].items():
        print(f"  share of the {name} that is accepted: {share:.3f}")
    peaks = ", ".join(f"{peak:.2f}" for peak in results["peak_memory_over_before"])
    print(f"Peak memory / memory before, round by round: {peaks}")


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--visitors", type=int, default=50, help="visitors, two of them hostile (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=2, help="drawings per visitor (default: %(default)s)")
    parser.add_argument(
        "--steps", type=int, default=2, help="steps of Heun's method per drawing (default: %(default)s)"
    )
    parser.add_argument("--port", type=int, default=7870, help="port of the Space (default: %(default)s)")
    parser.add_argument("--browser", metavar="PATH", help="Chromium (default: the one on the search path)")
    parser.add_argument("--json", metavar="PATH", help="also write the results to this file")
    args = parser.parse_args()
    if args.visitors <= HOSTILE:
        parser.error(f"--visitors must be larger than {HOSTILE}, the number of hostile visitors")
    args.browser = args.browser or next(filter(None, map(shutil.which, BROWSERS)), None)
    if args.browser is None:
        parser.error("Chromium is not on the search path; install it, or name it with --browser")
    return args


def main() -> None:
    args = parse_arguments()
    env = {**os.environ, "GRADIO_SERVER_PORT": str(args.port), "FORWARDED_ALLOW_IPS": "127.0.0.1"}
    address = f"http://127.0.0.1:{args.port}"
    server = subprocess.Popen([sys.executable, "app.py"], cwd=SPACE, env=env, stderr=subprocess.DEVNULL)
    try:
        wait_for_space(address, server)
        results = {"waits": measure_waits(address, args.browser), **measure_visitors(args, server, address)}
    finally:
        server.kill()
    print_results(results)
    if args.json:
        write_measurement(args.json, format_command("python benchmarks/space.py", sys.argv[1:]), results)
    if results["failures"] or results["failures_under_attack"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
