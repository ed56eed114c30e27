"""
Images per second of one core: ours, the same with the crops that the reference cuts and drops, and decoding alone.

The pictures are drawn: smooth noise at several scales, which JPEG at quality 90 makes as large as photographs.
"""

import io
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.timing import seconds
from modeling_densevlm import DenseVLMImageProcessor
from modeling_densevlm.image_processing_densevlm import content_extent, load_image
from training.data import RegionCollator, RegionDataset, cut
from training.regions import content_grid
from training.sources import Source, open_source, read_bytes


CROPS, CROP_SIDE = 36, 224


def photo(seed: int, width: int, height: int) -> bytes:
    """A JPEG with detail at all scales."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((height, width, 3), dtype=np.float32)
    for cells in (4, 16, 64, 256):
        noise = Image.fromarray(rng.integers(0, 255, (cells * height // width + 1, cells, 3), dtype=np.uint8))
        picture += np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32) / 4
    buffer = io.BytesIO()
    Image.fromarray(picture.astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_folder(folder: Path, count: int, width: int, height: int) -> None:
    """The same pictures as files and as a tar."""
    (folder / "images").mkdir()
    for number in range(count):
        (folder / "images" / f"sa_{number}.jpg").write_bytes(photo(number, width, height))
    with tarfile.open(folder / "sa_000000.tar", "w") as tar:
        for file in sorted((folder / "images").iterdir()):
            tar.add(file, arcname=file.name)


class WithCrops:
    """The reference's way: everything as floats, and 36 crops of 224 pixels that no one looks at."""

    def __init__(self, dataset: RegionDataset):
        self.dataset = dataset
        self.crop_processor = DenseVLMImageProcessor(CROP_SIDE)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        row = self.dataset.index[key[1]]
        image = load_image(io.BytesIO(read_bytes(row)))
        processors = (self.dataset.image_processor, self.dataset.teacher_image_processor)
        pixels = [processor(image)["pixel_values"] for processor in processors]
        boxes = content_grid(6, 6, content_extent(*image.size))
        crops = [self.crop_processor(crop)["pixel_values"][0] for crop in cut(image, boxes)]
        return {"pixel_values": pixels[0], "teacher_pixel_values": pixels[1], "crops": torch.stack(crops)}


def main() -> None:
    torch.set_num_threads(1)
    student, teacher = DenseVLMImageProcessor(512), DenseVLMImageProcessor(518)
    for title, count, size in (("COCO-like, 640 x 480", 8, (640, 480)), ("SA-1B-like, 2250 x 1500", 4, (2250, 1500))):
        with tempfile.TemporaryDirectory() as folder:
            write_folder(Path(folder), count, *size)
            files = open_source(Source(f"{folder}/images"))
            online, cached = RegionDataset(files, student, teacher), RegionDataset(files, student)
            tars = RegionDataset(open_source(Source(f"{folder}/sa_000000.tar")), student, teacher)
            crops = WithCrops(online)
            kib = len(read_bytes(files[0])) / 1024
            print(f"{title}, {kib:.0f} KiB a JPEG, one core, milliseconds an image")

            def load(dataset: RegionDataset, count: int = count) -> object:
                return RegionCollator(dataset)([dataset[0, number] for number in range(count)])

            def decode(index=files, count: int = count) -> None:
                for number in range(count):
                    load_image(io.BytesIO(read_bytes(index[number])))

            slow = seconds(lambda: [crops[0, number] for number in range(count)], 5) / count  # noqa: B023
            rows = {
                "student and teacher (512 and 518 px)": seconds(lambda: load(online), 5) / count,  # noqa: B023
                "the same from a tar": seconds(lambda: load(tars), 5) / count,  # noqa: B023
                "student alone, with kept answers": seconds(lambda: load(cached), 5) / count,  # noqa: B023
                "decoding alone, in full": seconds(decode, 5) / count,
            }
            for name, time in rows.items():
                print(f"  {name:40} {1e3 * time:6.1f}   {slow / time:5.1f} x   {1 / time:5.0f} images/s")
            print(f"  {'with crops, as floats':40} {1e3 * slow:6.1f}")


if __name__ == "__main__":
    main()
