"""The ways to run a trained network, from as it is to as fast as the hardware lets it."""

import copy

import torch
from torch import Tensor, nn

from efficientdet.anchors import cached_anchors
from efficientdet.fuse import fuse_for_inference
from efficientdet.model import EfficientDet, Outputs
from efficientdet.postprocess import Candidates, find_candidates

MODES = ("plain", "fused", "compiled", "cudagraph")
_MOST_GRAPHS = 16  # input shapes; each holds the memory of its input and outputs


class CandidateFinder(nn.Module):
    """A network with the choice of its candidates: images (N, 3, H, W) and a score threshold -> `Candidates`."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network  # images -> `Outputs`

    def forward(self, images: Tensor, score_threshold: float) -> Candidates:
        return find_candidates(self.network(images), *images.shape[-2:], score_threshold)


def optimize(
    network: EfficientDet, device: torch.device, dtype: torch.dtype = torch.float32, mode: str = "fused"
) -> "CandidateFinder | CompiledFinder":
    """`network` made ready for inference on `device`, for float32 images there.

    Args:
        dtype: of weights and activations. In half precision the first convolution stays in float32, as it sees the
            picture itself; with bfloat16 the last ones, too, whose results eight bits are too coarse for. (On the
            shapes that come with the project that halves, and more, what half precision costs of AP: see README.)
        mode: "plain" is the network as it was trained. "fused" folds batch norms and spares memory and passes over it
            (`fuse_for_inference`). "compiled" also hands network and choice to torch.compile, which takes a minute.
            "cudagraph" is the fused network, recorded once for each input shape and replayed.

    Raises ValueError for an unknown mode, and for "cudagraph" without a GPU.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
    if mode == "cudagraph" and device.type != "cuda":
        raise ValueError("CUDA graphs need a GPU")
    network = network.eval().to(device) if mode == "plain" else fuse_for_inference(network, device)
    network = _in_precision(network, dtype)
    if mode == "compiled":
        return CompiledFinder(network)
    return CandidateFinder(CudaGraphs(network) if mode == "cudagraph" else network)


def _in_precision(network: EfficientDet, dtype: torch.dtype) -> EfficientDet:
    """`network` with weights of `dtype`, changed in place. With half precision it still takes float32 images."""
    backbone, heads = network.backbone_net["model"], (network.classifier, network.regressor)
    exact_stem, *exact_headers = copy.deepcopy([backbone._conv_stem, *(head.header for head in heads)])
    network.to(dtype)
    if dtype in (torch.bfloat16, torch.float16):
        backbone._conv_stem = _InFloat32(exact_stem, dtype)
    if dtype == torch.bfloat16:
        for head, header in zip(heads, exact_headers):
            head.header = _InFloat32(header, torch.float32)
    return network


class _InFloat32(nn.Module):
    """A float32 `module` in a network of less precision, with a result of `output_dtype`."""

    def __init__(self, module: nn.Module, output_dtype: torch.dtype):
        super().__init__()
        self.module = module
        self.output_dtype = output_dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x.float()).to(self.output_dtype)


class CompiledFinder(nn.Module):
    """A `CandidateFinder` that torch.compile has made one graph of: one for single images, one for batches of any size.

    What is compiled is kept on disk by PyTorch, so that the next process waits for a quarter of the time.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        torch._dynamo.config.capture_dynamic_output_shape_ops = True  # the number of candidates
        torch.compiler.assume_constant_result(cached_anchors)  # those of the input's size
        self._find = torch.compile(CandidateFinder(network), fullgraph=True, dynamic=False)
        self._takes_batches = False

    def forward(self, images: Tensor, score_threshold: float) -> Candidates:
        """As `CandidateFinder.forward`."""
        threshold = torch.tensor(score_threshold)  # a number would be compiled in
        if len(images) == 1 and self._takes_batches:  # the rest of a data set, which is not worth another graph
            found = self.forward(torch.cat((images, images)), score_threshold)
            first = found.image_ids == 0
            return Candidates(*(part[first] for part in found))
        if len(images) > 1:
            torch._dynamo.mark_dynamic(images, 0)
            self._takes_batches = True
        return self._find(images, threshold)


class CudaGraphs(nn.Module):
    """`network`, recorded as a CUDA graph for each shape of its input: a replay launches all kernels at once."""

    def __init__(self, network: nn.Module):
        super().__init__()
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
        # The next replay writes over them, but candidates are copies: nobody holds these any longer.
        return outputs

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
