"""What all label formats share: finding files, sets and class names."""

from pathlib import Path

import pytest

from efficientdet.convert.reading import files_below, read_class_names, set_named_in
from utils.errors import InputError


def test_files_below_skips_hidden_files_and_follows_links(tmp_path):
    assert files_below(tmp_path) == []
    for name in ("b.JPG", "deep/a.png", ".trash/c.png", "._d.png", "notes.txt", "../other/e.webp"):
        name = f"data/{name}"
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    data = tmp_path / "data"
    (data / "link").symlink_to(tmp_path / "other")
    assert files_below(data) == [data / "b.JPG", data / "deep" / "a.png", data / "link" / "e.webp"]
    assert files_below(data, {".txt"}) == [data / "notes.txt"]


@pytest.mark.parametrize(
    ("path", "set_name"),
    [
        ("a.jpg", None),
        ("train.jpg", None),
        ("train/a.jpg", "train"),
        ("images/Valid/a.jpg", "val"),
        ("testing/train/a.jpg", "test"),
        ("training_2/a.jpg", None),
    ],
)
def test_set_named_by_folders(path, set_name):
    assert set_named_in(Path("val") / path, Path("val")) == set_name


def test_class_names_are_one_per_line(tmp_path):
    (tmp_path / "names").write_bytes(b"\xef\xbb\xbfcat\r\nblue whale \r\n\r\n")
    assert read_class_names(tmp_path / "names") == ["cat", "blue whale"]
    with pytest.raises(InputError, match="absent"):
        read_class_names(tmp_path / "absent")
