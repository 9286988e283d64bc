"""The files that a push sends: those that belong, no links out of the folder and no secrets."""

import configparser
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import CODE, ROOT
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline, UNet2DModel
from safetensors.torch import load_file, save_file

from pipeline_pfgmpp import PFGMPPPipeline, PFGMPPScheduler, PFGMPPUNet2DModel
from pipeline_pfgmpp.commands import main
from pipeline_pfgmpp.hub import describe_files, list_files, upload_files
from pipeline_pfgmpp.hub.push import read_public
from pipeline_pfgmpp.hub.space_files import PACKAGE_DATA
from pipeline_pfgmpp.records.digests import digest_weights


WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
PIPELINE = {"model_index.json", "scheduler/scheduler_config.json", "unet/config.json", WEIGHTS, *CODE}
SECRETS = [
    "token.png", "hf_token.png", "hfToken.png", "secrets.png", "my-credentials.png", "password1.png",
    "api_key.png", "id_rsa.png", ".env.png", "private/.ssh/x.png", "id_ed25519.png", "client_secret.jpg",
    "service-account.gif",
]  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small pipeline with a network of this package."""
    folder = tmp_path_factory.mktemp("small")
    unet = PFGMPPUNet2DModel(8, 1, 1, model_channels=8, channel_mult=(1,), num_blocks=1, attn_resolutions=())
    PFGMPPPipeline(unet, PFGMPPScheduler(D=16)).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(small, tmp_path):
    return Path(shutil.copytree(small, tmp_path / "model"))


@pytest.fixture
def outside(tmp_path):
    """A folder outside everything that is pushed."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "key.txt").write_text("hf_secret")
    return folder


@pytest.fixture
def space(small, tmp_path):
    """A Space with a local model one level up, and files that do not belong to it."""
    folder = tmp_path / "checkout" / "space"
    (folder / "pictures").mkdir(parents=True)
    shutil.copytree(small, folder.parent / "models" / "small")
    contents = {
        "app.py": "from limits import LIMIT",
        "limits.py": "LIMIT = 'pictures/limit.png'",
        "requirements.txt": "torch",
        "README.md": "---\nsdk: gradio\n---\n",
        "about.md": '<img src="gradio_api/file=pictures/lines.png">',
        "models.yaml": "- {name: Small, model: models/small, D: '16:inf'}\n"
        "- {name: F, models: {1: org/one, inf: org/other}}\n",
        "pictures/lines.png": "",
        "pictures/limit.png": "",
        "pictures/holiday.png": "",
        "token.txt": "hf_secret",
    }
    for name, content in contents.items():
        (folder / name).write_text(content)
    for name in ("notes.md", "data.yaml", ".env", "shot.png"):
        (folder / name).write_text("")
    (folder / ".venv" / "lib").mkdir(parents=True)
    (folder / ".venv" / "lib" / "module.py").write_text("")
    (folder / "scratch").mkdir()
    (folder / "scratch" / "module.py").write_text("")
    return folder


def replace_by_link(path, target):
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


# Pipelines


def test_a_pipelines_list_is_what_it_names(folder):
    (folder / "README.md").write_text(
        '---\nlicense: mit\n---\n![A](samples.png) <img src="./figures/a%20b.jpg"> [table](more.gif "title")'
        " ![B](https://example.org/other.png) ![C](/absolute.png) ![D](missing.png)\n"
    )
    (folder / "figures").mkdir()
    shown = {"README.md", "evaluation.json", "robustness.json", "samples.png", "figures/a b.jpg", "more.gif"}
    others = [
        "token.txt",
        ".env",
        "other.png",
        "absolute.png",
        "notes.json",
        "own.py",
        "unet/notes.json",
        "unet/optimizer.bin",
    ]
    for name in [*(shown - {"README.md", "evaluation.json"}), *others]:
        (folder / name).write_text("[]")
    report = {"results": [], "settings": {}, "features": "fashion-mnist", "num_images": 2}
    (folder / "evaluation.json").write_text(json.dumps(report))
    files = list_files(folder)
    assert files.keys() == PIPELINE | shown
    assert list(files) == sorted(files)
    for name, source in CODE.items():  # whatever lies there under these names
        assert files[name] == ROOT / "pipeline_pfgmpp" / source


def test_the_list_is_shown_with_sizes(folder, capsys):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    main(["push", str(folder), "org/new", "--dry-run"])
    shown = capsys.readouterr().out
    assert shown == describe_files(list_files(folder)) + "\n"
    assert f"{len(PIPELINE)} files" in shown
    for name in PIPELINE:
        assert re.search(rf"^ *[\d.]+ k?B  {name}$", shown, re.MULTILINE)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_variants_and_shards_belong_to_a_pipeline(folder):
    pipe = PFGMPPPipeline.from_pretrained(folder)
    pipe.save_pretrained(folder, variant="ema500")
    pipe.unet.save_pretrained(folder / "unet", variant="parts", max_shard_size="5KB")
    (folder / "unet" / "diffusion_pytorch_model.old-00001-of-00002.safetensors").write_bytes(
        b""
    )  # in no index
    weights = {name for name in list_files(folder) if name.startswith("unet/diffusion")}
    (index,) = (folder / "unet").glob("*.index*.json")
    shards = set(json.loads(index.read_text())["weight_map"].values())
    assert len(shards) > 1
    whole = {"diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.ema500.safetensors"}
    assert weights == {f"unet/{name}" for name in {*whole, index.name, *shards}}
    (folder / WEIGHTS).unlink()
    assert list_files(folder).keys() & {WEIGHTS} == set()
    (folder / "unet" / min(shards)).unlink()
    with pytest.raises(ValueError, match=f"unet lacks {min(shards)}, which the index of its weights names"):
        list_files(folder)


@pytest.mark.parametrize("options", [{}, {"variant": "fp16"}, {"max_shard_size": "5KB"}])
def test_weights_saved_as_pickles_are_refused_and_not_left_out(folder, options):
    """The push succeeded, and the repository had no weights."""
    pipe = PFGMPPPipeline.from_pretrained(folder)
    pipe.save_pretrained(folder.parent / "pickled", safe_serialization=False, **options)
    with pytest.raises(
        ValueError, match=r"unet holds weights as a pickle, diffusion_\S+, and only safetensors"
    ):
        list_files(folder.parent / "pickled")
    if "variant" in options:  # the default weights alone would be another model
        pipe.save_pretrained(folder, safe_serialization=False, **options)
        with pytest.raises(
            ValueError, match=r"unet holds weights as a pickle, diffusion_pytorch_model\.fp16"
        ):
            list_files(folder)


def test_the_pickled_guide_of_a_pipeline_is_refused(folder):
    pipe = PFGMPPPipeline.from_pretrained(folder)
    guided = PFGMPPPipeline(pipe.unet, pipe.scheduler, guidance_unet=pipe.unet)
    guided.save_pretrained(folder)
    assert "guidance_unet/diffusion_pytorch_model.safetensors" in list_files(folder)
    (folder / "guidance_unet" / "diffusion_pytorch_model.safetensors").unlink()
    pipe.unet.save_pretrained(folder / "guidance_unet", safe_serialization=False)
    with pytest.raises(ValueError, match="guidance_unet holds weights as a pickle"):
        list_files(folder)


@pytest.mark.parametrize("size", ["10GB", "5KB"])
def test_a_pickle_beside_safetensors_must_hold_the_same_weights(folder, size):
    """A pipeline that is saved again as a pickle leaves the old safetensors, which load first."""
    pipe = PFGMPPPipeline.from_pretrained(folder)
    pipe.save_pretrained(folder, safe_serialization=False, max_shard_size=size)
    assert {name for name in list_files(folder) if "diffusion" in name} == {WEIGHTS}
    next(pipe.unet.parameters()).data.add_(1)
    pipe.save_pretrained(folder, safe_serialization=False, max_shard_size=size)
    with pytest.raises(
        ValueError, match=r"holds other weights than diffusion_pytorch_model\.safetensors: remove"
    ):
        list_files(folder)
    for path in (folder / "unet").glob("*.bin"):
        path.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"unet/diffusion_pytorch_model\S*\.bin cannot be read"):
        list_files(folder)


@pytest.mark.parametrize("size", ["10GB", "5KB"])
def test_a_folder_that_holds_only_a_variant_is_pushed_with_its_report(folder, size):
    pipe = PFGMPPPipeline.from_pretrained(folder)
    pipe.save_pretrained(folder.parent / "only", variant="fp16", max_shard_size=size)
    only = folder.parent / "only"
    report = {"results": [], "settings": {}, "features": "fashion-mnist", "num_images": 2}
    report["settings"] = {"weights": digest_weights(pipe)}
    (only / "evaluation.json").write_text(json.dumps(report))
    files = list_files(only)
    assert any(name.startswith("unet/diffusion_pytorch_model.fp16") for name in files)
    copy = folder.parent / "copy"
    for name, path in files.items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy / name)
    assert digest_weights(DiffusionPipeline.from_pretrained(copy, variant="fp16")) == digest_weights(pipe)
    report["settings"] = {"weights": "0123456789abcdef"}
    (only / "evaluation.json").write_text(json.dumps(report))
    with pytest.raises(ValueError, match="measured with other weights"):
        list_files(only)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_not_pushed(folder, value):
    weights = load_file(folder / WEIGHTS)
    weights["map_layer0.bias"][0] = value
    save_file(weights, folder / WEIGHTS)
    with pytest.raises(
        ValueError, match="holds NaN or infinity in `map_layer0.bias`, but weights must be finite"
    ):
        list_files(folder)


def test_networks_without_a_common_variant_are_refused(folder):
    pipe = PFGMPPPipeline.from_pretrained(folder)
    guided = PFGMPPPipeline(pipe.unet, pipe.scheduler, guidance_unet=pipe.unet)
    guided.save_pretrained(folder, variant="a")
    assert f"guidance_unet/{Path(WEIGHTS).stem}.a.safetensors" in list_files(folder)  # with unet's default
    (folder / WEIGHTS).unlink()
    weights = folder / "guidance_unet" / "diffusion_pytorch_model.a.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.b.safetensors"))
    with pytest.raises(
        ValueError, match="no variant loads all of its networks: guidance_unet has b; unet has a"
    ):
        list_files(folder)


def test_the_networks_of_diffusers_have_no_code_of_ours(tmp_path):
    unet = UNet2DModel(
        8,
        1,
        1,
        block_out_channels=(8,),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    PFGMPPPipeline(unet, PFGMPPScheduler(D=16)).save_pretrained(tmp_path / "ours")
    assert list_files(tmp_path / "ours").keys() == PIPELINE - {"unet/pipeline_pfgmpp.py"}
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    with pytest.raises(
        ValueError, match="names the pipeline 'DDPMPipeline', which is not a pipeline of pipeline_pfgmpp"
    ):
        list_files(tmp_path / "ddpm")


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "evaluation.json",
        "samples.png",
        "unet/config.json",
        WEIGHTS,
        "unet",
        "scheduler",
        "model_index.json",
    ],
)
@pytest.mark.parametrize("relative", [False, True])
def test_no_link_out_of_a_pipelines_folder_is_followed(folder, outside, name, relative):
    (folder / "README.md").write_text("![A](samples.png)")
    for each in ("samples.png", "evaluation.json"):
        (folder / each).write_text("[]")
    target = outside / "unet" if name == "unet" else outside / "target"
    shutil.move(folder / name, target)
    replace_by_link(folder / name, os.path.relpath(target, (folder / name).parent) if relative else target)
    with pytest.raises(ValueError, match="links to a file outside its folder, which is not uploaded"):
        list_files(folder)


def test_a_link_inside_the_folder_shows_its_target_alone(folder):
    (folder / "README.md").write_text("![A](samples.png)")
    (folder / "best.png").write_text("picture")
    replace_by_link(folder / "samples.png", "best.png")
    replace_by_link(folder / "latest", folder)
    assert list_files(folder / "latest")["samples.png"].read_text() == "picture"
    (folder / ".env").write_text("hf_secret")
    replace_by_link(folder / "samples.png", ".env")
    with pytest.raises(ValueError, match=r"\.env in .* is named like a secret"):
        list_files(folder)


@pytest.mark.parametrize(
    "address", ["../outside/key.png", "figures/../../outside/key.png", "%2e%2e/outside/key.png"]
)
def test_a_card_shows_no_picture_outside_of_the_folder(folder, outside, address):
    (outside / "key.png").write_text("")
    (folder / "README.md").write_text(f"![A]({address})")
    with pytest.raises(ValueError, match="shows the picture .* which lies outside the folder"):
        list_files(folder)


@pytest.mark.parametrize("name", SECRETS)
def test_what_is_named_like_a_secret_is_refused(folder, name):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("")
    (folder / "README.md").write_text(f"![A]({name})")
    with pytest.raises(
        ValueError, match=re.escape(f"{name} in {folder} is named like a secret, and nothing was sent")
    ):
        list_files(folder)


@pytest.mark.parametrize(
    "name", ["tokenizer.png", "secretary.png", "keys.png", "passworded.png", "compass.png", "monkey.gif"]
)
def test_other_names_are_no_secrets(folder, name):
    (folder / name).write_text("")
    (folder / "README.md").write_text(f"![A]({name})")
    assert name in list_files(folder)


def make_snapshot(folder, tmp_path):
    """Lay a pipeline out as the Hub's cache does: a snapshot of links to blobs."""
    repository = tmp_path / "cache" / "models--org--model"
    snapshot = repository / "snapshots" / ("0123456789" * 4)
    (repository / "blobs").mkdir(parents=True)
    for place, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        blob = repository / "blobs" / f"{place:040x}"
        shutil.copy(path, blob)
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


def test_a_snapshot_of_the_cache_is_pushed_and_stays_as_it_was(folder, tmp_path):
    (folder / "pipeline.py").write_text("# of another version")
    snapshot = make_snapshot(folder, tmp_path)
    blobs = {path: path.read_bytes() for path in (snapshot.parents[1] / "blobs").iterdir()}
    files = list_files(snapshot)
    assert files.keys() == PIPELINE
    assert files[WEIGHTS].parent == snapshot.parents[1] / "blobs"
    assert files["pipeline.py"].read_bytes() == (ROOT / "pipeline_pfgmpp" / "pipeline_pfgmpp.py").read_bytes()
    PFGMPPPipeline.from_pretrained(folder).save_pretrained(snapshot)
    assert {path: path.read_bytes() for path in (snapshot.parents[1] / "blobs").iterdir()} == blobs
    assert not (snapshot / "pipeline.py").is_symlink()


@pytest.mark.parametrize(
    "kind", ["other repository", "name", "blob is a link", "blobs are a link", "not a snapshot", "folder"]
)
def test_links_that_only_resemble_those_of_the_cache_are_refused(folder, outside, tmp_path, kind):
    (folder / "README.md").write_text("card")
    snapshot = make_snapshot(folder, tmp_path)
    blobs = snapshot.parents[1] / "blobs"
    hash_like = "f" * 40
    if kind == "other repository":
        other = tmp_path / "cache" / "models--org--private" / "blobs"
        other.mkdir(parents=True)
        (other / hash_like).write_text("")
        replace_by_link(snapshot / "README.md", other / hash_like)
    elif kind == "name":
        (blobs / "key.txt").write_text("")
        replace_by_link(snapshot / "README.md", "../../blobs/key.txt")
    elif kind == "blob is a link":
        (blobs / hash_like).symlink_to(outside / "key.txt")
        replace_by_link(snapshot / "README.md", f"../../blobs/{hash_like}")
    elif kind == "blobs are a link":
        shutil.move(blobs, outside / "blobs")
        blobs.symlink_to(outside / "blobs")
    elif kind == "not a snapshot":
        snapshot = snapshot.rename(snapshot.with_name("latest"))
    else:  # a folder that leads to another snapshot of the same repository
        other = snapshot.with_name("f" * 40)
        shutil.copytree(snapshot, other, symlinks=True)
        replace_by_link(snapshot / "unet", f"../{other.name}/unet")
    with pytest.raises(ValueError, match="links to a file outside its folder"):
        list_files(snapshot)


def test_saving_replaces_a_link_and_leaves_its_target(folder, outside):
    before = {}
    for name in ("pipeline.py", "unet/pipeline_pfgmpp.py", "model_index.json", WEIGHTS):
        target = outside / Path(name).name
        shutil.move(folder / name, target)
        before[name] = target.read_bytes()
        replace_by_link(folder / name, target)
    (outside / "pipeline.py").write_text("# of another version")
    before["pipeline.py"] = b"# of another version"
    unet = PFGMPPUNet2DModel(8, 1, 1, model_channels=8, channel_mult=(1,), num_blocks=1, attn_resolutions=())
    PFGMPPPipeline(unet, PFGMPPScheduler(D=32), id2label={0: "new"}).save_pretrained(folder)
    for name, content in before.items():
        assert (outside / Path(name).name).read_bytes() == content
        assert not (folder / name).is_symlink()
    assert (folder / "pipeline.py").read_bytes() == (
        ROOT / "pipeline_pfgmpp" / "pipeline_pfgmpp.py"
    ).read_bytes()


def test_a_link_to_the_packages_own_source_becomes_a_copy(folder):
    source = ROOT / "pipeline_pfgmpp" / "pipeline_pfgmpp.py"
    content = source.read_bytes()
    replace_by_link(folder / "pipeline.py", source)
    DiffusionPipeline.from_pretrained(folder).write_code(folder)
    assert not (folder / "pipeline.py").is_symlink()
    assert (folder / "pipeline.py").read_bytes() == source.read_bytes() == content


def break_index(folder, **entries):
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, **entries}))


BROKEN = {
    "no component": (
        lambda folder: break_index(folder, unet=[None, None]),
        "must name the library and class of `unet`",
    ),
    "a path": (
        lambda folder: break_index(folder, **{"../outside": ["diffusers", "UNet2DModel"]}),
        "is not a valid folder name",
    ),
    "an unknown class": (
        lambda folder: break_index(folder, unet=["os", "system"]),
        "'system' is not a class of",
    ),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "unet has no weights as safetensors"),
    "no config": (lambda folder: (folder / "unet" / "config.json").unlink(), "unet has none of config.json"),
    "a broken card": (
        lambda folder: (folder / "README.md").write_text("---\na: [\n---\n"),
        "README.md is malformed",
    ),
    "cut weights": (lambda folder: os.truncate(folder / WEIGHTS, 5000), f"{WEIGHTS} cannot be read"),
    "not a report": (
        lambda folder: (folder / "robustness.json").write_text("{}"),
        "is not a report of `pfgmpp robustness`",
    ),
    "a list for a report": (
        lambda folder: (folder / "evaluation.json").write_text("[]"),
        "is not a report of `pfgmpp evaluate`",
    ),
    "a deep report": (
        lambda folder: (folder / "evaluation.json").write_text("[" * 10**5),
        "model cannot be read: ",
    ),
    "a list": (
        lambda folder: (folder / "model_index.json").write_text("[]"),
        "must hold a JSON object, but holds a list",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_broken_is_found_before_anything_is_sent(folder, kind):
    spoil, message = BROKEN[kind]
    spoil(folder)
    with pytest.raises(ValueError, match=re.escape(message)):
        list_files(folder)


def test_weights_fit_the_network(folder):
    weights = load_file(folder / WEIGHTS)
    name = next(iter(weights))
    save_file({**weights, name: torch.zeros(3)}, folder / WEIGHTS)
    with pytest.raises(ValueError, match=rf"`{name}` in the weights of unet has shape \(3,\)"):
        list_files(folder)
    del weights[name]
    save_file(weights, folder / WEIGHTS)
    with pytest.raises(ValueError, match=f"the weights of unet lack `{name}`"):
        list_files(folder)


def test_an_index_of_weights_names_no_other_file(folder, outside):
    index = {"weight_map": {"a": "../../outside/key.txt"}}
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"names '../../outside/key.txt', which is not a weight file"):
        list_files(folder)


# Spaces


def test_a_spaces_list_is_what_it_names(space):
    files = list_files(space, "space")
    package = {name for name in files if name.startswith("pipeline_pfgmpp/")}
    page = {"app.py", "limits.py", "requirements.txt", "README.md", "about.md", "models.yaml"}
    pictures = {"pictures/lines.png", "pictures/limit.png"}
    assert files.keys() - package == page | pictures | {f"models/small/{name}" for name in PIPELINE}
    declared = configparser.ConfigParser()
    declared.read(ROOT / "setup.cfg")
    patterns = [
        f"{package.removeprefix('pipeline_pfgmpp').lstrip('.').replace('.', '/')}/{pattern}"
        for package, pattern in declared["options.package_data"].items()
    ]
    sources = {
        path
        for pattern in ("*.py", *patterns)
        for path in (ROOT / "pipeline_pfgmpp").rglob(pattern.lstrip("/"))
    }
    assert package == {
        path.relative_to(ROOT).as_posix() for path in sources if "__pycache__" not in path.parts
    }
    assert all(any(Path(name).match(pattern) for name in package) for pattern in PACKAGE_DATA)


@pytest.mark.parametrize("name", ["about.md", "pictures/lines.png", "pictures", "app.py", "requirements.txt"])
def test_no_link_out_of_a_space_is_followed(space, outside, name):
    shutil.move(space / name, outside / "target")
    replace_by_link(space / name, outside / "target")
    with pytest.raises(ValueError, match="links to a file outside its folder"):
        list_files(space, "space")


@pytest.mark.parametrize("part", ["models", "models/small", "models/small/unet"])
@pytest.mark.parametrize("target", ["outside", "inside"])
def test_no_link_to_a_local_model_is_followed(space, outside, part, target):
    place = space.parent / part
    elsewhere = outside / place.name if target == "outside" else space.parent / "hidden" / place.name
    elsewhere.parent.mkdir(exist_ok=True)
    shutil.move(place, elsewhere)
    place.symlink_to(elsewhere)
    with pytest.raises(
        ValueError, match=r"which is a link and is not uploaded|links to a file outside its folder"
    ):
        list_files(space, "space")


@pytest.mark.parametrize("name", ["secrets.py", "token.py", "api_key.py"])
def test_a_module_named_like_a_secret_is_refused(space, name):
    (space / name).write_text("HF_TOKEN = 'hf_secret'")
    with pytest.raises(ValueError, match=f"{name} in .* is named like a secret"):
        list_files(space, "space")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: Small\nmodel: models/small", "must hold a list of models, but holds a dict"),
        ("Small", "must hold a list of models, but holds a str"),
        ("", "must hold a list of models"),
        ("- models/small", "Entry 1 of models.yaml in .* must hold `name` and either `model`"),
        ("- {name: A, model: org/a}\n- {name: B}", "Entry 2 of models.yaml"),
        ("- {name: A, model: [org/a]}", "Entry 1 of models.yaml"),
        ("- {name: A, models: [org/a]}", "Entry 1 of models.yaml"),
        ("- {name: A, models: {1: [org/a]}}", "Entry 1 of models.yaml"),
        ("- {name: A, model: org/a", "the YAML of models.yaml is malformed in line 1"),
        ("- " + "[" * 5000, "the YAML of models.yaml is"),
        (
            "- {name: A, model: ../outside}",
            "names the model '../outside', which must be a Hub id or a relative path next to app.py",
        ),
        ("- {name: A, model: models/../../outside}", "which must be a Hub id or a relative path"),
        ("- {name: A, model: /etc}", "names the model '/etc', which must be a Hub id"),
        ("- {name: A, model: .}", "which must be a Hub id or a relative path"),
        ("- {name: A, model: models/large/net}", "neither a local folder nor a Hub id"),
        ("- {name: A, model: pictures}", "pictures is not a pipeline folder: it has no model_index.json"),
    ],
)
def test_an_unusable_list_of_models_is_refused_in_one_sentence(space, outside, text, message):
    (space / "models.yaml").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        list_files(space, "space")
    assert "\n" not in str(error.value)


def test_a_space_without_its_files_is_refused_in_one_sentence(space):
    (space / "models.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="cannot be uploaded: models.yaml is not UTF-8"):
        list_files(space, "space")
    (space / "models.yaml").unlink()
    with pytest.raises(ValueError, match="cannot be uploaded: models.yaml is missing"):
        list_files(space, "space")
    (space / "app.py").unlink()
    with pytest.raises(ValueError, match=r"is not a Space: it has no app\.py"):
        list_files(space, "space")


def test_what_is_no_regular_file_is_refused(folder):
    os.mkfifo(folder / "evaluation.json")
    with pytest.raises(ValueError, match=r"evaluation\.json is not a regular file"):
        list_files(folder)
    replace_by_link(folder / "evaluation.json", "evaluation.json")
    with pytest.raises(ValueError, match=r"evaluation\.json is not a regular file"):
        list_files(folder)


def test_what_cannot_be_read_is_found_before_the_hub_is_asked(folder):
    files = list_files(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(
        ValueError, match="The upload to org/new failed, and nothing was changed: .*is not a file"
    ):
        upload_files(files, "org/new")


def test_no_folder_of_this_machine_is_told(small, tmp_path):
    """diffusers records in configurations where a pipeline was loaded from; what we save must not."""
    saved = tmp_path / "saved"
    DiffusionPipeline.from_pretrained(small).save_pretrained(saved)
    for path in saved.rglob("*.json"):
        assert str(small) not in path.read_text(), path
    config = json.loads((saved / "unet" / "config.json").read_text())
    (saved / "unet" / "config.json").write_text(json.dumps({**config, "_name_or_path": str(small)}))
    sent = json.loads(read_public(list_files(saved)["unet/config.json"]))
    assert sent == {name: value for name, value in config.items() if name != "_name_or_path"}
    assert read_public(saved / "model_index.json") == saved / "model_index.json"
