"""benchmark.py as its users run it."""

import os
import re

from scripts import assert_one_error, assert_succeeded, run_script

ONCE = ("benchmark.py", "--runs", "1", "--warmup", "0", "--cuda", "False")


def test_table_has_a_row_for_each_contender(tmp_path):
    run = run_script(*ONCE, cwd=tmp_path)
    assert_succeeded(run)
    lines = run.stdout.splitlines()
    assert lines[0].startswith("D0 at 512 x 512, batch 1, float32, CPU with ")
    assert lines[1].split() == ["median", "ms", "min", "max", "images/s", "ours", "/", "it"]
    rows = [re.fullmatch(r"(ours|ours, plain) +((?:\d+\.\d+ *){5})", line) for line in lines[2:]]
    assert [row[1] for row in rows] == ["ours", "ours, plain"]
    for row in rows:
        median, least, most, rate, _ = map(float, row[2].split())
        assert 0 < median == least == most
        assert abs(rate - 1000 / median) < 0.01 * rate + 0.01
    assert float(rows[0][2].split()[-1]) == 1


def test_comparison_without_the_other_package_says_how_to_get_it(tmp_path):
    blocker = tmp_path / "blocker" / "effdet"
    blocker.mkdir(parents=True)
    (blocker / "__init__.py").write_text("raise ImportError('kept out by the test')\n")
    run = run_script(*ONCE, "--compare", "effdet", cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(blocker.parent)})
    assert_one_error(run, "--compare effdet", "pip install effdet")
