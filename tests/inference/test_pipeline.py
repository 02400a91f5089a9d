"""Frames pass the pipeline in order, few at a time, and errors reach the caller."""

import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from scripts import write_weights

from efficientdet.inference import pipeline
from efficientdet.inference.detector import load_detector
from efficientdet.inference.options import DetectionOptions
from efficientdet.inference.pipeline import detect_frames
from efficientdet.inference.sources import Failure, Frame, Source
from efficientdet.project import load_project
from efficientdet.structures import Detections
from utils.images import write_image

OPTIONS = DetectionOptions()


class Counting:
    """A detector that finds one object in each image, whose score is the image's first value."""

    def __init__(self):
        self.batches = []
        self.threads = set()

    def prepare(self, arrays, options, batch_size):
        self.threads.add(threading.current_thread())
        return [int(array[0, 0, 0]) for array in arrays]

    def detect(self, prepared, options):
        self.threads.add(threading.current_thread())
        self.batches.append(prepared)
        return [Detections(torch.zeros(1, 4), torch.tensor([value / 255]), torch.tensor([0])) for value in prepared]


def frame(value: int, height: int = 4, width: int = 6) -> Frame:
    return Frame(Source(str(value), str(value)), np.full((height, width, 3), value, np.uint8))


def values(results) -> list[int | str]:
    return [result.name if isinstance(result, Failure) else round(255 * result[1].scores.item()) for result in results]


def test_no_items_give_no_results():
    assert list(detect_frames(Counting(), [], OPTIONS, 4)) == []


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_frames_and_failures_keep_their_order_and_partners(batch_size):
    items = [frame(0), frame(1), Failure("x", "broken"), *map(frame, range(2, 9)), Failure("y", "broken")]
    detector = Counting()
    results = list(detect_frames(detector, items, OPTIONS, batch_size))
    assert values(results) == [0, 1, "x", 2, 3, 4, 5, 6, 7, 8, "y"]
    assert all(int(result[0].image[0, 0, 0]) == round(255 * result[1].scores.item()) for result in results[3:10])
    assert max(map(len, detector.batches)) == batch_size and sum(map(len, detector.batches)) == 9


def test_failures_alone_do_not_reach_the_network():
    detector = Counting()
    assert values(detect_frames(detector, [Failure("x", ""), Failure("y", "")], OPTIONS, 2)) == ["x", "y"]
    assert detector.batches == []


def test_files_are_decoded_and_corrupt_ones_are_failures(tmp_path):
    for value in (3, 5):
        write_image(tmp_path / f"{value}.png", np.full((4, 5, 3), value, np.uint8))
    (tmp_path / "4.png").write_text("no image")
    items = [tmp_path / f"{value}.png" for value in (3, 4, 5)]
    assert values(detect_frames(Counting(), items, OPTIONS)) == [3, str(tmp_path / "4.png"), 5]


def test_preparation_and_network_run_in_separate_threads():
    detector = Counting()
    list(detect_frames(detector, [frame(1)], OPTIONS))
    assert len(detector.threads) == 2 and threading.current_thread() not in detector.threads


def test_few_frames_are_in_flight_at_once():
    made = 0

    def endless():
        nonlocal made
        while True:
            made += 1
            yield frame(made % 256)

    results = detect_frames(Counting(), endless(), OPTIONS, batch_size=2)
    for _ in range(3):
        next(results)
    time.sleep(0.2)
    assert made < 3 + 8 * 2 + 2 * pipeline._MAX_DECODERS
    results.close()
    before = made
    time.sleep(0.1)
    assert made == before


def test_large_images_are_in_flight_one_by_one(monkeypatch):
    monkeypatch.setattr(pipeline, "MAX_PIXELS_IN_FLIGHT", 1000)
    made = 0

    def large():
        nonlocal made
        for _ in range(6):
            made += 1
            yield frame(made, 40, 50)

    detector = Counting()
    results = detect_frames(detector, large(), OPTIONS, batch_size=4)
    for number in range(1, 7):
        next(results)
        time.sleep(0.05)
        assert made == number  # the next one waits until this one is handled
    assert list(results) == [] and detector.batches == [[n] for n in range(1, 7)]


def test_frames_that_are_handed_on_are_released():
    images, end = [], threading.Event()

    def weakly_referenced(value: int) -> Frame:
        made = frame(value)
        images.append(weakref.ref(made.image))
        return made

    def stalling():
        for value in range(20):
            yield weakly_referenced(value)
        end.wait(10)

    results = detect_frames(Counting(), stalling(), OPTIONS)
    for _ in range(20):
        next(results)
    time.sleep(0.2)
    assert sum(image() is not None for image in images) <= 2
    end.set()
    assert list(results) == []


def test_batches_of_large_frames_are_smaller(monkeypatch):
    monkeypatch.setattr(pipeline, "MAX_PIXELS_IN_FLIGHT", 1000)
    detector = Counting()
    assert len(list(detect_frames(detector, [frame(n, 10, 20) for n in range(9)], OPTIONS, batch_size=8))) == 9
    assert max(map(len, detector.batches)) == 3  # 600 pixels are more than half


def test_error_of_the_network_reaches_the_caller():
    detector = Counting()
    detector.detect = lambda prepared, options: 1 / 0
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        list(detect_frames(detector, [frame(n) for n in range(9)], OPTIONS))
    assert threading.active_count() == before


def test_detections_are_those_of_the_detector_called_directly(shapes_project):
    weights = write_weights(shapes_project.root / "untrained.pth")
    detector = load_detector(0, weights, project=load_project(shapes_project.yml), device="cpu", image_size=128)
    files: list[Path] = sorted((shapes_project.data / "train").iterdir())
    options = DetectionOptions(score_threshold=0.01, iou_threshold=0.5)
    for result, expected in zip(detect_frames(detector, files, options), detector(files, 0.01, 0.5), strict=True):
        assert len(result[1]) > 0
        torch.testing.assert_close(result[1].boxes, expected.boxes)
        torch.testing.assert_close(result[1].scores, expected.scores)
