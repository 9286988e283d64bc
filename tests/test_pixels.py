"""Pictures and arrays of every mode, depth and layout come out right, or are refused in one sentence."""

import io

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest

from pipeline_pfgmpp.pixels import EIGHT_BITS, SIXTEEN_BITS, fit_size, read_array, read_picture


RAMP = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)


def reopen(image, kind="PNG", **options):
    """Saves a picture and opens it again, as a user's file is."""
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    file.seek(0)
    return PIL.Image.open(file)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_ramp_of_sixteen_bits_keeps_its_levels(kind):
    pixels = read_picture(reopen(PIL.Image.fromarray(RAMP), kind))
    assert pixels.value_range == SIXTEEN_BITS
    assert pixels.values.dtype == np.float32
    np.testing.assert_array_equal(pixels.values[..., 0], RAMP)


def test_sixteen_bits_in_pillows_mode_of_32_bits():
    """Pillow wrote and read 16-bit PNGs as mode I before it knew I;16."""
    image = PIL.Image.fromarray(RAMP.astype(np.int32))
    image.format = "PNG"
    assert read_picture(image).value_range == SIXTEEN_BITS


def test_floats_and_signed_integers_have_the_range_of_their_data_set():
    hounsfield = np.linspace(-1000, 3000, 256, dtype=np.float32).reshape(16, 16)
    for values in (hounsfield, hounsfield.astype(np.int32)):
        pixels = read_picture(reopen(PIL.Image.fromarray(values), "TIFF"))
        assert pixels.value_range is None
        np.testing.assert_array_equal(pixels.values[..., 0], values)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV", "RGBX"])
def test_eight_bits_stay_eight_bits(mode):
    image = PIL.Image.new("RGB", (5, 4), (204, 204, 204)).convert("RGB" if mode == "RGBX" else mode)
    pixels = read_picture(image.convert(mode))
    assert pixels.value_range == EIGHT_BITS
    assert pixels.values.dtype == np.uint8
    assert pixels.values.shape == (4, 5, 1 if mode in ("1", "L") else 3)
    if mode != "1":
        assert abs(pixels.values.astype(int) - 204).max() <= 2


@pytest.mark.parametrize("mode", ["RGBA", "RGBa", "LA", "La", "PA"])
def test_hidden_colours_stay_hidden(mode):
    """Under alpha 0 lies black, which nobody sees."""
    image = PIL.Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 2, 4))
    if mode in ("La", "LA"):
        image = image.convert("LA")
    pixels = read_picture(image.convert(mode))
    assert (pixels.values[:, :2] == 0).all()
    assert (pixels.values[:, 2:] == 255).all()


def test_transparent_colours_of_files():
    palette = PIL.Image.fromarray(np.array([[0, 1]], np.uint8), "L").convert("P")
    palette.putpalette([10, 20, 30, 200, 0, 0])
    assert read_picture(reopen(palette, transparency=0)).values.tolist() == [[[255, 255, 255], [200, 0, 0]]]
    grey = PIL.Image.fromarray(np.array([[7, 9]], np.uint8))
    assert read_picture(reopen(grey, transparency=7)).values.tolist() == [[[255], [9]]]
    colour = PIL.Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    assert read_picture(reopen(colour, transparency=(1, 2, 3))).values.tolist() == [[[255] * 3, [4, 5, 6]]]
    deep = PIL.Image.fromarray(np.array([[700, 900]], np.uint16))
    assert read_picture(reopen(deep, transparency=700)).values.tolist() == [[[65535], [900]]]


@pytest.mark.parametrize("channels", [2, 4])
def test_sixteen_bits_get_an_alpha_channel(channels):
    plain = read_picture(reopen(PIL.Image.fromarray(RAMP)), channels)
    assert (plain.values[..., :-1] == RAMP[..., None]).all()
    assert (plain.values[..., -1] == 65535).all()
    some = read_picture(reopen(PIL.Image.fromarray(RAMP), transparency=int(RAMP[3, 5])), channels)
    assert some.values.shape == (16, 16, channels)
    assert np.argwhere(some.values[..., -1] == 0).tolist() == [[3, 5]]
    with pytest.raises(ValueError, match="mode F has no range of its own, so it gets no alpha"):
        read_picture(PIL.Image.fromarray(RAMP.astype(np.float32)), channels)


def test_background():
    image = PIL.Image.new("RGBA", (1, 1), (0, 0, 0, 0))
    assert read_picture(image, background="#ff8000").values.tolist() == [[[255, 128, 0]]]
    half = PIL.Image.new("LA", (1, 1), (0, 128))
    assert read_picture(half, background="black").values.tolist() == [[[0]]]
    assert read_picture(half).values.tolist() == [[[127]]]
    with pytest.raises(ValueError, match="`background` must be a colour such as white or #808080"):
        read_picture(image, background="no colour")


def test_alpha_is_kept_where_it_is_asked_for():
    image = PIL.Image.new("RGBA", (1, 1), (10, 20, 30, 40))
    assert read_picture(image, channels=4).values.tolist() == [[[10, 20, 30, 40]]]
    assert read_picture(PIL.Image.new("LA", (1, 1), (5, 6)), channels=2).values.tolist() == [[[5, 6]]]
    assert read_picture(PIL.Image.new("RGB", (1, 1), (1, 2, 3)), channels=4).values.tolist() == [
        [[1, 2, 3, 255]]
    ]
    with pytest.raises(ValueError, match="1 to 4 channels, but 5"):
        read_picture(image, channels=5)


def test_grey_and_colour_are_converted():
    assert read_picture(PIL.Image.new("L", (1, 1), 9), channels=3).values.tolist() == [[[9, 9, 9]]]
    colour = PIL.Image.new("RGB", (1, 1), (200, 100, 50))
    assert read_picture(colour, channels=1).values.tolist() == [[[colour.convert("L").getpixel((0, 0))]]]
    deep = read_picture(PIL.Image.fromarray(RAMP), channels=3)
    assert deep.values.shape == (16, 16, 3)
    np.testing.assert_array_equal(deep.values[..., 2], RAMP)


def test_pictures_of_phones_stand_upright():
    image = PIL.Image.new("L", (4, 2))
    image.putpixel((0, 0), 255)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # rotate by a quarter turn
    pixels = read_picture(reopen(image, "PNG", exif=exif))
    assert pixels.values.shape == (4, 2, 1)
    assert pixels.values[0, 1, 0] == 255


def test_modes_that_cannot_be_read_are_named():
    with pytest.raises(ValueError, match="mode LAB cannot be read"):
        read_picture(PIL.Image.new("LAB", (1, 1)))


@pytest.mark.parametrize(
    "dtype", [np.uint8, np.uint16, ">u2", np.int16, np.int64, np.float16, np.float32, ">f4", np.float64, bool]
)
def test_arrays_of_every_type(dtype):
    values = np.array([[0, 1], [1, 0]]).astype(dtype)
    pixels = read_array(values)
    scale = 255 if dtype is bool else 1
    np.testing.assert_array_equal(pixels.values[..., 0], values.astype(np.float64) * scale)
    ranges = {np.uint8: EIGHT_BITS, bool: EIGHT_BITS, np.uint16: SIXTEEN_BITS, ">u2": SIXTEEN_BITS}
    assert pixels.value_range == ranges.get(dtype)


@pytest.mark.parametrize(("shape", "channels", "found"), [
    ((3, 8, 6), None, (8, 6, 3)),
    ((8, 6, 3), None, (8, 6, 3)),
    ((2, 8, 6), None, (8, 6, 2)),
    ((13, 8, 6), 13, (8, 6, 13)),
    ((8, 6, 13), 13, (8, 6, 13)),
    ((8, 6), None, (8, 6, 1)),
    ((1, 8, 6), 3, (8, 6, 3)),
    ((8, 6, 1), 3, (8, 6, 3)),
    ((3, 8, 6), 1, (8, 6, 1)),
])  # fmt: skip
def test_layouts_of_arrays(shape, channels, found):
    assert read_array(np.zeros(shape, np.float32), channels).values.shape == found


@pytest.mark.parametrize(("array", "message"), [
    (np.zeros((13, 8, 6)), "does not show which axis holds the channels"),
    (np.zeros((8, 6, 5)), "does not show which axis holds the channels"),
    (np.zeros((1, 1, 1, 1)), "must be of shape"),
    (np.zeros(4), "must be of shape"),
    (np.zeros((0, 4, 4)), "must be of shape"),
    (np.full((2, 2), np.nan), "NaN"),
    (np.full((2, 2), np.inf), "infinities"),
    (np.zeros((2, 2), complex), "type complex128"),
    (np.array([["a"]]), "must hold numbers"),
])  # fmt: skip
def test_arrays_that_are_no_images_are_refused(array, message):
    with pytest.raises(ValueError, match=message):
        read_array(array)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_rectangles_are_fitted_within_their_range(dtype, channels):
    values = np.random.default_rng(0).integers(0, 255, (40, 60, channels)).astype(dtype)
    fitted = fit_size(read_array(values, channels), (8, 24))
    assert fitted.values.shape == (8, 24, channels)
    assert fitted.values.dtype == dtype
    assert values.min() <= fitted.values.min() <= fitted.values.max() <= values.max()
    assert fit_size(fitted, (8, 24)) is fitted


def test_the_centre_is_kept():
    values = np.zeros((10, 30), np.float32)
    values[:, 10:20] = 1
    assert fit_size(read_array(values), (10, 10)).values.mean() > 0.9


def test_what_is_transparent_does_not_show_at_the_edges_of_a_smaller_picture():
    picture = PIL.Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    PIL.ImageDraw.Draw(picture).ellipse((10, 10, 53, 53), (255, 160, 0, 255))
    values = fit_size(read_picture(picture, channels=4), (8, 8)).values
    seen = values[values[..., 3] > 100]
    assert len(np.unique(seen[:, 3])) > 2
    assert np.abs(seen[:, :3].astype(int) - (255, 160, 0)).max() <= 12  # Lanczos overshoots
