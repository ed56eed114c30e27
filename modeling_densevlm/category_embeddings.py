# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Categories in the image-text space: embeddings of their names, and the cosines of regions with them."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .categories import CategorySet
from .templates import DEFAULT_TEMPLATES, fill_template, get_templates


def region_cosines(region_embeds: Tensor, text_embeds: Tensor) -> Tensor:
    """
    The cosines of regions with categories, `(regions, categories)`, in float32 whatever the autocast around it.

    Args:
        region_embeds (`Tensor` of shape `(regions, dim)`): pooled features, normalised here.
        text_embeds (`Tensor` of shape `(categories, dim)`): category embeddings, used as given.
    """
    with torch.autocast(region_embeds.device.type, enabled=False):
        return normalize(region_embeds.float(), dim=-1) @ text_embeds.float().T


def encoder_fingerprint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """
    Identifies a text encoder by its weights and its vocabulary, so that embeddings cannot be used in the space of
    another one. For a model in float32 or float16; bfloat16 has lost the digits that are compared.
    """
    digest = hashlib.sha256()
    for module in ("text_model", "text_projection"):
        for key, tensor in sorted(getattr(model, module).state_dict().items()):
            # Rounded to half precision: the same weights in another dtype are the same encoder.
            digest.update(key.encode() + tensor.detach().cpu().to(torch.float16).contiguous().numpy().tobytes())
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    digest.update(json.dumps(vocabulary).encode())
    return digest.hexdigest()[:16]


@dataclass
class CategoryEmbeddings:
    r"""
    One unit-norm text embedding per category, with everything they depend on.

    Args:
        embeds (`Tensor` of shape `(categories, dim)`): unit norm.
        names (`list[str]`): the categories, in order.
        is_thing (`list[bool]` or `list[int]`, *optional*): their groups.
        synonyms (`list[list[str]]`): their further names.
        templates (`list[str]`): the sentences they were put into.
        encoder (`str`): fingerprint of the text encoder.
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
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        templates: str | Sequence[str] = DEFAULT_TEMPLATES,
        batch_size: int = 512,
    ) -> "CategoryEmbeddings":
        """
        Embeds every name in every template, normalises each sentence, averages, and normalises the average (the
        paper's temperature means the same for every category only when all have unit norm).

        Args:
            model (`PreTrainedModel`): any CLIP with `get_text_features`, `text_model` and `text_projection`.
            tokenizer (`PreTrainedTokenizerBase`): its tokenizer.
            templates (`str` or `Sequence[str]`, *optional*, defaults to the paper's): as of [`get_templates`].
            batch_size (`int`, *optional*, defaults to 512): sentences per forward pass.
        """
        if getattr(model, "text_model", None) is None:
            raise ValueError("Category embeddings need a text tower, and this model has none. Give an embedding file.")
        templates = get_templates(templates)
        names = [[name, *more] for name, more in zip(categories.names, categories.synonyms)]
        sentences = [fill_template(t, name) for more in names for name in more for t in templates]
        _check_vocabulary(categories, tokenizer)
        longest = model.config.text_config.max_position_embeddings
        padding = getattr(model.text_model, "padding", "longest")
        embeds = []
        for start in range(0, len(sentences), batch_size):
            tokens = tokenizer(
                sentences[start : start + batch_size],
                padding=padding,
                truncation=True,
                max_length=longest,
                return_tensors="pt",
            ).to(model.device)
            pooled = model.get_text_features(tokens.input_ids, tokens.get("attention_mask")).pooler_output
            embeds.append(normalize(pooled.float(), dim=-1))
        embeds = torch.cat(embeds).split([len(more) * len(templates) for more in names])
        embeds = normalize(torch.stack([rows.mean(0) for rows in embeds]), dim=-1)
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
        model: PreTrainedModel,
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
        Those of a given file, checked; else those of a cached file, where they fit; else computed, and cached.

        Args:
            categories, model, tokenizer, templates:
                As of [`CategoryEmbeddings.compute`]. With a given file, the model needs no text tower, and the file's
                templates are taken.
            given (path, *optional*): a file of [`CategoryEmbeddings.save`].
            cached (path, *optional*): likewise; one that is missing or does not fit is written.
            write_cache (`bool`, *optional*, defaults to `True`): whether this process writes it.
            device (*optional*): where to move the model to be computed with; by default it stays where it is.
            option (`str`, *optional*): what the user calls `given`, for messages.

        Raises:
            `ValueError` that names what does not fit of a given file; or that nothing can be computed, without a text
            tower or a tokenizer.
        """
        has_text = getattr(model, "text_model", None) is not None and tokenizer is not None
        encoder = encoder_fingerprint(model, tokenizer) if has_text else None
        dim = model.config.projection_dim
        if given is not None:
            embeddings = cls.load(given)
            embeddings.check(categories, dim, encoder, source=f"{option or 'embeddings'} {given}")
            return embeddings
        if not has_text:
            remedy = f": give {option}" if option else ""
            raise ValueError(f"{model.name_or_path or 'The model'} has no text tower or no tokenizer{remedy}.")
        if cached is not None:
            try:
                embeddings = cls.load(cached)
                embeddings.check(categories, dim, encoder, templates)
                return embeddings
            except (FileNotFoundError, ValueError):
                pass  # computed below
        embeddings = cls.compute(categories, model if device is None else model.to(device), tokenizer, templates)
        if cached is not None and write_cache:
            embeddings.save(cached)
        return embeddings

    def save(self, file: str | PathLike) -> None:
        """Writes a safetensors file with all fields inside."""
        fields = ("names", "is_thing", "synonyms", "templates", "encoder")
        metadata = {field: json.dumps(getattr(self, field)) for field in fields}
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        save_file({"embeds": self.embeds.contiguous().cpu()}, file, metadata)

    @classmethod
    def load(cls, file: str | PathLike) -> "CategoryEmbeddings":
        """Reads what [`CategoryEmbeddings.save`] wrote; a `ValueError` names what is missing in the file."""
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
            raise ValueError(f"{file} is no file of category embeddings: {error}") from None
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
        Raises a `ValueError` that names the difference unless these are the embeddings of `categories` in a space of
        width `dim`, by the text encoder with the fingerprint `encoder`, in `templates` (`None`: not compared).
        """
        if self.embeds.shape[1] != dim:
            raise ValueError(f"{source}: embeddings of width {self.embeds.shape[1]}, but the model's space has {dim}.")
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
                f"{source}: made with other templates ({len(self.templates)}: {self.templates[0]!r} ...)."
            )
        if encoder is not None and encoder != self.encoder:
            raise ValueError(
                f"{source}: made by the text encoder {self.encoder}, but the model's is {encoder}. Compute them again."
            )


def _check_vocabulary(categories: CategorySet, tokenizer: PreTrainedTokenizerBase) -> None:
    """A word-level tokenizer turns an unknown name into its unknown token, which would train silently."""
    if tokenizer.unk_token_id is None or tokenizer.unk_token_id == tokenizer.eos_token_id:
        return
    for name in categories.names:
        words = name.lower()
        if tokenizer.unk_token_id in tokenizer(words, add_special_tokens=False).input_ids:
            raise ValueError(f"The tokenizer does not know {name!r} of the category set {categories.name}.")


__all__ = ["CategoryEmbeddings", "encoder_fingerprint", "region_cosines"]
