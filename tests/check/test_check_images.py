"""Decoded images: unreadable ones, wrong sizes and duplicates."""

import cv2
import numpy as np
import pytest
from PIL import Image

from efficientdet.check.images import (
    ImageScan,
    image_findings,
    same_pixels,
    scan_image,
    scan_images,
    with_scanned_sizes,
)
from efficientdet.data.annotations import read_set


def noise(seed: int, height: int = 60, width: int = 80) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def some_set(tmp_path, write_coco, make_project):
    """Return a function that writes a set of images by id, lets `edit` change the folder, and reads the set."""

    def some_set(arrays, edit=lambda folder: None):
        write_coco(tmp_path, "some", arrays)
        edit(tmp_path / "some")
        return read_set(tmp_path, "some", make_project())

    return some_set


def write_turned(path) -> None:
    """Write an image of 60 x 80 pixels (height x width) that viewers show as 80 x 60."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(1)).save(path, exif=exif)


def test_set_without_images(some_set):
    annotated = some_set({})
    assert scan_images(annotated, 2) == []
    assert with_scanned_sizes(annotated, []).sizes.shape == (0, 2)
    assert list(image_findings(annotated, [])) == []
    assert same_pixels([], []) == []


def test_images_without_faults_have_sizes_digests_and_no_findings(some_set):
    annotated = some_set({1: noise(1), 2: noise(2, 30, 40), 3: noise(3)})
    scans = scan_images(annotated, 2)
    assert [scan.size for scan in scans] == [(60, 80), (30, 40), (60, 80)]
    assert len({scan.digest for scan in scans}) == 3 and not any(scan.exif_ignored or scan.error for scan in scans)
    assert list(image_findings(annotated, scans)) == []


def test_missing_image_has_an_empty_scan_and_no_finding(some_set):
    annotated = some_set({1: noise(1), 2: noise(2)}, lambda folder: (folder / "1.png").unlink())
    scans = scan_images(annotated, 1)
    assert scans[0] == ImageScan() and scans[1].size == (60, 80)
    assert list(image_findings(annotated, scans)) == []


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_unreadable_image_is_an_error(some_set, content):
    def damage(folder):
        path = folder / "2.png"
        path.write_bytes(path.read_bytes()[:200] if content is None else content)

    annotated = some_set({1: noise(1), 2: noise(2)}, damage)
    (finding,) = image_findings(annotated, scan_images(annotated, 2))
    assert (finding.level, finding.file, finding.subject) == ("error", annotated.image_path(1), "image 2")
    assert str(annotated.image_path(1)) not in finding.message and finding.advice


def test_image_of_another_size_is_an_error(some_set):
    annotated = some_set({1: noise(1)}, lambda folder: cv2.imwrite(str(folder / "1.png"), noise(1, 80, 60)))
    (finding,) = image_findings(annotated, scan_images(annotated, 1))
    assert finding.level == "error" and finding.message == "is 60 x 80 pixels, but annotated as 80 x 60"


@pytest.mark.parametrize(("annotated", "ignored"), [((80, 60), False), ((60, 80), True), ((0, 0), False)])
def test_scan_notices_an_annotation_that_ignores_the_exif_rotation(tmp_path, annotated, ignored):
    write_turned(tmp_path / "turned.jpg")
    scan = scan_image(tmp_path / "turned.jpg", annotated)
    assert (scan.size, scan.exif_ignored, scan.error) == ((80, 60), ignored, "")


def test_annotation_that_ignores_the_exif_rotation_is_a_warning(some_set):
    def turn(folder):
        write_turned(folder / "turned.jpg")
        (folder / "turned.jpg").rename(folder / "1.png")

    annotated = some_set({1: noise(1)}, turn)
    (finding,) = image_findings(annotated, scan_images(annotated, 1))
    assert finding.level == "warning" and "60 x 80 pixels as viewers show it, 80 x 60 as stored" in finding.message


def test_unknown_sizes_are_replaced_by_the_decoded_ones(some_set):
    annotated = some_set({1: noise(1), 2: noise(2)})
    annotated.sizes[1] = 0
    sized = with_scanned_sizes(annotated, [ImageScan((1, 1)), ImageScan((33, 44))])
    assert sized.sizes.tolist() == [[60, 80], [33, 44]]
    assert with_scanned_sizes(annotated, [ImageScan(), ImageScan()]).sizes.tolist() == [[60, 80], [0, 0]]


def test_equal_pixels_in_different_files_are_duplicates(some_set):
    def rewrite(folder):  # another PNG of the same pixels
        cv2.imwrite(str(folder / "4.png"), cv2.imread(str(folder / "2.png")), (cv2.IMWRITE_PNG_COMPRESSION, 0))

    annotated = some_set({1: noise(1), 2: noise(2), 3: noise(3), 4: noise(4)}, rewrite)
    assert annotated.image_path(1).read_bytes() != annotated.image_path(3).read_bytes()
    (finding,) = image_findings(annotated, scan_images(annotated, 2))
    assert finding.level == "warning" and finding.subject == "image 4" and "image 2 (2.png)" in finding.message


def test_the_same_bytes_in_another_shape_are_no_duplicate(some_set):
    annotated = some_set({1: noise(1, 30, 40), 2: noise(1, 30, 40).reshape(40, 30, 3)})
    assert list(image_findings(annotated, scan_images(annotated, 1))) == []


def test_images_of_two_sets_with_the_same_pixels():
    train = [ImageScan(), ImageScan(digest=b"a"), ImageScan(error="broken"), ImageScan(digest=b"b")]
    val = [ImageScan(digest=b"b"), ImageScan(error="broken"), ImageScan(), ImageScan(digest=b"c")]
    assert same_pixels(train, val) == [(3, 0)]
