"""coco_eval.py: detections to a results file, and COCO's twelve numbers."""

import io
import json
import re
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from scripts import SMALL, assert_succeeded, run_script, untrained, write_shapes_project, write_weights

import coco_eval
from efficientdet.data.shapes import write_shapes
from efficientdet.inference.options import DetectionOptions
from efficientdet.training.checkpoints import Checkpoints
from utils.errors import InputError

SHAPES_AP = 0.861  # of weights/efficientdet-d0_shapes.pth, on the first 40 images to validate
AUTOML_AP = 0.873


def evaluate(folder: Path, *args: str | Path) -> SimpleNamespace:
    """Run the script in this process, in `folder`. Return its stdout and stderr."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(stdout), redirect_stderr(stderr):
        patch.chdir(folder)
        coco_eval.main(coco_eval.parse_args(["-p", "drawn", *SMALL, "-n", "0", *map(str, args)]))
    return SimpleNamespace(stdout=stdout.getvalue(), stderr=stderr.getvalue())


def coco_numbers(stdout: str) -> list[float]:
    """Return the numbers of COCO's twelve lines, which must be the last."""
    lines = stdout.rstrip().splitlines()[-12:]
    numbers = [re.fullmatch(r" Average (?:Precision|Recall) +\(A[PR]\) .* = (-?[01]\.\d{3})", line) for line in lines]
    assert all(numbers), stdout
    return [float(number[1]) for number in numbers]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> SimpleNamespace:
    """A project, weights that detect nothing, and their evaluation."""
    project = write_shapes_project(tmp_path_factory.mktemp("evaluated"))
    weights = write_weights(project.root / "untrained.pth")
    run = evaluate(project.root, "-w", weights, "--batch_size", "2")
    return SimpleNamespace(project=project, weights=weights, run=run)


def test_nothing_detected_is_a_result(evaluated):
    assert "0 detections in 3 images -> logs/drawn/val_bbox_results.json" in evaluated.run.stdout
    assert json.loads((evaluated.project.root / "logs/drawn/val_bbox_results.json").read_text()) == []
    numbers = coco_numbers(evaluated.run.stdout)
    assert numbers[0] == 0 and max(numbers) == 0


def test_images_per_second_are_shown(evaluated):
    assert re.search(r"val on \S+: 100%.* 3/3 .*(image/s|s/image)", evaluated.run.stderr)


@pytest.mark.slow
def test_weights_of_the_project_detect_its_shapes(tmp_path):
    write_shapes(tmp_path / "datasets" / "shapes", train_images=0, val_images=40)
    run = run_script("coco_eval.py", "-p", "shapes", "-n", "0", cwd=tmp_path)
    assert_succeeded(run)
    assert coco_numbers(run.stdout)[0] == pytest.approx(SHAPES_AP, abs=0.005)
    run = run_script("coco_eval.py", "-p", "shapes", "-n", "0", "--protocol", "automl", cwd=tmp_path)
    assert_succeeded(run)
    assert "4000 detections in 40 images" in run.stdout
    assert coco_numbers(run.stdout)[0] == pytest.approx(AUTOML_AP, abs=0.005)


def test_override_false_scores_the_existing_file(evaluated, shapes_project):
    ground_truth = json.loads((shapes_project.data / "annotations/instances_val.json").read_text())["annotations"]
    results = [
        {key: annotation[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9}
        for annotation in ground_truth
    ]
    path = shapes_project.root / "logs/drawn/val_bbox_results.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(results))
    run = evaluate(shapes_project.root, "--override", "False")  # needs no weights
    assert str(path.relative_to(shapes_project.root)) in run.stdout
    assert coco_numbers(run.stdout)[0] == 1
    assert json.loads(path.read_text()) == results


def test_results_of_any_detector_are_scored_and_reported_without_weights(shapes_project):
    ground_truth = json.loads((shapes_project.data / "annotations/instances_val.json").read_text())["annotations"]
    results = [
        {"image_id": str(annotation["image_id"]), "category_id": annotation["category_id"], "score": 0.9}
        | {"bbox": annotation["bbox"], "area": 5}
        for annotation in ground_truth[1:]
    ]
    (shapes_project.root / "theirs.json").write_text(json.dumps(results))
    run = evaluate(shapes_project.root, "--results", "theirs.json", "--report")
    assert 0 < coco_numbers(run.stdout)[0] < 1
    assert re.search(r"^class +boxes +AP .*\n(square|disc) +\d", run.stdout, re.MULTILINE)
    (folder,) = (shapes_project.root / "logs/drawn").glob("eval-val-theirs-*")
    assert str(folder.relative_to(shapes_project.root)) in run.stdout
    assert "1 missed" in (folder / "report.html").read_text()
    numbers = json.loads((folder / "report.json").read_text())
    assert numbers["numbers"]["AP"] == pytest.approx(coco_numbers(run.stdout)[0], abs=5e-4)
    assert not (shapes_project.root / "logs/drawn/val_bbox_results.json").exists()


def test_results_that_cannot_be_scored_are_an_error(shapes_project):
    (shapes_project.root / "theirs.json").write_text('[{"image_id": 1}]')
    with pytest.raises(InputError, match=r"theirs\.json"):
        evaluate(shapes_project.root, "--results", "theirs.json")


@pytest.mark.slow
def test_last_is_the_newest_checkpoint_and_results_have_the_ids_of_the_data_set(shapes_project):
    network = untrained()
    with torch.no_grad():
        network.classifier.header.pointwise_conv.conv.bias += 6  # scores about 0.8 instead of 0.01
    checkpoints = Checkpoints(shapes_project.root / "logs/drawn", 0)
    checkpoints.save(untrained(), {}, 1, 3)
    checkpoints.save(network, {}, 2, 6).unlink()  # `last` needs no other file
    checkpoints.save_best(untrained())
    run = evaluate(shapes_project.root, "-w", "last", "--nms_threshold", "0.9", "--set", "train")
    results = json.loads((shapes_project.root / "logs/drawn/train_bbox_results.json").read_text())
    assert f"{len(results)} detections in 6 images" in run.stdout
    assert {result["image_id"] for result in results} == set(shapes_project.train_ids)
    assert {result["category_id"] for result in results} == {3, 7}
    for result in results:
        x, y, width, height = result["bbox"]
        assert x >= 0 and y >= 0 and width >= 0 and height >= 0 and x + width <= 160 and y + height <= 160
    assert len(coco_numbers(run.stdout)) == 12

    # The best weights are others, which detect nothing.
    run = evaluate(shapes_project.root, "-w", "best")
    assert "0 detections in 3 images" in run.stdout


@pytest.mark.parametrize("name", ["last", "best"])
def test_last_or_best_without_a_checkpoint_is_an_error(shapes_project, name):
    with pytest.raises(InputError, match=f"(?s)(?=.*{name})(?=.*logs/drawn)"):
        evaluate(shapes_project.root, "-w", name)


def test_float16_needs_a_gpu(evaluated):
    with pytest.raises(InputError, match="--float16.*GPU"):
        evaluate(evaluated.project.root, "-w", evaluated.weights, "--float16", "--cuda", "False")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_without_a_gpu_says_what_to_pass(evaluated):
    with pytest.raises(InputError, match="CUDA device 0.*--cuda False"):
        evaluate(evaluated.project.root, "-w", evaluated.weights, "--cuda", "True")


def test_iou_threshold_has_two_spellings():
    values = [coco_eval.parse_args([flag, "0.4"]).iou_threshold for flag in ("--nms_threshold", "--iou_threshold")]
    assert values == [0.4, 0.4]


def test_protocol_sets_what_other_flags_leave_open():
    def options(*flags: str) -> DetectionOptions:
        return coco_eval.detection_options(coco_eval.parse_args(flags))

    automl = DetectionOptions(0.001, 0.5, 100, soft_nms=True, multi_label=True)
    assert options() == options("--protocol", "reference", "--nms", "hard") == DetectionOptions(0.05, 0.5)
    assert options("--nms", "soft") == DetectionOptions(0.05, 0.5, soft_nms=True)
    assert options("--protocol", "automl") == options("--protocol", "automl", "--nms", "soft") == automl
    assert options("--protocol", "automl", "--max_detections", "300").max_detections == 300
    assert options("--iou_threshold", "0.4", "--flip") == DetectionOptions(0.05, 0.4, flip=True)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--protocol", "automl", "--nms", "hard"), "--protocol automl.*leave --nms hard out"),
        (("--protocol", "automl", "--iou_threshold", "0.5"), "soft-NMS.*leave --iou_threshold out"),
        (("--nms", "soft", "--nms_threshold", "0.5"), "soft-NMS.*leave --iou_threshold out"),
        (("--nms", "soft", "--flip"), "soft-NMS.*leave --flip"),
    ],
)
def test_contradictory_flags_are_an_error(evaluated, flags, named):
    with pytest.raises(InputError, match=named):
        evaluate(evaluated.project.root, "-w", evaluated.weights, *flags)
