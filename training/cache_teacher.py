# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
Computes and caches the teacher's predictions for every image and grid.

Training then needs no teacher:

    python -m training.cache_teacher training/recipes/coco.yaml --teacher_cache data/coco_teacher [--key value ...]
    accelerate launch -m training.train training/recipes/coco.yaml --teacher_cache data/coco_teacher

Under `accelerate launch` or `torchrun`, each process takes its share of the images. The same command resumes where it
was stopped.
"""

import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import torch
from transformers.utils import logging

from modeling_densevlm import CategoryEmbeddings, DenseVLMImageProcessor
from modeling_densevlm.command_line import one_line_errors
from modeling_densevlm.image_processing_densevlm import content_extent
from modeling_densevlm.worker_batches import to_shared_memory

from .alignment import region_logits, retrieve
from .build import category_embeddings, describe_targets, load_teacher, open_sources
from .data import read_image, resize_and_pad
from .engine.signals import close_process_group
from .images.sources import UnreadableImage, fingerprint
from .methods import find_method
from .models import LoadedModel
from .recipe import Arguments, parse_arguments
from .teacher_cache import (
    ARRAYS,
    SCHEMA,
    SHARD,
    TeacherCache,
    all_boxes,
    checksum,
    compress,
    shard_file,
    write_description,
)


logger = logging.get_logger(__name__)

BLOCK = 256
"""Images per record batch. Readers hold the metadata of every record batch in memory."""


def main(argv: Sequence[str] | None = None) -> TeacherCache:
    """Fills the folder `teacher_cache` and returns the cache."""
    arguments = parse_arguments(sys.argv[1:] if argv is None else argv, program="training.cache_teacher")
    model_args, data_args, _ = arguments
    if not find_method(model_args.method).uses_teacher_cache:
        raise SystemExit(f"`method`: {model_args.method} does not use cached teacher predictions.")
    if data_args.teacher_cache is None:
        raise SystemExit("`--teacher_cache` is missing: the folder for the teacher's predictions.")
    if model_args.teacher_sharded:
        raise SystemExit("`teacher_sharded` is for training: here each process holds the whole teacher.")
    folder = Path(data_args.teacher_cache)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(f"`--teacher_cache`: the folder {folder} cannot be created: {error}.") from error
    with one_line_errors():
        return fill(folder, arguments)


def fill(folder: Path, arguments: Arguments) -> TeacherCache:
    """Writes the description of a cache and its missing shards."""
    model_args, data_args, args = arguments
    index = datasets.concatenate_datasets(open_sources(arguments))
    teacher = load_teacher(arguments)
    embeddings = category_embeddings(arguments, "teacher", teacher)
    with args.main_process_first(local=False):
        provenance = describe_targets(arguments, teacher)
        # The number of categories, or more, means all of them.
        top_k = data_args.teacher_cache_top_k if data_args.teacher_cache_top_k < len(embeddings.names) else 0
        provenance |= {"top_k": top_k, "images": len(index), "list_of_images": fingerprint(index)}
        write_description(folder, provenance)
    teacher.model.to(args.device, getattr(torch, model_args.teacher_dtype))  # type: ignore[arg-type]  # wrapped
    shards = range(-(-len(index) // SHARD))
    for number in shards[args.process_index :: args.world_size]:
        file = shard_file(folder, number)
        if not file.exists():
            began = time.perf_counter()
            rows = range(number * SHARD, min((number + 1) * SHARD, len(index)))
            skipped = _write(file, predictions(index, rows, teacher, embeddings, arguments))
            rate = len(rows) / (time.perf_counter() - began)
            print(f"{file.name}: {len(rows)} images, {skipped} skipped, {rate:.1f} images per second", flush=True)
    if args.world_size > 1:
        torch.distributed.barrier()
    cache = TeacherCache(folder)
    if args.process_index == 0:
        size = sum(file.stat().st_size for file in folder.glob("*.arrow"))
        print(f"{folder}: {len(cache.rows)} images, {size / max(len(cache.rows), 1) / 1024:.1f} KiB per image")
    return cache


class _AllGrids(torch.utils.data.Dataset):
    """The images of an index, each with the boxes of all grids."""

    def __init__(self, index: datasets.Dataset, image_processor: DenseVLMImageProcessor, max_grid: int):
        self.index, self.image_processor, self.max_grid = index, image_processor, max_grid

    def __getitem__(self, number: int) -> dict[str, Any]:
        row, side = self.index[number], self.image_processor.size["longest_edge"]
        try:
            image, size, content = read_image(row, side)
        except UnreadableImage as error:
            return {"id": row["id"], "skipped": str(error), "image": 0}
        boxes = all_boxes(content_extent(*size), self.max_grid)
        found = {"id": row["id"], "skipped": None, "image": zlib.crc32(content)}
        return found | {"pixels": resize_and_pad(image, side), "boxes": boxes}


@torch.inference_mode()
def predictions(
    index: datasets.Dataset,
    rows: range,
    teacher: LoadedModel,
    embeddings: CategoryEmbeddings,
    arguments: Arguments,
) -> Iterator[dict[str, Any]]:
    """A row of `SCHEMA` per image: all grids are pooled from one forward pass of the teacher."""
    _, data_args, args = arguments
    loader = torch.utils.data.DataLoader(
        _AllGrids(index, teacher.image_processor, data_args.max_grid),
        batch_size=args.per_device_train_batch_size,
        sampler=rows,
        num_workers=args.dataloader_num_workers,
        collate_fn=to_shared_memory,
    )
    text_embeds = embeddings.embeds.to(args.device)
    is_thing = torch.as_tensor(embeddings.is_thing)
    temperature, threshold = (getattr(args, key) for key in ("temperature", "threshold"))
    for samples in loader:
        good = [sample for sample in samples if not sample["skipped"]]
        logits = _region_logits(good, teacher, text_embeds, temperature) if good else iter(())
        for sample in samples:
            if sample["skipped"]:
                logger.warning(f"Skipped: {sample['skipped']}")
                arrays = {name: np.zeros(0, dtype=np.uint16) for name in ARRAYS}
            else:
                arrays = compress(retrieve(next(logits), is_thing, threshold), is_thing, data_args.teacher_cache_top_k)
            row = {name: sample[name] for name in ("id", "skipped", "image")}
            yield row | arrays | {"checksum": checksum(row, arrays)}


def _region_logits(
    samples: list[dict[str, Any]], teacher: LoadedModel, text_embeds: torch.Tensor, temperature: float
) -> Iterator[torch.Tensor]:
    """The teacher's logits for the regions of each image (Eq. 1)."""
    pixels = torch.stack([sample["pixels"] for sample in samples]).to(text_embeds.device)
    boxes = [sample["boxes"].to(text_embeds.device) for sample in samples]
    pixel_values = teacher.image_processor.normalize(pixels)
    region_embeds = teacher.model(pixel_values=pixel_values, boxes=boxes).region_embeds
    for part in region_embeds.split([len(b) for b in boxes]):
        yield region_logits(part, text_embeds, temperature)


def _write(file: Path, rows: Iterator[dict[str, Any]]) -> int:
    """Writes a shard atomically: stages and renames it. Returns the number of skipped images."""
    staged, skipped = file.with_name(f".{file.name}"), 0
    try:
        with pyarrow.OSFile(str(staged), "wb") as sink, pyarrow.ipc.new_stream(sink, SCHEMA) as writer:
            while block := list(islice(rows, BLOCK)):
                skipped += sum(row["skipped"] is not None for row in block)
                writer.write_batch(pyarrow.RecordBatch.from_pylist(block, SCHEMA))
        staged.replace(file)
    except OSError as error:
        staged.unlink(missing_ok=True)
        raise OSError(
            f"`--teacher_cache`: {file} cannot be written: {error}. Make room; the same command resumes with this "
            "file, those written before are complete."
        ) from error
    return skipped


if __name__ == "__main__":
    main()
    close_process_group()
