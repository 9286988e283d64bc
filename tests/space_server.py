"""The Space on a server and in a browser, for tests."""

import base64
import contextlib
import html
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import httpx
import numpy as np
import PIL.Image
import pytest
from conftest import ROOT
from gradio_client import Client
from playwright.sync_api import expect, sync_playwright


SPACE = ROOT / "space"
BACKSTOP = 300  # seconds after which a test gives up; nothing here depends on speed


@contextlib.contextmanager
def lend_scratch(parent):
    """
    Give the Space in this process and in others, and Gradio's client, a temporary folder that is removed.

    Otherwise a Space that is killed leaves its pictures, and the client an empty folder per file that it
    downloads.
    """
    with tempfile.TemporaryDirectory(dir=parent) as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        yield


@contextlib.contextmanager
def serve_space(log, env=os.environ, folder=SPACE, python=(sys.executable,)):
    """
    Start the Space in a process, yield its address once it answers, and append its output to `log`.

    At the end the process is killed together with those that it has started, as ZeroGPU does.
    """
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    env = {**env, "GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False"}
    address = f"http://127.0.0.1:{port}"
    with open(log, "a") as output:
        process = subprocess.Popen(
            [*python, "app.py"], cwd=folder, env=env, stdout=output, stderr=output, start_new_session=True
        )
        try:
            wait_for_answer(address, process, log)
            yield address
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for_answer(address, process, log):
    deadline = time.monotonic() + BACKSTOP
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(httpx.HTTPError):
            get(address).raise_for_status()
            return
        time.sleep(0.2)
    raise AssertionError(log.read_text())


def get(address, **options):
    return httpx.get(address, timeout=BACKSTOP, **options)


def connect(address):
    return Client(
        address, verbose=False, download_files=tempfile.gettempdir(), httpx_kwargs={"timeout": BACKSTOP}
    )


def list_texts(page):
    """List the texts of the pictures that a piece of HTML holds."""
    return [html.unescape(text) for text in re.findall('<img class="pixels" alt="(.*?)" title="', page)]


def read_embedded(page):
    """Read the pictures that a piece of HTML holds."""
    found = re.findall('src="data:image/png;base64,(.*?)"', page)
    return [PIL.Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


def assert_same_images(image, expected):
    """
    Compare an image with one that was computed in another process, or by a network that was loaded anew.

    On some processors the number of threads, and where in memory the weights lie, change the last bit of a
    result, and so the rounding of a few values to bytes.
    """
    difference = abs(np.asarray(image, int) - np.asarray(expected, int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


@contextlib.contextmanager
def launch_browser():
    """Start Chromium; skip the tests that need it where it is not installed."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        missing = "The tests of the page need Chromium, which is not installed; `CI=1 make test` installs it."
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    expect.set_options(timeout=1000 * BACKSTOP)
    quiet = ["background-networking", "component-update", "quic", "sync", "gpu"]
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in quiet)]
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


@contextlib.contextmanager
def visit(browser, address, greeting="5,251,332 parameters", **options):
    """
    Open the page as a new visitor, and wait until it offers its first model.

    Errors that its console reports fail the test.
    """
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
    context.set_default_timeout(1000 * BACKSTOP)
    page = context.new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(address)
    expect(page.get_by_text(greeting)).to_be_visible()
    try:
        yield page
    except BaseException as error:
        toasts = page.locator(".toast-body").all_inner_texts()
        error.add_note(f"The page reported {errors} and showed {toasts}.")
        raise
    context.close()
    assert not errors


def open_tab(page, name):
    """Open a tab, which is in a menu if the page is narrow."""
    tab = page.get_by_role("tab", name=name)
    if tab.is_visible():
        tab.click()
    else:
        page.locator(".overflow-menu > button").click()
        page.locator(".overflow-dropdown button", has_text=name).click()
    return page.get_by_role("tabpanel").filter(visible=True)


def press(page, name):
    page.get_by_role("button", name=name, exact=True).filter(visible=True).click()


def set_number(page, name, value):
    page.get_by_label(f"number input for {name}").filter(visible=True).fill(str(value))


def choose(page, name, option):
    page.get_by_label(name).filter(visible=True).click()
    page.get_by_role("option", name=option, exact=True).click()
