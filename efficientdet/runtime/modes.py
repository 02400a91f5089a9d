"""The ways to run a trained network in PyTorch, from unchanged to as fast as the hardware allows."""

import copy

import torch
from torch import Tensor, nn

from efficientdet.model.network import EfficientDet
from efficientdet.model.postprocess import Candidates, find_candidates
from efficientdet.project import Project
from efficientdet.runtime.fuse import fuse_for_inference
from efficientdet.runtime.metadata import Suppression
from efficientdet.runtime.runner import measuring
from efficientdet.structures import Outputs
from utils.stopwatch import Stopwatch

MODES = ("plain", "fused", "compiled", "cudagraph")
_MAX_GRAPHS = 16  # input shapes; each holds the memory of its input and outputs


def optimize(
    network: EfficientDet, device: torch.device, dtype: torch.dtype = torch.float32, mode: str = "fused"
) -> "NetworkRunner":
    """Return a copy of `network` that is ready for inference on `device`.

    Args:
        dtype: of weights and activations. In half precision the first convolution stays in float32, because its input
            is the image. In bfloat16 the last convolutions of the heads do as well: eight bits are too coarse for
            logits and box deltas.
        mode: "plain" is the network as trained. "fused" folds batch norms and saves memory traffic
            (`fuse_for_inference`). "compiled" also passes the network and the choice of candidates to torch.compile,
            which takes a minute. "cudagraph" is the fused network, recorded once per input shape and replayed.

    Raises ValueError for an unknown mode, and for "cudagraph" without a GPU.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
    if mode == "cudagraph" and device.type != "cuda":
        raise ValueError("CUDA graphs need a GPU")
    network = copy.deepcopy(network).eval().to(device) if mode == "plain" else fuse_for_inference(network, device)
    stem, heads = network.backbone_net["model"].get_submodule("_conv_stem"), (network.classifier, network.regressor)
    exact_stem, *exact_headers = copy.deepcopy([stem, *(head.header for head in heads)])
    network.to(dtype)
    if dtype in (torch.bfloat16, torch.float16):
        network.backbone_net["model"].register_module("_conv_stem", _InFloat32(exact_stem, dtype))
    if dtype == torch.bfloat16:
        for head, header in zip(heads, exact_headers):
            head.register_module("header", _InFloat32(header, torch.float32))
    runner = CompiledRunner(network, dtype) if mode == "compiled" else NetworkRunner(network, dtype)
    if mode == "cudagraph":
        runner.network = CudaGraphs(network)
    return runner


class _InFloat32(nn.Module):
    """A float32 module inside a network of lower precision, with outputs of `output_dtype`."""

    def __init__(self, module: nn.Module, output_dtype: torch.dtype):
        super().__init__()
        self.module, self.output_dtype = module.float(), output_dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x.float()).to(self.output_dtype)


class NetworkRunner:
    """A network run by PyTorch, as `Runner`."""

    padding = (0, 0, 0)
    takes_any_shape = True
    limits: Suppression | None = None

    def __init__(self, network: EfficientDet, dtype: torch.dtype):
        self.network: nn.Module = network  # images -> `Outputs`
        self.compound_coef = network.compound_coef
        self.size_divisor = network.config.size_divisor
        self.input_dtype = torch.promote_types(dtype, torch.float32)
        self._config = network.config

    def canvas(self, image_size: int | tuple[int, int] | None, project: Project) -> tuple[int, int]:
        """See `Runner.canvas`. The default is the project's size, else the coefficient's."""
        return self._config.input_shape(project.image_size if image_size is None else image_size)

    def find(
        self, images: Tensor, score_threshold: float, stopwatch: Stopwatch | None = None, multi_label: bool = False
    ) -> Candidates:
        """See `Runner.find`."""
        with measuring(stopwatch, "network", images.device):
            outputs = self.network(images)
        with measuring(stopwatch, "post-processing", images.device):
            height, width = images.shape[-2:]
            return find_candidates(outputs, height, width, score_threshold, multi_label)


def compile_network(network: EfficientDet) -> EfficientDet:
    """Return a network that shares all modules with `network`, but runs through torch.compile, to train or to infer.

    Only the anchors, which depend on the shape of the input alone, are looked up outside the graph. `network` itself
    stays uncompiled. PyTorch caches compiled code on disk, so that the next process waits about a quarter as long.
    """
    compiled = copy.copy(network)
    compiled.predict = torch.compile(network.predict, fullgraph=True)  # type: ignore[method-assign]
    return compiled


class CompiledRunner(NetworkRunner):
    """The network and the choice of candidates, compiled: one graph for single images, another for batches."""

    takes_any_shape = False

    def __init__(self, network: EfficientDet, dtype: torch.dtype):
        def find(images: Tensor, anchors: Tensor, score_threshold: Tensor, multi_label: bool) -> Candidates:
            height, width = images.shape[-2:]
            outputs = (*network.predict(images), anchors)
            return find_candidates(outputs, height, width, score_threshold, multi_label)

        super().__init__(network, dtype)
        self._anchors = network.anchors
        self._find = torch.compile(find, fullgraph=True, dynamic=False)
        self._compiled_for: set[str] = set()

    def find(
        self, images: Tensor, score_threshold: float, stopwatch: Stopwatch | None = None, multi_label: bool = False
    ) -> Candidates:
        """See `Runner.find`. All of it counts as "network"."""
        if len(images) == 1 and self._compiled_for == {"batches"}:  # the rest of a data set is not worth a graph
            found = self.find(torch.cat((images, images)), score_threshold, stopwatch, multi_label)
            of_first = found.image_indices == 0
            return Candidates(*(part[of_first] for part in found))
        if len(images) > 1:
            torch._dynamo.mark_dynamic(images, 0)
        self._compiled_for.add("batches" if len(images) > 1 else "single images")
        with measuring(stopwatch, "network", images.device):
            # A Python number as the threshold would be a constant of the graph.
            return self._find(images, self._anchors(images), torch.tensor(score_threshold), multi_label)


class CudaGraphs(nn.Module):
    """A network recorded as a CUDA graph for each input shape: a replay launches all kernels at once."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self._recordings: dict[torch.Size, tuple[torch.cuda.CUDAGraph, Tensor, Outputs]] = {}
        self._pool = torch.cuda.graph_pool_handle()  # shared by all activations: replays take turns

    def forward(self, images: Tensor) -> Outputs:
        """Return the network's outputs, which the next call overwrites. Shapes beyond _MAX_GRAPHS are not recorded."""
        if images.shape not in self._recordings:
            if len(self._recordings) == _MAX_GRAPHS:
                return self.network(images)
            self._record(images)
        graph, inputs, outputs = self._recordings[images.shape]
        inputs.copy_(images)
        graph.replay()
        return outputs

    def _record(self, images: Tensor) -> None:
        with torch.cuda.device(images.device):
            inputs, stream = images.clone(memory_format=torch.channels_last), torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(2):  # libraries initialize before the recording
                    self.network(inputs)
            graph = torch.cuda.CUDAGraph()
            # Other threads prepare images meanwhile, and may allocate memory.
            with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
                outputs = self.network(inputs)
            torch.cuda.current_stream().wait_stream(stream)
        self._recordings[images.shape] = graph, inputs, outputs
