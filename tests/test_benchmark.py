"""benchmark.py as its users run it, and what it measures ours against."""

import os
import re

import numpy as np
import pytest
import torch
from scripts import SMALL, assert_one_error, assert_succeeded, run_script, write_shapes_project, write_weights

from benchmark import Setting, baseline_loss, baseline_postprocess, baseline_prepare, random_outputs
from efficientdet.evaluate import EVALUATION_IOU_THRESHOLD
from efficientdet.loss import DetectionLoss, Targets
from efficientdet.model import Outputs
from efficientdet.postprocess import postprocess
from efficientdet.project import load_project
from efficientdet.transforms import Letterbox

ONCE = ("benchmark.py", "--runs", "1", "--warmup", "0", "--cuda", "False")
TWO_SMALL = (*SMALL, "--batch_size", "2")


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


def test_image_size_is_that_of_the_detection(tmp_path):
    run = run_script(*ONCE, *TWO_SMALL, cwd=tmp_path)
    assert_succeeded(run)
    assert run.stdout.startswith("D0 at 128 x 128, batch 2, float32, CPU with ")
    assert len(run.stdout.splitlines()) == 4


@pytest.mark.parametrize(
    ("what", "title", "contenders"),
    [
        ("train", "training steps", ["ours float32", "ours bf16", "baseline"]),
        ("loss", "loss forward and backward", ["ours", "ours bf16", "baseline"]),
    ],
)
def test_training_and_loss_are_compared_with_the_baseline(tmp_path, what, title, contenders):
    run = run_script(*ONCE, "--what", what, *TWO_SMALL, cwd=tmp_path)
    assert_succeeded(run)
    lines = run.stdout.splitlines()
    assert lines[0].startswith(f"D0 at 128 x 128, batch 2, {title}, CPU with ")
    assert lines[1].split() == ["median", "ms", "min", "max", "images/s", "x", "baseline", "peak", "MiB"]
    assert [line[:12].rstrip() for line in lines[2:]] == contenders
    for line in lines[2:]:
        median, least, most, rate, ratio, memory = map(float, line[12:].split())
        assert 0 < median == least == most
        assert rate == pytest.approx(2000 / median, rel=0.06 / median + 0.001)  # the median is told to 0.1
        assert ratio > 0 and memory > 0
    assert ratio == 1


def test_loading_is_compared_with_a_training_step(tmp_path):
    project = write_shapes_project(tmp_path)
    run = run_script(*ONCE, "--what", "loader", *TWO_SMALL, "-p", project.yml, "-n", "1", cwd=project.root)
    assert_succeeded(run)
    lines = run.stdout.splitlines()
    assert lines[0].startswith("D0 at 128 x 128, batch 2, loading datasets/drawn/train, CPU with ")
    assert lines[1].split() == ["images/s"]
    assert [line[:22].rstrip() for line in lines[2:4]] == ["loader, 1 workers", "training step, bf16"]
    assert all(float(line[22:]) > 0 for line in lines[2:4])


@pytest.mark.parametrize(("what", "ratio"), [("evaluate", "x"), ("prepare", "it"), ("postprocess", "it")])
def test_evaluation_and_its_parts_are_compared_with_the_references_way(tmp_path, what, ratio):
    project = write_shapes_project(tmp_path)
    weights = write_weights(project.root / "untrained.pth")
    run = run_script(*ONCE, "--what", what, *TWO_SMALL, "-p", project.yml, "-w", weights, "-n", "1", cwd=project.root)
    assert_succeeded(run)
    lines = run.stdout.splitlines()
    assert lines[1].split()[:6] == ["median", "ms", "min", "max", "images/s", ratio]
    assert [line[:12].rstrip() for line in lines[2:]] == ["ours", "baseline"]
    assert all(float(line[12:].split()[0]) > 0 for line in lines[2:])
    assert float(lines[3][12:].split()[4]) == 1


def test_the_references_way_gives_the_same():
    project = load_project("shapes")
    rng = np.random.default_rng(0)
    for shape in ((90, 160), (300, 200)):  # enlarged, and made smaller
        picture, letterbox = rng.integers(0, 256, (*shape, 3), np.uint8), Letterbox.fit(shape, (256, 256))
        ours = letterbox.image(picture, project.mean, project.std)
        np.testing.assert_allclose(baseline_prepare(picture, letterbox, project), ours, atol=2e-6)

    outputs = random_outputs(Setting(0, 128, 2, torch.device("cpu")), torch.float32, mean=-5.5, std=1.0)
    ours = postprocess(outputs, 128, 128, 0.05, EVALUATION_IOU_THRESHOLD)
    for found, expected in zip(ours, baseline_postprocess(outputs, 128, 128, 0.05), strict=True):
        assert len(found) > 3
        torch.testing.assert_close(found.boxes, expected.boxes)
        torch.testing.assert_close(found.scores, expected.scores)
        assert torch.equal(found.class_ids, expected.class_ids)


def test_loading_without_the_data_says_what_is_missing(tmp_path):
    run = run_script(*ONCE, "--what", "loader", "-p", "coco_tiny", cwd=tmp_path)
    assert_one_error(run, "datasets/coco_tiny/annotations/instances_")


def test_comparison_without_the_other_package_says_how_to_get_it(tmp_path):
    blocker = tmp_path / "blocker" / "effdet"
    blocker.mkdir(parents=True)
    (blocker / "__init__.py").write_text("raise ImportError('kept out by the test')\n")
    run = run_script(*ONCE, "--compare", "effdet", cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(blocker.parent)})
    assert_one_error(run, "--compare effdet", "pip install effdet")


@pytest.mark.parametrize("objects", [0, 3])
def test_the_baseline_computes_the_same_loss(objects):
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    corners = torch.rand(500, 2, generator=generator, dtype=torch.float64) * 40
    anchors = torch.cat((corners, corners + 20), dim=1)
    logits, deltas = (3 * random(2, 500, 5) - 2).requires_grad_(), random(2, 500, 4).requires_grad_()
    boxes = torch.tensor([[10.0, 10, 28, 30], [30, 5, 52, 25], [20, 30, 40, 51]])[:objects].expand(2, -1, -1)
    truth = Targets(boxes, torch.tensor([[4, 0, 2], [1, -1, -1]])[:, :objects])
    results = []
    for loss in (DetectionLoss(empty_image_normalizer=1), baseline_loss):
        losses = loss(Outputs(logits, deltas, anchors), truth)
        gradients = torch.autograd.grad(losses.total, (logits, deltas), materialize_grads=True)
        results.append((*losses, *gradients))
    assert (results[0][1] > 0) == (objects > 0)
    for ours, baselines in zip(*results):
        torch.testing.assert_close(ours, baselines, rtol=1e-10, atol=1e-14)
