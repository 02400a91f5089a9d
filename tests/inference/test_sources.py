"""Frames from images, folders, patterns, videos, cameras, streams and lists, and failures for broken ones."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from servers import jpeg, serve

from efficientdet.inference import sources
from efficientdet.inference.sources import Failure, Frame, list_sources, load, open_sources
from utils.images import write_image
from utils.video import VideoWriter


@pytest.fixture(autouse=True)
def short_pause(monkeypatch):
    monkeypatch.setattr(sources, "_RECONNECTION_PAUSE", 0.01)


def write_video(path: Path, frames: int, height: int = 48, width: int = 64) -> Path:
    writer = VideoWriter(path, 12.5, height, width)
    for number in range(frames):
        writer.write(np.full((height, width, 3), 10 * number % 256, np.uint8))
    writer.close()
    return path


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def read(*arguments: str | Path) -> list[Frame | Failure]:
    return [load(item) for item in open_sources(list_sources(map(str, arguments)))]


def only_failure(items: list[Frame | Failure]) -> str:
    (reason,) = [item.reason for item in items if isinstance(item, Failure)]
    return reason


def test_no_arguments_give_no_sources():
    assert list(list_sources([])) == [] == list(open_sources([])) == list(list_sources(["-"], []))


def test_kinds_of_arguments_are_distinguished(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "a.png", "7")
    arguments = ["a.png", "0", "7", "rtsp://camera/live", "http://host/a.jpg"]
    assert list(list_sources(arguments)) == [Path("a.png"), 0, Path("7"), "rtsp://camera/live", "http://host/a.jpg"]


def test_folder_gives_its_images_and_videos_sorted(tmp_path):
    touch(tmp_path, "album/b.JPG", "album/a.png", "album/c.mp4", "album/notes.txt", "album/deeper/d.jpg", "z.dat")
    (tmp_path / "album" / "folder.jpg").mkdir()
    listed = list(list_sources([str(tmp_path / "z.dat"), str(tmp_path / "album")]))
    assert listed == [tmp_path / "z.dat", *(tmp_path / "album" / name for name in ("a.png", "b.JPG", "c.mp4"))]


def test_folder_whose_name_looks_like_a_pattern(tmp_path):
    touch(tmp_path, "[1] first*/a.png")
    assert list(list_sources([str(tmp_path / "[1] first*")])) == [tmp_path / "[1] first*" / "a.png"]


def test_patterns_are_expanded_also_through_folders(tmp_path):
    touch(tmp_path, "a/1.jpg", "a/b/2.jpg", "a/b/3.png", "a/b/4.txt", "5[x].jpg")
    assert list(list_sources([f"{tmp_path}/**/*.jpg"])) == [
        tmp_path / "5[x].jpg",
        tmp_path / "a/1.jpg",
        tmp_path / "a/b/2.jpg",
    ]
    assert list(list_sources([f"{tmp_path}/a/b/*"])) == [tmp_path / "a/b/2.jpg", tmp_path / "a/b/3.png"]
    assert list(list_sources([f"{tmp_path}/5[x].jpg"])) == [tmp_path / "5[x].jpg"]  # a file of this name comes first


def test_lines_of_stdin_are_sources(tmp_path):
    touch(tmp_path, "a.png", "album/b.png", "with space.png")
    lines = [f"{tmp_path}/a.png\n", "\n", f"{tmp_path}/album\r\n", f"  {tmp_path}/with space.png", "0\n", "-\n"]
    expected = [tmp_path / "a.png", tmp_path / "album/b.png", tmp_path / "with space.png", 0]
    assert list(list_sources(["-"], lines)) == expected


@pytest.mark.parametrize(
    ("argument", "named"),
    [
        ("none.png", r"file.*none\.png"),
        ("empty", "images.*empty"),
        ("*.gone", r"images.*\*\.gone"),
        ("a" * 5000, "file.*aaa"),
        ("nul\0byte", "file.*nul"),
    ],
)
def test_missing_source_is_a_failure_among_the_others(tmp_path, monkeypatch, argument, named):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    touch(tmp_path, "a.png")
    failure, other = list_sources([argument, "a.png"])
    assert failure.name == argument and re.search(named, failure.reason)
    assert other == Path("a.png")


def test_image_becomes_one_frame(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    write_image(tmp_path / "a.png", pixels)
    (frame,) = read(tmp_path / "a.png")
    np.testing.assert_array_equal(frame.image, pixels)
    assert (frame.number, frame.source.rate) == (None, None)
    assert (frame.source.name, frame.source.stem) == (str(tmp_path / "a.png"), "a")


def test_corrupt_image_does_not_hide_the_others(tmp_path):
    for name in ("a.png", "c.png"):
        write_image(tmp_path / name, np.zeros((1, 1, 3), np.uint8))
    (tmp_path / "b.jpg").write_bytes(jpeg()[:200])
    first, broken, last = read(tmp_path)
    assert (first.source.stem, last.source.stem) == ("a", "c")
    assert broken.name == str(tmp_path / "b.jpg") and "cut short" in broken.reason


def test_video_gives_its_frames_in_rgb_and_order(tmp_path):
    writer = VideoWriter(tmp_path / "a.mp4", 12.5, 48, 64)
    for number in range(8):
        writer.write(np.full((48, 64, 3), (200, 10 * number, 30), np.uint8))
    writer.close()
    frames = read(tmp_path / "a.mp4")
    assert [frame.number for frame in frames] == list(range(8))
    assert len({frame.source for frame in frames}) == 1
    assert frames[0].source.rate == 12.5 and frames[0].source.stem == "a"
    for number, frame in enumerate(frames):
        assert np.abs(frame.image.mean(axis=(0, 1)) - (200, 10 * number, 30)).max() < 8


def test_unreadable_video_is_a_failure(tmp_path):
    whole = write_video(tmp_path / "whole.mp4", 5)
    (tmp_path / "half.mp4").write_bytes(whole.read_bytes()[:500])
    (tmp_path / "text.avi").write_text("no video")
    assert "half.mp4" in only_failure(read(tmp_path / "half.mp4"))
    items = read(tmp_path)
    assert [isinstance(item, Failure) for item in items] == [True, True, *[False] * 5]


def test_video_that_ends_early_keeps_its_frames_and_is_a_failure(tmp_path):
    path = tmp_path / "a.avi"
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"MJPG"), 25.0, (64, 48))
    for number in range(40):
        writer.write(np.full((48, 64, 3), number, np.uint8))
    writer.release()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    *frames, failure = read(path)
    assert 0 < len(frames) < 30 and all(isinstance(frame, Frame) for frame in frames)
    assert failure.reason.startswith(f"{path} ends after {len(frames)} of 40 frames")


def test_absent_camera_is_a_failure():
    assert "camera 77" in only_failure(read("77"))
    assert "camera: 20240131123456" in only_failure(read("20240131123456"))


def test_image_from_the_web():
    with serve({"/a/photo.jpg": ("image/jpeg", jpeg(30, 40)), "/snapshot": ("image/jpeg", jpeg())}) as server:
        first, second = read(f"{server.url}/a/photo.jpg", f"{server.url}/snapshot")
    assert first.image.shape == (30, 40, 3) and first.number is None
    assert first.source.stem == "photo" and first.source.name == f"{server.url}/a/photo.jpg"
    assert second.source.stem == "snapshot"


def test_password_reaches_the_server_and_no_message():
    with serve({"/a.jpg": ("image/jpeg", jpeg())}) as server:
        (frame,) = read(server.url.replace("//", "//me:my%20secret@") + "/a.jpg")
        (failure,) = read(server.url.replace("//", "//me:my%20secret@") + "/none.jpg")
    assert server.seen[0] == ("/a.jpg", "Basic bWU6bXkgc2VjcmV0")  # base64 of "me:my secret"
    assert "secret" not in frame.source.name + failure.name + failure.reason


def test_image_from_the_web_that_is_missing_broken_or_huge(monkeypatch):
    monkeypatch.setattr(sources, "_MAX_DOWNLOAD", 5000)
    with serve({"/cut.jpg": ("image/jpeg", jpeg()[:200]), "/huge.jpg": ("image/jpeg", bytes(6000))}) as server:
        assert "404" in only_failure(read(f"{server.url}/none.jpg"))
        assert "cut short" in only_failure(read(f"{server.url}/cut.jpg"))
        assert "5000 bytes" in only_failure(read(f"{server.url}/huge.jpg"))
    assert "refused" in only_failure(read(f"{server.url}/a.jpg"))  # the server has ended


@pytest.mark.parametrize("url", ["http://", "http://[", "http://127.0.0.1:x/", "nope://host/a", "rtsp://127.0.0.1:9/x"])
def test_url_that_leads_nowhere_is_a_failure(url):
    assert url in only_failure(read(url))


def test_web_page_is_no_stream():
    with serve({"/page": ("text/html", b"<html>hello</html>" * 50)}) as server:
        assert "/page" in only_failure(read(f"{server.url}/page"))


def test_stream_that_breaks_keeps_its_frames():
    with serve(stream_lengths=[0, 9]) as server:
        *frames, failure = read(f"{server.url}/stream")
    assert [frame.number for frame in frames] == list(range(9))
    assert [round(frame.image.mean() / 10) for frame in frames] == list(range(9))
    assert failure.reason.startswith(f"{server.url}/stream broke after 9 frames and did not resume")
    assert server.connections == 2 + 2  # two attempts


def test_stream_that_resumes_continues():
    with serve(stream_lengths=[0, 5, 6]) as server:
        items = read(f"{server.url}/stream")
    failures = [(at, item.reason) for at, item in enumerate(items) if isinstance(item, Failure)]
    assert [at for at, _ in failures] == [5, 12]
    assert "broke after 5 frames and resumed" in failures[0][1]
    assert "broke after 11 frames and did not resume" in failures[1][1]
    frames = [item for item in items if isinstance(item, Frame)]
    assert [frame.number for frame in frames] == list(range(11)) and len({frame.source for frame in frames}) == 1


def test_video_from_the_web_simply_ends(tmp_path):
    data = write_video(tmp_path / "a.mp4", 6).read_bytes()
    with serve({"/film.mp4": ("video/mp4", data)}) as server:
        frames = read(f"{server.url}/film.mp4")
    assert [frame.number for frame in frames] == list(range(6)) and frames[0].source.stem == "film"


def test_sources_are_opened_one_after_the_other(tmp_path):
    write_image(tmp_path / "a.png", np.zeros((4, 4, 3), np.uint8))
    write_video(tmp_path / "b.mp4", 2)
    with serve(stream_lengths=[0, 3]) as server:
        arguments = [f"{tmp_path}/a.png", f"{server.url}/stream", f"{tmp_path}/none", f"{tmp_path}/b.mp4"]
        items = [load(item) for item in open_sources(list_sources(arguments))]
    names = ["failure" if isinstance(item, Failure) else item.source.stem for item in items]
    assert names == ["a", "stream", "stream", "stream", "failure", "failure", "b", "b"]
