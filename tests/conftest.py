import atexit
import contextlib
import io
import json
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from safetensors import safe_open


os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test reaches beyond this machine
# What earlier runs decoded, perhaps with other code, is not taken. The workers share the folder.
if "HF_DATASETS_CACHE" not in os.environ:
    os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="pfgmpp-tests-")
    atexit.register(shutil.rmtree, os.environ["HF_DATASETS_CACHE"], ignore_errors=True)
# The workers of pytest-xdist, and what they start, share the cores.
threads = max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
os.environ.setdefault("OMP_NUM_THREADS", str(threads))
torch.set_num_threads(threads)

FIXTURES = Path(__file__).parent / "fixtures"
ROOT = Path(__file__).parent.parent
# The code files of a pipeline with a network of ours, and the package's modules that they are copies of.
CODE = {
    "pipeline.py": "pipeline_pfgmpp.py",
    "arguments.py": "arguments.py",
    "code_files.py": "code_files.py",
    "conditioning.py": "conditioning.py",
    "images.py": "images.py",
    "latents.py": "latents.py",
    "likelihood.py": "likelihood.py",
    "noise.py": "noise.py",
    "pipeline_base.py": "pipeline_base.py",
    "pipeline_checks.py": "pipeline_checks.py",
    "pixels.py": "pixels.py",
    "preconditioning.py": "preconditioning.py",
    "scheduler_config.py": "scheduler_config.py",
    "scheduling_pfgmpp.py": "scheduling_pfgmpp.py",
    "scheduler/arguments.py": "arguments.py",
    "scheduler/pipeline_pfgmpp.py": "scheduling_pfgmpp.py",
    "scheduler/noise.py": "noise.py",
    "scheduler/preconditioning.py": "preconditioning.py",
    "scheduler/scheduler_config.py": "scheduler_config.py",
    "unet/pipeline_pfgmpp.py": "unet_pfgmpp.py",
}


def run_training(*args):
    """
    Run train_accelerate.py in this process, since a new one takes seconds to start, and return what a
    new one would.
    """
    output = io.StringIO()
    errors = io.StringIO()
    code = 0
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
    ):
        patch.setenv("ACCELERATE_USE_CPU", "1")
        patch.setattr(sys, "argv", ["train_accelerate.py", *map(str, args)])
        try:
            runpy.run_path(str(ROOT / "train_accelerate.py"), run_name="__main__")
        except SystemExit as stop:
            code = stop.code or 0
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
    message = f"\n{code}\n" if isinstance(code, str) else ""
    return subprocess.CompletedProcess(args, int(bool(code)), output.getvalue(), errors.getvalue() + message)


def make_tiny_pipeline(seed=0, D=128, **options):
    """Make a pipeline for clothes, with a tiny network for every D and weights drawn from the seed."""
    from pipeline_pfgmpp import PFGMPPPipeline, PFGMPPScheduler, PFGMPPUNet2DModel

    images = {"sample_size": 28, "in_channels": 1, "out_channels": 1}
    tiny = {"model_channels": 16, "channel_mult": (1,), "num_blocks": 1, "d_conditioning": True}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = PFGMPPUNet2DModel(**{**images, **tiny, **options}).eval()
        for name, weight in unet.named_parameters():  # some start near zero, where faults go unnoticed
            if weight.ndim == 4:
                torch.nn.init.xavier_uniform_(weight)
            elif "map_dimension" in name:
                torch.nn.init.normal_(weight, std=0.3)
    pipe = PFGMPPPipeline(unet, PFGMPPScheduler(D=D))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def one_thread():
    """Threads that wait for each other make small networks slow, above all on a busy machine."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)


@pytest.fixture
def fresh_accelerator(monkeypatch):
    """Train in this process on the CPU, and leave nothing of accelerate's state to other tests."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(scope="session")
def golden():
    """Loads a golden file: its tensors by name, and its configuration."""

    def load(name):
        with safe_open(FIXTURES / f"{name}.safetensors", "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return tensors, json.loads((file.metadata() or {}).get("config", "{}"))

    return load


@pytest.fixture(scope="session")
def fashion_mnist():
    """Folder of a data set with 240 training and 120 test images of Fashion-MNIST."""
    return FIXTURES / "fashion_mnist"


@pytest.fixture(scope="session")
def ten_images(fashion_mnist):
    """One real image a class, of shape (10, 1, 28, 28) in [-1, 1]."""
    from datasets import load_dataset

    from pipeline_pfgmpp.data import load_images

    data = load_images(load_dataset(str(fashion_mnist), split="train"), resolution=28)
    first = [(data.labels == label).nonzero()[0].item() for label in range(10)]
    return data.images[first].float() / 127.5 - 1


@pytest.fixture
def hub(tmp_path):
    """
    An empty Hub on 127.0.0.1, and the environment in which the real client asks it with an empty
    cache and no token.
    """
    from hub_server import serve_hub  # needs uvicorn, which a machine for GPU tests may lack

    with serve_hub() as hub:
        yield hub, make_hub_environment(hub, tmp_path / "cache")


def make_hub_environment(hub, cache):
    """The environment in which the real client asks a Hub, with its own cache and no token."""
    env = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
    return {**env, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
