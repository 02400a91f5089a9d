"""What the benchmark has measured, as figures, tables and files."""

import json

import pytest
import torch

from efficientdet.benchmark.report import (
    Results,
    as_markdown,
    as_text,
    figures,
    group_table,
    reference_table,
    title,
    write_json,
    write_markdown,
)
from efficientdet.benchmark.workloads import Contender, forward_flops
from utils.measuring import Measured, Pass

MIB = 2**20


def contender(name: str, precision: str = "float32", what: str = "end_to_end", batch_size: int = 1) -> Contender:
    return Contender(what, name, precision, 0, 512, batch_size)


def measured(*milliseconds: float, images: int = 1, share: float | None = None) -> Measured:
    """The first pass took 2 s, and 30 MiB on top of 100."""
    first = Pass(2.0, None, 100 * MIB, 130 * MIB)
    passes = [Pass(ms / 1e3, share and share * ms / 1e3, 0, 0) for ms in milliseconds]
    return Measured(images, first, passes)


GROUP = {
    contender("plain"): measured(300, 100, 200, share=0.1),
    contender("fused"): measured(50, 40, share=0.02),
    contender("fused", "bf16"): measured(20, share=0.5),
    contender("effdet"): measured(180),
    contender("ssdlite320_mobilenet_v3_large"): Measured(1, None, [], out_of_memory=True),
}


def test_nothing():
    assert figures({}, {}) == []
    assert reference_table([]) == []


def test_figures_of_a_group():
    limit = 1e12
    plain, fused, bf16, effdet, ssdlite = figures(GROUP, {"float32": limit})
    assert (plain["median_ms"], plain["min_ms"], plain["max_ms"]) == pytest.approx((200, 100, 300))
    assert fused["median_ms"] == pytest.approx(45)
    assert fused["images_per_second"] == pytest.approx(1 / 0.045)
    assert [row["time_of_plain"] for row in (plain, fused, bf16, effdet)] == pytest.approx([1, 0.225, 0.1, 0.9])
    assert [row["time_of_effdet"] for row in (fused, effdet)] == pytest.approx([0.25, 1])
    assert [row["postprocessing_share"] for row in (plain, fused, bf16)] == pytest.approx([0.1, 0.02, 0.5])
    assert effdet["postprocessing_share"] is None
    assert (fused["first_pass_seconds"], fused["peak_mib"], fused["process_mib"]) == (2.0, 30, 130)
    # 2.49 billion multiplications with their additions, in 0.045 s, of 1000 GFLOP/s
    assert fused["gflop_per_image"] == pytest.approx(4.98, abs=0.01)
    assert fused["matmul_peak_share"] == pytest.approx(4.98 / 45, abs=0.001)
    assert bf16["matmul_peak_share"] is None  # its limit is not known
    assert ssdlite["contender"] == "ssdlite320_mobilenet_v3_large (320 x 320)"
    assert ssdlite["out_of_memory"]
    assert {ssdlite[key] for key in ("median_ms", "images_per_second", "time_of_plain", "peak_mib")} == {None}


def test_figures_of_a_batch_and_of_training():
    group = {contender("ours", what="train", batch_size=4): measured(500, images=4)}
    (row,) = figures(group, {"float32": 1e12})
    assert row["images_per_second"] == pytest.approx(8)
    assert row["gflop_per_image"] == pytest.approx(3 * forward_flops(0, 512) / 1e9)
    assert row["matmul_peak_share"] == pytest.approx(8 * 3 * forward_flops(0, 512) / 1e12)
    assert row["time_of_plain"] is None


def test_title():
    assert title(GROUP) == "end_to_end: D0 at 512 x 512, batch 1, 5.0 GFLOP an image"
    evaluation = {contender("plain", what="eval", batch_size=8): measured(1, images=80)}
    assert title(evaluation) == "eval: D0 at 512 x 512, batch 8, 80 images a pass"


def test_table_of_a_group():
    titles, plain, *_, ssdlite = group_table(figures(GROUP, {"float32": 1e12}))
    assert titles[:6] == ["", "precision", "median ms", "min", "max", "images/s"]
    assert plain[:6] == ["plain", "float32", "200.0", "100.0", "300.0", "5.00"]
    assert dict(zip(titles, plain))["post"] == "10.0%"
    assert ssdlite[:3] == ["ssdlite320_mobilenet_v3_large (320 x 320)", "float32", "- (out of memory)"]
    assert set(ssdlite[3:]) == {"-"}
    alone, _ = group_table(figures({contender("plain"): measured(1)}, {}))
    assert "/ effdet" not in alone and "of limit" not in alone


def test_the_references_table():
    rows = figures(GROUP, {})
    rows += figures({contender("fused", what="forward", batch_size=32): measured(1600, images=32)}, {})
    rows += figures({contender("fused", what="forward", batch_size=8): measured(1, images=8)}, {})
    titles, plain, fused, bf16, reference = reference_table(rows)
    assert titles == ["", "", "precision", "FPS", "extreme FPS", "memory MiB"]
    assert plain == ["D0", "plain", "float32", "5.00", "-", "130"]
    assert fused == ["D0", "fused", "float32", "22.22", "20.00", "130"]
    assert bf16 == ["D0", "fused", "bf16", "50.00", "-", "130"]
    assert reference == ["D0", "reference, RTX 2080 Ti, April 2020", "", "36.20", "163.14", "1049"]


def test_other_sizes_are_not_the_references():
    small = Contender("end_to_end", "plain", "float32", 0, 128, 1)
    assert reference_table(figures({small: measured(1)}, {})) == []


def test_text_is_aligned():
    assert as_text([["", "ms"], ["plain", "5"], ["a", "10.5"]]) == "         ms\nplain     5\na      10.5"


def test_markdown():
    assert as_markdown([["", "ms"], ["plain", "5"]]) == "|  | ms |\n| --- | --- |\n| plain | 5 |"


def test_a_group_without_room():
    rows = figures({contender("plain"): Measured(out_of_memory=True)}, {"float32": 1e12})
    titles, row = group_table(rows)
    assert (titles[2], row[2]) == ("median ms", "- (out of memory)")


def test_files(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["benchmark.py", "-c", "0", "--json", "a file.json"])
    results = Results(torch.device("cpu"))
    assert "limit" not in results.head() and results.rows() == []
    results.matmul_speeds = {"float32": 64e9}
    results.groups = [GROUP, {contender("fused", what="forward", batch_size=32): measured(1600, images=32)}]
    head = results.head()
    assert list(head) == ["date", "machine", "threads", "software", "command", "limit"]
    assert head["command"] == "python benchmark.py -c 0 --json 'a file.json'"
    assert head["limit"] == "matrix multiplication, 64 GFLOP/s in float32"
    assert head["threads"] == str(torch.get_num_threads())

    write_json(tmp_path / "speed.json", results)
    content = json.loads((tmp_path / "speed.json").read_text())
    assert content == {**head, "matmul_flops_per_second": {"float32": 64e9}, "rows": results.rows()}
    assert len(content["rows"]) == len(GROUP) + 1
    assert content["rows"][1]["seconds"] == [0.05, 0.04]

    write_markdown(tmp_path / "speed.md", results)
    text = (tmp_path / "speed.md").read_text()
    assert "- command: `python benchmark.py -c 0 --json 'a file.json'`\n" in text
    assert "### end_to_end: D0 at 512 x 512, batch 1, 5.0 GFLOP an image\n\n|  | precision | median ms |" in text
    assert "| plain | float32 | 200.0 |" in text
    assert "| D0 | fused | float32 | 22.22 | 20.00 | 130 |" in text
