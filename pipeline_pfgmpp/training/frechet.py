"""The Fréchet distance of a model in training."""

from itertools import islice

import torch
from accelerate import Accelerator

from ..evaluation import FashionMNISTClassifier, feature_statistics, frechet_distance
from ..evaluation.evaluate import image_features
from ..evaluation.fashion_mnist_classifier import WEIGHTS
from ..pipeline_pfgmpp import PFGMPPPipeline
from ..sampling import generate
from .data import ImageDataset, ImageStream


class FrechetDistance:
    """
    Draws images for the seeds 0, 1, …, shared among the processes, and measures their distance from 10,000 of the data.

    Args:
        data ([`ImageDataset`] or [`ImageStream`]): The data, grey and 28 pixels wide and high, which the classifier knows.
        num_images (`int`): Images to draw, rounded up to fill the processes.
        accelerator (`Accelerator`): The processes.

    Raises:
        ValueError: The classifier does not take such images.
    """

    def __init__(self, data: ImageDataset | ImageStream, num_images: int, accelerator: Accelerator):
        batches = [batch["images"] for batch, _ in islice(data.batches(500), 20)]
        if batches[0].shape[1:] != (1, 28, 28):
            shape = "×".join(map(str, batches[0].shape[1:]))
            raise ValueError(f"the features are those of a classifier of grey 28×28 images, but the images are {shape}.")
        self.accelerator, self.seeds_a_process = accelerator, -(-num_images // accelerator.num_processes)
        self.extractor = FashionMNISTClassifier.from_pretrained(WEIGHTS).eval().to(accelerator.device)
        self.target = feature_statistics(image_features(self.extractor, torch.cat(batches)))

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
        images = torch.cat([images for _, images in generate(pipeline, seeds, batch_size, "Fréchet distance")])
        features = image_features(self.extractor, images).to(self.accelerator.device)
        return frechet_distance(*feature_statistics(self.accelerator.gather(features).cpu()), *self.target)
