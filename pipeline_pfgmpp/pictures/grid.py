"""Pictures of many images."""

import torch
from PIL import Image, ImageDraw, ImageFont


def to_pil(images: torch.Tensor) -> list[Image.Image]:
    """
    Images as pictures.

    Args:
        images (`torch.Tensor` of shape `(batch, 1 or 3, H, W)`, uint8): The images.

    Returns:
        `list[PIL.Image.Image]`: Grey or RGB pictures.
    """
    arrays = images.permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array) for array in arrays]


def draw_grid(
    images: list[Image.Image], columns: int, row_labels: list[str] | None = None, cell: int = 64, gap: int = 4
) -> Image.Image:
    """
    Lays images out in rows, with a name before each row.

    Args:
        images (`list[PIL.Image.Image]`): The images, row after row.
        columns (`int`): Images in a row.
        row_labels (`list[str]`, *optional*): Names of the rows; Pillow's font knows Latin letters alone.
        cell (`int`, defaults to 64): Least height of an image in the grid, in pixels; smaller ones
            are enlarged in whole steps.
        gap (`int`, defaults to 4): Space between images, in pixels.

    Returns:
        `PIL.Image.Image`: The grid.
    """
    factor = max(1, -(-cell // images[0].height))
    width, height = images[0].width * factor, images[0].height * factor
    font = ImageFont.load_default(size=15)
    margin = (
        max((int(font.getlength(label)) for label in row_labels), default=0) + 3 * gap if row_labels else gap
    )
    rows = -(-len(images) // columns)
    grid = Image.new(images[0].mode, (margin + columns * (width + gap), gap + rows * (height + gap)), "white")
    draw = ImageDraw.Draw(grid)
    for row, label in enumerate(row_labels or []):
        middle = gap + row * (height + gap) + height // 2
        draw.text((margin - 2 * gap, middle), label, fill="black", font=font, anchor="rm")
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        enlarged = image.resize((width, height), Image.Resampling.NEAREST)
        grid.paste(enlarged, (margin + column * (width + gap), gap + row * (height + gap)))
    return grid


def stack_panels(panels: dict[str, Image.Image], gap: int = 8) -> Image.Image:
    """
    Puts pictures one below the other, each under its title.

    Args:
        panels (`dict[str, PIL.Image.Image]`): Pictures of one mode by title.
        gap (`int`, defaults to 8): Space around the titles, in pixels.

    Returns:
        `PIL.Image.Image`: The whole.
    """
    font = ImageFont.load_default(size=15)
    line = 15 + 2 * gap
    pictures = list(panels.values())
    size = (max(picture.width for picture in pictures), sum(line + picture.height for picture in pictures))
    whole = Image.new(pictures[0].mode, size, "white")
    draw, top = ImageDraw.Draw(whole), 0
    for title, picture in panels.items():
        draw.text((gap, top + line // 2), title, fill="black", font=font, anchor="lm")
        whole.paste(picture, (0, top + line))
        top += line + picture.height
    return whole
