# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints on the Hub, and CLIP's tokenizer without it."""

import json
from pathlib import Path

from huggingface_hub import hf_hub_download
from transformers import CLIPTokenizer, PreTrainedTokenizerBase


HUB = "hub:"


def local_file(checkpoint: str) -> Path:
    """
    The file of a checkpoint; one on the Hub is downloaded, it alone, or with the shards that an index lists.

    Args:
        checkpoint (`str`): a path, or `hub:OWNER/NAME/FILE`.

    Raises:
        `ValueError` for an address without a file; `OSError` if it cannot be downloaded.
    """
    if not checkpoint.startswith(HUB):
        return Path(checkpoint)
    owner, _, rest = checkpoint.removeprefix(HUB).partition("/")
    name, _, file = rest.partition("/")
    if not (owner and name and file):
        raise ValueError(f"{checkpoint}: an address on the Hub is hub:OWNER/NAME/FILE.")
    try:
        path = Path(hf_hub_download(f"{owner}/{name}", file))
        if file.endswith(".index.json"):
            folder = file.rpartition("/")[0]
            for shard in sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())):
                hf_hub_download(f"{owner}/{name}", f"{folder}/{shard}".lstrip("/"))
    except (OSError, ValueError) as error:
        raise OSError(f"{checkpoint} cannot be downloaded: {' '.join(str(error).split())}") from error
    return path


def clip_tokenizer() -> PreTrainedTokenizerBase | None:
    """
    The tokenizer of CLIP and EVA-CLIP, from the vocabulary that the package open_clip_torch holds; `None` where this
    is not installed.
    """
    try:
        from open_clip import SimpleTokenizer
    except ImportError:
        return None
    theirs = SimpleTokenizer()
    # The last two of its words are the start and the end of a text, under names of its own.
    vocabulary = dict(zip([*list(theirs.encoder)[:-2], "<|startoftext|>", "<|endoftext|>"], theirs.encoder.values()))
    return CLIPTokenizer(vocabulary, list(theirs.bpe_ranks), model_max_length=theirs.context_length)


__all__ = ["clip_tokenizer", "local_file"]
