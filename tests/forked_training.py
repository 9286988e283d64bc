"""
Runs train_accelerate.py in forks of one process, which imports everything once.

The jobs come as a JSON list on standard input, each with `args` and optionally `env` (variables; None
unsets one), `max_file_size` in bytes, and `kill`: `["step", N]` kills the run without warning after
step N, and `["save", N]` while it writes checkpoint N. The results leave as a JSON list on standard
output, each with `returncode` (negative for a signal), `stdout` and `stderr`.
"""

import json
import os
import resource
import runpy
import signal
import sys
import tempfile
from pathlib import Path

import accelerate
import datasets  # noqa: F401

from pipeline_pfgmpp.training import Trainer


ROOT = Path(__file__).parent.parent


def kill_self():
    os.kill(os.getpid(), signal.SIGKILL)


def arrange_kill(moment, step):
    """Let the run kill itself, where no handler and no `finally` can see it."""
    run_step = Trainer.step
    save_state = accelerate.Accelerator.save_state

    def step_and_die(trainer):
        run_step(trainer)
        if trainer.global_step == step:
            kill_self()

    def save_and_die(accelerator, folder):
        save_state(accelerator, folder)
        if Path(folder).name == f"checkpoint-{step}":
            kill_self()

    if moment == "step":
        Trainer.step = step_and_die
    else:
        accelerate.Accelerator.save_state = save_and_die


def run_job(job):
    """Run one job in this process."""
    for name, value in job.get("env", {}).items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    if "max_file_size" in job:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["max_file_size"],) * 2)
    if "kill" in job:
        arrange_kill(*job["kill"])
    sys.argv = ["train_accelerate.py", *job["args"]]
    runpy.run_path(str(ROOT / "train_accelerate.py"), run_name="__main__")


def fork_job(job):
    """Run one job in a fork, and collect what it leaves."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        pid = os.fork()
        if pid == 0:
            os.dup2(output.fileno(), 1)
            os.dup2(errors.fileno(), 2)
            run_job(job)
            sys.exit(0)
        _, status = os.waitpid(pid, 0)
        texts = []
        for file in (output, errors):
            file.seek(0)
            texts.append(file.read().decode())
    return {"returncode": os.waitstatus_to_exitcode(status), "stdout": texts[0], "stderr": texts[1]}


if __name__ == "__main__":
    jobs = json.load(sys.stdin)
    results = [fork_job(job) for job in jobs]
    json.dump(results, sys.stdout)
