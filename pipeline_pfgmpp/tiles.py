# Copyright 2026 The pipeline_pfgmpp authors. Licensed under the Apache License, Version 2.0.
r"""
Large images in overlapping tiles, so that memory is bounded by the tile and not by the image.

A network is called on one tile after the other, and its outputs $F_k$ are blended by windows $w_k$ that add
up to one at each pixel,

$$F(x) = \sum_k w_k\,F_k(x_k).$$

Near a cut the network lacks what lies beyond it. There the window is zero for a quarter of the overlap,
and it rises to one over the middle half:

    tile k        ______________________________
                                                \
                                                 \____|
                                |<---- overlap ---->|
    tile k + 1                  |____
                                     \ (rises as the other falls)

So a network that sees no farther than a quarter of the overlap computes the same as without tiles.
Noise is drawn for whole images, and outputs are blended at each call, so that tiles never drift apart.
"""

from collections.abc import Callable

import torch


def choose_overlap(tile_size: int, divisor: int) -> int:
    """
    Choose the overlap of neighbouring tiles: a quarter of their size, rounded up.

    Args:
        tile_size (`int`): Side of the tiles, in pixels: a multiple of `divisor` and at least twice that.
        divisor (`int`): The number of which all cuts are multiples, so that a network that halves the size
            several times halves it at the same places as without tiles.

    Returns:
        `int`: The overlap, in pixels.
    """
    return -(-tile_size // (4 * divisor)) * divisor


def list_spans(size: int, tile_size: int, divisor: int) -> list[tuple[slice, torch.Tensor]]:
    """
    List where tiles lie along one side of an image, and how much each counts there.

    Args:
        size (`int`): Length of the side, in pixels: a multiple of `divisor`.
        tile_size (`int`): Side of the tiles; the last is moved to where the image ends.
        divisor (`int`): As for [`choose_overlap`].

    Returns:
        `list[tuple[slice, torch.Tensor]]`: The span and the window of each tile. The windows add up to one.
    """
    if size <= tile_size:
        return [(slice(0, size), torch.ones(size))]
    overlap = choose_overlap(tile_size, divisor)
    starts = [*range(0, size - tile_size, tile_size - overlap), size - tile_size]
    ramp = ((torch.arange(overlap) + 0.5) / overlap * 2 - 0.5).clamp(0, 1)
    total = torch.zeros(size)
    spans = []
    for start in starts:
        span = slice(start, start + tile_size)
        window = torch.ones(tile_size)
        if start > 0:
            window[:overlap] = ramp
        if span.stop < size:
            window[-overlap:] = ramp.flip(0)
        total[span] += window
        spans.append((span, window))
    return [(span, window / total[span]) for span, window in spans]


def call_in_tiles(
    call: Callable[..., torch.Tensor], inputs: list[torch.Tensor], tile_size: int, divisor: int
) -> torch.Tensor:
    """
    Call a function on overlapping tiles of images, and blend what it returns.

    Args:
        call (`Callable`): Takes a tile of each of the inputs, and returns a tensor of that size.
        inputs (`list[torch.Tensor]`): Batches of shape `(batch, channels, height, width)`, with height and
            width multiples of `divisor`.
        tile_size (`int`): Side of the tiles, in pixels; a smaller image is one tile.
        divisor (`int`): As for [`choose_overlap`].

    Returns:
        `torch.Tensor` of shape `(batch, channels, height, width)`: The blended output.
    """
    height, width = inputs[0].shape[2:]
    columns = list_spans(width, tile_size, divisor)
    blended: torch.Tensor | None = None
    for rows, row_window in list_spans(height, tile_size, divisor):
        for span, window in columns:
            output = call(*(each[..., rows, span] for each in inputs))
            if blended is None:
                blended = output.new_zeros(*output.shape[:2], height, width)
            weights = row_window[:, None] * window
            blended[..., rows, span] += output * weights.to(output)
    assert blended is not None  # an image has pixels
    return blended
