"""
Pictures that visitors send.

The page makes a picture small in the browser and sends it as the text of a PNG file, within the limit of
every request. Nothing is uploaded into a file, and only one decoder ever reads what strangers send.
"""

import base64
import binascii
import io
import struct
from typing import Any

import numpy as np
import PIL.Image
from checks import Refusal

from pipeline_pfgmpp.pixels import fit_size, read_picture


PREFIX = "data:image/png;base64,"
SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEADER = slice(16, 24)  # of a PNG file: its width and height
LONGEST_TEXT = 2**16
MOST_PIXELS = 2**18  # 512 x 512; a small file may state any size


def read_upload(text: Any, channels: int, size: tuple[int, int]) -> np.ndarray:
    """
    Read a picture that a visitor has sent.

    Of an animation, the first picture is read.

    Args:
        text: The picture as a data URI of a PNG file.
        channels (`int`): Channels that a network takes: 1, 3 or 4.
        size (`tuple[int, int]`): Height and width to which it is scaled and cropped.

    Returns:
        `np.ndarray` of shape `(height, width, channels)` and type uint8: The picture.

    Raises:
        Refusal: It is something else, too large, or damaged.
    """
    data = decode_text(text)
    if not data:
        raise Refusal("The picture is empty: it has no bytes.")
    if not data.startswith(SIGNATURE):
        raise Refusal("The picture must be a PNG file.")
    if len(data) < HEADER.stop:
        raise Refusal("The picture cannot be read: it is damaged or cut off.")
    width, height = struct.unpack(">II", data[HEADER])
    if not 0 < width * height <= MOST_PIXELS:
        raise Refusal(
            f"The picture may have 1 to {MOST_PIXELS:,} pixels, but its file states {width:,} × {height:,}."
        )
    try:
        with PIL.Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            if picture.size != (width, height):  # Pillow has read another header than this function
                raise ValueError("The file states two sizes.")
            pixels = read_picture(picture, channels)
    except Exception:  # Pillow's decoder raises whatever it stumbles over
        raise Refusal("The picture cannot be read: it is damaged or cut off.") from None
    values = fit_size(pixels, size).values
    if values.dtype != np.uint8:  # of 16 bits
        values = (values / 257).round().astype(np.uint8)
    return values


def decode_text(text: Any) -> bytes:
    """
    Decode the bytes of a file from its data URI.

    Args:
        text: What a visitor has sent.

    Returns:
        `bytes`: The bytes.

    Raises:
        Refusal: It is no data URI of a PNG file, or too long.
    """
    if not isinstance(text, str) or not text.startswith(PREFIX):
        raise Refusal(f"The picture must be a PNG file, sent as a text that begins with {PREFIX}")
    if len(text) > LONGEST_TEXT:
        raise Refusal(f"The picture must be sent in at most {LONGEST_TEXT:,} characters.")
    try:
        return base64.b64decode(text.removeprefix(PREFIX), validate=True)
    except binascii.Error:
        raise Refusal("The picture cannot be read: its text is damaged or cut off.") from None
