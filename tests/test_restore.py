"""`pfgmpp restore`: files come back as what they were, with other pixels."""

import importlib.util
import io
import json
import logging
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from conftest import make_tiny_pipeline
from PIL import Image, ImageOps, PngImagePlugin
from pydicom.data import get_testdata_file
from pydicom.uid import ExplicitVRLittleEndian, RLELossless
from test_latents import make_kl, make_restorer
from test_restoration import make_pipeline

from pipeline_pfgmpp import PFGMPPRestorationPipeline
from pipeline_pfgmpp.commands import main
from pipeline_pfgmpp.data import image_files
from pipeline_pfgmpp.data.image_files import PictureFile, read_image_file
from pipeline_pfgmpp.generation import restoration
from pipeline_pfgmpp.generation.restoration import name_outputs
from pipeline_pfgmpp.images import Standardization
from pipeline_pfgmpp.pixels import read_picture


pytestmark = pytest.mark.usefixtures("one_thread")

# One call from the degraded image; with a blend of nothing the image itself comes out.
ONE_CALL = ["--num-inference-steps", "1", "--start-sigma", "0.5"]
UNCHANGED = [*ONE_CALL, "--blend", "0"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Returns the folder of a tiny model with the given options, made once."""
    folders = {}

    def get(**options):
        key = json.dumps(options)
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp("model")
            make_pipeline(**options).save_pretrained(folders[key])
        return str(folders[key])

    return get


def test_a_picture_comes_back_as_from_the_pipeline_whatever_its_size(tmp_path):
    """Its sides are no multiples of those that the autoencoder and the network take."""
    pipe = make_restorer(make_kl())
    pipe.save_pretrained(tmp_path / "model")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (18, 22, 3), dtype=np.uint8))
    picture.save(tmp_path / "picture.png")
    output = tmp_path / "out"
    assert run(tmp_path / "model", tmp_path / "picture.png", "--output", output, *ONE_CALL) == 0
    generator = torch.Generator().manual_seed(0)
    expected = pipe(picture, num_inference_steps=1, start_sigma=0.5, generator=generator).images[0]
    difference = np.asarray(Image.open(output / "picture.png"), int) - np.asarray(expected, int)
    assert abs(difference).max() <= 1  # different roundings


def test_values_outside_the_range_of_the_training_data_stay(models, tmp_path):
    values = np.zeros((8, 8), np.float32)
    values[2, 3:5] = (1300, 8000)  # metal
    values[5] = 1100  # noise
    np.save(tmp_path / "slice.npy", values)
    model = models(value_range=(-1000, 1000))
    assert run(model, tmp_path / "slice.npy", "--output", tmp_path / "out", *ONE_CALL) == 0
    restored = np.load(tmp_path / "out" / "slice.npy")
    assert restored[2, 3:5].tolist() == [1300, 8000]
    assert abs(restored).max(initial=0, where=values < 1300) <= 1000


def test_noise_beyond_white_does_not_stay_in_a_picture(grey_model, tmp_path):
    values = 1 + 0.2 * np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    np.save(tmp_path / "white.npy", values)
    assert run(grey_model, tmp_path / "white.npy", "--output", tmp_path / "out", *ONE_CALL) == 0
    assert np.load(tmp_path / "out" / "white.npy").max() <= 1


def test_values_in_other_units_are_refused(models, tmp_path, capsys):
    np.save(tmp_path / "slice.npy", np.full((8, 8), 20_000.0, np.float32))
    model = models(value_range=(-1000, 1000))
    assert run(model, tmp_path / "slice.npy", "--output", tmp_path / "out", *ONE_CALL) == 1
    assert "ranges from 20000 to 20000, but must lie in [-3000, 3000]" in capsys.readouterr().err


def test_long_integers_are_those_of_a_picture(grey_model, tmp_path):
    """NumPy makes them of anything, and the pipeline takes them so."""
    values = draw_bytes(8, 10)
    np.save(tmp_path / "a.npy", values)
    np.save(tmp_path / "b.npy", values.astype(np.int64))
    assert run(grey_model, tmp_path, "--output", tmp_path / "out", *ONE_CALL) == 0
    short, long = (np.load(tmp_path / "out" / name) for name in ("a.npy", "b.npy"))
    assert long.dtype == np.int64
    np.testing.assert_array_equal(long, short)


def test_a_model_of_fields_is_refused_in_one_sentence(tmp_path, capsys):
    make_pipeline(value_range=Standardization((0.0,), (1.0,))).save_pretrained(tmp_path / "model")
    np.save(tmp_path / "field.npy", np.zeros((8, 8), np.float32))
    assert run(tmp_path / "model", tmp_path / "field.npy", "--output", tmp_path / "out", *ONE_CALL) == 1
    assert "`value_range` must be (low, high) here, but is that of fields" in capsys.readouterr().err


def test_unsigned_integers_do_not_reach_negative_values(models, tmp_path, capsys):
    """A scanner's values plus 1024, as many files hold them, would be taken for others."""
    values = np.full((8, 8), 1024, np.uint16)
    np.save(tmp_path / "slice.npy", values)
    Image.fromarray(values).save(tmp_path / "slice.png")
    model = models(value_range=(-1000, 1000))
    for name in ("slice.npy", "slice.png"):
        assert run(model, tmp_path / name, "--output", tmp_path / "out", *ONE_CALL) == 1
        message = capsys.readouterr().err
        assert f"{name} holds unsigned integers, but the model restores values from -1000 to 1000" in message
    np.save(tmp_path / "signed.npy", (values - 1024).astype(np.int16))
    assert run(model, tmp_path / "signed.npy", "--output", tmp_path / "out", *ONE_CALL) == 0


@pytest.fixture
def grey_model(models):
    return models()


def run(*arguments):
    """Run `pfgmpp restore`; return its exit code."""
    try:
        main(["restore", *map(str, arguments)])
    except SystemExit as stop:
        return stop.code
    return 0


def draw_values(*shape, seed=0):
    return np.random.default_rng(seed).random(shape)


def draw_bytes(*shape, seed=0):
    return (draw_values(*shape, seed=seed) * 255).round().astype(np.uint8)


def read_png_chunks(path):
    data = path.read_bytes()
    chunks = []
    start = 8
    while start < len(data):
        length = int.from_bytes(data[start : start + 4], "big")
        chunks.append((data[start + 4 : start + 8], data[start + 8 : start + 8 + length]))
        start += 12 + length
    return chunks


# Pictures

# EXIF in which the orientation is 6 and a resolution is a text, which Pillow reads but cannot write.
TAGS = (
    struct.pack("<H", 2)
    + struct.pack("<HHIHH", 274, 3, 1, 6, 0)
    + struct.pack("<HHI4s", 282, 2, 4, b"72\0\0")
)
TAGS += bytes(4)


@pytest.mark.parametrize(
    ("mode", "channels", "dtype", "becomes"),
    [
        ("L", 1, np.uint8, "L"),
        ("RGB", 3, np.uint8, "RGB"),
        ("LA", 1, np.uint8, "LA"),
        ("RGBA", 3, np.uint8, "RGBA"),
        ("I;16", 1, np.uint16, "I;16"),
        ("1", 1, bool, "L"),
        ("P", 3, np.uint8, "RGB"),
    ],
)
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_picture_keeps_its_mode_and_depth(mode, channels, dtype, becomes, suffix, models, tmp_path):
    model = models(in_channels=channels, out_channels=channels, condition_channels=channels)
    values = draw_values(9, 12, len(Image.new(mode, (1, 1)).getbands()))
    if mode == "1":
        picture = Image.fromarray(values[..., 0] > 0.5)
    elif mode == "I;16":
        picture = Image.fromarray((values[..., 0] * 65535).astype(np.uint16))
    elif mode == "P":
        picture = Image.fromarray(draw_bytes(9, 12, 3)).quantize(7)
    else:
        picture = Image.fromarray(draw_bytes(*values.shape).squeeze())
    assert picture.mode == mode
    source = tmp_path / f"a{suffix}"
    picture.save(source)
    assert run(model, source, "--output", tmp_path / "same", *UNCHANGED) == 0
    assert run(model, source, "--output", tmp_path / "out", *ONE_CALL) == 0
    with (
        Image.open(tmp_path / "same" / source.name) as same,
        Image.open(tmp_path / "out" / source.name) as out,
    ):
        assert same.mode == out.mode == becomes
        assert same.format == out.format == Image.open(source).format
        expected = np.array(picture.convert(becomes) if mode in ("1", "P") else picture)
        np.testing.assert_array_equal(np.array(same), expected)
        assert (np.array(out) != expected).mean() > 0.3
        if becomes in ("LA", "RGBA"):
            np.testing.assert_array_equal(np.array(out)[..., -1], expected[..., -1])


def test_the_pixels_are_those_of_the_pipeline(tmp_path, models):
    model = models(solver_type="euler")
    picture = Image.fromarray(draw_bytes(9, 12))
    picture.save(tmp_path / "a.png")
    assert run(model, tmp_path / "a.png", "--output", tmp_path / "out", "--num-inference-steps", "3") == 0
    pipe = make_pipeline("euler")
    (expected,) = pipe(picture, 3, generator=[torch.Generator().manual_seed(0)]).images
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "out" / "a.png")), np.array(expected))


def test_png_keeps_text_profile_resolution_and_time(grey_model, tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("Title", "a slice", zip=True)
    info.add_itxt("Comment", "dose: ½", lang="en")
    info.add(b"gAMA", struct.pack(">I", 45455))
    info.add(b"tIME", bytes(7))
    source = tmp_path / "a.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.fromarray(draw_bytes(8, 10))
    picture.save(source, pnginfo=info, dpi=(300, 300), icc_profile=b"profile", exif=exif)
    assert run(grey_model, source, "--output", tmp_path / "out", *ONE_CALL) == 0
    kept = dict(read_png_chunks(tmp_path / "out" / "a.png"))
    for name, data in read_png_chunks(source):
        if name not in (b"IDAT", b"IEND"):
            assert kept[name] == data
    with Image.open(tmp_path / "out" / "a.png") as restored:
        assert restored.text == {"Title": "a slice", "Comment": "dose: ½"}
        assert restored.info["icc_profile"] == b"profile"
        assert restored.info["dpi"] == pytest.approx((300, 300), abs=0.1)
        assert restored.getexif()[0x0112] == 6


@pytest.mark.parametrize("name", ["a.jpg", "b.JPEG", "c"])
def test_a_jpeg_picture_becomes_an_upright_png(name, grey_model, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    exif[0x010E] = "a slice"
    picture = Image.fromarray(np.linspace(0, 255, 80).round().astype(np.uint8).reshape(8, 10))
    picture.save(tmp_path / name, "JPEG", exif=exif, dpi=(300, 300), icc_profile=b"profile", quality=95)
    assert run(grey_model, tmp_path / name, "--output", tmp_path / "out", *ONE_CALL) == 0
    with Image.open(tmp_path / name) as source:
        ImageOps.exif_transpose(source).save(tmp_path / "upright.png")
    assert run(grey_model, tmp_path / "upright.png", "--output", tmp_path / "out", *ONE_CALL) == 0
    with (
        Image.open(tmp_path / "out" / Path(name).with_suffix(".png")) as restored,
        Image.open(tmp_path / "out" / "upright.png") as expected,
    ):
        assert (restored.format, restored.size, restored.mode) == ("PNG", (8, 10), "L")
        np.testing.assert_array_equal(np.array(restored), np.array(expected))
        assert dict(restored.getexif()) == {0x010E: "a slice"}
        assert restored.info["icc_profile"] == b"profile"
        assert restored.info["dpi"] == pytest.approx((300, 300), abs=0.1)


def test_odd_tags_and_names_of_jpeg_pictures_do_no_harm(grey_model, tmp_path):
    data = save(Image.fromarray(draw_bytes(8, 10)).save, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0" + TAGS)
    for name in ("shot 10.15.30", "shot 10.15.31"):
        (tmp_path / name).write_bytes(data)
    assert run(grey_model, tmp_path, "--output", tmp_path / "out", *ONE_CALL) == 0
    names = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert names == ["shot 10.15.30.png", "shot 10.15.31.png"]
    with Image.open(tmp_path / "out" / names[0]) as restored:
        assert restored.size == (8, 10)  # turned, although its tags cannot be kept


def test_a_turned_picture_with_odd_tags_goes_into_a_pipeline():
    data = save(Image.fromarray(draw_bytes(8, 10)).save, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0" + TAGS)
    assert read_picture(Image.open(io.BytesIO(data))).values.shape == (10, 8, 1)


def test_a_jpeg_picture_and_its_previews_are_one(grey_model, tmp_path):
    picture = Image.fromarray(draw_bytes(8, 10))
    picture.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[picture.resize((5, 4))])
    assert run(grey_model, tmp_path, "--output", tmp_path / "out", *ONE_CALL) == 0
    with Image.open(tmp_path / "out" / "a.png") as restored:
        assert restored.size == (10, 8)
    picture.save(tmp_path / "a.png")
    assert run(grey_model, tmp_path, "--output", tmp_path / "new", *ONE_CALL) == 1


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_turned_tiff_picture_is_not_scrambled(orientation, grey_model, tmp_path):
    picture = Image.fromarray(draw_bytes(8, 10))
    picture.save(tmp_path / "a.tif", tiffinfo={274: orientation, 270: "µm Müller".encode()})
    turn = {1: None, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_270}[orientation]
    (picture.transpose(turn) if turn else picture).save(tmp_path / "upright.png")
    assert run(grey_model, tmp_path, "--output", tmp_path / "out", *ONE_CALL) == 0
    with (
        Image.open(tmp_path / "out" / "a.tif") as restored,
        Image.open(tmp_path / "out" / "upright.png") as same,
    ):
        assert restored.tag_v2[270].encode("latin-1").decode() == "µm Müller"
        np.testing.assert_array_equal(np.array(restored), np.array(same))


def test_files_that_need_more_memory_than_there_is_are_named(grey_model, tmp_path, capsys, monkeypatch):
    for name, width in (("a", 10), ("b", 12)):
        Image.fromarray(draw_bytes(8, width)).save(tmp_path / f"{name}.png")
    call = PFGMPPRestorationPipeline.__call__

    def fail(pipe, image, *args, **options):
        if image.shape[2] == 10:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return call(pipe, image, *args, **options)

    monkeypatch.setattr(PFGMPPRestorationPipeline, "__call__", fail)
    assert run(grey_model, tmp_path, "--output", tmp_path / "out", *ONE_CALL) == 1
    assert "a.png needs more memory than there is: use smaller tiles." in capsys.readouterr().err
    assert (tmp_path / "out" / "b.png").exists()


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate"])
def test_tiff_keeps_its_tags(compression, grey_model, tmp_path):
    source = tmp_path / "a.tif"
    tags = {270: "a slice", 305: "a scanner", 282: 300.0, 283: 300.0, 296: 2}
    Image.fromarray(draw_bytes(8, 10)).save(source, tiffinfo=tags, compression=compression)
    assert run(grey_model, source, "--output", tmp_path / "out", *ONE_CALL) == 0
    with Image.open(tmp_path / "out" / "a.tif") as restored:
        assert {tag: restored.tag_v2[tag] for tag in tags} == tags
        assert restored.info["compression"] == compression


def test_tiff_of_floats_is_in_the_range_of_the_model(models, tmp_path):
    model = models(value_range=(-1024, 3071))
    source = tmp_path / "a.tif"
    values = (draw_values(8, 10) * 4095 - 1024).astype(np.float32)
    Image.fromarray(values).save(source)
    assert run(model, source, "--output", tmp_path / "out", *UNCHANGED) == 0
    with Image.open(tmp_path / "out" / "a.tif") as restored:
        assert restored.mode == "F"
        np.testing.assert_allclose(np.array(restored), values, atol=1e-3)


def test_colouring_makes_colours(models, tmp_path, capsys):
    model = models(in_channels=3, out_channels=3)
    Image.fromarray(draw_bytes(8, 10)).save(tmp_path / "a.png")
    np.save(tmp_path / "b.npy", draw_values(8, 10))
    Image.fromarray((draw_values(8, 10) * 65535).astype(np.uint16)).save(tmp_path / "deep.png")
    names = [tmp_path / name for name in ("a.png", "b.npy", "deep.png")]
    assert run(model, *names, "--output", tmp_path / "out", "--num-inference-steps", "1") == 1
    assert Image.open(tmp_path / "out" / "a.png").mode == "RGB"
    assert np.load(tmp_path / "out" / "b.npy").shape == (8, 10, 3)
    assert "deep.png cannot hold a restored image, which has 3 channels" in capsys.readouterr().err


# Arrays


@pytest.mark.parametrize(
    ("dtype", "value_range", "low", "high"),
    [
        ("uint8", None, 0, 255),
        ("uint8", (0, 4095), 0, 255),
        ("uint16", None, 0, 65535),
        (">u2", None, 0, 65535),
        ("uint16", (0, 4095), 0, 4095),
        ("int8", None, -128, 127),
        ("int16", (-1024, 3071), -1024, 3071),
        (">i2", None, -32768, 32767),
        ("int64", (0, 100), 0, 100),
        ("float16", None, 0, 1),
        ("float32", (-1024, 3071), -1024, 3071),
        (">f8", (0, 1e-3), 0, 1e-3),
    ],
)
@pytest.mark.parametrize("shape", [(8, 10), (1, 8, 10), (8, 10, 1)])
def test_an_array_keeps_its_type_and_shape(dtype, value_range, low, high, shape, models, tmp_path):
    model = models(value_range=value_range)
    values = low + (high - low) * draw_values(*shape)
    if np.dtype(dtype).kind != "f":
        values = values.round()
    values = values.astype(dtype)
    np.save(tmp_path / "a.npy", values)
    assert run(model, tmp_path / "a.npy", "--output", tmp_path / "same", *UNCHANGED) == 0
    assert run(model, tmp_path / "a.npy", "--output", tmp_path / "out", *ONE_CALL) == 0
    same = np.load(tmp_path / "same" / "a.npy")
    out = np.load(tmp_path / "out" / "a.npy")
    assert same.dtype == out.dtype == values.dtype
    assert same.shape == out.shape == shape
    if values.dtype.kind == "f":
        np.testing.assert_allclose(same.astype(float), values.astype(float), rtol=0, atol=1e-3 * (high - low))
    else:
        np.testing.assert_array_equal(same, values)
    assert abs(out.astype(float) - values.astype(float)).max() > 0.01 * (high - low)


def test_three_channels_first_or_last(models, tmp_path):
    model = models(in_channels=3, out_channels=3, condition_channels=3)
    values = draw_bytes(8, 10, 3)
    np.save(tmp_path / "last.npy", values)
    np.save(tmp_path / "first.npy", np.moveaxis(values, -1, 0))
    names = [tmp_path / "last.npy", tmp_path / "first.npy"]
    assert run(model, *names, "--output", tmp_path / "out", *ONE_CALL) == 0
    last, first = (np.load(tmp_path / "out" / path.name) for path in names)
    np.testing.assert_array_equal(np.moveaxis(last, -1, 0), first)


# DICOM


def read_dicom(name="CT_small.dcm"):
    return pydicom.dcmread(get_testdata_file(name))


def list_elements(dataset):
    """The elements of a data set that restoration leaves alone."""
    changed = {"PixelData", "SOPInstanceUID", "ImageType", "DerivationDescription", "SourceImageSequence"}
    changed |= {"SmallestImagePixelValue", "LargestImagePixelValue"}
    return {element.tag: element.value for element in dataset if element.keyword not in changed}


def test_a_ct_slice_comes_back_as_a_derived_one(models, tmp_path):
    model = models(value_range=(-1024, 3071))
    source = get_testdata_file("CT_small.dcm")
    assert run(model, source, "--output", tmp_path / "out", *ONE_CALL) == 0
    original = read_dicom()
    restored = pydicom.dcmread(tmp_path / "out" / "CT_small.dcm")
    assert list_elements(restored) == list_elements(original)
    assert restored.pixel_array.dtype == original.pixel_array.dtype
    assert restored.pixel_array.shape == (128, 128)
    assert restored.SOPInstanceUID != original.SOPInstanceUID
    assert restored.SOPInstanceUID == restored.file_meta.MediaStorageSOPInstanceUID
    assert restored.SourceImageSequence[0].ReferencedSOPInstanceUID == original.SOPInstanceUID
    assert restored.ImageType == ["DERIVED", "PRIMARY", "AXIAL"]
    assert restored.DerivationDescription.startswith("Restored by PFGM++")
    assert restored.file_meta.TransferSyntaxUID == original.file_meta.TransferSyntaxUID
    # The same in Hounsfield units, in and out, by the pipeline itself.
    pipe = make_pipeline(value_range=(-1024, 3071))
    units = original.pixel_array.astype(np.float32)[..., None] * 1.0 - 1024.0
    expected = pipe(units, 1, start_sigma=0.5, output_type="np").images[0, ..., 0]
    difference = restored.pixel_array - 1024.0 - expected
    assert abs(difference).max() <= 0.51


@pytest.mark.parametrize("name", ["MR_small", "MR_small_implicit", "MR_small_bigendian", "MR_small_RLE"])
@pytest.mark.parametrize("slope", ["0.5", "-2"])
def test_slope_padding_and_encoding_are_respected(name, slope, models, tmp_path):
    """With a blend of nothing the stored values come back; those of the padding always do."""
    dataset = read_dicom(f"{name}.dcm")
    stored = dataset.pixel_array.copy()
    dataset.RescaleSlope = slope
    dataset.RescaleIntercept = "100"
    dataset.add_new("PixelPaddingValue", "SS", int(stored[0, 0]))
    dataset.add_new("SmallestImagePixelValue", "SS", 5)
    dataset.save_as(tmp_path / "a.dcm")
    low, high = sorted(float(slope) * bound + 100 for bound in (0, 4095))
    model = models(value_range=(low, high))
    assert run(model, tmp_path / "a.dcm", "--output", tmp_path / "same", *UNCHANGED) == 0
    same = pydicom.dcmread(tmp_path / "same" / "a.dcm")
    np.testing.assert_array_equal(same.pixel_array, stored)
    assert same.SmallestImagePixelValue == stored.min()
    syntax = dataset.file_meta.TransferSyntaxUID
    assert same.file_meta.TransferSyntaxUID == (ExplicitVRLittleEndian if syntax == RLELossless else syntax)
    assert run(model, tmp_path / "a.dcm", "--output", tmp_path / "out", *ONE_CALL) == 0
    out = pydicom.dcmread(tmp_path / "out" / "a.dcm").pixel_array
    is_padding = stored == stored[0, 0]
    np.testing.assert_array_equal(out[is_padding], stored[is_padding])
    assert (out[~is_padding] != stored[~is_padding]).mean() > 0.5


def test_without_a_range_a_slice_is_in_the_range_of_its_depth(grey_model, tmp_path):
    dataset = read_dicom("MR_small.dcm")
    dataset.save_as(tmp_path / "a")  # slices often have no suffix
    assert run(grey_model, tmp_path / "a", "--output", tmp_path / "out", *UNCHANGED) == 0
    same = pydicom.dcmread(tmp_path / "out" / "a")
    np.testing.assert_array_equal(same.pixel_array, dataset.pixel_array)
    bits = dataset.BitsStored - 1
    assert read_image_file(tmp_path / "a").choose_range(None) == (-(2**bits), 2**bits - 1)


def test_derived_slices_have_reproducible_instances(models, tmp_path):
    model = models(value_range=(-1024, 3071))
    source = get_testdata_file("CT_small.dcm")
    instances = {}
    for name, options in (("a", []), ("b", []), ("c", ["--blend", "0.5"])):
        assert run(model, source, "--output", tmp_path / name, *ONE_CALL, *options) == 0
        instances[name] = pydicom.dcmread(tmp_path / name / "CT_small.dcm").SOPInstanceUID
    assert instances["a"] == instances["b"] != instances["c"]
    options = ["--num-inference-steps", "1", "--num-samples", "2"]
    assert run(model, source, "--output", tmp_path / "many", *options) == 0
    many = [pydicom.dcmread(path).SOPInstanceUID for path in sorted((tmp_path / "many").glob("*.dcm"))]
    assert len(set(many)) == 3


def test_nothing_that_identifies_a_patient_is_printed_or_logged(models, tmp_path, capfd, caplog):
    """Neither when it works nor when it fails, nor in the record."""
    caplog.set_level(logging.DEBUG)
    folder = tmp_path / "in"
    folder.mkdir()
    good = read_dicom()
    with pydicom.config.disable_value_validation():  # pydicom warns of these
        good.PatientName = "SECRET^PERSON"
        good.PatientID = "SECRET" + "0" * 80
        good.PatientBirthDate = "SECRET"
    good.save_as(folder / "good.dcm")
    (folder / "short.dcm").write_bytes((folder / "good.dcm").read_bytes()[:-9000])
    del good.PixelData
    good.save_as(folder / "report.dcm")
    good.add_new("PixelData", "OW", b"\0" * 128**2 * 2)
    good.Rows = 3
    good.save_as(folder / "rows.dcm")
    model = models(value_range=(-1024, 3071))
    capfd.readouterr()
    caplog.clear()
    assert run(model, folder, "--output", tmp_path / "out", *ONE_CALL) == 1
    seen = capfd.readouterr()
    record = (tmp_path / "out" / "settings.json").read_text()
    assert "SECRET" not in seen.out + seen.err + caplog.text + record
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["good.dcm", "settings.json"]
    assert pydicom.dcmread(tmp_path / "out" / "good.dcm").PatientName == "SECRET^PERSON"


# Samples, folders and resuming


def test_samples_come_with_their_mean_and_standard_deviation(models, tmp_path):
    model = models(value_range=(-1024, 3071))
    values = (draw_values(8, 10) * 4095 - 1024).astype(np.float32)
    np.save(tmp_path / "a.npy", values)
    options = ["--num-inference-steps", "2", "--num-samples", "3", "--seed", "5"]
    for batch_size in (1, 2, 8):
        output = tmp_path / f"out{batch_size}"
        assert run(model, tmp_path / "a.npy", "--output", output, *options, "--batch-size", batch_size) == 0
        found = {path.stem.removeprefix("a-"): np.load(path) for path in output.glob("*.npy")}
        assert set(found) == {"1", "2", "3", "mean", "std"}
        samples = np.stack([found[key] for key in "123"]).astype(float)
        np.testing.assert_allclose(found["mean"], samples.mean(0), rtol=1e-5, atol=1e-2)
        np.testing.assert_allclose(found["std"], samples.std(0, ddof=1), rtol=1e-5, atol=1e-2)
        assert found["std"].max() > 1
    second = make_pipeline(value_range=(-1024, 3071))(
        values[..., None], 2, generator=[torch.Generator().manual_seed(6)], output_type="np"
    ).images
    np.testing.assert_allclose(found["2"], second[0, ..., 0], rtol=1e-4, atol=0.1)


def test_a_file_is_restored_as_if_it_were_alone(grey_model, tmp_path):
    folder = tmp_path / "in"
    (folder / "deeper").mkdir(parents=True)
    for index, name in enumerate(("a.png", "b.png", "deeper/a.png", "c.png")):
        Image.fromarray(draw_bytes(8, 10 if index < 3 else 12, seed=index)).save(folder / name)
    (folder / "README.txt").write_text("none of these")
    (folder / ".hidden.png").write_bytes((folder / "a.png").read_bytes())
    options = ["--num-inference-steps", "2"]
    assert run(grey_model, folder, "--output", tmp_path / "all", *options, "--batch-size", "3") == 0
    written = sorted(
        path.relative_to(tmp_path / "all").as_posix() for path in (tmp_path / "all").rglob("*.*")
    )
    assert written == ["a.png", "b.png", "c.png", "deeper/a.png", "settings.json"]
    assert run(grey_model, folder / "deeper" / "a.png", "--output", tmp_path / "one", *options) == 0
    alone, together = (np.array(Image.open(tmp_path / path)) for path in ("one/a.png", "all/deeper/a.png"))
    assert abs(alone.astype(int) - together).max() <= 1


def test_interrupted_runs_resume(grey_model, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "in"
    folder.mkdir()
    for index in range(3):
        Image.fromarray(draw_bytes(8, 10, seed=index)).save(folder / f"{index}.png")
    output = folder / "out"  # which is not searched when it goes on
    assert run(grey_model, folder, "--output", output, *ONE_CALL) == 0
    expected = {path.name: path.read_bytes() for path in output.iterdir()}
    (output / "1.png").unlink()
    os.utime(output / "0.png", ns=(1, 1))
    assert run(grey_model, folder, "--output", output, *ONE_CALL) == 0
    assert (output / "0.png").stat().st_mtime_ns == 1  # left alone
    assert {path.name: path.read_bytes() for path in output.iterdir()} == expected
    capsys.readouterr()

    assert run(grey_model, folder, "--output", output, *ONE_CALL, "--blend", "0.5") == 1
    assert (
        "holds files restored with other settings (blend is 1.0 there and 0.5 here)"
        in capsys.readouterr().err
    )
    Image.fromarray(draw_bytes(8, 10, seed=9)).save(folder / "1.png")
    assert run(grey_model, folder, "--output", output, *ONE_CALL) == 1
    assert "1.png was restored from another file; choose another output." in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in output.iterdir()} == expected
    (output / "settings.json").write_text("[]")
    assert run(grey_model, folder, "--output", output, *ONE_CALL) == 1
    assert "is not a record of `pfgmpp restore`" in capsys.readouterr().err


def test_a_run_that_stops_between_files_keeps_those_before(grey_model, tmp_path, monkeypatch):
    for index in range(2):
        Image.fromarray(draw_bytes(8, 10, seed=index)).save(tmp_path / f"{index}.png")
    sources = [tmp_path / "0.png", tmp_path / "1.png"]
    save = Image.Image.save
    written = []

    def fail_second(image, *args, **kwargs):
        written.append(image)
        if len(written) == 2:
            raise KeyboardInterrupt
        save(image, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", fail_second)
        assert run(grey_model, *sources, "--output", tmp_path / "out", *ONE_CALL) == 130
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.png", "settings.json"]
    assert run(grey_model, *sources, "--output", tmp_path / "out", *ONE_CALL) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.png", "1.png", "settings.json"]


# Bad input


def make_png_header(width, height, depth=8, colour=0):
    """A PNG file that states a size, with next to no data."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def save(function, *args, **kwargs):
    buffer = io.BytesIO()
    function(buffer, *args, **kwargs)
    return buffer.getvalue()


def make_dicom(**changes):
    dataset = read_dicom()
    for name, value in changes.items():
        setattr(dataset, name, value)
        if value is None:
            delattr(dataset, name)
    return save(dataset.save_as)


def make_bad_files():
    picture = Image.fromarray(draw_bytes(8, 10))
    png = save(picture.save, "PNG")
    array = save(np.save, draw_values(8, 10))
    huge_array = array.replace(b"(8, 10)", b"(99999, 99999)").replace(b" " * 8 + b"\n", b"\n\n"[:1], 1)
    frames = [Image.fromarray(draw_bytes(8, 10, seed=index)) for index in range(2)]
    compressed = read_dicom()
    compressed.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.80"  # JPEG-LS, for which there is no plugin
    compressed.PixelData = pydicom.encaps.encapsulate([b"\0" * 10])
    compressed["PixelData"].is_undefined_length = True
    damaged = "cannot be read as {}: it is damaged or cut off."
    return {
        "empty.png": (b"", "is not a PNG, TIFF, JPEG, .npy or DICOM file."),
        "text.png": (b"hello", "is not a PNG, TIFF, JPEG, .npy or DICOM file."),
        "words.gif": (save(picture.save, "GIF"), "is not a PNG, TIFF, JPEG, .npy or DICOM file."),
        "half.jpg": (save(picture.save, "JPEG")[:-30], damaged.format("JPEG")),
        "huge.jpg": (
            save(picture.save, "JPEG").replace(b"\0\x08\0\x0a\x01", b"\xff\xff\xff\xff\x01", 1),
            "it states more than 134,217,728 pixels.",
        ),
        "inks.jpg": (
            save(picture.convert("CMYK").save, "JPEG"),
            "it is of mode CMYK, but must be grey or RGB.",
        ),
        "cut.png": (png[:-30], damaged.format("PNG")),
        "header.png": (png[:20], damaged.format("PNG")),
        "flipped.png": (png[:50] + bytes([png[50] ^ 255]) + png[51:], damaged.format("PNG")),
        "bomb.png": (make_png_header(30_000, 30_000), "it states more than 134,217,728 pixels."),
        "large.png": (make_png_header(12_000, 12_000), "it states more than 134,217,728 pixels."),
        "none.png": (make_png_header(0, 10), damaged.format("PNG")),
        "deep.png": (
            save(Image.fromarray(draw_bytes(8, 10, 3)).save, "PNG").replace(b"\x08\x02\0", b"\x10\x02\0", 1),
            "",
        ),
        "animated.png": (
            save(frames[0].save, "PNG", save_all=True, append_images=frames[1:]),
            "it holds several pictures, but must hold one.",
        ),
        "colour.png": (
            save(Image.fromarray(draw_bytes(8, 10, 3)).save, "PNG"),
            "has 3 channels, but the model restores images of 1.",
        ),
        "pages.tif": (
            save(frames[0].save, "TIFF", save_all=True, append_images=frames[1:]),
            "it holds several pictures, but must hold one.",
        ),
        "cmyk.tif": (
            save(picture.convert("CMYK").save, "TIFF"),
            "its pixels must be uint8 (grey or RGB), uint16 (grey) or float32 (grey); store others as .npy.",
        ),
        "int.tif": (
            save(Image.fromarray(np.zeros((8, 10), np.int32)).save, "TIFF"),
            "its pixels must be uint8 (grey or RGB), uint16 (grey) or float32 (grey); store others as .npy.",
        ),
        "white.tif": (
            save(Image.fromarray(np.zeros((8, 10), np.uint16)).save, "TIFF").replace(
                b"\x06\x01\x03\0\x01\0\0\0\x01", b"\x06\x01\x03\0\x01\0\0\0\0", 1
            ),
            "its 0 is white, which is read for 8 bits alone; store it with black at 0.",
        ),
        "cut.tif": (save(picture.save, "TIFF")[:-20], damaged.format("TIFF")),
        "nan.tif": (
            save(Image.fromarray(np.full((8, 10), np.nan, np.float32)).save, "TIFF"),
            "it holds NaN or infinities.",
        ),
        "nan.npy": (save(np.save, np.full((8, 10), np.nan)), "it holds NaN or infinities."),
        "none.npy": (save(np.save, np.zeros((0, 10))), "it holds no pixels."),
        "cut.npy": (array[:-8], damaged.format(".npy")),
        "huge.npy": (huge_array, damaged.format(".npy")),
        "pickle.npy": (save(np.save, np.array([{}], object), allow_pickle=True), damaged.format(".npy")),
        "words.npy": (save(np.save, np.array(["a"])), "it must hold integers or floats."),
        "bool.npy": (save(np.save, np.zeros((8, 10), bool)), "it must hold integers or floats."),
        "complex.npy": (save(np.save, np.zeros((8, 10), complex)), "it must hold integers or floats."),
        "stack.npy": (
            save(np.save, np.zeros((9, 8, 10))),
            "it is of shape (9, 8, 10), but must be of (H, W),",
        ),
        "three.npy": (
            save(np.save, np.zeros((8, 10, 3))),
            "has 3 channels, but the model restores images of 1.",
        ),
        "range.npy": (save(np.save, np.full((8, 10), 9.0)), "ranges from 9 to 9, but must lie in [-1, 2]."),
        "report.dcm": (make_dicom(PixelData=None), "it holds no pixels."),
        "cut.dcm": (make_dicom()[:-9000], damaged.format("DICOM")),
        "rows.dcm": (make_dicom(Rows=200), damaged.format("DICOM")),
        "bomb.dcm": (make_dicom(Rows=65535, Columns=65535), "it states more than 134,217,728 pixels."),
        "frames.dcm": (make_dicom(NumberOfFrames=2), "it holds several images, but must hold one."),
        "colours.dcm": (make_dicom(PhotometricInterpretation="RGB"), "it must be grey, but has colours."),
        "jpeg.dcm": (save(compressed.save_as), "its compression needs a plugin of pydicom;"),
        "unnamed.dcm": (make_dicom(SOPInstanceUID=None), "it does not say which instance it is"),
        "short.dcm": (make_dicom()[:132], "it holds no pixels."),
    }


BAD_FILES = make_bad_files()
BAD_FILES["deep.png"] = (BAD_FILES["deep.png"][0], "cannot be read as PNG: it is damaged or cut off.")


def test_files_that_cannot_be_restored_get_a_sentence_each_and_the_others_go_on(grey_model, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(draw_bytes(8, 10)).save(folder / "good.png")
    sources = [folder / name for name in [*BAD_FILES, "good.png"]]
    for name, (data, _) in BAD_FILES.items():
        (folder / name).write_bytes(data)
    assert run(grey_model, *sources, "--output", tmp_path / "out", *ONE_CALL) == 1
    lines = [line.rpartition("\r")[2] for line in capsys.readouterr().err.splitlines()]
    told = [line for line in lines if line.startswith("pfgmpp: ")]
    for name, (_, message) in BAD_FILES.items():
        found = [line for line in told if f"/{name} " in line]
        assert len(found) == 1, name
        assert message in found[0], found
        assert found[0].endswith("."), found
    assert told[-1] == f"pfgmpp: {len(BAD_FILES)} of {len(sources)} files could not be restored; see above."
    assert len(told) == len(BAD_FILES) + 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["good.png", "settings.json"]


def test_colours_of_16_bits_are_refused_since_pillow_cuts_them(models, tmp_path, capsys):
    model = models(in_channels=3, out_channels=3, condition_channels=3)
    rows = b"".join(b"\0" + bytes(range(60)) for _ in range(8))
    data = make_png_header(10, 8, depth=16, colour=2)
    start = data.index(b"IDAT") - 4
    body = zlib.compress(rows)
    chunk = struct.pack(">I", len(body)) + b"IDAT" + body + struct.pack(">I", zlib.crc32(b"IDAT" + body))
    end = data.index(b"IEND") - 4
    (tmp_path / "a.png").write_bytes(data[:start] + chunk + data[end:])
    assert run(model, tmp_path / "a.png", "--output", tmp_path / "out", *ONE_CALL) == 1
    assert "16 bits are read in grey only; store colours of 16 bits as .npy." in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_damaged_weights_leave_nothing_behind(tmp_path, capsys):
    pipe = make_pipeline()
    for parameter in pipe.unet.parameters():
        torch.nn.init.constant_(parameter, 3e38)
    pipe.save_pretrained(tmp_path / "model")
    Image.fromarray(draw_bytes(8, 10)).save(tmp_path / "a.png")
    assert run(tmp_path / "model", tmp_path / "a.png", "--output", tmp_path / "out", *ONE_CALL) == 1
    assert (
        "a.png became NaN or infinite when it was restored, so it is not stored." in capsys.readouterr().err
    )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["settings.json"]


def test_the_least_value_of_a_negative_is_white(grey_model, tmp_path):
    dataset = pydicom.dcmread(io.BytesIO(make_dicom(PhotometricInterpretation="MONOCHROME1")))
    dataset.save_as(tmp_path / "negative.dcm")
    negative = read_image_file(tmp_path / "negative.dcm")
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.save_as(tmp_path / "positive.dcm")
    positive = read_image_file(tmp_path / "positive.dcm")
    assert negative.choose_range(None) == positive.choose_range(None)[::-1]
    assert negative.choose_range((-1000, 1000)) == (-1000, 1000)
    assert run(grey_model, tmp_path / "negative.dcm", "--output", tmp_path / "out", *UNCHANGED) == 0
    np.testing.assert_array_equal(
        pydicom.dcmread(tmp_path / "out" / "negative.dcm").pixel_array, dataset.pixel_array
    )


def test_no_copy_of_the_old_picture_is_left(grey_model, tmp_path):
    dataset = pydicom.dcmread(io.BytesIO(make_dicom()))
    dataset.IconImageSequence = [pydicom.Dataset()]
    dataset.save_as(tmp_path / "a.dcm")
    Image.fromarray(draw_bytes(8, 10)).save(tmp_path / "a.tif", tiffinfo={37724: b"layers", 270: "a slice"})
    assert run(grey_model, tmp_path, "--output", tmp_path / "out", *ONE_CALL) == 0
    assert "IconImageSequence" not in pydicom.dcmread(tmp_path / "out" / "a.dcm")
    with Image.open(tmp_path / "out" / "a.tif") as restored:
        assert 37724 not in restored.tag_v2
        assert restored.tag_v2[270] == "a slice"


def test_names_with_points_stay_apart():
    for name in ("1.2.840.1", "1.2.840.2"):
        assert name_outputs(name, 2) == {"1": f"{name}-1", "2": f"{name}-2", "mean": f"{name}-mean",
                                         "std": f"{name}-std.npy"}  # fmt: skip
    assert name_outputs("in/a.tif", 2)["2"] == "in/a-2.tif"


def test_a_file_that_cannot_be_read_or_written_does_not_stop_the_others(
    grey_model, tmp_path, capsys, monkeypatch
):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.png", "b.png", "c.png"):
        Image.fromarray(draw_bytes(8, 10)).save(folder / name)
    identify = restoration.identify_file
    write = PictureFile.write

    def refuse(path):
        if path.name == "a.png":
            raise PermissionError(13, "Permission denied", str(path))
        return identify(path)

    def fail(image, path, values, identity):
        if ".b.png" in path.name:
            raise OSError(36, "File name too long")
        write(image, path, values, identity)

    monkeypatch.setattr(restoration, "identify_file", refuse)
    monkeypatch.setattr(image_files, "identify_file", refuse)
    monkeypatch.setattr(PictureFile, "write", fail)
    assert run(grey_model, folder, "--output", tmp_path / "out", *ONE_CALL) == 1
    errors = capsys.readouterr().err
    assert "Permission denied" in errors
    assert "b.png, restored, cannot be written: File name too long." in errors
    assert "2 of 3 files could not be restored" in errors
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["c.png", "settings.json"]


def test_dicom_without_pydicom_names_the_extra(models, tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *args: None if name == "pydicom" else find(name, *args)
    )
    source = get_testdata_file("CT_small.dcm")
    assert run(models(), source, "--output", tmp_path / "out", *ONE_CALL) == 1
    message = "CT_small.dcm is a DICOM file, which needs pydicom: pip install 'pipeline-pfgmpp[dicom]'."
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--blend", "2"], 2, "--blend: must be a number from 0 to 1, but is '2'"),
        (["--start-sigma", "0"], 2, "--start-sigma: must be a positive number, but is '0'"),
        (["--start-sigma", "100"], 1, "`start_sigma` must lie above 0.002 and up to 80"),
        (["--tile-size", "7"], 1, "`tile_size` must be a multiple of 2 and at least 4 for this network"),
        (["--num-samples", "0"], 2, "--num-samples: must be a whole number from 1 to 10,000"),
        ([*ONE_CALL, "--num-samples", "2"], 1, "--num-samples must be 1 with --start-sigma: 1 steps of heun"),
        (["--D", "16"], 1, "--D is 16, but this network was trained at D = 128 only"),
        (["--class-label", "3"], 1, "--class-label is '3', but this model is unconditional"),
        (["--guidance-scale", "-1"], 2, "a number from 0 to 100"),
        (["--variant", "fp16"], 1, "has no variants of its weights"),
    ],
)
def test_bad_options_get_a_sentence(options, code, message, grey_model, tmp_path, capsys):
    Image.fromarray(draw_bytes(8, 10)).save(tmp_path / "a.png")
    assert run(grey_model, tmp_path / "a.png", "--output", tmp_path / "out", *options) == code
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "out").exists()


def test_what_is_read_and_written_must_fit(grey_model, tmp_path, capsys):
    first = tmp_path / "first"
    second = tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        Image.fromarray(draw_bytes(8, 10)).save(folder / "a.png")
    np.save(first / "a.npy", draw_values(8, 10))
    (tmp_path / "file").write_text("")
    (tmp_path / "nothing").mkdir()
    cases = [
        ([first / "a.png", second / "a.png"], tmp_path / "out", "would both be written to a.png"),
        ([first, "--num-samples", "2"], tmp_path / "out", "would both be written to a-std.npy"),
        ([first / "a.png"], first, "is among the files to restore; choose another output."),
        ([first / "a.png"], second, "a.png exists, but no settings.json of `pfgmpp restore` beside it"),
        ([first / "a.png"], tmp_path / "file", "file is a file; choose a folder."),
        ([tmp_path / "missing.png"], tmp_path / "out", "missing.png does not exist."),
        ([tmp_path / "nothing"], tmp_path / "out", "nothing holds no PNG, TIFF, JPEG, .npy or DICOM files."),
    ]
    for inputs, output, message in cases:
        before = sorted(tmp_path.rglob("*"))
        assert run(grey_model, *inputs, "--output", output) == 1, message
        assert message in capsys.readouterr().err
        assert sorted(tmp_path.rglob("*")) == before


def test_a_model_that_generates_is_refused(tmp_path, capsys):
    make_tiny_pipeline().save_pretrained(tmp_path / "model")
    Image.fromarray(draw_bytes(8, 10)).save(tmp_path / "a.png")
    assert run(tmp_path / "model", tmp_path / "a.png", "--output", tmp_path / "out") == 1
    assert "generates images and restores none: use `pfgmpp sample`." in capsys.readouterr().err
