"""Published checkpoints, written here in their format, and hostile ones."""

import json
import os
import pickle
import re
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from checkpoint_writer import EasyDict, Persistent, network_object, write_checkpoint
from conftest import CODE
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    HeunDiscreteScheduler,
    UNet2DModel,
)
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from pipeline_pfgmpp import (
    DDPMUNet2DModel,
    PFGMPPPipeline,
    PFGMPPRestorationPipeline,
    PFGMPPScheduler,
    PFGMPPUNet2DModel,
    sample_noise,
)
from pipeline_pfgmpp.commands import main
from pipeline_pfgmpp.conversion import convert_checkpoint, convert_diffusers, inert_pickle
from pipeline_pfgmpp.conversion.architecture import read_architecture
from pipeline_pfgmpp.conversion.torch_files import load


GOLDEN = ["ddpmpp_uncond", "ncsnpp_uncond", "ncsnpp_cond", "adm_cond"]


pytestmark = pytest.mark.usefixtures("one_thread")


def get_state(tensors):
    """The weights among the tensors of a golden file."""
    return {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}


@pytest.fixture
def tensors_and_config(golden):
    """State dict and `_init_kwargs` of the small conditional NCSN++."""
    tensors, config = golden("ncsnpp_cond")
    return get_state(tensors), config


@pytest.fixture
def checkpoint(tensors_and_config, tmp_path):
    """Writes a checkpoint with other `_init_kwargs`, tensors or contents, and returns its path."""

    def write(suffix=".pkl", change=None, drop=(), contents=None, **options):
        state, config = tensors_and_config
        config = {name: value for name, value in config.items() if name not in drop}
        state = {**state, **(change or {})}
        state = {name: value for name, value in state.items() if value is not None}
        path = tmp_path / f"training-state-000200{suffix}"
        config.update(options.pop("config", {}))
        write_checkpoint(path, ema=network_object(state, config, **options), **(contents or {}))
        return path

    return write


# Files that users have


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize("suffix", [".pt", ".pkl"])
def test_published_networks_give_the_published_outputs(name, suffix, golden, tmp_path):
    tensors, config = golden(name)
    state = get_state(tensors)
    write_checkpoint(tmp_path / f"file{suffix}", ema=network_object(state, config))
    convert_checkpoint(tmp_path / f"file{suffix}", tmp_path / "converted")
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "converted")
    assert type(pipe) is PFGMPPPipeline
    assert config["D"] == pipe.scheduler.config.D
    assert pipe.scheduler.config.sigma_data == 0.5
    assert pipe.unet.config.dropout == config["dropout"]
    pipe.set_progress_bar_config(disable=True)
    labels = tensors["in.class_labels"].argmax(1) if "in.class_labels" in tensors else None
    latents = (tensors["in.latents_at_sigma_max"] / 80).float()
    samples = pipe(latents=latents, class_labels=labels, output_type="latent").images
    assert (samples - tensors["out.heun18"]).abs().max() < 1e-4
    if "in.augment_labels" in tensors:
        x, sigma = tensors["in.x"].float(), tensors["in.sigma"].float()
        output = pipe.unet(
            pipe.scheduler.precondition_inputs(x, sigma.view(-1, 1, 1, 1)),
            pipe.scheduler.precondition_noise(sigma),
            class_labels=tensors.get("in.class_labels"),
            augment_labels=tensors["in.augment_labels"],
        ).sample
        denoised = pipe.scheduler.precondition_outputs(x, output, sigma.view(-1, 1, 1, 1))
        assert (denoised - tensors["out.denoised_augmented"]).abs().max() < 1e-4


def test_the_sides_of_a_rectangular_network_are_read(tensors_and_config):
    """The width was taken for another height."""
    state, _ = tensors_and_config
    state = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    square = read_architecture(state)
    wide = {
        re.sub(r"\b(\d+)x(\d+)_", lambda size: f"{size[1]}x{3 * int(size[2])}_", name): tensor
        for name, tensor in state.items()
    }
    side = square["sample_size"]
    assert read_architecture(wide) == {**square, "sample_size": (side, 3 * side)}


def test_the_average_or_the_network_as_trained(tensors_and_config, tmp_path):
    state, config = tensors_and_config
    name = "model.map_layer0.bias"
    net = network_object({**state, name: state[name] + 1}, config)
    write_checkpoint(tmp_path / "file.pt", ema=network_object(state, config), net=net)
    for weights, offset in (("ema", 0), ("net", 1)):
        convert_checkpoint(tmp_path / "file.pt", tmp_path / weights, weights=weights)
        unet = PFGMPPUNet2DModel.from_pretrained(tmp_path / weights, subfolder="unet")
        torch.testing.assert_close(unet.map_layer0.bias.data, state[name] + offset)


def test_the_command_line_and_the_card(checkpoint, tmp_path, capsys):
    output = tmp_path / "pfgmpp-cifar"
    main(["convert", str(checkpoint(".pt")), str(output), "--dtype", "float16"])
    assert capsys.readouterr().out.strip().endswith(str(output))
    code = {name for name in CODE if "/" not in name}
    assert {path.name for path in output.iterdir()} == {
        "README.md",
        "model_index.json",
        "scheduler",
        "unet",
        *code,
    }
    weights = load_file(output / "unet" / "diffusion_pytorch_model.safetensors")
    assert {str(tensor.dtype) for name, tensor in weights.items() if "freqs" not in name} == {"torch.float16"}
    card = ModelCard.load(output / "README.md")
    assert card.data.license == "cc-by-nc-sa-4.0"
    assert card.data.library_name == "diffusers"
    for text in (
        "# pfgmpp-cifar",
        "training-state-000200.pt",
        "SHA-256",
        "CC BY-NC-SA 4.0",
        "@inproceedings",
        "D = 128",
    ):
        assert text in card.text
    assert str(tmp_path) not in card.content


@pytest.mark.parametrize(
    ("config", "drop", "given", "D"),
    [
        ({}, ["D"], None, None),  # EDM's files state neither
        ({}, ["D"], 64.0, 64),
        ({"pfgmpp": True}, [], None, 128),
        ({"pfgmpp": False}, [], None, None),
        ({"pfgmpp": True}, ["D"], 64.0, 64),
        ({"D": np.float64(2048)}, [], None, 2048),
        ({"D": float("inf")}, [], None, None),
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".pkl"])
def test_the_augmented_dimension(config, drop, given, D, suffix, checkpoint, tmp_path):
    convert_checkpoint(checkpoint(suffix, config=config, drop=drop), tmp_path / "out", D=given)
    assert json.loads((tmp_path / "out" / "scheduler" / "scheduler_config.json").read_text())["D"] == D


def test_nan_weights_are_converted_with_a_warning(checkpoint, tensors_and_config, tmp_path, caplog):
    bias = tensors_and_config[0]["model.map_layer0.bias"].clone()
    bias[0] = float("nan")
    convert_checkpoint(checkpoint(change={"model.map_layer0.bias": bias}), tmp_path / "out")
    assert "NaN or infinite weights in 1 tensors, the first map_layer0.bias" in caplog.text
    assert PFGMPPUNet2DModel.from_pretrained(tmp_path / "out", subfolder="unet").map_layer0.bias[0].isnan()


MEASURE = """
import sys
from diffusers import DiffusionPipeline
from pipeline_pfgmpp.conversion import convert_checkpoint

def memory(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))

before = memory("VmRSS:")
convert_checkpoint(sys.argv[1], sys.argv[2])
print(memory("VmHWM:") - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from /proc")
@pytest.mark.parametrize("suffix", [".pt", ".pkl"])
def test_a_full_size_file_takes_little_more_than_its_size(suffix, tmp_path):
    """At its peak, without what the imported libraries take, which depends on what is installed."""
    unet = PFGMPPUNet2DModel.from_preset("cifar10-ncsnpp", augment_dim=9)
    # Published weights have torch's default layout.
    state = {f"model.{name}": tensor.contiguous() for name, tensor in unet.state_dict().items()}
    path = tmp_path / f"file{suffix}"
    write_checkpoint(path, ema=network_object(state, {"D": 2048}))
    assert path.stat().st_size > 225e6
    command = [sys.executable, "-c", MEASURE, str(path), str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(result.stdout) < 1.5 * path.stat().st_size
    converted = PFGMPPUNet2DModel.from_pretrained(tmp_path / "out", subfolder="unet")
    assert all(torch.equal(value, unet.state_dict()[name]) for name, value in converted.state_dict().items())


# PPFM's files, of networks that restore images


@pytest.fixture
def ppfm(golden, tmp_path):
    """Writes PPFM's file of a golden network, with changes; returns its path and the golden tensors."""

    def write(name="ppfm_ddpmpp", suffix=".pt", change=None, **options):
        tensors, config = golden(name)
        state = {**get_state(tensors), **(change or {})}
        path = tmp_path / f"training-state-003000{suffix}"
        write_checkpoint(path, ema=network_object(state, {**config, **options}))
        return path, tensors

    return write


@pytest.mark.parametrize("name", ["ppfm_ddpmpp", "ppfm_adm"])
@pytest.mark.parametrize("suffix", [".pt", ".pkl"])
def test_ppfm_files_restore_as_published(name, suffix, ppfm, tmp_path):
    path, tensors = ppfm(name, suffix)
    convert_checkpoint(path, tmp_path / "out", value_range=(-1, 1))
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert type(pipe) is PFGMPPRestorationPipeline
    D = 64 if name == "ppfm_ddpmpp" else 128
    assert pipe.scheduler.config.D == D
    state = {key.removeprefix("model."): value for key, value in get_state(tensors).items()}
    assert state.keys() == pipe.unet.state_dict().keys()
    assert all(torch.equal(value, state[key]) for key, value in pipe.unet.state_dict().items())
    # The second last of the published levels, from the converted scheduler and its number of steps.
    pipe.scheduler.set_timesteps(pipe.scheduler.config.default_steps)
    start, end = pipe.scheduler.sigmas[-3:-1].tolist()
    assert [start, end] == pytest.approx(tensors["in.ppfm_levels"].tolist())
    restored = pipe(
        image=tensors["in.condition"],
        num_inference_steps=1,
        start_sigma=start,
        blend=0.7 * (1 - end / start),
        output_type="latent",
    ).images
    assert (restored - tensors["out.ppfm_one_call"]).abs().max() < 1e-4


@pytest.mark.parametrize("model_type", ["SongUNet", "DhariwalUNet"])
@pytest.mark.parametrize("encoder_type", ["standard", "residual"])
def test_networks_for_ct_of_seven_levels_are_read(model_type, encoder_type, tmp_path):
    """Named for patches of 256², as published, but narrower; they run on images of other sizes."""
    torch.manual_seed(0)
    unet = PFGMPPUNet2DModel.from_preset(
        "ppfm-ct", model_channels=8, num_blocks=2, model_type=model_type, encoder_type=encoder_type
    ).eval()
    state = {f"model.{name}": tensor for name, tensor in unet.state_dict().items()}
    config = {"D": float("inf"), "model_type": f"c{model_type}", "img_channels": 1, "dropout": 0.1}
    write_checkpoint(tmp_path / "file.pt", ema=network_object(state, config))
    convert_checkpoint(tmp_path / "file.pt", tmp_path / "out")
    pipe = PFGMPPRestorationPipeline.from_pretrained(tmp_path / "out")
    assert pipe.scheduler.config.D is None
    for name, value in unet.config.items():
        if not name.startswith("_"):
            read = pipe.unet.config[name]
            assert (tuple(read) if isinstance(value, tuple) else read) == value, name
    assert all(torch.equal(value, unet.state_dict()[name]) for name, value in pipe.unet.state_dict().items())
    restored = pipe(
        torch.rand(1, 1, 64, 100), num_inference_steps=1, start_sigma=0.1, output_type="pt"
    ).images
    assert restored.shape == (1, 1, 64, 100)


def test_an_ncsnpp_that_restores_is_read(tmp_path):
    """Its `aux` input holds the degraded image too, and it may have several channels."""
    torch.manual_seed(0)
    unet = PFGMPPUNet2DModel.from_preset(
        "cifar10-ncsnpp", model_channels=8, num_blocks=1, channel_mult=(1, 2), condition_channels=3
    )
    state = {f"model.{name}": tensor for name, tensor in unet.state_dict().items()}
    assert state["model.enc.16x16_aux_residual.weight"].shape[1] == 6
    config = {"D": 64, "model_type": "cSongUNet", "img_channels": 3}
    write_checkpoint(tmp_path / "file.pkl", ema=network_object(state, config))
    convert_checkpoint(tmp_path / "file.pkl", tmp_path / "out")
    converted = PFGMPPUNet2DModel.from_pretrained(tmp_path / "out", subfolder="unet")
    assert (converted.config.in_channels, converted.config.condition_channels) == (3, 3)
    assert all(torch.equal(value, unet.state_dict()[name]) for name, value in converted.state_dict().items())


def test_the_card_of_a_network_that_restores(ppfm, tmp_path):
    path, _ = ppfm()
    main(["convert", str(path), str(tmp_path / "ct"), "--value-range", "-1024", "3071"])
    assert json.loads((tmp_path / "ct" / "model_index.json").read_text())["value_range"] == [-1024, 3071]
    card = ModelCard.load(tmp_path / "ct" / "README.md")
    assert card.data.license == "cc-by-nc-sa-4.0"
    assert card.data.pipeline_tag == "image-to-image"
    for text in (
        "D = 64",
        "values in [-1024, 3071]",
        "CC BY-NC-SA 4.0",
        "SHA-256",
        "PPFM",
        "no medical device",
    ):
        assert text in card.text
    assert "pfgmpp sample" not in card.text
    # The lines that the card gives do run.
    lines = re.search(r"```python\n(hijack.*?)```", card.text, re.DOTALL)[1]
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "ct")
    names = {"pipe": pipe, "degraded": np.full((1, 16, 16, 1), 40, np.int16)}
    exec(lines, names)
    assert names["hijack"]["start_sigma"] == pytest.approx(0.07188271)
    assert len(names["restored"]) == 1

    convert_checkpoint(path, tmp_path / "unstated")
    assert "The file does not state those" in (tmp_path / "unstated" / "README.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"model_type": "SongUNet"},
            "its network is a SongUNet, whose first convolution has 2 inputs instead of 1",
        ),
        (
            {"change": {"model.enc.16x16_conv.weight": torch.zeros(16, 1, 3, 3)}},
            "its network is a cSongUNet, whose first convolution has 1 inputs instead of 2",
        ),
        (
            {"change": {"model.enc.16x16_conv.weight": torch.zeros(16, 3, 3, 3)}},
            "its network is a cSongUNet, whose first convolution has 3 inputs instead of 2",
        ),
        ({"change": {"model.enc.16x16_conv.weight": torch.zeros(16, 0, 3, 3)}}, "it has an empty tensor"),
    ],
)
def test_a_network_of_another_kind_than_stated_is_refused(options, message, ppfm, tmp_path):
    path, _ = ppfm(**options)
    assert message in get_refusal(path, tmp_path)


def test_a_network_that_sees_less_than_it_returns_is_refused(ppfm, tmp_path):
    change = {
        "model.dec.16x16_aux_conv.weight": torch.zeros(3, 16, 3, 3),
        "model.dec.16x16_aux_conv.bias": torch.zeros(3),
    }
    path, _ = ppfm(change=change)
    assert "its tensors are not those of" in get_refusal(path, tmp_path)


@pytest.mark.parametrize("value_range", [(1, 0), (0, 0), (0, float("nan")), (0,), 5, "01"])
def test_a_range_of_values_that_is_none_is_refused(value_range, ppfm, tmp_path):
    message = get_refusal(ppfm()[0], tmp_path, value_range=value_range)
    assert message.startswith("`value_range` must be (low, high) with low < high")


# Files that are incomplete, broken or hostile


def get_refusal(path, tmp_path, **options):
    """The one sentence with which a file is refused, after which nothing is left."""
    before = set(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as error:
        convert_checkpoint(path, tmp_path / "out", **options)
    assert set(tmp_path.iterdir()) == before
    return str(error.value)


def test_what_the_file_lacks_is_asked_for_by_name(checkpoint, tmp_path):
    assert "does not state `D`: give it (--D" in get_refusal(
        checkpoint(config={"pfgmpp": True}, drop=["D"]), tmp_path
    )
    path = checkpoint(sigma_data=None)
    assert "does not state `sigma_data`: give it (--sigma-data" in get_refusal(path, tmp_path)
    convert_checkpoint(path, tmp_path / "out", sigma_data=0.25)
    assert PFGMPPPipeline.from_pretrained(tmp_path / "out").scheduler.config.sigma_data == 0.25


def test_what_contradicts_the_file_is_refused(checkpoint, tmp_path):
    assert "`D` is given as 64, but" in get_refusal(checkpoint(), tmp_path, D=64)
    assert "holds no 'net' weights, only 'ema'" in get_refusal(checkpoint(), tmp_path, weights="net")


def test_an_existing_folder_is_not_touched(checkpoint, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists and is not empty"):
        convert_checkpoint(checkpoint(), tmp_path / "out")
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


def test_the_current_folder_is_not_replaced(checkpoint, tmp_path, monkeypatch):
    path = checkpoint()
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    with pytest.raises(ValueError, match="must not be the current folder"):
        convert_checkpoint(path, ".")


class Reduce:
    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("suffix", [".pt", ".pkl"])
@pytest.mark.parametrize(("function", "name"), [(os.system, "system"), (exec, "exec"), (getattr, "getattr")])
def test_a_file_that_calls_functions_is_refused(function, name, suffix, checkpoint, tmp_path):
    mark = tmp_path / "mark"
    call = Reduce(function, f"touch {mark}") if function is os.system else Reduce(function, "1")
    message = get_refusal(checkpoint(suffix, contents={"extra": call}), tmp_path)
    assert f".{name}, which no network needs; none of it was run" in message
    assert not mark.exists()


@pytest.mark.parametrize("suffix", [".pt", ".pkl"])
def test_the_source_inside_is_not_run(suffix, checkpoint, tmp_path):
    mark = tmp_path / "mark"
    path = checkpoint(suffix, module_src=f"open({str(mark)!r}, 'w').write('run')")
    convert_checkpoint(path, tmp_path / "out")
    assert not mark.exists()


@pytest.mark.parametrize("suffix", [".pt", ".pkl"])
@pytest.mark.parametrize("kept", [0, 1, 3, 100, 5_000, 0.5, 0.99])
def test_a_file_that_is_cut_off_is_refused(suffix, kept, checkpoint, tmp_path):
    path = checkpoint(suffix)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    assert "cannot be converted" in get_refusal(path, tmp_path)


def test_a_flipped_bit_in_a_zip_is_found(checkpoint, tensors_and_config, tmp_path):
    path = checkpoint(".pt")
    content = bytearray(path.read_bytes())
    weight = tensors_and_config[0]["model.map_layer1.weight"].numpy().tobytes()
    content[content.index(weight) + 17] ^= 1
    path.write_bytes(content)
    assert "cut off or damaged" in get_refusal(path, tmp_path)


FOREIGN = {
    "text": b"hello, I am a text",
    "picture": b"\x89PNG\r\n\x1a\n",
    "list": pickle.dumps([1, 2, 3]),
    "weights": pickle.dumps({"ema": {"a": 1}}),
    "protocol 0": pickle.dumps({"ema": 1}, protocol=0),
    "set of tuples": pickle.dumps({"ema": {(1, 2): 3}}),
    "no stop": pickle.dumps({"ema": 1})[:-1],
    "pops an empty stack": b"\x80\x04\x85.",
    "marks nothing": b"\x80\x04t.",
    "unknown memo": b"\x80\x04h\x07.",
    "persistent id": b"\x80\x04Q.",
    "calls a string": b"\x80\x04\x8c\x01a)R.",
    "builds a list": b"\x80\x04]Nb.",
    "claims terabytes": b"\x80\x04\x8e" + (2**42).to_bytes(8, "little") + b"x.",
    "huge memo": b"\x80\x04Nr\xff\xff\xff\x7f.",
    "extension": b"\x80\x04\x82\x01.",
    "nested lists": b"\x80\x04" + b"]" * 50_000 + b"a" * 49_999 + b".",
    "nested tuples for a key": b"\x80\x04}" + b"N" + b"\x85" * 50_000 + b"Ns.",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_files_of_another_kind_are_refused(name, tmp_path):
    path = tmp_path / "file.pkl"
    path.write_bytes(FOREIGN[name])
    assert "cannot be converted" in get_refusal(path, tmp_path)


def test_pickle_bombs_are_refused_in_time(tmp_path, monkeypatch):
    # Each tuple holds the one before twice, so that a hash or a walk would take 2 ** 60 steps.
    bomb = b")" + b"".join(b"\x94h" + bytes([i]) + b"\x86" for i in range(60))
    monkeypatch.setattr(inert_pickle, "MAX_OPCODES", 1000)
    path = tmp_path / "file.pkl"
    for content, message in (
        (b"}" + bomb + b"Ns.", "a tuple as a key"),
        (b"}\x8c\x03ema" + bomb + b"s.", "it holds no network"),
        (b"(" + b"N" * 1000 + b"t.", "more than 1,000 objects"),
    ):
        path.write_bytes(b"\x80\x04" + content)
        assert message in get_refusal(path, tmp_path)


def test_a_network_inside_itself_is_refused(tensors_and_config, tmp_path):
    state = {"_modules": {}}
    state["_modules"]["model"] = Persistent("Loop", state)
    write_checkpoint(tmp_path / "file.pkl", ema=Persistent("EDMPrecond", state))
    assert "nested too deeply" in get_refusal(tmp_path / "file.pkl", tmp_path)


def test_a_network_that_holds_one_module_many_times_is_refused_in_time(tmp_path):
    module = {"_modules": {}}
    for _ in range(30):
        child = Persistent("Twice", module)
        module = {"_modules": {"a": child, "b": child}}
    write_checkpoint(tmp_path / "file.pkl", ema=Persistent("EDMPrecond", {"_modules": {"model": child}}))
    assert "too many" in get_refusal(tmp_path / "file.pkl", tmp_path)


def test_compressed_archives_are_refused(checkpoint, tmp_path):
    path = checkpoint(".pt")
    with (
        zipfile.ZipFile(path) as source,
        zipfile.ZipFile(tmp_path / "small.pt", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert "compressed" in get_refusal(tmp_path / "small.pt", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model.map_layer1.weight": torch.zeros(64, 65)},
            "map_layer1.weight is of shape (64, 65) instead of (64, 64)",
        ),
        ({"model.map_layer1.bias": None}, "map_layer1.bias is missing"),
        ({"model.map_layer2.bias": torch.zeros(3)}, "map_layer2.bias does not belong"),
        ({"model.map_layer0.weight": None}, "its tensors are not those of"),
        ({"model.map_layer0.weight": torch.zeros(3)}, "its tensors are not those of"),
    ],
)
def test_wrong_tensors_are_named(change, message, checkpoint, tmp_path):
    assert message in get_refusal(checkpoint(change=change), tmp_path)


def test_a_tensor_larger_than_its_data_is_refused(tmp_path):
    small = torch.zeros(1)
    state = {"_parameters": {"weight": small.expand(10**12)}}
    write_checkpoint(tmp_path / "file.pt", ema=Persistent("EDMPrecond", state))
    assert "larger than its data" in get_refusal(tmp_path / "file.pt", tmp_path)


def test_other_preconditionings_are_refused(checkpoint, tmp_path):
    assert "its network is a VPPrecond" in get_refusal(checkpoint(class_name="VPPrecond"), tmp_path)


def test_the_command_line_refuses_in_one_line(tmp_path, capsys):
    (tmp_path / "file.pkl").write_bytes(b"hello")
    for path in (tmp_path / "file.pkl", tmp_path / "none.pkl"):
        with pytest.raises(SystemExit) as stop:
            main(["convert", str(path), str(tmp_path / "out")])
        assert stop.value.code == 1
        assert capsys.readouterr().err.startswith("pfgmpp: ")
    assert not (tmp_path / "out").exists()
    for options in (["--value-range", "1", "x"], ["--value-range", "1"], ["--value-range", "0", "inf"]):
        with pytest.raises(SystemExit) as stop:
            main(["convert", "file.pkl", str(tmp_path / "out"), *options])
        assert stop.value.code == 2
        assert "--value-range" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["convert", "--from-diffusers", "model", str(tmp_path / "out"), "--value-range", "0", "1"])
    assert "--value-range has no effect on a DDPM" in capsys.readouterr().err


def test_reading_imports_nothing(checkpoint):
    root = load(checkpoint(".pkl"))
    assert type(root) is dict
    assert not {"torch_utils", "dnnlib"} & set(sys.modules)
    assert EasyDict.__module__ == "dnnlib.util"  # the file did name it


# DDPMs of diffusers


@pytest.fixture
def ddpm(tmp_path):
    """A small DDPM of diffusers with weights that matter, saved as a pipeline folder."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()
    DDPMPipeline(unet, DDPMScheduler(clip_sample=False)).save_pretrained(tmp_path / "ddpm")
    return unet


def draw_start(D=None):
    return sample_noise((4, 3, 8, 8), D, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def sample_with_diffusers(unet, scheduler, noise):
    """Samples of diffusers' own solver in x = y + sigma * noise."""
    x = noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.step(unet(scheduler.scale_model_input(x, t), t).sample, t, x).prev_sample
    return x


def test_a_ddpm_samples_as_diffusers_samples_it(ddpm, tmp_path):
    main(["convert", "--from-diffusers", str(tmp_path / "ddpm"), str(tmp_path / "out")])
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "out")
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe.unet) is DDPMUNet2DModel
    assert pipe.scheduler.config.D is None
    ours = pipe(latents=draw_start(), num_inference_steps=20, output_type="latent").images

    karras = HeunDiscreteScheduler(beta_start=1e-4, beta_end=0.02, use_karras_sigmas=True)  # DDPMScheduler's
    karras.set_timesteps(20)
    theirs = sample_with_diffusers(
        ddpm, karras, draw_start() * (pipe.scheduler.init_noise_sigma / karras.init_noise_sigma)
    )
    assert theirs.std() > 0.1
    assert (ours - theirs).abs().max() < 1e-2


def test_a_ddpm_answers_as_ddim_asks_it(ddpm, tmp_path):
    """DDIM is Euler in sigma: on its own noise levels both agree, step by step."""
    convert_diffusers(tmp_path / "ddpm", tmp_path / "out")
    pipe = PFGMPPPipeline.from_pretrained(tmp_path / "out")
    ddim = DDIMScheduler.from_config(
        DDPMScheduler.load_config(tmp_path / "ddpm", subfolder="scheduler"), clip_sample=False
    )
    ddim.set_timesteps(20)
    alphas = ddim.alphas_cumprod[ddim.timesteps]
    sigmas = ((1 - alphas) / alphas).sqrt()
    euler = PFGMPPScheduler.from_config(pipe.scheduler.config, solver_type="euler")
    euler.set_timesteps(sigmas=sigmas)
    ours = draw_start() * sigmas[0]
    theirs = draw_start() * (1 - alphas[0]).sqrt()
    with torch.no_grad():
        for t, c_noise in zip(ddim.timesteps, euler.timesteps):
            ours = euler.step(
                pipe.unet(euler.scale_model_input(ours, c_noise), c_noise).sample, c_noise, ours
            ).prev_sample
            theirs = ddim.step(ddpm(theirs, t).sample, t, theirs).prev_sample
    # Ours ends at sigma = 0, DDIM at its scheduler's last alpha, which is 1.
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


def test_a_ddpm_keeps_its_weights_and_takes_another_d(ddpm, tmp_path):
    convert_diffusers(tmp_path / "ddpm", tmp_path / "out", dtype=torch.float16, D=128)
    pipe = PFGMPPPipeline.from_pretrained(tmp_path / "out", torch_dtype=torch.float16)
    assert pipe.scheduler.config.D == 128
    for name, value in pipe.unet.state_dict().items():
        assert torch.equal(value, ddpm.state_dict()[name].half())
    (weights,) = (tmp_path / "out" / "unet").glob("*.safetensors")
    assert {tensor.dtype for tensor in load_file(weights).values()} == {torch.float16}
    assert pipe(num_inference_steps=2, output_type="pt").images.isfinite().all()
    assert "CC BY-NC-SA" not in (tmp_path / "out" / "README.md").read_text()


def test_a_rectangular_ddpm_of_other_channels_is_converted(tmp_path, capsys):
    unet = UNet2DModel(
        (8, 16),
        2,
        2,
        block_out_channels=(8,),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    main(["convert", "--from-diffusers", str(tmp_path / "ddpm"), str(tmp_path / "out")])
    assert "at 8×16 (height × width) pixels of 2 channels" in (tmp_path / "out" / "README.md").read_text()
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert pipe(num_inference_steps=2, output_type="np").images.shape == (1, 8, 16, 2)


def test_what_is_no_ddpm_is_refused(ddpm, tmp_path):
    DDPMPipeline(ddpm, DDPMScheduler(prediction_type="v_prediction")).save_pretrained(tmp_path / "v")
    PFGMPPPipeline(PFGMPPUNet2DModel.from_preset("fashion-mnist-small"), PFGMPPScheduler()).save_pretrained(
        tmp_path / "own"
    )
    for name, message in (
        ("v", "predicts v_prediction"),
        ("own", "it is not a UNet2DModel with a DDPM schedule"),
    ):
        with pytest.raises(ValueError, match=message):
            convert_diffusers(tmp_path / name, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    with pytest.raises((OSError, ValueError), match="nowhere"):
        convert_diffusers(tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()
