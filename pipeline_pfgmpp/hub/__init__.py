"""The Hugging Face Hub: describing models, writing cards and uploading."""

from .files import describe_files, list_files
from .info import model_info
from .push import push_to_hub, upload_files


__all__ = ["describe_files", "list_files", "model_info", "push_to_hub", "upload_files"]
