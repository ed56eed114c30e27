# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""A run with evaluation during training: `python -m tests.evaluation.watched_run SCENES --key value ...`"""

import sys

from evaluation.while_training import RegionEvaluation
from training.engine.signals import close_process_group
from training.train import main


if __name__ == "__main__":
    scenes, *arguments = sys.argv[1:]
    files = (f"{scenes}/panoptic.json", f"{scenes}/images", f"{scenes}/panoptic")
    options = {"steps": 2, "count": 5, "templates": "short"}
    main(arguments, prepare=lambda trainer: trainer.add_callback(RegionEvaluation(trainer, *files, **options)))
    close_process_group()
