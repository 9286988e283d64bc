"""
Twenty visitors of the Space at once: nobody gets an error or another's picture, and memory stays bounded.

    python benchmarks/space.py

Starts the Space, lets each visitor draw with a seed of its own, twice over, and compares what each got with what it gets alone.
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--visitors", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=2, help="drawings a visitor (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="steps of Heun a drawing (default: %(default)s)")
    parser.add_argument("--port", type=int, default=7870)
    args = parser.parse_args()
    env = {**os.environ, "GRADIO_SERVER_PORT": str(args.port)}
    server = subprocess.Popen([sys.executable, "app.py"], cwd=Path(__file__).parent.parent / "space", env=env)
    try:
        measure(args, server, f"http://127.0.0.1:{args.port}")
    finally:
        server.kill()


def connect(address):
    for _ in range(100):
        try:
            return Client(address, verbose=False)
        except Exception:
            time.sleep(0.5)
    raise SystemExit("The Space does not start.")


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
    memory = psutil.Process(server.pid).memory_info().rss
    start, peak = time.perf_counter(), memory
    with ThreadPoolExecutor(args.visitors) as pool:
        jobs = [
            [pool.submit(draw, client, 100 * visitor, args.steps) for _ in range(args.rounds)]
            for visitor, client in enumerate(clients)
        ]
        while not all(job.done() for each in jobs for job in each):
            peak = max(peak, psutil.Process(server.pid).memory_info().rss)
            time.sleep(0.1)
    together = (time.perf_counter() - start) / args.rounds
    for expected, each in zip(alone, jobs):
        for job in each:
            np.testing.assert_array_equal(job.result(), expected)  # raises what the visitor was told, too
    print(
        f"{args.visitors} visitors, {args.rounds} drawings each: every picture was the visitor's own, and nobody got an error."
    )
    print(f"Time together / one after the other: {together / one:.2f}. Memory at most / before: {peak / memory:.2f}.")


if __name__ == "__main__":
    main()
