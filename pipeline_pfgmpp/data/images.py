"""
Images in memory, read as endless batches.

Which images a training step sees, and in which order, depends on the seed alone: not on the number
of processes, of accumulated passes or of restarts.
"""

import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import torch
from diffusers import ModelMixin

from ..images import Scale, Standardization, normalize, require_range
from ..pixels import EIGHT_BITS
from ..records.digests import derive_seed
from .transforms import ImageTransform, make_generator


def split_images(images: torch.Tensor | list[torch.Tensor], count: int) -> Iterator[torch.Tensor]:
    """
    Split images into batches.

    Args:
        images (`torch.Tensor` of shape `(M, C, H, W)`, or a list of tensors): The images.
        count (`int`): Images per batch; each image of a list is a batch.

    Returns:
        `Iterator[torch.Tensor]`: The batches.
    """
    if isinstance(images, torch.Tensor):
        return iter(images.split(count))
    return (image[None] for image in images)


def describe_images(
    shape: tuple[int, ...],
    value_range: Scale,
    num_classes: int | None,
    condition_channels: int = 0,
    is_cropped: bool = False,
) -> str:
    """
    Describe images in a phrase.

    Args:
        shape (`tuple[int, int, int]`): Channels, height and width of an image.
        value_range (`tuple[float, float]` or [`Standardization`]): The values of black and white, or those
            of fields.
        num_classes (`int` or `None`): Number of classes; None without classes.
        condition_channels (`int`, defaults to 0): Channels of the degraded images; 0 without any.
        is_cropped (`bool`, defaults to `False`): Whether the images are crops of larger ones.

    Returns:
        `str`: The phrase, such as "images of 28x28 pixels, 1 channel, values from 0 to 255, without
            classes".
    """
    channels, height, width = shape
    values = "standardised"
    if not isinstance(value_range, Standardization):
        low, high = value_range
        values = f"values from {low:g} to {high:g}"
    classes = "without classes"
    if num_classes is not None:
        classes = f"in {num_classes} {'class' if num_classes == 1 else 'classes'}"
    kind = "pairs of images" if condition_channels else "images"
    crops = "cropped to" if is_cropped else "of"
    counts = [_count_channels(channels)]
    if condition_channels not in (0, channels):
        counts.append(f"{_count_channels(condition_channels)} in the degraded ones")
    return f"{kind} {crops} {height}x{width} pixels, {' and '.join(counts)}, {values}, {classes}"


def describe_condition(channels: int) -> str:
    """
    Describe degraded images in a phrase.

    Args:
        channels (`int`): Their channels; 0 if there are none.

    Returns:
        `str`: Such as "degraded images of 1 channel".
    """
    return f"degraded images of {_count_channels(channels)}" if channels else "no degraded images"


def _count_channels(count: int) -> str:
    return f"{count} {'channel' if count == 1 else 'channels'}"


def _refuse_flat(value: float) -> NoReturn:
    raise ValueError(f"All pixels have the value {value:g}, so there is nothing to learn.")


def check_contrast(images: Iterable[torch.Tensor]) -> None:
    """
    Check that pixels differ.

    Args:
        images (iterable of `torch.Tensor`): Images, which are read until two pixels differ.

    Raises:
        ValueError: All pixels have the same value.
    """
    first: torch.Tensor | None = None
    for image in images:
        if first is None:
            first = image.flatten()[0]
        if bool((image != first).any()):
            return
    if first is not None:
        _refuse_flat(first.item())


def measure_range(images: Iterable[torch.Tensor]) -> tuple[float, float]:
    """
    Find the range of values of images.

    Args:
        images (iterable of `torch.Tensor`): The images, one by one or in batches.

    Returns:
        `tuple[float, float]`: The least and the largest value.

    Raises:
        ValueError: All pixels have the same value.
    """
    extremes = [chunk.aminmax() for chunk in images]
    low = min(extreme.min.item() for extreme in extremes)
    high = max(extreme.max.item() for extreme in extremes)
    if low == high:
        _refuse_flat(low)
    return low, high


def measure_standardization(images: Sequence[torch.Tensor]) -> Standardization:
    """
    Compute the mean and the standard deviation of each channel.

    Args:
        images (sequence of `torch.Tensor` of shape `(M, C, H, W)`): The fields, in batches.

    Returns:
        [`Standardization`]: Both.

    Raises:
        ValueError: All values of a channel are the same.
    """
    axes = (0, 2, 3)
    count = sum(chunk[:, 0].numel() for chunk in images)
    mean = sum(chunk.double().sum(axes) for chunk in images) / count
    centre = mean.view(-1, 1, 1)
    deviation = (sum((chunk.double() - centre).square().sum(axes) for chunk in images) / count).sqrt()
    for value, spread in zip(mean.tolist(), deviation.tolist()):
        if spread == 0:
            _refuse_flat(value)
    return Standardization(tuple(mean.tolist()), tuple(deviation.tolist()))


def _check_labels(labels: torch.Tensor, count: int, class_names: list[str] | None) -> None:
    if labels.shape != (count,) or labels.is_floating_point():
        raise ValueError(
            f"`labels` must be {count} integers, one class per image, but are {labels.dtype} of shape"
            f" {tuple(labels.shape)}."
        )
    low, high = (bound.item() for bound in labels.aminmax())
    if low < 0 or (class_names is not None and high >= len(class_names)):
        classes = "at least 0" if class_names is None else f"in 0 ... {len(class_names) - 1}"
        raise ValueError(f"`labels` must be {classes}, but range from {low} to {high}.")


def _check_shapes(
    images: torch.Tensor | list[torch.Tensor], paired_channels: int, transform: ImageTransform
) -> None:
    """Raise an error unless images have one shape, or are large enough for crops."""
    if isinstance(images, torch.Tensor) and (images.ndim != 4 or 0 in images.shape):
        raise ValueError(f"`images` must be of shape (M, C, H, W), but are of {tuple(images.shape)}.")
    crop_size = transform.crop_size
    if not isinstance(images, torch.Tensor):
        kinds = {(image.ndim, len(image), image.dtype) for image in images}
        if len(kinds) != 1 or images[0].ndim != 3 or crop_size is None:
            raise ValueError(
                "`images` must be a tensor of shape (M, C, H, W) or, for crops, a list of tensors of shape"
                " (C, H, W) with one number of channels and one type."
            )
    if not 0 <= paired_channels < len(images[0]):
        raise ValueError(
            f"`paired_channels` must lie in [0, {len(images[0]) - 1}], but is {paired_channels!r}."
        )
    if paired_channels and transform.degrader:
        raise ValueError("Images that are paired already cannot be degraded: leave out `degradation`.")
    sizes = {tuple(image.shape[1:]) for image in images} if crop_size else set()
    for height, width in sizes:
        if crop_size and (height < crop_size[0] or width < crop_size[1]):
            wanted = "x".join(map(str, crop_size))
            raise ValueError(
                f"`images` of {height}x{width} pixels are too small for crops of {wanted} pixels."
            )


class ImageSource:
    """What a training run asks of its images: by default they are no latents, and nothing mirrors them."""

    vae: ModelMixin | None = None  # the autoencoder that latents are from
    flips = False  # whether an image is mirrored at random each time that it is read

    @property
    def pixels(self) -> Any:
        """The images that a person sees: these, unless they are latents."""
        return self


class ImageDataset(ImageSource, torch.utils.data.Dataset):
    """
    Images in memory, or in a file that is mapped into it.

    Args:
        images (`torch.Tensor` of shape `(M, C, H, W)`, or a list of tensors of shape `(C, H, W)`, uint8 or
            float32): The images, or pairs. Those in a list may differ in size, for crops.
        labels (`torch.Tensor` of shape `(M,)`, *optional*): Their classes.
        class_names (`list[str]`, *optional*): Names of the classes.
        value_range (`tuple[float, float]` or [`Standardization`], *optional*): The values of black and white,
            which a network sees as -1 and 1; by default (0, 255) for uint8, and otherwise the least and the
            largest value. The mean and the deviation of each channel for fields.
        paired_channels (`int`, defaults to 0): How many channels, the last ones, are those of a degraded
            image, from which a network is to restore the others.
        transform ([`ImageTransform`], *optional*): What is done to an image each time that it is read. Its
            degrader makes pairs of images.

    Raises:
        ValueError: The images are of another shape, or the labels are not one class per image.
    """

    def __init__(
        self,
        images: torch.Tensor | list[torch.Tensor],
        labels: torch.Tensor | None = None,
        class_names: list[str] | None = None,
        value_range: Scale | None = None,
        paired_channels: int = 0,
        transform: ImageTransform | None = None,
    ):
        self.transform = transform or ImageTransform()
        _check_shapes(images, paired_channels, self.transform)
        if labels is not None:
            _check_labels(labels, len(images), class_names)
        if isinstance(value_range, Standardization) and (paired_channels or self.transform.degrader):
            raise ValueError("Fields that are standardised cannot be pairs.")
        self.images = images
        self.labels = labels
        self.class_names = class_names
        self.dtype = images[0].dtype
        if value_range is None:
            is_eight_bits = self.dtype == torch.uint8
            value_range = EIGHT_BITS if is_eight_bits else measure_range(split_images(images, 4096))
        self.value_range = value_range
        self._paired_channels = paired_channels

    # How likely each image is drawn; None is each of them once per epoch.
    _weights: torch.Tensor | None = None

    @property
    def is_balanced(self) -> bool:
        """Whether all classes are drawn equally often."""
        return self._weights is not None

    def balance_classes(self) -> None:
        """
        Draw all classes equally often from now on, however many images each has.

        An epoch then holds as many images as before, drawn with replacement.

        Raises:
            ValueError: The images have no classes.
        """
        if self.labels is None:
            raise ValueError("The images have no classes that could be balanced.")
        self._weights = 1 / self.labels.bincount()[self.labels].double()

    def number_classes(self, names: list[str]) -> None:
        """
        Number the classes as other data do, which may have more of them.

        Args:
            names (`list[str]`): The classes of the other data.

        Raises:
            ValueError: A class is not among them.
        """
        if self.labels is None or self.class_names is None:
            return
        unknown = [name for name in self.class_names if name not in names]
        if unknown:
            raise ValueError(f"The classes {unknown} are not among those that are trained on, {names}.")
        self.labels = torch.tensor([names.index(name) for name in self.class_names])[self.labels]
        self.class_names = list(names)

    @property
    def channels(self) -> int:
        """Number of channels per image, without those of a degraded one."""
        return len(self.images[0]) - self._paired_channels

    @property
    def condition_channels(self) -> int:
        """Number of channels of the degraded images; 0 if there are none."""
        return self.channels if self.transform.degrader else self._paired_channels

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of an image as it is read, in pixels."""
        _, height, width = self.images[0].shape
        return self.transform.crop_size or (height, width)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int | torch.Tensor) -> dict[str, torch.Tensor]:
        item = {"images": self.images[index]}
        if self.labels is not None:
            item["class_labels"] = self.labels[index]
        return item

    def _split_clean(self) -> list[torch.Tensor]:
        """Return the images that are to be restored, whole, in batches."""
        return [chunk[:, : self.channels] for chunk in split_images(self.images, 256)]

    @property
    def present_classes(self) -> list[int]:
        """The classes that occur; none without labels."""
        return [] if self.labels is None else self.labels.unique().tolist()

    def summarize(self) -> str:
        """Describe the images in a phrase: their number, size, channels, range and classes."""
        classes = len(self.present_classes) if self.labels is not None else None
        is_cropped = self.transform.crop_size is not None
        shape = (self.channels, *self.size)
        described = describe_images(shape, self.value_range, classes, self.condition_channels, is_cropped)
        return f"{len(self):,} {described}"

    def check_contrast(self) -> None:
        """
        Check that there is something to learn.

        Raises:
            ValueError: All pixels have the same value.
        """
        check_contrast(self._split_clean())

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """Scale images from the range of the data to [-1, 1], or standardise them, as float32."""
        return normalize(images, self.value_range)

    @property
    def is_eight_bits(self) -> bool:
        """Whether the images are usual ones of 8 bits, and not data with a range of their own."""
        if self.dtype != torch.uint8 or isinstance(self.value_range, Standardization):
            return False
        return tuple(self.value_range) == EIGHT_BITS

    def digest(self) -> str:
        """Digest images, labels and class names, which identify the data wherever they were loaded from."""
        shapes: list = []
        if isinstance(self.images, torch.Tensor):
            shapes += self.images.shape
        else:
            shapes += [tuple(image.shape) for image in self.images]
        described: list = [shapes, self.class_names]
        if self.dtype != torch.uint8 or isinstance(self.value_range, Standardization):
            described.append(self.value_range)
        if self._paired_channels:
            described.append(self._paired_channels)
        described += self.transform.describe()
        if self._weights is not None:
            described.append("balanced")
        digest = hashlib.blake2b(repr(described).encode(), digest_size=8)
        for chunk in split_images(self.images, 4096):
            digest.update(chunk.contiguous().numpy())
        if self.labels is not None:
            digest.update(self.labels.contiguous().numpy())
        return digest.hexdigest()

    def sigma_data(self) -> float:
        """Compute the standard deviation of all pixels as a network sees them, for the preconditioning."""
        if isinstance(self.value_range, Standardization):
            return measure_deviation(self._split_clean(), (-1.0, 1.0), self.normalize)
        return measure_deviation(self._split_clean(), self.value_range)

    def batches(
        self, batch_size: int, seed: int = 0, process_index: int = 0, num_processes: int = 1, state: int = 0
    ) -> Iterator[tuple[dict[str, torch.Tensor], int]]:
        """
        Yield batches without end.

        Every epoch holds each image once, in an order of its own, and one epoch runs into the next; after
        [`~ImageDataset.balance_classes`] it holds as many images, drawn by their class. The P processes
        take turns: process p gets places p, p + P, … of each block of P batches.

        Args:
            batch_size (`int`): Images per batch and process.
            seed (`int`, defaults to 0): Seed of the orders.
            process_index (`int`, defaults to 0): Index of this process.
            num_processes (`int`, defaults to 1): Number of processes.
            state (`int`, defaults to 0): Number of images to skip, to resume after them.

        Yields:
            `tuple[dict, int]`: `images` or pairs in the range of the data with their `class_labels`, and the
                state from which to resume after this batch.
        """
        count = len(self)
        block = batch_size * num_processes
        orders: dict[int, torch.Tensor] = {}
        while True:
            places = torch.arange(state + process_index, state + block, num_processes)
            epochs = range(int(places[0]) // count, int(places[-1]) // count + 1)
            for epoch in epochs:
                if epoch not in orders:
                    orders[epoch] = self._shuffle(seed, epoch)
            orders = {epoch: orders[epoch] for epoch in epochs}
            parts = [orders[epoch][places[places // count == epoch] % count] for epoch in epochs]
            state += block
            yield self._read(torch.cat(parts), places, seed), state

    def _read(self, indices: torch.Tensor, places: torch.Tensor, seed: int) -> dict[str, torch.Tensor]:
        """Read images for their places in the order of a run."""
        if not self.transform:
            return self[indices]
        images = [
            self.transform(self.images[index], self.value_range, make_generator(seed, place))
            for index, place in zip(indices.tolist(), places.tolist())
        ]
        batch = {"images": torch.stack(images)}
        if self.labels is not None:
            batch["class_labels"] = self.labels[indices]
        return batch

    def _shuffle(self, seed: int, epoch: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(derive_seed(seed, "order", epoch))
        if self._weights is not None:
            return torch.multinomial(self._weights, len(self), replacement=True, generator=generator)
        return torch.randperm(len(self), generator=generator)


def prefetch(iterator: Iterator, depth: int = 2) -> Iterator:
    """
    Read an endless iterator ahead in a thread.

    Args:
        iterator (`Iterator`): What to read.
        depth (`int`, defaults to 2): Number of items to read ahead.

    Yields:
        Its items.
    """
    with ThreadPoolExecutor(1) as pool:
        pending = deque(pool.submit(next, iterator) for _ in range(depth))
        while True:
            item = pending.popleft().result()
            pending.append(pool.submit(next, iterator))
            yield item


def convert_to_bytes(images: torch.Tensor, value_range: Scale) -> torch.Tensor:
    """
    Round images of any depth to 8 bits, in which features compare them.

    Args:
        images (`torch.Tensor` of shape `(M, C, H, W)`): Images in the range of their data.
        value_range (`tuple[float, float]`): The values of black and white.

    Returns:
        `torch.Tensor`, uint8: The images in [0, 255].

    Raises:
        ValueError: The values are those of fields, which are no pictures.
    """
    value_range = require_range(value_range)
    if images.dtype == torch.uint8 and tuple(value_range) == EIGHT_BITS:
        return images
    chunks = [
        ((normalize(chunk, value_range).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        for chunk in images.split(256)
    ]
    return torch.cat(chunks)


def measure_deviation(
    images: Sequence[torch.Tensor],
    value_range: tuple[float, float],
    scale: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.double,
) -> float:
    """
    Compute the standard deviation that images have in [-1, 1].

    Args:
        images (sequence of `torch.Tensor`): Images in the range of their data, one by one or in batches.
        value_range (`tuple[float, float]`): The values that become -1 and 1.
        scale (`Callable`, *optional*): What is done to them before.

    Returns:
        `float`: The standard deviation.

    Raises:
        ValueError: All pixels have the same value.
    """
    count = sum(image.numel() for image in images)
    mean = sum(scale(image).double().sum().item() for image in images) / count
    variance = sum(((scale(image).double() - mean) ** 2).sum().item() for image in images) / count
    if variance == 0:
        _refuse_flat(mean)
    low, high = value_range
    return math.sqrt(variance) / ((high - low) / 2)
