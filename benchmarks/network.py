"""
Speed of the full-size NCSN++ against a plain transcription of its description, as ratios measured
in one run:

    python benchmarks/network.py

The transcription computes the same outputs (checked) without fused operations: attention is two
einsums around a softmax,
resampling is a depthwise convolution, tensors are contiguous.
"""

import argparse
import math
import statistics

import torch
import torch.nn.functional as F
from timing import seconds
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from pipeline_pfgmpp import PFGMPPUNet2DModel


# Dense peak of an accelerator's matrix units in FLOP/s, by name and type, from its data sheet.
PEAKS = {("H200", torch.bfloat16): 989e12, ("H100", torch.bfloat16): 989e12, ("A100", torch.bfloat16): 312e12}


class Transcription:
    """
    NCSN++ as a function of the state dict and of the noise embedding's input, part by part as it is
    described.
    """

    def __init__(self, unet):
        self.state, self.names = dict(unet.state_dict(keep_vars=True)), [*unet.enc, *unet.dec]
        self.encoder_size = len(unet.enc)

    def conv(self, name, x, up=False, down=False, fused=False):
        weight, bias = self.state.get(f"{name}.weight"), self.state.get(f"{name}.bias")
        if f"{name}.resample_filter" in self.state:
            kernel = (
                self.state[f"{name}.resample_filter"]
                .to(x)
                .repeat(x.shape[1] if not fused else len(weight), 1, 1, 1)
            )
        if up:
            x = F.conv_transpose2d(x, kernel * 4, groups=x.shape[1], stride=2, padding=1)
        if down and not fused:
            x = F.conv2d(x, kernel, groups=x.shape[1], stride=2, padding=1)
        x = F.conv2d(x, weight, padding=weight.shape[-1] // 2 + (1 if fused else 0))
        if fused:
            x = F.conv2d(x, kernel, groups=x.shape[1], stride=2)
        return x + bias.view(1, -1, 1, 1)

    def linear(self, name, x):
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def norm(self, name, x):
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return F.group_norm(x, min(32, len(weight) // 4), weight, bias, eps=1e-6)

    def block(self, name, x, emb):
        resampling = {"up": name.endswith("_up"), "down": name.endswith("_down")}
        h = self.conv(f"{name}.conv0", F.silu(self.norm(f"{name}.norm0", x)), **resampling)
        h = h + self.linear(f"{name}.affine", emb)[:, :, None, None]
        h = self.conv(f"{name}.conv1", F.silu(self.norm(f"{name}.norm1", h)))
        if f"{name}.skip.weight" in self.state:
            x = self.conv(f"{name}.skip", x, **resampling)
        x = (x + h) * math.sqrt(0.5)
        if f"{name}.qkv.weight" in self.state:
            batch, channels, height, width = x.shape
            qkv = self.conv(f"{name}.qkv", self.norm(f"{name}.norm2", x))
            q, k, v = qkv.reshape(batch, channels, 3, height * width).unbind(2)
            weights = (
                torch.einsum("ncq,nck->nqk", q, k / math.sqrt(channels)).float().softmax(dim=2).to(q.dtype)
            )
            a = torch.einsum("nqk,nck->ncq", weights, v).reshape(x.shape)
            x = (x + self.conv(f"{name}.proj", a)) * math.sqrt(0.5)
        return x

    def __call__(self, x, c_noise):
        angles = c_noise.float().outer(2 * math.pi * self.state["map_noise.freqs"])
        emb = torch.cat([angles.sin(), angles.cos()], dim=1).to(x)
        emb = F.silu(self.linear("map_layer1", F.silu(self.linear("map_layer0", emb))))
        aux, skips = x, []
        for index, short in enumerate(self.names):
            name = f"{'enc' if index < self.encoder_size else 'dec'}.{short}"
            if short.endswith("_aux_residual"):
                x = skips[-1] = aux = (x + self.conv(name, aux, down=True, fused=True)) * math.sqrt(0.5)
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


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch_size", type=int, help="images at a time (default: 16, or 256 on a GPU)")
    parser.add_argument(
        "--repeats", type=int, default=3, help="interleaved rounds, of which the median counts (default: 3)"
    )
    parser.add_argument("--preset", default="cifar10-ncsnpp", help="network (default: %(default)s)")
    args = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch_size = args.batch_size or (256 if device == "cuda" else 16)
    torch.manual_seed(0)
    unet = PFGMPPUNet2DModel.from_preset(args.preset, dropout=0.0).to(device)
    for parameter in unet.parameters():
        if parameter.ndim > 1:  # the last layers begin near zero: make every part count in the check
            torch.nn.init.xavier_uniform_(parameter)
    x, c_noise = torch.randn(batch_size, 3, 32, 32, device=device), torch.zeros(batch_size, device=device)
    with torch.no_grad():
        torch.testing.assert_close(
            Transcription(unet)(x, c_noise), unet(x, c_noise).sample, atol=1e-3, rtol=1e-3
        )

    # What runs: our network and the transcription, in each type; a GPU compiles ours as well
    contenders = {}
    for dtype in (torch.float32, torch.bfloat16):
        plain = PFGMPPUNet2DModel.from_config(unet.config).to(device, dtype)
        plain.load_state_dict(unet.state_dict())
        ours = PFGMPPUNet2DModel.from_config(unet.config).to(device, dtype, memory_format=torch.channels_last)
        ours.load_state_dict(unet.state_dict())
        image, fast = x.to(dtype), x.to(dtype, memory_format=torch.channels_last)
        name = str(dtype).removeprefix("torch.")
        contenders[f"transcription, {name}"] = (Transcription(plain), image, plain)
        contenders[f"ours, {name}"] = (lambda x, t, model=ours: model(x, t).sample, fast, ours)
        if device == "cuda":
            compiled = torch.compile(ours, fullgraph=True)
            contenders[f"ours compiled, {name}"] = (
                lambda x, t, model=compiled: model(x, t).sample,
                fast,
                ours,
            )

    def forward(model, image, module):
        with torch.no_grad():
            model(image, c_noise)

    def training(model, image, module):
        model(image, c_noise).square().mean().backward()
        module.zero_grad(set_to_none=True)

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(x, c_noise)
    flops = counter.get_total_flops()

    progress = tqdm(total=2 * len(contenders) * (args.repeats + 1), desc="Measuring", leave=False)
    for title, work, passes in (("forward", forward, 1), ("forward and backward", training, 3)):
        times = {name: [] for name in contenders}
        for _ in range(
            args.repeats + 1
        ):  # interleaved, so that all see the same machine; the first round warms up
            for name, contender in contenders.items():
                times[name].append(seconds(lambda contender=contender, work=work: work(*contender)))
                progress.update()
        median = {name: statistics.median(values[1:]) for name, values in times.items()}
        progress.write(f"{title}, batch {batch_size}:")
        for name, (_, image, _) in contenders.items():
            if name.startswith("transcription"):
                continue
            same = median[f"transcription, {str(image.dtype).removeprefix('torch.')}"] / median[name]
            single = median["transcription, float32"] / median[name]
            line = (
                f"  {name:24} {same:5.2f} × the transcription in the same type, {single:5.2f} × it in float32"
            )
            peaks = [
                p
                for (gpu, t), p in PEAKS.items()
                if device == "cuda" and gpu in torch.cuda.get_device_name() and t == image.dtype
            ]
            if peaks:
                line += f", {passes * flops / median[name] / peaks[0]:.0%} of peak FLOP/s"
            progress.write(line)
    progress.close()


if __name__ == "__main__":
    main()
