"""
The Space, started as a visitor's server is: asked over its API, put under fire, and visited in a
browser.
"""

import contextlib
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import zipfile

import httpx
import numpy as np
import PIL.Image
import pytest
from conftest import ROOT
from gradio_client import Client
from gradio_client.exceptions import AppError
from hub_server import WRITER
from playwright.sync_api import expect, sync_playwright


SPACE = ROOT / "space"
NAME = "Fashion-MNIST"
DIAL = "D (the dial turns log₂ D)"


@contextlib.contextmanager
def choose_dimensions(env=os.environ, folder=SPACE, python=sys.executable, log=None):
    """
    The address of the app, from when it answers until the block ends; what it says is appended to
    `log`.
    """
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    env = {**env, "GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False"}
    with open(log, "a+") if log else tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen([python, "app.py"], cwd=folder, env=env, stdout=said, stderr=said)
        address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 90
        try:
            while True:
                try:
                    httpx.get(address, timeout=5).raise_for_status()
                    break
                except httpx.HTTPError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        said.seek(0)
                        raise AssertionError(said.read()) from None
                    time.sleep(0.2)
            yield address
        finally:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """The file with what the server says."""
    return tmp_path_factory.mktemp("space") / "log"


@pytest.fixture(scope="module")
def address(log):
    """A server whose environment asks gradio for all that the Space has decided not to offer."""
    asked = {
        "GRADIO_RUN_HISTORY": "True",
        "GRADIO_MCP_SERVER": "True",
        "GRADIO_NUM_WORKERS": "1",
        "HF_TOKEN": WRITER,
    }
    with choose_dimensions({**os.environ, **asked}, log=log) as address:
        yield address


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
    for expected, image in zip(shown, drawn_by(code, tmp_path), strict=True):
        np.testing.assert_array_equal(image, expected)


def drawn_by(code, folder):
    """The images of a program that the Space gave, run in a process of its own."""
    (folder / "program.py").write_text(
        code + "\nfor index, image in enumerate(images):\n    image.save(f'{index}.png')\n"
    )
    (folder / "model_cards").symlink_to(ROOT / "model_cards")
    subprocess.run([sys.executable, "program.py"], cwd=folder, check=True, capture_output=True)
    return [
        np.asarray(PIL.Image.open(folder / f"{index}.png"))
        for index in range(len(list(folder.glob("*.png"))))
    ]


def test_pictures_have_a_text(client):
    for name, arguments, words in (
        ("compare", COMPARE, ["D = 16", "D = ∞"]),
        (
            "disturb",
            DISTURB,
            ["D = 16, as it is", "D = ∞, as it is", "D = 16, disturbed", "D = ∞, disturbed"],
        ),
    ):
        page = call(client, name, arguments)
        assert re.findall('alt="(.*?)" src="data:image/png;base64,', page) == words


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
        ("sample", {"dial": 1000}, "The dial of D must be a number from 4 to 19"),
        (
            "sample",
            {"dial": 0},
            "The dial of D must be a number from 4 to 19",
        ),  # D = 1, of which the network knows nothing
        ("compare", {"dimensions": []}, "Choose one to five D"),
        ("compare", {"dimensions": "16"}, "Choose one to five D"),
        ("compare", {"dimensions": ["3"]}, "D must be one of those offered"),
        ("disturb", {"noise": [7]}, "The noise must be a number from 0 to 1"),
        ("disturb", {"bits": 40}, "Bits a weight must be a whole number from 2 to 16"),
        (
            "sample",
            {"count": 64, "steps": 100},
            "calls of the network, but 64 images × 199 calls are 12,736: ask for fewer",
        ),
        ("sample", {"count": 64, "steps": 18, "guidance": 2}, "but 64 images × 70 calls are 4,480"),
        (
            "compare",
            {"dimensions": ["16", "64", "128", "512", "inf"], "steps": 100},
            "A drawing may take 3,200 calls",
        ),
        ("disturb", {"steps": 100}, "A drawing may take 3,200 calls"),
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


def test_no_path_of_the_server_is_told(address):
    for page in ("", "config", "gradio_api/info"):
        response = httpx.get(f"{address}/{page}")
        assert response.status_code == 200
        assert str(ROOT) not in response.text


def test_the_pictures_of_the_page_can_be_read(address):
    for name in re.findall(r'src="gradio_api/(file=[^"]+)"', (SPACE / "about.md").read_text()):
        assert httpx.get(f"{address}/gradio_api/{name}").status_code == 200


def test_a_cancelled_job_stops(client):
    """The queue is free for the next job long before the cancelled one would have ended."""
    job = client.submit(*{**DRAW, "count": 64, "steps": 25}.values(), api_name="/sample")
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
    with choose_dimensions({**env, "SPACE_MODELS": "org/nothing, org/clothes"}) as address:
        client = Client(address, verbose=False)
        with pytest.raises(AppError, match="org/nothing cannot be loaded: the Hub answers 404"):
            call(client, "sample", {**DRAW, "model": "org/nothing"})
        gallery, _, _, code = call(client, "sample", {**DRAW, "model": "org/clothes"})
        assert len(gallery) == 4
        assert "from_pretrained('org/clothes')" in code


def test_a_pushed_space_needs_nothing_but_its_requirements(hub, tmp_path):
    """
    What `pfgmpp push` uploads starts and draws in an environment made from its requirements.txt
    alone.
    """
    server, env = hub
    command = [sys.executable, "-m", "pipeline_pfgmpp", "push", "space", "org/dial", "--repo-type", "space"]
    subprocess.run(command, cwd=ROOT, env={**env, "HF_TOKEN": WRITER}, check=True, capture_output=True)
    files, folder = server.files("org/dial", kind="spaces"), tmp_path / "space"
    for name in ("app.py", "models.py", "models.yaml", "README.md", "requirements.txt", "pictures/norms.png"):
        assert files[name] == (SPACE / name).read_bytes()
    assert files["pipeline_pfgmpp/noise.py"] == (ROOT / "pipeline_pfgmpp" / "noise.py").read_bytes()
    assert not [name for name in files if name.endswith((".pyc", ".pkl", ".bin"))]
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--no-compile", "-r", folder / "requirements.txt"]
    subprocess.run([*install, "-c", ROOT / "constraints.txt"], check=True, capture_output=True)
    with choose_dimensions({**env, "HF_HUB_OFFLINE": "1"}, folder, python) as address:
        gallery, *_ = call(Client(address, verbose=False), "sample", {**DRAW, "count": 1, "steps": 1})
        assert len(gallery) == 1


# Under fire


def visitor(number):
    """A client with an address of its own, which needs no proxy: all of 127.0.0.0/8 is this machine."""
    return httpx.Client(transport=httpx.HTTPTransport(local_address=f"127.0.0.{number}"), timeout=60)


@pytest.fixture(scope="module")
def events(address):
    """The number of each event of the page, by name."""
    return {event["api_name"]: event["id"] for event in httpx.get(f"{address}/config").json()["dependencies"]}


def join(client, address, event, data, session, **more):
    body = {"fn_index": event, "data": data, "session_hash": session, **more}
    return client.post(f"{address}/gradio_api/queue/join", json=body)


def last_message(client, address, session):
    """What the server says at the end to whoever listens to a session with one job."""
    with client.stream(
        "GET", f"{address}/gradio_api/queue/data", params={"session_hash": session}
    ) as response:
        messages = [json.loads(line[5:]) for line in response.iter_lines() if line.startswith("data:")]
    return next(message for message in messages if message["msg"] == "process_completed")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("POST", f"{way}/{name}") for way in ("run", "api") for name in ("follow", "sample", "predict")),
        *(
            ("POST", f"{way}/{name}")
            for way in ("call", "call/v2")
            for name in ("follow", "play", "offer", "add_charge")
        ),
        *(
            ("POST", path)
            for path in ("upload", "component_server", "process_recording", "stream/x", "vibe-edit", "mcp")
        ),
        *(
            ("GET", path)
            for path in ("runs", "run-history/buckets", "deep_link?session_hash=x", "vibe-code", "dev/reload")
        ),
        *(
            ("GET", path)
            for path in ("file=http://127.0.0.1/", "file=https://127.0.0.1/", "proxy=https://x.hf.space/")
        ),
        *(
            ("GET", path)
            for path in ("../monitoring", "../monitoring/summary", "../openapi.json", "../pwa_icon")
        ),
        ("POST", "run-history/connect"),
        ("POST", "../login"),
    ],
)
def test_routes_that_the_page_does_not_need_are_closed(address, method, path):
    json = {"data": list(DRAW.values()), "bucket_id": "me/bucket"} if method == "POST" else None
    assert httpx.request(method, f"{address}/gradio_api/{path}", json=json).status_code == 404


def test_the_size_of_a_request_is_limited(address):
    def pieces():
        for _ in range(100):
            yield b" " * 1000

    for body in (b" " * 70_000, pieces()):
        response = httpx.post(f"{address}/gradio_api/queue/join", content=body)
        assert response.status_code == 413
        assert response.json()["detail"] == "A request may have 65,536 bytes."
    padded = json.dumps({"data": list(DRAW.values())}) + " " * 50_000
    kind = {"Content-Type": "application/json"}
    assert httpx.post(f"{address}/gradio_api/call/sample", content=padded, headers=kind).status_code == 200


def test_a_mistake_is_one_line_of_the_log_and_tells_no_path(address, events, log):
    """
    What a visitor sends wrong: refused at once, or by the event in its turn, or by a route that
    expects something else.
    """
    file = {"path": "/etc/passwd", "url": f"{address}/config", "meta": {"_type": "gradio.FileData"}}
    at_once = [
        ("add_charge", [None, 3], {}),
        ("add_charge", [None, 3], {"event_data": {"value": None}}),
        ("sample", [1, 2], {}),
        ("sample", [file, *list(DRAW.values())[1:]], {}),
        ("sample", [[file], *list(DRAW.values())[1:]], {}),
        ("js_fn", [None], {}),
        ("no such event", [], {}),
    ]
    in_turn = [
        ("add_charge", [None, 3], {"event_data": {"index": "ab", "value": None}}),
        ("add_charge", [None, 3], {"event_data": {"index": [1, 10**6], "value": None}}),
        ("take_shape", [["heart"], 3], {}),
        ("take_shape", ["heart", [3]], {}),
        ("show_frame", [None, 3], {}),
        ("follow", [NAME, 7, None, "any", "three", 0], {}),
    ]
    before = log.read_text()
    said = []
    with visitor(4) as client:
        for name, data, more in at_once:
            response = join(client, address, events.get(name, 999), data, "mistakes", **more)
            assert response.status_code in (400, 404)
            said.append(response.text)
        for number, (name, data, more) in enumerate(in_turn):
            assert join(client, address, events[name], data, f"mistakes{number}", **more).status_code == 200
            said.append(json.dumps(last_message(client, address, f"mistakes{number}")))
        for method, path in (("GET", "?page=nowhere"), ("POST", "gradio_api/call/v2/sample")):
            said.append(client.request(method, f"{address}/{path}", json={"nonsense": 1}).text)
    lines = log.read_text().removeprefix(before).splitlines()
    mistakes = [line for line in lines if "Loading" not in line]
    assert "Traceback" not in "".join(lines)
    assert len(mistakes) == len(said) - 1, (
        mistakes
    )  # a way that is not there yet has no frames to show, which is no mistake
    for text in (*said, *mistakes):
        assert str(ROOT) not in text
        assert sys.prefix not in text


def test_no_visitor_keeps_the_others_out(address, events, client):
    """
    101 jobs as large as any, from one address under many names: a few are taken, and the others see
    their own pictures.
    """
    large = [*{**DRAW, "count": 64, "steps": 25}.values()]
    with visitor(2) as hostile, visitor(3) as other:
        one = [join(hostile, address, events["sample"], large, "one-session") for _ in range(3)]
        assert [response.status_code for response in one] == [200, 200, 429]
        assert (
            one[-1].json()["detail"]
            == "2 of your drawings are waiting or under way. Wait for one of them, or cancel it."
        )
        kinds = {"sample": large, "follow": [NAME, 7, None, "any", 9, 0]}
        many = [
            join(hostile, address, events[name], kinds[name], f"{name}{n}")
            for n in range(49)
            for name in kinds
        ]
        assert [response.status_code for response in many] == [200] * 4 + [429] * 94
        forged = hostile.post(
            f"{address}/gradio_api/call/sample",
            json={"data": large},
            headers={"X-Forwarded-For": "203.0.113.7"},
        )
        assert forged.status_code == 429

        assert other.get(address).status_code == 200
        assert join(other, address, events["take_shape"], ["heart", 3], "other").status_code == 200
        assert last_message(other, address, "other")["success"]
        gallery, *_ = call(
            client, "sample", {**DRAW, "count": 1, "steps": 1}
        )  # nobody listens to those, so they do not start
        assert len(gallery) == 1


def test_events_of_the_page_are_limited_as_well(address, events):
    with visitor(5) as hostile, visitor(6) as other:
        codes = [
            join(hostile, address, events["take_shape"], ["heart", 3], "flood").status_code for _ in range(30)
        ]
        assert codes == [200] * 20 + [429] * 10
        assert join(other, address, events["take_shape"], ["heart", 3], "calm").status_code == 200
        assert last_message(other, address, "calm")["success"]


# In a browser


@pytest.fixture(scope="module")
def browser():
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        missing = (
            "There is no Chromium here, which the tests of the page need; `CI=1 make test` installs Debian's."
        )
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    expect.set_options(timeout=60_000)
    quiet = ["background-networking", "component-update", "quic", "sync", "gpu"]
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in quiet)]
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


@contextlib.contextmanager
def visit(browser, address, greeting="4,103,041 parameters", **context):
    """
    A page of a new visitor, with its first model offered; what its console says of errors fails the
    test.
    """
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **context})
    page, errors = context.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(address)
    expect(page.get_by_text(greeting)).to_be_visible()
    yield page
    context.close()
    assert not errors


def open_tab(page, name):
    """Opens a tab, which lies in a menu where the page is narrow."""
    tab = page.get_by_role("tab", name=name)
    if tab.is_visible():
        tab.click()
    else:
        page.locator(".overflow-menu > button").click()
        page.locator(".overflow-dropdown button", has_text=name).click()
    return page.get_by_role("tabpanel").filter(visible=True)


def press(page, name):
    page.get_by_role("button", name=name, exact=True).filter(visible=True).click()


def set_steps(page, steps):
    page.get_by_label("number input for Steps").fill(str(steps))


def in_gallery(page):
    """The pictures of the gallery, as arrays."""
    sources = page.locator(".grid-wrap img").evaluate_all("images => images.map(image => image.src)")
    return [
        np.asarray(PIL.Image.open(io.BytesIO(page.request.get(source).body())).convert("L"))
        for source in sources
    ]


def test_a_visit(browser, address, tmp_path):
    with visit(browser, address) as page:
        # turn D to its right end with the keyboard, and draw
        dial = page.get_by_label(f"range slider for {DIAL}").filter(visible=True)
        turned = page.locator(".turned").filter(visible=True)
        expect(turned).to_have_text("D = 128")
        dial.focus()
        page.keyboard.press("ArrowRight")
        expect(turned).to_have_text("D = 181")
        page.keyboard.press("End")
        expect(turned).to_have_text("D = ∞, diffusion")
        set_steps(page, 6)
        press(page, "Draw")
        expect(page.get_by_text("16 images, D = ∞, 11 of 11 calls of the network")).to_be_visible()
        expect(page.locator(".grid-wrap img")).to_have_count(16)
        shown = in_gallery(page)
        code = page.locator(".cm-content").inner_text()
        assert 'D=float("inf")' in code
        for expected, image in zip(shown, drawn_by(code, tmp_path), strict=True):
            np.testing.assert_array_equal(image, expected)
        with page.expect_download() as download:
            press(page, "Download all as zip")
        assert len(zipfile.ZipFile(download.value.path()).namelist()) == 16

        # the same seed once more, on a page that knows nothing of it
        page.reload()
        expect(page.get_by_text("4,103,041 parameters")).to_be_visible()
        expect(turned).to_have_text("D = 128")
        set_steps(page, 6)
        dial.focus()
        page.keyboard.press("End")
        press(page, "Draw")
        expect(page.get_by_text("11 of 11 calls of the network")).to_be_visible()
        np.testing.assert_array_equal(in_gallery(page), shown)


def test_turning_the_dial_draws(browser, address):
    with visit(browser, address) as page:
        set_steps(page, 2)
        box = page.get_by_label(f"range slider for {DIAL}").filter(visible=True).bounding_box()
        page.mouse.move(box["x"] + box["width"] / 5, box["y"] + box["height"] / 2)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] - 1, box["y"] + box["height"] / 2, steps=5)
        page.mouse.up()
        expect(page.get_by_text("16 images, D = ∞, 3 of 3 calls of the network")).to_be_visible()


def test_a_cancelled_job_stops_in_the_browser(browser, address):
    with visit(browser, address) as page:
        page.get_by_label("number input for Images").fill("64")
        set_steps(page, 25)
        press(page, "Draw")
        took = page.get_by_text("64 images, D = 128")
        expect(took).to_be_visible()
        press(page, "Cancel")
        page.wait_for_timeout(2000)  # a call of the network may still be under way
        before = took.inner_text()
        page.wait_for_timeout(1500)
        assert took.inner_text() == before
        page.get_by_label("number input for Images").fill("1")
        set_steps(page, 1)
        press(page, "Draw")
        expect(page.get_by_text("1 images, D = 128, 1 of 1 calls")).to_be_visible(timeout=15_000)


def test_the_keyboard_is_enough(browser, address):
    """From the top of the page to a drawn picture with Tab, the arrows and Enter."""
    with visit(browser, address) as page:
        set_steps(page, 1)
        page.locator("body").click(position={"x": 5, "y": 5})
        focused = "document.activeElement.getAttribute('aria-label') ?? document.activeElement.innerText"
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate(focused).strip() == "Draw":
                break
        page.keyboard.press("Enter")
        expect(page.get_by_text("16 images, D = 128, 1 of 1 calls")).to_be_visible()


def test_a_drawing_that_costs_too_much_is_refused_in_the_browser(browser, address):
    with visit(browser, address) as page:
        page.get_by_label("number input for Images").fill("64")
        set_steps(page, 100)
        press(page, "Draw")
        expect(
            page.get_by_text("64 images × 199 calls are 12,736: ask for fewer images or steps")
        ).to_be_visible()


def test_a_click_puts_a_charge(browser, address):
    for width in (1280, 400):
        with visit(browser, address, viewport={"width": width, "height": 900}) as page:
            panel = open_tab(page, "Follow a field line")
            expect(panel.get_by_text("Charges: 100. D = 8.")).to_be_visible()
            press(page, "Clear")
            expect(panel.get_by_text("Charges: 0.")).to_be_visible()
            panel.locator("img").last.click()  # in the middle
            expect(panel.get_by_text("Charges: 1.")).to_be_visible()
            source = panel.locator("img").last.get_attribute("src")
            picture = np.asarray(
                PIL.Image.open(io.BytesIO(page.request.get(source).body())).convert("RGB")
            ).astype(int)
            red = (picture[..., 0] - picture[..., 1] > 100).nonzero()
            assert [axis.mean() for axis in red] == pytest.approx([240, 240], abs=4)


def test_a_family_and_a_model_that_cannot_be_loaded_in_the_browser(browser, hub, tmp_path):
    server, env = hub
    server.add(ROOT / "model_cards" / "pfgmpp-fashion-mnist", "org/clothes")
    shutil.copytree(SPACE, tmp_path / "space")
    (tmp_path / "space" / "models.yaml").write_text(
        "- name: Nothing\n  model: org/nothing\n- name: Family\n  models:\n    64: org/clothes\n    .inf: org/clothes\n"
    )
    with (
        choose_dimensions(env, tmp_path / "space") as address,
        visit(browser, address, "the Hub answers 404") as page,
    ):
        draw = page.get_by_role("button", name="Draw", exact=True)
        expect(draw).to_be_disabled()
        page.get_by_label("Model").click()
        page.get_by_role("option", name="Family").click()
        expect(draw).to_be_enabled()
        expect(page.get_by_label(f"range slider for {DIAL}").filter(visible=True)).to_have_count(0)
        page.get_by_role("radio", name="∞").filter(visible=True).click()
        set_steps(page, 1)
        draw.click()
        expect(page.get_by_text("16 images, D = ∞, 1 of 1 calls")).to_be_visible()
        panel = open_tab(page, "About")
        panel.get_by_role("button", name="The card of the model").click()
        expect(panel.get_by_role("heading", name="pfgmpp-fashion-mnist")).to_be_visible()
        assert (
            panel.get_by_role("img", name="Samples", exact=True).evaluate("image => image.naturalWidth") > 100
        )


LOOKS = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "narrow": {"color_scheme": "light", "viewport": {"width": 400, "height": 800}},
}


@pytest.mark.parametrize("look", LOOKS)
def test_every_tab_looks_as_it_should(look, browser, address):
    """Pictures of them are kept in outputs/screenshots, to be looked at."""
    folder = ROOT / "outputs" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    with visit(browser, address, **LOOKS[look]) as page:
        light = (
            sum(
                map(
                    int,
                    re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))[:3],
                )
            )
            > 380
        )
        assert light == (look != "dark")
        set_steps(page, 8)
        for number, (name, button, done) in enumerate(
            (
                ("Sample", "Draw", "15 of 15 calls"),
                ("Compare D", "Compare", "D = ∞"),
                ("Robustness", "Disturb", "D = ∞, disturbed"),
                ("Follow a field line", "Follow one sample", "left the sample, right"),
                ("About", None, "The idea"),
            )
        ):
            panel = open_tab(page, name)
            if button:
                press(page, button)
            expect(panel.get_by_text(done, exact=False).last).to_be_visible()
            page.wait_for_timeout(500)
            page.screenshot(path=folder / f"{look}-{number}-{name.split()[0].lower()}.png", full_page=True)
            assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
            texts = panel.locator("img").evaluate_all("images => images.map(image => image.alt)")
            assert texts
            assert all(texts), texts
