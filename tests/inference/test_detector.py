"""The detector as other programs use it."""

import copy

import cv2
import numpy as np
import pytest
import torch
from numpy.random import RandomState
from scripts import write_shapes_project, write_weights
from torchvision.ops import box_iou

from efficientdet import Detections, EfficientDet, load_detector
from efficientdet.data.shapes import draw_image
from efficientdet.inference.detector import Detector
from efficientdet.inference.options import DetectionOptions
from efficientdet.project import SHAPES_WEIGHTS, load_project
from efficientdet.structures import Outputs
from utils.errors import InputError
from utils.stopwatch import Stopwatch

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return load_project(write_shapes_project(tmp_path_factory.mktemp("drawn")).yml)


@pytest.fixture(scope="module")
def untrained_detector(project, tmp_path_factory):
    weights = write_weights(tmp_path_factory.mktemp("weights") / "untrained.pth", 0, project.num_classes)
    return load_detector(0, weights, project=project, device="cpu", image_size=128)


@pytest.fixture
def detector(untrained_detector):
    """A detector whose network a test may replace."""
    detector = copy.copy(untrained_detector)
    detector.runner = copy.copy(detector.runner)
    return detector


def put_into(detector: Detector, *boxes_yxyx: list[float], class_ids: list[int]) -> "Seeing":
    """Replace the detector's network by one that sees these boxes in every image, each with a higher score."""
    detector.runner.network = Seeing(boxes_yxyx, class_ids)
    return detector.runner.network


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


class Seeing(torch.nn.Module):
    """A network that sees the same boxes in every image, and keeps its inputs."""

    def __init__(self, boxes_yxyx, class_ids, num_classes: int = 2):
        super().__init__()
        self.anchors = torch.tensor(boxes_yxyx)
        self.logits = torch.full((len(class_ids), num_classes), -9.0)
        self.logits[range(len(class_ids)), class_ids] = torch.arange(3.0, 3 + len(class_ids))
        self.batches = []

    def forward(self, images):
        self.batches.append(images.clone())
        count = len(images)
        return Outputs(
            self.logits.expand(count, -1, -1), torch.zeros(count, len(self.anchors), 4), self.anchors.clone()
        )


def assert_same(some: Detections, other: Detections) -> None:
    torch.testing.assert_close(some.boxes, other.boxes, rtol=1e-3, atol=0.05)
    torch.testing.assert_close(some.scores, other.scores, rtol=1e-3, atol=1e-5)
    assert torch.equal(some.class_ids, other.class_ids)


def test_no_images_give_no_detections(detector):
    assert detector([]) == []
    assert detector([], batch_size=8) == []


def test_image_without_objects_has_empty_detections(detector):
    (found,) = detector([noise(60, 80)], score_threshold=0.99)
    assert isinstance(found, Detections)
    assert (found.boxes.shape, found.scores.shape, found.class_ids.shape) == ((0, 4), (0,), (0,))


def test_arrays_and_files_give_the_same(detector, tmp_path):
    arrays = [noise(60, 80), noise(100, 50, seed=1), noise(7, 300, seed=2)]
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path, array in zip(paths, arrays):
        cv2.imwrite(str(path), cv2.cvtColor(array, cv2.COLOR_RGB2BGR))
    from_arrays = detector(arrays, score_threshold=0.01)
    assert sum(map(len, from_arrays)) > 0
    mixed = detector([str(paths[0]), paths[1], arrays[2]], score_threshold=0.01)
    for some, other in zip(from_arrays, mixed, strict=True):
        assert_same(some, other)


def test_batch_size_changes_nothing(detector):
    arrays = [noise(60, 80, seed) for seed in range(3)]
    # No suppression: a difference in the last digit could decide it otherwise.
    one, two = (detector(arrays, score_threshold=0.01, iou_threshold=1.0, batch_size=size) for size in (1, 2))
    for some, other in zip(one, two, strict=True):
        assert abs(len(some) - len(other)) <= 2
        torch.testing.assert_close(some.scores[:20], other.scores[:20], rtol=1e-3, atol=1e-5)


def test_boxes_are_in_pixels_of_each_image(detector):
    # 200 x 100 pixels shrink by 0.64 to 128 x 64; 40 x 80 grow by 1.6 to 64 x 128.
    put_into(detector, [16.0, 32, 48, 96], [64.0, 0, 128, 64], class_ids=[1, 0])
    wide, high = detector([noise(100, 200), noise(80, 40)], batch_size=2)
    # The better score comes first. Boxes are clipped to the input's last pixel, 127.
    torch.testing.assert_close(wide.boxes, torch.tensor([[0, 100, 100, 127 / 0.64], [50, 25, 150, 75]]))
    torch.testing.assert_close(high.boxes, torch.tensor([[0, 40, 40, 127 / 1.6], [20, 10, 60, 30]]))
    for found in (wide, high):
        assert found.class_ids.tolist() == [0, 1]
        torch.testing.assert_close(found.scores, torch.tensor([4.0, 3.0]).sigmoid())
        assert found.boxes.device == CPU


def test_boxes_go_back_by_the_two_ratios_separately(detector):
    put_into(detector, [10.0, 10, 50, 50], class_ids=[0])
    (found,) = detector([noise(333, 500)])  # 128 / 500 across, 85 / 333 down (85.248 truncated)
    expected = [10 * 500 / 128, 10 * 333 / 85, 50 * 500 / 128, 50 * 333 / 85]
    torch.testing.assert_close(found.boxes, torch.tensor([expected]))


def test_network_sees_the_letterboxed_normalized_image(detector):
    network = put_into(detector, [0.0, 0, 9, 9], class_ids=[0])
    detector([np.full((50, 100, 3), (255, 0, 51), np.uint8)])
    (batch,) = network.batches
    assert batch.shape == (1, 3, 128, 128) and batch.dtype == torch.float32
    # (1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (0.2 - 0.406) / 0.225
    torch.testing.assert_close(batch[0, :, 0, 0], torch.tensor([2.248908, -2.035714, -0.915556]))
    torch.testing.assert_close(batch[0, :, 63, 127], torch.tensor([2.248908, -2.035714, -0.915556]))
    assert (batch[0, :, 64:] == 0).all()


def test_images_pass_through_in_batches(detector):
    network = put_into(detector, [0.0, 0, 9, 9], class_ids=[0])
    assert len(detector([noise(20, 20)] * 5, batch_size=2)) == 5
    assert [len(batch) for batch in network.batches] == [2, 2, 1]


def test_thresholds_apply(detector):
    put_into(detector, [0.0, 0, 50, 50], [0.0, 0, 50, 60], [0.0, 0, 50, 60], class_ids=[0, 0, 1])
    scores = torch.tensor([3.0, 4.0, 5.0]).sigmoid()
    # The first box overlaps the second, of its class, by 5/6.
    assert len(detector([noise(64, 64)], iou_threshold=0.9)[0]) == 3
    assert detector([noise(64, 64)], iou_threshold=0.5)[0].scores.tolist() == pytest.approx(scores[[2, 1]].tolist())
    above_first = (scores[0] + scores[1]).item() / 2
    assert len(detector([noise(64, 64)], score_threshold=above_first, iou_threshold=1.0)[0]) == 2


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((1, 8, 8, 3), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8, 3), np.uint16),
        np.zeros((0, 8, 3), np.uint8),
    ],
    ids=lambda image: f"{image.shape} {image.dtype}",
)
def test_array_of_another_shape_or_type_is_an_error(detector, image):
    with pytest.raises(ValueError, match=r"\(H, W, 3\) uint8 RGB"):
        detector([image])


def test_single_image_without_a_list_is_an_error(detector, tmp_path):
    for image in (noise(8, 8), np.zeros((2, 8, 8, 3), np.uint8), "image.jpg", tmp_path / "image.jpg"):
        with pytest.raises(ValueError, match="list"):
            detector(image)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_batch_size_below_one_is_an_error(detector, batch_size):
    with pytest.raises(ValueError):
        detector([noise(8, 8)], batch_size=batch_size)


def test_file_that_is_no_image_is_an_error(detector, tmp_path):
    with pytest.raises(InputError, match=r"none\.jpg"):
        detector([tmp_path / "none.jpg"])


def test_results_are_ordinary_tensors(detector):
    (found,) = detector([noise(60, 80)], score_threshold=0.01)
    assert not found.boxes.requires_grad
    (found.boxes * 2).numpy()


# Options.


def test_the_best_detections_are_kept(detector):
    put_into(detector, [0.0, 0, 50, 50], [60.0, 0, 90, 60], [0.0, 60, 50, 120], class_ids=[0, 1, 0])
    (found,) = detector([noise(64, 64)], max_detections=2)
    torch.testing.assert_close(found.scores, torch.tensor([5.0, 4.0]).sigmoid())


def test_classes_are_chosen_by_name(detector):
    put_into(detector, [0.0, 0, 50, 50], [60.0, 0, 90, 60], [0.0, 60, 50, 120], class_ids=[0, 1, 0])
    assert detector([noise(64, 64)], classes=["disc"])[0].class_ids.tolist() == [1]
    assert detector([noise(64, 64)], classes=("square",), max_detections=1)[0].class_ids.tolist() == [0]
    assert len(detector([noise(64, 64)], classes=["disc", "square"])[0]) == 3
    assert len(detector([noise(64, 64)], classes=[])[0]) == 0


def test_unknown_class_is_an_error_that_suggests_another(detector):
    with pytest.raises(InputError, match=r"drawn\.yml.*'disk'.*'disc'"):
        detector([noise(64, 64)], classes=["square", "disk"])


def test_flip_also_detects_in_the_mirror_image(detector):
    # It sees a box in the same place of both: 10 to 30 of the image's 64 columns on the canvas.
    network = put_into(detector, [0.0, 10, 50, 30], class_ids=[1])
    (found,) = detector([noise(80, 40)], flip=True)  # grows by 1.6
    straight, mirrored = network.batches
    assert torch.equal(mirrored[0, :, :, :64], straight[0, :, :, :64].flip(-1))
    assert (mirrored[0, :, :, 64:] == 0).all()
    expected = torch.tensor([[10.0, 0, 30, 50], [64 - 30, 0, 64 - 10, 50]]) / 1.6
    torch.testing.assert_close(found.boxes, expected)
    assert found.class_ids.tolist() == [1, 1]


def test_object_seen_in_both_directions_is_one(detector):
    put_into(detector, [0.0, 24, 50, 40], class_ids=[1])  # its own mirror image within 64 columns
    assert len(detector([noise(80, 40)], flip=True)[0]) == 1


def test_rect_pads_no_more_than_the_batch_needs(detector):
    detector = load_detector(0, project=detector.project, device="cpu", image_size=(256, 384))
    network = put_into(detector, [0.0, 0, 64, 128], class_ids=[0])
    wide, flat = noise(100, 400), noise(10, 400)
    detector([wide, flat], rect=True)
    detector([wide], rect=False)
    found, _ = detector([wide, noise(400, 400)], rect=True, batch_size=2)
    shapes = [tuple(batch.shape[-2:]) for batch in network.batches]
    # 400 columns shrink to 384, 100 rows to 96; the square becomes 256 x 256.
    assert shapes == [(128, 384), (128, 384), (256, 384), (256, 384)]
    torch.testing.assert_close(found.boxes, torch.tensor([[0, 0, 128 / 0.96, 64 / 0.96]]))


def test_tiles_find_what_lies_in_a_part_of_the_image(detector):
    # It sees an object in the middle of the whole image and of each tile, which is 64 pixels wide.
    network = put_into(detector, [32.0, 32, 96, 96], class_ids=[0])
    (found,) = detector([noise(64, 100)], tile=64, batch_size=1)
    assert len(network.batches) == 3  # the whole image, and 64 columns from 0 and from 36
    boxes = sorted(found.boxes.tolist())
    expected = [[16, 16, 48, 48], [25, 25, 75, 75], [52, 16, 84, 48]]  # the second is the whole image's
    assert len(boxes) == 3
    for box, right in zip(boxes, expected):
        assert box == pytest.approx(right, abs=1)


def test_tiles_of_one_image_pass_through_in_batches(detector):
    network = put_into(detector, [32.0, 32, 96, 96], class_ids=[0])
    detector([noise(64, 250)], tile=64, batch_size=4)
    assert [len(batch) for batch in network.batches] == [4, 2]  # the whole image, and 5 tiles


def test_the_best_are_chosen_after_tiles_are_joined(detector, monkeypatch):
    cut, other, whole = [44.0, 0, 64, 20], [0.0, 40, 20, 60], [8.0, 0, 28, 20]  # whole and cut are one object
    in_tiles = [
        Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64)),
        Detections(torch.tensor([cut]), torch.tensor([0.9]), torch.tensor([0])),
        Detections(torch.tensor([other, whole]), torch.tensor([0.85, 0.8]), torch.tensor([0, 0])),
    ]
    monkeypatch.setattr(
        detector,
        "_detect_batch",
        lambda batch, options, stopwatch: [found[: options.max_detections] for found in in_tiles],
    )
    (best,) = detector([noise(64, 100)], tile=64, batch_size=3, max_detections=1)
    assert best.scores.tolist() == pytest.approx([0.85])


def test_the_best_are_chosen_after_both_directions_are_joined(detector):
    image = Seeing([[60.0, 0, 80, 20], [0.0, 0, 20, 20], [0.0, 20, 20, 40]], [0, 0, 0])
    mirrored = Seeing([[0.0, 88, 20, 128]] * 4, [0, 0, 0, 0])  # sees the last two as one, with a higher score
    found = []
    for max_detections in (None, 2):
        networks = iter((image, mirrored))
        detector.runner.network = lambda images, networks=networks: next(networks)(images)
        found += detector([noise(128, 128)], flip=True, max_detections=max_detections)
    every, best = found
    assert len(every) == 2
    assert_same(best, every)


def test_tiles_change_nothing_for_small_images(detector):
    (plain,), (tiled,) = (detector([noise(60, 80)], score_threshold=0.01, tile=tile) for tile in (None, 100))
    assert_same(plain, tiled)
    assert len(detector([noise(60, 80)], score_threshold=0.01, tile=100, max_detections=2)[0]) == 2


@pytest.mark.parametrize("options", [DetectionOptions(), DetectionOptions(flip=True, tile=64)])
def test_network_and_post_processing_are_timed_separately_on_the_users_path(detector, options):
    prepared = detector.prepare([noise(60, 80), noise(80, 60)], options, batch_size=2)
    stopwatch = Stopwatch()
    timed = detector.detect(prepared, options, stopwatch)
    assert set(stopwatch.seconds) == {"network", "post-processing"}
    assert all(seconds > 0 for seconds in stopwatch.seconds.values())
    assert len(timed) == 2


# With trained weights.


@pytest.fixture(scope="module")
def trained() -> Detector:
    return load_detector(0, SHAPES_WEIGHTS, "shapes", "cpu")


@pytest.mark.slow
def test_the_plain_network_finds_the_same(trained):
    plain = load_detector(0, SHAPES_WEIGHTS, "shapes", "cpu", mode="plain")
    images = [drawn(number)[0] for number in range(12)]
    found = trained(images, score_threshold=0.05, batch_size=4)
    assert sum(map(len, found)) > 50
    for some, other in zip(found, plain(images, score_threshold=0.05), strict=True):
        assert_same(some, other)


def drawn(number: int) -> tuple[np.ndarray, list[dict]]:
    """Return an image that `trained` was not trained on, and its objects."""
    return draw_image(RandomState((0, 2, number)))


def hits(detector: Detector, found: Detections, objects: list[dict], left: int = 0, top: int = 0) -> int:
    """Return how many `objects` of an image at (left, top) are found with their class and IoU 0.75."""
    count = 0
    for thing in objects:
        x, y, width, height = thing["bbox"]
        box = torch.tensor([[x + left, y + top, x + left + width, y + top + height]], dtype=torch.float32)
        of_class = found.class_ids == detector.project.class_names.index(thing["class"])
        count += bool((box_iou(box, found.boxes[of_class]) > 0.75).any())
    return count


def test_rect_finds_what_the_square_does(trained):
    for number in (6, 9, 10):
        image, objects = drawn(number)
        (square,), (rect,) = (trained([image], rect=rect) for rect in (False, True))
        assert hits(trained, square, objects) == hits(trained, rect, objects) == len(objects)
        assert len(rect) == len(square)
        torch.testing.assert_close(rect.scores, square.scores, rtol=0, atol=0.1)


@pytest.mark.slow
def test_tiles_find_small_objects_in_a_large_image(trained):
    mosaic, ground_truth = np.full((4 * 416, 4 * 448, 3), 128, np.uint8), []
    for place in range(16):
        image, objects = drawn((6, 9, 10, 13, 20, 22)[place % 6])
        top, left = place // 4 * 416, place % 4 * 448
        mosaic[top : top + image.shape[0], left : left + image.shape[1]] = image
        ground_truth.append((objects, left, top))
    number = sum(len(objects) for objects, _, _ in ground_truth)
    (plain,), (tiled,) = (trained([mosaic], tile=tile, batch_size=2) for tile in (None, 384))
    assert sum(hits(trained, plain, *place) for place in ground_truth) < 0.2 * number
    assert sum(hits(trained, tiled, *place) for place in ground_truth) > 0.9 * number


def test_bfloat16_finds_nearly_the_same(project, tmp_path):
    weights = write_weights(tmp_path / "some.pth", 0, 2)
    image = noise(100, 120)
    exact, rough = (
        load_detector(0, weights, project, "cpu", 128, dtype)([image], 0.0, 1.0)[0]
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert len(exact) == len(rough) and rough.boxes.dtype == torch.float32
    assert not torch.equal(exact.scores, rough.scores)
    torch.testing.assert_close(exact.scores, rough.scores, rtol=0.2, atol=0.002)


def test_the_given_network_is_not_changed(project):
    network = EfficientDet(0, 2)
    network.train()
    keys = list(network.state_dict())
    Detector(network, project, CPU, 128)([noise(20, 20)])
    assert network.training and list(network.state_dict()) == keys
    assert all(parameter.requires_grad for parameter in network.parameters())
