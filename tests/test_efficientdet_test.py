"""efficientdet_test.py: anything in, annotated images, tables and files out."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from numpy.random import RandomState
from scripts import SMALL, assert_succeeded, command, run_script, write_shapes_project, write_weights
from servers import jpeg, serve
from torchvision.ops import box_iou

import efficientdet_test
from efficientdet.data.shapes import draw_image
from efficientdet.inference import sources
from utils.errors import InputError
from utils.video import VideoReader, VideoWriter

# Untrained weights give every class a score of about 0.01: nothing above the default threshold, all above 0.
DETECT = ("-p", "drawn", *SMALL, "-w", "untrained.pth")
SCRIPT = ("efficientdet_test.py", *DETECT)


def detect(folder: Path, *args: str | Path, stdin: str = "") -> SimpleNamespace:
    """Run the script in this process, in `folder`. Return its exit status, stdout and stderr."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(stdout), redirect_stderr(stderr):
        patch.chdir(folder)
        patch.setattr(sys, "stdin", io.StringIO(stdin))
        patch.setattr(sources, "_RECONNECTION_PAUSE", 0.01)
        status = efficientdet_test.main(efficientdet_test.parse_args([*DETECT, *map(str, args)]))
    return SimpleNamespace(status=status, stdout=stdout.getvalue(), stderr=stderr.getvalue())


def size(path: Path) -> tuple[int, int]:
    return cv2.imread(str(path)).shape[:2]


def write_image(path: Path, height: int, width: int, channels: int = 3) -> Path:
    """Write an image of noise, which depends on the names of the file and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(list(f"{path.parent.name}/{path.name}".encode()))
    assert cv2.imwrite(str(path), rng.integers(0, 256, (height, width, channels), np.uint8))
    return path


def write_video(path: Path, frames: int, height: int = 48, width: int = 64) -> None:
    writer = VideoWriter(path, 12.5, height, width)
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    for number in range(frames):
        writer.write(np.roll(noise, number, axis=1))
    writer.close()


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> SimpleNamespace:
    """A run on images and folders of several kinds, without detections."""
    project = write_shapes_project(tmp_path_factory.mktemp("demo"))
    write_weights(project.root / "untrained.pth")
    write_image(project.root / "gray.png", 90, 70, channels=1)
    write_image(project.root / "alpha.png", 60, 200, channels=4)
    write_image(project.root / "one" / "same.png", 50, 60)
    write_image(project.root / "two" / "same.png", 64, 48)
    (project.root / "two" / "notes.txt").write_text("no image")
    run = detect(project.root, "gray.png", "alpha.png", "one", "two", "--speed_runs", "2")
    return SimpleNamespace(root=project.root, run=run)


def test_images_without_detections_are_written_in_their_size(demo):
    assert demo.run.status == 0
    expected = {"gray.png": (90, 70), "alpha.png": (60, 200), "same.png": (50, 60), "same_2.png": (64, 48)}
    assert {path.name: size(path) for path in (demo.root / "test").iterdir()} == expected
    assert demo.run.stdout.count(": 0 objects -> test/") == 4
    assert "gray.png (70 x 90): 0 objects -> test/gray.png" in demo.run.stdout


@pytest.mark.slow
def test_without_arguments_the_shapes_in_the_projects_images_are_found(tmp_path):
    run = run_script("efficientdet_test.py", cwd=tmp_path)
    assert_succeeded(run)
    assert sorted(path.name for path in (tmp_path / "test").iterdir()) == [f"{number}.jpg" for number in range(1, 7)]
    assert "speed of D0 at 384 x 384" in run.stdout
    blocks = re.split(r"^\S+/projects/shapes/\d\.jpg .*\n", run.stdout, flags=re.MULTILINE)[1:]
    found = []
    for block in blocks:
        rows = re.findall(r"^  (\w+) +(0\.\d\d)  x1 y1 x2 y2: +(.*)$", block, re.MULTILINE)
        found.append([(name, [float(corner) for corner in box.split()]) for name, score, box in rows])
    ground_truth = [draw_image(RandomState((0, 2, number)))[1] for number in (6, 9, 10, 13, 20, 22)]
    objects = sum(map(len, ground_truth))
    correct = 0
    for image_found, image_shapes in zip(found, ground_truth, strict=True):
        for shape in image_shapes:
            x, y, width, height = shape["bbox"]
            box = torch.tensor([[x, y, x + width, y + height]])
            boxes = torch.tensor([corners for name, corners in image_found if name == shape["class"]]).view(-1, 4)
            correct += bool((box_iou(box.float(), boxes) > 0.75).any())
    assert objects == 31 and correct >= 28
    assert sum(map(len, found)) <= objects + 7  # some are detected twice, with low scores


def test_images_of_the_same_name_keep_their_own_content(demo):
    for source, output in (("one/same.png", "same.png"), ("two/same.png", "same_2.png")):
        assert np.array_equal(cv2.imread(str(demo.root / source)), cv2.imread(str(demo.root / "test" / output)))
        assert f"{source} " in demo.run.stdout and f"-> test/{output}" in demo.run.stdout


def test_speed_is_measured(demo):
    assert re.search(
        r"^speed of D0 at 128 x 128 on \S+: \d\.\d{4} s an image, \d+\.\d+ FPS .*mean of 2 runs\)$",
        demo.run.stdout,
        re.MULTILINE,
    )


def test_threshold_zero_lists_and_draws_every_box(demo):
    image = demo.root / "datasets/drawn/val/000102.jpg"
    args = ("--threshold", "0", "--iou_threshold", "0.9", "--speed_runs", "0", "--output", "drawn")
    run = detect(demo.root, image, *args)
    assert run.status == 0
    found = int(re.search(r"\(160 x 120\): (\d+) objects", run.stdout)[1])
    rows = re.findall(r"^  (square|disc) +(0\.\d\d)  x1 y1 x2 y2: +(.*)$", run.stdout, re.MULTILINE)
    assert found == len(rows) > 10
    scores = [float(score) for _, score, _ in rows]
    assert scores == sorted(scores, reverse=True)
    corners = np.array([row[2].split() for row in rows], float)
    assert (corners >= 0).all() and (corners[:, [0, 2]] <= 160).all() and (corners[:, 2:] >= corners[:, :2]).all()
    assert "speed" not in run.stdout
    assert size(demo.root / "drawn" / "000102.jpg") == (120, 160)
    before, after = cv2.imread(str(image)), cv2.imread(str(demo.root / "drawn" / "000102.jpg"))
    assert np.abs(before.astype(int) - after).mean() > 5


def test_soft_nms_keeps_the_best_and_lowers_other_scores(demo):
    image = demo.root / "datasets/drawn/val/000102.jpg"
    objects = {}
    for flags in ((), ("--nms", "soft"), ("--nms", "hard")):
        shown = ("--save", "none", "--quiet", "--speed_runs", "0", "--json", "-", "--max_detections", "20")
        objects[flags] = json.loads(detect(demo.root, image, "--threshold", "0.001", *shown, *flags).stdout)["objects"]
    hard, soft = objects["--nms", "hard"], objects["--nms", "soft"]
    assert hard == objects[()] and soft != hard
    assert soft[0] == hard[0] and len(soft) == 20
    scores = [found["score"] for found in soft]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.slow
def test_sources_of_all_kinds_and_broken_ones_in_all_formats(demo):
    mixed = demo.root / "mixed"
    write_image(mixed / "000000000007.png", 40, 50)
    (mixed / "b.jpg").write_text("no image")
    write_video(mixed / "c.mp4", 5)
    listed = write_image(demo.root / "listed.png", 1, 1)
    formats = ("--save", "image,json,csv,txt,crops", "--json", "-", "--threshold", "0.009", "--batch_size", "3")
    with serve({"/web.jpg": ("image/jpeg", jpeg(20, 30))}, stream_lengths=[0, 4]) as server:
        named = ("mixed/*", "absent.png", f"{server.url}/stream", f"{server.url}/web.jpg", "-", "99")
        run = detect(demo.root, *named, *formats, "--output", "out", stdin=f"{listed}\nmissing.png\n")
    assert run.status == 1

    lines = [json.loads(line) for line in run.stdout.splitlines()]
    stream = f"{server.url}/stream"
    failed = ["mixed/b.jpg", "absent.png", stream, "missing.png", "camera 99"]
    assert [line["file"] for line in lines if "error" in line] == failed
    assert [(line["file"], line["frame"]) for line in lines if "error" not in line] == [
        ("mixed/000000000007.png", None),
        *(("mixed/c.mp4", number) for number in range(5)),
        *((stream, number) for number in range(4)),
        (f"{server.url}/web.jpg", None),
        (str(listed), None),
    ]
    errors = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 5 and all(name in error for name, error in zip(failed, errors))
    objects = sum(len(line.get("objects", ())) for line in lines)
    assert objects > 0
    assert f"3 images, 9 video frames, {objects} objects, 5 failures in " in run.stderr

    out = demo.root / "out"
    assert {path.name for path in out.iterdir()} - {"crops"} == {
        "000000000007.png", "000000000007.txt", "c.mp4", "c", "stream.mp4", "stream", "web.jpg", "web.txt",
        "listed.png", "listed.txt", "detections.json", "detections.csv",
    }  # fmt: skip
    assert len(list(VideoReader(str(out / "c.mp4"), "c"))) == 5 == len(list((out / "c").iterdir()))
    assert len(list(VideoReader(str(out / "stream.mp4"), "stream"))) == 4
    results = json.loads((out / "detections.json").read_text())
    assert len(results) == objects == len(list((out / "crops").rglob("*_*.*")))
    assert {result["image_id"] for result in results} <= {7, "web", "listed"} | {
        f"{video}/{number:06d}" for video in ("c", "stream") for number in range(5)
    }


@pytest.mark.slow
def test_interrupt_completes_the_files(demo):
    with serve(stream_lengths=[0, 10**6]) as server:
        flags = ("--save", "image,json,csv", "--threshold", "0.009", "--output", "interrupted", "--json", "lines")
        process = subprocess.Popen(
            command(*SCRIPT, f"{server.url}/stream", *flags),
            cwd=demo.root,
            stdout=subprocess.PIPE,
            text=True,
        )
        shown = []
        while len(shown) < 6:
            line = process.stdout.readline()
            assert line, "the process ended"
            shown += [line] if line.startswith("http") else []
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    frames = len(shown) + rest.count("http")
    assert f"0 images, {frames} video frames, " in rest and rest.rstrip().endswith("results in interrupted/")
    out = demo.root / "interrupted"
    assert {path.name for path in out.iterdir()} == {"stream.mp4", "detections.json", "detections.csv"}
    assert len(list(VideoReader(str(out / "stream.mp4"), "stream"))) == frames
    assert len(json.loads((out / "detections.json").read_text())) > 0
    assert len((demo.root / "lines").read_text().splitlines()) == frames


@pytest.mark.slow
def test_reader_of_the_pipe_may_end_early(demo):
    process = subprocess.Popen(
        command(*SCRIPT, "datasets/drawn/train", "--json", "-", "--quiet", "--save", "none", "--threshold", "0"),
        cwd=demo.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert json.loads(process.stdout.readline())["file"] == "datasets/drawn/train/000011.jpg"
    process.stdout.close()  # as `head -1` does
    assert process.stderr.read() == "" and process.wait(30) == 141


def test_sources_in_the_folder_of_the_results_are_not_replaced(demo):
    before = (demo.root / "two/same.png").read_bytes()
    with pytest.raises(InputError, match=r"two/same\.png.*--output"):
        detect(demo.root, "one", "two", "--output", "two")
    assert (demo.root / "two/same.png").read_bytes() == before


def test_no_usable_source_is_an_error(demo):
    with pytest.raises(InputError, match=r"absent\.png.*absent/\*\.jpg"):
        detect(demo.root, "absent.png", "absent/*.jpg")
    with pytest.raises(InputError, match="stdin"):
        detect(demo.root, "-")


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--classes", "square,disk"), "'disk'.*'disc'"),
        (("--compile", "--rect"), "--compile.*--rect"),
        (("--amp", "fp16", "--cuda", "False"), "--amp fp16"),
        (("--json", "photo.jpg"), r"--json photo\.jpg"),
        (("--nms", "soft", "--iou_threshold", "0.4"), "soft-NMS.*--iou_threshold"),
        (("--nms", "soft", "--flip"), "soft-NMS.*--flip"),
        (("--nms", "soft", "--tile"), "soft-NMS.*--tile"),
    ],
)
def test_bad_flags_are_errors(demo, flags, named):
    with pytest.raises(InputError, match=named):
        detect(demo.root, "gray.png", *flags)


def test_flags_have_the_spellings_of_all_scripts():
    args = efficientdet_test.parse_args(["--threshold", "0.3", "--nms_threshold", "0.4"])
    assert (args.score_threshold, args.iou_threshold) == (0.3, 0.4)
    assert args == efficientdet_test.parse_args(["--score_threshold", "0.3", "--iou_threshold", "0.4"])


def test_source_after_a_switch_is_not_its_value():
    for switches in (["--show", "--flip"], ["--show", "True", "--flip"], ["--flip", "true", "--show"]):
        args = efficientdet_test.parse_args([*switches, "0", "a.png"])
        assert (args.sources, args.show, args.flip) == (["0", "a.png"], True, True)
    args = efficientdet_test.parse_args(["a.png", "--quiet", "False", "--rect"])
    assert (args.sources, args.quiet, args.rect) == (["a.png"], False, True)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_frames(demo):
    write_video(demo.root / "long.mp4", 160, 720, 960)  # 2 MB a frame
    flags = ("--save", "image,json,csv", "--threshold", "0.009", "--output", "long", "--speed_runs", "0")
    process = subprocess.Popen(command(*SCRIPT, "long.mp4", *flags), cwd=demo.root, stdout=subprocess.PIPE, text=True)
    pages = {}
    for line in process.stdout:
        if line.startswith("long.mp4 frame"):
            pages[int(line.split()[2])] = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    assert process.wait(30) == 0 and len(pages) == 160
    # A hundred frames are 200 MB.
    assert (pages[150] - pages[50]) * os.sysconf("SC_PAGE_SIZE") < 60e6
