"""The command line, mostly run in this process."""

import json
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
from conftest import ROOT, make_tiny_pipeline
from tqdm.auto import tqdm

from pipeline_pfgmpp import commands
from pipeline_pfgmpp.pictures.grid import draw_grid


@pytest.fixture
def model(tmp_path):
    """A tiny untrained class-conditional model on disk."""
    pipeline = make_tiny_pipeline(D=16, label_dim=3, d_conditioning=False)
    pipeline.register_to_config(id2label={0: "shoe", 1: "bag", 2: "shirt"})
    pipeline.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


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
        (["MODEL", "--columns", "0"], "--columns and --rows must be positive"),
        (["MODEL", "--noise", ""], "--noise must hold one or more finite numbers"),
        (["MODEL", "--noise=-1"], "finite numbers that are not negative"),
        (["MODEL", "--seeds", "", "--output", "many"], "`seeds` must be a list such as 0-49999"),
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


def test_errors_stand_on_a_line_of_their_own(capsys):
    with tqdm(total=2, desc="Sampling") as progress:
        progress.update()
        with pytest.raises(SystemExit):
            commands.main(["verify", "nowhere/at-all"])
    assert "\npfgmpp: " in capsys.readouterr().err.replace("\r", "\n")


def test_numbers_are_refused_in_plain_words(capsys):
    for text in ("16,many", "nan"):
        with pytest.raises(SystemExit) as stop:
            commands.main(["sample", "model", "--D", text])
        assert stop.value.code == 2
        assert f"expected numbers separated by commas, such as 16,128,inf, but got '{text}'" in (
            capsys.readouterr().err
        )


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
