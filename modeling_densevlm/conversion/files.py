# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Reads checkpoint files without executing code in them, and writes them."""

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
"""Keys under which training checkpoints store weights: open_clip and CLIPSelf, detectron2, DeepSpeed."""

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


class Checkpoint(NamedTuple):
    """The tensors of a file under their own names, and the location of the CLIP among them."""

    tensors: dict[str, Tensor]
    wrapper: str
    """The keys, joined by dots, of the dict that holds the tensors; `""` for the top level."""
    prefix: str
    """Prefix of the names of the CLIP's tensors, without parts added by module wrappers."""
    others: list[str]
    """Paths of the other tensors of the file, except those of an optimizer."""


def read_checkpoint(file: str | PathLike, prefix: str | None = None) -> Checkpoint:
    """
    Reads a `.safetensors`, `.pt`, `.pth` or `.bin` file, or the shards listed in an index.

    Args:
        file (path): the checkpoint or the index of its shards.
        prefix (`str`, *optional*): as in [`unwrap`].

    Returns:
        [`Checkpoint`]

    Raises:
        `FileNotFoundError` for a missing file; `ValueError` for files that are truncated, not checkpoints, without
        tensors, or would execute pickled code.
    """
    file = Path(file)
    if file.is_dir():
        raise ValueError(
            f"{file} is a folder: `DenseVLMModel.from_pretrained` loads folders; give a file{_suggest_file(file)}."
        )
    if not file.is_file():
        raise FileNotFoundError(f"There is no checkpoint {file}.")
    return unwrap(_read_shards(file) if file.name.endswith(".index.json") else _read(file), str(file), prefix)


def _suggest_file(folder: Path) -> str:
    """Part of a message: what to give instead of a folder."""
    if (folder / ".metadata").is_file():
        return (
            ". It holds the shards of a distributed checkpoint, which PyTorch merges: `python -m "
            f"torch.distributed.checkpoint.format_utils dcp_to_torch {folder} OUTPUT.pt`"
        )
    if (folder / "zero_to_fp32.py").is_file():
        return ". It holds the shards of DeepSpeed, which its script `zero_to_fp32.py` merges"
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
        raise ValueError(f"{index} is not an index of shards, a JSON with `weight_map`: {error!r}") from None
    if missing := [str(shard) for shard in shards.values() if not shard.is_file()]:
        raise FileNotFoundError(f"{index} lists missing shards: {', '.join(missing)}.")
    content = {name: _read(shard) for name, shard in shards.items()}
    for name, shard in shards.items():
        if not isinstance(content[name], Mapping):
            raise ValueError(f"{shard}: expected a dict of tensors.")
    if missing := sorted(key for key, name in files.items() if key not in content[name]):
        raise ValueError(f"{index} lists {missing[0]} in {files[missing[0]]}, which does not contain it.")
    return {key: content[name][key] for key, name in files.items()}


def _read(file: Path) -> Any:
    _check_readable(file)
    if file.suffix != ".safetensors":
        return _load_torch(file)
    try:
        return load_file(file)
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{file} is truncated or not a checkpoint: {error}") from None


def _load_torch(file: Path) -> Any:
    try:
        if not _is_torchscript(file):
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it refers to the code {code[1]}" if code else "it was not written by torch.save"
        raise ValueError(
            f"{file} does not hold tensors only ({what}), and was not unpickled. If you trust its source, load it "
            "with the code that wrote it and save only its state dict, as safetensors."
        ) from None
    except Exception as error:  # decoders raise arbitrary exceptions for damaged files
        raise ValueError(f"{file} is truncated or not a checkpoint: {type(error).__name__}: {error}") from None
    raise ValueError(
        f"{file} is a TorchScript archive, which contains code, and was not executed. OpenAI's CLIPs are on the Hub "
        'as weights, e.g. `DenseVLMModel.from_pretrained("openai/clip-vit-base-patch16")`.'
    )


def _is_torchscript(file: Path) -> bool:
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any("/code/" in name or name.endswith("constants.pkl") for name in archive.namelist())


def unwrap(content: Any, source: str, prefix: str | None = None) -> Checkpoint:
    """
    Finds the CLIP in the content of a checkpoint: the only dict and prefix whose tensors have the names of a CLIP.

    Args:
        content (`dict`): tensors, or nested dicts of tensors.
        source (`str`): name of the checkpoint in messages.
        prefix (`str`, *optional*):
            Selects one of several CLIPs, by the keys of its dict, the prefix of its names, or both, joined by dots,
            without parts added by module wrappers. With a final `visual.`, only its vision tower is converted.

    Returns:
        [`Checkpoint`]

    Raises:
        `ValueError` if there are no tensors, or several CLIPs.
    """
    dicts = dict(_tensor_dicts(content))
    found = [(path, start) for path, tensors in dicts.items() for start in clip_prefixes(tensors)]
    all_locations = _format_locations(found)
    if prefix is not None:
        found = _select(dicts, found, clean(prefix).strip("."))
        if not found:
            hint = f"; there is one under {all_locations}" if all_locations else ""
            raise ValueError(f"{source}: there is no CLIP under the prefix {prefix!r}{hint}.")
    found = _without_duplicates(dicts, found)
    if len(found) > 1:
        raise ValueError(
            f"{source} holds {len(found)} CLIPs, under {_format_locations(found)}. Choose one as `prefix` "
            f"(`--prefix`), e.g. `--prefix {_format_location(*found[-1])}`."
        )
    path, start = found[0] if found else (_weights_key(dicts, source), "")
    tensors = {}
    for key, value in dicts[path].items():
        if isinstance(value, int) and not isinstance(value, bool) and str(key).split(".")[-1] in SIZES:
            value = torch.tensor(value)
        if not isinstance(value, Tensor):
            raise ValueError(f"{source}: expected a dict of tensors, but {key!r} is {type(value).__name__}.")
        tensors[key] = value
    others = [
        _format_location(other, key)
        for other in dicts.keys() - {path}
        for key in dicts[other]
        if _is_tensor(dicts[other], key)
    ]
    return Checkpoint(tensors, path, start, sorted(others))


def _tensor_dicts(content: Any, path: str = "", depth: int = 4) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields every nested dict that contains a tensor, with its path."""
    if not isinstance(content, Mapping) or depth == 0:
        return
    if any(_is_tensor(content, key) for key in content):
        yield path, content
    for key, value in content.items():
        if not str(key).startswith("optim"):  # the moments of an optimizer have the names of the weights
            yield from _tensor_dicts(value, f"{path}.{key}" if path else str(key), depth - 1)


def _is_tensor(content: Mapping[Any, Any], key: Any) -> bool:
    return isinstance(key, str) and isinstance(content[key], Tensor)


def _without_duplicates(dicts: Mapping[str, Mapping[str, Any]], found: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The locations of CLIPs, without those of the same tensors again."""
    seen: dict[tuple[str, str], dict[str, Any]] = {}
    for path, prefix in found if len(found) > 1 else ():
        names = {clean(key): value for key, value in dicts[path].items() if isinstance(key, str)}
        tensors = {name.removeprefix(prefix): names[name] for name in names if name.startswith(prefix)}
        if not any(same_tensors(tensors, others) for others in seen.values()):
            seen[path, prefix] = tensors
    return list(seen) or found


def _format_location(path: str, prefix: str) -> str:
    return (f"{path}.{prefix}" if path else prefix) or '""'


def _format_locations(locations: list[tuple[str, str]]) -> str:
    return ", ".join(f"`{_format_location(*location)}`" for location in locations)


def _select(
    dicts: Mapping[str, Mapping[str, Any]], found: list[tuple[str, str]], prefix: str
) -> list[tuple[str, str]]:
    """The locations of the CLIPs under a prefix."""
    if not prefix:
        return [location for location in found if location == ("", "")]
    locations = []
    for path, tensors in dicts.items():
        names = {clean(key): value for key, value in tensors.items() if isinstance(key, str)}
        below = "" if prefix == path else prefix.removeprefix(f"{path}.") + "."
        for start in {below, *(clip_prefix + below for clip_prefix in clip_prefixes(tensors))}:
            inside = {name.removeprefix(start): names[name] for name in names if name.startswith(start)}
            if path == prefix or start:
                locations += [(path, start + clip_prefix) for clip_prefix in clip_prefixes(inside)]
    return sorted(set(locations))


def _weights_key(dicts: Mapping[str, Any], source: str) -> str:
    """The path of the weights if no CLIP was recognised; its missing tensors are reported later."""
    for path in ("", *WRAPPERS):
        if path in dicts:
            return path
    if len(dicts) == 1:
        return next(iter(dicts))
    raise ValueError(
        f"{source}: expected a dict of tensors, or one under {', '.join(f'`{w}`' for w in WRAPPERS)}, "
        "or under any other key if it has the names of a CLIP."
    )


def write_checkpoint(tensors: dict[str, Tensor], file: str | PathLike) -> None:
    """Writes safetensors, or for other suffixes a file for `torch.load` and open_clip."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".safetensors":
        save_file(tensors, file, {"format": "pt"})
    else:
        torch.save(tensors, file)


@contextlib.contextmanager
def staged(*paths: Path) -> Iterator[list[Path]]:
    """
    Context manager to write files or folders atomically: yields staging paths on the same disk, which are moved to
    `paths` at the end, last one first. If writing fails, the staged files are deleted.

    Args:
        paths (`Path`): the final paths, in one folder.

    Yields:
        `list[Path]`: the staging paths.

    Raises:
        `OSError` that names the path, also where safetensors or PyTorch raise other exceptions for a full disk.
    """
    path, *_ = paths
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            contents = [Path(folder) / path.name for path in paths]
            yield contents
            for content, path in zip(reversed(contents), reversed(paths)):
                if content.is_dir() and path.is_dir():
                    path.rmdir()  # must be empty
                content.replace(path)
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or as_one_line(error)
        if "inline_container" in reason:  # PyTorch's archive writer only reports its own line number
            reason = "PyTorch could not write the whole file (full disk?)"
        raise OSError(f"{path} cannot be written: {reason.rstrip('.')}.") from None


__all__ = ["SUFFIXES", "Checkpoint", "read_checkpoint", "staged", "unwrap", "write_checkpoint"]
