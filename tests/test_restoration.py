"""Restoration by networks that are conditioned on a degraded image."""

import itertools
import logging
import subprocess
import sys
import sysconfig

import numpy as np
import pytest
import torch
from conftest import ROOT
from diffusers import DiffusionPipeline, EDMDPMSolverMultistepScheduler, EDMEulerScheduler
from PIL import Image

from pipeline_pfgmpp import (
    PFGMPPPipeline,
    PFGMPPRestorationPipeline,
    PFGMPPScheduler,
    PFGMPPUNet2DModel,
    sample_noise,
)
from pipeline_pfgmpp.commands import main
from pipeline_pfgmpp.hub.pipeline_files import list_pipeline_files
from pipeline_pfgmpp.tiles import list_spans


pytestmark = pytest.mark.usefixtures("one_thread")


def make_pipeline(solver_type="heun", D=128, value_range=None, sigma_max=80.0, **options):
    """Make a pipeline with a small network in which every part matters."""
    common = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "condition_channels": 1,
        "model_channels": 8,
        "channel_mult": (1, 2),
        "num_blocks": 1,
        "attn_resolutions": (),
        "dropout": 0.0,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = PFGMPPUNet2DModel(**{**common, **options}).eval()
        for parameter in unet.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    scheduler = PFGMPPScheduler(D=D, solver_type=solver_type, sigma_max=sigma_max)
    pipe = PFGMPPRestorationPipeline(unet, scheduler, value_range=value_range)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw_images(*shape, seed=0):
    """Draw images in [0, 1]."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def seed(*numbers):
    return [torch.Generator().manual_seed(number) for number in numbers]


@torch.no_grad()
def denoise(pipe, x, y, sigma):
    """The denoised image F(x, y, sigma), by the equations of EDM's preconditioning."""
    scale = (sigma**2 + 0.25) ** -0.5
    c_noise = torch.tensor(sigma).log() / 4
    output = pipe.unet(scale * x, c_noise, condition=scale * y).sample
    return 0.25 * scale**2 * x + 0.5 * sigma * scale * output


# The published method


@pytest.mark.parametrize("name", ["ppfm_ddpmpp", "ppfm_adm"])
@pytest.mark.parametrize("output_type", ["latent", "pt"])
def test_one_call_is_the_published_one(name, output_type, golden):
    tensors, config = golden(name)
    unet = PFGMPPUNet2DModel(
        sample_size=config.pop("img_resolution"),
        in_channels=1,
        out_channels=config.pop("img_channels"),
        condition_channels=1,
        model_type=config.pop("model_type").removeprefix("c"),
        **{option: value for option, value in config.items() if option not in ("D", "decoder_type")},
    )
    unet.load_state_dict(
        {key.removeprefix("state.model."): value for key, value in tensors.items() if "state.model." in key}
    )
    scheduler = PFGMPPScheduler(D=config["D"], sigma_max=380.0)
    pipe = PFGMPPRestorationPipeline(unet.eval(), scheduler, value_range=(-1, 1))
    start, end = tensors["in.ppfm_levels"].tolist()
    restored = pipe(
        image=tensors["in.condition"],
        num_inference_steps=1,
        start_sigma=start,
        blend=0.7 * (1 - end / start),
        output_type=output_type,
    ).images
    expected = tensors["out.ppfm_one_call"]
    if output_type == "pt":
        expected = expected.clamp(-1, 1)
    assert (restored - expected).abs().max() < 1e-4


def test_hijacking_takes_the_last_of_the_published_levels():
    """Entered at one of them, PPFM's remaining levels follow, and each step ends in a blend."""
    pipe = make_pipeline("euler", sigma_max=380.0)
    pipe.scheduler.set_timesteps(8)
    levels = pipe.scheduler.sigmas.tolist()
    image = draw_images(2, 1, 8, 8)
    y = 2 * image - 1
    x = y
    for sigma, target in itertools.pairwise(levels[5:]):
        x = x + (target - sigma) * (x - denoise(pipe, x, y, sigma)) / sigma
        x = 0.7 * x + 0.3 * y
    restored = pipe(image, 3, start_sigma=levels[5], blend=0.7, output_type="latent").images
    torch.testing.assert_close(restored, x, atol=1e-5, rtol=1e-4)
    assert (restored - y).abs().max() > 1e-2


def test_heun_blends_when_a_step_ends():
    pipe = make_pipeline("heun")
    image = draw_images(1, 1, 8, 8)
    y = 2 * image - 1
    sigma, target = 2.0, 0.002
    slope = (y - denoise(pipe, y, y, sigma)) / sigma
    x = y + (target - sigma) * slope
    slope = (slope + (x - denoise(pipe, x, y, target)) / target) / 2
    x = 0.6 * (y + (target - sigma) * slope) + 0.4 * y
    expected = 0.6 * denoise(pipe, x, y, target) + 0.4 * y
    restored = pipe(image, 2, start_sigma=sigma, blend=0.6, output_type="latent").images
    torch.testing.assert_close(restored, expected, atol=1e-4, rtol=1e-3)
    assert pipe.num_timesteps == 3


@pytest.mark.parametrize("solver_type", ["heun", "euler", "dpmpp_3m"])
def test_a_blend_of_nothing_is_the_degraded_image(solver_type):
    image = draw_images(2, 1, 8, 8)
    restored = make_pipeline(solver_type)(image, 4, start_sigma=1.0, blend=0.0, output_type="pt").images
    torch.testing.assert_close(restored, image)


def test_from_the_prior_it_is_the_field_line_of_its_noise():
    pipe = make_pipeline("euler", D=16)
    image = draw_images(2, 1, 8, 8)
    y = 2 * image - 1
    pipe.scheduler.set_timesteps(4)
    levels = pipe.scheduler.sigmas.tolist()
    x = levels[0] * sample_noise((2, 1, 8, 8), 16, seed(3, 4))
    for sigma, target in itertools.pairwise(levels):
        x = x + (target - sigma) * (x - denoise(pipe, x, y, sigma)) / sigma
    restored = pipe(image, 4, generator=seed(3, 4), output_type="latent").images
    torch.testing.assert_close(restored, x, atol=1e-4, rtol=1e-3)


def test_each_image_depends_on_its_own_generator():
    pipe = make_pipeline()
    image = draw_images(2, 1, 8, 8)
    both = pipe(image, 2, generator=seed(3, 4), output_type="pt").images
    alone = pipe(image[1:], 2, generator=seed(4), output_type="pt").images
    other = pipe(image[1:], 2, generator=seed(5), output_type="pt").images
    torch.testing.assert_close(both[1:], alone, atol=1e-5, rtol=1e-4)
    assert (alone - other).abs().max() > 1e-3


def test_the_dial_of_d_turns_a_network_for_every_d():
    pipe = make_pipeline(d_conditioning=True)
    image = draw_images(1, 1, 8, 8)
    small, large = (pipe(image, 2, D=D, start_sigma=1.0, output_type="pt").images for D in (16, float("inf")))
    assert not torch.equal(small, large)


@pytest.mark.parametrize("tile_size", [None, 8])
def test_guidance_extrapolates_from_the_network_without_the_image(tile_size):
    pipe = make_pipeline("euler", sigma_max=1.0)
    image = draw_images(2, 1, 12, 12)

    def restore(image, scale=1.0):
        options = {"tile_size": tile_size, "generator": seed(0, 1), "output_type": "latent"}
        return pipe(image, 1, guidance_scale=scale, **options).images

    grey = torch.full_like(image, 0.5)  # which the network sees as 0, as where the image was dropped
    expected = torch.lerp(restore(grey), restore(image), 2.5)
    torch.testing.assert_close(restore(image, 2.5), expected, atol=1e-4, rtol=1e-4)
    assert (restore(image, 2.5) - restore(image)).abs().max() > 1e-2


def test_a_weaker_network_guides_with_the_same_image():
    pipe, weak = make_pipeline("euler"), make_pipeline("euler")
    with torch.no_grad():
        for parameter in weak.unet.parameters():
            parameter.mul_(0.9)
    image = draw_images(1, 1, 8, 8)
    options = {"start_sigma": 1.0, "output_type": "latent"}
    expected = torch.lerp(weak(image, 1, **options).images, pipe(image, 1, **options).images, 2.0)
    guided = PFGMPPRestorationPipeline(pipe.unet, pipe.scheduler, guidance_unet=weak.unet)
    torch.testing.assert_close(
        guided(image, 1, guidance_scale=2.0, **options).images, expected, atol=1e-4, rtol=1e-4
    )


def test_guidance_keeps_the_class():
    """The guide of a restoring network lacks the image alone."""
    pipe = make_pipeline("euler", sigma_max=1.0, label_dim=3)
    pipe.unet.map_label.weight.data.mul_(100)
    image = draw_images(2, 1, 8, 8)

    def restore(image, scale=1.0, label=2):
        options = {"class_labels": label, "generator": seed(0, 1), "output_type": "latent"}
        return pipe(image, 1, guidance_scale=scale, **options).images

    expected = torch.lerp(restore(torch.full_like(image, 0.5)), restore(image), 2.5)
    torch.testing.assert_close(restore(image, 2.5), expected, atol=1e-4, rtol=1e-4)
    assert (restore(image, 2.5, label=0) - expected).abs().max() > 2e-3


def test_the_configuration_of_the_scheduler_stays():
    pipe = make_pipeline(d_conditioning=True)
    pipe.scheduler = PFGMPPScheduler(D=16, sigmas={"heun": {"2": [80.0, 20.0]}})
    before = dict(pipe.scheduler.config)
    pipe(draw_images(1, 1, 8, 8), 3, start_sigma=0.5)
    assert dict(pipe.scheduler.config) == before
    assert pipe.scheduler.sigmas[0] == 0.5  # of the last call, as in PFGMPPPipeline
    pipe(draw_images(1, 1, 8, 8), 2)
    assert pipe.scheduler.sigmas.tolist() == [80.0, 20.0, 20.0, 0.0]


def test_levels_that_were_tuned_from_the_prior_are_not_taken_from_elsewhere():
    pipe = make_pipeline("euler")
    tuned = PFGMPPScheduler.from_config(pipe.scheduler.config, sigmas={"euler": {"2": [80.0, 20.0]}})
    image = draw_images(1, 1, 8, 8)
    plain = pipe(image, 2, start_sigma=0.5, output_type="pt").images
    pipe.scheduler = tuned
    assert torch.equal(pipe(image, 2, start_sigma=0.5, output_type="pt").images, plain)


# Sizes


@pytest.mark.parametrize("size", [(8, 8), (9, 14), (16, 24), (1, 3), (5, 2)])
def test_images_of_any_size_are_reflected_and_cut_back(size):
    pipe = make_pipeline(channel_mult=(1, 1, 1))
    image = draw_images(1, 1, *size)
    rows, columns = (-side % 4 for side in size)
    padded = np.pad(image.numpy(), ((0, 0), (0, 0), (0, rows), (0, columns)), "reflect")
    restored, expected = (
        pipe(given, 1, start_sigma=0.5, output_type="pt").images
        for given in (image, torch.from_numpy(padded))
    )
    assert restored.shape == image.shape
    torch.testing.assert_close(restored, expected[..., : size[0], : size[1]])


def test_other_channels_of_the_condition_start_from_the_prior():
    """Colouring: one channel in, three out."""
    pipe = make_pipeline(in_channels=3, out_channels=3)
    image = Image.fromarray(np.full((8, 12), 100, np.uint8))
    (restored,) = pipe(image, 2, generator=seed(0)).images
    assert (restored.mode, restored.size) == ("RGB", (12, 8))
    for options in ({"start_sigma": 1.0}, {"blend": 0.5}):
        with pytest.raises(ValueError, match="as many channels as the restored ones, 3, but `image` has 1"):
            pipe(image, 2, **options)


# Values


def test_values_of_the_data_go_in_and_come_out():
    """The same slice in Hounsfield units, as integers and as floats, and as what it is inside."""
    pipe = make_pipeline(value_range=(-1024, 3071))
    units = (draw_images(1, 8, 8, 1) * 4095 - 1024).round().numpy()
    options = {"num_inference_steps": 1, "start_sigma": 0.5, "blend": 0.5, "output_type": "np"}
    floats, integers = (pipe(units.astype(kind), **options).images for kind in (np.float32, np.int16))
    assert floats.shape == units.shape
    np.testing.assert_array_equal(floats, integers)
    pipe.register_to_config(value_range=None)
    plain = pipe((units + 1024) / 4095, **options).images
    np.testing.assert_allclose(floats, plain * 4095 - 1024, atol=0.1)
    (picture,) = pipe(Image.fromarray(np.full((8, 8), 7, np.uint8)), 1, start_sigma=0.5).images
    assert picture.mode == "L"


def test_values_beyond_the_range_are_taken_with_a_warning(caplog):
    """Metal in a CT; clipped where the result is in the range, and kept inside."""
    pipe = make_pipeline(value_range=(0, 100))
    image = torch.full((1, 1, 8, 8), 130.0)
    logging.getLogger("diffusers").propagate = True
    kept = pipe(image, 1, start_sigma=0.5, blend=0.0, output_type="latent").images
    assert "`image` holds values outside [0, 100]" in caplog.text
    torch.testing.assert_close(kept, torch.full_like(kept, 1.6))
    assert (pipe(image, 1, start_sigma=0.5, blend=0.0, output_type="pt").images == 100).all()
    caplog.clear()
    pipe(image - 30, 1, start_sigma=0.5)
    assert not caplog.text


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_close(dtype):
    pipe = make_pipeline()
    image = draw_images(1, 1, 8, 8)
    exact = pipe(image, 1, start_sigma=0.5, output_type="pt").images
    half = pipe.to(dtype)(image, 1, start_sigma=0.5, output_type="pt").images
    assert half.dtype == torch.float32
    assert (half - exact).abs().max() < 2e-2


# Folders


PROGRAM = """
import importlib.util
import torch
from diffusers import DiffusionPipeline

assert importlib.util.find_spec("pipeline_pfgmpp") is None
pipe = DiffusionPipeline.from_pretrained({0!r}, custom_pipeline={0!r}, trust_remote_code=True)
assert type(pipe).__name__ == "PFGMPPRestorationPipeline"
image = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
print(pipe(image, 2, start_sigma=0.5, output_type="pt").images.double().sum().item())
"""


def test_a_folder_loads_with_the_package_and_with_diffusers_alone(tmp_path):
    pipe = make_pipeline(value_range=(0, 4))
    folder = tmp_path / "model"
    pipe.save_pretrained(folder)
    image = draw_images(1, 1, 8, 8)
    options = {"num_inference_steps": 2, "start_sigma": 0.5, "output_type": "pt"}
    expected = pipe(image, **options).images
    loaded = DiffusionPipeline.from_pretrained(folder)
    assert type(loaded) is PFGMPPRestorationPipeline
    for name, weight in pipe.unet.state_dict().items():
        assert torch.equal(loaded.unet.state_dict()[name], weight)
    # Where in memory the loaded weights lie can change the last bit of a result on some processors.
    close = {"rtol": 0, "atol": 1e-6}
    torch.testing.assert_close(loaded(image, **options).images, expected, **close)
    again = PFGMPPRestorationPipeline.from_pipe(loaded)
    torch.testing.assert_close(again(image, **options).images, expected, **close)

    environment = {
        "PYTHONPATH": sysconfig.get_path("purelib"),
        "HF_HOME": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    # Without site-packages no .pth file is read, and the package's editable installation is not found.
    command = [sys.executable, "-S", "-c", PROGRAM.format(str(folder))]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    assert float(result.stdout) == pytest.approx(expected.double().sum().item(), rel=1e-5)


def test_a_folder_is_pushed_with_its_own_code(tmp_path):
    make_pipeline().save_pretrained(tmp_path)
    files = list_pipeline_files(tmp_path)
    package = ROOT / "pipeline_pfgmpp"
    assert files["pipeline.py"] == package / "pipeline_pfgmpp_restoration.py"
    assert files["pipeline_base.py"] == package / "pipeline_base.py"
    for name, source in files.items():
        if name.endswith(".py"):
            assert (tmp_path / name).read_bytes() == source.read_bytes()


# Several samples


def test_samples_of_one_image_stand_together():
    """As with diffusers' num_images_per_prompt: one generator per sample, those of the first image first."""
    pipe = make_pipeline(label_dim=2)
    image = draw_images(2, 1, 8, 8)
    options = {"num_inference_steps": 2, "output_type": "pt"}
    both = pipe(
        image, generator=seed(0, 1, 2, 3), class_labels=[0, 1], num_images_per_condition=2, **options
    ).images
    for index, number in ((0, 0), (0, 1), (1, 2), (1, 3)):
        alone = pipe(image[index][None], generator=seed(number), class_labels=index, **options).images
        torch.testing.assert_close(both[number][None], alone, atol=1e-5, rtol=1e-4)
    assert (both[0] - both[1]).abs().max() > 1e-3


def test_each_sample_draws_its_own_class():
    pipe = make_pipeline(label_dim=10)
    seen = []
    pipe.unet.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["class_labels"].argmax(1).tolist()), with_kwargs=True
    )
    numbers = range(8)
    image = draw_images(1, 1, 8, 8)
    pipe(image, 1, generator=seed(*numbers), num_images_per_condition=8)
    for number in numbers:
        pipe(image, 1, generator=seed(number))
    assert seen[0] == [labels[0] for labels in seen[1:]]
    assert len(set(seen[0])) > 1


def test_d_per_image_is_that_of_its_samples():
    pipe = make_pipeline(d_conditioning=True)
    image = draw_images(1, 1, 8, 8).repeat(2, 1, 1, 1)
    options = {"num_inference_steps": 2, "output_type": "pt", "num_images_per_condition": 2}
    mixed = pipe(image, D=torch.tensor([16.0, 64.0]), generator=seed(0, 1, 0, 1), **options).images
    for D, samples in ((16, mixed[:2]), (64, mixed[2:])):
        same = pipe(image[:1], D=D, generator=seed(0, 1), **options).images
        torch.testing.assert_close(samples, same, atol=1e-5, rtol=1e-4)


def test_equal_samples_are_refused():
    pipe = make_pipeline("euler")
    image = draw_images(1, 1, 8, 8)
    options = {"num_inference_steps": 3, "start_sigma": 1.0, "output_type": "pt"}
    with pytest.raises(ValueError, match="calls of this solver draw nothing at random"):
        pipe(image, num_images_per_condition=2, **options)
    own = pipe.scheduler
    for other in (EDMEulerScheduler, EDMDPMSolverMultistepScheduler):
        pipe.scheduler = other.from_config(own.config)
        with pytest.raises(ValueError, match="calls of this solver draw nothing at random"):
            pipe(image, num_images_per_condition=2, **options)
    pipe.scheduler = PFGMPPScheduler(D=128, solver_type="dpmpp_2m_sde")
    with pytest.raises(ValueError, match="1 calls of this solver draw nothing at random"):
        pipe(image, num_images_per_condition=2, **{**options, "num_inference_steps": 1})
    samples = pipe(image, num_images_per_condition=2, generator=seed(0, 1), **options).images
    assert not torch.equal(samples[0], samples[1])


def test_churn_does_not_raise_the_level_of_entry():
    pipe = make_pipeline("heun")
    pipe.scheduler = PFGMPPScheduler(D=128, s_churn=40)
    levels = []
    pipe(
        draw_images(1, 1, 8, 8), num_inference_steps=3, start_sigma=1.0, generator=seed(0),
        callback_on_step_end=lambda pipe, step, t, tensors: levels.append(pipe.scheduler.sigmas),
    )  # fmt: skip
    assert levels[0][0] == 1
    assert levels[0][2] > pipe.scheduler._levels[2]


# Callbacks


def test_a_callback_sees_and_changes_the_sample():
    pipe = make_pipeline("euler")
    image = draw_images(1, 1, 8, 8)
    steps = []

    def replace(pipe, step, t, tensors):
        steps.append((step, t.item(), pipe.num_timesteps, pipe.scheduler.sigmas[0].item()))
        assert set(tensors) == {"latents", "pred_original_sample"}
        if step == 0:
            torch.testing.assert_close(
                tensors["pred_original_sample"], denoise(pipe, 2 * image - 1, 2 * image - 1, 0.5)
            )
        return {"latents": torch.zeros_like(tensors["latents"])}

    restored = pipe(
        image,
        3,
        start_sigma=0.5,
        output_type="latent",
        callback_on_step_end=replace,
        callback_on_step_end_tensor_inputs=["latents", "pred_original_sample"],
    ).images
    assert (restored == 0).all()
    assert [step[0] for step in steps] == [0, 1, 2]
    assert {step[2:] for step in steps} == {(3, 0.5)}


def test_a_callback_interrupts():
    pipe = make_pipeline("euler")
    image = draw_images(1, 1, 8, 8)
    kept = []

    def stop(pipe, step, t, tensors):
        kept.append(tensors["latents"])
        pipe._interrupt = step == 1
        return {}

    options = {"num_inference_steps": 4, "start_sigma": 0.5, "output_type": "latent"}
    restored = pipe(image, callback_on_step_end=stop, **options).images
    assert len(kept) == 2
    assert torch.equal(restored, kept[-1])
    assert not torch.equal(pipe(image, **options).images, restored)  # the next call is not interrupted


# Tiles


class LocalNetwork(PFGMPPUNet2DModel):
    """A network that sees three pixels far, halves no size and normalises nothing; it counts its calls."""

    def forward(self, sample, timestep, return_dict=True, condition=None, **conditions):
        self.__dict__.setdefault("sizes", []).append(tuple(sample.shape))
        kernel = torch.linspace(-1, 1, 49, dtype=sample.dtype).view(1, 1, 7, 7) / 5
        output = torch.nn.functional.conv2d(torch.tanh(sample + 2 * condition), kernel, padding=3)
        return (torch.tanh(output + timestep),)


def make_local_pipeline(solver_type="euler", **options):
    pipe = make_pipeline(solver_type, **options)
    pipe.unet.__class__ = LocalNetwork
    return pipe


@pytest.mark.parametrize("solver_type", ["heun", "dpmpp_2m_sde"])
@pytest.mark.parametrize("size", [(48, 112), (112, 130), (40, 30)])
def test_tiles_are_invisible_to_a_network_that_sees_less_far_than_their_margin(solver_type, size):
    """Tiles of 48 overlap by 12 pixels, of which the 3 next to a cut are not used."""
    pipe = make_local_pipeline(solver_type)
    image = draw_images(2, 1, *size)
    options = {"num_inference_steps": 4, "output_type": "pt"}
    whole = pipe(image, generator=seed(0, 1), **options).images
    tiled = pipe(image, generator=seed(0, 1), tile_size=48, **options).images
    assert (whole - tiled).abs().max() < 1 / 255 / 100
    assert whole.std() > 0.1
    alone = pipe(image[1:], generator=seed(1), tile_size=48, **options).images
    torch.testing.assert_close(alone, tiled[1:], atol=1e-5, rtol=1e-4)


def test_a_network_that_sees_farther_than_the_margin_is_blended_smoothly():
    """Tiles of 16 have no margin of three pixels: the two differ, and no seam is a jump."""
    pipe = make_local_pipeline()
    image = torch.full((1, 1, 64, 64), 0.7)
    options = {"num_inference_steps": 1, "start_sigma": 1.0, "output_type": "pt"}
    difference = pipe(image, tile_size=16, **options).images - pipe(image, **options).images
    assert difference.abs().max() > 1e-4
    pipe.unet.sizes.clear()
    cut = torch.cat([pipe(image[..., first : first + 16], **options).images for first in range(0, 64, 16)], 3)
    jump = (cut - pipe(image, **options).images)[..., 16:48].diff().abs().max()
    assert difference[..., 16:48, 16:48].diff().abs().max() < jump / 2


def test_tiles_bound_what_the_network_sees():
    """130 pixels are padded to 132 and take three tiles of 64, 48 apart, and 64 takes one."""
    pipe = make_local_pipeline()
    pipe(draw_images(2, 1, 130, 64), 2, start_sigma=1.0, tile_size=64)
    assert pipe.unet.sizes == [(2, 1, 64, 64)] * 3 * 2
    pipe.unet.sizes.clear()
    pipe(draw_images(1, 1, 30, 20), 1, start_sigma=1.0, tile_size=64)
    assert pipe.unet.sizes == [(1, 1, 30, 20)]


@pytest.mark.parametrize("divisor", [1, 2, 8])
@pytest.mark.parametrize("tiles", [2, 3, 5, 8])
def test_windows_add_up_to_one(divisor, tiles):
    tile_size = tiles * divisor
    for size in range(divisor, 9 * tile_size, divisor):
        total = torch.zeros(size)
        for span, window in list_spans(size, tile_size, divisor):
            assert span.start % divisor == 0
            assert len(window) == span.stop - span.start <= tile_size
            assert (window >= 0).all()
            total[span] += window
        torch.testing.assert_close(total, torch.ones(size))


# Bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"image": torch.zeros(1, 2, 8, 8)},
            "`image` must hold images of shape (1, height, width), but is of",
        ),
        (
            {"image": torch.zeros(1, 1, 0, 8)},
            "`image` must hold images of shape (1, height, width), but is of",
        ),
        ({"image": []}, "`image` must hold images of shape (1, height, width), but is of"),
        ({"image": "scan.png"}, "`image` must hold images of shape (1, height, width), but is"),
        ({"image": None}, "`image` must hold images of shape (1, height, width), but is"),
        ({"image": torch.full((1, 1, 8, 8), float("nan"))}, "`image` must be finite, but holds NaN"),
        (
            {"image": torch.full((1, 1, 8, 8), 255.0)},
            "`image` must lie in [-1, 2] (floats), but ranges from 255",
        ),
        ({"start_sigma": 0.002}, "`start_sigma` must lie above 0.002 and up to 80"),
        ({"start_sigma": 81.0}, "`start_sigma` must lie above 0.002 and up to 80"),
        ({"start_sigma": "high"}, "`start_sigma` must lie above 0.002 and up to 80"),
        ({"start_sigma": float("nan")}, "`start_sigma` must lie above 0.002 and up to 80"),
        ({"blend": 1.5}, "`blend` must lie in [0, 1]"),
        ({"blend": -0.1}, "`blend` must lie in [0, 1]"),
        ({"blend": None}, "`blend` must lie in [0, 1]"),
        ({"num_inference_steps": 0}, "`num_inference_steps` must be a positive integer"),
        ({"D": 16}, "`D` is 16, but this network was trained at D = 128 only"),
        ({"class_labels": 3}, "this network is unconditional"),
        ({"guidance_scale": float("nan")}, "`guidance_scale` must lie in [-1000, 1000]"),
        ({"generator": seed(1, 2, 3)}, "`generator`"),
        ({"output_type": "jpeg"}, "`output_type` must be one of"),
        ({"num_images_per_condition": 0}, "`num_images_per_condition` must be a positive integer"),
        (
            {"num_images_per_condition": 2, "generator": seed(1)},
            "`generator` is a list of 1 for a batch of 2; give one per image",
        ),
        ({"tile_size": 2}, "`tile_size` must be a multiple of 2 and at least 4 for this network"),
        ({"tile_size": 7}, "`tile_size` must be a multiple of 2 and at least 4 for this network"),
        ({"tile_size": 64.0}, "`tile_size` must be a multiple of 2 and at least 4 for this network"),
        ({"callback_on_step_end": 3}, "`callback_on_step_end` must be a function"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, "`callback_on_step_end_tensor_inputs` may hold"),
    ],
)
def test_bad_arguments_are_refused_in_a_sentence(change, message):
    with pytest.raises(ValueError, match=r"\A[^\n]+\.\Z") as error:
        make_pipeline()(**{"image": draw_images(1, 1, 8, 8), "num_inference_steps": 1, **change})
    assert message in str(error.value)


def test_networks_and_pipelines_of_the_other_kind_are_refused(tmp_path, capsys):
    restoring = make_pipeline()
    with pytest.raises(ValueError, match="`unet` must be conditioned on an image to restore others"):
        PFGMPPRestorationPipeline(make_pipeline(condition_channels=0).unet, restoring.scheduler)(
            draw_images(1, 1, 8, 8)
        )
    with pytest.raises(ValueError, match="This network needs a `condition`"):
        PFGMPPPipeline(restoring.unet, restoring.scheduler)(num_inference_steps=1)
    for pipe in (restoring, PFGMPPPipeline(restoring.unet, restoring.scheduler)):
        pipe.save_pretrained(tmp_path / type(pipe).__name__)
        with pytest.raises(SystemExit) as stop:
            main(["sample", str(tmp_path / type(pipe).__name__), "--output", str(tmp_path / "grid.png")])
        assert stop.value.code == 1
        assert "restores images and generates none" in capsys.readouterr().err
