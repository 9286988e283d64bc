"""
Latents of a data set: encoded once by an autoencoder, into files that are mapped into memory and found again.

An encoder gives a distribution of latents for each image. Its mean and standard deviation are stored, and a
latent is drawn from it each time that the image is read. Of a pair, the degraded image is stored as the mean
that the restoring pipeline will see. A mirrored image has latents of its own, which no mirroring of latents
gives, so that for `random_flip` both are stored:

    channels:  | mean | deviation | mean of the degraded image | the same of the mirrored image |
"""

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ModelMixin
from tqdm.auto import tqdm

from ..images import Scale
from ..latents import check_autoencoder, encode_images, get_factor
from ..records.digests import digest_network
from ..records.writing import lock, replace_folder
from .images import ImageDataset, split_images
from .transforms import split_pairs


FORMAT = 1  # of the files in the cache
VALUES = "latents.bin"  # float16: the error of rounding is far below what an autoencoder loses
BATCH = 64  # images that are read at a time


class LatentTransform:
    """
    Draws a latent from what is stored of an image.

    Args:
        channels (`int`): Channels of the latents.
        has_deviation (`bool`): Whether standard deviations are stored.
        condition_channels (`int`, defaults to 0): Channels of the latents of degraded images.
        flips (`bool`, defaults to `False`): Whether mirrored images are stored, too.
    """

    crop_size = None
    degrader = None

    def __init__(self, channels: int, has_deviation: bool, condition_channels: int = 0, flips: bool = False):
        self.channels = channels
        self.has_deviation = has_deviation
        self.condition_channels = condition_channels
        self.flips = flips

    def split(self, stored: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Split what is stored into its parts.

        Args:
            stored (`torch.Tensor` of shape `(..., S, H, W)`): What is stored of one orientation.

        Returns:
            `tuple`: Mean, deviation and the mean of the degraded image, as float32; what is not stored has no
                channels.
        """
        deviations = self.channels if self.has_deviation else 0
        sizes = [self.channels, deviations, self.condition_channels]
        mean, deviation, condition = stored.float().split(sizes, dim=-3)
        return mean, deviation, condition

    def __call__(self, image: torch.Tensor, value_range: Scale, generator: torch.Generator) -> torch.Tensor:
        """
        Draw a latent, and the orientation of the image.

        Args:
            image (`torch.Tensor` of shape `(S, H, W)`): What is stored of the image.
            value_range (`tuple[float, float]`): The values of black and white; not used.
            generator (`torch.Generator`): Source of randomness, on the CPU.

        Returns:
            `torch.Tensor` of shape `(C, H, W)`: The latent, followed by that of the degraded image.
        """
        if self.flips:
            image = self.split_orientations(image)[int(torch.randint(2, (), generator=generator))]
        mean, deviation, condition = self.split(image)
        if self.has_deviation:
            mean = mean + deviation * torch.randn(mean.shape, generator=generator)
        return torch.cat([mean, condition])

    def split_orientations(self, stored: torch.Tensor) -> list[torch.Tensor]:
        """
        Split what is stored by orientation.

        Args:
            stored (`torch.Tensor` of shape `(..., S, H, W)`): What is stored of images.

        Returns:
            `list[torch.Tensor]`: What is stored of them as they are and, with `flips`, mirrored.
        """
        return list(stored.chunk(2 if self.flips else 1, dim=-3))


class LatentDataset(ImageDataset):
    """
    Latents of images, which an autoencoder has encoded; see [`load_latents`].

    Args:
        stored (`torch.Tensor` of shape `(M, S, H, W)`): What is stored of each image.
        pixels ([`ImageDataset`]): The images or pairs.
        vae (`ModelMixin`): The autoencoder.
        transform ([`LatentTransform`]): Draws latents from what is stored.
        digest (`str`): Digest of images and autoencoder.
    """

    def __init__(
        self,
        stored: torch.Tensor,
        pixels: ImageDataset,
        vae: ModelMixin,
        transform: LatentTransform,
        digest: str,
    ):
        self.images = stored
        self.labels = pixels.labels
        self.class_names = pixels.class_names
        self.dtype = stored.dtype
        self.value_range = pixels.value_range
        self.transform: Any = transform
        self.vae = vae
        self.flips = transform.flips
        self._pixels = pixels
        self._digest = digest

    @property
    def pixels(self) -> ImageDataset:
        """The images that the latents stand for."""
        return self._pixels

    @property
    def channels(self) -> int:
        """Number of channels per latent, without those of a degraded image."""
        return self.transform.channels

    @property
    def condition_channels(self) -> int:
        """Number of channels of the latents of degraded images; 0 if there are none."""
        return self.transform.condition_channels

    @property
    def is_eight_bits(self) -> bool:
        """Whether the images are usual ones of 8 bits."""
        return self.pixels.is_eight_bits

    def summarize(self) -> str:
        """Describe the images and their latents in a phrase."""
        shape = "x".join(map(str, (self.channels, *self.size)))
        return f"{self.pixels.summarize()}, as latents of {shape}"

    def check_contrast(self) -> None:
        """
        Check that there is something to learn.

        Raises:
            ValueError: All pixels have the same value.
        """
        self.pixels.check_contrast()

    def balance_classes(self) -> None:
        """
        Draw all classes equally often from now on, latents as well as images.

        Raises:
            ValueError: The images have no classes.
        """
        super().balance_classes()
        self.pixels.balance_classes()

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """Return latents as they are, as float32: the autoencoder's configuration has scaled them."""
        return images.float()

    def digest(self) -> str:
        """Digest images, labels, autoencoder, orientations and how often each class is drawn."""
        return self._digest if self._weights is None else f"{self._digest}-balanced"

    def sigma_data(self) -> float:
        r"""
        Compute the standard deviation of all values of latents, which preconditioning needs.

        With mean m and standard deviation s of each latent its square is
        $\mathrm{Var}\,m + \mathrm{E}\,s^2$.
        """
        moments = torch.zeros(3, dtype=torch.float64)
        count = 0
        for chunk in split_images(self.images, 256):
            for stored in self.transform.split_orientations(chunk):
                mean, deviation, _ = self.transform.split(stored)
                sums = [mean.double().sum(), mean.double().square().sum(), deviation.double().square().sum()]
                moments += torch.stack(sums)
                count += mean.numel()
        mean_value, mean_square, variance = (moments / count).tolist()
        return math.sqrt(mean_square - mean_value**2 + variance)


def check_encodable(pixels: ImageDataset, vae: ModelMixin) -> None:
    """
    Check that an autoencoder can encode images.

    Args:
        pixels ([`ImageDataset`]): The images or pairs.
        vae (`ModelMixin`): The autoencoder.

    Raises:
        ValueError: They have other channels than it takes, sides that its factor does not divide, or are
            changed each time that they are read.
    """
    check_autoencoder(vae)
    if pixels.transform:
        raise ValueError("Images that are cropped or degraded as they are read cannot be encoded before.")
    taken = vae.config.in_channels
    for channels in (pixels.channels, pixels.condition_channels or taken):
        if channels != taken:
            raise ValueError(f"The images have {channels} channels, but `vae` takes {taken}.")
    factor = get_factor(vae)
    if any(side % factor for side in pixels.size):
        size = "x".join(map(str, pixels.size))
        raise ValueError(f"The images have {size} pixels, but `vae` needs sides that {factor} divides.")


def load_latents(
    pixels: ImageDataset,
    vae: ModelMixin,
    random_flip: bool = False,
    device: torch.device | str = "cpu",
) -> LatentDataset:
    """
    Encode images once, into a memory-mapped file in the cache of `datasets`.

    Args:
        pixels ([`ImageDataset`]): The images or pairs, as from [`load_images`].
        vae (`ModelMixin`): The autoencoder, which is moved to the device.
        random_flip (`bool`, defaults to `False`): Whether to encode mirrored images, too. Each time that an
            image is read, one of the two is.
        device (`torch.device` or `str`, defaults to `"cpu"`): Where to encode.

    Returns:
        [`LatentDataset`]: The latents.

    Raises:
        ValueError: The autoencoder does not fit the images, or makes NaN or infinity of them.
    """
    import datasets

    check_encodable(pixels, vae)
    vae.to(device).eval().requires_grad_(False)
    described = [FORMAT, pixels.digest(), digest_network(vae), random_flip]
    digest = hashlib.blake2b(repr(described).encode(), digest_size=8).hexdigest()
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "pipeline_pfgmpp" / f"latents-{digest}"
    with lock(folder):
        if not folder.is_dir():
            _encode_into(folder, pixels, vae, random_flip)
    shape = np.load(folder / "shape.npy").tolist()
    values = torch.from_numpy(np.memmap(folder / VALUES, np.float16, mode="c"))
    channels = vae.config.latent_channels
    condition_channels = channels if pixels.condition_channels else 0
    per_orientation = shape[0] // 2 if random_flip else shape[0]
    has_deviation = per_orientation > channels + condition_channels
    transform = LatentTransform(channels, has_deviation, condition_channels, random_flip)
    return LatentDataset(values.view(len(pixels), *shape), pixels, vae, transform, digest)


def _encode_into(folder: Path, pixels: ImageDataset, vae: ModelMixin, flips: bool) -> None:
    """Write what is stored of each image to a file, and its shape to another."""
    with replace_folder(folder) as partial, open(partial / VALUES, "wb") as file:
        progress = tqdm(total=len(pixels), desc="Encoding images", unit="image")
        assert isinstance(pixels.images, torch.Tensor)  # images of one size
        for chunk in pixels.images.split(BATCH):
            images = pixels.normalize(chunk.to(vae.device))
            orientations = [images, images.flip(3)] if flips else [images]
            parts = [part for each in orientations for part in _encode(each, pixels.condition_channels, vae)]
            stored = torch.cat(parts, dim=1).half().cpu()
            if not bool(stored.isfinite().all()):
                raise ValueError("`vae` makes NaN or numbers beyond float16 of the images.")
            file.write(stored.numpy().tobytes())
            progress.update(len(chunk))
        progress.close()
        np.save(partial / "shape.npy", np.array(stored.shape[1:], np.int64))


def _encode(pairs: torch.Tensor, condition_channels: int, vae: ModelMixin) -> list[torch.Tensor]:
    """Encode images, and degraded ones, to the parts that are stored."""
    images, condition = split_pairs(pairs, condition_channels)
    encoding = encode_images(vae, images)
    parts = [part for part in encoding if part is not None]
    return parts + [encode_images(vae, degraded).mean for degraded in condition.values()]
