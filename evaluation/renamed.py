# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Names of earlier versions: files and commands that use one are rejected with the current name."""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


METRICS = {
    "balance": "calibration_gain",
    "knowledge": "discrimination_gain",
    "miou_called": "miou_present_or_predicted",
    "class_accuracy": "mean_accuracy",
    "categories_that_occur": "categories_present",
    "categories_that_occur_or_were_called": "categories_present_or_predicted",
}
"""Metrics of JSON files: old name → new name."""

FIELDS = {"facts": "provenance"}
"""Fields of score files: old name → new name."""

OPTIONS = {"--part_size": "--shard_size"}
"""Options of the programs: old name → new name."""


class OlderVersion(ValueError):
    """A file was written by an earlier version of this package."""


def check_metrics(rows: Iterable[Mapping[str, Any]], source: str = "These metrics") -> None:
    """Raises [`OlderVersion`] if rows of metrics, or dicts nested in them, use a name of an earlier version."""
    for row in rows:
        _refuse(row, METRICS, source)
        check_metrics([value for value in row.values() if isinstance(value, Mapping)], source)


def check_provenance(metadata: Mapping[str, str], file: str | Path) -> None:
    """Raises [`OlderVersion`] if a score file has a field of an earlier version."""
    _refuse(metadata, FIELDS, str(file))


def add_renamed_options(parser: argparse.ArgumentParser) -> None:
    """Adds the hidden options of earlier versions to a parser; using one is an error that names the current one."""
    for old, new in OPTIONS.items():
        parser.add_argument(old, action=_Renamed, const=new, nargs="*", help=argparse.SUPPRESS)


class _Renamed(argparse.Action):
    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Sequence[str], option: str = ""
    ) -> None:
        parser.error(f"{option} has been renamed: give {self.const}")


def _refuse(names: Iterable[str], renamed: Mapping[str, str], source: str) -> None:
    for name in names:
        if name in renamed:
            raise OlderVersion(
                f"{source}: `{name}` was written by an older version, it is now `{renamed[name]}`: evaluate again."
            )


__all__ = ["OlderVersion", "add_renamed_options", "check_metrics", "check_provenance"]
