"""benchmark.py as its users run it."""

import json
import os
import re
import signal
import subprocess
import time

import pytest
import torch
from scripts import SMALL, assert_succeeded, command, run_script, write_shapes_project, write_weights

import benchmark
from utils.errors import InputError

ON_CPU = ("benchmark.py", "--cuda", "False", *SMALL)
ONCE = (*ON_CPU, "--runs", "1", "--warmup", "0")


def rows(text: str, heading: str) -> list[list[str]]:
    """The cells of the table under the line that begins with `heading`, its titles first."""
    table = re.search(rf"^{re.escape(heading)}.*\n((?:.+\n)+)", text, re.MULTILINE)
    assert table, text
    return [re.split(r"  +", line) for line in table[1].splitlines()]


def test_detection_in_the_terminal_and_in_files(tmp_path):
    files = ("--json", "out/speed.json", "--markdown", "out/speed.md")
    run = run_script(*ONCE, "--what", "end_to_end", "--batch_size", "2", *files, cwd=tmp_path)
    assert_succeeded(run)
    titles, *table = rows(run.stdout, "end_to_end: D0 at 128 x 128, batch 2, 0.3 GFLOP an image")
    assert [row[:2] for row in table] == [["plain", "float32"], ["fused", "float32"]]
    for row in table:
        cells = dict(zip(titles, row))
        assert 0 < float(cells["median ms"]) == float(cells["min"]) == float(cells["max"])
        assert float(cells["images/s"]) == pytest.approx(2000 / float(cells["median ms"]), rel=0.01)
        assert float(cells["first s"]) > 0 and float(cells["peak MiB"]) > 0
        assert 0 < float(cells["post"].rstrip("%")) < 100
    assert dict(zip(titles, table[0]))["/ plain"] == "1.00"

    content = json.loads((tmp_path / "out/speed.json").read_text())
    assert [row["contender"] for row in content["rows"]] == ["plain", "fused"]
    assert list(content["matmul_flops_per_second"]) == ["float32"]
    assert 1e8 < content["matmul_flops_per_second"]["float32"] < 1e14
    assert all(0 < row["matmul_peak_share"] < 2 for row in content["rows"])
    assert content["command"].endswith("--markdown out/speed.md")
    assert "### end_to_end: D0 at 128 x 128" in (tmp_path / "out/speed.md").read_text()


def test_a_projects_images_and_weights(tmp_path):
    project = write_shapes_project(tmp_path)
    weights = write_weights(project.root / "untrained.pth")
    run = run_script(*ONCE, "--what", "eval", "-p", project.yml, "-w", weights, "-n", "1", cwd=project.root)
    assert_succeeded(run)
    _, *table = rows(run.stdout, "eval: D0 at 128 x 128, batch 8, 3 images a pass")
    assert [row[0] for row in table] == ["plain", "fused"]
    assert "val on" not in run.stderr  # the bars of what is measured


def test_ctrl_c_tells_what_is_known(tmp_path):
    many = ("--what", "postprocess", "--batch_size", "1", "--runs", "100000", "--json", "speed.json")
    error = tmp_path / "stderr"
    with error.open("w") as stream:
        script = subprocess.Popen(
            command(*ON_CPU, *many),
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
            os.killpg(script.pid, signal.SIGINT)  # as a terminal does: to all of them
            output, _ = script.communicate(timeout=30)
        finally:
            script.kill()  # its processes end with it
    assert script.returncode == 130, error.read_text()
    assert "Traceback" not in error.read_text()
    assert [row[0] for row in rows(output, "postprocess: ")[1:]] == ["plain", "ours"]
    assert "stopped: the rest is not measured" in output
    content = json.loads((tmp_path / "speed.json").read_text())
    assert all(len(row["seconds"]) > 1 for row in content["rows"])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("--precision fp16", "--precision fp16 needs a GPU: pass bf16 or float32"),
        ("--mode cudagraph", "--mode cudagraph needs a GPU: pass plain, fused or compiled"),
        ("--what loss --mode compiled", "--what loss has the modes plain, fused, not compiled"),
        ("--what train --compare effdet", "--compare effdet is for --what end_to_end and forward, not train"),
        ("--what forward --compare torchvision", "--compare torchvision is for --what end_to_end, not forward"),
        ("--json .", ". is a folder: name a file in it"),
    ],
)
def test_what_cannot_be_measured_is_told_at_once(monkeypatch, arguments, told):
    monkeypatch.setattr("sys.argv", ["benchmark.py", *arguments.split()])
    with pytest.raises(InputError) as caught:
        benchmark.check(benchmark.parse_args(), torch.device("cpu"))
    assert str(caught.value) == told


def test_a_group_for_each_coefficient_work_and_batch_size(monkeypatch):
    monkeypatch.setattr(
        "sys.argv", ["benchmark.py", *["-c", "0", "8", "0", "--batch_size", "1", "4", "--what", "train", "forward"]]
    )
    groups = list(benchmark.plan(benchmark.parse_args(), {}))
    assert [(c.compound_coef, c.side, c.what, c.batch_size) for c, *_ in groups] == [
        (0, 512, "train", 1),
        (0, 512, "train", 4),
        (0, 512, "forward", 1),
        (0, 512, "forward", 4),
        (8, 1536, "train", 1),
        (8, 1536, "train", 4),
        (8, 1536, "forward", 1),
        (8, 1536, "forward", 4),
    ]


def test_the_references_row_without_being_asked(monkeypatch):
    monkeypatch.setattr("sys.argv", ["benchmark.py"])
    groups = list(benchmark.plan(benchmark.parse_args(), {}))
    assert [[(c.what, c.name, c.batch_size) for c in group] for group in groups] == [
        [("end_to_end", "plain", 1), ("end_to_end", "fused", 1)],
        [("forward", "plain", 32), ("forward", "fused", 32)],
    ]
