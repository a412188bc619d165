"""Runs a model of ultralytics whenever a line arrives; started by `benchmarks.yolo` with another interpreter.

Usage: ``python yolo_server.py MODEL ENGINE SIZE THREADS``. The weights are random, so nothing is downloaded.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from ultralytics import YOLO


def build(model: str, engine: str, size: int, threads: int) -> Callable[[], object]:
    """Return a function that runs the model on one square image, in evaluation mode and with fused batch norms."""
    torch.set_num_threads(threads)
    image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    network = YOLO(f"{model}.yaml").model.eval()
    head = network.model[-1]
    head.end2end, head.export = True, True  # without NMS; detections alone, as exported models have them
    network = network.fuse()
    with torch.no_grad():
        network(image)  # computes the anchors, which a trace would otherwise take for a difference
    if engine == "torch":
        return torch.inference_mode()(lambda: network(image))
    import openvino

    graph = openvino.convert_model(network, example_input=image, input=[list(image.shape)])
    if engine == "OpenVINO int8":
        import nncf

        preset = nncf.QuantizationPreset.PERFORMANCE
        graph = nncf.quantize(graph, nncf.Dataset([image.numpy()]), preset=preset)
    hints = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
    }
    compiled = openvino.compile_model(graph, "CPU", hints)
    return lambda: compiled(image.numpy())


def main() -> None:
    """Build the model, and run it once for each line of standard input."""
    model, engine, size, threads = sys.argv[1:]
    run = build(model, engine, int(size), int(threads))
    print("done", flush=True)
    for _ in sys.stdin:
        run()
        print("done", flush=True)


if __name__ == "__main__":
    main()
