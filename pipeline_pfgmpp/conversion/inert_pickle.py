"""
Pickles, read without running them.

A pickle is a program for a small stack machine, and `pickle.load` calls whatever functions it names.
Here the standard library's `pickletools` only splits the stream into opcodes, and the machine below knows
data, containers and references. It has no means to import or to call anything: what a pickle would have
built with a call stays a [`Record`] of the call.
"""

import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import torch


MAX_OPCODES = 5_000_000  # a network of 56 million parameters with its optimizer takes about 100,000

# The globals that pickled networks name. None of them is imported, and a file that names any other is
# refused, since it holds something else.
ALLOWED_GLOBALS = re.compile(
    r"torch_utils\.persistence\._reconstruct_persistent_obj|dnnlib\.util\.EasyDict"
    r"|collections\.(OrderedDict|defaultdict)|(builtins|__builtin__)\.(set|frozenset|dict|list|object)"
    r"|_codecs\.encode|(copyreg|copy_reg)\._reconstructor"
    r"|numpy\.(dtype|ndarray)|numpy\.(core|_core)\.multiarray\.(scalar|_reconstruct)"
    r"|numpy\.(core|_core)\.numeric\._frombuffer"
    r"|torch\.(Size|device|(b?float|u?int)\d+|bool|\w+Storage)"
    r"|torch\._utils\.(_rebuild_tensor_v2|_rebuild_parameter)"
    r"|torch\.storage\.(_load_from_bytes|_?TypedStorage|_?UntypedStorage)"
    r"|torch\.nn\.parameter\.(Parameter|Buffer)|torch\.nn\.modules\.\w+\.\w+|torch\.utils\.hooks\.RemovableHandle"
)

MARK = object()


@dataclass(eq=False, repr=False)
class Record:
    """
    An object that a pickle describes and that was not built.

    Args:
        name (`str`): The global that the pickle names, such as `"collections.OrderedDict"`.
        args (`tuple` or `None`): The arguments of its call; None is the global itself.
        state (`Any`): The argument of its `__setstate__`.
        items (`dict`): The entries that would have been set, for dictionaries of another class.
    """

    name: str
    args: tuple | None = None
    state: Any = None
    items: dict = field(default_factory=dict)


@dataclass(eq=False, repr=False)
class Storage:
    """
    Numbers of one type in a file, which are read when a tensor asks for them.

    Args:
        read (`Callable`): Returns the bytes, and the position in them at which the numbers begin.
        dtype (`torch.dtype`): Type of the numbers.
        numel (`int`): How many there are.
    """

    read: Callable[[], tuple[bytes, int]]
    dtype: torch.dtype
    numel: int


def read_pickle(stream: BinaryIO, find_storage: Callable[[Any], Any] | None = None) -> Any:
    """
    Read one pickle, up to its end and no further.

    Args:
        stream (`BinaryIO`): Where to read.
        find_storage (`Callable`, *optional*): Returns what stands for a persistent id, such as a
            [`Storage`]; without it, a pickle with persistent ids is refused.

    Returns:
        `Any`: What the pickle describes: plain data, lists instead of sets, and [`Record`]s.

    Raises:
        ValueError: The pickle is cut off, too large, of another kind, or names a global that is not
            allowed.
    """
    machine = _Machine(find_storage)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count >= MAX_OPCODES:
                raise ValueError(f"it has more than {MAX_OPCODES:,} objects")
            if opcode.name == "STOP":
                return machine.stack.pop()
            machine.step(opcode.name, argument)
    except (IndexError, KeyError, AttributeError, TypeError, OverflowError, MemoryError, RecursionError):
        pass
    raise ValueError("it is damaged")


class _Machine:
    """The stack machine of pickles, without the opcodes that need code."""

    def __init__(self, find_storage: Callable[[Any], Any] | None):
        self.find_storage = find_storage
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """Execute one opcode."""
        match name:
            case "PROTO" | "FRAME":
                pass
            case "NONE":
                self.stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                self.stack.append(name == "NEWTRUE")
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "LONG4" | "BINFLOAT":
                self.stack.append(argument)
            case "SHORT_BINUNICODE" | "BINUNICODE" | "BINUNICODE8":
                self.stack.append(argument)
            case "SHORT_BINBYTES" | "BINBYTES" | "BINBYTES8":
                self.stack.append(argument)
            case "MARK":
                self.stack.append(MARK)
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.stack[-1]
            case "BINGET" | "LONG_BINGET":
                self.stack.append(self.memo[argument])
            case "BINPERSID" if self.find_storage is not None:
                self.stack.append(self.find_storage(self.stack.pop()))
            case "GLOBAL":
                module, name = argument.split(" ", 1)
                self.record_global(module, name)
            case "STACK_GLOBAL":
                name = self.stack.pop()
                self.record_global(self.stack.pop(), name)
            case "REDUCE" | "NEWOBJ":
                self.record_call()
            case "BUILD":
                self.record_state()
            case _:
                self.fill_container(name)

    def fill_container(self, name: str) -> None:
        """Execute one opcode that creates or fills a container."""
        match name:
            case "EMPTY_TUPLE":
                self.stack.append(())
            case "EMPTY_LIST" | "EMPTY_SET":
                self.stack.append([])
            case "EMPTY_DICT":
                self.stack.append({})
            case "TUPLE" | "FROZENSET":
                self.stack.append(tuple(self.pop_to_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(name[-1])
                self.stack[-size:] = [tuple(self.stack[-size:])]
            case "APPEND":
                item = self.stack.pop()
                self.stack[-1].append(item)
            case "APPENDS" | "ADDITEMS":
                items = self.pop_to_mark()
                self.stack[-1].extend(items)
            case "SETITEM":
                pair = self.stack[-2:]
                del self.stack[-2:]
                self.set_items(pair)
            case "SETITEMS":
                self.set_items(self.pop_to_mark())
            case _:
                raise ValueError(f"it uses {name}, which no network needs")

    def pop_to_mark(self) -> list[Any]:
        """Pop everything above the topmost mark, and the mark."""
        places = range(len(self.stack) - 1, -1, -1)
        start = next((place for place in places if self.stack[place] is MARK), None)
        if start is None:
            raise ValueError("it has no mark to go back to")
        items = self.stack[start + 1 :]
        del self.stack[start:]
        return items

    def set_items(self, pairs: list[Any]) -> None:
        """Set entries of the dictionary on top of the stack, given as keys and values in turn."""
        target = self.stack[-1]
        entries = target.items if isinstance(target, Record) else target
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            # Hashing a nested key can take forever.
            if not isinstance(key, (str, int, float, bytes, type(None))):
                raise ValueError(f"it has a dictionary with a {type(key).__name__} as a key")
            entries[key] = value

    def record_global(self, module: Any, name: Any) -> None:
        """Push a record of a global, if networks need it."""
        full_name = f"{module}.{name}"
        is_text = isinstance(module, str) and isinstance(name, str)
        if not is_text or not ALLOWED_GLOBALS.fullmatch(full_name):
            raise ValueError(f"it names the global {full_name}, which no network needs; none of it was run")
        self.stack.append(Record(full_name))

    def record_call(self) -> None:
        """Replace a global and its arguments by a record of the call."""
        args = self.stack.pop()
        function = self.stack.pop()
        if not isinstance(function, Record) or function.args is not None or not isinstance(args, tuple):
            raise ValueError("it calls something that is not a global")
        self.stack.append(Record(function.name, args))

    def record_state(self) -> None:
        """Move the state of an object into its record."""
        state = self.stack.pop()
        if not isinstance(self.stack[-1], Record):
            raise ValueError("it sets the state of something that is not an object")
        self.stack[-1].state = state
