"""Figures, tables and files of the benchmark."""

import json
from pathlib import Path

import pytest
import torch
from contenders import measured

from efficientdet.benchmark.report import LEGEND, REFERENCE, Report, as_markdown, figures, reference_rows
from efficientdet.benchmark.workloads import Contender, forward_flops
from efficientdet.project import load_project
from utils.measuring import Measured

CPU = torch.device("cpu")
MIB = 2**20
SSDLITE = "ssdlite320_mobilenet_v3_large (320 x 320)"


def contender(name: str, precision: str = "float32", what: str = "end_to_end", batch_size: int = 1, side: int = 512):
    settings = CPU, load_project("coco"), Path("datasets"), Path("d0.pth"), 0
    return Contender(what, name, precision, 0, side, batch_size, *settings)


GROUP = {
    contender("plain"): measured(300, 100, 200, share=0.1),
    contender("fused"): measured(50, 40, share=0.02),
    contender("fused", "bf16"): measured(20, share=0.5),
    contender("effdet"): measured(180),
    contender(SSDLITE): Measured(1, None, [], out_of_memory=True),
}
FORWARD = {contender("fused", what="forward", batch_size=32): measured(1600, images=32)}


def rows(*groups: dict[Contender, Measured], matmul_speed: float | None = None) -> list[dict]:
    return [figures(contender, group, matmul_speed) for group in groups for contender in group]


def test_nothing_is_measured():
    assert reference_rows([]) == []
    report = Report(CPU, {})
    assert report.rows == [] and "limit" not in report.head


def test_figures_of_a_group():
    plain, fused, bf16, effdet, ssdlite = rows(GROUP, matmul_speed=1e12)
    assert (plain["median_ms"], plain["min_ms"], plain["max_ms"]) == pytest.approx((200, 100, 300))
    assert fused["median_ms"] == pytest.approx(45)
    assert fused["images_per_second"] == pytest.approx(1 / 0.045)
    assert [row["time_of_plain"] for row in (plain, fused, bf16, effdet)] == pytest.approx([1, 0.225, 0.1, 0.9])
    assert [row["time_of_effdet"] for row in (fused, effdet)] == pytest.approx([0.25, 1])
    assert [row["postprocessing_share"] for row in (plain, fused, bf16)] == pytest.approx([0.1, 0.02, 0.5])
    assert effdet["postprocessing_share"] is None
    assert (fused["first_pass_seconds"], fused["peak_mib"], fused["process_mib"]) == (2.0, 30, 130)
    # 2.49 billion multiply-adds in 0.045 s, of 1000 GFLOP/s
    assert fused["gflop_per_image"] == pytest.approx(4.98, abs=0.01)
    assert fused["matmul_peak_share"] == pytest.approx(4.98 / 45, abs=0.001)
    assert ssdlite["contender"] == SSDLITE and ssdlite["out_of_memory"]
    unknown = ("median_ms", "images_per_second", "time_of_plain", "peak_mib", "gflop_per_image")
    assert {ssdlite[key] for key in unknown} == {None}


def test_figures_of_training():
    group = {contender("fused", what="train", batch_size=4): measured(500, images=4)}
    (row,) = rows(group, matmul_speed=1e12)
    assert row["images_per_second"] == pytest.approx(8)
    assert row["gflop_per_image"] == pytest.approx(3 * forward_flops(0, 512) / 1e9)
    assert row["matmul_peak_share"] == pytest.approx(8 * 3 * forward_flops(0, 512) / 1e12)
    assert row["time_of_plain"] is None


def test_an_unknown_limit_leaves_the_share_unknown():
    assert {row["matmul_peak_share"] for row in rows(GROUP)} == {None}


def test_the_references_table():
    small_batch = {contender("fused", what="forward", batch_size=8): measured(1, images=8)}
    table = reference_rows(rows(GROUP, FORWARD, small_batch))
    keys = ("model", "contender", "precision", "fps", "extreme_fps", "mib")
    assert [[row.get(key) for key in keys] for row in table] == [
        ["D0", "plain", "float32", pytest.approx(5), None, 130],
        ["D0", "fused", "float32", pytest.approx(1 / 0.045), pytest.approx(20), 130],
        ["D0", "fused", "bf16", pytest.approx(50), None, 130],
        ["D0", REFERENCE, "", 36.20, 163.14, 1049],
    ]


def test_other_input_sizes_are_not_in_the_references_table():
    assert reference_rows(rows({contender("plain", side=128): measured(1)})) == []


def test_tables_are_aligned_markdown():
    rows = [{"contender": "plain", "min_ms": 5.04}, {"contender": "a", "min_ms": None, "out_of_memory": True}]
    assert as_markdown("loss", rows, ["contender", "min_ms"]).splitlines() == [
        "### loss",
        "",
        "|                   | min |",
        "|-------------------|----:|",
        "| plain             | 5.0 |",
        "| a (out of memory) |   - |",
    ]


def test_what_is_printed_and_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmark.py", "-c", "0", "--json", "a file.json"])
    report = Report(CPU, {"float32": 64e9})
    assert list(report.head) == ["date", "machine", "threads", "software", "command", "limit"]
    assert report.head["command"] == "python benchmark.py -c 0 --json 'a file.json'"
    assert report.head["limit"] == "matrix multiplication, 64 GFLOP/s in float32"
    assert report.head["threads"] == str(torch.get_num_threads())
    for group in (GROUP, FORWARD, {contender("plain", what="eval", batch_size=8): measured(1, images=80)}):
        report.add(group)
    report.finish(tmp_path / "speed.json", tmp_path / "speed.md")

    content = json.loads((tmp_path / "speed.json").read_text())
    assert content == {**report.head, "matmul_flops_per_second": {"float32": 64e9}, "rows": report.rows}
    assert len(content["rows"]) == len(GROUP) + 2
    assert content["rows"][1]["seconds"] == [0.05, 0.04]

    text = (tmp_path / "speed.md").read_text()
    assert text.rstrip() == capsys.readouterr().out.rstrip()
    assert "- command: `python benchmark.py -c 0 --json 'a file.json'`\n" in text
    for heading in (
        "end_to_end: D0 at 512 x 512, batch 1, 5.0 GFLOP an image",
        "forward: D0 at 512 x 512, batch 32, 5.0 GFLOP an image",
        "eval: D0 at 512 x 512, batch 8, 80 images a pass",
        "the reference's table",
    ):
        assert f"### {heading}" in text
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert [
        "plain",
        "float32",
        "200.0",
        "100.0",
        "300.0",
        "5.00",
        "1.00",
        "1.11",
        "10.0%",
        "2.00",
        "30",
        "39%",
    ] in lines
    assert ["D0", "fused", "float32", "22.22", "20.00", "130"] in lines
    assert text.endswith(f"{LEGEND}\n")


def test_columns_without_figures_are_left_out(capsys):
    report = Report(CPU, {})
    report.add({contender("fused", what="loss", batch_size=8): measured(1, images=8)})
    titles = capsys.readouterr().out.splitlines()[-4]
    assert "median ms" in titles
    assert not any(title in titles for title in ("/ plain", "/ effdet", "post", "of limit"))


def test_memory_can_run_out_before_anything_is_known(capsys):
    Report(CPU, {"float32": 1e12}).add({contender("plain"): Measured(out_of_memory=True)})
    last = capsys.readouterr().out.splitlines()[-2]
    assert [cell.strip() for cell in last.split("|")[1:-1]] == ["plain (out of memory)", "float32", "-"]
