"""Metrics in closed form and against SciPy, features of every kind, and what the cards state."""

import json
import math
import os
import runpy
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import scipy.linalg
import torch
from conftest import ROOT, make_tiny_pipeline
from datasets import ClassLabel, Dataset, Features, Image, load_dataset
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from safetensors.torch import save_file
from transformers import Dinov2Config, Dinov2Model

from pipeline_pfgmpp import EmpiricalDenoiser, PFGMPPPipeline, PFGMPPScheduler, commands
from pipeline_pfgmpp.commands.loading import load_real_images
from pipeline_pfgmpp.data import load_images
from pipeline_pfgmpp.evaluation import ImageMetrics, extract_features, frechet_distance, load_features
from pipeline_pfgmpp.evaluation.classifier import WEIGHTS, ImageClassifier, measure_accuracy
from pipeline_pfgmpp.evaluation.evaluate import check_num_images, evaluate
from pipeline_pfgmpp.evaluation.features import digest_images, extract_features_once
from pipeline_pfgmpp.evaluation.inception import InceptionV3
from pipeline_pfgmpp.evaluation.metrics import inception_score, kernel_distance, precision_recall
from pipeline_pfgmpp.evaluation.reports import (
    build_report,
    format_evaluation,
    format_mean,
    write_evaluation,
)
from pipeline_pfgmpp.evaluation.verify import format_figures, predict_distance, verify_evaluation
from pipeline_pfgmpp.generation import generate, load_samples
from pipeline_pfgmpp.hub.files import list_files
from pipeline_pfgmpp.records.dimensions import format_dimension
from pipeline_pfgmpp.records.reports import parse_report


pytestmark = pytest.mark.filterwarnings("ignore:The Fréchet distance of")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Features of real images are kept for this run of the tests alone."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")


@pytest.fixture(scope="module")
def classifier():
    return load_features("fashion-mnist")


@pytest.fixture
def test_images(fashion_mnist):
    return load_images(load_dataset(str(fashion_mnist), split="test"), resolution=28).images


# Metrics


def features(count, dims, seed, shift=0.0):
    rng = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dims, dims, generator=rng, dtype=torch.float64)
    return torch.randn(count, dims, generator=rng, dtype=torch.float64) @ mixing + shift


def test_frechet_distance_agrees_with_scipy():
    first = features(500, 64, 0)
    second = features(400, 64, 1, shift=0.3)
    (m1, c1), (m2, c2) = ((x.mean(0).numpy(), np.cov(x.numpy(), rowvar=False)) for x in (first, second))
    root = scipy.linalg.sqrtm(c1 @ c2).real
    expected = ((m1 - m2) ** 2).sum() + np.trace(c1 + c2 - 2 * root)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("count", [500, 40])  # the second with singular covariances
def test_frechet_distance_in_closed_form(count):
    """
    Where one set is the other scaled by s and moved, the roots of their covariances differ by the
    factor s.
    """
    first = features(count, 64, 2)
    scaled = 3 * first + 0.5
    expected = (2 * first.mean(0) + 0.5).square().sum() + (3 - 1) ** 2 * first.T.cov().trace()
    assert frechet_distance(scaled, first) == pytest.approx(expected.item(), rel=1e-5)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-3)


def test_a_distance_of_few_images_warns():
    with pytest.warns(UserWarning, match="The Fréchet distance of 40 images over 64 features says little"):
        frechet_distance(features(40, 64, 0), features(80, 64, 0))
    with pytest.raises(ValueError, match="two images"):
        frechet_distance(features(1, 64, 0), features(80, 64, 0))


def test_kernel_distance_in_closed_form():
    first = features(30, 8, 3) / 4
    second = features(30, 8, 4) / 4

    def kernel(x, y):
        return (x @ y.T / 8 + 1) ** 3

    within = [(kernel(x, x).sum() - kernel(x, x).trace()) / (30 * 29) for x in (first, second)]
    expected = sum(within) - 2 * kernel(first, second).mean()
    assert kernel_distance(first, second) == pytest.approx(expected.item(), rel=1e-9)


def test_precision_and_recall_tell_fidelity_from_variety():
    left = torch.randn(200, 4, dtype=torch.float64)
    right = torch.randn(200, 4, dtype=torch.float64) + 100
    both = torch.cat([left, right])
    assert precision_recall(both + 1e-3, both) == (1, 1)
    precision, recall = precision_recall(torch.cat([left, left + 1e-3]), both)  # only ever left
    assert precision == 1
    assert recall == pytest.approx(0.5, abs=0.02)
    assert precision_recall(both + 1e4, both) == (0, 0)


def test_inception_score_in_closed_form():
    sure = 100 * torch.eye(10).repeat(1000, 1)
    assert inception_score(sure) == pytest.approx(10, rel=0.01)
    assert inception_score(torch.zeros(100, 10)) == pytest.approx(1)


def test_metrics_come_together(classifier, test_images):
    names = ("fid", "kid", "precision_recall", "inception_score")
    metrics = ImageMetrics(classifier, test_images, names)
    found = metrics(test_images)
    assert found == metrics(test_images)
    assert list(found) == ["fid", "kid", "precision", "recall", "inception_score"]
    assert found["precision"] == found["recall"] == 1
    assert found["fid"] == pytest.approx(0, abs=1e-2)
    with pytest.raises(ValueError, match="There is no metric 'fjd'"):
        ImageMetrics(classifier, test_images, ("fjd",))


# Features


def test_the_classifier_is_small_and_knows_clothes(classifier, fashion_mnist):
    assert sum(path.stat().st_size for path in (WEIGHTS / "fashion-mnist").iterdir()) < 2_000_000
    data = load_images(load_dataset(str(fashion_mnist), split="test"), resolution=28)
    # 120 of the test images are here; with the whole test set the training command prints 0.93
    assert measure_accuracy(classifier, data.images, data.labels) > 0.86
    assert classifier.extract(torch.zeros(2, 1, 28, 28)).shape == (2, 128)
    with pytest.raises(ValueError, match="`images` must be of shape"):
        classifier.extract(torch.zeros(2, 3, 32, 32))


def test_features_of_emoji_group_what_belongs_together():
    """The nearest other picture is of the same subgroup more often than by distances between pixels."""
    classifier = load_features("emoji")
    emoji = load_dataset(str(ROOT / "tests" / "fixtures" / "emoji"), split="train")
    data = load_images(emoji, resolution=64, label_column="subgroup")
    images = data.images.float() / 127.5 - 1

    def find_share(vectors):
        distances = torch.cdist(vectors, vectors).fill_diagonal_(torch.inf)
        return (data.labels[distances.argmin(1)] == data.labels).float().mean()

    assert find_share(classifier.extract(images)) > find_share(images.flatten(1)) + 0.05
    assert sum(path.stat().st_size for path in (WEIGHTS / "emoji").iterdir()) < 2_000_000


def test_the_classifier_can_be_trained_again(classifier, fashion_mnist, tmp_path, monkeypatch, capsys):
    script = ROOT / "experiments" / "classifier.py"
    arguments = [str(fashion_mnist), str(tmp_path / "weights"), "--epochs", "2", "--batch-size", "24"]
    monkeypatch.setattr("sys.argv", [str(script), *arguments])
    with torch.random.fork_rng(devices=[]):
        runpy.run_path(str(script), run_name="__main__")
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("Accuracy on the test split after epoch 2: ")
    assert float(last.split()[-1]) > 0.2  # chance is 0.1
    model = ImageClassifier.from_pretrained(tmp_path / "weights")
    model.load_state_dict(classifier.state_dict())  # the same network


def draw_inception_weights():
    """Draw weights by a rule that the golden file was made with, so small that activations stay in bounds."""
    rng = torch.Generator().manual_seed(0)
    weights = {}
    for name, tensor in InceptionV3().state_dict().items():
        if tensor.ndim > 1:
            scale = (2 / tensor[0].numel()) ** 0.5
            weights[name] = scale * torch.randn(tensor.shape, generator=rng)
        elif tensor.dtype == torch.float32:
            centre = 0 if "mean" in name or "bias" in name else 1
            weights[name] = centre + 0.1 * torch.rand(tensor.shape, generator=rng)
        else:
            weights[name] = tensor
    return weights


def test_inception_is_the_network_of_fid(golden, tmp_path):
    """The golden file holds what torch-fidelity 0.4.0 makes of these images with these weights."""
    tensors, _ = golden("inception")
    path = tmp_path / "weights.pth"
    torch.save(draw_inception_weights(), path)
    extractor = load_features(str(path))
    found = extract_features(extractor, tensors["images"])
    spread = tensors["features"].std(0).mean()
    assert (found - tensors["features"]).abs().max() < 2e-3 * spread
    torch.testing.assert_close(extractor.to_logits(found), tensors["logits"], rtol=1e-4, atol=1e-4)
    grey = tensors["images"][:, :1]
    torch.testing.assert_close(
        extract_features(extractor, grey), extract_features(extractor, grey.expand(-1, 3, -1, -1))
    )


class Compiled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 5)

    def forward(self, images: torch.Tensor, return_features: bool = False):
        pooled = images.mean(dim=(2, 3))
        return self.layer(pooled) if return_features else pooled


def test_torchscript_runs_only_when_told(tmp_path):
    path = tmp_path / "compiled.pt"
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    module = Compiled()
    torch.jit.script(module).save(path)
    with pytest.raises(ValueError, match="is a TorchScript program, which runs only with trust_remote_code"):
        load_features(str(path))
    extractor = load_features(str(path), trust_remote_code=True)
    expected = module(images.float().expand(-1, 3, -1, -1), return_features=True)
    torch.testing.assert_close(extract_features(extractor, images), expected.detach())
    with pytest.raises(ValueError, match="`inception_score` needs features that know classes"):
        ImageMetrics(extractor, images, ["inception_score"])


def test_a_program_needs_no_parameters(tmp_path):
    torch.jit.freeze(torch.jit.script(Compiled().eval())).save(tmp_path / "frozen.pt")
    extractor = load_features(str(tmp_path / "frozen.pt"), trust_remote_code=True)
    assert not list(extractor.parameters())
    assert extract_features(extractor, torch.zeros(3, 1, 8, 8, dtype=torch.uint8)).shape == (3, 5)


def test_files_that_hold_something_else_are_refused(tmp_path):
    torch.save(Compiled(), tmp_path / "pickled.pt")
    save_file({"layer": torch.zeros(3)}, tmp_path / "other.safetensors")
    (tmp_path / "text.pth").write_text("nothing")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "other.safetensors").read_bytes()[:-4])
    for name, message in (
        ("pickled.pt", "holds more than tensors"),
        ("other.safetensors", "does not hold the weights of FID's Inception network"),
        ("text.pth", "was not written by torch.save"),
        ("cut.safetensors", "is damaged"),
        ("nowhere.pth", "There is no file"),
    ):
        with pytest.raises(ValueError, match=message):
            load_features(str(tmp_path / name))


@pytest.fixture
def backbone(tmp_path):
    """A tiny DINOv2 with weights drawn at random."""
    config = Dinov2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=28,
        patch_size=14,
    )
    Dinov2Model(config).save_pretrained(tmp_path / "backbone")
    processor = {
        "image_processor_type": "BitImageProcessor",
        "resample": 3,
        "size": {"shortest_edge": 28},
        "do_resize": True,
        "crop_size": {"height": 28, "width": 28},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.25, 0.25, 0.25],
    }
    (tmp_path / "backbone" / "preprocessor_config.json").write_text(json.dumps(processor))
    return tmp_path / "backbone"


def test_a_vision_model_of_transformers_gives_features(backbone):
    images = torch.randint(
        0, 256, (5, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    found = extract_features(load_features(str(backbone)), images, batch_size=2)
    inputs = (images.expand(-1, 3, -1, -1) / 255 - 0.5) / 0.25
    with torch.no_grad():
        expected = Dinov2Model.from_pretrained(backbone)(pixel_values=inputs).pooler_output
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_features_come_from_the_hub(hub, backbone, tmp_path):
    server, env = hub
    (tmp_path / "compiled").mkdir()
    torch.jit.script(Compiled()).save(tmp_path / "compiled" / "compiled.pt")
    server.add(backbone, "org/backbone")
    server.add(tmp_path / "compiled", "org/inception")
    code = """
import torch
from pipeline_pfgmpp.evaluation import extract_features, load_features
images = torch.zeros(2, 1, 28, 28, dtype=torch.uint8)
for name in ("org/backbone", "org/inception/compiled.pt"):
    print(tuple(extract_features(load_features(name, trust_remote_code=True), images).shape))
"""
    result = subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True)
    assert result.stdout == "(2, 32)\n(2, 5)\n", result.stderr


def test_features_of_real_images_are_computed_once(classifier, test_images, monkeypatch):
    def extract_once(images):
        return extract_features_once(classifier, images, digest_images(classifier, images))

    first = extract_once(test_images[:50])
    assert torch.equal(first, extract_features(classifier, test_images[:50]))
    calls = []
    monkeypatch.setattr(
        type(classifier), "extract", lambda self, images: calls.append(1) or torch.zeros(len(images), 1)
    )
    assert torch.equal(extract_once(test_images[:50]), first)
    assert not calls
    assert extract_once(test_images[:49]).shape == (49, 1)  # other images


def test_the_real_images_are_digested_once(classifier, test_images, monkeypatch):
    digests = []

    def digest(*args):
        digests.append(digest_images(*args))
        return digests[-1]

    monkeypatch.setattr("pipeline_pfgmpp.evaluation.metrics.digest_images", digest)
    metrics = ImageMetrics(classifier, test_images)
    assert digests == [metrics.reference]


# Models


def test_evaluate_tells_good_from_bad(classifier, fashion_mnist, tmp_path):
    images = load_images(load_dataset(str(fashion_mnist), split="train"), resolution=28).images
    metrics = ImageMetrics(classifier, images, ("fid", "precision_recall"))
    pipe = PFGMPPPipeline(EmpiricalDenoiser(images.float() / 127.5 - 1), PFGMPPScheduler(D=128))
    settings = {"num_inference_steps": 5, "guidance_scale": 1.0}
    (good,) = evaluate(pipe, metrics, [128], tmp_path, 60, num_groups=2, **settings)
    noise = torch.randint(
        0, 256, (60, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    bad = metrics(noise)
    assert good["D"] == "128"
    assert len(good["fid"]) == 2
    assert bad["fid"] > 3 * max(good["fid"])
    assert bad["recall"] < 0.1 < 0.9 < min(good["recall"])
    drawn = torch.cat(
        [batch for _, batch in generate(pipe, list(range(60)), batch_size=32, D=128, **settings)]
    )
    assert good["fid"][0] == pytest.approx(metrics(drawn)["fid"], rel=1e-3)
    # Images on disk are not generated again, and not mixed with images of other settings.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "D-128").iterdir()}
    assert evaluate(pipe, metrics, [128], tmp_path, 60, num_groups=2, **settings) == [good]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "D-128").iterdir()} == before
    with pytest.raises(ValueError, match="holds images drawn with other settings"):
        evaluate(pipe, metrics, [128], tmp_path, 60, num_inference_steps=6, guidance_scale=1.0)


@pytest.mark.parametrize(
    ("option", "settings"),
    [
        (["--class-label", "3"], {"class_labels": 3}),
        (["--match-classes"], {"class_weights": [1] * 10}),
    ],
)
def test_the_classes_that_are_measured_are_those_asked_for(
    option, settings, fashion_mnist, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    pipe = make_tiny_pipeline(label_dim=10)
    names = load_dataset(str(fashion_mnist), split="test").features["label"].names
    pipe.register_to_config(id2label={str(number): name for number, name in enumerate(names)})
    pipe.save_pretrained("model")
    few = ["--D", "16", "--num-images", "6", "--groups", "1", "--num-inference-steps", "1"]
    commands.main(["evaluate", "model", "--data", str(fashion_mnist), *few, *option, "--output", "out"])
    if "class_weights" in settings:
        labels = load_dataset(str(fashion_mnist), split="test")["label"]
        settings = {"class_weights": np.bincount(labels, minlength=10).tolist()}
    report = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert settings.items() <= report["settings"].items()
    (folder,) = tmp_path.rglob("D-16")
    drawn, _ = load_samples(folder)
    expected = next(generate(pipe, list(range(6)), 6, None, D=16, num_inference_steps=1, **settings))[1]
    torch.testing.assert_close(drawn.float(), expected.float(), atol=1, rtol=0)


def test_processes_share_the_work(fashion_mnist, tmp_path):
    make_tiny_pipeline(D=16).save_pretrained(tmp_path / "model")
    arguments = ["evaluate", str(tmp_path / "model"), "--data", str(fashion_mnist), "--D", "16,inf"]
    arguments += ["--num-images", "15", "--num-inference-steps", "2", "--batch-size", "4"]
    arguments += ["--metrics", "fid,kid", "--baseline-split", "train", "--output"]
    commands.main([*arguments, str(tmp_path / "one")])
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "pipeline_pfgmpp"]
    result = subprocess.run(
        [sys.executable, *launch, *arguments, str(tmp_path / "two")],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    one, two = (
        json.loads((tmp_path / name / "evaluation.json").read_text())["results"] for name in ("one", "two")
    )
    assert [entry.get("D") for entry in one] == ["16", "∞", None]
    assert one[2]["images"] == "15 real images, train split"
    for first, second in zip(one, two):
        assert second["fid"] == pytest.approx(first["fid"], rel=1e-3)
        assert second["kid"] == pytest.approx(first["kid"], rel=1e-3)


def test_every_process_needs_an_image():
    check_num_images(2, num_processes=2)
    with pytest.raises(ValueError, match="`num_images` must be at least 4, one image per process, but is 3"):
        check_num_images(3, num_processes=4)


def test_figures_of_other_weights_never_come_into_a_card(tmp_path):
    pipe = make_tiny_pipeline()
    results = build_report(
        [{"D": "16", "fid": [12.5]}], pipe, "fashion-mnist", 50, "images", "here", num_inference_steps=2
    )
    results["settings"]["guidance_scale"] = 1.0
    make_tiny_pipeline(seed=1).save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("# A model\n")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="were measured with other weights"):
        write_evaluation(tmp_path, results)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    pipe.unet.save_pretrained(tmp_path / "unet")
    write_evaluation(tmp_path, results)
    assert "12.5" in (tmp_path / "README.md").read_text()


def test_a_card_says_which_class_and_which_data_were_measured(tmp_path):
    pipe = make_tiny_pipeline(label_dim=3)
    pipe.register_to_config(id2label={0: "shoe", 1: "bag", 2: "shirt"})
    pipe.save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("---\ndatasets: org/clothes\n---\n# A model\n")
    settings = {"num_inference_steps": 2, "guidance_scale": 1.0, "class_labels": 1}
    entries = [{"D": "16", "fid": [12.5]}]
    write_evaluation(tmp_path, build_report(entries, pipe, "fashion-mnist", 50, "images", "here", **settings))
    card = (tmp_path / "README.md").read_text()
    assert "all of class bag" in card
    assert "type: org/clothes" in card


def test_a_card_without_data_names_those_that_were_measured(tmp_path):
    pipe = make_tiny_pipeline()
    pipe.save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("# A model\n")
    settings = {"num_inference_steps": 2, "guidance_scale": 1.0}
    entries = [{"D": "16", "fid": [12.5]}]
    report = build_report(entries, pipe, "fashion-mnist", 50, "50 images of `clothes`", "here", **settings)
    write_evaluation(tmp_path, report | {"data": "org/clothes"})
    assert "type: org/clothes" in (tmp_path / "README.md").read_text()


def test_figures_of_other_weights_are_not_pushed(tmp_path):
    pipe = make_tiny_pipeline()
    pipe.save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("# A model\n")
    settings = {"num_inference_steps": 2, "guidance_scale": 1.0}
    write_evaluation(
        tmp_path,
        build_report([{"D": "16", "fid": [12.5]}], pipe, "fashion-mnist", 50, "images", "here", **settings),
    )
    assert "evaluation.json" in list_files(tmp_path)
    make_tiny_pipeline(seed=1).unet.save_pretrained(tmp_path / "unet")
    with pytest.raises(ValueError, match=r"evaluation\.json were measured with other weights"):
        list_files(tmp_path)


def test_a_distance_of_few_predicts_that_of_many():
    real = features(20_000, 16, 0)
    drawn = features(8000, 16, 0, shift=0.2)[torch.randperm(8000, generator=torch.Generator().manual_seed(0))]
    many = frechet_distance(drawn, real)
    measured, predicted, error = predict_distance(drawn[:400], real, 8000)
    assert abs(predicted - many) < 4 * error
    assert abs(predicted - many) < abs(measured - many)


def test_a_list_of_classes_is_shared_among_the_batches():
    pipe = make_tiny_pipeline(label_dim=3)
    labels = [2, 0, 1, 1, 0]
    options = {"D": 16, "num_inference_steps": 2}
    together = torch.cat(
        [each for _, each in generate(pipe, list(range(5)), 5, None, class_labels=labels, **options)]
    )
    apart = torch.cat(
        [each for _, each in generate(pipe, list(range(5)), 2, None, class_labels=labels, **options)]
    )
    torch.testing.assert_close(apart.float(), together.float(), atol=1, rtol=0)
    other = torch.cat(
        [each for _, each in generate(pipe, list(range(5)), 5, None, class_labels=labels[::-1], **options)]
    )
    changed = (other.float() - together.float()).abs().amax((1, 2, 3))
    assert ((changed > 2) == torch.tensor(labels).ne(torch.tensor(labels[::-1]))).all()


def test_verify_tells_a_right_card_from_a_wrong_one(classifier, test_images):
    metrics = ImageMetrics(classifier, test_images)
    pipe = make_tiny_pipeline()
    settings = {"num_inference_steps": 2, "guidance_scale": 1.0}
    images = torch.cat([batch for _, batch in generate(pipe, list(range(32)), 32, None, D=16, **settings)])
    right = metrics(images)["fid"]
    results = build_report(
        [{"D": "16", "fid": [right]}], pipe, "fashion-mnist", 32, "images", "here", **settings
    )
    (figure,) = verify_evaluation(pipe, metrics, results, 32)
    assert figure.agrees
    assert figure.predicted == pytest.approx(right, rel=1e-2)
    results["results"][0]["fid"] = [3 * right]
    (figure,) = verify_evaluation(pipe, metrics, results, 32)
    assert not figure.agrees
    assert "**does not agree**" in format_figures("evaluation.json", [figure])
    for name in ("churn", "generator", "D"):
        results["settings"][name] = 3
        with pytest.raises(
            ValueError, match=f"its `settings` hold {name}, which this pipeline does not take"
        ):
            verify_evaluation(pipe, metrics, results, 32)
        del results["settings"][name]


def test_results_of_others_and_windows_line_ends_leave_one_section(tmp_path):
    pipe = make_tiny_pipeline()
    pipe.save_pretrained(tmp_path)
    settings = {"num_inference_steps": 18, "guidance_scale": 1.0}
    foreign = EvalResult(
        task_type="unconditional-image-generation",
        dataset_type="a/b",
        dataset_name="b",
        metric_type="clip",
        metric_value=1.0,
    )
    data = ModelCardData(datasets="a/b", model_name="model", eval_results=[foreign])
    card = f"---\n{data}\n---\n\n# A model\n\n## Evaluation\n\nOld.\n\n## Limits\n\nMany.\n"
    (tmp_path / "README.md").write_bytes(card.replace("\n", "\r\n").encode())
    for features in ("fashion-mnist", "inception", "inception"):
        report = build_report([{"D": "16", "fid": [9.0]}], pipe, features, 50, "images", "pfgmpp", **settings)
        write_evaluation(tmp_path, report)
    text = (tmp_path / "README.md").read_bytes().decode()
    assert "\r" not in text
    assert text.count("## Evaluation\n") == 1
    assert "Old." not in text
    types = [result.metric_type for result in ModelCard.load(tmp_path / "README.md").data.eval_results]
    assert types == ["clip", "frechet_distance", "fid"]


@pytest.mark.parametrize(
    ("reading", "rows"),
    [
        ({"class_name": "ankle-boot"}, 2),
        ({"class_name": "Bag", "label_column": "label"}, 1),
        ({"crop": True}, 3),
        ({"background": "black"}, 3),
    ],
)
def test_real_images_are_read_as_in_training(reading, rows, tmp_path):
    images = [PIL.Image.new("RGBA", (40, 28), (255, 255, 255, 0)) for _ in range(3)]
    for index, image in enumerate(images):
        image.putpixel((39, index), (255, 0, 0, 255))
    features = Features({"image": Image(), "label": ClassLabel(names=["Ankle boot", "Bag"])})
    data = Dataset.from_dict({"image": images, "label": [0, 1, 0]}, features=features)
    (tmp_path / "data").mkdir()
    data.to_parquet(tmp_path / "data" / "test.parquet")
    real = load_real_images(str(tmp_path / "data"), "test", make_tiny_pipeline(), **reading)
    assert real.shape == (rows, 1, 28, 28)
    assert (real.median() == 0) == ("background" in reading)


def test_a_class_that_the_data_lack_is_named(fashion_mnist):
    with pytest.raises(ValueError, match="--class-label: the data hold no image of the class 'Flags'"):
        load_real_images(str(fashion_mnist), "test", make_tiny_pipeline(), class_name="Flags")


@pytest.mark.parametrize("entry", [
    {"num_images": 0}, {"results": [1]}, {"results": [{"D": "16", "fid": "x"}]},
    {"results": [{"D": "16", "fid": ["x"]}]},
])  # fmt: skip
def test_a_report_that_is_none_is_refused(entry):
    report = {
        "results": [{"D": "16", "fid": [1.0]}],
        "settings": {},
        "features": "inception",
        "num_images": 5,
    }
    parse_report(json.dumps(report), "evaluation.json", "model")
    with pytest.raises(ValueError, match="is not a report of `pfgmpp evaluate`"):
        parse_report(json.dumps(report | entry), "evaluation.json", "model")


@pytest.mark.parametrize(("D", "text"), [
    (2048, "2048"), (0.5, "0.5"), (2.0**20, "1048576"), (131072.5, "131072.5"), (None, "∞"), (math.inf, "∞"),
])  # fmt: skip
def test_dimensions_lose_no_digit(D, text):
    assert format_dimension(D) == text


def test_results_are_kept_with_the_model(tmp_path):
    pipe = make_tiny_pipeline()
    entries = [
        {"D": "16", "fid": [12.5, 13.5]},
        {"D": "∞", "fid": [20.0, 20.0]},
        {"images": "real ones", "fid": [0.75]},
    ]
    settings = {"num_inference_steps": 18, "guidance_scale": 1.0}
    pipe.save_pretrained(tmp_path)
    results = build_report(
        entries, pipe, "fashion-mnist", 5000, "the test images", "pfgmpp evaluate here", **settings
    )
    (tmp_path / "README.md").write_text(
        "---\nlibrary_name: diffusers\n---\n\n# A model\n\n## Limits\n\nMany.\n"
    )
    for _ in range(2):  # a second time replaces the first
        write_evaluation(tmp_path, results)
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: diffusers\nmodel-index:\n")
    assert card.count("## Evaluation") == card.count("## Limits\n\nMany.") == 1
    assert [result.metric_value for result in ModelCard.load(tmp_path / "README.md").data.eval_results] == [
        13,
        20,
    ]
    assert "| D = 16 | 13.00 ± 0.71 |\n| D = ∞ | 20 ± 0 |\n| real ones | 0.75 |\n" in card
    assert "18 steps of heun.\n" in card
    assert "```bash\npfgmpp evaluate here\n```" in card
    assert json.loads((tmp_path / "evaluation.json").read_text()) == results


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([6.8822, 6.0954, 6.8151], "6.60 ± 0.44"),
        ([101.0, 125.0], "113 ± 17"),
        ([0.27191], "0.27191"),
        ([3, 3], "3 ± 0"),
    ],
)
def test_a_mean_is_as_exact_as_its_deviation(values, text):
    assert format_mean(values) == text


@pytest.mark.parametrize(
    "card", sorted((ROOT / "model_cards").glob("*/evaluation.json")), ids=lambda path: path.parent.name
)
def test_cards_state_what_was_measured(card):
    results = json.loads(card.read_text())
    text = card.with_name("README.md").read_text()
    assert format_evaluation(results) in text
    assert results["command"] in text
