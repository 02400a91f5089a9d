"""Videos written and read back, and the window."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from utils import video
from utils.errors import InputError
from utils.video import VideoReader, VideoWriter, Window


def write(path: Path, frames: int, rate: float = 12.5, height: int = 48, width: int = 64) -> VideoWriter:
    writer = VideoWriter(path, rate, height, width)
    for number in range(frames):
        writer.write(np.full((height, width, 3), (200, 10 * number % 256, 30), np.uint8))
    return writer


def read(path: Path) -> list[np.ndarray]:
    return list(VideoReader(str(path), "the video"))


def test_video_without_frames_holds_none(tmp_path):
    writer = write(tmp_path / "a.mp4", 0)
    try:
        writer.close()
    except InputError as error:  # some versions of FFmpeg write no file
        assert "a.mp4" in str(error)
    else:
        assert read(tmp_path / "a.mp4") == []


@pytest.mark.parametrize("rate", [0.5, 12.5, 29.97, 120.0])
def test_size_rate_colors_and_order_are_kept(tmp_path, rate):
    write(tmp_path / "new" / "a.mp4", 10, rate).close()
    reader = VideoReader(str(tmp_path / "new" / "a.mp4"), "the video")
    assert reader.rate == pytest.approx(rate, rel=1e-3) and reader.frame_count == 10
    frames = list(reader)
    assert len(frames) == 10
    for number, frame in enumerate(frames):
        assert frame.shape == (48, 64, 3) and frame.dtype == np.uint8
        assert np.abs(frame.mean(axis=(0, 1)) - (200, 10 * number, 30)).max() < 8


def test_file_is_replaced_when_the_writer_is_closed(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"an older one")
    writer = write(path, 5)
    assert path.read_bytes() == b"an older one"
    writer.close()
    assert len(read(path)) == 5
    assert list(tmp_path.iterdir()) == [path]
    writer.close()  # harmless


def test_frames_of_another_size_are_resized(tmp_path):
    writer = write(tmp_path / "a.mp4", 1)
    writer.write(np.full((96, 100, 3), 77, np.uint8))
    writer.close()
    _, resized = read(tmp_path / "a.mp4")
    assert resized.shape == (48, 64, 3) and abs(resized.mean() - 77) < 5


@pytest.mark.parametrize(("size", "kept"), [((1, 1), (2, 2)), ((47, 63), (46, 62)), ((3, 200), (2, 200))])
def test_odd_sides_lose_a_pixel(tmp_path, size, kept):
    write(tmp_path / "a.mp4", 2, height=size[0], width=size[1]).close()
    assert read(tmp_path / "a.mp4")[0].shape == (*kept, 3)


def test_unwritable_path_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"a\.mp4"):
        write(tmp_path / "file" / "a.mp4", 1)


def test_missing_codec_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "_MPEG4", cv2.VideoWriter_fourcc(*"????"))
    with pytest.raises(InputError, match=r"a\.mp4.* 64 x 48 .*--save"):
        write(tmp_path / "a.mp4", 1)
    assert list(tmp_path.iterdir()) == []


def test_unfinished_video_is_reported(tmp_path):
    writer = write(tmp_path / "a.mp4", 5)
    writer._video.release()
    writer._growing.write_bytes(b"the disk was full")
    with pytest.raises(InputError, match="a.mp4"):
        writer.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"no video\n", bytes(5000)])
def test_file_that_is_no_video_is_reported_by_its_name(tmp_path, capfd, content):
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(InputError, match="the film"):
        VideoReader(str(tmp_path / "a.mp4"), "the film")
    assert capfd.readouterr() == ("", "")  # nothing from OpenCV or FFmpeg


def test_opencv_without_ffmpeg_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(cv2.videoio_registry, "getBackends", lambda: [cv2.CAP_V4L2])
    with pytest.raises(InputError, match="the film.*FFmpeg"):
        VideoReader(str(tmp_path / "a.mp4"), "the film")


class Capture:
    """Replaces OpenCV's, with the given properties."""

    def __init__(self, **properties):
        self.properties = {getattr(cv2, key): value for key, value in properties.items()}

    def isOpened(self):
        return True

    def get(self, key):
        return self.properties[key]


@pytest.mark.parametrize(
    ("rate", "count", "expected"),
    [
        (25.0, 100.0, (25.0, 100)),
        (0.0, -1.0, (video.DEFAULT_RATE, None)),
        (float("nan"), float("nan"), (video.DEFAULT_RATE, None)),
        (90000.0, -9.2e18, (video.DEFAULT_RATE, None)),
        (float("inf"), float("inf"), (video.DEFAULT_RATE, None)),
    ],
)
def test_implausible_rates_and_counts_are_ignored(monkeypatch, rate, count, expected):
    capture = Capture(CAP_PROP_FPS=rate, CAP_PROP_FRAME_COUNT=count)
    monkeypatch.setattr(cv2, "VideoCapture", lambda *args: capture)
    reader = VideoReader(0, "camera 0")
    assert (reader.rate, reader.frame_count) == expected


def test_window_without_a_screen_is_refused_and_the_process_survives(monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match="--show"):
        Window("title")


@pytest.mark.parametrize(
    ("keys", "visible", "wait", "expected"),
    [
        ([-1], 1, False, True),
        ([ord("q")], 1, False, False),
        ([27], 1, True, False),
        ([-1, -1, ord(" ")], 1, True, True),
        ([-1], 0, True, False),  # closed by the user
    ],
)
def test_keys_in_the_window(monkeypatch, keys, visible, wait, expected):
    shown = []
    monkeypatch.setattr(video.subprocess, "run", lambda *args, **kwargs: type("Done", (), {"returncode": 0}))
    for name in ("namedWindow", "resizeWindow", "destroyAllWindows"):
        monkeypatch.setattr(cv2, name, lambda *args: None)
    monkeypatch.setattr(cv2, "imshow", lambda title, image: shown.append(image))
    monkeypatch.setattr(cv2, "getWindowProperty", lambda *args: visible)
    monkeypatch.setattr(cv2, "waitKey", lambda milliseconds: keys.pop(0))
    window = Window("title")
    red = np.full((5000, 1, 3), (255, 0, 0), np.uint8)
    assert window.show(red, wait) is expected
    assert shown[0][0, 0].tolist() == [0, 0, 255] and keys == []  # BGR
    window.close()
