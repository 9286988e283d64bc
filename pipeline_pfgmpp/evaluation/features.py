"""
The features that images are compared by: of a module with `features(images)`, which maps images in
[-1, 1] of shape (batch, C, H, W) to vectors of shape (batch, K), and `to_logits(features)` where it
knows classes.
"""

import hashlib
import os
from pathlib import Path

import torch
from torch import nn
from tqdm.auto import tqdm

from ..records.writing import replace_file
from .fashion_mnist_classifier import WEIGHTS, FashionMNISTClassifier
from .inception import InceptionV3


# The weights that FID is measured with, ported from the TensorFlow graph; torch checks the digits
# in the name.
INCEPTION_WEIGHTS = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"


def _pixels(images):
    """Images in [-1, 1] as whole numbers in [0, 255], of three channels."""
    return ((images.expand(-1, 3, -1, -1) + 1) * 127.5).round()


class TorchScriptFeatures(nn.Module):
    """
    A compiled network that maps images in [0, 255] to features.

    Args:
        script (`torch.jit.ScriptModule`): It; one that takes `return_features` is asked for its
            features so.
    """

    def __init__(self, script: torch.jit.ScriptModule):
        super().__init__()
        self.script = script
        names = [argument.name for argument in script.forward.schema.arguments]
        self.options = {"return_features": True} if "return_features" in names else {}

    def extra_repr(self):
        return self.script.code

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Features of images in [-1, 1]; grey ones are shown to it in three channels."""
        return self.script(_pixels(images), **self.options).flatten(1)


class BackboneFeatures(nn.Module):
    """
    A vision model of transformers: its pooled output, or its first token where it pools nothing.

    Args:
        name (`str`): A Hub id or a folder.
    """

    def __init__(self, name: str):
        from transformers import AutoImageProcessor, AutoModel

        super().__init__()
        self.processor = AutoImageProcessor.from_pretrained(name)
        self.model = AutoModel.from_pretrained(name, use_safetensors=True, dtype=torch.float32)
        self.model = getattr(self.model, "vision_model", self.model)  # of a model of images and texts

    def extra_repr(self):
        return self.processor.to_json_string()

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Features of images in [-1, 1], prepared as the model's own processor does."""
        pixels = _pixels(images).to("cpu", torch.uint8)
        inputs = self.processor(list(pixels), return_tensors="pt")["pixel_values"]
        output = self.model(pixel_values=inputs.to(images.device))
        pooled = getattr(output, "pooler_output", None)
        return output.last_hidden_state[:, 0] if pooled is None else pooled.flatten(1)


def load_features(
    name: str, device: torch.device | str = "cpu", trust_remote_code: bool = False
) -> nn.Module:
    """
    Loads what turns images into features.

    Args:
        name (`str`): `"fashion-mnist"`, the small classifier in this package; `"inception"`, the
            network of FID, whose weights are fetched once; a file of its weights (`.safetensors`,
            or `.pth` with nothing but tensors) or of a TorchScript program, by path or as
            `org/name/file` on the Hub; or the Hub id or folder of a vision model of transformers,
            such as `facebook/dinov2-large` for FD-DINOv2.
        device (`torch.device`, defaults to the CPU): Where it runs.
        trust_remote_code (`bool`, defaults to `False`): Whether a TorchScript program may run.

    Returns:
        `nn.Module`: It, in evaluation mode.

    Raises:
        OSError: There is no such file or model.
        ValueError: The file holds something else, or a program that may not run.
    """
    if name == "fashion-mnist":
        extractor = FashionMNISTClassifier.from_pretrained(WEIGHTS)
    elif name == "inception":
        weights = torch.hub.load_state_dict_from_url(
            INCEPTION_WEIGHTS, weights_only=True, check_hash=True, map_location="cpu"
        )
        extractor = _inception(weights, name)
    elif Path(name).suffix in (".safetensors", ".pth", ".pt"):
        extractor = _from_file(_local(name), name, trust_remote_code)
    else:
        extractor = BackboneFeatures(name)
    return extractor.eval().requires_grad_(False).to(device)


def _local(name):
    """The path of a file, fetched from the Hub where there is none of this name here."""
    if os.path.exists(name):
        return name
    organisation, _, rest = name.partition("/")
    repository, _, file = rest.partition("/")
    if not file or name.startswith((".", "/")):
        raise ValueError(f"There is no file {name}, nor is that a file of the Hub, organisation/name/file.")
    from huggingface_hub import hf_hub_download

    return hf_hub_download(f"{organisation}/{repository}", file)


def _from_file(path, name, trust_remote_code):
    import zipfile

    from safetensors.torch import load_file

    if Path(name).suffix == ".safetensors":
        return _inception(load_file(path), name)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            compiled = any(entry.endswith("/constants.pkl") for entry in archive.namelist())
        if compiled and not trust_remote_code:
            raise ValueError(f"{name} is a TorchScript program, which runs only with trust_remote_code.")
        if compiled:
            return TorchScriptFeatures(torch.jit.load(path, map_location="cpu"))
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{name} holds more than tensors, or is no file of torch: {str(error).splitlines()[0]}"
        ) from None
    return _inception(weights, name)


def _inception(weights, name):
    extractor = InceptionV3()
    try:
        extractor.load_state_dict(weights)
    except (AttributeError, RuntimeError, TypeError):
        raise ValueError(f"{name} does not hold the weights of FID's Inception network.") from None
    return extractor


@torch.no_grad()
def image_features(
    extractor: nn.Module, images: torch.Tensor, batch_size: int = 250, desc: str | None = None
) -> torch.Tensor:
    """
    Features of many images.

    Args:
        extractor (`nn.Module`): What [`load_features`] returned.
        images (`torch.Tensor` of shape `(M, C, H, W)`, uint8): Images.
        batch_size (`int`, defaults to 250): Images at a time.
        desc (`str`, *optional*): What stands before the progress bar; without it there is none.

    Returns:
        `torch.Tensor` of shape `(M, K)`: The features, on the CPU.
    """
    device = next(extractor.parameters()).device
    batches = tqdm(images.split(batch_size), desc=desc, unit="batch", disable=desc is None)
    return torch.cat([extractor.features(batch.to(device).float() / 127.5 - 1).cpu() for batch in batches])


def digest_images(extractor: nn.Module, images: torch.Tensor) -> str:
    """
    Tells apart what images are measured against: other images or other features have another digest.

    Args:
        extractor (`nn.Module`): What [`load_features`] returned.
        images (`torch.Tensor` of shape `(M, C, H, W)`, uint8): The real images.

    Returns:
        `str`: The digest.
    """
    digest = hashlib.sha256(f"{images.shape}{extractor!r}".encode())
    for tensor in (images, *extractor.state_dict().values()):
        digest.update(tensor.cpu().contiguous().numpy())
    return digest.hexdigest()[:16]


def cached_features(extractor: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """
    Features of real images, computed once and kept in the cache of `datasets`, under a digest of
    the images and the network.

    Args:
        extractor (`nn.Module`): What [`load_features`] returned.
        images (`torch.Tensor` of shape `(M, C, H, W)`, uint8): Images.

    Returns:
        `torch.Tensor` of shape `(M, K)`: The features, on the CPU.
    """
    import datasets
    from safetensors.torch import load_file, save_file

    name = f"features-{digest_images(extractor, images)}.safetensors"
    path = Path(datasets.config.HF_DATASETS_CACHE) / "pipeline_pfgmpp" / name
    if not path.is_file():
        features = image_features(extractor, images, desc="Features of the real images")
        with replace_file(path) as partial:
            save_file({"features": features}, partial)
    return load_file(path)["features"]
