"""Run by torchrun: training with weights sharded by FSDP gives the same result as training without."""

import sys

import torch
from torch.distributed import init_process_group
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from pipeline_pfgmpp import PFGMPPUNet2DModel
from pipeline_pfgmpp.training import HalfLifeEMA, replace_nonfinite_gradients
from pipeline_pfgmpp.unet_pfgmpp import UNetBlock


def train(shard):
    """Train for three steps, one of them with a gradient that is not finite, and average the weights."""
    torch.manual_seed(0)
    unet = PFGMPPUNet2DModel.from_preset("fashion-mnist-small", sample_size=8, model_channels=16)
    if shard:
        for module in unet.modules():
            if isinstance(module, UNetBlock):
                fully_shard(module, mesh=mesh)
        fully_shard(unet, mesh=mesh)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-3, eps=1e-6, fused=True)
    ema = HalfLifeEMA(unet.parameters(), 4, halflife=20)
    replaced = 0
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    for step in range(3):
        unet(images, torch.zeros(4)).sample.sub(images).square().mean().backward()
        if step == 1:
            unet.map_layer0.bias.grad.fill_(torch.nan)
        replaced += replace_nonfinite_gradients(unet.parameters())
        optimizer.step()
        optimizer.zero_grad()
        ema.step(unet.parameters())
    again = HalfLifeEMA(unet.parameters(), 4, halflife=20)
    again.load_state_dict(ema.state_dict())
    again.store(unet.parameters())
    again.copy_to(unet.parameters())
    averaged = [p.full_tensor() if shard else p.detach().clone() for p in unet.parameters()]
    again.restore(unet.parameters())
    return ema.state_dict(), averaged, replaced


init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))
state, averaged, replaced = train(shard=True)
wanted, _, wanted_replaced = train(shard=False)
assert state["optimization_step"] == wanted["optimization_step"] == 3
assert replaced == wanted_replaced == 64
for tensors in (state["shadow_params"], averaged):
    torch.testing.assert_close(
        tensors, [tensor.detach() for tensor in wanted["shadow_params"]], atol=1e-5, rtol=0
    )
sys.stdout.write("as without\n")
