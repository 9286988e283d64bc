"""The Fréchet distance of a network during its training."""

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator

from ..data import ImageDataset, ImageStream, convert_to_bytes
from ..evaluation import ImageMetrics, load_features
from ..evaluation.classifier import check_image_shape
from ..evaluation.evaluate import gather_features
from ..evaluation.features import extract_features
from ..evaluation.metrics import frechet_distance
from ..generation import generate
from ..pipeline_pfgmpp import PFGMPPPipeline
from .processes import fail_together


class FrechetDistance:
    """
    The distance between generated images and 10,000 images of the data.

    The generated images belong to the seeds 0, 1, …, which the processes share. Images of any depth
    are compared in 8 bits.

    Args:
        data ([`ImageDataset`] or [`ImageStream`]): The data.
        num_images (`int`): Number of images to generate, rounded up to a multiple of the number of
            processes.
        features (`str`): The features to compare, as
            [`~pipeline_pfgmpp.evaluation.load_features`] takes them.
        accelerator (`Accelerator`): The processes.
        num_inference_steps (`Sequence[int]`, defaults to none): Numbers of steps to measure at; by default
            the pipeline's own number.

    Raises:
        OSError: There are no such features.
        ValueError: The features are not of such images.
    """

    def __init__(
        self,
        data: ImageDataset | ImageStream,
        num_images: int,
        features: str,
        accelerator: Accelerator,
        num_inference_steps: Sequence[int] = (),
    ):
        check_image_shape(features, (data.pixels.channels, *data.pixels.size))
        batches = [batch["images"] for batch, _ in islice(data.pixels.batches(500), 20)]
        real_images = convert_to_bytes(torch.cat(batches), data.value_range)
        self.accelerator = accelerator
        self.num_inference_steps = num_inference_steps
        pixels = data.pixels
        is_balanced = isinstance(pixels, ImageStream) or pixels.is_balanced
        self.class_labels = None if is_balanced else pixels.labels
        self.seeds_per_process = -(-num_images // accelerator.num_processes)
        # The others find the features of the data in the cache.
        with accelerator.main_process_first():
            extractor = load_features(features, accelerator.device)
            self.metrics = ImageMetrics(extractor, real_images)

    def __call__(self, pipeline: PFGMPPPipeline, batch_size: int) -> dict[str, float]:
        """
        Measure the distance at each number of steps; every process must call this.

        Args:
            pipeline ([`PFGMPPPipeline`]): The pipeline that generates the images.
            batch_size (`int`): Images per call of the pipeline.

        Returns:
            `dict[str, float]`: `frechet_distance`, at the first number of steps, and
                `frechet_distance/N_steps` for each of the others.

        Raises:
            RuntimeError: No images can be drawn or compared, in this process or another one.
        """
        rank = self.accelerator.process_index
        seeds = list(range(rank * self.seeds_per_process, (rank + 1) * self.seeds_per_process))
        settings: dict[str, Any] = {}
        if self.class_labels is not None and pipeline.num_classes:  # as often as the data hold them
            settings["class_weights"] = self.class_labels.bincount(minlength=pipeline.num_classes).tolist()
        distances: dict[str, float] = {}
        numbers: Sequence[int | None] = self.num_inference_steps or [None]
        for steps in numbers:
            name = f"frechet_distance/{steps}_steps" if distances else "frechet_distance"
            with fail_together():  # before the processes wait for each other's features
                options = {"num_inference_steps": steps, **settings}
                batches = generate(pipeline, seeds, batch_size, "Fréchet distance", **options)
                images = torch.cat([images for _, images in batches])
                features = extract_features(self.metrics.extractor, images)
            distances[name] = frechet_distance(gather_features(features), self.metrics.real_features)
        return distances
