"""
Fine-tuning: the defaults change something, and a network adapts to data with other channels, classes
and D.
"""

import re
import runpy
import shlex
from types import SimpleNamespace

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest
import torch
from conftest import ROOT
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline, UNet2DModel
from huggingface_hub import ModelCard
from test_runs import contents, train_here
from test_training import REQUIRED, parse

from pipeline_pfgmpp import PFGMPPPipeline, PFGMPPScheduler, PFGMPPUNet2DModel
from pipeline_pfgmpp.training import (
    RECIPES,
    HalfLifeEMA,
    adapt_network,
    choose_classes,
    read_run,
    read_trained_range,
)


BUNDLED = ROOT / "model_cards" / "pfgmpp-fashion-mnist"


def draw_rings(folder, count=20, mode="RGB"):
    """Draw pictures unlike any that the bundled model has seen: dark rings on a bright ground."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        picture = PIL.Image.new(mode, (28, 28), (255, 230, 200) if mode == "RGB" else 230)
        draw = PIL.ImageDraw.Draw(picture)
        draw.ellipse((4 + index % 4, 4, 22 + index % 4, 22), outline=0, width=3)
        picture.save(folder / f"{index}.png")
    return folder


def sample_mean(folder):
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(0)
    return pipe(batch_size=4, num_inference_steps=5, output_type="pt", generator=noise).images.mean(0)


def test_a_short_fine_tuning_by_the_defaults_moves_weights_and_samples(tmp_path):
    """
    From a grey class-conditional network to colour pictures without classes; it is the averaged
    weights that must have moved.
    """
    rings, folder = draw_rings(tmp_path / "someone" / "rings"), tmp_path / "out"
    common = [
        "--pretrained_model_name_or_path",
        BUNDLED,
        "--train_data_dir",
        rings,
        "--train_batch_size",
        "8",
    ]
    common += [
        "--max_train_steps",
        "32",
        "--sample_steps",
        "0",
        "--checkpointing_steps",
        "0",
        "--output_dir",
        folder,
    ]
    end, _ = train_here(*common)
    assert (
        "has 10 classes (T-shirt/top, Trouser, Pullover, …), but the data have no classes: --new_classes"
        in end
    )
    assert not folder.exists()
    end, output = train_here(*common, "--new_classes")
    assert end == ""
    assert output.count("Coloured images are converted to grey.") == 1

    before = DiffusionPipeline.from_pretrained(BUNDLED)
    after = DiffusionPipeline.from_pretrained(folder)
    weights, old = after.unet.state_dict(), before.unet.state_dict()
    moved = sum((weights[name] - old[name]).square().sum() for name in weights).sqrt()
    assert moved > 1e-3 * sum(old[name].square().sum() for name in weights).sqrt()
    target = torch.cat([read_picture(path) for path in rings.iterdir()]).mean(0)
    distance_before, distance_after = (
        (sample_mean(each) - target).square().mean().sqrt() for each in (BUNDLED, folder)
    )
    assert distance_after < 0.95 * distance_before

    # it is conditioned on D as before, and has no classes
    assert (after.num_classes, after.config.id2label) == (0, None)
    assert (after.scheduler.config.D, after.scheduler.config.D_range) == (2048, [16, None])
    assert read_run(folder)["--D"] == "16:inf"

    # its card names the base and its licence, and no pushed file names a folder of this machine
    card = ModelCard.load(folder / "README.md")
    assert (card.data.base_model, card.data.license) == ("pfgmpp-fashion-mnist", "apache-2.0")
    assert "Fine-tuned from `pfgmpp-fashion-mnist` (licence: apache-2.0)." in card.text
    assert "images of `rings`" in card.text
    assert "--pretrained_model_name_or_path pfgmpp-fashion-mnist --train_data_dir rings" in card.text
    for path, content in contents(folder).items():
        if path.name not in ("arguments.yaml", "run.json"):  # which stay here
            assert str(tmp_path).encode() not in content, path
            assert str(ROOT).encode() not in content, path


def read_picture(path):
    """Read a picture as a tensor of shape (1, 1, 28, 28) in [0, 1]."""
    return torch.from_numpy(np.array(PIL.Image.open(path).convert("L"))).float()[None, None] / 255


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], ("fine-tuning", 32, 320, None)),
        (["--preset", "cifar10-ddpmpp"], ("cifar10-ddpmpp", 512, 10_000_000, None)),
        (["--learning_rate", "0.5", "--D", "64", "--resolution", "32"], ("fine-tuning", 32, 320, "64")),
    ],
)
def test_a_pretrained_network_gets_the_recipe_of_fine_tuning(args, expected):
    args = parse(*REQUIRED, "--pretrained_model_name_or_path", "start", *args)
    assert (args.preset, args.train_batch_size, args.lr_warmup_images, args.D and str(args.D)) == expected
    assert (args.class_conditional, args.label_dropout) == (None, None)  # the network's


def test_the_preset_of_a_network_gives_no_size_to_another():
    assert (
        parse(*REQUIRED, "--pretrained_model_name_or_path", "start", "--preset", "ffhq64-ddpmpp").resolution
        is None
    )


def test_fine_tuning_needs_a_network():
    end, _ = train_here(*REQUIRED, "--preset", "fine-tuning")
    assert end.endswith("--preset fine-tuning needs --pretrained_model_name_or_path")


def test_a_warm_up_that_takes_the_run_is_told(tmp_path):
    rings = draw_rings(tmp_path / "rings", mode="L")
    common = ["--train_data_dir", rings, "--image_column", "none", "--output_dir", tmp_path / "out"]
    for options, told in (
        (["--preset", "cifar10-ddpmpp", "--max_train_steps", "20000"], True),
        (["--preset", "cifar10-ddpmpp", "--max_train_steps", "390625"], False),
        (["--preset", "fashion-mnist-small", "--max_train_steps", "399"], True),
        (["--preset", "fashion-mnist-small", "--max_train_steps", "400"], False),
        (["--max_train_steps", "10", "--lr_warmup_steps", "6"], True),
        (["--max_train_steps", "10", "--lr_warmup_steps", "5"], False),
    ):
        end, output = train_here(*common, *options)
        assert "`image_column` is 'none'" in end
        assert ("it will learn little" in output) == told, options


def commands(text):
    """List the training commands in a Markdown file."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [
        shlex.split(line.split("train_accelerate.py", 1)[1])
        for line in lines
        if "train_accelerate.py -" in line
    ]


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted(ROOT.glob("model_cards/*/README.md"))], ids=lambda p: p.parent.name
)
def test_no_command_that_we_print_warms_up_for_most_of_its_run(path):
    for command in commands(path.read_text()):
        args = parse(*command)
        assert (
            args.lr_warmup_images
            <= args.train_batch_size * args.gradient_accumulation_steps * args.max_train_steps / 2
        )


@pytest.mark.parametrize("images", [100, 4_000])
def test_the_average_forgets_where_it_began(images):
    """Its half-life is at most 5 % of the images seen so far, however long it may become."""
    weight = torch.nn.Parameter(torch.zeros(1))
    average = HalfLifeEMA([weight], batch_size=8, halflife=500_000)
    with torch.no_grad():
        weight.fill_(1.0)
    for _ in range(images // 8):
        average.step([weight])
    assert average.shadow_params[0].item() > 0.999


def conditional(**options):
    options = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "model_channels": 16,
        "label_dim": 3,
        **options,
    }
    return PFGMPPUNet2DModel(channel_mult=(1,), num_blocks=1, attn_resolutions=(), **options).eval()


def of_diffusers(num_class_embeds):
    return UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8,), norm_num_groups=8,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), num_class_embeds=num_class_embeds,
    ).eval()  # fmt: skip


@pytest.mark.parametrize("model_type", ["SongUNet", "DhariwalUNet"])
@pytest.mark.parametrize("num_classes", [0, 3, 5])
def test_new_classes_begin_as_no_class_and_the_rest_is_kept(num_classes, model_type):
    old = conditional(model_type=model_type, channel_mult_noise=1)
    torch.nn.init.normal_(next(reversed(old.state_dict().values())))  # the last layer begins at zero
    new = adapt_network(old, num_classes).eval()
    assert new.config.label_dim == num_classes
    kept = {name for name in new.state_dict() if name != "map_label.weight"}
    assert kept >= {name for name in old.state_dict() if not name.startswith("map_label")}
    assert all(torch.equal(new.state_dict()[name], old.state_dict()[name]) for name in kept)
    x, t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(2)
    labels = torch.tensor([num_classes - 1, 0]) if num_classes else None
    if num_classes:
        assert (new.map_label.weight == 0).all()
        assert torch.equal(new(x, t, labels).sample, old(x, t).sample)
        new(x, t, labels).sample.sum().backward()
        assert (new.map_label.weight.grad != 0).any()


@pytest.mark.parametrize(("before", "after"), [(3, 5), (3, 3), (None, 4), (3, 0)])
def test_networks_of_diffusers_get_new_classes(before, after):
    old = of_diffusers(before)
    new = adapt_network(old, after).eval()
    assert new.config.num_class_embeds == (after or None)
    x, t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(2)
    labels = torch.tensor([after - 1, 0]) if after else None
    if before is None:
        assert torch.equal(new(x, t, labels).sample, old(x, t).sample)
    if after:
        assert (new.class_embedding.weight == 0).all()
    assert torch.equal(new.conv_in.weight, old.conv_in.weight)
    with pytest.raises(ValueError, match="cannot be conditioned on D"):
        adapt_network(old, d_conditioning=True)


def test_a_network_that_changes_nothing_stays_itself():
    unet = conditional(d_conditioning=True)
    assert adapt_network(unet, d_conditioning=True) is unet
    assert adapt_network(unet, label_dropout=0.2).config.label_dropout == 0.2


NAMES = ["T-shirt/top", "Trouser", "Bag"]


def pipeline(id2label=None, scheduler=None, **options):
    return PFGMPPPipeline(conditional(**options), scheduler or PFGMPPScheduler(), id2label=id2label)


@pytest.mark.parametrize("model_type", ["SongUNet", "DhariwalUNet"])
def test_a_network_that_gets_classes_begins_as_it_was(model_type):
    options = {"model_type": model_type, "model_channels": 16, "channel_mult": (1,), "num_blocks": 1}
    old = PFGMPPUNet2DModel(sample_size=8, **options).eval()
    for weight in old.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    new = adapt_network(old, 3).eval()
    x = torch.randn(2, 3, 8, 8)
    for labels in (None, torch.tensor([0, 2])):
        torch.testing.assert_close(new(x, torch.zeros(2), labels).sample, old(x, torch.zeros(2)).sample)


def test_classes_of_the_data_and_of_the_network():
    named, numbered, unconditional = pipeline(dict(enumerate(NAMES))), pipeline(), pipeline(label_dim=0)
    partly_named = pipeline({0: "T-shirt/top", 2: "Bag"})
    assert choose_classes(named, NAMES) == NAMES
    assert choose_classes(named, ["T - shirt / top", "trouser", "bag"]) == NAMES
    assert choose_classes(numbered, ["a", "b", "c"]) == ["a", "b", "c"]
    assert choose_classes(partly_named, NAMES) == NAMES
    assert choose_classes(unconditional, NAMES) == []
    assert choose_classes(named, ["a", "b"], new_classes=True) == ["a", "b"]
    assert choose_classes(named, None, new_classes=True) == []
    assert choose_classes(named, NAMES, class_conditional=False, new_classes=True) == []
    assert choose_classes(unconditional, NAMES, new_classes=True) == NAMES
    for found in (None, ["a", "b"], ["0", "1", "2"]):
        with pytest.raises(
            ValueError,
            match=r"has 3 classes \(T-shirt/top, Trouser, Bag\), but the data have .*--new_classes",
        ):
            choose_classes(named, found)
    with pytest.raises(ValueError, match="has no classes, but the data have 3: --new_classes"):
        choose_classes(unconditional, NAMES, class_conditional=True)
    with pytest.raises(ValueError, match="--new_classes together with --no-class_conditional"):
        choose_classes(named, NAMES, class_conditional=False)


def test_the_d_of_a_pretrained_network():
    assert str(read_trained_range(pipeline(scheduler=PFGMPPScheduler(D=128)))) == "128"
    assert str(read_trained_range(pipeline(scheduler=PFGMPPScheduler(D=None)))) == "inf"
    told = {"scheduler": PFGMPPScheduler(D_range=(16, None)), "d_conditioning": True}
    assert str(read_trained_range(pipeline(**told))) == "16:inf"
    with pytest.raises(ValueError, match="does not state the range that it was trained for: give --D"):
        read_trained_range(pipeline(d_conditioning=True))


def test_another_range_of_noise_leaves_out_lists_of_levels():
    """They would begin at the former one without a word."""
    script = runpy.run_path(str(ROOT / "train_accelerate.py"))
    common = ["--pretrained_model_name_or_path", "start", "--train_data_dir", "data", "--output_dir", "out"]
    levels = {"heun": {"2": [80.0, 1.0]}}
    start = pipeline(scheduler=PFGMPPScheduler(D=64, sigmas=levels, default_steps=2))
    for options, sigma_max, expected in ((["--sigma_max", "10"], 10, None), ([], 80, levels)):
        args = script["parse_args"]([*common, "--max_train_steps", "1", *options])
        printed = []
        talker = SimpleNamespace(print=printed.append)
        config = script["build_scheduler"](args, None, start, None, talker).config
        assert (config.sigma_max, config.sigmas, config.default_steps) == (sigma_max, expected, 2)
        assert len(printed) == (expected is None)


def test_what_cannot_be_fine_tuned_so_ends_in_one_sentence(tmp_path):
    rings = draw_rings(tmp_path / "rings", 4)
    pipeline().save_pretrained(tmp_path / "start")
    unet = of_diffusers(None)
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    common = ["--train_data_dir", rings, "--max_train_steps", "1", "--output_dir", tmp_path / "out"]
    for start, options, message in (
        ("ddpm", [], "is a DDPMPipeline. pfgmpp convert --from-diffusers turns a DDPM into a PFGMPP"),
        ("start", ["--resolution", "16"], "--resolution is 16, but the network of"),
        (
            "start",
            ["--new_classes", "--D", "16:inf"],
            "is for a single D, but --D 16:inf is a range, which needs --d_conditioning.",
        ),
        ("none", [], "cannot be loaded"),
    ):
        end, _ = train_here("--pretrained_model_name_or_path", tmp_path / start, *common, *options)
        assert message in end
    assert not (tmp_path / "out").exists()


def test_a_colour_network_takes_grey_pictures_with_classes(tmp_path):
    for name in ("circles", "rings"):
        draw_rings(tmp_path / "data" / name, 4, mode="L")
    pipeline(in_channels=3, out_channels=3, scheduler=PFGMPPScheduler(D=64)).save_pretrained(
        tmp_path / "start"
    )
    end, output = train_here(
        "--pretrained_model_name_or_path", tmp_path / "start", "--train_data_dir", tmp_path / "data",
        "--new_classes", "--label_dropout", "0.3", "--max_train_steps", "1", "--sample_steps", "0",
        "--checkpointing_steps", "0", "--output_dir", tmp_path / "out",
    )  # fmt: skip
    assert end == ""
    assert "Grey images are converted to colour." in output
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert pipe.config.id2label == {"0": "circles", "1": "rings"}
    assert (pipe.unet.config.in_channels, pipe.unet.config.label_dropout, pipe.scheduler.config.D) == (
        3,
        0.3,
        64,
    )
    assert RECIPES["fine-tuning"]["label_dropout"] is None
