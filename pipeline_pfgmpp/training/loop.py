"""
The training loop.

    config = TrainingConfig(output_dir="outputs/clothes", max_train_steps=300, train_batch_size=64)
    trainer = Trainer(unet, scheduler, load_images(dataset, resolution=28), config)
    pipeline = trainer.run()

What is random in a step depends on the seed and the step alone. It is drawn at once for all
processes and forward passes, and each takes its part. So neither their number nor a restart changes
the result. Only what the network itself drops in training, activations (`dropout`) and classes
(`label_dropout`), is drawn by each process and pass: a restart repeats it, another number of them does not.
"""

import contextlib
import math
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from diffusers import ModelMixin
from tqdm.auto import tqdm

from ..data import ImageDataset, ImageStream, prefetch, split_pairs
from ..pipeline_pfgmpp import PFGMPPPipeline
from ..records.digests import derive_seed
from ..records.writing import replace_file
from ..scheduling_pfgmpp import PFGMPPScheduler
from .augment import apply_symmetries, draw_symmetries
from .checkpoint import load_newest_checkpoint, save_checkpoint
from .config import TrainingConfig
from .divergence import LossWatch, are_finite, describe_divergence
from .ema import HalfLifeEMA, PowerFunctionEMA
from .finetune import read_trained_range
from .gradients import clip_norms, replace_nonfinite_gradients
from .log import LossMeter, measure_memory, read_last_loss
from .loss import DimensionRange, PFGMPPLoss, StepDraws
from .preparation import (
    build_pipeline,
    check_images,
    check_references,
    choose_offered_classes,
    configure_network,
    create_accelerator,
    create_augmentation,
    create_frechet_distance,
    create_optimizer,
    list_companions,
    name_classes,
)
from .processes import fail_together
from .result import gather_pipeline, read_best_distance, save_best, save_result, write_card
from .run import RunRecord, describe_run, lock_run, open_run, read_run, remove_run, write_run
from .samples import choose_shown_pairs, draw_grid_of_samples, locate_grid
from .schedule import compute_learning_rate_factor
from .signals import record_signals
from .validation import create_validation_loss


class Trainer:
    """
    Trains a network, resumably, on whatever `accelerate` runs on.

    SIGTERM and SIGINT (Ctrl-C, or a notebook's stop button) end the run after the current step with
    a checkpoint, if the trainer runs in the main thread.

    Args:
        unet (`ModelMixin`): The network. It is trained in place.
        scheduler ([`PFGMPPScheduler`]): Owns D, sigma_data and the preconditioning.
        data ([`ImageDataset`] or [`ImageStream`]): The images or, from [`load_latents`], their latents, of
            the network's size and channels.
        config ([`TrainingConfig`]): The settings.
        class_names (`list[str]`, *optional*): Names of the network's classes; by default those of the
            data.
        trained_classes (`Collection[int]`, defaults to none): Classes that a pretrained network has
            learnt already. The result offers them and those that occur in the data.
        dimensions ([`DimensionRange`], *optional*): Distribution of D for a network conditioned on
            D; by default the range in the scheduler's configuration.
        loss (*optional*): The objective, with the methods `draw` and `__call__` of [`PFGMPPLoss`],
            which is the default, and perhaps its `critic` and `uses_dropout`.
        accelerator (`Accelerator`, *optional*): From [`create_accelerator`], if the caller needs it
            before the trainer exists.
        record ([`RunRecord`], *optional*): What identifies the run, and what its card says of it; by
            default derived from the other arguments.
        validation_data ([`ImageDataset`] or [`ImageStream`], *optional*): Images that are not trained
            on. The loss of the averaged network on a few of them is logged with that of the training.

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
        validation_data: ImageDataset | ImageStream | None = None,
    ):
        self.config = config
        self.data = data
        self.accelerator = accelerator or create_accelerator(config)
        self.device = self.accelerator.device
        self.images_per_pass = config.train_batch_size * self.accelerator.num_processes
        self.images_per_step = self.images_per_pass * config.gradient_accumulation_steps
        self.global_step = 0
        self.data_state: Any = None
        self.stopped = False
        self.save_postponed = False

        pipeline = build_pipeline(unet, scheduler)
        self.class_names = name_classes(pipeline.num_classes or 0, class_names, data, config)
        if dimensions is None and unet.config.get("d_conditioning"):
            if scheduler.config.D_range is None:
                raise ValueError("`dimensions` are needed, or a scheduler with `D_range`: `unet` takes D.")
            dimensions = read_trained_range(pipeline)
        self.loss = loss or PFGMPPLoss(scheduler, config.P_mean, config.P_std, dimensions)
        self.uses_dropout = getattr(self.loss, "uses_dropout", True)
        self.augmentation = create_augmentation(unet, config, self.accelerator)
        self.image_shape = check_images(unet, data, config)
        check_references(config, self.accelerator.num_processes)

        self.record = record or describe_run(unet, scheduler, data, config, self.images_per_step, dimensions)
        self._open_folder()
        self._prepare(unet)
        self.pipeline = build_pipeline(
            self.accelerator.unwrap_model(self.unet),
            scheduler,
            id2label=choose_offered_classes(self.class_names, data, trained_classes),
            value_range=None if data.is_eight_bits else data.value_range,
            vae=data.vae if data.vae is None else data.vae.to(self.device),
        )
        self.pipeline.set_progress_bar_config(disable=True)
        self.frechet_distance = create_frechet_distance(data, config, self.accelerator)
        settings = (self.loss, config, bool(self.class_names), self.accelerator)
        self.validation = create_validation_loss(validation_data, data, *settings)
        self.shown_pairs = choose_shown_pairs(validation_data or data, config)

    def _open_folder(self) -> None:
        """Find the checkpoints to resume from, and check that the run may use its folder."""
        config = self.config
        settings = (config.resume_from_checkpoint, config.overwrite_output_dir)
        self.checkpoints = open_run(config.output_dir, self.record.identity, *settings)

    def _prepare(self, unet: ModelMixin) -> None:
        """Set up the optimiser and the averages, and let accelerate distribute them."""
        config = self.config
        configure_network(unet, config, self.accelerator)
        companions = list_companions(self.loss, config, self.accelerator)
        optimizer = create_optimizer(unet, companions, config)
        self.unet, self.optimizer = self.accelerator.prepare(unet, optimizer)
        companions = {name: self.accelerator.prepare(module) for name, module in companions.items()}
        self.loss.critic = companions.get("critic")
        self.weighting = companions.get("weighting")
        self.models = [self.unet, *companions.values()]
        self.trained = [parameter for model in self.models for parameter in model.parameters()]

        self.averages = [
            HalfLifeEMA(self.unet.parameters(), self.images_per_step, halflife, config.ema_rampup)
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
            FloatingPointError: The run has diverged: its loss or its weights are NaN or infinite. The
                checkpoints before that are intact.
            OSError: A file cannot be written. The checkpoints before it are intact.
            ValueError: No checkpoint can be resumed from, the data cannot be read, or another run is
                in the folder.
        """
        stop_requests: list[int] = []
        cuda = [self.device] if self.device.type == "cuda" else []
        is_main = self.accelerator.is_main_process
        lock = lock_run(self.config.output_dir) if is_main else contextlib.nullcontext()
        with lock, torch.random.fork_rng(cuda):
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
            self._check_loss()
            if stop_requests or time.monotonic() > deadline:
                self.accelerator.set_trigger()
            asked = self.accelerator.check_trigger()  # by any process
            self.stopped = asked and self.global_step < config.max_train_steps

            # First of all save, so that nothing that fails afterwards loses the steps.
            if self._is_due(config.ema_snapshot_steps):
                self._save_snapshots()
            if self.stopped or self.save_postponed or self._is_due(config.checkpointing_steps):
                self.save()
            if self._is_due(config.logging_steps):
                progress.set_postfix(self.log())
            if self._is_due(config.sample_steps):
                self._try("sample grid", self.sample)
            if self._is_due(config.fid_steps):
                self._try("Fréchet distance", self.measure)
            if any(map(self._is_due, (config.logging_steps, config.sample_steps, config.fid_steps))):
                self._restart_clock()
        progress.close()

    def _try(self, name: str, action: Callable[[], None]) -> None:
        """Do something that the training does not depend on; if it fails, report it and go on."""
        try:
            with fail_together():
                action()
        except RuntimeError as error:
            self.accelerator.print(
                f"The {name} of step {self.global_step} failed, and training goes on: {error}"
            )
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _check_loss(self) -> None:
        """Raise an error if the loss has not been finite for too long; look only every few steps."""
        patience = self.config.nonfinite_patience
        is_due = self._is_due(patience) or self.save_postponed
        if is_due and self.watch.check(self.accelerator):
            raise self._describe_divergence(f"the loss of {patience} steps in a row was NaN or infinite")

    def _describe_divergence(self, problem: str) -> FloatingPointError:
        return FloatingPointError(describe_divergence(self.config.output_dir, self.global_step, problem))

    def _is_due(self, interval: int) -> bool:
        """Tell whether something that happens every `interval` steps, and at the end, happens now."""
        if not interval:
            return False
        return self.global_step % interval == 0 or self.global_step == self.config.max_train_steps

    def start(self) -> None:
        """Load the newest undamaged checkpoint, take over the folder, and open the data and the log."""
        config = self.config
        accelerator = self.accelerator
        self._open_folder()  # another run may have taken it since
        self._resume()
        accelerator.wait_for_everyone()  # all processes must have seen the folder before it changes
        if accelerator.is_main_process:
            if config.overwrite_output_dir:
                remove_run(config.output_dir)
            Path(config.output_dir).mkdir(parents=True, exist_ok=True)
            write_run(config.output_dir, self._identify())
            with replace_file(Path(config.output_dir, "arguments.yaml")) as partial:
                partial.write_text(yaml.safe_dump(self.record.arguments))  # for --config
        (self.best_distance,) = broadcast_object_list([read_best_distance(config)])
        settings = {name: str(value) for name, value in self.record.arguments.items()}
        accelerator.init_trackers("pfgmpp", config=settings)

        self.rng = torch.Generator(self.device)
        self.batches = self._open_batches()
        self.meter = LossMeter(config.P_mean, config.P_std, self.device)
        self.watch = LossWatch(config.nonfinite_patience, self.device)
        self.nonfinite_gradients = 0
        self.grad_norm: torch.Tensor | None = None
        self.last_loss = read_last_loss(config.output_dir, self.global_step)
        self.last_inputs: dict[str, Any] = {}
        self._restart_clock()
        self.unet.train(self.uses_dropout)

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
        loaded = load_newest_checkpoint(
            self.accelerator,
            self.checkpoints,
            self.trained,
            averages=len(self.averages) + len(self.powers),
            streaming=isinstance(self.data, ImageStream),
        )
        if loaded is None:
            return
        checkpoint, self.global_step, self.data_state = loaded
        steps = self.config.max_train_steps
        if self.global_step > steps:
            raise ValueError(
                f"{checkpoint} is beyond `max_train_steps` {steps}: give more steps, or an earlier"
                " checkpoint."
            )
        self.accelerator.print(f"Resuming from {checkpoint}")
        before = read_run(checkpoint)
        if before is None:
            self.accelerator.print("The checkpoint does not name its run; it is assumed to be of this one.")
            return
        planned = before["--max_train_steps"]
        if planned != steps:
            self.accelerator.print(f"The run and its schedules end at step {steps}, no longer at {planned}.")

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
                self.last_inputs = {"images": images, "references": references, **conditioning}
                loss = self.loss(self.unet, images, perturbation, references, **conditioning)
                self.meter.add(loss, perturbation.sigma)
                self.watch.add(loss)
                if self.weighting:
                    loss = self.weighting(loss, perturbation.sigma)
                self.accelerator.backward(loss.mean())
                if self.accelerator.sync_gradients:
                    self.clip_gradients()
                    self.set_learning_rate()
                self.optimizer.step()
                self.optimizer.zero_grad()
        self.global_step += 1
        self.watch.end_step()
        self.update_averages()

    def draw(self) -> StepDraws:
        """Draw what is random in this step, from the seed and the step, and seed what the network drops."""
        seed = self.config.seed
        rank = self.accelerator.process_index
        count = self.images_per_step
        self.rng.manual_seed(derive_seed(seed, "step", self.global_step))
        torch.manual_seed(derive_seed(seed, "dropout", self.global_step, rank))
        progress = self.global_step / self.config.max_train_steps
        shape = (count, *self.image_shape)
        perturbation = self.loss.draw(shape, self.rng, self.device, progress=progress)
        transforms = self.augmentation.draw(count, self.rng, self.device) if self.augmentation else None
        moves = (self.config.random_flip and not self.data.flips, self.config.random_turn)
        symmetries = draw_symmetries(count, *moves, self.rng, self.device)
        dropout = self.config.condition_dropout
        kept = torch.rand(count, generator=self.rng, device=self.device) >= dropout if dropout else None
        return StepDraws(perturbation, transforms, symmetries, kept)

    def read_batch(self) -> dict[str, torch.Tensor]:
        """Read the next batch of this process: `images` or pairs, and `class_labels` if there are any."""
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
        if draws.symmetries is not None:
            images = apply_symmetries(images, draws.symmetries[part])
        if self.augmentation and draws.transforms is not None:
            images, conditioning["augment_labels"] = self.augmentation(images, draws.transforms[part])
        elif count := self.pipeline.unet.config.get("augment_dim"):
            # Several processes wait for a gradient of each weight.
            conditioning["augment_labels"] = images.new_zeros(len(images), count)
        kept = None if draws.kept is None else draws.kept[part]
        images, condition = split_pairs(images, self.data.condition_channels, kept)
        return images, references, conditioning | condition

    def clip_gradients(self) -> None:
        """Replace gradients that are not finite, and clip their norm."""
        if self.accelerator.scaler is None:  # fp16 skips such a step and lowers its scale
            self.nonfinite_gradients += replace_nonfinite_gradients(self.trained)
        self.grad_norm = clip_norms(self.accelerator, self.models, self.config.max_grad_norm or math.inf)

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
            group["lr"] = self.config.learning_rate * group.get("pace", 1.0) * factor

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
        if self.grad_norm is not None:
            logs["grad_norm"] = float(self.grad_norm)
        if self.validation:
            with self.use_average():
                logs |= self.validation.measure(self.unet)
        images = (self.global_step - self.clock_step) * self.images_per_step
        logs["images_per_second"] = images / (time.monotonic() - self.clock)
        logs["memory_gib"] = measure_memory(self.device)
        if self.nonfinite_gradients:
            logs["nonfinite_gradients"] = self.nonfinite_gradients
        self.accelerator.log({**logs, "images": self.images_seen}, step=self.global_step)
        self.last_loss = logs["loss"]
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
            self.unet.train(self.uses_dropout)
            average.restore(self.unet.parameters())

    def sample(self) -> None:
        """
        Save a grid of samples of the averaged network, from the same noise each time.

        All processes draw it, since the network may be sharded, and one writes it.
        """
        with self.use_average():
            grid = draw_grid_of_samples(self.pipeline, self.config.train_batch_size, self.shown_pairs)
        if self.accelerator.is_main_process:
            with replace_file(locate_grid(self.config.output_dir, self.global_step)) as partial:
                grid.save(partial, "PNG")

    def measure(self) -> None:
        """Log the Fréchet distance of the averaged network, and keep the best network in `best/`."""
        if self.frechet_distance is None:
            raise ValueError("`fid_steps` is 0, so that no Fréchet distance can be measured.")
        with self.use_average():
            distances = self.frechet_distance(self.pipeline, self.config.train_batch_size)
            self.accelerator.log(distances, step=self.global_step)
            distance = distances["frechet_distance"]
            if not distance < self.best_distance:  # NaN is not an improvement either
                return
            self.best_distance = distance
            pipeline = gather_pipeline(self.accelerator, self.unet, self.pipeline)
        if pipeline is not None:
            save_best(pipeline, self.config, self.global_step, distance)

    def can_compute(self) -> bool:
        """
        Tell whether the weights are finite, and also the loss of the last batch under fresh noise.

        Every process must call this. Weights of 1e20 are finite, but of no use.
        """
        if not are_finite(self.accelerator, self.trained):
            return False
        if not self.last_inputs:  # no step was done since the run was resumed
            return True
        inputs = dict(self.last_inputs)
        images = inputs.pop("images")
        self.rng.manual_seed(derive_seed(self.config.seed, "check", self.global_step))
        perturbation = self.loss.draw(tuple(images.shape), self.rng, self.device)
        with torch.no_grad():
            loss = self.loss(self.unet, images, perturbation, **inputs)
        return are_finite(self.accelerator, [loss])

    def _save_snapshots(self) -> None:
        names = [name for name, _ in self.pipeline.unet.named_parameters()]
        write = self.accelerator.is_main_process
        for power in self.powers:
            power.save_snapshot(self.config.output_dir, self.global_step, names, write)

    def save(self) -> None:
        """
        Save a checkpoint, and remove the oldest ones beyond the limit.

        While the network computes NaN or infinity nothing is saved, so that what was saved before stays.
        """
        if not self.can_compute():
            if not self.save_postponed:
                self.accelerator.print(
                    f"At step {self.global_step} the network computes NaN or infinity, so no checkpoint is"
                    " saved until that is over."
                )
            self.save_postponed = True
            return
        self.save_postponed = False
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

        Raises:
            FloatingPointError: The network computes NaN or infinity. Nothing is written.
        """
        grid = locate_grid(self.config.output_dir, self.global_step)
        if self.config.sample_steps and not grid.exists():  # the run was killed before it was drawn
            self._try("sample grid", self.sample)
        pipeline = None
        for average in self.averages:
            average.copy_to(self.unet.parameters())
            if not self.can_compute():
                raise self._describe_divergence("what the network computes is NaN or infinite")
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
                loss=self.last_loss,
                halflife=min(average.halflife, average.rampup * self.images_seen),
                accelerator=self.accelerator,
            )
        return pipeline
