"""Checkpoint files: read without executing anything in them, and written."""

import pickle
import re
import zipfile
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor


WRAPPERS = ("state_dict", "model", "module")
"""Where training checkpoints keep the weights: open_clip and CLIPSelf, detectron2, DeepSpeed."""


def read_checkpoint(file: str | PathLike) -> dict[str, Tensor]:
    """
    The tensors of a `.safetensors` file, or of a `.pt`, `.pth` or `.bin`; a training checkpoint is unwrapped.

    Raises:
        `FileNotFoundError` where there is none; `ValueError` that names the file where it is truncated, no checkpoint,
        holds code to be unpickled, or no tensors.
    """
    file = Path(file)
    if file.is_dir():
        raise ValueError(f"{file} is a folder: `DenseVLMModel.from_pretrained` loads folders; give a file.")
    if not file.is_file():
        raise FileNotFoundError(f"There is no checkpoint {file}.")
    if file.suffix == ".safetensors":
        try:
            return load_file(file)
        except (SafetensorError, ValueError) as error:
            raise ValueError(f"{file} is truncated or no checkpoint: {error}") from None
    return unwrap(_load_torch(file), str(file))


def _load_torch(file: Path) -> Any:
    try:
        if not _is_torchscript(file):
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it names {code[1]}, which is code" if code else "it is no file of torch.save"
        raise ValueError(
            f"{file} holds more than tensors, or is none ({what}); it was not unpickled. If you trust where it comes "
            "from, load it there and save its state dict alone, as safetensors."
        ) from None
    except Exception as error:  # a damaged file can raise anything in a decoder
        raise ValueError(f"{file} is truncated or no checkpoint: {type(error).__name__}: {error}") from None
    raise ValueError(
        f"{file} is a TorchScript archive, a program, not weights; it was not run. OpenAI's CLIPs are on the Hub as "
        'weights, e.g. `DenseVLMModel.from_pretrained("openai/clip-vit-base-patch16")`.'
    )


def _is_torchscript(file: Path) -> bool:
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any("/code/" in name or name.endswith("constants.pkl") for name in archive.namelist())


def unwrap(content: Any, source: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint, which training programs keep under a key of their own."""
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping) or not content:
        raise ValueError(
            f"{source}: expected a dict of tensors, or one under {', '.join(f'`{w}`' for w in WRAPPERS)}."
        )
    for key, value in content.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{source}: expected a dict of tensors, but {key!r} is {type(value).__name__}.")
    return dict(content)


def write_checkpoint(tensors: dict[str, Tensor], file: str | PathLike) -> None:
    """Writes safetensors, or for another suffix what `torch.load` and open_clip read."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".safetensors":
        save_file(tensors, file, {"format": "pt"})
    else:
        torch.save(tensors, file)


__all__ = ["read_checkpoint", "unwrap", "write_checkpoint"]
