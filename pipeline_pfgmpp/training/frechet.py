"""The Fréchet distance of a model in training."""

from itertools import islice

import torch
from accelerate import Accelerator

from ..data import ImageDataset, ImageStream
from ..evaluation import ImageMetrics, load_features
from ..evaluation.evaluate import gather_features
from ..generation import generate
from ..pipeline_pfgmpp import PFGMPPPipeline


class FrechetDistance:
    """
    Draws images for the seeds 0, 1, …, shared among the processes, and measures their distance from
    10,000 of the data.

    Args:
        data ([`ImageDataset`] or [`ImageStream`]): The data.
        num_images (`int`): Images to draw, rounded up to fill the processes.
        features (`str`): What they are measured over, as
            [`~pipeline_pfgmpp.evaluation.load_features`] takes it.
        accelerator (`Accelerator`): The processes.

    Raises:
        OSError: There are no such features.
        ValueError: They are not of such images.
    """

    def __init__(
        self, data: ImageDataset | ImageStream, num_images: int, features: str, accelerator: Accelerator
    ):
        batches = [batch["images"] for batch, _ in islice(data.batches(500), 20)]
        self.accelerator, self.seeds_a_process = accelerator, -(-num_images // accelerator.num_processes)
        with (
            accelerator.main_process_first()
        ):  # the others find its features of the data, where those are the same
            extractor = load_features(features, accelerator.device)
            self.metrics = ImageMetrics(extractor, torch.cat(batches), gather=gather_features)

    def __call__(self, pipeline: PFGMPPPipeline, batch_size: int) -> float:
        """
        Args:
            pipeline ([`PFGMPPPipeline`]): What draws; every process calls it.
            batch_size (`int`): Images at a time.

        Returns:
            `float`: The distance.
        """
        first = self.accelerator.process_index * self.seeds_a_process
        seeds = list(range(first, first + self.seeds_a_process))
        images = torch.cat(
            [images for _, images in generate(pipeline, seeds, batch_size, "Fréchet distance")]
        )
        return self.metrics(images)["fid"]
