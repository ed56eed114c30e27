# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
r"""
Re-scores the boxes of a detector: each gets the geometric mean of its own score and of the probability that the dense
features give its category.

    python -m evaluation.rescore results.json --model MODEL --annotations instances_val2017.json --images val2017 \
        --output rescored.json

reads and writes COCO's results format. [`rescore`] does the same with the outputs of any detector of transformers.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm
from transformers.utils import logging

from modeling_densevlm import CategoryEmbeddings, CategorySet, DenseVLMModel
from modeling_densevlm.category_embeddings import region_cosines
from modeling_densevlm.command_line import check_output, finite_number, one_line_errors
from modeling_densevlm.image_processing_densevlm import load_image
from modeling_densevlm.processing_densevlm import load_processing
from modeling_densevlm.shipped import model_source
from modeling_densevlm.templates import DEFAULT_TEMPLATES, TEMPLATES

from .shards import warn_skipped


logger = logging.get_logger(__name__)

SMALLEST_SIDE = 1.0
"""Boxes with a shorter side, in pixels of the image, have no feature and keep their scores."""


@torch.inference_mode()
def rescore(
    detections: Sequence[dict[str, Any]],
    images: Sequence[Image.Image],
    model: DenseVLMModel,
    image_processor: Any,
    embeddings: CategoryEmbeddings,
    weight: float = 0.5,
    relabel: bool = False,
) -> list[dict[str, Any]]:
    r"""
    Combines the scores of a detector with the probabilities of a DenseVLM.

    ```python
    >>> detections = detector_processor.post_process_grounded_object_detection(outputs, target_sizes=sizes)
    >>> rescore(detections, images, model, processor.image_processor, embeddings)
    ```

    Args:
        detections (list of `dict`, one per image):
            Output of the `post_process_*object_detection` of a detector of transformers: `boxes` of shape `(n, 4)`,
            xyxy in pixels of the image, `scores` of shape `(n,)`, and unless `relabel`, the categories of the boxes:
            `text_labels`, their names, or `labels`, their indices in `embeddings`.
        images (list of `Image.Image`): the images.
        model ([`DenseVLMModel`]): the model.
        image_processor ([`DenseVLMImageProcessor`]): its image processor.
        embeddings ([`CategoryEmbeddings`]): the vocabulary in the model's space.
        weight (`float`, *optional*, defaults to 0.5):
            Weight w of the probability p of the category: the new score is score^(1 - w) p^w. 0.5 is the geometric
            mean, 0 leaves the scores as they are.
        relabel (`bool`, *optional*, defaults to `False`):
            Whether each box gets the most probable category of the vocabulary, for detectors without categories or
            with others.

    Returns:
        `list[dict]`: per image `boxes`, `scores`, `labels`, `text_labels`, and `probabilities` of shape `(n,)`, that
        of the category; NaN where a box is smaller than a pixel: it keeps its score and label.

    Raises:
        `ValueError` for categories that are not in the vocabulary, and a weight outside 0..1.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"`weight` is in 0..1, got {weight}.")
    if len(detections) != len(images):
        raise ValueError(f"There are {len(images)} images, but detections for {len(detections)}.")
    rescored = []
    for number, (detection, image) in enumerate(zip(detections, images)):
        boxes = torch.as_tensor(detection["boxes"], dtype=torch.float32).reshape(-1, 4).cpu()
        scores = torch.as_tensor(detection["scores"], dtype=torch.float32).cpu()
        clipped = boxes.clamp(min=0).minimum(boxes.new_tensor([image.width, image.height] * 2))
        visible = ((clipped[:, 2:] - clipped[:, :2]) >= SMALLEST_SIDE).all(-1)
        probabilities = torch.full((len(boxes), len(embeddings.names)), torch.nan)
        if visible.any():
            probabilities[visible] = _probabilities(model, image_processor, embeddings, image, clipped[visible])
        if relabel:
            labels = probabilities.nan_to_num(0.0).argmax(-1)
        else:
            labels = _label_indices(detection, embeddings.names, number)
        own = probabilities.gather(1, labels[:, None])[:, 0]
        rescored.append(
            {
                "boxes": boxes,
                "scores": torch.where(visible, scores ** (1 - weight) * own**weight, scores),
                "labels": labels,
                "text_labels": [embeddings.names[label] for label in labels.tolist()],
                "probabilities": own,
            }
        )
    return rescored


def _probabilities(
    model: DenseVLMModel, image_processor: Any, embeddings: CategoryEmbeddings, image: Image.Image, boxes: Tensor
) -> Tensor:
    """Softmax over the vocabulary at the model's temperature for each box, `(boxes, categories)`."""
    inputs = image_processor(image, boxes=[boxes])
    pixel_values = inputs["pixel_values"].to(model.device, model.dtype)
    region_embeds = model.get_region_features(pixel_values, boxes=[inputs["boxes"][0].to(model.device)])
    cosines = region_cosines(region_embeds, embeddings.embeds.to(model.device))
    return (cosines * model.logit_scale.float().exp()).softmax(-1).cpu()


def _label_indices(detection: dict[str, Any], names: list[str], number: int) -> Tensor:
    """The indices of the categories of an image's boxes in the vocabulary."""
    texts = detection.get("text_labels")
    if texts is not None:
        if unknown := sorted(set(texts) - set(names)):
            raise ValueError(
                f"image {number}: {unknown[0]!r} is not in the vocabulary ({', '.join(names[:5])} ...): add it, or "
                "give `relabel=True`."
            )
        return torch.tensor([names.index(text) for text in texts], dtype=torch.long)
    if detection.get("labels") is None:
        raise ValueError(f"image {number}: detections without `labels` or `text_labels` need `relabel=True`.")
    labels = torch.as_tensor(detection["labels"]).long().cpu()
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(names):
        raise ValueError(
            f"image {number}: `labels` from {labels.min()} to {labels.max()}, of {len(names)} categories."
        )
    return labels


def rescore_results(
    results: Sequence[dict[str, Any]],
    annotations: dict[str, Any],
    image_folder: Path,
    model: DenseVLMModel,
    image_processor: Any,
    embeddings: CategoryEmbeddings,
    category_ids: Sequence[int],
    **options: Any,
) -> list[dict[str, Any]]:
    r"""
    Re-scores results in COCO's format, in the order of the file.

    Args:
        results (list of `dict`): `image_id`, `category_id`, `bbox` (xywh in pixels) and `score` each.
        annotations (`dict`): content of the annotation file, of which `images` is used.
        image_folder (path): root folder of the images.
        model ([`DenseVLMModel`]): the model.
        image_processor ([`DenseVLMImageProcessor`]): its image processor.
        embeddings ([`CategoryEmbeddings`]): the vocabulary in the model's space.
        category_ids (sequence of `int`): the `category_id` of each category.
        options: `weight` and `relabel` of [`rescore`].

    Returns:
        `list[dict]`: copies of the results with new scores; those on images that cannot be read are unchanged, and
        named in a warning.
    """
    files = {image["id"]: image["file_name"] for image in annotations["images"]}
    index_of = {category_id: index for index, category_id in enumerate(category_ids)}
    rows_of: dict[Any, list[int]] = defaultdict(list)
    for row, result in enumerate(results):
        _check_result(row, result, files, index_of)
        rows_of[result["image_id"]].append(row)
    rescored, skipped, small = [dict(result) for result in results], [], 0
    for image_id, rows in tqdm(rows_of.items(), desc="images", disable=None, leave=False):
        file = image_folder / files[image_id]
        try:
            image = load_image(file)
        except Exception as error:  # a damaged file can raise anything in a decoder
            skipped.append(f"{file}: {type(error).__name__}: {error}")
            continue
        xywh = torch.tensor([results[row]["bbox"] for row in rows], dtype=torch.float32)
        detection = {
            "boxes": torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], dim=1),
            "scores": [results[row]["score"] for row in rows],
            "labels": [index_of[results[row]["category_id"]] for row in rows],
        }
        (new,) = rescore([detection], [image], model, image_processor, embeddings, **options)
        seen = (~new["probabilities"].isnan()).tolist()
        small += seen.count(False)
        for row, score, label, visible in zip(rows, new["scores"].tolist(), new["labels"].tolist(), seen):
            if visible:
                rescored[row] |= {"score": score, "category_id": category_ids[label]}
    warn_skipped(skipped)
    if small:
        logger.warning(f"{small} boxes are smaller than a pixel and keep their scores.")
    return rescored


def _check_result(row: int, result: Any, files: dict, index_of: dict) -> None:
    """Raises a `ValueError` for a result that lacks a field, or is of an unknown image or category."""
    for field in ("image_id", "category_id", "bbox", "score"):
        if not isinstance(result, dict) or field not in result:
            raise ValueError(f"result {row} has no `{field}`; expected COCO's results format.")
    if result["image_id"] not in files:
        raise ValueError(f"result {row}: the image {result['image_id']!r} is not in the annotations.")
    if result["category_id"] not in index_of:
        raise ValueError(f"result {row}: the category {result['category_id']!r} is not in the categories.")


def vocabulary(annotations: dict[str, Any], source: Path) -> CategorySet:
    """The categories of a detection annotation file, with their ids."""
    categories = annotations.get("categories") or []
    if not categories or not all(isinstance(c, dict) and {"id", "name"} <= c.keys() for c in categories):
        raise ValueError(f"{source} has no `categories` with `id` and `name`: give `--categories`.")
    names, ids = [c["name"] for c in categories], [c["id"] for c in categories]
    return CategorySet(source.stem, names, None, ids)


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the program with `argv`, by default the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.rescore", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, help="JSON of a detector's boxes in COCO's results format")
    parser.add_argument("--model", type=model_source, required=True, help="folder or Hub name of a DenseVLM or a CLIP")
    parser.add_argument("--annotations", type=Path, required=True, help="COCO instances JSON: images and categories")
    parser.add_argument("--images", type=Path, required=True, help="root folder of the images")
    parser.add_argument("--categories", help="set with ids; by default the categories of the annotation file")
    parser.add_argument("--templates", default=DEFAULT_TEMPLATES, choices=TEMPLATES, help="prompt templates")
    parser.add_argument(
        "--weight", type=finite_number(), default=0.5, help="of the probability; 0.5 is the geometric mean"
    )
    parser.add_argument("--relabel", action="store_true", help="give each box its most probable category")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args(argv)
    check_output(arguments.output)
    results, annotations = (_read_json(file) for file in (arguments.results, arguments.annotations))
    if not isinstance(results, list):
        raise ValueError(f"{arguments.results}: expected a list of results in COCO's format.")
    if not isinstance(annotations, dict) or "images" not in annotations:
        raise ValueError(f"{arguments.annotations} has no `images`: expected COCO's instances format.")
    if arguments.categories:
        categories = CategorySet.load(arguments.categories)
    else:
        categories = vocabulary(annotations, arguments.annotations)
    if categories.ids is None:
        raise ValueError(f"--categories: {categories.name} has no ids, which say what a `category_id` means.")
    model = DenseVLMModel.from_pretrained(arguments.model, dtype=torch.float32).to(arguments.device).eval()
    image_processor, tokenizer = load_processing(arguments.model)
    embeddings = CategoryEmbeddings.resolve(categories, model, tokenizer, arguments.templates)
    options = {"weight": arguments.weight, "relabel": arguments.relabel}
    rescored = rescore_results(
        results, annotations, arguments.images, model, image_processor, embeddings, categories.ids, **options
    )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(rescored), encoding="utf-8")
    print(f"Written: {arguments.output}, {len(rescored)} boxes")


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from None


if __name__ == "__main__":
    main()


__all__ = ["rescore", "rescore_results"]
