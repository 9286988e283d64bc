"""
Compare the speed of the full-size NCSN++ with a plain transcription of its description, as ratios
from one run:

    python benchmarks/network.py

The transcription computes the same outputs, which is checked, without fused operations: attention is
two einsums around a softmax, resampling is a depthwise convolution, and tensors are contiguous. On a
GPU the network is measured compiled as well, with the share of the device's peak FLOP/s.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timing import time_rounds
from torch.utils.flop_counter import FlopCounterMode

from pipeline_pfgmpp import PFGMPPUNet2DModel
from pipeline_pfgmpp.records.commands import format_command
from pipeline_pfgmpp.records.measurements import write_measurement


# Dense peak of a GPU's matrix units in FLOP/s, by name and type, from its data sheet
PEAKS = {("H200", torch.bfloat16): 989e12, ("H100", torch.bfloat16): 989e12, ("A100", torch.bfloat16): 312e12}


class Transcription:
    """
    NCSN++ as a function of its weights and of the noise embedding's input, written part by part as it
    is described.

    Args:
        unet ([`PFGMPPUNet2DModel`]): The network whose weights are copied.
    """

    def __init__(self, unet: PFGMPPUNet2DModel):
        self.state = {
            name: tensor.detach().clone(memory_format=torch.contiguous_format)
            for name, tensor in unet.state_dict().items()
        }
        for name, _ in unet.named_parameters():
            self.state[name].requires_grad_()
        self.names = [*unet.enc, *unet.dec]
        self.encoder_size = len(unet.enc)

    def zero_grad(self) -> None:
        for tensor in self.state.values():
            tensor.grad = None

    def conv(
        self, name: str, x: torch.Tensor, up: bool = False, down: bool = False, fused: bool = False
    ) -> torch.Tensor:
        weight = self.state[f"{name}.weight"]
        bias = self.state[f"{name}.bias"]
        resample_filter = self.state.get(f"{name}.resample_filter")
        if resample_filter is not None:
            channels = len(weight) if fused else x.shape[1]
            kernel = resample_filter.to(x).repeat(channels, 1, 1, 1)
        if up:
            x = F.conv_transpose2d(x, kernel * 4, groups=x.shape[1], stride=2, padding=1)
        if down and not fused:
            x = F.conv2d(x, kernel, groups=x.shape[1], stride=2, padding=1)
        x = F.conv2d(x, weight, padding=weight.shape[-1] // 2 + int(fused))
        if fused:
            x = F.conv2d(x, kernel, groups=x.shape[1], stride=2)
        return x + bias.view(1, -1, 1, 1)

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        weight = self.state[f"{name}.weight"]
        groups = min(32, len(weight) // 4)
        return F.group_norm(x, groups, weight, self.state[f"{name}.bias"], eps=1e-6)

    def attend(self, name: str, x: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = x.shape
        qkv = self.conv(f"{name}.qkv", self.norm(f"{name}.norm2", x))
        q, k, v = qkv.reshape(batch, channels, 3, height * width).unbind(2)
        scores = torch.einsum("ncq,nck->nqk", q, k / math.sqrt(channels))
        weights = scores.float().softmax(dim=2).to(q.dtype)
        attended = torch.einsum("nqk,nck->ncq", weights, v).reshape(x.shape)
        return (x + self.conv(f"{name}.proj", attended)) * math.sqrt(0.5)

    def block(self, name: str, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        resampling = {"up": name.endswith("_up"), "down": name.endswith("_down")}
        h = self.conv(f"{name}.conv0", F.silu(self.norm(f"{name}.norm0", x)), **resampling)
        h = h + self.linear(f"{name}.affine", emb)[:, :, None, None]
        h = self.conv(f"{name}.conv1", F.silu(self.norm(f"{name}.norm1", h)))
        if f"{name}.skip.weight" in self.state:
            x = self.conv(f"{name}.skip", x, **resampling)
        x = (x + h) * math.sqrt(0.5)
        return self.attend(name, x) if f"{name}.qkv.weight" in self.state else x

    def __call__(self, x: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
        angles = c_noise.float().outer(2 * math.pi * self.state["map_noise.freqs"])
        emb = torch.cat([angles.sin(), angles.cos()], dim=1).to(x)
        emb = F.silu(self.linear("map_layer1", F.silu(self.linear("map_layer0", emb))))
        aux = x
        skips: list[torch.Tensor] = []
        for index, short in enumerate(self.names):
            name = f"{'enc' if index < self.encoder_size else 'dec'}.{short}"
            if short.endswith("_aux_residual"):
                aux = (x + self.conv(name, aux, down=True, fused=True)) * math.sqrt(0.5)
                skips[-1] = aux
                x = aux
            elif short.endswith("_aux_norm"):
                x = F.silu(self.norm(name, x))
            elif short.endswith("conv"):
                x = self.conv(name, x)
            else:
                if name.startswith("dec") and "_block" in short:
                    x = torch.cat([x, skips.pop()], dim=1)
                x = self.block(name, x, emb)
            if name.startswith("enc") and not short.endswith("_aux_residual"):
                skips.append(x)
        return x


class Contender(NamedTuple):
    """A network in one type: what computes it, on which input, and what clears its gradients."""

    run: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    image: torch.Tensor
    zero_grad: Callable[[], None]


def build_network(preset: str, device: str, **options: Any) -> PFGMPPUNet2DModel:
    """Build a network with random weights in which every part counts."""
    torch.manual_seed(0)
    unet = PFGMPPUNet2DModel.from_preset(preset, dropout=0.0, **options).to(device)
    for parameter in unet.parameters():
        if parameter.ndim > 1:  # as initialized, the last layers are near zero
            torch.nn.init.xavier_uniform_(parameter)
    return unet


def list_contenders(unet: PFGMPPUNet2DModel, x: torch.Tensor) -> dict[str, Contender]:
    """Return our network and the transcription in each type; on a GPU also our network compiled."""
    contenders = {}
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        ours = PFGMPPUNet2DModel.from_config(unet.config)
        ours.load_state_dict(unet.state_dict())
        # On a CPU the network does this itself
        ours = ours.to(x.device, dtype, memory_format=torch.channels_last)
        image = x.to(dtype, memory_format=torch.channels_last)
        transcription = Transcription(ours)
        contenders[f"transcription, {name}"] = Contender(transcription, x.to(dtype), transcription.zero_grad)
        contenders[f"ours, {name}"] = Contender(
            lambda x, t, model=ours: model(x, t).sample, image, ours.zero_grad
        )
        if x.is_cuda:
            compiled = torch.compile(ours, fullgraph=True)
            contenders[f"ours compiled, {name}"] = Contender(
                lambda x, t, model=compiled: model(x, t).sample, image, ours.zero_grad
            )
    return contenders


def run_forward(contender: Contender, c_noise: torch.Tensor) -> None:
    with torch.no_grad():
        contender.run(contender.image, c_noise)


def run_forward_and_backward(contender: Contender, c_noise: torch.Tensor) -> None:
    contender.run(contender.image, c_noise).square().mean().backward()
    contender.zero_grad()


def find_peak(dtype: torch.dtype, device: str) -> float | None:
    """Return the peak FLOP/s of this GPU in a type, if it is known."""
    if device != "cuda":
        return None
    for (name, known), peak in PEAKS.items():
        if name in torch.cuda.get_device_name() and known == dtype:
            return peak
    return None


def measure(
    contenders: dict[str, Contender], c_noise: torch.Tensor, flops: int, repeats: int
) -> list[dict[str, str | float]]:
    """Measure each of our networks against the transcription, forward and with backward."""
    results: list[dict[str, str | float]] = []
    for title, work, passes in (
        ("forward", run_forward, 1),
        ("forward and backward", run_forward_and_backward, 3),
    ):
        calls = {
            name: lambda contender=contender, work=work: work(contender, c_noise)
            for name, contender in contenders.items()
        }
        times = time_rounds(calls, repeats, title)
        median = {name: statistics.median(values) for name, values in times.items()}
        for name, contender in contenders.items():
            network, dtype = name.split(", ")
            if network == "transcription":
                continue
            entry: dict[str, str | float] = {
                "pass": title,
                "network": network,
                "dtype": dtype,
                "over_transcription": median[f"transcription, {dtype}"] / median[name],
                "over_transcription_in_float32": median["transcription, float32"] / median[name],
            }
            peak = find_peak(contender.image.dtype, c_noise.device.type)
            if peak is not None:
                entry["share_of_peak"] = passes * flops / median[name] / peak
            results.append(entry)
    return results


def format_entry(entry: dict) -> str:
    """Format one measured ratio as a line."""
    line = (
        f"{entry['network']}, {entry['dtype']}, {entry['pass']}: {entry['over_transcription']:.2f} × the"
        f" transcription in the same type, {entry['over_transcription_in_float32']:.2f} × it in float32"
    )
    if "share_of_peak" in entry:
        line += f", {entry['share_of_peak']:.0%} of peak FLOP/s"
    return line


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch_size", type=int, help="images per call (default: 16, or 256 on a GPU)")
    parser.add_argument(
        "--repeats", type=int, default=3, help="rounds, of which the median counts (default: %(default)s)"
    )
    parser.add_argument("--preset", default="cifar10-ncsnpp", help="network (default: %(default)s)")
    parser.add_argument("--json", metavar="PATH", help="also write the ratios to this file")
    args = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch_size = args.batch_size or (256 if device == "cuda" else 16)
    unet = build_network(args.preset, device)
    x = torch.randn(batch_size, 3, 32, 32, device=device)
    c_noise = torch.zeros(batch_size, device=device)
    with torch.no_grad():
        torch.testing.assert_close(
            Transcription(unet)(x, c_noise), unet(x, c_noise).sample, atol=1e-3, rtol=1e-3
        )
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(x, c_noise)

    entries = measure(list_contenders(unet, x), c_noise, counter.get_total_flops(), args.repeats)
    print(f"{args.preset}, batch {batch_size}:")
    for entry in entries:
        print(f"  {format_entry(entry)}")
    if args.json:
        command = format_command("python benchmarks/network.py", sys.argv[1:])
        results = {"preset": args.preset, "batch_size": batch_size, "ratios": entries}
        write_measurement(args.json, command, results)


if __name__ == "__main__":
    main()
