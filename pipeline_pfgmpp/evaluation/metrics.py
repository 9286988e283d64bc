r"""
How far generated images are from real ones, measured by features of both:

- `fid`: the Fréchet distance (https://huggingface.co/papers/1706.08500) between Gaussians of the mean
  and the covariance of each set, $\lVert\mu_1 - \mu_2\rVert^2 +
  \operatorname{tr}(\Sigma_1 + \Sigma_2 - 2 (\Sigma_1 \Sigma_2)^{1/2})$; over Inception's features it
  is known as FID;
- `kid`: the squared distance between their means under a cubic kernel
  (https://huggingface.co/papers/1801.01401);
- `precision` and `recall`: the share of each set that lies close to the other
  (https://huggingface.co/papers/1904.06991);
- `inception_score`: how certain the class of each image is, and how varied the classes are
  (https://huggingface.co/papers/1606.03498).
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from .features import digest_images, extract_features, extract_features_once, find_device


class _Identity(nn.Module):
    """Take the place of torchmetrics' network, because the features are computed already."""

    def __init__(self, num_features: int = 1):
        super().__init__()
        self.num_features = num_features

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def _make_metric(kind: type, *args: Any, **kwargs: Any) -> Any:
    """Make a metric of torchmetrics without its warning of large memory."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*will save all extracted features.*")
        return kind(*args, sync_on_compute=False, **kwargs)


def frechet_distance(features: torch.Tensor, real_features: torch.Tensor) -> float:
    """
    Compute the squared Fréchet distance between two sets of features, known as FID if they are
    Inception's.

    Warns if there are fewer images than features, because the distance then says little.

    Args:
        features (`torch.Tensor` of shape `(M, K)`): Features of generated images.
        real_features (`torch.Tensor` of shape `(R, K)`): Features of real images.

    Returns:
        `float`: The distance.

    Raises:
        ValueError: A set has fewer than two members.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    count = min(len(features), len(real_features))
    num_features = features.shape[1]
    if count < 2:
        raise ValueError("A Fréchet distance needs at least two images on either side.")
    if count < num_features:
        warnings.warn(
            f"The Fréchet distance of {count} images over {num_features} features says little;"
            " use more images.",
            stacklevel=2,
        )
    metric = _make_metric(FrechetInceptionDistance, _Identity(num_features))
    metric.update(real_features.double(), real=True)
    metric.update(features.double(), real=False)
    return max(metric.compute().item(), 0.0)


def kernel_distance(features: torch.Tensor, real_features: torch.Tensor) -> float:
    """
    Compute the kernel distance (KID) between two sets of features.

    Args:
        features (`torch.Tensor` of shape `(M, K)`): Features of generated images.
        real_features (`torch.Tensor` of shape `(R, K)`): Features of real images.

    Returns:
        `float`: The mean over 100 random subsets of 1,000 images, or of all if there are fewer.

    Raises:
        ValueError: There are fewer than two images on a side.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(len(features), len(real_features), 1000)
    if size < 2:
        raise ValueError("A kernel distance needs at least two images on either side.")
    metric = _make_metric(KernelInceptionDistance, _Identity(), subset_size=size)
    metric.update(real_features.double(), real=True)
    metric.update(features.double(), real=False)
    return metric.compute()[0].item()


def inception_score(logits: torch.Tensor) -> float:
    """
    Compute the Inception score.

    Args:
        logits (`torch.Tensor` of shape `(M, classes)`): Logits of the classes of generated images.

    Returns:
        `float`: The mean score of ten parts of the images.
    """
    from torchmetrics.image.inception import InceptionScore

    metric = _make_metric(InceptionScore, _Identity(), splits=min(10, len(logits)))
    metric.update(logits.double())
    return metric.compute()[0].item()


def precision_recall(
    features: torch.Tensor, real_features: torch.Tensor, neighbours: int = 3
) -> tuple[float, float]:
    """
    Compute precision and recall: the share of generated images that lie among the real ones, and the
    share of real images that lie among the generated ones.

    A point lies among the members of a set if it is no farther from one of them than that member is
    from its k-th neighbour in the set. Equal numbers of both sets are compared.

    Args:
        features (`torch.Tensor` of shape `(M, K)`): Features of generated images.
        real_features (`torch.Tensor` of shape `(R, K)`): Features of real images.
        neighbours (`int`, defaults to 3): The number of neighbours k.

    Returns:
        `tuple[float, float]`: Precision and recall, in [0, 1].
    """
    count = min(len(features), len(real_features))
    generated = features[torch.randperm(len(features))[:count]]
    real = real_features[torch.randperm(len(real_features))[:count]]

    def share_among(points: torch.Tensor, members: torch.Tensor) -> float:
        nearest = min(neighbours + 1, count)  # a member is its own nearest neighbour
        radii = torch.cat(
            [torch.cdist(part, members).kthvalue(nearest).values for part in members.split(1000)]
        )
        close = [(torch.cdist(part, members) <= radii).any(1) for part in points.split(1000)]
        return torch.cat(close).double().mean().item()

    return share_among(generated, real), share_among(real, generated)


METRICS = ("fid", "kid", "precision_recall", "inception_score")


class ImageMetrics:
    """
    Measure generated images against real ones.

    Args:
        extractor (`nn.Module`): The network that extracts features, from
            [`~pipeline_pfgmpp.evaluation.load_features`].
        real_images (`torch.Tensor` of shape `(R, C, H, W)`, uint8): Real images. Their features are
            cached on disk.
        metrics (`Sequence[str]`, defaults to `("fid",)`): Any of `"fid"`, `"kid"`,
            `"precision_recall"` and `"inception_score"`.
        gather (`Callable`, *optional*): Function that gathers the features of all processes, each of
            which measures its share of the images.

    Attributes:
        real_features (`torch.Tensor` of shape `(R, K)`): Features of the real images.
        reference (`str`): Digest of the real images and of the network.

    Raises:
        ValueError: A metric does not exist or needs classes that the network does not know, or the images
            are neither grey nor in colour.
    """

    def __init__(
        self,
        extractor: nn.Module,
        real_images: torch.Tensor,
        metrics: Sequence[str] = ("fid",),
        gather: Callable[[torch.Tensor], torch.Tensor] = lambda features: features,
    ):
        for name in metrics:
            if name not in METRICS:
                raise ValueError(f"There is no metric {name!r}; choose from {', '.join(METRICS)}.")
        if "inception_score" in metrics and not hasattr(extractor, "to_logits"):
            raise ValueError(
                "`inception_score` needs features that know classes, as `inception`, `fashion-mnist` and"
                " `emoji` do."
            )
        channels = real_images.shape[1]
        if channels not in (1, 3):
            raise ValueError(
                f"Features are extracted from images of 1 or 3 channels, but these images have {channels}."
            )
        self.extractor = extractor
        self.metrics = metrics
        self.gather = gather
        self.reference = digest_images(extractor, real_images)
        self.real_features = extract_features_once(extractor, real_images, self.reference)

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> dict[str, float]:
        """
        Measure images.

        Args:
            images (`torch.Tensor` of shape `(M, C, H, W)`, uint8): The generated images of this
                process.

        Returns:
            `dict[str, float]`: Those of `fid`, `kid`, `precision`, `recall` and `inception_score` that
                were asked for.
        """
        features = self.gather(extract_features(self.extractor, images))
        values: dict[str, float] = {}
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)  # KID and precision choose subsets at random
            for name in self.metrics:
                values |= self._measure(name, features)
        return values

    def _measure(self, name: str, features: torch.Tensor) -> dict[str, float]:
        if name == "fid":
            return {"fid": frechet_distance(features, self.real_features)}
        if name == "kid":
            return {"kid": kernel_distance(features, self.real_features)}
        if name == "precision_recall":
            precision, recall = precision_recall(features, self.real_features)
            return {"precision": precision, "recall": recall}
        device = find_device(self.extractor)
        logits = self.extractor.to_logits(features.to(device)).cpu()
        return {"inception_score": inception_score(logits)}
