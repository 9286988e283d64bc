"""
DICOM files, which are written back as images derived from what they were.

Values are in the units that the file states, such as Hounsfield units: slope times stored value plus
intercept. All elements are kept but for the pixels and what says that they are others (PS3.3, C.7.6.1 and
C.12.4): the file gets its own SOP instance, its type is DERIVED, and it names its source.

Nothing here prints or quotes an element, since any may identify a patient.
"""

import contextlib
import copy
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pydicom.config
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from .. import __version__
from ..images import Range
from .image_files import ImageFile, UnfitFileError, check_size, round_to_type


DESCRIPTION = f"Restored by PFGM++ (pipeline_pfgmpp {__version__})"
# Elements that show the pixels as they were, or say where they lie in a compressed file.
PREVIEWS = ("IconImageSequence", "ExtendedOffsetTable", "ExtendedOffsetTableLengths")
LONGEST_TEXT = 1024  # characters of a DerivationDescription


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep pydicom from warnings, which quote the elements that they are about."""
    logger = pydicom.config.logger
    was_disabled = logger.disabled
    logger.disabled = True
    try:
        with warnings.catch_warnings(), pydicom.config.disable_value_validation():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = was_disabled


class DicomFile(ImageFile):
    """
    A DICOM file of one grey image.

    Pixels of the padding value, which lie outside what was measured, are kept as they are; the network
    sees the darkest of the others there.

    Args:
        path (`Path`): The file.
    """

    def __init__(self, path: Path):
        with _silence():
            self._dataset = pydicom.dcmread(path)
            _check_dataset(self._dataset)
            try:
                stored = self._dataset.pixel_array
            except (NotImplementedError, RuntimeError):
                raise UnfitFileError(
                    "its compression needs a plugin of pydicom; decompress it, or install pylibjpeg"
                ) from None
        if stored.ndim != 2 or stored.dtype.kind not in "iu":
            raise UnfitFileError("it must hold one grey image of integers")
        self._stored = stored
        self._slope = float(self._dataset.get("RescaleSlope", None) or 1)
        self._intercept = float(self._dataset.get("RescaleIntercept", None) or 0)
        self._padding = _find_padding(self._dataset, stored)
        values = stored.astype(np.float64) * self._slope + self._intercept
        if self._padding.any() and not self._padding.all():
            values[self._padding] = values[~self._padding].min()
        self.values = values[..., None]

    def choose_range(self, value_range: Range | None) -> Range:
        """Choose the range of the network's data or, without one, of what the file can store."""
        if value_range is not None:
            return value_range
        low, high = sorted(bound * self._slope + self._intercept for bound in self._limits)
        is_negative = self._dataset.PhotometricInterpretation == "MONOCHROME1"  # the least value is white
        return (high, low) if is_negative else (low, high)

    def can_hold(self, channels: int) -> bool:
        """Tell whether the file can hold so many channels: only one."""
        return channels == 1

    def write(self, path: Path, values: np.ndarray, identity: str) -> None:
        """Write a derived image with all other elements of this one, see [`ImageFile.write`]."""
        stored = (values[..., 0] - self._intercept) / self._slope
        stored = round_to_type(stored, self._stored.dtype, *self._limits)
        stored[self._padding] = self._stored[self._padding]
        with _silence():
            dataset = copy.deepcopy(self._dataset)
            _replace_pixels(dataset, stored)
            _mark_as_derived(dataset, identity)
            dataset.preamble = (
                b"\0" * 128
            )  # it may be the header of a TIFF file, with places of the old pixels
            dataset.save_as(path)

    @property
    def _limits(self) -> tuple[int, int]:
        """The smallest and the largest value that the file can store."""
        bits = int(self._dataset.BitsStored)
        if self._stored.dtype.kind == "i":
            return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        return 0, 2**bits - 1


def _check_dataset(dataset: pydicom.Dataset) -> None:
    """Refuse what holds no pixels, or others than one grey image."""
    if "PixelData" not in dataset:
        raise UnfitFileError("it holds no pixels")
    if int(dataset.get("NumberOfFrames", None) or 1) != 1:
        raise UnfitFileError("it holds several images, but must hold one")
    grey = dataset.get("PhotometricInterpretation", "") in ("MONOCHROME1", "MONOCHROME2")
    if int(dataset.get("SamplesPerPixel", 1)) != 1 or not grey:
        raise UnfitFileError("it must be grey, but has colours")
    if "ModalityLUTSequence" in dataset:
        raise UnfitFileError("its units are given by a table, but must be by slope and intercept")
    if not dataset.get("SOPClassUID", None) or not dataset.get("SOPInstanceUID", None):
        raise UnfitFileError("it does not say which instance it is, so none can be derived from it")
    check_size(int(dataset.Rows), int(dataset.Columns))


def _find_padding(dataset: pydicom.Dataset, stored: np.ndarray) -> np.ndarray:
    """Find the pixels that lie outside what was measured."""
    first = dataset.get("PixelPaddingValue", None)
    if not isinstance(first, int):
        return np.zeros(stored.shape, bool)
    last = dataset.get("PixelPaddingRangeLimit", None)
    low, high = sorted((first, last if isinstance(last, int) else first))
    return (stored >= low) & (stored <= high)


def _replace_pixels(dataset: pydicom.Dataset, stored: np.ndarray) -> None:
    """Put other pixels into a data set, uncompressed."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_compressed and not syntax.is_deflated:
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        syntax = ExplicitVRLittleEndian
    order = "<" if syntax.is_little_endian else ">"
    data = stored.astype(stored.dtype.newbyteorder(order)).tobytes()
    is_wide = stored.dtype.itemsize > 1
    del dataset["PixelData"]
    dataset.add_new("PixelData", "OW" if is_wide else "OB", data + b"\0" * (len(data) % 2))
    dataset.BitsAllocated = 8 * stored.dtype.itemsize
    for name in PREVIEWS:
        if name in dataset:
            delattr(dataset, name)
    for name, value in (("SmallestImagePixelValue", stored.min()), ("LargestImagePixelValue", stored.max())):
        if name in dataset:
            setattr(dataset, name, int(value))


def _mark_as_derived(dataset: pydicom.Dataset, identity: str) -> None:
    """Give a data set its own instance, and say what it was derived from and how."""
    source = pydicom.Dataset()
    source.ReferencedSOPClassUID = dataset.SOPClassUID
    source.ReferencedSOPInstanceUID = dataset.SOPInstanceUID
    dataset.SourceImageSequence = [*(dataset.get("SourceImageSequence", None) or []), source]
    instance = generate_uid(entropy_srcs=[str(dataset.SOPInstanceUID), identity])
    dataset.SOPInstanceUID = instance
    dataset.file_meta.MediaStorageSOPInstanceUID = instance
    kinds = dataset.get("ImageType", None) or ["ORIGINAL", "PRIMARY"]
    dataset.ImageType = ["DERIVED", *([kinds] if isinstance(kinds, str) else kinds)[1:]]
    earlier = str(dataset.get("DerivationDescription", None) or "")
    description = f"{earlier}; {DESCRIPTION}" if earlier else DESCRIPTION
    dataset.DerivationDescription = description[-LONGEST_TEXT:]
