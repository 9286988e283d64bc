"""Training on latents: encoded once, drawn each time that they are read."""

import itertools
import json
import re

import numpy as np
import pytest
import torch
from conftest import ROOT, run_training
from datasets import load_dataset
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from test_latents import make_dc, make_kl, make_pixels, make_tiny

from pipeline_pfgmpp import PFGMPPPipeline, PFGMPPRestorationPipeline, PFGMPPScheduler, PFGMPPUNet2DModel
from pipeline_pfgmpp.commands import main
from pipeline_pfgmpp.data import ImageDataset, ImageTransform, load_images, load_latents
from pipeline_pfgmpp.hub.files import list_files
from pipeline_pfgmpp.latents import encode_images
from pipeline_pfgmpp.training import RECIPES, Trainer, TrainingConfig
from pipeline_pfgmpp.unet_pfgmpp import PRESETS


pytestmark = pytest.mark.usefixtures("fresh_accelerator", "one_thread")


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder)
    return folder


def make_data(count=12, channels=3, height=16, width=16, **options):
    images = (make_pixels(count, height, width, channels) * 255).round().to(torch.uint8)
    return ImageDataset(images, torch.arange(count) % 2, ["cat", "dog"], **options)


def take(data, count, batch_size=4, **options):
    return [batch["images"] for batch, _ in itertools.islice(data.batches(batch_size, **options), count)]


def make_unet(channels=4, **options):
    torch.manual_seed(0)
    options = {"in_channels": channels, "out_channels": channels, "channel_mult": (1,), **options}
    return PFGMPPUNet2DModel(sample_size=8, model_channels=16, num_blocks=1, attn_resolutions=(), **options)


def make_trainer(folder, data, unet=None, **options):
    options = {"max_train_steps": 4, "train_batch_size": 4, "sample_steps": 0, "logging_steps": 1, **options}
    scheduler = PFGMPPScheduler(D=64, sigma_data=data.sigma_data())
    return Trainer(unet or make_unet(), scheduler, data, TrainingConfig(folder, **options))


# The latents of a data set


@pytest.mark.parametrize("flips", [False, True])
@pytest.mark.parametrize("make_vae", [make_kl, make_tiny, make_dc])
def test_latents_are_drawn_from_what_the_encoder_says(make_vae, flips):
    pixels = make_data(2)
    vae = make_vae()
    data = load_latents(pixels, vae, flips)
    images = pixels.normalize(pixels.images)
    encodings = [encode_images(vae, images)]
    if flips:
        encodings.append(encode_images(vae, images.flip(3)))
    assert (data.channels, data.condition_channels) == (vae.config.latent_channels, 0)
    assert data.size == tuple(encodings[0].mean.shape[2:])
    assert data.pixels is pixels
    seen = set()
    for batch, _ in itertools.islice(data.batches(2), 12):
        cat = batch["images"][batch["class_labels"] == 0][0]
        distances = [(cat - encoding.mean[0]).abs().mean().item() for encoding in encodings]
        nearest = int(np.argmin(distances))
        mean, deviation = encodings[nearest]
        seen.add(nearest)
        spread = 1e-6 if deviation is None else deviation[0]
        assert ((cat - mean[0]).abs() < 6 * spread + 2e-3 * mean.abs().max()).all()  # float16
    assert seen == set(range(len(encodings)))


def test_draws_have_the_mean_and_the_deviation_of_the_encoder():
    pixels = make_data(1)
    vae = make_kl()
    data = load_latents(pixels, vae)
    draws = torch.cat(take(data, 400, batch_size=1))
    mean, deviation = encode_images(vae, pixels.normalize(pixels.images))
    assert ((draws.mean(0) - mean[0]).abs() < 5 * deviation[0] / 20 + 1e-3).all()
    assert (draws.std(0) / deviation[0]).mean() == pytest.approx(1, abs=0.02)
    assert data.sigma_data() == pytest.approx(draws.std().item(), rel=0.01)
    again = torch.cat(take(data, 400, batch_size=1))
    assert torch.equal(draws, again)
    assert not torch.equal(draws[0], draws[1])


def test_what_is_drawn_depends_on_the_place_alone():
    data = load_latents(make_data(), make_kl(), random_flip=True)
    whole = take(data, 4, batch_size=8)
    parts = [take(data, 4, num_processes=2, process_index=index) for index in range(2)]
    for together, first, second in zip(whole, *parts):
        assert torch.equal(together[::2], first)
        assert torch.equal(together[1::2], second)
    (later,) = take(data, 1, batch_size=8, state=16)
    assert torch.equal(later, whole[2])


def test_images_are_encoded_once(monkeypatch):
    vae = make_kl()
    digests = {load_latents(make_data(), vae).digest()}
    digests.add(load_latents(make_data(), make_kl(scaling_factor=0.5)).digest())
    digests.add(load_latents(make_data(), vae, random_flip=True).digest())
    digests.add(load_latents(make_data(8), vae).digest())
    assert len(digests) == 4
    changed = make_kl()
    torch.nn.init.ones_(changed.encoder.conv_in.bias)
    assert load_latents(make_data(), changed).digest() not in digests
    monkeypatch.setattr("pipeline_pfgmpp.data.latents.encode_images", None)
    assert load_latents(make_data(), make_kl()).digest() in digests


def test_images_that_do_not_fit_are_refused(cache):
    vae = make_kl()
    for data, message in (
        (make_data(channels=1), "The images have 1 channels, but `vae` takes 3"),
        (make_data(height=15), "The images have 15x16 pixels, but `vae` needs sides that 2 divides"),
        (make_data(transform=ImageTransform((8, 8))), "Images that are cropped or degraded"),
    ):
        with pytest.raises(ValueError, match=message):
            load_latents(data, vae)
    torch.nn.init.constant_(vae.encoder.conv_in.bias, torch.nan)
    with pytest.raises(ValueError, match="`vae` makes NaN or numbers beyond float16"):
        load_latents(make_data(), vae)
    assert not list(cache.rglob("latents-*"))


# The trainer


def test_a_resumed_run_on_latents_equals_an_uninterrupted_one(tmp_path):
    vae = make_kl()
    data = load_latents(make_data(), vae, random_flip=True)
    options = {"random_flip": True, "checkpointing_steps": 2}
    whole = make_trainer(tmp_path / "whole", data, sample_steps=4, **options).run()
    make_trainer(tmp_path / "parts", data, max_train_steps=2, **options).run()
    resumed = make_trainer(tmp_path / "parts", data, resume_from_checkpoint="latest", **options).run()
    for name, tensor in whole.unet.state_dict().items():
        assert torch.equal(tensor, resumed.unet.state_dict()[name])
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "whole")
    for name, tensor in vae.state_dict().items():
        assert torch.equal(tensor, loaded.vae.state_dict()[name])
    assert loaded(num_inference_steps=2).images[0].size == (16, 16)
    card = (tmp_path / "whole" / "README.md").read_text()
    assert "at 16×16 pixels with" in card
    assert "4 channels of 8×8, which the `AutoencoderKL` in `vae`" in card
    assert f"σ_data, is {data.sigma_data():g}." in card
    other = load_latents(make_data(), make_kl(scaling_factor=0.5), random_flip=True)
    with pytest.raises(ValueError, match=r"holds another run .*data is LatentDataset"):
        make_trainer(tmp_path / "parts", other, resume_from_checkpoint="latest", **options)


def test_weights_of_the_result_may_be_halved_while_the_autoencoder_in_use_is_not(tmp_path):
    vae = make_kl()
    make_trainer(tmp_path, load_latents(make_data(), vae), max_train_steps=1, save_dtype="float16").run()
    assert vae.dtype == torch.float32
    for part in ("unet", "vae"):
        (weights,) = (tmp_path / part).glob("*.safetensors")
        assert {tensor.dtype for tensor in load_file(weights).values()} == {torch.float16}


def test_latents_and_the_images_that_they_stand_for_are_balanced_together():
    images = make_data(8)
    images.labels = torch.tensor([0] * 7 + [1])
    data = load_latents(images, make_kl())
    digest = data.digest()
    data.balance_classes()
    assert data.digest() != digest
    for images in (data, data.pixels):
        batch, _ = next(images.batches(64))
        assert 20 < batch["class_labels"].sum() < 44


def test_settings_that_would_move_latents_are_refused(tmp_path):
    plain = load_latents(make_data(), make_kl())
    flipped = load_latents(make_data(), make_kl(), random_flip=True)
    with pytest.raises(ValueError, match="`random_turn` must be left out for latents"):
        make_trainer(tmp_path, plain, random_turn=True)
    with pytest.raises(ValueError, match="`augment` must be left out for latents"):
        make_trainer(tmp_path, plain, augment=0.1)
    for data, wanted in ((plain, True), (flipped, False)):
        with pytest.raises(
            ValueError, match=f"`random_flip` is {wanted}, but must be that of `load_latents`"
        ):
            make_trainer(tmp_path, data, random_flip=wanted)


def test_pairs_are_restored_through_latents(tmp_path):
    clean = make_data().images
    pairs = ImageDataset(torch.cat([clean, clean // 2], dim=1), paired_channels=3)
    vae = make_kl()
    data = load_latents(pairs, vae, random_flip=True)
    assert (data.channels, data.condition_channels) == (4, 4)
    batch = take(data, 1, batch_size=12)[0]
    degraded = pairs.normalize(clean // 2)
    expected = torch.cat([encode_images(vae, each).mean for each in (degraded, degraded.flip(3))])
    for latent in batch[:, 4:]:  # the condition is the mean, as the pipeline will see it
        assert (expected - latent).abs().flatten(1).amax(1).min() < 1e-3
    options = {"random_flip": True, "sample_steps": 2, "max_train_steps": 2}
    pipe = make_trainer(tmp_path, data, make_unet(condition_channels=4), **options).run()
    assert isinstance(pipe, PFGMPPRestorationPipeline)
    assert pipe(make_pixels(1, 13, 9), 2).images[0].size == (9, 13)
    assert (tmp_path / "samples.png").is_file()


def test_the_frechet_distance_compares_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline_pfgmpp.training.frechet.islice", lambda batches, count: [next(batches)])
    pixels = make_data(channels=1, height=28, width=28)
    data = load_latents(pixels, make_kl(1))
    options = {"in_channels": 4, "out_channels": 4, "num_blocks": 1, "attn_resolutions": ()}
    unet = PFGMPPUNet2DModel(sample_size=14, model_channels=16, channel_mult=(1,), **options)
    options = {"fid_steps": 2, "fid_images": 2, "fid_num_inference_steps": [1], "max_train_steps": 2}
    make_trainer(tmp_path, data, unet, **options).run()
    assert json.loads((tmp_path / "best" / "distance.json").read_text())["frechet_distance"] > 0
    assert DiffusionPipeline.from_pretrained(tmp_path / "best").vae is not None


# The command lines


TINY = {"sample_size": 8, "model_channels": 16, "channel_mult": (1,), "num_blocks": 1, "attn_resolutions": ()}


def test_the_recipe_for_large_images_is_for_its_network():
    preset = PRESETS["imagenet256-latent"]
    recipe = RECIPES["imagenet256-latent"]
    assert recipe["resolution"] == 256
    assert recipe["random_flip"]
    with torch.device("meta"):
        unet = PFGMPPUNet2DModel.from_preset("imagenet256-latent", label_dropout=recipe["label_dropout"])
    assert (unet.config.sample_size, unet.config.in_channels, unet.config.label_dim) == (32, 4, 1000)
    assert preset["model_type"] == "DhariwalUNet"


@pytest.fixture(scope="module")
def trained(fashion_mnist, tmp_path_factory):
    """A run of the recipe for large images, with a tiny network, tiny images and a tiny autoencoder."""
    folder = tmp_path_factory.mktemp("latents")
    make_kl(1).save_pretrained(folder / "autoencoder")
    common = [
        "--train_data_dir", fashion_mnist, "--preset", "imagenet256-latent", "--resolution", "16",
        "--D", "16:inf", "--d_conditioning", "--max_train_steps", "2", "--train_batch_size", "4",
        "--logging_steps", "1", "--sample_steps", "0", "--validation_split", "test",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "imagenet256-latent", TINY)
        patch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
        arguments = ["--vae_model_name_or_path", folder / "autoencoder", "--output_dir", folder / "model"]
        result = run_training(*common, *arguments)
    assert result.returncode == 0, result.stderr
    return folder / "model"


def test_the_recipe_trains_on_latents(trained, fashion_mnist):
    pipe = DiffusionPipeline.from_pretrained(trained)
    assert (pipe.image_size, pipe.image_channels) == ((16, 16), 1)
    assert pipe.unet.config.label_dropout == 0.1
    pixels = load_images(load_dataset(str(fashion_mnist), split="train"), resolution=16)
    measured = load_latents(pixels, make_kl(1), random_flip=True).sigma_data()
    assert pipe.scheduler.config.sigma_data == pytest.approx(measured, abs=1e-4)
    card = (trained / "README.md").read_text()
    assert "4 channels of 8×8, which the `AutoencoderKL` in `vae`" in card
    assert "The autoencoder is that of `autoencoder` (licence: not stated), as it was." in card
    assert '"validation_loss"' in (trained / "log.jsonl").read_text()


def run_command(*args):
    """Run a command of pfgmpp in this process."""
    main([str(each) for each in args])


def test_commands_take_a_model_of_latents(trained, fashion_mnist, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_command("info", trained)
    shown = capsys.readouterr().out
    assert "16×16, grey" in shown
    assert "AutoencoderKL, latents of 8×8, 4 channels" in shown
    few = ["--num-inference-steps", "2"]
    run_command("sample", trained, "--columns", "2", *few, "--output", tmp_path / "grid.png")
    run_command("sample", trained, "--num-images", "2", *few, "--output", tmp_path / "images.npz")
    with np.load(tmp_path / "images.npz") as archive:
        assert {array.shape[1:3] for array in archive.values() if array.ndim == 4} == {(16, 16)}
    files = list_files(trained, "model")
    assert {"vae/config.json", "vae/diffusion_pytorch_model.safetensors", "latents.py"} <= files.keys()


def refuse(*args):
    result = run_training("--max_train_steps", "1", *args)
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    return result.stderr.strip().splitlines()[-1]


def test_arguments_that_do_not_fit_an_autoencoder_are_refused(trained, fashion_mnist, tmp_path):
    vae = trained.parent / "autoencoder"
    data = ["--train_data_dir", fashion_mnist, "--output_dir", tmp_path / "run"]
    new = [*data, "--vae_model_name_or_path", vae, "--preset", "fashion-mnist-small"]
    for arguments, message in (
        (["--streaming"], "--streaming must be left out with an autoencoder"),
        (["--random_turn"], "--random_turn must be left out with an autoencoder"),
        (["--crop_size", "8"], "--crop_size must be left out with an autoencoder"),
        (["--degradation", "grey"], "--degradation must be left out with an autoencoder"),
        (["--augment", "0.1"], "--augment must be 0 with an autoencoder"),
        (["--channels", "3"], "--channels is 3, but the autoencoder takes 1"),
        (["--resolution", "27"], "--resolution is 27, which .* the autoencoder needs sides that 2 divides"),
    ):
        assert re.search(message, refuse(*new, *arguments)), arguments
    message = refuse(*data, "--preset", "fashion-mnist-small", "--vae_model_name_or_path", tmp_path)
    assert f"--vae_model_name_or_path {tmp_path} cannot be used: " in message
    PFGMPPPipeline(PFGMPPUNet2DModel(**TINY), PFGMPPScheduler()).save_pretrained(tmp_path / "bare")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text('{"_class_name": "AutoencoderKL", "sample_size": {}}')
    for name, reason in (("bare", "it is a pipeline without a `vae`"), ("odd", "")):
        message = refuse(*data, *new[-2:], "--vae_model_name_or_path", tmp_path / name)
        assert f"--vae_model_name_or_path {tmp_path / name} cannot be used: {reason}" in message
    make_kl(1, scaling_factor=0.5).save_pretrained(tmp_path / "other")
    tuned = [*data, "--pretrained_model_name_or_path", trained]
    message = refuse(*tuned, "--vae_model_name_or_path", tmp_path / "other")
    assert "is another autoencoder than that of" in message
    assert "--random_turn must be left out" in refuse(*tuned, "--random_turn")
    of_images = [*data, "--pretrained_model_name_or_path", ROOT / "model_cards" / "pfgmpp-fashion-mnist"]
    message = refuse(*of_images, "--vae_model_name_or_path", vae)
    assert "--vae_model_name_or_path has no effect: the network of" in message
    assert not (tmp_path / "run").exists()


def test_a_model_of_latents_is_tuned_and_distilled_without_naming_its_autoencoder(
    trained, fashion_mnist, tmp_path
):
    common = [
        "--train_data_dir", fashion_mnist, "--pretrained_model_name_or_path", trained, "--objective",
        "consistency", "--max_train_steps", "1", "--train_batch_size", "2", "--sample_steps", "0",
    ]  # fmt: skip
    result = run_training(*common, "--teacher_model_name_or_path", trained, "--output_dir", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    tuned = DiffusionPipeline.from_pretrained(tmp_path / "run")
    assert tuned(num_inference_steps=1).images[0].size == (16, 16)
    assert (
        tuned.scheduler.config.sigma_data
        == PFGMPPScheduler.from_pretrained(trained, subfolder="scheduler").config.sigma_data
    )
    pipe = PFGMPPPipeline.from_pretrained(trained)
    bare = PFGMPPPipeline(pipe.unet, pipe.scheduler, id2label=pipe.config.id2label)
    bare.save_pretrained(tmp_path / "bare")
    result = run_training(
        *common, "--teacher_model_name_or_path", tmp_path / "bare", "--output_dir", tmp_path / "other"
    )
    message = result.stderr.strip().splitlines()[-1]
    assert "must have the autoencoder of this run" in message


def test_a_pipeline_folder_names_its_own_autoencoder(trained, fashion_mnist, tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "fashion-mnist-small", TINY)
    result = run_training(
        "--train_data_dir", fashion_mnist, "--preset", "fashion-mnist-small", "--resolution", "16",
        "--vae_model_name_or_path", trained, "--max_train_steps", "1", "--train_batch_size", "2",
        "--sample_steps", "0", "--output_dir", tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert DiffusionPipeline.from_pretrained(tmp_path).image_size == (16, 16)
