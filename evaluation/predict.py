# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
r"""
Names what is where in photos: a map of categories, or the categories of boxes or of the cells of a grid.

    densevlm predict photo.jpg --model MODEL --words "boat, water, sky" --output predictions
    densevlm predict photos/ "more/*.png" --model MODEL --categories coco_panoptic_133 --grid 4 6 --output predictions
    densevlm predict photos/ --model MODEL --words "boat, water" --boxes boxes.json --output predictions

    densevlm predict photos/ --model MODEL --words "boat, water" --heat_maps --output predictions

writes into the output folder: `predictions.jsonl`, one line per photo; `pictures`, each photo beside its map, with its
regions, or beside its similarity to each word; and for maps, `maps`, PNGs whose values are the indices of
`categories.json`.
"""

import argparse
import glob
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from modeling_densevlm import CategoryEmbeddings, CategorySet, DenseVLMForSemanticSegmentation, DenseVLMModel
from modeling_densevlm.category_embeddings import region_cosines
from modeling_densevlm.command_line import (
    add_vocabulary_options,
    check_output,
    finite_number,
    one_line_errors,
    read_vocabulary,
    whole_number,
)
from modeling_densevlm.image_files import IMAGE_SUFFIXES
from modeling_densevlm.image_processing_densevlm import load_image
from modeling_densevlm.region_pooling import grid_boxes
from modeling_densevlm.shipped import model_source
from modeling_densevlm.templates import DEFAULT_TEMPLATES

from .datasets.folders import find_files, warn_skipped_files
from .figures import map_figure, region_figure, similarity_figure, subplots
from .models import load_square_processing, whole_cells
from .shards import warn_skipped
from .show import similarities


class Predictor:
    r"""
    A model that names pixels and regions of images.

    Args:
        source (`str` or path): folder or Hub name of a DenseVLM or a CLIP.
        device (`str`, *optional*, defaults to `"cpu"`): where it runs.
        side (`int`, *optional*): longest side of the images in pixels; the processor's by default.
    """

    def __init__(self, source: str | Path, device: str = "cpu", side: int | None = None):
        source = str(source)
        model = DenseVLMModel.from_pretrained(source, dtype=torch.float32).to(device).eval()  # type: ignore[arg-type]
        self.image_processor, self.tokenizer = load_square_processing(source)
        if side is not None:
            self.image_processor.size = {"longest_edge": whole_cells(side, model.vision_model.stride, source)}
        self.segmenter = DenseVLMForSemanticSegmentation.from_densevlm(model)
        self._embedded: tuple[Any, ...] = ()

    def set_categories(
        self, categories: CategorySet, templates: str = DEFAULT_TEMPLATES, thing_offset: float = 0.0
    ) -> "Predictor":
        """Sets the vocabulary; `thing_offset` is subtracted from the cosines of things. Returns itself."""
        if thing_offset:
            categories.require_flags("--thing_offset")
        vocabulary = (categories.names, categories.synonyms, categories.is_thing, templates)
        if vocabulary != self._embedded:  # another offset alone needs no text tower
            embeddings = CategoryEmbeddings.resolve(categories, self.segmenter.densevlm, self.tokenizer, templates)
            self.segmenter.set_categories(embeddings)
            self._embedded = vocabulary
        self.segmenter.config.thing_offset = thing_offset
        self.categories = categories
        return self

    @torch.inference_mode()
    def maps(self, images: Sequence[Image.Image]) -> list[np.ndarray]:
        """The category index of each pixel of each image, `(height, width)`."""
        sizes = [(image.height, image.width) for image in images]
        outputs = self.segmenter(self._pixel_values(self.image_processor(list(images))))
        labels = self.image_processor.post_process_semantic_segmentation(outputs, sizes)
        return [one.cpu().numpy() for one in cast(list[torch.Tensor], labels)]

    @torch.inference_mode()
    def regions(
        self, images: Sequence[Image.Image], boxes: Sequence[np.ndarray]
    ) -> list[tuple[list[str], np.ndarray]]:
        """The category and probability of each box of each image, xyxy in pixels."""
        given = [torch.as_tensor(one, dtype=torch.float32).reshape(-1, 4) for one in boxes]
        inputs: Any = self.image_processor(list(images), boxes=given)  # type: ignore[call-arg]
        region_embeds = self.segmenter.densevlm.get_region_features(
            self._pixel_values(inputs), boxes=[one.to(self.segmenter.device) for one in inputs["boxes"]]
        )
        cosines = region_cosines(region_embeds, self.segmenter.category_embeds)
        scores, labels = self.segmenter.scale_cosines(cosines).softmax(-1).max(-1)
        counts = [len(one) for one in given]
        return [
            ([self.categories.names[label] for label in some.tolist()], probabilities.cpu().numpy())
            for some, probabilities in zip(labels.split(counts), scores.split(counts))
        ]

    def _pixel_values(self, inputs: Any) -> torch.Tensor:
        return inputs["pixel_values"].to(self.segmenter.device, self.segmenter.dtype)


def find_photos(sources: Sequence[str]) -> dict[str, Path]:
    """
    The photos of files, folders and patterns: names for the outputs, relative to the folder that was given, and files.

    Raises:
        `ValueError` for a source without photos, and for two photos of the same name.
    """
    found: dict[str, Path] = {}
    outputs: dict[Path, Path] = {}
    for source in sources:
        path = Path(source)
        if path.is_dir():
            files, skipped = find_files(path, IMAGE_SUFFIXES)
            warn_skipped_files(path, skipped)
            named = {file.relative_to(path).as_posix(): file for file in files}
        else:
            matches = (
                [path] if path.is_file() else [Path(match) for match in sorted(glob.glob(source, recursive=True))]
            )
            named = {str(file): file for file in matches if file.is_file()}
        if not named:
            raise ValueError(f"{source}: there is no such photo, or no photo in it.")
        for place, file in named.items():
            name = place if path.is_dir() else file.name
            other = outputs.setdefault(Path(name).with_suffix(""), file)
            if other.resolve() != file.resolve():
                raise ValueError(f"{other} and {file} have the same name: predict them into different folders.")
            found[name] = file
    return found


def read_boxes(file: Path) -> dict[str, np.ndarray]:
    """
    The boxes of each photo, xyxy in pixels: from `{"photo.jpg": [[x0, y0, x1, y1], ...]}`, or from COCO's results
    (`image_id` is the photo's name, or the number in it).
    """
    try:
        content = json.loads(file.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"--boxes: {file} is not valid JSON: {error}") from None
    if isinstance(content, list):
        by_photo: dict[str, list[list[float]]] = {}
        for row, result in enumerate(content):
            if not isinstance(result, dict) or "image_id" not in result or len(result.get("bbox", ())) != 4:
                raise ValueError(f"--boxes: {file}, result {row} has no `image_id` or no `bbox` of four numbers.")
            x, y, width, height = result["bbox"]
            by_photo.setdefault(str(result["image_id"]), []).append([x, y, x + width, y + height])
        content = by_photo
    if not isinstance(content, dict):
        raise ValueError(f'--boxes: {file}: expected {{"photo.jpg": [[x0, y0, x1, y1], ...]}} or COCO results.')
    try:
        return {name: np.array(boxes, dtype=np.float32).reshape(-1, 4) for name, boxes in content.items()}
    except (TypeError, ValueError):
        raise ValueError(f"--boxes: {file}: a box is four numbers, x0, y0, x1, y1.") from None


def boxes_of(name: str, boxes: dict[str, np.ndarray]) -> np.ndarray:
    """The boxes of a photo, by its name, its name without suffix, or the number that this is; possibly none."""
    stem = Path(name).stem
    keys = (name, Path(name).name, stem, stem.lstrip("0") if stem.isdigit() else stem)
    return next((boxes[key] for key in keys if key in boxes), np.zeros((0, 4), np.float32))


def grid_of(image: Image.Image, rows: int, columns: int) -> np.ndarray:
    """The boxes of the cells of a grid over an image, in pixels."""
    return grid_boxes(rows, columns).numpy() * np.array([image.width, image.height] * 2, np.float32)


def load_photos(photos: dict[str, Path], size: int, skipped: list[str]) -> Iterator[dict[str, Image.Image]]:
    """Batches of photos; those that cannot be read are named in `skipped`."""
    batch: dict[str, Image.Image] = {}
    for name, file in tqdm(photos.items(), desc="photos", disable=None):
        try:
            batch[name] = load_image(file)
        except Exception as error:  # a damaged file can raise anything in a decoder
            skipped.append(f"{file}: {type(error).__name__}: {error}")
        if len(batch) == size:
            yield batch
            batch = {}
    if batch:
        yield batch


def predict_maps(predictor: Predictor, batch: dict[str, Image.Image], output: Path) -> Iterator[dict[str, Any]]:
    """Writes the map and the picture of each photo; yields its share of pixels per category, largest first."""
    names = predictor.categories.names
    for (name, image), labels in zip(batch.items(), predictor.maps(list(batch.values()))):
        values = labels.astype(np.uint8 if len(names) <= 256 else np.uint16)
        _save(Image.fromarray(values), output / "maps" / Path(name).with_suffix(".png"))
        picture = output / "pictures" / Path(name).with_suffix(".png")
        map_figure(picture, np.asarray(image), labels, names, predictor.categories.is_thing)
        counts = np.bincount(labels.ravel(), minlength=len(names))
        shares = {names[i]: round(counts[i] / labels.size, 4) for i in np.argsort(-counts, kind="stable") if counts[i]}
        map_file = (Path("maps") / Path(name).with_suffix(".png")).as_posix()
        yield {"photo": name, "width": image.width, "height": image.height, "map": map_file, "shares": shares}


def predict_regions(
    predictor: Predictor, batch: dict[str, Image.Image], boxes: Sequence[np.ndarray], output: Path
) -> Iterator[dict[str, Any]]:
    """Writes the picture of each photo; yields its regions."""
    for (name, image), of_image, (labels, scores) in zip(
        batch.items(), boxes, predictor.regions(list(batch.values()), boxes)
    ):
        region_figure(
            output / "pictures" / Path(name).with_suffix(".png"), np.asarray(image), of_image, labels, scores
        )
        regions = [
            {"box": [round(float(value), 2) for value in box], "label": label, "score": round(float(score), 4)}
            for box, label, score in zip(of_image, labels, scores)
        ]
        yield {"photo": name, "width": image.width, "height": image.height, "regions": regions}


def predict_heat_maps(predictor: Predictor, batch: dict[str, Image.Image], output: Path) -> Iterator[dict[str, Any]]:
    """Writes the picture of each photo, its similarity to each word; yields where each of them is the highest."""
    names = predictor.categories.names
    for name, image in batch.items():
        maps = similarities(
            predictor.segmenter.densevlm, predictor.image_processor, image, predictor.segmenter.category_embeds
        )
        picture = output / "pictures" / Path(name).with_suffix(".png")
        similarity_figure(picture, np.asarray(image), {"": dict(zip(names, maps))})
        found = {}
        for word, cosines in zip(names, maps):
            y, x = np.unravel_index(cosines.argmax(), cosines.shape)
            lowest, highest = round(float(cosines.min()), 4), round(float(cosines.max()), 4)
            found[word] = {"lowest": lowest, "highest": highest, "at": [int(x), int(y)]}
        yield {"photo": name, "width": image.width, "height": image.height, "similarities": found}


def _save(image: Image.Image, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file)


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the program with `argv`, by default the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", nargs="+", help="files, folders (with all below them) and patterns")
    parser.add_argument("--model", type=model_source, required=True, help="folder or Hub name of a DenseVLM or a CLIP")
    add_vocabulary_options(parser, required=True)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--grid", type=whole_number(), nargs=2, metavar=("ROWS", "COLUMNS"), help="name its cells")
    where.add_argument("--heat_maps", action="store_true", help="draw the similarity of each location to each word")
    where.add_argument("--boxes", type=Path, help="JSON of boxes in pixels to name, by photo, or COCO's results")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--image_size", type=whole_number(), help="input side in pixels; the processor's by default")
    parser.add_argument(
        "--thing_offset", type=finite_number(), default=0.0, help="subtracted from the cosines of all things"
    )
    parser.add_argument("--batch_size", type=whole_number(), default=4)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args(argv)
    check_output(arguments.output, folder=True)
    subplots()  # raises without matplotlib, before the model is loaded
    photos = find_photos(arguments.photos)
    if arguments.heat_maps and arguments.thing_offset:
        raise ValueError("--thing_offset has no effect with --heat_maps, which draws the similarities themselves.")
    boxes = None if arguments.boxes is None else read_boxes(arguments.boxes)
    categories = read_vocabulary(arguments)
    assert categories is not None  # required
    predictor = Predictor(arguments.model, arguments.device, arguments.image_size)
    predictor.set_categories(categories, arguments.templates, arguments.thing_offset)
    skipped: list[str] = []
    arguments.output.mkdir(parents=True, exist_ok=True)
    categories.save(arguments.output / "categories.json")
    with (arguments.output / "predictions.jsonl").open("w", encoding="utf-8") as lines:
        for batch in load_photos(photos, arguments.batch_size, skipped):
            if arguments.heat_maps:
                predictions = predict_heat_maps(predictor, batch, arguments.output)
            elif arguments.grid is None and boxes is None:
                predictions = predict_maps(predictor, batch, arguments.output)
            else:
                of_photos = [
                    boxes_of(name, boxes) if boxes is not None else grid_of(image, *arguments.grid)
                    for name, image in batch.items()
                ]
                predictions = predict_regions(predictor, batch, of_photos, arguments.output)
            for prediction in predictions:
                lines.write(json.dumps(prediction, ensure_ascii=False) + "\n")
    warn_skipped(skipped)
    if len(skipped) == len(photos):
        raise ValueError(f"None of the {len(photos)} photos could be read, e.g. {skipped[0]}")
    print(f"Written: {arguments.output}, {len(photos) - len(skipped)} photos, {len(skipped)} skipped")


if __name__ == "__main__":
    main()
