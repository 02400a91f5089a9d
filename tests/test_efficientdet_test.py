"""efficientdet_test.py as its users run it: pictures in, annotated pictures and a table out."""

import re
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from numpy.random import RandomState
from scripts import (
    SMALL,
    assert_one_error,
    assert_succeeded,
    run_script,
    write_shapes_project,
    write_weights,
)
from torchvision.ops import box_iou

from efficientdet.shapes import draw_picture

# Untrained weights give every class a score of about 0.01: nothing above the default threshold, all above 0.
DETECT = ("efficientdet_test.py", "-p", "drawn", *SMALL, "-w", "untrained.pth")


def size(path: Path) -> tuple[int, int]:
    return cv2.imread(str(path)).shape[:2]


def write_picture(path: Path, height: int, width: int, channels: int = 3) -> Path:
    """A picture of noise; its content follows from its path's folder and name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(list(f"{path.parent.name}/{path.name}".encode()))
    assert cv2.imwrite(str(path), rng.integers(0, 256, (height, width, channels), np.uint8))
    return path


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> SimpleNamespace:
    """Pictures and folders of several kinds in one run, which finds nothing."""
    project = write_shapes_project(tmp_path_factory.mktemp("demo"))
    write_weights(project.root / "untrained.pth")
    write_picture(project.root / "grey.png", 90, 70, channels=1)
    write_picture(project.root / "alpha.png", 60, 200, channels=4)
    write_picture(project.root / "one" / "same.png", 50, 60)
    write_picture(project.root / "two" / "same.png", 64, 48)
    (project.root / "two" / "notes.txt").write_text("no picture, and not taken for one")
    run = run_script(*DETECT, "grey.png", "alpha.png", "one", "two", "--speed_runs", "2", cwd=project.root)
    return SimpleNamespace(root=project.root, run=run)


def test_pictures_without_detections_are_written_too_in_their_size(demo):
    assert_succeeded(demo.run)
    expected = {"grey.png": (90, 70), "alpha.png": (60, 200), "same.png": (50, 60), "same_2.png": (64, 48)}
    assert {path.name: size(path) for path in (demo.root / "test").iterdir()} == expected
    assert demo.run.stdout.count(": 0 objects -> test/") == 4
    assert "grey.png (70 x 90): 0 objects -> test/grey.png" in demo.run.stdout


def test_without_arguments_the_projects_own_weights_find_the_shapes_in_its_own_pictures(tmp_path):
    run = run_script("efficientdet_test.py", cwd=tmp_path)
    assert_succeeded(run)
    assert sorted(path.name for path in (tmp_path / "test").iterdir()) == [f"{number}.jpg" for number in range(1, 7)]
    assert "speed of D0 at 384 x 384" in run.stdout
    blocks = re.split(r"^\S+/projects/shapes/\d\.jpg .*\n", run.stdout, flags=re.MULTILINE)[1:]
    found = []
    for block in blocks:
        rows = re.findall(r"^  (\w+) +(0\.\d\d)  x1 y1 x2 y2: +(.*)$", block, re.MULTILINE)
        found.append([(name, [float(corner) for corner in box.split()]) for name, score, box in rows])
    truth = [draw_picture(RandomState((0, 2, number)))[1] for number in (6, 9, 10, 13, 20, 22)]
    objects = sum(map(len, truth))
    correct = 0
    for picture_found, picture_truth in zip(found, truth, strict=True):
        for shape in picture_truth:
            x, y, width, height = shape["bbox"]
            box = torch.tensor([[x, y, x + width, y + height]])
            boxes = torch.tensor([corners for name, corners in picture_found if name == shape["class"]]).view(-1, 4)
            correct += bool((box_iou(box.float(), boxes) > 0.75).any())
    assert objects == 31 and correct >= 28
    assert sum(map(len, found)) <= objects + 7  # some are seen as two things, with low scores


def test_pictures_of_the_same_name_keep_their_own_content(demo):
    for source, output in (("one/same.png", "same.png"), ("two/same.png", "same_2.png")):
        assert np.array_equal(cv2.imread(str(demo.root / source)), cv2.imread(str(demo.root / "test" / output)))
        assert f"{source} " in demo.run.stdout and f"-> test/{output}" in demo.run.stdout


def test_speed_is_measured(demo):
    assert re.search(
        r"^speed of D0 at 128 x 128 on \S+: \d\.\d{4} s a picture, \d+\.\d+ FPS .*mean of 2 runs\)$",
        demo.run.stdout,
        re.MULTILINE,
    )


def test_threshold_zero_lists_and_draws_every_box(demo):
    picture = demo.root / "datasets/drawn/val/000102.jpg"
    args = ("--threshold", "0", "--iou_threshold", "0.9", "--speed_runs", "0", "--output", "drawn")
    run = run_script(*DETECT, picture, *args, cwd=demo.root)
    assert_succeeded(run)
    found = int(re.search(r"\(160 x 120\): (\d+) objects", run.stdout)[1])
    rows = re.findall(r"^  (square|disc) +(0\.\d\d)  x1 y1 x2 y2: +(.*)$", run.stdout, re.MULTILINE)
    assert found == len(rows) > 10
    scores = [float(score) for _, score, _ in rows]
    assert scores == sorted(scores, reverse=True)
    corners = np.array([row[2].split() for row in rows], float)
    assert (corners >= 0).all() and (corners[:, [0, 2]] <= 160).all() and (corners[:, 2:] >= corners[:, :2]).all()
    assert "speed" not in run.stdout
    assert size(demo.root / "drawn" / "000102.jpg") == (120, 160)
    before, after = cv2.imread(str(picture)), cv2.imread(str(demo.root / "drawn" / "000102.jpg"))
    assert np.abs(before.astype(int) - after).mean() > 5


def test_a_broken_picture_among_good_ones_does_not_stop_the_others(demo):
    pictures = demo.root / "three"
    write_picture(pictures / "a.png", 40, 40)
    (pictures / "b.jpg").write_text("no picture")
    write_picture(pictures / "c.png", 40, 40)
    run = run_script(*DETECT, "three", "--output", "out", "--speed_runs", "0", cwd=demo.root)
    assert run.returncode == 1 and "Traceback" not in run.stderr
    assert sorted(path.name for path in (demo.root / "out").iterdir()) == ["a.png", "c.png"]
    assert [line for line in run.stderr.splitlines() if "three/b.jpg" in line][0].startswith("error:")
    assert "1 of 3 pictures" in run.stderr


def test_output_into_the_source_folder_is_refused(demo):
    before = (demo.root / "one/same.png").read_bytes()
    run = run_script(*DETECT, "one", "--output", "./two/../one", cwd=demo.root)
    assert_one_error(run, "one/same.png", "--output")
    assert (demo.root / "one/same.png").read_bytes() == before


def test_output_over_another_of_the_pictures_is_refused(demo):
    before = (demo.root / "two/same.png").read_bytes()
    run = run_script(*DETECT, "one", "two", "--output", "two", cwd=demo.root)
    assert (demo.root / "two/same.png").read_bytes() == before
    assert_one_error(run, "two/same.png", "--output")


def test_a_picture_without_a_suffix_that_names_a_format_becomes_a_jpeg(demo):
    nameless = demo.root / "nameless"
    nameless.write_bytes((demo.root / "one/same.png").read_bytes())
    assert_succeeded(run_script(*DETECT, nameless, "--output", "nameless_out", "--speed_runs", "0", cwd=demo.root))
    assert (demo.root / "nameless_out/nameless.jpg").read_bytes().startswith(b"\xff\xd8")
