r"""
The Fréchet distance between two sets of features (https://huggingface.co/papers/1706.08500), each taken for a Gaussian:

$$d^2 = \lVert\mu_1 - \mu_2\rVert^2 + \operatorname{tr}\bigl(\Sigma_1 + \Sigma_2 - 2 (\Sigma_1 \Sigma_2)^{1/2}\bigr).$$
"""

import torch


def feature_statistics(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Mean and covariance of features.

    Args:
        features (`torch.Tensor` of shape `(M, K)`): M > 1 feature vectors.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Mean of shape `(K,)` and unbiased covariance of shape `(K, K)`, in float64.

    Raises:
        ValueError: There are fewer than two vectors.
    """
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"`features` must be of shape (M, K) with M > 1, but are of shape {tuple(features.shape)}.")
    features = features.double()
    return features.mean(0), features.T.cov()


def frechet_distance(mean1: torch.Tensor, covariance1: torch.Tensor, mean2: torch.Tensor, covariance2: torch.Tensor) -> float:
    """
    Squared Fréchet distance between two Gaussians, the number known as FID when the features are Inception's.

    Args:
        mean1, mean2 (`torch.Tensor` of shape `(K,)`): Means.
        covariance1, covariance2 (`torch.Tensor` of shape `(K, K)`): Covariances.

    Returns:
        `float`: The distance; 0 where the Gaussians agree.
    """
    values, vectors = torch.linalg.eigh(covariance1)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    # S1 S2 and the symmetric S1^(1/2) S2 S1^(1/2) have the same eigenvalues, and those of the latter are safe to compute.
    cross = torch.linalg.eigvalsh(root @ covariance2 @ root).clamp_min(0).sqrt().sum()
    distance = (mean1 - mean2).square().sum() + covariance1.trace() + covariance2.trace() - 2 * cross
    return max(distance.item(), 0.0)
