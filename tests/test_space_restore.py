"""The tab Restore of the Space: what it restores, what it refuses, and how it looks."""

import base64
import io
import os
import runpy
import struct
import sys
import zlib

import numpy as np
import PIL.Image
import PIL.ImageSequence
import pytest
import torch
from conftest import ROOT
from gradio_client.exceptions import AppError
from playwright.sync_api import expect
from space_server import (
    SPACE,
    assert_same_images,
    connect,
    launch_browser,
    lend_scratch,
    list_texts,
    open_tab,
    read_embedded,
    serve_space,
    set_number,
    visit,
)

from pipeline_pfgmpp import PFGMPPRestorationPipeline, PFGMPPScheduler, PFGMPPUNet2DModel
from pipeline_pfgmpp.data import Degrader


sys.path.insert(0, str(ROOT / "space"))
import choices
import models
import picture_input
import restoring
import uploads


FAST = "model_cards/pfgmpp-emoji-fast"
ENTRY = {"start_sigma": 0.4, "blend": 0.8}
FOX = SPACE / "pictures" / "emoji-fox.png"


@pytest.fixture(scope="module", autouse=True)
def scratch(tmp_path_factory):
    with lend_scratch(tmp_path_factory.getbasetemp()):
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model of colour pictures, for every D from 16 on."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = PFGMPPUNet2DModel(
            sample_size=64,
            in_channels=3,
            out_channels=3,
            condition_channels=3,
            model_channels=8,
            channel_mult=(1,),
            num_blocks=1,
            attn_resolutions=(),
            d_conditioning=True,
        ).eval()
        torch.nn.init.xavier_uniform_(unet.dec["64x64_aux_conv"].weight)
    folder = tmp_path_factory.mktemp("models") / "restorer"
    PFGMPPRestorationPipeline(unet, PFGMPPScheduler(D=128, D_range=(16, None))).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def address(folder, tmp_path_factory):
    """A Space with a model that draws and one that restores."""
    env = {**os.environ, "SPACE_MODELS": f"{FAST},{folder}"}
    with serve_space(tmp_path_factory.mktemp("space") / "log", env) as address:
        yield address


@pytest.fixture(scope="module")
def client(address):
    return connect(address)


@pytest.fixture
def restorer(folder, monkeypatch):
    """The tiny model under the name Emoji, with an entry of its own."""
    restorer = models.Restorer("Emoji", {None: str(folder)}, ENTRY)
    monkeypatch.setitem(choices.RESTORERS, "Emoji", restorer)
    return restorer


def encode(data):
    return uploads.PREFIX + base64.b64encode(data).decode()


def save(picture, format="PNG", **options):
    data = io.BytesIO()
    picture.save(data, format, **options)
    return data.getvalue()


def restore(**changes):
    """Call the tab's function in this process."""
    arguments = {
        "model": "Emoji",
        "picture": encode(FOX.read_bytes()),
        "damage": "Gaussian noise",
        "strength": 0.6,
        "dial": 7,
        "fixed": None,
        "seed": 3,
        **changes,
    }
    (page,) = restoring.restore(**arguments)
    return page


def read_arrays(page):
    return [np.asarray(picture) for picture in read_embedded(page)]


# Which models it offers


def list_tabs(page):
    components = page["page"].config["components"]
    return [part["props"]["label"] for part in components if part["type"] == "tabitem"]


def test_a_model_that_restores_is_offered_in_its_tab_alone(folder, monkeypatch):
    monkeypatch.setenv("SPACE_MODELS", f"{FAST},{folder}")
    drawing, restoring = models.read_models()
    assert list(drawing) == [FAST]
    assert list(restoring) == [str(folder)]
    monkeypatch.setenv("SPACE_MODELS", str(folder))
    with pytest.raises(ValueError, match="needs at least one model that draws images"):
        models.read_models()


def test_without_such_a_model_there_is_no_tab(restorer, monkeypatch):
    assert "Restore" in list_tabs(runpy.run_path(str(SPACE / "app.py")))
    monkeypatch.setattr(choices, "RESTORERS", {})
    tabs = list_tabs(runpy.run_path(str(SPACE / "app.py")))
    assert "Sample" in tabs
    assert "Restore" not in tabs


def test_the_list_of_models_says_where_a_call_enters(folder, tmp_path, monkeypatch):
    (tmp_path / "models.yaml").write_text(
        f"- name: Emoji\n  model: {FAST}\n"
        f"- name: Emoji\n  model: {folder}\n  start_sigma: 0.4\n  blend: 0.8\n"
        f"- name: From the prior\n  models:\n    16: {folder}\n"
    )
    monkeypatch.setattr(models, "HERE", tmp_path)
    monkeypatch.delenv("SPACE_MODELS", raising=False)
    _, restorers = models.read_models()
    assert {name: model.entry for name, model in restorers.items()} == {"Emoji": ENTRY, "From the prior": {}}


def test_a_model_that_draws_is_refused_here():
    with pytest.raises(ValueError, match="Emoji is a PFGMPPPipeline, not a PFGMPPRestorationPipeline"):
        models.Restorer("Emoji", {None: FAST}).load()


def test_a_model_that_cannot_be_loaded_is_named(monkeypatch):
    monkeypatch.setitem(choices.RESTORERS, "Nothing", models.Restorer("Nothing", {None: "org/nothing"}))
    offered = runpy.run_path(str(SPACE / "app.py"))["offer_restorer"]("Nothing")
    assert offered[0].startswith("**Nothing cannot be loaded: ")
    assert not offered[-1]["interactive"]
    with pytest.raises(restoring.Refusal, match="Nothing cannot be loaded"):
        restore(model="Nothing")


# What it restores


@pytest.mark.parametrize("entry", [ENTRY, {}], ids=["own entry", "from the prior"])
def test_each_picture_takes_one_call(entry, folder, restorer, monkeypatch):
    monkeypatch.setattr(restorer, "entry", entry)
    calls = []
    network = restorer.make_pipeline(128).unet
    network.register_forward_hook(lambda *_: calls.append(None))
    page = restore()
    assert list_texts(page) == ["Before", "After, D = 128", "D = 16", "D = ∞"]
    assert len(calls) == 3
    before, *after = read_arrays(page)

    picture = torch.from_numpy(np.array(PIL.Image.open(FOX))).movedim(-1, 0)
    damage = Degrader(["gaussian=0.2"])
    damaged = damage(picture, (0.0, 255.0), torch.Generator().manual_seed(3))
    np.testing.assert_array_equal(before, damaged.movedim(0, -1).numpy())
    pipe = PFGMPPRestorationPipeline.from_pretrained(folder)
    for D, image in zip((128, 16, float("inf")), after, strict=True):
        generator = torch.Generator().manual_seed(3)
        (expected,) = pipe(damaged[None], 1, D=D, generator=generator, **entry).images
        assert_same_images(image, expected)


def test_what_is_compared_is_not_computed_twice(restorer):
    calls = []
    restorer.make_pipeline(128).unet.register_forward_hook(lambda *_: calls.append(None))
    page = restore(dial=4)
    assert list_texts(page) == ["Before", "After, D = 16", "D = 16", "D = ∞"]
    assert len(calls) == 2


@pytest.mark.parametrize("damage", restoring.DAMAGES)
def test_every_damage_does_what_it_says(damage, restorer):
    fox = np.asarray(PIL.Image.open(FOX)).astype(float)
    changed = [np.abs(read_arrays(restore(damage=damage, strength=strength))[0] - fox) for strength in (0, 1)]
    if damage == "None":
        assert all((change == 0).all() for change in changed)
        return
    assert all((change > 0).any() for change in changed)
    if damage == "A hole":
        weak, strong = ((change > 0).any(-1).mean() for change in changed)
        assert weak <= 0.03
        assert 0.03 < strong <= 0.16
    if damage == "Gaussian noise":
        assert changed[1].mean() > 2 * changed[0].mean()


def test_a_grey_picture_or_a_transparent_one_is_read_as_what_it_shows(restorer):
    grey = PIL.Image.new("L", (64, 64), 77)
    before, *_ = read_arrays(restore(damage="None", picture=encode(save(grey))))
    assert before.shape == (64, 64, 3)
    assert (before == 77).all()
    clear = PIL.Image.new("RGBA", (100, 70), (255, 0, 0, 0))
    before, *_ = read_arrays(restore(damage="None", picture=encode(save(clear))))
    assert before.shape == (64, 64, 3)
    assert (before == 255).all()
    deep = PIL.Image.fromarray(np.full((64, 64), 40_000, np.uint16))
    before, *_ = read_arrays(restore(damage="None", picture=encode(save(deep))))
    assert (before == round(40_000 / 257)).all()


# What it refuses: over the API, and in the browser


def make_chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def make_large_png(side):
    """Make a valid PNG file of so many black pixels a side: of 20,000 it has 49 KB."""
    header = make_chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    rows = zlib.compress(bytes(side * (1 + side // 8)), 9)
    return uploads.SIGNATURE + header + make_chunk(b"IDAT", rows) + make_chunk(b"IEND", b"")


def make_animation(format, count):
    """Make frames, of which the first is red and the others are blue."""
    frames = [PIL.Image.new("RGB", (300, 300), (0, shade, 255)) for shade in range(count)]
    frames[0].paste("red", (0, 0, 300, 300))
    return save(frames[0], format, save_all=True, append_images=frames[1:], duration=10)


def make_png_with_two_headers():
    """A decoder takes the last of several headers, here of 1,000 pixels a side."""
    small = make_chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 1, 0, 0, 0, 0))
    return uploads.SIGNATURE + small + make_large_png(1000).removeprefix(uploads.SIGNATURE)


SVG = b"""<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>alert(1)</script></svg>"""
HOSTILE = {
    "svg": (encode(SVG), "The picture must be a PNG file."),
    "gif": (encode(b"GIF89a" + bytes(40)), "The picture must be a PNG file."),
    "another type": (encode(SVG).replace("image/png", "image/svg+xml"), "must be a PNG file, sent as a text"),
    "no bytes": (encode(b""), "The picture is empty: it has no bytes."),
    "a signature alone": (encode(uploads.SIGNATURE), "it is damaged or cut off."),
    "cut off": (encode(FOX.read_bytes()[:1000]), "it is damaged or cut off."),
    "two headers": (encode(make_png_with_two_headers()), "it is damaged or cut off."),
    "no base64": (uploads.PREFIX + "%%%", "its text is damaged or cut off."),
    "a path": ("/etc/passwd", "sent as a text that begins with data:image/png;base64,"),
    "an address": ("http://127.0.0.1/a.png", "The picture must be a PNG file, sent as"),
    "a number": (7, "The picture must be a PNG file, sent as"),
    "nothing": (None, "The picture must be a PNG file, sent as"),
    "no pixels": (
        encode(uploads.SIGNATURE + make_chunk(b"IHDR", struct.pack(">IIBBBBB", 0, 9, 8, 2, 0, 0, 0))),
        "may have 1 to 262,144 pixels, but its file states 0 × 9.",
    ),
}


def call(client, folder, **changes):
    arguments = {
        "model": str(folder),
        "picture": encode(FOX.read_bytes()),
        "damage": "A hole",
        "strength": 0.5,
        "dial": 7,
        "fixed": None,
        "seed": 0,
        **changes,
    }
    return client.predict(**arguments, api_name="/restore")


def test_the_tab_can_be_called_from_a_program(client, folder):
    assert list_texts(call(client, folder)) == ["Before", "After, D = 128", "D = 16", "D = ∞"]


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_picture_gets_a_message(name, client, folder):
    picture, message = HOSTILE[name]
    with pytest.raises(AppError) as error:
        call(client, folder, picture=picture)
    assert message in str(error.value)
    assert "Traceback" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "org/other"}, "The model must be one of: "),
        ({"damage": "mask"}, "The damage must be one of: Gaussian noise, 4 times smaller, A hole, None."),
        ({"damage": ["None"]}, "The damage must be one of: "),
        ({"strength": 1.5}, "The strength must be a number from 0 to 1."),
        ({"dial": 0}, "The dial (log₂ D) must be a number from 4 to 19."),
        ({"seed": -1}, "The seed must be a whole number"),
    ],
)
def test_what_is_not_offered_gets_a_message(changes, message, client, folder):
    with pytest.raises(AppError) as error:
        call(client, folder, **changes)
    assert message in str(error.value)


def test_a_large_picture_is_refused_before_it_is_decoded(restorer, monkeypatch):
    def decode(*args, **options):
        raise AssertionError("it is decoded")

    monkeypatch.setattr(uploads.PIL.Image, "open", decode)
    with pytest.raises(restoring.Refusal) as error:
        restore(picture=encode(make_large_png(20_000)))
    assert error.value.message == (
        "The picture may have 1 to 262,144 pixels, but its file states 20,000 × 20,000."
    )
    monkeypatch.setattr(uploads, "LONGEST_TEXT", 1000)
    with pytest.raises(restoring.Refusal, match="must be sent in at most 1,000 characters"):
        restore()


def test_of_an_animation_the_first_picture_is_read(restorer):
    before, *_ = read_arrays(restore(damage="None", picture=encode(make_animation("PNG", 20))))
    assert (before == [255, 0, 0]).all()


# In a browser


@pytest.fixture(scope="module")
def browser():
    with launch_browser() as browser:
        yield browser


def open_restore(page):
    panel = open_tab(page, "Restore")
    expect(panel.locator(".captioned img")).to_have_count(4)
    return panel


def read_before(panel):
    """Return the picture that has been restored last, as it was before."""
    return read_arrays(panel.locator(".captioned").inner_html())[0]


def wait_for_another(panel, act):
    """Act, and wait until another picture has been restored; return it as it was before."""
    first = panel.locator(".captioned img").first
    source = first.get_attribute("src")
    act()
    expect(first).not_to_have_attribute("src", source)
    return read_before(panel)


def upload(panel, name, data, kind="image/png"):
    panel.locator("input[type=file]").set_input_files({"name": name, "mimeType": kind, "buffer": data})


def test_the_tab_opens_with_a_picture_and_follows_what_is_chosen(browser, address):
    with visit(browser, address) as page:
        panel = open_restore(page)
        expect(panel.get_by_text("64×64 pixels")).to_be_visible()
        fox = np.asarray(PIL.Image.open(FOX))
        assert not np.array_equal(read_before(panel), fox)
        damaged = wait_for_another(panel, lambda: panel.get_by_role("radio", name="None").click())
        np.testing.assert_array_equal(damaged, fox)
        crown = wait_for_another(panel, lambda: panel.get_by_role("button", name="Crown").click())
        expected = PIL.Image.open(SPACE / "pictures" / "emoji-crown.png")
        np.testing.assert_array_equal(crown, np.asarray(expected))
        dial = panel.get_by_label("range slider for Augmented dimension D")
        dial.press("End")
        expect(panel.get_by_text("After, D = ∞")).to_be_visible()
        wait_for_another(panel, lambda: panel.get_by_role("radio", name="Gaussian noise").click())
        wait_for_another(panel, lambda: set_number(page, "Strength", 1))
        wait_for_another(panel, lambda: page.get_by_label("Seed").fill("8"))


# Whether what is shown as before is what has been drawn.
SHOWN = """() => {
    const image = document.querySelector('.captioned img');
    const canvas = document.querySelector('.picture-input canvas');
    const copy = document.createElement('canvas');
    Object.assign(copy, {width: canvas.width, height: canvas.height});
    copy.getContext('2d').drawImage(image, 0, 0);
    return image.complete && copy.toDataURL() === canvas.toDataURL();
}"""


def test_what_is_drawn_is_damage_until_it_is_cleared(browser, address):
    with visit(browser, address) as page:
        panel = open_restore(page)
        fox = wait_for_another(panel, lambda: panel.get_by_role("radio", name="None").click())
        box = panel.locator("canvas").bounding_box()
        middle = box["y"] + box["height"] / 2

        def draw():
            page.mouse.move(box["x"] + box["width"] / 4, middle)
            page.mouse.down()
            page.mouse.move(box["x"] + 3 * box["width"] / 4, middle, steps=3)
            page.mouse.up()

        draw()
        page.wait_for_function(SHOWN)
        drawn = read_before(panel)
        assert (drawn[32, 18:46] == 128).all()
        np.testing.assert_array_equal(drawn[:20], fox[:20])
        panel.get_by_role("button", name="Clear drawing").click()
        page.wait_for_function(SHOWN)
        np.testing.assert_array_equal(read_before(panel), fox)


FILES = {
    "svg": (SVG, "The file must be a PNG, JPEG, GIF or WebP picture."),
    "text": (b"not a picture at all", "The file must be a PNG, JPEG, GIF or WebP picture."),
    "zero bytes": (b"", "The file is empty."),
    "damaged": (uploads.SIGNATURE + bytes(100), "The picture cannot be read: it is damaged."),
    "20,000 a side": (
        make_large_png(20_000),
        "The picture may have at most 50 million pixels, but has 20,000 × 20,000.",
    ),
    "large file": (uploads.SIGNATURE + bytes(20_000_001), "The file may have at most 20 million bytes."),
}


def test_hostile_files_are_refused_in_the_browser(browser, address):
    """What they hold is told from their bytes, and nothing is sent."""
    with visit(browser, address) as page:
        panel = open_restore(page)
        sent = []
        page.on("request", lambda request: sent.append(request.url) if request.method == "POST" else None)
        for data, message in FILES.values():
            upload(panel, "picture.png", data)
            expect(panel.get_by_role("alert")).to_have_text(message)
        assert sent == []
        fox = wait_for_another(panel, lambda: panel.get_by_role("radio", name="None").click())
        np.testing.assert_array_equal(fox, np.asarray(PIL.Image.open(FOX)))
        red = wait_for_another(
            panel, lambda: upload(panel, "many.gif", make_animation("GIF", 250), "image/gif")
        )
        assert (red == [255, 0, 0]).all()
        expect(panel.get_by_role("alert")).to_have_count(0)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_a_picture_of_any_size_is_made_small_in_the_browser(format, browser, address):
    wide = PIL.Image.new("RGB", (1500, 500), "blue")
    wide.paste("lime", (500, 0, 1000, 500))
    with visit(browser, address) as page:
        panel = open_restore(page)
        wait_for_another(panel, lambda: panel.get_by_role("radio", name="None").click())
        middle = wait_for_another(panel, lambda: upload(panel, "wide", save(wide, format)))
        assert middle.shape == (64, 64, 3)
        assert np.abs(middle[:, 2:-2].astype(int) - [0, 255, 0]).max() < 8


def test_the_keyboard_is_enough(browser, address):
    """Tab and Enter lead to another picture, to the upload and to the button that restores."""
    focused = "document.activeElement.getAttribute('aria-label') ?? document.activeElement.innerText"
    title = f"document.activeElement.title || ({focused})"
    with visit(browser, address) as page:
        panel = open_restore(page)
        page.get_by_role("tab", name="Restore").focus()
        seen = []
        for _ in range(60):
            page.keyboard.press("Tab")
            seen.append(page.evaluate(title).strip())
            if seen[-1] == "Pizza":
                wait_for_another(panel, lambda: page.keyboard.press("Enter"))
            if seen[-1] == "Restore":
                break
        assert [name for name in seen if name in picture_input.EXAMPLES] == list(picture_input.EXAMPLES)
        assert {"Upload a picture", "Clear drawing", "Restore"} <= set(seen)


LOOKS = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "narrow": {"color_scheme": "light", "viewport": {"width": 390, "height": 800}},
}


@pytest.mark.parametrize("look", LOOKS)
def test_the_tab_looks_as_it_should(look, browser, address):
    """Screenshots are kept in outputs/screenshots, to be looked at."""
    shots = ROOT / "outputs" / "screenshots"
    shots.mkdir(parents=True, exist_ok=True)
    with visit(browser, address, **LOOKS[look]) as page:
        panel = open_restore(page)
        expect(panel.get_by_text("D = 128", exact=True).filter(visible=True)).to_be_visible()
        page.screenshot(path=shots / f"{look}-restore.png", full_page=True, animations="disabled")
        assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
        texts = panel.locator("img").evaluate_all("images => images.map(image => image.alt)")
        assert texts
        assert all(texts), texts
        widths = panel.locator(".captioned img").evaluate_all("images => images.map(image => image.width)")
        assert min(widths) > 128  # enlarged, with its pixels kept sharp
        rendering = panel.locator(".captioned img").first.evaluate(
            "image => getComputedStyle(image).imageRendering"
        )
        assert rendering == "pixelated"
