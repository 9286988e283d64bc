"""Guidance, editing along the exact flow, and likelihood."""

import math

import numpy as np
import PIL.Image
import pytest
import scipy.stats
import torch
from conftest import ROOT
from datasets import load_dataset
from diffusers import ConfigMixin, DiffusionPipeline, EDMEulerScheduler, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from test_pipeline_pfgmpp import generator, our_unet, pipeline

from pipeline_pfgmpp import (
    EmpiricalDenoiser,
    PFGMPPPipeline,
    PFGMPPScheduler,
    interpolate_noise,
    sample_noise,
)
from pipeline_pfgmpp.data import load_images
from pipeline_pfgmpp.images import prepare_mask


@pytest.fixture(scope="module")
def bundled():
    pipe = DiffusionPipeline.from_pretrained(ROOT / "model_cards" / "pfgmpp-fashion-mnist")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def clothes(fashion_mnist):
    return load_images(load_dataset(str(fashion_mnist), split="test"), resolution=28)


# Guidance


class CallCounter:
    """Counts a network's calls and the images in each."""

    def __init__(self, unet):
        self.batches = []
        unet.register_forward_pre_hook(lambda module, args: self.batches.append(len(args[0])))


def test_guidance_is_one_call_of_twice_the_batch_and_only_inside_the_interval():
    pipe = pipeline(our_unet(label_dim=4))
    counter = CallCounter(pipe.unet)
    pipe(batch_size=3, num_inference_steps=4, class_labels=1, guidance_scale=2.0)
    assert counter.batches == [6] * 7
    counter.batches.clear()
    pipe(
        batch_size=3,
        num_inference_steps=4,
        class_labels=1,
        guidance_scale=2.0,
        guidance_interval=(0.01, 20.0),
    )
    sigmas = pipe.scheduler.sigmas[:-1]
    assert counter.batches == [6 if 0.01 <= sigma <= 20 else 3 for sigma in sigmas.tolist()]
    assert 0 < counter.batches.count(6) < 7


def test_autoguidance_extrapolates_from_the_weaker_network():
    strong, weak = our_unet(label_dim=4), our_unet(label_dim=4)
    weak.dec["8x8_aux_conv"].weight.data.mul_(0.5)
    kwargs = {
        "latents": torch.randn(2, 3, 8, 8),
        "class_labels": 2,
        "num_inference_steps": 1,  # one step: the denoised image
        "output_type": "latent",
    }
    from_strong, from_weak = (pipeline(unet)(**kwargs).images for unet in (strong, weak))
    pipe = PFGMPPPipeline(strong, PFGMPPScheduler(), guidance_unet=weak)
    pipe.set_progress_bar_config(disable=True)
    torch.testing.assert_close(pipe(**kwargs).images, from_strong)  # guidance_scale is 1
    guided = pipe(guidance_scale=1.8, **kwargs).images
    torch.testing.assert_close(guided, from_weak + 1.8 * (from_strong - from_weak), rtol=1e-4, atol=1e-4)


def test_the_guiding_network_is_saved_and_loaded(tmp_path):
    pipe = PFGMPPPipeline(our_unet(), PFGMPPScheduler(), guidance_unet=our_unet())
    pipe.save_pretrained(tmp_path / "with")
    assert DiffusionPipeline.from_pretrained(tmp_path / "with").guidance_unet is not None
    pipeline().save_pretrained(tmp_path / "without")
    assert DiffusionPipeline.from_pretrained(tmp_path / "without").guidance_unet is None
    assert not (tmp_path / "without" / "guidance_unet").exists()
    with pytest.raises(ValueError, match="`in_channels` is 1 in `guidance_unet` but 3 in `unet`"):
        PFGMPPPipeline(our_unet(), PFGMPPScheduler(), guidance_unet=our_unet(channels=1))


# Editing


def test_inverting_real_images_and_sampling_returns_them(bundled, clothes):
    images, labels = clothes.images[:2], clothes.labels[:2]
    latents = bundled.invert(images, num_inference_steps=64, class_labels=labels)
    returned = bundled(
        latents=latents, class_labels=labels, num_inference_steps=64, output_type="latent"
    ).images
    assert (returned - (images.float() / 127.5 - 1)).abs().max() < 1e-2


@pytest.mark.parametrize("D", [16, None])
def test_inversion_undoes_sampling(D, ten_images):
    """Go from unit latents to samples and back, in the exact field of overlapping charges."""
    data = torch.nn.functional.avg_pool2d(ten_images, 4)
    pipe = PFGMPPPipeline(EmpiricalDenoiser(data), PFGMPPScheduler(D=D, sigma_min=0.5))
    pipe.set_progress_bar_config(disable=True)
    latents = sample_noise((6, 1, 7, 7), D, generator())
    pipe.scheduler = PFGMPPScheduler.from_config(pipe.scheduler.config, final_sigmas_type="sigma_min")
    middle = pipe(
        latents=latents, num_inference_steps=100, output_type="latent"
    ).images  # x at sigma_min, not yet an image
    x, _, scheduler = pipe._prepare_reverse(middle, 100, None)
    for t in scheduler.timesteps:
        output = pipe.unet(scheduler.scale_model_input(x, t), t, D=D).sample
        x = scheduler.step(output, t, x).prev_sample
    torch.testing.assert_close(x / scheduler.sigmas[-1], latents, rtol=2e-3, atol=2e-3)
    # A constant image lies within the range, and `invert` gives the latents from which it is drawn.
    pipe.scheduler = PFGMPPScheduler(D=D)
    image = data[:2] / 2 + 0.5
    drawn = pipe(latents=pipe.invert(image, 100), num_inference_steps=100, output_type="pt").images
    torch.testing.assert_close(drawn, image, rtol=2e-2, atol=2e-2)


def test_inversion_needs_no_scheduler_of_ours_and_puts_nothing_back():
    pipe = pipeline(D=64)
    image = torch.rand(2, 3, 8, 8)
    expected = pipe.invert(image, num_inference_steps=8)
    for scheduler in (
        EDMEulerScheduler.from_config(pipe.scheduler.config),
        PFGMPPScheduler(D=64, s_churn=10.0),
        PFGMPPScheduler(D=64, solver_type="dpmpp_2m_sde"),
    ):
        pipe.scheduler = scheduler
        torch.testing.assert_close(pipe.invert(image, num_inference_steps=8), expected)


@pytest.mark.parametrize("solver_type", ["heun", "euler", "dpmpp_3m"])
def test_strength_starts_midway_with_student_t_noise(solver_type):
    pipe = pipeline(D=4, solver_type=solver_type)
    image = torch.rand(3, 3, 8, 8)
    seen = []

    def keep(pipe, step, timestep, tensors):
        seen.append(pipe.scheduler.sigmas[pipe.scheduler.step_index - 1].item())

    for strength, steps in ((1.0, 10), (0.6, 6), (0.55, 6), (0.01, 1)):
        seen.clear()
        pipe(batch_size=3, image=image, strength=strength, num_inference_steps=10, callback_on_step_end=keep)
        assert len(seen) == steps * pipe.scheduler.order - (pipe.scheduler.order - 1)
    # what the network first sees is the image with this noise on it
    inputs = []
    pipe.unet.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    pipe(image=image, strength=0.6, num_inference_steps=10, generator=generator(3))
    sigma = pipe.scheduler.sigmas[4 * pipe.scheduler.order]
    noisy = 2 * image - 1 + sigma * sample_noise(image.shape, 4, generator(3))
    torch.testing.assert_close(inputs[0], pipe.scheduler.precondition_inputs(noisy, sigma))


def test_a_single_step_has_no_strength():
    pipe = pipeline()
    image = torch.zeros(1, 3, 8, 8)
    with pytest.raises(
        ValueError, match="`strength` is 0.05, but a single step always begins at the largest"
    ):
        pipe(image=image, strength=0.05, num_inference_steps=1)
    pipe(image=image, num_inference_steps=1)


def test_a_little_strength_changes_an_image_little(bundled, clothes):
    image = clothes.images[:4]
    kwargs = {
        "image": image,
        "class_labels": clothes.labels[:4],
        "output_type": "latent",
        "num_inference_steps": 10,
    }
    original = image.float() / 127.5 - 1
    changes = [
        (bundled(strength=strength, generator=generator(), **kwargs).images - original)
        .square()
        .mean()
        .sqrt()
        .item()
        for strength in (0.2, 0.5, 1.0)
    ]
    assert changes[0] < 0.05 < changes[1] < changes[2]


@pytest.mark.parametrize("solver_type", ["heun", "dpmpp_2m"])
def test_inpainting_keeps_what_is_not_masked(solver_type, bundled, clothes):
    images, labels = clothes.images[:16], clothes.labels[:16]
    original = images.float() / 127.5 - 1
    mask = torch.zeros(28, 28, dtype=torch.bool)
    mask[14:] = True
    pipe = PFGMPPPipeline(
        bundled.unet, PFGMPPScheduler.from_config(bundled.scheduler.config, solver_type=solver_type)
    )
    pipe.set_progress_bar_config(disable=True)
    kwargs = {"class_labels": labels, "num_inference_steps": 8, "output_type": "latent"}
    painted = pipe(16, image=images, mask_image=mask, generator=generator(), **kwargs).images
    assert torch.equal(painted[..., :14, :], original[..., :14, :])
    # what is painted fits what is kept: the seam is far smaller than where another drawing is pasted in
    pasted = torch.where(mask, pipe(16, generator=generator(), **kwargs).images, original)
    seam, edge = ((x[..., 14, :] - x[..., 13, :]).abs().mean() for x in (painted, pasted))
    assert seam < 0.7 * edge
    picture = PIL.Image.fromarray((mask.numpy() * 255).astype("uint8"))
    few = {"image": images, "class_labels": labels, "num_inference_steps": 1, "output_type": "latent"}
    once = pipe(16, mask_image=mask, generator=generator(), **few).images
    assert torch.equal(pipe(16, mask_image=picture, generator=generator(), **few).images, once)
    others = pipe(16, mask_image=mask, generator=generator(1), **few).images
    assert (others - once)[..., 14:, :].abs().mean() > 0.02


@pytest.mark.parametrize("form", [torch.uint8, torch.uint16, torch.int64, torch.float32, "L"])
def test_masks_of_zeros_and_ones_of_any_type_select_the_ones(form):
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[4:] = True
    given = PIL.Image.fromarray(mask.numpy().astype("uint8")) if form == "L" else mask.to(form)
    assert torch.equal(prepare_mask(given, torch.zeros(1, 1, 8, 8), 1)[0, 0], mask)


def test_temperature_scales_the_prior():
    pipe = pipeline(D=16)
    latents = sample_noise((2, 3, 8, 8), 16, generator())
    kwargs = {"num_inference_steps": 3, "output_type": "latent"}
    cold = pipe(latents=latents, temperature=0.7, **kwargs).images
    assert torch.equal(cold, pipe(latents=0.7 * latents, **kwargs).images)


def test_pictures_of_any_form_are_the_same_image():
    pipe = pipeline(D=64)
    array = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    floats = torch.from_numpy(array).permute(0, 3, 1, 2).float() / 255
    forms = [
        array,
        [PIL.Image.fromarray(each) for each in array],
        torch.from_numpy(array).permute(0, 3, 1, 2),
        floats,
    ]
    results = [pipe.invert(form, num_inference_steps=3) for form in forms]
    for result in results[1:]:
        torch.testing.assert_close(result, results[0])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"image": torch.full((1, 3, 8, 8), 1.5)}, r"`image` must lie in \[0, 1\] \(floats\)"),
        ({"image": torch.full((1, 3, 8, 8), 300)}, r"`image` must lie in \[0, 255\] \(integers\)"),
        ({"image": torch.zeros(1, 1, 8, 8)}, "`image` must hold images of shape"),
        ({"image": "cat.png"}, "`image` must hold images of shape"),
        ({"image": torch.zeros(2, 3, 8, 8), "batch_size": 3}, "`image` holds 2 images for a batch of 3"),
        ({"image": torch.zeros(1, 3, 8, 8), "strength": 0.0}, "`strength` must lie in"),
        ({"image": torch.zeros(1, 3, 8, 8), "mask_image": torch.ones(4, 4)}, "`mask_image` must be of size"),
        ({"strength": 0.5}, "`strength` and `mask_image` need an `image`"),
        ({"mask_image": torch.ones(8, 8)}, "`strength` and `mask_image` need an `image`"),
        ({"temperature": 0.0}, "`temperature` must be positive"),
        ({"guidance_interval": (2.0, 1.0)}, "`guidance_interval` must be"),
        ({"sigmas": [1.0, 2.0]}, "must be a decreasing list"),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(kwargs, message):
    with pytest.raises(ValueError, match=message) as error:
        pipeline()(**kwargs)
    assert "\n" not in str(error.value)


def test_custom_noise_levels():
    pipe = pipeline()
    pipe(sigmas=[40.0, 3.0, 0.1])
    assert pipe.scheduler.sigmas[:: pipe.scheduler.order].tolist() == pytest.approx([40.0, 3.0, 0.1])
    pipe.scheduler = EDMEulerScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(ValueError, match="`sigmas` are for a PFGMPPScheduler"):
        pipe(sigmas=[40.0, 3.0, 0.1])


# Interpolation


def test_interpolation_meets_its_ends_and_goes_along_the_circle():
    a, b = sample_noise((3, 1, 8, 8), 1, generator(1)), sample_noise((3, 1, 8, 8), 1, generator(2))
    torch.testing.assert_close(interpolate_noise(a, b, 0.0), a)
    torch.testing.assert_close(interpolate_noise(a, b, 1.0), b)
    middle = interpolate_noise(a, b, torch.tensor([0.5, 0.5, 0.5])).flatten(1)
    torch.testing.assert_close(
        middle.norm(dim=1), (a.flatten(1).norm(dim=1) * b.flatten(1).norm(dim=1)).sqrt()
    )
    for end in (a, b):  # as far from the one as from the other
        cosine = torch.nn.functional.cosine_similarity(middle, end.flatten(1))
        whole = torch.nn.functional.cosine_similarity(a.flatten(1), b.flatten(1)).acos()
        torch.testing.assert_close(cosine.acos(), whole / 2, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(interpolate_noise(a, a, 0.3), a)
    with pytest.raises(ValueError, match="must be of one shape"):
        interpolate_noise(a, b[:2], 0.5)


@pytest.mark.parametrize("D", [4, 64, None])
def test_interpolated_noise_stays_on_the_shells_of_the_prior(D):
    """
    Halfway between two draws the radius lies within the range of draws, where a straight line falls
    inside it.
    """
    a, b = (sample_noise((2000, 784), D, generator(seed), dtype=torch.float64) for seed in (1, 2))
    drawn = a.norm(dim=1).log()
    middle = interpolate_noise(a, b, 0.5).norm(dim=1).log()
    straight = ((a + b) / 2).norm(dim=1).log()
    assert (middle.mean() - drawn.mean()).abs() < 0.03
    assert straight.mean() < drawn.mean() - 0.1
    assert middle.std() < 1.05 * drawn.std()


# Likelihood


class GaussianDenoiser(ModelMixin, ConfigMixin):
    """
    The posterior mean of data N(0, spread^2) under the Student-t kernel: a mixture over the
    kernel's hidden scale.
    """

    @register_to_config
    def __init__(self, spread=0.4, width=2, sigma_data=0.5):
        super().__init__()
        self.register_to_config(sample_size=(1, width), in_channels=1, d_conditioning=True)
        self.anchor = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, sample, timestep, D=None, return_dict=True):
        config = self.config
        sigma = (4 * timestep.double()).exp()
        norm = (sigma**2 + config.sigma_data**2).sqrt()
        x = sample.double() * norm
        if D is None:
            chi2, weight = torch.ones(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
        else:
            grid = torch.from_numpy(scipy.stats.chi2(D).ppf((np.arange(1000) + 0.5) / 1000))
            chi2, weight = grid / D, torch.full((1000,), 1 / 1000, dtype=torch.float64)
        variance = config.spread**2 + sigma**2 / chi2  # of x, given the scale
        radius = x.flatten(1).square().sum(1, keepdim=True)
        dims = x[0].numel()
        log_posterior = weight.log() - dims / 2 * variance.log() - radius / (2 * variance)
        shrink = (log_posterior.softmax(1) * config.spread**2 / variance).sum(1).view(-1, 1, 1, 1)
        output = (shrink * x - config.sigma_data**2 / norm**2 * x) * norm / (sigma * config.sigma_data)
        output = output.to(sample.dtype)
        return UNet2DOutput(sample=output) if return_dict else (output,)


@pytest.fixture
def gaussian():
    """Make points of width 1 or 2, with their exact log-density under N(0, 0.4^2)."""

    def points(width):
        points = (
            torch.linspace(-0.9, 0.9, 7, dtype=torch.float64).view(7, 1, 1, 1)
            * torch.tensor([1.0, 0.5])[:width]
        )
        return points, torch.distributions.Normal(0.0, 0.4).log_prob(points).sum((1, 2, 3))

    return points


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("D", [4, 64, None])
def test_the_likelihood_of_a_gaussian(D, width, gaussian):
    pipe = PFGMPPPipeline(GaussianDenoiser(width=width), PFGMPPScheduler(D=D))
    pipe.set_progress_bar_config(disable=True)
    points, expected = gaussian(width)
    images = points / 2 + 0.5
    result = pipe.log_likelihood(images, num_inference_steps=128, trace="exact", dequantize=False)
    assert (result.log_likelihood - expected).abs().max() < 1e-2
    assert result.standard_error.isnan().all()
    torch.testing.assert_close(
        result.bits_per_dim, math.log2(127.5) - result.log_likelihood / width / math.log(2)
    )


def test_random_directions_estimate_the_trace_and_their_error(gaussian):
    pipe = PFGMPPPipeline(GaussianDenoiser(width=2), PFGMPPScheduler(D=4))
    pipe.set_progress_bar_config(disable=True)
    points, expected = gaussian(2)
    options = {"num_inference_steps": 64, "dequantize": False, "num_repeats": 12, "generator": generator()}
    result = pipe.log_likelihood(points / 2 + 0.5, **options)
    assert 0 < result.standard_error.max() < 0.5
    assert ((result.log_likelihood - expected).abs() < 0.03 + 4 * result.standard_error).all()


def test_real_clothes_are_likelier_than_their_negatives(bundled, clothes):
    images, labels = clothes.images[:2], clothes.labels[:2]
    kwargs = {"num_inference_steps": 12, "class_labels": labels}
    real, negative = (
        bundled.log_likelihood(each, generator=generator(), **kwargs).bits_per_dim
        for each in (images, 255 - images)
    )
    assert (real + 1 < negative).all()
    assert (real < 8).all()


@pytest.mark.parametrize(("value_range", "levels"), [
    (None, 256), ((0, 255), 256), ((0, 4095), 4096), ((0, 65535), 65536), ((-1000, 3000), 4001),
])  # fmt: skip
def test_deep_data_are_dequantised_at_their_own_levels(value_range, levels, gaussian):
    """The density stays that of the Gaussian, and more levels cost so many more bits."""
    pipe = PFGMPPPipeline(GaussianDenoiser(width=1), PFGMPPScheduler(D=64), value_range=value_range)
    pipe.set_progress_bar_config(disable=True)
    points, expected = gaussian(1)
    low, high = value_range or (0, 1)
    images = low + (points / 2 + 0.5) * (high - low)
    result = pipe.log_likelihood(images, num_inference_steps=64, trace="exact", generator=generator())
    noise = (result.log_likelihood - expected).abs()
    assert noise.max() < 0.06 * 256 / levels + 0.02
    torch.testing.assert_close(
        result.bits_per_dim, math.log2((levels - 1) / 2) - result.log_likelihood / math.log(2)
    )


@pytest.mark.parametrize("value_range", [(0, 1), (-1, 1), (0.5, 400.25)])
def test_floats_without_levels_are_not_dequantised(value_range):
    pipe = PFGMPPPipeline(GaussianDenoiser(width=1), PFGMPPScheduler(D=64), value_range=value_range)
    pipe.set_progress_bar_config(disable=True)
    images = torch.full((1, 1, 1, 1), 0.5)
    with pytest.raises(ValueError, match="`dequantize` must be False for data with values from"):
        pipe.log_likelihood(images, num_inference_steps=2)
    result = pipe.log_likelihood(images, num_inference_steps=2, dequantize=False)
    assert result.bits_per_dim.isfinite().all()


def test_dequantisation_and_directions_come_from_the_generator():
    pipe = pipeline(D=64)
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=generator())

    def run(seed):
        return pipe.log_likelihood(images, num_inference_steps=3, generator=generator(seed)).log_likelihood

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))
    for kwargs, message in (
        ({"trace": "none"}, "`trace` must be"),
        ({"num_repeats": 0}, "`num_repeats` must be"),
        ({"num_inference_steps": 1}, "at least 2"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe.log_likelihood(images, **kwargs)
