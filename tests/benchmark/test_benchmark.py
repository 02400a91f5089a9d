"""benchmark.py: in this process with measuring replaced, and twice as users run it."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from scripts import SMALL, assert_succeeded, command, run_script, write_weights

import benchmark
from efficientdet.benchmark import workloads
from efficientdet.benchmark.workloads import KINDS
from efficientdet.runtime.modes import MODES
from utils.errors import InputError
from utils.measuring import Measured, Pass

ON_CPU = ("--cuda", "False", *SMALL)


def table(text: str, heading: str) -> list[dict[str, str]]:
    """Return the rows under a heading, by the titles of their columns."""
    found = re.search(rf"^### {re.escape(heading)}.*\n\n((?:\|.+\n)+)", text, re.MULTILINE)
    assert found, text
    titles, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in found[1].splitlines())
    return [dict(zip(titles, row)) for row in rows]


def measure_once(makers, title, measured, runs, warmup) -> None:
    """Run each workload once in this process, in place of `measure`."""
    for contender, make in makers.items():
        workload = make()
        workload.run_once()
        cost = Pass(0.5, None, 0, 2**20)
        measured[contender] = Measured(workload.images, cost, [cost] * (runs or 3))


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """A function that runs the script in this process and a temporary folder. Returns what it prints."""
    monkeypatch.setattr(benchmark, "measure", measure_once)
    monkeypatch.setattr(benchmark, "matmul_speed", lambda device, dtype: 1e12)
    monkeypatch.setattr(workloads, "keep_freed_memory", lambda: None)
    monkeypatch.chdir(tmp_path)

    def run_here(*args: str | Path) -> str:
        benchmark.main(benchmark.parse_args([*ON_CPU, *map(str, args)]))
        return capsys.readouterr().out

    return run_here


@pytest.mark.slow
def test_tables_and_files_of_work_on_random_inputs(run):
    what = ("end_to_end", "forward", "train", "loss", "postprocess")
    files = ("--json", "out/speed.json", "--markdown", "out/speed.md")
    text = run("--what", *what, "--batch_size", "2", "--runs", "2", *files)
    for work in what:
        plain, fast = table(text, f"{work}: D0 at 128 x 128, batch 2")
        assert (plain[""], fast[""]) == ("plain", "fused")
        assert (fast["median ms"], fast["images/s"], fast["/ plain"]) == ("500.0", "4.00", "1.00")
    assert "- limit: `matrix multiplication, 1000 GFLOP/s in float32`\n" in text

    content = json.loads(Path("out/speed.json").read_text())
    assert list(content["matmul_flops_per_second"]) == ["float32"]
    assert [row["contender"] for row in content["rows"]] == ["plain", "fused"] * 5
    assert all(row["seconds"] == [0.5, 0.5] for row in content["rows"])
    assert Path("out/speed.md").read_text() == text.rstrip() + "\n"


def test_images_and_weights_of_a_project(run, shapes_project):
    weights = write_weights(shapes_project.root / "untrained.pth")
    data = ("-p", shapes_project.yml, "--data_path", shapes_project.data.parent, "-n", "0")
    text = run("--what", "eval", "prepare", "loader", *data, "-w", weights)
    for heading, contenders in (
        ("eval: D0 at 128 x 128, batch 8, 3 images a pass", ["plain", "fused"]),
        ("prepare: D0 at 128 x 128, batch 1, 3 images a pass", ["plain", "fused"]),
        ("loader: D0 at 128 x 128, batch 4, 16 images a pass", ["fused"]),
    ):
        assert [row[""] for row in table(text, heading)] == contenders


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("--precision fp16", "--precision fp16"),
        ("--mode cudagraph", "--mode cudagraph"),
        ("--what loss --mode compiled", "--what loss .* plain, fused, not compiled"),
        ("--what train --compare effdet", "--compare effdet .* end_to_end, forward, not train"),
        ("--what forward --compare torchvision", "--compare torchvision .* end_to_end, not forward"),
        ("--what train -w model.onnx", "-w model.onnx .* end_to_end, forward, eval, not train"),
        ("--what forward -w best", "-w best .* eval, not forward"),
        ("--what eval -w best last", "-w best last"),
        ("--what forward -w absent.onnx", "absent.onnx"),
        ("--what eval -p drawn", "drawn"),
        ("--json .", r"\. "),
    ],
)
def test_unusable_flags_are_named(run, arguments, named):
    with pytest.raises(InputError, match=named):
        run(*arguments.split())


def test_a_missing_package_is_reported_with_its_installation(run, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="--compare effdet .*pip install effdet"):
        run("--compare", "effdet")


def planned(*args: str) -> list[list[workloads.Contender]]:
    return list(benchmark.plan(benchmark.parse_args(args), torch.device("cpu"), Path("random")))


def test_the_default_is_the_references_row():
    groups = [[(c.what, c.name, c.batch_size) for c in group] for group in planned()]
    assert groups == [
        [("end_to_end", "plain", 1), ("end_to_end", "fused", 1)],
        [("forward", "plain", 32), ("forward", "fused", 32)],
    ]


def test_there_is_a_group_for_each_coefficient_work_and_batch_size():
    groups = planned("-c", "0", "8", "0", "--batch_size", "1", "4", "--what", "train", "forward")
    assert [(c.compound_coef, c.side, c.what, c.batch_size) for c, *_ in groups] == [
        (coef, side, what, batch_size)
        for coef, side in ((0, 512), (8, 1536))
        for what in ("train", "forward")
        for batch_size in (1, 4)
    ]


class FakeExported:
    """An exported file of D0; its name tells the size, such as `384x384.onnx`."""

    compound_coef = 0
    metadata = SimpleNamespace(precision="float16")

    def __init__(self, path, device):
        self.path = Path(path)

    def canvas(self, image_size):
        return tuple(map(int, self.path.stem.split("x")))


def contenders(flags: str) -> list[str]:
    (group,) = planned(*flags.split())
    return [str(contender) for contender in group]


def test_no_mode_of_the_work_is_an_error():
    with pytest.raises(InputError, match="--what loader"):
        contenders("--what loader --mode plain")
    with pytest.raises(InputError, match="--what postprocess"):
        contenders("--what postprocess --mode compiled --precision float32 bf16")


def test_each_mode_takes_part_in_each_precision():
    forward = ["plain float32", "plain bf16", "fused float32", "fused bf16"]
    assert contenders("--what forward --mode plain fused --precision float32 bf16") == forward
    train = ["plain float32", "fused float32", "fused bf16", "compiled float32", "compiled bf16"]
    assert contenders(f"--what train --mode {' '.join(MODES)} --precision float32 bf16") == train
    assert contenders("--what loss --mode plain fused --precision bf16") == ["plain float32", "fused bf16"]
    prepare = ["plain float32", "fused float32"]
    assert contenders("--what prepare --mode plain fused --precision float32 bf16") == prepare


def test_peers_take_part_where_they_can():
    flags = "--mode fused --precision bf16 --compare"
    assert contenders(f"--what forward {flags} effdet torchvision") == ["fused bf16", "effdet float32"]
    assert contenders(f"--what end_to_end {flags} torchvision") == [
        "fused bf16",
        "retinanet_resnet50_fpn_v2 (1066 x 800) float32",
        "ssdlite320_mobilenet_v3_large (320 x 320) float32",
        "fasterrcnn_mobilenet_v3_large_320_fpn (426 x 320) float32",
    ]
    assert contenders("--what train --mode fused --compare effdet") == ["fused float32"]


def test_exported_files_take_part_where_the_network_runs(monkeypatch):
    monkeypatch.setattr(benchmark, "ExportedModel", FakeExported)
    flags = "--mode fused -w 384x384.onnx"
    assert contenders(f"--what forward {flags}") == ["fused float32", "384x384.onnx float16"]
    assert contenders(f"--what train {flags}") == ["fused float32"]


def test_exported_files_set_the_size(monkeypatch):
    monkeypatch.setattr(benchmark, "ExportedModel", FakeExported)
    (group,) = planned("--what", "forward", "-w", "384x384.onnx")
    assert [(str(c), c.side) for c in group] == [
        ("plain float32", 384), ("fused float32", 384), ("384x384.onnx float16", 384)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("-w 384x384.onnx -c 1", "384x384.onnx is D0: pass -c 0"),
        ("-w 384x640.onnx", "384x640.onnx"),
        ("-w 384x384.onnx 512x512.onnx", "384x384.onnx, 512x512.onnx"),
    ],
)
def test_exported_files_that_do_not_fit_are_named(monkeypatch, arguments, named):
    monkeypatch.setattr(benchmark, "ExportedModel", FakeExported)
    with pytest.raises(InputError, match=named):
        planned(*arguments.split())


def test_help_describes_each_kind_of_work(capsys):
    with pytest.raises(SystemExit):
        benchmark.parse_args(["--help"])
    text = capsys.readouterr().out
    for what, kind in KINDS.items():
        assert f"  {what:<13} {kind.make.__doc__} Batches of {kind.batch_size}." in text


@pytest.mark.slow
def test_a_run_in_processes_of_their_own(tmp_path):
    flags = (*ON_CPU, "--what", "end_to_end", "--mode", "fused", "--runs", "1", "--warmup", "0")
    run = run_script("benchmark.py", *flags, "--json", "speed.json", cwd=tmp_path)
    assert_succeeded(run)
    (row,) = table(run.stdout, "end_to_end: D0 at 128 x 128, batch 1, 0.3 GFLOP an image")
    assert row[""] == "fused"
    assert 0 < float(row["median ms"]) == float(row["min"]) == float(row["max"])
    assert float(row["images/s"]) == pytest.approx(1000 / float(row["median ms"]), rel=0.01)
    assert float(row["first s"]) > 0 and float(row["peak MiB"]) > 0
    assert 0 < float(row["post"].rstrip("%")) < 100
    content = json.loads((tmp_path / "speed.json").read_text())
    assert 1e8 < content["matmul_flops_per_second"]["float32"] < 1e14
    assert 0 < content["rows"][0]["matmul_peak_share"] < 2
    assert content["command"].endswith("--json speed.json")


@pytest.mark.slow
def test_ctrl_c_keeps_the_results_so_far(tmp_path):
    flags = (*ON_CPU, "--what", "postprocess", "--batch_size", "1", "--runs", "100000", "--json", "speed.json")
    error = tmp_path / "stderr"
    with error.open("w") as stream:
        script = subprocess.Popen(
            command("benchmark.py", *flags),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=stream,
            text=True,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + 120
            while not re.search(r"\| [1-9]\d+/", error.read_text()) and time.monotonic() < deadline:
                time.sleep(0.1)
            os.killpg(script.pid, signal.SIGINT)  # as a terminal does: to all processes
            output, _ = script.communicate(timeout=30)
        finally:
            script.kill()  # its processes end with it
    assert script.returncode == 130, error.read_text()
    assert "Traceback" not in error.read_text()
    assert [row[""] for row in table(output, "postprocess: ")] == ["plain", "fused"]
    assert "stopped" in output
    content = json.loads((tmp_path / "speed.json").read_text())
    assert all(len(row["seconds"]) > 1 for row in content["rows"])
