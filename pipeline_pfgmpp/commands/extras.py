"""The optional packages that commands need, and the extras that install them."""

import importlib.util


# The modules of each extra, which are named like the packages in setup.cfg.
MODULES = {
    "dicom": ("pydicom",),
    "evaluate": ("datasets", "matplotlib", "torchmetrics", "transformers"),
    "plot": ("matplotlib",),
    "train": ("datasets", "matplotlib", "torchmetrics"),
}
# The extra of each command that needs more than the package itself.
EXTRAS = {
    "choose-D": "evaluate",
    "data": "train",
    "evaluate": "evaluate",
    "evaluate-restoration": "train",
    "field-lines": "plot",
    "plot": "plot",
    "robustness": "evaluate",
    "verify": "evaluate",
}


def check_extra(command: str) -> None:
    """
    Refuse to start a command whose optional packages are not installed.

    Args:
        command (`str`): Name of the command, such as `"evaluate"`.

    Raises:
        ValueError: A package is missing; the message names it, and the extra that installs it.
    """
    if command in EXTRAS:
        check_modules(EXTRAS[command], f"pfgmpp {command}")


def check_modules(extra: str, program: str) -> None:
    """
    Refuse to start a program whose optional packages are not installed.

    Args:
        extra (`str`): The extra that installs them.
        program (`str`): Name of the program, for the message.

    Raises:
        ValueError: A package is missing; the message names it, and the extra.
    """
    missing = [module for module in MODULES[extra] if importlib.util.find_spec(module) is None]
    if missing:
        raise ValueError(f"{program} needs {', '.join(missing)}: pip install 'pipeline-pfgmpp[{extra}]'.")
