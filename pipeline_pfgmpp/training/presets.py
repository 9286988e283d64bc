"""
Published recipes (https://huggingface.co/papers/2206.00364, tab. 7, https://huggingface.co/papers/2302.04265, app. C) and ours.

`network` are options of [`PFGMPPUNet2DModel`]; `training` are arguments of train_accelerate.py, which a command line overrides.
The published augmentation is not among them.
"""

_CIFAR10 = {"train_batch_size": 512, "learning_rate": 1e-3, "resolution": 32}

PRESETS = {
    "cifar10-ncsnpp": {
        "network": {
            "embedding_type": "fourier",
            "channel_mult_noise": 2,
            "encoder_type": "residual",
            "resample_filter": (1, 3, 3, 1),
        },
        "training": _CIFAR10,
    },
    "cifar10-ddpmpp": {"network": {}, "training": _CIFAR10},
    "ffhq64-ddpmpp": {
        "network": {"channel_mult": (1, 2, 2, 2), "dropout": 0.05},
        "training": {"train_batch_size": 256, "learning_rate": 2e-4, "resolution": 64},
    },
    "imagenet64-adm": {
        "network": {
            "model_type": "DhariwalUNet",
            "model_channels": 192,
            "channel_mult": (1, 2, 3, 4),
            "num_blocks": 3,
            "attn_resolutions": (32, 16, 8),
            "dropout": 0.1,
        },
        "training": {"train_batch_size": 4096, "learning_rate": 1e-4, "resolution": 64, "ema_halflife": 50_000_000},
    },
    "fashion-mnist-small": {
        "network": {"model_channels": 32, "channel_mult": (1, 2, 4), "num_blocks": 2, "attn_resolutions": (7,), "dropout": 0.0},
        "training": {"train_batch_size": 64, "learning_rate": 2e-3, "lr_scheduler": "cosine", "resolution": 28},
    },
}
