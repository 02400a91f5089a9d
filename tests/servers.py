"""A local server for tests of sources: images, and a stream that breaks."""

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np


def jpeg(height: int = 48, width: int = 64, value: int = 90) -> bytes:
    return cv2.imencode(".jpg", np.full((height, width, 3), value, np.uint8))[1].tobytes()


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.seen.append((self.path, self.headers.get("Authorization")))
        if self.path == "/stream":
            self._stream()
        elif self.path in self.server.files:
            kind, data = self.server.files[self.path]
            self._head(kind)
            self.wfile.write(data)
        else:
            self.send_error(404)

    def _stream(self):
        """Send the frames of this connection as motion JPEG, and end in the middle of the next frame."""
        self.server.connections += 1
        if self.server.connections > len(self.server.stream_lengths):
            self.send_error(503)
            return
        self._head("multipart/x-mixed-replace; boundary=frame")
        with contextlib.suppress(OSError):  # the client has disconnected
            for number in range(self.server.stream_lengths[self.server.connections - 1]):
                self._part(jpeg(value=10 * number % 250))
                time.sleep(0.01)
            self._part(jpeg()[:100])

    def _part(self, data: bytes):
        head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg())}\r\n\r\n"
        self.wfile.write(head.encode() + data + b"\r\n")

    def _head(self, kind: str):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serve(
    files: dict[str, tuple[str, bytes]] | None = None, stream_lengths: Sequence[int] = ()
) -> Iterator[ThreadingHTTPServer]:
    """Start a server; `server.url` is its address, `server.seen` the (path, authorization) of each request.

    Args:
        files: path -> content type, content.
        stream_lengths: number of frames for each connection to `/stream` before it breaks; further connections are
            refused. The first one only asks for the content type.
    """
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.files, server.stream_lengths, server.connections, server.seen = files or {}, stream_lengths, 0, []
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
