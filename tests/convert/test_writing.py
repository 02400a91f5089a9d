"""Sets, and the project file."""

from pathlib import Path

import pytest

from efficientdet.convert.labels import LabeledImage
from efficientdet.convert.writing import project_text, split_into_sets
from efficientdet.project import load_project
from utils.errors import InputError


def labeled(*sets: str | None) -> list[LabeledImage]:
    return [LabeledImage(Path(f"{number}.jpg"), "x, line 1", set_name) for number, set_name in enumerate(sets)]


def test_validation_set_depends_on_the_seed_only():
    for fraction, expected in ((0.1, 3), (0.0, 1), (1.0, 29)):
        sets = split_into_sets(labeled(*[None] * 30), fraction, seed=0)
        assert len(sets["val"]) == expected and len(sets["train"]) == 30 - expected
        assert {*map(id, sets["val"])} & {*map(id, sets["train"])} == set()
    names = [[p.path.name for p in split_into_sets(labeled(*[None] * 30), 0.2, seed)["val"]] for seed in (0, 0, 1)]
    assert names[0] == names[1] != names[2]


def test_sets_of_the_data_are_kept():
    a, b, c, d = labeled("train", "val", None, "test")
    assert split_into_sets([a, b, c, d], 0.5, 0) == {"train": [a, c], "val": [b], "test": [d]}


@pytest.mark.parametrize(
    ("sets", "empty"), [([], "train"), (["val"], "train"), (["train"], "val"), (["test", None], "val")]
)
def test_sets_without_images_are_rejected(sets, empty):
    with pytest.raises(InputError, match=f"the set {empty}"):
        split_into_sets(labeled(*sets), 0.5, 0)


@pytest.mark.parametrize("name", ["1e5", "true", "my-birds.2", "鳥"])
def test_project_file_accepts_any_names(tmp_path, name):
    strange = ["no", "12", "it's", "a: b", "# x", "größe", 'say "hi"', "[", "tab\t"]
    class_names = [*strange, *(f"class {n}" for n in range(99))]
    (tmp_path / "a.yml").write_text(project_text(name, class_names), encoding="utf-8")
    project = load_project(tmp_path / "a.yml")
    assert project.name == name and project.class_names == tuple(class_names)
