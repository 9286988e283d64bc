"""
What a visitor of the Space waits for, and twenty visitors at once: nobody gets an error or another's picture, and memory stays
bounded.

    python benchmarks/space.py

Starts the Space, draws the default 16 images in a browser, and gives each time as a share of what a visitor may have to wait.
Then it lets each visitor draw with a seed of its own, several times over, and compares what each got with what it gets alone.
"""

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
from gradio_client import Client
from PIL import Image
from playwright.sync_api import sync_playwright


PATIENCE = {"first paint": 2.0, "first picture": 2.0, "16 images, 18 steps": 15.0}  # seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--visitors", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3, help="drawings a visitor (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="steps of Heun a drawing (default: %(default)s)")
    parser.add_argument("--port", type=int, default=7870)
    parser.add_argument("--browser", default="/usr/bin/chromium")
    args = parser.parse_args()
    env = {**os.environ, "GRADIO_SERVER_PORT": str(args.port)}
    server = subprocess.Popen([sys.executable, "app.py"], cwd=Path(__file__).parent.parent / "space", env=env)
    try:
        address = f"http://127.0.0.1:{args.port}"
        connect(address)
        for name, seconds in waits(address, args.browser).items():
            print(f"{name}: {seconds / PATIENCE[name]:.2f} of {PATIENCE[name]:g} s")
        measure(args, server, address)
    finally:
        server.kill()


def connect(address):
    for _ in range(100):
        try:
            return Client(address, verbose=False)
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


def measure(args, server, address):
    clients = [connect(address) for _ in range(args.visitors)]
    start = time.perf_counter()
    alone = [draw(clients[0], 100 * visitor, args.steps) for visitor in range(args.visitors)]
    one = time.perf_counter() - start
    process, start, peaks = psutil.Process(server.pid), time.perf_counter(), []
    memory = process.memory_info().rss
    with ThreadPoolExecutor(args.visitors) as pool:
        jobs = [[] for _ in clients]
        for _ in range(args.rounds):
            for visitor, client in enumerate(clients):
                jobs[visitor].append(pool.submit(draw, client, 100 * visitor, args.steps))
            peaks.append(memory)
            while not all(job.done() for each in jobs for job in each):
                peaks[-1] = max(peaks[-1], process.memory_info().rss)
                time.sleep(0.05)
    together = (time.perf_counter() - start) / args.rounds
    for expected, each in zip(alone, jobs):
        for job in each:
            np.testing.assert_array_equal(job.result(), expected)  # raises what the visitor was told, too
    print(
        f"{args.visitors} visitors, {args.rounds} drawings each: every picture was the visitor's own, and nobody got an error."
    )
    print(f"Time together / one after the other: {together / one:.2f}.")
    print(f"Memory at most / before, round after round: {', '.join(f'{peak / memory:.2f}' for peak in peaks)}.")


if __name__ == "__main__":
    main()
