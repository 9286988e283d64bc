"""The published networks against tensors computed by the authors' own program."""

import pytest
import torch
from diffusers import DiffusionPipeline

from pipeline_pfgmpp import PFGMPPPipeline, PFGMPPScheduler, PFGMPPUNet2DModel
from pipeline_pfgmpp.unet_pfgmpp import UNetBlock


GOLDEN = ["ddpmpp_uncond", "ncsnpp_uncond", "ncsnpp_cond", "adm_cond"]
RESTORING = ["ppfm_ddpmpp", "ppfm_adm"]


@pytest.fixture
def published(golden, request):
    """Load a golden file: its network with its weights, its D and its tensors."""
    tensors, config = golden(request.param)
    D, size, channels = config.pop("D"), config.pop("img_resolution"), config.pop("img_channels")
    config.pop("decoder_type", None)  # both published networks have the standard one
    if config["model_type"].startswith("c"):  # PPFM's, conditioned on an image like the one to be drawn
        config["model_type"] = config["model_type"].removeprefix("c")
        config["condition_channels"] = channels
    unet = PFGMPPUNet2DModel(sample_size=size, in_channels=channels, out_channels=channels, **config)
    prefix = "state.model."
    unet.load_state_dict(
        {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    )
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


@pytest.mark.parametrize("published", RESTORING, indirect=True)
@pytest.mark.parametrize("size", ["", "_24x40"])
@torch.no_grad()
def test_denoised_images_given_degraded_ones(published, size):
    """At the size after which the parts are named, and at another one."""
    unet, D, tensors = published
    scheduler = PFGMPPScheduler(D=D)
    x = tensors[f"in.x{size}"]
    sigma = tensors[f"in.sigma{size}"]
    levels = sigma.view(-1, 1, 1, 1)
    output = unet(
        scheduler.precondition_inputs(x, levels),
        scheduler.precondition_noise(sigma),
        condition=scheduler.precondition_inputs(tensors[f"in.condition{size}"], levels),
    ).sample
    denoised = scheduler.precondition_outputs(x, output, levels)
    assert (denoised - tensors[f"out.denoised{size}"]).abs().max() < 1e-4


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


@pytest.mark.parametrize("published", GOLDEN, indirect=True)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision_is_close(published, dtype):
    unet, _, tensors = published
    scheduler = PFGMPPScheduler()
    x, sigma = tensors["in.x"].float(), tensors["in.sigma"].float().view(-1, 1, 1, 1)

    def denoised():
        model_input = scheduler.precondition_inputs(x, sigma).to(unet.dtype)
        c_noise, labels = scheduler.precondition_noise(sigma.flatten()), tensors.get("in.class_labels")
        output = unet(model_input, c_noise, class_labels=labels).sample.float()
        return scheduler.precondition_outputs(x, output, sigma)

    exact = denoised()
    unet.to(dtype)
    assert (denoised() - exact).abs().max() < 2e-2


@pytest.mark.parametrize("published", ["ncsnpp_cond", "adm_cond"], indirect=True)
@torch.no_grad()
def test_compiles_into_one_graph(published):
    unet, _, tensors = published
    torch.compiler.reset()
    compiled = torch.compile(unet, fullgraph=True, backend="aot_eager")
    args = (tensors["in.x"].float(), tensors["in.sigma"].float().log() / 4, tensors["in.class_labels"])
    torch.testing.assert_close(compiled(*args).sample, unet(*args).sample)


# What diffusers asks of a model


def network(seed=0, **options):
    """Build a small network in which every part matters: published ones begin at zero in places."""
    torch.manual_seed(seed)
    common = {
        "sample_size": 8,
        "model_channels": 16,
        "channel_mult": (1, 2),
        "num_blocks": 1,
        "attn_resolutions": (4,),
    }
    unet = PFGMPPUNet2DModel(**{**common, "dropout": 0.0, **options})
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return unet.eval()


@torch.no_grad()
def outputs(unet, dtype=torch.float32, **kwargs):
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)).to(dtype)
    return unet(x, torch.tensor([-0.5, 0.5]), **kwargs).sample.float()


@pytest.mark.parametrize(
    "options", [{}, {"variant": "fp16"}, {"max_shard_size": "20KB"}, {"safe_serialization": True}]
)
def test_saving_and_loading(options, tmp_path):
    unet = network(embedding_type="fourier")
    unet.save_pretrained(tmp_path, **options)
    weights = [path for path in tmp_path.iterdir() if path.suffix == ".safetensors"]
    assert len(weights) > 1 if "max_shard_size" in options else len(weights) == 1
    loaded = PFGMPPUNet2DModel.from_pretrained(tmp_path, variant=options.get("variant"))
    assert not loaded.training
    assert torch.equal(outputs(loaded), outputs(unet))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("embedding_type", ["fourier", "positional"])
def test_frequencies_stay_exact_in_half_precision(embedding_type, dtype, tmp_path):
    unet = network(embedding_type=embedding_type)
    freqs = unet.map_noise.freqs.clone()
    unet.save_pretrained(tmp_path / "single")
    unet.to(dtype).save_pretrained(tmp_path / "half")
    loaded = [
        PFGMPPUNet2DModel.from_pretrained(tmp_path / name, torch_dtype=dtype) for name in ("single", "half")
    ]
    for half in (unet, *loaded):
        assert half.dtype == dtype
        assert torch.equal(half.map_noise.freqs, freqs)
        assert torch.equal(outputs(half, dtype), outputs(unet, dtype))


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}, "half on disk"])
def test_device_maps(device_map, tmp_path):
    unet = network()
    unet.save_pretrained(tmp_path / "model")
    if device_map == "half on disk":
        device_map = {name: "disk" if name == "dec" else "cpu" for name, _ in unet.named_children()}
    loaded = PFGMPPUNet2DModel.from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=str(tmp_path / "disk")
    )
    torch.testing.assert_close(outputs(loaded), outputs(unet))


def test_from_config_and_outputs():
    unet = network()
    again = PFGMPPUNet2DModel.from_config(unet.config)
    again.load_state_dict(unet.state_dict())
    expected = outputs(unet)
    assert torch.equal(outputs(again.eval()), expected)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(unet(x, torch.tensor([-0.5, 0.5]), return_dict=False)[0], expected)


def has_layout(unet, memory_format):
    convolutions = [parameter for parameter in unet.parameters() if parameter.ndim == 4]
    return all(parameter.is_contiguous(memory_format=memory_format) for parameter in convolutions)


def test_on_a_cpu_a_pipeline_arranges_the_weights_for_speed_once(tmp_path):
    """A network alone keeps the usual layout, which sharding and GPUs need."""
    PFGMPPPipeline(network(), PFGMPPScheduler()).save_pretrained(tmp_path)
    pipe = DiffusionPipeline.from_pretrained(tmp_path)
    assert has_layout(pipe.unet, torch.contiguous_format)
    first = pipe(num_inference_steps=1, generator=torch.Generator().manual_seed(0), output_type="pt").images
    assert has_layout(pipe.unet, torch.channels_last)
    places = [parameter.data_ptr() for parameter in pipe.unet.parameters()]
    again = pipe(num_inference_steps=1, generator=torch.Generator().manual_seed(0), output_type="pt").images
    assert [parameter.data_ptr() for parameter in pipe.unet.parameters()] == places
    assert torch.equal(first, again)
    pipe.save_pretrained(tmp_path / "again")
    assert has_layout(PFGMPPUNet2DModel.from_pretrained(tmp_path / "again" / "unet"), torch.contiguous_format)


def test_the_layout_changes_no_number_beyond_rounding_and_any_size_runs():
    unet = network()
    x, c_noise = torch.randn(1, 3, 16, 12), torch.tensor([0.1])
    usual = unet(x, c_noise).sample
    assert usual.shape == x.shape
    unet.to(memory_format=torch.channels_last)
    fast = unet(x, c_noise).sample
    assert fast.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(fast, usual, atol=1e-5, rtol=1e-4)


def test_a_step_of_training_reaches_every_parameter():
    unet = network(label_dim=3, augment_dim=9, d_conditioning=True).train()
    labels, augment = torch.tensor([0, 1]), torch.randn(2, 9)
    output = unet(
        torch.randn(2, 3, 8, 8), torch.zeros(2), labels, augment, D=torch.tensor([16.0, 128.0])
    ).sample
    output.square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in unet.parameters())


def test_label_dropout_trains_without_the_class():
    unet = network(label_dim=3, label_dropout=0.5).train()
    x, c_noise, labels = torch.randn(1, 3, 8, 8).expand(64, -1, -1, -1), torch.zeros(64), torch.full((64,), 2)
    trained = unet(x, c_noise, labels).sample
    unet.eval()
    with_class, without = unet(x[:1], c_noise[:1], labels[:1]).sample, unet(x[:1], c_noise[:1]).sample
    kept = torch.tensor([torch.allclose(row, with_class[0], atol=1e-5) for row in trained])
    dropped = torch.tensor([torch.allclose(row, without[0], atol=1e-5) for row in trained])
    assert (kept ^ dropped).all()
    assert 16 < kept.sum() < 48


# Conditioning on D


def test_a_network_begins_indifferent_to_d():
    torch.manual_seed(0)
    unet = PFGMPPUNet2DModel(
        sample_size=8, model_channels=16, channel_mult=(1,), num_blocks=1, d_conditioning=True
    ).eval()
    torch.nn.init.normal_(unet.dec["8x8_aux_conv"].weight)
    plain = PFGMPPUNet2DModel.from_config({**unet.config, "d_conditioning": False}).eval()
    plain.load_state_dict(
        {name: value for name, value in unet.state_dict().items() if "map_dimension" not in name}
    )
    assert torch.equal(outputs(unet, D=1), outputs(plain))


def test_the_output_is_smooth_in_d_and_reaches_infinity():
    unet = network(d_conditioning=True)
    at_infinity = outputs(unet)
    assert torch.equal(outputs(unet, D=float("inf")), at_infinity)
    # Near infinity the output is linear in 1/D: ten times the D, a tenth of the way left to go.
    gaps = [(outputs(unet, D=D) - at_infinity).norm().item() for D in (1e4, 1e5)]
    assert gaps[0] / gaps[1] == pytest.approx(10, rel=0.05)
    # In between, halving the stride along log D halves the largest step.
    strides = []
    for count in (33, 65):
        along = torch.stack([outputs(unet, D=D) for D in torch.logspace(0, 6, count).tolist()])
        strides.append(along.diff(dim=0).flatten(1).norm(dim=1).max().item())
    assert strides[0] / strides[1] == pytest.approx(2, rel=0.1)


def test_each_image_may_have_its_own_d():
    unet = network(d_conditioning=True)
    mixed = outputs(unet, D=torch.tensor([16.0, float("inf")]))
    torch.testing.assert_close(mixed[0], outputs(unet, D=16)[0])
    torch.testing.assert_close(mixed[1], outputs(unet, D=None)[1])


def test_the_pipeline_turns_d_like_a_dial(tmp_path):
    pipe = PFGMPPPipeline(network(d_conditioning=True), PFGMPPScheduler(D=128))
    pipe.save_pretrained(tmp_path)
    pipe = PFGMPPPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    latents = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    own, same, other = (
        pipe(latents=latents, D=D, num_inference_steps=2, output_type="pt").images for D in (None, 128, 16)
    )
    assert torch.equal(own, same)
    assert not torch.equal(own, other)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("class_labels", torch.tensor([0, 1])),
        ("augment_labels", torch.zeros(2, 9)),
        ("D", 16),
        ("condition", torch.zeros(2, 3, 8, 8)),
    ],
)
def test_conditioning_that_the_network_lacks_is_refused(name, value):
    with pytest.raises(ValueError, match=f"`{name}` is given, but this network is not conditioned on it"):
        outputs(network(), **{name: value})


# Conditioning on an image


@torch.no_grad()
def restore(unet, channels=1, size=(8, 8), **kwargs):
    """Call a network for images of two channels, with a condition unless there are no channels for it."""
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(2, 2, *size, generator=draw)
    if channels:
        kwargs["condition"] = torch.randn(2, channels, *size, generator=draw)
    return unet(x, torch.tensor([-0.5, 0.5]), **kwargs).sample


@pytest.mark.parametrize("encoder_type", ["standard", "residual"])
@pytest.mark.parametrize("model_type", ["SongUNet", "DhariwalUNet"])
def test_the_condition_stands_before_the_sample(model_type, encoder_type):
    options = {"out_channels": 2, "model_type": model_type, "encoder_type": encoder_type}
    unet = network(in_channels=2, condition_channels=1, **options)
    joined = network(in_channels=3, **options)
    joined.load_state_dict(unet.state_dict())
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(2, 2, 8, 8, generator=draw)
    condition = torch.randn(2, 1, 8, 8, generator=draw)
    with torch.no_grad():
        expected = joined(torch.cat([condition, x], dim=1), torch.tensor([-0.5, 0.5])).sample
    assert torch.equal(restore(unet), expected)


def test_a_network_that_restores_is_saved_and_loaded(tmp_path):
    unet = network(in_channels=2, out_channels=2, condition_channels=3)
    unet.save_pretrained(tmp_path)
    loaded = PFGMPPUNet2DModel.from_pretrained(tmp_path)
    assert loaded.config.condition_channels == 3
    assert torch.equal(restore(loaded, channels=3), restore(unet, channels=3))


def test_d_counts_the_dimensions_of_the_sample_alone():
    options = {"in_channels": 2, "out_channels": 2, "d_conditioning": True}
    plain = network(**options)
    restoring = network(condition_channels=1, **options)
    restoring.load_state_dict(
        {
            name: torch.cat([torch.zeros_like(value[:, :1]), value], dim=1)
            if name == "enc.8x8_conv.weight"
            else value
            for name, value in plain.state_dict().items()
        }
    )
    torch.testing.assert_close(restore(restoring, D=16), restore(plain, channels=0, D=16))


@pytest.mark.parametrize("channels", [0, 2])
@pytest.mark.parametrize("size", [(8, 8), (4, 8)])
def test_a_condition_of_another_shape_is_refused(channels, size):
    unet = network(in_channels=2, out_channels=2, condition_channels=1)
    given = f"of shape \\(2, 2, {size[0]}, 8\\)" if channels else "missing"
    shape = f"\\(2, 1, {size[0]}, 8\\)"
    with pytest.raises(ValueError, match=f"needs a `condition` of shape {shape}, but it is {given}"):
        restore(unet, channels, size)


@pytest.mark.parametrize("condition", [torch.zeros(1, 1, 8, 8), torch.zeros(2, 1, 8, 4), torch.zeros(8, 8)])
def test_a_condition_that_does_not_fit_the_sample_is_refused(condition):
    unet = network(in_channels=2, out_channels=2, condition_channels=1)
    with pytest.raises(ValueError, match="needs a `condition` of shape"):
        unet(torch.zeros(2, 2, 8, 8), 0.0, condition=condition)


@pytest.mark.parametrize("sample", [torch.zeros(2, 1, 8, 8), torch.zeros(2, 3, 8, 8), torch.zeros(8)])
def test_a_sample_of_other_channels_is_refused(sample):
    """Also one that already holds the condition."""
    unet = network(in_channels=2, out_channels=2, condition_channels=1)
    with pytest.raises(ValueError, match="`sample` must have .* and 2 channels, but is of shape"):
        unet(sample, 0.0, condition=torch.zeros(2, 1, 8, 8))


@pytest.mark.parametrize("channels", [-1, 1.0, "1", None])
def test_channels_of_a_condition_are_counted(channels):
    with pytest.raises(ValueError, match="`condition_channels` must be of type int, from 0"):
        network(condition_channels=channels)


@pytest.mark.parametrize(("width", "heads"), [(32, 1), (128, 2), (192, 3), (224, 1)])
def test_heads_of_64_channels_where_they_fit(width, heads):
    """ADM has one head per 64 channels. Where these do not divide the width, it has fewer and wider ones."""
    options = {"channel_mult": (1,), "num_blocks": 1, "attn_resolutions": (4,)}
    unet = PFGMPPUNet2DModel(sample_size=4, model_type="DhariwalUNet", model_channels=width, **options)
    assert unet.dec["4x4_block0"].num_heads == heads
    assert unet(torch.zeros(1, 3, 4, 4), torch.zeros(1)).sample.shape == (1, 3, 4, 4)


# Rectangles


@pytest.mark.parametrize("model_type", ["SongUNet", "DhariwalUNet"])
@pytest.mark.parametrize("size", [(24, 40), [40, 24]])
def test_rectangles(size, model_type, tmp_path):
    """The levels attend by their shorter side, upright or lying."""
    options = {"model_channels": 16, "channel_mult": (1, 2), "num_blocks": 1, "attn_resolutions": (12,)}
    unet = PFGMPPUNet2DModel(
        sample_size=size, model_type=model_type, encoder_type="residual", **options
    ).eval()
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    height, width = size
    assert unet.enc[f"{height // 2}x{width // 2}_block0"].num_heads
    assert not unet.enc[f"{height}x{width}_block0"].num_heads
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    expected = unet(x, torch.zeros(2)).sample
    assert expected.shape == x.shape
    unet.save_pretrained(tmp_path)
    loaded = PFGMPPUNet2DModel.from_pretrained(tmp_path)
    assert tuple(loaded.config.sample_size) == tuple(size)
    torch.testing.assert_close(loaded(x, torch.zeros(2)).sample, expected)


def test_a_square_given_by_two_sides_is_a_square():
    one = network()
    two = network(sample_size=(8, 8))
    assert list(one.state_dict()) == list(two.state_dict())
    assert torch.equal(outputs(one), outputs(two))


def test_presets_of_rectangles():
    with torch.device("meta"):
        unet = PFGMPPUNet2DModel.from_preset("fashion-mnist-small", sample_size=(24, 40))
    assert "24x40_conv" in unet.enc
    assert "6x10_block0" in unet.enc


@pytest.mark.parametrize("size", [(24, 41), (24,), (8, 8, 8), (0, 8), (-8, 8), "8", 8.0, None])
def test_sizes_that_the_levels_do_not_divide_are_refused(size):
    with pytest.raises(ValueError, match="`sample_size` must be one or two multiples of 2"):
        network(sample_size=size)
    with pytest.raises(ValueError, match="`sample` must have a height and a width that are multiples of 2"):
        network()(torch.zeros(1, 3, 8, 7), 0.0)


# Presets


@pytest.mark.parametrize(
    ("preset", "millions"),
    [("cifar10-ncsnpp", 56), ("cifar10-ddpmpp", 56), ("ffhq64-ddpmpp", 62), ("imagenet64-adm", 296)],
)
def test_presets_have_the_published_sizes(preset, millions):
    with torch.device("meta"):
        assert round(PFGMPPUNet2DModel.from_preset(preset).num_parameters() / 1e6) == millions


def test_the_published_network_for_ct():
    """It is named for its patches of 256², attends at 16², 8² and 4², and runs on whole slices of 512²."""
    with torch.device("meta"):
        unet = PFGMPPUNet2DModel.from_preset("ppfm-ct")
        assert unet.enc["256x256_conv"].weight.shape == (128, 2, 3, 3)
        attending = {name for name in unet.enc if name.endswith("_block0") and unet.enc[name].num_heads}
        assert attending == {"16x16_block0", "8x8_block0", "4x4_block0"}
        slices = torch.zeros(1, 1, 512, 512)
        assert unet(slices, torch.zeros(1), condition=slices).sample.shape == slices.shape


def test_parameters_of_ncsnpp_and_of_ours():
    with torch.device("meta"):
        assert PFGMPPUNet2DModel.from_preset("cifar10-ncsnpp", augment_dim=9).num_parameters() == 56_397_827
        assert (
            PFGMPPUNet2DModel.from_preset("fashion-mnist-small", label_dim=10).num_parameters() <= 7_000_000
        )


def test_unknown_presets_are_refused():
    with pytest.raises(ValueError, match="`name` must be one of"):
        PFGMPPUNet2DModel.from_preset("vgg")


@pytest.mark.parametrize(
    "kwargs", [{"model_type": "VGG"}, {"embedding_type": "none"}, {"encoder_type": "x"}, {"sample_size": 30}]
)
def test_bad_options_are_refused_by_name(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        PFGMPPUNet2DModel(model_channels=8, **kwargs)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"label_dim": -1},
        {"label_dim": True},
        {"augment_dim": -2},
        {"in_channels": 0},
        {"model_channels": 2},
        {"model_channels": 7},
        {"model_channels": 130},
        {"channel_mult": ()},
        {"channel_mult": (1, -1)},
        {"channel_mult_noise": 0},
        {"attn_resolutions": 16},
        {"num_blocks": -1},
        {"dropout": 1.5},
        {"label_dropout": 2.0},
        {"label_dropout": -1},
        {"resample_filter": ()},
        {"resample_filter": (1, 3, 1)},
    ],
    ids=str,
)
def test_numbers_that_no_network_has_are_refused_by_name(kwargs):
    with pytest.raises(ValueError, match=rf"\A`{next(iter(kwargs))}` must [^\n]+\.\Z"):
        network(**kwargs)


def test_label_forms_agree_and_bad_ones_are_refused():
    unet = PFGMPPUNet2DModel(
        sample_size=8, model_channels=16, channel_mult=(1,), num_blocks=1, label_dim=3
    ).eval()
    torch.nn.init.normal_(unet.dec["8x8_aux_conv"].weight)
    x, c_noise = torch.randn(2, 3, 8, 8), torch.zeros(2)
    by_number = unet(x, c_noise, torch.tensor([2, 0])).sample
    by_weight = unet(x, c_noise, torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])).sample
    torch.testing.assert_close(by_number, by_weight)
    assert not torch.allclose(by_number, unet(x, c_noise).sample)
    with pytest.raises(ValueError, match="`class_labels` must be of shape"):
        unet(x, c_noise, torch.zeros(2, 5))


def test_gradient_checkpointing_gives_equal_gradients():
    unet = network(dropout=0.3).train()
    x, gradients = torch.randn(2, 3, 8, 8), []
    passes = []
    calls = []
    blocks = [module for module in unet.modules() if isinstance(module, UNetBlock)]
    for block in blocks:
        block.norm0.register_forward_hook(lambda *args: calls.append(1))
    for enable in (unet.disable_gradient_checkpointing, unet.enable_gradient_checkpointing):
        enable()
        unet.zero_grad()
        calls.clear()
        torch.manual_seed(0)  # the same dropout
        unet(x, torch.zeros(2)).sample.square().mean().backward()
        passes.append(len(calls))
        gradients.append([p.grad.clone() for p in unet.parameters()])
    assert passes == [len(blocks), 2 * len(blocks)]
    for plain, checkpointed in zip(*gradients):
        torch.testing.assert_close(plain, checkpointed)
