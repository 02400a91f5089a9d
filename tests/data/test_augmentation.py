"""Augmentations of a single image, compared with numbers computed by hand, and all of them together."""

from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from efficientdet.data import dataset as dataset_module
from efficientdet.data.augmentation import (
    Augmentation,
    cut_out,
    degrade,
    jitter_colors,
    quarter_turn,
    rotate_and_shear,
    vertical_flip,
)
from efficientdet.data.dataset import CocoDataset, SampleKey
from efficientdet.data.transforms import Letterbox, Target, horizontal_flip
from efficientdet.project import load_project

FILL = (124, 116, 104)
EVERYTHING = Augmentation(
    min_scale=0.5, max_scale=1.5, photometric=0.5, vertical_flip=0.5, quarter_turns=0.5, rotate=10, shear=5,
    cutout=0.5, blur=0.5, mosaic=0.5, mixup=0.5, copy_paste=0.5,
)  # fmt: skip
# Each with an image, its objects and a generator.
FUNCTIONS = {
    "vertical_flip": lambda image, target, rng: vertical_flip(image, target),
    "quarter_turn": lambda image, target, rng: quarter_turn(image, target, 1),
    "rotate_and_shear": lambda image, target, rng: rotate_and_shear(image, target, *rng.uniform(-9, 9, 3), FILL),
    "cut_out": lambda image, target, rng: cut_out(image, target, rng, FILL),
    "jitter_colors": lambda image, target, rng: jitter_colors(image, target, rng, 1.0),
    "degrade": lambda image, target, rng: degrade(image, target, rng, rng.uniform(0.5, 2)),
}


def objects(*boxes: tuple[float, float, float, float]) -> Target:
    return Target(np.array(boxes, np.float32).reshape(-1, 4), np.arange(len(boxes)))


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def rectangle(height: int, width: int, x1: int, y1: int, x2: int, y2: int) -> np.ndarray:
    """Return a black image with a white rectangle."""
    image = np.zeros((height, width, 3), np.uint8)
    image[y1:y2, x1:x2] = 255
    return image


def extent(image: np.ndarray) -> list[int]:
    """Return the box of the pixels that are rather white than black."""
    white = image[..., 0] > 127
    rows, columns = np.flatnonzero(white.any(axis=1)), np.flatnonzero(white.any(axis=0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_image_without_objects(name):
    image, target = FUNCTIONS[name](noise(40, 60), objects(), np.random.default_rng(0))
    assert image.dtype == np.uint8 and sorted(image.shape) == [3, 40, 60]
    assert target.boxes.shape == (0, 4) and target.boxes.dtype == np.float32
    assert target.class_ids.shape == (0,) and target.class_ids.dtype == np.int64


@pytest.mark.parametrize("name", FUNCTIONS)
def test_inputs_may_be_read_only_and_mirrored_and_are_not_modified(name):
    image, target = noise(40, 60), objects((5, 6, 30, 33), (40, 2, 60, 40))
    for array in (image, *target):
        array.setflags(write=False)  # writing raises
    plain, moved = FUNCTIONS[name](image[:, ::-1], target, np.random.default_rng(1))
    again, same = FUNCTIONS[name](image[:, ::-1].copy(), target, np.random.default_rng(1))
    np.testing.assert_array_equal(plain, again)
    np.testing.assert_array_equal(moved.boxes, same.boxes)
    assert moved.boxes.dtype == np.float32 and set(moved.class_ids) <= {0, 1}
    if name != "vertical_flip":  # a view
        assert plain.flags.c_contiguous


# Flips and turns.


def test_vertical_flip_moves_boxes_to_the_other_half():
    flipped, target = vertical_flip(rectangle(20, 10, 3, 2, 9, 5), objects((3, 2, 9, 5), (0, 0, 10, 0.5)))
    assert target.boxes.tolist() == [[3, 15, 9, 18], [0, 19.5, 10, 20]]
    assert extent(flipped) == [3, 15, 9, 18]


@pytest.mark.parametrize(
    ("turns", "shape", "box"),
    [(0, (20, 30), (3, 2, 9, 5)), (1, (30, 20), (2, 21, 5, 27)), (2, (20, 30), (21, 15, 27, 18)),
     (3, (30, 20), (15, 3, 18, 9)), (4, (20, 30), (3, 2, 9, 5))],
)  # fmt: skip
def test_quarter_turns_counterclockwise(turns, shape, box):
    turned, target = quarter_turn(rectangle(20, 30, 3, 2, 9, 5), objects((3, 2, 9, 5)), turns)
    assert turned.shape == (*shape, 3) and turned.flags.c_contiguous
    assert target.boxes.tolist() == [list(box)] and target.boxes.dtype == np.float32
    assert extent(turned) == list(box)


# Rotation and shear.


def test_rotation_by_nothing_is_the_identity():
    image, target = noise(40, 61), objects((3.5, 2, 9, 5), (0, 0, 61, 40))
    rotated, same = rotate_and_shear(image, target, 0, 0, 0, FILL)
    np.testing.assert_array_equal(rotated, image)
    np.testing.assert_allclose(same.boxes, target.boxes, atol=1e-5)


def test_rotation_by_90_degrees_is_a_quarter_turn():
    image, target = noise(50, 50), objects((3, 2, 9, 15), (20, 20, 50, 44))
    rotated, moved = rotate_and_shear(image, target, 90, 0, 0, FILL)
    turned, expected = quarter_turn(image, target, 1)
    np.testing.assert_array_equal(rotated, turned)
    np.testing.assert_allclose(moved.boxes, expected.boxes, atol=1e-4)


def test_shear_computed_by_hand():
    # By 45 degrees along x: (x, y) becomes (x + y, y), from the center. The ellipse has the radii 40 and 30.
    _, target = rotate_and_shear(noise(200, 200), objects((70, 80, 150, 140)), 0, 45, 0, FILL)
    np.testing.assert_allclose(target.boxes, [[120 - 50, 80, 120 + 50, 140]], atol=1e-4)
    sheared, _ = rotate_and_shear(rectangle(200, 200, 100, 100, 101, 140), objects(), 0, 45, 0, FILL)
    np.testing.assert_allclose(extent(np.where(sheared == FILL, 0, sheared)), [100, 100, 140, 140], atol=1)


@pytest.mark.parametrize("axes", [(20, 20), (30, 12), (8, 25)])
def test_box_of_a_rotated_and_sheared_ellipse_encloses_it(axes):
    rng = np.random.default_rng(0)
    for _ in range(50):
        x, y = rng.integers(60, 100, 2).tolist()
        image = cv2.ellipse(np.zeros((160, 170, 3), np.uint8), (x, y), axes, 0, 0, 360, (255,) * 3, cv2.FILLED)
        drawn = objects(extent(image))
        rotated, target = rotate_and_shear(image, drawn, *rng.uniform(-20, 20, 3), (0, 0, 0))
        np.testing.assert_allclose(target.boxes[0], extent(rotated), atol=1.5)


def test_what_rotates_out_of_the_image_is_dropped_and_its_place_filled():
    corner, middle = (90, 0, 100, 10), (45, 20, 55, 30)
    image = np.full((50, 100, 3), 200, np.uint8)
    rotated, target = rotate_and_shear(image, objects(corner, middle), 45, 0, 0, FILL)
    assert target.class_ids.tolist() == [1]
    assert rotated[0, 0].tolist() == list(FILL) and rotated[25, 50].tolist() == [200] * 3
    np.testing.assert_allclose(target.boxes, [middle], atol=1e-4)  # a circle remains one


# Cutout.


def test_cut_out_drops_what_it_hides():
    boxes = [(x, y, x + 16, y + 12) for x in range(0, 80, 16) for y in range(0, 60, 12)]
    counts = set()
    for seed in range(100):
        image, target = cut_out(np.full((60, 80, 3), 200, np.uint8), objects(*boxes), np.random.default_rng(seed), FILL)
        hidden = (image != 200).all(axis=2)
        assert (image[hidden] == FILL).all() and 0.01 <= hidden.mean() <= 3 * 0.16
        visible = [1 - hidden[y1:y2, x1:x2].mean() for x1, y1, x2, y2 in boxes]
        assert target.class_ids.tolist() == [k for k, share in enumerate(visible) if share >= 0.2]
        assert target.boxes.tolist() == [list(boxes[k]) for k in target.class_ids]
        counts.add(len(target.class_ids))
    assert len(counts) > 3 and max(counts) == len(boxes)


# Colors and quality.


@pytest.mark.parametrize(
    ("changes", "hue", "expected"),
    [
        ((0, 0, 0), 0, [[100, 60, 20], [40, 40, 40]]),
        ((0.5, 0, 0), 0, [[150, 90, 30], [60, 60, 60]]),  # brightness: times 1.5
        ((0, -0.5, 0), 0, [[76, 56, 36], [46, 46, 46]]),  # contrast: half as far from the mean, 52.7
        ((0, 0, -0.5), 0, [[84, 64, 44], [40, 40, 40]]),  # saturation: half as far from the gray, 67.4
        ((0, 0, 0), 2 * np.pi / 3, [[16, 96, 56], [40, 40, 40]]),  # hue: 20, 100, 60, as bright as before
    ],
)
def test_colors_computed_by_hand(changes, hue, expected):
    numbers = iter((np.array(changes), hue))
    drawn = SimpleNamespace(uniform=lambda *limits: next(numbers))
    image = np.array([[[100, 60, 20], [40, 40, 40]]], np.uint8)
    jittered, _ = jitter_colors(image, objects(), drawn, 1.0)
    assert np.abs(jittered[0].astype(int) - expected).max() <= 1


def test_strength_0_leaves_the_colors():
    image, target = noise(40, 60), objects((5, 6, 30, 33))
    jittered, same = jitter_colors(image, target, np.random.default_rng(0), 0.0)
    np.testing.assert_array_equal(jittered, image)
    assert same is target


def test_stronger_changes_differ_more():
    image = noise(40, 60)
    changes = [
        np.mean([np.abs(jitter_colors(image, objects(), np.random.default_rng(seed), strength)[0].astype(int) - image)
                 for seed in range(20)])
        for strength in (0.1, 0.5, 1.0)
    ]  # fmt: skip
    assert 0 < changes[0] < changes[1] < changes[2] < 80


@pytest.mark.parametrize("pixel", [0.5, 1.0, 4.0])
def test_degraded_images_keep_size_and_brightness_and_lose_detail(pixel):
    image = noise(64, 96)
    detail = []
    for seed in range(20):
        degraded, _ = degrade(image, objects(), np.random.default_rng(seed), pixel)
        assert degraded.shape == image.shape and degraded.dtype == np.uint8
        assert np.abs(degraded.mean(axis=(0, 1)) - image.mean(axis=(0, 1))).max() < 6
        detail.append(degraded.std() / image.std())
    assert max(detail) < (0.5 if pixel > 1 else 1) and len({round(share, 3) for share in detail}) > 10


# All together.


def apply(augmentation: Augmentation, image: np.ndarray, target: Target, seed: int):
    rng = np.random.default_rng(seed)
    other = noise(50, 30), objects((2, 3, 10, 13))
    return *augmentation.apply(image, target, (64, 96), rng, lambda: other, FILL), rng


def test_what_is_off_draws_nothing():
    for seed in range(5):
        image, target, letterbox, rng = apply(Augmentation(), noise(40, 60), objects((3, 2, 9, 25)), seed)
        expected = np.random.default_rng(seed)
        flipped = expected.random() < 0.5
        same = horizontal_flip(noise(40, 60), objects((3, 2, 9, 25))) if flipped else (noise(40, 60), target)
        np.testing.assert_array_equal(image, same[0])
        np.testing.assert_array_equal(target.boxes, same[1].boxes)
        assert letterbox == Letterbox.fit((40, 60), (64, 96)) and rng.random() == expected.random()


@pytest.mark.parametrize("setting", [name for name in vars(EVERYTHING) if not name.endswith("scale")])
def test_each_setting_changes_the_image(setting):
    on = replace(Augmentation(), **{setting: 20.0 if setting in ("rotate", "shear") else 1.0})
    image, target = noise(40, 60), objects((3, 2, 9, 25))
    is_changed = []
    for seed in range(5):
        changed, moved, letterbox, _ = apply(on, image, target, seed)
        assert changed.dtype == np.uint8 and letterbox.original == changed.shape[:2]
        assert moved.boxes.dtype == np.float32 and len(moved.boxes) == len(moved.class_ids)
        is_changed.append(all(not np.array_equal(changed, plain) for plain in (image, image[:, ::-1])))
    assert all(is_changed) or (setting == "copy_paste" and any(is_changed))  # not every object finds a place


@pytest.mark.parametrize("shape", [(40, 60), (1, 200), (300, 2), (1, 1)])
def test_everything_at_once_keeps_boxes_inside_the_image(shape):
    whole = objects((0, 0, shape[1], shape[0]))
    for seed in range(40):
        image, target, letterbox, _ = apply(EVERYTHING, noise(*shape), whole, seed)
        assert image.shape == (*letterbox.original, 3) and target.class_ids.dtype == np.int64
        assert (target.boxes >= 0).all() and (target.boxes <= np.tile(image.shape[1::-1], 2)).all()
        assert (target.boxes[:, 2:] - target.boxes[:, :2] >= 1).all()
        pixels = letterbox.apply(image, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        assert pixels.shape == (64, 96, 3) and pixels.min() > -2.2 and pixels.max() < 2.7


@pytest.mark.parametrize(("max_scale", "decoded"), [(0.5, (151, 200)), (1.5, (151, 200)), (2.0, (301, 400))])
def test_large_photographs_are_decoded_smaller(tmp_path, write_coco, make_project, monkeypatch, max_scale, decoded):
    annotation = {"image_id": 1, "category_id": 7, "bbox": [163, 90, 417, 300]}
    photograph = rectangle(601, 800, 163, 90, 580, 390)
    write_coco(tmp_path, "some", {1: photograph}, [annotation])
    (tmp_path / "some" / "1.png").write_bytes(cv2.imencode(".jpg", photograph)[1].tobytes())
    read, shapes = dataset_module.read_image, []
    monkeypatch.setattr(dataset_module, "read_image", lambda *args: shapes.append(read(*args)) or shapes[-1])
    project = make_project(mean=[0, 0, 0], std=[1, 1, 1])
    dataset = CocoDataset(tmp_path, "some", project, (128, 128), augmentation=Augmentation(0.5, max_scale))
    for epoch in range(5):
        sample = dataset[SampleKey(0, epoch)]
        np.testing.assert_allclose(sample.target.boxes[0], extent(sample.image * 255), atol=1)
        (window, _), (resized, _) = sample.letterbox.original, sample.letterbox.resized
        scale = resized / window * decoded[1] / 128
        assert 0.5 * 0.98 < scale < max_scale * 1.02
    assert {image.shape[:2] for image in shapes} == {decoded}
    plain = dataset[0]
    assert shapes[-1].shape == photograph.shape and plain.letterbox == Letterbox.fit((601, 800), (128, 128))


def test_sample_depends_only_on_seed_epoch_and_index(shapes_project):
    def drawn(keys, seed: int = 3, **options) -> list[bytes]:
        project = load_project(shapes_project.yml)
        dataset = CocoDataset(shapes_project.data, "train", project, (128, 128), seed, EVERYTHING, **options)
        samples = [dataset[key] for key in keys]
        return [sample.image.tobytes() + b"".join(map(np.ndarray.tobytes, sample.target)) for sample in samples]

    keys = [SampleKey(index, epoch) for epoch in range(4) for index in range(6)]
    first = drawn(keys)
    assert len(set(first)) == len(keys)
    np.random.seed(1)
    cv2.setRNGSeed(1)
    assert drawn(keys[::-1])[::-1] == first and drawn(keys + keys)[len(keys) :] == first
    assert all(other != same for other, same in zip(drawn(keys, seed=4), first))
