"""Pictures as HTML: they are embedded in the page, so that no file is written."""

import base64
import html
import io

import torch
from matplotlib.figure import Figure
from PIL import Image

from pipeline_pfgmpp.pictures.grid import draw_grid, to_pil


Gallery = list[tuple[Image.Image, str]]  # pictures and their captions
# For the component that shows a gallery: pictures to come stay as they were until they are there.
KEEP_PICTURES = """
let shown = [];
function keep() {
  const gallery = element.querySelector('.gallery');
  if (!gallery) return;
  gallery.append(...shown.slice(gallery.children.length, gallery.dataset.count));
  shown = [...gallery.children];
}
new MutationObserver(keep).observe(element, {childList: true, subtree: true});
"""


def to_pictures(samples: torch.Tensor) -> list[Image.Image]:
    """
    Convert samples to pictures.

    Args:
        samples (`torch.Tensor` of shape `(batch, C, H, W)`): Samples, of which [-1, 1] is shown.

    Returns:
        `list[PIL.Image.Image]`: One picture per sample.
    """
    levels = ((samples / 2 + 0.5).clamp(0, 1) * 255).round()
    return to_pil(levels.to("cpu", torch.uint8))


def render_picture(picture: Image.Image, alt: str, width: int | None = None) -> str:
    """
    Render a picture with its pixels kept sharp.

    Args:
        picture (`PIL.Image.Image`): The picture.
        alt (`str`): What it shows, for people who cannot see it.
        width (`int`, *optional*): Width on the page in pixels; by default the picture's own.

    Returns:
        `str`: HTML.
    """
    data = io.BytesIO()
    picture.save(data, format="PNG", compress_level=1)
    encoded = base64.b64encode(data.getvalue()).decode()
    style = f' style="width:{width}px"' if width else ""
    text = html.escape(alt)
    source = f"data:image/png;base64,{encoded}"
    return f'<img class="pixels" alt="{text}" title="{text}" decoding="sync" src="{source}"{style}>'


def render_gallery(gallery: Gallery, count: int) -> str:
    """
    Render pictures side by side, each with its caption as its text and its tooltip.

    Args:
        gallery (`Gallery`): The pictures and their captions.
        count (`int`): How many there will be. In the place of those to come, `KEEP_PICTURES` leaves what
            the page shows.

    Returns:
        `str`: HTML.
    """
    pictures = "".join(render_picture(*item) for item in gallery)
    return f'<div class="gallery" data-count="{count}">{pictures}</div>'


def render_captioned(gallery: Gallery) -> str:
    """
    Render pictures side by side, each with its caption below it.

    Args:
        gallery (`Gallery`): The pictures and their captions.

    Returns:
        `str`: HTML.
    """
    figures = [
        f"<figure>{render_picture(picture, caption)}<figcaption>{html.escape(caption)}</figcaption></figure>"
        for picture, caption in gallery
    ]
    return f'<div class="captioned">{"".join(figures)}</div>'


def render_rows(rows: dict[str, list[Image.Image]]) -> str:
    """
    Render rows of pictures. The name of a row stands beside it, or above it on a narrow page.

    Args:
        rows (`dict[str, list[PIL.Image.Image]]`): Pictures by the name of their row.

    Returns:
        `str`: HTML.
    """
    parts = []
    for name, pictures in rows.items():
        grid = draw_grid(pictures, len(pictures))
        parts.append(f'<div class="name">{html.escape(name)}</div>{render_picture(grid, name)}')
    return f'<div class="rows">{"".join(parts)}</div>'


def rasterize(figure: Figure) -> Image.Image:
    """
    Draw a figure of matplotlib as a picture.

    Args:
        figure (`matplotlib.figure.Figure`): The figure.

    Returns:
        `PIL.Image.Image`: The picture, at 100 pixels per inch.
    """
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=100)
    return Image.open(data)
