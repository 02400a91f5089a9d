"""Every mode finds the same candidates."""

import shutil

import pytest
import torch
from golden_fill import network_with_statistics, normal_array
from torch import Tensor

from efficientdet.model.network import EfficientDet
from efficientdet.model.postprocess import Candidates, find_candidates
from efficientdet.runtime.modes import MODES, optimize

CPU = torch.device("cpu")
THRESHOLD = 0.5


def images(*shape: int) -> Tensor:
    return torch.from_numpy(normal_array("batch", shape)).float().contiguous(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def d0() -> EfficientDet:
    return network_with_statistics(0).float()


def assert_same(some: Candidates, other: Candidates, tolerance: float = 1e-5) -> None:
    """Compare scores up to `tolerance`, and boxes up to a hundred times that, in pixels."""
    assert len(some.scores) > 100
    assert torch.equal(some.image_indices, other.image_indices)
    torch.testing.assert_close(some.scores, other.scores, rtol=0, atol=tolerance)
    torch.testing.assert_close(some.boxes, other.boxes, rtol=0, atol=100 * tolerance)


def test_nothing_above_the_threshold(d0):
    with torch.inference_mode():
        found = optimize(d0, CPU).find(images(2, 3, 128, 128), 1.0)
    assert [part.shape for part in found] == [(0,), (0, 4), (0,), (0,)]


def test_plain_mode_is_the_network_unchanged(d0):
    batch = images(2, 3, 128, 128)
    with torch.inference_mode():
        expected = find_candidates(d0(batch), 128, 128, THRESHOLD)
        found = optimize(d0, CPU, mode="plain").find(batch, THRESHOLD)
    assert all(map(torch.equal, found, expected))


def test_fused_mode_finds_the_same(d0):
    batch = images(2, 3, 128, 128)
    with torch.inference_mode():
        assert_same(optimize(d0, CPU).find(batch, THRESHOLD), optimize(d0, CPU, mode="plain").find(batch, THRESHOLD))


def test_candidates_may_be_pairs_of_an_anchor_and_a_class_in_every_mode(d0, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    batch = images(2, 3, 128, 128)
    with torch.inference_mode():
        expected = find_candidates(d0(batch), 128, 128, THRESHOLD, multi_label=True)
        assert len(expected.scores) > len(find_candidates(d0(batch), 128, 128, THRESHOLD).scores)
        found = {mode: optimize(d0, CPU, mode=mode).find(batch, THRESHOLD, multi_label=True) for mode in MODES[:3]}
    assert all(map(torch.equal, found["plain"], expected))
    assert all(map(torch.equal, found["compiled"], found["fused"]))
    # By rank: fusing changes the order of pairs whose scores are nearly equal.
    torch.testing.assert_close(found["fused"].scores, expected.scores, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.oldest
@pytest.mark.skipif(not shutil.which("g++"), reason="compiling needs g++")
def test_compiled_mode_finds_the_same_and_compiles_once_for_all_batches(d0):
    fused, compiled = optimize(d0, CPU), optimize(d0, CPU, mode="compiled")
    # Recompiling is an error, as is code that cannot be compiled.
    with torch.inference_mode(), torch._dynamo.config.patch(error_on_recompile=True):
        for count, threshold in ((2, THRESHOLD), (5, THRESHOLD), (3, 0.6), (1, THRESHOLD)):
            batch = images(count, 3, 128, 128).roll(count, dims=-1)
            assert_same(compiled.find(batch, threshold), fused.find(batch, threshold))


@pytest.mark.parametrize(("counts", "passed"), [((1, 4, 1), [1, 4, 1]), ((4, 1, 3), [4, 2, 3])])
def test_a_single_image_after_batches_needs_no_other_graph(d0, monkeypatch, counts, passed):
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    fused, runner, sizes = optimize(d0, CPU), optimize(d0, CPU, mode="compiled"), []
    backbone = runner.network.backbone_net["model"]
    backbone.register_forward_pre_hook(lambda module, arguments: sizes.append(len(arguments[0])))
    with torch.inference_mode():
        for count in counts:
            batch = images(count, 3, 128, 128)
            assert_same(runner.find(batch, THRESHOLD), fused.find(batch, THRESHOLD))
    assert sizes == passed


@pytest.mark.parametrize(
    ("dtype", "exact"), [(torch.bfloat16, ["._conv_stem.", "header."]), (torch.float16, ["._conv_stem."])]
)
@pytest.mark.parametrize("mode", ["plain", "fused"])
def test_half_precision_keeps_the_outermost_layers_exact(d0, dtype, exact, mode):
    network = optimize(d0, CPU, dtype, mode).network
    in_float32 = [name for name, value in network.named_parameters() if value.dtype == torch.float32]
    assert all(any(part in name for part in exact) for name in in_float32)
    assert all(any(part in name for name in in_float32) for part in exact)
    batch = images(1, 3, 128, 128)
    with torch.inference_mode():
        some, other = network(batch).class_logits.float(), d0(batch).class_logits
    assert 0 < (some - other).abs().mean() < 0.02 * other.std()


def test_unknown_modes_are_an_error(d0):
    with pytest.raises(ValueError, match="plain, fused, compiled, cudagraph, not 'fast'"):
        optimize(d0, CPU, mode="fast")
    with pytest.raises(ValueError, match="GPU"):
        optimize(d0, CPU, mode="cudagraph")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_computes_the_same_on_a_gpu(d0, mode, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    gpu = torch.device("cuda")
    expected, runner = optimize(d0, CPU).network, optimize(d0, gpu, mode=mode)
    with torch.inference_mode():
        for number, count in enumerate((2, 1, 2)):
            batch = images(count, 3, 128, 128).roll(number, dims=-1)
            logits, computed = expected(batch).class_logits, runner.network(batch.to(gpu)).class_logits.cpu()
            assert (computed - logits).abs().max() < 1e-3 * logits.std()
            assert len(runner.find(batch.to(gpu), THRESHOLD).scores) > 100
