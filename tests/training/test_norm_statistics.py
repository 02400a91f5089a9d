"""Statistics of batch norms, estimated anew."""

import copy

import pytest
import torch
from tiny import TinyNetwork, tiny_batch

from efficientdet.data.dataset import SampleKey
from efficientdet.training.norm_statistics import average_over_processes, estimate, images_for_statistics
from utils.stop import StopRequest


def buffers(network):
    return [buffer.clone() for buffer in network.buffers()]


def test_without_batches_the_statistics_stay():
    network = TinyNetwork().train()
    before = buffers(network)
    average = copy.deepcopy(network).eval()
    estimate(average, network, [], None, StopRequest())
    assert all(map(torch.equal, average.buffers(), before))
    assert not average.norm.training


def test_statistics_are_the_means_over_the_batches():
    network = TinyNetwork().train()
    average = copy.deepcopy(network).eval()
    average.norm.running_mean.fill_(100.0)
    batches = [tiny_batch(seed) for seed in range(3)]
    estimate(average, network, batches, None, StopRequest())
    with torch.no_grad():
        features = [average.stem(batch.images) for batch in batches]
    means = torch.stack([feature.mean(dim=(0, 2, 3)) for feature in features])
    variances = torch.stack([feature.transpose(0, 1).flatten(1).var(dim=1) for feature in features])
    torch.testing.assert_close(average.norm.running_mean, means.mean(dim=0))
    torch.testing.assert_close(average.norm.running_var, variances.mean(dim=0))
    assert average.norm.momentum == 0.1 and not average.training and not average.norm.training


def test_frozen_norms_keep_theirs():
    network = TinyNetwork().train()
    network.norm.eval()
    average = copy.deepcopy(network).eval()
    before = buffers(average)
    estimate(average, network, [tiny_batch()], None, StopRequest())
    assert all(map(torch.equal, average.buffers(), before))


def test_single_process_averages_with_itself_alone():
    network = TinyNetwork()
    network.norm.running_mean.fill_(3.0)
    average_over_processes(network)
    assert torch.equal(network.norm.running_mean, torch.full((8,), 3.0))


@pytest.mark.parametrize(
    ("images", "batch_size", "expected"),
    [
        (1, 4, [0]),
        (3, 4, [0, 1, 2]),
        (5, 4, [0, 1, 2, 3]),
        (8, 4, list(range(8))),
        (401, 50, list(range(0, 300, 3))[:100]),
    ],
)
def test_images_are_spread_over_the_set_in_whole_batches(images, batch_size, expected):
    assert images_for_statistics(images, batch_size) == [SampleKey(index, 0) for index in expected]


def test_request_to_stop_ends_the_estimation():
    network = TinyNetwork().train()
    average, stop, drawn = copy.deepcopy(network).eval(), StopRequest(), []
    stop.received = True
    estimate(average, network, (drawn.append(seed) or tiny_batch(seed) for seed in range(3)), None, stop)
    assert drawn == [0] and not average.norm.training
