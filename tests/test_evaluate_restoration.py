"""PSNR and SSIM of restored images, at each D and number of steps, beside those of the degraded ones."""

import json

import numpy as np
import PIL.Image
import pytest
import torch

from pipeline_pfgmpp import PFGMPPRestorationPipeline, PFGMPPScheduler, PFGMPPUNet2DModel
from pipeline_pfgmpp.commands import main
from pipeline_pfgmpp.data import ImageDataset, ImageTransform
from pipeline_pfgmpp.evaluation.features import load_lpips
from pipeline_pfgmpp.evaluation.restoration import (
    Pair,
    evaluate_restoration,
    format_restoration,
    list_pairs,
    measure_distances,
)


@pytest.fixture(autouse=True)
def calm(one_thread):
    """Small networks on one thread."""


def make_pipeline(channels=1, value_range=None, D=64, condition_channels=None, **options):
    torch.manual_seed(0)
    unet = PFGMPPUNet2DModel(
        sample_size=16,
        in_channels=channels,
        out_channels=channels,
        condition_channels=condition_channels or channels,
        model_channels=16,
        channel_mult=(1, 1),
        num_blocks=1,
        attn_resolutions=(),
        **options,
    ).eval()
    for name, weight in unet.named_parameters():  # some start near zero, where faults go unnoticed
        if weight.ndim == 4 or "map_dimension" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return PFGMPPRestorationPipeline(unet, PFGMPPScheduler(D=D), value_range=value_range)


def make_pairs(sizes=((16, 16), (24, 18), (16, 16)), level=0.1):
    rng = torch.Generator().manual_seed(0)
    truths = [torch.rand(1, *size, generator=rng) for size in sizes]
    return [Pair(truth + level * torch.randn(truth.shape, generator=rng), truth) for truth in truths]


def test_distances_are_what_they_are_called():
    truth = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.2
    found = measure_distances(truth + torch.tensor([0.1, 0.01]).view(2, 1, 1, 1), truth)
    assert found["psnr"] == pytest.approx([20, 40], rel=1e-4)
    assert measure_distances(truth, truth)["ssim"] == pytest.approx([1, 1], rel=1e-5)
    noisy = truth + 0.2 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(1))
    assert all(value < 0.9 for value in measure_distances(noisy, truth)["ssim"])
    assert measure_distances(truth, truth)["psnr"] == [100, 100]  # with infinity there would be no mean


class Perceptual(torch.nn.Module):
    """Stands for LPIPS's network: its embedding is the mean of each channel, of 0 to 255."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(1 / 255))

    def forward(self, images: torch.Tensor, resize_images: bool = True, return_lpips: bool = False):
        if resize_images or not return_lpips:
            return torch.zeros(len(images), 1)
        return images.mean(dim=(2, 3)) * self.scale


class Features(torch.nn.Module):
    def forward(self, images: torch.Tensor, return_features: bool = False):
        return images


def test_lpips_is_measured_by_a_program_that_may_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.jit.script(Perceptual()).save("vgg16.pt")
    lpips = load_lpips("vgg16.pt", trust_remote_code=True)
    truth = torch.full((2, 1, 16, 16), 0.2)
    images = truth + torch.tensor([0.0, 0.4]).view(2, 1, 1, 1)
    found = measure_distances(images, truth, lpips)["lpips"]
    assert found == pytest.approx([0, 3 * 0.4**2], abs=1e-5)  # a grey image has three equal channels
    pipeline = make_pipeline()
    entries = evaluate_restoration(pipeline, make_pairs(), [64.0], [1], lpips=lpips)
    assert all(entry["lpips"] > 0 for entry in entries)
    assert "| PSNR, dB | SSIM | LPIPS |" in format_restoration(entries)

    pairs = [Pair(torch.zeros(2, 16, 16), torch.zeros(2, 16, 16))]
    with pytest.raises(ValueError, match="LPIPS is a distance between images of 1 or 3 channels, but these"):
        evaluate_restoration(make_pipeline(channels=2), pairs, [64.0], [1], lpips=lpips)
    with pytest.raises(ValueError, match="is a TorchScript program, which runs only with trust_remote_code"):
        load_lpips("vgg16.pt")
    torch.jit.script(Features()).save("other.pt")
    with pytest.raises(ValueError, match="must take `return_lpips`, but this one takes images, return_feat"):
        load_lpips("other.pt", trust_remote_code=True)
    torch.save({}, "weights.pt")
    with pytest.raises(ValueError, match="weights.pt is not a TorchScript program"):
        load_lpips("weights.pt", trust_remote_code=True)


@pytest.mark.parametrize("value_range", [None, (-1000.0, 3000.0)])
def test_every_d_and_number_of_steps_is_measured_at_any_size(value_range):
    pipeline = make_pipeline(value_range=value_range, d_conditioning=True)
    pairs = make_pairs()
    entries = evaluate_restoration(pipeline, pairs, [16.0, float("inf")], [1, 2], batch_size=2)
    assert [(entry.get("D"), entry.get("steps"), entry.get("calls")) for entry in entries] == [
        (None, None, None), ("16", 1, 1), ("16", 2, 3), ("∞", 1, 1), ("∞", 2, 3)
    ]  # fmt: skip
    means = [np.mean(measure_distances(pair.degraded[None], pair.truth[None])["psnr"]) for pair in pairs]
    assert entries[0]["psnr"] == pytest.approx(np.mean(means), rel=1e-6)
    pair = pairs[-1]
    low, high = value_range or (0, 1)
    restored = pipeline(
        low + (high - low) * pair.degraded[None], num_inference_steps=2, D=16, output_type="pt",
        generator=torch.Generator().manual_seed(len(pairs) - 1),
    ).images  # fmt: skip
    alone = evaluate_restoration(pipeline, pairs, [16.0], [2], batch_size=1)
    one = measure_distances((restored - low) / (high - low), pair.truth[None])["psnr"]
    others = evaluate_restoration(pipeline, pairs[:-1], [16.0], [2], batch_size=1)[1]["psnr"]
    assert one[0] == pytest.approx(len(pairs) * alone[1]["psnr"] - (len(pairs) - 1) * others, rel=1e-4)
    assert entries[2]["psnr"] != pytest.approx(entries[4]["psnr"], rel=1e-6)
    table = format_restoration(entries)
    assert table.count("\n") == 7
    assert f"| degraded |  |  | {entries[0]['psnr']:.2f} |" in table


@pytest.mark.parametrize("value_range", [None, (-1000.0, 3000.0)])
def test_nothing_of_the_restored_image_is_the_degraded_one(value_range):
    pipeline = make_pipeline(value_range=value_range)
    pairs = [Pair(pair.degraded.clamp(0, 1), pair.truth) for pair in make_pairs()]
    degraded, kept = evaluate_restoration(pipeline, pairs, [64.0], [1], start_sigma=0.1, blend=0.0)
    assert kept["psnr"] == pytest.approx(degraded["psnr"], rel=1e-4)
    assert kept["ssim"] == pytest.approx(degraded["ssim"], rel=1e-3)


def test_batches_change_nothing():
    pairs = make_pairs()
    one, four = (
        evaluate_restoration(make_pipeline(), pairs, [64.0], [2], batch_size=size) for size in (1, 4)
    )
    assert one[1]["psnr"] == pytest.approx(four[1]["psnr"], rel=1e-4)


def test_pairs_are_read_or_made_whole():
    images = torch.randint(0, 256, (3, 1, 16, 12), dtype=torch.uint8)
    made = list_pairs(ImageDataset(images), ["gaussian=0.1"])
    again = list_pairs(ImageDataset(images), ["gaussian=0.1"])
    assert torch.equal(made[2].degraded, again[2].degraded)
    assert not torch.equal(
        made[2].degraded, list_pairs(ImageDataset(images), ["gaussian=0.1"], 1)[2].degraded
    )
    torch.testing.assert_close(made[0].truth, images[0] / 255)
    joined = ImageDataset(torch.cat([images, 255 - images], dim=1), paired_channels=1)
    for pair in list_pairs(joined):
        torch.testing.assert_close(pair.degraded, 1 - pair.truth)
    with pytest.raises(ValueError, match="The images have no degraded versions"):
        list_pairs(ImageDataset(images))
    with pytest.raises(ValueError, match="SSIM needs at least 11x11 pixels, but an image has 16x10"):
        list_pairs(ImageDataset(images[..., :10], transform=ImageTransform((1, 1))), ["gaussian=0.1"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, and a folder of pictures of two sizes with their degraded versions."""
    folder = tmp_path_factory.mktemp("restoration")
    make_pipeline().save_pretrained(folder / "model")
    data = folder / "data" / "test"
    data.mkdir(parents=True)
    rows = []
    for number, size in enumerate([(16, 16), (20, 14), (16, 16)]):
        pixels = np.random.default_rng(number).integers(0, 256, size, np.uint8)
        PIL.Image.fromarray(pixels).save(data / f"{number}.png")
        PIL.Image.fromarray(pixels // 2).save(data / f"{number}-dark.png")
        rows.append({"file_name": f"{number}.png", "dark_file_name": f"{number}-dark.png"})
    (data / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def evaluate_folder(folder, *args):
    command = ["evaluate-restoration", folder / "model", "--data", folder / "data", *args]
    main(list(map(str, command)))


def test_the_command_measures_a_folder_of_pairs(folder, tmp_path, capsys):
    args = ["--num-inference-steps", "1,2", "--start-sigma", 0.2, "--num-images", 2, "--output", tmp_path]
    evaluate_folder(folder, "--condition-column", "dark", *args)
    report = json.loads((tmp_path / "restoration.json").read_text())
    assert [entry.get("calls") for entry in report["results"]] == [None, 1, 3]
    assert report["settings"]["num_images"] == 2
    assert "| degraded |" in capsys.readouterr().out
    dark = np.array(PIL.Image.open(folder / "data/test/0-dark.png")) / 255
    bright = np.array(PIL.Image.open(folder / "data/test/0.png")) / 255
    evaluate_folder(folder, "--condition-column", "dark", *args[:-4], "--num-images", 1, "--output", tmp_path)
    report = json.loads((tmp_path / "restoration.json").read_text())
    assert report["results"][0]["psnr"] == pytest.approx(
        -10 * np.log10(np.mean((dark - bright) ** 2)), rel=1e-4
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "give one of --condition-column and --degradation"),
        (["--degradation", "grey", "--condition-column", "dark"], "give one of --condition-column and"),
        (["--condition-column", "light"], "`condition_column` is 'light', but the data set has the columns"),
        (["--degradation", "haze"], "`degradation` must be made of blur"),
        (["--degradation", "grey", "--image-column", "image", "--D", "16"], "--D is 16, but this network"),
        (["--degradation", "grey", "--split", "train"], "cannot be opened"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(args, message, folder, tmp_path, capsys):
    with pytest.raises(SystemExit):
        evaluate_folder(folder, *args, "--output", tmp_path / "out")
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_network_of_other_channels_needs_a_column(folder, tmp_path, capsys):
    make_pipeline(channels=3, condition_channels=1).save_pretrained(tmp_path)
    args = ["evaluate-restoration", str(tmp_path), "--data", str(folder / "data"), "--degradation", "grey"]
    with pytest.raises(SystemExit):
        main(args)
    assert "makes images of 3 channels, but the network restores them from 1" in capsys.readouterr().err
