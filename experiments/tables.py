"""Markdown tables of the report, from the JSON that the studies and the benchmarks write."""

import re
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline_pfgmpp.evaluation.choice import compute_quantile
from pipeline_pfgmpp.evaluation.reports import format_error, format_mean


RESULTS = Path(__file__).parent / "results"
# The columns that say whether pictures show the group that they should, and how near training pictures are.
RECOGNITION = ["in the right group", "distance: median", "distance: nearest 5 %"]
# What every training loop does, whatever it trains
PARTS_OF_ANY_TRAINING = {"checking and clipping gradients", "Adam"}


def format_table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """
    Format a table.

    Args:
        header (`Iterable[str]`): Titles of the columns.
        rows (`Iterable`): Cells of each row, as many as there are titles.

    Returns:
        `str`: The table, without a newline at its end.
    """
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    text = [f"| {' | '.join(cells)} |" for cells in lines]
    text[1] = text[1].replace(" ", "")
    return "\n".join(re.sub(r"\|  (?=\|)", "| ", line) for line in text)


def format_values(values: list[float] | str) -> str:
    """
    Format the values of one figure.

    Args:
        values (`list[float]` or `str`): One value per group of images, or the mean and the deviation
            as they were printed, where only these were kept.

    Returns:
        `str`: Such as `"6.60 ± 0.44"`.
    """
    return values if isinstance(values, str) else format_mean(values)


def format_rounded(values: list[float], digits: int) -> str:
    """
    Format the mean of values with a number of digits, and their standard deviation if there are several.

    Args:
        values (`list[float]`): The values.
        digits (`int`): Digits behind the point.

    Returns:
        `str`: Such as `"46.12 ± 0.08"`.
    """
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def format_printed(results: dict[str, Any]) -> str:
    """Format a table of which only the text was kept, as `header` and `rows`."""
    return format_table(results["header"], results["rows"])


def format_single_dimensions(results: list[dict[str, Any]]) -> str:
    """Format the comparison of one network for every D with networks of a single D."""
    rows = [
        [row["D"], *(format_values(row[name]) for name in ("every", "single", "ratio"))] for row in results
    ]
    return format_table(["D", "one network for every D", "a network of this D", "ratio per group"], rows)


def format_continuity(results: list[dict[str, Any]]) -> str:
    """Format how far images of the same seeds are apart at neighbouring D."""
    rows = []
    for row in results:
        largest = f"{row['largest']:.4f}" if "largest" in row else ""
        rows.append([row["step"], f"{row['root_mean_square']:.4f}", largest])
    header = ["step in D", "root mean square between neighbours", "largest for one image"]
    return format_table(header, rows)


def format_plane(results: list[dict[str, Any]]) -> str:
    """Format the share of samples that end far from every charge of the plane."""
    rows = [[row["name"], *(f"{row[name]:.1%}" for name in ("mean", "least", "most"))] for row in results]
    return format_table(["samples farther than 0.1 from every charge", "mean", "least", "most"], rows)


def format_clothes(results: list[dict[str, Any]]) -> str:
    """Format the metrics of PFGM on Fashion-MNIST and, where they were measured, the norms of the noise."""
    metrics = {"fid": "Fréchet distance", "kid": "KID", "precision": "precision", "recall": "recall"}
    header = ["images", *metrics.values()]
    rows = [[row["images"], *(format_values(row[metric]) for metric in metrics)] for row in results]
    if "norms" in results[0]:
        header.append("norm of the noise")
        rows = [[*cells, "{:.2f} to {:.2f}".format(*row["norms"])] for cells, row in zip(rows, results)]
    return format_table(header, rows)


def format_solvers(results: dict[str, Any]) -> str:
    """Format the comparison of the fast setting with Heun's method."""
    compared = results["compared"]
    baseline = next(iter(compared.values()))
    rows = []
    for name, row in compared.items():
        distances = ", ".join(f"{value:.2f}" for value in row["frechet_distances"])
        ratio = sum(row["frechet_distances"]) / sum(baseline["frechet_distances"])
        rows.append([name, distances, f"{ratio:.3f}", f"{row['rmse']:.4f}"])
    count = results["settings"]["num_images"]
    header = [
        "setting",
        f"Fréchet distance, {count:,} images each",
        "to the first",
        "RMSE to a fine solution",
    ]
    return format_table(header, rows)


def format_few_calls(results: dict[str, Any]) -> str:
    """Format quality against the number of calls: a row per way of drawing."""
    rows = []
    first = results["rows"][0]
    for row in results["rows"]:
        distances = []
        for D, baseline in first["distances"].items():
            distance = row["distances"].get(D)
            distances.append("" if distance is None else f"{distance:.1f} ({distance / baseline:.2f})")
        errors = ["", ""]
        if row["errors"]:
            errors = [f"{row['errors'][name]:.4f}" for name in ("mean", "together")]
        rows.append([row["line"], str(row["calls"]), *distances, *errors])
    dimensions = [f"D = {D}" for D in first["distances"]]
    header = ["solver or network", "calls", *dimensions, "RMSE: mean of the latents", "all latents together"]
    return format_table(header, rows)


def format_earlier_rows(measurement: dict[str, Any]) -> str:
    """Say which rows of quality against calls are older than the measurement, which took them over."""
    days: dict[str, list[str]] = {}
    for row in measurement["results"]["rows"]:
        days.setdefault(row["date"], []).append(f"{row['line']} at {row['calls']}")
    days.pop(measurement["date"], None)
    return "".join(f" Measured on {day} already: {'; '.join(names)}." for day, names in sorted(days.items()))


def format_few_calls_time(results: dict[str, Any]) -> str:
    """Format the time of the pipeline over one bare call, one column per batch size."""
    batches = results["results"]
    names = batches[0]["over_bare_call"]
    rows = [[name, *(f"{batch['over_bare_call'][name]:.2f}" for batch in batches)] for name in names]
    header = ["time over one bare call of the network", *(f"batch of {b['batch_size']}" for b in batches)]
    return format_table(header, rows)


def format_strange_noise(results: dict[str, Any]) -> str:
    """Format the peak signal-to-noise ratio after one call, by the kind of noise and D."""
    rows = []
    for row in results["rows"]:
        after = [format_values(values) for values in row["after"].values()]
        before = f"{sum(row['before']) / len(row['before']):.2f}"
        rows.append([f"{row['noise']}, {row['size']:g}", row["network"], before, *after])
    dimensions = [f"D = {D}" for D in results["rows"][0]["after"]]
    return format_table(["noise and its size", "network", "PSNR before, dB", *dimensions], rows)


def format_consistency(results: dict[str, Any]) -> str:
    """Format the comparison of objectives for few calls: a row per network and number of calls."""
    first = results["rows"][0]
    dimensions = list(first["distances"]["1"])
    reference = results["rows"][1]["cpu_seconds"]
    rows = [["half of the images", "", "", "", *[f"{results['half_of_the_data']:.3f}"] * len(dimensions)]]
    for row in results["rows"]:
        relative = f"{row['cpu_seconds'] / reference:.2f}" if "cpu_seconds" in row else ""
        for calls, distances in row["distances"].items():
            cells = [f"{distances[D]:.3f}" for D in dimensions]
            rows.append([row["name"], str(row["steps"]), relative, calls, *cells])
    header = ["network", "steps", "CPU time", "calls", *(f"D = {D}" for D in dimensions)]
    return format_table(header, rows)


def format_low_dose_ct(results: dict[str, Any]) -> str:
    """Format the restoration of low-dose CT: a row per method, two columns per split."""
    rows = []
    for row in results["rows"]:
        cells = [row["name"]]
        for split in ("test", "test_dose", "test_kernel"):
            for metric, digits in (("psnr", 2), ("ssim", 4)):
                cells.append(format_rounded(row[split][metric], digits))
        rows.append(cells)
    names = ("seen dose and kernel", "a third of the dose", "another kernel")
    metrics = [f"{name}: {metric}" for name in names for metric in ("PSNR, dB", "SSIM")]
    return format_table(["images", *metrics], rows)


def format_low_dose_ct_differences(results: dict[str, Any]) -> str:
    """Format how much nearer to the truth, in dB, finite D comes than infinity."""
    rows = []
    for row in results["differences"]:
        cells = [row["name"]]
        for split in ("test", "test_dose", "test_kernel"):
            seeds = ", ".join(f"{value:+.3f}" for value in row[split]["seeds"])
            cells.append(f"{row[split]['mean']:+.3f} ± {row[split]['margin']:.3f} ({seeds})")
        rows.append(cells)
    return format_table(["", "seen dose and kernel", "a third of the dose", "another kernel"], rows)


def format_low_dose_ct_settings(results: dict[str, Any]) -> str:
    """Format where each D enters the field lines, and its blend, by seed."""
    rows = []
    for row in results["rows"]:
        if row["name"].startswith("D = "):
            entries = [f"{entry['start_sigma']:g} and {entry['blend']:.2f}" for entry in row["settings"]]
            rows.append([row["name"], *entries])
    seeds = [f"seed {seed}" for seed in range(results["settings"]["seeds"])]
    return format_table(["start_sigma and blend", *seeds], rows)


def format_emoji_restore(results: dict[str, Any]) -> str:
    """Format the restoration of emoji: a row for the damaged pictures and per D, two columns per damage."""
    measured = results["rows"]
    header = ["images", *(f"{name}: {metric}" for name in measured for metric in ("PSNR, dB", "SSIM"))]
    rows = []
    for entries in zip(*measured.values()):
        name = entries[0].get("images") or f"D = {entries[0]['D']}"
        cells = [cell for entry in entries for cell in (f"{entry['psnr']:.2f}", f"{entry['ssim']:.4f}")]
        rows.append([name.replace("degraded", "damaged"), *cells])
    return format_table(header, rows)


def format_recognition(results: dict[str, Any]) -> str:
    """Format how often pictures show the group that they should, and how near training pictures are."""
    rows = [[name, str(row["count"]), *_format_recognition(row)] for name, row in results.items()]
    return format_table(["pictures", "number", *RECOGNITION], rows)


def _format_recognition(row: dict[str, Any]) -> list[str]:
    """Format the cells of `RECOGNITION`."""
    return [f"{row['right']:.1%}", f"{row['median']:.4f}", f"{row['least']:.4f}"]


def format_many_images(results: dict[str, Any]) -> str:
    """Format the distances of ways to draw many images, and the ratios of their means to the first."""
    first, *_ = results["rows"]
    rows = [
        [
            row["name"],
            str(row["calls"]),
            *(_format_with_ratio(values, first["values"][D]) for D, values in row["values"].items()),
        ]
        for row in results["rows"]
    ]
    return format_table(["solver or network", "calls", *(f"D = {D}" for D in first["values"])], rows)


def _format_with_ratio(values: list[float] | str, reference: list[float]) -> str:
    """Format values, and in parentheses the ratio of their mean to that of others."""
    text = format_values(values)
    mean = float(text.split()[0]) if isinstance(values, str) else statistics.mean(values)
    return f"{text} ({mean / statistics.mean(reference):.2f})"


def format_trainings(results: dict[str, Any]) -> str:
    """Format the distances of networks of few calls, and their ratios to that of many calls."""
    reference = results["many_calls"]
    rows = []
    for row in results["rows"]:
        distances = [row["distances"][calls] for calls in ("2", "1")]
        rows.append([row["name"], *(f"{value:.5g} ({value / reference:.2f})" for value in distances)])
    return format_table(["network", "two calls", "one call"], rows)


def format_emoji_names(results: dict[str, Any]) -> str:
    """Format how many pictures of each group a reader named, of those that were drawn and of real ones."""
    counts = results["counts"]
    names = list(next(iter(counts.values())))
    rows = [[name, *("{} of {}".format(*by_group[name]) for by_group in counts.values())] for name in names]
    totals = [[sum(column) for column in zip(*by_group.values())] for by_group in counts.values()]
    rows.append(["all", *(f"{named} of {shown} ({named / shown:.0%})" for named, shown in totals)])
    return format_table(["group", *counts], rows)


def format_emoji_calls(results: dict[str, Any]) -> str:
    """Format the distance of each way to draw, and how many times it is that of the first way."""
    first, *_ = results["rows"]
    labels = [label for label in first if label != "name"]
    rows = [
        [row["name"], *(f"{row[label]:.5g} ({row[label] / first[label]:.2f})" for label in labels)]
        for row in results["rows"]
    ]
    rows.append([f"{results['count']} real emoji", *(f"{results['real']:.5g}" for _ in labels)])
    return format_table(["pictures", *(f"D = {label}" for label in labels)], rows)


def format_heavy_tails(results: dict[str, Any]) -> str:
    """Format how the tails of drawn fields compare with the data's: a row for other fields and per D."""
    columns = {
        "index": "tail index",
        "percentile": "99.99th percentile",
        "distance": "distance of the tails",
        "extremes": "extremes",
    }
    rows = [[row["name"], *(format_mean(row[key]) for key in columns)] for row in results["rows"]]
    return format_table(["fields", *columns.values()], rows)


def format_which_d(results: list[dict[str, Any]]) -> str:
    """Format the mean distance of each model at each D, with how much more it is than at the best D."""
    labels = [entry["D"] for entry in results[0]["results"]]
    rows = []
    for row in results:
        cells = []
        for entry in row["results"]:
            more = row["differences"].get(entry["D"])
            added = f" (+{format_error(more['mean'], more['margin'])})" if more else ""
            cells.append(f"{statistics.mean(entry['fid']):.5g}{added}")
        rows.append([f"`{row['model']}`", *cells, row["choice"]])
    return format_table(["model", *(f"D = {label}" for label in labels), "choice"], rows)


def format_emoji_training(results: dict[str, Any]) -> str:
    """Format what becomes of loss, distance, recognition and copies as the emoji network is trained."""
    header = ["images seen", "loss on held-out emoji", "Fréchet distance", *RECOGNITION]
    rows = [
        [
            f"{row['images']:,}",
            f"{row['validation_loss']:.4f}",
            f"{row['fid']:.5g}",
            *_format_recognition(row),
        ]
        for row in results["rows"]
    ]
    return format_table(header, rows)


def format_emoji_guidance(results: dict[str, Any]) -> str:
    """Format what guidance does to distance, recognition and copies of emoji; of two calls, by the second."""
    rows = []
    for row in results["rows"]:
        second = [f"{level:g}" for level in row.get("sigmas", [])[1:]]
        low, high = row.get("guidance_interval", (None, None))
        levels = "all" if low is None else f"{low:g} to {high:g}"
        rows.append(
            [*second, f"{row['guidance_scale']:g}", levels, f"{row['fid']:.5g}", *_format_recognition(row)]
        )
    head = ["guidance", "at noise levels", "Fréchet distance", *RECOGNITION]
    return format_table(["second call at", *head] if second else head, rows)


def format_rounding(results: dict[str, Any]) -> str:
    """
    Format what rounded weights add, and how much more they add at infinity than at the least D.

    The interval of the difference is over the networks, whose roundings are averaged first.
    """
    bits = list(dict.fromkeys(row["bits"] for row in results["rows"]))
    rows = []
    for network in dict.fromkeys(row["network"] for row in results["rows"]):
        chosen = [row for row in results["rows"] if row["network"] == network]
        means = {
            (row["D"], row["bits"]): [statistics.mean(values) for values in row["added"]] for row in chosen
        }
        labels = list(dict.fromkeys(row["D"] for row in chosen))
        for label in labels:
            cells = [
                format_mean([value for values in row["added"] for value in values])
                for row in chosen
                if row["D"] == label
            ]
            rows.append([f"{network}, D = {label}", *cells])
        least = labels[0]
        most = labels[-1]
        cells = [_format_interval([b - a for a, b in zip(means[least, k], means[most, k])]) for k in bits]
        rows.append([f"{network}, D = {most} minus D = {least}", *cells])
    return format_table(["what rounding adds", *(f"{k} bits" for k in bits)], rows)


def _format_interval(values: list[float]) -> str:
    """Format the mean of a value per network, with its interval of 95 % if there are several."""
    mean = statistics.mean(values)
    if len(values) == 1:
        return f"{mean:.3g}"
    error = compute_quantile(0.95, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{format_error(mean, error)} (95 %)"


def format_sampling(results: dict[str, Any]) -> str:
    """Format the cost of sampling over the bare calls of the network, one column per network."""
    cases = results["cases"]
    header = [f"{case['network']}, batch {case['batch_size']}" for case in cases]
    names = {
        "PFGMPPPipeline": "`PFGMPPPipeline`",
        "DDPMPipeline": "diffusers' `DDPMPipeline` with as many calls",
        "EDMEulerScheduler": "a plain loop around diffusers' `EDMEulerScheduler`",
    }
    rows = [
        [title, *(f"{case['over_bare_calls'][name]:.3f}" for case in cases)] for name, title in names.items()
    ]
    shares = [f"{100 * case['share_of_scheduler_and_noise']:.2f} %" for case in cases]
    memory = [f"{case['peak_memory_over_forward_pass']:.3f}" for case in cases]
    rows.append(["share of scheduler and noise in the pipeline", *shares])
    rows.append(["peak memory over that of one forward pass", *memory])
    return format_table(["time over the bare calls of the network", *header], rows)


def format_settings(results: dict[str, Any]) -> str:
    """Format the speed of the bundled network in other settings."""
    names = {
        "float32, compiled": "`torch.compile(pipe.unet, fullgraph=True)`",
        "bfloat16": "bfloat16",
        "bfloat16, compiled": "bfloat16, compiled",
    }
    speeds = results["settings"][0]["over_eager_float32"]
    rows = [[title, f"{speeds[name]:.2f}"] for name, title in names.items()]
    return format_table(["one call of the bundled network over eager float32", "speed"], rows)


def format_network(results: dict[str, Any]) -> str:
    """Format the speed of the full-size network over a transcription of its description."""
    rows = []
    for entry in results["ratios"]:
        name = entry["dtype"]
        if entry["pass"]:
            name += f", {entry['pass']}"
        rows.append([name, f"{entry['over_transcription']:.2f}"])
    header = f"NCSN++ over a plain transcription of its description, batch {results['batch_size']}"
    return format_table([header, "speed"], rows)


def format_training(runs: list[dict[str, Any]]) -> str:
    """Format what a training step costs, one column per network."""
    names = {
        "step_over_bare": "`train_accelerate.py`",
        "diffusers_over_bare": "diffusers' loop",
    }
    rows = [[title, *(f"{run[name]:.2f}" for run in runs)] for name, title in names.items()]
    shares = []
    for run in runs:
        beyond = sum(share for part, share in run["shares"].items() if part not in PARTS_OF_ANY_TRAINING)
        shares.append(f"{100 * beyond:.1f} %")
    rows.append(["share of data, noise, loss and average", *shares])
    columns = [f"`{run['preset']}`, batch {run['batch_size']}" for run in runs]
    header = "time of a step over forward, backward and Adam of the bare network"
    return format_table([header, *columns], rows)


def format_waits(results: dict[str, Any]) -> str:
    """Format what a visitor of the Space waits for, as a share of the limit."""
    rows = []
    for wait in results["waits"]:
        rows.append([wait["name"], f"{wait['limit_in_seconds']:g} s", f"{wait['share']:.2f}"])
    return format_table(["a visitor waits for", "limit", "share of the limit"], rows)


def format_visitors(results: dict[str, Any]) -> str:
    """Format how the Space serves many visitors at once, without and with two hostile ones."""
    rounds = results["rounds"]
    peaks = [f"{peak:.2f}" for peak in results["peak_memory_over_before"]]
    accepted = results["accepted_shares"]
    rows = [
        ["errors, and images of another visitor", results["failures"], results["failures_under_attack"]],
        ["time for all over one visitor after the other", f"{results['together_over_one_by_one']:.2f}", ""],
        ["time with the hostile visitors over time without", "", f"{results['attacked_over_calm']:.2f}"],
        ["the same for loading the page", "", f"{results['page_attacked_over_calm']:.2f}"],
        ["peak memory per round over memory before", ", ".join(peaks[:rounds]), ", ".join(peaks[rounds:])],
        ["share of the large jobs that is accepted", "", f"{accepted['large jobs']:.3f}"],
        ["share of the garbage that is accepted", "", f"{accepted['garbage']:.3f}"],
    ]
    header = f"{results['visitors']} visitors at once, {rounds} drawings each"
    return format_table([header, "alone", "with two hostile visitors"], [map(str, row) for row in rows])
