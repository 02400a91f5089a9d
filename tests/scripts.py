"""What the tests of the command-line scripts share: running them, and small inputs for them."""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
from conftest import shapes_project
from torch import nn

from efficientdet.model.network import EfficientDet
from utils.errors import exit_on_input_error

REPOSITORY = Path(__file__).resolve().parent.parent
SMALL = ("--image_size", "128")  # the smallest input of D0 to D7
TRAIN = ("train.py", "-p", "drawn", *SMALL, "--batch_size", "2", "-n", "0")


def command(name: str, *args: str | Path) -> list[str]:
    """The command line of a script of the repository."""
    return [sys.executable, str(REPOSITORY / name), *map(str, args)]


def run_script(
    name: str, *args: str | Path, cwd: Path, env: dict[str, str] | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run a script in the folder `cwd` to its end, with its output captured."""
    return subprocess.run(command(name, *args), cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout)


def run_main(script: ModuleType, *args: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a script or command in this process, in the folder `cwd`: as `run_script`, without starting Python again."""
    stdout, stderr, before = io.StringIO(), io.StringIO(), Path.cwd()
    status: object = 0
    os.chdir(cwd)
    try:
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr), exit_on_input_error():
            status = script.main(script.parse_args([*map(str, args)])) or 0
    except SystemExit as exit:
        status = exit.code
    finally:
        os.chdir(before)
    if isinstance(status, str):  # as the interpreter does
        stderr.write(f"{status}\n")
        status = 1
    return subprocess.CompletedProcess([script.__name__, *map(str, args)], status, stdout.getvalue(), stderr.getvalue())


def assert_succeeded(run: subprocess.CompletedProcess[str]) -> None:
    assert run.returncode == 0, run.stderr
    assert "Traceback" not in run.stderr


def assert_one_error(run: subprocess.CompletedProcess[str], *named: str | Path) -> None:
    """The run failed with one sentence, which holds each text of `named`."""
    assert run.returncode != 0, run.stdout
    assert "Traceback" not in run.stderr, run.stderr
    sentences = [line for line in run.stderr.splitlines() if "error:" in line]
    assert len(sentences) == 1 and run.stderr.count("error:") == 1, run.stderr
    for text in map(str, named):
        assert text in sentences[0]


def write_shapes_project(folder: Path) -> SimpleNamespace:
    """The project of the fixture `shapes_project`, in a folder of the caller's, for fixtures of wider scope."""
    return shapes_project.__wrapped__(folder)


def edit_annotations(data: Path, set_name: str, edit) -> Path:
    """Let `edit` change the content of a set's annotation file in place. Returns the file's path."""
    path = data / "annotations" / f"instances_{set_name}.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    return path


def untrained(compound_coef: int = 0, num_classes: int = 2) -> EfficientDet:
    """A network with the same random weights each time. Its scores lie about 0.01."""
    torch.manual_seed(0)
    network = EfficientDet(compound_coef, num_classes)
    spread_activations(network)
    return network


@torch.no_grad()
def spread_activations(network: nn.Module) -> None:
    """Draw kernels of variance 1 / fan_in, which keep activations near 1 in evaluation, where initial ones vanish."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.normal_(std=module.weight[0].numel() ** -0.5)


def write_weights(path: Path, compound_coef: int = 0, num_classes: int = 2) -> Path:
    """A weights file of an untrained network."""
    torch.save(untrained(compound_coef, num_classes).state_dict(), path)
    return path
