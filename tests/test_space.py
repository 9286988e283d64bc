"""The Space as a visitor meets it: over its API, under attack, and in a browser."""

import contextlib
import http.client
import importlib.util
import io
import json
import os
import re
import runpy
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import PIL.Image
import psutil
import pytest
import torch
from conftest import ROOT, make_hub_environment, make_tiny_pipeline
from diffusers import AutoencoderTiny
from gradio_client.exceptions import AppError
from hub_server import WRITER, serve_hub
from packages import link_requirements
from playwright.sync_api import expect
from space_server import (
    BACKSTOP,
    SPACE,
    assert_same_images,
    choose,
    connect,
    get,
    launch_browser,
    lend_scratch,
    list_texts,
    open_tab,
    press,
    read_embedded,
    serve_space,
    set_number,
    visit,
)

from pipeline_pfgmpp import EmpiricalDenoiser, PFGMPPPipeline, PFGMPPScheduler


sys.path.insert(0, str(ROOT / "space"))
import choices
import dial
import drawing
import field_lines
import models
import sampling


NAME = "Fashion-MNIST"
FAST = f"{NAME} in two calls"
EMOJI = "Emoji"
FIRST = f"{EMOJI} in two calls"  # the page opens with it
CLOTHES = ["T-shirt/top", "Trouser", "Pullover", "Dress"]
EMOJI_CLASSES = ["Smileys & Emotion", "People & Body", "Animals & Nature", "Food & Drink"]
DIAL = "Augmented dimension D"
PICTURES = ["pictures/norms.png", *(f"pictures/{path.name}" for path in SPACE.glob("pictures/emoji-*.png"))]


@pytest.fixture(scope="module", autouse=True)
def scratch(tmp_path_factory):
    with lend_scratch(tmp_path_factory.getbasetemp()):
        yield


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """The file with the server's output."""
    return tmp_path_factory.mktemp("space") / "log"


@pytest.fixture(scope="module")
def address(log):
    """A server whose environment asks Gradio for everything that the Space has decided not to offer."""
    asked = {
        "GRADIO_RUN_HISTORY": "True",
        "GRADIO_MCP_SERVER": "True",
        "GRADIO_NUM_WORKERS": "1",
        "HF_TOKEN": WRITER,
    }
    with serve_space(log, {**os.environ, **asked}) as address:
        yield address


@pytest.fixture(scope="module")
def client(address):
    return connect(address)


DRAW = {
    "model": NAME,
    "dial": 7,
    "fixed": None,
    "label": "any",
    "count": 4,
    "steps": 3,
    "solver": "heun",
    "guidance": 1,
    "seed": 5,
    "noise": 0,
}
COMPARE = {"model": NAME, "dimensions": ["16", "inf"], "label": "Bag", "steps": 2, "seed": 0}
DISTURB = {
    "model": NAME,
    "noise": 0.3,
    "bits": 6,
    "small": "16",
    "large": "inf",
    "label": "any",
    "steps": 2,
    "seed": 0,
}


def call(client, name, arguments):
    return client.predict(*arguments.values(), api_name=f"/{name}")


@pytest.mark.parametrize(
    ("changes", "described"),
    [
        ({}, "4 images at D = 128: 5 of 5 network calls"),
        ({"noise": 0.3}, "4 images at D = 128 with noise α = 0.3: 5 of 5 network calls"),
        (
            {"model": FAST, "dial": 19, "steps": 2, "solver": "consistency", "noise": 0.3},
            "4 images at D = ∞ with noise α = 0.3: 2 of 2 network calls",
        ),
        (
            {"model": FIRST, "dial": 4, "steps": 1, "solver": "consistency"},
            "4 images at D = 16: 1 of 1 network calls",
        ),
        ({"model": EMOJI, "solver": "dpmpp_2m", "guidance": 2}, "4 images at D = 128: 3 of 3 network calls"),
    ],
)
def test_the_code_draws_the_same_images(changes, described, client, monkeypatch):
    images, summary, archive, code = call(client, "sample", {**DRAW, **changes})
    assert summary.startswith(described)
    shown = [np.asarray(picture) for picture in read_embedded(images)]
    assert len(shown) == 4
    names = EMOJI_CLASSES if EMOJI in changes.get("model", NAME) else CLOTHES
    texts = [f"{name}, seed {seed}" for name, seed in zip(names, range(5, 9))]
    assert list_texts(images) == texts
    with zipfile.ZipFile(archive) as file:
        assert sorted(file.namelist()) == sorted(f"{text}.png".replace("/", "-") for text in texts)
        with file.open(f"{texts[1]}.png") as picture:
            np.testing.assert_array_equal(np.asarray(PIL.Image.open(picture)), shown[1])
    for expected, image in zip(shown, run_code(code, monkeypatch), strict=True):
        assert_same_images(image, expected)


def run_code(code, monkeypatch):
    """Run a program that the Space has shown, and return its images."""
    monkeypatch.chdir(ROOT)  # where the bundled model is
    names = {}
    exec(code, names)
    return [np.asarray(image) for image in names["images"]]


def test_pictures_have_a_text(client):
    assert list_texts(call(client, "compare", COMPARE)) == ["D = 16", "D = ∞"]
    assert list_texts(call(client, "disturb", DISTURB)) == [
        "D = 16, undisturbed",
        "D = ∞, undisturbed",
        "D = 16, disturbed",
        "D = ∞, disturbed",
    ]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "sample",
            {"model": "../../etc/passwd"},
            "The model must be one of: Emoji in two calls, Emoji, Fashion-MNIST in two calls, Fashion-MNIST.",
        ),
        ("sample", {"count": 10**6}, "The number of images must be a whole number from 1 to 64"),
        ("sample", {"count": "many"}, "The number of images must be a whole number from 1 to 64"),
        ("sample", {"steps": 0}, "The number of steps must be a whole number from 1 to 100"),
        ("sample", {"label": "../secret"}, "The class must be one of: any, T-shirt/top, Trouser,"),
        ("sample", {"seed": -1}, "The seed must be a whole number"),
        ("sample", {"count": 2.5}, "whole number"),
        ("sample", {"noise": 2}, "The noise must be a number from 0 to 1"),
        ("sample", {"guidance": -1}, "Guidance must be a number from 0 to 10"),
        ("sample", {"dial": 1000}, "The dial (log₂ D) must be a number from 4 to 19"),
        # D = 1, which the network was not trained for
        ("sample", {"dial": 0}, "The dial (log₂ D) must be a number from 4 to 19"),
        ("compare", {"dimensions": []}, "Choose between one and 5 values of D"),
        ("compare", {"dimensions": "16"}, "Choose between one and 5 values of D"),
        ("compare", {"dimensions": ["3"]}, "D must be one of: 16, 64, 128, 512, 2048, 16384, inf."),
        ("disturb", {"noise": [7]}, "The noise must be a number from 0 to 1"),
        ("disturb", {"bits": 40}, "Bits per weight must be a whole number from 2 to 16"),
        (
            "sample",
            {"count": 64, "steps": 100},
            "network calls, but 64 images with 199 calls each would make 12,736. Ask for fewer",
        ),
        (
            "sample",
            {"count": 64, "steps": 18, "guidance": 2},
            "but 64 images with 70 calls each would make 4,480",
        ),
        (
            "compare",
            {"dimensions": ["16", "64", "128", "512", "inf"], "steps": 100},
            "A drawing may make at most 3,200 network calls",
        ),
        ("disturb", {"steps": 100}, "A drawing may make at most 3,200 network calls"),
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
    for file in (path, SPACE / path):
        assert get(f"{address}/gradio_api/file={file}").status_code in (403, 404)


def test_a_folder_that_is_served_leads_to_no_other(address):
    """Of what a client sends, httpx resolves the two points itself."""
    host, port = address.removeprefix("http://").split(":")
    for climb in ("..", "%2e%2e", "..%2f.."):
        connection = http.client.HTTPConnection(host, int(port))
        connection.request("GET", f"/gradio_api/file=pictures/{climb}/app.py")
        response = connection.getresponse()
        assert response.status in (403, 404)
        assert b"import gradio" not in response.read()
        connection.close()


def test_no_path_of_the_server_is_told(address):
    for page in ("", "config", "gradio_api/info"):
        response = get(f"{address}/{page}")
        assert response.status_code == 200
        assert str(ROOT) not in response.text


def test_the_pictures_of_the_page_can_be_read(address):
    for name in re.findall(r'src="gradio_api/(file=[^"]+)"', (SPACE / "about.md").read_text()):
        assert get(f"{address}/gradio_api/{name}").status_code == 200


def test_a_cancelled_job_stops(address, events, client):
    """It ends without its result, and the next job can start."""
    large = [*{**DRAW, "count": 64, "steps": 25}.values()]
    with visit_over_http(1) as visitor:
        job = {"session_hash": "cancelled", "fn_index": events["sample"]}
        job["event_id"] = join(visitor, address, events["sample"], large, "cancelled").json()["event_id"]
        with listen(visitor, address, "cancelled") as messages:
            next(message for message in messages if message["msg"] == "process_generating")
            visitor.post(f"{address}/gradio_api/cancel", json=job).raise_for_status()
            rest = json.dumps(list(messages))
    assert "process_completed" in rest
    assert "49 of 49 network calls" not in rest
    images, *_ = call(client, "sample", {**DRAW, "count": 1, "steps": 1})
    assert list_texts(images) == ["T-shirt/top, seed 5"]


def test_a_closed_run_stops_after_the_current_call(monkeypatch):
    monkeypatch.setattr(sampling, "PAUSE", 0)
    pipe = PFGMPPPipeline(EmpiricalDenoiser(torch.zeros(1, 1, 4, 4)), PFGMPPScheduler())
    pipe.set_progress_bar_config(disable=True)
    calls = []

    def wait_in_second_call(pipe, index, timestep, tensors):
        calls.append(index)
        deadline = time.monotonic() + BACKSTOP
        while index == 1 and not pipe.interrupt and time.monotonic() < deadline:
            time.sleep(0.001)
        return {}

    run = sampling.run_pipeline(pipe, 1, num_inference_steps=50, callback_on_step_end=wait_in_second_call)
    progress = next(run)
    assert (progress.calls, progress.total) == (1, 99)
    run.close()
    assert calls == [0, 1]


def test_the_environment_names_models(monkeypatch):
    monkeypatch.setenv("SPACE_MODELS", "org/one, org/two,")
    offered, _ = models.read_models()
    assert list(offered) == ["org/one", "org/two"]
    assert offered["org/two"].sources == {None: "org/two"}
    monkeypatch.delenv("SPACE_MODELS")
    offered, _ = models.read_models()
    assert list(offered) == [FIRST, EMOJI, FAST, NAME]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "models.yaml must be a list of models"),
        ("name: Digits", "models.yaml must be a list of models"),
        ("- [", "models.yaml is no YAML: while parsing"),
        ("- model: a/b", "models.yaml, model 1: `name` must be a text, but is None"),
        ("- name: Digits", "Digits: it needs either `model` or `models`"),
        ("- name: Digits\n  model: a/b\n  models: {1: a/b}", "Digits: it needs either `model` or `models`"),
        ("- name: Digits\n  model: 5", "Digits: a model must be a Hub id or a folder, but is 5"),
        ("- name: Digits\n  models: []", "Digits: `models` must give a Hub id or a folder for each D"),
        ("- name: Digits\n  models: {foo: a/b}", "Digits: D must be a positive number or inf, but is 'foo'"),
        ("- name: Digits\n  models: {-1: a/b}", "Digits: D must be a positive number or inf, but is -1"),
        ("- name: Digits\n  model: a/b\n  start_sigm: 5", "Digits: `start_sigm` is none of name, model,"),
        (
            f"- name: Digits\n  model: {ROOT / 'model_cards' / 'pfgmpp-emoji'}\n" * 2,
            "two models are named Digits",
        ),
    ],
)
def test_a_list_of_models_that_makes_no_sense_is_refused(text, message, tmp_path, monkeypatch):
    (tmp_path / "models.yaml").write_text(text)
    monkeypatch.setattr(models, "HERE", tmp_path)
    monkeypatch.delenv("SPACE_MODELS", raising=False)
    with pytest.raises(ValueError, match=re.escape(message)):
        models.read_models()


def test_another_kind_of_pipeline_is_refused(monkeypatch):
    loaded = type("DDPMPipeline", (), {})()
    monkeypatch.setattr(models.DiffusionPipeline, "from_pretrained", lambda source: loaded)
    with pytest.raises(ValueError, match="Digits is a DDPMPipeline, not a PFGMPPPipeline"):
        models.Model("Digits", {None: "org/digits"}).load()


# A network that draws what the page cannot show, or that has diverged, and one that is not square


def load_model(pipe, monkeypatch):
    monkeypatch.setattr(models.DiffusionPipeline, "from_pretrained", lambda source: pipe)
    return models.Model("Digits", {None: "org/digits"}).load()


def test_channels_that_cannot_be_shown_are_refused(monkeypatch):
    pipe = PFGMPPPipeline(EmpiricalDenoiser(torch.zeros(1, 2, 4, 4)), PFGMPPScheduler())
    with pytest.raises(ValueError, match="Digits draws images of 2 channels, but only images of 1, 3 or 4"):
        load_model(pipe, monkeypatch)


def test_fields_are_no_pictures(monkeypatch):
    units = {"mean": [0.0], "deviation": [2.0]}
    denoiser = EmpiricalDenoiser(torch.zeros(1, 1, 4, 4))
    pipe = PFGMPPPipeline(denoiser, PFGMPPScheduler(), value_range=units)
    with pytest.raises(ValueError, match="Digits draws fields, but only pictures"):
        load_model(pipe, monkeypatch)


def test_weights_that_are_not_finite_are_refused(monkeypatch):
    denoiser = EmpiricalDenoiser(torch.zeros(1, 1, 4, 4))
    denoiser.data.fill_(torch.nan)
    pipe = PFGMPPPipeline(denoiser, PFGMPPScheduler())
    with pytest.raises(ValueError, match="Digits cannot be used: its weights must be finite"):
        load_model(pipe, monkeypatch)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_rectangular_model_is_shown_on_every_tab(channels, monkeypatch):
    pipe = PFGMPPPipeline(EmpiricalDenoiser(torch.zeros(1, channels, 4, 12)), PFGMPPScheduler(D=16))
    monkeypatch.setitem(choices.MODELS, "Digits", load_model(pipe, monkeypatch))
    page = runpy.run_path(str(SPACE / "app.py"))
    assert page["offer_model"]("Digits")[0] == "4×12 (height × width) pixels, 0 parameters"
    common = {"model": "Digits", "label": "any", "steps": 2, "seed": 0}
    *_, (images, *_) = drawing.sample(dial=4, fixed="16", count=2, solver="heun", guidance=1, **common)
    assert [picture.size for picture in read_embedded(images)] == [(12, 4)] * 2
    with pytest.raises(drawing.Refusal, match="Guidance must be 1 for this model, because it has no classes"):
        next(drawing.sample(dial=4, fixed="16", count=2, solver="heun", guidance=2, **common))
    *_, rows = drawing.compare(dimensions=["16"], **common)
    assert read_embedded(rows)[0].size == (4 + 8 * (72 + 4), 4 + 24 + 4)
    *_, rows = drawing.disturb(noise=0.1, bits=drawing.AS_TRAINED, small="16", large="16", **common)
    assert len(read_embedded(rows)) == 2
    *_, (_, _, frame, _) = field_lines.follow_sample(dial=4, fixed="16", **common)
    picture = read_embedded(frame)[0]
    assert picture.width > 2 * picture.height


def test_a_model_in_latents_is_shown_as_its_images(monkeypatch):
    vae = AutoencoderTiny(
        encoder_block_out_channels=(4, 4),
        decoder_block_out_channels=(4, 4),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        latent_channels=2,
    ).eval()
    pipe = PFGMPPPipeline(EmpiricalDenoiser(torch.zeros(1, 2, 4, 6)), PFGMPPScheduler(D=16), vae=vae)
    monkeypatch.setitem(choices.MODELS, "Latents", load_model(pipe, monkeypatch))
    page = runpy.run_path(str(SPACE / "app.py"))
    assert page["offer_model"]("Latents")[0] == "8×12 (height × width) pixels, 0 parameters"
    common = {"model": "Latents", "label": "any", "steps": 2, "seed": 0}
    *_, (images, *_) = drawing.sample(dial=4, fixed="16", count=1, solver="heun", guidance=1, **common)
    expected = pipe(1, 2, generator=[torch.Generator().manual_seed(0)]).images[0]
    assert expected.size == (12, 8)
    np.testing.assert_array_equal(np.asarray(read_embedded(images)[0]), np.asarray(expected))
    *_, (frames, _, _, _) = field_lines.follow_sample(dial=4, fixed="16", **common)
    assert len(frames) == 3
    picture = read_embedded(frames[0][0])[0]
    assert picture.mode == "RGB"


@pytest.mark.parametrize(
    ("D_range", "dimensions"),
    [
        ((16, None), ["16", "64", "128", "512", "2048", "16384", "inf"]),
        ((1, 8), ["1", "8"]),
        ((20, 500), ["20", "64", "128", "500"]),
        ((0.5, 64), ["0.5", "16", "64"]),
        ((16, 2.0**20), ["16", "64", "128", "512", "2048", "16384", "1048576"]),
    ],
)
def test_a_model_offers_the_ends_of_its_range(D_range, dimensions, monkeypatch):
    pipe = make_tiny_pipeline()
    pipe.scheduler = PFGMPPScheduler(D=D_range[0], D_range=D_range)
    monkeypatch.setitem(choices.MODELS, "Any", load_model(pipe, monkeypatch))
    model = choices.choose_model("Any")
    assert choices.list_dimensions(model) == dimensions
    page = runpy.run_path(str(SPACE / "app.py"))
    *_, small, large, _, _, _, _, _ = page["offer_model"]("Any")
    assert (small["value"], large["value"]) == (dimensions[0], dimensions[-1])
    first, last = dial.find_ends(*model.trained_range)
    assert choices.choose_dimension(model, first, None) == float(dimensions[0])
    assert choices.choose_dimension(model, last, None) == float(dimensions[-1])


def test_a_network_that_was_trained_for_a_single_d_has_no_dial(monkeypatch):
    pipe = make_tiny_pipeline()
    pipe.scheduler = PFGMPPScheduler(D=128, D_range=(128, 128))
    monkeypatch.setitem(choices.MODELS, "Single", load_model(pipe, monkeypatch))
    page = runpy.run_path(str(SPACE / "app.py"))
    assert page["offer_model"]("Single")[0].startswith("28")
    assert choices.list_dimensions(choices.choose_model("Single")) == ["128"]


def test_churn_of_the_model_leaves_all_solvers_to_choose(monkeypatch):
    pipe = make_tiny_pipeline()
    pipe.scheduler = PFGMPPScheduler(D=128, s_churn=4)
    monkeypatch.setitem(choices.MODELS, "Churning", load_model(pipe, monkeypatch))
    model = choices.choose_model("Churning")
    for solver in choices.list_solvers(choices.load_pipeline(model, 128)):
        churn = choices.load_pipeline(model, 128, solver_type=solver).scheduler.config.s_churn
        assert churn == (4 if solver in ("heun", "euler") else 0)


def test_a_guiding_network_guides(monkeypatch):
    pipe = make_tiny_pipeline()
    weak = make_tiny_pipeline(seed=1).unet
    pipe = PFGMPPPipeline(pipe.unet, pipe.scheduler, guidance_unet=weak)
    monkeypatch.setitem(choices.MODELS, "Guided", load_model(pipe, monkeypatch))
    common = {"model": "Guided", "dial": 7, "fixed": None, "label": "any", "count": 1, "steps": 2, "seed": 0}
    *_, (images, *_) = drawing.sample(solver="heun", guidance=3, **common)
    expected = pipe(1, 2, D=128, guidance_scale=3, generator=[torch.Generator().manual_seed(0)]).images[0]
    assert_same_images(read_embedded(images)[0], expected)


def test_the_first_images_of_a_fast_model_come_before_the_others(monkeypatch):
    pipe = make_tiny_pipeline(seed=0, D=128)
    pipe.scheduler = PFGMPPScheduler(D=128, solver_type="consistency", default_steps=2)
    monkeypatch.setitem(choices.MODELS, "Fast", load_model(pipe, monkeypatch))
    common = {"fixed": None, "label": "any", "count": 6, "solver": "consistency", "guidance": 1, "seed": 0}
    frames = list(drawing.sample("Fast", 7, steps=2, **common))
    assert [len(read_embedded(images)) for images, *_ in frames] == [drawing.FIRST_IMAGES, 6]
    assert [summary.rpartition(",")[0] for _, summary, *_ in frames] == [
        "2 of 6 images at D = 128",
        "6 images at D = 128: 2 of 2 network calls",
    ]
    generators = [torch.Generator().manual_seed(seed) for seed in range(6)]
    labels = choices.choose_classes(pipe, "any", 6)
    expected = pipe(6, 2, D=128, class_labels=labels, generator=generators).images
    assert_same_images(np.stack(read_embedded(frames[-1][0])), np.stack(expected))


def test_the_worker_alone_computes_on_several_cores():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    sampling.start_worker()
    try:
        sampling.reserve_cores()
        sampling.submit(lambda: torch.ones(1000, 1000).exp()).result()
        with ThreadPoolExecutor(1) as others:
            assert others.submit(torch.get_num_threads).result() == 1
        assert torch.get_num_threads() == 1
        assert sampling.submit(torch.get_num_threads).result() == 2
    finally:
        torch.set_num_threads(threads)
        sampling.start_worker()


def test_a_card_that_is_no_yaml_is_left_out(monkeypatch, tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: [a\n---\n# A model\n")
    assert models.Model("Digits", {None: str(tmp_path)}).read_card() == ""


def test_classes_that_never_occurred_are_not_offered():
    unet = EmpiricalDenoiser(torch.zeros(1, 1, 4, 4))
    unet.register_to_config(label_dim=4)
    pipe = PFGMPPPipeline(unet, PFGMPPScheduler(), id2label={0: "bag", 2: "boot", 3: "shirt"})
    assert choices.choose_classes(pipe, "boot", 2) == [2, 2]
    assert choices.choose_classes(pipe, "any", 4) == [0, 2, 3, 0]
    with pytest.raises(drawing.Refusal, match="The class must be one of: any, bag, boot, shirt"):
        choices.choose_classes(pipe, "1", 2)


# ZeroGPU: images are drawn in a worker process, which may end before the page asks for its files


# Runs the app with the real package `spaces`. Its cloud answers at once, and its part that patches torch for
# a GPU is left out.
ZERO_GPU = """
import runpy
import sys
import types

sys.path.insert(0, "")
patches = types.ModuleType("spaces.zero.torch")
for name in ("patch", "unpatch", "init", "move", "enter_mode", "pack", "size", "is_in_bad_fork"):
    setattr(patches, name, lambda *args, **options: 0)
sys.modules[patches.__name__] = patches

from spaces.zero import client
from spaces.zero.api import ScheduleResponse

for name in ("startup_report", "allow", "release"):
    setattr(client, name, lambda *args, **options: None)
client.schedule = lambda **options: ScheduleResponse(
    idle=False, nvidiaIndex=0, nvidiaUUID="", allowToken=""
)
runpy.run_path("app.py", run_name="__main__")
"""


@pytest.mark.skipif(importlib.util.find_spec("spaces") is None, reason="needs the package spaces")
def test_the_space_serves_its_archive_on_zerogpu(tmp_path):
    env = {
        **os.environ,
        "SPACES_ZERO_GPU": "true",
        "SPACES_ZERO_DEVICE_API_URL": "http://127.0.0.1:9",
        "GRADIO_TEMP_DIR": str(tmp_path / "cache"),
    }
    program = f"{ZERO_GPU}# {tmp_path}"
    with serve_space(tmp_path / "log", env, python=(sys.executable, "-c", program)) as address:
        client = connect(address)
        for _ in range(2):
            images, _, archive, _ = call(client, "sample", DRAW)
            assert len(list_texts(images)) == 4
            with zipfile.ZipFile(archive) as file:
                assert len(file.namelist()) == 4
        (kept, *_) = (tmp_path / "cache").rglob("*.zip")
        assert kept.name == f"{NAME}-D128-seed5.zip"
        response = get(f"{address}/gradio_api/file={kept}")
        assert response.status_code == 200
        assert response.content == kept.read_bytes()
        with pytest.raises(AppError, match="The number of steps must be a whole number from 1 to 100"):
            call(client, "sample", {**DRAW, "steps": 0})
    workers = [
        process for process in psutil.process_iter(["cmdline"]) if program in (process.info["cmdline"] or [])
    ]
    _, left = psutil.wait_procs(workers, timeout=BACKSTOP)
    assert not left


def test_the_space_leaves_no_pictures_behind(tmp_path):
    """Also if a page is open when it ends."""
    program = "import runpy\nfrom gradio.utils import get_upload_folder\n"
    program += "runpy.run_path('app.py')\nprint(get_upload_folder())"
    env = {name: value for name, value in os.environ.items() if name != "GRADIO_TEMP_DIR"}
    env |= {"TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=SPACE, env=env, capture_output=True, text=True, check=True
    )
    folder = Path(result.stdout.strip())
    assert folder.parent == tmp_path
    assert not folder.exists()


# Pushed


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    """A Hub with the pushed Space and another model, the Space's files on it, and an environment."""
    with serve_hub() as server:
        env = make_hub_environment(server, tmp_path_factory.mktemp("cache"))
        command = ["-m", "pipeline_pfgmpp", "push", "space", "org/dial", "--repo-type", "space"]
        subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            env={**env, "HF_TOKEN": WRITER},
            check=True,
            capture_output=True,
        )
        server.add(ROOT / "model_cards" / "pfgmpp-fashion-mnist", "org/clothes")
        yield server.files("org/dial", kind="spaces"), env


@pytest.fixture(scope="module")
def address_of_pushed(pushed, tmp_path_factory):
    """The pushed Space on a server that has only what its requirements.txt asks for, with more models."""
    files, env = pushed
    folder = tmp_path_factory.mktemp("pushed")
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "models.yaml").write_text(
        "- name: Nothing\n  model: org/nothing\n"
        "- name: Family\n  models:\n    64: org/clothes\n    .inf: org/clothes\n"
        + files["models.yaml"].decode()
    )
    packages = tmp_path_factory.mktemp("packages")
    link_requirements((folder / "requirements.txt").read_text().splitlines(), packages)
    env = {**env, "PYTHONPATH": str(packages)}
    with serve_space(packages / "log", env, folder, (sys.executable, "-S")) as address:
        yield address


def test_a_push_uploads_the_space(pushed):
    files, _ = pushed
    modules = [path.name for path in SPACE.glob("*.py")]
    for name in (*modules, "models.yaml", "README.md", "about.md", "requirements.txt", *PICTURES):
        assert files[name] == (SPACE / name).read_bytes()
    assert files["pipeline_pfgmpp/noise.py"] == (ROOT / "pipeline_pfgmpp" / "noise.py").read_bytes()
    assert not [name for name in files if name.endswith((".pyc", ".pkl", ".bin"))]


def test_a_pushed_space_needs_nothing_but_its_requirements(address_of_pushed):
    images, *_ = call(connect(address_of_pushed), "sample", {**DRAW, "count": 1, "steps": 1})
    assert list_texts(images) == ["T-shirt/top, seed 5"]


def test_a_model_that_cannot_be_loaded_is_named_and_the_rest_works(address_of_pushed):
    client = connect(address_of_pushed)
    with pytest.raises(AppError, match="Nothing cannot be loaded: the Hub answers 404"):
        call(client, "sample", {**DRAW, "model": "Nothing"})
    arguments = {**DRAW, "model": "Family", "fixed": "64", "count": 2, "steps": 1}
    images, _, _, code = call(client, "sample", arguments)
    assert len(list_texts(images)) == 2
    assert "from_pretrained('org/clothes')" in code
    with pytest.raises(AppError, match="D must be one of: 64, inf"):
        call(client, "sample", {**arguments, "fixed": "128"})


# Under attack


def visit_over_http(number):
    """Make a client with its own address, which needs no proxy: all of 127.0.0.0/8 is this machine."""
    transport = httpx.HTTPTransport(local_address=f"127.0.0.{number}")
    return httpx.Client(transport=transport, timeout=BACKSTOP)


@pytest.fixture(scope="module")
def events(address):
    """The number of each event of the page, by name."""
    config = get(f"{address}/config").json()
    return {event["api_name"]: event["id"] for event in config["dependencies"]}


def join(client, address, event, data, session, **more):
    body = {"fn_index": event, "data": data, "session_hash": session, **more}
    return client.post(f"{address}/gradio_api/queue/join", json=body)


@contextlib.contextmanager
def listen(client, address, session):
    """Yield the server's messages to a session, one after another."""
    route = f"{address}/gradio_api/queue/data"
    with client.stream("GET", route, params={"session_hash": session}) as response:
        yield (json.loads(line[5:]) for line in response.iter_lines() if line.startswith("data:"))


def wait_for_result(client, address, session):
    """Return the server's last message to a session with one job."""
    with listen(client, address, session) as messages:
        return next(message for message in list(messages) if message["msg"] == "process_completed")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "run/follow_sample"),
        ("POST", "run/sample"),
        ("POST", "run/predict"),
        ("POST", "api/follow_sample"),
        ("POST", "api/sample"),
        ("POST", "api/predict"),
        ("POST", "call/follow_sample"),
        ("POST", "call/draw_plane"),
        ("POST", "call/offer_model"),
        ("POST", "call/add_charge"),
        ("POST", "call/v2/follow_sample"),
        ("POST", "call/v2/draw_plane"),
        ("POST", "call/v2/offer_model"),
        ("POST", "call/v2/add_charge"),
        ("POST", "upload"),
        ("POST", "component_server"),
        ("POST", "process_recording"),
        ("POST", "stream/x"),
        ("POST", "vibe-edit"),
        ("POST", "mcp"),
        ("POST", "run-history/connect"),
        ("POST", "../login"),
        ("GET", "runs"),
        ("GET", "run-history/buckets"),
        ("GET", "deep_link?session_hash=x"),
        ("GET", "vibe-code"),
        ("GET", "dev/reload"),
        ("GET", "file=http://127.0.0.1/"),
        ("GET", "file=https://127.0.0.1/"),
        ("GET", "proxy=https://x.hf.space/"),
        ("GET", "../monitoring"),
        ("GET", "../monitoring/summary"),
        ("GET", "../openapi.json"),
        ("GET", "../pwa_icon"),
    ],
)
def test_routes_that_the_page_does_not_need_are_closed(address, method, path):
    body = {"data": list(DRAW.values()), "bucket_id": "me/bucket"} if method == "POST" else None
    response = httpx.request(method, f"{address}/gradio_api/{path}", json=body, timeout=BACKSTOP)
    assert response.status_code == 404


def test_the_size_of_a_request_is_limited(address):
    def yield_pieces():
        for _ in range(100):
            yield b" " * 1000

    for body in (b" " * 70_000, yield_pieces()):
        response = httpx.post(f"{address}/gradio_api/queue/join", content=body, timeout=BACKSTOP)
        assert response.status_code == 413
        assert response.json()["detail"] == "A request may hold at most 65,536 bytes."
    padded = json.dumps({"data": list(DRAW.values())}) + " " * 50_000
    kind = {"Content-Type": "application/json"}
    route = f"{address}/gradio_api/call/sample"
    assert httpx.post(route, content=padded, headers=kind, timeout=BACKSTOP).status_code == 200


def test_a_mistake_is_one_line_of_the_log_and_tells_no_path(address, events, log):
    """A mistake is refused at once, by the event in its turn, or by a route that expects something else."""
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
        ("place_shape", [["heart"], 3], {}),
        ("place_shape", ["heart", [3]], {}),
        ("follow_sample", [NAME, 7, None, "any", "three", 0], {}),
    ]
    no_mistake = ("show_frame", [None, 3], {})  # no sample has been followed, so there is nothing to show
    before = log.read_text()
    answers = []
    with visit_over_http(4) as client:
        for name, data, more in at_once:
            response = join(client, address, events.get(name, 999), data, "mistakes", **more)
            assert response.status_code in (400, 404)
            answers.append(response.text)
        for number, (name, data, more) in enumerate([*in_turn, no_mistake]):
            session = f"mistakes{number}"
            assert join(client, address, events[name], data, session, **more).status_code == 200
            answers.append(json.dumps(wait_for_result(client, address, session)))
        for method, path in (("GET", "?page=nowhere"), ("POST", "gradio_api/call/v2/sample")):
            answers.append(client.request(method, f"{address}/{path}", json={"nonsense": 1}).text)
    lines = log.read_text().removeprefix(before).splitlines()
    mistakes = [line for line in lines if line.strip() and "Loading" not in line]
    assert "Traceback" not in "".join(lines)
    assert len(mistakes) == len(answers) - 1, mistakes
    for text in (*answers, *mistakes):
        assert str(ROOT) not in text
        assert sys.prefix not in text


def test_no_visitor_keeps_the_others_out(address, events, client):
    """Of many large jobs from one address under many names, a few are taken; the others are served."""
    large = [*{**DRAW, "count": 64, "steps": 25}.values()]
    with visit_over_http(2) as hostile, visit_over_http(3) as other:
        one = [join(hostile, address, events["sample"], large, "one-session") for _ in range(6)]
        assert [response.status_code for response in one] == [200] * 5 + [429]
        assert (
            one[-1].json()["detail"]
            == "You already have 5 drawings waiting or running. Wait for one to finish, or cancel it."
        )
        kinds = {"sample": large, "follow_sample": [NAME, 7, None, "any", 9, 0]}
        many = [
            join(hostile, address, events[name], kinds[name], f"{name}{n}")
            for n in range(9)
            for name in kinds
        ]
        assert [response.status_code for response in many] == [200] + [429] * 17
        route = f"{address}/gradio_api/call/sample"
        headers = {"X-Forwarded-For": "203.0.113.7"}
        assert hostile.post(route, json={"data": large}, headers=headers).status_code == 429

        assert other.get(address).status_code == 200
        assert join(other, address, events["place_shape"], ["heart", 3], "other").status_code == 200
        assert wait_for_result(other, address, "other")["success"]
        # The hostile jobs do not start, because nobody listens for their results.
        images, *_ = call(client, "sample", {**DRAW, "count": 1, "steps": 1})
        assert list_texts(images) == ["T-shirt/top, seed 5"]


def test_events_of_the_page_are_limited_as_well(address, events):
    with visit_over_http(5) as hostile, visit_over_http(6) as other:
        flood = [join(hostile, address, events["place_shape"], ["heart", 3], "flood") for _ in range(30)]
        assert [response.status_code for response in flood] == [200] * 20 + [429] * 10
        assert join(other, address, events["place_shape"], ["heart", 3], "calm").status_code == 200
        assert wait_for_result(other, address, "calm")["success"]


# In a browser


@pytest.fixture(scope="module")
def browser():
    with launch_browser() as browser:
        yield browser


def find_dial(page):
    return page.get_by_label(f"range slider for {DIAL}").filter(visible=True)


def find_images(page):
    return page.locator(".gallery img")


def read_images(page):
    """Return the images that the page shows as arrays."""
    return [np.asarray(picture) for picture in read_embedded(page.locator(".gallery").inner_html())]


def read_code(page):
    return page.locator(".cm-content").inner_text()


@contextlib.contextmanager
def note_drawings(page, event, hold_first=False):
    """
    Yield a list of the drawings that the page asks the server for, and a function that lets the first one
    through if it is held.
    """
    asked = []
    held = []

    def note(route):
        body = route.request.post_data_json
        if body["fn_index"] == event:
            asked.append(body["data"])
            if hold_first and len(asked) == 1:
                held.append(route)
                return
        route.continue_()

    page.route("**/queue/join*", note)
    yield asked, lambda: held.pop().continue_()
    page.unroute("**/queue/join*")


def test_the_page_opens_with_pictures(browser, address, events):
    """They are drawn once for all visitors."""
    with visit(browser, address) as page:
        expect(page.get_by_text("16 images at D = 128: 2 of 2 network calls")).to_be_visible()
        expect(find_images(page)).to_have_count(16)
        shown = read_images(page)
        with note_drawings(page, events["sample"]) as (asked, _):
            page.reload()
            expect(find_images(page)).to_have_count(16)
            np.testing.assert_array_equal(read_images(page), shown)
            assert asked == []


def test_a_visit(browser, address, monkeypatch):
    with visit(browser, address) as page:
        # turn D to its right end with the keyboard, which draws
        dial = find_dial(page)
        value = page.locator(".dial-value").filter(visible=True)
        expect(value).to_have_text("D = 128")
        dial.press("ArrowRight")
        expect(value).to_have_text("D = 181")
        dial.press("End")
        expect(value).to_have_text("D = ∞, diffusion")
        set_number(page, "Images", 6)
        set_number(page, "Steps", 3)
        expect(page.get_by_text("6 images at D = ∞: 3 of 3 network calls")).to_be_visible()
        expect(find_images(page)).to_have_count(6)
        shown = read_images(page)
        code = read_code(page)
        assert 'D=float("inf")' in code
        for expected, image in zip(shown, run_code(code, monkeypatch), strict=True):
            assert_same_images(image, expected)
        with page.expect_download() as download:
            press(page, "Download all as zip")
        assert len(zipfile.ZipFile(download.value.path()).namelist()) == 6

        # draw the same seed on a new page
        page.reload()
        expect(page.get_by_text("5,251,332 parameters")).to_be_visible()
        expect(value).to_have_text("D = 128")
        set_number(page, "Images", 6)
        set_number(page, "Steps", 3)
        dial.press("End")
        expect(page.get_by_text("6 images at D = ∞: 3 of 3 network calls")).to_be_visible()
        np.testing.assert_array_equal(read_images(page), shown)


# Notes how many images the page shows, whenever it is painted.
COUNT_IMAGES = """() => {
    window.counts = [];
    const look = () => {
        const count = document.querySelectorAll('.gallery img').length;
        if (!window.counts.includes(count)) window.counts.push(count);
        requestAnimationFrame(look);
    };
    look();
}"""


def test_of_many_moves_of_the_dial_the_last_one_wins(browser, address, events):
    """While one drawing is under way, the moves that are overtaken are never sent."""
    with visit(browser, address) as page:
        expect(find_images(page)).to_have_count(16)
        page.evaluate(COUNT_IMAGES)
        dial = find_dial(page)
        with note_drawings(page, events["sample"], hold_first=True) as (asked, release):
            with page.expect_request("**/queue/join*"):
                dial.press("ArrowRight")
            for key in ["ArrowRight"] * 24 + ["ArrowLeft"] * 25:
                dial.press(key)
            expect(page.locator(".dial-value").filter(visible=True)).to_have_text("D = 90.5")
            release()
            expect(page.get_by_text("16 images at D = 90.5: 2 of 2 network calls")).to_be_visible()
            assert [data[1] for data in asked] == [7.5, 6.5]
        assert "D=90.5" in read_code(page)

        # the same while the server answers
        with note_drawings(page, events["sample"]) as (asked, _):
            for key in ["ArrowRight"] * 22 + ["ArrowLeft"] * 26:  # to where no move before the last has been
                dial.press(key)
            expect(page.get_by_text("16 images at D = 22.6: 2 of 2 network calls")).to_be_visible()
            assert asked[-1][1] == 4.5
            assert len(asked) <= 48
        assert "D=22.6" in read_code(page)
        expect(page.get_by_text("drawings waiting or running")).to_have_count(0)
        assert page.evaluate("window.counts") == [16]


def test_the_noise_the_class_and_the_seed_draw_as_well(browser, address):
    with visit(browser, address) as page:
        expect(find_images(page)).to_have_count(16)
        set_number(page, "Images", 2)
        set_number(page, "Injected noise α", 0.5)
        expect(page.get_by_text("2 images at D = 128 with noise α = 0.5: 2 of 2")).to_be_visible()
        assert "inject_noise" in read_code(page)
        choose(page, "Class", "Flags")
        expect(find_images(page).first).to_have_attribute("alt", "Flags, seed 0")
        press(page, "New seed")
        seed = page.get_by_label("Seed")
        expect(seed).not_to_have_value("0")
        expect(find_images(page).last).to_have_attribute("alt", f"Flags, seed {int(seed.input_value()) + 1}")


def drag_dial(page):
    """Drag the dial to its right end, without letting go of it."""
    box = find_dial(page).bounding_box()
    page.mouse.move(box["x"] + box["width"] / 5, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 1, box["y"] + box["height"] / 2, steps=5)


def test_a_fast_model_draws_while_the_mouse_moves_and_another_when_it_stops(browser, address, events):
    with visit(browser, address) as page:
        expect(find_images(page)).to_have_count(16)
        set_number(page, "Images", 1)
        drag_dial(page)
        expect(page.get_by_text("1 image at D = ∞: 2 of 2 network calls")).to_be_visible()
        page.mouse.up()

        choose(page, "Model", NAME)  # which draws at once
        expect(page.get_by_text("1 image at D = 128: 35 of 35 network calls")).to_be_visible()
        set_number(page, "Steps", 2)
        with note_drawings(page, events["sample"]) as (asked, _):
            drag_dial(page)
            expect(page.locator(".dial-value").filter(visible=True)).to_have_text("D = ∞, diffusion")
            assert asked == []
            page.mouse.up()
            expect(page.get_by_text("1 image at D = ∞: 3 of 3 network calls")).to_be_visible()
            assert len(asked) == 1


def test_a_tab_draws_again_when_the_settings_have_changed(browser, address, events):
    def is_comparison(request):
        return "/queue/join" in request.url and request.post_data_json["fn_index"] == events["compare"]

    with visit(browser, address) as page, note_drawings(page, events["compare"]) as (asked, _):
        expect(find_images(page)).to_have_count(16)
        set_number(page, "Images", 1)
        for seed, drawings in ((0, 1), (0, 1), (7, 2)):
            open_tab(page, "Sample")
            page.get_by_label("Seed").fill(str(seed))
            is_due = len(asked) < drawings
            with page.expect_request(is_comparison) if is_due else contextlib.nullcontext():
                panel = open_tab(page, "Compare D")
            expect(panel.get_by_text("D = ∞")).to_be_visible()
            expect(page.get_by_role("button", name="Compare", exact=True)).to_be_enabled()
            page.wait_for_function("() => !document.querySelector('.generating')")
            assert [data[-1] for data in asked] == [0, 7][:drawings]


def test_an_open_tab_draws_with_a_new_seed(browser, address, events):
    def is_new_comparison(request):
        if "/queue/join" not in request.url:
            return False
        body = request.post_data_json
        return body["fn_index"] == events["compare"] and body["data"][-1] == 7

    with visit(browser, address) as page:
        expect(find_images(page)).to_have_count(16)
        panel = open_tab(page, "Compare D")
        expect(panel.get_by_text("D = ∞")).to_be_visible()
        with page.expect_request(is_new_comparison):
            page.get_by_label("Seed").fill("7")


def test_a_cancelled_job_stops_in_the_browser(browser, address):
    """The next drawing is shown, and the result of the cancelled one never was."""
    with visit(browser, address) as page:
        expect(find_images(page)).to_have_count(16)
        set_number(page, "Steps", 50)  # too many to draw at once
        set_number(page, "Images", 64)
        press(page, "Draw")
        expect(page.get_by_text(re.compile(r"64 images at D = 128: \d+ of 50 network calls"))).to_be_visible()
        page.evaluate("""() => {
            window.shown = [];
            const keep = () => window.shown.push(document.body.innerText);
            const changes = {subtree: true, childList: true, characterData: true};
            new MutationObserver(keep).observe(document.body, changes);
        }""")
        with page.expect_response("**/cancel"):  # until then, Gradio ignores another click on Draw
            press(page, "Cancel")
        set_number(page, "Images", 1)
        set_number(page, "Steps", 5)
        press(page, "Draw")
        expect(page.get_by_text("1 image at D = 128: 5 of 5 network calls")).to_be_visible()
        shown = "".join(page.evaluate("window.shown"))
        assert "5 of 5 network calls" in shown
        assert "50 of 50 network calls" not in shown


def test_the_keyboard_is_enough(browser, address):
    """Tab, the arrows and Enter lead from the top of the page to a drawn picture."""
    with visit(browser, address) as page:
        set_number(page, "Steps", 5)  # too many to draw at once
        page.locator("body").click(position={"x": 5, "y": 5})
        focused = "document.activeElement.getAttribute('aria-label') ?? document.activeElement.innerText"
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate(focused).strip() == "Draw":
                break
        page.keyboard.press("Enter")
        expect(page.get_by_text("16 images at D = 128: 5 of 5 network calls")).to_be_visible()


def test_a_drawing_that_costs_too_much_is_refused_in_the_browser(browser, address):
    with visit(browser, address) as page:
        set_number(page, "Steps", 100)
        set_number(page, "Images", 64)
        press(page, "Draw")
        message = "64 images with 100 calls each would make 6,400. Ask for fewer images or steps."
        expect(page.get_by_text(message)).to_be_visible()


def wait_for_another(picture, source):
    """Wait until a picture has another source and is loaded: until then it takes no click."""
    expect(picture).not_to_have_attribute("src", source)
    picture.evaluate("image => image.decode()")
    return picture.get_attribute("src")


@pytest.mark.parametrize("width", [1280, 400])
def test_a_click_adds_a_charge(browser, address, width):
    with visit(browser, address, viewport={"width": width, "height": 900}) as page:
        panel = open_tab(page, "Follow a field line")
        expect(panel.get_by_text("100 charges, D = 8")).to_be_visible()
        picture = panel.locator("img").last
        source = picture.get_attribute("src")
        press(page, "Clear")
        expect(panel.get_by_text("0 charges, D = 8", exact=True)).to_be_visible()
        source = wait_for_another(picture, source)
        picture.click()  # in the middle
        expect(panel.get_by_text("1 charge,")).to_be_visible()
        body = page.request.get(wait_for_another(picture, source)).body()
        picture = np.asarray(PIL.Image.open(io.BytesIO(body)).convert("RGB")).astype(int)
        red = (picture[..., 0] - picture[..., 1] > 100).nonzero()
        assert [axis.mean() for axis in red] == pytest.approx([240, 240], abs=4)


def test_a_family_and_a_model_that_cannot_be_loaded_in_the_browser(browser, address_of_pushed):
    with visit(browser, address_of_pushed, "the Hub answers 404") as page:
        draw = page.get_by_role("button", name="Draw", exact=True)
        expect(draw).to_be_disabled()
        set_number(page, "Images", 1)
        choose(page, "Model", "Family")
        expect(draw).to_be_enabled()
        expect(page.get_by_text("1 image at D = 64: 35 of 35 network calls")).to_be_visible()
        expect(find_dial(page)).to_have_count(0)
        page.get_by_role("radio", name="∞").filter(visible=True).click()
        set_number(page, "Steps", 1)
        draw.click()
        expect(page.get_by_text("1 image at D = ∞: 1 of 1 network calls")).to_be_visible()
        panel = open_tab(page, "About")
        panel.get_by_role("button", name="Model card").click()
        expect(panel.get_by_role("heading", name="pfgmpp-fashion-mnist")).to_be_visible()
        samples = panel.get_by_role("img", name="Samples", exact=True)
        assert samples.evaluate("image => image.naturalWidth") > 100


LOOKS = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "narrow": {"color_scheme": "light", "viewport": {"width": 400, "height": 800}},
}
# The text that each tab shows at the end without being asked for anything.
TABS = {
    "Sample": "2 of 2 network calls",
    "Compare D": "D = ∞",
    "Robustness": "D = ∞, disturbed",
    "Follow a field line": "Left: the sample x.",
    "About": "The idea",
}


@pytest.mark.parametrize("look", LOOKS)
def test_every_tab_looks_as_it_should(look, browser, address):
    """Screenshots are kept in outputs/screenshots, to be looked at."""
    folder = ROOT / "outputs" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    with visit(browser, address, **LOOKS[look]) as page:
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        red, green, blue = (int(level) for level in re.findall(r"\d+", colour)[:3])
        assert (red + green + blue > 380) == (look != "dark")
        for number, (name, done) in enumerate(TABS.items()):
            panel = open_tab(page, name)
            expect(panel.get_by_text(done).last).to_be_visible()
            visible = "[...document.images].filter(image => image.offsetParent)"
            page.wait_for_function(f"() => {visible}.every(image => image.complete && image.naturalWidth)")
            file = f"{look}-{number}-{name.split()[0].lower()}.png"
            page.screenshot(path=folder / file, full_page=True, animations="disabled")
            assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
            texts = panel.locator("img").evaluate_all("images => images.map(image => image.alt)")
            assert texts
            assert all(texts), texts
