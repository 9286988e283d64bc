"""
Training recipes: arguments of train_accelerate.py, which a command line overrides.

Each recipe goes with the network of the same name in [`PFGMPPUNet2DModel.from_preset`]
(https://huggingface.co/papers/2206.00364, tab. 7; https://huggingface.co/papers/2302.04265, app. C;
https://huggingface.co/papers/2312.09754 for `ppfm-ct`).
`imagenet256-latent` and `emoji-small` (latents of 4 channels; 32x32 and 16x16), `fashion-mnist-small` and
the recipes of `TUNING`, which fit any pretrained network, are this package's own. `consistency-tuning`
turns a denoiser into a model of few calls (https://huggingface.co/papers/2406.14548), and `matching` trains
that model further (after https://huggingface.co/papers/2405.14867).
"""

import math
from typing import Any


# Arguments that a pretrained network answers itself, whatever the recipe; None leaves its answer.
INHERITED = dict.fromkeys(("D", "resolution", "class_conditional", "label_dropout"))

_PUBLISHED: dict[str, Any] = {"lr_warmup_images": 10_000_000, "max_grad_norm": 0.0}
_CIFAR10: dict[str, Any] = {
    **_PUBLISHED,
    "train_batch_size": 512,
    "learning_rate": 1e-3,
    "resolution": 32,
    "augment": 0.12,
}

RECIPES: dict[str, dict[str, Any]] = {
    "cifar10-ncsnpp": _CIFAR10,
    "cifar10-ddpmpp": _CIFAR10,
    "ffhq64-ddpmpp": {
        **_PUBLISHED,
        "train_batch_size": 256,
        "learning_rate": 2e-4,
        "resolution": 64,
        "augment": 0.15,
    },
    "imagenet64-adm": {
        **_PUBLISHED,
        "train_batch_size": 4096,
        "learning_rate": 1e-4,
        "resolution": 64,
        "class_conditional": True,
        "ema_halflife": [50_000_000.0],
    },
    "imagenet256-latent": {
        **_PUBLISHED,
        "train_batch_size": 2048,
        "learning_rate": 1e-4,
        "resolution": 256,
        "class_conditional": True,
        "label_dropout": 0.1,
        "random_flip": True,
        "ema_halflife": [50_000_000.0],
    },
    "ppfm-ct": {
        **_PUBLISHED,
        "train_batch_size": 32,
        "learning_rate": 2e-4,
        "crop_size": 256,
        "random_flip": True,
        "random_turn": True,
        "augment": 0.15,
        # Large images need more noise: all levels are 380/80 times those of small ones.
        "sigma_max": 380.0,
        "P_mean": -1.2 + math.log(380 / 80),
    },
    "emoji-small": {
        "train_batch_size": 64,
        "learning_rate": 1e-3,
        "lr_warmup_images": 12_800,
        "resolution": 64,
    },
    "fashion-mnist-small": {
        "train_batch_size": 64,
        "learning_rate": 2e-3,
        "lr_scheduler": "cosine",
        "lr_warmup_images": 12_800,
        "resolution": 28,
    },
    "fine-tuning": {
        **INHERITED,
        "train_batch_size": 32,
        "learning_rate": 3e-4,
        "lr_warmup_images": 320,
    },
    "consistency-tuning": {
        **INHERITED,
        "objective": "consistency",
        "train_batch_size": 64,
        "learning_rate": 3e-4,
        "lr_scheduler": "linear",
        "lr_warmup_images": 320,
    },
    "matching": {
        **INHERITED,
        "objective": "matching",
        "train_batch_size": 32,
        "learning_rate": 5e-5,
        "lr_scheduler": "linear",
        "lr_warmup_images": 640,
        "adam_beta1": 0.0,
        "adam_beta2": 0.99,
        "ema_rampup": 0.2,
    },
}
LATENT = ("imagenet256-latent", "emoji-small")  # the recipes of networks for latents
TUNING = ("fine-tuning", "consistency-tuning", "matching")  # the recipes for a pretrained network
