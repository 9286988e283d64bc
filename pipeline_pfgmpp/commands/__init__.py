"""The command line: `pfgmpp sample | convert | evaluate | robustness | verify | push | info`."""

import argparse
import os
import sys
from pathlib import Path


def numbers(text):
    """A list of numbers with commas between."""
    return [float(part) for part in text.split(",") if part]


def add_drawing_arguments(parser):
    """How images are drawn, for every command that draws some."""
    parser.add_argument(
        "--num-inference-steps", type=int, default=18, help="steps of the solver (default: %(default)s)"
    )
    parser.add_argument(
        "--solver-type", help="heun, euler, dpmpp_2m, dpmpp_3m or dpmpp_2m_sde (default: the model's)"
    )
    parser.add_argument("--rho", type=float, help="exponent of the step spacing (default: the model's)")
    parser.add_argument(
        "--sigma-schedule", help="spacing of the steps: karras or exponential (default: the model's)"
    )
    parser.add_argument(
        "--sigma-min", type=float, help="least noise level of the steps (default: the model's)"
    )
    parser.add_argument(
        "--class-label", type=int, help="class of all images (default: drawn, each with equal probability)"
    )
    parser.add_argument("--guidance-scale", type=float, default=1.0, help="1 is none (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first image (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="images at a time (default: %(default)s)")


def call_settings(args):
    """The pipeline's arguments among those of the command line."""
    settings = {"num_inference_steps": args.num_inference_steps, "guidance_scale": args.guidance_scale}
    if args.class_label is not None:
        settings["class_labels"] = args.class_label
    return settings


def add_sample_parser(commands):
    parser = commands.add_parser(
        "sample",
        help="draw images: a grid in one PNG, or many as a folder or an .npz file",
        description="Draws a labelled grid into one PNG, a row a class; with --num-images or --seeds, one image a seed into a"
        " folder of PNGs or an .npz file, shared among processes under `accelerate launch -m pipeline_pfgmpp sample ...`.",
    )
    parser.set_defaults(run=sample)
    parser.add_argument("model", help="a Hub id or a pipeline folder")
    parser.add_argument("--output", default="samples.png", help="what to write (default: %(default)s)")
    parser.add_argument("--num-images", type=int, help="many images, for the seeds from --seed on")
    parser.add_argument("--seeds", help="many images, for seeds such as 0-49999 or 3,5,10-12")
    parser.add_argument(
        "--columns", type=int, default=10, help="images in a row of the grid (default: %(default)s)"
    )
    parser.add_argument("--rows", type=int, help="rows of the grid of an unconditional model (default: 8)")
    parser.add_argument(
        "--D",
        type=numbers,
        help="augmented dimension of a network told D, inf is diffusion; of several, such as 16,128,inf, each gets a row",
    )
    parser.add_argument(
        "--noise",
        type=numbers,
        default="0",
        help="α of noise that is injected before each step; of several, each gets a grid (default: %(default)s)",
    )
    add_drawing_arguments(parser)


def sample(args):
    if args.num_images is None and args.seeds is None:
        sample_grid(args)
    else:
        sample_many(args)


def sample_many(args):
    from ..generation import parse_seeds, sample_to_files

    if args.output.lower().endswith(".png"):
        raise ValueError(f"--output must be a folder or end in .npz for many images, but is {args.output}.")
    if args.num_images is not None and args.num_images < 1:
        raise ValueError(f"--num-images must be positive, but is {args.num_images}.")
    seeds = parse_seeds(args.seeds) if args.seeds else list(range(args.seed, args.seed + args.num_images))
    if args.num_images not in (None, len(seeds)):
        raise ValueError(
            f"--num-images is {args.num_images}, but --seeds names {len(seeds)}; leave one of them out."
        )
    if len(args.D or []) > 1 or len(args.noise) != 1:
        raise ValueError("Many images are drawn at one --D and one --noise.")
    settings = {
        **call_settings(args),
        **({"D": args.D[0]} if args.D else {}),
        **({"noise": args.noise[0]} if args.noise[0] else {}),
    }
    sample_to_files(load_pipeline(args), seeds, args.output, args.batch_size, own_command(), **settings)
    print(f"Drew {len(seeds)} images: {Path(args.output).resolve()}")


def sample_grid(args):
    import torch
    from tqdm.auto import tqdm

    from ..generation import generate
    from ..pictures.grid import draw_grid, stack_panels, to_pil
    from ..records.writing import replace_file

    if not args.output.lower().endswith(".png"):
        raise ValueError(
            f"--output must end in .png for a grid, but is {args.output}; --num-images draws many images."
        )
    if args.columns < 1 or (args.rows is not None and args.rows < 1):
        raise ValueError(f"--columns and --rows must be positive, but are {args.columns} and {args.rows}.")
    pipeline = load_pipeline(args)
    names, num_classes, columns = (
        pipeline.config.get("id2label") or {},
        pipeline.num_classes,
        range(args.columns),
    )
    # A row is its name, its seeds and what else it is drawn with.
    if len(args.D or []) > 1:  # a row a D: the same seeds in each, and a class a column
        classes = (
            [i % num_classes if args.class_label is None else args.class_label for i in columns]
            if num_classes
            else None
        )
        labels = {"class_labels": classes} if num_classes else {}
        rows = [(f"D = {D:g}", [args.seed + i for i in columns], D, labels) for D in args.D]
    else:  # a row a class
        D = args.D[0] if args.D else None
        classes = range(num_classes) if args.class_label is None else [args.class_label] * (args.rows or 8)
        classes = list(classes) if num_classes else [None] * (args.rows or 8)
        rows = [
            (
                names.get(str(label), str(label)) if num_classes else None,
                [args.seed + row * args.columns + i for i in columns],
                D,
                {} if label is None else {"class_labels": [label] * args.columns},
            )
            for row, label in enumerate(classes)
        ]
    settings = call_settings(args)
    drawn = [
        next(generate(pipeline, seeds, args.columns, None, noise, D=D, **{**settings, **labels}))[1]
        for noise, (_, seeds, D, labels) in tqdm(
            [(noise, row) for noise in args.noise for row in rows], "Sampling", unit="row"
        )
    ]
    labels = [name for name, *_ in rows] if rows[0][0] is not None else None
    panels = {}
    for index, noise in enumerate(args.noise):
        images = torch.cat(drawn[index * len(rows) : (index + 1) * len(rows)])
        title = f"noise of {noise:g} injected before each step" if noise else "undisturbed"
        panels[title] = draw_grid(to_pil(images), args.columns, labels)
    output = Path(args.output).resolve()
    picture = stack_panels(panels) if len(panels) > 1 else next(iter(panels.values()))
    with replace_file(output) as partial:
        picture.save(partial, format="PNG")
    print(f"Drew {len(drawn) * args.columns} images: {output}")


def add_convert_parser(commands):
    parser = commands.add_parser(
        "convert",
        help="turn a published checkpoint into a pipeline folder",
        description="Turns a PFGM++ or EDM checkpoint (.pt or .pkl) into a pipeline folder, running nothing of it.",
    )
    parser.set_defaults(run=convert)
    parser.add_argument("checkpoint", help="the file; with --from-diffusers a Hub id or a pipeline folder")
    parser.add_argument("output_dir", help="the folder to write, which must not exist")
    parser.add_argument("--from-diffusers", action="store_true", help="the checkpoint is a DDPM of diffusers")
    dtypes = ["float32", "float16", "bfloat16"]
    parser.add_argument(
        "--dtype", choices=dtypes, default="float32", help="type of the weights (default: %(default)s)"
    )
    parser.add_argument(
        "--weights", choices=["ema", "net"], default="ema", help="average or last (default: ema)"
    )
    parser.add_argument(
        "--D", type=float, help="augmented dimension, where the file does not state it; inf is diffusion"
    )
    parser.add_argument(
        "--sigma-data", type=float, help="standard deviation of the data, where the file does not state it"
    )


def convert(args):
    import torch

    from ..conversion.convert import convert_checkpoint, convert_diffusers

    dtype = getattr(torch, args.dtype)
    if args.from_diffusers:
        convert_diffusers(args.checkpoint, args.output_dir, dtype, args.D)
    else:
        convert_checkpoint(args.checkpoint, args.output_dir, dtype, args.weights, args.D, args.sigma_data)
    print(f"Converted {args.checkpoint}: {args.output_dir}")


def add_measuring_arguments(parser):
    """What images are measured against, for every command that measures some."""
    parser.add_argument("--data", required=True, help="data set of real images")
    parser.add_argument("--split", default="test", help="its split to measure against (default: %(default)s)")
    add_features_arguments(parser)


def add_features_arguments(parser):
    """What images are compared by."""
    parser.add_argument(
        "--features",
        default="fashion-mnist",
        help="fashion-mnist, inception, a file of Inception's weights or of a TorchScript program (a path, or org/name/file on"
        " the Hub), or a vision model of transformers such as facebook/dinov2-large (default: %(default)s)",
    )
    parser.add_argument("--trust-remote-code", action="store_true", help="let a TorchScript program run")


def load_real_images(data, split, pipeline):
    """Loads the images of a split, as the model draws them."""
    from datasets import load_dataset

    from ..data import load_images

    config = pipeline.unet.config
    return load_images(
        load_dataset(data, split=split), config.sample_size, channels=config.in_channels
    ).images


def add_evaluate_parser(commands):
    parser = commands.add_parser(
        "evaluate",
        help="measure a model's samples against real images",
        description="Draws images at each D and measures them against real ones: a table and evaluation.json. Under"
        " `accelerate launch -m pipeline_pfgmpp evaluate ...` processes share the work; interrupted and run again, it goes on.",
    )
    parser.set_defaults(run=evaluate)
    parser.add_argument("model", help="a Hub id or a pipeline folder")
    add_measuring_arguments(parser)
    parser.add_argument(
        "--baseline-split", help="another split, of which as many images are measured for comparison"
    )
    parser.add_argument(
        "--metrics",
        type=lambda text: text.split(","),
        default=["fid"],
        help="some of fid, kid, precision_recall, inception_score, with commas between (default: fid)",
    )
    parser.add_argument(
        "--D", type=numbers, help="of a network told D, such as 16,128,inf (default: the model's)"
    )
    parser.add_argument(
        "--num-images", type=int, default=10_000, help="images a value (default: %(default)s)"
    )
    parser.add_argument(
        "--groups", type=int, default=1, help="values a metric, of other seeds (default: %(default)s)"
    )
    add_drawing_arguments(parser)
    parser.add_argument(
        "--output",
        help="folder for images and results (default: outputs/samples/MODEL-DIGEST and outputs/evaluation/MODEL-DIGEST,"
        " where the digest is of all that they depend on)",
    )
    parser.add_argument(
        "--write", action="store_true", help="keep the results in the model folder and its card"
    )


def evaluate(args):
    import json

    from accelerate import PartialState

    from ..evaluation import ImageMetrics, load_features
    from ..evaluation.evaluate import evaluate, evaluate_real, gather_features
    from ..evaluation.reports import build_report, format_evaluation, write_evaluation
    from ..records.commands import format_command
    from ..records.digests import default_output, describe

    if args.write and not Path(args.model, "README.md").is_file():
        raise ValueError(f"--write needs a local model folder with a README.md, but {args.model} is none.")
    if args.num_images < 2 or args.groups < 1:
        raise ValueError("--num-images must be at least 2 and --groups at least 1.")
    pipeline = load_pipeline(args)
    state = PartialState(cpu=pipeline.device.type == "cpu")
    with state.main_process_first():  # the others find its features of the real images
        extractor = load_features(args.features, pipeline.device, args.trust_remote_code)
        real = load_real_images(args.data, args.split, pipeline)
        metrics = ImageMetrics(extractor, real, args.metrics, gather_features)
        others = load_real_images(args.data, args.baseline_split, pipeline) if args.baseline_split else None
    command = own_command()
    settings = call_settings(args)
    description = describe(pipeline, **settings)
    measured = {"features": args.features, "reference": metrics.reference, "metrics": args.metrics}
    measured |= {"seed": args.seed, "num_images": args.num_images, "groups": args.groups}
    samples = Path(args.output or default_output("samples", args.model, description))
    output = Path(
        args.output or default_output("evaluation", args.model, description | measured | {"D": args.D})
    )
    entries = evaluate(
        pipeline,
        metrics,
        args.D,
        samples,
        args.num_images,
        args.groups,
        args.seed,
        args.batch_size,
        command,
        **settings,
    )
    if others is not None:
        entries.append(evaluate_real(others, metrics, args.num_images, args.baseline_split))
    if not state.is_main_process:
        return
    data = format_command("", [args.data])  # without folders of this machine
    reference = f"the {len(real):,} images of the {args.split} split of `{data}`"
    results = build_report(
        entries, pipeline, args.features, args.num_images, reference, command, **settings
    )
    results |= {"data": data, "split": args.split, "data_digest": metrics.reference}
    output.mkdir(parents=True, exist_ok=True)
    (output / "evaluation.json").write_text(json.dumps(results, indent=1) + "\n")
    print(format_evaluation(results))
    if args.write:
        write_evaluation(args.model, results)


def add_robustness_parser(commands):
    parser = commands.add_parser(
        "robustness",
        help="measure how quality falls under noise, rounded weights and fewer steps, at several D",
        description="Fréchet distance against injected noise, bits a weight and calls of the network, a line a D: tables, plots"
        " and pictures. Under `accelerate launch -m pipeline_pfgmpp robustness ...` processes share the work; interrupted and"
        " run again, it goes on.",
    )
    parser.set_defaults(run=robustness)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="Hub ids or pipeline folders")
    add_measuring_arguments(parser)
    parser.add_argument(
        "--D", type=numbers, default="16,64,128,2048,inf", help="of networks told D (default: %(default)s)"
    )
    parser.add_argument("--noise", type=numbers, default="0,0.1,0.2,0.3", help="α (default: %(default)s)")
    parser.add_argument(
        "--bits", type=numbers, default="9,8,7,6,5", help="bits a weight (default: %(default)s)"
    )
    parser.add_argument(
        "--nfe",
        type=numbers,
        default="35,19,11,7",
        help="calls of the network, the most of which serve noise and bits (default: %(default)s)",
    )
    parser.add_argument(
        "--num-images", type=int, default=1000, help="images a distance (default: %(default)s)"
    )
    parser.add_argument(
        "--groups", type=int, default=3, help="distances a point, for error bars (default: %(default)s)"
    )
    parser.add_argument(
        "--batch-size", type=int, default=50, help="images at a time, in each process (default: %(default)s)"
    )
    parser.add_argument(
        "--output",
        help="folder to write to (default: outputs/robustness/MODEL-DIGEST, where the digest is of all that it depends on)",
    )
    parser.add_argument(
        "--write", action="store_true", help="keep the results in the model folder and its card"
    )


def robustness(args):
    from accelerate import PartialState
    from diffusers import DiffusionPipeline

    from ..evaluation import ImageMetrics, load_features, robustness
    from ..evaluation.evaluate import choose_dimensions, gather_features
    from ..evaluation.reports import format_robustness, list_panels, write_robustness
    from ..pictures.plots import plot_robustness
    from ..records.digests import default_output, describe

    settings = robustness.list_settings(args.noise, args.bits, args.nfe)
    if args.num_images < 2 or args.groups < 1:
        raise ValueError("--num-images must be at least 2 and --groups at least 1.")
    if args.write and (len(args.models) > 1 or not Path(args.models[0], "README.md").is_file()):
        raise ValueError("--write needs one local model folder with a README.md.")
    names = [Path(model).name for model in args.models]
    if len(set(names)) < len(names):  # their folders have the same name
        names = args.models
    pipelines = {
        name: on_device(DiffusionPipeline.from_pretrained(model)) for name, model in zip(names, args.models)
    }
    first = next(iter(pipelines.values()))
    state = PartialState(cpu=first.device.type == "cpu")
    with state.main_process_first():  # the others find its features of the real images
        extractor = load_features(args.features, first.device, args.trust_remote_code)
        metrics = ImageMetrics(
            extractor, load_real_images(args.data, args.split, first), gather=gather_features
        )
    description = {
        "models": {name: describe(pipe) for name, pipe in pipelines.items()},
        "reference": metrics.reference,
    }
    description["num_images"] = args.num_images
    output = Path(args.output or default_output("robustness", args.models[0], description))
    entries = robustness.measure(
        pipelines, args.D, settings, metrics, output, args.num_images, args.groups, args.batch_size
    )
    if not state.is_main_process:
        return
    (output / "robustness.md").write_text(format_robustness(entries))
    plot_robustness(list_panels(entries), output / "robustness.png")
    robustness.draw_noise_grid(
        first, choose_dimensions(first, args.D), args.noise, output / "noise.png", nfe=settings[0].nfe
    )
    if args.write:
        write_robustness(args.models[0], entries, output, own_command())
    print(f"Wrote robustness.json, robustness.md, robustness.png and noise.png to {output.resolve()}")


def add_verify_parser(commands):
    parser = commands.add_parser(
        "verify",
        help="measure a card's own figures again with few images",
        description="Draws few images with the settings that a model's evaluation.json and robustness.json name, measures them"
        " and says whether they agree with the card. It ends with 1 where one does not.",
    )
    parser.set_defaults(run=verify)
    parser.add_argument("model", help="a Hub id or a pipeline folder")
    parser.add_argument("--data", help="data set of real images (default: that of evaluation.json)")
    parser.add_argument("--split", help="its split (default: that of evaluation.json)")
    parser.add_argument(
        "--num-images", type=int, default=1000, help="images per distance (default: %(default)s)"
    )
    parser.add_argument("--batch-size", type=int, default=50, help="images at a time (default: %(default)s)")
    parser.add_argument("--trust-remote-code", action="store_true", help="let a TorchScript program run")


def verify(args):
    from diffusers import DiffusionPipeline

    from ..evaluation import ImageMetrics, load_features
    from ..evaluation.verify import (
        format_figures,
        verify_evaluation,
        verify_robustness,
    )
    from ..records.reports import check_weights, list_weights, read_report
    from ..scheduling_pfgmpp import PFGMPPScheduler

    if args.num_images < 8:
        raise ValueError(f"--num-images must be at least 8, but is {args.num_images}.")
    evaluation = read_report(args.model, "evaluation.json")
    robustness = read_report(args.model, "robustness.json")
    if evaluation is None:
        raise ValueError(f"{args.model} holds no evaluation.json, so there is nothing to verify.")
    data = args.data or evaluation.get("data")
    if data is None:
        raise ValueError("evaluation.json does not say what data it is of: name them with --data.")
    pipeline = on_device(DiffusionPipeline.from_pretrained(args.model))
    own_scheduler = pipeline.scheduler
    for name, report in (("evaluation.json", evaluation), ("robustness.json", robustness or [])):
        check_weights(list_weights(report) - {None}, name, args.model, pipeline)
    extractor = load_features(evaluation["features"], pipeline.device, args.trust_remote_code)
    split = args.split or evaluation.get("split", "test")
    metrics = ImageMetrics(extractor, load_real_images(data, split, pipeline))
    pipeline.scheduler = PFGMPPScheduler.from_config(evaluation["settings"]["scheduler"])
    figures = verify_evaluation(pipeline, metrics, evaluation, args.num_images, args.batch_size)
    print(format_figures("evaluation.json", figures))
    if robustness:
        pipeline.scheduler = own_scheduler
        figures += verify_robustness(pipeline, metrics, robustness, args.batch_size)
        print(format_figures("robustness.json", figures[-len({entry["D"] for entry in robustness}) :]))
    wrong = [figure.name for figure in figures if not figure.agrees]
    if wrong:
        raise ValueError(f"{args.model} does not agree with its card at {', '.join(wrong)}.")
    print("All figures agree.")


def add_push_parser(commands):
    parser = commands.add_parser(
        "push",
        help="upload a pipeline folder or a Space to the Hub",
        description="Uploads weights, configurations, card and code of a pipeline folder in one commit, and nothing else; or a"
        " Space, with the package and its local models beside it.",
    )
    parser.set_defaults(run=push)
    parser.add_argument("folder", help="the pipeline folder, or that of the Space")
    parser.add_argument("--repo-type", choices=["model", "space"], default="model", help="default: model")
    parser.add_argument("repo_id", help="the repository, organisation/name; it is made if it is not there")
    parser.add_argument("--private", action="store_true", default=None, help="make a private repository")
    parser.add_argument("--revision", help="branch to commit to (default: main)")
    parser.add_argument("--create-pr", action="store_true", help="propose the commit instead")
    parser.add_argument("--dry-run", action="store_true", help="list what would be sent, and send nothing")


def push(args):
    from ..hub import describe_files, list_files, upload_files

    files = list_files(args.folder, args.repo_type)
    print(describe_files(files), flush=True)
    if args.dry_run:
        return
    address = upload_files(files, args.repo_id, args.private, args.revision, args.create_pr, args.repo_type)
    print(f"Pushed {args.folder}: {address}")


def add_info_parser(commands):
    parser = commands.add_parser(
        "info", help="what a model is", description="D, noise levels, size, data and licence."
    )
    parser.set_defaults(run=info)
    parser.add_argument("model", help="a Hub id or a pipeline folder")


def info(args):
    from ..hub import model_info

    rows = model_info(args.model)
    width = max(map(len, rows))
    print("\n".join(f"{name:{width}}  {value}" for name, value in rows.items()))


def own_command():
    """The command that runs, for people: without folders of this machine."""
    from ..records.commands import format_command

    return format_command("pfgmpp", sys.argv[1:])


def load_pipeline(args):
    from diffusers import DiffusionPipeline

    from ..scheduling_pfgmpp import PFGMPPScheduler

    pipeline = DiffusionPipeline.from_pretrained(args.model)
    names = ("solver_type", "sigma_schedule", "rho", "sigma_min")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    pipeline.scheduler = PFGMPPScheduler.from_config(pipeline.scheduler.config, **given)
    return on_device(pipeline)


def on_device(pipeline):
    """The pipeline where it is fastest."""
    import torch

    if torch.cuda.is_available():
        return pipeline.to(f"cuda:{os.environ.get('LOCAL_RANK', 0)}")
    pipeline.unet.to(memory_format=torch.channels_last)  # what the CPU's convolutions are fastest in
    return pipeline


def main(argv=None):
    parser = argparse.ArgumentParser(prog="pfgmpp", description="PFGM++ for the Hugging Face ecosystem.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_sample_parser(commands)
    add_convert_parser(commands)
    add_evaluate_parser(commands)
    add_robustness_parser(commands)
    add_verify_parser(commands)
    add_push_parser(commands)
    add_info_parser(commands)
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except (OSError, ValueError) as error:
        from tqdm.auto import tqdm

        from ..hub.reading import escape_controls

        message = "\n".join(
            map(escape_controls, str(error).splitlines())
        )  # a repository may have written part of it
        tqdm.write(
            f"pfgmpp: {message}", file=sys.stderr
        )  # on a line of its own, whatever progress bar stands there
        parser.exit(1)


if __name__ == "__main__":
    main()
