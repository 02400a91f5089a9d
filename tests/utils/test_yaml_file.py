"""YAML files of keys and values, and what is told of others."""

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
    ("content", "told"),
    [
        (b"", "a.yml must hold keys and values: such as names"),
        (b"- car", "a.yml must hold keys and values: such as names"),
        (b"a: 1\nb: [", "a.yml, line 2: this is not valid YAML"),
        (b"a: 1\nb: 2\na: 3", "a.yml, line 3: .*'a' is given twice"),
        (b"a: !!python/object/apply:os.getcwd []", "a.yml, line 1: this is not valid YAML"),
        (b"a: \xff", "cannot read .*a.yml"),
        (b"a: 2026-13-45", "cannot read .*a.yml"),
    ],
)
def test_other_content_is_told(tmp_path, content, told):
    (tmp_path / "a.yml").write_bytes(content)
    with pytest.raises(InputError, match=told):
        read_yaml(tmp_path / "a.yml", "such as names")


def test_missing_file_is_told(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*none\.yml"):
        read_yaml(tmp_path / "none.yml", "some")
