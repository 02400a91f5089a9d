"""Reading image files of every kind, and writing them."""

import io
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image
from scripts import REPOSITORY

from utils.errors import InputError
from utils.images import read_image, write_image

# As a viewer shows it: four colors in the corners, 40 x 60.
CORNERS = {"red": (230, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 230), "white": (250, 250, 250)}


def corners(height: int = 40, width: int = 60) -> np.ndarray:
    image = np.empty((height, width, 3), np.uint8)
    rows, columns = height // 2, width // 2
    image[:rows, :columns], image[:rows, columns:] = CORNERS["red"], CORNERS["green"]
    image[rows:, :columns], image[rows:, columns:] = CORNERS["blue"], CORNERS["white"]
    return image


def encode(pixels: np.ndarray, file_format: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, file_format, **options)
    return buffer.getvalue()


def oriented_jpeg(pixels: np.ndarray, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(pixels, exif=exif, quality=95)


def assert_close(image: np.ndarray, expected: np.ndarray) -> None:
    """Equal except for JPEG compression."""
    assert image.shape == expected.shape and image.dtype == np.uint8
    assert np.abs(image.astype(int) - expected).mean() < 6


def test_empty_file_is_refused(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(InputError, match=r"a\.jpg"):
        read_image(tmp_path / "a.jpg")


def test_jpeg_is_read_as_rgb(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encode(corners(), quality=95))
    assert_close(read_image(tmp_path / "a.jpg"), corners())
    assert_close(read_image(str(tmp_path / "a.jpg")), corners())


def test_progressive_jpeg_is_read(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encode(corners(), quality=95, progressive=True))
    assert_close(read_image(tmp_path / "a.jpg"), corners())


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_keep_every_pixel(tmp_path, file_format):
    (tmp_path / "a").write_bytes(encode(corners(), file_format))
    np.testing.assert_array_equal(read_image(tmp_path / "a"), corners())


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_grayscale_becomes_rgb(tmp_path, file_format):
    gray = np.full((8, 16), 90, np.uint8)
    (tmp_path / "gray").write_bytes(encode(gray, file_format))
    np.testing.assert_array_equal(read_image(tmp_path / "gray"), np.full((8, 16, 3), 90))


def test_alpha_channel_is_dropped(tmp_path):
    rgba = np.dstack([corners(), np.full((40, 60), 7, np.uint8)])
    (tmp_path / "a.png").write_bytes(encode(rgba, "PNG"))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), corners())


def test_palette_becomes_rgb(tmp_path):
    palette = Image.fromarray(corners()).quantize(4)
    palette.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.asarray(palette.convert("RGB")))


def test_sixteen_bits_become_eight(tmp_path):
    deep = np.empty((4, 6, 3), np.uint16)
    deep[:] = (0x2000, 0x8000, 0xFFFF)  # blue, green, red
    assert cv2.imwrite(str(tmp_path / "a.png"), deep)
    image = read_image(tmp_path / "a.png")
    assert image.dtype == np.uint8
    assert np.abs(image.astype(int) - (255, 128, 32)).max() <= 1


# EXIF orientation -> how the image's pixels are stored.
STORED = {
    1: lambda seen: seen,
    2: lambda seen: seen[:, ::-1],
    3: lambda seen: seen[::-1, ::-1],
    4: lambda seen: seen[::-1],
    5: lambda seen: seen.transpose(1, 0, 2),
    6: lambda seen: np.rot90(seen, 1),
    7: lambda seen: seen[::-1, ::-1].transpose(1, 0, 2),
    8: lambda seen: np.rot90(seen, -1),
}


@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_is_applied(tmp_path, orientation):
    stored = np.ascontiguousarray(STORED[orientation](corners()))
    (tmp_path / "a.jpg").write_bytes(oriented_jpeg(stored, orientation))
    assert_close(read_image(tmp_path / "a.jpg"), corners())


def test_orientation_agrees_with_the_requested_size(tmp_path):
    stored = np.ascontiguousarray(np.rot90(corners(), 1))  # 60 x 40
    (tmp_path / "a.jpg").write_bytes(oriented_jpeg(stored, 6))
    assert_close(read_image(tmp_path / "a.jpg", (40, 60)), corners())
    assert_close(read_image(tmp_path / "a.jpg", (60, 40)), stored)


def test_image_of_neither_size_is_refused(tmp_path):
    (tmp_path / "a.jpg").write_bytes(oriented_jpeg(corners(), 6))
    with pytest.raises(InputError, match=r"a\.jpg is 40 x 60 .*50 x 70"):
        read_image(tmp_path / "a.jpg", (70, 50))


# Smaller, in less time.


@pytest.mark.parametrize(
    ("needed", "shape"),
    [((102, 151), (201, 302)), ((100, 150), (101, 151)), ((51, 76), (51, 76)), ((40, 60), (51, 76)),
     ((26, 38), (26, 38)), ((1, 1), (26, 38)), ((26, 39), (51, 76)), ((500, 500), (201, 302))],
)  # fmt: skip
def test_jpeg_is_decoded_as_small_as_is_needed(tmp_path, needed, shape):
    (tmp_path / "a.jpg").write_bytes(encode(corners(201, 302), quality=95))  # halved, 100.5 x 151
    image = read_image(tmp_path / "a.jpg", (201, 302), needed)
    assert image.shape == (*shape, 3)
    factor = round(201 / shape[0])
    whole = np.pad(corners(201, 302), ((0, 7), (0, 7), (0, 0)), "edge")[: factor * shape[0], : factor * shape[1]]
    assert_close(image, whole.reshape(shape[0], factor, shape[1], factor, 3).mean(axis=(1, 3)))


@pytest.mark.parametrize("orientation", STORED)
def test_smaller_jpeg_has_its_orientation(tmp_path, orientation):
    stored = np.ascontiguousarray(STORED[orientation](corners(80, 120)))
    (tmp_path / "a.jpg").write_bytes(oriented_jpeg(stored, orientation))
    assert_close(read_image(tmp_path / "a.jpg", (80, 120), (20, 30)), corners(20, 30))
    if orientation > 4:  # annotated as stored
        assert_close(read_image(tmp_path / "a.jpg", (120, 80), (30, 20)), stored[2::4, 2::4])


def test_sides_that_are_equal_when_rounded_leave_the_orientation_clear(tmp_path):
    stored = np.ascontiguousarray(np.rot90(corners(79, 80), 1))
    (tmp_path / "a.jpg").write_bytes(oriented_jpeg(stored, 6))
    assert_close(read_image(tmp_path / "a.jpg", (79, 80), (10, 10)), corners(79, 80))
    assert_close(read_image(tmp_path / "a.jpg", (80, 79), (10, 10)), stored)


def test_smaller_image_of_another_size_is_refused(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encode(corners(80, 120)))
    for size in ((79, 120), (80, 119), (160, 240)):
        with pytest.raises(InputError, match=rf"is 120 x 80 pixels .*{size[1]} x {size[0]}"):
            read_image(tmp_path / "a.jpg", size, (20, 30))


@pytest.mark.parametrize("options", [{"progressive": True}, {"file_format": "PNG"}])
def test_only_jpegs_are_decoded_smaller(tmp_path, options):
    (tmp_path / "a").write_bytes(encode(corners(80, 120), **options))
    expected = corners(80, 120) if "file_format" in options else corners(40, 60)
    assert_close(read_image(tmp_path / "a", (80, 120), (40, 60)), expected)
    (tmp_path / "cut").write_bytes((tmp_path / "a").read_bytes()[:-300])
    with pytest.raises(InputError, match="cut"):
        read_image(tmp_path / "cut", (80, 120), (40, 60))


def test_the_size_of_a_thumbnail_is_not_that_of_the_image(tmp_path):
    (tmp_path / "a.jpg").write_bytes(with_thumbnail(corners(80, 120)))
    assert_close(read_image(tmp_path / "a.jpg", (80, 120), (40, 60)), corners(40, 60))


def test_missing_image_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"none\.jpg"):
        read_image(tmp_path / "none.jpg")


def test_folder_in_place_of_an_image_is_refused(tmp_path):
    with pytest.raises(InputError, match=str(tmp_path)):
        read_image(tmp_path)


@pytest.mark.parametrize("content", [b"no image\n", b"\xff\xd8", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"\0" * 5000])
def test_other_content_named_jpg_is_refused(tmp_path, content):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.jpg"):
        read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.99])
def test_truncated_jpeg_is_refused(tmp_path, share, progressive):
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    data = encode(noise, progressive=progressive)
    (tmp_path / "cut.jpg").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match=r"cut\.jpg"):
        read_image(tmp_path / "cut.jpg")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_png_is_refused(tmp_path, share):
    data = encode(np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8), "PNG")
    (tmp_path / "cut.png").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match=r"cut\.png"):
        read_image(tmp_path / "cut.png")


def with_thumbnail(pixels: np.ndarray) -> bytes:
    """A JPEG with another complete JPEG in a segment before its own scan, like a camera's thumbnail."""
    data, thumbnail = encode(pixels, quality=95), encode(pixels[::4, ::4])
    segment = b"\xff\xe2" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    return data[:2] + segment + data[2:]


def test_jpeg_with_bytes_after_its_end_is_read(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encode(corners(), quality=95) + b"\0" * 64 + b"appended film")
    assert_close(read_image(tmp_path / "a.jpg"), corners())


def test_jpeg_with_a_thumbnail_is_read(tmp_path):
    (tmp_path / "a.jpg").write_bytes(with_thumbnail(corners()))
    assert_close(read_image(tmp_path / "a.jpg"), corners())


def test_truncated_jpeg_with_a_thumbnail_is_refused(tmp_path):
    data = with_thumbnail(np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8))
    (tmp_path / "a.jpg").write_bytes(data[: int(len(data) * 0.8)])
    with pytest.raises(InputError, match=r"a\.jpg"):
        read_image(tmp_path / "a.jpg")


def test_jpeg_with_fill_bytes_before_a_marker_is_read(tmp_path):
    data = encode(corners(), quality=95)
    (tmp_path / "a.jpg").write_bytes(data[:2] + b"\xff\xff" + data[2:])
    assert_close(read_image(tmp_path / "a.jpg"), corners())


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".PNG"])
def test_image_is_written_and_read_back(tmp_path, suffix):
    path = tmp_path / "new" / f"a{suffix}"
    write_image(path, corners())
    np.testing.assert_array_equal(read_image(path), corners())
    assert list(path.parent.iterdir()) == [path]


def test_jpeg_is_written_with_its_colors(tmp_path):
    write_image(tmp_path / "a.jpg", corners())
    assert (tmp_path / "a.jpg").read_bytes().startswith(b"\xff\xd8")
    assert_close(read_image(tmp_path / "a.jpg"), corners())


@pytest.mark.parametrize("name", ["a.nope", "a"])
def test_unknown_suffix_is_refused(tmp_path, name):
    with pytest.raises(InputError, match=name):
        write_image(tmp_path / name, corners())
    assert not list(tmp_path.iterdir())


def test_image_too_large_for_its_format_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"a\.jpg: .*70000 x 1 pixels"):
        write_image(tmp_path / "a.jpg", np.zeros((1, 70000, 3), np.uint8))


def test_opencv_does_not_warn_about_unreadable_files():
    """OpenCV writes to the file descriptor, hence the subprocess."""
    code = "import cv2; cv2.imread('before.jpg'); import utils.images; cv2.imread('after.png')"
    run = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "before.jpg" in run.stderr and "after.png" not in run.stderr
