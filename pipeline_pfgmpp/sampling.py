"""Many images, one a seed: the same for a seed whatever the number of processes, and continued where they were interrupted."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from tqdm.auto import tqdm

from . import __version__
from .grid import to_pil
from .noise import sample_noise


SETTINGS = "settings.json"


def derived_seed(*parts: int | str) -> int:
    """A seed of 63 bits for one purpose, from another seed and what tells the purpose from all others."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little") >> 1


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


def digest_weights(pipeline: DiffusionPipeline) -> str:
    """
    Tells networks apart by what they hold, whatever the folder or the repository they come from.

    Args:
        pipeline ([`PFGMPPPipeline`]): The pipeline.

    Returns:
        `str`: A digest of the networks' weights as float32: weights that are stored in float16 and loaded in float32 are the
            same weights.
    """
    digest = hashlib.sha256()
    for part, component in sorted(pipeline.components.items()):
        if isinstance(component, torch.nn.Module):
            for name, tensor in sorted(component.state_dict().items()):
                digest.update(f"{part} {name} {tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy())
    return digest.hexdigest()[:16]


def _public_config(component):
    return {name: value for name, value in component.config.items() if not name.startswith("_")}


def describe(pipeline: DiffusionPipeline, **settings) -> dict:
    """
    Lists what images depend on besides their seed.

    Args:
        pipeline ([`PFGMPPPipeline`]): What generates.
        settings: Arguments of its call.

    Returns:
        `dict`: The settings, the configurations of scheduler and network, the digest and the type of the weights, and the
            version of this package, as they come back from JSON.
    """
    scheduler = {"_class_name": type(pipeline.scheduler).__name__, **_public_config(pipeline.scheduler)}
    dtype = str(pipeline.unet.dtype).removeprefix("torch.")
    network = {"_class_name": type(pipeline.unet).__name__, **_public_config(pipeline.unet)}
    description = {**settings, "scheduler": scheduler, "network": network, "weights": digest_weights(pipeline)}
    return json.loads(json.dumps({**description, "dtype": dtype, "version": __version__}))


def default_output(kind: str, model: str | os.PathLike, description: dict) -> Path:
    """
    Names a folder for results: the same one for the same description, another one for any other.

    Args:
        kind (`str`): What the results are, such as `"evaluation"`.
        model (`str` or `os.PathLike`): The model, whose name the folder bears.
        description (`dict`): All that the results depend on, ready for JSON.

    Returns:
        `Path`: `outputs/KIND/NAME-DIGEST`.
    """
    text = json.dumps(description, sort_keys=True)
    return Path("outputs", kind, f"{Path(model).resolve().name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}")


def list_differences(found: dict, wanted: dict) -> str:
    """
    Says in words how two descriptions differ.

    Args:
        found (`dict`): What is there.
        wanted (`dict`): What is asked for.

    Returns:
        `str`: Such as `"num_inference_steps is 18 there and 9 here"`; empty where they agree.
    """
    names = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
    parts = []
    for name in names:
        there, here = found.get(name), wanted.get(name)
        if isinstance(there, dict) and isinstance(here, dict):
            parts.append(list_differences(there, here))
        else:
            parts.append(f"{name} is {there} there and {here} here")
    return ", ".join(parts)


def generate(
    pipeline: DiffusionPipeline,
    seeds: list[int],
    batch_size: int,
    desc: str | None = "Sampling",
    noise: float = 0.0,
    **settings,
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """
    Images for seeds, a batch at a time; each depends on its seed alone.

    Args:
        pipeline ([`PFGMPPPipeline`]): What generates.
        seeds (`list[int]`): One an image.
        batch_size (`int`): Images at a time.
        desc (`str`, *optional*, defaults to `"Sampling"`): What stands before the progress bar; with None there is none.
        noise (`float`, defaults to 0): alpha of the noise that [`injected_noise`] disturbs the sampling with.
        settings: Further arguments of the pipeline's call, such as `num_inference_steps`.

    Yields:
        `tuple[list[int], torch.Tensor]`: The seeds of a batch, and its images of shape `(batch, C, H, W)` as uint8 on the CPU.

    Raises:
        ValueError: `batch_size` is not positive, or an argument does not fit the pipeline.
    """
    batches = _batches(seeds, batch_size)
    pipeline.set_progress_bar_config(disable=True)
    with tqdm(total=len(seeds), desc=desc, unit="image", disable=desc is None) as progress:
        for batch in batches:
            generators = [torch.Generator().manual_seed(seed) for seed in batch]
            disturbed = injected_noise(pipeline, batch, generators, noise, settings.get("D")) if noise else {}
            images = pipeline(len(batch), generator=generators, output_type="pt", **disturbed, **settings).images
            yield batch, (images * 255).round().to("cpu", torch.uint8)
            progress.update(len(batch))


def injected_noise(
    pipeline: DiffusionPipeline, seeds: list[int], generators: list[torch.Generator], noise: float, D: float | None = None
) -> dict:
    r"""
    Disturbs the sampling as the PFGM++ paper does (https://huggingface.co/papers/2302.04265, sec. 6): before each step
    $x \leftarrow x + \alpha\,\sigma_i\,g$ with $g \sim \mathcal{N}(0, I)$. All else stays that of the seeds.

    Args:
        pipeline ([`PFGMPPPipeline`]): What generates.
        seeds (`list[int]`): One an image.
        generators (`list[torch.Generator]`): Those of the seeds, as the pipeline is given them.
        noise (`float`): alpha.
        D (`float`, *optional*): The augmented dimension, `inf` for infinity; by default the scheduler's.

    Returns:
        `dict`: Arguments of the pipeline's call.
    """
    config, device = pipeline.unet.config, pipeline.device
    height, width = (config.sample_size,) * 2 if isinstance(config.sample_size, int) else config.sample_size
    shape = (len(seeds), config.in_channels, height, width)
    others = [torch.Generator().manual_seed(derived_seed(seed, "injected noise")) for seed in seeds]

    def gaussian():
        return noise * sample_noise(shape, None, others, device)

    def before_the_next_step(pipe, index, timestep, tensors):
        if (index + 1) % pipe.scheduler.order == 0 and index + 1 < len(pipe.scheduler.timesteps):
            return {"latents": tensors["latents"] + pipe.scheduler.sigmas[index + 1] * gaussian()}
        return tensors

    prior = pipeline.scheduler.sample_noise(shape, generators, device, D=pipeline.scheduler.config.D if D is None else D)
    return {"latents": prior + gaussian(), "callback_on_step_end": before_the_next_step}


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
    mine = _batches(seeds, batch_size)[state.process_index :: state.num_processes]
    missing = [seed for batch in mine if not all(_path(folder, seed).is_file() for seed in batch) for seed in batch]
    desc = "Sampling" if state.num_processes == 1 else f"Sampling ({state.process_index + 1} of {state.num_processes})"
    for batch, images in generate(pipeline, missing, batch_size, desc, **settings):
        if not (folder / SETTINGS).is_file():
            folder.mkdir(parents=True, exist_ok=True)
            _write(folder / SETTINGS, lambda partial: partial.write_text(text))
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


def _batches(seeds, batch_size):
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be positive, but is {batch_size}.")
    return [seeds[i : i + batch_size] for i in range(0, len(seeds), batch_size)]


def _check_settings(folder, text):
    """Refuses to mix images with others, drawn in another way."""
    if (folder / SETTINGS).is_file():
        found = json.loads((folder / SETTINGS).read_text()) | {"command": None}
        wanted = json.loads(text) | {"command": None}
        if differences := list_differences(found, wanted):
            raise ValueError(f"{folder} holds images drawn with other settings ({differences}); name another output.")
    elif folder.is_dir() and any(folder.glob("*.png")):
        raise ValueError(f"{folder} holds images that were drawn elsewhere; name another output.")


def _write(path, write):
    """Writes a file beside its place and moves it there; several processes may."""
    partial = path.with_suffix(f".{os.getpid()}.partial")
    write(partial)
    os.replace(partial, path)


def _write_png(path, image):
    (picture,) = to_pil(image[None])
    _write(path, lambda partial: picture.save(partial, format="PNG"))


def _read_png(path):
    with Image.open(path) as image:
        array = np.asarray(image)
    return array if array.ndim == 3 else array[..., None]


def _pack(folder, seeds, output):
    images = np.stack([_read_png(_path(folder, seed)) for seed in seeds])
    partial = folder / "packed.npz"
    np.savez(partial, images=images, seeds=np.array(seeds), settings=(folder / SETTINGS).read_text())
    os.replace(partial, output)
    shutil.rmtree(folder)
