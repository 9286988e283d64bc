"""Pipelines with an autoencoder: what is an image outside is a latent inside."""

import math
import os
import subprocess
import sys
import sysconfig

import numpy as np
import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny, DiffusionPipeline
from PIL import Image

from pipeline_pfgmpp import PFGMPPPipeline, PFGMPPRestorationPipeline, PFGMPPScheduler, PFGMPPUNet2DModel
from pipeline_pfgmpp.evaluation.verify import DESCRIPTION
from pipeline_pfgmpp.generation import generate
from pipeline_pfgmpp.latents import decode_latents, encode_images, get_factor
from pipeline_pfgmpp.records.digests import describe


pytestmark = pytest.mark.usefixtures("one_thread")


def make_kl(channels=3, **options):
    torch.manual_seed(0)
    down = ("DownEncoderBlock2D",) * 2
    up = ("UpDecoderBlock2D",) * 2
    options = {"block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1, **options}
    return AutoencoderKL(channels, channels, down, up, latent_channels=4, **options).eval()


def make_tiny():
    torch.manual_seed(0)
    widths = (8, 8)
    blocks = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    return AutoencoderTiny(3, 3, widths, widths, latent_channels=4, **blocks).eval()


def make_dc():
    torch.manual_seed(0)
    widths = (8, 8, 8)
    options = {f"{name}_block_out_channels": widths for name in ("encoder", "decoder")}
    options |= {f"{name}_layers_per_block": (1, 1, 1) for name in ("encoder", "decoder")}
    options |= {f"{name}_qkv_multiscales": ((), (), ()) for name in ("encoder", "decoder")}
    return AutoencoderDC(3, 8, 4, scaling_factor=0.5, **options).eval()


VAES = pytest.mark.parametrize("make_vae", [make_kl, make_tiny, make_dc])


def make_unet(channels, **options):
    torch.manual_seed(1)
    options = {"in_channels": channels, "out_channels": channels, "channel_mult": (1,), **options}
    unet = PFGMPPUNet2DModel(sample_size=8, model_channels=16, num_blocks=1, attn_resolutions=(), **options)
    torch.nn.init.xavier_uniform_(unet.dec["8x8_aux_conv"].weight)
    return unet.eval()


def make_pipeline(vae, kind=PFGMPPPipeline, unet_options=None, **options):
    channels = vae.config.latent_channels
    unet = make_unet(channels, **(unet_options or {}))
    pipe = kind(unet, PFGMPPScheduler(D=64), vae=vae, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_restorer(vae, **options):
    channels = vae.config.latent_channels
    unet_options = {"condition_channels": channels, "channel_mult": (1, 1)}
    return make_pipeline(vae, PFGMPPRestorationPipeline, unet_options, **options)


def draw(pipe, **options):
    """Two images of seed 0, by few steps."""
    options = {"batch_size": 2, "num_inference_steps": 2, "output_type": "pt", **options}
    return pipe(generator=torch.Generator().manual_seed(0), **options).images


def make_pixels(count, height, width, channels=3, seed=3):
    rng = torch.Generator().manual_seed(seed)
    levels = torch.randint(0, 256, (count, channels, height, width), generator=rng)
    return levels / 255


def test_latents_are_scaled_and_shifted_as_the_configuration_says():
    images = make_pixels(2, 16, 16) * 2 - 1
    plain = make_kl(scaling_factor=1.0)
    raw = plain.encode(images).latent_dist
    for options, mean, deviation in (
        ({"scaling_factor": 0.25}, raw.mean * 0.25, raw.std * 0.25),
        ({"scaling_factor": 0.25, "shift_factor": 0.5}, (raw.mean - 0.5) * 0.25, raw.std * 0.25),
        (
            {"scaling_factor": 0.5, "latents_mean": [1.0] * 4, "latents_std": [2.0] * 4},
            (raw.mean - 1) / 2 * 0.5,
            raw.std / 2 * 0.5,
        ),
    ):
        vae = make_kl(**options)
        encoding = encode_images(vae, images)
        torch.testing.assert_close(encoding.mean, mean)
        torch.testing.assert_close(encoding.deviation, deviation)
        torch.testing.assert_close(decode_latents(vae, encoding.mean), plain.decode(raw.mean).sample)


@VAES
def test_encoding_and_decoding_are_those_of_diffusers(make_vae):
    vae = make_kl()
    factor = get_factor(vae)
    assert factor == {"AutoencoderDC": 4}.get(type(vae).__name__, 2)
    images = make_pixels(2, 8 * factor, 16 * factor) * 2 - 1
    mean, deviation = encode_images(vae, images)
    assert mean.shape == (2, vae.config.latent_channels, 8, 16)
    assert (deviation is not None) == isinstance(vae, AutoencoderKL)
    scale = vae.config.scaling_factor
    torch.testing.assert_close(decode_latents(vae, mean), vae.decode(mean / scale).sample)
    half = vae.half()  # its own type is its user's choice
    assert decode_latents(half, mean).dtype == encode_images(half, images).mean.dtype == torch.float32


def test_many_images_are_encoded_a_few_at_a_time(monkeypatch):
    vae = make_kl()
    images = make_pixels(3, 16, 16) * 2 - 1
    whole = encode_images(vae, images)
    monkeypatch.setattr("pipeline_pfgmpp.latents.PIXELS_AT_ONCE", 16 * 16)
    sizes = []
    vae.encoder.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    torch.testing.assert_close(encode_images(vae, images), whole)
    assert sizes == [1, 1, 1]
    assert decode_latents(vae, whole.mean).shape == images.shape


@VAES
def test_samples_are_decoded(make_vae):
    pipe = make_pipeline(make_vae())
    size = pipe.image_size
    assert size == (8 * get_factor(pipe.vae),) * 2
    assert pipe.image_channels == 3
    latents = draw(pipe, output_type="latent")
    assert latents.shape == (2, pipe.unet.config.in_channels, 8, 8)
    images = (decode_latents(pipe.vae, latents) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(draw(pipe), images)
    assert draw(pipe, output_type="pil")[0].size == size[::-1]
    assert draw(pipe, output_type="np").shape == (2, *size, 3)
    ((_, many),) = generate(pipe, [0, 1], 2, None, num_inference_steps=2)
    assert many.shape == (2, 3, *size)


@VAES
def test_a_pipeline_is_saved_and_loaded_with_its_autoencoder(make_vae, tmp_path):
    pipe = make_pipeline(make_vae(), value_range=(0, 4095))
    expected = draw(pipe)
    pipe.save_pretrained(tmp_path)
    torch.testing.assert_close(draw(DiffusionPipeline.from_pretrained(tmp_path)), expected)
    for copy in (PFGMPPPipeline.from_pipe(pipe), PFGMPPPipeline(**pipe.components)):
        assert copy.vae is pipe.vae
        assert torch.equal(draw(copy), expected)


@VAES
def test_inversion_encodes_and_generation_decodes(make_vae):
    pipe = make_pipeline(make_vae())
    pixels = make_pixels(2, *pipe.image_size)
    latents = pipe.invert(pixels)
    assert latents.shape == (2, pipe.unet.config.in_channels, 8, 8)
    back = draw(pipe, latents=latents, num_inference_steps=64, output_type="latent")
    encoded = encode_images(pipe.vae, pixels * 2 - 1).mean
    assert (back - encoded).abs().max() < 0.02 * (1 + encoded.abs().max())


def test_the_likelihood_is_one_of_latents():
    pipe = make_pipeline(make_kl())
    pixels = make_pixels(2, *pipe.image_size)
    latents = encode_images(pipe.vae, pixels * 2 - 1).mean
    assert latents.abs().max() < 1
    bare = PFGMPPPipeline(pipe.unet, pipe.scheduler, value_range=(-1, 1))
    bare.set_progress_bar_config(disable=True)
    rng = [torch.Generator().manual_seed(0) for _ in range(2)]  # for the direction: nothing is dequantised
    ours = pipe.log_likelihood(pixels, 4, generator=rng[0])
    theirs = bare.log_likelihood(latents, 4, dequantize=False, generator=rng[1])
    torch.testing.assert_close(ours.log_likelihood, theirs.log_likelihood, rtol=1e-4, atol=1e-2)
    dims = latents[0].numel()
    torch.testing.assert_close(ours.bits_per_dim, -ours.log_likelihood / dims / math.log(2))


def make_picture(size, seed=0):
    levels = np.random.default_rng(seed).integers(0, 256, (*size, 3))
    return Image.fromarray(levels.astype(np.uint8))


@pytest.mark.parametrize("strength", [1.0, 0.5])
@VAES
def test_what_a_mask_keeps_is_the_original_itself(make_vae, strength):
    pipe = make_pipeline(make_vae())
    picture = make_picture(pipe.image_size)
    mask = np.zeros(pipe.image_size, bool)
    mask[3:9, 2:5] = True  # cuts through latents
    edited = draw(pipe, batch_size=1, image=picture, mask_image=mask, strength=strength, output_type="pil")[0]
    before = np.asarray(picture)
    after = np.asarray(edited)
    assert (after[~mask] == before[~mask]).all()
    assert (after[mask] != before[mask]).any()
    inside = draw(pipe, batch_size=1, image=picture, mask_image=mask, strength=strength, output_type="latent")
    factor = get_factor(pipe.vae)
    cells = torch.from_numpy(mask).unflatten(0, (-1, factor)).unflatten(2, (-1, factor)).any(3).any(1)
    kept = np.where(mask[..., None], 127.5, before) if strength == 1 else before
    pixels = torch.tensor(kept).float().permute(2, 0, 1)[None] / 127.5 - 1
    encoded = encode_images(pipe.vae, pixels).mean
    torch.testing.assert_close(inside[..., ~cells], encoded[..., ~cells])
    assert (inside[..., cells] - encoded[..., cells]).abs().max() > 1e-3


def test_at_full_strength_nothing_of_the_repainted_part_remains():
    pipe = make_pipeline(make_kl())
    picture = make_picture(pipe.image_size)
    mask = np.zeros(pipe.image_size, np.uint8)
    mask[4:12, 4:12] = 255
    other = picture.copy()
    other.paste((255, 0, 0), (4, 4, 12, 12))
    options = {"batch_size": 1, "mask_image": Image.fromarray(mask)}
    assert torch.equal(draw(pipe, image=picture, **options), draw(pipe, image=other, **options))
    weak = {**options, "strength": 0.5}
    assert not torch.equal(draw(pipe, image=picture, **weak), draw(pipe, image=other, **weak))


def test_an_image_is_encoded_before_it_is_perturbed():
    pipe = make_pipeline(make_kl())
    pixels = make_pixels(2, *pipe.image_size)
    little = draw(pipe, image=pixels, strength=0.05, num_inference_steps=20, output_type="latent")
    encoded = encode_images(pipe.vae, pixels * 2 - 1).mean
    assert (little - encoded).abs().max() < 0.1
    with pytest.raises(ValueError, match=r"`image` must hold images of shape \(3, 16, 16\)"):
        draw(pipe, image=pixels[..., :8])
    with pytest.raises(ValueError, match=r"`image` is of size \(16, 16\), but `latents` of \(8, 8\)"):
        draw(pipe, image=pixels, latents=torch.zeros(2, 4, 4, 4))


def test_components_that_do_not_fit_are_refused():
    scheduler = PFGMPPScheduler(D=64)
    for vae, message in (
        (make_dc(), "`in_channels` of `unet` is 4, but `vae` makes latents of 8 channels"),
        (torch.nn.Linear(1, 1), "`vae` must be an autoencoder of diffusers for images, .* but is Linear"),
        (make_unet(4), "`vae` must be an autoencoder"),
        (make_kl(6), "`vae` must take and return pictures of 1 to 4 channels, but takes 6"),
    ):
        with pytest.raises(ValueError, match=message):
            PFGMPPPipeline(make_unet(4), scheduler, vae=vae)
    with pytest.raises(ValueError, match="`condition_channels` of `unet` is 3, but `vae` makes"):
        PFGMPPRestorationPipeline(make_unet(4, condition_channels=3), scheduler, vae=make_kl())


@VAES
def test_images_of_any_size_are_restored_through_latents(make_vae):
    pipe = make_restorer(make_vae())
    factor = get_factor(pipe.vae)
    degraded = make_pixels(2, 13, 21)
    rng = torch.Generator().manual_seed(0)
    assert pipe(degraded, 2, generator=rng, output_type="pt").images.shape == degraded.shape
    latents = pipe(degraded, 2, generator=rng, output_type="latent").images
    assert latents.shape[2:] == (-(-13 // factor), -(-21 // factor))
    assert pipe.condition_channels == 3
    several = pipe(degraded, 2, num_images_per_condition=2, generator=rng, output_type="pt").images
    assert several.shape == (4, 3, 13, 21)
    # Nothing of the restored image: what remains is the degraded one, through the autoencoder.
    kept = pipe(degraded, 1, start_sigma=1.0, blend=0.0, output_type="pt").images
    side = 2 * factor
    padded = np.pad(degraded.numpy(), [(0, 0), (0, 0), (0, -13 % side), (0, -21 % side)], mode="reflect")
    through = decode_latents(pipe.vae, encode_images(pipe.vae, torch.from_numpy(padded) * 2 - 1).mean)
    torch.testing.assert_close(kept, (through[..., :13, :21] / 2 + 0.5).clamp(0, 1))


def test_tiles_are_counted_in_pixels():
    pipe = make_restorer(make_kl())
    degraded = make_pixels(1, 16, 40)
    tiled = pipe(degraded, 2, tile_size=16, generator=torch.Generator().manual_seed(0), output_type="pt")
    whole = pipe(degraded, 2, tile_size=40, generator=torch.Generator().manual_seed(0), output_type="pt")
    untiled = pipe(degraded, 2, generator=torch.Generator().manual_seed(0), output_type="pt")
    torch.testing.assert_close(whole.images, untiled.images)
    assert tiled.images.shape == degraded.shape
    assert not torch.equal(tiled.images, untiled.images)
    with pytest.raises(ValueError, match="`tile_size` must be a multiple of 4 and at least 8 .* but is 18"):
        pipe(degraded, 2, tile_size=18)


REMOTE = """
import importlib.util, sys, torch
from diffusers import DiffusionPipeline
assert importlib.util.find_spec("pipeline_pfgmpp") is None
folder, output = sys.argv[1:]
pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
rng = torch.Generator().manual_seed(0)
inputs = {"image": torch.zeros(1, 3, 16, 16)} if "condition_channels" in dir(pipe) else {"batch_size": 2}
torch.save(pipe(num_inference_steps=2, generator=rng, output_type="pt", **inputs).images, output)
"""


@pytest.mark.parametrize("make", [make_pipeline, make_restorer])
def test_where_only_diffusers_is_installed_a_folder_loads_with_its_autoencoder(make, tmp_path):
    pipe = make(make_kl())
    inputs = {"image": torch.zeros(1, 3, 16, 16)} if make is make_restorer else {"batch_size": 2}
    pipe.save_pretrained(tmp_path / "model")
    paths = {"PYTHONPATH": sysconfig.get_path("purelib"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    env = {**os.environ, **paths}
    # Without site-packages no .pth file is read, and the package's editable installation is not found.
    command = [sys.executable, "-S", "-c", REMOTE, tmp_path / "model", tmp_path / "images.pt"]
    subprocess.run(command, env=env, cwd=tmp_path, check=True, capture_output=True)
    rng = torch.Generator().manual_seed(0)
    expected = pipe(num_inference_steps=2, generator=rng, output_type="pt", **inputs).images
    torch.testing.assert_close(torch.load(tmp_path / "images.pt"), expected)


def test_what_describes_a_model_of_latents_is_known_to_verify():
    """Else its reports hold settings that no call takes."""
    pipe = make_pipeline(make_kl(), id2label={0: "a"}, unet_options={"label_dim": 1}, value_range=(0, 4))
    described = describe(pipe)
    assert described.keys() >= {"autoencoder", "id2label", "value_range"}
    assert described.keys() <= set(DESCRIPTION)


def test_an_autoencoder_that_overflows_in_float16_is_used_in_float32():
    vae = make_kl()
    vae.register_to_config(force_upcast=True)
    vae.half()
    assert decode_latents(vae, torch.zeros(1, vae.config.latent_channels, 4, 4)).dtype == torch.float32
    assert vae.dtype == torch.float32
