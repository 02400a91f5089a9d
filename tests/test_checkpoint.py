"""Weights in and out: round trips, files that do not fit, files that are none, downloads, and `last`."""

import http.server
import math
import pickle
import re
import socket
import threading
from pathlib import Path

import pytest
import torch
from scripts import untrained

from efficientdet import checkpoint
from efficientdet.checkpoint import (
    chosen_weights,
    download,
    find_weights,
    guess_compound_coefs,
    load_last,
    load_weights,
    published_url,
    read_state_dict,
    save_checkpoint,
)
from efficientdet.model import EfficientDet
from utils.errors import InputError

HEADER = "classifier.header.pointwise_conv.conv"


@pytest.fixture(scope="module")
def two_classes():
    """The state dict of an untrained D0 of two classes. Not to be changed."""
    return untrained(0, 2).state_dict()


@pytest.fixture
def weights_file(tmp_path, two_classes):
    path = tmp_path / "two.pth"
    torch.save(two_classes, path)
    return path


def save(path: Path, content) -> Path:
    torch.save(content, path)
    return path


def assert_unchanged(network: EfficientDet, before: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


# Reading and loading.


def test_empty_file_is_refused(tmp_path):
    (tmp_path / "empty.pth").write_bytes(b"")
    with pytest.raises(InputError, match=r"empty\.pth"):
        read_state_dict(tmp_path / "empty.pth")


def test_empty_state_dict_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"none\.pth does not fit: it lacks"):
        load_weights(EfficientDet(0, 2), save(tmp_path / "none.pth", {}))


def test_weights_come_back_as_they_were(weights_file, two_classes):
    network = EfficientDet(0, 2)
    assert load_weights(network, weights_file) is False
    assert network.state_dict().keys() == two_classes.keys()
    assert_unchanged(network, two_classes)


def test_file_of_other_classes_leaves_the_class_header_alone_fresh(weights_file, two_classes):
    network = EfficientDet(0, 5)
    with torch.no_grad():
        network.get_submodule(HEADER).weight.fill_(100.0)
    assert load_weights(network, weights_file, new_class_header=True) is True
    state = network.state_dict()
    for key, value in two_classes.items():
        if not key.startswith(HEADER):
            assert torch.equal(state[key], value), key
    assert state[f"{HEADER}.bias"].shape == (45,)
    # Every score begins at 0.01.
    torch.testing.assert_close(state[f"{HEADER}.bias"].sigmoid(), torch.full((45,), 0.01))
    weight = state[f"{HEADER}.weight"]
    assert weight.shape == (45, 64, 1, 1)
    assert weight.std().item() == pytest.approx(math.sqrt(1 / 64), rel=0.1)


def test_new_class_header_is_not_needed_when_the_classes_agree(weights_file, two_classes):
    network = EfficientDet(0, 2)
    assert load_weights(network, weights_file, new_class_header=True) is False
    assert_unchanged(network, two_classes)


def test_file_of_other_classes_is_refused_otherwise(weights_file):
    network = EfficientDet(0, 5)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(InputError, match=r"two\.pth.*2 classes.*5"):
        load_weights(network, weights_file)
    assert_unchanged(network, before)


@pytest.mark.parametrize("new_class_header", [False, True])
def test_weights_of_another_coefficient_are_recognised(tmp_path, new_class_header):
    path = save(tmp_path / "one.pth", untrained(1, 2).state_dict())
    with pytest.raises(InputError, match=r"one\.pth.*looks like D1, you passed -c 0"):
        load_weights(EfficientDet(0, 2), path, new_class_header)


@pytest.mark.parametrize("new_class_header", [False, True])
def test_other_number_of_anchors_is_told(weights_file, new_class_header):
    network = EfficientDet(0, 2, scales=(1.0, 1.5))
    with pytest.raises(InputError, match=r"9 anchors in each cell.*anchors_scales.*make 6"):
        load_weights(network, weights_file, new_class_header)


def test_keys_of_dataparallel_are_recognised(tmp_path, two_classes):
    path = save(tmp_path / "wrapped.pth", {f"module.{key}": value for key, value in two_classes.items()})
    with pytest.raises(InputError, match=r"wrapped\.pth.*'module\.'"):
        load_weights(EfficientDet(0, 2), path)


@pytest.mark.parametrize("new_class_header", [False, True])
def test_missing_key_is_named(tmp_path, two_classes, new_class_header):
    key = "backbone_net.model._conv_stem.conv.weight"
    path = save(tmp_path / "less.pth", {name: value for name, value in two_classes.items() if name != key})
    with pytest.raises(InputError, match=re.escape(key)):
        load_weights(EfficientDet(0, 2), path, new_class_header)


def test_missing_class_header_is_no_other_number_of_classes(tmp_path, two_classes):
    path = save(tmp_path / "bare.pth", {name: value for name, value in two_classes.items() if HEADER not in name})
    with pytest.raises(InputError, match=re.escape(HEADER)):
        load_weights(EfficientDet(0, 2), path, new_class_header=True)


def test_unknown_key_is_named(tmp_path, two_classes):
    path = save(tmp_path / "more.pth", {**two_classes, "extra.weight": torch.zeros(1)})
    with pytest.raises(InputError, match=r"extra\.weight"):
        load_weights(EfficientDet(0, 2), path)


def test_key_of_another_shape_is_named_with_both_shapes(tmp_path, two_classes):
    key = "backbone_net.model._conv_stem.conv.weight"
    path = save(tmp_path / "odd.pth", {**two_classes, key: torch.zeros(32, 3, 5, 5)})
    with pytest.raises(InputError, match=rf"{re.escape(key)}.*\(32, 3, 5, 5\), not \(32, 3, 3, 3\)"):
        load_weights(EfficientDet(0, 2), path)


@pytest.mark.parametrize(
    "content",
    [[1, 2], torch.zeros(3), {"epoch": 3}, {"state_dict": {"a": torch.zeros(1)}}, {0: torch.zeros(1)}, "text", None],
    ids=repr,
)
def test_file_of_other_things_is_refused(tmp_path, content):
    with pytest.raises(InputError, match=r"other\.pth"):
        load_weights(EfficientDet(0, 2), save(tmp_path / "other.pth", content))


@pytest.mark.parametrize("coef", range(9))
def test_coefficient_is_guessed_from_the_shapes(coef):
    with torch.device("meta"):
        weights = EfficientDet(coef, 7).state_dict()
    assert guess_compound_coefs(weights) == ([6, 7] if coef in (6, 7) else [coef])


def test_coefficient_of_other_weights_is_not_guessed():
    assert guess_compound_coefs({}) == []
    assert guess_compound_coefs({"fc.weight": torch.zeros(2, 2)}) == []


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_cut_file_is_refused(weights_file, share):
    data = weights_file.read_bytes()
    weights_file.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match=r"two\.pth.*damaged"):
        load_weights(EfficientDet(0, 2), weights_file)


@pytest.mark.parametrize("content", [b"not tensors\n", b"\x80", b"\x80\x04.", b"PK\x03\x04" + b"\0" * 100, bytes(1000)])
def test_garbage_is_refused(tmp_path, content):
    (tmp_path / "bad.pth").write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.pth"):
        read_state_dict(tmp_path / "bad.pth")


class _MakesAFile:
    """Unpickled without restriction it would create a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("write", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_code_in_a_file_is_never_executed(tmp_path, write):
    made = tmp_path / "made"
    path = tmp_path / "evil.pth"
    write({"weight": _MakesAFile(made)}, path)
    pickle.loads(pickle.dumps(_MakesAFile(made)))  # it would work
    assert made.exists()
    made.unlink()

    with pytest.raises(InputError, match=r"evil\.pth"):
        read_state_dict(path)
    assert not made.exists()
    path.rename(tmp_path / "efficientdet-d0_last.state")
    with pytest.raises(InputError, match=r"last\.state"):
        load_last(tmp_path, 0)
    assert not made.exists()


# Checkpoints and `last`.


def test_folder_without_checkpoints_is_told(tmp_path):
    with pytest.raises(InputError, match="no checkpoint of d0"):
        load_last(tmp_path / "none", 0)


def test_checkpoint_is_written_and_found_again(tmp_path, two_classes):
    network = untrained(0, 2)
    state = {"progress": {"epoch": 3, "step": 40}, "optimizer": {"momentum": torch.arange(3.0)}, "names": ["a", 1.5]}
    path = save_checkpoint(network, state, tmp_path / "logs" / "drawn", epoch=3, step=40)
    assert path == tmp_path / "logs" / "drawn" / "efficientdet-d0_3_40.pth"
    plain = torch.load(path, weights_only=True)
    assert list(plain) == list(network.state_dict())
    assert_unchanged(network, plain)

    found, loaded = load_last(path.parent, 0)
    assert found == path
    assert loaded["progress"] == state["progress"] and loaded["names"] == state["names"]
    assert torch.equal(loaded["optimizer"]["momentum"], torch.arange(3.0))
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name, "efficientdet-d0_last.state"]


def test_last_is_the_newest_checkpoint(tmp_path):
    network = EfficientDet(0, 1)
    save_checkpoint(network, {"step": 9}, tmp_path, 0, 9)
    save_checkpoint(network, {"step": 10}, tmp_path, 0, 10)
    path, state = load_last(tmp_path, 0)
    assert path.name == "efficientdet-d0_0_10.pth" and state["step"] == 10
    assert (tmp_path / "efficientdet-d0_0_9.pth").is_file()


def test_failed_write_leaves_the_last_checkpoint_as_it_was(tmp_path, monkeypatch):
    network = EfficientDet(0, 1)
    first = save_checkpoint(network, {"step": 1}, tmp_path, 0, 1)

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(InputError, match="No space left"):
        save_checkpoint(network, {"step": 2}, tmp_path, 0, 2)
    assert load_last(tmp_path, 0)[0] == first
    assert len(list(tmp_path.iterdir())) == 2


def test_last_of_another_coefficient_is_pointed_out(tmp_path):
    save_checkpoint(EfficientDet(0, 1), {}, tmp_path, 0, 1)
    with pytest.raises(InputError, match="no checkpoint of d2 .*one of d0: pass its -c"):
        load_last(tmp_path, 2)


def test_last_whose_weights_are_gone_is_told(tmp_path):
    path = save_checkpoint(EfficientDet(0, 1), {}, tmp_path, 0, 1)
    path.unlink()
    with pytest.raises(InputError, match=rf"{path.name}, which is gone"):
        load_last(tmp_path, 0)


@pytest.mark.parametrize("content", [[], {}, {"weights": 3}, {"weights": "../../elsewhere.pth"}, {"weights": "a.pth"}])
def test_state_of_something_else_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "efficientdet-d0_last.state")
    with pytest.raises(InputError, match="no training state"):
        load_last(tmp_path, 0)


def test_damaged_state_is_refused(tmp_path):
    save_checkpoint(EfficientDet(0, 1), {}, tmp_path, 0, 1)
    (tmp_path / "efficientdet-d0_last.state").write_bytes(b"\0")
    with pytest.raises(InputError, match=r"last\.state"):
        load_last(tmp_path, 0)


# Which file to take.


RELEASES = "https://github.com/zylo117/Yet-Another-Efficient-Pytorch/releases/download"


@pytest.mark.parametrize("coef", range(9))
def test_published_url(coef):
    release = "1.0" if coef < 7 else "1.2"
    assert published_url(coef) == f"{RELEASES}/{release}/efficientdet-d{coef}.pth"


def test_weights_file_that_does_not_exist_is_told_with_its_neighbours(tmp_path):
    (tmp_path / "b.pth").touch()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=r"no weights file .*a\.pth; that folder has b\.pth$"):
        find_weights(tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"no weights file .*none/a\.pth$"):
        find_weights(tmp_path / "none" / "a.pth")


def test_folder_is_no_weights_file(tmp_path):
    with pytest.raises(InputError, match="no weights file"):
        find_weights(tmp_path)


def test_file_that_exists_is_taken(tmp_path):
    (tmp_path / "a.pth").touch()
    assert find_weights(str(tmp_path / "a.pth")) == tmp_path / "a.pth"


def test_published_file_that_lies_there_is_not_fetched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoint, "download", None)
    Path("weights").mkdir()
    Path("weights/efficientdet-d3.pth").touch()
    assert find_weights("weights/efficientdet-d3.pth") == Path("weights/efficientdet-d3.pth")


def test_weights_chosen_by_flag_project_and_last(tmp_path):
    assert chosen_weights("mine.pth", "drawn", 0, tmp_path) == Path("mine.pth")
    assert chosen_weights(None, "coco", 4, tmp_path) == Path("weights/efficientdet-d4.pth")
    with pytest.raises(InputError, match="'drawn'"):
        chosen_weights(None, "drawn", 0, tmp_path)
    with pytest.raises(InputError, match="no checkpoint"):
        chosen_weights("last", "drawn", 0, tmp_path)
    path = save_checkpoint(EfficientDet(0, 1), {}, tmp_path / "drawn", 0, 1)
    assert chosen_weights("last", "drawn", 0, tmp_path) == path


# Downloads, from a server of this machine.

CONTENT = bytes(range(256)) * 1000


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        wanted = self.headers.get("Range")
        server.ranges.append(wanted)
        if self.path == "/missing.pth":
            return self.send_error(404)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and server.honours_range else 0
        if start >= len(CONTENT):
            return self.send_error(416)
        body = CONTENT[start:]
        self.send_response(206 if wanted and server.honours_range else 200)
        if server.tells_length:
            self.send_header("Content-Length", str(len(body)))
        if wanted and server.honours_range:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.end_headers()
        self.wfile.write(body[: server.breaks_after])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.honours_range, server.tells_length, server.breaks_after, server.ranges = True, True, None, []
        server.url = f"http://127.0.0.1:{server.server_port}/weights.pth"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("tells_length", [True, False])
def test_whole_file_is_downloaded(tmp_path, server, tells_length):
    server.tells_length = tells_length
    path = tmp_path / "new" / "weights.pth"
    download(server.url, path, len(CONTENT))
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]
    assert server.ranges == [None]


def test_interrupted_download_goes_on_where_it_stopped(tmp_path, server):
    server.breaks_after = 100_000
    path = tmp_path / "weights.pth"
    with pytest.raises(InputError, match=f"{re.escape(server.url)} gave 100000 of 256000 bytes"):
        download(server.url, path)
    assert not path.exists()
    server.breaks_after = None
    download(server.url, path)
    assert path.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-"]
    assert list(tmp_path.iterdir()) == [path]


def test_server_that_ignores_the_range_starts_from_the_beginning(tmp_path, server):
    server.honours_range = False
    (tmp_path / "weights.pth.part").write_bytes(CONTENT[:1000])
    download(server.url, tmp_path / "weights.pth", len(CONTENT))
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT


@pytest.mark.parametrize("part", [CONTENT, CONTENT + b"more"])
def test_part_with_nothing_left_to_fetch_still_ends_in_the_right_file(tmp_path, server, part):
    (tmp_path / "weights.pth.part").write_bytes(part)
    download(server.url, tmp_path / "weights.pth", len(CONTENT))
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT


@pytest.mark.parametrize("difference", [-1, 1])
def test_file_of_another_size_than_published_is_refused(tmp_path, server, difference):
    path = tmp_path / "weights.pth"
    expected = len(CONTENT) + difference
    for _ in range(2):
        with pytest.raises(InputError, match=f"{re.escape(server.url)} gave 256000 of {expected} bytes"):
            download(server.url, path, expected)
        assert not path.exists()


def test_file_that_the_server_lacks_is_told_with_its_url(tmp_path, server):
    url = server.url.replace("weights", "missing")
    with pytest.raises(InputError) as caught:
        download(url, tmp_path / "weights.pth")
    assert url in str(caught.value) and str(tmp_path / "weights.pth") in str(caught.value)


def test_dead_server_is_told_with_the_url(tmp_path, monkeypatch):
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
def test_server_that_answers_nonsense_is_told_with_the_url(tmp_path, monkeypatch, answer):
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


def test_place_that_cannot_be_written_is_told(tmp_path, server):
    (tmp_path / "blocked").touch()
    with pytest.raises(InputError, match="blocked"):
        download(server.url, tmp_path / "blocked" / "weights.pth")


def test_published_weights_are_fetched_on_first_use(tmp_path, server, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fetched = []
    monkeypatch.setattr(checkpoint, "published_url", lambda coef: fetched.append(coef) or server.url)
    assert find_weights("weights/efficientdet-d2.pth") == Path("weights/efficientdet-d2.pth")
    assert Path("weights/efficientdet-d2.pth").read_bytes() == CONTENT
    assert fetched == [2]
    # The size of D0's file is known, and this is another.
    with pytest.raises(InputError, match="256000 of 15862583 bytes"):
        find_weights(tmp_path / "weights" / "efficientdet-d0.pth")
