"""Two processes that train together do what one does with the same images."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from scripts import (
    REPOSITORY,
    SMALL,
    TRAIN,
    assert_one_error,
    assert_succeeded,
    command,
    run_main,
    run_script,
    untrained,
)

import train
from utils import distributed
from utils.errors import InputError

# Gradients of a step of two processes with two images each, or of one process with all four. Drop-connect and batch
# norm statistics depend on the process, so both are disabled.
GRADIENTS = """
import sys
import torch
from torch.nn.parallel import DistributedDataParallel
from efficientdet.training.activation_checkpointing import checkpoint_activations
from efficientdet.data.loader import Batch
from efficientdet.training.step import TrainingStep, set_training_mode
from efficientdet.model.loss import DetectionLoss
from efficientdet.structures import Targets
from efficientdet.model.network import EfficientDet
from utils import distributed

compound_coef, normalize, accumulate, output = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
with distributed.process_group(torch.device("cpu")):
    torch.manual_seed(0)
    network = EfficientDet(compound_coef, num_classes=3)
    side = network.config.size_divisor
    images = torch.randn(4, 3, side, side)
    boxes = torch.tensor([[10.0, 10, 60, 50], [50, 40, 120, 120]]).expand(4, 2, 4) + torch.arange(4.0)[:, None, None]
    class_ids = torch.tensor([[0, 1], [2, -1], [-1, -1], [1, 1]])
    set_training_mode(network, freeze_bn=True)
    for block in network.backbone_net["model"]._blocks:
        block.drop_rate = 0.0
    network.double()
    if "checkpointed" in sys.argv:
        checkpoint_activations(network)
    rank, world = distributed.rank(), distributed.world_size()
    parallel = DistributedDataParallel(network) if world > 1 else network
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.0)
    loss = DetectionLoss(
        normalize=normalize, num_processes=world, all_reduce_sum=distributed.all_reduce_sum
    )
    step = TrainingStep(parallel, loss, optimizer)
    # Micro-batch k starts at image 4 / accumulate * k; each process has its part of each.
    size = 4 // accumulate // world
    batches = []
    for k in range(accumulate):
        part = slice(4 // accumulate * k + size * rank, 4 // accumulate * k + size * (rank + 1))
        targets = Targets(boxes[part].double(), class_ids[part])
        batches.append(Batch(images[part].double(), targets, [], list(range(4))[part]))
    result = step(batches)
    if rank == 0:
        gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
        torch.save({"gradients": gradients, "losses": tuple(result.losses), "norm": result.gradient_norm}, output)
"""


def environment() -> dict[str, str]:
    repository = str(Path(__file__).resolve().parents[2])
    return {**os.environ, "PYTHONPATH": repository, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def torchrun(*args: str | Path, cwd: Path, **kwargs) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return subprocess.run(
        [*launcher, *map(str, args)], cwd=cwd, env=environment(), capture_output=True, text=True, timeout=500, **kwargs
    )


def test_one_process_alone():
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert not distributed.is_launched()
    assert distributed.any_rank() == []
    assert distributed.any_rank(True, False) == [True, False]
    assert distributed.all_gather("mine") == ["mine"]
    assert distributed.broadcast_from_rank0(lambda: 5) == 5
    assert torch.equal(distributed.all_reduce_sum(torch.tensor([1.0, 2.0])), torch.tensor([1.0, 2.0]))
    assert distributed.local_batch_size(12) == 12
    with pytest.raises(InputError, match="mine"), distributed.report_once():
        raise InputError("mine")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("compound_coef", "normalize", "accumulate", "activations"),
    [
        (0, "image", 1, "kept"),
        (0, "batch", 1, "kept"),
        (0, "image", 2, "checkpointed"),
        (6, "batch", 1, "kept"),
    ],
)
def test_gradients_of_two_processes_equal_those_of_one(tmp_path, compound_coef, normalize, accumulate, activations):
    script = tmp_path / "gradients.py"
    script.write_text(GRADIENTS)
    args = (script, compound_coef, normalize, accumulate)
    alone = subprocess.run(
        [sys.executable, *map(str, args), "one.pt"], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert alone.returncode == 0, alone.stderr
    both = torchrun(*args, "two.pt", activations, cwd=tmp_path)
    assert both.returncode == 0, both.stderr
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("one.pt", "two.pt"))
    assert one["gradients"].keys() == two["gradients"].keys() and len(one["gradients"]) > 100
    for name, gradient in one["gradients"].items():
        scale = gradient.abs().max().item() or 1.0
        assert (gradient - two["gradients"][name]).abs().max().item() <= 1e-6 * scale, name
    for first, second in zip(one["losses"], two["losses"]):
        assert torch.allclose(first, second, rtol=1e-6)
    assert one["norm"] == pytest.approx(two["norm"], rel=1e-6) and one["norm"] > 0


@pytest.mark.slow
def test_collectives_of_two_processes(tmp_path):
    script = tmp_path / "collectives.py"
    script.write_text(
        textwrap.dedent("""
        import json, torch
        from efficientdet.training.norm_statistics import average_over_processes
        from utils import distributed
        from utils.errors import InputError

        def fail():
            raise InputError("only rank 0 knows")

        with distributed.process_group(torch.device("cpu")):
            rank = distributed.rank()
            norm = torch.nn.BatchNorm1d(1)
            norm.running_mean.fill_(rank)
            average_over_processes(norm)
            said = {
                "statistics": [norm.running_mean.item(), norm.running_var.item()],
                "flags": distributed.any_rank(rank == 1, False),
                "all_gather": distributed.all_gather(rank * 10),
                "from_0": distributed.broadcast_from_rank0(lambda: rank + 5),
                "sum": distributed.all_reduce_sum(torch.tensor([1.0, rank])).tolist(),
                "share": distributed.local_batch_size(6),
            }
            try:
                distributed.broadcast_from_rank0(fail)
            except InputError as error:
                said["error"] = str(error)
            open(f"{rank}.json", "w").write(json.dumps(said))
    """)
    )
    run = torchrun(script, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    for rank in (0, 1):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == {
            "statistics": [0.5, 1.0],
            "flags": [True, False], "all_gather": [0, 10], "from_0": 5, "sum": [2.0, 1.0], "share": 3,
            "error": "only rank 0 knows",
        }  # fmt: skip


@pytest.mark.slow
def test_training_under_torchrun_validates_every_image_once_and_resumes(shapes_project):
    script, *args = command(*TRAIN, "--num_epochs", "1", "--freeze_bn", "--lr", "1e-9")[1:]
    run = torchrun(script, *args, cwd=shapes_project.root)
    assert_succeeded(run)
    assert "on 2 processes" in run.stdout
    assert len(re.findall("^epoch 1: train loss", run.stdout, re.MULTILINE)) == 1  # only rank 0 prints
    state = torch.load(shapes_project.root / "logs/drawn/efficientdet-d0_last.state", weights_only=True)
    assert state["progress"]["step"] == 3 and len(state["random"]) == 2
    row = state["progress"]["history"][0]

    alone = run_main(train, *TRAIN[1:], "--num_epochs", "1", "--freeze_bn", "--lr", "1e-9", cwd=shapes_project.root)
    assert_succeeded(alone)
    state = torch.load(shapes_project.root / "logs/drawn/efficientdet-d0_last.state", weights_only=True)
    for column in ("val_loss", "AP", "AP50"):
        assert row[column] == pytest.approx(state["progress"]["history"][0][column], rel=1e-5), column

    more = torchrun(script, *args, "--num_epochs", "2", "-w", "last", cwd=shapes_project.root)
    assert_succeeded(more)
    assert more.stdout.count("resuming ") == 1


@pytest.mark.slow
def test_a_signal_that_reaches_one_process_later_is_not_a_second_one(tmp_path):
    script = tmp_path / "late.py"
    script.write_text(
        textwrap.dedent("""
        import os, signal, torch
        from train import steps
        from utils import distributed
        from utils.stop import StopRequest

        with distributed.process_group(torch.device("cpu")), StopRequest() as stop:
            if distributed.rank() == 0:
                os.kill(os.getpid(), signal.SIGINT)
            assert list(steps([["batch"]], 1, stop)) == [] and stop.agreed
            if distributed.rank() == 1:
                os.kill(os.getpid(), signal.SIGINT)
            distributed.any_rank()  # as saving would
    """)
    )
    run = torchrun(script, cwd=tmp_path)
    assert run.returncode == 0, run.stderr


@pytest.mark.slow
def test_ctrl_c_saves_once(shapes_project):
    process = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
         *command(*TRAIN, "--batch_size", "4", "--save_interval", "2", "--keep", "0")[1:]],
        cwd=shapes_project.root, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        start_new_session=True,
    )  # fmt: skip
    said, interrupted = "", False
    for line in process.stdout:
        said += line
        if line.startswith("saved") and not interrupted:
            interrupted = True
            os.killpg(process.pid, signal.SIGINT)
    process.wait(timeout=100)
    assert said.count("--load_weights last") == 1
    assert re.findall(r"^saved .*", said, re.MULTILINE)[-1]
    state = torch.load(shapes_project.root / "logs/drawn/efficientdet-d0_last.state", weights_only=True)
    assert 1 <= state["progress"]["step"] < 500


@pytest.mark.slow
def test_a_mistake_is_reported_once(shapes_project):
    script, *args = command(*TRAIN, "--batch_size", "3")[1:]
    run = torchrun(script, *args, cwd=shapes_project.root)
    run.stderr = "\n".join(line for line in run.stderr.splitlines() if line.startswith("error:"))  # not torchrun's own
    assert_one_error(run, "--batch_size 3")


@pytest.mark.slow
def test_one_command_starts_the_processes(tmp_path):
    script = tmp_path / "started.py"
    script.write_text(
        textwrap.dedent("""
        import sys, torch
        from utils import distributed
        if not distributed.is_launched():
            distributed.launch_processes(2)
        with distributed.process_group(torch.device("cpu")):
            distributed.any_rank()  # a process that exits must not cut off another that still connects
            open(f"rank{distributed.rank()}of{distributed.world_size()}", "w").write(" ".join(sys.argv[1:]))
            if "fail" in sys.argv:
                sys.exit(3)
    """)
    )
    run = subprocess.run(
        [sys.executable, script, "a", "b"], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "rank0of2").read_text() == (tmp_path / "rank1of2").read_text() == "a b"
    run = subprocess.run(
        [sys.executable, script, "fail"], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert run.returncode == 3 and "Traceback" not in run.stderr, run.stderr


@pytest.mark.slow
def test_evaluation_is_shared_by_processes(shapes_project):
    root = shapes_project.root
    network = untrained()
    with torch.no_grad():
        network.classifier.header.pointwise_conv.conv.bias += 4  # scores about 0.4
    torch.save(network.state_dict(), root / "sees.pth")
    # One image a pass, since batches of another size may differ in the last digit.
    args = ("-p", "drawn", *SMALL, "-w", "sees.pth", "--set", "train", "--batch_size", "1", "--max_detections", "9")
    results = root / "logs/drawn/train_bbox_results.json"
    assert_succeeded(run_script("coco_eval.py", *args, cwd=root))
    alone = json.loads(results.read_text())
    assert len(alone) == 6 * 9
    results.unlink()

    run = torchrun(REPOSITORY / "coco_eval.py", *args, cwd=root)
    assert_succeeded(run)
    assert run.stdout.count("IoU=0.50:0.95 | area=   all | maxDets=100") == 2  # precision and recall, printed once
    shared = json.loads(results.read_text())
    for key in ("image_id", "category_id"):
        assert [entry[key] for entry in shared] == [entry[key] for entry in alone]
    assert [entry["score"] for entry in shared] == pytest.approx([entry["score"] for entry in alone], rel=1e-4)

    (shapes_project.data / "train" / "000012.jpg").write_text("no image")  # the second, which rank 1 loads
    run = torchrun(REPOSITORY / "coco_eval.py", *args, cwd=root)
    assert run.returncode != 0 and "train/000012.jpg" in run.stderr
