r"""
How far drawn images are from real ones, by their features:

- `fid`: the Fréchet distance (https://huggingface.co/papers/1706.08500) of the two sets, each taken
  for a Gaussian, which is FID where the features are Inception's: $\lVert\mu_1 - \mu_2\rVert^2 +
  \operatorname{tr}(\Sigma_1 + \Sigma_2 - 2 (\Sigma_1 \Sigma_2)^{1/2})$;
- `kid`: the squared distance of their means under a cubic kernel
  (https://huggingface.co/papers/1801.01401);
- `precision` and `recall`: the share of either set within reach of the other
  (https://huggingface.co/papers/1904.06991);
- `inception_score`: how sure and how varied the classes are (https://huggingface.co/papers/1606.03498).
"""

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import nn

from .features import cached_features, digest_images, image_features


class _Given(nn.Module):
    """Stands where torchmetrics wants a network: the features are there already."""

    def __init__(self, num_features: int = 1):
        super().__init__()
        self.num_features = num_features

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def _metric(kind, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*will save all extracted features.*")
        return kind(*args, sync_on_compute=False, **kwargs)


def frechet_distance(features: torch.Tensor, real_features: torch.Tensor) -> float:
    """
    The squared Fréchet distance between two sets of features, the number known as FID where they
    are Inception's.

    Args:
        features (`torch.Tensor` of shape `(M, K)`): Features of drawn images.
        real_features (`torch.Tensor` of shape `(R, K)`): Features of real images.

    Returns:
        `float`: The distance. It is of little worth, and a warning says so, where images are fewer
            than features.

    Raises:
        ValueError: A set has fewer than two members.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    count, dimensions = min(len(features), len(real_features)), features.shape[1]
    if count < 2:
        raise ValueError("A Fréchet distance needs two images at least on either side.")
    if count < dimensions:
        warnings.warn(
            f"The Fréchet distance of {count} images over {dimensions} features says little; use more images.",
            stacklevel=2,
        )
    metric = _metric(FrechetInceptionDistance, _Given(dimensions))
    metric.update(real_features.double(), real=True)
    metric.update(features.double(), real=False)
    return max(metric.compute().item(), 0.0)


def kernel_distance(features: torch.Tensor, real_features: torch.Tensor) -> float:
    """
    The kernel distance (KID): the mean over 100 random subsets of 1,000 images, or of all where
    there are fewer.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(len(features), len(real_features), 1000)
    metric = _metric(KernelInceptionDistance, _Given(), subset_size=size)
    metric.update(real_features.double(), real=True)
    metric.update(features.double(), real=False)
    return metric.compute()[0].item()


def inception_score(logits: torch.Tensor) -> float:
    """The Inception score: the mean over ten parts of the images, given the logits of their classes."""
    from torchmetrics.image.inception import InceptionScore

    metric = _metric(InceptionScore, _Given(), splits=min(10, len(logits)))
    metric.update(logits.double())
    return metric.compute()[0].item()


def precision_recall(
    features: torch.Tensor, real_features: torch.Tensor, neighbours: int = 3
) -> tuple[float, float]:
    """
    The share of drawn images that lie among the real ones, and of real images among the drawn:
    within the distance of some member of the other set to its k-th neighbour there. As many are
    taken of each set.

    Args:
        features (`torch.Tensor` of shape `(M, K)`): Features of drawn images.
        real_features (`torch.Tensor` of shape `(R, K)`): Features of real images.
        neighbours (`int`, defaults to 3): k.

    Returns:
        `tuple[float, float]`: Precision and recall.
    """
    count = min(len(features), len(real_features))
    sets = [chosen[torch.randperm(len(chosen))[:count]] for chosen in (features, real_features)]

    def among(points, members):
        reach = [
            torch.cdist(part, members).kthvalue(min(neighbours + 1, count)).values
            for part in members.split(1000)
        ]
        near = [(torch.cdist(part, members) <= torch.cat(reach)).any(1) for part in points.split(1000)]
        return torch.cat(near).double().mean().item()

    return among(*sets), among(*reversed(sets))


METRICS = ("fid", "kid", "precision_recall", "inception_score")


class ImageMetrics:
    """
    Measures drawn images against real ones.

    Args:
        extractor (`nn.Module`): What [`load_features`] returned.
        real_images (`torch.Tensor` of shape `(R, C, H, W)`, uint8): Real images; their features are
            kept for the next time.
        metrics (`Sequence[str]`, defaults to `("fid",)`): Some of `"fid"`, `"kid"`,
            `"precision_recall"`, `"inception_score"`.
        gather (`Callable`, *optional*): Puts together the features that each process computed;
            given all, each has the result.

    Raises:
        ValueError: There is no such metric, or the network knows no classes to score.
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
                "`inception_score` needs features that know classes, as `inception` and `fashion-mnist` do."
            )
        self.extractor, self.metrics, self.gather = extractor, metrics, gather
        self.real_features = cached_features(extractor, real_images)
        self.reference = digest_images(extractor, real_images)

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> dict[str, float]:
        """
        Args:
            images (`torch.Tensor` of shape `(M, C, H, W)`, uint8): Drawn images; of several
                processes, each its share.

        Returns:
            `dict[str, float]`: `fid`, `kid`, `precision`, `recall` and `inception_score`, as far as
                they were asked for.
        """
        features = self.gather(image_features(self.extractor, images))
        found = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # of the subsets
            for name in self.metrics:
                if name == "fid":
                    found["fid"] = frechet_distance(features, self.real_features)
                elif name == "kid":
                    found["kid"] = kernel_distance(features, self.real_features)
                elif name == "precision_recall":
                    found["precision"], found["recall"] = precision_recall(features, self.real_features)
                else:
                    device = next(self.extractor.parameters()).device
                    found["inception_score"] = inception_score(
                        self.extractor.to_logits(features.to(device)).cpu()
                    )
        return found
