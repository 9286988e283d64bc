"""
What a user of diffusers carries from one pipeline or scheduler to the next.

diffusers checks these conventions for its own pipelines, in tests that it does not ship; these are our
tests of the same conventions.
"""

import inspect
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import make_tiny_pipeline
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    UNet2DModel,
)
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from test_pipeline_pfgmpp import diffusers_unet, generator, our_unet, pipeline
from test_restoration import make_pipeline

from pipeline_pfgmpp import PFGMPPPipeline, PFGMPPScheduler, PFGMPPUNet2DModel


SOLVERS = ["heun", "euler", "dpmpp_2m", "dpmpp_3m", "dpmpp_2m_sde"]
FEW = {"num_inference_steps": 3, "output_type": "latent"}


def sample(pipe, seed=0, **kwargs):
    return pipe(generator=generator(seed), **{**FEW, **kwargs}).images


# Callbacks


def test_callbacks_receive_what_they_ask_for_and_nothing_else():
    pipe = pipeline()
    seen = []

    def look(pipe, step, timestep, tensors):
        seen.append(set(tensors))
        return tensors

    allowed = pipe._callback_tensor_inputs
    for names in (["latents"], allowed):
        seen.clear()
        sample(pipe, callback_on_step_end=look, callback_on_step_end_tensor_inputs=names)
        assert seen == [set(names)] * pipe.num_timesteps


class Recorder(PipelineCallback):
    """A callback of diffusers' own kind, which knows what it wants."""

    tensor_inputs = ["latents", "pred_original_sample"]

    def callback_fn(self, pipeline, step_index, timesteps, callback_kwargs):
        self.seen = set(callback_kwargs)
        return callback_kwargs


@pytest.mark.parametrize(
    "wrap", [lambda callback: callback, lambda callback: MultiPipelineCallbacks([callback])]
)
def test_callbacks_of_diffusers_are_asked_what_they_want(wrap):
    recorder = Recorder()
    sample(pipeline(), callback_on_step_end=wrap(recorder))
    assert recorder.seen == {"latents", "pred_original_sample"}
    restorer = make_pipeline()
    image = torch.zeros(1, 1, 8, 8)
    recorder = Recorder()
    restorer(image, callback_on_step_end=wrap(recorder), **FEW)
    assert recorder.seen == {"latents", "pred_original_sample"}


@pytest.mark.parametrize("solver_type", SOLVERS)
def test_the_last_callback_has_the_last_word(solver_type):
    pipe = pipeline(solver_type=solver_type)

    def erase(pipe, step, timestep, tensors):
        if step == pipe.num_timesteps - 1:
            tensors["latents"] = torch.zeros_like(tensors["latents"])
        return tensors

    assert not sample(pipe, callback_on_step_end=erase).any()


@pytest.mark.parametrize("solver_type", ["heun", "euler"])
@pytest.mark.parametrize("editing", [{}, {"strength": 0.5}])
def test_a_callback_changes_the_guidance_scale_from_the_next_call_on(solver_type, editing):
    pipe = pipeline(our_unet(label_dim=4), solver_type=solver_type)
    if editing:
        editing = {**editing, "image": torch.zeros(1, 3, 8, 8)}

    def raise_guidance(pipe, step, timestep, tensors):
        pipe._guidance_scale += 1.0
        return tensors

    kwargs = {"class_labels": 1, "guidance_scale": 2.0, **editing}
    plain = sample(pipe, **kwargs)
    assert pipe.guidance_scale == 2.0
    raised = sample(pipe, callback_on_step_end=raise_guidance, **kwargs)
    assert pipe.guidance_scale == 2.0 + pipe.num_timesteps
    assert not torch.allclose(plain, raised)
    assert torch.equal(sample(pipe, **kwargs), plain)  # each call begins with its own argument


def test_the_guidance_scale_is_read_at_each_call_of_the_network():
    pipe = pipeline(our_unet(label_dim=4), solver_type="euler")
    batches = []
    pipe.unet.register_forward_pre_hook(lambda module, args: batches.append(len(args[0])))

    def stop_guiding(pipe, step, timestep, tensors):
        assert pipe.do_classifier_free_guidance == (step == 0)
        pipe._guidance_scale = 1.0
        return {}

    pipe(guidance_scale=3.0, callback_on_step_end=stop_guiding, class_labels=1, **FEW)
    assert batches == [2, 1, 1]


def test_a_callback_returns_a_dictionary_or_nothing():
    assert len(sample(pipeline(), callback_on_step_end=lambda *state: None)) == 1
    with pytest.raises(ValueError, match="`callback_on_step_end` must return a dictionary"):
        sample(pipeline(), callback_on_step_end=lambda pipe, step, timestep, tensors: tensors["latents"])


def test_a_callback_cannot_guide_a_network_that_has_no_guide():
    pipe = pipeline()

    def guide(pipe, step, timestep, tensors):
        pipe._guidance_scale = 2.0
        return {}

    with pytest.raises(ValueError, match="`guidance_scale` must be 1 for this network, but is 2.0"):
        pipe(callback_on_step_end=guide, **FEW)
    assert len(sample(pipe)) == 1


def test_classifier_free_guidance_is_told_from_autoguidance():
    pipe = PFGMPPPipeline(our_unet(label_dim=4), PFGMPPScheduler(), guidance_unet=our_unet(label_dim=4))
    pipe.set_progress_bar_config(disable=True)
    assert (pipe.guidance_scale, pipe.do_classifier_free_guidance, pipe.num_timesteps) == (1.0, False, 0)
    sample(pipe, guidance_scale=2.0, class_labels=1)
    assert (pipe.guidance_scale, pipe.do_classifier_free_guidance, pipe.num_timesteps) == (2.0, False, 5)
    pipe.guidance_unet = None
    assert pipe.do_classifier_free_guidance


def test_inversion_and_likelihood_follow_an_earlier_call_with_guidance():
    pipe = pipeline(our_unet(label_dim=4))
    image = torch.zeros(1, 3, 8, 8)
    expected = pipe.invert(image, num_inference_steps=3, class_labels=1)
    sample(pipe, guidance_scale=3.0, class_labels=1)
    assert torch.equal(pipe.invert(image, num_inference_steps=3, class_labels=1), expected)


# Batches and outputs


@pytest.mark.parametrize("batch_size", [1, 2, 3])
@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
def test_every_output_holds_the_batch(batch_size, output_type):
    images = sample(pipeline(), batch_size=batch_size, output_type=output_type)
    assert len(images) == batch_size


def test_an_image_of_a_batch_is_the_image_alone():
    pipe = pipeline().to(torch.float64)  # kernels round differently at another batch size
    together = pipe(batch_size=3, generator=[generator(seed) for seed in range(3)], **FEW).images
    alone = pipe(generator=generator(0), **FEW).images
    torch.testing.assert_close(together[:1], alone, rtol=1e-9, atol=1e-9)


def test_the_first_element_of_a_tuple_is_the_images():
    pipe = pipeline()
    as_tuple = pipe(generator=generator(), return_dict=False, **FEW)
    assert isinstance(as_tuple, tuple)
    assert torch.equal(as_tuple[0], sample(pipe))


def test_sampling_is_deterministic_and_reusable():
    pipe = pipeline()
    first = sample(pipe)
    sample(pipe, seed=1)
    assert torch.equal(sample(pipe), first)


def test_a_call_needs_no_argument_and_knows_the_usual_ones():
    parameters = dict(inspect.signature(PFGMPPPipeline.__call__).parameters)
    del parameters["self"]
    assert all(parameter.default is not inspect.Parameter.empty for parameter in parameters.values())
    usual = {"num_inference_steps", "generator", "latents", "output_type", "return_dict"}
    assert usual | {"callback_on_step_end", "callback_on_step_end_tensor_inputs"} <= set(parameters)


# Components


@pytest.mark.parametrize("make_unet", [our_unet, diffusers_unet])
def test_components_make_another_pipeline(make_unet):
    pipe = pipeline(make_unet())
    assert set(pipe.components) == {"unet", "scheduler", "guidance_unet", "vae"}
    again = PFGMPPPipeline(**pipe.components)
    again.set_progress_bar_config(disable=True)
    assert again.unet is pipe.unet
    assert torch.equal(sample(again), sample(pipe))


def test_components_keep_the_names_of_the_classes():
    pipe = PFGMPPPipeline(our_unet(label_dim=2), PFGMPPScheduler(), id2label={0: "cat", 1: "dog"})
    for again in (PFGMPPPipeline(**pipe.components), PFGMPPPipeline.from_pipe(pipe)):
        assert again.config.id2label == {"0": "cat", "1": "dog"}
        assert again.num_classes == 2
    renamed = PFGMPPPipeline.from_pipe(pipe, id2label={0: "lion", 1: "wolf"})
    assert renamed.config.id2label == {"0": "lion", "1": "wolf"}


@pytest.mark.parametrize("make_unet", [our_unet, diffusers_unet])
def test_from_pipe_shares_the_components(make_unet):
    pipe = PFGMPPPipeline(make_unet(), PFGMPPScheduler(D=64), id2label={0: "cat"})
    pipe.set_progress_bar_config(disable=True)
    again = PFGMPPPipeline.from_pipe(pipe)
    again.set_progress_bar_config(disable=True)
    assert again.components == pipe.components
    assert again.config.id2label == {"0": "cat"}
    assert torch.equal(sample(again), sample(pipe))
    other = PFGMPPPipeline.from_pipe(pipe, scheduler=PFGMPPScheduler(D=64, solver_type="euler"))
    assert other.unet is pipe.unet
    assert other.scheduler.config.solver_type == "euler"


def test_optional_components_may_be_missing(tmp_path):
    pipe = PFGMPPPipeline(our_unet(), PFGMPPScheduler(), guidance_unet=our_unet())
    for name in pipe._optional_components:
        setattr(pipe, name, None)
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(tmp_path)
    loaded = PFGMPPPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert all(getattr(loaded, name) is None for name in pipe._optional_components)
    torch.testing.assert_close(sample(loaded), sample(pipe), rtol=1e-4, atol=1e-4)


def test_required_components_may_be_replaced_while_loading(tmp_path):
    pipeline(D=64).save_pretrained(tmp_path)
    scheduler = PFGMPPScheduler(D=64, solver_type="euler")
    loaded = DiffusionPipeline.from_pretrained(tmp_path, scheduler=scheduler)
    assert loaded.scheduler is scheduler


# Files


@pytest.mark.parametrize("safe_serialization", [True, False])
def test_saving_and_loading_change_no_image(safe_serialization, tmp_path):
    pipe = pipeline()
    pipe.save_pretrained(tmp_path, safe_serialization=safe_serialization)
    loaded = PFGMPPPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert not loaded.unet.training
    torch.testing.assert_close(sample(loaded), sample(pipe), rtol=1e-4, atol=1e-4)


def test_variants_are_saved_and_loaded(tmp_path):
    pipeline().save_pretrained(tmp_path, variant="fp16")
    names = {path.name for path in (tmp_path / "unet").glob("*.safetensors")}
    assert names == {"diffusion_pytorch_model.fp16.safetensors"}
    PFGMPPPipeline.from_pretrained(tmp_path, variant="fp16")
    with pytest.raises((OSError, ValueError)):
        PFGMPPPipeline.from_pretrained(tmp_path, variant="no_such_variant")


def test_a_type_per_component(tmp_path):
    pipe = PFGMPPPipeline(our_unet(), PFGMPPScheduler(), guidance_unet=our_unet())
    pipe.save_pretrained(tmp_path)
    types = {"unet": torch.bfloat16, "default": torch.float32}
    loaded = PFGMPPPipeline.from_pretrained(tmp_path, dtype=types)
    assert (loaded.unet.dtype, loaded.guidance_unet.dtype) == (torch.bfloat16, torch.float32)


# Types, devices and settings


def test_to_changes_the_type_of_every_network():
    pipe = PFGMPPPipeline(our_unet(), PFGMPPScheduler(), guidance_unet=our_unet())
    networks = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    assert len(networks) == 2
    for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.float32):
        pipe.to(dtype=dtype)
        assert {network.dtype for network in networks} == {dtype}
        assert pipe.dtype == dtype


def test_to_changes_the_device_of_every_network():
    pipe = PFGMPPPipeline(our_unet(), PFGMPPScheduler(), guidance_unet=our_unet())
    pipe.to("meta")
    assert {pipe.unet.device.type, pipe.guidance_unet.device.type, pipe.device.type} == {"meta"}


def test_attention_slicing_may_be_switched_on_anywhere():
    for pipe in (pipeline(), pipeline(diffusers_unet())):
        expected = sample(pipe)
        pipe.enable_attention_slicing()
        torch.testing.assert_close(sample(pipe), expected, rtol=1e-3, atol=1e-3)
        pipe.disable_attention_slicing()


@pytest.mark.gpu
def test_the_pipeline_moves_to_the_gpu_and_back():
    pipe = pipeline()
    expected = sample(pipe)
    pipe.to("cuda")
    on_gpu = sample(pipe)
    assert on_gpu.device.type == "cuda"
    torch.testing.assert_close(on_gpu.cpu(), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(sample(pipe.to("cpu")), expected)


# The scheduler


@pytest.mark.parametrize("solver_type", SOLVERS)
@pytest.mark.parametrize("config", [{}, {"D": 3}, {"D": None, "sigma_data": 0.7}, {"D_range": (16, None)}])
def test_a_saved_scheduler_is_the_same_scheduler(solver_type, config, tmp_path):
    scheduler = PFGMPPScheduler(solver_type=solver_type, **config)
    scheduler.save_pretrained(tmp_path)
    loaded = PFGMPPScheduler.from_pretrained(tmp_path)
    expected = dict(scheduler.config)
    del expected["_use_default_values"]  # a file states every value
    assert loaded.config == expected


def test_a_scheduler_survives_its_compatible_classes():
    scheduler = PFGMPPScheduler(D=64, sigma_data=0.7)
    assert all(compatible is not None for compatible in scheduler.compatibles)
    for compatible in scheduler.compatibles:
        other = compatible.from_config(scheduler.config)
        back = PFGMPPScheduler.from_config(other.config)
        common = {name: value for name, value in back.config.items() if name in scheduler.config}
        assert common == dict(scheduler.config)
        added = set(back.config) - set(scheduler.config)
        assert not added & set(inspect.signature(PFGMPPScheduler.__init__).parameters)


@pytest.mark.parametrize("solver_type", SOLVERS)
def test_a_step_keeps_the_shape_and_returns_the_next_sample_first(solver_type):
    scheduler = PFGMPPScheduler(solver_type=solver_type)
    scheduler.set_timesteps(4)
    x = torch.rand(2, 3, 8, 8)
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t)
        assert scaled.shape == x.shape
        output = scheduler.step(0.1 * scaled, t, x, generator=generator())
        assert output.prev_sample.shape == x.shape
        assert output[0] is output.prev_sample
        x = output.prev_sample


def test_the_scheduler_has_what_pipelines_rely_on():
    scheduler = PFGMPPScheduler()
    for name in ("init_noise_sigma", "order", "timesteps", "scale_model_input", "step", "add_noise"):
        assert hasattr(scheduler, name)
    assert len(scheduler) == scheduler.config.num_train_timesteps
    np.testing.assert_allclose(scheduler.init_noise_sigma, scheduler.config.sigma_max, rtol=1e-6)


def test_a_scheduler_of_diffusers_reports_the_same_conventions():
    pipe = pipeline(diffusers_unet())
    assert isinstance(pipe.unet, UNet2DModel)
    pipe.scheduler = EDMEulerScheduler.from_config(pipe.scheduler.config)
    sample(pipe)
    assert pipe.num_timesteps == 3


# Schedulers that do not fit


@pytest.mark.parametrize("other", [EulerDiscreteScheduler, DDIMScheduler, DPMSolverMultistepScheduler])
def test_a_scheduler_without_the_preconditioning_of_edm_is_refused_wherever_it_appears(other, tmp_path):
    pipe = pipeline()
    unfit = other.from_config(pipe.scheduler.config)
    message = f"`scheduler` must be a PFGMPPScheduler or, of diffusers, .* but is {other.__name__}"
    with pytest.raises(ValueError, match=message):
        PFGMPPPipeline(pipe.unet, unfit)
    pipe.scheduler = unfit
    for call in (pipe, lambda: pipe.invert(torch.zeros(1, 3, 8, 8))):
        with pytest.raises(ValueError, match=message):
            call()
    pipe.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        DiffusionPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize("other", [EDMEulerScheduler, EDMDPMSolverMultistepScheduler])
def test_a_scheduler_that_takes_the_output_for_a_velocity_is_refused(other):
    pipe = pipeline()
    unfit = other.from_config(pipe.scheduler.config, prediction_type="v_prediction")
    message = "`prediction_type` of the scheduler must be 'epsilon', .* but is 'v_prediction'"
    with pytest.raises(ValueError, match=message):
        PFGMPPPipeline(pipe.unet, unfit)
    pipe.scheduler = unfit
    with pytest.raises(ValueError, match=message):
        pipe()


@pytest.mark.parametrize("D", [1, 2048, None])
def test_eulers_method_of_diffusers_draws_the_same_images(D):
    """Its `init_noise_sigma` is not its first noise level, so the pipeline begins at the latter."""
    pipe = pipeline(D=D, solver_type="euler")
    ours = sample(pipe, num_inference_steps=10)
    pipe.scheduler = EDMEulerScheduler.from_config(pipe.scheduler.config)
    torch.testing.assert_close(sample(pipe, num_inference_steps=10), ours, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("other", [EDMEulerScheduler, EDMDPMSolverMultistepScheduler])
def test_editing_with_a_scheduler_of_diffusers(other):
    pipe = pipeline(D=16)
    pipe.scheduler = other.from_config(pipe.scheduler.config)
    image = torch.full((1, 3, 8, 8), 0.5)
    assert sample(pipe, image=image, strength=0.5, num_inference_steps=4).isfinite().all()
    assert pipe.num_timesteps == 2


# Networks that do not fit


def test_networks_that_do_not_fit_are_refused_by_name():
    uneven = PFGMPPUNet2DModel(
        sample_size=8, out_channels=6, model_channels=16, channel_mult=(1,), num_blocks=1
    )
    with pytest.raises(ValueError, match="takes 3 and returns 6"):
        PFGMPPPipeline(uneven, PFGMPPScheduler())
    sizeless = UNet2DModel(
        block_out_channels=(8,),
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    with pytest.raises(
        ValueError, match=r"`sample_size` of the network must be an integer or \(height, width\)"
    ):
        pipeline(sizeless)()


# Several threads


def test_two_threads_on_one_pipeline_draw_what_each_would_alone():
    pipe = pipeline(our_unet(label_dim=4), D=16, solver_type="dpmpp_3m")
    calls = [
        {
            "seed": seed,
            "num_inference_steps": 3 + seed,
            "class_labels": seed % 4,
            "guidance_scale": 1.0 + seed,
        }
        for seed in range(6)
    ]
    alone = [sample(pipe, **call) for call in calls]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            together = list(pool.map(lambda call: sample(pipe, **call), calls))
            for one, other in zip(together, alone):
                torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    "make_scheduler", [PFGMPPScheduler, EDMEulerScheduler, EDMDPMSolverMultistepScheduler]
)
def test_in_several_threads_each_callback_sees_and_steers_its_own_call(make_scheduler):
    pipe = pipeline(our_unet(label_dim=4))
    pipe.scheduler = make_scheduler.from_config(pipe.scheduler.config)
    barrier = threading.Barrier(2, timeout=30)

    def draw(steps):
        seen = []

        def look(pipe, step, timestep, tensors):
            seen.append((len(pipe.scheduler.timesteps), pipe.scheduler.step_index, pipe.num_timesteps))
            seen_scales.append(pipe.guidance_scale)
            pipe._guidance_scale += 1
            pipe._interrupt = step == 4
            return {}

        seen_scales = []
        barrier.wait()
        pipe(
            num_inference_steps=steps,
            guidance_scale=float(steps),
            class_labels=1,
            callback_on_step_end=look,
            output_type="latent",
        )
        assert seen_scales == [steps + count for count in range(5)]
        return seen

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(draw, (8, 12)))
    for steps, seen in zip((8, 12), results):
        calls = (2 * steps - 1) if make_scheduler is PFGMPPScheduler else steps
        assert seen == [(calls, index, calls) for index in range(1, 6)]


def test_an_interrupt_of_one_call_stops_no_other():
    """It stands on the pipeline until the callback returns."""
    pipe = pipeline()
    expected = sample(pipe, num_inference_steps=6)
    stopped = []

    def stop(pipe, step, timestep, tensors):
        stopped.append(step)
        pipe._interrupt = step == 1
        time.sleep(0.2)
        return {}

    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(sample, pipe, num_inference_steps=6, callback_on_step_end=stop)
        others = [sample(pipe, num_inference_steps=6) for _ in range(8)]
        one.result()
    assert stopped == [0, 1]
    for other in others:
        torch.testing.assert_close(other, expected)


def test_a_callback_may_call_the_pipeline_itself():
    pipe = pipeline(our_unet(label_dim=4))
    seen = []

    def preview(pipe, step, timestep, tensors):
        seen.append((pipe.guidance_scale, pipe.num_timesteps))
        pipe(num_inference_steps=1, class_labels=0)
        return {}

    pipe(num_inference_steps=3, guidance_scale=2.0, class_labels=1, callback_on_step_end=preview)
    assert seen == [(2.0, 5)] * 5


def test_inversion_and_sampling_in_two_threads():
    pipe = pipeline()
    image = torch.full((1, 3, 8, 8), 0.5)
    inverted = pipe.invert(image, num_inference_steps=4)
    drawn = sample(pipe, num_inference_steps=7)
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(pipe.invert, image, num_inference_steps=4) for _ in range(4)]
        others = [pool.submit(sample, pipe, num_inference_steps=7) for _ in range(4)]
    for future in futures:
        torch.testing.assert_close(future.result(), inverted)
    for future in others:
        torch.testing.assert_close(future.result(), drawn)


def test_another_thread_can_stop_a_call():
    pipe = pipeline()
    calls = []

    def stop_from_outside(module, args):
        calls.append(1)
        if len(calls) == 3:
            thread = threading.Thread(target=setattr, args=(pipe, "_interrupt", True))
            thread.start()
            thread.join()

    handle = pipe.unet.register_forward_pre_hook(stop_from_outside)
    sample(pipe, num_inference_steps=8)
    assert len(calls) == 3
    handle.remove()
    assert sample(pipe).isfinite().all()


def test_a_call_leaves_the_scheduler_itself_in_place():
    pipe = pipeline()
    scheduler = pipe.scheduler
    sample(pipe)
    assert pipe.scheduler is scheduler
    assert len(scheduler.timesteps) == pipe.num_timesteps == 5


def test_weights_in_one_file_replace_weights_in_several(tmp_path):
    """diffusers leaves the index of the old ones, and would look for files that are gone."""
    again = make_tiny_pipeline(seed=1)
    for variant in (None, "ema"):
        make_tiny_pipeline().save_pretrained(tmp_path, variant=variant, max_shard_size="20KB")
        again.save_pretrained(tmp_path, variant=variant)
        loaded = DiffusionPipeline.from_pretrained(tmp_path, variant=variant)
        assert all(map(torch.equal, loaded.unet.parameters(), again.unet.parameters()))
