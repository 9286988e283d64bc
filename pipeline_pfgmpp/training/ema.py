r"""
Moving averages of the weights, on top of diffusers' [`EMAModel`].

There are two kinds: EDM's, with a half-life in images, and EDM2's power functions, whose width can
be chosen after the training from the snapshots that the run left (`pfgmpp average RUN --width W`).
"""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor, distribute_tensor

from ..pipeline_pfgmpp import PFGMPPPipeline
from ..records.writing import replace_file


SNAPSHOT = re.compile(r"([1-9][0-9]*)-([0-9]+(?:\.[0-9]+)?(?:e-[0-9]+)?)\.safetensors")  # STEP-WIDTH


class _ShardedEMAModel(EMAModel):
    """An [`EMAModel`] that also averages parameters sharded by FSDP; its state is saved unsharded."""

    shadow_params: list[torch.Tensor]

    def __init__(self, parameters: Iterable[torch.nn.Parameter]):
        parameters = list(parameters)
        sharded = any(isinstance(parameter, DTensor) for parameter in parameters)
        super().__init__(parameters, foreach=not sharded)

    def state_dict(self) -> dict:
        """Return the state, the same on every process; under FSDP every process must call this."""
        state = super().state_dict()
        state["shadow_params"] = [
            tensor.full_tensor() if isinstance(tensor, DTensor) else tensor for tensor in self.shadow_params
        ]
        return state

    def load_state_dict(self, state_dict: dict) -> None:
        """Load a state; under FSDP each process takes its own shards of it."""
        sharded = self.shadow_params
        super().load_state_dict(state_dict)
        self.shadow_params = [
            distribute_tensor(whole, shard.device_mesh, shard.placements)
            if isinstance(shard, DTensor)
            else whole.to(shard)
            for shard, whole in zip(sharded, self.shadow_params)
        ]


class HalfLifeEMA(_ShardedEMAModel):
    r"""
    EDM's average: decay $2^{-B/h}$ for batches of B images and a half-life of $h = \min(h_{max},
    \text{rampup} \cdot \text{images seen})$ (https://huggingface.co/papers/2206.00364, app. F.1).

    Args:
        parameters (`Iterable[torch.nn.Parameter]`): The parameters to average.
        batch_size (`int`): Images per optimisation step, over all processes and forward passes.
        halflife (`float`, defaults to 500,000): Longest half-life, in images.
        rampup (`float`, defaults to 0.05): Half-life as a fraction of the images seen so far.
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        batch_size: int,
        halflife: float = 500_000,
        rampup: float = 0.05,
    ):
        super().__init__(parameters)
        self.batch_size = batch_size
        self.halflife = halflife
        self.rampup = rampup

    def get_decay(self, optimization_step: int) -> float:
        """Return the decay at an optimisation step, counted from 1."""
        images_seen = optimization_step * self.batch_size
        return 0.5 ** (self.batch_size / min(self.halflife, self.rampup * images_seen))


class PowerFunctionEMA(_ShardedEMAModel):
    r"""
    EDM2's average: decay $(1 - 1/t)^{\gamma + 1}$ at step t, so that the weights of step $\tau$
    count in proportion to $\tau^\gamma$. Relative to the length of the training so far, the average
    is equally wide at every time (https://huggingface.co/papers/2312.02696, sec. 3.1).

    Args:
        parameters (`Iterable[torch.nn.Parameter]`): The parameters to average.
        width (`float`): Standard deviation of the profile as a fraction of the training, the paper's
            sigma_rel, in (0, 0.289).
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], width: float):
        super().__init__(parameters)
        self.width = width
        self.exponent = compute_exponent(width)

    def get_decay(self, optimization_step: int) -> float:
        """Return the decay at an optimisation step, counted from 1."""
        return (1 - 1 / optimization_step) ** (self.exponent + 1)

    def save_snapshot(self, run: str | os.PathLike, step: int, names: list[str], write: bool = True) -> None:
        """
        Save the average as `ema/STEP-WIDTH.safetensors`; every process must call this.

        Args:
            run (`str` or `os.PathLike`): The run's folder.
            step (`int`): Number of optimisation steps done.
            names (`list[str]`): Names of the parameters.
            write (`bool`, defaults to `True`): Whether this process writes the file.
        """
        average = self.state_dict()["shadow_params"]
        if not write:
            return
        tensors = {name: tensor.contiguous() for name, tensor in zip(names, average)}
        path = Path(run) / "ema" / f"{step}-{self.width:g}.safetensors"
        with replace_file(path) as partial:
            save_file(tensors, partial)


def compute_exponent(width: float) -> float:
    r"""
    Compute the exponent of the power function of a given width: the largest root of
    $\sigma_{rel}^2 = (\gamma + 1) / ((\gamma + 2)^2 (\gamma + 3))$.

    Args:
        width (`float`): sigma_rel, in (0, 0.289); at the upper end all steps count alike.

    Returns:
        `float`: gamma.

    Raises:
        ValueError: The width is out of range.
    """
    if not 0 < width < 12**-0.5:
        raise ValueError(f"The width of a power-function average must lie in (0, 0.289), but is {width:g}.")
    return float(np.roots([1, 7, 16 - width**-2, 12 - width**-2]).real.max())


def fit_profile(snapshots: Sequence[tuple[int, float]], step: int, width: float) -> torch.Tensor:
    r"""
    Compute the weights that sum power-function averages into one of another width.

    They are the least-squares fit of its profile $p(\tau) = (\gamma + 1) \tau^\gamma / t^{\gamma + 1}$
    by those of the snapshots (https://huggingface.co/papers/2312.02696, app. C).

    Args:
        snapshots (list of `tuple[int, float]`): Step and width of each snapshot.
        step (`int`): Step of the average to reconstruct.
        width (`float`): Its width.

    Returns:
        `torch.Tensor` of shape `(len(snapshots),)`, float64: The weights. They sum to 1 up to the
            error of the fit.

    Raises:
        ValueError: A width is out of range, or `step` is after the last snapshot.
    """
    last = max(time for time, _ in snapshots)
    if step > last:
        raise ValueError(f"`step` must not be after the last snapshot, that of step {last}, but is {step}.")
    profiles = [*snapshots, (step, width)]
    times = np.array([time for time, _ in profiles], np.float64)
    powers = np.array([compute_exponent(each) for _, each in profiles])
    # The inner product of two profiles, in logarithms because the powers are large
    total = powers[:, None] + powers + 1
    common = np.log(np.minimum(times[:, None], times)) * total
    norms = np.log(powers + 1) - (powers + 1) * np.log(times)
    products = np.exp(common + norms[:, None] + norms - np.log(total))
    solution = np.linalg.lstsq(products[:-1, :-1], products[:-1, -1], rcond=None)
    return torch.from_numpy(solution[0])


def _list_snapshots(run: Path) -> dict[Path, tuple[int, float]]:
    """List the step and the width of each snapshot of a run. Files of other names are left alone."""
    snapshots = {}
    for path in sorted((run / "ema").glob("*.safetensors")):
        match = SNAPSHOT.fullmatch(path.name)
        if match and 0 < float(match[2]) < 12**-0.5:
            snapshots[path] = (int(match[1]), float(match[2]))
    return snapshots


def combine_snapshots(
    run: str | os.PathLike, width: float, step: int | None = None
) -> dict[str, torch.Tensor]:
    """
    Combine a run's snapshots into the power-function average of any width.

    Args:
        run (`str` or `os.PathLike`): The run's folder, with the snapshots in `ema/`.
        width (`float`): sigma_rel, in (0, 0.289).
        step (`int`, *optional*): The optimisation step at which to take the average; by default that
            of the last snapshot.

    Returns:
        `dict[str, torch.Tensor]`: The parameters by name, in float32.

    Raises:
        ValueError: There are no snapshots, one is damaged, `step` is after the last one, or the width is
            out of range.
    """
    snapshots = _list_snapshots(Path(run))
    if not snapshots:
        raise ValueError(f"{run} holds no snapshots of a power-function average (see --ema_width).")
    profiles = list(snapshots.values())
    weights = fit_profile(profiles, step or max(time for time, _ in profiles), width)
    total: dict[str, torch.Tensor] = {}
    for path, weight in zip(snapshots, weights.tolist()):
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged: {error}") from None
        for name, tensor in tensors.items():
            weighted = weight * tensor.double()
            total[name] = total[name] + weighted if name in total else weighted
    return {name: tensor.float() for name, tensor in total.items()}


def reconstruct_average(run: str | os.PathLike, width: float, step: int | None = None) -> str:
    """
    Write the power-function average of any width into a finished run, as a variant of its weights.

    Args:
        run (`str` or `os.PathLike`): The run's folder, with the pipeline and the snapshots in `ema/`.
        width (`float`): sigma_rel, in (0, 0.289).
        step (`int`, *optional*): The optimisation step at which to take the average; by default that
            of the last snapshot.

    Returns:
        `str`: The name of the variant, such as `"power80"` or, at a step, `"power80step1000"`, for
            `DiffusionPipeline.from_pretrained(run, variant=...)`.

    Raises:
        OSError: The run's network cannot be loaded.
        ValueError: As [`combine_snapshots`], or the snapshots are of another network.
    """
    parameters = combine_snapshots(run, width, step)
    unet = PFGMPPPipeline.from_pretrained(run).unet
    try:
        unet.load_state_dict(parameters, strict=False)  # buffers are not averaged
    except RuntimeError as error:
        raise ValueError(f"The snapshots in {run} are not of its network: {error}") from None
    variant = f"power{1000 * width:g}".replace(".", "p")  # diffusers accepts letters and digits
    if step is not None:
        variant += f"step{step}"
    unet.save_pretrained(Path(run) / "unet", variant=variant)
    return variant
