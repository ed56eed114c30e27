# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""The classes of the installed package; this folder holds no code of its own. Written by training.sandbox.ship."""

try:
    from modeling_densevlm import *  # noqa: F403
except ImportError as error:
    raise ImportError(
        "This folder holds no modeling code: install the package `densevlm`, or let it write a folder with code, by "
        "`densevlm publish FOLDER --folder OUTPUT`."
    ) from error
