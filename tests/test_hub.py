"""
The real Hub client against a Hub on 127.0.0.1: loading in three environments, pushing, and failures.

What the client does depends on its environment when it is imported, so that it runs in processes of its
own. Programs that need the same environment share a process, since most of a short process is imports.
"""

import inspect
import json
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from conftest import CODE, ROOT, make_hub_environment, make_tiny_pipeline
from diffusers import DiffusionPipeline
from hub_server import ANSWER_LOST, LARGE, READER, WRITER, serve_hub

import pipeline_pfgmpp
from pipeline_pfgmpp.hub import model_info
from pipeline_pfgmpp.hub.cards import write_model_card
from pipeline_pfgmpp.hub.push import _list_outdated


BUNDLED = ROOT / "model_cards" / "pfgmpp-fashion-mnist"
IN_LATENTS = ROOT / "model_cards" / "pfgmpp-emoji-fast"
DRAW = """
import hashlib, torch
images = pipe(2, num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="np").images
print(hashlib.sha256((images * 255).round().astype("uint8").tobytes()).hexdigest())
"""
INSTALLED = """
import sys
import pipeline_pfgmpp
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained({!r})
assert type(pipe) is pipeline_pfgmpp.PFGMPPPipeline
assert type(pipe.unet) is pipeline_pfgmpp.PFGMPPUNet2DModel
assert type(pipe.scheduler) is pipeline_pfgmpp.PFGMPPScheduler
assert not any(name.startswith("diffusers_modules") for name in sys.modules)  # nothing remote ran
"""
VANILLA = """
import importlib.util
from diffusers import DiffusionPipeline

assert importlib.util.find_spec("pipeline_pfgmpp") is None
pipe = DiffusionPipeline.from_pretrained({0!r}, custom_pipeline={0!r}, trust_remote_code=True)
assert type(pipe).__name__ == "PFGMPPPipeline"
assert type(pipe.unet).__module__.startswith("diffusers_modules")
"""


RUNNER = """
import contextlib, io, json, os, sys, traceback

for line in sys.stdin:
    os.environ["HF_TOKEN"], program = json.loads(line)
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            exec(program, {"__name__": "__main__"})
        except SystemExit as end:
            code = end.code
        except Exception:
            traceback.print_exc()
            code = 1
    print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
"""


@pytest.fixture(scope="module")
def execute(tmp_path_factory):
    """Runs a program in the process of an interpreter and an environment; returns status, output, errors."""
    processes = {}
    folder = tmp_path_factory.mktemp("elsewhere")  # the package cannot be imported from here by chance

    def execute(program, env, python=sys.executable, token=None):
        key = (str(python), *sorted(env.items()))
        if key not in processes:
            processes[key] = subprocess.Popen(
                [python, "-c", RUNNER],
                env=env,
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        process = processes[key]
        print(json.dumps([token or "", program]), file=process.stdin, flush=True)
        return json.loads(process.stdout.readline())

    yield execute
    for process in processes.values():
        process.stdin.close()
        assert process.wait() == 0


@pytest.fixture
def run(execute):
    """Runs a program; returns its output, or with `check=False` the error with which it ends."""

    def run(program, env, python=sys.executable, check=True, token=None):
        code, out, err = execute(program, env, python, token)
        assert (code == 0) == check, err[-3000:]
        return out if check else err

    return run


@pytest.fixture
def pfgmpp(execute):
    """Runs a `pfgmpp` command; returns its output, or with `check=False` its one message."""

    def pfgmpp(*args, env, token=WRITER, check=True):
        arguments = [str(arg) for arg in args]
        program = f"from pipeline_pfgmpp.commands import main\nmain({arguments!r})"
        code, out, err = execute(program, env, token=token)
        if check:
            assert code == 0, err
            return out
        assert code == 1
        assert "Traceback" not in err
        (message,) = re.findall(r"pfgmpp: .*", err)
        return message

    return pfgmpp


@pytest.fixture(scope="module")
def module_hub(tmp_path_factory):
    with serve_hub() as server:
        env = make_hub_environment(server, tmp_path_factory.mktemp("cache"))
        yield server, {**env, "OMP_NUM_THREADS": "1"}  # networks are small, and cores may be busy


@pytest.fixture
def hub(module_hub):
    """
    A Hub that is empty when a test begins, and an environment in which the client asks it.

    Tests share the client's cache, so each names its repositories differently.
    """
    server, env = module_hub
    for kept in (server.repositories, server.large, server.requests, server.accidents):
        kept.clear()
    return server, env


@pytest.fixture(scope="module")
def vanilla(tmp_path_factory):
    """The Python of a virtual environment that has everything this one has, except the package."""
    folder = tmp_path_factory.mktemp("vanilla")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    # The .pth files of a folder that is added this way are not read, so that the package's editable
    # installation is not found.
    (packages / "shared.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The bundled model with its code, as it is saved and pushed."""
    folder = tmp_path_factory.mktemp("saved")
    DiffusionPipeline.from_pretrained(BUNDLED).save_pretrained(folder)
    return folder


# Loading


def test_the_three_environments_draw_the_same(hub, run, vanilla, saved, tmp_path):
    server, env = hub
    name = "org/environments"
    server.add(saved, name)
    drawn = run(INSTALLED.format(name) + DRAW, env)
    assert run(VANILLA.format(name) + DRAW, env, vanilla) == drawn

    # from the cache, when the Hub is gone, and from a local folder
    server.remove(name)
    offline = {**env, "HF_HUB_OFFLINE": "1"}
    assert run(INSTALLED.format(name) + DRAW, offline) == drawn
    assert run(INSTALLED.format(str(saved)) + DRAW, offline) == drawn
    fresh = {**offline, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    assert run(VANILLA.format(str(saved)) + DRAW, fresh, vanilla) == drawn


def test_remote_code_asks_for_the_flag(hub, run, vanilla, saved):
    server, env = hub
    server.add(saved, "org/unflagged")
    copied = set(Path(env["HF_HOME"]).rglob("diffusers_modules/**/*"))
    program = VANILLA.format("org/unflagged").replace(", trust_remote_code=True", "")
    error = run(program, env, vanilla, check=False)
    assert "contains custom code in pipeline.py which must be executed" in error
    assert "trust_remote_code=True" in error
    assert set(Path(env["HF_HOME"]).rglob("diffusers_modules/**/*")) == copied  # nothing was even copied


def test_code_in_a_folder_is_the_packages_own(saved):
    assert {path.relative_to(saved).as_posix() for path in saved.rglob("*.py")} == CODE.keys()
    for name, source in CODE.items():
        assert (saved / name).read_bytes() == (ROOT / "pipeline_pfgmpp" / source).read_bytes()


def test_modules_that_meet_in_one_namespace_share_no_name():
    """diffusers runs the code of all local components in one namespace, one after the other."""
    modules = [
        inspect.getmodule(cls) for cls in (pipeline_pfgmpp.PFGMPPScheduler, pipeline_pfgmpp.PFGMPPUNet2DModel)
    ]
    scheduler, unet = (
        {name: value for name, value in vars(module).items() if not name.startswith("__")}
        for module in modules
    )
    assert all(scheduler[name] is unet[name] for name in scheduler.keys() & unet.keys())


OPTIONS = """
import os, torch, pipeline_pfgmpp
from diffusers import DiffusionPipeline, EDMDPMSolverMultistepScheduler
from pipeline_pfgmpp import PFGMPPPipeline, PFGMPPScheduler, PFGMPPUNet2DModel

name, other = {!r}, {!r}
pipe = PFGMPPPipeline.from_pretrained(name, torch_dtype=torch.bfloat16, revision="branch", cache_dir=other)
assert pipe.unet.dtype == torch.bfloat16
assert os.path.isdir(os.path.join(other, "models--org--options"))
scheduler = PFGMPPScheduler.from_pretrained(name, subfolder="scheduler")
assert scheduler.config.D == pipe.scheduler.config.D
unet = PFGMPPUNet2DModel.from_pretrained(name, subfolder="unet")
assert unet.config.sample_size == 28
edm = EDMDPMSolverMultistepScheduler.from_config(scheduler.config)
pipe = DiffusionPipeline.from_pretrained(name, scheduler=edm)
assert pipe.scheduler.config.D == scheduler.config.D
pipe(num_inference_steps=2)
pipe.save_pretrained(os.path.join(other, "variant"), variant="fp16")
"""


def test_options_of_from_pretrained(hub, run, tmp_path):
    server, env = hub
    server.add(BUNDLED, "org/options")
    server.add(ROOT / "tests" / "fixtures", "org/options", branch="branch")  # the same files, and more
    run(OPTIONS.format("org/options", str(tmp_path)), env)
    server.add(tmp_path / "variant", "org/variant")
    load = "import pipeline_pfgmpp as p; p.PFGMPPPipeline.from_pretrained('org/variant', variant={!r})"
    run(load.format("fp16"), env)
    assert "no such modeling files" in run(load.format("fp8"), env, check=False)


def test_an_interrupted_download_resumes(hub, run):
    """The client asks for the rest of a file of which it has a part."""
    server, env = hub
    server.add(BUNDLED, "org/interrupted")
    weights = "unet/diffusion_pytorch_model.safetensors"
    content = server.files("org/interrupted")[weights]
    program = (
        f"from huggingface_hub import hf_hub_download\nprint(hf_hub_download('org/interrupted', {weights!r}))"
    )
    path = Path(run(program, env).strip())
    blob = path.resolve()
    path.unlink()
    partial = blob.with_name(blob.name + ".incomplete")
    blob.rename(partial)
    with open(partial, "r+b") as file:
        file.truncate(len(content) // 2)
    assert Path(run(program, env).strip()).read_bytes() == content


# Pushing


@pytest.fixture
def folder(tmp_path):
    """A pipeline folder with files that must not be uploaded."""
    folder = tmp_path / "model"
    shutil.copytree(BUNDLED, folder)
    (folder / "checkpoint-5").mkdir()
    for name in (
        "checkpoint-5/optimizer.bin",
        "checkpoint-5/model.safetensors",
        ".env",
        "token",
        "unet/weights.pkl",
        "own.py",
    ):
        (folder / name).write_text("hf_secret")
    (folder / "arguments.yaml").write_text("output_dir: /home/me")
    return folder


SHOWN = {"evaluation.json", "robustness.json", "samples.png", "robustness.png", "noise.png"}  # by the card
PUSHED = {
    "model_index.json", "README.md", "scheduler/scheduler_config.json", "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors", *CODE, *SHOWN,
}  # fmt: skip


def test_a_folder_is_pushed_and_loads(hub, pfgmpp, run, folder, vanilla):
    server, env = hub
    output = pfgmpp("push", folder, "org/new", "--private", env=env)
    assert re.search(r"Pushed .*model: http://127.0.0.1:\d+/org/new/commit/", output)
    assert server.files("org/new").keys() == PUSHED
    assert server.repositories["models", "org/new"].private
    assert len(server.repositories["models", "org/new"].commits) == 2  # the empty one and ours
    for name, content in server.files("org/new").items():
        source = ROOT / "pipeline_pfgmpp" / CODE[name] if name in CODE else folder / name
        assert content == source.read_bytes()
        assert re.search(rf"^ *[\d.]+ k?M?B  {name}$", output, re.MULTILINE)
    drawn = run(INSTALLED.format("org/new") + DRAW, env)
    assert run(VANILLA.format("org/new") + DRAW, env, vanilla) == drawn

    # to a branch, and as a proposal
    pfgmpp("push", folder, "org/new", "--revision", "v1", env=env)
    assert server.files("org/new", branch="v1").keys() == PUSHED
    assert "/discussions/" in pfgmpp("push", folder, "org/new", "--create-pr", env=env)


def test_a_second_push_deletes_what_it_replaces_under_other_names(hub, pfgmpp, tmp_path):
    """Else the index of the first push would load the first weights, and its report would be about them."""
    server, env = hub
    first = make_tiny_pipeline()
    first.save_pretrained(tmp_path / "first", max_shard_size="20KB")
    first.save_pretrained(tmp_path / "first", variant="ema")
    write_model_card(tmp_path / "first", first, "Trained nowhere.")
    second = make_tiny_pipeline(seed=1)
    second.save_pretrained(tmp_path / "second")
    write_model_card(tmp_path / "second", second, "Trained nowhere.")
    pfgmpp("push", tmp_path / "first", "org/twice", env=env)
    indexed = server.files("org/twice").keys()
    assert "unet/diffusion_pytorch_model.safetensors.index.json" in indexed
    pfgmpp("push", tmp_path / "second", "org/twice", env=env)
    kept = [name for name in server.files("org/twice") if "diffusion_pytorch_model" in name]
    assert sorted(kept) == [
        "unet/diffusion_pytorch_model.ema.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
    ]


@pytest.mark.parametrize(("variants", "kept"), [([None], False), ([None, "ema"], True)])
def test_a_report_stays_as_long_as_some_of_its_weights(variants, kept):
    names = {
        None: "unet/diffusion_pytorch_model.safetensors",
        "ema": "unet/diffusion_pytorch_model.ema.safetensors",
    }
    present = {"evaluation.json", *(names[variant] for variant in variants)}
    assert _list_outdated({names[None], "model_index.json"}, present) == ([] if kept else ["evaluation.json"])


def test_a_model_of_latents_is_pushed_with_its_autoencoder(hub, pfgmpp, run, vanilla):
    server, env = hub
    pfgmpp("push", IN_LATENTS, "org/emoji", env=env)
    names = {name for name in server.files("org/emoji") if not name.endswith(".py")}
    files = {path.relative_to(IN_LATENTS).as_posix() for path in IN_LATENTS.rglob("*.*")}
    assert names == {name for name in files if not name.endswith(".py")}
    assert "vae/diffusion_pytorch_model.safetensors" in names
    drawn = run(INSTALLED.format("org/emoji") + DRAW, env)
    assert run(INSTALLED.format(str(IN_LATENTS)) + DRAW, env) == drawn
    assert run(VANILLA.format("org/emoji") + DRAW, env, vanilla) == drawn


def test_a_pipeline_pushes_itself(hub, run):
    server, env = hub
    program = f"""
import pipeline_pfgmpp as p
p.PFGMPPPipeline.from_pretrained({str(BUNDLED)!r}).push_to_hub("org/itself")
"""
    run(program, env, token=WRITER)
    assert server.files("org/itself").keys() == PUSHED - SHOWN


def test_a_pipeline_that_is_pushed_as_it_is_saved_does_not_tell_where_it_was(hub, run, tmp_path):
    server, env = hub
    program = f"""
import pipeline_pfgmpp as p
pipe = p.PFGMPPPipeline.from_pretrained({str(BUNDLED)!r})
pipe.save_pretrained({str(tmp_path / "saved")!r}, push_to_hub=True, repo_id="org/saved")
"""
    run(program, env, token=WRITER)
    files = server.files("org/saved")
    assert files.keys() >= PUSHED - SHOWN
    assert not [name for name in files if name.endswith(".json") and b"_name_or_path" in files[name]]


def test_a_dry_run_needs_neither_token_nor_network(hub, pfgmpp, folder):
    server, env = hub
    output = pfgmpp("push", folder, "org/new", "--dry-run", env=env, token=None)
    assert all(f"  {name}\n" in output for name in PUSHED)
    assert "hf_secret" not in output
    assert pfgmpp("push", ROOT / "space", "org/new", "--repo-type", "space", "--dry-run", env=env, token=None)
    assert server.requests == []
    message = pfgmpp("push", folder / "scheduler", "org/new", "--dry-run", env=env, check=False)
    assert "is not a pipeline folder: it has no model_index.json" in message


def test_a_push_from_the_cache_leaves_the_cache_as_it_is(hub, pfgmpp, run, tmp_path):
    """Its files are links to blobs, of which one is a pipeline.py of another version."""
    server, env = hub
    shutil.copytree(BUNDLED, tmp_path / "older")
    (tmp_path / "older" / "pipeline.py").write_text("# of another version\n")
    server.add(tmp_path / "older", "org/older")
    pfgmpp("info", "org/older", env=env)
    program = "from huggingface_hub import snapshot_download; print(snapshot_download('org/older'))"
    snapshot = Path(run(program, env).strip())
    assert (snapshot / "pipeline.py").is_symlink()
    blobs = {path: path.read_bytes() for path in (snapshot.parents[1] / "blobs").iterdir()}
    pfgmpp("push", snapshot, "org/new", env=env)
    assert server.files("org/new").keys() == PUSHED
    assert (
        server.files("org/new")["pipeline.py"]
        == (ROOT / "pipeline_pfgmpp" / "pipeline_pfgmpp.py").read_bytes()
    )
    assert {path: path.read_bytes() for path in (snapshot.parents[1] / "blobs").iterdir()} == blobs


@pytest.mark.parametrize(("method", "part"), [("PUT", "/lfs/"), ("POST", "/commit/")])
def test_a_push_that_breaks_off_changes_nothing_and_the_next_sends_the_rest(
    hub, pfgmpp, folder, method, part
):
    server, env = hub
    server.accidents.append((method, part, 400))
    message = pfgmpp("push", folder, "org/new", env=env, check=False)
    assert message.startswith("pfgmpp: The upload to org/new failed, and nothing was changed:")
    assert not server.repositories
    sent = len(server.large)
    server.requests.clear()
    pfgmpp("push", folder, "org/new", env=env)
    assert server.files("org/new").keys() == PUSHED
    large = sum(len(content) >= LARGE for content in server.files("org/new").values())
    assert sum(method == "PUT" for method, _ in server.requests) == large - sent


def test_a_failed_push_takes_back_what_it_has_made_and_no_more(hub, pfgmpp, folder):
    server, env = hub
    # A repository that cannot be deleted again is named.
    server.accidents += [("POST", "/commit/", 400), ("DELETE", "/repos/delete", 403)]
    message = pfgmpp("push", folder, "org/new", env=env, check=False)
    assert "failed, and the repository created for it could not be deleted" in message
    assert f"delete it at {server.endpoint}/org/new/settings" in message
    assert "nothing was changed" not in message
    assert server.files("org/new") == {}

    # One that was there stays, though it is empty, and so does its branch; ours is deleted.
    server.repositories["models", "org/new"].branches["theirs"] = server.repositories[
        "models", "org/new"
    ].branches["main"]
    for revision in ("ours", "theirs"):
        server.accidents.append(("POST", "/commit/", 400))
        message = pfgmpp("push", folder, "org/new", "--revision", revision, env=env, check=False)
        assert "failed, and nothing was changed" in message
        assert server.repositories["models", "org/new"].branches.keys() == {"main", "theirs"}

    # A branch that cannot be deleted again is named.
    server.accidents += [("POST", "/commit/", 400), ("DELETE", "/branch/", 403)]
    message = pfgmpp("push", folder, "org/new", "--revision", "ours", env=env, check=False)
    assert "failed, and the branch ours created for it could not be deleted" in message


def test_a_push_of_which_the_answer_is_lost_claims_nothing(hub, pfgmpp, folder):
    """The commit has arrived, so that the new repository stays."""
    server, env = hub
    server.accidents.append(("POST", "/commit/", ANSWER_LOST))
    message = pfgmpp("push", folder, "org/new", env=env, check=False)
    assert "it has changed in the meantime, perhaps through this upload: check" in message
    assert "nothing was changed" not in message
    assert server.files("org/new").keys() == PUSHED


def test_a_private_push_does_not_go_to_a_public_repository(hub, pfgmpp, folder):
    server, env = hub
    server.add(BUNDLED, "org/public")
    (commit,) = [sha for sha, files in server.repositories["models", "org/public"].commits.items() if files]
    message = pfgmpp("push", folder, "org/public", "--private", env=env, check=False)
    assert (
        "failed, and nothing was changed: it is already public, but a private repository was requested"
        in message
    )
    assert server.repositories["models", "org/public"].branches["main"] == commit


def test_what_must_not_leave_is_refused_before_the_hub_is_asked(hub, pfgmpp, folder, tmp_path):
    server, env = hub
    (tmp_path / "key.txt").write_text("hf_secret")
    (folder / "samples.png").unlink()
    (folder / "samples.png").symlink_to(tmp_path / "key.txt")
    message = pfgmpp("push", folder, "org/new", env=env, check=False)
    assert "samples.png links to a file outside its folder, which is not uploaded" in message
    space = Path(shutil.copytree(ROOT / "space", tmp_path / "space"))
    for content in ("name: A\nmodel: org/a\n", "- org/a\n", "- {name: [\n"):
        (space / "models.yaml").write_text(content)
        assert "models.yaml" in pfgmpp("push", space, "org/new", "--repo-type", "space", env=env, check=False)
    shutil.copy(ROOT / "space" / "models.yaml", space)
    (space / "secrets.py").write_text("")
    message = pfgmpp("push", space, "org/new", "--repo-type", "space", env=env, check=False)
    assert "secrets.py in" in message
    assert "is named like a secret, and nothing was sent" in message
    assert server.requests == []
    assert not server.repositories


def test_what_forbids_a_push_is_said_in_one_sentence(hub, pfgmpp, folder, tmp_path):
    server, env = hub
    assert "You are not logged in to the Hub" in pfgmpp(
        "push", folder, "org/new", env=env, token=None, check=False
    )
    assert "Your token may not write to org/new" in pfgmpp(
        "push", folder, "org/new", env=env, token=READER, check=False
    )
    assert "may not write to other/new" in pfgmpp("push", folder, "other/new", env=env, check=False)
    server.accidents.append(("POST", "/api/repos/create", 500))
    message = pfgmpp("push", folder, "org/new", env=env, check=False)
    assert "The Hub cannot answer (500), and nothing was changed" in message
    assert "is not a pipeline folder" in pfgmpp("push", tmp_path / "none", "org/new", env=env, check=False)
    message = pfgmpp("push", ROOT / "tests", "org/new", "--repo-type", "space", env=env, check=False)
    assert "is not a Space: it has no app.py" in message
    unreachable = {**env, "HF_ENDPOINT": "http://127.0.0.1:9"}
    assert "failed, and nothing was changed" in pfgmpp(
        "push", folder, "org/new", env=unreachable, check=False
    )
    assert not server.repositories
    server.add(tmp_path / "model" / "checkpoint-5", "org/taken")
    message = pfgmpp("push", folder, "org/taken", env=env, check=False)
    assert message.endswith("nothing was changed: it holds something else, such as model.safetensors")
    server.add(BUNDLED, "org/new")
    server.accidents.append(("POST", "/commit/", 409))
    assert "org/new was changed at the same time" in pfgmpp("push", folder, "org/new", env=env, check=False)


# A first visit


def test_sample_and_info_take_a_hub_id(hub, pfgmpp, tmp_path):
    server, env = hub
    server.add(BUNDLED, "org/visited")
    table = pfgmpp("info", "org/visited", env=env)
    assert any(path.endswith("/unet/config.json") for _, path in server.requests)
    assert not any(path.endswith(".safetensors") for _, path in server.requests)
    assert table == pfgmpp("info", BUNDLED, env=env)
    assert "trained on    zalando-datasets/fashion_mnist" in table
    assert "cannot be read as a PFGM++ pipeline" in pfgmpp("info", "org/none", env=env, check=False)
    pfgmpp(
        "sample",
        "org/visited",
        "--output",
        tmp_path / "grid.png",
        "--columns",
        1,
        "--num-inference-steps",
        1,
        env=env,
    )
    assert (tmp_path / "grid.png").stat().st_size > 1000
    assert pfgmpp("info", "org/visited", env={**env, "HF_HUB_OFFLINE": "1"}) == table  # of the cache


def test_info_downloads_four_small_files_and_no_more(hub, pfgmpp, tmp_path):
    server, env = hub
    shutil.copytree(BUNDLED, tmp_path / "model")
    (tmp_path / "model" / "unet" / "vocabulary.json").write_bytes(b"[]" * 2**20)
    server.add(tmp_path / "model", "org/model")
    pfgmpp("info", "org/model", env=env)
    read = {
        path.partition("/resolve/")[2].partition("/")[2]
        for method, path in server.requests
        if method == "GET"
    } - {""}
    assert read == {"model_index.json", "README.md", "scheduler/scheduler_config.json", "unet/config.json"}
    (tmp_path / "model" / "unet" / "config.json").write_bytes(b"[]" * 2**20)
    server.add(tmp_path / "model", "org/huge")
    message = pfgmpp("info", "org/huge", env=env, check=False)
    assert (
        "org/huge cannot be read as a PFGM++ pipeline: unet/config.json is larger than 1048576 bytes"
        in message
    )
    assert not any("/org/huge/resolve/" in path for _, path in server.requests)


def test_a_folder_with_only_a_variant_is_pushed_and_loads_with_it(hub, pfgmpp, tmp_path):
    server, env = hub
    DiffusionPipeline.from_pretrained(BUNDLED).save_pretrained(tmp_path / "only", variant="ema500")
    pfgmpp("push", tmp_path / "only", "org/only", env=env, token=WRITER)
    assert "unet/diffusion_pytorch_model.ema500.safetensors" in server.files("org/only")
    assert re.search(
        r"^variants +ema500 \(load one of them", pfgmpp("info", "org/only", env=env), re.MULTILINE
    )
    output = tmp_path / "drawn.npz"
    draw = ["sample", "org/only", "--output", output, "--num-images", 1, "--num-inference-steps", 1]
    message = pfgmpp(*draw, env=env, check=False)
    assert "org/only holds weights only as the variant ema500: add --variant ema500." in message
    assert "has no variants" in pfgmpp("sample", BUNDLED, "--variant", "fp16", env=env, check=False)
    pfgmpp(*draw, "--variant", "ema500", env=env)
    assert output.is_file()


def test_info_of_a_folder():
    info = model_info(BUNDLED)
    pipe = DiffusionPipeline.from_pretrained(BUNDLED)
    assert f"{pipe.unet.num_parameters():,} parameters" in info["network"]
    assert info["images"] == "28×28, grey"
    assert info["licence"] == "apache-2.0"
    assert (
        json.loads((BUNDLED / "scheduler" / "scheduler_config.json").read_text())["D"]
        == pipe.scheduler.config.D
    )
    assert torch.device("meta") != pipe.device
