"""The READMEs: every command that they print runs.

Commands run in reading order in one folder that looks like a checkout, with small data under the names that the READMEs
use. Later ones need what earlier ones wrote, so run this file as a whole. They run inside this process, because most of
a command's time would be Python starting up; those of an installed package run in their own.
"""

import io
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pages import PAGES, Command, blocks, commands, inline_commands
from scripts import REPOSITORY, write_weights

from efficientdet.data.shapes import write_shapes
from efficientdet.project import load_project

# Why commands are not run, by a piece of their text. Their flags are parsed all the same.
NOT_RUN = {
    "pip install": "downloads up to 5.7 GB",
    "python -m pytest": "runs these tests",
    "efficientdet_test.py 0 --show": "needs a camera and a screen",
    "rtsp://": "needs a network",
    "https://": "needs a network",
    "-p coco -c 0": "needs COCO and the published weights",
    "--backbone_weights imagenet": "needs a network",
    "torchrun": "starts four processes, on GPUs; tests/training/test_distributed.py starts two",
    "coco_tiny": "needs 80 photographs of COCO",
    "overfit16": "takes 16 minutes, on photographs of COCO",
    "--format onnx openvino": "takes two minutes; the commands before it export to both formats",
    "--int8": "takes two minutes; tests/export/test_quantization.py runs it on a small set",
    "benchmark.py": "takes minutes; tests/benchmark/test_benchmark.py runs small ones",
}
# Flags added to commands that would take minutes otherwise, by a piece of their text; the first that fits.
SHORT_TRAINING = "--num_epochs 1 --image_size 128 -n 0"
SHORT_EXPORT = "--image_size 128 --max_images 1 --runs 0"
SHORTENED = {
    "--minutes": "--minutes 0.01 --image_size 128 -n 0",
    "-w last": "--num_epochs 2 --image_size 128 -n 0",
    "train.py": SHORT_TRAINING,
    "efficientdet.shapes --train 240": "--train 20",
    "efficientdet.export": SHORT_EXPORT,
    "efficientdet_test.py": "--speed_runs 0",
    "efficientdet-train": SHORT_TRAINING,
    "efficientdet-test": "--speed_runs 0",
}
NEEDED_PACKAGES = {
    "--nms -o detector.onnx": "onnxscript",
    "detector.onnx": "onnxruntime",
    "openvino": "openvino",
    "tf_efficientnet": "timm",
}

INSTALLED = {
    "efficientdet-train": "train",
    "efficientdet-eval": "coco_eval",
    "efficientdet-test": "efficientdet_test",
    "efficientdet-benchmark": "benchmark",
}


COMMANDS = list(dict.fromkeys(command for page in PAGES for command in commands(page)))
INLINE = list(dict.fromkeys(command for page in PAGES for command in inline_commands(page)))


def first_match(command: Command, table: dict[str, str]) -> str | None:
    return next((value for piece, value in table.items() if piece in command.text), None)


def calls(text: str) -> list[tuple[str, list[str]]]:
    """Return (module, arguments) of each of this project's commands in a line of shell."""
    found = []
    for part in re.split(r"&&|\||;", text.split("<<")[0]):
        try:
            words = shlex.split(part)
        except ValueError:  # a quote that another part closes, of another program
            continue
        if words[:1] == ["torchrun"]:
            position = next(n for n, word in enumerate(words) if "train" in word)
            found.append(("train", words[position + 1 :]))
        elif words[:1] and words[0] in INSTALLED:
            found.append((INSTALLED[words[0]], words[1:]))
        elif words[:2] == ["python", "-m"] and words[2].startswith("efficientdet."):
            is_package = (REPOSITORY / words[2].replace(".", "/")).is_dir()
            found.append((f"{words[2]}.__main__" if is_package else words[2], words[3:]))
        elif words[:1] == ["python"] and words[1] in (
            "train.py",
            "coco_eval.py",
            "efficientdet_test.py",
            "benchmark.py",
        ):
            found.append((words[1].removesuffix(".py"), words[2:]))
    return found


@pytest.mark.parametrize("command", [*COMMANDS, *INLINE], ids=lambda command: command.name)
def test_flags_exist(command):
    for module, arguments in calls(command.text):
        sys.argv = [module, *arguments]
        if "--help" not in arguments:
            import_module(module).parse_args()


@pytest.mark.parametrize("command", [*COMMANDS, *INLINE], ids=lambda command: command.name)
def test_files_that_a_command_names_exist(command):
    for path in re.findall(r"(?:tests|efficientdet|\.github)/[\w/.]+\.py|\b\w+\.py|tests/\w+", command.text):
        assert (REPOSITORY / path).exists()


@pytest.mark.parametrize("table", [NOT_RUN, SHORTENED], ids=["not run", "shortened"])
def test_tables_name_commands_that_exist(table):
    for piece in table:
        assert any(piece in command.text for command in COMMANDS), piece


# Running them.


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A checkout with the files that the READMEs' commands name."""
    root = tmp_path_factory.mktemp("readme")
    shutil.copytree(REPOSITORY / "projects", root / "projects")
    (root / "efficientdet").symlink_to(REPOSITORY / "efficientdet")
    weights = root / "weights"
    weights.mkdir()
    (weights / "efficientdet-d0_shapes.pth").symlink_to(REPOSITORY / "weights" / "efficientdet-d0_shapes.pth")
    for coef in (0, 1):
        write_weights(weights / f"efficientdet-d{coef}.pth", coef, num_classes=90)
    write_shapes(root / "datasets" / "shapes", train_images=12, val_images=6)

    images = sorted((REPOSITORY / "projects" / "shapes").glob("*.jpg"))
    shutil.copy(images[0], root / "photo.jpg")
    (root / "holiday").mkdir()
    shutil.copy(images[1], root / "holiday")
    (root / "films" / "summer").mkdir(parents=True)
    video = cv2.VideoWriter(str(root / "films/summer/film.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 5, (64, 48))
    for brightness in (50, 150):
        video.write(np.full((48, 64, 3), brightness, np.uint8))
    video.release()
    write_labels(root, images)
    return root


def write_labels(root: Path, images: list[Path]) -> None:
    """Write a labeled data set in each of the layouts that the converter reads."""
    voc, plates, helmets = root / "VOCdevkit" / "VOC2007", root / "exported", root / "helmets"
    for path in (voc / "ImageSets" / "Main", voc / "Annotations", plates, root / "labeled" / "labels"):
        path.mkdir(parents=True)
    for path in (voc / "JPEGImages", root / "labeled" / "images", root / "photos"):
        shutil.copytree(images[0].parent, path)
    names = [path.stem for path in images]
    box = "<bndbox><xmin>20</xmin><ymin>30</ymin><xmax>90</xmax><ymax>80</ymax></bndbox>"
    for path in images:
        xml = f"<annotation><filename>{path.name}</filename><object><name>plate</name>{box}</object></annotation>"
        (voc / "Annotations" / f"{path.stem}.xml").write_text(xml)
        (plates / f"{path.stem}.xml").write_text(xml)
        shutil.copy(path, plates)
        (root / "labeled" / "labels" / f"{path.stem}.txt").write_text("0 0.5 0.5 0.25 0.25\n")
    (root / "labeled" / "classes.txt").write_text("person\n")
    (voc / "ImageSets" / "Main" / "train.txt").write_text("\n".join(names[:4]))
    (voc / "ImageSets" / "Main" / "val.txt").write_text("\n".join(names[4:]))
    for set_name, part in (("train", images[:4]), ("val", images[4:])):
        (helmets / "images" / set_name).mkdir(parents=True)
        (helmets / "labels" / set_name).mkdir(parents=True)
        rows = ["path,x,y,width,height,class"]
        for path in part:
            shutil.copy(path, helmets / "images" / set_name)
            (helmets / "labels" / set_name / f"{path.stem}.txt").write_text("0 0.5 0.5 0.25 0.25\n")
            rows.append(f"photos/{path.name},20,30,70,50,cell")
        (root / f"{set_name}.csv").write_text("\n".join(rows))
    (helmets / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [helmet]\n")
    (root / "boxes.csv").write_text("\n".join(f"{path.name},20,30,90,80,bird" for path in images))


def write_other_programs_weights(root: Path) -> None:
    """Write files of effdet and timm, with random values, under the names in weights/README.md."""
    detector = root / "tf_efficientdet_d0_34-f153e0cf.pth"
    run_module(
        "efficientdet.convert_weights",
        [str(root / "weights/efficientdet-d0.pth"), "-o", str(detector), "--to", "effdet"],
    )
    checkpoint = root / "output" / "train" / "birds" / "model_best.pth.tar"
    checkpoint.parent.mkdir(parents=True)
    torch.save({"state_dict": torch.load(detector, weights_only=True)}, checkpoint)
    (root / "logs" / "birds").mkdir(parents=True)
    write_weights(root / "logs" / "birds" / "efficientdet-d2_best.pth", 2, num_classes=3)
    if find_spec("timm"):
        import timm

        backbone = timm.create_model("tf_efficientnet_b3.ns_jft_in1k")
        torch.save(backbone.state_dict(), root / "tf_efficientnet_b3_ns-9d44bf68.pth")


@pytest.fixture(autouse=True)
def keep_process_state():
    """Undo what scripts do to the process that they usually own."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    argv, handlers = sys.argv, [signal.getsignal(number) for number in numbers]
    yield
    sys.argv = argv
    for number, handler in zip(numbers, handlers):
        signal.signal(number, handler)


def run_module(module: str, arguments: list[str]) -> None:
    """Run a script or `python -m` in this process; an exit status other than 0 fails the test."""
    sys.argv = [module, *arguments]
    try:
        if (REPOSITORY / f"{module}.py").exists():
            runpy.run_path(str(REPOSITORY / f"{module}.py"), run_name="__main__")
        else:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as stopped:
        assert not stopped.code, stopped.code


def run_shell(text: str, cwd: Path, site: Path | None = None) -> str:
    """Run a line in bash, with this Python and perhaps the package installed in `site`. Returns what it prints."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    if site is not None:
        environment |= {"PATH": f"{site / 'bin'}:{environment['PATH']}", "PYTHONPATH": str(site)}
    done = subprocess.run(["bash", "-euc", text], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_command(text: str, folder: Path, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    extra = next((flags for piece, flags in SHORTENED.items() if piece in text), "")
    found = calls(text)
    if not found:
        run_shell(text, folder)
        return
    ((module, arguments),) = found
    before, _, after = text.partition("python ")
    if before:  # a pipe into it
        monkeypatch.setattr(sys, "stdin", io.StringIO(run_shell(before.rstrip(" |"), folder)))
    if "|" in after:  # a pipe out of it
        run_shell(text.replace("python ", f"python {REPOSITORY}/", 1), folder)
        return
    run_module(module.removesuffix(".__main__"), [*arguments, *extra.split()])


ALREADY_RUN: set[str] = set()
RUNNABLE = [
    command
    for command in COMMANDS
    if first_match(command, NOT_RUN) is None and not any(name in command.text for name in INSTALLED)
]


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")  # the tests have imported the module
@pytest.mark.slow
@pytest.mark.parametrize("command", RUNNABLE, ids=lambda command: command.name)
def test_command_runs(command, folder, monkeypatch):
    for piece, package in NEEDED_PACKAGES.items():
        if piece in command.text and find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    if "jq" in command.text and shutil.which("jq") is None:
        pytest.skip("jq is not installed")
    if command.text in ALREADY_RUN:
        return
    if "convert_weights" in command.text and not (folder / "output").exists():
        write_other_programs_weights(folder)
    run_command(command.text, folder, monkeypatch)
    ALREADY_RUN.add(command.text)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_python_runs(page, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out


@pytest.mark.slow
def test_commands_of_an_installed_package(folder, tmp_path):
    source, site, work = tmp_path / "source", tmp_path / "site", tmp_path / "work"
    ignored = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "datasets", "logs", "test", "tests")
    shutil.copytree(REPOSITORY, source, ignore=ignored)
    recent = int(version("setuptools").split(".")[0]) >= 77  # else pip downloads one that is
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", *["--no-build-isolation"] * recent]
    subprocess.run([*pip, "--target", str(site), str(source)], check=True, timeout=120)
    work.mkdir()
    for name in ("shapes", "my_project"):
        shutil.copytree(folder / "datasets" / name, work / "datasets" / name)
    (work / "projects").mkdir()
    shutil.copy(folder / "projects" / "my_project.yml", work / "projects")
    (work / "weights").symlink_to(folder / "weights")
    installed = [command for command in COMMANDS if re.match(r"efficientdet-\w+", command.text)]
    assert len(installed) >= 3
    for command in installed:
        run_shell(f"{command.text} {first_match(command, SHORTENED) or ''}", work, site)
    assert (work / "test" / "6.jpg").is_file()


def test_yaml_example_is_a_project(tmp_path):
    (text,) = blocks("projects/README.md", "yaml")
    (tmp_path / "my_project.yml").write_text(text)
    assert load_project(tmp_path / "my_project.yml").class_names == ("car", "bicycle", "person")
