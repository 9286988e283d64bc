"""
Many images: a seed gives the same image whatever the number of processes, the size of the batches
and the interruptions.
"""

import copy
import os
import signal
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import ROOT, make_tiny_pipeline
from diffusers import DiffusionPipeline

from pipeline_pfgmpp import EmpiricalDenoiser, PFGMPPPipeline, PFGMPPScheduler, PFGMPPUNet2DModel, commands
from pipeline_pfgmpp.generation import load_samples, parse_seeds, sample_to_files
from pipeline_pfgmpp.records.digests import default_output, describe, digest_weights


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    unet = PFGMPPUNet2DModel(
        sample_size=8, model_channels=16, channel_mult=(1,), num_blocks=1, label_dim=3
    ).eval()
    torch.nn.init.xavier_uniform_(unet.dec["8x8_aux_conv"].weight)
    return PFGMPPPipeline(unet, PFGMPPScheduler(D=16))


@pytest.fixture(scope="module")
def model(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("many") / "model"
    pipe.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("text", "seeds"), [("0-3", [0, 1, 2, 3]), ("5", [5]), ("3,5,10-12", [3, 5, 10, 11, 12])]
)
def test_lists_of_seeds(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "3-1", "-3", "3-", "-", "²", "1,,2", "1-2-3", "4,3-5"])
def test_bad_lists_of_seeds_are_refused(text):
    with pytest.raises(ValueError, match="`seeds`"):
        parse_seeds(text)


def test_a_folder_and_a_file_hold_the_same_images(pipe, tmp_path):
    for output in (tmp_path / "folder", tmp_path / "file.npz"):
        sample_to_files(pipe, [4, 1, 7], output, batch_size=2, num_inference_steps=3)
    folder, settings = load_samples(tmp_path / "folder")  # in the order of their seeds
    file, _ = load_samples(tmp_path / "file.npz")  # in the order asked for
    assert file.shape == (3, 3, 8, 8)
    assert torch.equal(folder, file[[1, 0, 2]])
    assert settings["num_inference_steps"] == 3
    assert settings["scheduler"]["D"] == 16
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "file.npz"}
    assert PIL.Image.open(tmp_path / "folder" / "000004.png").mode == "RGB"
    with np.load(tmp_path / "file.npz", allow_pickle=False) as archive:
        assert archive["seeds"].tolist() == [4, 1, 7]
    # each is what the pipeline draws for its seed alone
    alone = pipe(generator=torch.Generator().manual_seed(7), num_inference_steps=3, output_type="pt").images
    assert ((alone * 255).round()[0] - file[2]).abs().max() <= 1


def test_another_batch_size_draws_the_same_images(pipe, tmp_path):
    for size in (1, 3, 8):
        sample_to_files(pipe, list(range(8)), tmp_path / str(size), batch_size=size, num_inference_steps=3)
    reference, _ = load_samples(tmp_path / "8")
    for size in (1, 3):  # to the rounding of the last bit: a CPU's kernels differ with the batch
        images, _ = load_samples(tmp_path / str(size))
        difference = (images.int() - reference.int()).abs()
        assert difference.max() <= 1
        assert (difference > 0).float().mean() < 0.01


def test_processes_share_the_work(pipe, model, tmp_path):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "pipeline_pfgmpp"]
    arguments = ["--seeds", "0-9", "--batch-size", "3", "--num-inference-steps", "3"]
    subprocess.run(
        [sys.executable, *launch, "sample", str(model), *arguments, "--output", str(tmp_path / "two.npz")],
        check=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
    )
    settings = {"num_inference_steps": 3, "guidance_scale": 1.0}
    sample_to_files(pipe, list(range(10)), tmp_path / "one.npz", batch_size=3, **settings)
    two, recorded = load_samples(tmp_path / "two.npz")
    one, expected = load_samples(tmp_path / "one.npz")
    assert torch.equal(two, one)
    assert recorded | {"command": None} == expected
    assert recorded["command"].startswith("pfgmpp sample ")


# A program that is killed while it writes the tenth image, in the middle of a batch.
KILLED = """
import os
import signal
import sys

import PIL.Image
from diffusers import DiffusionPipeline

from pipeline_pfgmpp.generation import sample_to_files

save = PIL.Image.Image.save
written = []


def save_or_die(image, path, **options):
    written.append(path)
    if len(written) < 10:
        return save(image, path, **options)
    path.write_bytes(b"half an image")
    os.kill(os.getpid(), signal.SIGKILL)


PIL.Image.Image.save = save_or_die
pipe = DiffusionPipeline.from_pretrained(sys.argv[1])
sample_to_files(pipe, list(range(20)), sys.argv[2], batch_size=4, num_inference_steps=3)
"""


def test_a_killed_run_resumes(pipe, model, tmp_path):
    output = tmp_path / "out.npz"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(model), str(output)], cwd=ROOT, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not output.exists()
    partial = tmp_path / ".out.npz.partial"
    names = sorted(path.name for path in partial.glob("[!.]*.png"))
    assert names == [f"{seed:06d}.png" for seed in range(9)]
    PIL.Image.new("RGB", (8, 8)).save(partial / names[0])  # tells whether this batch is drawn again
    sample_to_files(pipe, list(range(20)), output, batch_size=4, num_inference_steps=3)
    assert not partial.exists()
    sample_to_files(pipe, list(range(20)), tmp_path / "through.npz", batch_size=4, num_inference_steps=3)
    resumed, through = (load_samples(path)[0] for path in (output, tmp_path / "through.npz"))
    assert (resumed[0] == 0).all()
    assert torch.equal(resumed[1:], through[1:])


def test_complete_batches_are_not_drawn_again(pipe, tmp_path):
    sample_to_files(pipe, list(range(6)), tmp_path, batch_size=2, num_inference_steps=3)
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.png")}
    (tmp_path / "000003.png").unlink()
    sample_to_files(pipe, list(range(8)), tmp_path, batch_size=2, num_inference_steps=3)
    kept = {path.name for path in tmp_path.glob("*.png") if times.get(path.name) == path.stat().st_mtime_ns}
    assert kept == {"000000.png", "000001.png", "000004.png", "000005.png"}


def test_an_interrupted_run_with_a_class_per_seed_resumes(tmp_path):
    pipe = make_tiny_pipeline(label_dim=3)
    seeds = list(range(6))
    settings = {"batch_size": 2, "num_inference_steps": 1, "class_labels": [2, 0, 1, 1, 0, 2]}
    sample_to_files(pipe, seeds, tmp_path / "through", **settings)
    sample_to_files(pipe, seeds, tmp_path / "again", **settings)
    for seed in (2, 3):
        (tmp_path / "again" / f"{seed:06}.png").unlink()
    sample_to_files(pipe, seeds, tmp_path / "again", **settings)
    through, again = (load_samples(tmp_path / name)[0] for name in ("through", "again"))
    torch.testing.assert_close(again.float(), through.float(), atol=1, rtol=0)
    with pytest.raises(ValueError, match="must hold one class for each of 3 seeds, but holds 6"):
        sample_to_files(pipe, seeds[:3], tmp_path / "few", **settings)


def test_images_of_other_settings_are_not_mixed(pipe, tmp_path):
    sample_to_files(pipe, [0], tmp_path / "out", num_inference_steps=3)
    with pytest.raises(ValueError, match="drawn with other settings"):
        sample_to_files(pipe, [1], tmp_path / "out", num_inference_steps=4)
    (tmp_path / "mine").mkdir()
    PIL.Image.new("RGB", (4, 4)).save(tmp_path / "mine" / "cat.png")
    with pytest.raises(ValueError, match=r"holds images, but no settings\.json of"):
        sample_to_files(pipe, [1], tmp_path / "mine", num_inference_steps=3)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is a file"):
        sample_to_files(pipe, [1], tmp_path / "file", num_inference_steps=3)
    assert (tmp_path / "file").read_text() == "mine"


def test_images_of_other_weights_are_not_mixed(pipe, tmp_path):
    sample_to_files(pipe, [0], tmp_path / "out", num_inference_steps=3)
    other = PFGMPPPipeline(copy.deepcopy(pipe.unet), pipe.scheduler)
    other.unet.dec["8x8_aux_conv"].weight.data[0, 0, 0, 0] += 1e-3
    with pytest.raises(ValueError, match=r"drawn with other settings \(weights is \w+ there and \w+ here\)"):
        sample_to_files(other, [0, 1], tmp_path / "out", num_inference_steps=3)


def test_default_outputs_tell_everything_apart(pipe):
    described = describe(pipe, num_inference_steps=3)
    assert default_output("samples", "a/best", described) == default_output("samples", "b/best", described)
    others = [
        describe(pipe, num_inference_steps=4),
        described | {"weights": "0"},
        described | {"version": "0"},
    ]
    scheduler = pipe.scheduler
    try:
        for changes in ({"rho": 6.0}, {"solver_type": "euler"}):
            pipe.scheduler = PFGMPPScheduler.from_config(scheduler.config, **changes)
            others.append(describe(pipe, num_inference_steps=3))
    finally:
        pipe.scheduler = scheduler
    for changes in ({"value_range": [0, 65535]}, {"id2label": {0: "a", 1: "b"}}):
        other = PFGMPPPipeline(pipe.unet, scheduler, **changes)
        others.append(describe(other, num_inference_steps=3))
    assert len({default_output("samples", "best", each) for each in [described, *others]}) == 1 + len(others)


def test_the_digest_is_of_the_weights_and_not_of_their_type(pipe, tmp_path):
    copy.deepcopy(pipe.unet).half().save_pretrained(tmp_path)
    half = PFGMPPUNet2DModel.from_pretrained(tmp_path).half()
    single = PFGMPPUNet2DModel.from_pretrained(tmp_path)
    digests = [digest_weights(PFGMPPPipeline(unet, pipe.scheduler)) for unet in (half, single, pipe.unet)]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--num-images", "3", "--seeds", "0-1"], "leave one of them out"),
        (["--seeds", "0-1", "--seed", "3"], "--seed and --seeds contradict each other"),
        (["--seeds", "0-99999999999"], "`seeds` must name at most 10,000,000 numbers"),
        (["--num-images", "3", "--columns", "2"], "--columns belongs to a grid"),
        (["--num-images", "3", "--rows", "2"], "--rows belongs to a grid"),
        (["--num-images", "3", "--noise", "0,0.2"], "at only one --D and one --noise"),
        (["--num-images", "3", "--D", "64"], "trained at D = 16 only"),
        (["--num-images", "3", "--class-label", "3"], "--class-label must be one of 0, 1, 2, but is '3'."),
        (["--num-images", "3", "--solver-type", "rk4"], "`solver_type` must be one of"),
        (["--num-images", "3", "--sigma-min", "80"], "sigma_min"),
        (
            ["--num-images", "3", "--sigma-schedule", "exponential", "--rho", "5"],
            "--rho has no effect on the exponential spacing",
        ),
        (["--num-images", "3", "--variant", "fp16"], "has no variants of its weights"),
    ],
)
def test_bad_arguments_end_in_one_sentence(args, message, model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        commands.main(["sample", str(model), "--output", "out.npz", *args])
    assert stop.value.code == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["samples", "samples.npz"])
def test_images_of_some_seeds_are_read(name, model, tmp_path):
    sample_to_files(
        DiffusionPipeline.from_pretrained(model), [5, 3, 8], tmp_path / name, num_inference_steps=1
    )
    images, settings = load_samples(tmp_path / name)
    assert settings["num_inference_steps"] == 1
    order = [3, 5, 8] if name == "samples" else [5, 3, 8]
    assert torch.equal(load_samples(tmp_path / name, [8, 5])[0], images[[order.index(8), order.index(5)]])
    for path, seeds in ((tmp_path / name, [4]), (tmp_path, None), (tmp_path / "none.npz", None)):
        with pytest.raises(ValueError, match="does not hold these images of"):
            load_samples(path, seeds)


@pytest.mark.parametrize("output", ["x.png", "X.PNG"])
def test_many_images_do_not_fit_one_picture(output, model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        commands.main(["sample", str(model), "--output", output, "--num-images", "3"])
    assert "--output must be a folder or end in .npz" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_files_that_are_not_ours_are_left_alone(pipe, tmp_path):
    """A picture of notes among the numbered ones ended loading with an error of int()."""
    sample_to_files(pipe, [3, 1234567], tmp_path, num_inference_steps=1)
    for name in (
        "notes.png",
        "1.png",
        "0000001.png",
        "-00001.png",
        "000002.txt",
        "٠٠٠٠٠١.png",
        ".000004.png",
    ):
        (tmp_path / name).write_text("mine")
    (tmp_path / "folder").mkdir()
    images, _ = load_samples(tmp_path)
    assert len(images) == 2
    assert (tmp_path / "notes.png").read_text() == "mine"
    for path in tmp_path.glob("[0-9]*[37].png"):
        path.unlink()
    with pytest.raises(ValueError, match="does not hold these images of `pfgmpp sample`: it holds no images"):
        load_samples(tmp_path)


@pytest.mark.parametrize("text", ["[1]", "{", ""])
def test_a_damaged_record_of_settings_is_refused(text, pipe, tmp_path):
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(
        ValueError, match=r"settings\.json is not a record of `pfgmpp sample`; choose another"
    ):
        sample_to_files(pipe, [1], tmp_path, num_inference_steps=1)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6])
def test_images_of_any_number_of_channels_are_stored(channels, tmp_path):
    data = torch.rand(3, channels, 8, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pipe = PFGMPPPipeline(EmpiricalDenoiser(data), PFGMPPScheduler(D=16))
    sample_to_files(pipe, [0, 1], tmp_path / "many.npz", num_inference_steps=8)
    images, _ = load_samples(tmp_path / "many.npz")
    assert images.shape == (2, channels, 8, 12)
    levels = ((data / 2 + 0.5) * 255).round()
    for image in images:  # each is one of the data
        assert (levels - image.float()).abs().amax((1, 2, 3)).min() <= 3
    if channels in (1, 3, 4):
        sample_to_files(pipe, [0, 1], tmp_path / "folder", num_inference_steps=8)
        assert torch.equal(load_samples(tmp_path / "folder")[0], images)
        return
    with pytest.raises(
        ValueError, match=f"Images of {channels} channels cannot be written as PNG files: `output`"
    ):
        sample_to_files(pipe, [0, 1], tmp_path / "folder", num_inference_steps=8)
    assert [path.name for path in tmp_path.iterdir()] == ["many.npz"]


@pytest.mark.parametrize("value_range", [(0, 65535), (-0.5, 1.5)])
def test_deep_data_keep_their_depth_in_a_file(value_range, tmp_path):
    """Everything was rounded to 8 bits."""
    data = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pipe = PFGMPPPipeline(EmpiricalDenoiser(data), PFGMPPScheduler(D=16), value_range=value_range)
    sample_to_files(pipe, [0, 1], tmp_path / "many.npz", batch_size=1, num_inference_steps=8)
    images, _ = load_samples(tmp_path / "many.npz")
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    expected = pipe(2, num_inference_steps=8, generator=generators, output_type="pt").images
    low, high = value_range
    assert images.dtype == torch.float32
    assert (images - expected).abs().max() < 1e-4 * (high - low)
    levels = (images - low) / (high - low) * 255
    assert (levels - levels.round()).abs().max() > 0.1
    sample_to_files(pipe, [0, 1], tmp_path / "folder", num_inference_steps=8)
    rounded, _ = load_samples(tmp_path / "folder")
    assert rounded.dtype == torch.uint16
    assert (rounded.float() - levels / 255 * 65535).abs().max() <= 0.6
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    pictures = pipe(2, num_inference_steps=8, generator=generators).images
    for seed, picture in enumerate(pictures):
        with PIL.Image.open(tmp_path / "folder" / f"{seed:06d}.png") as file:
            assert file.mode == picture.mode == "I;16"
            assert abs(np.asarray(file).astype(int) - np.asarray(picture)).max() <= 1


def test_images_that_are_not_finite_are_not_stored(pipe, tmp_path):
    """NaN became black pictures."""
    broken = PFGMPPPipeline(copy.deepcopy(pipe.unet), pipe.scheduler)
    broken.unet.dec["8x8_aux_conv"].weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="The images of seeds 0 to 1 hold NaN or infinity"):
        sample_to_files(broken, [0, 1], tmp_path / "out", num_inference_steps=2)
    assert not (tmp_path / "out").exists()
