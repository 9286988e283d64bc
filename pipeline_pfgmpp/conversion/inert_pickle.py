"""
Reads pickles and `torch.save` files without running them.

A pickle is a program for a small stack machine, and `pickle.load` runs whatever functions it names.
Here the standard library's `pickletools` only cuts the stream into opcodes, and the machine below
knows data, containers and references: it has no way to import or to call. What a pickle would have
built by a call stays a [`Record`] of the call.
"""

import math
import os
import pickletools
import re
import warnings
import zipfile
from dataclasses import dataclass, field
from io import BytesIO
from typing import BinaryIO

import numpy as np
import torch


# A network of 56 million parameters with its optimizer takes about 100,000.
MAX_OPCODES = 5_000_000

STORAGES = {
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}

# The globals that pickled networks name. None of them is imported; any other is refused, since its
# file is something else.
ALLOWED_GLOBALS = re.compile(
    r"torch_utils\.persistence\._reconstruct_persistent_obj|dnnlib\.util\.EasyDict"
    r"|collections\.(OrderedDict|defaultdict)|(builtins|__builtin__)\.(set|frozenset|dict|list|object)|_codecs\.encode"
    r"|(copyreg|copy_reg)\._reconstructor"
    r"|numpy\.(dtype|ndarray)|numpy\.(core|_core)\.multiarray\.(scalar|_reconstruct)|numpy\.(core|_core)\.numeric\._frombuffer"
    r"|torch\.(Size|device|(b?float|u?int)\d+|bool|\w+Storage)|torch\._utils\.(_rebuild_tensor_v2|_rebuild_parameter)"
    r"|torch\.storage\.(_load_from_bytes|_?TypedStorage|_?UntypedStorage)|torch\.nn\.parameter\.(Parameter|Buffer)"
    r"|torch\.nn\.modules\.\w+\.\w+|torch\.utils\.hooks\.RemovableHandle"
)

MARK = object()


@dataclass(eq=False, repr=False)
class Record:
    """
    An object that a pickle describes and nobody built.

    Args:
        name (`str`): The global that the pickle names, such as `"collections.OrderedDict"`.
        args (`tuple` or `None`): What it would have been called with; None is the global itself.
        state (`object`): What `__setstate__` would have been given.
        items (`dict`): Entries that would have been set, for dictionaries of another class.
    """

    name: str
    args: tuple | None = None
    state: object = None
    items: dict = field(default_factory=dict)


@dataclass(eq=False, repr=False)
class Storage:
    """Numbers of one type as they lie in the file; read when a tensor asks for them."""

    read: object  # a function that returns the bytes, and where in them the numbers begin
    dtype: torch.dtype
    numel: int


def read_pickle(stream: BinaryIO, storage=None) -> object:
    """
    Reads one pickle, up to its end and no further, into plain data, lists for sets, and [`Record`]s.

    Args:
        stream (`BinaryIO`): Where to read, from memory.
        storage (`Callable`, *optional*): Gives the [`Storage`] of a persistent id; without it there
            must be none.

    Returns:
        `object`: What the pickle describes.

    Raises:
        ValueError: The pickle is cut off, too large, of another kind, or names a global that is not
            allowed.
    """
    stack, memo = [], {}

    def pop_mark():
        start = len(stack) - 1 - stack[::-1].index(MARK)
        items = stack[start + 1 :]
        del stack[start:]
        return items

    def called(function, args):
        if not isinstance(function, Record) or function.args is not None or not isinstance(args, tuple):
            raise ValueError("it calls something that is no global")
        return Record(function.name, args)

    def named(module, name):
        if (
            not isinstance(module, str)
            or not isinstance(name, str)
            or not ALLOWED_GLOBALS.fullmatch(f"{module}.{name}")
        ):
            raise ValueError(
                f"it names the global {module}.{name}, which no network needs; nothing of it was run"
            )
        return Record(f"{module}.{name}")

    def set_items(target, pairs):
        items = target.items if isinstance(target, Record) else target
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(
                key, (str, int, float, bytes, type(None))
            ):  # hashing a nested key can take forever
                raise ValueError(f"it has a dictionary with a {type(key).__name__} for a key")
            items[key] = value

    try:
        for count, (opcode, arg, _) in enumerate(pickletools.genops(stream)):
            if count >= MAX_OPCODES:
                raise ValueError(f"it has more than {MAX_OPCODES:,} objects")
            match opcode.name:
                case "PROTO" | "FRAME":
                    pass
                case "STOP":
                    return stack.pop()
                # Data
                case "NONE":
                    stack.append(None)
                case "NEWTRUE" | "NEWFALSE":
                    stack.append(opcode.name == "NEWTRUE")
                case "BININT" | "BININT1" | "BININT2" | "LONG1" | "LONG4" | "BINFLOAT":
                    stack.append(arg)
                case (
                    "SHORT_BINUNICODE"
                    | "BINUNICODE"
                    | "BINUNICODE8"
                    | "SHORT_BINBYTES"
                    | "BINBYTES"
                    | "BINBYTES8"
                ):
                    stack.append(arg)
                # Containers
                case "MARK":
                    stack.append(MARK)
                case "EMPTY_TUPLE":
                    stack.append(())
                case "EMPTY_LIST" | "EMPTY_SET":
                    stack.append([])
                case "EMPTY_DICT":
                    stack.append({})
                case "TUPLE" | "FROZENSET":
                    stack.append(tuple(pop_mark()))
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    size = int(opcode.name[-1])
                    stack[-size:] = [tuple(stack[-size:])]
                case "APPEND":
                    item = stack.pop()
                    stack[-1].append(item)
                case "APPENDS" | "ADDITEMS":
                    items = pop_mark()
                    stack[-1].extend(items)
                case "SETITEM":
                    pair = stack[-2:]
                    del stack[-2:]
                    set_items(stack[-1], pair)
                case "SETITEMS":
                    pairs = pop_mark()
                    set_items(stack[-1], pairs)
                # References
                case "MEMOIZE":
                    memo[len(memo)] = stack[-1]
                case "BINPUT" | "LONG_BINPUT":
                    memo[arg] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[arg])
                case "BINPERSID" if storage is not None:
                    stack.append(storage(stack.pop()))
                # Calls, which are written down
                case "GLOBAL":
                    stack.append(named(*arg.split(" ", 1)))
                case "STACK_GLOBAL":
                    name = stack.pop()
                    stack.append(named(stack.pop(), name))
                case "REDUCE" | "NEWOBJ":
                    args = stack.pop()
                    stack.append(called(stack.pop(), args))
                case "BUILD":
                    state = stack.pop()
                    if not isinstance(stack[-1], Record):
                        raise ValueError("it sets the state of something that is no object")
                    stack[-1].state = state
                case _:
                    raise ValueError(f"it uses {opcode.name}, which no network needs")
    except (IndexError, KeyError, AttributeError, TypeError, OverflowError, MemoryError, RecursionError):
        raise ValueError("it is damaged") from None


def load(path: str | os.PathLike) -> object:
    """
    Reads a pickle or a `torch.save` file (zip) as [`read_pickle`] does.

    Args:
        path (`str` or `os.PathLike`): The file.

    Returns:
        `object`: What it describes; [`rebuild_tensor`] turns the tensors among it into tensors.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is cut off, hostile or of another kind.
    """
    with open(path, "rb") as file:
        start = file.read(4)
        file.seek(0)
        if start == b"PK\x03\x04":
            return _load_zip(path)
        if start[:1] != b"\x80":
            raise ValueError("it is neither a pickle nor a torch.save file")
        return read_pickle(_Bounded(file))


class _Bounded:
    """A file of which never more is asked than there is, whatever a pickle claims."""

    def __init__(self, file):
        self.tell, self.readline = file.tell, file.readline
        self._file, self._size = file, os.fstat(file.fileno()).st_size

    def read(self, count):
        return self._file.read(min(count, self._size))


def _load_zip(path):
    try:
        archive = zipfile.ZipFile(path)  # stays open for the storages, which are read when they are asked for
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1 for member in members):
            raise ValueError("it is a compressed archive, which torch.save does not write")
        pickles = [member.filename for member in members if member.filename.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("it is an archive that torch.save did not write")
        pickled = archive.read(pickles[0])
    except (zipfile.BadZipFile, NotImplementedError, EOFError):
        raise ValueError("it is cut off or damaged") from None

    def storage(pid):
        dtype, key, numel = _persistent_id(pid)

        def read():
            try:
                return archive.read(pickles[0].removesuffix("data.pkl") + f"data/{key}"), 0
            except (zipfile.BadZipFile, EOFError, KeyError):
                raise ValueError("it is cut off or damaged") from None

        return Storage(read, dtype, numel)

    return read_pickle(BytesIO(pickled), storage)


def _persistent_id(pid):
    """Type, key and length out of ("storage", type, key, device, length, ...)."""
    match pid:
        case ("storage", Record(name=name), str(key), str(), int(numel), *_) if (
            name in STORAGES and numel >= 0
        ):
            return STORAGES[name], key, numel
    raise ValueError("it has a storage of an unknown type")


def _load_storage(content):
    """
    The storage in what `torch.storage._load_from_bytes` would be given: five pickles, a length,
    then the numbers.
    """
    content = _to_bytes(content)
    stream = BytesIO(content)
    read_pickle(stream), read_pickle(stream)  # a magic number, a version
    system = read_pickle(stream)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("its numbers are big-endian")
    dtype, _, numel = read_pickle(stream, _persistent_id)
    read_pickle(stream)  # keys
    return Storage(lambda: (content, stream.tell() + 8), dtype, numel)


def rebuild_tensor(record: object) -> torch.Tensor:
    """
    Reads the numbers of a tensor or parameter that a pickle describes.

    Args:
        record ([`Record`]): Its description, from [`load`].

    Returns:
        `torch.Tensor`: The tensor, on the CPU; it must not be written to, since it may share memory
            with what was read.

    Raises:
        ValueError: It is no tensor, or does not fit its storage.
    """
    match record:
        case Record(name="torch._utils._rebuild_parameter", args=(data, *_)):
            return rebuild_tensor(data)
        case Record(
            name="torch._utils._rebuild_tensor_v2",
            args=(storage, int(offset), tuple(size), tuple(stride), *_),
        ):
            if (
                isinstance(storage, Record)
                and storage.name == "torch.storage._load_from_bytes"
                and storage.args
            ):
                storage = _load_storage(storage.args[0])
        case _:
            raise ValueError("it has something else where a tensor should be")
    numbers = (offset, *size, *stride)
    if (
        not isinstance(storage, Storage)
        or len(size) != len(stride)
        or not all(type(n) is int and n >= 0 for n in numbers)
    ):
        raise ValueError("it is damaged")
    numel = math.prod(size)
    if numel == 0:
        raise ValueError("it has an empty tensor")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    data, begin = storage.read()
    if (
        last >= storage.numel
        or numel > storage.numel
        or len(data) < begin + storage.numel * storage.dtype.itemsize
    ):
        raise ValueError("it has a tensor that is larger than its data")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        flat = torch.frombuffer(data, dtype=storage.dtype, count=storage.numel, offset=begin)
    return flat.as_strided(size, stride, offset)


def to_number(value: object) -> float:
    """
    Reads a number that a pickle describes, be it Python's or NumPy's.

    Args:
        value (`object`): Its description, from [`load`].

    Returns:
        `float`: The number.

    Raises:
        ValueError: It is none.
    """
    match value:
        case bool():
            pass
        case int() | float():
            return value
        case str() if value == "inf":
            return math.inf
        case Record(name=str(name), args=(Record(args=(str(kind), *_)), content)) if name.endswith(
            "multiarray.scalar"
        ):
            if re.fullmatch(r"[fiu][1248]", kind) and kind != "f1":
                return float(np.frombuffer(_to_bytes(content), dtype=f"<{kind}", count=1)[0])
    raise ValueError("it has something else where a number should be")


def _to_bytes(value):
    if isinstance(value, Record) and value.name == "_codecs.encode" and value.args[1:] == ("latin1",):
        value = value.args[0].encode("latin1")  # how the pickle protocol 2 spells bytes
    if not isinstance(value, bytes):
        raise ValueError("it is damaged")
    return value
