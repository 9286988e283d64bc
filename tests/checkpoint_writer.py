"""
Writes files in the published format: pickles of whole network objects, with the source of their module.

The classes here stand in for the authors', of which only the names and the shape of the pickle are
known; a file written here names `torch_utils.persistence._reconstruct_persistent_obj` and
`dnnlib.util.EasyDict`, which exist nowhere.
"""

import contextlib
import pickle
import sys
import types
from collections import OrderedDict

import torch
from torch import nn


MODULE_SRC = "# the source of a module, which a loader must not run\n"


class EasyDict(dict):
    pass


def _reconstruct_persistent_obj(meta):
    raise AssertionError("the file's code was run")


class Persistent:
    """An object that is pickled as a call of `_reconstruct_persistent_obj` with a dictionary."""

    def __init__(self, class_name, state, module_src=MODULE_SRC):
        self.meta = {
            "type": "class",
            "version": 6,
            "module_src": module_src,
            "class_name": class_name,
            "state": state,
        }

    def __reduce__(self):
        return _reconstruct_persistent_obj, (self.meta,)


@contextlib.contextmanager
def install_published_modules():
    """Give the stand-ins the names of the authors' modules until the block ends."""
    names = {"torch_utils.persistence": [_reconstruct_persistent_obj], "dnnlib.util": [EasyDict]}
    added = {}
    for name, members in names.items():
        for part in (name.split(".")[0], name):
            added[part] = types.ModuleType(part)
        for member in members:
            member.__module__ = name
            setattr(added[name], member.__name__, member)
    sys.modules.update(added)
    try:
        yield
    finally:
        for name in added:
            del sys.modules[name]


def make_module_state(parameters, buffers, modules, **attributes):
    """Build the `__dict__` of a module as torch does."""
    hooks = (
        "_backward_hooks",
        "_forward_hooks",
        "_forward_pre_hooks",
        "_state_dict_hooks",
        "_load_state_dict_pre_hooks",
    )
    return {
        "training": False,
        "_parameters": OrderedDict(parameters),
        "_buffers": OrderedDict(buffers),
        "_non_persistent_buffers_set": set(),
        **{name: OrderedDict() for name in hooks},
        "_modules": OrderedDict(modules),
        "_init_args": (),
        "_init_kwargs": {},
        **attributes,
    }


def network_object(state_dict, init_kwargs, class_name="EDMPrecond", module_src=MODULE_SRC, sigma_data=0.5):
    """Build a network object from tensors by their published names, which begin with `model.`."""

    def build(tensors, level):
        parameters = {}
        buffers = {}
        children = {}
        for name, tensor in tensors.items():
            head, _, rest = name.partition(".")
            if rest:
                children.setdefault(head, {})[rest] = tensor
            elif head in ("resample_filter", "freqs"):
                buffers[head] = tensor
            else:
                parameters[head] = nn.Parameter(tensor)
        modules = {head: build(inner, level + 1) for head, inner in children.items()}
        if set(children) and level == 2:  # enc and dec are lists of torch's own
            container = nn.ModuleDict()
            container._modules = OrderedDict(modules)
            return container
        return Persistent(f"Level{level}", make_module_state(parameters, buffers, modules), module_src)

    model = build({name.removeprefix("model."): tensor for name, tensor in state_dict.items()}, 1)
    attributes = {"_init_kwargs": EasyDict(init_kwargs), "sigma_min": 0, "sigma_max": float("inf")}
    if sigma_data is not None:
        attributes["sigma_data"] = sigma_data
    return Persistent(class_name, make_module_state({}, {}, {"model": model}, **attributes), module_src)


def write_checkpoint(path, ema=None, net=None, **others):
    """Write a `.pt` training state as `torch.save` does, or a `.pkl` as `pickle.dump` does."""
    networks = {}
    if ema is not None:
        networks["ema"] = ema
    if net is not None:
        networks["net"] = net
    with install_published_modules():
        if path.suffix == ".pt":
            optimizer = {
                "state": {0: {"step": 1, "exp_avg": torch.zeros(3)}},
                "param_groups": [{"lr": 1e-3, "params": [0]}],
            }
            torch.save({**networks, "optimizer_state": optimizer, "step": 200_000_000, **others}, path)
        else:
            with open(path, "wb") as file:
                pickle.dump({**networks, "dataset_kwargs": EasyDict(path="cifar10.zip"), **others}, file)
