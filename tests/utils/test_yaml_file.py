"""YAML files of keys and values, and messages about others."""

import pytest

from utils.errors import InputError
from utils.yaml_file import read_yaml


def test_empty_mapping(tmp_path):
    (tmp_path / "a.yml").write_text("{}")
    assert read_yaml(tmp_path / "a.yml", "some") == {}


def test_values_are_plain(tmp_path):
    (tmp_path / "a.yml").write_text("names: [car, 'é']\nsize: 3\n", encoding="utf-8")
    assert read_yaml(tmp_path / "a.yml", "some") == {"names": ["car", "é"], "size": 3}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a.yml .*such as names"),
        (b"- car", "a.yml .*such as names"),
        (b"a: 1\nb: [", "a.yml, line 2"),
        (b"? [1]\n: 2", "a.yml, line 1"),
        (b"a: 1\nb: 2\na: 3", "a.yml, line 3: .*'a'"),
        (b"a: !!python/object/apply:os.getcwd []", "a.yml, line 1"),
        (b"a: \xff", "a.yml"),
        (b"a: 2026-13-45", "a.yml"),
    ],
)
def test_other_content_is_refused_with_its_place(tmp_path, content, message):
    (tmp_path / "a.yml").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_yaml(tmp_path / "a.yml", "such as names")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.yml"):
        read_yaml(tmp_path / "none.yml", "some")
