# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoint files: read without executing anything in them, and written."""

import contextlib
import json
import pickle
import re
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..command_line import as_one_line
from .derived import SIZES
from .names import clean, clip_prefixes, same_tensors


WRAPPERS = ("state_dict", "model", "module")
"""Where training checkpoints keep the weights, whatever they are: open_clip and CLIPSelf, detectron2, DeepSpeed."""

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


class Checkpoint(NamedTuple):
    """The tensors of a file under the names they have there, and where among them the CLIP is."""

    tensors: dict[str, Tensor]
    wrapper: str
    """The keys, joined by dots, under which the file keeps the tensors; `""` where they stand at its top."""
    prefix: str
    """What stands before the names of the CLIP's tensors, without what wrappers of modules put there."""
    beside: list[str]
    """Further tensors of the file, but for an optimiser's, with the keys that lead to them."""


def read_checkpoint(file: str | PathLike, prefix: str | None = None) -> Checkpoint:
    """
    The tensors of a `.safetensors` file, of a `.pt`, `.pth` or `.bin`, or of the shards that an index lists.

    Args:
        prefix (`str`, *optional*): as of [`unwrap`].

    Raises:
        `FileNotFoundError` where there is none; `ValueError` that names the file where it is truncated, no checkpoint,
        holds code to be unpickled, or no tensors.
    """
    file = Path(file)
    if file.is_dir():
        raise ValueError(
            f"{file} is a folder: `DenseVLMModel.from_pretrained` loads folders; give a file{_inside(file)}."
        )
    if not file.is_file():
        raise FileNotFoundError(f"There is no checkpoint {file}.")
    return unwrap(_read_shards(file) if file.name.endswith(".index.json") else _read(file), str(file), prefix)


def _inside(folder: Path) -> str:
    """In words: what of a folder can be given instead of it."""
    if (folder / ".metadata").is_file():
        return (
            ". It holds the shards of a distributed checkpoint, which PyTorch puts together: `python -m "
            f"torch.distributed.checkpoint.format_utils dcp_to_torch {folder} OUTPUT.pt`"
        )
    if (folder / "zero_to_fp32.py").is_file():
        return ". It holds the shards of DeepSpeed, which its own `zero_to_fp32.py` puts together"
    indices = sorted(path.name for path in folder.glob("*.index.json"))
    names = indices or sorted(path.name for path in folder.iterdir() if path.suffix in SUFFIXES)
    return f", such as its {', '.join(names[:4])}" if names else ""


def _check_readable(file: Path) -> None:
    try:
        file.open("rb").close()
    except OSError as error:
        raise OSError(f"{file} cannot be read: {error.strerror}.") from None


def _read_shards(index: Path) -> dict[str, Tensor]:
    _check_readable(index)
    try:
        files = json.loads(index.read_text(encoding="utf-8-sig"))["weight_map"]
        shards = {name: index.parent / name for name in sorted(set(files.values()))}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is no index of shards, a JSON with `weight_map`: {error!r}") from None
    if missing := [str(shard) for shard in shards.values() if not shard.is_file()]:
        raise FileNotFoundError(f"{index} lists shards that are not there: {', '.join(missing)}.")
    content = {name: _read(shard) for name, shard in shards.items()}
    for name, shard in shards.items():
        if not isinstance(content[name], Mapping):
            raise ValueError(f"{shard}: expected a dict of tensors.")
    if missing := sorted(key for key, name in files.items() if key not in content[name]):
        raise ValueError(f"{index} lists {missing[0]} in {files[missing[0]]}, which does not hold it.")
    return {key: content[name][key] for key, name in files.items()}


def _read(file: Path) -> Any:
    _check_readable(file)
    if file.suffix != ".safetensors":
        return _load_torch(file)
    try:
        return load_file(file)
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{file} is truncated or no checkpoint: {error}") from None


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


def unwrap(content: Any, source: str, prefix: str | None = None) -> Checkpoint:
    """
    The CLIP in what a training program keeps: the one dict and the one prefix that have a CLIP's names.

    Args:
        content (`dict`): tensors, or dicts of them.
        source (`str`): what it is called in messages.
        prefix (`str`, *optional*):
            Chooses among several CLIPs: the keys of the dict or what stands before the names, or both, joined by dots;
            with `visual.` a vision tower alone. What wrappers of modules put into names is left out.

    Raises:
        `ValueError` where there are no tensors, where a value is none, and where several CLIPs are there.
    """
    held = dict(_held(content))
    found = [(path, before) for path, tensors in held.items() for before in clip_prefixes(tensors)]
    everywhere = _listed(found)
    if prefix is not None:
        found = _chosen(held, found, clean(prefix).strip("."))
        if not found:
            at = f"; there is one under {everywhere}" if everywhere else ""
            raise ValueError(f"{source}: no CLIP lies under the prefix {prefix!r}{at}.")
    found = _distinct(held, found)
    if len(found) > 1:
        raise ValueError(
            f"{source} holds {len(found)} CLIPs, under {_listed(found)}. Choose one as `prefix` (`--prefix`), "
            f"e.g. `--prefix {_place(*found[-1])}`."
        )
    path, before = found[0] if found else (_only(held, source), "")
    tensors = {}
    for key, value in held[path].items():
        if isinstance(value, int) and not isinstance(value, bool) and str(key).split(".")[-1] in SIZES:
            value = torch.tensor(value)
        if not isinstance(value, Tensor):
            raise ValueError(f"{source}: expected a dict of tensors, but {key!r} is {type(value).__name__}.")
        tensors[key] = value
    beside = [_place(at, key) for at in held.keys() - {path} for key in held[at] if _is_tensor(held[at], key)]
    return Checkpoint(tensors, path, before, sorted(beside))


def _held(content: Any, path: str = "", depth: int = 4) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every dict with a tensor in it, by the keys that lead to it."""
    if not isinstance(content, Mapping) or depth == 0:
        return
    if any(_is_tensor(content, key) for key in content):
        yield path, content
    for key, value in content.items():
        if not str(key).startswith("optim"):  # the moments that an optimiser keeps have the names of the weights
            yield from _held(value, f"{path}.{key}" if path else str(key), depth - 1)


def _is_tensor(content: Mapping[Any, Any], key: Any) -> bool:
    return isinstance(key, str) and isinstance(content[key], Tensor)


def _distinct(held: Mapping[str, Mapping[str, Any]], found: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Each CLIP once, though a file names the same tensors twice."""
    seen: dict[tuple[str, str], dict[str, Any]] = {}
    for path, prefix in found if len(found) > 1 else ():
        names = {clean(key): value for key, value in held[path].items() if isinstance(key, str)}
        tensors = {name.removeprefix(prefix): names[name] for name in names if name.startswith(prefix)}
        if not any(same_tensors(tensors, others) for others in seen.values()):
            seen[path, prefix] = tensors
    return list(seen) or found


def _place(path: str, prefix: str) -> str:
    return (f"{path}.{prefix}" if path else prefix) or '""'


def _listed(places: list[tuple[str, str]]) -> str:
    return ", ".join(f"`{_place(*place)}`" for place in places)


def _chosen(held: Mapping[str, Mapping[str, Any]], found: list[tuple[str, str]], wanted: str) -> list[tuple[str, str]]:
    """Where the CLIPs under a prefix are."""
    if not wanted:
        return [place for place in found if place == ("", "")]
    places = []
    for path, tensors in held.items():
        names = {clean(key): value for key, value in tensors.items() if isinstance(key, str)}
        below = "" if wanted == path else wanted.removeprefix(f"{path}.") + "."
        for start in {below, *(before + below for before in clip_prefixes(tensors))}:
            inside = {name.removeprefix(start): names[name] for name in names if name.startswith(start)}
            if path == wanted or start:
                places += [(path, start + before) for before in clip_prefixes(inside)]
    return sorted(set(places))


def _only(held: Mapping[str, Any], source: str) -> str:
    """Where the tensors are in which no CLIP was seen: what is missing of one will be named."""
    for path in ("", *WRAPPERS):
        if path in held:
            return path
    if len(held) == 1:
        return next(iter(held))
    raise ValueError(
        f"{source}: expected a dict of tensors, or one under {', '.join(f'`{w}`' for w in WRAPPERS)}, "
        "or of any other name where it is a CLIP's."
    )


def write_checkpoint(tensors: dict[str, Tensor], file: str | PathLike) -> None:
    """Writes safetensors, or for another suffix what `torch.load` and open_clip read."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".safetensors":
        save_file(tensors, file, {"format": "pt"})
    else:
        torch.save(tensors, file)


@contextlib.contextmanager
def staged(*paths: Path) -> Iterator[list[Path]]:
    """
    Places on the same disk to write files or folders to; at the end they are moved to `paths`, the last one first.
    Where writing fails, nothing is left of it.

    Raises:
        `OSError` that names the path, whatever the writers of safetensors and PyTorch raise on a full disk.
    """
    path, *_ = paths
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            contents = [Path(folder) / path.name for path in paths]
            yield contents
            for content, path in zip(reversed(contents), reversed(paths)):
                if content.is_dir() and path.is_dir():
                    path.rmdir()  # an empty one
                content.replace(path)
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or as_one_line(error)
        if "inline_container" in reason:  # PyTorch's archive writer names its own line alone
            reason = "PyTorch could not write all of it (a full disk, say)"
        raise OSError(f"{path} cannot be written: {reason.rstrip('.')}.") from None


__all__ = ["SUFFIXES", "Checkpoint", "read_checkpoint", "staged", "unwrap", "write_checkpoint"]
