"""Image data sets of the Hugging Face ecosystem as tensors, decoded once."""

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm.auto import tqdm


def _pick_column(dataset, wanted, feature_type, what):
    """The named column, or the only one of a feature type; None where there is none."""
    names = [name for name, feature in dataset.features.items() if isinstance(feature, feature_type)]
    if wanted is not None:
        if wanted not in dataset.column_names:
            raise ValueError(f"`{what}_column` is {wanted!r}, but the data set has the columns {dataset.column_names}.")
        return wanted
    if len(names) > 1:
        raise ValueError(f"The data set has several {what} columns, {names}; name one with `{what}_column`.")
    return names[0] if names else None


def load_images(
    dataset, resolution: int, image_column: str | None = None, label_column: str | None = None, channels: int | None = None
) -> "ImageDataset":
    """
    Decodes a data set into memory: resized so that the shorter side fits, cropped at the centre, as uint8.

    Args:
        dataset (`datasets.Dataset`): A data set with an image column.
        resolution (`int`): Height and width of the result, in pixels.
        image_column (`str`, *optional*): Name of the image column; by default the only one.
        label_column (`str`, *optional*): Name of the class column; by default the only `ClassLabel`.
        channels (`int`, *optional*): 1 (grey) or 3 (RGB); by default that of the first image.

    Returns:
        [`ImageDataset`]: Images and, where there are classes, labels.

    Raises:
        ValueError: A column is missing or ambiguous, or `channels` is neither 1 nor 3.
    """
    import datasets

    image_column = _pick_column(dataset, image_column, datasets.Image, "image")
    label_column = _pick_column(dataset, label_column, datasets.ClassLabel, "label")
    if image_column is None:
        raise ValueError(f"The data set has no image column among {dataset.column_names}; name one with `image_column`.")
    if channels is None:
        channels = 1 if dataset[0][image_column].mode in ("1", "L", "LA", "I", "I;16", "F") else 3
    if channels not in (1, 3):
        raise ValueError(f"`channels` must be 1 or 3, but is {channels}.")

    images = torch.empty(len(dataset), channels, resolution, resolution, dtype=torch.uint8)
    for index, row in enumerate(tqdm(dataset.select_columns(image_column), desc="Decoding images", unit="image")):
        image = row[image_column].convert("L" if channels == 1 else "RGB")
        if image.size != (resolution, resolution):
            image = ImageOps.fit(image, (resolution, resolution), Image.Resampling.LANCZOS)
        images[index] = torch.from_numpy(np.array(image)).view(resolution, resolution, channels).permute(2, 0, 1)

    labels, names = None, None
    if label_column is not None:
        labels = torch.tensor(dataset[label_column][:])
        names = getattr(dataset.features[label_column], "names", None) or [str(i) for i in range(int(labels.max()) + 1)]
    return ImageDataset(images, labels, names)


class ImageDataset(torch.utils.data.Dataset):
    """
    Images in memory, given out as float32 in [-1, 1].

    Args:
        images (`torch.Tensor` of shape `(M, C, H, W)`, uint8): The images.
        labels (`torch.Tensor` of shape `(M,)`, *optional*): Their classes.
        class_names (`list[str]`, *optional*): Names of the classes.
        random_flip (`bool`, defaults to `False`): Whether to mirror each image with probability one half.
    """

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor | None = None,
        class_names: list[str] | None = None,
        random_flip: bool = False,
    ):
        self.images, self.labels, self.class_names, self.random_flip = images, labels, class_names, random_flip

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = self.images[index].float() / 127.5 - 1
        if self.random_flip and torch.rand(()) < 0.5:
            image = image.flip(-1)
        item = {"images": image}
        if self.labels is not None:
            item["class_labels"] = self.labels[index]
        return item

    def sigma_data(self) -> float:
        """Standard deviation of the images in [-1, 1] over all pixels, for the preconditioning."""
        counts = torch.bincount(self.images.flatten(), minlength=256).double()
        values = torch.arange(256, dtype=torch.float64) / 127.5 - 1
        mean = (counts * values).sum() / counts.sum()
        return ((counts * (values - mean) ** 2).sum() / counts.sum()).sqrt().item()
