# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
Draws what models predict in an image.

    python -m evaluation.show photo.jpg --models U P --texts sky kite --output similarity.png
    python -m evaluation.show photo.jpg --models U P --categories coco_panoptic_133 --grid 4 6 --output grid.png

The first draws the similarity of each location to each text (Fig. 5 of the paper); the second the category and
probability of each cell of a grid, with the cells that training would drop crossed out (Fig. 11).
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from modeling_densevlm import CategoryEmbeddings, CategorySet, DenseVLMImageProcessor, DenseVLMModel
from modeling_densevlm.category_embeddings import region_cosines
from modeling_densevlm.command_line import finite_number, one_line_errors, whole_number
from modeling_densevlm.external_towers import import_tower
from modeling_densevlm.image_processing_densevlm import content_extent, load_image
from modeling_densevlm.region_pooling import grid_boxes
from modeling_densevlm.shipped import model_source
from modeling_densevlm.templates import DEFAULT_TEMPLATES, TEMPLATES

from .figures import check_picture, grid_figure, similarity_figure
from .models import TOWER_HELP, load_square_processing, warn_about_templates, whole_cells


GRID_DEFAULTS = {"grid": (4, 4), "temperature": 0.01, "threshold": 0.3}
"""Defaults of the options that only the grid of predicted categories uses."""


@torch.inference_mode()
def similarities(
    model: DenseVLMModel, image_processor: DenseVLMImageProcessor, image: Image.Image, text_embeds: torch.Tensor
) -> np.ndarray:
    """
    Cosines of each pixel with each text.

    Args:
        model ([`DenseVLMModel`]): the model.
        image_processor ([`DenseVLMImageProcessor`]): its image processor.
        image (`Image`): RGB image.
        text_embeds (`Tensor` of shape `(texts, dim)`): text embeddings of unit norm.

    Returns:
        `np.ndarray` of shape `(texts, height, width)`, interpolated bilinearly from the map to the image.
    """
    pixel_values = image_processor(image)["pixel_values"].to(model.device, model.dtype)
    dense = model.get_dense_features(pixel_values).float()
    cosines = torch.einsum("bdhw,cd->bchw", dense, text_embeds.to(model.device, torch.float32))
    side = max(image.size)
    resized = interpolate(cosines, size=(side, side), mode="bilinear", align_corners=False)[0]
    return resized[:, : image.height, : image.width].cpu().numpy()


@torch.inference_mode()
def classify_cells(
    model: DenseVLMModel,
    image_processor: DenseVLMImageProcessor,
    image: Image.Image,
    text_embeds: torch.Tensor,
    grid: tuple[int, int],
    temperature: float = 0.01,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Classifies the cells of a grid over an image (Eq. 1 of the paper).

    Args:
        model ([`DenseVLMModel`]): the model.
        image_processor ([`DenseVLMImageProcessor`]): its image processor.
        image (`Image`): RGB image.
        text_embeds (`Tensor` of shape `(categories, dim)`): category embeddings of unit norm.
        grid (`(int, int)`): rows and columns.
        temperature (`float`, *optional*, defaults to 0.01): τ of the softmax over categories.

    Returns:
        The best category of each cell and its probability, `(cells,)` each, row by row.
    """
    width, height = content_extent(*image.size)
    boxes = grid_boxes(*grid) * torch.tensor([width, height, width, height])
    pixel_values = image_processor(image)["pixel_values"]
    region_embeds = model.get_region_features(pixel_values, boxes=[boxes])
    probabilities, labels = (region_cosines(region_embeds, text_embeds) / temperature).softmax(-1).max(-1)
    return labels, probabilities


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the program with `argv`, by default the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.show", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image", type=Path)
    parser.add_argument("--models", type=model_source, nargs="+", required=True, help="folders or Hub names")
    parser.add_argument("--tower", help=TOWER_HELP)
    parser.add_argument("--output", type=Path, required=True, help="image file to write")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--texts", nargs="+", help="texts to compare locations with")
    target.add_argument("--categories", help="built-in set or JSON file of categories to predict")
    parser.add_argument("--grid", type=whole_number(), nargs=2, metavar=("ROWS", "COLUMNS"), help="4 4 by default")
    parser.add_argument("--temperature", type=finite_number(above=0), help="of the probabilities, 0.01 by default")
    parser.add_argument(
        "--threshold", type=finite_number(), help="cells with at most this probability are dropped, 0.3 by default"
    )
    parser.add_argument("--templates", default=DEFAULT_TEMPLATES, choices=TEMPLATES, help="prompt templates")
    parser.add_argument("--image_size", type=whole_number(), help="input side in pixels; the processor's by default")
    arguments = parser.parse_args(argv)
    for name, default in GRID_DEFAULTS.items():
        if arguments.texts and getattr(arguments, name) is not None:
            parser.error(
                f"--{name} has no effect with --texts, which draws similarities; give --categories for a grid"
            )
        if getattr(arguments, name) is None:
            setattr(arguments, name, default)
    check_picture(arguments.output)
    if arguments.tower is not None:
        import_tower(arguments.tower, "--tower")
    draw_figure(arguments)
    print(f"Written: {arguments.output}")


def draw_figure(arguments: argparse.Namespace) -> None:
    """Draws the figure selected by the arguments of the program."""
    image = load_image(arguments.image)
    texts = arguments.texts
    categories = CategorySet(texts) if texts else CategorySet.load(arguments.categories)
    names = Counter(Path(source).name for source in arguments.models)
    similarity_panels: dict[str, dict[str, np.ndarray]] = {}
    grid_panels: dict[str, tuple[list[str], np.ndarray]] = {}
    for source in arguments.models:
        model = DenseVLMModel.from_pretrained(source, dtype=torch.float32).eval()
        image_processor, tokenizer = load_square_processing(source)
        if arguments.image_size:
            side = whole_cells(arguments.image_size, model.vision_model.stride, source)
            image_processor.size = {"longest_edge": side}
        embeddings = CategoryEmbeddings.resolve(categories, model, tokenizer, arguments.templates)
        warn_about_templates(source, embeddings.templates)
        embeds = embeddings.embeds
        title = Path(source).name if names[Path(source).name] == 1 else source
        if texts:
            similarity_panels[title] = dict(zip(texts, similarities(model, image_processor, image, embeds)))
        else:
            labels, probabilities = classify_cells(
                model, image_processor, image, embeds, tuple(arguments.grid), arguments.temperature
            )
            grid_panels[title] = ([categories.names[label] for label in labels], probabilities.numpy())
    if texts:
        similarity_figure(arguments.output, np.asarray(image), similarity_panels)
        return
    boxes = grid_boxes(*arguments.grid).numpy() * np.array([image.width, image.height] * 2)
    grid_figure(arguments.output, np.asarray(image), boxes, grid_panels, arguments.threshold)


if __name__ == "__main__":
    main()
