"""Published checkpoints in, without running anything of them."""

from .convert import convert_checkpoint, convert_diffusers


__all__ = ["convert_checkpoint", "convert_diffusers"]
