"""The project file: what it may contain, and how errors in it are reported."""

import json
import math
import time
from pathlib import Path

import pytest
from conftest import SHAPES_YML

from efficientdet.project import load_project
from utils.errors import InputError

KEYS = [line.split(":")[0] for line in SHAPES_YML.splitlines() if ":" in line]


def coco_project():
    return load_project(Path(__file__).resolve().parent.parent / "projects" / "coco.yml")


def write_yml(folder: Path, text: str) -> Path:
    path = folder / "written.yml"
    path.write_text(text, encoding="utf-8")
    return path


def test_empty_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"written\.yml"):
        load_project(write_yml(tmp_path, ""))


def test_every_key_is_read(shapes_project):
    project = load_project(shapes_project.yml)
    assert (project.path, project.name, project.train_set, project.val_set) == (
        shapes_project.yml,
        "drawn",
        "train",
        "val",
    )
    assert project.num_gpus == 0
    assert project.mean == (0.485, 0.456, 0.406)
    assert project.std == (0.229, 0.224, 0.225)
    assert project.class_names == ("square", "disc")
    assert project.num_classes == 2
    assert project.image_size is None


def test_image_size_is_optional(make_project):
    assert make_project(image_size=None).image_size is None
    assert make_project(image_size=256).image_size == 256


def test_anchors_may_be_text_or_lists(make_project):
    text = make_project(
        anchors_scales="[2 ** 0, 2 ** (1.0 / 3.0), 2 ** (2.0 / 3.0)]",
        anchors_ratios="[(1.0, 1.0), (1.4, 0.7), (0.7, 1.4)]",
    )
    lists = make_project(
        anchors_scales=[1, 2 ** (1 / 3), 2 ** (2 / 3)], anchors_ratios=[[1, 1], [1.4, 0.7], [0.7, 1.4]]
    )
    assert text.anchor_scales == lists.anchor_scales == (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
    assert text.anchor_ratios == lists.anchor_ratios == ((1.0, 1.0), (1.4, 0.7), (0.7, 1.4))
    assert all(type(value) is float for value in (*text.anchor_scales, *text.anchor_ratios[0]))


def test_all_arithmetic_operators(make_project):
    scales = make_project(anchors_scales="[1 + 2, 5 - 2 * 2, 3 / 4, +2, 1 - -1, 2 ** -1, (2)]").anchor_scales
    assert scales == (3.0, 1.0, 0.75, 2.0, 2.0, 0.5, 2.0)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').getcwd()",
        "[__import__('os').system('true')]",
        "[1].__class__",
        "[x for x in (1, 2)]",
        "open('/etc/passwd').read()",
        "[abs(-1)]",
        "['1']",
        "[True]",
        "[1, [2]]",
        "[[1] * 3]",
        "[(-8) ** 0.5]",
        "[1 / 0]",
        "[2 ** 99999]",
        "[1e999]",
        "[1,",
        "",
        "[]",
        "[0]",
        "[-1]",
        "[" * 500 + "]" * 500,
        "-" * 20000 + "1",
    ],
)
def test_anchor_text_other_than_lists_of_numbers_is_refused_and_never_executed(make_project, text):
    with pytest.raises(InputError, match=r"made\.yml.*anchors_scales"):
        make_project(anchors_scales=text)


@pytest.mark.parametrize("text", ["9**9**9**9", "[9**9**9**9]", "[9**9**9]"])
def test_enormous_power_is_refused_immediately(make_project, text):
    start = time.monotonic()
    with pytest.raises(InputError, match="anchors_scales"):
        make_project(anchors_scales=text)
    assert time.monotonic() - start < 1


@pytest.mark.parametrize("value", ["[1, 2]", [1, 2], [], [[1, 2, 3]], [[1, 0]], [["1", "2"]], [[1, 2], 3], None, 1.0])
def test_anchor_ratios_other_than_pairs_are_refused(make_project, value):
    with pytest.raises(InputError, match=r"made\.yml.*anchors_ratios"):
        make_project(anchors_ratios=value)


@pytest.mark.parametrize("key", KEYS)
def test_missing_key_is_reported_with_the_file(tmp_path, key):
    path = write_yml(tmp_path, "".join(line for line in SHAPES_YML.splitlines(True) if not line.startswith(f"{key}:")))
    with pytest.raises(InputError) as caught:
        load_project(path)
    assert f"'{key}'" in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("key", KEYS)
def test_misspelled_key_is_reported_with_the_file_and_the_correct_spelling(tmp_path, key):
    misspelled = key[:2] + key[3] + key[2] + key[4:] if len(key) > 4 else key + "s"
    path = write_yml(tmp_path, SHAPES_YML.replace(f"{key}:", f"{misspelled}:"))
    with pytest.raises(InputError) as caught:
        load_project(path)
    assert f"'{misspelled}'" in str(caught.value) and str(path) in str(caught.value)
    assert f"'{key}'" in str(caught.value)


def test_misspelled_optional_key_is_reported_with_the_correct_spelling(make_project):
    with pytest.raises(InputError, match=r"'imgae_size'.*'image_size'"):
        make_project(imgae_size=256)


def test_unknown_key_is_reported_with_the_list_of_keys(tmp_path):
    with pytest.raises(InputError, match="'zzz'.*anchors_ratios.*image_size"):
        load_project(write_yml(tmp_path, SHAPES_YML + "zzz: 1\n"))


@pytest.mark.parametrize(
    ("text", "line"),
    [(SHAPES_YML + "obj: [1, 2\n", 14), ("project_name: a\ntrain_set: b\n\tval_set: c\n", 3)],
)
def test_invalid_yaml_is_reported_with_its_line(tmp_path, text, line):
    path = write_yml(tmp_path, text)
    with pytest.raises(InputError) as caught:
        load_project(path)
    # An unclosed bracket may be reported on the next line.
    assert any(f"{path}, line {number}" in str(caught.value) for number in (line, line + 1))


def test_yaml_tag_that_would_run_code_is_refused(tmp_path):
    path = write_yml(tmp_path, f"project_name: !!python/object/apply:os.mkdir ['{tmp_path}/made']\n")
    with pytest.raises(InputError, match="line 1"):
        load_project(path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("text", ["train_set: 2017-13-45\n", "- 1\n- 2\n", "just text\n"])
def test_yaml_without_keys_is_refused(tmp_path, text):
    with pytest.raises(InputError, match=r"written\.yml"):
        load_project(write_yml(tmp_path, text))


def test_binary_file_is_refused(tmp_path):
    path = tmp_path / "binary.yml"
    path.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(InputError, match=r"binary\.yml"):
        load_project(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("project_name", ""),
        ("project_name", None),
        ("train_set", ["a"]),
        ("val_set", True),
        ("num_gpus", -1),
        ("num_gpus", True),
        ("num_gpus", "1"),
        ("num_gpus", 1.5),
        ("mean", [0.5, 0.5]),
        ("mean", 0.5),
        ("mean", "[0.5, 0.5, 0.5]"),
        ("std", [0.5, 0.5, "x"]),
        ("std", [0.5, 0.5, 0]),
        ("std", [0.5, 0.5, True]),
        ("image_size", 0),
        ("image_size", -128),
        ("image_size", True),
        ("image_size", 512.0),
        ("image_size", "512"),
        ("image_size", [512, 512]),
        ("anchors_scales", 1),
        ("anchors_scales", [math.inf]),
        ("obj_list", []),
        ("obj_list", "square"),
        ("obj_list", [""]),
        ("obj_list", ["square", None]),
        ("obj_list", ["square", "square"]),
        ("obj_list", ["1", 1]),
        ("obj_list", ["square", True]),
    ],
)
def test_invalid_value_is_reported_with_its_key_and_file(tmp_path, key, value):
    lines = [line for line in SHAPES_YML.splitlines() if not line.startswith(f"{key}:")]
    shown = ".inf" if value == [math.inf] else json.dumps(value)
    path = write_yml(tmp_path, "\n".join([*lines, f"{key}: {shown}"]))
    with pytest.raises(InputError) as caught:
        load_project(path)
    assert key in str(caught.value) and str(path) in str(caught.value)


def test_numbers_are_accepted_as_names(make_project):
    project = make_project(project_name=7, train_set=2017, obj_list=[0, 1, "", ""])
    assert (project.name, project.train_set, project.class_names) == ("7", "2017", ("0", "1", "", ""))


def test_name_is_searched_in_the_current_folder_first(shapes_project, monkeypatch):
    monkeypatch.chdir(shapes_project.root)
    assert load_project("drawn").name == "drawn"
    (shapes_project.root / "projects" / "coco.yml").write_text(SHAPES_YML)
    assert load_project("coco").name == "drawn"


def test_bundled_project_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_project("coco").name == "coco"


def test_shapes_have_a_custom_input_size_and_coco_the_default():
    assert load_project("shapes").image_size == 384
    assert load_project("coco").image_size is None


def test_unknown_project_is_reported_with_the_existing_ones(shapes_project, monkeypatch):
    monkeypatch.chdir(shapes_project.root)
    with pytest.raises(InputError, match=r"projects/nope\.yml.*coco.*drawn"):
        load_project("nope")
    with pytest.raises(InputError, match=r"nope\.yml"):
        load_project("nope.yml")


def test_coco_has_ninety_classes_of_which_ten_are_unused():
    project = coco_project()
    assert project.num_classes == 90
    assert project.class_names.count("") == 10
    unused = [12, 26, 29, 30, 45, 66, 68, 69, 71, 83]  # the category ids that COCO skips
    assert [index + 1 for index, name in enumerate(project.class_names) if not name] == unused


def test_coco_class_index_is_category_id_minus_one():
    real = {
        1: "person", 2: "bicycle", 3: "car", 10: "traffic light", 11: "fire hydrant", 13: "stop sign", 25: "giraffe",
        27: "backpack", 28: "umbrella", 31: "handbag", 44: "bottle", 46: "wine glass", 65: "bed", 67: "dining table",
        70: "toilet", 72: "tv", 82: "refrigerator", 84: "book", 88: "teddy bear", 90: "toothbrush",
    }  # fmt: skip
    names = coco_project().class_names
    assert {category_id: names[category_id - 1] for category_id in real} == real


def test_duplicate_key_is_reported_with_its_line(tmp_path):
    path = tmp_path / "twice.yml"
    path.write_text("project_name: a\ntrain_set: b\ntrain_set: c\n")
    with pytest.raises(InputError, match=r"twice\.yml, line 3.*'train_set'"):
        load_project(path)


def test_number_too_large_for_a_float_is_refused(make_project):
    with pytest.raises(InputError, match="mean"):
        make_project(mean=[10**400, 0.5, 0.5])
