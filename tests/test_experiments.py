"""The report is what its command writes from the measurements, and every script says what it does."""

import importlib
import json
import math
import re
import runpy
import sys

import pytest
import torch
from conftest import ROOT

from pipeline_pfgmpp import PFGMPPScheduler, PFGMPPUNet2DModel
from pipeline_pfgmpp.training import DimensionRange, PFGMPPLoss
from pipeline_pfgmpp.training.loss import Perturbation, denoise


EXPERIMENTS = ROOT / "experiments"
SCRIPTS = [
    path
    for folder in ("benchmarks", "experiments")
    for path in sorted((ROOT / folder).glob("*.py"))
    if "__main__" in path.read_text()
]
MEASUREMENTS = sorted((EXPERIMENTS / "results").glob("*.json"))


@pytest.fixture
def load_script(monkeypatch):
    """Import a script of one of the folders as a module, next to its neighbours."""

    def load(folder, name):
        monkeypatch.syspath_prepend(ROOT / folder)
        return importlib.import_module(name)

    yield load
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) or ""
        if file.startswith((str(EXPERIMENTS), str(ROOT / "benchmarks"))):
            del sys.modules[name]


def test_the_report_is_what_its_command_writes(load_script):
    assert load_script("experiments", "write_results").render_report() == (
        EXPERIMENTS / "RESULTS.md"
    ).read_text(encoding="utf-8")


def test_the_command_writes_the_report(load_script, tmp_path, monkeypatch):
    script = load_script("experiments", "write_results")
    monkeypatch.setattr(script, "REPORT", tmp_path / "RESULTS.md")
    monkeypatch.setattr(sys, "argv", ["write_results.py"])
    script.main()
    assert (tmp_path / "RESULTS.md").read_text(encoding="utf-8") == script.render_report()


@pytest.mark.parametrize("path", MEASUREMENTS, ids=lambda path: path.stem)
def test_a_measurement_names_its_command_machine_and_day(path):
    measurement = json.loads(path.read_text(encoding="utf-8"))
    assert set(measurement) - {"note"} == {"command", "machine", "date", "results"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", measurement["date"])
    for script in re.findall(r"\S+\.py\b", measurement["command"]):
        assert (ROOT / script).is_file(), script
    assert measurement["command"] in (EXPERIMENTS / "RESULTS.md").read_text(encoding="utf-8")


def list_anchors(text):
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_into_the_report_lead_somewhere():
    report = (EXPERIMENTS / "RESULTS.md").read_text(encoding="utf-8")
    anchors = list_anchors(report)
    assert anchors >= {"speed", "when-sampling-is-disturbed"}
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "space").glob("*.md")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    linked = {*re.findall(r"RESULTS\.md#([\w-]+)", text), *re.findall(r"\]\(#([\w-]+)\)", report)}
    assert linked <= anchors


def test_tables_of_the_readme_and_the_guides_are_in_the_report():
    report = (EXPERIMENTS / "RESULTS.md").read_text(encoding="utf-8")
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for row in re.findall(r"^\|.*\d\.\d.*\|$", page.read_text(encoding="utf-8"), re.MULTILINE):
            assert row in report, f"{page.name}: {row}"


def test_the_report_shows_every_picture():
    report = (EXPERIMENTS / "RESULTS.md").read_text(encoding="utf-8")
    shown = re.findall(r"!\[.*?\]\((.*?)\)", report)
    assert all((EXPERIMENTS / picture).is_file() for picture in shown)
    assert {path.name for path in EXPERIMENTS.glob("*.png")} <= set(shown)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_script_says_what_it_does(path, load_script, monkeypatch, capsys):
    monkeypatch.syspath_prepend(path.parent)
    monkeypatch.setattr(sys, "argv", [path.name, "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(path), run_name="__main__")
    assert stopped.value.code == 0
    assert f"python {path.relative_to(ROOT).as_posix()}" in capsys.readouterr().out


def test_a_study_writes_what_the_report_reads(load_script, tmp_path, monkeypatch, capsys):
    study = load_script("experiments", "pfgm")
    tables = load_script("experiments", "tables")
    monkeypatch.setattr(study, "RESULTS", tmp_path)
    monkeypatch.setattr(study, "__file__", str(tmp_path / "pfgm.py"))
    monkeypatch.setattr(study, "VARIANTS", study.VARIANTS[:1])
    arguments = ["--train_steps", "2", "--num_inference_steps", "4", "--num_samples", "50", "--seeds", "2"]
    monkeypatch.setattr(sys, "argv", ["pfgm.py", *arguments])
    study.main()
    measurement = json.loads((tmp_path / "pfgm.json").read_text(encoding="utf-8"))
    assert measurement["command"] == " ".join(["python experiments/pfgm.py", *arguments])
    table = tables.format_plane(measurement["results"])
    assert table in capsys.readouterr().out
    assert "| D = 1, one charge as target, no limit |" in table
    assert (tmp_path / "pfgm.png").is_file()


def test_distances_of_several_networks_become_a_table(load_script, tmp_path, monkeypatch, capsys):
    folders = {
        "every": {"16": [2.0, 4.0], "∞": [3.0, 3.0]},
        "one": {"16": [4.0, 8.0]},
        "two": {"∞": [2.0, 4.0]},
    }
    for name, distances in folders.items():
        (tmp_path / name).mkdir()
        results = [{"D": D, "fid": values} for D, values in distances.items()]
        report = {"results": [*results, {"images": "real ones", "fid": [0.1]}]}
        (tmp_path / name / "evaluation.json").write_text(json.dumps(report))
    study = load_script("experiments", "single_dimensions")
    monkeypatch.setattr(study, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["x", *(str(tmp_path / name) for name in folders)])
    study.main()
    printed = capsys.readouterr().out
    assert "| 16 | 3.0 ± 1.4 | 6.0 ± 2.8 | 0.5 ± 0 |" in printed
    assert str(tmp_path) not in (tmp_path / "single_dimensions.json").read_text()


def test_rows_that_were_taken_over_keep_their_day(load_script, tmp_path, monkeypatch):
    study = load_script("experiments", "few_calls")
    monkeypatch.setattr(study, "RESULTS", tmp_path)
    counts = {"num_images": 4, "latents": 4, "batch_size": 4}
    assert study.read_last_rows(counts) == {}
    rows = [
        {"origin": "old", "line": "Heun", "calls": 35, "date": "2026-11-26"},
        {"origin": "new", "line": "fast model", "calls": 2, "date": "2026-11-28"},
    ]
    measurement = {"date": "2026-11-28", "results": {"settings": counts, "rows": rows}}
    (tmp_path / "few_calls.json").write_text(json.dumps(measurement))
    assert study.read_last_rows(counts) == {"old": rows[0], "new": rows[1]}
    assert study.read_last_rows({**counts, "latents": 8}) == {}
    said = load_script("experiments", "tables").format_earlier_rows(measurement)
    assert said == " Measured on 2026-11-26 already: Heun at 35."


def test_choices_of_d_are_collected(load_script, tmp_path, monkeypatch, capsys):
    study = load_script("experiments", "which_d")
    monkeypatch.setattr(study, "RESULTS", tmp_path)
    report = {
        "results": [{"D": "16", "fid": [2.0, 4.0]}, {"D": "∞", "fid": [1.0, 2.0]}],
        "num_images": 9,
        "command": "pfgmpp choose-D model_cards/clothes --data data/clothes",
        "differences": {"16": {"mean": 1.5, "margin": 0.5}},
        "choice": "D = ∞ is the best beyond doubt.",
    }
    (tmp_path / "choice.json").write_text(json.dumps(report), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["which_d.py", str(tmp_path)])
    study.main()
    row = "| `clothes` | 3 (+1.50 ± 0.50) | 1.5 | D = ∞ is the best beyond doubt. |"
    assert row in capsys.readouterr().out
    measurement = json.loads((tmp_path / "which_d.json").read_text(encoding="utf-8"))
    assert measurement["command"].startswith(report["command"] + "\npython experiments/which_d.py")


def test_neighbours_along_dimensions(load_script):
    """Images that change in proportion to log D: the distance is in proportion to the step."""
    study = load_script("experiments", "dimensions")
    slope = torch.arange(len(study.DIMENSIONS))[:, None, None, None, None]
    rows = study.compare_neighbours((slope + torch.zeros(1, 3, 1, 4, 4)).to(torch.uint8))
    distances = [row["root_mean_square"] * 127.5 for row in rows]
    assert distances == pytest.approx([8, 4, 2, 1, 1, 0], abs=1e-4)
    assert [row["step"] for row in rows[:2]] == ["× 2.00", "× 1.41"]


def test_the_benchmarks_write_their_ratios(load_script, tmp_path, monkeypatch):
    benchmark = load_script("benchmarks", "noise")
    monkeypatch.setattr(benchmark, "compare_noise", lambda device: 1.25)
    monkeypatch.setattr(benchmark, "compare_field_target", lambda device: 1.5)
    monkeypatch.setattr(sys, "argv", ["noise.py", "--json", str(tmp_path / "noise.json")])
    benchmark.main()
    measurement = json.loads((tmp_path / "noise.json").read_text(encoding="utf-8"))
    assert list(measurement["results"].values()) == [1.25, 1.5]
    assert measurement["command"] == "python benchmarks/noise.py --json noise.json"


def test_rounds_are_interleaved_and_the_first_does_not_count(load_script):
    calls = []
    contenders = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    times = load_script("benchmarks", "timing").time_rounds(contenders, 2, "Timing")
    assert calls == ["a", "b"] * 3
    assert {name: len(values) for name, values in times.items()} == {"a": 2, "b": 2}


def test_the_transcription_computes_what_the_network_computes(load_script):
    benchmark = load_script("benchmarks", "network")
    unet = benchmark.build_network("cifar10-ncsnpp", "cpu", model_channels=32, num_blocks=1)
    x = torch.randn(2, 3, 32, 32)
    c_noise = torch.zeros(2)
    with torch.no_grad():
        expected = unet(x, c_noise).sample
        torch.testing.assert_close(benchmark.Transcription(unet)(x, c_noise), expected, atol=1e-4, rtol=1e-4)


@pytest.fixture
def consistency_study(load_script, monkeypatch, one_thread):
    """The study of objectives, with random images in place of scikit-learn's digits."""
    study = load_script("experiments", "consistency")
    rng = torch.Generator().manual_seed(0)
    digits = torch.rand(80, 1, 8, 8, generator=rng) * 2 - 1
    monkeypatch.setattr(study, "load_digit_images", lambda: digits)
    return study


class Waves(torch.nn.Module):
    """An embedding in the type of its input; that of the network is in float32."""

    def forward(self, timestep):
        return (timestep[:, None] * torch.linspace(0.5, 3, 16).to(timestep)).cos()


def make_digit_network():
    torch.manual_seed(0)
    options = {"model_channels": 16, "num_blocks": 1, "channel_mult": (1,), "attn_resolutions": ()}
    network = PFGMPPUNet2DModel(4, 1, 1, dropout=0.0, d_conditioning=True, **options)
    for parameter in network.parameters():  # the published start leaves out whole branches
        torch.nn.init.normal_(parameter, std=0.2)
    return network


@pytest.mark.filterwarnings("ignore:The Fréchet distance of:UserWarning")
def test_a_study_of_objectives_resumes(consistency_study, load_script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(consistency_study, "RESULTS", tmp_path)
    arguments = ["--pretraining_steps", "2", "--passes", "16", "--batch_size", "8", "--num_images", "8"]
    monkeypatch.setattr(sys, "argv", ["consistency.py", *arguments])
    monkeypatch.setattr(consistency_study, "DIMENSIONS", [16.0, math.inf])
    consistency_study.main()
    measurement = json.loads((tmp_path / "consistency.json").read_text(encoding="utf-8"))
    assert measurement["command"] == " ".join(["python experiments/consistency.py", *arguments])
    rows = measurement["results"]["rows"]
    assert [row["steps"] for row in rows] == [2, 4, 2, 2, 1]
    assert [list(row["distances"]) for row in rows] == [["35", "1"], *[["1", "2", "4"]] * 4]
    tables = load_script("experiments", "tables")
    assert tables.format_consistency(measurement["results"]) in capsys.readouterr().out

    def refuse(*args):
        raise AssertionError("It trains or draws again.")

    monkeypatch.setattr(consistency_study.Study, "optimize", refuse)
    monkeypatch.setattr(consistency_study.Study, "draw", refuse)
    consistency_study.main()
    resumed = json.loads((tmp_path / "consistency.json").read_text(encoding="utf-8"))
    assert resumed["results"] == measurement["results"]


def test_the_tangent_is_the_derivative_along_the_line(consistency_study):
    network = make_digit_network().double()
    network.map_noise = Waves()
    scheduler = PFGMPPScheduler(sigma_data=0.7)
    rng = torch.Generator().manual_seed(0)
    images = torch.rand(4, 1, 4, 4, generator=rng, dtype=torch.float64)
    noise = torch.randn(images.shape, generator=rng, dtype=torch.float64)
    t = torch.tensor([0.01, 0.3, 2.0, 50.0], dtype=torch.float64)
    D = torch.tensor([16.0, 128.0, 2048.0, math.inf], dtype=torch.float64)
    perturbation = Perturbation(t, D, noise, t)

    def move(t):
        return denoise(network, scheduler, images + t.view(-1, 1, 1, 1) * noise, t, D)

    x = images + t.view(-1, 1, 1, 1) * noise
    end, slope = consistency_study.compute_tangent(network, scheduler, x, perturbation)
    h = 1e-5 * t
    with torch.no_grad():
        torch.testing.assert_close(end, move(t), rtol=1e-9, atol=1e-9)
        difference = (move(t + h) - move(t - h)) / (2 * h).view(-1, 1, 1, 1)
    torch.testing.assert_close(slope, difference, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("solver", "levels"),
    [
        ({"solver_type": "heun"}, [80, 12.53, 12.53, 1, 1]),
        ({"solver_type": "consistency", "sigmas": {"consistency": {"2": [80.0, 0.8]}}}, [80, 0.8]),
    ],
)
def test_images_are_drawn_in_as_many_calls(consistency_study, monkeypatch, solver, levels):
    monkeypatch.setattr(sys, "argv", ["consistency.py", "--num_images", "2"])
    study = consistency_study.Study(torch.randn(4, 1, 4, 4), consistency_study.parse_arguments())
    study.scheduler = PFGMPPScheduler(sigma_min=1.0)
    network = make_digit_network()
    called = []
    network.register_forward_pre_hook(lambda _, inputs: called.append((4 * inputs[1]).exp().flatten()[0]))
    assert study.draw(network, 16.0, str(len(levels)), **solver).shape == (2, 1, 4, 4)
    assert torch.stack(called).tolist() == pytest.approx(levels, rel=0.01)


@pytest.mark.parametrize(("progress", "denoises"), [(0.0, True), (1.0, False)])
def test_continuous_time_begins_as_a_denoiser(consistency_study, progress, denoises):
    """For one image, the gradient then has the direction of that of the squared error."""
    network = make_digit_network()
    dimensions = DimensionRange(16, math.inf)
    loss = consistency_study.ContinuousLoss(PFGMPPScheduler(sigma_data=0.7), 0.5, dimensions)
    rng = torch.Generator().manual_seed(1)
    image = torch.rand(1, 1, 4, 4, generator=rng)
    perturbation = loss.draw(image.shape, rng, progress=progress)

    def compute_gradient(value):
        gradients = torch.autograd.grad(value.sum(), list(network.parameters()), allow_unused=True)
        return torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])

    ours = compute_gradient(loss(network, image, perturbation))
    error = PFGMPPLoss(loss.scheduler)(network, image, perturbation)
    cosine = torch.cosine_similarity(ours, compute_gradient(error), dim=0).item()
    assert (cosine > 0.9999) == denoises
