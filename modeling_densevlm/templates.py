# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Prompt templates for category names."""

from collections.abc import Sequence


SHORT_TEMPLATES = ("a photo of {article} {}.",)
"""One prompt per name: faster, and slightly less accurate."""

_ADJECTIVES = ("good", "bad")
_SIGHTS = ("nice", "cool", "weird", "small", "large", "clean", "dirty")
_LIGHTS = ("bright", "dark")
_QUALITIES = ("low resolution", "cropped", "close-up", "jpeg corrupted", "blurry", "pixelated")

VILD_TEMPLATES = (
    "There is {article} {} in the scene.",
    "There is the {} in the scene.",
    "a photo of {article} {} in the scene.",
    "a photo of the {} in the scene.",
    "a photo of one {} in the scene.",
    "itap of {article} {}.",
    "itap of my {}.",
    "itap of the {}.",
    "a photo of {article} {}.",
    "a photo of my {}.",
    "a photo of the {}.",
    "a photo of one {}.",
    "a photo of many {}.",
    *(f"a {kind} photo of {which} {{}}." for kind in _ADJECTIVES for which in ("{article}", "the")),
    *(f"a photo of {which} {kind} {{}}." for kind in _SIGHTS for which in ("a", "the")),
    *(f"a {kind} photo of {which} {{}}." for kind in _LIGHTS for which in ("{article}", "the")),
    *(f"a photo of {which} hard to see {{}}." for which in ("a", "the")),
    *(f"a {kind} photo of {which} {{}}." for kind in _QUALITIES for which in ("{article}", "the")),
    *(f"a black and white photo of {which} {{}}." for which in ("the", "{article}")),
    *(f"{which} {kind} {{}}." for kind in ("plastic", "toy", "plushie", "cartoon") for which in ("a", "the")),
    "an embroidered {}.",
    "the embroidered {}.",
    "a painting of the {}.",
    "a painting of a {}.",
)
"""The 63 templates of ViLD (Gu et al., 2022), which the paper uses."""

TEMPLATES = {"short": SHORT_TEMPLATES, "vild": VILD_TEMPLATES}

DEFAULT_TEMPLATES = "vild"
"""The paper's, used by training, evaluation and figures."""


def get_templates(templates: str | Sequence[str]) -> list[str]:
    """
    Resolves a name of templates, and checks a list of them.

    Args:
        templates (`str` or `Sequence[str]`):
            A key of `TEMPLATES`, or templates with `{}` for the category name and `{article}` for "a" or "an".

    Returns:
        `list[str]`: the templates.

    Raises:
        `ValueError` for unknown names, empty lists, and templates without `{}`.
    """
    if isinstance(templates, str):
        if templates not in TEMPLATES:
            raise ValueError(f"`templates` is one of {', '.join(TEMPLATES)}, or a list of them, got {templates!r}.")
        return list(TEMPLATES[templates])
    templates = list(templates)
    if wrong := [template for template in templates if not isinstance(template, str) or "{}" not in template]:
        raise ValueError(f"`templates`: {wrong[0]!r} has no {{}} for the category name.")
    if not templates:
        raise ValueError("`templates`: the list is empty.")
    return templates


def fill_template(template: str, name: str) -> str:
    """
    Inserts a category name, normalised as in the reference (lower case, `_` as space, `/` as " or ", no trailing
    dots). A template that starts with an article is preceded by "This is".

    Args:
        template (`str`): as in [`get_templates`].
        name (`str`): name of the category.

    Returns:
        `str`: the prompt.
    """
    name = name.lower().replace("_", " ").replace("/", " or ").rstrip(".")
    article = "an" if name[:1] in "aeiou" else "a"
    sentence = template.replace("{article}", article).replace("{}", name)
    return f"This is {sentence}" if template.startswith(("a", "the")) else sentence


__all__ = ["DEFAULT_TEMPLATES", "SHORT_TEMPLATES", "TEMPLATES", "VILD_TEMPLATES", "fill_template", "get_templates"]
