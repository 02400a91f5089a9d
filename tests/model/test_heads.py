"""The prediction heads: the order of their outputs, shared convolutions, batch norms per level."""

import torch

from efficientdet.model.heads import PredictionHead, flatten_anchors


def head(**changes) -> PredictionHead:
    torch.manual_seed(0)
    arguments = {"channels": 4, "outputs_per_anchor": 2, "num_anchors": 3, "num_layers": 2, "num_levels": 2}
    return PredictionHead(**{**arguments, **changes}).double().eval()


def pyramid(batch: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, 4, h, w, generator=generator, dtype=torch.float64) for h, w in ((4, 6), (2, 3))]


def test_no_images():
    assert head()(pyramid(batch=0)).shape == (0, (24 + 6) * 3, 2)


def test_anchors_are_ordered_by_row_and_column():
    # Channels 0 and 1 are the outputs of the first anchor, 2 and 3 of the second; one row of two columns.
    x = torch.tensor([[[[0, 10]], [[1, 11]], [[2, 12]], [[3, 13]]]])
    assert flatten_anchors(x, 2).tolist() == [[[0, 1], [2, 3], [10, 11], [12, 13]]]
    rows = torch.tensor([[[[0], [1], [2]]]])
    assert flatten_anchors(rows, 1).tolist() == [[[0], [1], [2]]]


def test_levels_are_ordered_from_the_finest():
    network, (fine, coarse) = head(), pyramid(batch=2)
    outputs = network([fine, coarse])
    assert outputs.shape == (2, (24 + 6) * 3, 2)
    torch.testing.assert_close(outputs[:, : 24 * 3], network([fine]))


def test_header_bias_is_added_to_each_anchor_in_order():
    network = head()
    header = network.header.pointwise_conv.conv
    torch.nn.init.zeros_(header.weight)
    with torch.no_grad():
        header.bias.copy_(torch.arange(6))
    outputs = network(pyramid())
    assert torch.equal(outputs[0, 3:6], torch.tensor([[0, 1], [2, 3], [4, 5]], dtype=torch.float64))
    assert torch.equal(outputs.reshape(-1, 6), torch.arange(6.0, dtype=torch.float64).expand(30, 6))


def test_each_level_has_separate_batch_norms():
    network, levels = head(), pyramid()
    before = network(levels)
    with torch.no_grad():
        network.bn_list[1][0].bias.add_(1.0)
    after = network(levels)
    assert torch.equal(before[:, :72], after[:, :72])
    assert not torch.isclose(before[:, 72:], after[:, 72:]).all()


def test_levels_share_convolutions():
    network, levels = head(), pyramid()
    before = network(levels)
    with torch.no_grad():
        network.conv_list[0].pointwise_conv.conv.weight.mul_(2.0)
    after = network(levels)
    assert not torch.isclose(before[:, :72], after[:, :72]).all()
    assert not torch.isclose(before[:, 72:], after[:, 72:]).all()


def test_one_convolution_and_norm_per_layer():
    network = head(num_layers=5, num_levels=6)
    assert len(network.conv_list) == 5
    assert [len(norms) for norms in network.bn_list] == [5] * 6
