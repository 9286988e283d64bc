"""Conversion of published checkpoints into pipelines, without running any of their code."""

from .checkpoints import convert_checkpoint
from .ddpm import convert_diffusers


__all__ = ["convert_checkpoint", "convert_diffusers"]
