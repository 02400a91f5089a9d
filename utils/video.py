"""Video input and output by OpenCV, with RGB frames, and a window to show them."""

import contextlib
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import cv2
import numpy as np

from utils.errors import InputError
from utils.files import atomic_write

# Silence FFmpeg, which reads this when the first video is opened.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".gif"})
DEFAULT_RATE = 30.0  # frames per second, if a video does not report a plausible rate
_MPEG4 = cv2.VideoWriter.fourcc(*"mp4v")


class VideoReader:
    """The frames of a file (path), stream (URL) or camera (index), (H, W, 3) uint8 RGB, up to the first damaged one.

    `rate` is in frames per second. `frame_count` is what the file reports (some formats estimate it), or None for a
    live source. Raises InputError, which calls the video `name`, if it cannot be opened.
    """

    def __init__(self, source: str | int, name: str):
        if isinstance(source, int):
            self._capture = cv2.VideoCapture(source)
        else:
            # For streams: give up after ten seconds without data.
            timeouts = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, 10_000, cv2.CAP_PROP_READ_TIMEOUT_MSEC, 10_000]
            self._capture = cv2.VideoCapture(source, cv2.CAP_FFMPEG, timeouts)
        if not self._capture.isOpened():
            raise InputError(f"cannot open {name}: {_guess_reason(source)}")
        rate, count = self._capture.get(cv2.CAP_PROP_FPS), self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.rate = rate if 0 < rate <= 1000 else DEFAULT_RATE
        self.frame_count = round(count) if 0 < count < math.inf else None

    def __iter__(self) -> Iterator[np.ndarray]:
        while True:
            decoded, frame = self._capture.read()
            if not decoded:
                return
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB, dst=frame)
            del frame

    def close(self) -> None:
        self._capture.release()


class VideoWriter:
    """A writer of MP4 files (MPEG-4) from (H, W, 3) uint8 RGB frames, which it resizes to `height` x `width`.

    A temporary file replaces `path` when `close` is called. MPEG-4 has even sides only: an odd one loses its last
    pixel. Raises InputError if the file cannot be written.
    """

    def __init__(self, path: Path, rate: float, height: int, width: int):
        self.path = path
        self._size = (max(2, width), max(2, height))
        with ExitStack() as stack:
            self._temporary = stack.enter_context(atomic_write(path))
            self._growing = self._temporary.with_suffix(".mp4")  # FFmpeg chooses the format by the suffix
            stack.callback(self._growing.unlink, missing_ok=True)
            self._video = cv2.VideoWriter(str(self._growing), cv2.CAP_FFMPEG, _MPEG4, rate, self._size)
            if not self._video.isOpened():
                remedy = "choose another --output, or do not save images (--save json, for instance)"
                raise InputError(f"OpenCV cannot write the MP4 file {path} of {width} x {height} pixels: {remedy}")
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
        # OpenCV does not report a full disk, but a file without its end cannot be opened.
        with contextlib.closing(VideoReader(str(self._growing), f"the video just written, {self._growing}")):
            os.replace(self._growing, self._temporary)


class Window:
    """A window on the screen. Raises InputError without a screen, or if OpenCV was built without GUI support."""

    def __init__(self, title: str):
        self._title = title
        # Without a screen, OpenCV aborts the process, so try in another one first.
        trial = [sys.executable, "-c", "import cv2; cv2.namedWindow('test')"]
        if subprocess.run(trial, capture_output=True).returncode:
            needed = "a screen and an OpenCV with windows (opencv-python, not opencv-python-headless)"
            raise InputError(f"--show needs {needed}: leave it out, and look at the saved images")
        cv2.namedWindow(title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)

    def show(self, image: np.ndarray, wait: bool) -> bool:
        """Show an (H, W, 3) uint8 RGB image, until a key is pressed if `wait`. Return False on q, Esc or closing."""
        height, width = image.shape[:2]
        scale = min(1.0, 1280 / width, 720 / height)
        cv2.resizeWindow(self._title, max(1, round(width * scale)), max(1, round(height * scale)))
        cv2.imshow(self._title, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        while True:
            key = cv2.waitKey(20 if wait else 1)
            if key in (ord("q"), 27) or cv2.getWindowProperty(self._title, cv2.WND_PROP_VISIBLE) < 1:
                return False
            if key >= 0 or not wait:
                return True

    def close(self) -> None:
        cv2.destroyAllWindows()


def _guess_reason(source: str | int) -> str:
    if isinstance(source, int):
        return "there is no such camera, or another program is using it"
    if cv2.CAP_FFMPEG not in cv2.videoio_registry.getBackends():
        return "this OpenCV was built without FFmpeg; install opencv-python from PyPI"
    if "://" in source:
        return "no answer, or no video stream"
    return "it is damaged, cut short, or not a video"
