"""The ways to run a trained network, from as it is to as fast as the hardware lets it."""

import copy

import torch
from torch import Tensor, nn

from efficientdet.model.network import EfficientDet
from efficientdet.model.postprocess import Candidates, find_candidates
from efficientdet.runtime.fuse import fuse_for_inference
from efficientdet.structures import Outputs

MODES = ("plain", "fused", "compiled", "cudagraph")
_MOST_GRAPHS = 16  # input shapes; each holds the memory of its input and outputs
_HALF = (torch.bfloat16, torch.float16)


class CandidateFinder(nn.Module):
    """A network with the choice of its candidates: images (N, 3, H, W) and a score threshold -> `Candidates`."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network  # images -> `Outputs`

    def forward(self, images: Tensor, score_threshold: float) -> Candidates:
        height, width = images.shape[-2:]
        return find_candidates(self.network(images), height, width, score_threshold)


def optimize(
    network: EfficientDet, device: torch.device, dtype: torch.dtype = torch.float32, mode: str = "fused"
) -> "CandidateFinder | CompiledFinder":
    """`network` made ready for inference on `device`, for float32 images there.

    Args:
        dtype: of weights and activations. In half precision the first convolution stays in float32, as it sees the
            image itself. In bfloat16 the heads' last convolutions do, too: eight bits are too coarse for logits and
            box deltas.
        mode: "plain" is the network as it was trained. "fused" folds batch norms and spares memory and passes over it
            (`fuse_for_inference`). "compiled" also hands network and choice to torch.compile, which takes a minute.
            "cudagraph" is the fused network, recorded once for each input shape and replayed.

    Raises ValueError for an unknown mode, and for "cudagraph" without a GPU.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
    if mode == "cudagraph" and device.type != "cuda":
        raise ValueError("CUDA graphs need a GPU")
    network = copy.deepcopy(network).eval().to(device) if mode == "plain" else fuse_for_inference(network, device)
    if dtype in _HALF:
        _halve(network, dtype)
    else:
        network.to(dtype)
    if mode == "compiled":
        return CompiledFinder(network)
    return CandidateFinder(CudaGraphs(network) if mode == "cudagraph" else network)


def _halve(network: EfficientDet, dtype: torch.dtype) -> None:
    """Give `network` weights of `dtype` but for its outermost layers; it still takes float32 images."""
    backbone, heads = network.backbone_net["model"], (network.classifier, network.regressor)
    exact_stem, *exact_headers = copy.deepcopy([backbone.get_submodule("_conv_stem"), *(head.header for head in heads)])
    network.to(dtype)
    backbone.register_module("_conv_stem", _InFloat32(exact_stem, dtype))
    if dtype == torch.bfloat16:
        for head, header in zip(heads, exact_headers):
            head.register_module("header", _InFloat32(header, torch.float32))


class _InFloat32(nn.Module):
    """`module` in float32, inside a network of less precision, with a result of `output_dtype`."""

    def __init__(self, module: nn.Module, output_dtype: torch.dtype):
        super().__init__()
        self.module = module.float()
        self.output_dtype = output_dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x.float()).to(self.output_dtype)


class _CompiledNetwork(nn.Module):
    def __init__(self, network: EfficientDet):
        super().__init__()
        self.network = network
        self._predict = torch.compile(network.predict, fullgraph=True)

    def forward(self, images: Tensor) -> Outputs:
        return Outputs(*self._predict(images), self.network.anchors(images))


def compile_network(network: EfficientDet) -> nn.Module:
    """Return a module with the parameters of `network` that runs it through torch.compile, for inference or training.

    Only the anchors, which depend on the shape of the input alone, are looked up outside the graph. `network` itself
    stays uncompiled. PyTorch caches compiled code on disk, so that the next process waits about a quarter as long.
    """
    return _CompiledNetwork(network)


class CompiledFinder(nn.Module):
    """A compiled `CandidateFinder`: one graph for single images, another for batches of any size."""

    def __init__(self, network: EfficientDet):
        super().__init__()
        self.network = network
        self._find = torch.compile(self._find_in_graph, fullgraph=True, dynamic=False)
        self._compiled_for: set[str] = set()

    def forward(self, images: Tensor, score_threshold: float) -> Candidates:
        """As `CandidateFinder.forward`."""
        if len(images) == 1 and self._compiled_for == {"batches"}:  # the rest of a data set is not worth a graph
            found = self.forward(torch.cat((images, images)), score_threshold)
            of_first = found.image_indices == 0
            return Candidates(*(part[of_first] for part in found))
        if len(images) > 1:
            torch._dynamo.mark_dynamic(images, 0)
        self._compiled_for.add("batches" if len(images) > 1 else "single images")
        anchors = self.network.anchors(images)
        return self._find(images, anchors, torch.tensor(score_threshold))  # a number would be compiled in

    def _find_in_graph(self, images: Tensor, anchors: Tensor, score_threshold: Tensor) -> Candidates:
        height, width = images.shape[-2:]
        return find_candidates((*self.network.predict(images), anchors), height, width, score_threshold)


class CudaGraphs(nn.Module):
    """`network`, recorded as a CUDA graph for each shape of its input: a replay launches all kernels at once."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self._recordings: dict[torch.Size, tuple[torch.cuda.CUDAGraph, Tensor, Outputs]] = {}
        self._pool = torch.cuda.graph_pool_handle()  # one memory for all activations: replays take turns

    def forward(self, images: Tensor) -> Outputs:
        """As `network`, but the next call overwrites the result. Shapes beyond _MOST_GRAPHS are not recorded."""
        if images.shape not in self._recordings:
            if len(self._recordings) == _MOST_GRAPHS:
                return self.network(images)
            with torch.cuda.device(images.device):
                self._recordings[images.shape] = self._record(images)
        graph, inputs, outputs = self._recordings[images.shape]
        inputs.copy_(images)
        graph.replay()
        return outputs

    def _record(self, images: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Outputs]:
        inputs = images.clone(memory_format=torch.channels_last)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries set themselves up before the recording
            for _ in range(2):
                self.network(inputs)
        graph = torch.cuda.CUDAGraph()
        # Other threads prepare images meanwhile, and may ask for memory.
        with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
            outputs = self.network(inputs)
        torch.cuda.current_stream().wait_stream(stream)
        return graph, inputs, outputs
