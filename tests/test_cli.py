"""The command line, mostly run in this process."""

import json
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import ROOT, make_tiny_pipeline
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from tqdm.auto import tqdm

from pipeline_pfgmpp import PFGMPPPipeline, PFGMPPScheduler, commands
from pipeline_pfgmpp.commands.arguments import choose_class
from pipeline_pfgmpp.pictures.grid import draw_grid


@pytest.fixture
def model(tmp_path):
    """A tiny untrained class-conditional model on disk."""
    pipeline = make_tiny_pipeline(D=16, label_dim=3, d_conditioning=False)
    pipeline.register_to_config(id2label={0: "shoe", 1: "bag", 2: "shirt"})
    pipeline.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def make_network(size, channels):
    """Make a small network of diffusers."""
    return UNet2DModel(
        size,
        channels,
        channels,
        block_out_channels=(8,),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )


def read_picture(path):
    return np.asarray(PIL.Image.open(path))


def test_sample_draws_a_labelled_grid(model, tmp_path, capsys):
    output = tmp_path / "new" / "grid.png"
    draw = ["sample", str(model), "--output", str(output), "--columns", "4", "--num-inference-steps", "2"]
    commands.main(draw)
    assert str(output) in capsys.readouterr().out
    first = read_picture(output)
    assert first.shape[1] > 4 * 84
    assert first.shape[0] > 3 * 84
    assert [path.name for path in output.parent.iterdir()] == ["grid.png"]
    commands.main(draw)
    np.testing.assert_array_equal(read_picture(output), first)
    commands.main([*draw, "--seed", "9"])
    assert not np.array_equal(read_picture(output), first)


def test_commands_guide_within_an_interval(model, tmp_path):
    pipe = PFGMPPPipeline.from_pretrained(model)
    torch.manual_seed(0)
    for parameter in pipe.unet.parameters():  # a new network returns zeros
        torch.nn.init.normal_(parameter, std=0.1)
    pipe.save_pretrained(model)
    draw = ["sample", str(model), "--num-images", "3", "--num-inference-steps", "4", "--class-label", "bag"]
    draw += ["--guidance-scale", "50", "--output"]
    settings = {"num_inference_steps": 4, "class_labels": 1, "guidance_scale": 50.0, "output_type": "np"}
    images = []
    for interval in ([], ["--guidance-interval", "1,9"]):
        output = tmp_path / f"{len(interval)}.npz"
        commands.main([*draw, str(output), *interval])
        images.append(np.load(output)["images"] / 255)
        settings |= {"guidance_interval": (1, 9)} if interval else {}
        generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
        expected = pipe(3, generator=generators, **settings).images
        np.testing.assert_allclose(images[-1], expected, atol=1 / 255)
    assert np.abs(images[0] - images[1]).max() > 2 / 255


def test_sample_draws_one_row_per_dimension_and_one_panel_per_noise(tmp_path, capsys):
    make_tiny_pipeline(D=16).save_pretrained(tmp_path / "model")
    draw = ["sample", str(tmp_path / "model"), "--columns", "3", "--num-inference-steps", "2", "--output"]
    commands.main([*draw, str(tmp_path / "both.png"), "--D", "8,inf", "--noise", "0,0.3"])
    commands.main([*draw, str(tmp_path / "plain.png"), "--D", "8,inf"])
    both = read_picture(tmp_path / "both.png")
    plain = read_picture(tmp_path / "plain.png")
    assert both.shape == (2 * (plain.shape[0] + 31), plain.shape[1])
    np.testing.assert_array_equal(both[31 : 31 + len(plain)], plain)
    assert not np.array_equal(both[-len(plain) :], plain)
    with pytest.raises(SystemExit):
        commands.main([*draw, str(tmp_path / "folder"), "--num-images", "4", "--D", "8,inf"])
    assert "Many images are drawn at only one --D" in capsys.readouterr().err
    with pytest.raises(SystemExit):  # the class must not be ignored silently
        commands.main([*draw, str(tmp_path / "class.png"), "--class-label", "1"])
    assert not (tmp_path / "class.png").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere/at-all", "--output", "x.png"], "nowhere/at-all"),
        (["MODEL", "--output", "x.jpg"], "--output must end in .png"),
        (["MODEL", "--seeds", "3-", "--output", "many"], "`seeds` must be a list such as 0-49999"),
        (["MODEL", "--rows", "2"], "--rows has no effect on this model, whose classes are the rows"),
        (
            ["MODEL", "--guidance-interval", "1,2"],
            "--guidance-interval has no effect without --guidance-scale",
        ),
        (["MODEL", "--D", "8,16"], "--D is 8,16, but this network was trained at D = 16 only"),
        (["MODEL", "--variant", "fp16"], "has no variants of its weights, so leave out --variant fp16"),
        (["MODEL", "--class-label", "boot"], "must be one of 0 (shoe), 1 (bag), 2 (shirt), but is 'boot'."),
        (["MODEL", "--class-label", "3"], "must be one of 0 (shoe), 1 (bag), 2 (shirt), but is '3'."),
        (["MODEL", "--class-label", "-1"], "must be one of 0 (shoe), 1 (bag), 2 (shirt), but is '-1'."),
    ],
)
def test_bad_input_ends_in_a_message_and_leaves_nothing(args, message, model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        commands.main(["sample", *(str(model) if arg == "MODEL" else arg for arg in args)])
    assert stop.value.code == 1
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.filterwarnings("ignore:The Fréchet distance of")
def test_evaluate_writes_into_the_card(model, fashion_mnist, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (model / "README.md").write_text("# A model\n")
    few = ["--num-images", "20", "--num-inference-steps", "2"]
    commands.main(["evaluate", str(model), "--data", str(fashion_mnist), *few, "--write"])
    assert "| D = 16 |" in capsys.readouterr().out
    assert "| D = 16 |" in (model / "README.md").read_text()
    assert len(list(tmp_path.glob("outputs/samples/model-*/D-16/*.png"))) == 20
    (drawn,) = tmp_path.glob("outputs/samples/model-*")
    for arguments, message in (
        (["org/somewhere", "--write"], "--write needs a local model folder"),
        (
            [str(model), "--metrics", "fjd"],
            "There is no metric 'fjd'; choose from fid, kid, precision_recall, inception_score",
        ),
        ([str(model), "--num-images", "1"], "--num-images: must be a whole number from 2 to"),
        ([str(model), "--D", "8"], "--D is 8, but this network was trained at D = 16 only"),
        ([str(model), "--class-label", "boot"], "--class-label must be one of 0 (shoe), 1 (bag)"),
        (
            [str(model), "--num-inference-steps", "3", "--output", str(drawn)],
            "holds images drawn with other settings (num_inference_steps is 2 there and 3 here)",
        ),
    ):
        with pytest.raises(SystemExit):
            commands.main(["evaluate", "--data", str(fashion_mnist), *arguments])
        assert message in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:The Fréchet distance of")
def test_models_of_one_name_do_not_share_results(fashion_mnist, tmp_path, capsys, monkeypatch):
    """Two folders are called best, and then the first gets new weights: each model is measured itself."""
    monkeypatch.chdir(tmp_path)
    few = ["--data", str(fashion_mnist), "--num-images", "10", "--num-inference-steps", "1"]
    tables = []
    for name, weights in (("a", 0), ("b", 1), ("again", 0), ("a", 2)):
        folder = tmp_path / name / "best"
        make_tiny_pipeline(seed=weights, D=16).save_pretrained(folder)
        commands.main(["evaluate", str(folder), *few])
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[2]  # the same weights
    assert len(set(tables)) == 3
    assert len(list(tmp_path.glob("outputs/evaluation/best-*/evaluation.json"))) == 3


@pytest.mark.filterwarnings("ignore:The Fréchet distance of")
def test_verify_measures_the_card_again(model, fashion_mnist, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (model / "README.md").write_text("# A model\n")
    few = ["--num-images", "20", "--num-inference-steps", "2"]
    commands.main(["evaluate", str(model), "--data", str(fashion_mnist), *few, "--write"])
    for name in ("README.md", "evaluation.json"):
        assert str(fashion_mnist) not in (model / name).read_text()
    again = ["verify", str(model), "--data", str(fashion_mnist), "--num-images", "20"]
    commands.main(again)
    assert "All figures agree." in capsys.readouterr().out
    results = json.loads((model / "evaluation.json").read_text())
    results["results"][0]["fid"][0] *= 10
    (model / "evaluation.json").write_text(json.dumps(results))
    with pytest.raises(SystemExit):
        commands.main(again)
    assert "does not agree with its card at D = 16." in capsys.readouterr().err
    (model / "evaluation.json").write_text(json.dumps(results | {"data_digest": "0123456789abcdef"}))
    with pytest.raises(SystemExit):
        commands.main(again)
    assert "at D = 16, which was measured against other real images" in capsys.readouterr().err
    kid = [{"D": "16", "kid": [1.0]}]
    (model / "evaluation.json").write_text(json.dumps(results | {"results": kid}))
    with pytest.raises(SystemExit):
        commands.main(again)
    assert "holds no Fréchet distance, which could be verified." in capsys.readouterr().err
    results["settings"]["weights"] = "0123456789abcdef"
    (model / "evaluation.json").write_text(json.dumps(results))
    with pytest.raises(SystemExit):
        commands.main(again)
    assert "The figures of evaluation.json were measured with other weights" in capsys.readouterr().err
    for text, message in (
        ("[1]", "is not a report of `pfgmpp evaluate`: it must hold"),
        ("{", "cannot be read"),
        ('{"results": []}', "is not a report"),
        (json.dumps({**results, "features": 5}), "`features` is of the wrong type"),
        (json.dumps({**results, "settings": {}}), "`settings` does not name the scheduler"),
    ):
        (model / "evaluation.json").write_text(text)
        with pytest.raises(SystemExit):
            commands.main(again)
        assert message in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:The Fréchet distance of")
def test_a_folder_of_data_with_a_space_is_found_again(model, fashion_mnist, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (model / "README.md").write_text("# A model\n")
    (tmp_path / "my data").symlink_to(fashion_mnist)
    few = ["--num-images", "20", "--num-inference-steps", "2"]
    commands.main(["evaluate", str(model), "--data", "my data", *few, "--write"])
    commands.main(["verify", str(model), "--num-images", "20"])
    assert "All figures agree." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), 1, "There is not enough memory"),
        (KeyboardInterrupt(), 130, "Interrupted."),
    ],
)
def test_what_stops_a_command_is_said_in_a_sentence(error, code, message, capsys, monkeypatch):
    def fail(args):
        raise error

    monkeypatch.setattr(commands.COMMANDS["info"], "run", fail)
    with pytest.raises(SystemExit) as stop:
        commands.main(["info", "model"])
    assert stop.value.code == code
    assert f"pfgmpp: {message}" in capsys.readouterr().err


def test_errors_stand_on_a_line_of_their_own(capsys):
    with tqdm(total=2, desc="Sampling") as progress:
        progress.update()
        with pytest.raises(SystemExit):
            commands.main(["verify", "nowhere/at-all"])
    assert "\npfgmpp: " in capsys.readouterr().err.replace("\r", "\n")


def test_numbers_are_refused_in_plain_words(capsys):
    for text in ("16,many", "nan", "", "0", "-1", "16,,32", "inf,nan"):
        with pytest.raises(SystemExit) as stop:
            commands.main(["sample", "model", f"--D={text}"])
        assert stop.value.code == 2
        assert f"expected positive numbers separated by commas, such as 16,128,inf, but got '{text}'" in (
            capsys.readouterr().err
        )


NO_COUNT = ("0", "-1", "nan", "inf", "2.5", "", "many", "99999999999")
NO_NUMBER = ("-1", "nan", "inf", "", "many", "1e300")


@pytest.mark.parametrize(
    ("command", "option", "values"),
    [
        ("sample model", "--num-images", NO_COUNT),
        ("sample model", "--columns", NO_COUNT),
        ("sample model", "--rows", NO_COUNT),
        ("sample model", "--batch-size", NO_COUNT),
        ("sample model", "--num-inference-steps", NO_COUNT),
        ("sample model", "--seed", ("-1", "nan", "2.5", "", str(2**64))),
        ("sample model", "--D", ("0", *NO_NUMBER[:2], "16,16")),
        ("sample model", "--noise", (*NO_NUMBER, "0,0", "0,nan")),
        ("sample model", "--rho", ("0", *NO_NUMBER)),
        ("sample model", "--sigma-min", ("0", *NO_NUMBER[:-1])),
        ("sample model", "--guidance-scale", NO_NUMBER),
        ("sample model", "--guidance-interval", ("1", "1,2,3", "2,1", "-1,1", "nan,1", "0,inf", "many")),
        ("evaluate model --data x", "--num-images", ("1", *NO_COUNT)),
        ("evaluate model --data x", "--groups", NO_COUNT),
        ("evaluate model --data x", "--D", ("0", "nan", "")),
        ("robustness model --data x", "--num-images", ("1", *NO_COUNT)),
        ("robustness model --data x", "--groups", NO_COUNT),
        ("robustness model --data x", "--batch-size", NO_COUNT),
        ("robustness model --data x", "--D", ("0", "nan", "")),
        ("robustness model --data x", "--noise", ("-1", "nan", "inf", "many")),
        ("robustness model --data x", "--bits", ("0", "7.5", "64", "nan", "8,8")),
        ("robustness model --data x", "--nfe", ("0", "7.5", "inf", "nan")),
        ("verify model", "--num-images", ("7", *NO_COUNT)),
        ("verify model", "--batch-size", NO_COUNT),
        ("convert file folder", "--D", ("0", "-1", "nan", "")),
        ("convert file folder", "--sigma-data", ("0", *NO_NUMBER[:-1])),
        ("average run", "--width", ("0", "0.3", *NO_NUMBER)),
        ("average run --width 0.1", "--step", NO_COUNT[:-1]),
    ],
)
def test_a_number_out_of_range_is_refused_in_one_sentence(
    command, option, values, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for value in values:
        with pytest.raises(SystemExit) as stop:
            commands.main([*command.split(), f"{option}={value}"])
        assert stop.value.code == 2, value
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert f"argument {option}: " in error
        assert repr(value) in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        ["info", ""],
        ["sample", ""],
        ["sample", "model", "--output", ""],
        ["sample", "model", "--class-label", ""],
        ["evaluate", "model", "--data", ""],
        ["robustness", "model", "", "--data", "x"],
        ["push", "", "org/new"],
        ["convert", "file", ""],
    ],
)
def test_an_empty_text_is_not_taken_for_the_working_directory(arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        commands.main(arguments)
    assert stop.value.code == 2
    assert "must not be empty" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_model_that_is_named_twice_is_not_measured_once(model, capsys):
    with pytest.raises(SystemExit) as stop:
        commands.main(["robustness", str(model), str(model), "--data", "nowhere"])
    assert stop.value.code == 1
    assert "A model is named twice" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--noise=0.1", "--D=16", "--seed=1", "--columns=3", "--output=x.png"])
def test_an_option_that_is_given_twice_is_not_ignored_once(option, capsys):
    with pytest.raises(SystemExit) as stop:
        commands.main(["sample", "model", option, option])
    assert stop.value.code == 2
    assert "may be given only once" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "value"), [("--weights", "net"), ("--sigma-data", "0.5")])
def test_options_of_files_are_not_ignored_for_a_ddpm(option, value, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        commands.main(["convert", "--from-diffusers", "ddpm", str(tmp_path / "out"), option, value])
    assert stop.value.code == 1
    assert f"{option} has no effect on a DDPM of diffusers" in capsys.readouterr().err


def test_rows_are_not_ignored_where_they_are_dimensions(tmp_path, capsys):
    make_tiny_pipeline(D=16).save_pretrained(tmp_path / "model")
    with pytest.raises(SystemExit):
        commands.main(
            [
                "sample",
                str(tmp_path / "model"),
                "--D",
                "8,16",
                "--rows",
                "2",
                "--output",
                str(tmp_path / "x.png"),
            ]
        )
    assert "--rows has no effect with several --D, which are the rows" in capsys.readouterr().err


def draw(model, tmp_path, *arguments):
    """Draw two steps into an .npz file, and return its images."""
    output = tmp_path / "drawn.npz"
    output.unlink(missing_ok=True)
    few = ["--num-inference-steps", "2", "--output", str(output)]
    commands.main(["sample", str(model), "--num-images", "2", *few, *arguments])
    with np.load(output) as archive:
        return archive["images"]


@pytest.mark.parametrize("text", ["Ankle boot", "ankle boot", "1"])
def test_a_class_is_chosen_by_name_or_number(text, tmp_path):
    pipeline = make_tiny_pipeline(D=16, label_dim=3, d_conditioning=False)
    pipeline.register_to_config(id2label={"0": "shoe", "1": "Ankle boot", "2": "shirt"})
    pipeline.save_pretrained(tmp_path / "model")
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    images = pipeline(2, num_inference_steps=2, class_labels=1, generator=generators, output_type="np").images
    drawn = draw(tmp_path / "model", tmp_path, "--class-label", text)
    assert np.abs(drawn - images * 255).max() <= 1


def test_a_name_counts_before_a_number(tmp_path):
    pipeline = make_tiny_pipeline(D=16, label_dim=3, d_conditioning=False)
    pipeline.register_to_config(id2label={"0": "1", "1": "10", "2": "2"})  # as text is sorted
    assert [choose_class(pipeline, text) for text in ("1", "10", "2", "0")] == [0, 1, 2, 0]
    pipeline.register_to_config(id2label={"0": "Boot", "1": "boot", "2": "BOOT"})
    assert choose_class(pipeline, "boot") == 1
    with pytest.raises(ValueError, match=r"--class-label must be one of 0 \(Boot\), 1 \(boot\), 2 \(BOOT\)"):
        choose_class(pipeline, "bOOt")


def test_a_class_that_never_occurred_is_neither_drawn_nor_accepted(tmp_path, capsys):
    pipeline = make_tiny_pipeline(D=16, label_dim=3, d_conditioning=False)
    pipeline.register_to_config(id2label={"0": "shoe", "2": "shirt"})
    pipeline.save_pretrained(tmp_path / "model")
    sample = ["sample", str(tmp_path / "model"), "--output", str(tmp_path / "x.png")]
    with pytest.raises(SystemExit):
        commands.main([*sample, "--class-label", "1"])
    assert "--class-label must be one of 0 (shoe), 2 (shirt), but is '1'." in capsys.readouterr().err
    commands.main([*sample, "--columns", "2", "--num-inference-steps", "1"])
    assert "Drew 4 images" in capsys.readouterr().out


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_rectangular_images_of_any_number_of_channels_are_drawn(channels, tmp_path, capsys):
    unet = make_network((24, 40), channels)
    PFGMPPPipeline(unet, PFGMPPScheduler(D=16)).save_pretrained(tmp_path / "model")
    assert draw(tmp_path / "model", tmp_path).shape == (2, 24, 40, channels)
    grid = ["sample", str(tmp_path / "model"), "--columns", "3", "--rows", "2", "--num-inference-steps", "1"]
    grid += ["--output", str(tmp_path / "grid.png")]
    if channels == 2:
        for arguments, message in (
            (grid, "A grid shows images of 1, 3 or 4 channels, but"),
            (
                [*grid[:2], "--num-images", "2", "--output", str(tmp_path / "f")],
                "2 channels cannot be written as",
            ),
        ):
            with pytest.raises(SystemExit):
                commands.main(arguments)
            assert message in capsys.readouterr().err
        return
    commands.main(grid)
    assert PIL.Image.open(tmp_path / "grid.png").size == (4 + 3 * 84, 4 + 2 * 52)


@pytest.mark.parametrize("command", ["evaluate", "robustness"])
def test_features_of_other_sizes_are_refused_before_anything_is_drawn(command, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    PFGMPPPipeline(make_network(24, 3), PFGMPPScheduler(D=16)).save_pretrained(tmp_path / "model")
    with pytest.raises(SystemExit):
        commands.main([command, "model", "--data", "nowhere"])
    assert (
        "fashion-mnist compares images of shape (1, 28, 28) (channels, height, width), but these are of"
        " shape (3, 24, 24)" in (capsys.readouterr().err)
    )
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("command", ["sample", "evaluate", "robustness"])
def test_weights_that_are_not_finite_are_refused(command, value, model, tmp_path, capsys, monkeypatch):
    """A run that had diverged was drawn from without a word."""
    monkeypatch.chdir(tmp_path)
    pipeline = PFGMPPPipeline.from_pretrained(model)
    pipeline.unet.map_layer0.bias.data[3] = value
    pipeline.save_pretrained(model)
    data = [] if command == "sample" else ["--data", "nowhere"]
    with pytest.raises(SystemExit) as stop:
        commands.main([command, str(model), *data])
    assert stop.value.code == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "its weights must be finite, but `map_layer0.bias` of `unet` holds NaN or infinity" in error
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("damage", ["cut off", "another entry"])
def test_a_damaged_model_is_refused_in_one_sentence(damage, model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    config = model / "unet" / "config.json"
    if damage == "cut off":
        weights.write_bytes(weights.read_bytes()[:-100])
    else:
        config.write_text(json.dumps({**json.loads(config.read_text()), "channel_mult": 5}))
    with pytest.raises(SystemExit) as stop:
        commands.main(["sample", str(model)])
    assert stop.value.code == 1
    assert str(model) in capsys.readouterr().err.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_model_with_only_a_variant_says_how_to_use_it(model, tmp_path, capsys):
    expected = draw(model, tmp_path)
    PFGMPPPipeline.from_pretrained(model).save_pretrained(tmp_path / "only", variant="ema500")
    for command, *options in (["sample"], ["evaluate", "--data", "x"], ["robustness", "--data", "x"]):
        with pytest.raises(SystemExit) as stop:
            commands.main([command, str(tmp_path / "only"), *options])
        assert stop.value.code == 1
        assert "holds weights only as the variant ema500: add --variant ema500." in capsys.readouterr().err
    np.testing.assert_array_equal(draw(tmp_path / "only", tmp_path, "--variant", "ema500"), expected)
    with pytest.raises(SystemExit):
        draw(tmp_path / "only", tmp_path, "--variant", "fp16")
    assert "--variant must be ema500 for" in capsys.readouterr().err


def test_another_kind_of_pipeline_is_refused_by_name(tmp_path, capsys):
    unet = make_network(8, 1)
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path)
    with pytest.raises(SystemExit):
        commands.main(["sample", str(tmp_path)])
    assert "is a DDPMPipeline, but must be a PFGMPPPipeline." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plot", "RUN"], "holds no log of a training run: its log is empty"),
        (["plot", "nowhere"], "nowhere holds no log of a training run"),
        (["average", "RUN", "--width", "0.1"], "holds no snapshots of a power-function average"),
        (["data", "fashion-mnist", "RUN", "out"], "holds no train-images-idx3-ubyte"),
        (["field-lines", "out", "--shape", "square"], "--shape must be one of heart, spiral, moons, ring"),
    ],
)
def test_tools_refuse_what_they_cannot_use(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.jsonl").touch()
    with pytest.raises(SystemExit) as stop:
        commands.main(["run" if argument == "RUN" else argument for argument in arguments])
    assert stop.value.code == 1
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_model_that_is_nowhere_is_refused_in_a_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        commands.main(["sample", "nope", "--output", "grid.png"])
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert "pfgmpp: nope cannot be loaded: there is no such folder, and the Hub has no such model" in error
    assert "stacktrace" not in error


def test_help_loads_nothing_heavy():
    """Help must appear at once; what a command needs is loaded when it runs."""
    program = """
import sys
from pipeline_pfgmpp.commands import COMMANDS, main
for arguments in (["--help"], ["verify"], *([name, "--help"] for name in COMMANDS)):
    try:
        main(arguments)
    except SystemExit:
        pass
heavy = {"torch", "diffusers", "numpy", "huggingface_hub", "datasets"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, cwd=ROOT)


def test_the_package_runs_as_a_module():
    result = subprocess.run(
        [sys.executable, "-m", "pipeline_pfgmpp", "--help"], capture_output=True, text=True, cwd=ROOT
    )
    assert result.returncode == 0
    assert "sample" in result.stdout


def test_grid_places_images_in_rows():
    images = [PIL.Image.new("RGB", (10, 10), (20 * index, 0, 0)) for index in range(6)]
    grid = draw_grid(images, columns=3, cell=20, gap=2)
    assert grid.size == (2 + 3 * 22, 2 + 2 * 22)
    for index in range(6):
        row, column = divmod(index, 3)
        assert grid.getpixel((2 + column * 22 + 10, 2 + row * 22 + 10)) == (20 * index, 0, 0)
    labelled = draw_grid(images, columns=3, row_labels=["one", "a longer name"], cell=20, gap=2)
    assert labelled.width > grid.width
    margin = np.array(labelled)[:, : labelled.width - grid.width]
    assert margin.min() < 100  # something is written there
