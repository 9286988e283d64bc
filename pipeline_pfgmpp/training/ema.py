r"""
Moving averages of the weights, on diffusers' [`EMAModel`]: EDM's, whose half-life is counted in
images, and EDM2's power function, whose width can be chosen when training is over:

    python -m pipeline_pfgmpp.training.ema outputs/run --width 0.08    # writes it beside the run's
    weights, as a variant
"""

import argparse
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor, distribute_tensor

from ..records.writing import replace_file


class _ShardedEMAModel(EMAModel):
    """diffusers' average, also of parameters that FSDP shards: then its state is saved whole."""

    def __init__(self, parameters):
        parameters = list(parameters)
        super().__init__(
            parameters, foreach=not any(isinstance(parameter, DTensor) for parameter in parameters)
        )

    def state_dict(self):
        """The state, the same on every process; under FSDP every process calls it."""
        state = super().state_dict()
        whole = [
            tensor.full_tensor() if isinstance(tensor, DTensor) else tensor for tensor in self.shadow_params
        ]
        return {**state, "shadow_params": whole}

    def load_state_dict(self, state_dict):
        """Takes the state, each process its shards."""
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
        batch_size (`int`): Images in an optimisation step, over all processes and accumulated batches.
        halflife (`float`, defaults to 500_000): Longest half-life, in images.
        rampup (`float`, defaults to 0.05): Half-life as a part of the images seen so far.
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        batch_size: int,
        halflife: float = 500_000,
        rampup: float = 0.05,
    ):
        super().__init__(parameters)
        self.batch_size, self.halflife, self.rampup = batch_size, halflife, rampup

    def get_decay(self, optimization_step: int) -> float:
        """Decay of the given step, counted from 1."""
        images_seen = optimization_step * self.batch_size
        return 0.5 ** (self.batch_size / min(self.halflife, self.rampup * images_seen))


class PowerFunctionEMA(_ShardedEMAModel):
    r"""
    EDM2's average: decay $(1 - 1/t)^{\gamma + 1}$ at step t, so that the weights of step $\tau$
    count as $\tau^\gamma$ and the average is as wide, relative to the training, at every time
    (https://huggingface.co/papers/2312.02696, sec. 3.1).

    Args:
        parameters (`Iterable[torch.nn.Parameter]`): The parameters to average.
        width (`float`): Standard deviation of the profile as a part of the training, sigma_rel of
            the paper; in (0, 0.289).
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], width: float):
        super().__init__(parameters)
        self.width, self.exponent = width, power_of_width(width)

    def get_decay(self, optimization_step: int) -> float:
        """Decay of the given step, counted from 1."""
        return (1 - 1 / optimization_step) ** (self.exponent + 1)

    def save_snapshot(self, run: str | os.PathLike, step: int, names: list[str], write: bool = True) -> None:
        """
        Keeps the average as `ema/STEP-WIDTH.safetensors`; every process calls it.

        Args:
            run (`str` or `os.PathLike`): The run's folder.
            step (`int`): The optimisation steps done.
            names (`list[str]`): The names of the parameters.
            write (`bool`, defaults to `True`): Whether this process is the one that writes.
        """
        average = self.state_dict()["shadow_params"]
        if not write:
            return
        tensors = {name: tensor.contiguous() for name, tensor in zip(names, average)}
        path = Path(run) / "ema" / f"{step}-{self.width:g}.safetensors"
        with replace_file(path) as partial:
            save_file(tensors, partial)


def power_of_width(width: float) -> float:
    r"""
    The exponent of a power function of the given width: the largest root of
    $\sigma_{rel}^2 = (\gamma + 1) / ((\gamma + 2)^2 (\gamma + 3))$.

    Args:
        width (`float`): sigma_rel, in (0, 0.289): at the upper end all steps count alike.

    Returns:
        `float`: gamma.

    Raises:
        ValueError: The width is out of range.
    """
    if not 0 < width < 12**-0.5:
        raise ValueError(f"the width of a power function must lie in (0, 0.289), but is {width:g}.")
    return float(np.roots([1, 7, 16 - width**-2, 12 - width**-2]).real.max())


def reconstruction_weights(snapshots: Sequence[tuple[int, float]], step: int, width: float) -> torch.Tensor:
    r"""
    How to sum power-function averages into one of another width: the least-squares fit of its
    profile $p(\tau) = (\gamma + 1) \tau^\gamma / t^{\gamma + 1}$ by theirs
    (https://huggingface.co/papers/2312.02696, app. C).

    Args:
        snapshots (list of `tuple[int, float]`): Step and width of each average.
        step (`int`): Step of the wanted one.
        width (`float`): Its width.

    Returns:
        `torch.Tensor` of shape `(len(snapshots),)`, float64: The weights; they sum to 1 up to the
            error of the fit.

    Raises:
        ValueError: A width is out of range, or `step` is after the last snapshot.
    """
    if step > max(time for time, _ in snapshots):
        raise ValueError(f"`step` must not be after the last snapshot, but is {step}.")
    times = np.array([time for time, _ in snapshots] + [step], np.float64)
    powers = np.array([power_of_width(width) for _, width in [*snapshots, (step, width)]])
    total = powers[:, None] + powers + 1
    # The inner product of two profiles, in logarithms, for the powers are large
    common = np.log(np.minimum(times[:, None], times)) * total
    own = np.log(powers + 1) - (powers + 1) * np.log(times)
    products = np.exp(common + own[:, None] + own - np.log(total))
    return torch.from_numpy(np.linalg.lstsq(products[:-1, :-1], products[:-1, -1], rcond=None)[0])


def reconstruct(run: str | os.PathLike, width: float, step: int | None = None) -> dict[str, torch.Tensor]:
    """
    The power-function average of any width, from a run's snapshots.

    Args:
        run (`str` or `os.PathLike`): The run's folder, with the snapshots in `ema/`.
        width (`float`): sigma_rel, in (0, 0.289).
        step (`int`, *optional*): The optimisation step of which to take it; by default that of the
            last snapshot.

    Returns:
        `dict[str, torch.Tensor]`: The parameters by name.

    Raises:
        ValueError: There are no snapshots, or none as late as `step`, or the width is out of range.
    """
    paths = sorted((Path(run) / "ema").glob("*.safetensors"))
    if not paths:
        raise ValueError(f"{run} holds no snapshots of a power-function average (see --ema_width).")
    snapshots = [(int(time), float(found)) for time, found in (path.stem.split("-", 1) for path in paths)]
    weights = reconstruction_weights(snapshots, step or max(time for time, _ in snapshots), width)
    total = {}
    for path, weight in zip(paths, weights.tolist()):
        for name, tensor in load_file(path).items():
            total[name] = total.get(name, 0) + weight * tensor.double()
    return {name: tensor.float() for name, tensor in total.items()}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="the --output_dir of a finished training with --ema_width")
    parser.add_argument("--width", type=float, required=True, help="sigma_rel, between 0 and 0.289")
    parser.add_argument("--step", type=int, help="optimisation step (default: the last)")
    args = parser.parse_args()

    from .. import PFGMPPUNet2DModel

    try:
        parameters = reconstruct(args.run, args.width, args.step)
        unet = PFGMPPUNet2DModel.from_pretrained(args.run, subfolder="unet")
    except (ValueError, OSError) as error:
        parser.exit(1, f"{error}\n")
    unet.load_state_dict(parameters, strict=False)  # buffers are no part of an average
    variant = f"power{1000 * args.width:.0f}"  # diffusers takes letters and digits
    unet.save_pretrained(args.run / "unet", variant=variant)
    print(f'Load it with DiffusionPipeline.from_pretrained("{args.run}", variant="{variant}")')


if __name__ == "__main__":
    main()
