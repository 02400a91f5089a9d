"""Who may import whom. Imports are read from the source, those inside functions included."""

import ast
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("efficientnet", "efficientdet", "utils")
SCRIPTS = ("train", "coco_eval", "efficientdet_test", "benchmark")
# Run with `python -m`.
COMMANDS = (
    "efficientdet.check.__main__",
    "efficientdet.convert.__main__",
    "efficientdet.convert_weights",
    "efficientdet.export.__main__",
    "efficientdet.shapes",
)
# Imports go down these rows, never up, and never between two rooms of one row. A room is a package or a module.
ROWS = (
    ("utils", "efficientnet"),
    tuple(f"efficientdet.{name}" for name in ("config", "structures", "boxes", "project")),
    ("efficientdet.model", "efficientdet.data"),
    ("efficientdet.checkpoints", "efficientdet.evaluation"),
    ("efficientdet.runtime", "efficientdet.training"),
    ("efficientdet.inference",),
    tuple(f"efficientdet.{name}" for name in ("check", "convert", "export", "benchmark", "shapes", "convert_weights")),
    SCRIPTS,
)


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(path: Path, root: Path) -> set[str]:
    """Everything that a file imports, dotted and absolute: `from a.b import c` gives `a.b` and `a.b.c`."""
    package = module_name(path, root).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            names.add(source)
            names.update(f"{source}.{alias.name}" for alias in node.names)
    return names


def read_imports(root: Path) -> dict[str, set[str]]:
    """Module -> what it imports, for the three packages and the scripts under `root`."""
    files = [path for package in PACKAGES for path in (root / package).rglob("*.py")]
    files += root.glob("*.py")
    return {module_name(path, root): imported_names(path, root) for path in files}


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def importers(imports: dict[str, set[str]], package: str) -> set[str]:
    """The modules that import `package` or anything in it."""
    return {module for module, names in imports.items() if any(within(name, package) for name in names)}


def reached(imports: dict[str, set[str]], module: str) -> set[str]:
    """The project's modules that `module` imports, directly or through others; packages' `__init__` left aside."""
    found, waiting = set(), [module]
    while waiting:
        for name in imports[waiting.pop()] & imports.keys():
            if name not in found and name not in PACKAGES:
                found.add(name)
                waiting.append(name)
    return found


def foreign(names: Iterable[str], allowed: Iterable[str]) -> set[str]:
    """Top-level packages among `names` that are neither Python's own nor `allowed`."""
    return {name.split(".")[0] for name in names} - sys.stdlib_module_names - set(allowed)


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    return read_imports(ROOT)


def members(imports: dict[str, set[str]], package: str) -> list[str]:
    return [module for module in imports if within(module, package)]


def test_a_tree_without_files(tmp_path):
    assert read_imports(tmp_path) == {}


def test_the_walker_sees_every_kind_of_import(tmp_path):
    package = tmp_path / "efficientdet"
    package.mkdir()
    (package / "__init__.py").write_text("from .model import EfficientDet\n")
    (package / "model.py").write_text(
        "import cv2.dnn as d\nfrom . import boxes\nfrom .loss import Loss\nfrom efficientdet import dataset\n"
        "def f():\n    import argparse\n    if True:\n        from pycocotools.coco import COCO\n"
    )
    (package / "boxes.py").write_text("from efficientdet.transforms import Letterbox\n")
    (package / "transforms.py").write_text("")
    (tmp_path / "train.py").write_text("import torch, cv2\n")
    imports = read_imports(tmp_path)
    assert set(imports) == {
        "efficientdet", "efficientdet.model", "efficientdet.boxes", "efficientdet.transforms", "train"
    }  # fmt: skip
    assert imports["efficientdet"] == {"efficientdet.model", "efficientdet.model.EfficientDet"}
    assert imports["efficientdet.model"] == {
        "cv2.dnn",
        "efficientdet",
        "efficientdet.boxes",
        "efficientdet.loss",
        "efficientdet.loss.Loss",
        "efficientdet.dataset",
        "argparse",
        "pycocotools.coco",
        "pycocotools.coco.COCO",
    }
    assert importers(imports, "cv2") == {"efficientdet.model", "train"}
    assert importers(imports, "cv") == set()
    assert reached(imports, "efficientdet.model") == {"efficientdet.boxes", "efficientdet.transforms"}
    assert foreign(imports["efficientdet.model"], ("efficientdet",)) == {"cv2", "pycocotools"}


def row_and_room(module: str) -> tuple[int, str]:
    """Where a module is in ROWS."""
    ((number, room),) = ((n, room) for n, row in enumerate(ROWS) for room in row if within(module, room))
    return number, room


def test_the_walker_finds_the_project(imports):
    assert {room for row in ROWS for room in row} <= set(imports)
    assert "efficientnet.layers" in imports["efficientnet.model"]
    assert "efficientdet.model.bifpn" in imports["efficientdet.model.network"]
    assert "efficientdet.boxes" in reached(imports, "train")


def test_imports_go_down_the_rows_only(imports):
    wrong = []
    for module in set(imports) - {"efficientdet"}:  # its __init__ collects the public names
        number, room = row_and_room(module)
        for name in imports[module] & imports.keys() - {"efficientdet"}:
            below, other = row_and_room(name)
            if other != room and below >= number:
                wrong.append(f"{module} imports {name}")
    assert wrong == []


def test_the_top_level_holds_the_four_scripts_alone(imports):
    assert {module for module in imports if "." not in module} - set(PACKAGES) == set(SCRIPTS)


def test_efficientdet_has_at_most_ten_modules_on_its_first_level():
    assert len(list((ROOT / "efficientdet").glob("*.py"))) <= 10


def sources() -> list[Path]:
    return [*ROOT.glob("*.py"), *(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))]


def test_files_are_read_in_one_sitting():
    files = [*sources(), *(ROOT / "tests").rglob("*.py")]
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    assert {name: count for name, count in lines.items() if count > 400} == {}
    assert {name: count for name, count in lines.items() if count < 20 and not name.endswith("__init__.py")} == {}
    assert lines["train.py"] <= 320


def test_functions_fit_on_a_screen():
    long = {}
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                if lines > (80 if node.name == "parse_args" else 60):
                    long[f"{path.relative_to(ROOT)}:{node.name}"] = lines
    assert long == {}


def test_a_public_name_means_one_thing():
    """Functions, classes and constants of modules, but for what every script and command has."""
    places: dict[str, list[str]] = {}
    for path in sources():
        for node in ast.parse(path.read_text()).body:
            targets = node.targets if isinstance(node, ast.Assign) else [node]
            for name in {getattr(target, "name", getattr(target, "id", "_")) for target in targets}:
                if not name.startswith("_"):
                    places.setdefault(name, []).append(str(path.relative_to(ROOT)))
    shared = {"main", "parse_args", "command", "T"}  # T is a type variable
    assert {name: where for name, where in places.items() if len(where) > 1 and name not in shared} == {}


def test_efficientnet_needs_torch_alone(imports):
    for module in members(imports, "efficientnet"):
        assert foreign(imports[module], ("torch", "efficientnet")) == set(), module


def test_convert_needs_utils_alone(imports):
    for module in members(imports, "efficientdet.convert"):
        ours = {name for name in imports[module] if within(name, "efficientdet")}
        assert all(within(name, "efficientdet.convert") for name in ours - {"efficientdet"}), module


@pytest.mark.parametrize("leaf", ["efficientdet.config", "efficientdet.boxes"])
def test_leaves_import_nothing_of_the_project(imports, leaf):
    assert foreign(imports[leaf], ("torch",)) == set()


@pytest.mark.parametrize("module", ["loss", "focal_loss", "postprocess", "anchors"])
def test_what_surrounds_the_network_never_imports_it(imports, module):
    network = {f"efficientdet.model.{name}" for name in ("network", "bifpn", "heads")}
    found = reached(imports, f"efficientdet.model.{module}") - {"efficientdet.model"}
    assert not {name for name in found if name in network or within(name, "efficientnet")}


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        (
            "cv2",
            {
                "efficientdet.benchmark.baselines",
                "efficientdet.export.example",
                "efficientdet.evaluation.figures",
                "efficientdet.benchmark.workloads",
                "efficientdet.data.augmentation",
                "efficientdet.data.mixing",
                "efficientdet.data.shapes",
                "efficientdet.data.transforms",
                "utils.images",
                "utils.video",
                "utils.visualize",
            },
        ),
        ("matplotlib", {"utils.charts"}),
        ("pycocotools", {"efficientdet.data.dataset", "efficientdet.evaluation.coco"}),
        ("argparse", {*SCRIPTS, *COMMANDS, "utils.cli"}),
    ],
)
def test_only_these_modules_import(imports, package, allowed):
    assert importers(imports, package) == allowed


@pytest.mark.parametrize("script", SCRIPTS)
def test_nothing_imports_a_script(imports, script):
    assert importers(imports, script) == set()


def test_utils_hold_no_catch_all(imports):
    assert {"utils.utils", "utils.misc", "utils.helpers"} & set(imports) == set()
