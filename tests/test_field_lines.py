"""The exact field: its lines end where they must, and its pictures are written."""

import functools

import PIL.Image
import pytest
import torch

from pipeline_pfgmpp.pictures import field_lines


@pytest.mark.parametrize("D", [1, 8, None])
def test_field_lines_end_at_charges(D):
    charges = field_lines.make_shape("ring", 12)
    latents = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    points, heights = field_lines.trace_field_lines(charges, D, latents, num_steps=100)
    assert points.shape == (101, 20, 2)
    assert heights.shape == (101,)
    assert (heights[0], heights[-1]) == (field_lines.SIGMA_MAX, 0)
    torch.testing.assert_close(points[0], field_lines.SIGMA_MAX * latents)
    ends = torch.cdist(points[-1], charges).min(1).values
    # Not all: at D = 1 a line that almost separates two charges is still between them at the last level.
    assert ends.quantile(0.9) < 1e-2


def test_around_one_charge_field_lines_are_straight():
    latents = torch.tensor([[0.5, -1.0], [2.0, 0.3]])
    points, heights = field_lines.trace_field_lines(torch.zeros(1, 2), 8, latents, num_steps=20)
    torch.testing.assert_close(points, heights[:, None, None] * latents, atol=1e-4, rtol=1e-4)


def test_shapes_lie_on_the_plane():
    for name in ("heart", "spiral", "moons", "ring"):
        points = field_lines.make_shape(name, 50)
        assert points.shape == (50, 2)
        assert points.abs().max() <= 1.1
    with pytest.raises(ValueError, match="`name` must be one of"):
        field_lines.make_shape("square")


def test_pictures_and_the_animation_are_written(tmp_path, monkeypatch):
    few_steps = functools.partial(field_lines.trace_field_lines, num_steps=25)
    monkeypatch.setattr(field_lines, "trace_field_lines", few_steps)
    field_lines.plot_field_lines(tmp_path / "lines.png", (2.0, None))
    field_lines.plot_trajectories(tmp_path / "paths.png", "moons", (1.0, 8.0))
    field_lines.plot_norms(tmp_path / "norms.png", (4.0, None), num_dims=16)
    field_lines.animate_trajectories(tmp_path / "paths.gif", "ring", (1.0, None), count=10)
    for path in tmp_path.iterdir():
        with PIL.Image.open(path) as picture:
            assert min(picture.size) > 200
    with PIL.Image.open(tmp_path / "paths.gif") as animation:
        assert animation.n_frames > 20
