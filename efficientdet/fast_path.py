"""The ways to run a trained network, from as it is to as fast as the hardware lets it."""

import torch
from torch import Tensor, nn

from efficientdet.fuse import fuse_for_inference
from efficientdet.model import EfficientDet, Outputs

MODES = ("plain", "fused", "compiled", "cudagraph")
_MOST_GRAPHS = 16  # input shapes; each holds the memory of its input and outputs


def optimize(
    network: EfficientDet, device: torch.device, dtype: torch.dtype = torch.float32, mode: str = "fused"
) -> nn.Module:
    """`network` made ready for inference on `device`: images (N, 3, H, W) of `dtype` there -> `Outputs`.

    Args:
        mode: "plain" is the network as it was trained. "fused" folds batch norms and spares memory and passes over it
            (`fuse_for_inference`). "compiled" also hands it to torch.compile: the first batch waits a minute or two.
            "cudagraph" is the fused network, recorded once for each input shape and replayed.

    Raises ValueError for an unknown mode, and for "cudagraph" without a GPU.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
    if mode == "plain":
        return network.eval().to(device, dtype)
    fused = fuse_for_inference(network, device).to(dtype)
    if mode == "compiled":
        return torch.compile(fused, fullgraph=True)
    if mode == "cudagraph":
        return CudaGraphs(fused)
    return fused


class CudaGraphs(nn.Module):
    """`network`, recorded as a CUDA graph for each shape of its input: a replay launches all kernels at once."""

    def __init__(self, network: nn.Module):
        super().__init__()
        if next(network.parameters()).device.type != "cuda":
            raise ValueError("CUDA graphs need a GPU")
        self.network = network
        self._recordings: dict[torch.Size, tuple[torch.cuda.CUDAGraph, Tensor, Outputs]] = {}

    def forward(self, images: Tensor) -> Outputs:
        """As `network`. Shapes beyond the first _MOST_GRAPHS run without a recording."""
        if images.shape not in self._recordings:
            if len(self._recordings) == _MOST_GRAPHS:
                return self.network(images)
            self._recordings[images.shape] = self._record(images)
        graph, inputs, outputs = self._recordings[images.shape]
        inputs.copy_(images)
        graph.replay()
        return Outputs(outputs.class_logits.clone(), outputs.box_deltas.clone(), outputs.anchors)

    def _record(self, images: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Outputs]:
        inputs = images.clone(memory_format=torch.channels_last)
        side_stream = torch.cuda.Stream(images.device)
        side_stream.wait_stream(torch.cuda.current_stream(images.device))
        with torch.cuda.stream(side_stream):  # libraries set themselves up before the recording
            for _ in range(2):
                self.network(inputs)
        torch.cuda.current_stream(images.device).wait_stream(side_stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = self.network(inputs)
        return graph, inputs, outputs
