"""Data that are no pictures: fields of floats with any number of channels, in units of their own."""

import json

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import run_training
from datasets import Array3D, Dataset, Features
from diffusers import DiffusionPipeline

from pipeline_pfgmpp import EmpiricalDenoiser, PFGMPPPipeline, PFGMPPScheduler, PFGMPPUNet2DModel
from pipeline_pfgmpp.commands import main
from pipeline_pfgmpp.data import ImageDataset, convert_to_bytes, load_images, open_dataset
from pipeline_pfgmpp.generation import sample_to_files
from pipeline_pfgmpp.generation.generate import round_to_bytes
from pipeline_pfgmpp.images import Standardization
from pipeline_pfgmpp.training import Trainer, TrainingConfig, read_run


SCALE = {"mean": [280.0, -3.0], "deviation": [10.0, 0.5]}


def make_fields(count=12):
    """Two channels of other units, such as temperature and wind, with an extreme in the first field."""
    rng = np.random.default_rng(0)
    fields = rng.standard_normal((count, 2, 8, 8)).astype(np.float32)
    fields[0, 0, 0, 0] = 40.0
    return fields * np.float32([10, 0.5])[:, None, None] + np.float32([280, -3])[:, None, None]


@pytest.fixture
def folder(tmp_path):
    """A folder of `.npy` files, one field each, with the channels first."""
    (tmp_path / "fields").mkdir()
    for number, field in enumerate(make_fields()):
        np.save(tmp_path / "fields" / f"{number:02d}.npy", field)
    return tmp_path / "fields"


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def pipe():
    """The exact field of a few fields of two channels."""
    data = torch.from_numpy(make_fields())
    scale = Standardization(**{name: tuple(numbers) for name, numbers in SCALE.items()})
    scheduler = PFGMPPScheduler(D=5, sigma_data=1.0, preconditioning="t-edm")
    unet = EmpiricalDenoiser(scale.standardize(data), sigma_data=1.0, preconditioning="t-edm")
    pipe = PFGMPPPipeline(unet, scheduler, value_range=scale)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("source", ["npy", "Array3D"])
def test_a_network_sees_each_channel_standardised(source, folder, own_cache):
    fields = make_fields()
    if source == "npy":
        dataset = open_dataset(str(folder))
    else:
        features = Features({"field": Array3D((2, 8, 8), "float32")})
        dataset = Dataset.from_dict({"field": list(fields)}, features=features)
    data = load_images(dataset, 8, channels=2, standardize=True)
    seen = data.normalize(data.images).double()
    torch.testing.assert_close(seen.mean((0, 2, 3)), torch.zeros(2).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.square().mean((0, 2, 3)), torch.ones(2).double(), atol=1e-5, rtol=0)
    assert data.sigma_data() == pytest.approx(1, abs=1e-5)
    np.testing.assert_array_equal(data.images.numpy(), fields)  # nothing is clipped
    assert data.summarize() == "12 images of 8x8 pixels, 2 channels, standardised, without classes"
    assert data.digest() != load_images(dataset, 8, channels=2).digest()


def test_fields_leave_in_their_own_units_and_unclipped(pipe):
    generator = torch.Generator().manual_seed(0)
    fields = pipe(64, 30, generator=generator, output_type="np").images
    assert fields.shape == (64, 8, 8, 2)
    truth = make_fields().transpose(0, 2, 3, 1)
    distances = np.abs(fields[:, None] - truth[None]) / SCALE["deviation"]
    nearest = distances.max((2, 3, 4))
    assert nearest.min(1).max() < 0.05
    assert 0 in nearest.argmin(1)  # the one with the extreme, 40 standard deviations from the mean
    assert fields.max() > 600
    tensors = pipe(64, 30, generator=torch.Generator().manual_seed(0), output_type="pt").images
    np.testing.assert_array_equal(tensors.permute(0, 2, 3, 1).numpy(), fields)


def test_fields_enter_in_their_own_units(pipe):
    """Inverted and drawn again, they return, also as arrays with the channels last."""
    fields = torch.from_numpy(make_fields(4))
    latents = pipe.invert(fields, num_inference_steps=48)
    arrays = fields.permute(0, 2, 3, 1).numpy()
    torch.testing.assert_close(pipe.invert(arrays, num_inference_steps=48), latents)
    again = pipe(latents=latents, num_inference_steps=48, output_type="pt").images
    scale = torch.tensor(SCALE["deviation"]).view(-1, 1, 1)
    assert ((again - fields) / scale).abs().max() < 0.05
    assert pipe.log_likelihood(fields, num_inference_steps=4).log_likelihood.isfinite().all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda pipe: pipe(),
            "`output_type` must be one of .* for fields, which are no pictures, but is 'pil'",
        ),
        (
            lambda pipe: pipe.invert(PIL.Image.new("RGB", (8, 8))),
            "`images` must be an array or a tensor in the units of the data, but is a picture",
        ),
        (lambda pipe: pipe.invert(torch.full((1, 2, 8, 8), torch.nan)), "`images` must be finite"),
        (lambda pipe: pipe.invert(torch.zeros(1, 3, 8, 8)), r"must hold images of shape \(2, 8, 8\)"),
    ],
)
def test_pictures_are_refused(pipe, call, message):
    with pytest.raises(ValueError, match=message):
        call(pipe)


@pytest.mark.parametrize(
    "value_range",
    [
        {"mean": [0.0], "deviation": [1.0]},
        {"mean": [0.0, 0.0], "deviation": [1.0, 0.0]},
        {"mean": [0.0, "x"], "deviation": [1.0, 1.0]},
        {"mean": [0.0, 0.0]},
        {"mean": [0.0, 0.0], "deviation": [1.0, 1.0], "unit": "K"},
    ],
)
def test_what_standardises_nothing_is_refused(pipe, value_range):
    with pytest.raises(ValueError, match="`value_range` of fields must hold `mean` and `deviation`"):
        PFGMPPPipeline(pipe.unet, pipe.scheduler, value_range=value_range)


def test_a_channel_without_contrast_is_refused(own_cache):
    features = Features({"field": Array3D((2, 4, 4), "float32")})
    fields = np.random.default_rng(0).random((3, 2, 4, 4), np.float32)
    fields[:, 1] = 7
    dataset = Dataset.from_dict({"field": list(fields)}, features=features)
    with pytest.raises(ValueError, match="All pixels have the value 7"):
        load_images(dataset, 4, channels=2, standardize=True)
    with pytest.raises(ValueError, match="`standardize` and `value_range` exclude each other"):
        load_images(dataset, 4, channels=2, standardize=True, value_range=(0, 1))
    with pytest.raises(ValueError, match="cannot be pairs"):
        ImageDataset(torch.from_numpy(fields), value_range=Standardization((0.0,), (1.0,)), paired_channels=1)
    with pytest.raises(ValueError, match="`value_range` must be .* but is that of fields"):
        convert_to_bytes(torch.from_numpy(fields), Standardization((0.0, 0.0), (1.0, 1.0)))


def test_the_script_trains_on_them(folder, tmp_path, capsys, own_cache):
    options = [
        "--train_data_dir", folder, "--channels", 2, "--resolution", 8, "--preset", "fashion-mnist-small",
        "--augment", 0, "--max_train_steps", 1, "--train_batch_size", 32, "--sample_steps", 1, "--D", 5,
        "--preconditioning", "t-edm", "--output_dir", tmp_path / "run", "--checkpointing_steps", 0,
    ]  # fmt: skip
    result = run_training(*options, "--standardize")
    assert not result.returncode, result.stderr
    assert "Training on 12 images of 8x8 pixels, 2 channels, standardised, without classes." in result.stdout
    assert read_run(tmp_path / "run")["--standardize"] is True
    assert (tmp_path / "run" / "samples.png").is_file()
    index = json.loads((tmp_path / "run" / "model_index.json").read_text())
    assert index["value_range"]["mean"] == pytest.approx(make_fields().mean((0, 2, 3)), rel=1e-4)
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "run")
    assert pipe.scheduler.config.sigma_data == 1
    assert 'fields = pipe(batch_size=16, output_type="np"' in (tmp_path / "run" / "README.md").read_text()
    assert pipe(num_inference_steps=1, output_type="np").images.shape == (1, 8, 8, 2)
    assert PFGMPPPipeline(**pipe.components).makes_fields
    main(["info", str(tmp_path / "run")])
    assert "2 channels, fields standardised by channel" in capsys.readouterr().out
    main(["sample", str(tmp_path / "run"), "--num-images", "2", "--output", str(tmp_path / "drawn.npz"),
          "--num-inference-steps", "1"])  # fmt: skip
    with np.load(tmp_path / "drawn.npz") as archive:
        assert archive["images"].dtype == np.float32
        assert archive["images"].shape == (2, 8, 8, 2)
        assert abs(archive["images"][..., 0].mean() - 280) < 100
    with pytest.raises(SystemExit):
        main(["evaluate", str(tmp_path / "run"), "--data", str(folder)])
    assert "Features compare pictures, but this model makes fields" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option", [["--value_range", 0, 1], ["--streaming"], ["--fid_steps", 1], ["--degradation", "blur"]]
)
def test_what_needs_pictures_is_refused_by_the_script(option, folder, tmp_path):
    result = run_training(
        "--train_data_dir", folder, "--standardize", *option, "--max_train_steps", 1,
        "--output_dir", tmp_path / "run",
    )  # fmt: skip
    assert result.returncode
    assert f"{option[0]} must be left out with --standardize" in result.stderr
    assert not (tmp_path / "run").exists()


def test_the_trainer_refuses_a_frechet_distance(tmp_path, fresh_accelerator):
    data = ImageDataset(torch.from_numpy(make_fields()), value_range=Standardization((280, -3), (10, 0.5)))
    unet = PFGMPPUNet2DModel(
        sample_size=8, in_channels=2, out_channels=2, model_channels=16, channel_mult=(1,)
    )
    config = TrainingConfig(tmp_path / "run", max_train_steps=1, fid_steps=1)
    with pytest.raises(ValueError, match="`fid_steps` must be 0 for fields"):
        Trainer(unet, PFGMPPScheduler(sigma_data=1.0), data, config)


def test_pictures_of_fields_show_three_deviations(pipe, tmp_path):
    fields = torch.tensor([250.0, 280.0, 310.0, 600.0]).view(4, 1, 1, 1).expand(4, 2, 1, 1)
    levels = round_to_bytes(fields, SCALE)
    assert levels[:, 0].flatten().tolist() == [0, 128, 255, 255]
    with pytest.raises(ValueError, match="`output` must end in .npz"):
        sample_to_files(pipe, [0], tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
