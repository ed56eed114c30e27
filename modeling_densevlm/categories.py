"""Category names with their groups, the sentences they are put into, and the embeddings of those sentences."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging


logger = logging.get_logger(__name__)

CATEGORY_SETS = Path(__file__).parent / "category_sets"

SHORT_TEMPLATES = ("a photo of {article} {}.",)
"""The default where time matters more than the last percent."""

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


class CategorySet:
    r"""
    Category names, each a thing or a piece of stuff.

    ```python
    >>> CategorySet.load("coco_stuff_ade20k_316")  # a built-in set
    >>> CategorySet.load("my_categories.json")  # {"categories": [{"name": "kite", "is_thing": true}, ...]}
    ```

    Args:
        name (`str`): what the set is called in messages and files.
        names (`list[str]`): the categories' names; a comma inside is part of the name, as in the paper's sets.
        is_thing (`list[bool]` or `list[int]`, *optional*):
            One flag a category. Integers name finer groups (0 = thing, 1 = stuff, 2 ...). `None` where the set has
            no flags: training and the thing / stuff metrics then refuse it.
        ids (`list[int]`, *optional*): the dataset's category ids.
        synonyms (`list[list[str]]`, *optional*):
            Further names of each category; a category's embedding is the mean over its names.
    """

    def __init__(
        self,
        name: str,
        names: Sequence[str],
        is_thing: Sequence[bool] | Sequence[int] | None = None,
        ids: Sequence[int] | None = None,
        synonyms: Sequence[Sequence[str]] | None = None,
    ):
        self.name = name
        self.names = list(names)
        # Tensors and arrays become lists of plain bools or ints.
        self.is_thing = None if is_thing is None else list(getattr(is_thing, "tolist", lambda: is_thing)())
        self.ids = None if ids is None else list(getattr(ids, "tolist", lambda: ids)())
        self.synonyms = [list(more) for more in synonyms] if synonyms is not None else [[] for _ in self.names]
        for field in ("is_thing", "ids", "synonyms"):
            values = getattr(self, field)
            if values is not None and len(values) != len(self.names):
                raise ValueError(f"{name}: {len(self.names)} names but {len(values)} values of `{field}`.")
        self._check_flags()
        self._check_names()

    def _check_flags(self) -> None:
        kinds = {type(flag) for flag in self.is_thing or []}
        if kinds <= {bool}:
            return
        if kinds != {int} or min(self.is_thing) < 0:
            raise ValueError(f"{self.name}: `is_thing` is a bool for every category, or a group's number for each.")
        if max(self.is_thing) < 2:
            raise ValueError(
                f"{self.name}: `is_thing` in 0 and 1 is ambiguous: write true and false. (Numbers name groups, "
                "0 thing and 1 stuff, where there are more than two.)"
            )

    def _check_names(self) -> None:
        if not self.names:
            raise ValueError(f"{self.name}: no categories.")
        for name in self.names:
            if not isinstance(name, str) or not name.strip():
                raise ValueError(f"{self.name}: a category's name is a text, got {name!r}.")
        groups = self.is_thing if self.is_thing is not None else [None] * len(self.names)
        for (name, group), count in Counter(zip(self.names, groups)).items():
            if count > 1:
                where = {True: " as a thing", False: " as stuff", None: ""}.get(group, f" in group {group}")
                raise ValueError(f"{self.name}: the name {name!r} stands {count} times{where}. Remove one.")
        twice = [name for name, count in Counter(self.names).items() if count > 1]
        if twice:
            logger.warning_once(
                f"{self.name}: {', '.join(twice)} stand in several groups with the same embedding; a region that "
                "looks like one of them belongs to the group named first."
            )
        if self.ids is not None:
            for name, number in zip(self.names, self.ids):
                if isinstance(number, bool) or not isinstance(number, int | float) or number % 1 != 0:
                    raise ValueError(f"{self.name}: the id of {name!r} is a whole number, got {number!r}.")
            self.ids = [int(number) for number in self.ids]
        if self.ids is not None and len(set(self.ids)) != len(self.ids):
            repeated = next(i for i, count in Counter(self.ids).items() if count > 1)
            raise ValueError(f"{self.name}: the id {repeated} stands twice.")

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        things = "no flags" if self.is_thing is None else f"{sum(map(is_thing_group, self.is_thing))} things"
        return f"CategorySet({self.name}: {len(self)} categories, {things})"

    @classmethod
    def load(cls, name_or_file: str | PathLike) -> "CategorySet":
        """
        Args:
            name_or_file (`str` or path):
                A built-in set (`coco_panoptic_133`, `coco_stuff_171`, `coco_stuff_ade20k_273`,
                `coco_stuff_ade20k_316`, `ade20k_panoptic_150`) or a JSON file
                `{"name": ..., "categories": [{"name": "kite", "is_thing": true, "synonyms": ["toy kite"]}, ...]}`;
                `is_thing` may also be written `"group": "thing" | "stuff"`.

        Raises:
            `ValueError` that names the file, the category and the field that is wrong.
        """
        builtin = {file.stem: file for file in sorted(CATEGORY_SETS.glob("*.json"))}
        path = builtin.get(str(name_or_file), Path(name_or_file))
        if not path.is_file():
            known = ", ".join(builtin)
            raise FileNotFoundError(f"{name_or_file} is neither a file nor a built-in category set ({known}).")
        try:
            content = json.loads(path.read_bytes())  # of any UTF, with a byte order mark or without
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is no JSON: {error}") from None
        categories = content.get("categories") if isinstance(content, dict) else None
        if not isinstance(categories, list) or not categories:
            raise ValueError(f'{path}: expected {{"categories": [{{"name": ..., "is_thing": ...}}, ...]}}.')
        name = content.get("name", path.stem)
        if not isinstance(name, str):
            raise ValueError(f"{path}: the `name` of the set is a text, got {name!r}.")
        for index, category in enumerate(categories):
            _check_category(path, index, category)
        flags = [_read_flag(path, index, category) for index, category in enumerate(categories)]
        if None in flags and any(flag is not None for flag in flags):
            raise ValueError(f"{path}: {categories[flags.index(None)]['name']!r} has no `is_thing`, others have.")
        ids = [category.get("id") for category in categories]
        if None in ids and any(number is not None for number in ids):
            raise ValueError(f"{path}: {categories[ids.index(None)]['name']!r} has no `id`, others have.")
        try:
            return cls(
                name,
                [category["name"] for category in categories],
                None if None in flags else flags,
                None if None in ids else ids,
                [category.get("synonyms", []) for category in categories],
            )
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def save(self, file: str | PathLike) -> None:
        """Writes the set as the JSON that [`CategorySet.load`] reads."""
        fields = {"id": self.ids, "name": self.names, "is_thing": self.is_thing, "synonyms": self.synonyms}
        rows = [
            {field: values[index] for field, values in fields.items() if values is not None and values[index] != []}
            for index in range(len(self))
        ]
        Path(file).write_text(json.dumps({"name": self.name, "categories": rows}, indent=1), encoding="utf-8")

    def require_flags(self, purpose: str) -> list[bool] | list[int]:
        """`is_thing`, or a `ValueError` that says what needs it."""
        if self.is_thing is None:
            raise ValueError(f"The category set {self.name} does not say what is a thing; {purpose} needs `is_thing`.")
        return self.is_thing

    def things(self, purpose: str = "telling things from stuff") -> list[bool]:
        """Whether each category is a thing, where the flags may be groups; a `ValueError` where there are none."""
        return [is_thing_group(flag) for flag in self.require_flags(purpose)]


def is_thing_group(flag: bool | int) -> bool:
    """Flags may be bools (`True` = thing) or integer groups, of which 0 is thing."""
    return flag if isinstance(flag, bool) else flag == 0


def _check_category(path: Path, index: int, category: object) -> None:
    where = f"{path}, category {index}"
    if not isinstance(category, dict) or not isinstance(category.get("name"), str) or not category["name"].strip():
        raise ValueError(f"{where}: expected an object with a `name`, got {category!r}.")
    unknown = set(category) - {"name", "is_thing", "group", "id", "synonyms", "supercategory"}
    if unknown:
        raise ValueError(f"{where} ({category['name']!r}): unknown field {', '.join(map(repr, sorted(unknown)))}.")
    synonyms = category.get("synonyms", [])
    if not isinstance(synonyms, list) or not all(isinstance(name, str) and name.strip() for name in synonyms):
        raise ValueError(f"{where} ({category['name']!r}): `synonyms` is a list of names, got {synonyms!r}.")


def _read_flag(path: Path, index: int, category: dict) -> bool | int | None:
    where = f"{path}, category {index} ({category['name']!r})"
    if "group" in category:
        if category["group"] not in ("thing", "stuff"):
            raise ValueError(f'{where}: `group` is "thing" or "stuff", got {category["group"]!r}.')
        return category["group"] == "thing"
    flag = category.get("is_thing")
    if flag is None or isinstance(flag, int):
        return flag
    raise ValueError(f"{where}: `is_thing` is true, false or the number of a group, got {flag!r}.")


def fill_template(template: str, name: str) -> str:
    """
    A sentence about a category: lower case, `_` to a blank, `/` to " or ", no trailing dot in the name; "This is" is
    put before a template that starts with an article.
    """
    name = name.lower().replace("_", " ").replace("/", " or ").rstrip(".")
    article = "an" if name[:1] in "aeiou" else "a"
    sentence = template.replace("{article}", article).replace("{}", name)
    return f"This is {sentence}" if template.startswith(("a", "the")) else sentence


def encoder_fingerprint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """
    Names a text encoder by its weights and its vocabulary, so that embeddings cannot be used in another one's space.
    For a model in float32 or float16; bfloat16 has lost the digits that tell.
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
    One unit-norm text embedding a category, with everything they depend on.

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
        templates: Sequence[str] = SHORT_TEMPLATES,
        batch_size: int = 512,
    ) -> "CategoryEmbeddings":
        """
        Embeds every name in every template, normalises each sentence, averages, and normalises the average (the
        paper's temperature means the same for every category only when all have unit norm).

        Args:
            model (`PreTrainedModel`): any CLIP with `get_text_features`, `text_model` and `text_projection`.
            tokenizer (`PreTrainedTokenizerBase`): its tokenizer.
            templates (`Sequence[str]`, *optional*): with `{}` for the name and `{article}` for "a" or "an".
            batch_size (`int`, *optional*, defaults to 512): sentences a forward pass.
        """
        if getattr(model, "text_model", None) is None:
            raise ValueError("Category embeddings need a text tower, and this model has none. Give an embedding file.")
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
            embeds.append(torch.nn.functional.normalize(pooled.float(), dim=-1))
        embeds = torch.cat(embeds).split([len(more) * len(templates) for more in names])
        embeds = torch.nn.functional.normalize(torch.stack([rows.mean(0) for rows in embeds]), dim=-1)
        return cls(
            embeds,
            list(categories.names),
            categories.is_thing,
            categories.synonyms,
            list(templates),
            encoder_fingerprint(model, tokenizer),
        )

    def save(self, file: str | PathLike) -> None:
        """Writes a safetensors file with all fields inside."""
        facts = {key: getattr(self, key) for key in ("names", "is_thing", "synonyms", "templates", "encoder")}
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        save_file({"embeds": self.embeds.contiguous().cpu()}, file, {key: json.dumps(v) for key, v in facts.items()})

    @classmethod
    def load(cls, file: str | PathLike) -> "CategoryEmbeddings":
        """Reads what [`CategoryEmbeddings.save`] wrote; a `ValueError` names what is missing in the file."""
        try:
            with safe_open(file, framework="pt") as content:
                facts = {
                    key: json.loads(value) for key, value in (content.metadata() or {}).items() if key != "format"
                }
                embeds = content.get_tensor("embeds")
            embeddings = cls(embeds, **facts)
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
        templates: Sequence[str] | None = None,
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
        if templates is not None and list(templates) != self.templates:
            raise ValueError(
                f"{source}: made with other templates ({len(self.templates)}: {self.templates[0]!r} ...)."
            )
        if encoder is not None and encoder != self.encoder:
            raise ValueError(
                f"{source}: made by the text encoder {self.encoder}, but the model's is {encoder}. Compute them anew."
            )


def _check_vocabulary(categories: CategorySet, tokenizer: PreTrainedTokenizerBase) -> None:
    """A word-level tokenizer turns an unknown name into its unknown token, which would train silently."""
    if tokenizer.unk_token_id is None or tokenizer.unk_token_id == tokenizer.eos_token_id:
        return
    for name in categories.names:
        words = name.lower()
        if tokenizer.unk_token_id in tokenizer(words, add_special_tokens=False).input_ids:
            raise ValueError(f"The tokenizer does not know {name!r} of the category set {categories.name}.")


__all__ = ["CATEGORY_SETS", "SHORT_TEMPLATES", "TEMPLATES", "VILD_TEMPLATES", "CategoryEmbeddings", "CategorySet"]
