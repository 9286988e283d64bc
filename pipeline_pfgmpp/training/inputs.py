"""The data of a run: the arguments of train_accelerate.py that describe them, and how they are loaded."""

import argparse
from typing import Any

from accelerate import Accelerator
from diffusers import ModelMixin

from ..data import DEGRADATIONS, ImageDataset, ImageStream, load_images, load_latents, open_dataset
from ..pipeline_pfgmpp import PFGMPPPipeline
from .validation import MOST_IMAGES


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Add the arguments that describe the data and what is done to them.

    Args:
        parser (`argparse.ArgumentParser`): The parser of train_accelerate.py.
    """
    add = parser.add_argument_group("data").add_argument
    add("--dataset_name", help="data set on the Hub, or a local folder as for --train_data_dir")
    add("--dataset_config_name", help="configuration of the data set")
    add("--train_data_dir", help="local folder of images, .npy arrays or parquet files")
    add("--split", default="train", help="split to train on (default: %(default)s)")
    add("--validation_split", help="split that is not trained on, whose loss is logged (default: none)")
    add("--image_column", help="column of the images (default: the only image column)")
    add(
        "--condition_column",
        help="column of degraded images, from which the network learns to restore those of --image_column",
    )
    add(
        "--degradation",
        nargs="+",
        metavar="NAME[=LEVEL]",
        help="make the degraded images during training: degradations one after the other, such as"
        f" downscale=4 gaussian=0.05:0.2, of {', '.join(sorted(DEGRADATIONS))}; blur,jpeg is one of the two,"
        " at random",
    )
    add("--label_column", help="column of the classes (default: the only class column, or `label`)")
    add(
        "--balance_classes",
        action="store_true",
        help="draw all classes equally often, however many images each has",
    )
    add(
        "--resolution",
        type=parse_size,
        metavar="SIZE",
        help="size in pixels: one number for squares, or HEIGHTxWIDTH such as 32x64 (default: as the preset)",
    )
    add(
        "--crop_size",
        type=parse_size,
        metavar="SIZE",
        help="train on random crops of this size, instead of whole images that are resized to --resolution",
    )
    add(
        "--channels",
        type=int,
        help="channels: 1 (grey), 2 (grey and alpha), 3 (RGB), 4 (RGBA), or as many as the arrays have"
        " (default: as the first image, or as the pretrained network)",
    )
    add("--condition_channels", type=int, help="channels of the degraded images, as --channels")
    add(
        "--value_range",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="values of black and white, such as 0 4095 for 12 bits in 16; values outside are clipped"
        " (default: by the depth of integers, measured for floats)",
    )
    add(
        "--standardize",
        action="store_true",
        help="the data are fields without black and white, such as of weather: standardise each channel, and"
        " clip nothing",
    )
    add(
        "--background",
        default="white",
        help="colour behind transparent pictures, such as black or #808080 (default: %(default)s)",
    )
    add(
        "--streaming",
        action="store_true",
        help="read the data set during training instead of decoding it first",
    )
    add(
        "--shuffle_window",
        type=int,
        default=10_000,
        help="with --streaming, images to shuffle at a time (default: %(default)s)",
    )
    add("--strict", action="store_true", help="stop at a broken image instead of reporting and skipping it")
    add(
        "--dataloader_num_workers",
        type=int,
        default=4,
        help="threads that decode images (default: %(default)s)",
    )
    switch = argparse.BooleanOptionalAction  # since a preset may set them
    add("--random_flip", action=switch, help="mirror images at random (default: as the preset)")
    add("--random_turn", action=switch, help="turn images by quarters at random (default: as the preset)")
    add(
        "--condition_dropout",
        type=float,
        default=0.0,
        help="probability of training without the degraded image, so that the network can be guided by it"
        " (default: %(default)s)",
    )
    add("--augment", type=float, help="probability of each non-leaking transform (default: as the preset)")
    add(
        "--reference_batch_size",
        type=int,
        help="train towards the field of this many images, over all processes, instead of single images",
    )


def parse_size(text: str) -> int | tuple[int, int]:
    """
    Parse the size of an image.

    Args:
        text (`str`): One number for squares, or HEIGHTxWIDTH.

    Returns:
        `int` or `tuple[int, int]`: The side of a square, or height and width.

    Raises:
        ArgumentTypeError: The text is not such a size.
    """
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise argparse.ArgumentTypeError(
            f"must be a positive number or HEIGHTxWIDTH, such as 32 or 32x64, but is {text!r}"
        )
    height = int(sides[0])
    width = int(sides[-1])
    return height if height == width else (height, width)


def format_size(size: int | tuple[int, int] | None) -> str | None:
    """
    Format the size of an image as [`parse_size`] takes it.

    Args:
        size (`int`, `tuple[int, int]` or `None`): The side of a square, or height and width.

    Returns:
        `str` or `None`: The text; None for None.
    """
    if size is None:
        return None
    if isinstance(size, int):
        return str(size)
    height, width = size
    return f"{height}x{width}"


def load_data(
    args: argparse.Namespace,
    accelerator: Accelerator,
    pretrained: PFGMPPPipeline | None,
    vae: ModelMixin | None = None,
    purpose: str = "Training",
    class_names: list[str] | None = None,
) -> tuple[ImageDataset | ImageStream, dict[str, str]]:
    """
    Load images as the arguments or the pretrained network ask for them, and print what they are.

    Classes are read only for a network that has them, or is to have them.

    Args:
        args (`argparse.Namespace`): The arguments of train_accelerate.py.
        accelerator (`Accelerator`): The processes, of which the main one decodes the images.
        pretrained ([`PFGMPPPipeline`], *optional*): The pipeline to fine-tune.
        vae (`ModelMixin`, *optional*): The autoencoder that encodes the images.
        purpose (`str`, defaults to `"Training"`): What the images are for, in what is printed.
        class_names (`list[str]`, *optional*): The classes by which labels are numbered; by default those of
            the data.

    Returns:
        `tuple`: The data, and their name and digest for the identity of the run.

    Raises:
        ValueError: The data cannot be used; the message names the data set and the reason.
    """
    source = args.dataset_name or args.train_data_dir
    wants_classes = args.class_conditional
    if pretrained and wants_classes is None:
        wants_classes = args.new_classes or pretrained.num_classes > 0
    if args.label_column and not wants_classes:
        raise ValueError(
            f"--label_column {args.label_column} has no effect: the network of"
            f" {args.pretrained_model_name_or_path} has no classes"
        )
    options: dict[str, Any] = {
        "image_column": args.image_column,
        "label_column": args.label_column,
        "labels": wants_classes,
        "channels": args.channels,
        "condition_column": args.condition_column,
        "condition_channels": args.condition_channels,
        "crop": args.crop_size is not None,
        "degradation": args.degradation,
        "value_range": args.value_range and tuple(args.value_range),
        "background": args.background,
        "strict": args.strict,
        "num_workers": args.dataloader_num_workers,
    }
    data: ImageDataset | ImageStream
    try:
        with accelerator.main_process_first():
            dataset = open_dataset(source, args.dataset_config_name, args.split, args.streaming)
            if args.streaming:
                data = ImageStream(dataset, args.resolution, args.shuffle_window, **options)
            else:
                data = load_images(dataset, args.resolution, standardize=args.standardize, **options)
            if class_names is not None and isinstance(data, ImageDataset):  # a stream has no others
                data.number_classes(class_names)
            data.check_contrast()
            if vae is not None and isinstance(data, ImageDataset):  # check_encoded has refused streams
                data = load_latents(data, vae, args.random_flip, accelerator.device)
            digest = data.digest()
    except (ValueError, OSError) as error:
        raise ValueError(f"The data set {source} cannot be used: {error}") from None
    if args.class_conditional and data.class_names is None:
        raise ValueError(
            f"--class_conditional needs a class column, but {source} has only {list(dataset.features)}."
        )
    if args.balance_classes and isinstance(data, ImageDataset) and data.labels is not None:
        data.balance_classes()
    accelerator.print(f"{purpose} on {data.summarize()}.")
    return data, {"name": f"{source}, split {args.split}", "digest": digest}


def load_validation_data(
    args: argparse.Namespace,
    accelerator: Accelerator,
    pretrained: PFGMPPPipeline | None,
    data: ImageDataset | ImageStream,
    vae: ModelMixin | None = None,
) -> ImageDataset | ImageStream | None:
    """
    Load the images of `--validation_split`, in the way that those that are trained on were loaded.

    Args:
        args (`argparse.Namespace`): The arguments of train_accelerate.py.
        accelerator (`Accelerator`): The processes, of which the main one decodes the images.
        pretrained ([`PFGMPPPipeline`], *optional*): The pipeline to fine-tune.
        data ([`ImageDataset`] or [`ImageStream`]): The images that are trained on.
        vae (`ModelMixin`, *optional*): The autoencoder that encodes the images.

    Returns:
        [`ImageDataset`], [`ImageStream`] or `None`: The images; None without `--validation_split`.

    Raises:
        ValueError: They cannot be used.
    """
    if args.validation_split is None:
        return None
    changed = {
        "split": args.validation_split,
        "channels": data.pixels.channels,
        "condition_channels": data.pixels.condition_channels if args.condition_column else None,
        "balance_classes": False,
        "random_flip": False,
        "shuffle_window": MOST_IMAGES,  # more of a stream is not read
    }
    of_split = argparse.Namespace(**vars(args) | changed)
    return load_data(of_split, accelerator, pretrained, vae, "Validation", data.class_names)[0]
