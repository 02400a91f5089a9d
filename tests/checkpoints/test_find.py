"""Which weights file is used, and which are downloaded."""

from pathlib import Path

import pytest

from efficientdet.checkpoints import find
from efficientdet.checkpoints.find import (
    best_path,
    find_last,
    find_weights,
    is_exported,
    last_path,
    resolve_weights,
)
from utils.errors import InputError

RELEASES = "https://github.com/zylo117/Yet-Another-Efficient-Pytorch/releases/download"


def test_missing_weights_file_is_reported_with_its_neighbors(tmp_path):
    (tmp_path / "b.pth").touch()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=r"a\.pth.* b\.pth$"):
        find_weights(tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"none/a\.pth"):
        find_weights(tmp_path / "none" / "a.pth")


def test_folder_is_not_a_weights_file(tmp_path):
    with pytest.raises(InputError, match=str(tmp_path)):
        find_weights(tmp_path)


def test_existing_file_is_used(tmp_path):
    (tmp_path / "a.pth").touch()
    assert find_weights(str(tmp_path / "a.pth")) == tmp_path / "a.pth"


def test_existing_published_file_is_not_downloaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(find, "download", None)
    Path("weights").mkdir()
    Path("weights/efficientdet-d3.pth").touch()
    assert find_weights("weights/efficientdet-d3.pth") == Path("weights/efficientdet-d3.pth")


def test_default_weights_of_a_project_and_the_flag(tmp_path):
    assert resolve_weights("mine.pth", "drawn", 0, tmp_path) == Path("mine.pth")
    assert resolve_weights("mine.pth", "shapes", 0, tmp_path) == Path("mine.pth")
    assert resolve_weights(None, "coco", 4, tmp_path) == Path("weights/efficientdet-d4.pth")
    shipped = Path(__file__).parents[2] / "weights/efficientdet-d0_shapes.pth"
    assert resolve_weights(None, "shapes", 0, tmp_path) == shipped


@pytest.mark.parametrize(("project", "coefficient"), [("drawn", 0), ("shapes", 1)])
def test_project_without_published_weights_needs_the_flag(tmp_path, project, coefficient):
    with pytest.raises(InputError, match=f"-w .*D{coefficient} .*'{project}'"):
        resolve_weights(None, project, coefficient, tmp_path)


@pytest.mark.parametrize("project", ["drawn", "shapes", "coco"])
def test_last_and_best_belong_to_the_project(tmp_path, project):
    folder = tmp_path / project
    with pytest.raises(InputError, match=f"d0 .*{folder}"):
        resolve_weights("last", project, 0, tmp_path)
    with pytest.raises(InputError, match=rf"{folder}/efficientdet-d0_best\.pth .*-w last"):
        resolve_weights("best", project, 0, tmp_path)
    folder.mkdir()
    last, best = last_path(folder, 0), best_path(folder, 0)
    assert (last.name, best.name) == ("efficientdet-d0_last.state", "efficientdet-d0_best.pth")
    last.touch()
    best.touch()
    assert [resolve_weights(name, project, 0, tmp_path) for name in ("last", "best")] == [last, best]


def test_last_of_another_coefficient_is_pointed_out(tmp_path):
    last_path(tmp_path, 0).touch()
    assert find_last(tmp_path, 0) == last_path(tmp_path, 0)
    with pytest.raises(InputError, match="d2 .*d0.*-c"):
        find_last(tmp_path, 2)


@pytest.mark.parametrize(
    ("path", "expected"),
    [(None, False), ("d0.pth", False), ("d0.onnx", True), (Path("a/D0.ONNX"), True), ("d0.xml", True), ("onnx", False)],
)
def test_exported_files_are_recognized_by_their_suffix(path, expected):
    assert is_exported(path) == expected


def test_published_weights_are_downloaded_on_first_use(tmp_path, monkeypatch):
    downloads = []

    def download(url, path, expected_bytes):
        downloads.append((url, str(path), expected_bytes))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(find, "download", download)
    names = [f"efficientdet-d{coef}.pth" for coef in range(9)]
    for name in names:
        assert find_weights(f"weights/{name}") == Path("weights", name)
    find_weights(tmp_path / "weights" / names[0])
    urls = [f"{RELEASES}/{'1.0' if coef < 7 else '1.2'}/{name}" for coef, name in enumerate(names)]
    assert downloads == [
        (urls[0], f"weights/{names[0]}", 15_862_583),
        *((url, f"weights/{name}", None) for url, name in zip(urls[1:], names[1:])),
        (urls[0], str(tmp_path / "weights" / names[0]), 15_862_583),
    ]
