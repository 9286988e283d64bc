"""Pickles and `torch.save` files, and the tensors and numbers in them."""

import io
import math
import os
import re
import warnings
import zipfile
from typing import Any

import numpy as np
import torch

from .inert_pickle import Record, Storage, read_pickle


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


def load(path: str | os.PathLike) -> Any:
    """
    Read a pickle or a `torch.save` file (a zip archive) without running it.

    Args:
        path (`str` or `os.PathLike`): The file.

    Returns:
        `Any`: What it describes, as [`~pipeline_pfgmpp.conversion.inert_pickle.read_pickle`] returns it;
            [`rebuild_tensor`] and [`to_number`] read the tensors and numbers in it.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is cut off, hostile or of another kind.
    """
    with _BoundedFile(open(path, "rb", buffering=0)) as file:
        start = file.read(4)
        file.seek(0)
        if start == b"PK\x03\x04":
            return _load_zip(path)
        if start[:1] != b"\x80":
            raise ValueError("it is neither a pickle nor a torch.save file")
        return read_pickle(file)


class _BoundedFile(io.BufferedReader):
    """A file that is never asked for more bytes than it has, whatever a pickle claims."""

    def __init__(self, file: io.RawIOBase):
        super().__init__(file)
        self._size = os.fstat(file.fileno()).st_size

    def read(self, count: int | None = -1) -> bytes:
        return super().read(self._size if count is None else min(count, self._size))


def _load_zip(path: str | os.PathLike) -> Any:
    try:
        archive = zipfile.ZipFile(path)  # stays open, since storages are read when tensors ask for them
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
                raise ValueError("it is a compressed archive, which torch.save does not write")
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("it is an archive that torch.save did not write")
        content = archive.read(pickles[0])
    except (zipfile.BadZipFile, NotImplementedError, EOFError):
        raise ValueError("it is cut off or damaged") from None
    folder = pickles[0].removesuffix("data.pkl")

    def find_storage(persistent_id: Any) -> Storage:
        dtype, key, numel = _parse_persistent_id(persistent_id)

        def read() -> tuple[bytes, int]:
            try:
                return archive.read(f"{folder}data/{key}"), 0
            except (zipfile.BadZipFile, EOFError, KeyError):
                raise ValueError("it is cut off or damaged") from None

        return Storage(read, dtype, numel)

    return read_pickle(io.BytesIO(content), find_storage)


def _parse_persistent_id(persistent_id: Any) -> tuple[torch.dtype, str, int]:
    """Read type, key and length from ("storage", type, key, device, length, ...)."""
    match persistent_id:
        case ("storage", Record(name=name), str(key), str(), int(numel), *_):
            if name in STORAGES and numel >= 0:
                return STORAGES[name], key, numel
    raise ValueError("it has a storage of an unknown type")


def _load_storage(content: Any) -> Storage:
    """
    Read a storage from the argument of `torch.storage._load_from_bytes`.

    It consists of five pickles (a magic number, a version, the system, the storage, its keys), a length,
    and the numbers.
    """
    content = _to_bytes(content)
    stream = io.BytesIO(content)
    read_pickle(stream)
    read_pickle(stream)
    system = read_pickle(stream)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("its numbers are big-endian")
    storage = read_pickle(stream, _parse_persistent_id)
    if not isinstance(storage, tuple) or len(storage) != 3 or not isinstance(storage[0], torch.dtype):
        raise ValueError("it is damaged")
    dtype, _, numel = storage
    read_pickle(stream)
    start = stream.tell() + 8
    return Storage(lambda: (content, start), dtype, numel)


def rebuild_tensor(record: Any) -> torch.Tensor:
    """
    Read the numbers of a tensor or parameter that a pickle describes.

    Args:
        record ([`~pipeline_pfgmpp.conversion.inert_pickle.Record`]): The description, from [`load`].

    Returns:
        `torch.Tensor`: The tensor, on the CPU. It may share memory with the file's content, so it must
            not be written to.

    Raises:
        ValueError: The record does not describe a tensor, or its storage does not hold that tensor.
    """
    match record:
        case Record(name="torch._utils._rebuild_parameter", args=(data, *_)):
            record = data
    match record:
        case Record(name="torch._utils._rebuild_tensor_v2", args=(storage, offset, size, stride, *_)):
            if isinstance(offset, int) and isinstance(size, tuple) and isinstance(stride, tuple):
                return _read_tensor(storage, offset, size, stride)
    raise ValueError("it has something else where a tensor should be")


def _read_tensor(storage: Any, offset: int, size: tuple, stride: tuple) -> torch.Tensor:
    match storage:
        case Record(name="torch.storage._load_from_bytes", args=(content, *_)):
            storage = _load_storage(content)
    numbers = (offset, *size, *stride)
    are_sizes = all(type(number) is int and number >= 0 for number in numbers)
    if not isinstance(storage, Storage) or len(size) != len(stride) or not are_sizes:
        raise ValueError("it is damaged")
    numel = math.prod(size)
    if numel == 0:
        raise ValueError("it has an empty tensor")
    last = offset + sum((count - 1) * step for count, step in zip(size, stride))
    data, start = storage.read()
    available = (len(data) - start) // storage.dtype.itemsize
    if max(last + 1, numel) > storage.numel or storage.numel > available:
        raise ValueError("it has a tensor that is larger than its data")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        flat = torch.frombuffer(data, dtype=storage.dtype, count=storage.numel, offset=start)
    return flat.as_strided(size, stride, offset)


def to_number(value: Any) -> float:
    """
    Convert a number that a pickle describes, which may be NumPy's.

    Args:
        value (`Any`): The description, from [`load`].

    Returns:
        `float`: The number.

    Raises:
        ValueError: The value does not describe a number.
    """
    match value:
        case bool():
            pass
        case int() | float():
            return value
        case "inf":
            return math.inf
        case Record(name=name, args=(Record(args=(str(kind), *_)), content)):
            if name.endswith("multiarray.scalar") and re.fullmatch(r"f[248]|[iu][1248]", kind):
                return float(np.frombuffer(_to_bytes(content), dtype=f"<{kind}", count=1)[0])
    raise ValueError("it has something else where a number should be")


def _to_bytes(value: Any) -> bytes:
    """Return bytes, which protocol 2 of pickle spells as text in Latin-1."""
    match value:
        case bytes():
            return value
        case Record(name="_codecs.encode", args=(str(text), "latin1")) if (
            text.isascii() or max(text) <= "\xff"
        ):
            return text.encode("latin1")
    raise ValueError("it is damaged")
