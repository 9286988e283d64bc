"""Images that go into a pipeline and come out of it: one convention, whatever their form."""

import io

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DiffusionPipeline
from test_pipeline_pfgmpp import generator, our_unet, pipeline

from pipeline_pfgmpp import PFGMPPPipeline, PFGMPPScheduler
from pipeline_pfgmpp.images import convert_samples, prepare_images, prepare_mask


SIZE = (6, 10)


def make_samples(channels=3, count=2):
    """Make samples at exactly the 256 levels of 8 bits, with black and white among them."""
    levels = torch.randint(0, 256, (count, channels, *SIZE), generator=generator())
    levels.view(-1)[:2] = torch.tensor([0, 255])
    return levels / 127.5 - 1


def prepare(images, channels=3, value_range=None):
    return prepare_images(images, "image", channels, SIZE, value_range)


def make_pipeline(channels=3, **options):
    pipe = PFGMPPPipeline(our_unet(channels), PFGMPPScheduler(D=64), **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("value_range", [None, (0.0, 255.0), (-1000.0, 3000.0)])
def test_what_comes_out_goes_in_again_as_it_was(output_type, channels, value_range):
    samples = make_samples(channels)
    images = convert_samples(samples, output_type, value_range)
    assert len(images) == 2
    torch.testing.assert_close(prepare(images, channels, value_range), samples, atol=2e-5, rtol=0)


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
def test_a_pipeline_takes_its_own_output(output_type):
    pipe = pipeline(D=64)
    few = {"num_inference_steps": 2, "batch_size": 2}
    images = pipe(generator=generator(), output_type=output_type, **few).images
    latent = pipe(generator=generator(), output_type="latent", **few).images
    kept = pipe(image=images, mask_image=torch.zeros(8, 8), output_type="latent", **few).images
    torch.testing.assert_close(kept, latent.clamp(-1, 1), atol=1 / 127, rtol=0)
    inverted = pipe.invert(images, num_inference_steps=2)
    expected = pipe.invert((latent / 2 + 0.5).clamp(0, 1), num_inference_steps=2)
    assert (inverted - expected).abs().mean() < 0.05


def test_floats_in_minus_one_to_one_are_refused_with_a_hint():
    pipe = pipeline(D=64)
    for images in (make_samples(), make_samples().permute(0, 2, 3, 1).numpy()):
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\] \(floats\).*images / 2 \+ 0.5"):
            prepare(images)
    images = torch.full((1, 3, 8, 8), -0.5)
    for call in (pipe.invert, pipe.log_likelihood):
        with pytest.raises(ValueError, match=r"`images` must lie in \[0, 1\]"):
            call(images)
    with pytest.raises(ValueError, match=r"`image` must lie in \[0, 1\]"):
        pipe(image=images)
    with pytest.raises(ValueError, match="`image` must be finite, but holds"):
        prepare(torch.full((1, 3, *SIZE), torch.nan))


@pytest.mark.parametrize(
    "dtype", [np.uint8, np.uint16, np.int64, np.int32, np.float16, np.float32, np.float64, ">u2", ">f4"]
)
def test_integers_count_by_their_depth(dtype):
    dtype = np.dtype(dtype)
    top = 1.0
    if dtype.kind in "ui":
        top = 65535 if dtype.itemsize == 2 else 255
    array = np.array([0, top], dtype).reshape(1, 2, 1, 1).repeat(3, 1).repeat(10, 2)
    expected = torch.tensor([-1.0, 1.0]).view(1, 1, 2, 1).repeat_interleave(3, 2).expand(1, 1, 6, 10)
    torch.testing.assert_close(prepare(array, 1).float(), expected)
    assert torch.equal(prepare(array[:, ::-1], 1), -prepare(array, 1))  # of negative strides
    assert torch.equal(prepare(array > 0, 1), prepare(array, 1).float())  # booleans


def test_sixteen_bit_pictures_keep_their_levels():
    ramp = np.linspace(0, 65535, 60).round().astype(np.uint16).reshape(SIZE)
    picture = PIL.Image.fromarray(ramp)
    file = io.BytesIO()
    picture.save(file, "PNG")
    expected = torch.from_numpy(ramp.astype(np.float32)) / 32767.5 - 1
    for image in (picture, PIL.Image.open(file)):
        torch.testing.assert_close(prepare(image, 1)[0, 0], expected)
    assert torch.equal(prepare(picture, 3)[0, 2], prepare(picture, 1)[0, 0])


def test_pictures_of_every_mode_are_read():
    """Transparency is composited on white, and the camera's orientation is applied."""
    white = PIL.Image.new("RGB", SIZE[::-1], "white")
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"):
        assert (prepare(white.convert(mode)) > 0.98).all()
        assert (prepare(white.convert(mode), 1) > 0.98).all()
    hidden = PIL.Image.new("RGBA", SIZE[::-1], (255, 0, 0, 0))
    assert (prepare(hidden) == 1).all()
    floats = PIL.Image.fromarray(np.full(SIZE, 0.25, np.float32))
    assert (prepare(floats, 1) == -0.5).all()
    turned = PIL.Image.new("RGB", SIZE)
    turned.getexif()[0x0112] = 6  # a quarter turn
    file = io.BytesIO()
    turned.save(file, "JPEG", exif=turned.getexif())
    assert prepare(PIL.Image.open(file)).shape == (1, 3, *SIZE)
    with pytest.raises(ValueError, match="picture of mode I, which does not tell its range"):
        prepare(PIL.Image.fromarray(np.ones(SIZE, np.int32)), 1)


def test_single_images_and_lists_of_any_kind():
    samples = make_samples()
    expected = prepare(convert_samples(samples, "pt"))
    for output_type in ("pil", "np", "pt"):
        images = convert_samples(samples, output_type)
        torch.testing.assert_close(prepare(list(images)), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(prepare(tuple(images)), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(prepare(images[0]), expected[:1], atol=1e-5, rtol=0)
    assert torch.equal(prepare(np.zeros(SIZE, np.uint8), 1), -torch.ones(1, 1, *SIZE))


def test_pictures_of_two_sizes_in_one_list_are_named():
    pictures = [PIL.Image.new("RGB", (10, 6)), PIL.Image.new("RGB", (7, 5))]
    with pytest.raises(ValueError, match="`image` holds images of several sizes .*: 5x7 and 6x10"):
        prepare(pictures)


@pytest.mark.parametrize(
    "images",
    [
        "cat.png",
        None,
        [],
        5,
        ["cat.png"],
        [None],
        np.array(["a"]),
        np.zeros((1, *SIZE, 3), np.complex64),
        np.zeros((1, 3, *SIZE)),
        torch.zeros(1, *SIZE, 3),
        torch.zeros(0, 3, *SIZE),
        torch.zeros(2, 1, 3, *SIZE),
        torch.zeros(1, 1, *SIZE),
        PIL.Image.new("RGB", (10, 7)),
    ],
)
def test_what_holds_no_images_is_named(images):
    with pytest.raises(ValueError, match=r"`image` must hold images of shape \(3, 6, 10\)") as error:
        prepare(images)
    assert "\n" not in str(error.value)


def test_the_data_have_a_range_of_their_own(tmp_path):
    pipe = make_pipeline(1, value_range=(np.float32(-1024), torch.tensor(3071)))
    assert pipe.config.value_range == [-1024.0, 3071.0]
    pipe.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    for each in (loaded, PFGMPPPipeline.from_pipe(pipe), PFGMPPPipeline(**pipe.components)):
        assert each.config.value_range == [-1024.0, 3071.0]
    few = {"num_inference_steps": 2, "batch_size": 2}
    latent = loaded(generator=generator(), output_type="latent", **few).images
    tensor = loaded(generator=generator(), output_type="pt", **few).images
    array = loaded(generator=generator(), output_type="np", **few).images
    pictures = loaded(generator=generator(), **few).images
    torch.testing.assert_close(tensor, -1024 + 4095 * (latent / 2 + 0.5).clamp(0, 1))
    np.testing.assert_array_equal(array[..., 0], tensor[:, 0].numpy())
    assert [picture.mode for picture in pictures] == ["I;16", "I;16"]
    for images in (tensor, array, pictures):
        kept = loaded(image=images, mask_image=torch.zeros(8, 8), output_type="latent", **few).images
        torch.testing.assert_close(kept, latent.clamp(-1, 1), atol=1e-4, rtol=0)
    hounsfield = np.full((1, 8, 8, 1), 3071, np.int16)
    assert torch.equal(loaded._prepare_images(hounsfield, "image"), torch.ones(1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"`image` must lie in \[-1024, 3071\] \(floats\)"):
        loaded(image=tensor + 5000)


def test_sixteen_bit_pictures_hold_the_datas_values_where_they_can():
    samples = make_samples(1)
    (picture, _) = convert_samples(samples, "pil", (0.0, 4095.0))
    assert picture.getextrema() == (0, 4095)
    assert prepare(picture, 1, (0.0, 4095.0)).max() == 1
    assert convert_samples(samples, "pil", (0.0, 255.0))[0].mode == "L"
    assert convert_samples(make_samples(3), "pil", (0.0, 65535.0))[0].mode == "RGB"


@pytest.mark.parametrize(
    "value_range", [(1, 0), (0, 0), (0,), (0, 1, 2), "01", 5, (0, np.nan), (0, np.inf), (None, 1)]
)
def test_bad_ranges_are_refused(value_range):
    with pytest.raises(ValueError, match=r"`value_range` must be \(low, high\) with low < high"):
        make_pipeline(value_range=value_range)


def test_pictures_need_at_most_four_channels():
    pipe = make_pipeline(5)
    with pytest.raises(ValueError, match="`output_type` must be one of .* for images of 5 channels"):
        pipe()
    assert pipe(num_inference_steps=1, output_type="np").images.shape == (1, 8, 8, 5)


# Masks


def test_masks_of_every_form_are_the_same_mask():
    image = torch.zeros(2, 3, *SIZE)
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[2:, 3:] = True
    picture = PIL.Image.fromarray(mask.numpy().astype(np.uint8) * 255)
    forms = [
        mask,
        mask.numpy(),
        mask.float(),
        mask.half(),
        mask.long(),  # zeros and ones
        mask.to(torch.uint8) * 255,
        mask.numpy().astype(np.uint16) * 65535,
        mask.numpy()[None, ..., None],
        mask[None, None].expand(2, 3, *SIZE),
        picture,
        picture.convert("RGB"),
        picture.convert("1"),
        [picture, picture],
        PIL.Image.fromarray(mask.numpy().astype(np.uint16) * 65535),
    ]
    for form in forms:
        prepared = prepare_mask(form, image, 2)
        assert torch.equal(prepared.expand(image.shape), mask.expand(image.shape))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(4, 4), "`mask_image` must be of size"),
        (torch.ones(3, 1, *SIZE), "`mask_image` holds 3 masks for a batch of 2"),
        (torch.full(SIZE, torch.nan), r"`mask_image` must lie in \[0, 1\]"),
        (torch.full(SIZE, -1.0), r"`mask_image` must lie in \[0, 1\]"),
        (torch.full(SIZE, 300), r"`mask_image` must lie in \[0, 255\]"),
        ("mask.png", "`mask_image` must be a mask of size"),
        ([], "`mask_image` must be of size"),
        (torch.ones(6), "`mask_image` must be a mask of size"),
    ],
)
def test_bad_masks_are_refused(mask, message):
    with pytest.raises(ValueError, match=message):
        prepare_mask(mask, torch.zeros(2, 3, *SIZE), 2)


def test_a_stack_of_grey_slices_is_a_batch():
    slices = np.arange(3 * 4 * 5, dtype=np.float32).reshape(3, 4, 5) / 60
    expected = prepare_images(slices[..., None], "image", 1, (4, 5), None)
    for stack in (slices, torch.from_numpy(slices), slices.astype(np.longdouble), list(slices)):
        torch.testing.assert_close(prepare_images(stack, "image", 1, (4, 5), None).float(), expected)
    assert prepare_images(slices[:1], "image", 1, (4, 5), None).shape == (1, 1, 4, 5)


@pytest.mark.parametrize("mask", [
    np.eye(4, dtype=">f4"),
    PIL.Image.fromarray(np.eye(4, dtype=np.int32) * 255),
    np.eye(4, dtype=np.longdouble),
])  # fmt: skip
def test_masks_are_read_as_images_are(mask):
    assert torch.equal(prepare_mask(mask, torch.zeros(1, 1, 4, 4), 1)[0, 0], torch.eye(4, dtype=torch.bool))
