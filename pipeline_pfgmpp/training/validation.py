"""The loss on images that are not trained on."""

import torch
from accelerate import Accelerator

from ..data import ImageDataset, ImageStream, split_pairs
from ..data.images import describe_condition
from ..records.digests import derive_seed
from .config import TrainingConfig
from .log import LossMeter
from .loss import PFGMPPLoss


MOST_IMAGES = 256
MOST_PASSES = 4


class ValidationLoss:
    """
    Measures the loss by noise level on a few images that are not trained on.

    Images and noise are the same each time, so that only the network changes the loss. There are at most
    256 images, and at most four batches.

    Args:
        data ([`ImageDataset`] or [`ImageStream`]): The images.
        training_data ([`ImageDataset`] or [`ImageStream`]): The images that are trained on, with the
            same size, channels and classes.
        loss ([`PFGMPPLoss`]): The objective.
        config ([`TrainingConfig`]): The settings.
        has_classes (`bool`): Whether the network takes classes.
        accelerator (`Accelerator`): The processes.

    Raises:
        ValueError: The images do not fit those that are trained on, or their loss is never logged.
    """

    def __init__(
        self,
        data: ImageDataset | ImageStream,
        training_data: ImageDataset | ImageStream,
        loss: PFGMPPLoss,
        config: TrainingConfig,
        has_classes: bool,
        accelerator: Accelerator,
    ):
        check_validation_data(data, training_data, has_classes)
        if not config.logging_steps:
            raise ValueError("`logging_steps` is 0, so that the loss on the validation data is never logged.")
        self.loss = loss
        self.config = config
        self.accelerator = accelerator
        self.meter = LossMeter(config.P_mean, config.P_std, accelerator.device)
        self.images_per_pass = config.train_batch_size * accelerator.num_processes
        count = min(MOST_IMAGES, MOST_PASSES * self.images_per_pass)
        if isinstance(data, ImageDataset):
            count = min(count, len(data))
        batch, _ = next(data.batches(count, config.seed))
        self.condition_channels = data.condition_channels
        self.images = training_data.normalize(batch["images"])
        self.labels = batch["class_labels"] if has_classes else None

    @torch.no_grad()
    def measure(self, unet: torch.nn.Module) -> dict[str, float]:
        """
        Measure the loss of a network; every process must call this.

        Args:
            unet (`torch.nn.Module`): The network, as accelerate prepared it.

        Returns:
            `dict[str, float]`: `validation_loss`, and `validation_loss/sigma_LOW-HIGH` for each interval
                that has images.
        """
        device = self.accelerator.device
        rank = self.accelerator.process_index
        rng = torch.Generator(device)
        for start in range(0, len(self.images), self.images_per_pass):
            pairs = self.images[start : start + self.images_per_pass].to(device)
            images, conditioning = split_pairs(pairs, self.condition_channels)
            rng.manual_seed(derive_seed(self.config.seed, "validation", start))
            perturbation = self.loss.draw(tuple(images.shape), rng, device)
            # A process for which no image is left joins in with the first, whose loss it leaves out: where
            # the network is sharded, all must call it equally often.
            has_own = rank < len(images)
            part = slice(rank if has_own else 0, None, self.accelerator.num_processes)
            if self.labels is not None:
                labels = self.labels[start : start + self.images_per_pass]
                conditioning["class_labels"] = labels.to(device)
            own = {name: values[part] for name, values in conditioning.items()}
            loss = self.loss(unet, images[part], perturbation[part], **own)
            if has_own:
                self.meter.add(loss, perturbation[part].sigma)
        means = self.meter.read(self.accelerator)
        return {f"validation_{name}": value for name, value in means.items()}


def create_validation_loss(
    data: ImageDataset | ImageStream | None,
    training_data: ImageDataset | ImageStream,
    loss: PFGMPPLoss,
    config: TrainingConfig,
    has_classes: bool,
    accelerator: Accelerator,
) -> ValidationLoss | None:
    """
    Create the loss on the validation data, if there are any.

    Args:
        data ([`ImageDataset`] or [`ImageStream`], *optional*): The images for validation.
        training_data, loss, config, has_classes, accelerator: As for [`ValidationLoss`].

    Returns:
        [`ValidationLoss`] or `None`: The loss.

    Raises:
        ValueError: As [`ValidationLoss`].
    """
    if data is None:
        return None
    return ValidationLoss(data, training_data, loss, config, has_classes, accelerator)


def check_validation_data(
    data: ImageDataset | ImageStream, training_data: ImageDataset | ImageStream, has_classes: bool
) -> None:
    """
    Check that images for validation are of the same kind as those that are trained on.

    Args:
        data ([`ImageDataset`] or [`ImageStream`]): The images for validation.
        training_data ([`ImageDataset`] or [`ImageStream`]): The images that are trained on.
        has_classes (`bool`): Whether their classes matter.

    Raises:
        ValueError: They differ.
    """
    if data.condition_channels != training_data.condition_channels:
        raise ValueError(
            f"The validation data hold {describe_condition(data.condition_channels)}, but those that are"
            f" trained on hold {describe_condition(training_data.condition_channels)}."
        )
    ours = (data.channels, *data.size)
    theirs = (training_data.channels, *training_data.size)
    if ours != theirs:
        raise ValueError(
            f"The validation data have images of (channels, height, width) {ours}, but those that are trained"
            f" on are of {theirs}."
        )
    if data.pixels.is_eight_bits != training_data.pixels.is_eight_bits:
        raise ValueError(
            "The validation data and those that are trained on must both be of 8 bits, or both of more."
        )
    if has_classes and data.class_names != training_data.class_names:
        raise ValueError(
            f"The validation data have the classes {data.class_names}, but the network is trained on"
            f" {training_data.class_names}."
        )
