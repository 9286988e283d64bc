"""The pipeline as a user of diffusers meets it."""

import math
import runpy
import subprocess
import sys
import sysconfig
import threading

import accelerate
import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    UNet2DModel,
)

from pipeline_pfgmpp import (
    EmpiricalDenoiser,
    PFGMPPPipeline,
    PFGMPPScheduler,
    PFGMPPUNet2DModel,
    sample_noise,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def our_unet(channels=3, **kwargs):
    torch.manual_seed(0)
    unet = PFGMPPUNet2DModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        model_channels=16,
        channel_mult=(1, 2),
        num_blocks=1,
        attn_resolutions=(4,),
        **kwargs,
    ).eval()
    for parameter in unet.parameters():
        if parameter.ndim == 4:  # some start near zero, where a bug would go unnoticed
            torch.nn.init.xavier_uniform_(parameter)
    return unet


def diffusers_unet(channels=3, **kwargs):
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        **kwargs,
    ).eval()


def pipeline(unet=None, **config):
    pipe = PFGMPPPipeline(unet or our_unet(), PFGMPPScheduler(**config))
    pipe.set_progress_bar_config(disable=True)
    return pipe


UNETS = [our_unet, diffusers_unet]


@pytest.mark.parametrize("make_unet", UNETS)
@pytest.mark.parametrize("channels", [1, 3])
def test_output_types(make_unet, channels):
    pipe = pipeline(make_unet(channels), D=128)
    kwargs = {"batch_size": 2, "num_inference_steps": 3}
    latent = pipe(**kwargs, generator=generator(), output_type="latent").images
    tensor = pipe(**kwargs, generator=generator(), output_type="pt").images
    array = pipe(**kwargs, generator=generator(), output_type="np").images
    pictures = pipe(**kwargs, generator=generator()).images
    assert latent.shape == (2, channels, 8, 8)
    assert not latent.requires_grad
    assert torch.equal(tensor, (latent / 2 + 0.5).clamp(0, 1))
    np.testing.assert_array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    assert [(p.mode, p.size) for p in pictures] == [("L" if channels == 1 else "RGB", (8, 8))] * 2
    assert isinstance(pictures[0], PIL.Image.Image)
    np.testing.assert_array_equal(
        np.asarray(pictures[0]).reshape(8, 8, channels), (array[0] * 255).round().astype("uint8")
    )
    as_tuple = pipe(**kwargs, generator=generator(), output_type="latent", return_dict=False)
    assert torch.equal(as_tuple[0], latent)


@pytest.mark.parametrize("D", [1, 64, None])
def test_latents_are_unit_noise(D):
    pipe = pipeline(D=D)
    eps = sample_noise((3, 3, 8, 8), D, generator(1))
    given = pipe(latents=eps, num_inference_steps=3, output_type="latent").images
    drawn = pipe(batch_size=3, generator=generator(1), num_inference_steps=3, output_type="latent").images
    assert torch.equal(given, drawn)


def test_the_norm_of_the_prior_is_limited_on_demand():
    free, limited = pipeline(D=1), pipeline(D=1, max_noise_norm=2.0)
    kwargs = {"num_inference_steps": 3, "output_type": "latent"}
    drawn = limited(batch_size=8, generator=generator(), **kwargs).images
    eps = sample_noise((8, 3, 8, 8), 1, generator(), max_norm=2.0)
    assert (eps.flatten(1).norm(dim=1) < 2.001 * 192**0.5).all()
    assert torch.equal(drawn, limited(latents=eps, **kwargs).images)
    assert not torch.allclose(drawn, free(batch_size=8, generator=generator(), **kwargs).images)
    with pytest.raises(ValueError, match="`max_noise_norm` must be positive, but is -1"):
        PFGMPPScheduler(max_noise_norm=-1)


@pytest.mark.parametrize("class_labels", [None, 1])
def test_with_a_list_of_generators_each_image_depends_on_its_own(class_labels):
    # In float64, since kernels round differently at another batch size
    pipe = pipeline(our_unet(label_dim=4), D=16, s_churn=2.0).to(torch.float64)
    kwargs = {"num_inference_steps": 3, "output_type": "latent", "class_labels": class_labels}
    together = pipe(batch_size=4, generator=[generator(seed) for seed in range(4)], **kwargs).images
    pair = pipe(batch_size=2, generator=[generator(seed) for seed in (3, 1)], **kwargs).images
    torch.testing.assert_close(pair, together[[3, 1]], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "make_unet", [lambda: our_unet(label_dim=4), lambda: diffusers_unet(num_class_embeds=4)]
)
def test_class_labels(make_unet):
    pipe = pipeline(make_unet())
    kwargs = {"batch_size": 3, "num_inference_steps": 2, "output_type": "latent"}

    def run(labels, seed=0):
        return pipe(class_labels=labels, generator=generator(seed), **kwargs).images

    assert torch.equal(run(2), run([2, 2, 2]))
    assert torch.equal(run(2), run(torch.tensor([2, 2, 2])))
    assert not torch.allclose(run(2), run([2, 1, 2]))
    # None draws classes with the generator, before the noise
    rng = generator(5)
    drawn = torch.randint(4, (3,), generator=rng)
    latents = sample_noise((3, 3, 8, 8), pipe.scheduler.config.D, rng)
    assert torch.equal(run(None, seed=5), pipe(class_labels=drawn, latents=latents, **kwargs).images)
    for labels in (4, -1, [0, 1], [0, 1, 4], 1.5, torch.zeros(3, 4)):
        with pytest.raises(ValueError, match="`class_labels` must"):
            run(labels)


def test_class_labels_for_an_unconditional_network_are_refused():
    with pytest.raises(ValueError, match="unconditional"):
        pipeline()(class_labels=1)


def test_guidance_mixes_denoised_images():
    pipe = pipeline(our_unet(label_dim=4))
    kwargs = {
        "latents": torch.randn(2, 3, 8, 8),
        "num_inference_steps": 1,
        "output_type": "latent",
    }  # one step: the denoised image
    conditional = pipe(class_labels=3, **kwargs).images
    guided = pipe(class_labels=3, guidance_scale=2.5, **kwargs).images
    pipe.unet.map_label.weight.data.zero_()  # now every label has the effect of none
    unconditional = pipe(class_labels=3, **kwargs).images
    assert not torch.allclose(guided, conditional, rtol=1e-2)
    torch.testing.assert_close(
        guided, unconditional + 2.5 * (conditional - unconditional), rtol=1e-4, atol=1e-4
    )
    for network in (our_unet(), diffusers_unet(num_class_embeds=4)):
        with pytest.raises(ValueError, match="`guidance_scale` must be 1"):
            pipeline(network)(guidance_scale=2.0)


def test_another_d_on_a_network_of_one_d_is_refused():
    pipe = pipeline(D=128)
    same = pipe(D=128, num_inference_steps=2, generator=generator(), output_type="latent").images
    assert torch.equal(same, pipe(num_inference_steps=2, generator=generator(), output_type="latent").images)
    for D in (64, float("inf")):
        with pytest.raises(ValueError, match="trained at D = 128 only"):
            pipe(D=D)
    with pytest.raises(ValueError, match="trained at D = inf only"):
        pipeline(D=None)(D=128)
    with pytest.raises(ValueError, match="`D` must be a positive number"):
        pipe(D=-3)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be"),
        ({"batch_size": 2.0}, "`batch_size` must be"),
        ({"batch_size": 2, "latents": torch.zeros(3, 3, 8, 8)}, "`batch_size` must be that of `latents`, 3"),
        ({"latents": torch.zeros(3, 1, 8, 8)}, "`latents` must be of shape"),
        ({"latents": torch.zeros(3)}, "`latents` must be of shape"),
        ({"batch_size": 2, "generator": [torch.Generator()]}, "a list of 1 for a batch of 2"),
        ({"num_inference_steps": 0}, "`num_inference_steps` must be"),
        ({"output_type": "jpeg"}, "`output_type` must be one of"),
        (
            {"callback_on_step_end_tensor_inputs": ["weights"]},
            "`callback_on_step_end_tensor_inputs` may hold",
        ),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(kwargs, message):
    with pytest.raises(ValueError, match=message) as error:
        pipeline()(**kwargs)
    assert "\n" not in str(error.value)


def test_callbacks_see_and_change_the_path():
    pipe = pipeline()
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append((step, timestep.item(), set(tensors)))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 4 else {}

    names = ["latents", "pred_original_sample"]
    images = pipe(
        num_inference_steps=3,
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=names,
        output_type="latent",
    )
    assert [step for step, _, _ in seen] == list(range(5))
    assert [t for _, t, _ in seen] == pipe.scheduler.timesteps.tolist()
    assert all(tensors == set(names) for _, _, tensors in seen)
    assert torch.equal(images.images, torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("latents", [None, [0.0], torch.zeros(3), torch.zeros(1, 3, 8, 8, dtype=torch.int64)])
def test_a_callback_that_returns_no_sample_is_refused(latents):
    with pytest.raises(ValueError, match=r"\A`latents` that `callback_on_step_end` returns [^\n]+\.\Z"):
        pipeline()(num_inference_steps=2, callback_on_step_end=lambda *state: {"latents": latents})


def test_a_callback_that_returns_half_numbers_keeps_the_type_of_the_sample():
    kinds = []

    def halve(pipe, step, timestep, tensors):
        kinds.append(tensors["latents"].dtype)
        return {"latents": tensors["latents"].half()}

    pipeline()(num_inference_steps=2, callback_on_step_end=halve)
    assert kinds == [torch.float32] * 3


def test_a_scheduler_of_another_preconditioning_is_refused_at_each_call():
    data = torch.zeros(2, 1, 4, 4)
    pipe = PFGMPPPipeline(EmpiricalDenoiser(data), PFGMPPScheduler(D=128))
    for name, value in (("sigma_data", 1.5), ("preconditioning", "t-edm")):
        pipe.scheduler = PFGMPPScheduler(**{"D": 128, name: value})
        for call in (lambda: pipe(num_inference_steps=1), lambda: pipe.invert(data)):
            with pytest.raises(ValueError, match=f"`{name}` is .* in the network but"):
                call()


def test_the_likelihood_is_refused_where_nothing_is_differentiated():
    with torch.inference_mode(), pytest.raises(ValueError, match="call it outside of `torch.inference_mode"):
        pipeline().log_likelihood(torch.zeros(1, 3, 8, 8))


def test_a_callback_can_stop_sampling():
    calls = []

    def callback(pipe, step, timestep, tensors):
        calls.append(step)
        pipe._interrupt = step == 2
        return {}

    pipe = pipeline()
    pipe(num_inference_steps=8, callback_on_step_end=callback)
    assert calls == [0, 1, 2]
    assert len(pipe(num_inference_steps=2).images) == 1  # and the next call starts afresh


def test_progress_bar(capsys):
    pipe = pipeline()
    pipe(num_inference_steps=3)
    assert capsys.readouterr().err == ""
    pipe.set_progress_bar_config(disable=False)
    pipe(num_inference_steps=3)
    assert "5/5" in capsys.readouterr().err


@pytest.mark.parametrize("make_unet", UNETS)
@pytest.mark.parametrize("loader", [DiffusionPipeline, PFGMPPPipeline])
def test_save_and_load(make_unet, loader, tmp_path):
    pipe = pipeline(make_unet(), D=64, sigma_data=0.7)
    pipe.save_pretrained(tmp_path)
    loaded = loader.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert isinstance(loaded, PFGMPPPipeline)
    assert loaded.scheduler.config.D == 64
    kwargs = {"num_inference_steps": 2, "output_type": "latent"}
    expected = pipe(generator=generator(), **kwargs).images
    torch.testing.assert_close(loaded(generator=generator(), **kwargs).images, expected, rtol=1e-3, atol=1e-2)
    for name, tensor in pipe.unet.state_dict().items():
        assert torch.equal(loaded.unet.state_dict()[name], tensor)


WITHOUT_THE_PACKAGE = """
import importlib.util
import sys
import torch
from diffusers import DiffusionPipeline

assert importlib.util.find_spec("pipeline_pfgmpp") is None


def load(folder):
    return DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)


def draw(pipe):
    rng = torch.Generator().manual_seed(0)
    options = {"num_inference_steps": 2, "guidance_scale": 2.0, "output_type": "pt"}
    return pipe(generator=rng, **options).images.sum().item()


pipe = load("model")  # its two networks are of one class, which diffusers makes twice
load("model")
pipe.save_pretrained("again")
print(draw(pipe), draw(load("again")))
"""


def test_custom_code_is_loaded_twice_and_saved_again(tmp_path):
    pipe = PFGMPPPipeline(our_unet(), PFGMPPScheduler(D=128), guidance_unet=our_unet())
    pipe.save_pretrained(tmp_path / "model")
    environment = {
        "PYTHONPATH": sysconfig.get_path("purelib"),
        "HF_HOME": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    # Without site-packages no .pth file is read, and the package's editable installation is not found.
    command = [sys.executable, "-S", "-c", WITHOUT_THE_PACKAGE]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    for name in (
        "model_index.json",
        "unet/pipeline_pfgmpp.py",
        "scheduler/pipeline_pfgmpp.py",
        "pipeline.py",
    ):
        assert (tmp_path / "again" / name).read_text() == (tmp_path / "model" / name).read_text()
    kwargs = {"num_inference_steps": 2, "guidance_scale": 2.0, "output_type": "pt"}
    with_the_package = DiffusionPipeline.from_pretrained(tmp_path / "again")
    sums = [each(generator=generator(), **kwargs).images.sum().item() for each in (pipe, with_the_package)]
    assert [*map(float, result.stdout.split()), sums[1]] == pytest.approx([sums[0]] * 3, rel=1e-4)


def test_the_source_of_a_class_that_is_gone_is_named(tmp_path):
    class Elsewhere(PFGMPPPipeline):
        pass

    Elsewhere.__module__ = "pipeline_pfgmpp.noise"
    with pytest.raises(ValueError, match="The source of Elsewhere must be saved"):
        Elsewhere(our_unet(), PFGMPPScheduler()).save_pretrained(tmp_path)


def test_a_compiled_network_is_sampled_and_saved(tmp_path):
    pipe = pipeline()
    kwargs = {"num_inference_steps": 2, "output_type": "latent"}
    expected = pipe(generator=generator(), **kwargs).images
    compiled = torch.compile(pipe.unet, backend="eager")
    built = PFGMPPPipeline(compiled, pipe.scheduler)
    pipe.unet = compiled
    for each in (pipe, built):
        torch.testing.assert_close(each(generator=generator(), **kwargs).images, expected)
    built.save_pretrained(tmp_path)
    assert type(DiffusionPipeline.from_pretrained(tmp_path).unet) is PFGMPPUNet2DModel


def test_the_saved_index_names_the_package(tmp_path):
    pipe = pipeline(our_unet(label_dim=2))
    named = PFGMPPPipeline(pipe.unet, pipe.scheduler, id2label={0: "cat", 1: "dog"})
    named.save_pretrained(tmp_path)
    index = PFGMPPPipeline.load_config(tmp_path)
    assert index["_class_name"] == "PFGMPPPipeline"
    assert index["unet"] == ["pipeline_pfgmpp", "PFGMPPUNet2DModel"]
    assert index["scheduler"] == ["pipeline_pfgmpp", "PFGMPPScheduler"]
    assert DiffusionPipeline.from_pretrained(tmp_path).config.id2label == {"0": "cat", "1": "dog"}


@pytest.mark.parametrize("make_unet", UNETS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights(make_unet, dtype, tmp_path):
    pipe = pipeline(make_unet(), D=128)
    kwargs = {"batch_size": 2, "num_inference_steps": 4, "output_type": "latent"}
    reference = pipe(generator=generator(), **kwargs).images
    pipe.save_pretrained(tmp_path, variant="half")
    loaded = PFGMPPPipeline.from_pretrained(tmp_path, variant="half", torch_dtype=dtype)
    loaded.set_progress_bar_config(disable=True)
    for half in (loaded, pipe.to(dtype)):
        images = half(generator=generator(), **kwargs).images
        assert half.unet.dtype == dtype
        assert images.dtype == torch.float32  # the state stays exact
        assert (images - reference).norm() < {torch.float16: 0.01, torch.bfloat16: 0.1}[
            dtype
        ] * reference.norm()
    assert pipe(num_inference_steps=2).images[0].mode == "RGB"


def test_a_float64_network_is_sampled_in_float64():
    assert (
        pipeline().to(torch.float64)(num_inference_steps=2, output_type="latent").images.dtype
        == torch.float64
    )


@pytest.mark.parametrize("other", [EDMEulerScheduler, EDMDPMSolverMultistepScheduler])
def test_diffusers_schedulers_can_be_swapped_in_and_keep_d(other, tmp_path):
    pipe = pipeline(D=1)
    fine = pipe(batch_size=2, num_inference_steps=100, generator=generator(), output_type="latent").images
    pipe.scheduler = other.from_config(pipe.scheduler.config)
    swapped = pipe(batch_size=2, num_inference_steps=100, generator=generator(), output_type="latent").images
    # the same Student-t noise leads along the same lines
    assert (swapped - fine).abs().mean() < 0.05
    pipe.save_pretrained(tmp_path)
    assert PFGMPPPipeline.from_pretrained(tmp_path).scheduler.config.D == 1


def test_a_scheduler_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="`scheduler` must be a PFGMPPScheduler .* but is DDIMScheduler"):
        PFGMPPPipeline(our_unet(), DDIMScheduler())


def test_a_pipeline_that_is_loaded_in_inference_mode_draws(tmp_path):
    PFGMPPPipeline(our_unet(), PFGMPPScheduler(D=64)).save_pretrained(tmp_path)
    with torch.inference_mode():
        pipe = PFGMPPPipeline.from_pretrained(tmp_path)
        assert pipe(num_inference_steps=2, output_type="pt", generator=generator()).images.isfinite().all()


def test_a_callback_may_wait_for_another_pipeline_in_another_thread():
    pipes = [PFGMPPPipeline(our_unet(), PFGMPPScheduler(D=64)) for _ in range(2)]
    done = []

    def wait_for_other(pipe, step, t, tensors):
        thread = threading.Thread(target=lambda: done.append(pipes[1](num_inference_steps=1)), daemon=True)
        thread.start()
        thread.join(60)
        return {}

    pipes[0](num_inference_steps=2, callback_on_step_end=wait_for_other)
    assert len(done) == 3


def test_a_call_in_inference_mode_leaves_weights_that_can_be_trained():
    pipe = pipeline()
    with torch.inference_mode():
        pipe(num_inference_steps=1)
    loss = pipe.unet(torch.zeros(1, 3, 8, 8), torch.zeros(1)).sample.square().sum()
    loss.backward()
    assert all(
        weight.is_contiguous(memory_format=torch.channels_last)
        for weight in pipe.unet.parameters()
        if weight.ndim == 4
    )


def test_a_network_in_training_keeps_the_layout_of_its_weights():
    pipe = pipeline()
    pipe.unet.train()
    layouts = [weight.stride() for weight in pipe.unet.parameters()]
    pipe(num_inference_steps=1)
    assert [weight.stride() for weight in pipe.unet.parameters()] == layouts


def test_weights_may_be_stored_in_another_type_than_they_compute_in():
    unet = our_unet(d_conditioning=True)
    torch.nn.init.normal_(unet.map_dimension.linear.weight)
    expected = pipeline(unet)(generator=generator(), num_inference_steps=2, output_type="latent").images
    unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    images = pipeline(unet)(generator=generator(), num_inference_steps=2, output_type="latent").images
    assert (images - expected).norm() < 0.5 * expected.norm()


def test_a_program_that_derives_a_pipeline_stays_at_home(tmp_path):
    (tmp_path / "mine.py").write_text(
        "TOKEN = 'secret'\nfrom pipeline_pfgmpp import PFGMPPPipeline\nclass Mine(PFGMPPPipeline): pass\n"
    )
    mine = runpy.run_path(str(tmp_path / "mine.py"), run_name="mine")["Mine"]
    mine(our_unet(), PFGMPPScheduler()).save_pretrained(tmp_path / "out")
    assert "secret" not in (tmp_path / "out" / "pipeline.py").read_text()
    assert "class PFGMPPPipeline" in (tmp_path / "out" / "pipeline.py").read_text()


def test_files_that_are_not_the_pipelines_are_left_alone(tmp_path):
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "config.json").write_text('["not ours"]')
    pipe = pipeline()
    pipe.save_pretrained(tmp_path)
    pipe.save_pretrained(tmp_path)
    assert (tmp_path / "clip" / "config.json").read_text() == '["not ours"]'
    (tmp_path / "noise.py").write_text("mine = 1\n")
    with pytest.raises(ValueError, match="noise.py is in the way of a file of the pipeline's"):
        pipe.save_pretrained(tmp_path)
    assert (tmp_path / "noise.py").read_text() == "mine = 1\n"


def test_offloading_decides_where_a_call_computes():
    assert pipeline()._execution_device.type == "cpu"
    by_groups = pipeline()
    by_groups.unet.enable_group_offload(torch.device("cuda"), offload_type="leaf_level")
    assert by_groups._execution_device.type == "cuda"
    by_model = pipeline()
    accelerate.cpu_offload_with_hook(by_model.unet, "cuda")
    assert by_model._execution_device.type == "cuda"


@pytest.mark.gpu
def test_model_cpu_offload_on_the_gpu():
    pipe = pipeline()
    kwargs = {"num_inference_steps": 2, "output_type": "latent"}
    expected = pipe(generator=generator(), **kwargs).images
    pipe.enable_model_cpu_offload()
    images = pipe(generator=generator(), **kwargs).images
    assert images.device.type == "cuda"
    assert pipe.unet.device.type == "cpu"
    torch.testing.assert_close(images.cpu(), expected, rtol=1e-3, atol=1e-3)


def test_a_dimension_outside_the_trained_range_warns_once(caplog):
    """A dimension at which the noise has no variance is refused: the network never saw such noise."""
    unet = PFGMPPUNet2DModel(
        sample_size=8, model_channels=16, channel_mult=(1,), num_blocks=1, d_conditioning=True
    )
    pipe = PFGMPPPipeline(unet, PFGMPPScheduler(D=64, D_range=(16, 2048)))
    few = {"num_inference_steps": 1, "output_type": "latent"}
    pipe(D=16, **few)
    pipe(D=2048, **few)
    assert not caplog.messages
    for _ in range(2):
        pipe(D=math.inf, **few)
        pipe(D=8, **few)
    (message,) = caplog.messages
    assert message == (
        "`D` is inf, but this network was trained for D from 16 to 2048; outside that range the images"
        " get worse."
    )
    for D in (1, 2, torch.tensor([2.0])):
        with pytest.raises(
            ValueError, match="was trained for D from 16 to 2048, and its images are only noise at D up to 2"
        ):
            pipe(D=D, **few)
    pipe.scheduler = PFGMPPScheduler(D=1, D_range=(1, None))
    pipe(D=1, **few)


def test_the_trained_range_outlives_files_and_other_schedulers(tmp_path):
    scheduler = PFGMPPScheduler(D=64, D_range=(16, math.inf))
    scheduler.save_pretrained(tmp_path)
    assert PFGMPPScheduler.from_pretrained(tmp_path).config.D_range == [16, None]
    other = EDMDPMSolverMultistepScheduler.from_config(scheduler.config)
    assert PFGMPPScheduler.from_config(other.config).config.D_range == [16, None]
    for bad in ((16,), (64, 16), (0, 4), (0.4, 4), "16:inf", 16):
        with pytest.raises(ValueError, match="`D_range` must"):
            PFGMPPScheduler(D_range=bad)


# Classes


NAMES = {0: "T-shirt/top", 1: "Sneaker", 2: "sneaker", 3: "Bag"}


def named_pipeline(id2label=NAMES, **config):
    pipe = PFGMPPPipeline(our_unet(label_dim=4), PFGMPPScheduler(**config), id2label=id2label)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def watch_labels(pipe):
    """Return a list to which each call of the network appends the classes of its images."""
    seen = []

    def look(module, args, kwargs):
        seen.append(kwargs["class_labels"].argmax(1).tolist())

    pipe.unet.register_forward_pre_hook(look, with_kwargs=True)
    return seen


FEW = {"num_inference_steps": 1, "output_type": "latent"}


@pytest.mark.parametrize("make_generator", [generator, lambda: [generator(seed) for seed in range(6)]])
def test_a_seed_draws_the_same_class_at_every_d(make_generator):
    unet = our_unet(label_dim=4, d_conditioning=True)
    pipe = pipeline(unet, D=128)
    seen = watch_labels(pipe)
    for D in (1, 16, 128, 1e6, None, math.inf):
        pipe(6, D=D, generator=make_generator(), **FEW)
    pipe.scheduler = PFGMPPScheduler(D=None)
    pipe(6, generator=make_generator(), **FEW)
    assert len(set(map(tuple, seen))) == 1
    assert len(set(seen[0])) > 1


@pytest.mark.parametrize(
    ("labels", "numbers"),
    [
        ("Bag", [3, 3]),
        ("bAG", [3, 3]),
        ("sneaker", [2, 2]),
        (["Bag", "Sneaker"], [3, 1]),
        (["Bag", 2], [3, 2]),
        (np.array(["Bag", "T-shirt/top"]), [3, 0]),
        (np.int64(3), [3, 3]),
        (np.array([3, 1], np.uint8), [3, 1]),
        (torch.tensor(3), [3, 3]),
        ([torch.tensor(3), np.int32(1)], [3, 1]),
        (torch.tensor([2], dtype=torch.int16), [2, 2]),
        ((1, 2), [1, 2]),
    ],
)
def test_classes_are_named_or_numbered(labels, numbers):
    pipe = named_pipeline()
    seen = watch_labels(pipe)
    pipe(2, class_labels=labels, **FEW)
    pipe.invert(torch.zeros(2, 3, 8, 8), 2, class_labels=labels)
    assert seen == [numbers] * len(seen)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("SNEAKER", "`class_labels` must name one class, and 'SNEAKER' is the name of 1, 2"),
        ("cat", r"`class_labels` must be one of \['T-shirt/top', 'Sneaker', 'sneaker', 'Bag'\], or a number"),
        (["Bag"] * 3, "`class_labels` must be a class or 2 classes"),
        (True, "`class_labels` must be a class"),
        ([None, 1], "`class_labels` must be a class"),
        (np.nan, "`class_labels` must be a class"),
        (np.array([0.0, 1.0]), "`class_labels` must be a class"),
        (torch.tensor([True, False]), "`class_labels` must be a class"),
        (4, r"`class_labels` must lie in 0 ... 3"),
        ({"Bag": 1}, "`class_labels` must be a class"),
    ],
)
def test_what_is_no_class_is_refused(labels, message):
    with pytest.raises(ValueError, match=message) as error:
        named_pipeline()(2, class_labels=labels, **FEW)
    assert "\n" not in str(error.value)


def test_names_for_a_model_without_names_are_refused():
    with pytest.raises(ValueError, match="must be numbers, since this model has no names"):
        named_pipeline(None)(class_labels="Bag", **FEW)


def test_a_class_that_never_occurred_in_training_is_not_offered(tmp_path):
    named_pipeline({1: "Sneaker", "3": "Bag"}).save_pretrained(tmp_path)
    pipe = PFGMPPPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    seen = watch_labels(pipe)
    pipe(32, generator=generator(), **FEW)
    assert set(seen[0]) == {1, 3}
    pipe(class_labels=3, **FEW)
    with pytest.raises(ValueError, match=r"`class_labels` must be one of the classes .* \[1, 3\]"):
        pipe(class_labels=2, **FEW)


@pytest.mark.parametrize("id2label", [{4: "cat"}, {-1: "cat"}, {"cat": 0}, {0: 1}, {0: None}, ["cat", "dog"]])
def test_names_of_classes_that_do_not_exist_are_refused(id2label):
    with pytest.raises(ValueError, match="`id2label` must map"):
        named_pipeline(id2label)


# Numbers


@pytest.mark.parametrize("kind", [np.int64, np.float32, np.array, torch.tensor])
def test_scalars_of_numpy_and_torch_count_as_numbers(kind):
    unet = our_unet(label_dim=4, d_conditioning=True)
    pipe = pipeline(unet, D=64)
    whole = np.int16 if kind is np.float32 else kind
    image = torch.rand(2, 3, 8, 8, generator=generator(7))
    numbers = {"D": 128, "guidance_scale": 3, "temperature": 2, "strength": 1}
    counts = {"batch_size": 2, "num_inference_steps": 3, "class_labels": 1}
    common = {"image": image, "output_type": "latent", "guidance_interval": (0, 50)}
    expected = pipe(generator=generator(), **numbers, **counts, **common).images
    numbers = {name: kind(value) for name, value in numbers.items()}
    counts = {name: whole(value) for name, value in counts.items()}
    common["guidance_interval"] = (kind(0), kind(50))
    assert torch.equal(pipe(generator=generator(), **numbers, **counts, **common).images, expected)
    expected = pipe.invert(image, 3, 128, 1)
    assert torch.equal(pipe.invert(image, whole(3), kind(128), whole(1)), expected)
    result = pipe.log_likelihood(
        image, whole(2), kind(128), whole(1), num_repeats=whole(1), generator=generator()
    )
    again = pipe.log_likelihood(image, 2, 128, 1, num_repeats=1, generator=generator())
    assert torch.equal(result.log_likelihood, again.log_likelihood)


BAD_NUMBERS = [math.nan, math.inf, -math.inf, "1", None, True, 1j, [1.0], torch.ones(2), 1e300]


@pytest.mark.parametrize("value", BAD_NUMBERS, ids=str)
@pytest.mark.parametrize("name", ["guidance_scale", "temperature", "strength"])
def test_what_is_no_number_is_refused_by_name(name, value):
    pipe = pipeline(our_unet(label_dim=4))
    with pytest.raises(ValueError, match=f"`{name}` must") as error:
        pipe(image=torch.zeros(1, 3, 8, 8), **{name: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [*BAD_NUMBERS, 2.5, 0, -3, 10**9], ids=str)
def test_what_is_no_count_is_refused_by_name(value):
    pipe = pipeline()
    image = torch.zeros(1, 3, 8, 8)
    if value is not None:  # the default
        with pytest.raises(ValueError, match="`num_inference_steps` must"):
            pipe(num_inference_steps=value)
    for name, call in (
        ("batch_size", lambda: pipe(batch_size=value)),
        ("num_inference_steps", lambda: pipe.invert(image, num_inference_steps=value)),
        ("num_repeats", lambda: pipe.log_likelihood(image, num_repeats=value)),
    ):
        with pytest.raises(ValueError, match=f"`{name}` must"):
            call()


@pytest.mark.parametrize("D", [1e-3, 0.1, 0, -1, math.nan, "128", True, 1j, [[64]], [64, "inf"]], ids=str)
def test_absurd_d_are_refused(D):
    pipe = pipeline(our_unet(d_conditioning=True))
    image = torch.zeros(1, 3, 8, 8)
    latents = torch.ones(1, 3, 8, 8)
    for call in (
        lambda: pipe(D=D),
        lambda: pipe(D=D, latents=latents),
        lambda: pipe.invert(image, D=D),
        lambda: pipe.log_likelihood(image, D=D),
        lambda: PFGMPPScheduler(D=D),
    ):
        with pytest.raises(ValueError, match="`D` "):
            call()


def test_the_smallest_d_makes_finite_images():
    pipe = pipeline(our_unet(d_conditioning=True))
    assert pipe(64, D=0.5, generator=generator(), **FEW).images.isfinite().all()


def test_one_d_per_image():
    pipe = pipeline(our_unet(d_conditioning=True), D=64)
    latents = sample_noise((2, 3, 8, 8), 64, generator())
    both = pipe(latents=latents, D=[16, math.inf], **FEW).images
    for row, D in ((0, 16), (1, None)):
        pipe.scheduler = PFGMPPScheduler(D=D)
        alone = pipe(latents=latents[row : row + 1], **FEW).images
        torch.testing.assert_close(both[row : row + 1], alone, rtol=1e-4, atol=1e-4)
    for call in (
        lambda: pipe(3, D=[16, 64]),
        lambda: pipe(latents=latents, D=torch.tensor([16.0, 64, 128])),
        lambda: pipe.invert(torch.zeros(3, 3, 8, 8), D=[16, 64]),
    ):
        with pytest.raises(ValueError, match="`D` holds . values for a batch of"):
            call()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"latents": np.zeros((1, 3, 8, 8))}, "`latents` must be a torch.Tensor of floats, but is ndarray"),
        (
            {"latents": torch.zeros(1, 3, 8, 8, dtype=torch.int64)},
            "`latents` must be a torch.Tensor of floats",
        ),
        ({"latents": torch.full((1, 3, 8, 8), math.nan)}, "`latents` must be finite"),
        ({"latents": torch.full((1, 3, 8, 8), 1e30)}, "`latents` must hold at most 1e.09, but holds 1e.30"),
        ({"latents": torch.zeros(3, 8, 8)}, "`latents` must be of shape"),
        (
            {"latents": torch.zeros(1, 3, 7, 8)},
            "`sample` must have a height and a width that are multiples of 2",
        ),
        ({"generator": 5}, "`generator` must be a torch.Generator or a list of them, but is 5"),
        ({"generator": [5]}, "`generator` must be a torch.Generator or a list of them, but is list of int"),
        ({"generator": np.random.default_rng()}, "`generator` must be a torch.Generator"),
        ({"guidance_interval": 3}, "`guidance_interval` must be"),
        ({"guidance_interval": (0, math.nan)}, "`guidance_interval` must be"),
        ({"guidance_interval": ("0", 1)}, "`guidance_interval` must be"),
        ({"sigmas": [math.inf, 1.0]}, "`sigmas` or `timesteps` must be"),
        ({"sigmas": [math.nan]}, "`sigmas` or `timesteps` must be"),
        ({"sigmas": [1e30, 1.0]}, "`sigmas` or `timesteps` must be"),
        (
            {"sigmas": [80.0, 1.0], "num_inference_steps": 7},
            "Give `num_inference_steps` or `sigmas`, but not",
        ),
        ({"sigmas": "80"}, "`sigmas` or `timesteps` must be"),
        ({"sigmas": [[80.0, 1.0]]}, "`sigmas` or `timesteps` must be"),
        ({"output_type": None}, "`output_type` must be one of"),
        ({"output_type": ["pil"]}, "`output_type` must be one of"),
        ({"callback_on_step_end_tensor_inputs": "latents"}, "`callback_on_step_end_tensor_inputs` may hold"),
        ({"callback_on_step_end": 3}, "`callback_on_step_end` must be a function, but is 3"),
        ({"batch_size": 10**9}, "`batch_size` must be at most 1,000,000, but is 1000000000"),
        ({"temperature": 1e12}, "`temperature` must be at most 1e.09, but is 1000000000000.0"),
        ({"callback_on_step_end_tensor_inputs": None}, "`callback_on_step_end_tensor_inputs` may hold"),
    ],
)
def test_arguments_of_a_wrong_kind_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message) as error:
        pipeline()(**kwargs)
    assert "\n" not in str(error.value)


def test_generators_of_the_likelihood():
    with pytest.raises(ValueError, match="`generator` must be a torch.Generator, but is list"):
        pipeline().log_likelihood(torch.zeros(1, 3, 8, 8), generator=[generator()])


def test_samples_that_are_not_numbers_are_reported(caplog):
    pipe = pipeline()
    torch.nn.init.constant_(next(pipe.unet.parameters()), math.nan)
    pipe(2, **FEW)
    assert "2 of 2 samples hold NaN or infinities" in caplog.text


# Rectangles


def test_a_pipeline_of_rectangles(tmp_path):
    unet = PFGMPPUNet2DModel(
        sample_size=(24, 40),
        model_channels=16,
        channel_mult=(1, 2),
        num_blocks=1,
        attn_resolutions=(12,),
        label_dim=3,
    )
    pipe = PFGMPPPipeline(unet.eval(), PFGMPPScheduler(D=64), guidance_unet=unet)
    pipe.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    pictures = loaded(2, num_inference_steps=2, generator=generator()).images
    assert [picture.size for picture in pictures] == [(40, 24)] * 2
    again = PFGMPPPipeline(unet, PFGMPPScheduler(), guidance_unet=loaded.unet)  # (24, 40) is [24, 40] in JSON
    assert again.guidance_unet is loaded.unet
    latents = loaded.invert(pictures, num_inference_steps=2)
    assert latents.shape == (2, 3, 24, 40)
    mask = torch.zeros(24, 40)
    mask[:12] = 1
    edited = loaded(image=pictures, mask_image=mask, num_inference_steps=2, output_type="np").images
    assert edited.shape == (2, 24, 40, 3)
    likelihood = loaded.log_likelihood(pictures, num_inference_steps=2).log_likelihood
    assert likelihood.isfinite().all()
    with pytest.raises(ValueError, match=r"`image` must hold images of shape \(3, 24, 40\)"):
        loaded(image=torch.zeros(1, 3, 40, 24))
    with pytest.raises(ValueError, match="`sample_size` is 8 in `guidance_unet` but"):
        PFGMPPPipeline(unet, PFGMPPScheduler(), guidance_unet=our_unet())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"label_dim": 3},
            "`guidance_unet` must have no classes or those of `unet`, but has 3, and `unet` has 0",
        ),
        ({"condition_channels": 1}, "`condition_channels` is 1 in `guidance_unet` but 0 in `unet`"),
        ({"in_channels": 1, "out_channels": 1}, "`in_channels` is 1 in `guidance_unet` but 3 in `unet`"),
    ],
)
def test_a_guide_of_another_kind_is_refused(options, message):
    sizes = {"sample_size": 8, "model_channels": 8, "channel_mult": (1, 1), "num_blocks": 1}
    guide = PFGMPPUNet2DModel(**sizes, **options)
    with pytest.raises(ValueError, match=message):
        PFGMPPPipeline(PFGMPPUNet2DModel(**sizes), PFGMPPScheduler(), guidance_unet=guide)


def test_rectangles_with_a_network_of_diffusers():
    unet = UNet2DModel(
        sample_size=(8, 16),
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    assert pipeline(unet)(num_inference_steps=2, output_type="np").images.shape == (1, 8, 16, 3)
