"""What `pip install .` installs: files, commands and API, also next to a program's own `utils`."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import Distribution, PackageNotFoundError, distributions, version
from pathlib import Path

import pytest
from scripts import REPOSITORY, SMALL, assert_succeeded

import efficientdet

COMMANDS = {
    "efficientdet-train": "train",
    "efficientdet-eval": "coco_eval",
    "efficientdet-test": "efficientdet_test",
    "efficientdet-benchmark": "benchmark",
}
PACKAGES = ("efficientdet", "efficientnet", "utils")
NOT_COPIED = (".*", "__pycache__", "*.egg-info", "build", "datasets", "logs", "test")


def pip(*args: str | Path) -> None:
    run = subprocess.run([sys.executable, "-m", "pip", *map(str, args)], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr


def build_options() -> list[str]:
    """Where the tool that builds is there and recent enough, it need not be downloaded."""
    try:
        recent = int(version("setuptools").split(".")[0]) >= 77
    except PackageNotFoundError:
        recent = False
    return ["--no-build-isolation"] if recent else []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """What pip builds; of a copy of the repository, as files are left behind where it builds."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(REPOSITORY, folder / "source", ignore=shutil.ignore_patterns(*NOT_COPIED))
    pip("wheel", folder / "source", "--no-deps", *build_options(), "--wheel-dir", folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory) -> Path:
    """A folder with what the wheel installs; its commands are in `bin/`."""
    folder = tmp_path_factory.mktemp("site")
    pip("install", "--no-deps", "--target", folder, wheel)
    return folder


@pytest.fixture
def distribution(site) -> Distribution:
    (found,) = distributions(path=[str(site)], name="efficientdet-pytorch")
    return found


def run(site: Path, *command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python as a user does who has installed the package, in the folder `cwd`."""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    arguments = [sys.executable, *map(str, command)]
    return subprocess.run(arguments, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def test_the_wheel_holds_what_runs_and_no_more(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    modules = {
        path.relative_to(REPOSITORY).as_posix() for name in PACKAGES for path in (REPOSITORY / name).rglob("*.py")
    }
    scripts = {f"efficientdet_scripts/{name}.py" for name in COMMANDS.values()}
    types = {f"{name}/py.typed" for name in PACKAGES}
    projects = {f"efficientdet/projects/{name}" for name in ("coco.yml", "shapes.yml")}
    images = {f"efficientdet/projects/shapes/{number}.jpg" for number in range(1, 7)}
    weights = {f"efficientdet/weights/efficientdet-d0_shapes.{suffix}" for suffix in ("md", "pth")}
    assert names == modules | scripts | types | projects | images | weights


def test_the_metadata_are_those_of_the_repository(distribution):
    about = distribution.metadata
    assert about["Version"] == efficientdet.__version__
    assert about["License-Expression"] == "LGPL-3.0-only"
    needed = {requirement for requirement in distribution.requires if "extra ==" not in requirement}
    assert needed == set((REPOSITORY / "requirements.txt").read_text().split())
    assert {"compare", "export"} <= set(about.get_all("Provides-Extra"))


def test_each_script_is_a_command(site, distribution, tmp_path):
    entries = {entry.name: entry.value for entry in distribution.entry_points}
    assert entries == {name: f"efficientdet_scripts.{script}:command" for name, script in COMMANDS.items()}
    load = "import importlib, sys; [importlib.import_module(name).command for name in sys.argv[1:]]"
    assert_succeeded(
        run(site, "-c", load, *(f"efficientdet_scripts.{name}" for name in COMMANDS.values()), cwd=tmp_path)
    )


@pytest.mark.slow
def test_six_images_from_an_empty_folder(site, tmp_path):
    found = run(site, site / "bin" / "efficientdet-test", "--speed_runs", "0", cwd=tmp_path)
    assert_succeeded(found)
    assert "6 images" in found.stdout
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["test", *(f"{number}.jpg" for number in range(1, 7))]


@pytest.mark.slow
def test_training_on_the_users_data(site, shapes_project):
    options = ("-p", "drawn", *SMALL, "--batch_size", "2", "-n", "0", "--num_epochs", "1")
    assert_succeeded(run(site, site / "bin" / "efficientdet-train", *options, cwd=shapes_project.root))
    assert (shapes_project.root / "logs" / "drawn" / "efficientdet-d0_last.state").is_file()


def test_the_api_is_there():
    assert len(efficientdet.__all__) == len(set(efficientdet.__all__)) > 0
    assert all(hasattr(efficientdet, name) for name in efficientdet.__all__)


THEIRS = "from utils{} import mine"
OURS = "import efficientdet, efficientdet.data.dataset; from utils import distributed"


@pytest.mark.parametrize(
    ("files", "program"),
    [
        ({"utils.py": "mine = 'mine'"}, [OURS, THEIRS.format("")]),
        ({"utils/own.py": "mine = 'mine'"}, [OURS, THEIRS.format(".own")]),
        (
            {
                "utils/__init__.py": "",
                "utils/own.py": "from efficientdet import Detections\nmine = 'mine'",
            },
            [THEIRS.format(".own"), OURS],
        ),
    ],
    ids=["file", "folder", "package"],
)
def test_a_program_with_utils_of_its_own(site, tmp_path, files, program):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    told = "print(json.dumps([mine, efficientdet.__file__, str(efficientdet.load_project('coco').path)]))"
    (tmp_path / "program.py").write_text("\n".join(["import json", *program, told]))
    found = run(site, "program.py", cwd=tmp_path)
    assert_succeeded(found)
    package = site / "efficientdet"
    assert json.loads(found.stdout) == ["mine", str(package / "__init__.py"), str(package / "projects" / "coco.yml")]
