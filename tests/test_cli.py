"""The command line, run as a user runs it."""

import json
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import ROOT
from tqdm.auto import tqdm

from pipeline_pfgmpp import PFGMPPPipeline, PFGMPPScheduler, PFGMPPUNet2DModel, commands
from pipeline_pfgmpp.pictures.grid import draw_grid


@pytest.fixture
def model(tmp_path):
    """A tiny untrained class-conditional model on disk."""
    unet = PFGMPPUNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        model_channels=16,
        channel_mult=(1,),
        num_blocks=1,
        label_dim=3,
    )
    pipe = PFGMPPPipeline(unet, PFGMPPScheduler(D=16), id2label={0: "shoe", 1: "bag", 2: "shirt"})
    pipe.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_sample_draws_a_labelled_grid(model, tmp_path, capsys):
    output = tmp_path / "new" / "grid.png"
    commands.main(
        ["sample", str(model), "--output", str(output), "--columns", "4", "--num-inference-steps", "2"]
    )
    assert str(output) in capsys.readouterr().out
    picture = PIL.Image.open(output)
    assert picture.width > 4 * 84
    assert picture.height > 3 * 84
    assert [path.name for path in output.parent.iterdir()] == ["grid.png"]
    first = np.asarray(picture)
    commands.main(
        ["sample", str(model), "--output", str(output), "--columns", "4", "--num-inference-steps", "2"]
    )
    np.testing.assert_array_equal(np.asarray(PIL.Image.open(output)), first)
    commands.main(
        [
            "sample",
            str(model),
            "--output",
            str(output),
            "--columns",
            "4",
            "--num-inference-steps",
            "2",
            "--seed",
            "9",
        ]
    )
    assert not np.array_equal(np.asarray(PIL.Image.open(output)), first)


def test_sample_draws_a_row_a_dimension_and_a_panel_a_noise(tmp_path):
    unet = PFGMPPUNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        model_channels=16,
        channel_mult=(1,),
        num_blocks=1,
        d_conditioning=True,
    )
    PFGMPPPipeline(unet, PFGMPPScheduler(D=16)).save_pretrained(tmp_path / "model")
    draw = ["sample", str(tmp_path / "model"), "--columns", "3", "--num-inference-steps", "2", "--output"]
    for name, arguments in (("both", ["--D", "8,inf", "--noise", "0,0.3"]), ("plain", ["--D", "8,inf"])):
        commands.main([*draw, str(tmp_path / f"{name}.png"), *arguments])
    both, plain = (np.asarray(PIL.Image.open(tmp_path / f"{name}.png")) for name in ("both", "plain"))
    assert both.shape == (2 * (plain.shape[0] + 31), plain.shape[1])
    np.testing.assert_array_equal(both[31 : 31 + len(plain)], plain)
    assert not np.array_equal(both[-len(plain) :], plain)
    with pytest.raises(SystemExit):
        commands.main([*draw, str(tmp_path / "folder"), "--num-images", "4", "--D", "8,inf"])
    with pytest.raises(SystemExit):  # a class is nothing to leave out in silence
        commands.main([*draw, str(tmp_path / "class.png"), "--class-label", "1"])
    assert not (tmp_path / "class.png").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere/at-all", "--output", "x.png"], "nowhere/at-all"),
        (["MODEL", "--output", "x.jpg"], "--output must end in .png"),
        (["MODEL", "--columns", "0"], "--columns and --rows must be positive"),
        (["MODEL", "--num-inference-steps", "0"], "`num_inference_steps` must be"),
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
    few = ["--num-images", "50", "--num-inference-steps", "2"]
    commands.main(["evaluate", str(model), "--data", str(fashion_mnist), *few, "--write"])
    assert "| D = 16 |" in capsys.readouterr().out
    assert "| D = 16 |" in (model / "README.md").read_text()
    assert len(list(tmp_path.glob("outputs/samples/model-*/D-16/*.png"))) == 50
    (drawn,) = tmp_path.glob("outputs/samples/model-*")
    for arguments, message in (
        (["org/somewhere", "--write"], "--write needs a local model folder"),
        (
            [str(model), "--metrics", "fjd"],
            "There is no metric 'fjd'; choose from fid, kid, precision_recall, inception_score",
        ),
        ([str(model), "--num-images", "1"], "--num-images must be at least 2"),
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
    """Two folders called best, and then new weights in the first: each is drawn and measured itself."""
    monkeypatch.chdir(tmp_path)
    folders = [tmp_path / name / "best" for name in ("a", "b", "again", "a")]
    few = ["--data", str(fashion_mnist), "--num-images", "20", "--num-inference-steps", "2"]
    tables = []
    for seed, folder in enumerate(folders):
        torch.manual_seed(0 if folder.parent.name == "again" else seed)
        unet = PFGMPPUNet2DModel(
            sample_size=28, in_channels=1, out_channels=1, model_channels=16, channel_mult=(1,), num_blocks=1
        )
        torch.nn.init.xavier_uniform_(unet.dec["28x28_aux_conv"].weight)
        PFGMPPPipeline(unet, PFGMPPScheduler(D=16)).save_pretrained(folder)
        commands.main(["evaluate", str(folder), *few])
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[2]  # the same weights
    assert len(set(tables)) == 3
    assert len(list(tmp_path.glob("outputs/evaluation/best-*/evaluation.json"))) == 3


@pytest.mark.filterwarnings("ignore:The Fréchet distance of")
def test_verify_measures_the_card_again(model, fashion_mnist, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (model / "README.md").write_text("# A model\n")
    few = ["--num-images", "60", "--num-inference-steps", "2"]
    commands.main(["evaluate", str(model), "--data", str(fashion_mnist), *few, "--write"])
    assert (
        str(fashion_mnist) not in (model / "README.md").read_text() + (model / "evaluation.json").read_text()
    )
    again = ["verify", str(model), "--data", str(fashion_mnist), "--num-images", "60"]
    commands.main(again)
    assert "All figures agree." in capsys.readouterr().out
    results = json.loads((model / "evaluation.json").read_text())
    results["results"][0]["fid"][0] *= 10
    (model / "evaluation.json").write_text(json.dumps(results))
    with pytest.raises(SystemExit):
        commands.main(again)
    assert "does not agree with its card at D = 16." in capsys.readouterr().err
    results["settings"]["weights"] = "0123456789abcdef"
    (model / "evaluation.json").write_text(json.dumps(results))
    with pytest.raises(SystemExit):
        commands.main(again)
    assert "The figures of evaluation.json were measured with other weights" in capsys.readouterr().err
    for text, message in (
        ("[1]", "is not a report of `pfgmpp evaluate`: it must hold"),
        ("{", "cannot be read"),
        ('{"results": []}', "is not a report"),
    ):
        (model / "evaluation.json").write_text(text)
        with pytest.raises(SystemExit):
            commands.main(again)
        assert message in capsys.readouterr().err


def test_errors_stand_on_a_line_of_their_own(capsys):
    with tqdm(total=2, desc="Sampling") as progress:
        progress.update()
        with pytest.raises(SystemExit):
            commands.main(["verify", "nowhere/at-all"])
    assert "\npfgmpp: " in capsys.readouterr().err.replace("\r", "\n")


def test_help_loads_nothing_heavy():
    """So it answers at once; what a command needs is loaded when it runs."""
    program = """
import sys
from pipeline_pfgmpp.commands import main
for arguments in (["--help"], ["evaluate", "--help"], ["verify"]):
    try:
        main(arguments)
    except SystemExit:
        pass
assert not {"torch", "diffusers", "numpy", "huggingface_hub", "datasets"} & set(sys.modules)
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
    assert (
        torch.from_numpy(np.array(labelled))[:, : labelled.width - grid.width].min() < 100
    )  # something is written there
