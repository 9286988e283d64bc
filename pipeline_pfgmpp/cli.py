"""The command line: `pfgmpp sample MODEL`, `pfgmpp convert CHECKPOINT OUTPUT_DIR`, `pfgmpp evaluate MODEL --data DATA`."""

import argparse
import os
import shlex
import sys
from pathlib import Path


def add_sample_parser(commands):
    parser = commands.add_parser(
        "sample", help="draw a grid of images into a PNG", description="Draws images from a model, a row a class, into one PNG."
    )
    parser.set_defaults(run=sample)
    parser.add_argument("model", help="a Hub id or a pipeline folder")
    parser.add_argument("--output", default="samples.png", help="the picture to write (default: %(default)s)")
    parser.add_argument("--columns", type=int, default=10, help="images in a row (default: %(default)s)")
    parser.add_argument("--rows", type=int, help="rows of an unconditional model (default: 8)")
    parser.add_argument("--num-inference-steps", type=int, default=18, help="steps of the solver (default: %(default)s)")
    parser.add_argument("--guidance-scale", type=float, default=1.0, help="1 is none (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first image (default: %(default)s)")


def sample(args):
    import torch

    from .grid import labelled_grid

    if not args.output.lower().endswith(".png"):
        raise ValueError(f"--output must end in .png, but is {args.output}.")
    if args.columns < 1 or (args.rows is not None and args.rows < 1):
        raise ValueError(f"--columns and --rows must be positive, but are {args.columns} and {args.rows}.")
    pipeline = load_pipeline(args.model)
    names = pipeline.config.get("id2label") or {}
    num_classes = pipeline.num_classes
    rows = num_classes or args.rows or 8
    count = rows * args.columns
    images = pipeline(
        batch_size=count,
        num_inference_steps=args.num_inference_steps,
        class_labels=[i // args.columns for i in range(count)] if num_classes else None,
        guidance_scale=args.guidance_scale,
        generator=[torch.Generator().manual_seed(args.seed + i) for i in range(count)],
    ).images
    labels = [names.get(str(i), str(i)) for i in range(num_classes)] if num_classes else None
    output = Path(args.output).resolve()
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.partial")
    labelled_grid(images, args.columns, labels).save(partial, format="PNG")
    os.replace(partial, output)
    print(f"Drew {count} images: {output}")


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
    parser.add_argument("--dtype", choices=dtypes, default="float32", help="type of the weights (default: %(default)s)")
    parser.add_argument("--weights", choices=["ema", "net"], default="ema", help="average or last (default: ema)")
    parser.add_argument("--D", type=float, help="augmented dimension, where the file does not state it; inf is diffusion")
    parser.add_argument("--sigma-data", type=float, help="standard deviation of the data, where the file does not state it")


def convert(args):
    import torch

    from .convert import convert_checkpoint, convert_diffusers

    dtype = getattr(torch, args.dtype)
    if args.from_diffusers:
        convert_diffusers(args.checkpoint, args.output_dir, dtype, args.D)
    else:
        convert_checkpoint(args.checkpoint, args.output_dir, dtype, args.weights, args.D, args.sigma_data)
    print(f"Converted {args.checkpoint}: {args.output_dir}")


def add_evaluate_parser(commands):
    parser = commands.add_parser(
        "evaluate",
        help="measure a model's samples against real images",
        description="Fréchet distance of a model's samples from Fashion-MNIST's test images, over a classifier's features.",
    )
    parser.set_defaults(run=evaluate)
    parser.add_argument("model", help="a Hub id or a pipeline folder")
    parser.add_argument("--data", required=True, help="data set with a test split")
    parser.add_argument("--num-images", type=int, default=5000, help="samples (default: %(default)s)")
    parser.add_argument("--num-inference-steps", type=int, default=18, help="steps of the solver (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=250, help="images at a time (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first image (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="keep the result in the model folder and its card")


def evaluate(args):
    import json

    from datasets import load_dataset

    from .evaluation.evaluate import evaluate, write_evaluation
    from .training.data import load_images

    if args.write and not Path(args.model, "README.md").is_file():
        raise ValueError(f"--write needs a local model folder with a README.md, but {args.model} is none.")
    pipeline = load_pipeline(args.model)
    real = load_images(load_dataset(args.data, split="test"), pipeline.unet.config.sample_size)
    results = evaluate(pipeline, real.images, args.num_images, args.num_inference_steps, args.batch_size, args.seed)
    print(json.dumps(results, indent=2))
    if args.write:
        write_evaluation(args.model, results, f"pfgmpp {shlex.join(sys.argv[1:])}")


def load_pipeline(model):
    import torch
    from diffusers import DiffusionPipeline

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return DiffusionPipeline.from_pretrained(model).to(device)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="pfgmpp", description="PFGM++ for the Hugging Face ecosystem.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_sample_parser(commands)
    add_convert_parser(commands)
    add_evaluate_parser(commands)
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except (OSError, ValueError) as error:
        parser.exit(1, f"pfgmpp: {error}\n")


if __name__ == "__main__":
    main()
