"""Slow packages are imported only when they are used. Modules are checked, not seconds."""

import json
import subprocess
import sys

import pytest
from scripts import REPOSITORY

OPTIONAL = {"effdet", "nncf", "onnx", "onnxruntime", "openvino", "safetensors", "timm"}
NEVER = {"matplotlib", "torch._inductor", "torchvision", *OPTIONAL}
SCRIPTS = ("benchmark", "coco_eval", "efficientdet_test", "train")
COMMANDS = tuple(
    f"efficientdet.{name}" for name in ("check.__main__", "convert.__main__", "convert_weights", "export.__main__")
)


@pytest.mark.parametrize(
    ("modules", "forbidden"),
    [
        pytest.param(("efficientdet",), NEVER | {"pycocotools", "tensorboardX"}, id="package"),
        pytest.param((*SCRIPTS, *COMMANDS), NEVER, id="scripts and commands"),
    ],
)
@pytest.mark.slow
def test_slow_packages_are_not_imported_before_use(modules, forbidden):
    program = f"import sys, json, {', '.join(modules)}; print(json.dumps(list(sys.modules)))"
    imported = json.loads(subprocess.check_output([sys.executable, "-c", program], cwd=REPOSITORY))
    assert forbidden & set(imported) == set()
