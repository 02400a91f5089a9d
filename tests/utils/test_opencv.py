"""OpenCV's own voice."""

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def test_opencv_does_not_warn_of_what_it_cannot_read():
    """It writes to the file descriptor, so a process of its own is asked."""
    code = "import cv2; cv2.imread('absent.jpg'); from utils.images import read_image; cv2.imread('absent.png')"
    run = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert "absent.jpg" in run.stderr and "absent.png" not in run.stderr
