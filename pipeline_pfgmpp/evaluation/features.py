"""
The features that images are compared by.

They come from a module with `extract(images)`, which maps images in [-1, 1] of shape
`(batch, C, H, W)` to vectors of shape `(batch, K)`. A module that knows classes has
`to_logits(features)` too.
"""

import hashlib
import itertools
import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from ..records.errors import get_first_line
from ..records.writing import replace_file
from .classifier import CLASSIFIERS, WEIGHTS, ImageClassifier
from .inception import InceptionV3


# The weights that FID is measured with, ported from the TensorFlow graph. The digits at the end are
# their checksum, which torch checks.
INCEPTION_WEIGHTS = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"


def _to_pixels(images: torch.Tensor) -> torch.Tensor:
    """Convert images in [-1, 1] to three channels of whole numbers in [0, 255]."""
    return ((images.expand(-1, 3, -1, -1) + 1) * 127.5).round()


class TorchScriptFeatures(nn.Module):
    """
    Features of a compiled network that takes images in [0, 255].

    Args:
        script (`torch.jit.ScriptModule`): The network. If it has an argument `return_features`, that is
            set to True.
    """

    def __init__(self, script: torch.jit.ScriptModule):
        super().__init__()
        self.script = script
        names = [argument.name for argument in script.forward.schema.arguments]
        self.options = {"return_features": True} if "return_features" in names else {}

    def extra_repr(self) -> str:
        """Return the code of the network, so that its digest depends on it."""
        return self.script.code

    def extract(self, images: torch.Tensor) -> torch.Tensor:
        """
        Extract features.

        Args:
            images (`torch.Tensor` of shape `(batch, 1 or 3, H, W)`): Images in [-1, 1].

        Returns:
            `torch.Tensor` of shape `(batch, K)`: The features.
        """
        return self.script(_to_pixels(images), **self.options).flatten(1)


class LPIPS(nn.Module):
    r"""
    The learned perceptual distance of Zhang et al. (https://huggingface.co/papers/1801.03924),

    $$d(x, y) = \lVert \phi(x) - \phi(y) \rVert^2,$$

    where $\phi$ holds the normalised and weighted activations of VGG's layers.

    Args:
        script (`torch.jit.ScriptModule`): A network that returns $\phi$ of images in [0, 255] if its argument
            `return_lpips` is True, as the `vgg16.pt` of StyleGAN2-ADA does.

    Raises:
        ValueError: The network has no such argument.
    """

    def __init__(self, script: torch.jit.ScriptModule):
        super().__init__()
        names = [argument.name for argument in script.forward.schema.arguments]
        if "return_lpips" not in names:
            raise ValueError(
                f"A program for LPIPS must take `return_lpips`, but this one takes {', '.join(names[1:])}."
            )
        self.script = script
        self.options = {"return_lpips": True}
        if "resize_images" in names:
            self.options["resize_images"] = False

    def forward(self, images: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """
        Compute the distances between images.

        Args:
            images (`torch.Tensor` of shape `(batch, 1 or 3, H, W)`): Images in [-1, 1].
            truth (`torch.Tensor`): Others in the same shape.

        Returns:
            `torch.Tensor` of shape `(batch,)`: The distances.
        """
        first, second = (self.script(_to_pixels(each), **self.options).flatten(1) for each in (images, truth))
        return (first - second).square().sum(1)


class BackboneFeatures(nn.Module):
    """
    Features of a vision model of transformers: its pooled output, or its first token if it has none.

    Args:
        name (`str`): A Hub id or a folder.
    """

    def __init__(self, name: str):
        from transformers import AutoImageProcessor, AutoModel

        super().__init__()
        self.processor = AutoImageProcessor.from_pretrained(name)
        model = AutoModel.from_pretrained(name, use_safetensors=True, dtype=torch.float32)
        self.model = getattr(model, "vision_model", model)  # CLIP and its like have a text model too

    def extra_repr(self) -> str:
        """Return the preprocessing, so that the digest depends on it."""
        return self.processor.to_json_string()

    def extract(self, images: torch.Tensor) -> torch.Tensor:
        """
        Extract features of images that the model's own processor prepares.

        Args:
            images (`torch.Tensor` of shape `(batch, 1 or 3, H, W)`): Images in [-1, 1].

        Returns:
            `torch.Tensor` of shape `(batch, K)`: The features.
        """
        pixels = _to_pixels(images).to("cpu", torch.uint8)
        inputs = self.processor(list(pixels), return_tensors="pt")["pixel_values"]
        output = self.model(pixel_values=inputs.to(images.device))
        pooled = getattr(output, "pooler_output", None)
        if pooled is None:
            return output.last_hidden_state[:, 0]
        return pooled.flatten(1)


def load_features(
    name: str, device: torch.device | str = "cpu", trust_remote_code: bool = False
) -> nn.Module:
    """
    Load a network that extracts features from images.

    Args:
        name (`str`): One of

            - `"fashion-mnist"` or `"emoji"`: a small classifier in this package;
            - `"inception"`: the network of FID, with weights that are downloaded once;
            - a file, by its path or as `org/name/file` on the Hub: weights of that network
              (`.safetensors`, or `.pth` with nothing but tensors) or a TorchScript program;
            - the Hub id or folder of a vision model of transformers, such as `facebook/dinov2-large`
              for FD-DINOv2.
        device (`torch.device`, defaults to the CPU): Device of the network.
        trust_remote_code (`bool`, defaults to `False`): Whether a TorchScript program may run.

    Returns:
        `nn.Module`: The network, in evaluation mode.

    Raises:
        OSError: There is no such file or model.
        ValueError: The file does not hold such a network, or holds a program that may not run.
    """
    extractor: nn.Module
    if name in CLASSIFIERS:
        extractor = ImageClassifier.from_pretrained(WEIGHTS / name)
    elif name == "inception":
        weights = torch.hub.load_state_dict_from_url(
            INCEPTION_WEIGHTS, weights_only=True, check_hash=True, map_location="cpu"
        )
        extractor = _make_inception(weights, name)
    elif Path(name).suffix in (".safetensors", ".pth", ".pt"):
        extractor = _load_file(_find_file(name), name, trust_remote_code)
    else:
        extractor = BackboneFeatures(name)
    return extractor.eval().requires_grad_(False).to(device)


def load_lpips(name: str, device: torch.device | str = "cpu", trust_remote_code: bool = False) -> LPIPS:
    """
    Load a network that measures LPIPS.

    Args:
        name (`str`): A TorchScript program as [`LPIPS`] takes it: a file, by its path or as `org/name/file`
            on the Hub.
        device (`torch.device`, defaults to the CPU): Device of the network.
        trust_remote_code (`bool`, defaults to `False`): Whether the program may run.

    Returns:
        [`LPIPS`]: The network.

    Raises:
        OSError: There is no such file.
        ValueError: The file holds no such program, or one that may not run.
    """
    path = _find_file(name)
    if not _is_torchscript(path):
        raise ValueError(f"{name} is not a TorchScript program.")
    network = LPIPS(_load_script(path, name, trust_remote_code))
    return network.eval().requires_grad_(False).to(device)


def _load_script(path: str, name: str, trust_remote_code: bool) -> torch.jit.ScriptModule:
    """Load a TorchScript program if it may run."""
    if not trust_remote_code:
        raise ValueError(f"{name} is a TorchScript program, which runs only with trust_remote_code.")
    return torch.jit.load(path, map_location="cpu")


def _find_file(name: str) -> str:
    """Return the path of a local file, or download it from the Hub if there is none."""
    if os.path.exists(name):
        return name
    organisation, _, rest = name.partition("/")
    repository, _, file = rest.partition("/")
    if not file or name.startswith((".", "/")):
        raise ValueError(
            f"There is no file {name}, and it does not name one on the Hub, as organisation/name/file does."
        )
    from huggingface_hub import hf_hub_download

    return hf_hub_download(f"{organisation}/{repository}", file)


def _load_file(path: str, name: str, trust_remote_code: bool) -> nn.Module:
    """Load weights of Inception or a TorchScript program from a file."""
    from safetensors.torch import load_file

    is_safe = Path(name).suffix == ".safetensors"
    if not is_safe and _is_torchscript(path):
        return TorchScriptFeatures(_load_script(path, name, trust_remote_code))
    try:
        weights = load_file(path) if is_safe else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = get_first_line(error)
        raise ValueError(
            f"{name} is damaged, holds more than tensors, or was not written by torch.save: {reason}"
        ) from None
    return _make_inception(weights, name)


def _is_torchscript(path: str) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(entry.endswith("/constants.pkl") for entry in archive.namelist())


def _make_inception(weights: Any, name: str) -> InceptionV3:
    """Make the network of FID with weights that a file is said to hold."""
    extractor = InceptionV3()
    try:
        extractor.load_state_dict(weights)
    except (AttributeError, RuntimeError, TypeError):
        raise ValueError(f"{name} does not hold the weights of FID's Inception network.") from None
    return extractor


def find_device(network: nn.Module) -> torch.device:
    """
    Find where a network computes.

    Args:
        network (`nn.Module`): The network; a program of TorchScript may have buffers alone, or neither.

    Returns:
        `torch.device`: The device.
    """
    tensors = itertools.chain(network.parameters(), network.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


@torch.no_grad()
def extract_features(
    extractor: nn.Module, images: torch.Tensor, batch_size: int = 250, desc: str | None = None
) -> torch.Tensor:
    """
    Extract features of many images.

    Args:
        extractor (`nn.Module`): The network, from [`load_features`].
        images (`torch.Tensor` of shape `(M, C, H, W)`, uint8): The images.
        batch_size (`int`, defaults to 250): Images per batch.
        desc (`str`, *optional*): Label of the progress bar; by default no bar is shown.

    Returns:
        `torch.Tensor` of shape `(M, K)`: The features, on the CPU.
    """
    device = find_device(extractor)
    batches = tqdm(images.split(batch_size), desc=desc, unit="batch", disable=desc is None)
    return torch.cat([extractor.extract(batch.to(device).float() / 127.5 - 1).cpu() for batch in batches])


def digest_images(extractor: nn.Module, images: torch.Tensor) -> str:
    """
    Digest real images together with the network that extracts their features.

    Args:
        extractor (`nn.Module`): The network, from [`load_features`].
        images (`torch.Tensor` of shape `(M, C, H, W)`, uint8): The real images.

    Returns:
        `str`: A digest that differs for other images and for another network.
    """
    digest = hashlib.sha256(f"{images.shape}{extractor!r}".encode())
    for tensor in (images, *extractor.state_dict().values()):
        digest.update(tensor.cpu().contiguous().numpy())
    return digest.hexdigest()[:16]


def extract_features_once(extractor: nn.Module, images: torch.Tensor, digest: str) -> torch.Tensor:
    """
    Extract features of real images, or load them from the cache of `datasets` if they are there.

    Args:
        extractor (`nn.Module`): The network, from [`load_features`].
        images (`torch.Tensor` of shape `(M, C, H, W)`, uint8): The images.
        digest (`str`): Their digest, from [`digest_images`], which names them in the cache.

    Returns:
        `torch.Tensor` of shape `(M, K)`: The features, on the CPU.
    """
    import datasets
    from safetensors.torch import load_file, save_file

    folder = Path(datasets.config.HF_DATASETS_CACHE) / "pipeline_pfgmpp"
    path = folder / f"features-{digest}.safetensors"
    if not path.is_file():
        features = extract_features(extractor, images, desc="Features of the real images")
        with replace_file(path) as partial:
            save_file({"features": features}, partial)
    return load_file(path)["features"]
