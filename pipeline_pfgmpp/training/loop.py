"""
The training loop.

    config = TrainingConfig(output_dir="outputs/clothes", max_train_steps=300, train_batch_size=64)
    trainer = Trainer(unet, scheduler, load_images(dataset, resolution=28), config)
    pipeline = trainer.run()

What is random in a step depends on the seed and the step alone. It is drawn at once for all
processes and forward passes, and each takes its part. So neither their number nor a restart changes
the result.
"""

import contextlib
import math
import os
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import DistributedType, ProjectConfiguration, broadcast_object_list
from diffusers import ModelMixin
from diffusers.utils import make_image_grid
from tqdm.auto import tqdm

from ..data import ImageDataset, ImageStream, prefetch
from ..pipeline_pfgmpp import PFGMPPPipeline
from ..records.digests import derive_seed
from ..scheduling_pfgmpp import PFGMPPScheduler
from .augment import Augmentation
from .checkpoint import load_checkpoint, save_checkpoint
from .config import TrainingConfig
from .ema import HalfLifeEMA, PowerFunctionEMA
from .finetune import read_trained_range
from .frechet import FrechetDistance
from .gradients import replace_nonfinite_gradients
from .log import JSONLTracker, LossMeter, measure_memory
from .loss import DimensionRange, Perturbation, PFGMPPLoss, UncertaintyWeighting
from .result import gather_pipeline, locate_grid, read_best_distance, save_best, save_result, write_card
from .run import RunRecord, describe_run, open_run, read_run, remove_run, write_run
from .schedule import compute_learning_rate_factor
from .signals import record_signals


@dataclass(frozen=True)
class StepDraws:
    """
    What is random in one optimisation step besides dropout, for the images of all processes and passes.

    Args:
        perturbation ([`Perturbation`]): What the loss draws.
        transforms (`torch.Tensor` of shape `(batch, 8)`, *optional*): Transforms of [`Augmentation`].
        flips (`torch.Tensor` of shape `(batch, 1, 1, 1)`, *optional*): Which images are mirrored.
    """

    perturbation: Perturbation
    transforms: torch.Tensor | None
    flips: torch.Tensor | None


def create_accelerator(config: TrainingConfig) -> Accelerator:
    """
    Create the `Accelerator` of a run, which logs to `log.jsonl` and to `config.report_to`.

    Args:
        config ([`TrainingConfig`]): The settings.

    Returns:
        `Accelerator`: The accelerator.
    """
    trackers: list[Any] = [JSONLTracker(config.output_dir)]
    if config.report_to:
        trackers.append(config.report_to)
    return Accelerator(
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        mixed_precision=config.mixed_precision,
        log_with=trackers,
        project_config=ProjectConfiguration(
            project_dir=str(config.output_dir), logging_dir=os.path.join(config.output_dir, "logs")
        ),
    )


class Trainer:
    """
    Trains a network, resumably, on whatever `accelerate` runs on.

    SIGTERM and SIGINT (Ctrl-C, or a notebook's stop button) end the run after the current step with
    a checkpoint, if the trainer runs in the main thread.

    Args:
        unet (`ModelMixin`): The network. It is trained in place.
        scheduler ([`PFGMPPScheduler`]): Owns D, sigma_data and the preconditioning.
        data ([`ImageDataset`] or [`ImageStream`]): The images, of the network's size and channels.
        config ([`TrainingConfig`]): The settings.
        class_names (`list[str]`, *optional*): Names of the network's classes; by default those of the
            data.
        trained_classes (`Collection[int]`, defaults to none): Classes that a pretrained network has
            learnt already. The result offers them and those that occur in the data.
        dimensions ([`DimensionRange`], *optional*): Distribution of D for a network conditioned on
            D; by default the range in the scheduler's configuration.
        loss (*optional*): The objective, with the methods `draw` and `__call__` of [`PFGMPPLoss`],
            which is the default.
        accelerator (`Accelerator`, *optional*): From [`create_accelerator`], if the caller needs it
            before the trainer exists.
        record ([`RunRecord`], *optional*): What identifies the run, and what its card says of it; by
            default derived from the other arguments.

    Raises:
        ValueError: `config.output_dir` or a checkpoint belongs to another run, the arguments do not
            fit each other, or the features for the Fréchet distance cannot be loaded.
    """

    def __init__(
        self,
        unet: ModelMixin,
        scheduler: PFGMPPScheduler,
        data: ImageDataset | ImageStream,
        config: TrainingConfig,
        *,
        class_names: list[str] | None = None,
        trained_classes: Collection[int] = (),
        dimensions: DimensionRange | None = None,
        loss: PFGMPPLoss | None = None,
        accelerator: Accelerator | None = None,
        record: RunRecord | None = None,
    ):
        self.config = config
        self.data = data
        self.trained_classes = trained_classes
        self.accelerator = accelerator or create_accelerator(config)
        self.device = self.accelerator.device
        self.images_per_pass = config.train_batch_size * self.accelerator.num_processes
        self.images_per_step = self.images_per_pass * config.gradient_accumulation_steps
        self.global_step = 0
        self.data_state: Any = None
        self.stopped = False

        pipeline = PFGMPPPipeline(unet, scheduler)
        self.class_names = self._choose_classes(pipeline.num_classes or 0, class_names)
        if dimensions is None and unet.config.get("d_conditioning"):
            dimensions = read_trained_range(pipeline)
        self.loss = loss or PFGMPPLoss(scheduler, config.P_mean, config.P_std, dimensions)
        self.augmentation = self._create_augmentation(unet)
        self.image_shape = self._choose_shape(unet)

        self.record = record or describe_run(unet, scheduler, data, config, self.images_per_step, dimensions)
        self.checkpoints = open_run(
            config.output_dir,
            self.record.identity,
            config.resume_from_checkpoint,
            config.overwrite_output_dir,
        )
        self._prepare(unet)
        self.pipeline = PFGMPPPipeline(
            self.accelerator.unwrap_model(self.unet),
            scheduler,
            id2label=self._name_classes() or None,
        )
        self.pipeline.set_progress_bar_config(disable=True)
        self.frechet_distance = self._create_frechet_distance()

    def _choose_classes(self, count: int, names: list[str] | None) -> list[str]:
        """Return the names of the network's classes, empty for a network without classes."""
        if names is None:
            names = (self.data.class_names or []) if count else []
        if len(names) != count:
            raise ValueError(f"The network has {count} classes, but {len(names)} class names are given.")
        if count and self.config.reference_batch_size:
            raise ValueError(
                "`reference_batch_size` needs a network without classes: its field is that of all images."
            )
        return names

    def _name_classes(self) -> dict[int, str]:
        """Return the names of the classes that the result offers: those that occur in training."""
        if not self.class_names:
            return {}
        offered = {*self.data.present_classes, *self.trained_classes}
        return {label: name for label, name in enumerate(self.class_names) if label in offered}

    def _choose_shape(self, unet: ModelMixin) -> tuple[int, int, int]:
        """Return the shape of an image, (channels, height, width)."""
        channels = unet.config.in_channels
        if self.data.channels != channels:
            raise ValueError(
                f"The images have {self.data.channels} channels, but the network takes {channels}."
            )
        size = unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        if self.data.size != (height, width):
            raise ValueError(
                f"The images have {'x'.join(map(str, self.data.size))} pixels, but the network is for"
                f" {height}x{width}."
            )
        return channels, height, width

    def _create_augmentation(self, unet: ModelMixin) -> Augmentation | None:
        if not self.config.augment:
            return None
        if unet.config.get("augment_dim") != Augmentation.num_labels:
            self.accelerator.print("The network takes no augmentation labels: training without augmentation.")
            return None
        return Augmentation(self.config.augment)

    def _create_frechet_distance(self) -> FrechetDistance | None:
        if not self.config.fid_steps:
            return None
        try:
            return FrechetDistance(
                self.data, self.config.fid_images, self.config.fid_features, self.accelerator
            )
        except (OSError, ValueError) as error:
            raise ValueError(f"`fid_steps`: {error}") from None

    def _prepare(self, unet: ModelMixin) -> None:
        """Set up the optimiser and the averages, and let accelerate distribute them."""
        config = self.config
        if self.device.type == "cpu" and self.accelerator.distributed_type != DistributedType.FSDP:
            unet.to(memory_format=torch.channels_last)  # the fastest layout there, which FSDP cannot shard
        if config.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        if config.compile:
            unet.compile()
        weighting = UncertaintyWeighting() if config.uncertainty_weighting else None
        optimizer = torch.optim.AdamW(
            [*unet.parameters(), *(weighting.parameters() if weighting else [])],
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_epsilon,
            weight_decay=config.adam_weight_decay,
            fused=True,
        )
        deepspeed = self.accelerator.state.deepspeed_plugin
        if deepspeed:
            deepspeed.deepspeed_config["train_micro_batch_size_per_gpu"] = config.train_batch_size
        self.unet, self.optimizer = self.accelerator.prepare(unet, optimizer)
        self.weighting = self.accelerator.prepare(weighting) if weighting else None
        self.models = [self.unet, self.weighting] if weighting else [self.unet]
        self.trained = [parameter for model in self.models for parameter in model.parameters()]

        self.averages = [
            HalfLifeEMA(self.unet.parameters(), self.images_per_step, halflife)
            for halflife in config.ema_halflife
        ]
        self.powers = [PowerFunctionEMA(self.unet.parameters(), width) for width in config.ema_width]
        self.accelerator.register_for_checkpointing(*self.averages, *self.powers)

    def run(self) -> PFGMPPPipeline | None:
        """
        Train, then write the result into `config.output_dir`.

        Returns:
            [`PFGMPPPipeline`] or `None`: The pipeline with the averaged weights, on the CPU. None on
                all processes but the main one, and if the run was stopped early.

        Raises:
            OSError: A file cannot be written. The checkpoints before it are intact.
            ValueError: No checkpoint can be resumed from, or the data cannot be read.
        """
        stop_requests: list[int] = []
        cuda = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(cuda):
            self.start()
            with record_signals(stop_requests):
                self._loop(stop_requests)
                pipeline = None if self.stopped else self.finish()
        if self.stopped:
            self.accelerator.print(
                f"Stopped after step {self.global_step}. To resume, set `resume_from_checkpoint` to latest."
            )
        self.accelerator.end_training()
        return pipeline

    def _loop(self, stop_requests: list[int]) -> None:
        config = self.config
        deadline = time.monotonic() + 60 * (config.max_train_time or math.inf)
        progress = tqdm(
            total=config.max_train_steps,
            initial=self.global_step,
            desc="Training",
            disable=not self.accelerator.is_local_main_process,
        )
        while self.global_step < config.max_train_steps and not self.stopped:
            self.step()
            progress.update()
            if self._is_due(config.logging_steps):
                progress.set_postfix(self.log())
            if self._is_due(config.sample_steps):
                self.sample()
            if self._is_due(config.fid_steps):
                self.measure()
            if self._is_due(config.ema_snapshot_steps):
                self._save_snapshots()
            if any(map(self._is_due, (config.logging_steps, config.sample_steps, config.fid_steps))):
                self._restart_clock()

            if stop_requests or time.monotonic() > deadline:
                self.accelerator.set_trigger()
            asked = self.accelerator.check_trigger()  # by any process
            self.stopped = asked and self.global_step < config.max_train_steps
            if self.stopped or self._is_due(config.checkpointing_steps):
                self.save()
        progress.close()

    def _is_due(self, interval: int) -> bool:
        """Tell whether something that happens every `interval` steps, and at the end, happens now."""
        if not interval:
            return False
        return self.global_step % interval == 0 or self.global_step == self.config.max_train_steps

    def start(self) -> None:
        """Load the newest undamaged checkpoint, take over the folder, and open the data and the log."""
        config = self.config
        accelerator = self.accelerator
        self._resume()
        accelerator.wait_for_everyone()  # all processes must have seen the folder before it changes
        if accelerator.is_main_process:
            if config.overwrite_output_dir:
                remove_run(config.output_dir)
            Path(config.output_dir).mkdir(parents=True, exist_ok=True)
            write_run(config.output_dir, self._identify())
            arguments = Path(config.output_dir, "arguments.yaml")
            arguments.write_text(yaml.safe_dump(self.record.arguments))  # for --config
        (self.best_distance,) = broadcast_object_list([read_best_distance(config)])
        settings = {name: str(value) for name, value in self.record.arguments.items()}
        accelerator.init_trackers("pfgmpp", config=settings)

        self.rng = torch.Generator(self.device)
        self.batches = self._open_batches()
        self.meter = LossMeter(config.P_mean, config.P_std, self.device)
        self.nonfinite_gradients = 0
        self.grad_norm: torch.Tensor | None = None
        self.logs: dict[str, float] = {}
        self._restart_clock()
        self.unet.train()

    def _identify(self) -> dict:
        return {**self.record.identity, "--max_train_steps": self.config.max_train_steps}

    def _open_batches(self) -> Iterator:
        world = self.accelerator.num_processes
        batch_size = max(self.config.train_batch_size, (self.config.reference_batch_size or 0) // world)
        state = [] if self.data_state is None else [self.data_state]
        return prefetch(
            self.data.batches(batch_size, self.config.seed, self.accelerator.process_index, world, *state)
        )

    def _restart_clock(self) -> None:
        self.clock = time.monotonic()
        self.clock_step = self.global_step

    def _resume(self) -> None:
        """Load the newest checkpoint that is not damaged."""
        while self.checkpoints:
            checkpoint = self.checkpoints.pop()
            try:
                self.global_step, self.data_state = load_checkpoint(self.accelerator, checkpoint)
            except ValueError as error:
                if not self.checkpoints:
                    raise ValueError(f"{error}. There is no checkpoint to resume from.") from None
                self.accelerator.print(f"{error}. Trying the checkpoint before it.")
                continue
            self.accelerator.print(f"Resuming from {checkpoint}")
            self._compare_length(read_run(checkpoint))
            return

    def _compare_length(self, before: dict | None) -> None:
        """Tell whether a learning rate that falls to 0 now does so at another step than before."""
        if before is None:
            self.accelerator.print("The checkpoint does not name its run; it is assumed to be of this one.")
            return
        steps = self.config.max_train_steps
        planned = before["--max_train_steps"]
        if self.config.lr_scheduler in ("cosine", "linear") and planned != steps:
            self.accelerator.print(f"The learning rate falls to 0 at step {steps}, no longer at {planned}.")

    def step(self) -> None:
        """Run one optimisation step: all forward and backward passes, and one update of the weights."""
        draws = self.draw()
        for index in range(self.config.gradient_accumulation_steps):
            first = index * self.images_per_pass + self.accelerator.process_index
            part = slice(first, (index + 1) * self.images_per_pass, self.accelerator.num_processes)
            batch = self.read_batch()
            with self.accelerator.accumulate(*self.models):
                images, references, conditioning = self.prepare_batch(batch, draws, part)
                perturbation = draws.perturbation[part]
                loss = self.loss(self.unet, images, perturbation, references, **conditioning)
                self.meter.add(loss, perturbation.sigma)
                if self.weighting:
                    loss = self.weighting(loss, perturbation.sigma)
                self.accelerator.backward(loss.mean())
                if self.accelerator.sync_gradients:
                    self.clip_gradients()
                    self.set_learning_rate()
                self.optimizer.step()
                self.optimizer.zero_grad()
        self.global_step += 1
        self.update_averages()

    def draw(self) -> StepDraws:
        """Draw what is random in this step, from the seed and the step alone."""
        seed = self.config.seed
        rank = self.accelerator.process_index
        count = self.images_per_step
        self.rng.manual_seed(derive_seed(seed, "step", self.global_step))
        torch.manual_seed(derive_seed(seed, "dropout", self.global_step, rank))
        perturbation = self.loss.draw((count, *self.image_shape), self.rng, self.device)
        transforms = None
        if self.augmentation:
            transforms = self.augmentation.draw(count, self.rng, self.device)
        flips = None
        if self.config.random_flip:
            flips = torch.rand(count, 1, 1, 1, generator=self.rng, device=self.device) < 0.5
        return StepDraws(perturbation, transforms, flips)

    def read_batch(self) -> dict[str, torch.Tensor]:
        """Read the next batch of this process: `images`, and `class_labels` if there are any."""
        try:
            batch, self.data_state = next(self.batches)
        except ValueError as error:  # a stream with a broken image, or without a readable one
            raise ValueError(f"The data set {self.record.source} cannot be used: {error}") from None
        return batch

    def prepare_batch(
        self, batch: dict[str, torch.Tensor], draws: StepDraws, part: slice
    ) -> tuple[torch.Tensor, torch.Tensor | None, dict[str, torch.Tensor]]:
        """
        Move a batch to the device, scale it to [-1, 1] and transform it.

        Args:
            batch (`dict[str, torch.Tensor]`): From [`~Trainer.read_batch`].
            draws ([`StepDraws`]): What is random in the step.
            part (`slice`): Which of the step's images this process and pass takes.

        Returns:
            `tuple`: Images of shape `(batch, C, H, W)`; reference images of all processes, or None;
                and what else the network takes, by name.
        """
        images = self.data.normalize(batch["images"].to(self.device))
        references = self.accelerator.gather(images) if self.config.reference_batch_size else None
        images = images[: self.config.train_batch_size]
        conditioning = {}
        if self.class_names:
            conditioning["class_labels"] = batch["class_labels"].to(self.device)
        if draws.flips is not None:
            images = torch.where(draws.flips[part], images.flip(-1), images)
        if self.augmentation and draws.transforms is not None:
            images, conditioning["augment_labels"] = self.augmentation(images, draws.transforms[part])
        return images, references, conditioning

    def clip_gradients(self) -> None:
        """Replace gradients that are not finite, and clip their norm."""
        if self.accelerator.scaler is None:  # fp16 skips such a step and lowers its scale
            self.nonfinite_gradients += replace_nonfinite_gradients(self.trained)
        self.grad_norm = self.accelerator.clip_grad_norm_(self.trained, self.config.max_grad_norm or math.inf)

    def set_learning_rate(self) -> None:
        """Set the learning rate of this step."""
        factor = compute_learning_rate_factor(
            self.config.lr_scheduler,
            images=self.images_seen,
            total_images=self.config.max_train_steps * self.images_per_step,
            warmup_images=self.config.count_warmup_images(self.images_per_step),
            decay_images=self.config.lr_decay_images,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * factor

    def update_averages(self) -> None:
        """Update the moving averages of the weights."""
        for average in [*self.averages, *self.powers]:
            average.step(self.unet.parameters())

    @property
    def images_seen(self) -> int:
        """Images trained on so far, over all processes."""
        return self.global_step * self.images_per_step

    def log(self) -> dict[str, str]:
        """
        Log loss, gradient norm, learning rate, speed and memory since the last time.

        Returns:
            `dict[str, str]`: What the progress bar shows.
        """
        logs = self.meter.read(self.accelerator)
        logs["lr"] = self.optimizer.param_groups[0]["lr"]
        if self.grad_norm is not None:  # DeepSpeed may not tell
            logs["grad_norm"] = float(self.grad_norm)
        images = (self.global_step - self.clock_step) * self.images_per_step
        logs["images_per_second"] = images / (time.monotonic() - self.clock)
        logs["memory_gib"] = measure_memory(self.device)
        if self.nonfinite_gradients:
            logs["nonfinite_gradients"] = self.nonfinite_gradients
        self.accelerator.log({**logs, "images": self.images_seen}, step=self.global_step)
        self.logs = logs
        shown = {"loss": "loss", "images_per_second": "images/s", "memory_gib": "GiB"}
        return {name: f"{logs[key]:.3g}" for key, name in shown.items()}

    @contextlib.contextmanager
    def use_average(self) -> Iterator[None]:
        """Put the first moving average in the place of the weights for a while."""
        average = self.averages[0]
        average.store(self.unet.parameters())
        average.copy_to(self.unet.parameters())
        self.unet.eval()
        try:
            yield
        finally:
            self.unet.train()
            average.restore(self.unet.parameters())

    def sample(self) -> None:
        """
        Save a grid of samples of the averaged network, from the same noise each time.

        It has four rows, and one column per class if there are classes. All processes draw it, since
        the network may be sharded, and one writes it.
        """
        columns = self.pipeline.num_classes or 8
        count = 4 * columns
        labels = [index % columns for index in range(count)] if self.class_names else None
        generators = [torch.Generator().manual_seed(seed) for seed in range(count)]
        with self.use_average():
            images = self.pipeline(batch_size=count, class_labels=labels, generator=generators).images
        if self.accelerator.is_main_process:
            path = locate_grid(self.config.output_dir, self.global_step)
            path.parent.mkdir(parents=True, exist_ok=True)
            make_image_grid(images, rows=4, cols=columns).save(path)

    def measure(self) -> None:
        """Log the Fréchet distance of the averaged network, and keep the best network in `best/`."""
        if self.frechet_distance is None:
            raise ValueError("`fid_steps` is 0, so that no Fréchet distance can be measured.")
        with self.use_average():
            distance = self.frechet_distance(self.pipeline, self.config.train_batch_size)
            self.accelerator.log({"frechet_distance": distance}, step=self.global_step)
            if not distance < self.best_distance:  # NaN is not an improvement either
                return
            self.best_distance = distance
            pipeline = gather_pipeline(self.accelerator, self.unet, self.pipeline)
        if pipeline is not None:
            save_best(pipeline, self.config, self.global_step, distance)

    def _save_snapshots(self) -> None:
        names = [name for name, _ in self.pipeline.unet.named_parameters()]
        write = self.accelerator.is_main_process
        for power in self.powers:
            power.save_snapshot(self.config.output_dir, self.global_step, names, write)

    def save(self) -> None:
        """Save a checkpoint, and remove the oldest ones beyond the limit."""
        save_checkpoint(
            self.accelerator,
            self.config.output_dir,
            self.global_step,
            self.data_state,
            self.config.checkpoints_total_limit,
            self._identify(),
        )

    def finish(self) -> PFGMPPPipeline | None:
        """
        Write the result: a pipeline folder with the averaged weights, and its card.

        Returns:
            [`PFGMPPPipeline`] or `None`: The pipeline; None on all processes but the main one.
        """
        pipeline = None
        for average in reversed(self.averages):  # the first one last, so that its weights remain
            average.copy_to(self.unet.parameters())
            pipeline = gather_pipeline(self.accelerator, self.unet, self.pipeline)
            if pipeline is not None:
                variant = None if average is self.averages[0] else f"ema{average.halflife:.0f}"
                save_result(pipeline, self.config, variant)
        if pipeline is not None:
            average = self.averages[0]
            write_card(
                pipeline,
                self.config,
                self.record,
                steps=self.global_step,
                images=self.images_seen,
                loss=self.logs.get("loss"),
                halflife=min(average.halflife, average.rampup * self.images_seen),
                accelerator=self.accelerator,
            )
        return pipeline
