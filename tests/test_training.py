"""What the trainer is made of, and the trainer itself from the command line."""

import gzip
import json
import math
import runpy
import shutil
import signal
import struct
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import scipy.stats
import torch
from conftest import ROOT
from datasets import Dataset, Features, Image, load_dataset
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline, UNet2DModel

from pipeline_pfgmpp import EmpiricalDenoiser, PFGMPPScheduler
from pipeline_pfgmpp.convert import convert_diffusers
from pipeline_pfgmpp.training import (
    RECIPES,
    DimensionRange,
    HalfLifeEMA,
    ImageDataset,
    PFGMPPLoss,
    load_images,
    replace_nonfinite_gradients,
)
from pipeline_pfgmpp.training.idx_to_parquet import convert, read_idx


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# The loss


class Recorder(torch.nn.Module):
    """Returns zeros and keeps what it was called with."""

    def forward(self, sample, timestep, return_dict=True, **conditioning):
        self.sample, self.timestep, self.conditioning = sample, timestep, conditioning
        return (torch.zeros_like(sample),)


@pytest.mark.parametrize("D", [1, 128, None])
def test_loss_is_its_formula(D):
    scheduler, unet = PFGMPPScheduler(D=D, sigma_data=0.7), Recorder()
    images, labels = torch.rand(6, 1, 4, 4) * 2 - 1, torch.arange(6)
    loss = PFGMPPLoss(scheduler, P_mean=-0.5, P_std=0.9)(unet, images, generator(3), class_labels=labels)

    rng = generator(3)
    sigma = (-0.5 + 0.9 * torch.randn(6, 1, 1, 1, generator=rng)).exp()
    x = images + sigma * scheduler.sample_noise(images.shape, rng)
    torch.testing.assert_close(unet.sample, x / (sigma**2 + 0.49).sqrt())
    torch.testing.assert_close(unet.timestep, sigma.log().flatten() / 4)
    assert torch.equal(unet.conditioning["class_labels"], labels)
    denoised = 0.49 / (sigma**2 + 0.49) * x  # the network says zero
    expected = ((sigma**2 + 0.49) / (0.7 * sigma) ** 2 * (denoised - images) ** 2).mean((1, 2, 3))
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("D", [16, None])
def test_the_exact_denoiser_has_the_least_loss(D, ten_images):
    """The posterior mean minimises the expected loss; at another D it is another function and does worse."""
    tiny_images = torch.nn.functional.avg_pool2d(ten_images, 4)  # so near that noise leaves their choice open
    batch = tiny_images.repeat(100, 1, 1, 1)

    def expected_loss(oracle_D, shift=0.0):
        oracle = EmpiricalDenoiser(tiny_images)
        loss = PFGMPPLoss(PFGMPPScheduler(D=D), P_mean=0.5, P_std=0.5)
        batches = [
            loss(lambda x, t, return_dict: (oracle(x, t, D=oracle_D).sample + shift,), batch, generator(seed)).mean()
            for seed in range(40)
        ]
        return torch.stack(batches).mean()

    least = expected_loss(D)
    assert least < expected_loss(D, shift=0.2)
    assert least < expected_loss(1)


def test_over_references_the_target_is_their_posterior_mean(ten_images):
    """The exact denoiser of the references has no loss at all, at any D."""
    images = torch.nn.functional.avg_pool2d(ten_images, 4)
    for D in (1, 64, None):
        oracle, loss = EmpiricalDenoiser(images), PFGMPPLoss(PFGMPPScheduler(D=D), P_mean=0.5, P_std=0.5)
        network = lambda x, t, return_dict, D=D: (oracle(x, t, D=D).sample,)  # noqa: B023, E731
        assert loss(network, images[:4], generator(1), references=images).max() < 1e-6
        assert loss(network, images[:4], generator(1)).mean() > 1e-3  # against single images something is left


@pytest.mark.parametrize(
    ("text", "low", "high"), [("128", 128, 128), ("inf", math.inf, math.inf), ("16:2048", 16, 2048), ("16:inf", 16, math.inf)]
)
def test_ranges_of_d(text, low, high):
    dimensions = DimensionRange.parse(text)
    assert (dimensions.low, dimensions.high, str(dimensions)) == (low, high, text)
    D = dimensions.draw(20_000, generator())
    assert D.min() >= low
    assert D.max() <= high
    finite = D[D.isfinite()]
    if low < high:
        top = min(high, 2**18)
        position = (finite / low).log() / math.log(top / low)
        assert scipy.stats.kstest(position.numpy(), "uniform").pvalue > 1e-3
        assert D.isinf().double().mean() == pytest.approx(0.1 if high == math.inf else 0, abs=0.01)
    assert low <= dimensions.middle <= high


@pytest.mark.parametrize("text", ["0", "-1", "nan", "many", "16:8", ":", "16:", "1e9:inf", "0:16"])
def test_bad_ranges_of_d_are_refused(text):
    with pytest.raises(ValueError, match="`D` must be a positive number, inf, or a range such as 16:inf"):
        DimensionRange.parse(text)


def test_each_image_has_its_own_d_and_the_network_is_told():
    unet, images = Recorder(), torch.zeros(4000, 1, 4, 4)
    loss = PFGMPPLoss(PFGMPPScheduler(D=128, sigma_data=0.7), P_std=1e-9, dimensions=DimensionRange(1, math.inf))
    loss(unet, images, generator())
    D = unet.conditioning["D"]
    assert D.shape == (4000,)
    assert D.isinf().any()
    radius = unet.sample.flatten(1).square().mean(1)  # of unit noise, but for one factor
    assert radius[D > 1e4].std() < 0.5 * radius[D < 4].std()


def test_gradients_that_are_not_finite_are_replaced_and_counted():
    weight = torch.nn.Parameter(torch.zeros(5))
    weight.grad = torch.tensor([1.0, math.nan, math.inf, -math.inf, 2.0])
    assert replace_nonfinite_gradients([weight, torch.nn.Parameter(torch.zeros(1))]) == 3
    assert weight.grad.tolist() == [1.0, 0.0, 1e5, -1e5, 2.0]
    assert replace_nonfinite_gradients([weight]) == 0


# The moving average


def test_ema_half_life_in_images():
    weight = torch.nn.Parameter(torch.zeros(1))
    ema = HalfLifeEMA([weight], batch_size=100, halflife=1000, rampup=0.05)
    assert ema.get_decay(10**6) == pytest.approx(0.5 ** (100 / 1000))  # 1000 images halve what was
    assert ema.get_decay(10) == pytest.approx(0.5 ** (100 / (0.05 * 1000)))  # early: 5 % of the images seen
    expected = 0.0
    for step in range(1, 8):
        weight.data.fill_(float(step))
        ema.step([weight])
        decay = ema.get_decay(step)
        expected = decay * expected + (1 - decay) * step
    assert ema.shadow_params[0].item() == pytest.approx(expected)


# Data


def test_images_are_decoded_resized_and_cropped(tmp_path):
    wide = np.zeros((40, 80, 3), np.uint8)
    wide[:, 20:60] = (255, 0, 0)  # the centre square is red
    dataset = Dataset.from_dict({"image": [PIL.Image.fromarray(wide)]}, features=Features({"image": Image()}))
    data = load_images(dataset, resolution=16)
    assert data.images.shape == (1, 3, 16, 16)
    assert data.images[0, 0].float().mean() > 240
    assert data.images[0, 1].float().mean() < 10
    assert data.labels is None


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("1", 1), ("RGB", 3), ("RGBA", 3), ("P", 3)])
def test_every_mode_of_picture(mode, channels):
    picture = PIL.Image.new("RGB", (8, 8), (200, 200, 200)).convert(mode)
    dataset = Dataset.from_dict({"image": [picture]}, features=Features({"image": Image()}))
    assert load_images(dataset, resolution=8).images.shape == (1, channels, 8, 8)
    assert load_images(dataset, resolution=8, channels=1).images.shape == (1, 1, 8, 8)


def test_columns_are_found_or_named(fashion_mnist):
    dataset = load_dataset(str(fashion_mnist), split="test")
    data = load_images(dataset, resolution=28)
    assert len(data) == 120
    assert data.class_names[9] == "Ankle boot"
    item = data[3]
    assert (item["images"].min(), item["images"].dtype, item["class_labels"].item()) == (-1, torch.float32, dataset[3]["label"])
    assert torch.equal(item["images"], torch.from_numpy(np.array(dataset[3]["image"])).float()[None] / 127.5 - 1)
    with pytest.raises(ValueError, match="`image_column` is 'picture'"):
        load_images(dataset, resolution=28, image_column="picture")
    with pytest.raises(ValueError, match="several image columns"):
        load_images(Dataset.from_dict({"a": [], "b": []}, features=Features({"a": Image(), "b": Image()})), resolution=28)
    with pytest.raises(ValueError, match="no image column"):
        load_images(dataset.remove_columns("image"), resolution=28)


def test_sigma_data_is_measured():
    images = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8, generator=generator())
    expected = (images.double() / 127.5 - 1).std(correction=0).item()
    assert ImageDataset(images).sigma_data() == pytest.approx(expected, rel=1e-9)


def test_random_flip():
    images = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8)
    torch.manual_seed(0)
    flipped = [bool(ImageDataset(images, random_flip=True)[0]["images"][0, 0, 0] > -0.97) for _ in range(200)]
    assert 60 < sum(flipped) < 140


def write_idx(folder, images, labels, prefix):
    folder.mkdir(exist_ok=True)
    header = struct.pack(">4B3I", 0, 0, 8, 3, *images.shape)
    (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + images.tobytes()))
    (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">4BI", 0, 0, 8, 1, len(labels)) + labels.tobytes())


def test_idx_files_become_a_data_set(tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (7, 5, 6), np.uint8), rng.integers(0, 3, 7).astype(np.uint8)
    for prefix in ("train", "t10k"):
        write_idx(tmp_path / "idx", images, labels, prefix)
    assert convert(tmp_path / "idx", tmp_path / "out", ["a", "b", "c"]) == {"train": 7, "test": 7}
    dataset = load_dataset(str(tmp_path / "out"), split="test")
    np.testing.assert_array_equal(np.stack([np.array(image) for image in dataset["image"]]), images)
    assert dataset["label"][:] == labels.tolist()
    assert dataset.features["label"].names == ["a", "b", "c"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["test.parquet", "train.parquet"]


def test_damaged_idx_files_are_refused(tmp_path):
    images, labels = np.zeros((4, 2, 2), np.uint8), np.zeros(4, np.uint8)
    write_idx(tmp_path, images, labels, "train")
    with pytest.raises(ValueError, match="holds no t10k-images"):
        convert(tmp_path, tmp_path / "out", ["a"])
    labels_file = tmp_path / "train-labels-idx1-ubyte"
    labels_file.write_bytes(labels_file.read_bytes()[:-1])
    with pytest.raises(ValueError, match="cut off"):
        read_idx(labels_file)
    labels_file.write_bytes(b"P5 2 2")
    with pytest.raises(ValueError, match="not an IDX file"):
        read_idx(labels_file)


# The script


def train(*args, check=True, env=None):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "train_accelerate.py"]
    common = ["--preset", "fashion-mnist-small", "--train_batch_size", "8", "--resolution", "8", "--lr_warmup_steps", "0"]
    result = subprocess.run([*command, *common, *map(str, args)], cwd=ROOT, env=env, capture_output=True, text=True)
    if check:
        assert result.returncode == 0, result.stderr[-3000:]
    return result


def weights(folder):
    return DiffusionPipeline.from_pretrained(folder).unet.state_dict()


def test_training_from_parquet_checkpoints_and_resumes(fashion_mnist, tmp_path):
    common = [
        "--train_data_dir", fashion_mnist, "--D", "128", "--class_conditional", "--label_dropout", "0.1", "--augment", "0.2",
        "--max_train_steps", "4", "--sample_steps", "2", "--checkpointing_steps", "2", "--gradient_accumulation_steps", "2",
    ]  # fmt: skip
    result = train(*common, "--output_dir", tmp_path / "through", "--resume_from_checkpoint", "latest")
    summary = json.loads(result.stdout.strip().splitlines()[-1])
    assert (summary["steps"], summary["images"]) == (4, 64)
    folder = tmp_path / "through"
    names = {path.name for path in folder.iterdir()}
    pipeline_files = {"unet", "scheduler", "model_index.json", "README.md", "samples.png"}
    assert names == pipeline_files | {"samples", "checkpoint-2", "checkpoint-4"}
    assert sorted(path.name for path in (folder / "samples").iterdir()) == ["step-0000002.png", "step-0000004.png"]
    assert PIL.Image.open(folder / "samples" / "step-0000004.png").size == (80, 32)

    pipe = DiffusionPipeline.from_pretrained(folder)
    assert (pipe.scheduler.config.D, pipe.unet.config.label_dim, pipe.config.id2label["8"]) == (128, 10, "Bag")
    assert (pipe.unet.map_augment.weight != 0).any()
    measured = load_images(load_dataset(str(fashion_mnist), split="train"), resolution=8).sigma_data()
    assert pipe.scheduler.config.sigma_data == pytest.approx(measured, abs=1e-4)
    assert pipe(batch_size=2, num_inference_steps=2, output_type="pt").images.isfinite().all()
    card = (folder / "README.md").read_text()
    assert "D = 128" in card
    assert "64 images of" in card

    # from the middle to the end is the same as straight through
    (tmp_path / "resumed").mkdir()
    (folder / "checkpoint-2").rename(tmp_path / "resumed" / "checkpoint-2")
    train(*common, "--output_dir", tmp_path / "resumed", "--resume_from_checkpoint", "latest")
    resumed = weights(tmp_path / "resumed")
    for name, tensor in weights(folder).items():
        torch.testing.assert_close(resumed[name], tensor, rtol=1e-5, atol=1e-6)


def parse(*args):
    """Arguments of the script as it reads them."""
    return runpy.run_path(str(ROOT / "train_accelerate.py"))["parse_args"]([str(arg) for arg in args])


REQUIRED = ["--train_data_dir", "data", "--output_dir", "out", "--max_train_steps", "5"]


@pytest.mark.parametrize("preset", RECIPES)
def test_presets_are_the_published_recipes_and_can_be_overridden(preset):
    args = parse(*REQUIRED, "--preset", preset)
    for name, value in RECIPES[preset].items():
        assert getattr(args, name) == value
    assert parse(*REQUIRED, "--preset", preset, "--learning_rate", "0.5").learning_rate == 0.5
    assert parse(*REQUIRED, "--preset", preset, "--no-class_conditional").class_conditional is False


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
    for text, message in (
        ("learning_rat: 1", "unrecognized arguments: --learning_rat=1"),
        ("preset: vgg", "argument --preset: invalid choice: 'vgg'"),
        ("- a", "cannot be read: it is no list of `name: value`"),
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
    again = [*common, "5", "--checkpointing_steps", "0", "--output_dir", tmp_path / "out", "--resume_from_checkpoint"]
    result = train(*again, "latest")
    assert f"{newest} is damaged, so the one before it is used" in result.stdout
    assert f"Resuming from {newest.with_name('checkpoint-2')}" in result.stdout
    assert json.loads(result.stdout.strip().splitlines()[-1])["steps"] == 5
    refused = train(*again, newest, check=False)
    assert refused.returncode != 0
    assert f"{newest} is damaged and cannot be resumed from" in refused.stderr


def test_a_full_disk_leaves_the_last_good_checkpoint(stopped_run, tmp_path):
    """Files are limited to a size that no checkpoint fits in, which fails as a full disk does."""
    folder, common = stopped_run
    shutil.copytree(folder, tmp_path / "out")
    limit = (
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)); sys.argv = sys.argv[1:];"
    )
    command = [sys.executable, "-c", f"{limit} runpy.run_path(sys.argv[0], run_name='__main__')", "train_accelerate.py"]
    args = ["--preset", "fashion-mnist-small", "--train_batch_size", "8", "--resolution", "8", *common, "6"]
    args += ["--checkpointing_steps", "1", "--output_dir", tmp_path / "out", "--resume_from_checkpoint", "latest"]
    result = subprocess.run([*command, *map(str, args)], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1
    assert "The checkpoint of step 5 cannot be written, the ones before it are as they were" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list((tmp_path / "out").glob(".checkpoint-*"))
    kept = {path.name: (path / "model.safetensors").read_bytes() for path in folder.glob("checkpoint-*")}
    assert {path.name: (path / "model.safetensors").read_bytes() for path in (tmp_path / "out").glob("checkpoint-*")} == kept


def test_training_from_a_folder_of_images_in_bfloat16(tmp_path):
    for index in range(20):
        color = (12 * index, 255 - 12 * index, 100)
        (tmp_path / "images").mkdir(exist_ok=True)
        PIL.Image.new("RGB", (12, 10), color).save(tmp_path / "images" / f"{index}.png")
    train(
        "--dataset_name", tmp_path / "images", "--D", "inf", "--mixed_precision", "bf16", "--max_train_steps", "3",
        "--sample_steps", "0", "--checkpointing_steps", "0", "--save_dtype", "float16", "--output_dir", tmp_path / "out",
    )  # fmt: skip
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert pipe.scheduler.config.D is None
    assert pipe.unet.config.in_channels == 3
    assert pipe(num_inference_steps=2).images[0].mode == "RGB"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"unet", "scheduler", "model_index.json", "README.md"}


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
    common = ["--pretrained_model_name_or_path", tmp_path / "start", "--dataset_name", fashion_mnist, "--D", "64"]
    common += ["--max_train_steps", "2", "--checkpointing_steps", "0", "--output_dir", tmp_path / "out"]
    assert "takes no augmentation labels" in train(*common, "--learning_rate", "1e-3", "--augment", "0.1").stdout
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert pipe.scheduler.config.D == 64
    assert pipe.scheduler.config.sigma_data == 1
    moved = (pipe.unet.conv_in.weight - unet.conv_in.weight).abs().max().item()
    assert 0 < moved < 3e-3  # two steps of Adam from where it was
    assert "The network of" in train(*common, "--class_conditional", check=False).stderr


def test_training_one_network_for_every_d_on_the_field_of_a_larger_batch(fashion_mnist, tmp_path):
    train(
        "--train_data_dir", fashion_mnist, "--D", "16:inf", "--d_conditioning", "--reference_batch_size", "32",
        "--max_train_steps", "2", "--sample_steps", "0", "--checkpointing_steps", "0", "--output_dir", tmp_path / "out",
    )  # fmt: skip
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert pipe.unet.config.d_conditioning
    assert pipe.scheduler.config.D == 2048
    assert pipe(D=float("inf"), num_inference_steps=2, output_type="pt").images.isfinite().all()
    assert (pipe.unet.map_dimension.linear.weight != 0).any()


@pytest.mark.parametrize("reason", ["SIGTERM", "SIGINT", "time"])
def test_a_run_that_is_told_to_stop_saves_and_goes_on_later(reason, fashion_mnist, tmp_path):
    command = [
        sys.executable, "train_accelerate.py", "--preset", "fashion-mnist-small", "--train_batch_size", "8",
        "--resolution", "8", "--train_data_dir", str(fashion_mnist), "--D", "64", "--output_dir", str(tmp_path / "out"),
        "--sample_steps", "0", "--checkpointing_steps", "0",
    ]  # fmt: skip
    endless = [*command, "--max_train_steps", "100000"]
    if reason == "time":
        result = subprocess.run([*endless, "--max_train_time", "0.02"], cwd=ROOT, capture_output=True, text=True)
        output, code = result.stdout, result.returncode
    else:
        process = subprocess.Popen(endless, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        seen = ""
        while "loss=" not in seen:  # the first step is done
            seen += process.stderr.read(1)
        process.send_signal(getattr(signal, reason))
        output, code = process.communicate()[0], process.returncode
    assert code == 0
    assert "--resume_from_checkpoint latest goes on" in output
    (checkpoint,) = (tmp_path / "out").glob("checkpoint-*")
    step = int(checkpoint.name.removeprefix("checkpoint-"))
    again = [*command, "--max_train_steps", str(step + 1), "--resume_from_checkpoint", "latest"]
    result = subprocess.run(again, cwd=ROOT, capture_output=True, text=True)
    assert json.loads(result.stdout.strip().splitlines()[-1])["steps"] == step + 1


def test_training_from_a_data_set_of_the_hub(hub, fashion_mnist, tmp_path):
    root, env = hub
    shutil.copytree(fashion_mnist, root / "datasets" / "org" / "clothes")
    common = ["--max_train_steps", "1", "--sample_steps", "0", "--checkpointing_steps", "0", "--output_dir", tmp_path / "out"]
    train("--dataset_name", "org/clothes", *common, env=env)
    assert "`org/clothes`" in (tmp_path / "out" / "README.md").read_text()
    missing = train("--dataset_name", "org/none", *common, env=env, check=False)
    assert missing.returncode != 0
    assert "The data set org/none cannot be used" in missing.stderr
    assert missing.stderr.count("Traceback") <= 1  # accelerate's own, of the process that ended


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--D", "0"], "argument --D: `D` must be a positive number, inf, or a range such as 16:inf, but is '0'"),
        (["--D", "16:inf"], "--D 16:inf is a range, which needs --d_conditioning"),
        (["--class_conditional", "--reference_batch_size", "32"], "--reference_batch_size needs --augment 0"),
        (["--augment", "2"], "--augment must lie in [0, 1]"),
        (["--dataset_name", "also"], "give one of --dataset_name and --train_data_dir"),
        (["--train_batch_size", "10000"], "--train_batch_size 10000 is larger"),
        (["--image_column", "picture"], "cannot be used: `image_column` is 'picture'"),
    ],
)
def test_bad_arguments_end_in_one_sentence(args, message, fashion_mnist, tmp_path):
    result = train(
        "--train_data_dir", fashion_mnist, "--max_train_steps", 1, "--output_dir", tmp_path / "out", *args, check=False
    )
    assert result.returncode != 0
    assert message in result.stderr
    assert not (tmp_path / "out").exists()
