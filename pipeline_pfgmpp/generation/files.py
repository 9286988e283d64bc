"""Many images on disk, one per seed, shared among processes and continued where they were interrupted."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from ..pictures.grid import to_pil
from ..records.digests import describe, list_differences
from ..records.writing import replace_file
from .generate import generate, split_batches


SETTINGS = "settings.json"


def parse_seeds(text: str) -> list[int]:
    """
    Reads a list of seeds such as `"0-49999"` or `"3,5,10-12"`.

    Args:
        text (`str`): Numbers and ranges, both ends included, with commas between.

    Returns:
        `list[int]`: The seeds in the order given.

    Raises:
        ValueError: It is no such list, or names a seed twice.
    """
    seeds = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not first.isdecimal() or not (last or first).isdecimal() or int(last or first) < int(first):
            raise ValueError(f"`seeds` must be a list such as 0-49999 or 3,5,10-12, but is {text!r}.")
        seeds.extend(range(int(first), int(last or first) + 1))
    if len(set(seeds)) != len(seeds):
        raise ValueError(f"`seeds` names a seed twice: {text!r}.")
    return seeds


def sample_to_files(
    pipeline: DiffusionPipeline,
    seeds: list[int],
    output: str | os.PathLike,
    batch_size: int = 64,
    command: str | None = None,
    **settings,
) -> None:
    """
    Draws an image a seed into a folder of PNGs, or into one `.npz` file (`images` of shape (M, H, W, C) as uint8, and `seeds`).

    Under `accelerate launch` or `torchrun` the batches are shared among the processes. What an interrupted run has drawn is
    kept, and a second run draws only what is missing, in the same batches.

    Args:
        pipeline ([`PFGMPPPipeline`]): What generates, on its device.
        seeds (`list[int]`): One an image.
        output (`str` or `os.PathLike`): A folder, or a file whose name ends in `.npz`.
        batch_size (`int`, defaults to 64): Images at a time, in each process.
        command (`str`, *optional*): The command that draws them, kept with the images.
        settings: Further arguments of the pipeline's call; they are kept with the images.

    Raises:
        OSError: A file cannot be written.
        ValueError: The folder holds images drawn with other settings, or an argument does not fit the pipeline.
    """
    from accelerate import PartialState

    state = PartialState(cpu=pipeline.device.type == "cpu")
    output = Path(output).resolve()
    packed = output.suffix == ".npz"
    folder = output.with_name(f".{output.name}.partial") if packed else output
    if packed and output.exists():
        raise ValueError(f"`output` {output} exists; name a new file.")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"`output` {output} is a file; name a folder, or a file that ends in .npz.")
    text = json.dumps({**describe(pipeline, **settings), "command": command}, indent=2, sort_keys=True) + "\n"
    _check_settings(folder, text)
    mine = split_batches(seeds, batch_size)[state.process_index :: state.num_processes]
    missing = [
        seed for batch in mine if not all(_path(folder, seed).is_file() for seed in batch) for seed in batch
    ]
    desc = (
        "Sampling"
        if state.num_processes == 1
        else f"Sampling ({state.process_index + 1} of {state.num_processes})"
    )
    for batch, images in generate(pipeline, missing, batch_size, desc, **settings):
        if not (folder / SETTINGS).is_file():
            with replace_file(folder / SETTINGS) as partial:
                partial.write_text(text)
        for seed, image in zip(batch, images):
            _write_png(_path(folder, seed), image)

    state.wait_for_everyone()
    if packed and state.is_main_process:
        _pack(folder, seeds, output)


def load_samples(path: str | os.PathLike, seeds: list[int] | None = None) -> tuple[torch.Tensor, dict]:
    """
    Reads what [`sample_to_files`] wrote.

    Args:
        path (`str` or `os.PathLike`): A folder of PNGs or an `.npz` file.
        seeds (`list[int]`, *optional*): Whose images; by default all, in the order of the seeds.

    Returns:
        `tuple[torch.Tensor, dict]`: The images of shape `(M, C, H, W)` as uint8, and what they were drawn with: the
            pipeline's settings and the command.

    Raises:
        ValueError: There are no such images.
    """
    path = Path(path)
    try:
        if path.is_dir():
            found = sorted(int(file.stem) for file in path.glob("*.png"))
            images = np.stack([_read_png(_path(path, seed)) for seed in (found if seeds is None else seeds)])
            settings = (path / SETTINGS).read_text()
        else:
            with np.load(path, allow_pickle=False) as archive:
                images, settings = archive["images"], str(archive["settings"])
                if seeds is not None:
                    places = {seed: place for place, seed in enumerate(archive["seeds"].tolist())}
                    images = images[[places[seed] for seed in seeds]]
        settings = json.loads(settings)
    except (KeyError, ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} holds no images that `pfgmpp sample` drew: {error}") from None
    return torch.from_numpy(images).permute(0, 3, 1, 2), settings


def _path(folder, seed):
    return folder / f"{seed:06d}.png"


def _check_settings(folder, text):
    """Refuses to mix images with others, drawn in another way."""
    if (folder / SETTINGS).is_file():
        found = json.loads((folder / SETTINGS).read_text()) | {"command": None}
        wanted = json.loads(text) | {"command": None}
        if differences := list_differences(found, wanted):
            raise ValueError(
                f"{folder} holds images drawn with other settings ({differences}); name another output."
            )
    elif folder.is_dir() and any(folder.glob("*.png")):
        raise ValueError(f"{folder} holds images that were drawn elsewhere; name another output.")


def _write_png(path, image):
    (picture,) = to_pil(image[None])
    with replace_file(path) as partial:
        picture.save(partial, format="PNG")


def _read_png(path):
    with Image.open(path) as image:
        array = np.asarray(image)
    return array if array.ndim == 3 else array[..., None]


def _pack(folder, seeds, output):
    images = np.stack([_read_png(_path(folder, seed)) for seed in seeds])
    with replace_file(output) as partial, open(partial, "wb") as file:
        np.savez(file, images=images, seeds=np.array(seeds), settings=(folder / SETTINGS).read_text())
    shutil.rmtree(folder)
