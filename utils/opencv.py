"""What OpenCV 4 and 5 call by different names."""

import cv2


def silence_opencv() -> None:
    """No warnings of OpenCV's own on stderr, in this process: what it warns about, our InputErrors say."""
    set_level = cv2.setLogLevel if hasattr(cv2, "setLogLevel") else cv2.utils.logging.setLogLevel
    set_level(0)
