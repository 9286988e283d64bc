"""Noise levels that are searched: they are better where they were not searched, and everybody gets them."""

import json
import math
import shutil

import pytest
import torch
from conftest import make_tiny_pipeline
from diffusers import DiffusionPipeline

from pipeline_pfgmpp import EmpiricalDenoiser, PFGMPPPipeline, PFGMPPScheduler, PFGMPPUNet2DModel, commands
from pipeline_pfgmpp.generation import load_samples, noise_levels
from pipeline_pfgmpp.generation.noise_levels import (
    GAP,
    ORDERS,
    Latents,
    Refinement,
    measure_errors,
    plan_levels,
    search_levels,
    write_levels,
)


EVERY_D = [16, 128, 2048, math.inf]


@pytest.fixture(scope="module", autouse=True)
def coarse_solution():
    """A coarser fine solution and a short refinement: what is tested does not depend on either."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(noise_levels, "FINE_STEPS", 24)
        patch.setattr(noise_levels, "MOST_ROUNDS", 2)
        yield


def make_smooth_pipeline(**options):
    """A pipeline for rectangles with a tiny network of random weights, whose field is smooth."""
    options = {"model_channels": 16, "channel_mult": (1,), "num_blocks": 1, "attn_resolutions": (), **options}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = PFGMPPUNet2DModel((4, 8), 1, 1, **options).eval()
        for parameter in unet.parameters():
            torch.nn.init.normal_(parameter, std=0.15)
    pipe = PFGMPPPipeline(unet, PFGMPPScheduler(D=128))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def smooth():
    """A pipeline for every D."""
    return make_smooth_pipeline(d_conditioning=True)


@pytest.fixture(scope="module")
def trace(smooth):
    return Latents(smooth, list(range(16)), EVERY_D).trace()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A pipeline folder for a single D."""
    folder = tmp_path_factory.mktemp("models") / "model"
    make_smooth_pipeline().save_pretrained(folder)
    return folder


def test_the_trace_is_the_path_of_the_fine_solution(smooth, trace):
    latents = Latents(smooth, list(range(16)), EVERY_D)
    latents.use_solver("heun")
    fine = latents.solve(60)
    assert measure_errors(trace.ends, fine).mean() < 1e-2
    start = smooth.scheduler.sample_noise(
        (16, 1, 4, 8),
        [torch.Generator().manual_seed(seed) for seed in range(16)],
        D=torch.tensor(EVERY_D * 4, dtype=torch.float64),
    )
    torch.testing.assert_close(trace.states[0], 80 * start.flatten(1).float(), rtol=1e-4, atol=1e-2)
    step = trace.levels[12:14]
    ratio = step[1] / step[0]
    euler = ratio * trace.states[12] + (1 - ratio) * trace.denoised[12]
    assert (euler - trace.states[13]).abs().max() < 0.1 * (trace.states[12] - trace.states[13]).abs().max()


@pytest.mark.parametrize("solver_type", ["euler", "dpmpp_3m"])
def test_local_errors_are_those_of_the_scheduler(trace, solver_type):
    """From exact denoised images, one step of the scheduler errs by what is expected of it."""
    places = [6, 9, 12, 15]
    scheduler = PFGMPPScheduler(solver_type=solver_type, lower_order_final=False)
    scheduler.set_timesteps(sigmas=trace.levels[places])
    for index, place in enumerate(places[:3]):
        x = trace.states[place]
        sigma = scheduler.sigmas[index]
        skip = scheduler.precondition_outputs(x, torch.zeros_like(x), sigma)
        scale = scheduler.precondition_outputs(0 * x, torch.ones_like(x), sigma)
        output = (trace.denoised[place] - skip) / scale
        reached = scheduler.step(output, scheduler.timesteps[index], x).prev_sample
    expected = (reached - trace.states[15]).double().square().mean()
    errors = noise_levels._measure_steps(trace, solver_type, torch.tensor([places]))
    assert errors.item() == pytest.approx(expected.item(), rel=1e-2)


@pytest.mark.parametrize("solver_type", list(ORDERS))
def test_planned_levels_beat_the_default_ones_where_they_were_not_searched(smooth, trace, solver_type):
    held_out = Latents(smooth, list(range(100, 108)), EVERY_D)
    fine = held_out.trace().ends
    held_out.use_solver(solver_type, **noise_levels.get_entries(solver_type))
    default = measure_errors(held_out.solve(8), fine).mean()
    planned = plan_levels(trace, solver_type, 8)
    assert len(planned) == 8
    assert planned[0] == pytest.approx(80)
    assert bool((planned.log().diff() < -0.99 * GAP).all())
    assert measure_errors(held_out.solve(sigmas=planned.tolist()), fine).mean() < 0.9 * default


def test_the_refinement_finds_a_minimum():
    """Where samples are a known function of the levels, it finds the levels that make them."""
    best = torch.tensor([60.0, 9.0, 1.5, 0.2], dtype=torch.float64)
    slopes = torch.randn(4, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def run(levels):
        sums = torch.tensor(levels, dtype=torch.float64).log() @ slopes
        return (sums + 0.1 * sums.sin()).view(5, 10)

    refinement = Refinement(run, run(best.tolist()), [80.0, 5.0, 2.0, 0.1], (0.002, 80.0))
    for _ in range(6):
        refinement.advance()
    assert refinement.levels == pytest.approx(best.tolist(), rel=1e-3)


def test_levels_stay_in_order_and_within_bounds():
    refinement = Refinement(lambda levels: torch.zeros(1), torch.zeros(1), [80.0, 1.0, 0.01], (0.01, 80.0))
    confined = refinement._confine(torch.tensor([9.0, -20.0, 3.0], dtype=torch.float64)).exp()
    assert confined[0] == pytest.approx(80)
    assert confined[2] == pytest.approx(0.01)
    assert confined[1] / confined[2] == pytest.approx(math.exp(GAP))


def test_a_search_finds_better_levels_at_every_dimension(smooth, tmp_path):
    outcome = search_levels(smooth, "dpmpp_3m", 6, tmp_path, EVERY_D, 16)
    assert outcome.is_finished
    assert list(outcome.after) == EVERY_D
    assert all(outcome.after[D] < 0.2 * outcome.before[D] for D in EVERY_D)


def test_an_interrupted_search_resumes_and_finds_the_same(smooth, tmp_path, monkeypatch):
    arguments = (smooth, "dpmpp_2m", 5)
    whole = search_levels(*arguments, tmp_path / "whole", [128], 8)
    advance = Refinement.advance
    rounds = []

    def interrupt(self):
        rounds.append(self.levels)
        if len(rounds) == 2:
            raise KeyboardInterrupt
        return advance(self)

    with monkeypatch.context() as patch:
        patch.setattr(Refinement, "advance", interrupt)
        with pytest.raises(KeyboardInterrupt):
            search_levels(*arguments, tmp_path / "parts", [128], 8)
    monkeypatch.setattr(Latents, "trace", None)  # the fine solutions are not computed again
    assert search_levels(*arguments, tmp_path / "parts", [128], 8) == whole
    monkeypatch.setattr(Refinement, "advance", None)
    assert search_levels(*arguments, tmp_path / "parts", [128], 8) == whole


def test_a_search_that_is_stopped_keeps_what_it_has(smooth, tmp_path):
    stopped = search_levels(smooth, "euler", 5, tmp_path, [128], 8, lambda: True)
    assert not stopped.is_finished
    assert len(stopped.levels) == 5
    assert stopped.after[128] < stopped.before[128]


def test_the_pipeline_is_left_as_it_was(smooth, tmp_path, monkeypatch):
    monkeypatch.setattr(noise_levels, "MOST_ROUNDS", 1)
    before = smooth.scheduler
    config = dict(before.config)
    timesteps = before.timesteps.clone()
    search_levels(smooth, "dpmpp_3m", 3, tmp_path, [16], 2)
    assert smooth.scheduler is before
    assert dict(before.config) == config
    assert torch.equal(before.timesteps, timesteps)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"solver_type": "dpmpp_2m_sde"}, "`solver_type` must be one of .*'dpmpp_2m_sde'"),
        ({"num_inference_steps": 1}, "`num_inference_steps` must lie in 2 ... 32, but is 1"),
        ({"num_inference_steps": 33}, "`num_inference_steps` must .*, but is 33"),
        ({"num_latents": 3}, "`num_latents` must be at least 4, one for each D, but is 3"),
    ],
)
def test_arguments_out_of_range_are_refused(changes, message, smooth, tmp_path):
    arguments = {"solver_type": "dpmpp_3m", "num_inference_steps": 8, "num_latents": 8, **changes}
    with pytest.raises(ValueError, match=message):
        search_levels(smooth, folder=tmp_path / "new", dimensions=EVERY_D, **arguments)
    assert not (tmp_path / "new").exists()


def test_too_many_steps_for_a_narrow_range_are_refused(ten_images, tmp_path):
    pipe = PFGMPPPipeline(EmpiricalDenoiser(ten_images), PFGMPPScheduler(sigma_min=1, sigma_max=5))
    with pytest.raises(ValueError, match="is 9, which is too many for noise levels from 1 to 5"):
        search_levels(pipe, "euler", 9, tmp_path, [128], 4)


def test_a_network_of_nan_is_refused(tmp_path, smooth):
    broken = PFGMPPPipeline(EmpiricalDenoiser(torch.zeros(2, 1, 7, 7)), smooth.scheduler)
    broken.unet.data.fill_(math.nan)
    with pytest.raises(ValueError, match="fine solution holds NaN"):
        search_levels(broken, "euler", 3, tmp_path, [128], 4)
    assert not list(tmp_path.iterdir())


def test_levels_are_added_to_a_configuration(tmp_path):
    path = tmp_path / "scheduler_config.json"
    PFGMPPScheduler(D=None, solver_type="euler").save_pretrained(tmp_path)
    write_levels(path, "euler", [80.0, 1.0])
    write_levels(path, "euler", [80.0, 5.0, 0.5])
    write_levels(path, "dpmpp_3m", [70.0, 2.0])
    scheduler = PFGMPPScheduler.from_pretrained(tmp_path)
    assert scheduler.config.D is None
    scheduler.set_timesteps(3)
    assert scheduler.sigmas.tolist() == [80, 5, 0.5, 0]
    scheduler.set_timesteps(2)
    assert scheduler.sigmas.tolist() == [80, 1, 0]
    scheduler = PFGMPPScheduler.from_config(scheduler.config, solver_type="dpmpp_3m")
    scheduler.set_timesteps(2)
    assert scheduler.sigmas.tolist() == [70, 2, 0]
    assert not scheduler.config.lower_order_final
    assert [file.name for file in tmp_path.iterdir()] == ["scheduler_config.json"]


def search_in(folder, capsys, *options):
    """Run the command in a folder's copy of the model; return what it printed."""
    command = ["schedule", str(folder), "--num-inference-steps", "4", "--solver-type", "dpmpp_2m"]
    commands.main([*command, "--num-latents", "4", *options])
    return capsys.readouterr().out


@pytest.fixture
def copied(model, tmp_path, monkeypatch):
    """A copy of the model, in the working directory."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(model, tmp_path / "copied")


def test_whoever_loads_the_model_samples_with_the_levels(copied, capsys):
    printed = search_in(copied, capsys)
    assert "on latents that were not searched on" in printed
    assert "--solver-type dpmpp_2m --num-inference-steps 4" in printed
    pipe = DiffusionPipeline.from_pretrained(copied)
    levels = pipe.scheduler.config.sigmas["dpmpp_2m"]["4"]
    assert "Noise levels: " + ", ".join(f"{level:g}" for level in levels) in printed.replace("\n", ", ")
    pipe.scheduler = PFGMPPScheduler.from_config(pipe.scheduler.config, solver_type="dpmpp_2m")

    def draw(**settings):
        return pipe(generator=torch.Generator().manual_seed(0), output_type="latent", **settings).images

    assert torch.equal(draw(num_inference_steps=4), draw(sigmas=levels))
    assert pipe.scheduler.sigmas[:-1].tolist() == pytest.approx(levels)
    # Again: the finished search is found, and what it wrote is no change to what it depends on.
    config = (copied / "scheduler" / "scheduler_config.json").read_text()
    search_in(copied, capsys)
    assert (copied / "scheduler" / "scheduler_config.json").read_text() == config
    assert len(list((copied.parent / "outputs" / "schedule").iterdir())) == 1


def test_a_spacing_that_is_asked_for_comes_before_the_levels(copied):
    write_levels(copied / "scheduler" / "scheduler_config.json", "euler", [50.0, 3.0])
    command = ["sample", str(copied), "--solver-type", "euler", "--num-inference-steps", "2"]
    command += ["--num-images", "1", "--output"]
    commands.main([*command, "searched.npz"])
    commands.main([*command, "spaced.npz", "--rho", "7"])
    searched, settings = load_samples("searched.npz")
    assert settings["scheduler"]["sigmas"] == {"euler": {"2": [50.0, 3.0]}}
    spaced, settings = load_samples("spaced.npz")
    assert settings["scheduler"]["sigmas"] is None
    assert not torch.equal(searched, spaced)


def test_levels_that_are_not_better_are_not_written(copied, capsys, monkeypatch):
    config = (copied / "scheduler" / "scheduler_config.json").read_bytes()
    monkeypatch.setattr(Latents, "judge", lambda self, solution, fine: {128.0: 0.5})
    with pytest.raises(SystemExit) as stop:
        search_in(copied, capsys)
    assert stop.value.code == 1
    assert "not better at every D" in capsys.readouterr().err
    assert (copied / "scheduler" / "scheduler_config.json").read_bytes() == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "is not a local folder: download it with `hf download "),
        (lambda folder: shutil.rmtree(folder / "scheduler"), "has no readable scheduler_config.json"),
        (
            lambda folder: (folder / "scheduler" / "scheduler_config.json").write_text("[]"),
            "has no readable scheduler_config.json",
        ),
        (
            lambda folder: (folder / "scheduler" / "scheduler_config.json").write_text(
                json.dumps({"_class_name": "EDMEulerScheduler"})
            ),
            "must be a PFGMPPScheduler to keep levels, but is EDMEulerScheduler",
        ),
        (
            lambda folder: PFGMPPScheduler(D=128, solver_type="consistency").save_pretrained(
                folder / "scheduler"
            ),
            "is a model of few calls, which follows no field lines: search for the denoiser",
        ),
    ],
)
def test_models_that_cannot_keep_levels_are_refused(change, message, copied, capsys):
    change(copied)
    with pytest.raises(SystemExit) as stop:
        search_in(copied, capsys)
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (copied.parent / "outputs").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--D", "16"], "--D is 16, but this network was trained at D = 128 only"),
        (["--solver-type", "midpoint"], "`solver_type` must be one of"),
        (["--guidance-scale", "2"], "`guidance_scale` must be 1 for this network"),
    ],
)
def test_options_that_do_not_fit_the_model_are_refused(options, message, copied, capsys):
    with pytest.raises(SystemExit) as stop:
        commands.main(["schedule", str(copied), "--num-inference-steps", "4", *options])
    assert stop.value.code == 1
    assert message in capsys.readouterr().err
    assert not (copied.parent / "outputs").exists()


@pytest.mark.parametrize(
    ("d_range", "dimensions"), [([16, None], EVERY_D), ([64, 4096], [128, 2048]), ([5, 9], [8])]
)
def test_an_any_d_network_is_searched_where_it_was_trained(d_range, dimensions):
    from pipeline_pfgmpp.commands.schedule import _choose_dimensions

    pipe = make_tiny_pipeline()
    pipe.scheduler = PFGMPPScheduler(D=8, D_range=d_range)
    assert _choose_dimensions(pipe, None) == dimensions
    assert _choose_dimensions(pipe, [7.0]) == [7]


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("--num-inference-steps", ("1", "33", "2.5", "many", "nan")),
        ("--num-latents", ("1", "inf", "many")),
        ("--max-time", ("0", "-1", "nan", "inf")),
        ("--D", ("0", "nan", "16,16")),
        ("--guidance-scale", ("-1", "inf", "nan")),
    ],
)
def test_numbers_out_of_range_are_refused_in_one_sentence(option, values, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for value in values:
        command = ["schedule", "model", f"{option}={value}"]
        if option != "--num-inference-steps":
            command.append("--num-inference-steps=8")
        with pytest.raises(SystemExit) as stop:
            commands.main(command)
        assert stop.value.code == 2, value
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert f"argument {option}: " in error
        assert repr(value) in error
    assert not list(tmp_path.iterdir())
