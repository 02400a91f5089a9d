"""Measure the speed of the detector, from a normalised batch to its detections.

  python benchmark.py                     D0, one picture at a time, on the GPU if there is one
  python benchmark.py -c 3 --batch_size 8
  python benchmark.py --compare effdet    beside the same model of the package effdet (pip install effdet)

The contenders take turns within one run, so that their ratios hold when the machine's speed drifts. "plain" is the
network as trained: unfused, contiguous in memory. Weights are random; the score threshold is set where 1,000 anchors
per picture pass it, so that post-processing has real work.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

from efficientdet.evaluate import EVALUATION_IOU_THRESHOLD
from efficientdet.fuse import fuse_for_inference
from efficientdet.model import EfficientDet
from efficientdet.postprocess import postprocess
from utils.cli import BOOLEAN, non_negative_int, positive_int
from utils.device import chosen_device
from utils.errors import InputError, exit_on_input_error

CANDIDATES = 1000


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("-c", "--compound_coef", type=int, default=0, choices=range(9), help="D0 to D7, 8 is D7X (default: 0)")
    add("--batch_size", type=positive_int, default=1, help="images per pass (default: 1)")
    add("--cuda", **BOOLEAN, help="run on a GPU (default: if there is one)")
    add("--device", type=non_negative_int, default=0, help="which GPU (default: 0)")
    add("--compare", nargs="*", choices=("effdet",), default=[], help="other implementations to measure beside ours")
    add("--runs", type=positive_int, default=15, help="counted passes of each contender (default: 15)")
    add("--warmup", type=non_negative_int, default=3, help="passes of each before them (default: 3)")
    return parser.parse_args()


@torch.inference_mode()
def main(args: argparse.Namespace) -> None:
    device = chosen_device(args.cuda, args.device)
    torch.manual_seed(0)
    network = EfficientDet(args.compound_coef).eval()
    side = network.config.input_size
    images = torch.randn(args.batch_size, 3, side, side)
    print(f"D{args.compound_coef} at {side} x {side}, batch {args.batch_size}, float32, {describe(device)}")

    network.to(device)
    contenders = {"ours": ours(network, images.to(device)), "ours, plain": plain(network, images.to(device))}
    if "effdet" in args.compare:
        contenders["effdet"] = effdet(args.compound_coef, images.to(device))
    seconds = measure(contenders, args.warmup, args.runs, device)

    fastest = statistics.median(seconds["ours"])
    print(f"{'':<12} {'median ms':>10} {'min':>8} {'max':>8} {'images/s':>9} {'ours / it':>10}")
    for name, times in seconds.items():
        median = statistics.median(times)
        print(
            f"{name:<12} {1e3 * median:>10.1f} {1e3 * min(times):>8.1f} {1e3 * max(times):>8.1f} "
            f"{args.batch_size / median:>9.2f} {fastest / median:>10.2f}"
        )


def ours(network: EfficientDet, images: Tensor) -> Callable[[], object]:
    """The network as `load_detector` runs it."""
    return with_postprocessing(fuse_for_inference(network), images.contiguous(memory_format=torch.channels_last))


def plain(network: EfficientDet, images: Tensor) -> Callable[[], object]:
    """The network as one would first write it."""
    return with_postprocessing(network, images)


def with_postprocessing(network: EfficientDet, images: Tensor) -> Callable[[], object]:
    scores = network(images).class_logits.amax(dim=-1).sigmoid()
    threshold = scores.flatten().sort(descending=True).values[CANDIDATES * len(images)].item()
    return lambda: postprocess(network(images), *images.shape[-2:], threshold, EVALUATION_IOU_THRESHOLD)


def effdet(compound_coef: int, images: Tensor) -> Callable[[], object]:
    """The same coefficient of the package effdet, forward and post-processing."""
    try:
        from effdet import create_model
    except ImportError as error:
        raise InputError("--compare effdet needs that package: pip install effdet") from error
    name = "tf_efficientdet_d7x" if compound_coef == 8 else f"tf_efficientdet_d{compound_coef}"
    model = (
        create_model(name, bench_task="predict", pretrained=False, pretrained_backbone=False).eval().to(images.device)
    )
    return lambda: model(images)


def measure(
    contenders: dict[str, Callable[[], object]], warmup: int, runs: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each counted pass of each contender, taken in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for run in tqdm(range(warmup + runs), unit="round", leave=False):
        for name, detect in contenders.items():
            synchronize(device)
            start = time.perf_counter()
            detect()
            synchronize(device)
            if run >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def describe(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"CPU with {torch.get_num_threads()} threads, torch {torch.__version__}"


if __name__ == "__main__":
    with exit_on_input_error():
        main(parse_args())
