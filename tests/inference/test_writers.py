"""Detections written in each format, and as text."""

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pycocotools.coco import COCO

from efficientdet.inference.report import DetectionReport, text_table
from efficientdet.inference.sources import Failure, Frame, Source
from efficientdet.inference.writers import SAVE_FORMATS, ResultWriters, annotate, check_targets
from efficientdet.structures import Detections
from utils.errors import InputError
from utils.images import read_image, write_image
from utils.video import VideoReader

NAMES = ("cat", "", "traffic light", "a/b: *?")


def found(*rows: tuple[int, float, list[float]]) -> Detections:
    """Return detections, given as (class index, score, box xyxy)."""
    if not rows:
        return Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    class_ids, scores, boxes = zip(*rows)
    return Detections(torch.tensor(boxes, dtype=torch.float32), torch.tensor(scores), torch.tensor(class_ids))


CAT = found((0, 0.75, [10.0, 20.0, 30.0, 60.0]))


def photo(name: str = "photos/a.png", height: int = 80, width: int = 40) -> Frame:
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Frame(Source(name, Path(name).stem), image)


def film(name: str = "films/b.avi", frames: int = 3) -> list[Frame]:
    source = Source(name, Path(name).stem, rate=12.5)
    return [Frame(source, np.full((48, 64, 3), 10 * number, np.uint8), number) for number in range(frames)]


def write(folder: Path, formats, *pairs: tuple[Frame, Detections], names=NAMES) -> list[Path | None]:
    writers = ResultWriters(folder, formats, names)
    paths = [writers.write(frame, there, annotate(frame.image, there, names)) for frame, there in pairs]
    writers.close()
    return paths


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_no_frames_make_empty_files(tmp_path):
    assert write(tmp_path, SAVE_FORMATS) == []
    assert files(tmp_path) == {"detections.json", "detections.csv"}
    assert json.loads((tmp_path / "detections.json").read_text()) == []
    assert len((tmp_path / "detections.csv").read_text().splitlines()) == 1


def test_frame_without_objects(tmp_path):
    assert write(tmp_path, SAVE_FORMATS, (photo(), found())) == [tmp_path / "a.png"]
    assert files(tmp_path) == {"detections.json", "detections.csv", "a.png", "a.txt"}
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), photo().image)
    assert (tmp_path / "a.txt").read_text() == ""


def test_no_formats_write_nothing(tmp_path):
    assert write(tmp_path / "none", (), (photo(), CAT)) == [None]
    assert not (tmp_path / "none").exists()


def test_coco_results(tmp_path):
    pairs = [
        (photo("000000000139.jpg"), found((0, 0.75, [10.0, 20, 30, 60]), (2, 0.5, [0.0, 0, 4, 8]))),
        (photo("b.jpg"), CAT),
        (film()[1], CAT),
        (photo("c.jpg"), found((1, 0.5, [0.0, 0, 4, 8]))),  # a slot without a name has no category
    ]
    write(tmp_path, ["json"], *pairs)
    assert json.loads((tmp_path / "detections.json").read_text()) == [
        {"image_id": 139, "category_id": 1, "score": 0.75, "bbox": [10, 20, 20, 40]},
        {"image_id": 139, "category_id": 3, "score": 0.5, "bbox": [0, 0, 4, 8]},
        {"image_id": "b", "category_id": 1, "score": 0.75, "bbox": [10, 20, 20, 40]},
        {"image_id": "b_2/000001", "category_id": 1, "score": 0.75, "bbox": [10, 20, 20, 40]},
    ]


def test_coco_results_are_read_by_pycocotools(tmp_path):
    write(tmp_path, ["json"], (photo("7.jpg"), CAT))
    ground_truth = COCO()
    ground_truth.dataset = {"images": [{"id": 7}], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    ground_truth.createIndex()
    (annotation,) = ground_truth.loadRes(str(tmp_path / "detections.json")).anns.values()
    assert annotation["image_id"] == 7 and annotation["area"] == 800


def test_table(tmp_path):
    write(tmp_path, ["csv"], (photo('odd, "name".jpg'), CAT), (photo("none.jpg"), found()), (film()[2], CAT))
    with open(tmp_path / "detections.csv", newline="") as file:
        first, second = csv.DictReader(file)
    assert first == {
        "file": 'odd, "name".jpg', "frame": "", "class": "cat", "score": "0.7500",
        "x1": "10.00", "y1": "20.00", "x2": "30.00", "y2": "60.00",
    }  # fmt: skip
    assert (second["file"], second["frame"]) == ("films/b.avi", "2")


def test_yolo_labels_are_shares_of_the_image(tmp_path):
    boxes = found((2, 0.5, [10.0, 20, 30, 60]), (0, 0.25, [-10.0, 40, 60, 90]))  # the second reaches over the edges
    write(tmp_path, ["txt"], (photo(), boxes), (film()[0], CAT))
    assert files(tmp_path) == {"a.txt", "b/000000.txt"}
    assert (tmp_path / "a.txt").read_text() == (
        "2 0.500000 0.500000 0.500000 0.500000 0.5000\n0 0.500000 0.750000 1.000000 0.500000 0.2500\n"
    )


def test_crops_are_the_pixels_of_the_boxes(tmp_path):
    boxes = found(
        (0, 0.9, [10.0, 20, 30, 60]),
        (2, 0.8, [9.5, 20.2, 29.1, 60]),  # every pixel that the box touches
        (3, 0.7, [-5.0, -5, 4, 3]),
        (0, 0.6, [39.9, 79.9, 39.9, 79.9]),
        (0, 0.5, [45.0, 90, 50, 95]),  # in the letterbox's padding
        (1, 0.4, [0.0, 0, 1, 1]),
    )
    frame = photo()
    write(tmp_path, ["crops"], (frame, boxes), (film()[0], CAT))
    expected = {
        "crops/cat/a_1.png": frame.image[20:60, 10:30],
        "crops/traffic light/a_2.png": frame.image[20:60, 9:30],
        "crops/a_b_ __/a_3.png": frame.image[:3, :4],
        "crops/cat/a_4.png": frame.image[79:, 39:],
        "crops/cat/a_5.png": frame.image[79:, 39:],
        "crops/class_1/a_6.png": frame.image[:1, :1],
    }
    assert files(tmp_path) == {*expected, "crops/cat/b/000000_1.jpg"}
    for name, pixels in expected.items():
        np.testing.assert_array_equal(read_image(tmp_path / name), pixels)


def test_video_becomes_a_video_of_its_size_and_rate(tmp_path):
    frames = film(frames=7)
    paths = write(tmp_path, ["image"], *((frame, CAT if frame.number > 3 else found()) for frame in frames))
    assert paths == [tmp_path / "b.mp4"] * 7 and files(tmp_path) == {"b.mp4"}
    reader = VideoReader(str(tmp_path / "b.mp4"), "it")
    assert reader.rate == 12.5
    drawn = list(reader)
    assert [frame.shape for frame in drawn] == [(48, 64, 3)] * 7
    assert drawn[1].max() < 40 and drawn[5].max() > 150  # the box


def test_names_never_collide(tmp_path):
    pairs = [(photo("one/a.png"), CAT), (photo("two/a.jpg"), CAT), (photo("a_2.png"), CAT)]
    pairs += [(frame, CAT) for name in ("a.avi", "b.avi", "b.avi") for frame in film(name, 2)]
    paths = write(tmp_path, ["image", "txt"], *pairs)
    names = [path.name for path in paths]
    assert names == ["a.png", "a_2.jpg", "a_2_2.png", "a_3.mp4", "a_3.mp4", "b.mp4", "b.mp4", "b_2.mp4", "b_2.mp4"]
    assert len(files(tmp_path)) == 3 + 3 + 3 + 6


def test_images_without_the_suffix_of_a_format_become_jpegs(tmp_path):
    names = ["nameless", "http://host/photo.jpg?size=1", "http://host/b.PNG"]
    paths = write(tmp_path, ["image"], *((photo(name), CAT) for name in names))
    assert [path.suffix for path in paths] == [".jpg", ".jpg", ".PNG"]


def test_files_appear_at_the_end_and_complete(tmp_path):
    writers = ResultWriters(tmp_path, ("json", "csv", "image"), NAMES)
    for frame in film(frames=4):
        writers.write(frame, CAT, frame.image)
    assert not [name for name in files(tmp_path) if not name.startswith(".")]
    writers.close()
    assert files(tmp_path) == {"detections.json", "detections.csv", "b.mp4"}
    assert len(json.loads((tmp_path / "detections.json").read_text())) == 4
    assert len(list(VideoReader(str(tmp_path / "b.mp4"), "it"))) == 4


def test_results_grow_on_the_disk_not_in_memory(tmp_path):
    writers = ResultWriters(tmp_path, ("json", "csv"), NAMES)
    frame, many = photo(), found(*[(0, 0.5, [1.0, 2, 3, 4])] * 100)
    for _ in range(30):
        writers.write(frame, many)
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert min(sizes) > 50_000
    writers.close()


def test_full_disk_is_an_error(tmp_path):
    writers = ResultWriters(tmp_path, ("csv",), NAMES)

    def full(*_):
        raise OSError(28, "No space left on device")

    writers._writers[0] = full
    with pytest.raises(InputError, match="No space left"):
        writers.write(photo(), CAT)
    writers.close()


def test_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*detections\.json"):
        ResultWriters(tmp_path / "file", ("json", "csv"), NAMES)


def test_sources_in_the_folder_of_the_results_are_an_error(tmp_path):
    write_image(tmp_path / "a.png", photo().image)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "b.png").symlink_to(tmp_path / "a.png")
    check_targets(tmp_path / "other", ["image"], None, [tmp_path / "a.png", "rtsp://x/y", 0, Failure("x", "y")])
    check_targets(tmp_path, ["json", "csv", "txt", "crops"], None, [tmp_path / "a.png"])  # they replace no image
    for folder, entry in (
        (tmp_path / "links" / "..", tmp_path / "a.png"),
        (tmp_path / "links", tmp_path / "links" / "b.png"),
        (tmp_path, tmp_path / "links" / "b.png"),
    ):
        with pytest.raises(InputError, match="--output"):
            check_targets(folder, ["csv", "image"], None, [entry])


def test_json_lines_replace_no_image_and_no_table(tmp_path):
    for target in ("-", "lines.json", str(tmp_path / "lines.jsonl")):
        check_targets(tmp_path, (), target, [])
    for target in ("photo.JPG", "film.mp4"):
        with pytest.raises(InputError, match=f"--json {target}"):
            check_targets(tmp_path, (), target, [])
    for name in ("detections.json", "detections.csv"):
        with pytest.raises(InputError, match="--json"):
            check_targets(tmp_path, (), str(tmp_path / "x" / ".." / name), [])


def test_text():
    assert text_table(photo(), found(), NAMES, None) == "photos/a.png (40 x 80): 0 objects"
    assert text_table(film()[2], CAT, NAMES, Path("test/b.mp4")) == (
        "films/b.avi frame 2 (64 x 48): 1 object -> test/b.mp4\n"
        "  cat              0.75  x1 y1 x2 y2:    10.0    20.0    30.0    60.0"
    )


def test_json_lines(tmp_path, capsys):
    expected = [
        {
            "file": "photos/a.png", "frame": None, "width": 40, "height": 80,
            "objects": [{"class": "cat", "class_id": 0, "score": 0.75, "box": [10, 20, 30, 60]}],
        },
        {"file": "films/b.avi", "frame": 0, "width": 64, "height": 48, "objects": []},
        {"file": "c.jpg", "error": "c.jpg is empty"},
    ]  # fmt: skip
    for target in (str(tmp_path / "lines.jsonl"), "-"):
        report = DetectionReport(NAMES, tmp_path, (), target, show=False)
        for result in ((photo(), CAT), (film()[0], found()), Failure("c.jpg", "c.jpg is empty")):
            report.add(result, quiet=True)
        report.close()
    for text in ((tmp_path / "lines.jsonl").read_text(), capsys.readouterr().out):
        assert [json.loads(line) for line in text.splitlines()] == expected


def test_best_box_is_drawn_on_top():
    boxes = found((0, 0.9, [5.0, 5, 35, 75]), (2, 0.3, [5.0, 5, 35, 75]))
    image = np.full((80, 40, 3), 128, np.uint8)
    best = annotate(image, found((0, 0.9, [5.0, 5, 35, 75])), NAMES)
    drawn = annotate(image, boxes, NAMES)
    np.testing.assert_allclose(drawn[45, 5].astype(int), best[45, 5], atol=20)  # thin lines are blended
    assert cv2.absdiff(drawn, best).any()
