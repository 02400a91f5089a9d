"""Downloads from a server on this machine: whole, resumed, and failing."""

import http.server
import re
import socket
import threading

import pytest

from utils.download import download
from utils.errors import InputError

CONTENT = bytes(range(256)) * 1000


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        wanted = self.headers.get("Range")
        server.ranges.append(wanted)
        if self.path == "/missing.pth":
            return self.send_error(404)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and server.supports_range else 0
        if start >= len(CONTENT):
            return self.send_error(416)
        body = CONTENT[start:]
        self.send_response(206 if wanted and server.supports_range else 200)
        if server.sends_length:
            self.send_header("Content-Length", str(len(body)))
        if wanted and server.supports_range:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.end_headers()
        self.wfile.write(body[: server.breaks_after])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.supports_range, server.sends_length, server.breaks_after, server.ranges = True, True, None, []
        server.url = f"http://127.0.0.1:{server.server_port}/weights.pth"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("sends_length", [True, False])
def test_whole_file_is_downloaded(tmp_path, server, sends_length):
    server.sends_length = sends_length
    path = tmp_path / "new" / "weights.pth"
    download(server.url, path, len(CONTENT))
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]
    assert server.ranges == [None]


def test_interrupted_download_resumes(tmp_path, server):
    server.breaks_after = 100_000
    path = tmp_path / "weights.pth"
    with pytest.raises(InputError, match=f"{re.escape(server.url)} .*100000 of 256000"):
        download(server.url, path)
    assert not path.exists()
    server.breaks_after = None
    download(server.url, path)
    assert path.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-"]
    assert list(tmp_path.iterdir()) == [path]


def test_server_that_ignores_the_range_sends_the_whole_file(tmp_path, server):
    server.supports_range = False
    (tmp_path / "weights.pth.part").write_bytes(CONTENT[:1000])
    download(server.url, tmp_path / "weights.pth", len(CONTENT))
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT


@pytest.mark.parametrize("part", [CONTENT, CONTENT + b"more"])
def test_complete_or_oversized_part_still_gives_the_right_file(tmp_path, server, part):
    (tmp_path / "weights.pth.part").write_bytes(part)
    download(server.url, tmp_path / "weights.pth", len(CONTENT))
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT


@pytest.mark.parametrize("difference", [-1, 1])
def test_file_of_an_unexpected_size_is_refused(tmp_path, server, difference):
    path = tmp_path / "weights.pth"
    expected = len(CONTENT) + difference
    for _ in range(2):
        with pytest.raises(InputError, match=f"{re.escape(server.url)} .*256000 of {expected}"):
            download(server.url, path, expected)
        assert not path.exists()


def test_missing_file_is_reported_with_its_url(tmp_path, server):
    url = server.url.replace("weights", "missing")
    with pytest.raises(InputError) as caught:
        download(url, tmp_path / "weights.pth")
    assert url in str(caught.value) and str(tmp_path / "weights.pth") in str(caught.value)


def test_dead_server_is_reported_with_the_url(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/weights.pth"
    with pytest.raises(InputError, match=re.escape(url)):
        download(url, tmp_path / "weights.pth")


@pytest.mark.parametrize(
    "answer",
    [b"", b"this is no HTTP\r\n\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab"],
    ids=["nothing", "garbage", "broken chunk"],
)
def test_nonsense_from_the_server_is_reported_with_the_url(tmp_path, monkeypatch, answer):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/weights.pth"
        try:
            with pytest.raises(InputError, match=re.escape(url)):
                download(url, tmp_path / "weights.pth")
        finally:
            thread.join()
    assert not (tmp_path / "weights.pth").exists()


def test_unwritable_folder_is_reported(tmp_path, server):
    (tmp_path / "blocked").touch()
    with pytest.raises(InputError, match="blocked"):
        download(server.url, tmp_path / "blocked" / "weights.pth")
