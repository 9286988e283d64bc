"""What people bring, from the command line of the trainer to samples and Fréchet distances."""

import csv
import json

import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from conftest import run_training
from datasets import Array3D, ClassLabel, Dataset, Features, Image
from diffusers import DiffusionPipeline

from pipeline_pfgmpp import EmpiricalDenoiser, PFGMPPPipeline, PFGMPPScheduler
from pipeline_pfgmpp.commands import main as run_command
from pipeline_pfgmpp.commands.loading import load_real_images
from pipeline_pfgmpp.data import load_images, open_dataset
from pipeline_pfgmpp.generation import list_classes


SHORT = [
    "--preset", "fashion-mnist-small", "--train_batch_size", "4", "--max_train_steps", "1",
    "--lr_warmup_steps", "0", "--sample_steps", "0", "--checkpointing_steps", "0",
]  # fmt: skip


def train(data, output, *options, size="8x12"):
    """Train for one step, and return what was printed and the pipeline."""
    result = run_training(
        *SHORT, "--resolution", size, "--train_data_dir", data, "--output_dir", output, *options
    )
    assert result.returncode == 0, result.stderr[-3000:]
    pipe = DiffusionPipeline.from_pretrained(output)
    pipe.set_progress_bar_config(disable=True)
    return result.stdout, pipe


def fail_to_train(data, output, *options, size="8x12"):
    """Return the sentence in which training ends."""
    result = run_training(
        *SHORT, "--resolution", size, "--train_data_dir", data, "--output_dir", output, *options
    )
    assert result.returncode
    assert "Traceback" not in result.stderr
    return result.stderr.strip().splitlines()[-1]


def draw(index, *shape):
    return np.random.default_rng(index).integers(0, 256, shape, np.uint8)


def write_pictures(folder, mode, count=6, size=(8, 12)):
    folder.mkdir(parents=True, exist_ok=True)
    channels = {"L": (), "LA": (2,), "RGB": (3,), "RGBA": (4,), "I;16": ()}[mode]
    for index in range(count):
        values = draw(index, *size, *channels)
        if mode == "I;16":
            values = values.astype(np.uint16) * 257
        PIL.Image.fromarray(values, None if mode == "I;16" else mode).save(folder / f"{index}.png")
    return folder


@pytest.mark.parametrize(("mode", "options", "channels", "value_range", "picture"), [
    ("I;16", [], 1, [0, 65535], "I;16"),
    ("LA", ["--channels", "2"], 2, None, None),
    ("RGBA", ["--channels", "4"], 4, None, "RGBA"),
    ("RGBA", ["--background", "black"], 3, None, "RGB"),
    ("RGB", ["--channels", "1"], 1, None, "L"),
    ("L", ["--value_range", "10", "250"], 1, [10, 250], None),
])  # fmt: skip
def test_pictures_of_every_kind_train_and_sample(tmp_path, mode, options, channels, value_range, picture):
    folder = write_pictures(tmp_path / "data", mode)
    output, pipe = train(folder, tmp_path / "out", *options)
    assert pipe.unet.config.in_channels == channels
    assert tuple(pipe.unet.config.sample_size) == (8, 12)
    assert pipe.config.value_range == value_range
    low, high = value_range or (0, 255)
    unit = "channel" if channels == 1 else "channels"
    told = f"Training on 6 images of 8x12 pixels, {channels} {unit}, values from {low} to {high}"
    assert told in output
    assert ("Transparent pictures are shown on a black background." in output) == ("black" in options)
    array = pipe(batch_size=2, num_inference_steps=2, output_type="np").images
    assert array.shape == (2, 8, 12, channels)
    assert array.max() <= (value_range or (0, 1))[1]
    if picture:
        assert pipe(num_inference_steps=2).images[0].mode == picture


@pytest.mark.parametrize("streaming", [False, True])
def test_arrays_of_many_channels_train_and_sample_in_their_own_range(tmp_path, streaming, capsys):
    (tmp_path / "data").mkdir()
    for index in range(6):
        values = np.random.default_rng(index).uniform(-1000, 3000, (13, 8, 12)).astype(np.float32)
        np.save(tmp_path / "data" / f"{index}.npy", values)
    options = ["--channels", "13", *(["--streaming"] if streaming else [])]
    output, pipe = train(tmp_path / "data", tmp_path / "out", *options)
    low, high = pipe.config.value_range
    assert -1000 <= low < -990
    assert 2990 < high <= 3000
    assert "8x12 pixels, 13 channels, values from -" in output
    tensor = pipe(batch_size=2, num_inference_steps=2, output_type="pt").images
    assert tensor.shape == (2, 13, 8, 12)
    assert low <= tensor.min() < 0 < tensor.max() <= high
    if streaming:
        return
    with pytest.raises(SystemExit):
        run_command(["evaluate", str(tmp_path / "out"), "--data", str(tmp_path / "data"), "--split", "train"])
    assert "these are of shape (13, 8, 12)" in capsys.readouterr().err
    message = fail_to_train(tmp_path / "data", tmp_path / "out2", "--channels", "13", "--fid_steps", "1")
    assert "`fid_features`: fashion-mnist compares images of shape (1, 28, 28)" in message
    assert "name their number with `channels`" in fail_to_train(tmp_path / "data", tmp_path / "out2")


def test_floats_from_0_to_255_are_not_taken_for_eight_bits(tmp_path):
    """Their results are in the units of the data, as those of other floats."""
    (tmp_path / "data").mkdir()
    for index in range(6):
        values = draw(index, 8, 12).astype(np.float32)
        values[0, :2] = (0, 255)
        np.save(tmp_path / "data" / f"{index}.npy", values)
    _, pipe = train(tmp_path / "data", tmp_path / "run")
    assert pipe.config.value_range == [0, 255]
    fields = pipe(2, num_inference_steps=1, output_type="np").images
    assert fields.max() > 1
    assert load_real_images(str(tmp_path / "data"), "train", pipe).max() == 255


@pytest.mark.parametrize("value_range", [(0, 255), (0, 65535)])
def test_floats_of_a_split_that_lacks_black_and_white_are_seen_in_the_range_of_the_model(
    tmp_path, value_range
):
    values = np.full((8, 8), value_range[1] / 2, np.float32)
    values[0, 0] = value_range[1] * 0.6
    np.save(tmp_path / "0.npy", values)
    model = PFGMPPPipeline(
        EmpiricalDenoiser(torch.zeros(2, 1, 8, 8)), PFGMPPScheduler(), value_range=value_range
    )
    assert load_real_images(str(tmp_path), "train", model).unique().tolist() == [128, 153]


def test_a_column_of_arrays_trains(tmp_path):
    values = [np.random.default_rng(index).normal(size=(2, 8, 12)) for index in range(4)]
    features = Features({"field": Array3D((2, 8, 12), "float32")})
    Dataset.from_dict({"field": values}, features=features).to_parquet(tmp_path / "train.parquet")
    output, pipe = train(tmp_path, tmp_path / "out")
    assert pipe.unet.config.in_channels == 2
    assert "4 images of 8x12 pixels, 2 channels" in output


def test_a_rectangle_resumes_from_its_arguments_and_fine_tunes(tmp_path):
    """`arguments.yaml` holds the size as a command line takes it."""
    folder = write_pictures(tmp_path / "data", "RGB")
    train(folder, tmp_path / "out", "--checkpointing_steps", "1")
    arguments = yaml.safe_load((tmp_path / "out" / "arguments.yaml").read_text())
    assert arguments["resolution"] == "8x12"
    result = run_training("--config", tmp_path / "out" / "arguments.yaml", "--max_train_steps", "2")
    assert result.returncode == 0, result.stderr[-3000:]
    common = ["--pretrained_model_name_or_path", tmp_path / "out", "--train_data_dir", folder]
    common += ["--output_dir", tmp_path / "tuned", "--max_train_steps", "1", "--sample_steps", "0"]
    for options, message in (
        (["--resolution", "12x8"], "--resolution is 12x8, but the network of"),
        (["--resolution", "8"], "--resolution is 8, but the network of"),
        (["--channels", "1"], "--channels is 1, but the network of"),
        (["--label_column", "x"], "--label_column x has no effect: the network of"),
    ):
        result = run_training(*common, *options)
        assert message in result.stderr
        assert result.returncode
    result = run_training(*common, "--resolution", "8x12", "--train_batch_size", "4")
    assert result.returncode == 0, result.stderr[-3000:]
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "tuned")
    assert tuple(pipe.unet.config.sample_size) == (8, 12)


@pytest.mark.parametrize(("options", "message"), [
    (["--resolution", "30"], "--resolution is 30, which --preset fashion-mnist-small cannot take"),
    (["--resolution", "8x30"], "--resolution is 8x30, which --preset fashion-mnist-small cannot take"),
    (["--resolution", "0"], "must be a positive number or HEIGHTxWIDTH"),
    (["--resolution", "8x8x8"], "must be a positive number or HEIGHTxWIDTH"),
    (["--resolution", "8.5"], "must be a positive number or HEIGHTxWIDTH"),
    (["--channels", "0"], "--channels must be at least 1, but is 0"),
    (["--channels", "5"], "a picture has 1 to 4 channels, but 5 are wanted"),
    (["--value_range", "1", "1"], "`value_range` must be (low, high) with low < high"),
    (["--value_range", "nan", "1"], "`value_range` must be (low, high) with low < high"),
    (["--background", "whitish"], "`background` must be a colour"),
    (["--image_column", "nothing"], "`image_column` is 'nothing', but the data set has the columns"),
    (["--split", "validation"], "cannot be opened"),
    (["--class_conditional"], "--class_conditional needs a class column"),
    (["--class_conditional", "--label_column", "name"], "`label_column` is 'name', but"),
])  # fmt: skip
def test_what_does_not_fit_the_data_ends_in_one_sentence(tmp_path, options, message):
    folder = write_pictures(tmp_path / "data", "RGB")
    assert message in fail_to_train(folder, tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_pictures_of_one_colour_are_refused(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for index in range(4):
        PIL.Image.new("L", (12, 8), 40).save(folder / f"{index}.png")
    for options in ([], ["--streaming"]):
        message = fail_to_train(folder, tmp_path / "out", *options)
        assert "All pixels have the value 40, so there is nothing to learn." in message


def write_metadata(folder, labels):
    """Pictures with a string label each, or with none, in a metadata.csv."""
    write_pictures(folder, "RGB", count=len(labels))
    with open(folder / "metadata.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file_name", "label"])
        rows.writerows([f"{index}.png", label] for index, label in enumerate(labels))
    return folder


def test_string_labels_become_classes_by_name(tmp_path):
    folder = write_metadata(tmp_path / "data", ["zebra", "ant", "zebra", "", "bee", "ant"])
    output, pipe = train(folder, tmp_path / "out", "--class_conditional")
    assert pipe.config.id2label == {"0": "ant", "1": "bee", "2": "zebra"}
    assert "Left out 1 of 6 rows, which have no class." in output
    assert "Training on 5 images of 8x12 pixels, 3 channels, values from 0 to 255, in 3 classes." in output
    assert len(pipe(num_inference_steps=2, class_labels="bee").images) == 1
    message = fail_to_train(folder, tmp_path / "strict", "--class_conditional", "--strict")
    assert "1 of 6 rows have no class" in message
    message = fail_to_train(folder, tmp_path / "stream", "--class_conditional", "--streaming")
    assert "must be a ClassLabel" in message


def test_labels_are_not_read_for_a_network_without_classes(tmp_path):
    """Neither missing labels nor two label columns are in its way."""
    folder = write_metadata(tmp_path / "data", ["zebra", "", "", "", "", "ant"])
    output, pipe = train(folder, tmp_path / "out", "--strict")
    assert "Training on 6 images" in output
    assert pipe.num_classes == 0
    features = Features({
        "image": Image(), "one": ClassLabel(names=["a", "b"]), "two": ClassLabel(names=["c"]),
    })  # fmt: skip
    rows = {"image": [draw(index, 8, 12, 3) for index in range(3)], "one": [0, 1, None], "two": [0, 0, 0]}
    (tmp_path / "two").mkdir()
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "two" / "train.parquet")
    train(tmp_path / "two", tmp_path / "out2")
    message = fail_to_train(tmp_path / "two", tmp_path / "out3", "--class_conditional")
    assert "several label columns, ['one', 'two']" in message


def test_a_class_that_never_occurs_in_training_is_not_offered(tmp_path):
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b", "c", "d"])})
    rows = {"image": [draw(index, 8, 12, 3) for index in range(4)], "label": [0, 2, 2, 0]}
    (tmp_path / "data").mkdir()
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "data" / "train.parquet")
    _, pipe = train(tmp_path / "data", tmp_path / "out", "--class_conditional", "--sample_steps", "1")
    assert pipe.num_classes == 4
    assert list_classes(pipe) == {0: "a", 2: "c"}
    with pytest.raises(ValueError, match="class_labels"):
        pipe(class_labels="b")
    # Fine-tuning on other data adds the classes that occur there.
    rows["label"] = [1, 1, 1, 2]
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "data" / "train.parquet")
    result = run_training(
        "--pretrained_model_name_or_path", tmp_path / "out", "--train_data_dir", tmp_path / "data",
        "--output_dir", tmp_path / "tuned", "--max_train_steps", "1", "--train_batch_size", "4",
        "--sample_steps", "0",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    tuned = DiffusionPipeline.from_pretrained(tmp_path / "tuned")
    assert list_classes(tuned) == {0: "a", 1: "b", 2: "c"}


def test_deep_pictures_are_evaluated_in_eight_bits_without_labels(tmp_path):
    """A 16-bit network is measured against 16-bit and 8-bit pictures alike."""
    deep = write_pictures(tmp_path / "deep", "I;16", 12, (28, 28))
    shallow = write_pictures(tmp_path / "shallow", "L", 12, (28, 28))
    train(deep, tmp_path / "out", "--fid_steps", "1", "--fid_images", "4", size="28")
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "out")
    images = [load_real_images(str(folder), "train", pipe) for folder in (deep, shallow)]
    assert images[0].dtype == torch.uint8
    assert torch.equal(*images)
    distance = json.loads((tmp_path / "out" / "best" / "distance.json").read_text())
    assert np.isfinite(distance["frechet_distance"])
    assert DiffusionPipeline.from_pretrained(tmp_path / "out" / "best").config.value_range == [0, 65535]
    run_command([
        "evaluate", str(tmp_path / "out"), "--data", str(shallow), "--split", "train", "--num-images", "4",
        "--num-inference-steps", "1", "--output", str(tmp_path / "evaluation"),
    ])  # fmt: skip
    assert json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())["results"]


@pytest.fixture
def float_model(tmp_path):
    """A model of float images whose values lie between -1000 and 3000."""
    images = torch.tensor([-1.0, 1.0])[:, None, None, None].expand(2, 1, 4, 4).contiguous()
    return PFGMPPPipeline(EmpiricalDenoiser(images), PFGMPPScheduler(D=64), value_range=(-1000, 3000))


def test_real_images_are_seen_in_the_range_of_the_model(tmp_path, float_model):
    """And not in the range of the split that they are in."""
    np.save(tmp_path / "0.npy", np.full((4, 4), 1000, np.float32))
    np.save(tmp_path / "1.npy", np.full((4, 4), 9000, np.float32))
    real = load_real_images(str(tmp_path), "train", float_model)
    assert real.flatten(1)[:, 0].tolist() == [128, 255]
    own = load_images(open_dataset(str(tmp_path)), 4)
    assert own.value_range == (1000, 9000)


def test_labels_do_not_stop_an_evaluation(tmp_path, float_model):
    features = Features({"image": Image(), "one": ClassLabel(names=["a"]), "two": ClassLabel(names=["b"])})
    rows = {"image": [draw(0, 4, 4), draw(1, 4, 4)], "one": [0, None], "two": [None, -1]}
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "test.parquet")
    assert len(load_real_images(str(tmp_path), "test", float_model)) == 2
