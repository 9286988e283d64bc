"""Calls of a pipeline in one thread: they report progress, and stop when nobody waits for them any more."""

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from typing import Any, NamedTuple

import torch
from checks import Refusal

from pipeline_pfgmpp import PFGMPPPipeline
from pipeline_pfgmpp.generation import inject_noise


try:
    import spaces  # installed on the Hub

    lend_gpu = spaces.GPU  # reserves a shared GPU for the function that it decorates
except ImportError:

    def lend_gpu(function: Callable) -> Callable:
        """Return the function: elsewhere there is no shared GPU to reserve."""
        return function


PAUSE = 0.7  # seconds between the intermediate results of a run


def start_worker() -> None:
    """
    Start the thread that computes. It is always the same one: PyTorch prepares convolutions for a processor
    once per thread, which takes as long as half a call of the network.
    """
    global _jobs
    _jobs = queue.SimpleQueue()
    threading.Thread(target=_do_jobs, args=(_jobs,), daemon=True).start()


def _do_jobs(jobs: queue.SimpleQueue[tuple[Callable[[], Any], Future]]) -> None:
    while True:
        function, future = jobs.get()
        try:
            future.set_result(function())
        except Exception as error:
            future.set_exception(error)


start_worker()
os.register_at_fork(after_in_child=start_worker)  # threads do not survive a fork, by which a GPU is lent


def submit(function: Callable[[], Any]) -> Future:
    """
    Let the worker thread call a function.

    Args:
        function (`Callable`): The function.

    Returns:
        `Future`: Of what it returns or raises.
    """
    future: Future = Future()
    _jobs.put((function, future))
    return future


def reserve_cores() -> None:
    """
    Let no thread but the worker compute on several cores. OpenMP keeps threads for every one that does, and
    as soon as there are more of them than cores, it lets them sleep between operations: a call of the network
    would take half as long again. It does not outlast a fork, after which a GPU computes.
    """
    threads = torch.get_num_threads()
    submit(torch.get_num_threads).result()  # or else PyTorch would set the worker's number later, to 1
    submit(lambda: torch.set_num_threads(threads)).result()
    torch.set_num_threads(1)  # for this thread and those to come


class Progress(NamedTuple):
    """
    How far a run has come.

    Args:
        calls (`int`): Network calls so far.
        total (`int`): Network calls of the whole run.
        images (`torch.Tensor`): The denoised images so far; after the last call, the result.
    """

    calls: int
    total: int
    images: torch.Tensor

    @property
    def finished(self) -> bool:
        """Whether the run is over: these images are its result."""
        return self.calls == self.total


def run_pipeline(
    pipe: PFGMPPPipeline,
    count: int,
    callback_on_step_end: Callable[..., dict] | None = None,
    **settings: Any,
) -> Iterator[Progress]:
    """
    Call a pipeline in the worker thread and report its progress.

    Closing this generator, as the Cancel button does, stops the pipeline after the current network
    call.

    Args:
        pipe ([`PFGMPPPipeline`]): The pipeline, which no other request uses.
        count (`int`): Images.
        callback_on_step_end (`Callable`, *optional*): As of the pipeline's call.
        settings: Further arguments of the pipeline's call.

    Yields:
        [`Progress`]: Every `PAUSE` seconds, and at the end.

    Raises:
        Refusal: The pipeline does not accept its arguments.
    """
    results: queue.SimpleQueue[Progress | None] = queue.SimpleQueue()
    shown = time.monotonic()

    def report(pipe: PFGMPPPipeline, index: int, timestep: Any, tensors: dict) -> dict:
        nonlocal shown
        total = len(pipe.scheduler.timesteps)
        if index + 1 < total and time.monotonic() - shown > PAUSE:
            results.put(Progress(index + 1, total, pipe.decode_latents(tensors["pred_original_sample"])))
            shown = time.monotonic()
        if callback_on_step_end is None:
            return {}
        return callback_on_step_end(pipe, index, timestep, tensors)

    def call() -> Progress:
        output = pipe(
            count,
            output_type="latent",
            callback_on_step_end=report,
            callback_on_step_end_tensor_inputs=["latents", "pred_original_sample"],
            **settings,
        )
        total = len(pipe.scheduler.timesteps)
        return Progress(total, total, pipe.decode_latents(output.images))

    job = submit(call)
    job.add_done_callback(lambda job: results.put(None))
    try:
        yield from iter(results.get, None)
        yield job.result()
    except ValueError as error:
        raise Refusal(str(error)) from None
    finally:
        pipe._interrupt = True  # how diffusers' pipelines are asked to stop
        wait([job])


def draw_seeds(
    pipe: PFGMPPPipeline, seeds: list[int], D: float, noise: float = 0.0, **settings: Any
) -> Iterator[Progress]:
    """
    Draw one image per seed, undisturbed or disturbed.

    Args:
        pipe ([`PFGMPPPipeline`]): The pipeline, which no other request uses.
        seeds (`list[int]`): The seeds.
        D (`float`): The augmented dimension.
        noise (`float`, defaults to 0): Factor of the noise that is injected before each step.
        settings: Further arguments of the pipeline's call.

    Yields:
        [`Progress`]: As [`run_pipeline`].

    Raises:
        Refusal: The pipeline does not accept its arguments.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    if noise:
        settings |= inject_noise(pipe, seeds, generators, noise, D)
    yield from run_pipeline(pipe, len(seeds), D=D, generator=generators, **settings)


def count_calls(pipe: PFGMPPPipeline, steps: int, guidance: float = 1.0) -> int:
    """
    Count the network calls per image.

    Args:
        pipe ([`PFGMPPPipeline`]): The pipeline.
        steps (`int`): Steps of the solver.
        guidance (`float`, defaults to 1): The guidance scale; any other than 1 doubles the calls.

    Returns:
        `int`: The number of calls.
    """
    pipe.scheduler.set_timesteps(steps)
    calls = len(pipe.scheduler.timesteps)
    return calls if guidance == 1 else 2 * calls
