# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
Uploads a model to the Hub, or writes the same files to a folder: weights, configuration, processor, tokenizer, the
code that loads the model without this package, and a model card.

    densevlm publish runs/coco YOU/densevlm-coco --dry_run   # shows what goes up
    densevlm publish runs/coco YOU/densevlm-coco [--private]
    densevlm publish runs/coco --folder densevlm-coco

Checkpoints, optimizers and settings stay here. The model card is that of the source folder, if it has one; results of
evaluations that the card on the Hub has beyond it are preserved.
"""

import argparse
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, ModelCard, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError, RevisionNotFoundError

from .command_line import check_output, one_line_errors
from .configuration_densevlm import DenseVLMConfig
from .model_card import CARD, add_results, licence_of, new_card, rename
from .modeling_densevlm import DenseVLMModel
from .modeling_densevlm_segmentation import DenseVLMForSemanticSegmentation
from .processing_densevlm import DenseVLMProcessor, load_processing
from .shipped import model_source


DTYPES = ("float32", "bfloat16", "float16")


def publish(source: str | Path, output: str | Path, dtype: torch.dtype | None = None) -> Path:
    """
    Writes a model to a complete folder for the Hub, atomically.

    Args:
        source (`str` or path): folder or Hub name of a DenseVLM, a segmenter or a CLIP.
        output (`str` or path): folder to write, new or empty.
        dtype (`torch.dtype`, *optional*): dtype of the weights; by default that in which they are saved.

    Returns:
        `Path`: the folder.

    Raises:
        `ValueError` if the folder is not empty, or the tokenizer of a text tower is missing.
    """
    output = Path(output)
    check_output(output, folder=True, option="OUTPUT")
    if output.exists() and any(output.iterdir()):
        # Files of another model in the folder, such as its tokenizer, would be mistaken for this one's.
        raise ValueError(f"OUTPUT {output} exists already: give a new folder.")
    with_vocabulary = "DenseVLMForSemanticSegmentation" in (DenseVLMConfig.from_pretrained(source).architectures or [])
    model_class: Any = DenseVLMForSemanticSegmentation if with_vocabulary else DenseVLMModel
    model = model_class.from_pretrained(source, dtype=dtype or "auto")
    image_processor, tokenizer = load_processing(source)
    if tokenizer is None and model.config.text_config is not None:
        raise ValueError(
            f"{source} has a text tower but no tokenizer: texts could not be embedded. Save its tokenizer there "
            "(`densevlm convert ... --processor` does)."
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".publish-") as folder:
        staging = Path(folder) / output.name
        model.save_pretrained(staging)
        processor = image_processor if tokenizer is None else DenseVLMProcessor(image_processor, tokenizer)
        processor.save_pretrained(staging)
        if (Path(source) / CARD).is_file():
            shutil.copyfile(Path(source) / CARD, staging / CARD)
        else:
            of_hub = [] if Path(source).exists() else [str(source)]
            options: dict[str, Any] = {"base_models": of_hub, "licence": licence_of(source)}
            new_card(output.name, model, image_processor.size["longest_edge"], **options).save(staging / CARD)
        if output.exists():
            output.rmdir()  # empty, see above
        shutil.move(staging, output)
    return output


def upload(
    source: str | Path,
    repo: str,
    dtype: torch.dtype | None = None,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    message: str = "Upload the model",
    dry_run: bool = False,
) -> str | None:
    """
    Uploads what [`publish`] writes, in one commit, and prints the files.

    Args:
        source (`str` or path): folder or Hub name of a DenseVLM, a segmenter or a CLIP.
        repo (`str`): name on the Hub, `YOU/NAME`.
        dtype (`torch.dtype`, *optional*): dtype of the weights; by default that in which they are saved.
        private (`bool`, *optional*): whether a new repository is private; by default as your account is set.
        revision (`str`, *optional*): branch to commit to; by default `main`.
        token (`str`, *optional*): token with write permission; by default that of `hf auth login`.
        message (`str`, *optional*): of the commit.
        dry_run (`bool`, *optional*, defaults to `False`): only print the files.

    Returns:
        `str`: address of the commit; `None` for a dry run.

    Raises:
        `ValueError` as [`publish`]; `OSError` if the Hub refuses.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise ValueError(f"{repo} is no name on the Hub, YOU/NAME. To write a folder, give `--folder {repo}`.")
    with tempfile.TemporaryDirectory(prefix="densevlm-publish-") as temporary:
        folder = publish(source, Path(temporary) / repo.split("/")[-1], dtype)
        api = HfApi(token=token)
        try:
            if not dry_run:
                repo = api.create_repo(repo, private=private, exist_ok=True).repo_id
            complete_card(folder, repo, None if dry_run else card_on_hub(repo, revision, token))
            for file in sorted(folder.iterdir()):
                print(f"{file.stat().st_size:>13,} bytes  {file.name}")
            if dry_run:
                return None
            commit = api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message, revision=revision)
        except HfHubHTTPError as error:
            raise OSError(f"{repo} could not be uploaded: {' '.join(str(error).split())}") from error
        return str(commit.commit_url)


def card_on_hub(repo: str, revision: str | None, token: str | None) -> Any:
    """The `ModelCard` of a repository; `None` if it has none yet."""
    try:
        return ModelCard.load(hf_hub_download(repo, CARD, revision=revision, token=token), ignore_metadata_errors=True)
    except (RemoteEntryNotFoundError, RevisionNotFoundError):  # not: the Hub cannot be reached
        return None


def complete_card(folder: Path, repo: str, on_hub: Any) -> None:
    """Writes the name on the Hub into the card of a folder, and the results that only the card on the Hub has."""
    card: Any = ModelCard.load(folder / CARD, ignore_metadata_errors=True)
    rename(card, repo)
    card.save(folder / CARD)
    if on_hub is not None and on_hub.data.eval_results:
        add_results(folder, [*on_hub.data.eval_results, *(card.data.eval_results or [])])


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """The command line of [`upload`] and [`publish`]."""
    parser = argparse.ArgumentParser(
        prog="python -m modeling_densevlm.publish",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=model_source, help="folder or Hub name of a DenseVLM, a segmenter or a CLIP")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("repo", nargs="?", help="name on the Hub: YOU/NAME")
    target.add_argument("--folder", type=Path, help="write the files to a new folder instead of uploading them")
    parser.add_argument("--private", action="store_true", default=None, help="a new repository is private")
    parser.add_argument("--dry_run", action="store_true", help="only show what would be uploaded")
    parser.add_argument(
        "--dtype", choices=DTYPES, help="dtype of the weights; by default that in which they are saved"
    )
    arguments = parser.parse_args(argv)
    dtype = arguments.dtype and getattr(torch, arguments.dtype)
    if arguments.folder is not None:
        output = publish(arguments.source, arguments.folder, dtype)
        print(f"{arguments.source} → {output}: {', '.join(sorted(file.name for file in output.iterdir()))}")
        return
    address = upload(arguments.source, arguments.repo, dtype, arguments.private, dry_run=arguments.dry_run)
    print(f"Uploaded: {address}" if address else f"Nothing was uploaded to {arguments.repo}: a dry run")


if __name__ == "__main__":
    main()


__all__ = ["publish", "upload"]
