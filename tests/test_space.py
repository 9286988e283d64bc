"""The Space, started as a visitor's server is, and asked over its API."""

import os
import re
import socket
import subprocess
import sys
import time
import zipfile

import httpx
import numpy as np
import PIL.Image
import pytest
from conftest import ROOT
from gradio_client import Client
from gradio_client.exceptions import AppError


SPACE = ROOT / "space"
NAME = "Fashion-MNIST"


def start(env=None, folder=SPACE, python=sys.executable):
    """Starts the app and returns its process and address, once it answers."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    env = {**(env or os.environ), "GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False"}
    process = subprocess.Popen(
        [python, "app.py"], cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        try:
            httpx.get(address, timeout=5).raise_for_status()
        except httpx.HTTPError:
            time.sleep(0.2)
        else:
            return process, address
    process.kill()
    raise AssertionError(process.stdout.read())


@pytest.fixture(scope="module")
def address():
    process, address = start()
    yield address
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def client(address):
    return Client(address, verbose=False)


DRAW = {
    "model": NAME, "dial": 7, "fixed": None, "label": "any", "count": 4, "steps": 3, "solver": "heun", "guidance": 1, "seed": 5,
}  # fmt: skip
COMPARE = {"model": NAME, "dimensions": ["16", "inf"], "label": "Bag", "steps": 2, "seed": 0}
DISTURB = {
    "model": NAME, "noise": 0.3, "bits": 6, "small": "16", "large": "inf", "label": "any", "steps": 2, "seed": 0,
}  # fmt: skip


def call(client, name, arguments):
    return client.predict(*arguments.values(), api_name=f"/{name}")


def pixels(item):
    """The picture of an item of a gallery, which the client gives by its path or with it."""
    image = item["image"]
    return np.asarray(PIL.Image.open(image["path"] if isinstance(image, dict) else image).convert("L"))


def test_the_code_draws_the_same_images(client, tmp_path):
    gallery, took, archive, code = call(client, "sample", DRAW)
    assert took.startswith("4 images, D = 128, 5 of 5 calls of the network")
    shown = [pixels(item) for item in gallery]
    assert len(shown) == 4
    assert [item["caption"] for item in gallery][:2] == ["T-shirt/top, seed 5", "Trouser, seed 6"]
    with zipfile.ZipFile(archive) as file:
        assert sorted(file.namelist())[0] == "Dress, seed 8.png"
        with file.open("Trouser, seed 6.png") as picture:
            np.testing.assert_array_equal(np.asarray(PIL.Image.open(picture)), shown[1])
    program = tmp_path / "program.py"
    program.write_text(code + "\nfor index, image in enumerate(images):\n    image.save(f'{index}.png')\n")
    (tmp_path / "model_cards").symlink_to(ROOT / "model_cards")
    subprocess.run([sys.executable, program.name], cwd=tmp_path, check=True, capture_output=True)
    for index, image in enumerate(shown):
        np.testing.assert_array_equal(np.asarray(PIL.Image.open(tmp_path / f"{index}.png")), image)


def test_pictures_have_a_text(client):
    for name, arguments, words in (
        ("compare", COMPARE, "a row each for D = 16, D = inf"),
        ("disturb", DISTURB, "D = 16, disturbed; D = inf, as it is; D = inf, disturbed"),
    ):
        page = call(client, name, arguments)
        assert words in page
        assert 'src="data:image/png;base64,' in page


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("sample", {"model": "../../etc/passwd"}, "The model must be one of those offered"),
        ("sample", {"count": 10**6}, "The number of images must be a whole number from 1 to 64"),
        ("sample", {"count": "many"}, "The number of images must be a whole number from 1 to 64"),
        ("sample", {"steps": 0}, "The number of steps must be a whole number from 1 to 100"),
        ("sample", {"label": "../secret"}, "The class must be one of those offered"),
        ("sample", {"seed": -1}, "The seed must be a whole number"),
        ("sample", {"count": 2.5}, "whole number"),
        ("sample", {"guidance": -1}, "Guidance must be a number from 0 to 10"),
        ("sample", {"dial": 1000}, "The dial of D must be a number from 0 to 19"),
        ("compare", {"dimensions": []}, "Choose one to five D"),
        ("compare", {"dimensions": "16"}, "Choose one to five D"),
        ("compare", {"dimensions": ["3"]}, "D must be one of those offered"),
        ("disturb", {"noise": [7]}, "The noise must be a number from 0 to 1"),
        ("disturb", {"bits": 40}, "Bits a weight must be a whole number from 2 to 16"),
    ],
)
def test_what_is_not_offered_gets_a_message(client, name, changes, message):
    arguments = {"sample": DRAW, "compare": COMPARE, "disturb": DISTURB}[name]
    with pytest.raises(AppError) as error:
        call(client, name, {**arguments, **changes})
    assert message in str(error.value)
    assert "Traceback" not in str(error.value)
    assert str(ROOT) not in str(error.value)


@pytest.mark.parametrize(
    "path", ["app.py", "models.yaml", "../setup.cfg", "/etc/passwd", "pictures/../app.py", "%2e%2e/setup.cfg"]
)
def test_no_other_file_can_be_read(address, path):
    assert httpx.get(f"{address}/gradio_api/file={path}").status_code in (403, 404)
    assert httpx.get(f"{address}/gradio_api/file={SPACE / path}").status_code in (403, 404)


def test_the_pictures_of_the_page_can_be_read(address):
    for name in re.findall(r'src="gradio_api/(file=[^"]+)"', (SPACE / "about.md").read_text()):
        assert httpx.get(f"{address}/gradio_api/{name}").status_code == 200


def test_a_cancelled_job_stops(client):
    """The queue is free for the next job long before the cancelled one would have ended."""
    job = client.submit(*{**DRAW, "count": 64, "steps": 100}.values(), api_name="/sample")
    deadline = time.monotonic() + 30
    while not job.outputs() and time.monotonic() < deadline:
        time.sleep(0.05)
    begin = time.monotonic()
    job.cancel()
    call(client, "sample", {**DRAW, "count": 1, "steps": 1})
    assert time.monotonic() - begin < 15


def test_a_model_that_cannot_be_loaded_is_named_and_the_rest_works(hub):
    server, env = hub
    server.add(ROOT / "model_cards" / "pfgmpp-fashion-mnist", "org/clothes")
    process, address = start({**env, "SPACE_MODELS": "org/nothing, org/clothes"})
    try:
        client = Client(address, verbose=False)
        with pytest.raises(AppError, match="org/nothing cannot be loaded: the Hub answers 404"):
            call(client, "sample", {**DRAW, "model": "org/nothing"})
        gallery, _, _, code = call(client, "sample", {**DRAW, "model": "org/clothes"})
        assert len(gallery) == 4
        assert "from_pretrained('org/clothes')" in code
    finally:
        process.kill()
        process.wait()
