"""
Data sets as batches: decoded, in an order of their own, read as a stream, and with broken images
among them.
"""

import gzip
import io
import itertools
import os
import re
import shutil
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import Array2D, Array3D, ClassLabel, Dataset, Features, Image, List, Value, load_dataset

from pipeline_pfgmpp.data import ImageDataset, ImageDecoder, ImageStream, load_images, open_dataset, prefetch
from pipeline_pfgmpp.data.fashion_mnist import convert_idx, read_idx


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_images_are_decoded_resized_and_cropped(tmp_path):
    wide = np.zeros((40, 80, 3), np.uint8)
    wide[:, 20:60] = (255, 0, 0)  # the centre square is red
    dataset = Dataset.from_dict({"image": [PIL.Image.fromarray(wide)]}, features=Features({"image": Image()}))
    data = load_images(dataset, resolution=16)
    assert data.images.shape == (1, 3, 16, 16)
    assert data.images[0, 0].float().mean() > 240
    assert data.images[0, 1].float().mean() < 10
    assert data.labels is None


# EXIF in which the orientation is 6 and a resolution is a text, which Pillow reads but cannot write.
ODD_TAGS = struct.pack("<HHHIHHHHI4sI", 2, 274, 3, 1, 6, 0, 282, 2, 4, b"72\0\0", 0)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("1", 1), ("RGB", 3), ("RGBA", 3), ("P", 3)])
def test_every_mode_of_picture(mode, channels):
    picture = PIL.Image.new("RGB", (8, 8), (200, 200, 200)).convert(mode)
    dataset = Dataset.from_dict({"image": [picture]}, features=Features({"image": Image()}))
    assert load_images(dataset, resolution=8).images.shape == (1, channels, 8, 8)
    assert load_images(dataset, resolution=8, channels=1).images.shape == (1, 1, 8, 8)


def test_pictures_with_odd_tags_are_not_left_out(capsys):
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (8, 12), (200, 0, 0)).save(
        buffer, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0" + ODD_TAGS
    )
    rows = {"image": [{"bytes": buffer.getvalue(), "path": None}]}
    data = load_images(Dataset.from_dict(rows, features=Features({"image": Image()})), resolution=(8, 12))
    assert data.images.shape == (1, 3, 8, 12)
    assert "Skipping" not in capsys.readouterr().out


def test_columns_are_found_or_named(fashion_mnist):
    dataset = load_dataset(str(fashion_mnist), split="test")
    data = load_images(dataset, resolution=28)
    assert len(data) == 120
    assert data.class_names[9] == "Ankle boot"
    item = data[3]
    assert item["class_labels"].item() == dataset[3]["label"]
    assert torch.equal(item["images"], torch.from_numpy(np.array(dataset[3]["image"]))[None])
    with pytest.raises(ValueError, match="`image_column` is 'picture'"):
        load_images(dataset, resolution=28, image_column="picture")
    with pytest.raises(ValueError, match="several image columns"):
        load_images(
            Dataset.from_dict({"a": [], "b": []}, features=Features({"a": Image(), "b": Image()})),
            resolution=28,
        )
    with pytest.raises(ValueError, match="no image column"):
        load_images(dataset.remove_columns("image"), resolution=28)


def test_sigma_data_is_measured():
    images = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8, generator=generator())
    expected = (images.double() / 127.5 - 1).std(correction=0).item()
    assert ImageDataset(images).sigma_data() == pytest.approx(expected, rel=1e-9)


def write_idx(folder, images, labels, prefix):
    folder.mkdir(exist_ok=True)
    header = struct.pack(">4B3I", 0, 0, 8, 3, *images.shape)
    (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + images.tobytes()))
    (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(
        struct.pack(">4BI", 0, 0, 8, 1, len(labels)) + labels.tobytes()
    )


def test_idx_files_become_a_data_set(tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (7, 5, 6), np.uint8), rng.integers(0, 3, 7).astype(np.uint8)
    for prefix in ("train", "t10k"):
        write_idx(tmp_path / "idx", images, labels, prefix)
    assert convert_idx(tmp_path / "idx", tmp_path / "out", ["a", "b", "c"]) == {"train": 7, "test": 7}
    dataset = load_dataset(str(tmp_path / "out"), split="test")
    np.testing.assert_array_equal(np.stack([np.array(image) for image in dataset["image"]]), images)
    assert dataset["label"][:] == labels.tolist()
    assert dataset.features["label"].names == ["a", "b", "c"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["test.parquet", "train.parquet"]


def test_damaged_idx_files_are_refused(tmp_path):
    images, labels = np.zeros((4, 2, 2), np.uint8), np.zeros(4, np.uint8)
    write_idx(tmp_path, images, labels, "train")
    with pytest.raises(ValueError, match="holds no t10k-images"):
        convert_idx(tmp_path, tmp_path / "out", ["a"])
    assert not (tmp_path / "out").exists()
    labels_file = tmp_path / "train-labels-idx1-ubyte"
    labels_file.write_bytes(labels_file.read_bytes()[:-1])
    with pytest.raises(ValueError, match="truncated"):
        read_idx(labels_file)
    images_file = tmp_path / "train-images-idx3-ubyte.gz"
    images_file.write_bytes(images_file.read_bytes()[:-9])
    with pytest.raises(ValueError, match="is damaged"):
        read_idx(images_file)
    labels_file.write_bytes(b"P5 2 2")
    with pytest.raises(ValueError, match="not an IDX file"):
        read_idx(labels_file)


def numbered(count=50):
    """Images that hold their number."""
    return ImageDataset(torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1), torch.arange(count))


def take(batches, count):
    """The numbers in so many batches, one list a batch, and the state after them."""
    items = list(itertools.islice(batches, count))
    for batch, _ in items:
        assert torch.equal(batch["images"].flatten().long(), batch["class_labels"])
    return [batch["class_labels"].tolist() for batch, _ in items], items[-1][1]


def test_every_image_comes_once_an_epoch():
    batches, _ = take(numbered().batches(8, seed=3), 25)  # four epochs
    numbers = list(itertools.chain(*batches))
    epochs = [numbers[i : i + 50] for i in range(0, 200, 50)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert take(numbered().batches(8, seed=4), 1)[0] != batches[:1]
    assert len(take(numbered(3).batches(8), 1)[0][0]) == 8  # a batch may be larger than the data


def test_processes_take_turns_and_a_restart_goes_on():
    one, _ = take(numbered().batches(8, seed=3), 20)
    shares = [take(numbered().batches(4, seed=3, process_index=p, num_processes=2), 20)[0] for p in range(2)]
    assert [[number for pair in zip(a, b) for number in pair] for a, b in zip(*shares)] == one
    first, state = take(numbered().batches(8, seed=3), 9)
    assert first + take(numbered().batches(8, seed=3, state=state), 11)[0] == one


def test_balanced_classes_come_equally_often_in_every_share():
    """One image in ten is of class 1; balanced, half of those that are drawn are."""

    def balance():
        images = torch.arange(50, dtype=torch.uint8).view(-1, 1, 1, 1)
        data = ImageDataset(images, (torch.arange(50) % 10 == 0).long())
        data.balance_classes()
        return data

    def draw(count, batch_size, *shares, **state):
        batches = itertools.islice(balance().batches(batch_size, 3, *shares, **state), count)
        return [batch["images"].flatten().tolist() for batch, _ in batches]

    drawn = draw(100, 8)
    numbers = list(itertools.chain(*drawn))
    assert set(numbers) == set(range(50))
    share = sum(number % 10 == 0 for number in numbers) / len(numbers)
    assert share == pytest.approx(0.5, abs=4 * 0.5 / len(numbers) ** 0.5)
    assert draw(91, 8, state=72) == drawn[9:]
    halves = [draw(100, 4, process, 2) for process in range(2)]
    assert [[number for pair in zip(*both) for number in pair] for both in zip(*halves)] == drawn
    assert balance().digest() != ImageDataset(balance().images, balance().labels).digest()
    with pytest.raises(ValueError, match="The images have no classes that could be balanced"):
        ImageDataset(torch.zeros(2, 1, 1, 1, dtype=torch.uint8)).balance_classes()


def test_prefetching_changes_nothing():
    assert take(prefetch(numbered().batches(8, seed=3)), 20) == take(numbered().batches(8, seed=3), 20)
    with pytest.raises(ValueError, match="ends"):
        list(prefetch(raising()))


def raising():
    yield 1
    raise ValueError("ends")


@pytest.fixture
def folders(tmp_path):
    """Six parquet files with the numbers 0 to 59 as grey images of one colour."""
    for part in range(6):
        numbers = range(10 * part, 10 * part + 10)
        images = [PIL.Image.new("L", (2, 2), number) for number in numbers]
        features = Features({"image": Image(), "label": ClassLabel(num_classes=60)})
        Dataset.from_dict({"image": images, "label": list(numbers)}, features=features).to_parquet(
            tmp_path / f"{part}.parquet"
        )
    return tmp_path


def stream(folder, **options):
    return ImageStream(
        load_dataset(str(folder), split="train", streaming=True), resolution=1, **{"window": 7, **options}
    )


@pytest.mark.parametrize("num_processes", [1, 2, 4])
def test_a_stream_gives_each_process_its_share(folders, num_processes):
    per_process = 60 // num_processes
    shares = [
        take(stream(folders).batches(per_process, 1, process, num_processes), 2)[0]
        for process in range(num_processes)
    ]
    for epoch in range(2):
        assert sorted(number for share in shares for number in share[epoch]) == list(range(60))
    assert shares[0][0] != shares[0][1]
    assert sorted(shares[0][0]) != shares[0][0]


@pytest.mark.parametrize("process", [0, 1])
def test_a_stream_goes_on_from_where_it_was(folders, process):
    whole, _ = take(stream(folders).batches(4, 1, process, 2), 40)
    for done in (1, 2, 7, 8, 15, 33):
        _, state = take(stream(folders).batches(4, 1, process, 2), done)
        assert take(stream(folders).batches(4, 1, process, 2, state), 40 - done)[0] == whole[done:]


def test_a_stream_knows_its_deviation(folders):
    assert stream(folders).sigma_data() == pytest.approx(
        load_images(load_dataset(str(folders), split="train"), 1).sigma_data()
    )


@pytest.fixture
def broken(tmp_path):
    """A folder of five pictures, of which the third is cut off and the fourth is text."""
    for number in range(5):
        path = tmp_path / f"{number}.png"
        PIL.Image.fromarray(np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)).save(path)
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:300])
    (tmp_path / "3.png").write_text("no picture")
    return tmp_path


def test_broken_images_are_named_and_left_out(broken, capsys):
    dataset = load_dataset(str(broken), split="train")
    data = load_images(dataset, resolution=8)
    assert len(data) == 3
    output = capsys.readouterr()
    assert "2.png, which cannot be read (1 so far)" in output.out + output.err
    assert "3.png, which cannot be read (2 so far)" in output.out + output.err
    assert "Left out 2 of 5 images, which cannot be read" in output.out + output.err
    with pytest.raises(ValueError, match=r"The image .*2.png cannot be read"):
        load_images(dataset, resolution=8, strict=True)
    assert len(load_images(dataset, resolution=8)) == 3


def test_broken_images_of_a_stream_are_named_and_left_out(broken, capsys):
    dataset = load_dataset(str(broken), split="train", streaming=True)
    batch, _ = next(ImageStream(dataset, 8).batches(6))
    assert len(batch["images"]) == 6  # of three images, twice
    output = capsys.readouterr()
    assert "2.png, which cannot be read" in output.out + output.err
    with pytest.raises(ValueError, match="cannot be read"):
        next(ImageStream(dataset, 8, strict=True).batches(6))
    for number in (0, 1, 4):
        (broken / f"{number}.png").write_text("neither")
    with pytest.raises(ValueError, match="None of the first images can be read"):
        ImageStream(dataset, 8)


def test_a_process_without_images_is_told_so(broken):
    for number in (1, 2, 3):
        (broken / f"{number}.png").write_text("neither")
    dataset = load_dataset(str(broken), split="train", streaming=True)
    with pytest.raises(ValueError, match="holds no image that can be read for this process"):
        next(ImageStream(dataset, 8).batches(1, process_index=1, num_processes=2))


def test_decoding_happens_once(fashion_mnist, monkeypatch):
    dataset = load_dataset(str(fashion_mnist), split="test")
    first = load_images(dataset, resolution=27)
    monkeypatch.setattr(ImageDecoder, "_decode", None)
    again = load_images(dataset, resolution=27)
    assert torch.equal(again.images, first.images)
    assert torch.equal(again.labels, first.labels)


def test_changed_files_of_a_folder_are_decoded_anew(tmp_path):
    """
    Whatever a copy does to their times: with the path, the name and the time of the old ones, or
    with one more or less.
    """
    folder = tmp_path / "images"
    folder.mkdir()

    def colors():
        return sorted(
            load_images(load_dataset(str(folder), split="train"), resolution=2).images[:, 0, 0, 0].tolist()
        )

    for number in range(3):
        PIL.Image.new("L", (2, 2), 10 + number).save(folder / f"{number}.png")
    assert colors() == [10, 11, 12]
    times = {path: path.stat() for path in folder.iterdir()}
    for number, (path, stat) in enumerate(sorted(times.items())):
        PIL.Image.new("L", (2, 2), 50 + number).save(path)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert colors() == [50, 51, 52]
    PIL.Image.new("L", (2, 2), 90).save(folder / "3.png")
    assert colors() == [50, 51, 52, 90]
    (folder / "0.png").unlink()
    assert colors() == [51, 52, 90]


def test_a_digest_tells_data_apart_and_not_where_they_lie(folders, tmp_path_factory):
    copy = shutil.copytree(folders, tmp_path_factory.mktemp("copy") / "copy")
    whole = [load_images(load_dataset(str(folder), split="train"), 1) for folder in (folders, copy)]
    assert whole[0].digest() == whole[1].digest()
    first = stream(folders).digest()
    assert stream(copy).digest() == first
    (copy / "0.parquet").unlink()
    assert stream(copy).digest() != first
    relabelled = ImageDataset(whole[0].images, whole[0].labels.flip(0), whole[0].class_names)
    assert relabelled.digest() != whole[0].digest()
    assert ImageDataset(whole[0].images).digest() != whole[0].digest()


def make_dataset(images, **columns):
    """A data set of pictures, in memory."""
    features = {"image": Image(), **{name: feature for name, (feature, _) in columns.items()}}
    values = {"image": images, **{name: list(found) for name, (_, found) in columns.items()}}
    return Dataset.from_dict(values, features=Features(features))


RAMP = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)


def test_sixteen_bits_are_not_cut_to_eight():
    data = load_images(make_dataset([PIL.Image.fromarray(RAMP)]), resolution=16)
    assert data.images.dtype == torch.float32
    assert data.value_range == (0, 65535)
    assert torch.equal(data.images[0, 0], torch.from_numpy(RAMP.astype(np.float32)))
    seen = data.normalize(data.images)
    assert seen.min() == -1
    assert seen.max() == 1
    assert data.sigma_data() == pytest.approx(seen.double().std(correction=0).item())


@pytest.mark.parametrize("order", [1, -1])
def test_eight_and_sixteen_bits_in_one_data_set(order):
    """White is white at either depth, whichever comes first."""
    white = [PIL.Image.new("L", (4, 4), 255), PIL.Image.fromarray(np.full((4, 4), 65535, np.uint16))]
    black = [PIL.Image.new("L", (4, 4), 0), PIL.Image.fromarray(np.zeros((4, 4), np.uint16))]
    data = load_images(make_dataset((white + black)[::order]), resolution=4)
    assert data.value_range == (0, 65535)
    assert data.normalize(data.images).flatten(1)[:, 0].tolist() == [1, 1, -1, -1][::order]


def test_a_stream_takes_the_depth_of_its_first_image(tmp_path):
    PIL.Image.new("L", (4, 4), 51).save(tmp_path / "0.png")
    PIL.Image.fromarray(np.full((4, 4), 65535, np.uint16)).save(tmp_path / "1.png")
    stream = ImageStream(load_dataset(str(tmp_path), split="train", streaming=True), 4)
    batch, _ = next(stream.batches(2))
    assert batch["images"].dtype == torch.uint8
    assert sorted(batch["images"].flatten(1)[:, 0].tolist()) == [51, 255]


@pytest.mark.parametrize("streaming", [False, True])
def test_floats_have_the_range_of_their_data_set(tmp_path, streaming):
    for name, value in (("a", -1000), ("b", 0), ("c", 3000)):
        PIL.Image.fromarray(np.full((4, 4), value, np.float32)).save(tmp_path / f"{name}.tiff")
    dataset = load_dataset(str(tmp_path), split="train", streaming=streaming)
    data = ImageStream(dataset, 4) if streaming else load_images(dataset, 4)
    assert data.value_range == (-1000, 3000)
    batch, _ = next(data.batches(3))
    assert sorted(data.normalize(batch["images"]).flatten(1)[:, 0].tolist()) == [-1, -0.5, 1]


def test_a_stated_range_is_used_and_clips(capsys):
    values = np.array([[0, 1000], [4095, 60000]], np.uint16)  # of twelve bits, with one dead pixel
    data = load_images(make_dataset([PIL.Image.fromarray(values)]), resolution=2, value_range=(0, 4095))
    assert data.value_range == (0, 4095)
    assert data.normalize(data.images).flatten().tolist() == pytest.approx([-1, 2000 / 4095 - 1, 1, 1])
    assert "Some images have values outside of `value_range`, which are clipped." in capsys.readouterr().out
    with pytest.raises(ValueError, match="`value_range` must be"):
        load_images(make_dataset([PIL.Image.fromarray(values)]), resolution=2, value_range=(1, 1))


def test_transparent_pictures_are_composited_and_said_once(capsys, monkeypatch):
    pictures = [PIL.Image.new("RGBA", (4, 4), (0, 0, 0, 0))] * 3 + [PIL.Image.new("RGB", (4, 4))]
    data = load_images(make_dataset(pictures), resolution=4)
    assert data.images.flatten(1)[:, 0].tolist() == [255, 255, 255, 0]
    assert capsys.readouterr().out.count("Transparent pictures are shown on a white background.") == 1
    monkeypatch.setenv("RANK", "1")
    assert load_images(make_dataset(pictures), resolution=4, background="black").images.max() == 0
    assert capsys.readouterr().out == ""
    assert load_images(make_dataset(pictures), resolution=4, channels=4).images.shape == (4, 4, 4, 4)


def test_rectangles():
    data = load_images(make_dataset([PIL.Image.new("L", (60, 40), 9)] * 2), resolution=(8, 24))
    assert data.images.shape == (2, 1, 8, 24)
    for resolution in (0, (8, 0), (1, 2, 3)):
        with pytest.raises(ValueError, match="`resolution` must be one positive integer or two"):
            load_images(make_dataset([PIL.Image.new("L", (4, 4))]), resolution)


@pytest.mark.parametrize(("feature", "shape", "channels"), [
    (Array2D((6, 4), "float32"), (6, 4), None),
    (Array3D((3, 6, 4), "float32"), (3, 6, 4), None),
    (Array3D((6, 4, 13), "float32"), (6, 4, 13), 13),
    (List(List(Value("float32"))), (6, 4), None),
])  # fmt: skip
def test_columns_of_arrays(feature, shape, channels):
    values = np.random.default_rng(0).normal(size=(5, *shape)).astype(np.float32)
    dataset = Dataset.from_dict({"field": list(values)}, features=Features({"field": feature}))
    data = load_images(dataset, (6, 4), image_column="field", channels=channels)
    layout = values.reshape(5, *shape) if len(shape) == 3 else values[:, None]
    if channels:
        layout = np.moveaxis(layout, -1, 1)
    assert torch.equal(data.images, torch.from_numpy(layout))
    assert data.value_range == (values.min(), values.max())


def test_arrays_of_bytes_stay_bytes():
    values = np.arange(48, dtype=np.uint8).reshape(2, 6, 4)
    dataset = Dataset.from_dict({"x": list(values)}, features=Features({"x": Array2D((6, 4), "uint8")}))
    data = load_images(dataset, (6, 4))
    assert data.images.dtype == torch.uint8
    assert data.value_range == (0, 255)


@pytest.mark.parametrize(("kind", "value_range"), [("uint8", (0, 255)), ("uint16", (0, 65535))])
def test_nested_lists_of_integers_have_the_range_of_their_depth(kind, value_range):
    """`datasets` makes such lists of arrays, unless it is told otherwise."""
    dataset = Dataset.from_dict({"image": list(np.arange(48).reshape(2, 6, 4).astype(kind))})
    assert isinstance(dataset.features["image"], List)
    assert load_images(dataset, (6, 4)).value_range == value_range
    assert ImageStream(dataset.to_iterable_dataset(), (6, 4)).value_range == value_range


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("LA", 2), ("RGB", 3), ("RGBA", 4), (None, 3)])
def test_the_mode_of_a_column_is_honoured(mode, channels):
    dataset = make_dataset([PIL.Image.new("RGBA", (4, 4), (0, 0, 0, 0)), PIL.Image.new("RGB", (4, 4))])
    data = load_images(dataset.cast_column("image", Image(mode=mode)), resolution=4)
    assert data.images.shape == (2, channels, 4, 4)
    assert data.images[0, 0].unique().tolist() == [0 if channels in (2, 4) else 255]


def test_colours_that_become_grey_are_said_and_greys_that_become_coloured(capsys):
    grey = PIL.Image.new("L", (4, 4), 9)
    red = PIL.Image.new("RGB", (4, 4), (255, 0, 0))
    for pictures, channels, message in (
        ([grey, red], 1, "Coloured images are converted to grey.\n"),
        ([red, grey], 3, "Grey images are converted to colour.\n"),
        ([grey, grey], 1, ""),
        ([red, red], 3, ""),
    ):
        for _ in range(2):  # also where they are found in the cache
            assert load_images(make_dataset(pictures), resolution=4).channels == channels
            assert capsys.readouterr().out == message


@pytest.mark.parametrize("colour_type", [2, 4, 6])
def test_depth_that_pillow_does_not_read_is_said(colour_type, tmp_path, capsys):
    """It opens PNG files of 16 bits with colours or alpha at 8."""
    channels = {2: 3, 4: 2, 6: 4}[colour_type]
    rows = np.arange(4 * 4 * channels, dtype=">u2").reshape(4, -1) * 1000
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, colour_type, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))),
        (b"IEND", b""),
    ]
    (tmp_path / "0.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks
        )
    )
    sentence = "Pictures of 16 bits with colours or alpha are read with 8: store them as .npy."
    for streaming in (False, True):
        dataset = load_dataset(str(tmp_path), split="train", streaming=streaming)
        data = ImageStream(dataset, 4) if streaming else load_images(dataset, 4)
        next(data.batches(1))
        assert data.value_range == (0, 255)
        assert capsys.readouterr().out.count(sentence) == 1


def test_arrays_of_two_channels_are_not_said_to_be_converted(capsys):
    values = np.random.default_rng(0).normal(size=(3, 2, 6, 4)).astype(np.float32)
    dataset = Dataset.from_dict({"image": list(values)})
    assert load_images(dataset, (6, 4)).channels == load_images(dataset, (6, 4), channels=2).channels == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("options", "message"), [
    ({"resolution": "16"}, "`resolution` must be one positive integer or two, but is '16'"),
    ({"resolution": 16.5}, "`resolution` must be one positive integer or two, but is 16.5"),
    ({"resolution": True}, "`resolution` must be one positive integer or two, but is True"),
    ({"channels": "3"}, "`channels` must be at least 1, but is '3'"),
    ({"channels": 0}, "`channels` must be at least 1, but is 0"),
    ({"background": (1, 2, 3)}, "`background` must be a colour such as white or #808080, but is"),
])  # fmt: skip
def test_options_of_another_type_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        load_images(make_dataset(PICTURES), **{"resolution": 4, **options})


def test_options_of_numpy_are_taken():
    options = {"channels": np.int64(1), "value_range": np.array([0, 255])}
    assert load_images(make_dataset(PICTURES), np.int64(4), **options).value_range == (0, 255)


def test_data_without_contrast_are_refused():
    flat = make_dataset([PIL.Image.fromarray(np.full((4, 4), 7, np.float32))])
    with pytest.raises(ValueError, match="All pixels have the value 7"):
        load_images(flat, resolution=4)
    with pytest.raises(ValueError, match="All pixels have the value 9"):
        load_images(make_dataset([PIL.Image.new("L", (4, 4), 9)]), resolution=4).sigma_data()


def test_a_column_that_holds_no_images_is_refused():
    dataset = make_dataset([PIL.Image.new("L", (4, 4))], name=(Value("string"), ["a"]))
    with pytest.raises(ValueError, match="'a' is not the path of a .npy file"):
        load_images(dataset, resolution=4, image_column="name")
    numbers = make_dataset([PIL.Image.new("L", (4, 4))], number=(Value("int64"), [1]))
    with pytest.raises(ValueError, match="neither pictures nor arrays"):
        load_images(numbers, resolution=4, image_column="number")


PICTURES = [PIL.Image.new("L", (4, 4), value) for value in (0, 10, 20, 30)]


@pytest.mark.parametrize(("feature", "values", "names", "indices"), [
    (Value("string"), ["dog", "cat", "dog", "ant"], ["ant", "cat", "dog"], [2, 1, 2, 0]),
    (Value("int64"), [70, 5, 5, 70], ["5", "70"], [1, 0, 0, 1]),
    (Value("bool"), [True, False, True, True], ["False", "True"], [1, 0, 1, 1]),
    (ClassLabel(names=["x", "y", "z"]), [2, 0, 0, 2], ["x", "y", "z"], [2, 0, 0, 2]),
])  # fmt: skip
def test_labels_of_every_type_become_classes(feature, values, names, indices):
    data = load_images(make_dataset(PICTURES, label=(feature, values)), resolution=4)
    assert data.class_names == names
    assert data.labels.tolist() == indices
    assert data.present_classes == sorted(set(indices))


@pytest.mark.parametrize(("feature", "values"), [
    (Value("string"), ["b", None, "a", None]),
    (ClassLabel(names=["a", "b"]), [1, None, 0, -1]),
])  # fmt: skip
def test_rows_without_a_label_are_left_out_or_refused(feature, values, capsys):
    dataset = make_dataset(PICTURES, label=(feature, values))
    data = load_images(dataset, resolution=4)
    assert data.labels.tolist() == [1, 0]
    assert data.images.flatten(1)[:, 0].tolist() == [0, 20]
    assert "Left out 2 of 4 rows, which have no class." in capsys.readouterr().out
    unlabelled = make_dataset(PICTURES, label=(feature, [None] * 4))
    with pytest.raises(ValueError, match="4 of 4 rows have no class"):
        load_images(unlabelled, 4)
    with pytest.raises(ValueError, match="2 of 4 rows have no class"):
        load_images(dataset, resolution=4, strict=True)
    assert len(load_images(dataset, resolution=4, labels=False, strict=True)) == 4


def test_a_stream_leaves_out_rows_without_a_label(capsys):
    dataset = make_dataset(PICTURES, label=(ClassLabel(names=["a", "b"]), [1, None, 0, -1]))
    stream = ImageStream(dataset.to_iterable_dataset(), 4)
    batch, _ = next(stream.batches(4))
    assert sorted(set(batch["images"].flatten(1)[:, 0].tolist())) == [0, 20]
    assert capsys.readouterr().out.count("rows without a class") == 1
    assert (
        "class_labels" not in next(ImageStream(dataset.to_iterable_dataset(), 4, labels=False).batches(2))[0]
    )


@pytest.mark.parametrize(("feature", "values", "message"), [
    (Value("float32"), [0.5, 1.0, 2.0, 3.0], "holds 0.5; a class is a string"),
    (List(Value("int64")), [[1], [2], [1], [1]], r"holds \[1\]; a class is a string"),
])  # fmt: skip
def test_what_is_no_class_is_refused(feature, values, message):
    with pytest.raises(ValueError, match=message):
        load_images(make_dataset(PICTURES, label=(feature, values)), resolution=4)


@pytest.mark.parametrize(("labels", "names", "message"), [
    ([0, 1], None, "must be 3 integers, one class per image"),
    ([[0], [1], [2]], None, "must be 3 integers, one class per image"),
    ([0.0, 1.0, 2.0], None, "must be 3 integers, one class per image"),
    ([0, 1, 2], ["a", "b"], r"must be in 0 ... 1, but range from 0 to 2"),
    ([0, -1, 2], None, "must be at least 0"),
])  # fmt: skip
def test_labels_of_tensors_are_checked(labels, names, message):
    images = torch.zeros(3, 1, 4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match=message):
        ImageDataset(images, torch.tensor(labels), names)
    with pytest.raises(ValueError, match=r"`images` must be of shape \(M, C, H, W\)"):
        ImageDataset(images[0])


def test_float_tensors_have_their_own_range():
    """And not that of 8 bits, in which a network would see them as black."""
    data = ImageDataset(torch.linspace(-1, 1, 32).view(2, 1, 4, 4))
    assert data.value_range == (-1, 1)
    torch.testing.assert_close(data.normalize(data.images), data.images)
    assert ImageDataset(data.images, value_range=(-2, 2)).normalize(data.images).max() == 0.5


def test_a_label_of_a_stream_that_is_no_class_is_refused():
    dataset = make_dataset(PICTURES, label=(Value("int64"), [0, 1, 2, 7])).to_iterable_dataset()
    dataset.info.features["label"] = ClassLabel(names=["a", "b", "c"])
    with pytest.raises(ValueError, match="holds 7, which is not one of its 3 classes"):
        next(ImageStream(dataset, 4).batches(4))


def test_a_stream_must_name_its_classes():
    dataset = make_dataset(PICTURES, label=(Value("string"), ["a", "b", "a", "b"])).to_iterable_dataset()
    with pytest.raises(ValueError, match="must be a ClassLabel"):
        ImageStream(dataset, 4)


def test_two_label_columns_are_no_matter_without_labels():
    names = ClassLabel(names=["a"])
    dataset = make_dataset(PICTURES, one=(names, [0] * 4), two=(names, [0] * 4))
    with pytest.raises(ValueError, match="several label columns"):
        load_images(dataset, resolution=4)
    assert load_images(dataset, resolution=4, labels=False).labels is None


@pytest.mark.parametrize("streaming", [False, True])
def test_folders_of_arrays(tmp_path, streaming):
    for split, count in (("train", 3), ("test", 1)):
        for name in ("lung", "knee"):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(count):
                np.save(
                    tmp_path / split / name / f"{index}.npy",
                    np.full((6, 4), index + (name == "lung"), np.float32),
                )
    dataset = open_dataset(str(tmp_path), streaming=streaming)
    data = ImageStream(dataset, (6, 4)) if streaming else load_images(dataset, (6, 4))
    assert data.class_names == ["knee", "lung"]
    assert data.value_range == (0, 3)
    batch, _ = next(data.batches(6))
    pairs = zip(batch["class_labels"].tolist(), batch["images"].flatten(1)[:, 0].tolist())
    assert sorted(pairs) == [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (1, 3)]
    assert len(load_images(open_dataset(str(tmp_path), split="test"), (6, 4))) == 2
    with pytest.raises(ValueError, match="`config_name` is 'large', but a folder of .npy files has no"):
        open_dataset(str(tmp_path), "large")
    with pytest.raises(ValueError, match="no split 'validation'"):
        open_dataset(str(tmp_path), split="validation")


def test_a_folder_that_mixes_arrays_with_pictures_is_refused(tmp_path):
    """Nothing in it is left out without a word."""
    np.save(tmp_path / "a.npy", np.arange(16, dtype=np.uint8).reshape(4, 4))
    PIL.Image.new("L", (4, 4)).save(tmp_path / "b.PNG")
    with pytest.raises(ValueError, match="mixes .npy files with others, such as b.PNG"):
        open_dataset(str(tmp_path))


def test_another_split_is_not_taken_for_a_class(tmp_path):
    (tmp_path / "test").mkdir()
    np.save(tmp_path / "test" / "a.npy", np.zeros((4, 4), np.uint8))
    with pytest.raises(ValueError, match="no split 'train'"):
        open_dataset(str(tmp_path))
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match="holds no .npy files"):
        open_dataset(str(tmp_path))


def test_a_changed_array_is_decoded_anew(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(16, dtype=np.uint8).reshape(4, 4))
    first = load_images(open_dataset(str(tmp_path)), 4)
    np.save(tmp_path / "a.npy", np.arange(16, dtype=np.uint8)[::-1].reshape(4, 4))
    assert torch.equal(load_images(open_dataset(str(tmp_path)), 4).images, first.images.flip(-1, -2))


def test_pickles_among_arrays_are_not_run(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"an": "object"}]), allow_pickle=True)
    with pytest.raises(ValueError, match="None of the first images can be read: Object arrays"):
        load_images(open_dataset(str(tmp_path)), 4)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"set.py": "import datasets"}, "Dataset scripts are no longer supported"),
        ({"a.csv": "x,y\n1,2\n", "b.csv": "z\n3\n"}, "was different"),
    ],
)
def test_a_data_set_that_cannot_be_made_is_one_sentence(files, message, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    with pytest.raises(ValueError, match=f"The data set .* cannot be opened: (.|\\n)*{message}"):
        open_dataset(str(folder))


@pytest.mark.parametrize(
    ("names", "left_out"),
    [
        (
            ["car/1.png", "steam-train/2.png", "bus/3.png"],
            "2 of 3 pictures in .* are left out, such as bus/3.png",
        ),
        (["1.png", "1.txt", "2.png", "2.txt"], "2 of 2 pictures in .* are left out, such as 1.png"),
        (["train/a/1.png", "train/train/2.png", "test/a/3.png", ".git/4.png"], None),
        (["1.png", "metadata.csv"], None),
        (["data.csv", "picture-of-the-card.png"], None),
    ],
)
def test_pictures_that_are_in_no_split_are_told(tmp_path, caplog, names, left_out):
    """Words in names are splits for `datasets`, which leaves out what has none of them."""
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":
            PIL.Image.new("L", (4, 4)).save(path)
        else:
            path.write_text("file_name,kind\n1.png,a\n")
    open_dataset(str(tmp_path))
    if left_out is None:
        assert not caplog.messages
    else:
        assert re.search(left_out, caplog.text)


def test_pictures_of_phones_are_told_and_a_folder_that_is_a_pattern_is_refused(tmp_path, caplog):
    folder = tmp_path / "pictures"
    folder.mkdir()
    PIL.Image.new("L", (4, 4)).save(folder / "1.png")
    (folder / "2.HEIC").write_bytes(b"")
    open_dataset(str(folder))
    assert "1 pictures in" in caplog.text
    assert "such as 2.HEIC: they must be converted to PNG or JPEG first" in caplog.text
    folder = folder.rename(tmp_path / "pictures [2023]")
    with pytest.raises(ValueError, match=r"`datasets` reads no folder with \[ in its name"):
        open_dataset(str(folder))


def test_a_stream_of_arrays_is_shuffled_beyond_its_window(tmp_path):
    """Its files are read in the order of their names otherwise, one class after the other."""
    for index in range(40):
        np.save(tmp_path / f"{index:02}.npy", np.full((2, 2), index, np.float32))
    data = ImageStream(open_dataset(str(tmp_path), streaming=True), (2, 2), 4, value_range=(0, 40))
    batches = data.batches(40)
    orders = [next(batches)[0]["images"][:, 0, 0, 0].tolist() for _ in range(2)]
    assert all(sorted(order) == list(range(40)) for order in orders)
    assert max(orders[0][:8]) > 20
    assert orders[0] != orders[1]


def test_a_stream_of_other_pictures_under_the_same_names_has_another_digest(tmp_path):
    digests = []
    for shade in (0, 100):
        PIL.Image.new("L", (4, 4), shade).save(tmp_path / "1.png")
        PIL.Image.new("L", (4, 4), 255).save(tmp_path / "2.png")
        digests.append(ImageStream(open_dataset(str(tmp_path), streaming=True), (4, 4), 4).digest())
    assert digests[0] != digests[1]


def test_a_missing_data_set_is_one_sentence():
    with pytest.raises(ValueError, match="The data set nowhere/at-all cannot be opened"):
        open_dataset("nowhere/at-all")
