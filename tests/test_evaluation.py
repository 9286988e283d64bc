"""Distances against SciPy, the committed classifier, and what the cards state."""

import json

import numpy as np
import pytest
import scipy.linalg
import torch
from conftest import ROOT
from datasets import load_dataset
from huggingface_hub import ModelCard

from pipeline_pfgmpp import EmpiricalDenoiser, PFGMPPPipeline, PFGMPPScheduler
from pipeline_pfgmpp.evaluation import FashionMNISTClassifier, feature_statistics, frechet_distance
from pipeline_pfgmpp.evaluation.evaluate import evaluate, image_features, write_evaluation
from pipeline_pfgmpp.evaluation.fashion_mnist_classifier import WEIGHTS, accuracy
from pipeline_pfgmpp.sampling import generate
from pipeline_pfgmpp.training import load_images


def features(count, dims, seed, shift=0.0):
    rng = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dims, dims, generator=rng, dtype=torch.float64)
    return torch.randn(count, dims, generator=rng, dtype=torch.float64) @ mixing + shift


@pytest.mark.parametrize("count", [500, 40])  # the second with singular covariances
def test_frechet_distance_agrees_with_scipy(count):
    first, second = feature_statistics(features(count, 64, 0)), feature_statistics(features(count, 64, 1, shift=0.3))
    (m1, c1), (m2, c2) = ([t.numpy() for t in statistics] for statistics in (first, second))
    offset = 1e-12 * np.eye(64)  # SciPy's square root needs a regular matrix
    root = scipy.linalg.sqrtm((c1 + offset) @ (c2 + offset)).real
    expected = ((m1 - m2) ** 2).sum() + np.trace(c1 + c2 - 2 * root)
    assert frechet_distance(*first, *second) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_in_closed_form():
    mean, covariance = torch.zeros(3, dtype=torch.float64), torch.diag(torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64))
    assert frechet_distance(mean, covariance, mean, covariance) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(mean, covariance, mean + 2, 4 * covariance) == pytest.approx(3 * 4 + 1 + 4 + 9)


def test_statistics_are_those_of_numpy():
    data = features(50, 5, 2).float()
    mean, covariance = feature_statistics(data)
    np.testing.assert_allclose(mean, data.double().numpy().mean(0))
    np.testing.assert_allclose(covariance, np.cov(data.double().numpy(), rowvar=False))
    with pytest.raises(ValueError, match="M > 1"):
        feature_statistics(data[:1])


@pytest.fixture(scope="module")
def classifier():
    return FashionMNISTClassifier.from_pretrained(WEIGHTS).eval()


def test_the_classifier_is_small_and_knows_clothes(classifier, fashion_mnist):
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) < 2_000_000
    data = load_images(load_dataset(str(fashion_mnist), split="test"), resolution=28)
    # 120 of the test images are here; with the whole test set the training command prints 0.93
    assert accuracy(classifier, data.images, data.labels) > 0.86
    assert classifier.features(torch.zeros(2, 1, 28, 28)).shape == (2, 128)
    with pytest.raises(ValueError, match="`images` must be of shape"):
        classifier.features(torch.zeros(2, 3, 32, 32))


def test_features_of_bytes_and_of_floats_agree(classifier, fashion_mnist):
    images = load_images(load_dataset(str(fashion_mnist), split="test"), resolution=28).images[:7]
    torch.testing.assert_close(
        image_features(classifier, images, batch_size=3), image_features(classifier, images.float() / 127.5 - 1)
    )


def test_evaluate_tells_good_from_bad(fashion_mnist):
    images = load_images(load_dataset(str(fashion_mnist), split="train"), resolution=28).images
    pipe = PFGMPPPipeline(EmpiricalDenoiser(images.float() / 127.5 - 1), PFGMPPScheduler(D=128))
    samples = torch.cat([batch for _, batch in generate(pipe, list(range(60)), batch_size=32, num_inference_steps=5)])
    good = evaluate(samples, images)
    noise = torch.randint(0, 256, (60, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    bad = evaluate(noise, images)
    assert good["num_images"] == 60
    assert good["frechet_distance"] < 2 * good["frechet_distance_of_real_halves"]
    assert bad["frechet_distance"] > 3 * good["frechet_distance"]
    assert bad["frechet_distance_of_real_halves"] == good["frechet_distance_of_real_halves"]
    with pytest.raises(ValueError, match="121 samples need 242 real images"):
        evaluate(images[:121], images)


def test_results_are_kept_with_the_model(tmp_path):
    results = {
        "frechet_distance": 12.5, "frechet_distance_of_real_halves": 0.75, "num_images": 5000, "features": "fashion-mnist",
        "settings": {"num_inference_steps": 18, "scheduler": {"solver_type": "heun"}, "command": "pfgmpp sample here"},
    }  # fmt: skip
    (tmp_path / "README.md").write_text("---\nlibrary_name: diffusers\n---\n\n# A model\n\n## Limits\n\nMany.\n")
    for _ in range(2):  # a second time replaces the first
        write_evaluation(tmp_path, results, "pfgmpp evaluate here")
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: diffusers\nmodel-index:\n")
    assert card.count("## Evaluation") == card.count("## Limits\n\nMany.") == 1
    assert ModelCard.load(tmp_path / "README.md").data.eval_results[0].metric_value == 12.5
    assert "| samples, 18 steps of heun | 12.5 |" in card
    assert "pfgmpp sample here\npfgmpp evaluate here\n" in card
    assert json.loads((tmp_path / "evaluation.json").read_text()) == {**results, "command": "pfgmpp evaluate here"}


@pytest.mark.parametrize("card", sorted((ROOT / "model_cards").glob("*/evaluation.json")), ids=lambda path: path.parent.name)
def test_cards_state_what_was_measured(card):
    results, text = json.loads(card.read_text()), card.with_name("README.md").read_text()
    for name in ("frechet_distance", "frechet_distance_of_real_halves"):
        assert f"| {results[name]} |" in text
    assert results["command"] in text
    assert results["frechet_distance_of_real_halves"] < results["frechet_distance"]
