"""The Hub on 127.0.0.1 with the real client, in fresh processes: loading in three environments, pushing, what goes wrong."""

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
from conftest import ROOT
from diffusers import DiffusionPipeline
from hub_server import LARGE, READER, WRITER

import pipeline_pfgmpp
from pipeline_pfgmpp.hub import model_info


BUNDLED = ROOT / "model_cards" / "pfgmpp-fashion-mnist"
CODE = {
    "pipeline.py": "pipeline_pfgmpp.py",
    "scheduling_pfgmpp.py": "scheduling_pfgmpp.py",
    "noise.py": "noise.py",
    "scheduler/pipeline_pfgmpp.py": "scheduling_pfgmpp.py",
    "scheduler/noise.py": "noise.py",
    "unet/pipeline_pfgmpp.py": "unet_pfgmpp.py",
}
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


def run(program, env, python=sys.executable, check=True, cwd=None):
    result = subprocess.run([python, "-c", program], env=env, cwd=cwd, capture_output=True, text=True)
    if check:
        assert result.returncode == 0, result.stderr[-3000:]
        return result.stdout
    assert result.returncode != 0
    return result.stderr


@pytest.fixture(scope="module")
def vanilla(tmp_path_factory):
    """Python of a second virtual environment with all that this one has, but the package."""
    folder = tmp_path_factory.mktemp("vanilla")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    # Of a folder that is named so the .pth files are not read, and so not that of our editable installation.
    (packages / "shared.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin" / "python"


# Loading


def test_the_three_environments_draw_the_same(hub, vanilla, tmp_path):
    server, env = hub
    server.add(BUNDLED, "org/pfgmpp-fashion-mnist")
    name, folder = "org/pfgmpp-fashion-mnist", str(BUNDLED)
    drawn = run(INSTALLED.format(name) + DRAW, env)
    assert run(VANILLA.format(name) + DRAW, env, vanilla, cwd=tmp_path) == drawn

    # from the cache, when the Hub is gone, and from a local folder
    server.remove(name)
    offline = {**env, "HF_HUB_OFFLINE": "1"}
    assert run(INSTALLED.format(name) + DRAW, offline) == drawn
    assert run(INSTALLED.format(folder) + DRAW, offline) == drawn
    assert (
        run(VANILLA.format(folder) + DRAW, {**offline, "HF_MODULES_CACHE": str(tmp_path / "modules")}, vanilla, cwd=tmp_path)
        == drawn
    )


def test_remote_code_asks_for_the_flag(hub, vanilla, tmp_path):
    server, env = hub
    server.add(BUNDLED, "org/pfgmpp-fashion-mnist")
    program = VANILLA.format("org/pfgmpp-fashion-mnist").replace(", trust_remote_code=True", "")
    error = run(program, env, vanilla, check=False, cwd=tmp_path)
    assert "contains custom code in pipeline.py which must be executed" in error
    assert "trust_remote_code=True" in error
    assert not list((tmp_path / "cache").rglob("diffusers_modules/local"))  # nothing was even copied


def test_code_in_a_folder_is_the_packages_own(tmp_path):
    DiffusionPipeline.from_pretrained(BUNDLED).save_pretrained(tmp_path)
    for folder in (tmp_path, BUNDLED):
        assert {path.relative_to(folder).as_posix() for path in folder.rglob("*.py")} == CODE.keys()
        for name, source in CODE.items():
            assert (folder / name).read_bytes() == (ROOT / "pipeline_pfgmpp" / source).read_bytes(), f"run write_code: {name}"


def test_modules_that_meet_in_one_namespace_share_no_name():
    """diffusers runs the code of all local components as one module, one after the other."""
    modules = [inspect.getmodule(cls) for cls in (pipeline_pfgmpp.PFGMPPScheduler, pipeline_pfgmpp.PFGMPPUNet2DModel)]
    scheduler, unet = ({name: value for name, value in vars(module).items() if not name.startswith("__")} for module in modules)
    assert all(scheduler[name] is unet[name] for name in scheduler.keys() & unet.keys())


def test_options_of_from_pretrained(hub):
    server, env = hub
    server.add(BUNDLED, "org/model")
    server.add(ROOT / "tests" / "fixtures", "org/model", branch="empty")  # the same and more, on a branch
    program = """
import os, torch, pipeline_pfgmpp
from diffusers import DiffusionPipeline, EDMDPMSolverMultistepScheduler
from pipeline_pfgmpp import PFGMPPPipeline, PFGMPPScheduler, PFGMPPUNet2DModel

pipe = PFGMPPPipeline.from_pretrained("org/model", torch_dtype=torch.bfloat16, revision="empty", cache_dir=os.environ["OTHER"])
assert pipe.unet.conv_in.weight.dtype == torch.bfloat16 if hasattr(pipe.unet, "conv_in") else pipe.unet.dtype == torch.bfloat16
assert os.path.isdir(os.path.join(os.environ["OTHER"], "models--org--model"))
scheduler = PFGMPPScheduler.from_pretrained("org/model", subfolder="scheduler")
assert scheduler.config.D == pipe.scheduler.config.D
unet = PFGMPPUNet2DModel.from_pretrained("org/model", subfolder="unet")
assert unet.config.sample_size == 28
pipe = DiffusionPipeline.from_pretrained("org/model", scheduler=EDMDPMSolverMultistepScheduler.from_config(scheduler.config))
assert pipe.scheduler.config.D == scheduler.config.D
pipe(num_inference_steps=2)
pipe.save_pretrained(os.environ["OTHER"] + "/variant", variant="fp16")
"""
    other = Path(env["HF_HOME"]) / "other"
    run(program, {**env, "OTHER": str(other)})
    server.add(other / "variant", "org/variant")
    run('import pipeline_pfgmpp as p; p.PFGMPPPipeline.from_pretrained("org/variant", variant="fp16")', env)
    assert "no such modeling files" in run(
        'import pipeline_pfgmpp as p; p.PFGMPPPipeline.from_pretrained("org/variant", variant="fp8")', env, check=False
    )


def test_an_interrupted_download_goes_on(hub):
    """The client asks for the rest of a file of which it has a part."""
    server, env = hub
    server.add(BUNDLED, "org/model")
    weights = "unet/diffusion_pytorch_model.safetensors"
    content = server.files("org/model")[weights]
    program = f"from huggingface_hub import hf_hub_download; print(hf_hub_download('org/model', {weights!r}))"
    path = Path(run(program, env).strip())
    blob = path.resolve()
    path.unlink()
    blob.rename(blob.with_name(blob.name + ".incomplete"))
    with open(blob.with_name(blob.name + ".incomplete"), "r+b") as file:
        file.truncate(len(content) // 2)
    assert Path(run(program, env).strip()).read_bytes() == content


# Pushing


COMMANDS = """
import contextlib, io, json, os, sys
from pipeline_pfgmpp.cli import main

for line in sys.stdin:
    os.environ["HF_TOKEN"], arguments = json.loads(line)
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(arguments)
        except SystemExit as end:
            code = end.code
    print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
"""


@pytest.fixture
def pfgmpp():
    """Runs commands, one after the other in one process an environment: most of a process goes into its imports."""
    processes = {}

    def command(*args, env, token=WRITER, check=True):
        key = tuple(sorted(env.items()))
        if key not in processes:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            processes[key] = subprocess.Popen([sys.executable, "-c", COMMANDS], env=env, cwd=ROOT, text=True, **pipes)
        process = processes[key]
        print(json.dumps([token or "", [str(arg) for arg in args]]), file=process.stdin, flush=True)
        code, out, err = json.loads(process.stdout.readline())
        if check:
            assert code == 0, err
            return out
        assert code == 1
        assert "Traceback" not in err
        (message,) = re.findall(r"pfgmpp: .*", err)
        return message

    yield command
    for process in processes.values():
        process.stdin.close()
        assert process.wait() == 0


@pytest.fixture
def folder(tmp_path):
    """A pipeline folder among much that is nobody's business."""
    folder = tmp_path / "model"
    shutil.copytree(BUNDLED, folder)
    (folder / "checkpoint-5").mkdir()
    for name in ("checkpoint-5/optimizer.bin", "checkpoint-5/model.safetensors", ".env", "token", "unet/weights.pkl", "own.py"):
        (folder / name).write_text("hf_secret")
    (folder / "arguments.yaml").write_text("output_dir: /home/me")
    return folder


SHOWN = {"evaluation.json", "robustness.json", "samples.png", "robustness.png", "noise.png"}  # by the card
PUSHED = {
    "model_index.json", "README.md", "scheduler/scheduler_config.json", "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors", *CODE, *SHOWN,
}  # fmt: skip


def test_a_folder_is_pushed_and_loads(hub, pfgmpp, folder, vanilla, tmp_path):
    server, env = hub
    output = pfgmpp("push", folder, "org/new", "--private", env=env)
    assert re.search(r"Pushed .*model: http://127.0.0.1:\d+/org/new/commit/", output)
    assert server.files("org/new").keys() == PUSHED
    assert server.repositories["models", "org/new"].private
    assert len(server.repositories["models", "org/new"].commits) == 2  # the empty one and ours
    for name, content in server.files("org/new").items():
        assert content == (folder / name).read_bytes()
    drawn = run(INSTALLED.format("org/new") + DRAW, env)
    assert run(VANILLA.format("org/new") + DRAW, env, vanilla, cwd=tmp_path) == drawn

    # to a branch, and as a proposal
    pfgmpp("push", folder, "org/new", "--revision", "v1", env=env)
    assert server.files("org/new", branch="v1").keys() == PUSHED
    assert "/discussions/" in pfgmpp("push", folder, "org/new", "--create-pr", env=env)


def test_a_pipeline_pushes_itself(hub):
    server, env = hub
    program = f"""
import pipeline_pfgmpp as p
p.PFGMPPPipeline.from_pretrained({str(BUNDLED)!r}).push_to_hub("org/itself")
"""
    run(program, {**env, "HF_TOKEN": WRITER})
    assert server.files("org/itself").keys() == PUSHED - SHOWN


@pytest.mark.parametrize(("method", "part"), [("PUT", "/lfs/"), ("POST", "/commit/")])
def test_a_push_that_breaks_off_changes_nothing_and_a_second_sends_the_rest(hub, pfgmpp, folder, method, part):
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


def test_what_forbids_a_push_is_said_in_one_sentence(hub, pfgmpp, folder, tmp_path):
    server, env = hub
    assert "You are not logged in to the Hub" in pfgmpp("push", folder, "org/new", env=env, token=None, check=False)
    assert "Your token may not write to org/new" in pfgmpp("push", folder, "org/new", env=env, token=READER, check=False)
    assert "may not write to other/new" in pfgmpp("push", folder, "other/new", env=env, check=False)
    server.accidents.append(("POST", "/api/repos/create", 500))
    message = pfgmpp("push", folder, "org/new", env=env, check=False)
    assert "The Hub cannot answer (500); nothing was changed" in message
    assert "holds no pipeline" in pfgmpp("push", tmp_path / "none", "org/new", env=env, check=False)
    message = pfgmpp("push", ROOT / "tests", "org/new", "--repo-type", "space", env=env, check=False)
    assert "holds no Space: it has no app.py" in message
    unreachable = {**env, "HF_ENDPOINT": "http://127.0.0.1:9"}
    assert "failed, and nothing was changed" in pfgmpp("push", folder, "org/new", env=unreachable, check=False)
    assert not server.repositories
    server.add(tmp_path / "model" / "checkpoint-5", "org/taken")
    message = pfgmpp("push", folder, "org/taken", env=env, check=False)
    assert message.endswith("nothing was changed: it is taken by something else, which holds model.safetensors")
    server.add(BUNDLED, "org/new")
    server.accidents.append(("POST", "/commit/", 409))
    assert "org/new was changed at the same time" in pfgmpp("push", folder, "org/new", env=env, check=False)


# A first visit


def test_sample_and_info_take_a_hub_id(hub, pfgmpp, tmp_path):
    server, env = hub
    server.add(BUNDLED, "org/model")
    pfgmpp("sample", "org/model", "--output", tmp_path / "grid.png", "--columns", 1, "--num-inference-steps", 1, env=env)
    assert (tmp_path / "grid.png").stat().st_size > 1000
    server.requests.clear()
    table = pfgmpp("info", "org/model", env={**env, "HF_HOME": str(tmp_path / "empty")})
    assert any(path.endswith("/unet/config.json") for _, path in server.requests)
    assert not any(path.endswith(".safetensors") for _, path in server.requests)
    assert table == pfgmpp("info", BUNDLED, env=env)
    assert "trained on    zalando-datasets/fashion_mnist" in table
    assert "is no PFGM++ pipeline that can be read" in pfgmpp("info", "org/none", env=env, check=False)


def test_info_of_a_folder():
    info = model_info(BUNDLED)
    pipe = DiffusionPipeline.from_pretrained(BUNDLED)
    assert f"{pipe.unet.num_parameters():,} parameters" in info["network"]
    assert info["images"] == "28×28, grey"
    assert info["licence"] == "apache-2.0"
    assert json.loads((BUNDLED / "scheduler" / "scheduler_config.json").read_text())["D"] == pipe.scheduler.config.D
    assert torch.device("meta") != pipe.device
