"""Loading from a Hub on 127.0.0.1 with the real client, in fresh processes."""

import shutil
import subprocess
import sys

from conftest import ROOT


PROGRAM = """
import pipeline_pfgmpp
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("org/pfgmpp-fashion-mnist")
assert type(pipe) is pipeline_pfgmpp.PFGMPPPipeline
assert type(pipe.unet) is pipeline_pfgmpp.PFGMPPUNet2DModel
print(pipe(num_inference_steps=1).images[0].size)
"""


def run(program, env):
    result = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def test_a_pipeline_loads_by_its_hub_id_and_then_from_the_cache(hub):
    root, env = hub
    folder = root / "models" / "org" / "pfgmpp-fashion-mnist"
    shutil.copytree(ROOT / "model_cards" / "pfgmpp-fashion-mnist", folder)
    assert run(PROGRAM, env) == "(28, 28)\n"
    shutil.rmtree(folder)
    assert run(PROGRAM, {**env, "HF_HUB_OFFLINE": "1"}) == "(28, 28)\n"
