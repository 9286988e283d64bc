"""The published networks against tensors computed by the authors' own program."""

import pytest
import torch

from pipeline_pfgmpp import PFGMPPPipeline, PFGMPPScheduler, PFGMPPUNet2DModel


GOLDEN = ["ddpmpp_uncond", "ncsnpp_uncond", "ncsnpp_cond", "adm_cond"]


@pytest.fixture
def published(golden, request):
    """A golden file's network with its weights, its D, and its tensors."""
    tensors, config = golden(request.param)
    D, size, channels = config.pop("D"), config.pop("img_resolution"), config.pop("img_channels")
    config.pop("decoder_type", None)  # both published networks have the standard one
    unet = PFGMPPUNet2DModel(sample_size=size, in_channels=channels, out_channels=channels, **config)
    prefix = "state.model."
    unet.load_state_dict({key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)})
    return unet.eval(), D, tensors


@pytest.mark.parametrize("published", GOLDEN, indirect=True)
@pytest.mark.parametrize("augmented", [False, True])
@torch.no_grad()
def test_denoised_images(published, augmented):
    unet, D, tensors = published
    name = "out.denoised_augmented" if augmented else "out.denoised"
    if name not in tensors:
        pytest.skip("a network without augmentation")
    scheduler = PFGMPPScheduler(D=D)
    x, sigma = tensors["in.x"], tensors["in.sigma"]
    output = unet(
        scheduler.precondition_inputs(x, sigma.view(-1, 1, 1, 1)),
        scheduler.precondition_noise(sigma),
        class_labels=tensors.get("in.class_labels"),
        augment_labels=tensors["in.augment_labels"] if augmented else None,
    ).sample
    denoised = scheduler.precondition_outputs(x, output, sigma.view(-1, 1, 1, 1))
    assert (denoised - tensors[name]).abs().max() < 1e-4


@pytest.mark.parametrize("published", GOLDEN, indirect=True)
def test_sampling_in_float32_matches_float64(published):
    unet, D, tensors = published
    pipe = PFGMPPPipeline(unet, PFGMPPScheduler(D=D))
    pipe.set_progress_bar_config(disable=True)
    labels = tensors["in.class_labels"].argmax(1) if "in.class_labels" in tensors else None
    latents = (tensors["in.latents_at_sigma_max"] / 80).float()
    samples = pipe(latents=latents, class_labels=labels, output_type="latent").images
    assert samples.dtype == torch.float32
    assert (samples - tensors["out.heun18"]).abs().max() < 1e-4


def test_parameters_of_the_full_size_network():
    with torch.device("meta"):
        unet = PFGMPPUNet2DModel(
            embedding_type="fourier", channel_mult_noise=2, encoder_type="residual", resample_filter=(1, 3, 3, 1), augment_dim=9
        )
    assert unet.num_parameters() == 56_397_827


@pytest.mark.parametrize(
    "kwargs", [{"model_type": "VGG"}, {"embedding_type": "none"}, {"encoder_type": "x"}, {"sample_size": 30}]
)
def test_bad_options_are_refused_by_name(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        PFGMPPUNet2DModel(model_channels=8, **kwargs)


def test_label_forms_agree_and_bad_ones_are_refused():
    unet = PFGMPPUNet2DModel(sample_size=8, model_channels=16, channel_mult=(1,), num_blocks=1, label_dim=3).eval()
    torch.nn.init.normal_(unet.dec["8x8_aux_conv"].weight)
    x, c_noise = torch.randn(2, 3, 8, 8), torch.zeros(2)
    by_number = unet(x, c_noise, torch.tensor([2, 0])).sample
    by_weight = unet(x, c_noise, torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])).sample
    torch.testing.assert_close(by_number, by_weight)
    assert not torch.allclose(by_number, unet(x, c_noise).sample)
    with pytest.raises(ValueError, match="`class_labels` must be of shape"):
        unet(x, c_noise, torch.zeros(2, 5))


def test_gradient_checkpointing_gives_equal_gradients():
    torch.manual_seed(0)
    unet = PFGMPPUNet2DModel(
        sample_size=8, model_channels=16, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(4,), dropout=0.0
    )
    torch.nn.init.normal_(unet.dec["8x8_aux_conv"].weight)
    x, gradients = torch.randn(2, 3, 8, 8), []
    for enable in (unet.disable_gradient_checkpointing, unet.enable_gradient_checkpointing):
        enable()
        unet.zero_grad()
        unet(x, torch.zeros(2)).sample.square().mean().backward()
        gradients.append([p.grad.clone() for p in unet.parameters()])
    for plain, checkpointed in zip(*gradients):
        torch.testing.assert_close(plain, checkpointed)
