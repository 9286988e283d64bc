"""Pairs of images and degraded ones: read, made, cropped, and trained on."""

import itertools
import json

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import run_training
from datasets import Dataset, Features, Image, load_dataset
from diffusers import DiffusionPipeline

from pipeline_pfgmpp import PFGMPPRestorationPipeline, PFGMPPScheduler, PFGMPPUNet2DModel
from pipeline_pfgmpp.data import (
    DEGRADATIONS,
    Degrader,
    ImageDataset,
    ImageStream,
    ImageTransform,
    load_images,
    open_dataset,
    register_degradation,
    split_pairs,
)
from pipeline_pfgmpp.training import ConsistencyLoss, PFGMPPLoss, Trainer, TrainingConfig, read_log
from pipeline_pfgmpp.training.augment import Augmentation, apply_symmetries, draw_symmetries
from pipeline_pfgmpp.training.samples import choose_shown_pairs, draw_grid_of_samples


pytestmark = pytest.mark.usefixtures("fresh_accelerator", "one_thread")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make_images(count=12, height=8, width=8, channels=3, seed=0):
    """Smooth images, whose neighbouring pixels are alike."""
    small = torch.rand(count, channels, 3, 3, generator=generator(seed))
    large = torch.nn.functional.interpolate(small, size=(height, width), mode="bilinear", align_corners=True)
    return (large * 255).round().to(torch.uint8)


def make_numbered(size, number):
    """An image whose every pixel differs from all others, and from those of other images."""
    height, width = size
    pixels = torch.arange(height * width, dtype=torch.float32).view(1, height, width)
    return pixels + 10_000 * number


def take(data, count, batch_size=4, **options):
    batches = data.batches(batch_size, **options)
    return [batch["images"] for batch, _ in itertools.islice(batches, count)]


# Degradations


@pytest.mark.parametrize("name", sorted(DEGRADATIONS))
@pytest.mark.parametrize("shape", [(3, 9, 13), (1, 8, 8), (2, 5, 1)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_every_degradation_keeps_shape_and_type_and_is_seeded(name, shape, dtype):
    image = (255 * torch.rand(shape, generator=generator())).to(dtype)
    degrader = Degrader([name])
    degraded = degrader(image, (0.0, 255.0), generator(1))
    assert degraded.shape == image.shape
    assert degraded.dtype == dtype
    assert torch.equal(degraded, degrader(image, (0.0, 255.0), generator(1)))
    if name != "grey" or len(image) == 3:
        assert not torch.equal(degraded, image)


def test_levels_mean_what_the_guide_says():
    grey = torch.full((1, 64, 64), 0.5)
    unit = (0.0, 1.0)
    noise = Degrader(["gaussian=0.2"])(grey, unit, generator()) - grey
    assert noise.std().item() == pytest.approx(0.2, rel=0.05)
    counts = 50 * Degrader(["poisson=50"])(grey, unit, generator())
    torch.testing.assert_close(counts, counts.round())
    assert counts.mean().item() == pytest.approx(25, rel=0.05)
    assert counts.var().item() == pytest.approx(25, rel=0.1)
    hidden = Degrader(["mask=0.25"])(torch.ones(1, 64, 64), unit, generator()) == 0.5
    assert hidden.float().mean().item() == pytest.approx(0.25, abs=0.02)
    rows = hidden[0].any(1).sum()
    assert hidden.sum() == rows * hidden[0].any(0).sum()  # a rectangle
    point = torch.zeros(1, 31, 31)
    point[0, 15, 15] = 1
    blurred = Degrader(["blur=2"])(point, unit, generator())
    distance = (torch.arange(31) - 15.0).square()
    assert (blurred[0].sum(0) * distance).sum().item() == pytest.approx(4, rel=0.03)
    steps = torch.tensor([0.0, 1.0]).repeat_interleave(8).expand(1, 16, 16)
    small = Degrader(["downscale=16"])(steps, unit, generator())
    torch.testing.assert_close(small, torch.full_like(small, 0.5))
    colours = torch.rand(3, 4, 4, generator=generator())
    greyed = Degrader(["grey"])(colours, unit, generator())
    torch.testing.assert_close(greyed[0], greyed[2])
    assert torch.equal(Degrader(["grey=0"])(colours, unit, generator()), colours)


def test_units_and_rounding_are_those_of_the_data():
    image = torch.full((1, 32, 32), 1000.0)
    noise = Degrader(["gaussian=0.1"])(image, (0.0, 2000.0), generator()) - image
    assert noise.std().item() == pytest.approx(200, rel=0.1)
    far = Degrader(["gaussian=10"])(image, (0.0, 2000.0), generator())
    assert (far.min().item(), far.max().item()) == (-2000, 4000)  # as far as the pipeline takes them
    assert Degrader(["gaussian=10"])(image.byte(), (0.0, 255.0), generator()).unique().numel() > 2


def test_degradations_follow_each_other_or_are_chosen():
    image = torch.rand(3, 8, 8, generator=generator())
    both = Degrader(["grey", "downscale=2"])(image, (0.0, 1.0), generator())
    parts = Degrader(["downscale=2"])(Degrader(["grey"])(image, (0, 1), generator()), (0, 1), generator())
    torch.testing.assert_close(both, parts)
    choice = Degrader(["grey,blur=1"])
    grey = Degrader(["grey"])(image, (0, 1), generator())
    blurred = Degrader(["blur=1"])(image, (0, 1), generator())
    results = [choice(image, (0, 1), generator(seed)) for seed in range(20)]
    assert all(torch.equal(result, grey) or torch.equal(result, blurred) for result in results)
    assert not all(torch.equal(result, results[0]) for result in results)


def test_levels_are_drawn_between_two():
    black = torch.zeros(1, 64, 64)
    degrader = Degrader(["gaussian=0.1:0.4"])
    levels = [degrader(black, (0.0, 1.0), generator(seed)).std().item() for seed in range(40)]
    assert 0.09 < min(levels) < 0.17
    assert 0.33 < max(levels) < 0.42
    ramp = torch.linspace(0, 1, 16).expand(1, 16, 16)
    known = [Degrader([f"downscale={factor}"])(ramp, (0, 1), generator()) for factor in (2, 3, 4)]
    drawn = [Degrader(["downscale=2:4"])(ramp, (0.0, 1.0), generator(seed)) for seed in range(20)]
    found = {index for each in drawn for index, one in enumerate(known) if torch.equal(each, one)}
    assert found == {0, 1, 2}
    assert all(any(torch.equal(each, one) for one in known) for each in drawn)


def test_a_degradation_is_added_in_python(monkeypatch):
    monkeypatch.setattr("pipeline_pfgmpp.data.degradations.DEGRADATIONS", {})

    @register_degradation("darken", default=0.5, low=0.0, high=1.0)
    def darken(image, level, generator):
        return image * level

    @register_degradation("shrink", default=1.0, low=0.0, high=1.0)
    def shrink(image, level, generator):
        return image[:, 1:]

    image = torch.full((1, 2, 2), 200, dtype=torch.uint8)
    assert Degrader(["darken"])(image, (0.0, 255.0), generator()).unique().tolist() == [100]
    with pytest.raises(ValueError, match=r"shrink must return an image of shape \(1, 2, 2\), but returned"):
        Degrader(["shrink"])(image, (0.0, 255.0), generator())
    with pytest.raises(ValueError, match="must be made of letters"):
        register_degradation("a,b", 0, 0, 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["haze"], "`degradation` must be made of blur, .*, but is 'haze'"),
        (["gaussian:0.1"], "but is 'gaussian:0.1'"),
        (["grey,"], "but is ''"),
        (
            ["gaussian=-1"],
            r"level of gaussian must be a number in \[0, 10\], or two as low:high, but is '-1'",
        ),
        (["gaussian=0.2:0.1"], "but is '0.2:0.1'"),
        (["gaussian=nan"], "but is 'nan'"),
        (["gaussian="], "but is ''"),
        (["jpeg=30.5"], r"level of jpeg must be a whole number in \[1, 95\]"),
        ([], r"`degradation` must be a list of degradations, but is \[\]"),
        ("grey", "`degradation` must be a list of degradations, but is 'grey'"),
    ],
)
def test_what_is_no_degradation_is_named(words, message):
    with pytest.raises(ValueError, match=message):
        Degrader(words)


# Reading


def make_columns(clean, degraded):
    features = Features({"clean": Image(), "low": Image()})
    return Dataset.from_dict({"clean": clean, "low": degraded}, features=features)


def to_picture(image):
    return PIL.Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy())


@pytest.mark.parametrize("streaming", [False, True])
def test_pairs_of_two_columns(streaming):
    clean = make_images(6)
    low = make_images(6, channels=1, seed=1)
    dataset = make_columns([*map(to_picture, clean)], [*map(to_picture, low)])
    options = {"condition_column": "low"}
    if streaming:
        data = ImageStream(dataset.to_iterable_dataset(), 8, **options)
    else:
        data = load_images(dataset, 8, **options)
    assert (data.channels, data.condition_channels, data.size) == (3, 1, (8, 8))
    assert "pairs of images of 8x8 pixels, 3 channels and 1 channel in the degraded ones" in data.summarize()
    assert data.sigma_data() == pytest.approx(ImageDataset(clean).sigma_data(), rel=1e-9)
    images, condition = split_pairs(take(data, 1, 6)[0], data.condition_channels)
    for image, degraded in zip(images, condition["condition"]):
        number = [torch.equal(image, each) for each in clean].index(True)
        assert torch.equal(degraded, low[number])
    wanted = load_images(dataset, 8, image_column="clean", **options, condition_channels=3)
    assert wanted.condition_channels == 3
    assert wanted.digest() != load_images(dataset, 8, image_column="clean").digest()


def test_pairs_share_their_range():
    deep = [PIL.Image.fromarray(np.full((4, 4), value, np.uint16)) for value in (0, 65535)]
    bright = [PIL.Image.fromarray(np.full((4, 4), value, np.uint8)) for value in (0, 255)]
    data = load_images(make_columns(bright, deep), 4, image_column="clean", condition_column="low")
    assert data.value_range == (0, 65535)
    assert data.images[1].unique().tolist() == [65535]


@pytest.mark.parametrize("streaming", [False, True])
def test_pairs_of_arrays_are_named_by_a_csv_file(streaming, tmp_path):
    folder = tmp_path / "table"
    folder.mkdir()
    arrays = [np.random.default_rng(seed).normal(0, 500, (1, 9, 7)).astype(np.float32) for seed in range(4)]
    for number, array in enumerate(arrays):
        np.save(tmp_path / f"{number}.npy", array)
    rows = ["full,low", *(f"{tmp_path}/{number}.npy,{tmp_path}/{number + 2}.npy" for number in range(2))]
    (folder / "train.csv").write_text("\n".join(rows))
    dataset = open_dataset(str(folder), streaming=streaming)
    load = ImageStream if streaming else load_images
    data = load(dataset, (9, 7), image_column="full", condition_column="low")
    assert data.value_range == (min(map(np.min, arrays)), max(map(np.max, arrays)))
    images, condition = split_pairs(take(data, 1, 2)[0], data.condition_channels)
    order = [0, 1] if np.array_equal(images[0], arrays[0]) else [1, 0]
    np.testing.assert_array_equal(images[order].numpy(), arrays[:2])
    np.testing.assert_array_equal(condition["condition"][order].numpy(), arrays[2:])


@pytest.mark.parametrize("streaming", [False, True])
def test_images_of_every_size_are_cropped(streaming):
    sizes = [(8, 8), (8, 20), (30, 9), (11, 13)]
    images = [make_numbered(size, number) for number, size in enumerate(sizes)]
    dataset = Dataset.from_dict({"image": [image[0].tolist() for image in images]})
    options = {"crop": True, "value_range": (0, 40_000)}
    if streaming:
        data = ImageStream(dataset.to_iterable_dataset(), 8, **options)
    else:
        data = load_images(dataset, 8, **options)
    assert "images cropped to 8x8 pixels" in data.summarize()
    batches = torch.cat(take(data, 20))
    assert batches.shape == (80, 1, 8, 8)
    starts = set()
    for crop in batches[:, 0]:
        number, start = divmod(int(crop[0, 0]), 10_000)
        top, left = divmod(start, sizes[number][1])
        assert torch.equal(crop, images[number][0, top : top + 8, left : left + 8])
        starts.add((number, top, left))
    assert len(starts) > 30


def test_pairs_stay_aligned_under_crops_symmetries_and_augmentation():
    images = [make_numbered(size, number) for number, size in enumerate([(9, 30), (20, 12), (16, 16)])]
    pairs = [torch.cat([image, -image]) for image in images]
    data = ImageDataset(
        pairs, value_range=(-1, 1), paired_channels=1, transform=ImageTransform(crop_size=(9, 9))
    )
    joined = torch.cat(take(data, 10))
    symmetries = draw_symmetries(len(joined), True, True, generator())
    assert set(symmetries.tolist()) == set(range(8))
    moved = apply_symmetries(joined, symmetries)
    transformed, labels = Augmentation(0.9)(moved, Augmentation(0.9).draw(len(moved), generator()))
    for stage in (joined, moved, transformed):
        clean, condition = split_pairs(stage, 1)
        torch.testing.assert_close(condition["condition"], -clean, rtol=1e-4, atol=0.05)
    assert labels.any(1).sum() > 30


def test_symmetries_are_turns_and_then_flips():
    image = torch.arange(9.0).view(1, 3, 3)
    moved = apply_symmetries(image.expand(8, -1, -1, -1), torch.arange(8))
    assert len({tuple(each.flatten().tolist()) for each in moved}) == 8
    assert torch.equal(moved[1], image.rot90(1, (1, 2)))
    assert torch.equal(moved[6], image.rot90(2, (1, 2)).flip(-1))
    assert draw_symmetries(5, False, False, generator()) is None
    assert set(draw_symmetries(50, True, False, generator()).tolist()) == {0, 4}
    assert set(draw_symmetries(50, False, True, generator()).tolist()) == {0, 1, 2, 3}


def make_degraded(words=("downscale=2:4", "gaussian=0.05:0.2"), crop=None, count=12, size=8, **options):
    transform = ImageTransform(crop, Degrader(list(words)))
    return ImageDataset(make_images(count, size, size, **options), transform=transform)


def test_processes_and_restarts_make_the_same_pairs():
    data = make_degraded(crop=(6, 6))
    one = torch.cat(take(data, 5, 4))
    two = [take(data, 5, 2, process_index=process, num_processes=2) for process in (0, 1)]
    for step in range(5):
        assert torch.equal(two[0][step], one[4 * step : 4 * step + 4 : 2])
        assert torch.equal(two[1][step], one[4 * step + 1 : 4 * step + 4 : 2])
    assert torch.equal(torch.cat(take(data, 3, 4, state=8)), one[8:])
    assert not torch.equal(torch.cat(take(data, 5, 4, seed=1)), one)
    clean, condition = split_pairs(one, data.condition_channels)
    assert not torch.equal(clean, condition["condition"])


def test_a_stream_makes_the_same_pairs_after_a_restart(fashion_mnist):
    stream = load_dataset(str(fashion_mnist), split="train", streaming=True)
    data = ImageStream(stream, 16, window=20, crop=True, degradation=["gaussian=0.1", "jpeg=20:50"])
    assert (data.channels, data.condition_channels) == (1, 1)
    batches = list(itertools.islice(data.batches(6), 6))
    state = batches[2][1]
    again = list(itertools.islice(data.batches(6, state=state), 3))
    for (batch, _), (other, _) in zip(batches[3:], again):
        assert torch.equal(batch["images"], other["images"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"condition_column": "high"}, "`condition_column` is 'high', but the data set has the columns"),
        ({"condition_column": "clean", "image_column": "clean"}, "must be another column than"),
        (
            {"condition_column": "low"},
            "it has 8x8 pixels, but its degraded image in `condition_column` has 4x4 pixels",
        ),
        ({"image_column": "clean", "resolution": 9, "crop": True}, "8x8 pixels, too few for crops of 9x9"),
        ({"condition_column": "low", "condition_channels": 0}, "`condition_channels` must be at least 1"),
        ({"condition_column": "low", "degradation": ["grey"]}, "8x8 pixels, but its degraded image"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_pairs_that_cannot_be_used_are_one_sentence(streaming, options, message):
    clean = map(to_picture, make_images(3))
    dataset = make_columns([*clean], [*map(to_picture, make_images(3, 4, 4))])
    options = {"resolution": 8, **options}
    open_data = ImageStream if streaming else load_images
    dataset = dataset.to_iterable_dataset() if streaming else dataset
    with pytest.raises(ValueError, match=message):
        open_data(dataset, **options)


def test_a_row_whose_sizes_differ_is_named(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)  # nothing is decoded yet
    clean = [to_picture(image) for image in make_images(3)]
    low = [clean[0], clean[1].resize((5, 6)), clean[2]]
    options = {"image_column": "clean", "condition_column": "low"}
    assert len(load_images(make_columns(clean, low), 8, **options)) == 2
    assert "Skipping the image row 1" in capsys.readouterr().out
    message = "row 1 cannot be read: it has 8x8 pixels, but its degraded image .* has 6x5 pixels"
    with pytest.raises(ValueError, match=message):
        load_images(make_columns(clean, low), 8, strict=True, **options)


def test_degraded_images_are_made_or_read(capsys):
    clean = [to_picture(image) for image in make_images(3)]
    with pytest.raises(ValueError, match="`degradation` makes the degraded images that `condition_column`"):
        load_images(
            make_columns(clean, clean), 8, image_column="clean", condition_column="low", degradation=["grey"]
        )
    with pytest.raises(ValueError, match="are paired already"):
        ImageDataset(make_images(), paired_channels=1, transform=ImageTransform(degrader=Degrader(["grey"])))
    with pytest.raises(ValueError, match=r"`paired_channels` must lie in \[0, 2\], but is 3"):
        ImageDataset(make_images(), paired_channels=3)
    with pytest.raises(ValueError, match=r"`images` of 8x8 pixels are too small for crops of 9x8 pixels"):
        ImageDataset(make_images(), transform=ImageTransform((9, 8)))
    with pytest.raises(ValueError, match="or, for crops, a list of tensors"):
        ImageDataset(list(make_images()))


# Training


def make_unet(size=8, condition_channels=3, channels=3, **options):
    torch.manual_seed(0)
    options = {"model_channels": 16, "num_blocks": 1, "dropout": 0.1, "attn_resolutions": (), **options}
    options |= {"in_channels": channels, "out_channels": channels, "condition_channels": condition_channels}
    return PFGMPPUNet2DModel(sample_size=size, channel_mult=(1,), **options)


def make_trainer(folder, data, unet=None, scheduler=None, validation_data=None, **options):
    options = {"max_train_steps": 4, "train_batch_size": 4, "sample_steps": 0, "logging_steps": 2, **options}
    scheduler = scheduler or PFGMPPScheduler(D=64, sigma_data=data.sigma_data())
    config = TrainingConfig(folder, **options)
    return Trainer(unet or make_unet(), scheduler, data, config, validation_data=validation_data)


@pytest.mark.parametrize("objective", [PFGMPPLoss, ConsistencyLoss])
def test_a_loss_hands_the_condition_on_as_the_pipeline_does(objective):
    """The network sees c_in y, as in the pipeline, at the noise level of each image."""
    scheduler = PFGMPPScheduler(D=64)
    loss = objective(scheduler)
    images = torch.randn(2, 3, 8, 8, generator=generator())
    condition = torch.randn(2, 3, 8, 8, generator=generator(1))
    seen = []

    def network(x, c_noise, condition=None, return_dict=True):
        sigma = (4 * c_noise).exp().view(-1, 1, 1, 1)
        seen.append(condition)
        torch.testing.assert_close(condition, given / (sigma**2 + 0.25).sqrt())
        return (torch.zeros_like(x),)

    given = condition
    loss(network, images, loss.draw(images.shape, generator(2)), condition=condition)
    assert seen


def test_a_resumed_run_on_pairs_equals_an_uninterrupted_one(tmp_path):
    data = make_degraded(crop=(6, 6))
    options = {"random_flip": True, "random_turn": True, "condition_dropout": 0.5}
    whole = make_trainer(tmp_path / "whole", data, make_unet(6), **options).run()
    parts = {**options, "checkpointing_steps": 2}
    make_trainer(tmp_path / "parts", data, make_unet(6), max_train_steps=2, **parts).run()
    resumed = make_trainer(
        tmp_path / "parts", data, make_unet(6), resume_from_checkpoint="latest", **parts
    ).run()
    for name, tensor in whole.unet.state_dict().items():
        assert torch.equal(tensor, resumed.unet.state_dict()[name])
    other = make_degraded(["grey"], crop=(6, 6))
    with pytest.raises(ValueError, match="holds another run .*data is ImageDataset"):
        make_trainer(tmp_path / "parts", other, make_unet(6), resume_from_checkpoint="latest", **parts)


def test_degraded_images_are_dropped_at_random(tmp_path):
    data = make_degraded()
    options = {"train_batch_size": 8, "max_train_steps": 1}
    seen = {}
    for rate in (0.0, 0.25, 1.0):
        trainer = make_trainer(tmp_path / f"{rate}", data, condition_dropout=rate, **options)
        trainer.run()
        seen[rate] = trainer.last_inputs
    kept = seen[0.25]["condition"].flatten(1).any(1)
    assert 0 < kept.sum() < 8
    assert torch.equal(seen[0.25]["condition"][kept], seen[0.0]["condition"][kept])
    assert not seen[1.0]["condition"].any()
    assert all(torch.equal(seen[rate]["images"], seen[0.0]["images"]) for rate in seen)


def measure_psnr(images, truth):
    return -10 * (images.clamp(0, 1) - truth).square().mean((1, 2, 3)).log10().mean().item()


def test_a_restored_image_is_nearer_to_the_truth_than_its_degraded_one(tmp_path):
    data = make_degraded(["gaussian=0.2"], count=256)
    trainer = make_trainer(
        tmp_path, data, make_unet(dropout=0.0), max_train_steps=150, train_batch_size=32, ema_halflife=[500.0]
    )
    trainer.run()
    pipeline = DiffusionPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    assert isinstance(pipeline, PFGMPPRestorationPipeline)
    test = make_degraded(["gaussian=0.2"], count=32, seed=5)
    clean, condition = split_pairs(take(test, 1, 32)[0], 3)
    restored = pipeline(
        image=condition["condition"], num_inference_steps=1, start_sigma=0.4, output_type="pt"
    )
    truth = clean / 255
    before = measure_psnr(condition["condition"] / 255, truth)
    after = measure_psnr(restored.images, truth)
    assert after > before + 3, (before, after)


def test_grids_show_the_same_pairs_of_the_validation_data(tmp_path):
    data = make_degraded()
    validation = make_degraded(seed=7)
    trainer = make_trainer(tmp_path, data, validation_data=validation, sample_steps=2)
    shown = trainer.shown_pairs
    assert torch.equal(shown["images"], choose_shown_pairs(validation, trainer.config)["images"])
    trainer.run()
    grids = [np.array(PIL.Image.open(tmp_path / f"samples/step-000000{step}.png")) for step in (2, 4)]
    assert grids[0].shape == grids[1].shape
    assert (grids[0] != grids[1]).any()
    cell = (grids[0].shape[1] - 4) // 3
    for grid in grids:  # the outer columns, of the degraded images and of the truth, stay
        np.testing.assert_array_equal(grid[:, :cell], grids[0][:, :cell])
        np.testing.assert_array_equal(grid[:, -cell:], grids[0][:, -cell:])
    assert "validation_loss" in read_log(tmp_path)[0]


def test_a_grid_of_grey_images_that_become_coloured():
    pipeline = PFGMPPRestorationPipeline(make_unet(condition_channels=1).eval(), PFGMPPScheduler(D=64))
    pipeline.set_progress_bar_config(disable=True)
    pairs = {"images": make_images(4), "condition": make_images(4, channels=1)}
    assert draw_grid_of_samples(pipeline, 3, pairs).mode == "RGB"


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (
            {"condition_channels": 0},
            {},
            "hold degraded images of 3 channels, but the network takes no degraded",
        ),
        ({"condition_channels": 1}, {}, "3 channels, but the network takes degraded images of 1 channel "),
        ({}, {"fid_steps": 2}, "`fid_steps` must be 0 for pairs"),
        ({}, {"reference_batch_size": 8}, "`reference_batch_size` must be left out for pairs"),
        ({}, {"condition_dropout": 1.5}, r"`condition_dropout` must lie in \[0, 1\]"),
    ],
)
def test_what_does_not_fit_pairs_is_refused(network, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, make_degraded(), make_unet(**network), **options)


def test_degraded_images_that_are_not_there_cannot_be_dropped(tmp_path):
    unet = make_unet(condition_channels=0)
    with pytest.raises(ValueError, match="`condition_dropout` must be 0 without pairs"):
        make_trainer(tmp_path, ImageDataset(make_images()), unet, condition_dropout=0.1)


def test_validation_data_without_degraded_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match="The validation data hold no degraded images, but those"):
        make_trainer(tmp_path, make_degraded(), validation_data=ImageDataset(make_images()))


def test_quarter_turns_need_squares(tmp_path):
    data = ImageDataset(make_images(height=8, width=16))
    unet = make_unet((8, 16), condition_channels=0)
    with pytest.raises(ValueError, match="`random_turn` needs square images, but these have 8x16 pixels"):
        make_trainer(tmp_path, data, unet, random_turn=True)


@pytest.fixture(scope="module")
def folder_of_pairs(tmp_path_factory):
    """A folder of pictures of several sizes, each with its degraded version."""
    folder = tmp_path_factory.mktemp("pairs") / "train"
    folder.mkdir()
    rows = []
    for number, (height, width) in enumerate([(28, 28), (28, 40), (33, 32), (60, 28)]):
        picture = to_picture(make_images(1, height, width, seed=number)[0])
        picture.save(folder / f"{number}.png")
        picture.convert("L").save(folder / f"{number}-grey.png")
        rows.append({"file_name": f"{number}.png", "degraded_file_name": f"{number}-grey.png"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder.parent


COMMON = ["--preset", "fashion-mnist-small", "--max_train_steps", 1, "--train_batch_size", 2]


def test_a_folder_of_pairs_becomes_a_pipeline_that_restores_any_size(folder_of_pairs, tmp_path):
    args = [*COMMON, "--train_data_dir", folder_of_pairs, "--output_dir", tmp_path / "out"]
    args += ["--condition_column", "degraded", "--crop_size", 28, "--random_flip", "--random_turn"]
    args += ["--sigma_max", 160, "--D", 64, "--sample_steps", 0]
    result = run_training(*args)
    assert result.returncode == 0, result.stderr
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert isinstance(pipeline, PFGMPPRestorationPipeline)
    assert (pipeline.unet.config.condition_channels, pipeline.unet.config.in_channels) == (1, 3)
    assert pipeline.scheduler.config.sigma_max == 160
    degraded = PIL.Image.open(folder_of_pairs / "train" / "1-grey.png")
    restored = pipeline(image=degraded, num_inference_steps=1).images[0]
    assert (restored.size, restored.mode) == ((40, 28), "RGB")
    again = run_training("--config", tmp_path / "out" / "arguments.yaml", "--max_train_steps", 2)
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--condition_column", "low"], "`condition_column` is 'low', but the data set has the columns"),
        (
            ["--condition_column", "degraded", "--crop_size", "32"],
            "0.png cannot be read: it has 28x28 pixels",
        ),
        (["--condition_column", "degraded", "--crop_size", "64"], "too few for crops of 64x64"),
        (["--degradation", "haze=2"], "`degradation` must be made of blur"),
        (["--degradation", "grey", "--condition_column", "degraded"], "one of --condition_column and"),
        (["--condition_dropout", "0.1"], "--condition_dropout 0.1 has no effect without --condition_column"),
        (["--condition_channels", "1"], "--condition_channels 1 has no effect without --condition_column"),
        (
            ["--resolution", "16", "--crop_size", "32"],
            "--resolution 16 has no effect together with --crop_size",
        ),
        (["--degradation", "grey", "--fid_steps", "1"], "--fid_steps needs images that are not restored"),
        (["--preset", "ppfm-ct"], "--preset ppfm-ct needs --condition_column or --degradation"),
    ],
)
def test_bad_arguments_about_pairs_end_in_one_sentence(args, message, folder_of_pairs, tmp_path):
    result = run_training(
        *COMMON, "--train_data_dir", folder_of_pairs, "--output_dir", tmp_path / "out", "--strict", *args
    )
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    assert message in result.stderr
    assert not (tmp_path / "out").exists()
