"""The compiled network alone, without the choice of candidates."""

from functools import partial

import pytest
import torch
from golden_fill import network_with_statistics, normal_array

from efficientdet.runtime.modes import compile_network


@pytest.mark.slow
@pytest.mark.oldest
def test_compiled_network_returns_the_same_outputs_and_gradients(monkeypatch):
    # Everything but code generation, which takes minutes; test_modes.py includes it.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    network = network_with_statistics(0).float()
    images = torch.from_numpy(normal_array("batch", (2, 3, 128, 128))).float()

    results = []
    for run in (network, compile_network(network)):
        network.zero_grad()
        outputs = run(images)
        (outputs.class_logits.sigmoid().sum() + outputs.box_deltas.square().sum()).backward()
        results.append((outputs, {name: value.grad for name, value in network.named_parameters()}))
    (expected, expected_gradients), (found, gradients) = results
    torch.testing.assert_close(found, expected)
    assert found.anchors is expected.anchors
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-3, atol=1e-4)
