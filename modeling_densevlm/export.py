# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
Exports a model as a graph that runs without this package: ONNX, or a program of torch.export.

    densevlm export MODEL dense.onnx                         pixel_values → dense_embeds
    densevlm export MODEL map.onnx --words "boat, water"     pixel_values → logits of every location
    densevlm export MODEL regions.onnx --regions             pixel_values, boxes → region_embeds
    densevlm export MODEL regions.onnx --regions --words ... pixel_values, boxes → logits of every region
    densevlm export MODEL dense.pt2                          the same for torch.export.load

Batch, image size and number of boxes are dynamic. The vocabulary is part of the graph; a folder of a segmenter has its
own. The file's metadata say how images are prepared and what the categories are. ONNX needs the extra `export`.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from .categories import CategorySet
from .category_embeddings import CategoryEmbeddings, region_cosines
from .command_line import add_vocabulary_options, check_output, one_line_errors, read_vocabulary
from .conversion.files import staged
from .modeling_densevlm_segmentation import DenseVLMForSemanticSegmentation
from .processing_densevlm import load_processing
from .region_pooling import MAX_BOX_EXTENT, box_weights
from .shipped import model_source
from .templates import DEFAULT_TEMPLATES


TOLERANCE = 1e-4
"""Of a graph's outputs, relative to the largest value."""


class Graph(nn.Module):
    r"""
    The computation that is exported.

    Args:
        segmenter ([`DenseVLMForSemanticSegmentation`]): the model, with or without a vocabulary.
        regions (`bool`): whether the outputs are those of regions rather than of all locations.
    """

    def __init__(self, segmenter: DenseVLMForSemanticSegmentation, regions: bool):
        super().__init__()
        self.segmenter = segmenter
        self.regions = regions

    @property
    def output_name(self) -> str:
        """Name of the output."""
        if self.segmenter.config.categories:
            return "logits"
        return "region_embeds" if self.regions else "dense_embeds"

    def forward(self, pixel_values: Tensor, boxes: Tensor | None = None) -> Tensor:
        r"""
        Computes features, or logits if there is a vocabulary.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, 3, height, width)`): normalised images.
            boxes (`torch.Tensor` of shape `(batch, regions, 4)`, with regions only):
                xyxy as fractions of the map. Images with fewer regions are padded with zeros, and a box without area
                gives zeros. A graph cannot raise an error: boxes in pixels give NaN.

        Returns:
            `torch.Tensor`: maps `(batch, dim, rows, columns)` or `(batch, categories, rows, columns)`; with boxes
            `(batch, regions, dim)` or `(batch, regions, categories)`.
        """
        if boxes is None:
            if self.segmenter.config.categories:
                return self.segmenter(pixel_values).logits
            return self.segmenter.densevlm.get_dense_features(pixel_values)
        dense = self.segmenter.densevlm.get_dense_features(pixel_values)
        extent = boxes[..., 2:] - boxes[..., :2]
        in_pixels = (extent > MAX_BOX_EXTENT).any(-1, keepdim=True)
        boxes = torch.where(in_pixels, 0.0, boxes)
        weights = box_weights(boxes.flatten(0, 1), *dense.shape[-2:]).unflatten(0, boxes.shape[:2])
        region_embeds = weights @ dense.flatten(2).transpose(1, 2)  # (batch, regions, dim)
        if self.segmenter.config.categories:
            cosines = region_cosines(region_embeds, self.segmenter.category_embeds)
            region_embeds = self.segmenter.scale_cosines(cosines)
        return torch.where(in_pixels, torch.nan, region_embeds)

    def example(self, batch: int, rows: int, columns: int, regions: int) -> tuple[Tensor, ...]:
        """Random inputs for a map of `rows x columns` locations."""
        generator = torch.Generator().manual_seed(0)
        stride = self.segmenter.densevlm.vision_model.stride
        pixel_values = torch.randn(batch, 3, rows * stride, columns * stride, generator=generator)
        corners = torch.rand(batch, regions, 2, 2, generator=generator).sort(dim=2).values
        return (pixel_values, corners.flatten(2)) if self.regions else (pixel_values,)

    def trace(self) -> ExportedProgram:
        """The graph, with dynamic batch, image size (in multiples of the patch) and number of regions."""
        stride = self.segmenter.densevlm.vision_model.stride
        batch = Dim("batch")
        rows, columns = (stride * Dim(name, min=2, max=1024) for name in ("rows", "columns"))
        shapes: tuple[dict[int, Any], ...] = ({0: batch, 2: rows, 3: columns}, {0: batch, 1: Dim("regions")})
        inputs = self.example(2, 3, 5, 3)
        return torch.export.export(self, inputs, dynamic_shapes=shapes[: len(inputs)])


@torch.no_grad()
def export_model(
    source: str | Path,
    output: str | Path,
    regions: bool = False,
    categories: CategorySet | None = None,
    templates: str = DEFAULT_TEMPLATES,
    int8: bool = False,
) -> float:
    """
    Exports a model in float32 and compares the graph with it, on images of another size.

    Args:
        source (`str` or path): folder or Hub name of a DenseVLM, a segmenter or a CLIP.
        output (`str` or path): a file `.onnx` or `.pt2`.
        regions (`bool`, *optional*, defaults to `False`): whether boxes are an input.
        categories ([`CategorySet`], *optional*): the vocabulary; by default that of a segmenter's folder.
        templates (`str`, *optional*, defaults to the paper's): name of the prompt templates.
        int8 (`bool`, *optional*, defaults to `False`):
            Whether the weights of matrix products are stored as int8, for ONNX (dynamic quantization by onnxruntime).

    Returns:
        `float`: the largest difference to the model, relative to the largest value.

    Raises:
        `ValueError` for another suffix, a model with sliding windows, and a graph that does not give its values.
    """
    source, output = str(source), Path(output)
    if output.suffix not in (".onnx", ".pt2"):
        raise ValueError(
            f"OUTPUT {output} ends in .onnx, or in .pt2 for torch.export. (A checkpoint of open_clip is written by "
            "`densevlm convert --export`.)"
        )
    if int8 and output.suffix != ".onnx":
        raise ValueError("--int8 is for ONNX: give an OUTPUT that ends in .onnx.")
    check_output(output, option="OUTPUT")
    segmenter = DenseVLMForSemanticSegmentation.from_pretrained(source, dtype=torch.float32).eval()
    if segmenter.config.window_size is not None:
        raise ValueError(
            f"{source} has sliding windows (`window_size` in config.json), whose number depends on the image: a graph "
            "has none. Set it to null and call the graph for each window."
        )
    image_processor, tokenizer = load_processing(source)
    if categories is not None:
        embeddings = CategoryEmbeddings.resolve(categories, segmenter.densevlm, tokenizer, templates)
        segmenter.set_categories(embeddings)
    graph = Graph(segmenter, regions)
    metadata = describe(graph, image_processor)
    program = graph.trace()
    with staged(output) as (file,):
        if output.suffix == ".pt2":
            torch.export.save(program, file, extra_files={"metadata.json": json.dumps(metadata)})
            difference = compare(graph, program.module())
        else:
            write_onnx(program, graph, metadata, file, int8)
            difference = compare(graph, onnx_session(file))
        if not int8 and difference > TOLERANCE:
            raise ValueError(f"{output} was not written: the graph differs from the model by {difference:.1e}.")
    return difference


def describe(graph: Graph, image_processor: Any) -> dict[str, Any]:
    """What a user of the graph has to know: how images are prepared, and the categories."""
    config = graph.segmenter.config
    return {
        "image_size": image_processor.size["longest_edge"],
        "image_mean": list(image_processor.image_mean),
        "image_std": list(image_processor.image_std),
        "stride": graph.segmenter.densevlm.vision_model.stride,
        "categories": (config.categories or {}).get("names"),
        "is_thing": (config.categories or {}).get("is_thing"),
        # Applied after the logits, by whoever makes labels of them.
        "background": config.background,
        "background_threshold": config.background_threshold,
        "upsampling": config.upsampling,
    }


def write_onnx(program: ExportedProgram, graph: Graph, metadata: dict[str, Any], file: Path, int8: bool) -> None:
    """Writes an ONNX file with metadata, each value as JSON."""
    try:
        import onnxruntime.quantization
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"ONNX needs {error.name}: install this package with the extra `export`.") from None
    names = ["pixel_values", "boxes"][: 1 + graph.regions]
    exported = torch.onnx.export(
        program, dynamo=True, input_names=names, output_names=[graph.output_name], verbose=False
    )
    assert exported is not None
    exported.model.metadata_props.update({name: json.dumps(value) for name, value in metadata.items()})
    exported.save(file)
    if int8:
        onnxruntime.quantization.quantize_dynamic(file, file, per_channel=True)


def onnx_session(file: Path) -> Any:
    """A function of the inputs that runs an ONNX file on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def run(*inputs: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: value.numpy() for name, value in zip(names, inputs)})[0])

    return run


def compare(graph: Graph, exported: Any) -> float:
    """The largest difference between the model and its graph, relative to the largest value, at another size."""
    inputs = graph.example(1, 5, 4, 7)
    expected = graph(*inputs)
    return float((exported(*inputs) - expected).abs().max() / expected.abs().max())


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """The command line of [`export_model`]."""
    parser = argparse.ArgumentParser(
        prog="python -m modeling_densevlm.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=model_source, help="folder or Hub name of a DenseVLM, a segmenter or a CLIP")
    parser.add_argument("output", type=Path, help="file to write, .onnx or .pt2")
    parser.add_argument("--regions", action="store_true", help="boxes are an input, outputs are those of the boxes")
    add_vocabulary_options(parser)
    parser.add_argument("--int8", action="store_true", help="store the weights of matrix products as int8")
    arguments = parser.parse_args(argv)
    difference = export_model(
        arguments.model,
        arguments.output,
        arguments.regions,
        read_vocabulary(arguments),
        arguments.templates,
        arguments.int8,
    )
    size = arguments.output.stat().st_size / 2**20
    print(f"Written: {arguments.output}, {size:.1f} MB; largest difference to the model {difference:.1e} of the range")


if __name__ == "__main__":
    main()


__all__ = ["export_model"]
