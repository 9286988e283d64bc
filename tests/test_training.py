"""The trainer from the command line."""

import contextlib
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import threading

import PIL.Image
import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from conftest import CODE, ROOT, run_training
from datasets import load_dataset
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline, UNet2DModel
from hub_server import WRITER
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from pipeline_pfgmpp import PFGMPPPipeline, PFGMPPScheduler, PFGMPPUNet2DModel
from pipeline_pfgmpp.commands import main as run_command
from pipeline_pfgmpp.conversion import convert_diffusers
from pipeline_pfgmpp.data import load_images
from pipeline_pfgmpp.training import RECIPES, TUNING, read_log
from pipeline_pfgmpp.training.recipes import LATENT
from pipeline_pfgmpp.unet_pfgmpp import UNetBlock


SMALL = [
    "--preset", "fashion-mnist-small", "--train_batch_size", "8", "--resolution", "8",
    "--lr_warmup_steps", "0",
]  # fmt: skip
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]


def train(*args, check=True, launcher=None):
    """Run the script: in this process, unless a launcher is asked for."""
    if launcher is None:
        result = run_training(*SMALL, *args)
    else:
        env = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
        command = [*launcher, "train_accelerate.py", *SMALL, *map(str, args)]
        result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    if check:
        assert result.returncode == 0, result.stderr[-3000:]
    return result


def train_in_forks(jobs, env=None):
    """Run the script once per job, each in a fork of one new process; see tests/forked_training.py."""
    jobs = [{**job, "args": [*SMALL, *map(str, job["args"])]} for job in jobs]
    env = {**(env or os.environ), "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "tests/forked_training.py"],
        cwd=ROOT, env=env, input=json.dumps(jobs), capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    return [
        subprocess.CompletedProcess(job["args"], **each) for job, each in zip(jobs, json.loads(result.stdout))
    ]


def read_summary(result):
    return json.loads(result.stdout.strip().splitlines()[-1])


RESULT = {"unet", "scheduler", "model_index.json", "README.md", "log.jsonl", "arguments.yaml", "run.json"}
RESULT |= {name for name in CODE if "/" not in name}


def weights(folder):
    return DiffusionPipeline.from_pretrained(folder).unet.state_dict()


def test_training_from_parquet_checkpoints_and_resumes(fashion_mnist, tmp_path):
    common = [
        "--train_data_dir", fashion_mnist, "--D", "128", "--class_conditional", "--label_dropout", "0.1",
        "--augment", "0.2", "--max_train_steps", "4", "--sample_steps", "4", "--checkpointing_steps", "2",
        "--gradient_accumulation_steps", "2", "--train_batch_size", "4", "--resume_from_checkpoint", "latest",
    ]  # fmt: skip
    result = train(*common, "--output_dir", tmp_path / "through", launcher=LAUNCH)
    summary = read_summary(result)
    assert (summary["steps"], summary["images"]) == (4, 32)
    folder = tmp_path / "through"
    names = {path.name for path in folder.iterdir()}
    assert names == RESULT | {"samples.png", "samples", "checkpoint-2", "checkpoint-4"}
    assert [path.name for path in (folder / "samples").iterdir()] == ["step-0000004.png"]
    assert PIL.Image.open(folder / "samples" / "step-0000004.png").size == (80, 32)

    pipe = DiffusionPipeline.from_pretrained(folder)
    assert (pipe.scheduler.config.D, pipe.unet.config.label_dim, pipe.config.id2label["8"]) == (
        128,
        10,
        "Bag",
    )
    assert (pipe.unet.map_augment.weight != 0).any()
    measured = load_images(load_dataset(str(fashion_mnist), split="train"), resolution=8).sigma_data()
    assert pipe.scheduler.config.sigma_data == pytest.approx(measured, abs=1e-4)
    assert pipe(batch_size=2, num_inference_steps=2, output_type="pt").images.isfinite().all()
    card = (folder / "README.md").read_text()
    assert "D = 128" in card
    assert "32 images of" in card

    # what it was started with can be started again
    arguments = yaml.safe_load((folder / "arguments.yaml").read_text())
    assert (arguments["D"], arguments["class_conditional"], arguments["ema_halflife"]) == (
        "128",
        True,
        [500_000.0],
    )
    assert parse("--config", folder / "arguments.yaml").max_train_steps == 4


NETWORK = ["--D", "16:inf", "--d_conditioning", "--class_conditional", "--augment", "0.2", "--random_flip"]
EXACT = [
    "--max_train_steps", "8", "--sample_steps", "0", "--checkpointing_steps", "0", "--logging_steps", "4",
    "--adam_epsilon", "1e-6",  # or Adam amplifies rounding where a gradient is almost zero
    "--train_data_dir",
]  # fmt: skip


@pytest.fixture(scope="module", params=["perturbation", "consistency", "matching"])
def one_process(request, fashion_mnist, tmp_path_factory):
    """The arguments of a few steps of 16 images, and their result in one pass of one process."""
    folder = tmp_path_factory.mktemp("one") / "out"
    arguments = [*EXACT, fashion_mnist, "--objective", request.param]
    if request.param == "matching":
        teacher = folder.with_name("teacher")
        train(*EXACT, fashion_mnist, *NETWORK, "--max_train_steps", "2", "--output_dir", teacher)
        arguments += ["--pretrained_model_name_or_path", teacher, "--teacher_model_name_or_path", teacher]
        arguments += ["--max_train_steps", "2", "--logging_steps", "1"]  # each costs as much as four others
    else:
        arguments += NETWORK
    train(*arguments, "--train_batch_size", "16", "--output_dir", folder)
    return arguments, folder


def largest_difference(one, other):
    other = weights(other)
    return max((tensor - other[name]).abs().max().item() for name, tensor in weights(one).items())


def test_two_processes_train_as_one(one_process, tmp_path):
    arguments, folder = one_process
    train(*arguments, "--output_dir", tmp_path / "out", launcher=TORCHRUN)
    assert largest_difference(folder, tmp_path / "out") < 1e-4
    logs = [read_log(folder), read_log(tmp_path / "out")]
    assert [len(entries) for entries in logs] == [2, 2]
    for one, two in zip(*logs):
        assert two["loss"] == pytest.approx(one["loss"], abs=1e-4)


def test_sharded_weights_train_as_whole_ones():
    """FSDP runs on GPUs alone in accelerate; its parts run here."""
    command = [*TORCHRUN, "tests/sharded_training.py"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert result.stdout.count("as without") == 2, result.stderr[-3000:]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "pipeline_pfgmpp" / "training" / "configs").glob("*.yaml")), ids=lambda p: p.stem
)
def test_configurations_of_accelerate(path):
    """accelerate refuses a file with a name it does not know."""
    config = load_config_from_file(str(path))
    assert config.num_processes == 8 * config.num_machines
    if config.distributed_type == "FSDP":
        assert config.fsdp_config["fsdp_transformer_layer_cls_to_wrap"] == UNetBlock.__name__


def test_accumulated_passes_train_as_one(one_process, tmp_path):
    arguments, folder = one_process
    again = ["--gradient_accumulation_steps", "2", "--gradient_checkpointing", "--train_batch_size", "8"]
    train(*arguments, *again, "--output_dir", tmp_path / "out")
    assert largest_difference(folder, tmp_path / "out") < 1e-5


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    """A pipeline with a small network that has classes and draws in its dropout."""
    unet = PFGMPPUNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, model_channels=16, channel_mult=(1,), num_blocks=1,
        attn_resolutions=(), dropout=0.1, label_dim=10, label_dropout=0.2,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("tiny") / "model"
    PFGMPPPipeline(unet, PFGMPPScheduler(D=64)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("streaming", [[], ["--streaming", "--shuffle_window", "30"]])
def test_a_run_killed_twice_equals_an_uninterrupted_one(streaming, tiny_model, fashion_mnist, tmp_path):
    """Bit for bit, including what dropout draws."""
    common = [
        "--pretrained_model_name_or_path", tiny_model, "--train_data_dir", fashion_mnist, *streaming,
        "--max_train_steps", "12", "--sample_steps", "0",
    ]  # fmt: skip
    through = {"args": [*common, "--checkpointing_steps", "0", "--output_dir", tmp_path / "through"]}
    killed = tmp_path / "killed"
    again = ["--checkpointing_steps", "3", "--resume_from_checkpoint", "latest", "--output_dir", killed]
    job = {"args": [*common, *again]}
    results = train_in_forks([through, job | {"kill": ["step", 5]}, job | {"kill": ["save", 9]}, job])
    assert [result.returncode for result in results] == [0, -signal.SIGKILL, -signal.SIGKILL, 0]
    assert f"Resuming from {killed / 'checkpoint-3'}" in results[2].stdout
    assert f"Resuming from {killed / 'checkpoint-6'}" in results[3].stdout
    assert read_summary(results[3])["steps"] == 12
    assert not list(killed.glob(".checkpoint-*"))
    resumed = weights(killed)
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in weights(tmp_path / "through").items())


def test_what_a_run_tells_of_itself(fashion_mnist, tmp_path, capsys):
    folder = tmp_path / "out"
    train(
        "--train_data_dir", fashion_mnist, "--resolution", "28", "--max_train_steps", "4",
        "--logging_steps", "2", "--sample_steps", "0", "--checkpointing_steps", "0",
        "--fid_steps", "2", "--fid_images", "8", "--fid_num_inference_steps", "1",
        "--ema_halflife", "1e6", "1", "--ema_width", "0.1", "--ema_snapshot_steps", "2",
        "--uncertainty_weighting", "--lr_scheduler", "inverse_sqrt",
        "--lr_decay_images", "8", "--adam_weight_decay", "0.01", "--output_dir", folder,
    )  # fmt: skip
    assert {path.name for path in folder.iterdir()} == RESULT | {"best", "ema"}
    entries = read_log(folder)
    assert [entry["step"] for entry in entries] == [2, 4]
    for entry in entries:
        assert {
            "loss",
            "grad_norm",
            "lr",
            "images_per_second",
            "memory_gib",
            "frechet_distance",
            "images",
        } <= entry.keys()
        assert sum(name.startswith("loss/sigma_") for name in entry) > 2
    assert entries[1]["lr"] == pytest.approx(2e-3 / 3**0.5, rel=1e-5)  # after three batches of eight
    best = json.loads((folder / "best" / "distance.json").read_text())
    assert best["frechet_distance"] == pytest.approx(
        min(entry["frechet_distance"] for entry in entries), rel=1e-5
    )
    assert (
        DiffusionPipeline.from_pretrained(folder / "best")(num_inference_steps=1, output_type="pt")
        .images.isfinite()
        .all()
    )

    # the other averages are variants of the same pipeline
    def first_weight(**options):
        return DiffusionPipeline.from_pretrained(folder, **options).unet.map_layer0.weight

    assert not torch.equal(first_weight(), first_weight(variant="ema1"))
    run_command(["average", str(folder), "--width", "0.15"])
    assert not torch.equal(first_weight(), first_weight(variant="power150"))

    run_command(["plot", str(folder)])
    assert PIL.Image.open(folder / "log.png").width > 1000
    with pytest.raises(SystemExit) as end:
        run_command(["plot", str(tmp_path)])
    assert end.value.code == 1
    assert "holds no log of a training run" in capsys.readouterr().err


def test_a_broken_image_ends_a_strict_run(tmp_path):
    for index in range(12):
        PIL.Image.new("L", (8, 8), 20 * index).save(tmp_path / f"{index}.png")
    (tmp_path / "5.png").write_text("no picture")
    common = [
        "--train_data_dir",
        tmp_path,
        "--max_train_steps",
        "3",
        "--sample_steps",
        "0",
        "--checkpointing_steps",
        "0",
    ]
    result = train(*common, "--output_dir", tmp_path.with_name("out"))
    assert "5.png, which cannot be read" in result.stdout + result.stderr
    # before anything is trained, and in the middle of an epoch, for then nothing is measured before
    for arguments in (["--strict"], ["--strict", "--streaming", "--sigma_data", "0.5"]):
        strict = train(*common, *arguments, "--output_dir", tmp_path.with_name("strict"), check=False)
        assert strict.returncode != 0
        assert "5.png cannot be read" in strict.stderr
        assert "Traceback" not in strict.stderr


def parse(*args):
    """Arguments of the script as it reads them."""
    return runpy.run_path(str(ROOT / "train_accelerate.py"))["parse_args"]([str(arg) for arg in args])


REQUIRED = ["--train_data_dir", "data", "--output_dir", "out", "--max_train_steps", "5"]


@pytest.mark.parametrize("preset", RECIPES)
def test_presets_are_the_published_recipes_and_can_be_overridden(preset, capsys):
    required = [*REQUIRED, "--preset", preset]
    if preset in TUNING:
        required += ["--pretrained_model_name_or_path", "model"]
    if preset == "matching":
        required += ["--teacher_model_name_or_path", "model"]
    if preset == "ppfm-ct":
        required += ["--condition_column", "low"]
    if preset in LATENT:
        with pytest.raises(SystemExit):
            parse(*required)
        assert f"--preset {preset} needs --vae_model_name_or_path" in capsys.readouterr().err
        required += ["--vae_model_name_or_path", "vae"]
    args = parse(*required)
    for name, value in RECIPES[preset].items():
        assert getattr(args, name) == value
    assert parse(*required, "--learning_rate", "0.5").learning_rate == 0.5
    assert parse(*required, "--no-class_conditional").class_conditional is False


def test_a_file_of_arguments_goes_between_the_preset_and_the_command_line(tmp_path, capsys):
    config = tmp_path / "config.yaml"
    config.write_text(
        "preset: ffhq64-ddpmpp\nD: 16:inf\nd_conditioning: true\nlearning_rate: 1.0e-3\nmax_train_steps: 7\n"
        "train_data_dir: data\noutput_dir: out\nclass_conditional: false\nseed: null\n"
    )
    args = parse("--config", config, "--max_train_steps", 9)
    assert (args.preset, args.train_batch_size, args.augment) == ("ffhq64-ddpmpp", 256, 0.15)
    assert (args.learning_rate, args.max_train_steps, str(args.D), args.seed) == (1e-3, 9, "16:inf", 0)
    assert (args.d_conditioning, args.class_conditional) == (True, False)
    config.write_text("value_range: [-1.0e-05, 2.0e-05]\n")
    assert parse("--config", config, *REQUIRED).value_range == [-1e-5, 2e-5]
    config.write_text("preset: ppfm-ct\ncondition_column: low\nrandom_flip: false\ncrop_size: null\n")
    args = parse("--config", config, *REQUIRED, "--crop_size", 64)
    assert (args.random_flip, args.random_turn, args.crop_size) == (False, True, 64)
    assert parse("--config", config, *REQUIRED, "--crop_size", 64, "--no-random_turn").random_turn is False
    for text, message in (
        ("preset: ppfm-ct\ncrop_size: null", "`crop_size: null` cannot undo the preset, which sets 256"),
        ("preset: cifar10-ncsnpp\naugment: false", "`augment: false` cannot undo the preset, which sets 0.1"),
        ("learning_rat: 1", "unrecognized arguments: --learning_rat=1"),
        ("preset: vgg", "argument --preset: invalid choice: 'vgg'"),
        ("- a", "cannot be read: it does not hold `name: value` pairs"),
        ("a: [", "cannot be read"),
    ):
        config.write_text(text)
        with pytest.raises(SystemExit):
            parse("--config", config, *REQUIRED)
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse("--config", tmp_path / "none.yaml", *REQUIRED)
    assert "none.yaml cannot be read" in capsys.readouterr().err


@pytest.fixture(scope="module")
def stopped_run(fashion_mnist, tmp_path_factory):
    """A run of six steps with a checkpoint after two and after four."""
    folder = tmp_path_factory.mktemp("run") / "out"
    common = ["--train_data_dir", fashion_mnist, "--D", "64", "--sample_steps", "0", "--max_train_steps"]
    train(*common, "4", "--checkpointing_steps", "2", "--output_dir", folder)
    return folder, common


@pytest.mark.parametrize("damage", ["cut off", "missing", "nonsense"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(damage, stopped_run, tmp_path):
    folder, common = stopped_run
    shutil.copytree(folder, tmp_path / "out")
    newest = tmp_path / "out" / "checkpoint-4"
    file = next(newest.glob("*.safetensors"))
    if damage == "cut off":
        file.write_bytes(file.read_bytes()[:1000])
    elif damage == "missing":
        (newest / "optimizer.bin").unlink()
    else:
        (newest / "custom_checkpoint_0.pkl").write_bytes(b"nonsense")
    again = [
        *common,
        "5",
        "--checkpointing_steps",
        "0",
        "--output_dir",
        tmp_path / "out",
        "--resume_from_checkpoint",
    ]
    result = train(*again, "latest")
    assert f"{newest} is damaged: " in result.stdout
    assert "Trying the checkpoint before it." in result.stdout
    assert f"Resuming from {newest.with_name('checkpoint-2')}" in result.stdout
    assert json.loads(result.stdout.strip().splitlines()[-1])["steps"] == 5
    refused = train(*again, newest, check=False)
    assert refused.returncode != 0
    assert f"{newest} is damaged: " in refused.stderr
    assert "There is no checkpoint to resume from." in refused.stderr


def test_a_full_disk_leaves_the_last_good_checkpoint(stopped_run, tmp_path):
    """Files are limited to a size that no checkpoint fits in, which fails as a full disk does."""
    folder, common = stopped_run
    shutil.copytree(folder, tmp_path / "out")
    args = [*common, "6", "--checkpointing_steps", "1", "--resume_from_checkpoint", "latest"]
    job = {"args": [*args, "--output_dir", tmp_path / "out"], "max_file_size": 200_000}
    (result,) = train_in_forks([job])
    assert result.returncode == 1
    assert "The checkpoint of step 5 cannot be written; the ones before it are intact" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list((tmp_path / "out").glob(".checkpoint-*"))
    kept = {path.name: (path / "model.safetensors").read_bytes() for path in folder.glob("checkpoint-*")}
    assert {
        path.name: (path / "model.safetensors").read_bytes()
        for path in (tmp_path / "out").glob("checkpoint-*")
    } == kept


def test_training_from_a_folder_of_images_in_bfloat16(tmp_path):
    for index in range(20):
        color = (12 * index, 255 - 12 * index, 100)
        (tmp_path / "images").mkdir(exist_ok=True)
        PIL.Image.new("RGB", (12, 10), color).save(tmp_path / "images" / f"{index}.png")
    train(
        "--dataset_name", tmp_path / "images", "--D", "inf", "--mixed_precision", "bf16",
        "--max_train_steps", "3", "--sample_steps", "0", "--checkpointing_steps", "0",
        "--save_dtype", "float16", "--output_dir", tmp_path / "out",
    )  # fmt: skip
    (weights,) = (tmp_path / "out" / "unet").glob("*.safetensors")
    assert {tensor.dtype for tensor in load_file(weights).values()} == {torch.float16}
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert pipe.scheduler.config.D is None
    assert pipe.unet.config.in_channels == 3
    assert pipe(num_inference_steps=2).images[0].mode == "RGB"
    assert {path.name for path in (tmp_path / "out").iterdir()} == RESULT


def test_training_goes_on_from_a_ddpm_of_diffusers(fashion_mnist, tmp_path):
    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(16,),
        norm_num_groups=8,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    convert_diffusers(tmp_path / "ddpm", tmp_path / "start")
    common = [
        "--pretrained_model_name_or_path",
        tmp_path / "start",
        "--dataset_name",
        fashion_mnist,
        "--D",
        "64",
    ]
    common += ["--max_train_steps", "2", "--checkpointing_steps", "0", "--output_dir", tmp_path / "out"]
    output = train(*common, "--learning_rate", "1e-3", "--augment", "0.1").stdout
    assert "takes no augmentation labels" in output
    assert "--preset fashion-mnist-small only gives the recipe" in output
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert pipe.scheduler.config.D == 64
    assert pipe.scheduler.config.sigma_data == 1
    moved = (pipe.unet.conv_in.weight - unet.conv_in.weight).abs().max().item()
    assert 0 < moved < 3e-3  # two steps of Adam from where it was
    refused = train(*common, "--class_conditional", "--overwrite_output_dir", check=False)
    assert (
        f"The network of {tmp_path / 'start'} has no classes, but the data have 10: --new_classes"
        in refused.stderr
    )


def test_training_one_network_for_every_d_on_the_field_of_a_larger_batch(fashion_mnist, tmp_path):
    train(
        "--train_data_dir", fashion_mnist, "--D", "16:inf", "--d_conditioning",
        "--reference_batch_size", "32", "--max_noise_norm", "3", "--max_train_steps", "2",
        "--sample_steps", "0", "--checkpointing_steps", "0", "--output_dir", tmp_path / "out",
    )  # fmt: skip
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert pipe.unet.config.d_conditioning
    assert (pipe.scheduler.config.D, pipe.scheduler.config.max_noise_norm) == (2048, 3)
    assert pipe(D=float("inf"), num_inference_steps=2, output_type="pt").images.isfinite().all()
    assert (pipe.unet.map_dimension.linear.weight != 0).any()


def test_a_network_of_one_d_learns_the_others(stopped_run, fashion_mnist, tmp_path):
    """Its new layer begins at zero, so nothing is lost."""
    start, _ = stopped_run
    common = [
        "--pretrained_model_name_or_path",
        start,
        "--train_data_dir",
        fashion_mnist,
        "--sample_steps",
        "0",
    ]
    common += ["--checkpointing_steps", "0", "--D", "16:inf", "--d_conditioning", "--max_train_steps", "2"]
    train(*common, "--learning_rate", "1e-3", "--output_dir", tmp_path / "out")
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert (pipe.unet.map_dimension.linear.weight != 0).any()
    moved = (
        (pipe.unet.map_layer0.weight - DiffusionPipeline.from_pretrained(start).unet.map_layer0.weight)
        .abs()
        .max()
        .item()
    )
    assert 0 < moved < 3e-3


@contextlib.contextmanager
def send_when_logged(number, folder):
    """Send this process a signal once a run has logged its first step, by when it handles signals."""
    over = threading.Event()

    def wait_and_send():
        while not over.wait(0.02):
            if (folder / "log.jsonl").exists():
                os.kill(os.getpid(), number)
                return

    thread = threading.Thread(target=wait_and_send)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("reason", ["SIGTERM", "SIGINT", "time"])
def test_a_run_that_is_told_to_stop_saves_and_resumes_later(reason, tiny_model, fashion_mnist, tmp_path):
    folder = tmp_path / "out"
    common = [
        "--pretrained_model_name_or_path", tiny_model, "--train_data_dir", fashion_mnist,
        "--sample_steps", "0", "--checkpointing_steps", "0", "--logging_steps", "1",
        "--output_dir", folder, "--max_train_steps",
    ]  # fmt: skip
    if reason == "time":
        result = train(*common, "1000000", "--max_train_time", "1e-9")
    else:
        number = getattr(signal, reason)
        handler = signal.getsignal(number)
        with send_when_logged(number, folder):
            result = train(*common, "1000000")
        assert signal.getsignal(number) is handler
    assert "To resume, set `resume_from_checkpoint` to latest" in result.stdout
    assert not (folder / "model_index.json").exists()
    (checkpoint,) = folder.glob("checkpoint-*")
    step = int(checkpoint.name.removeprefix("checkpoint-"))
    result = train(*common, str(step + 1), "--resume_from_checkpoint", "latest")
    assert read_summary(result)["steps"] == step + 1


def test_training_from_a_data_set_of_the_hub(hub, fashion_mnist, tmp_path):
    server, env = hub
    server.add(fashion_mnist, "org/clothes", "datasets")
    common = ["--max_train_steps", "1", "--sample_steps", "0", "--checkpointing_steps", "0"]
    common += ["--output_dir", tmp_path / "out", "--dataset_name"]
    push = ["--push_to_hub", "--hub_model_id", "org/trained", "--overwrite_output_dir"]
    pushed, refused, missing = train_in_forks(
        [
            {"args": [*common, "org/clothes", *push], "env": {"HF_TOKEN": WRITER}},
            {"args": [*common, "org/clothes", *push]},
            {"args": [*common, "org/none", "--overwrite_output_dir"]},
        ],
        env,
    )
    assert pushed.returncode == 0, pushed.stderr[-3000:]
    assert "/org/trained/commit/" in pushed.stdout
    files = server.files("org/trained").keys()
    assert {"model_index.json", "pipeline.py", "unet/diffusion_pytorch_model.safetensors"} <= files
    assert not {"log.jsonl", "arguments.yaml", "run.json"} & files
    assert refused.returncode == 1
    assert "is complete, but: You are not logged in to the Hub" in refused.stderr
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert "`org/clothes`" in card.text
    assert card.data.datasets == ["org/clothes"]
    assert missing.returncode == 1
    assert "The data set org/none cannot be used" in missing.stderr, missing.stderr[-3000:]
    assert "Traceback" not in missing.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--D", "0"],
            "argument --D: `D` must be a number of at least 0.5, inf, or a range such as 16:inf, but is '0'",
        ),
        (["--D", "16:inf"], "--D 16:inf is a range, which needs --d_conditioning"),
        (
            ["--class_conditional", "--reference_batch_size", "32"],
            "--reference_batch_size needs a network without",
        ),
        (["--augment", "0.1", "--reference_batch_size", "32"], "`reference_batch_size` needs `augment` 0"),
        (
            ["--augment", "0.1", "--teacher_model_name_or_path", "model", "--objective", "consistency"],
            "--augment must be 0 with --teacher_model_name_or_path",
        ),
        (["--max_train_steps", "0"], "`max_train_steps` must be at least 1"),
        (["--report_to", "none"], "`report_to` none: accelerate does not find this tracker"),
        (["--augment", "2"], "`augment` must lie in [0, 1]"),
        (["--dataset_name", "also"], "give one of --dataset_name and --train_data_dir"),
        (["--new_classes"], "--new_classes needs --pretrained_model_name_or_path"),
        (
            ["--pretrained_model_name_or_path", "start", "--sigma_data", "1"],
            "--sigma_data belongs to the pretrained network",
        ),
        (
            ["--ema_width", "0.5"],
            "The width of a power-function average must lie in (0, 0.289)",
        ),
    ],
)
def test_bad_arguments_end_in_one_sentence(args, message, capsys):
    with pytest.raises(SystemExit) as end:
        parse(*REQUIRED, *args)
    assert end.value.code != 0
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--fid_steps", "1"], "`fid_features`: fashion-mnist compares images of shape (1, 28, 28)"),
        (["--image_column", "picture"], "cannot be used: `image_column` is 'picture'"),
        (["--train_data_dir", "d/none"], "--train_data_dir d/none: there is no such folder; --dataset_name"),
    ],
)
def test_what_does_not_fit_the_data_ends_in_one_sentence(args, message, fashion_mnist, tmp_path):
    result = train(
        "--train_data_dir",
        fashion_mnist,
        "--max_train_steps",
        1,
        "--output_dir",
        tmp_path / "out",
        *args,
        check=False,
    )
    assert result.returncode != 0
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()
