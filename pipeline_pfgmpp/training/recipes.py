"""
Recipes that go with the networks of the same names in [`PFGMPPUNet2DModel.from_preset`]: arguments
of train_accelerate.py, which a command line overrides (https://huggingface.co/papers/2206.00364,
tab. 7; https://huggingface.co/papers/2302.04265, app. C; the last two are ours). `fine-tuning` goes
with a pretrained network of whatever kind.
"""

# What a pretrained network brings itself, whatever recipe it is trained by: None is as it has it.
OF_THE_NETWORK = dict.fromkeys(("D", "resolution", "class_conditional", "label_dropout"))

_PUBLISHED = {"lr_warmup_images": 10_000_000, "max_grad_norm": 0.0}
_CIFAR10 = {**_PUBLISHED, "train_batch_size": 512, "learning_rate": 1e-3, "resolution": 32, "augment": 0.12}

RECIPES = {
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
    "fashion-mnist-small": {
        "train_batch_size": 64,
        "learning_rate": 2e-3,
        "lr_scheduler": "cosine",
        "lr_warmup_images": 12_800,
        "resolution": 28,
    },
    "fine-tuning": {
        **OF_THE_NETWORK,
        "train_batch_size": 32,
        "learning_rate": 3e-4,
        "lr_warmup_images": 320,
    },
}
