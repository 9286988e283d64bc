"""The settings of a training run."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, NamedTuple

from .ema import compute_exponent
from .schedule import SCHEDULES


SAVE_DTYPES = ("float32", "float16", "bfloat16")
MIXED_PRECISIONS = ("no", "fp16", "bf16")


class _Range(NamedTuple):
    """The numbers that some settings may be, in words and as a test."""

    description: str
    test: Callable[[Any], bool]
    names: tuple[str, ...]
    optional: bool = False


_WHOLE_NUMBERS = (
    _Range(
        "at least 1",
        lambda value: value >= 1,
        ("max_train_steps", "train_batch_size", "gradient_accumulation_steps", "nonfinite_patience"),
    ),
    _Range("at least 1", lambda value: value >= 1, ("reference_batch_size",), optional=True),
    _Range("at least 2", lambda value: value >= 2, ("fid_images",)),
    _Range(
        "at least 0",
        lambda value: value >= 0,
        (
            "ema_snapshot_steps",
            "checkpointing_steps",
            "checkpoints_total_limit",
            "logging_steps",
            "sample_steps",
            "fid_steps",
        ),
    ),
    _Range("at least 0", lambda value: value >= 0, ("lr_warmup_steps",), optional=True),
    _Range("at least 0 and less than 2**32", lambda value: 0 <= value < 2**32, ("seed",)),
)
_NUMBERS = (
    _Range(
        "positive",
        lambda value: value > 0,
        ("learning_rate", "lr_decay_images", "adam_epsilon", "P_std", "ema_rampup"),
    ),
    _Range("positive", lambda value: value > 0, ("max_train_time",), optional=True),
    _Range(
        "at least 0",
        lambda value: value >= 0,
        ("lr_warmup_images", "adam_weight_decay", "max_grad_norm"),
    ),
    _Range("finite", math.isfinite, ("P_mean",)),
    _Range("in [0, 1)", lambda value: 0 <= value < 1, ("adam_beta1", "adam_beta2")),
    _Range("in [0, 1]", lambda value: 0 <= value <= 1, ("augment", "condition_dropout")),
)


@dataclass
class TrainingConfig:
    r"""
    Settings of a [`Trainer`], under the argument names of `train_accelerate.py`.

    A step here is an optimisation step. "0 for none" switches the feature off.

    Args:
        output_dir (`str`): Folder for the pipeline, its checkpoints, its log and its sample grids.
        max_train_steps (`int`): Length of the training, in steps.
        train_batch_size (`int`, defaults to 64): Images per process and forward pass.
        gradient_accumulation_steps (`int`, defaults to 1): Forward passes per step.
        learning_rate (`float`, defaults to 1e-3): Adam's step size after the warm-up.
        lr_scheduler (`str`, defaults to `"constant"`): Schedule after the warm-up: `"constant"`,
            `"cosine"`, `"linear"` or `"inverse_sqrt"`, see [`compute_learning_rate_factor`].
        lr_warmup_images (`float`, defaults to 0): Linear warm-up, in images.
        lr_warmup_steps (`int`, *optional*): Linear warm-up in steps, instead of in images.
        lr_decay_images (`float`, defaults to 35 million): Images after which `"inverse_sqrt"` falls.
        adam_beta1 (`float`, defaults to 0.9): Decay of Adam's mean of the gradients.
        adam_beta2 (`float`, defaults to 0.999): Decay of Adam's mean of their squares.
        adam_epsilon (`float`, defaults to 1e-8): Adam's epsilon.
        adam_weight_decay (`float`, defaults to 0): Decoupled weight decay (AdamW); at 0 it is Adam.
        max_grad_norm (`float`, defaults to 1.0): Norm to which gradients are clipped; 0 for none.
        P_mean (`float`, defaults to -1.2): Mean of ln(sigma).
        P_std (`float`, defaults to 1.2): Standard deviation of ln(sigma).
        uncertainty_weighting (`bool`, defaults to `False`): Weight noise levels by a learned
            uncertainty, see [`UncertaintyWeighting`].
        reference_batch_size (`int`, *optional*): Train towards the posterior mean over this many
            images, counted over all processes, instead of towards single images.
        random_flip (`bool`, defaults to `False`): Mirror images at random.
        random_turn (`bool`, defaults to `False`): Turn images by quarters at random.
        condition_dropout (`float`, defaults to 0): Probability of training without the degraded image, so
            that the network can be guided by it.
        augment (`float`, defaults to 0): Probability of each transform of [`Augmentation`].
        ema_halflife (sequence of `float`, defaults to 500,000): Longest half-lives of the weights'
            moving averages, in images. The pipeline holds the first; the others become variants.
        ema_rampup (`float`, defaults to 0.05): Their half-life at first, as a fraction of the images seen so
            far.
        ema_width (sequence of `float`, defaults to none): Widths of power-function averages, sigma_rel,
            in (0, 0.289).
        ema_snapshot_steps (`int`, defaults to 1000): Steps between their snapshots in `ema/`.
        gradient_checkpointing (`bool`, defaults to `False`): Compute activations twice to store fewer.
        compile (`bool`, defaults to `False`): Compile the network.
        mixed_precision (`str`, *optional*): `"no"`, `"fp16"` or `"bf16"`; by default that of
            accelerate's configuration.
        seed (`int`, defaults to 0): Seed of everything random.
        max_train_time (`float`, *optional*): Minutes after which the run saves a checkpoint and stops.
        checkpointing_steps (`int`, defaults to 1000): Steps between checkpoints; 0 for none.
        checkpoints_total_limit (`int`, defaults to 2): Checkpoints to keep; 0 for all.
        resume_from_checkpoint (`str`, *optional*): `"latest"`, which starts afresh if there is no
            checkpoint, or the path of a `checkpoint-N`.
        overwrite_output_dir (`bool`, defaults to `False`): Remove what another run left in
            `output_dir` once this one begins.
        logging_steps (`int`, defaults to 50): Steps between lines of `log.jsonl`; 0 for none.
        report_to (`str`, *optional*): A tracker of accelerate in addition to `log.jsonl`.
        sample_steps (`int`, defaults to 1000): Steps between sample grids; 0 for none.
        fid_steps (`int`, defaults to 0): Steps between Fréchet distances; 0 for none. The best
            snapshot is kept in `best/`.
        fid_images (`int`, defaults to 2000): Images per Fréchet distance.
        fid_num_inference_steps (sequence of `int`, defaults to none): Numbers of steps to measure Fréchet
            distances at, of which the first decides which snapshot is the best; by default the
            pipeline's own.
        fid_features (`str`, defaults to `"fashion-mnist"`): Features of the Fréchet distance, as
            [`~pipeline_pfgmpp.evaluation.load_features`] takes them.
        save_dtype (`str`, defaults to `"float32"`): Type of the saved weights.
        nonfinite_patience (`int`, defaults to 10): Steps in a row whose loss is NaN or infinite after
            which the run stops with an error.

    Raises:
        ValueError: A value is not allowed.
    """

    output_dir: str | os.PathLike
    max_train_steps: int
    train_batch_size: int = 64
    gradient_accumulation_steps: int = 1
    learning_rate: float = 1e-3
    lr_scheduler: str = "constant"
    lr_warmup_images: float = 0.0
    lr_warmup_steps: int | None = None
    lr_decay_images: float = 35_000_000
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    adam_weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    P_mean: float = -1.2
    P_std: float = 1.2
    uncertainty_weighting: bool = False
    reference_batch_size: int | None = None
    random_flip: bool = False
    random_turn: bool = False
    condition_dropout: float = 0.0
    augment: float = 0.0
    ema_halflife: Sequence[float] = (500_000.0,)
    ema_rampup: float = 0.05
    ema_width: Sequence[float] = ()
    ema_snapshot_steps: int = 1000
    gradient_checkpointing: bool = False
    compile: bool = False
    mixed_precision: str | None = None
    seed: int = 0
    max_train_time: float | None = None
    checkpointing_steps: int = 1000
    checkpoints_total_limit: int = 2
    resume_from_checkpoint: str | os.PathLike | None = None
    overwrite_output_dir: bool = False
    logging_steps: int = 50
    report_to: str | None = None
    sample_steps: int = 1000
    fid_steps: int = 0
    fid_images: int = 2000
    fid_num_inference_steps: Sequence[int] = ()
    fid_features: str = "fashion-mnist"
    save_dtype: str = "float32"
    nonfinite_patience: int = 10

    def __post_init__(self) -> None:
        for ranges, kind, description in (
            (_WHOLE_NUMBERS, Integral, "a whole number"),
            (_NUMBERS, Real, "a number"),
        ):
            for each in ranges:
                for name in each.names:
                    self._check_number(name, each, kind, description)
        self._check_choice("lr_scheduler", SCHEDULES)
        self._check_choice("save_dtype", SAVE_DTYPES)
        if self.mixed_precision is not None:
            self._check_choice("mixed_precision", MIXED_PRECISIONS)
        self._check_averages()
        for steps in self.fid_num_inference_steps:
            if not isinstance(steps, Integral) or steps < 1:
                raise ValueError(
                    f"`fid_num_inference_steps` must hold positive integers, but holds {steps!r}."
                )
        if self.reference_batch_size and (self.augment or self.random_flip or self.random_turn):
            raise ValueError(
                "`reference_batch_size` needs `augment` 0 and no `random_flip` or `random_turn`: its field is"
                " that of the original images."
            )
        self._check_tracker()

    def _check_number(self, name: str, allowed: _Range, kind: type, description: str) -> None:
        """Raise an error unless a setting is a number of the right kind, and in its range."""
        value: Any = getattr(self, name)
        if value is None and allowed.optional:
            return
        is_number = isinstance(value, kind) and not isinstance(value, bool)
        if not is_number:
            raise ValueError(f"`{name}` must be {description}, but is {value!r}.")
        if not math.isfinite(value) or not allowed.test(value):
            verb = "lie" if allowed.description.startswith("in ") else "be"
            raise ValueError(f"`{name}` must {verb} {allowed.description}, but is {value!r}.")

    def _check_choice(self, name: str, allowed: Sequence[str]) -> None:
        value = getattr(self, name)
        if value not in allowed:
            raise ValueError(f"`{name}` must be one of {', '.join(allowed)}, but is {value!r}.")

    def _check_averages(self) -> None:
        """Raise an error unless the moving averages can be kept and told apart."""
        for name in ("ema_halflife", "ema_width"):
            values = getattr(self, name)
            if not isinstance(values, Sequence) or not all(isinstance(value, Real) for value in values):
                raise ValueError(f"`{name}` must be a list of numbers, but is {values!r}.")
            if len(set(values)) < len(values):
                raise ValueError(f"`{name}` must hold different numbers, but is {list(values)}.")
        if not self.ema_halflife:
            raise ValueError("`ema_halflife` must hold at least one half-life.")
        for halflife in self.ema_halflife:
            if not 0 < halflife < math.inf:
                raise ValueError(f"`ema_halflife` must hold positive numbers, but holds {halflife:g}.")
        for width in self.ema_width:
            compute_exponent(width)
        if self.ema_width and not self.ema_snapshot_steps:
            raise ValueError(
                "`ema_snapshot_steps` is 0, so that `ema_width` would have no effect: set it to at least 1."
            )

    def _check_tracker(self) -> None:
        from accelerate.tracking import get_available_trackers

        if self.report_to and self.report_to not in [str(tracker) for tracker in get_available_trackers()]:
            raise ValueError(
                f"`report_to` {self.report_to}: accelerate does not find this tracker. Is it installed?"
            )

    def count_warmup_images(self, images_per_step: int) -> float:
        """Return the length of the warm-up in images, given the images per optimisation step."""
        if self.lr_warmup_steps is None:
            return self.lr_warmup_images
        return self.lr_warmup_steps * images_per_step
