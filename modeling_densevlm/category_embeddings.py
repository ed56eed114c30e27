# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Text embeddings of categories, and their cosine similarities with regions."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize
from transformers import PreTrainedTokenizerBase

from .categories import CategorySet
from .templates import DEFAULT_TEMPLATES, fill_template, get_templates


def region_cosines(region_embeds: Tensor, text_embeds: Tensor) -> Tensor:
    """
    Cosine similarities of regions and categories, in float32 also under autocast.

    Args:
        region_embeds (`torch.Tensor` of shape `(regions, dim)`): pooled features; normalised by this function.
        text_embeds (`torch.Tensor` of shape `(categories, dim)`): category embeddings of unit norm.

    Returns:
        `torch.Tensor` of shape `(regions, categories)`, float32.
    """
    with torch.autocast(region_embeds.device.type, enabled=False):
        return normalize(region_embeds.float(), dim=-1) @ text_embeds.float().T


def encoder_fingerprint(model: Any, tokenizer: PreTrainedTokenizerBase) -> str:
    """
    Hash of a text encoder's weights and vocabulary, which guards against the use of its embeddings with another one.

    Args:
        model (`PreTrainedModel`): with `text_model` and `text_projection`, in float32 or float16 (bfloat16 rounds).
        tokenizer (`PreTrainedTokenizerBase`): its tokenizer.

    Returns:
        `str`: 16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for module in ("text_model", "text_projection"):
        for key, tensor in sorted(getattr(model, module).state_dict().items()):
            # Half precision, so that float32 and float16 weights give the same hash.
            digest.update(key.encode() + tensor.detach().cpu().to(torch.float16).contiguous().numpy().tobytes())
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    digest.update(json.dumps(vocabulary).encode())
    return digest.hexdigest()[:16]


@dataclass
class CategoryEmbeddings:
    r"""
    One text embedding per category, with everything that it depends on.

    Args:
        embeds (`torch.Tensor` of shape `(categories, dim)`): unit norm.
        names (`list[str]`): names of the categories.
        is_thing (`list[bool]` or `list[int]`, *optional*): their flags or groups.
        synonyms (`list[list[str]]`): their further names.
        templates (`list[str]`): the prompt templates.
        encoder (`str`): the [`encoder_fingerprint`] of the text encoder.
    """

    embeds: Tensor
    names: list[str]
    is_thing: list | None
    synonyms: list[list[str]]
    templates: list[str]
    encoder: str

    @classmethod
    @torch.no_grad()
    def compute(
        cls,
        categories: CategorySet,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        templates: str | Sequence[str] = DEFAULT_TEMPLATES,
        batch_size: int = 512,
    ) -> "CategoryEmbeddings":
        """
        Embeds every name of a category in every template, and averages the normalised embeddings. The average is
        normalised again, so that the temperature acts on all categories equally.

        Args:
            categories ([`CategorySet`]): the categories.
            model (`PreTrainedModel`): any CLIP with `get_text_features`, `text_model` and `text_projection`.
            tokenizer (`PreTrainedTokenizerBase`): its tokenizer.
            templates (`str` or `Sequence[str]`, *optional*, defaults to the paper's): as in [`get_templates`].
            batch_size (`int`, *optional*, defaults to 512): prompts per forward pass.

        Returns:
            [`CategoryEmbeddings`] on the device of the model.

        Raises:
            `ValueError` for a model without a text tower, and for names that the tokenizer does not know.
        """
        if getattr(model, "text_model", None) is None:
            raise ValueError("Category embeddings need a text tower, which this model lacks. Give an embedding file.")
        templates = get_templates(templates)
        names = [[name, *more] for name, more in zip(categories.names, categories.synonyms)]
        prompts = [fill_template(t, name) for more in names for name in more for t in templates]
        _check_vocabulary(categories, tokenizer)
        max_length = model.config.text_config.max_position_embeddings
        padding = getattr(model.text_model, "padding", "longest")
        pooled_chunks = []
        for start in range(0, len(prompts), batch_size):
            tokens = tokenizer(
                prompts[start : start + batch_size],
                padding=padding,
                truncation=True,
                max_length=max_length,
                return_tensors="pt",
            ).to(model.device)
            pooled = model.get_text_features(tokens.input_ids, tokens.get("attention_mask")).pooler_output
            pooled_chunks.append(normalize(pooled.float(), dim=-1))
        per_category = torch.cat(pooled_chunks).split([len(more) * len(templates) for more in names])
        embeds = normalize(torch.stack([rows.mean(0) for rows in per_category]), dim=-1)
        return cls(
            embeds,
            list(categories.names),
            categories.is_thing,
            categories.synonyms,
            templates,
            encoder_fingerprint(model, tokenizer),
        )

    @classmethod
    def resolve(
        cls,
        categories: CategorySet,
        model: Any,
        tokenizer: PreTrainedTokenizerBase | None,
        templates: str | Sequence[str] = DEFAULT_TEMPLATES,
        *,
        given: str | PathLike | None = None,
        cached: str | PathLike | None = None,
        write_cache: bool = True,
        device: torch.device | str | None = None,
        option: str | None = None,
    ) -> "CategoryEmbeddings":
        """
        Loads the embeddings from a given file or from a cache that matches, and computes them otherwise.

        Args:
            categories ([`CategorySet`]): the categories.
            model (`PreTrainedModel`): the model; with a given file it needs no text tower.
            tokenizer (`PreTrainedTokenizerBase`, *optional*): its tokenizer; not needed with a given file.
            templates (`str` or `Sequence[str]`, *optional*, defaults to the paper's):
                As in [`get_templates`]; with a given file, the templates of the file are used.
            given (path, *optional*): a file written by [`CategoryEmbeddings.save`].
            cached (path, *optional*): likewise; written if it is missing or does not match.
            write_cache (`bool`, *optional*, defaults to `True`): whether this process writes the cache.
            device (`torch.device` or `str`, *optional*): where to move the model for the computation.
            option (`str`, *optional*): the user's name of `given`, for messages.

        Returns:
            [`CategoryEmbeddings`]

        Raises:
            `ValueError` for a given file that does not match; and for a model without a text tower or tokenizer, where
            there is no given file.
        """
        has_text = getattr(model, "text_model", None) is not None and tokenizer is not None
        encoder = None if tokenizer is None or not has_text else encoder_fingerprint(model, tokenizer)
        dim = model.config.projection_dim
        if given is not None:
            embeddings = cls.load(given)
            embeddings.check(categories, dim, encoder, source=f"{option or 'embeddings'} {given}")
            return embeddings
        if tokenizer is None or not has_text:
            remedy = f": give {option}" if option else ""
            raise ValueError(f"{model.name_or_path or 'The model'} has no text tower or no tokenizer{remedy}.")
        if cached is not None:
            try:
                embeddings = cls.load(cached)
                embeddings.check(categories, dim, encoder, templates)
                return embeddings
            except (FileNotFoundError, ValueError):
                pass  # compute them
        embeddings = cls.compute(categories, model if device is None else model.to(device), tokenizer, templates)
        if cached is not None and write_cache:
            embeddings.save(cached)
        return embeddings

    def save(self, file: str | PathLike) -> None:
        """Writes a safetensors file; the other fields are in its metadata."""
        fields = ("names", "is_thing", "synonyms", "templates", "encoder")
        metadata = {field: json.dumps(getattr(self, field)) for field in fields}
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        save_file({"embeds": self.embeds.contiguous().cpu()}, file, metadata)

    @classmethod
    def load(cls, file: str | PathLike) -> "CategoryEmbeddings":
        """Reads a file written by [`CategoryEmbeddings.save`]; raises a `ValueError` for invalid files."""
        try:
            with safe_open(file, framework="pt") as content:
                fields = {
                    key: json.loads(value) for key, value in (content.metadata() or {}).items() if key != "format"
                }
                embeds = content.get_tensor("embeds")
            embeddings = cls(embeds, **fields)
        except FileNotFoundError:
            raise
        except Exception as error:
            raise ValueError(f"{file} is not a file of category embeddings: {error}") from None
        if embeds.ndim != 2 or len(embeds) != len(embeddings.names):
            raise ValueError(f"{file}: {len(embeddings.names)} names but embeddings of shape {tuple(embeds.shape)}.")
        if not torch.allclose(embeds.float().norm(dim=1), torch.ones(len(embeds)), atol=1e-3):
            raise ValueError(f"{file}: the embeddings are not of unit norm.")
        return embeddings

    def check(
        self,
        categories: CategorySet,
        dim: int,
        encoder: str | None = None,
        templates: str | Sequence[str] | None = None,
        source: str = "embeddings",
    ) -> None:
        """
        Checks that these are the embeddings of a category set in the space of a model.

        Args:
            categories ([`CategorySet`]): the expected categories.
            dim (`int`): the expected dimension.
            encoder (`str`, *optional*): the expected fingerprint of the text encoder; by default not compared.
            templates (`str` or `Sequence[str]`, *optional*): the expected templates; by default not compared.
            source (`str`, *optional*, defaults to `"embeddings"`): name of the embeddings in messages.

        Raises:
            `ValueError` that names the first difference.
        """
        if self.embeds.shape[1] != dim:
            raise ValueError(
                f"{source}: embeddings of {self.embeds.shape[1]} dimensions, but the model's space has {dim}."
            )
        if self.names != list(categories.names):
            pairs = zip(self.names, categories.names)
            index = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(self.names), len(categories)))
            ours, theirs = (names[index] if index < len(names) else None for names in (self.names, categories.names))
            raise ValueError(
                f"{source}: embeddings of another set than {categories.name} ({len(self.names)} and "
                f"{len(categories)} names; the first difference is at {index}: {ours!r}, {theirs!r})."
            )
        for field in ("is_thing", "synonyms"):
            if getattr(self, field) != getattr(categories, field):
                raise ValueError(f"{source}: `{field}` differs from that of the category set {categories.name}.")
        if templates is not None and get_templates(templates) != self.templates:
            raise ValueError(
                f"{source}: computed with other templates ({len(self.templates)}: {self.templates[0]!r} ...)."
            )
        if encoder is not None and encoder != self.encoder:
            raise ValueError(
                f"{source}: computed with the text encoder {self.encoder}, but the model's is {encoder}. "
                "Compute them again."
            )


def _check_vocabulary(categories: CategorySet, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises a `ValueError` for names that a word-level tokenizer would silently replace by its unknown token."""
    if tokenizer.unk_token_id is None or tokenizer.unk_token_id == tokenizer.eos_token_id:
        return
    for name in categories.names:
        words = name.lower()
        if tokenizer.unk_token_id in tokenizer(words, add_special_tokens=False).input_ids:
            raise ValueError(
                f"The tokenizer of this model does not know {name!r} of the category set {categories.name}. Give "
                "other `categories`, or a model with a full vocabulary."
            )


__all__ = ["CategoryEmbeddings", "encoder_fingerprint", "region_cosines"]
