"""Pictures that show many images."""

import torch
from PIL import Image, ImageDraw, ImageFont


FONT_SIZE = 15  # in pixels
PICTURE_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # by the number of channels


def to_pil(images: torch.Tensor) -> list[Image.Image]:
    """
    Convert images from tensors to PIL.

    Args:
        images (`torch.Tensor` of shape `(batch, 1, 3 or 4, H, W)`, uint8): The images; grey ones also as
            uint16.

    Returns:
        `list[PIL.Image.Image]`: Greyscale, RGB or RGBA images.

    Raises:
        ValueError: Images of this number of channels are not pictures.
    """
    if images.shape[1] not in PICTURE_MODES:
        raise ValueError(f"A picture has 1, 3 or 4 channels, but these images have {images.shape[1]}.")
    arrays = images.permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array) for array in arrays]


def draw_grid(
    images: list[Image.Image], columns: int, row_labels: list[str] | None = None, cell: int = 64, gap: int = 4
) -> Image.Image:
    """
    Arrange images in rows, with an optional label to the left of each row.

    Args:
        images (`list[PIL.Image.Image]`): Images of one mode and size, row by row.
        columns (`int`): Images per row.
        row_labels (`list[str]`, *optional*): Labels of the rows, in Latin letters, which are all that
            Pillow's own font has.
        cell (`int`, defaults to 64): Least size of the longer side of an image in the grid, in pixels;
            smaller images are enlarged by a whole factor.
        gap (`int`, defaults to 4): Space between images, in pixels.

    Returns:
        `PIL.Image.Image`: The grid.
    """
    factor = max(1, -(-cell // max(images[0].size)))
    width = images[0].width * factor
    height = images[0].height * factor
    font = ImageFont.load_default(size=FONT_SIZE)
    margin = gap
    if row_labels:
        margin = max(int(font.getlength(label)) for label in row_labels) + 3 * gap
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
    Stack pictures vertically, each below its title.

    Args:
        panels (`dict[str, PIL.Image.Image]`): Pictures of one mode, by title.
        gap (`int`, defaults to 8): Space around the titles, in pixels.

    Returns:
        `PIL.Image.Image`: The stacked pictures.
    """
    font = ImageFont.load_default(size=FONT_SIZE)
    line = FONT_SIZE + 2 * gap
    pictures = list(panels.values())
    size = (max(picture.width for picture in pictures), sum(line + picture.height for picture in pictures))
    stack = Image.new(pictures[0].mode, size, "white")
    draw = ImageDraw.Draw(stack)
    top = 0
    for title, picture in panels.items():
        draw.text((gap, top + line // 2), title, fill="black", font=font, anchor="lm")
        stack.paste(picture, (0, top + line))
        top += line + picture.height
    return stack
