"""Videos in and out by OpenCV, frames in RGB, and a window to look at them."""

import contextlib
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

# FFmpeg's own messages would come between ours. It reads this when the first video is opened.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

import cv2
import numpy as np

from utils.errors import InputError
from utils.files import atomic_write
from utils.images import silence_opencv

silence_opencv()

VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".gif"})
DEFAULT_RATE = 30.0  # frames per second, where a video does not tell
_LARGEST_RATE = 1000.0
_STREAM_TIMEOUT = 10_000  # milliseconds that a stream may be silent
_MPEG4 = cv2.VideoWriter.fourcc(*"mp4v")
_WINDOW_SIDES = (1280, 720)  # largest, width and height in pixels


class VideoReader:
    """The frames of a video file, a stream (URL) or a camera (a number), as (H, W, 3) uint8 RGB.

    Iterate over it. The frames end where the video does, where it breaks, and where it is damaged.

    Attributes:
        rate: frames per second.
        frame_count: how many it holds by its own account (some formats estimate); None for what is live.

    Raises InputError, which calls the video by `name`, when it cannot be opened.
    """

    def __init__(self, source: str | int, name: str):
        if isinstance(source, int):
            self._capture = cv2.VideoCapture(source)
        else:
            timeouts = (cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, cv2.CAP_PROP_READ_TIMEOUT_MSEC)
            parameters = [number for timeout in timeouts for number in (timeout, _STREAM_TIMEOUT)]
            self._capture = cv2.VideoCapture(source, cv2.CAP_FFMPEG, parameters)
        if not self._capture.isOpened():
            raise InputError(f"cannot open {name}: {_reason(source)}")
        rate, count = (self._capture.get(key) for key in (cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT))
        self.rate = rate if 0 < rate <= _LARGEST_RATE else DEFAULT_RATE
        self.frame_count = round(count) if 0 < count < math.inf else None

    def __iter__(self) -> Iterator[np.ndarray]:
        while True:
            there, frame = self._capture.read()
            if not there:
                return
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB, dst=frame)
            del frame

    def close(self) -> None:
        self._capture.release()


class VideoWriter:
    """An MP4 file (MPEG-4) of (H, W, 3) uint8 RGB frames, all resized to `height` x `width`.

    It grows beside `path` and takes its place, whole, when `close` is called. The format has even sides only: an odd
    one loses its last pixel.

    Raises InputError when it cannot be written.
    """

    def __init__(self, path: Path, rate: float, height: int, width: int):
        self.path = path
        self._size = (max(2, width), max(2, height))
        with ExitStack() as stack:
            self._whole = stack.enter_context(atomic_write(path))
            self._growing = self._whole.with_suffix(".mp4")  # the suffix tells FFmpeg the format
            stack.callback(self._growing.unlink, missing_ok=True)
            self._video = cv2.VideoWriter(str(self._growing), cv2.CAP_FFMPEG, _MPEG4, rate, self._size)
            if not self._video.isOpened():
                raise InputError(
                    f"cannot write {path}: OpenCV cannot make an MP4 of {width} x {height} pixels there; "
                    f"take another --output, or leave the images out (--save json, say)"
                )
            stack.callback(self._finish)
            self._stack = stack.pop_all()

    def write(self, frame: np.ndarray) -> None:
        if frame.shape[1::-1] != self._size:
            frame = cv2.resize(frame, self._size, interpolation=cv2.INTER_AREA)
        self._video.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        self._stack.close()

    def _finish(self) -> None:
        self._video.release()
        # OpenCV does not tell when the disk is full; a file without its end cannot be opened.
        with contextlib.closing(VideoReader(str(self._growing), f"the video just written, {self._growing}")):
            os.replace(self._growing, self._whole)


class Window:
    """A window on the screen. InputError where there is no screen, or OpenCV was built without windows."""

    def __init__(self, title: str):
        self._title = title
        # Where no screen answers, OpenCV ends the process: so another one tries first.
        attempt = [sys.executable, "-c", "import cv2; cv2.namedWindow('test')"]
        if subprocess.run(attempt, capture_output=True).returncode:
            raise InputError(
                "--show needs a screen and an OpenCV with windows (opencv-python, not opencv-python-headless): "
                "leave it out, and look at the images written"
            )
        cv2.namedWindow(title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)

    def show(self, image: np.ndarray, wait: bool) -> bool:
        """Show (H, W, 3) uint8 RGB, with `wait` until a key is pressed. False for q, Esc or when it was closed."""
        height, width = image.shape[:2]
        shrink = min(1.0, _WINDOW_SIDES[0] / width, _WINDOW_SIDES[1] / height)
        cv2.resizeWindow(self._title, max(1, round(width * shrink)), max(1, round(height * shrink)))
        cv2.imshow(self._title, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        while True:
            key = cv2.waitKey(20 if wait else 1)
            if key in (ord("q"), 27) or cv2.getWindowProperty(self._title, cv2.WND_PROP_VISIBLE) < 1:
                return False
            if key >= 0 or not wait:
                return True

    def close(self) -> None:
        cv2.destroyAllWindows()


def _reason(source: str | int) -> str:
    """Why a video was not opened, as far as one can know."""
    if isinstance(source, int):
        return "there is no such camera, or another program has it"
    if cv2.CAP_FFMPEG not in cv2.videoio_registry.getBackends():
        return "this OpenCV was built without FFmpeg; install opencv-python from PyPI"
    if "://" in source:
        return "nobody answers there, or it is no video"
    return "it is damaged, cut short, or no video"
