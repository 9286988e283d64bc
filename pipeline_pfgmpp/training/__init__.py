"""Training: the loop, and everything that it consists of."""

from .augment import Augmentation
from .autoencoder import choose_autoencoder
from .checkpoint import load_checkpoint, save_checkpoint
from .config import TrainingConfig
from .consistency import ConsistencyLoss
from .ema import HalfLifeEMA, PowerFunctionEMA, reconstruct_average
from .finetune import adapt_network, choose_classes, load_pretrained, read_trained_range
from .frechet import FrechetDistance
from .gradients import replace_nonfinite_gradients
from .log import JSONLTracker, LossMeter, read_log
from .loop import Trainer
from .loss import DimensionRange, Perturbation, PFGMPPLoss, UncertaintyWeighting
from .matching import MatchingLoss
from .preparation import create_accelerator
from .recipes import INHERITED, RECIPES, TUNING
from .run import (
    RunRecord,
    identify_run,
    is_inside,
    list_checkpoints,
    open_run,
    read_run,
    remove_run,
    write_run,
)
from .schedule import SCHEDULES, compute_learning_rate_factor
from .teacher import Teacher


__all__ = [
    "INHERITED",
    "RECIPES",
    "SCHEDULES",
    "TUNING",
    "Augmentation",
    "ConsistencyLoss",
    "DimensionRange",
    "FrechetDistance",
    "HalfLifeEMA",
    "JSONLTracker",
    "LossMeter",
    "MatchingLoss",
    "PFGMPPLoss",
    "Perturbation",
    "PowerFunctionEMA",
    "RunRecord",
    "Teacher",
    "Trainer",
    "TrainingConfig",
    "UncertaintyWeighting",
    "adapt_network",
    "choose_autoencoder",
    "choose_classes",
    "compute_learning_rate_factor",
    "create_accelerator",
    "identify_run",
    "is_inside",
    "list_checkpoints",
    "load_checkpoint",
    "load_pretrained",
    "open_run",
    "read_log",
    "read_run",
    "read_trained_range",
    "reconstruct_average",
    "remove_run",
    "replace_nonfinite_gradients",
    "save_checkpoint",
    "write_run",
]
