"""Images, decoded to find those that cannot be used and those that are equal."""

import cv2
import numpy as np
import pytest
from PIL import Image

from efficientdet.check.images import (
    ImageScan,
    equal_images,
    image_findings,
    repeated_images,
    scan_image,
    scan_images,
    with_scanned_sizes,
)
from efficientdet.data.annotations import read_set


def noise(seed: int, height: int = 60, width: int = 80) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def some_set(tmp_path, write_coco, make_project):
    """A function that writes a set of images by id, lets `edit` change the folder, and reads it."""

    def some_set(pictures, edit=lambda folder: None):
        write_coco(tmp_path, "some", pictures)
        edit(tmp_path / "some")
        return read_set(tmp_path, "some", make_project())

    return some_set


def write_turned(path) -> None:
    """60 x 80 pixels (height x width) that are seen as 80 x 60."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(1)).save(path, exif=exif)


def test_set_without_images(some_set):
    annotated = some_set({})
    assert scan_images(annotated, 2) == []
    assert with_scanned_sizes(annotated, []).sizes.shape == (0, 2)
    assert list(image_findings(annotated, [])) == list(repeated_images(annotated, [])) == []
    assert equal_images([], []) == []


def test_good_images_have_sizes_and_digests_and_no_findings(some_set):
    annotated = some_set({1: noise(1), 2: noise(2, 30, 40), 3: noise(3)})
    scans = scan_images(annotated, 2)
    assert [scan.size for scan in scans] == [(60, 80), (30, 40), (60, 80)]
    assert len({scan.digest for scan in scans}) == 3 and not any(scan.turned or scan.error for scan in scans)
    assert list(image_findings(annotated, scans)) == list(repeated_images(annotated, scans)) == []


def test_missing_image_is_left_to_others(some_set):
    annotated = some_set({1: noise(1), 2: noise(2)}, lambda folder: (folder / "1.png").unlink())
    scans = scan_images(annotated, 1)
    assert scans[0] is None and scans[1].size == (60, 80)
    assert list(image_findings(annotated, scans)) == []


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_unreadable_image(some_set, content):
    def damage(folder):
        path = folder / "2.png"
        path.write_bytes(path.read_bytes()[:200] if content is None else content)

    annotated = some_set({1: noise(1), 2: noise(2)}, damage)
    (finding,) = image_findings(annotated, scan_images(annotated, 2))
    assert (finding.level, finding.file, finding.subject) == ("error", annotated.image_folder / "2.png", "image 2")
    assert str(annotated.image_folder) not in finding.message and finding.advice.startswith("replace or remove")


def test_image_of_another_size(some_set, tmp_path):
    annotated = some_set({1: noise(1)}, lambda folder: cv2.imwrite(str(folder / "1.png"), noise(1, 80, 60)))
    (finding,) = image_findings(annotated, scan_images(annotated, 1))
    assert finding.level == "error" and finding.message == "is 60 x 80 pixels, but annotated as 80 x 60"


@pytest.mark.parametrize(("annotated", "turned"), [((80, 60), False), ((60, 80), True), ((0, 0), False)])
def test_exif_rotation_is_told_when_the_annotation_ignores_it(tmp_path, annotated, turned):
    write_turned(tmp_path / "turned.jpg")
    scan = scan_image(tmp_path / "turned.jpg", annotated)
    assert (scan.size, scan.turned, scan.error) == ((80, 60), turned, "")


def test_annotation_that_ignores_the_exif_rotation_is_a_warning(some_set):
    def turn(folder):
        write_turned(folder / "turned.jpg")
        (folder / "turned.jpg").rename(folder / "1.png")

    annotated = some_set({1: noise(1)}, turn)
    (finding,) = image_findings(annotated, scan_images(annotated, 1))
    assert finding.level == "warning" and "60 x 80 pixels as viewers show it, 80 x 60 as stored" in finding.message


def test_sizes_that_the_annotation_file_does_not_tell_are_the_images_own(some_set):
    annotated = some_set({1: noise(1), 2: noise(2)})
    annotated.sizes[1] = 0
    sized = with_scanned_sizes(annotated, [ImageScan((1, 1)), ImageScan((33, 44))])
    assert sized.sizes.tolist() == [[60, 80], [33, 44]]
    assert with_scanned_sizes(annotated, [None, None]).sizes.tolist() == [[60, 80], [0, 0]]


def test_equal_pixels_are_found_whatever_the_format(some_set):
    def rewrite(folder):  # another PNG of the same pixels
        cv2.imwrite(str(folder / "4.png"), cv2.imread(str(folder / "2.png")), (cv2.IMWRITE_PNG_COMPRESSION, 0))

    annotated = some_set({1: noise(1), 2: noise(2), 3: noise(3), 4: noise(4)}, rewrite)
    assert annotated.image_path(1).read_bytes() != annotated.image_path(3).read_bytes()
    (finding,) = repeated_images(annotated, scan_images(annotated, 2))
    assert finding.level == "warning" and finding.subject == "image 4" and "image 2 (2.png)" in finding.message


def test_the_same_bytes_of_other_shapes_are_not_equal(some_set):
    annotated = some_set({1: noise(1, 30, 40), 2: noise(1, 30, 40).reshape(40, 30, 3)})
    assert list(repeated_images(annotated, scan_images(annotated, 1))) == []


def test_images_that_two_sets_share():
    train = [None, ImageScan(digest=b"a"), ImageScan(error="broken"), ImageScan(digest=b"b")]
    val = [ImageScan(digest=b"b"), ImageScan(error="broken"), None, ImageScan(digest=b"c")]
    assert equal_images(train, val) == [(3, 0)]
