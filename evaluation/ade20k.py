# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
r"""
Builds ADE20K's panoptic annotations from its public semantic and instance files (ADEChallengeData2016).

The inputs are its folders `images`, `annotations` and `annotations_instance`:

    python -m evaluation.ade20k --images images/validation --semantic annotations/validation \
        --instances annotations_instance/validation --output ade20k_panoptic_val

writes `ade20k_panoptic_val.json` and the folder of PNGs `ade20k_panoptic_val` in COCO's panoptic format, the input of
`evaluation.evaluate_regions --annotations ade20k_panoptic_val.json --panoptic ade20k_panoptic_val`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from modeling_densevlm.command_line import check_output, one_line_errors

from .datasets.ade20k import IS_THING, convert, json_of


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the program with `argv`, by default the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.ade20k",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name in ("images", "semantic", "instances", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    arguments = parser.parse_args(argv)
    if arguments.output.suffix.lower() == ".json":
        parser.error(f"--output {arguments.output} names both the folder and the JSON: give it without .json")
    check_output(arguments.output, folder=True)
    check_output(json_of(arguments.output))
    content = convert(arguments.images, arguments.semantic, arguments.instances, arguments.output)
    segments = [s for record in content["annotations"] for s in record["segments_info"]]
    things = sum(IS_THING[segment["category_id"]] for segment in segments)
    print(f"{len(content['images'])} images, {things} thing segments, {len(segments) - things} stuff segments")


if __name__ == "__main__":
    main()
