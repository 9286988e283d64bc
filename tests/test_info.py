"""`pfgmpp info` answers broken and hostile repositories in one sentence, without control characters."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT
from diffusers import DDPMScheduler, UNet2DModel

from pipeline_pfgmpp import DDPMUNet2DModel, PFGMPPPipeline, PFGMPPScheduler
from pipeline_pfgmpp.commands import main
from pipeline_pfgmpp.hub import model_info
from pipeline_pfgmpp.hub.reading import MAX_BYTES, MAX_METADATA, escape_controls


BUNDLED = ROOT / "model_cards" / "pfgmpp-fashion-mnist"
INDEX = "model_index.json"
SCHEDULER = "scheduler/scheduler_config.json"
NETWORK = "unet/config.json"
CARD = "README.md"


@pytest.fixture
def folder(tmp_path):
    """The files that describe the bundled model, without its weights."""
    folder = tmp_path / "model"
    for name in (INDEX, SCHEDULER, NETWORK, CARD):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(BUNDLED / name, folder / name)
    return folder


def change(folder, name, **entries):
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**content, **entries}))


def show(folder, capsys):
    """Run the command; return its status and what it prints."""
    try:
        main(["info", str(folder)])
        status = 0
    except SystemExit as end:
        status = end.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err


# A small network of diffusers.
SMALL = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [8],
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"],
}
HUGE = f"at most {2**16} is accepted"
BROKEN_JSON = [
    (b"[]", "must hold a JSON object, but holds a list"),
    (b'"text"', "must hold a JSON object, but holds a str"),
    (b"", "is not valid JSON"),
    (b'{"a": ', "is not valid JSON"),
    (b'{"a": NaN}', "NaN is not a finite number"),
    (b'{"a": -Infinity}', "-Infinity is not a finite number"),
    (b'{"a": 1e999}', "1e999 is not a finite number"),
    (b'{"a": 1, "a": 2}', "a name appears twice in one object"),
    (b'{"a": %s}' % (b"9" * 5000), "a number has more than 18 digits"),
    (b'{"a": "\xff"}', "is not UTF-8 text"),
    (b"[" * 500_000, "is nested too deeply"),
    (b'{"a":' * 100_000, "is nested too deeply"),
    (b'{"a": "%s"}' % (b"x" * MAX_BYTES), f"is larger than {MAX_BYTES} bytes"),
]


@pytest.mark.parametrize("name", [INDEX, SCHEDULER, NETWORK])
@pytest.mark.parametrize(("content", "message"), BROKEN_JSON, ids=range(len(BROKEN_JSON)))
def test_broken_json_is_one_sentence(folder, capsys, name, content, message):
    (folder / name).write_bytes(content)
    status, out, err = show(folder, capsys)
    assert (status, out) == (1, "")
    assert err.startswith(f"pfgmpp: {folder} cannot be read as a PFGM++ pipeline: {name} ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "entries", "message"),
    [
        (INDEX, {"unet": "UNet2DModel"}, "must name the library and class of `unet`"),
        (INDEX, {"unet": ["a", 1]}, "must name the library and class of `unet`"),
        (
            INDEX,
            {"unet": ["a", "DiffusionPipeline"]},
            "the network must be one of PFGMPPUNet2DModel, DDPMUNet2DModel",
        ),
        (INDEX, {"unet": ["a", "__class__"]}, "the network must be one of"),
        (INDEX, {"../../etc": ["a", "b"]}, "which is not a valid folder name"),
        (INDEX, {"id2label": ["a"]}, "`id2label` in model_index.json must be dict or null, but is list"),
        (INDEX, {"id2label": {"0": ["a"]}}, "`id2label` in model_index.json must hold only text"),
        (SCHEDULER, {"D": "128"}, "`D` in scheduler/scheduler_config.json must be int or float, but is str"),
        (SCHEDULER, {"D": True}, "must be int or float, but is bool"),
        (SCHEDULER, {"D": -1}, "`D` in scheduler/scheduler_config.json must be positive, but is -1"),
        (
            SCHEDULER,
            {"D_range": 16},
            "`D_range` in scheduler/scheduler_config.json must be list or null, but is int",
        ),
        (SCHEDULER, {"D_range": [16]}, "must be a pair, but has 1 entries"),
        (SCHEDULER, {"D_range": ["16", None]}, "must be int or float, but is str"),
        (
            SCHEDULER,
            {"sigma_min": None},
            "`sigma_min` in scheduler/scheduler_config.json must be int or float, but is null",
        ),
        (SCHEDULER, {"sigma_data": []}, "must be int or float, but is list"),
        (NETWORK, {"d_conditioning": "yes"}, "`d_conditioning` in unet/config.json must be bool, but is str"),
        (
            INDEX,
            {"value_range": 255},
            "`value_range` in model_index.json must be list or dict or null, but is int",
        ),
        (INDEX, {"value_range": [0, "255"]}, "`value_range` in model_index.json must be two numbers"),
        (NETWORK, {"in_channels": None}, "no network can be built from unet/config.json"),
        (NETWORK, {"sample_size": "28"}, "no network can be built from unet/config.json"),
        (NETWORK, {"model_type": "Other"}, "`model_type` must be one of"),
        (
            NETWORK,
            {"channel_mult": 2},
            "`channel_mult` in unet/config.json must be list or tuple, but is int",
        ),
        (NETWORK, {"num_blocks": 1.5}, "`num_blocks` in unet/config.json must be int, but is float"),
        # sizes that would build for minutes, or take all memory
        (NETWORK, {"num_blocks": 100_000}, f"`num_blocks` in unet/config.json holds 100000; {HUGE}"),
        (NETWORK, {"num_blocks": 2000}, "declares 6000 blocks; at most 128 are accepted"),
        (NETWORK, {"channel_mult": [1] * 1000}, "`channel_mult` in unet/config.json holds 1000 entries"),
        (NETWORK, {"channel_mult": [1] * 64, "num_blocks": 3}, "declares 192 blocks"),
        (NETWORK, {"model_channels": 10**12}, f"holds 1e+12; {HUGE}"),
        (NETWORK, {"sample_size": -(2**40)}, f"holds -1.09951e+12; {HUGE}"),
        (NETWORK, {"label_dim": 10**9}, f"holds 1e+09; {HUGE}"),
        (NETWORK, {"attn_resolutions": [[[10**9]]]}, f"holds 1e+09; {HUGE}"),
        (
            NETWORK,
            {"attn_resolutions": [[[[[[1]]]]]]},
            "`attn_resolutions` in unet/config.json is nested more than 4 levels deep",
        ),
        (NETWORK, {"resample_filter": [1] * 100}, "holds 100 entries"),
    ],
)
def test_an_entry_of_the_wrong_kind_is_named(folder, capsys, name, entries, message):
    change(folder, name, **entries)
    status, out, err = show(folder, capsys)
    assert (status, out) == (1, "")
    assert message in err
    assert err.count("\n") == 1


def test_blocks_that_a_configuration_leaves_to_the_default_are_counted(folder):
    config = json.loads((folder / NETWORK).read_text())
    del config["channel_mult"]
    (folder / NETWORK).write_text(json.dumps({**config, "num_blocks": 60_000}))
    with pytest.raises(ValueError, match="declares 180000 blocks"):
        model_info(folder)


def test_a_folder_with_a_typo_is_not_looked_for_on_the_hub(folder, capsys):
    code, _, message = show(folder.with_name("modle"), capsys)
    assert code == 1
    assert f"There is no folder {folder.with_name('modle')}: did you mean {folder}?" in message
    with pytest.raises(SystemExit):
        main(["sample", str(folder.with_name("other"))])
    assert f"There is no folder {folder.with_name('other')}." in capsys.readouterr().err


def test_a_hub_that_cannot_be_reached_is_one_sentence(tmp_path):
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-m", "pipeline_pfgmpp", "info", "org/model"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 1
    assert "org/model cannot be read as a PFGM++ pipeline: " in result.stderr
    assert "Traceback" not in result.stderr


def test_a_scheduler_of_diffusers_has_infinite_d(folder):
    scheduler = {"_class_name": "EDMEulerScheduler", "sigma_data": 0.5, "sigma_min": 0.002, "sigma_max": 80.0}
    (folder / SCHEDULER).write_text(json.dumps(scheduler))
    change(folder, NETWORK, d_conditioning=False)
    assert model_info(folder)["D"] == "∞"


@pytest.mark.parametrize("missing", [INDEX, SCHEDULER, NETWORK])
def test_a_file_that_is_missing_is_named(folder, missing):
    (folder / missing).unlink()
    with pytest.raises(ValueError, match=f"cannot be read as a PFGM.. pipeline: {missing} is missing"):
        model_info(folder)
    (folder / missing).mkdir()
    with pytest.raises(ValueError, match=f"{missing} is missing"):
        model_info(folder)


# Each letter holds the one before it twice.
BOMB = "a: &a [x]\n"
BOMB += "".join(f"{y}: &{y} [*{x}, *{x}]\n" for x, y in zip("abcdefgh", "bcdefghi"))
BOMB += "datasets: *i"


@pytest.mark.parametrize(
    ("front_matter", "message"),
    [
        ("license: [", "the YAML of README.md is malformed in line"),
        ("license: mit\n\tdatasets: x", "the YAML of README.md is malformed in line 2"),
        ("- a", "the YAML of README.md must hold a mapping"),
        ("license: {a: b}", "`license` in README.md must be str or list, but is dict"),
        ("datasets: [[a]]", "`datasets` in README.md must hold only text"),
        ("[" * 5000, "the YAML of README.md is nested too deeply"),
        ("a: " + "b" * MAX_METADATA, f"the YAML of README.md is longer than {MAX_METADATA} characters"),
        ('license: "\x1b[31m"', "the YAML of README.md is malformed"),
        (BOMB, "`datasets` in README.md must hold only text"),
    ],
)  # fmt: skip
def test_a_card_that_is_broken_is_one_sentence(folder, capsys, front_matter, message):
    (folder / CARD).write_text(f"---\n{front_matter}\n---\n# A card\n")
    status, out, err = show(folder, capsys)
    assert (status, out) == (1, "")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        ("# Card", "not stated"),
        ("---\nlicense: null\n---\n", "not stated"),
        ("---\nlicense: 0.10\n---", "0.10"),
    ],
)
def test_what_a_card_does_not_state(folder, text, stated):
    (folder / CARD).write_text(text)
    assert model_info(folder)["licence"] == stated
    (folder / CARD).unlink()
    assert model_info(folder)["trained on"] == "not stated"


EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202eevil\u2066\r\nroot\x00\ud800"


def test_control_characters_are_escaped():
    assert escape_controls(EVIL) == r"\x1b]0;owned\x07\x1b[2J\x9b31m\u202eevil\u2066\r\nroot\x00\ud800"
    assert escape_controls("D = ∞, 28×28, Ankle boot, 靴 🥾") == "D = ∞, 28×28, Ankle boot, 靴 🥾"


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        (INDEX, {"id2label": {"0": EVIL}}),
        (INDEX, {"unet": ["a", EVIL]}),
        (INDEX, {EVIL: ["a", "b"]}),
        (SCHEDULER, {"D": EVIL}),
        (NETWORK, {"model_type": EVIL}),
        (NETWORK, {"embedding_type": EVIL}),
        (NETWORK, {EVIL: EVIL}),
    ],
)
def test_no_control_character_reaches_the_terminal(folder, capsys, name, entries):
    change(folder, name, **entries)
    _, out, err = show(folder, capsys)
    assert all(character.isprintable() or character == "\n" for character in out + err)
    assert err.count("\n") <= 1
    assert out.count("\n") in (0, 7)


def test_a_licence_and_a_data_set_reach_the_terminal_as_text(folder, capsys):
    (folder / CARD).write_text('---\nlicense: "\\e[31mmit\\n"\ndatasets: ["\\e]0;x\\a", b]\n---\n')
    status, out, _ = show(folder, capsys)
    assert status == 0
    assert re.search(r"^licence +\\x1b\[31mmit\\n$", out, re.MULTILINE)
    assert re.search(r"^trained on +\\x1b\]0;x\\x07, b$", out, re.MULTILINE)


def test_an_error_of_any_command_reaches_the_terminal_as_text(capsys):
    with pytest.raises(SystemExit):
        main(["push", "no\x1b[31mfolder", "org/new"])
    assert r"no\x1b[31mfolder is not a pipeline folder" in capsys.readouterr().err


def test_names_are_cut(folder):
    change(folder, INDEX, id2label={str(label): f"{label} {'x' * 1000}" for label in range(1000)})
    classes = model_info(folder)["classes"]
    assert classes.endswith("and 900 more")
    assert len(classes) < 100 * 103


def test_the_range_of_d(folder):
    assert model_info(folder)["D"] == "16 to ∞ (default: 2048)"
    change(folder, SCHEDULER, D_range=[1, 128.5], D=None)
    assert model_info(folder)["D"] == "1 to 128.5 (default: ∞)"
    change(folder, SCHEDULER, D_range=None, D=64)
    assert model_info(folder)["D"] == "any (default: 64, trained range not stated)"
    change(folder, NETWORK, d_conditioning=False)
    assert model_info(folder)["D"] == "64"


@pytest.mark.parametrize(
    ("size", "channels", "value_range", "expected"),
    [
        ([24, 40], 1, None, "24×40 (height × width), grey"),
        ([24, 24], 3, [0, 65535], "24×24, RGB, values 0 to 65535"),
        (24, 2, [-0.5, 1.25], "24×24, 2 channels, values -0.5 to 1.25"),
    ],
)
def test_size_channels_and_values_are_described(tmp_path, size, channels, value_range, expected):
    unet = UNet2DModel(**{**SMALL, "sample_size": size, "in_channels": channels, "out_channels": channels})
    PFGMPPPipeline(unet, PFGMPPScheduler(D=16)).save_pretrained(tmp_path)
    change(tmp_path, INDEX, value_range=value_range)
    assert model_info(tmp_path)["images"] == expected


def test_variants_are_listed_and_a_folder_of_variants_alone_says_how_to_load_it(folder):
    assert "variants" not in model_info(folder)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").touch()
    assert "variants" not in model_info(folder)
    for name in ("fp16.safetensors", "ema500.safetensors", "ema500-00001-of-00002.safetensors"):
        (folder / "unet" / f"diffusion_pytorch_model.{name}").touch()
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.parts.json").touch()
    assert model_info(folder)["variants"] == "ema500, fp16, parts"
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    assert model_info(folder)["variants"] == (
        "ema500, fp16, parts (load one of them, for instance with --variant ema500)"
    )


def test_the_networks_of_diffusers_are_described(tmp_path):
    schedule = dict(DDPMScheduler().config)
    for unet in (UNet2DModel(**SMALL), DDPMUNet2DModel(schedule, 0.5, **SMALL)):
        PFGMPPPipeline(unet, PFGMPPScheduler(D=16)).save_pretrained(tmp_path)
        info = model_info(tmp_path)
        assert info["network"] == f"{type(unet).__name__}, {unet.num_parameters():,} parameters"
        assert info["images"] == "8×8, 4 channels"
    change(tmp_path, NETWORK, ddpm_schedule={"num_train_timesteps": 10**15})  # is not built
    assert model_info(tmp_path) == info
    change(tmp_path, NETWORK, layers_per_block=200)
    with pytest.raises(ValueError, match="declares 200 blocks"):
        model_info(tmp_path)


def test_something_that_is_not_a_model_is_refused_in_one_sentence(tmp_path):
    for name in (tmp_path, "no/such/model", "a\0b", "x" * 5000):
        with pytest.raises(ValueError, match="cannot be read as a PFGM.. pipeline") as error:
            model_info(name)
        assert "\n" not in str(error.value)


def test_another_preconditioning_is_stated(folder, capsys):
    change(folder, SCHEDULER, preconditioning="t-edm")
    assert re.search(r"^preconditioning +t-edm$", show(folder, capsys)[1], re.MULTILINE)
