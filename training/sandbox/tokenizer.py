# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""A word-level tokenizer for the captions of the sandbox and the category names in tests."""

from collections.abc import Iterable

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from modeling_densevlm.categories import CategorySet
from modeling_densevlm.templates import VILD_TEMPLATES, fill_template


PAD, UNKNOWN, BEGIN, END = "<pad>", "<unk>", "<begin>", "<end>"


def word_tokenizer(sentences: Iterable[str], max_length: int) -> PreTrainedTokenizerFast:
    """
    A tokenizer whose vocabulary is the words of `sentences`. `<end>` has the largest id, at which CLIP's text tower
    pools.

    Args:
        sentences (`Iterable[str]`): the corpus; case is ignored.
        max_length (`int`): maximum number of tokens per sentence, including `<begin>` and `<end>`.
    """
    split = pre_tokenizers.Whitespace()
    words = sorted({word for sentence in sentences for word, _ in split.pre_tokenize_str(sentence.lower())})
    vocabulary = {word: index for index, word in enumerate([PAD, UNKNOWN, BEGIN, *words, END])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = split
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A {END}", special_tokens=[(token, vocabulary[token]) for token in (BEGIN, END)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=BEGIN,
        eos_token=END,
        model_input_names=["input_ids", "attention_mask"],
    )


def category_sentences(categories: CategorySet) -> list[str]:
    """ViLD's templates filled with the names and synonyms of all categories."""
    named = zip(categories.names, categories.synonyms)
    names = [str(word) for name, synonyms in named for word in (name, *synonyms)]
    return [fill_template(template, name) for template in VILD_TEMPLATES for name in names]
