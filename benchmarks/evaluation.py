# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
Images per second of an evaluation in one pass, against the separate passes of the reference, one image at a time: for
boxes and for masks, with the same metrics; and with its third pass over crops of all regions, whose metric we do not
compute.

    python -m benchmarks.evaluation [--images 2] [--regions 11 25]

A randomly initialized ViT-B/16 at 512 pixels, crops at 224; synthetic images of 640 x 480 with 11 and with 25 regions.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.pictures import PHOTO, draw_jpeg
from benchmarks.timing import alternate, machine, print_row
from evaluation.datasets.panoptic import PanopticRegions
from evaluation.evaluate_regions import evaluate_regions
from modeling_densevlm import CategoryEmbeddings, CategorySet, DenseVLMImageProcessor, DenseVLMModel
from modeling_densevlm.conversion.configs import convert_config, load_config
from modeling_densevlm.region_pooling import pool_boxes, pool_masks


SIDE, CROP = 512, 224
CATEGORIES = CategorySet.load("coco_panoptic_133")


def write_annotations(folder: Path, images: int, regions: int) -> None:
    """Images of vertical stripes, one region each, in COCO's panoptic format."""
    for name in ("images", "panoptic"):
        (folder / name).mkdir()
    content = {"images": [], "annotations": [], "categories": []}
    for index, name in enumerate(CATEGORIES.names):
        flag = int(CATEGORIES.is_thing[index])
        content["categories"].append({"id": CATEGORIES.ids[index], "name": name, "isthing": flag})
    width, height, _ = PHOTO
    stripe = np.arange(width) * regions // width
    for number in range(images):
        (folder / "images" / f"{number}.jpg").write_bytes(draw_jpeg(number, *PHOTO))
        ids = np.zeros((height, width, 3), dtype=np.uint8)
        ids[..., 0] = stripe + 1
        Image.fromarray(ids).save(folder / "panoptic" / f"{number}.png")
        segments = []
        for region in range(regions):
            x = np.flatnonzero(stripe == region)
            box = [int(x[0]), 0, len(x), height]
            category = CATEGORIES.ids[(7 * number + region) % len(CATEGORIES)]
            segments.append({"id": region + 1, "category_id": category, "bbox": box})
        content["images"].append({"id": number, "file_name": f"{number}.jpg"})
        content["annotations"].append({"image_id": number, "file_name": f"{number}.png", "segments_info": segments})
    (folder / "panoptic.json").write_text(json.dumps(content))


@torch.inference_mode()
def two_passes(model: DenseVLMModel, regions: PanopticRegions, text_embeds: torch.Tensor) -> None:
    """Each pass reads the images again, one at a time."""
    for kind, pool in (("boxes", pool_boxes), ("masks", pool_masks)):
        for index in range(len(regions)):
            sample = regions[index]
            dense = model.get_dense_features(sample["pixel_values"][None])
            (pool(dense, [sample[kind]]) @ text_embeds.T).topk(5)


@torch.inference_mode()
def pass_of_crops(model: DenseVLMModel, regions: PanopticRegions, text_embeds: torch.Tensor, folder: Path) -> None:
    crop_processor = DenseVLMImageProcessor(CROP)
    for index in range(len(regions)):
        sample = regions[index]
        with Image.open(folder / "images" / f"{index}.jpg") as image:
            boxes = (sample["boxes"] * max(image.size)).round().int().tolist()
            crops = [image.convert("RGB").crop(box).resize((CROP, CROP)) for box in boxes]
        pixel_values = crop_processor(crops)["pixel_values"]
        (model.get_image_features(pixel_values).pooler_output @ text_embeds.T).topk(5)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--regions", type=int, nargs="+", default=[11, 25])
    options = parser.parse_args()
    torch.manual_seed(0)
    model = DenseVLMModel._from_config(convert_config(load_config("ViT-B-16"), text=False)).eval()
    text_embeds = torch.nn.functional.normalize(torch.randn(len(CATEGORIES), model.config.projection_dim), dim=-1)
    print(f"Boxes and masks, ViT-B/16 at {SIDE} pixels, crops of {CROP}. {machine()}")
    two, three = zip(*(compare_passes(model, text_embeds, options.images, regions) for regions in options.regions))
    workload = (
        f"evaluation of images with {' and '.join(map(str, options.regions))} regions, ViT-B/16 at {SIDE} pixels"
    )
    print_row(workload, "two passes, one image at a time: boxes, masks", two)
    print_row("– the same", f"three passes: also crops of {CROP} pixels, whose metric ours does not compute", three)


def compare_passes(model: DenseVLMModel, text_embeds: torch.Tensor, images: int, count: int) -> tuple[float, float]:
    """Prints and returns the speedup of one pass over two and over three, for images with `count` regions."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_annotations(folder, images, count)
        regions = PanopticRegions(
            folder / "panoptic.json", folder / "images", folder / "panoptic", DenseVLMImageProcessor(SIDE), SIDE // 16
        )
        own = regions.categories
        embeddings = CategoryEmbeddings(text_embeds, own.names, own.is_thing, own.synonyms, [], "")
        times = alternate(
            {
                "one": lambda: evaluate_regions(model, regions, embeddings, batch_size=4, num_workers=0),
                "two": lambda: two_passes(model, regions, text_embeds),
                "crops": lambda: pass_of_crops(model, regions, text_embeds, folder),
            },
            repeats=3,
        )
    one, two, three = times["one"], times["two"], times["two"] + times["crops"]
    for title, seconds in (("two passes", two), ("three, with crops", three)):
        remark = f"{images / one:.2f} images per second; {images / seconds:.2f}"
        print(f"  {count} regions per image, against {title}: {seconds / one:.2f} x   ({remark})")
    return two / one, three / one


if __name__ == "__main__":
    main()
