# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
What int8 weights cost: metrics on the sandbox's test scenes, size and seconds of ONNX graphs in float32 and int8.

    python -m training.sandbox.scenes --output runs/sandbox/data
    python -m benchmarks.int8 [--model model_cards/densevlm-sandbox-p]
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from evaluation.evaluate_regions import region_metrics
from evaluation.sandbox_scores import load, score, segment_scenes
from modeling_densevlm import CategorySet
from modeling_densevlm.export import export_model, onnx_session


METRICS = ("boxes_top1", "masks_thing_top1", "masks_stuff_top1", "foreground_bias")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("model_cards/densevlm-sandbox-p"))
    parser.add_argument("--data", type=Path, default=Path("runs/sandbox/data"))
    arguments = parser.parse_args()
    categories = CategorySet.load(arguments.data / "categories.json")
    print("| weights | MB | seconds per 100 scenes | Boxes | Masks-T | Masks-S | stuff called a thing | mIoU |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for weights in ("PyTorch, float32", "ONNX, float32", "ONNX, int8"):
        model, processor, embeddings = load(arguments.model, categories)
        size = sum(parameter.numel() for parameter in model.vision_model.parameters()) * 4 / 1e6
        with tempfile.TemporaryDirectory() as folder:
            if weights != "PyTorch, float32":
                file = Path(folder) / "dense.onnx"
                export_model(arguments.model, file, int8=weights.endswith("int8"))
                model.get_dense_features = onnx_session(file)  # type: ignore[method-assign]
                size = file.stat().st_size / 1e6
            side = processor.image_processor.size["longest_edge"]
            pixel_values = torch.randn(100, 3, side, side)
            began = time.perf_counter()
            with torch.inference_mode():
                for one in pixel_values:
                    model.get_dense_features(one[None])
            seconds = time.perf_counter() - began
            loaded = (model, processor, embeddings)
            metrics = region_metrics(
                score(arguments.model, *loaded, arguments.data / "test", categories), categories
            ) | segment_scenes(*loaded, arguments.data / "test", categories)
        cells = [f"{100 * metrics[name]:.1f}" for name in (*METRICS, "segmentation_miou")]
        print(f"| {weights} | {size:.1f} | {seconds:.2f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
