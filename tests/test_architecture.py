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
COMMANDS = tuple(f"efficientdet.{name}" for name in ("check", "convert", "convert_weights", "export", "shapes"))
NETWORK = tuple(f"efficientdet.{name}" for name in ("config", "boxes", "anchors", "bifpn", "heads", "model"))


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
    (package / "boxes.py").write_text("from efficientdet.data.transforms import Letterbox\n")
    (package / "transforms.py").write_text("")
    (tmp_path / "train.py").write_text("import torch, cv2\n")
    imports = read_imports(tmp_path)
    assert set(imports) == {
        "efficientdet", "efficientdet.model.network", "efficientdet.boxes", "efficientdet.data.transforms", "train"
    }  # fmt: skip
    assert imports["efficientdet"] == {"efficientdet.model.network", "efficientdet.model.network.EfficientDet"}
    assert imports["efficientdet.model.network"] == {
        "cv2.dnn",
        "efficientdet",
        "efficientdet.boxes",
        "efficientdet.model.loss",
        "efficientdet.loss.Loss",
        "efficientdet.data.dataset",
        "argparse",
        "pycocotools.coco",
        "pycocotools.coco.COCO",
    }
    assert importers(imports, "cv2") == {"efficientdet.model.network", "train"}
    assert importers(imports, "cv") == set()
    assert reached(imports, "efficientdet.model.network") == {"efficientdet.boxes", "efficientdet.data.transforms"}
    assert foreign(imports["efficientdet.model.network"], ("efficientdet",)) == {"cv2", "pycocotools"}


def test_the_walker_finds_the_project(imports):
    assert {
        *NETWORK,
        *SCRIPTS,
        "efficientdet.model.loss",
        "efficientdet.model.postprocess",
        "efficientnet.model",
    } <= set(imports)
    assert "utils.images" in imports
    assert "efficientnet.layers" in imports["efficientnet.model"]
    assert "efficientdet.model.bifpn" in imports["efficientdet.model.network"]
    assert "efficientdet.boxes" in reached(imports, "train")
    assert "efficientnet.layers" in reached(imports, "efficientdet.model.network")


def test_the_top_level_holds_the_four_scripts_alone(imports):
    assert {module for module in imports if "." not in module} - set(PACKAGES) == set(SCRIPTS)


def test_efficientnet_needs_torch_alone(imports):
    for module in members(imports, "efficientnet"):
        assert foreign(imports[module], ("torch", "efficientnet")) == set(), module


@pytest.mark.parametrize("leaf", ["efficientdet.config", "efficientdet.boxes"])
def test_leaves_import_nothing_of_the_project(imports, leaf):
    assert foreign(imports[leaf], ("torch",)) == set()


@pytest.mark.parametrize("module", NETWORK)
def test_the_network_never_imports_data_or_loss(imports, module):
    others = {"efficientdet.data.dataset", "efficientdet.data.transforms", "efficientdet.model.loss"}
    assert reached(imports, module) & others == set()


@pytest.mark.parametrize("module", ["efficientdet.model.loss", "efficientdet.model.postprocess"])
def test_loss_and_postprocess_never_import_the_network(imports, module):
    network = {
        "efficientdet.model.network",
        "efficientdet.model.bifpn",
        "efficientdet.model.heads",
        *members(imports, "efficientnet"),
    }
    assert reached(imports, module) & network == set()
    assert not any(within(name, "efficientnet") for name in imports[module])


def test_utils_import_neither_package(imports):
    for module in members(imports, "utils"):
        assert {name.split(".")[0] for name in imports[module]} & {"efficientnet", "efficientdet"} == set(), module


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        (
            "cv2",
            {
                "efficientdet.benchmark.baselines",
                "efficientdet.export.example",
                "efficientdet.evaluation.figures",
                "efficientdet.benchmark.inputs",
                "efficientdet.shapes",
                "efficientdet.data.transforms",
                "utils.images",
                "utils.opencv",
                "utils.video",
                "utils.visualize",
            },
        ),
        ("matplotlib", {"utils.charts"}),
        ("pycocotools", {"efficientdet.data.dataset", "efficientdet.evaluation.coco"}),
        ("argparse", {*SCRIPTS, *COMMANDS}),
    ],
)
def test_only_these_modules_import(imports, package, allowed):
    assert importers(imports, package) == allowed


@pytest.mark.parametrize("script", SCRIPTS)
def test_nothing_imports_a_script(imports, script):
    assert importers(imports, script) == set()


def test_utils_hold_no_catch_all(imports):
    assert {"utils.utils", "utils.misc", "utils.helpers"} & set(imports) == set()
