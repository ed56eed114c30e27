# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
Category names and their groups. *Things* are countable objects (a kite, a dog); *stuff* is amorphous background
regions (sky, grass), as in COCO's panoptic annotations.
"""

import json
from collections import Counter
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from transformers.utils import logging


logger = logging.get_logger(__name__)

CATEGORY_SETS = Path(__file__).parent / "category_sets"


class CategorySet:
    r"""
    Category names with optional thing / stuff flags.

    ```python
    >>> CategorySet(["boat", "water"])  # names only; with flags: CategorySet(["boat", "water"], [True, False])
    >>> CategorySet.load("coco_stuff_ade20k_316")  # a built-in set
    >>> CategorySet.load("my_categories.json")  # {"categories": [{"name": "kite", "is_thing": true}, ...]}
    ```

    Args:
        name (`str`, *optional*, defaults to `"categories"`):
            Name of the set in messages and files. It may be omitted, also from positional arguments.
        names (`list[str]`): names of the categories. A comma is part of a name, as in the paper's sets.
        is_thing (`list[bool]` or `list[int]`, *optional*):
            One flag per category, or an integer for finer groups (0 = thing, 1 = stuff, 2 ...). `None` for a set
            without flags, which training and the thing / stuff metrics do not accept.
        ids (`list[int]`, *optional*): category ids of the dataset.
        synonyms (`list[list[str]]`, *optional*):
            Further names of each category. The embedding of a category is the mean over all its names.

    Raises:
        `ValueError` for fields of different lengths, duplicate names in a group, duplicate ids and invalid values.
    """

    def __init__(
        self,
        name: str | Sequence[str] = "categories",
        names: Sequence[str] | Sequence[bool] | Sequence[int] | None = None,
        is_thing: Sequence[bool] | Sequence[int] | None = None,
        ids: Sequence[int] | None = None,
        synonyms: Sequence[Sequence[str]] | None = None,
    ):
        if not isinstance(name, str):  # positional: names first, then flags
            if names is not None and is_thing is not None:
                raise ValueError(
                    "CategorySet: without a name, the first arguments are the categories' names and their flags."
                )
            flags: Any = is_thing if names is None else names
            name, names, is_thing = "categories", name, flags
        if names is None or isinstance(names, str):
            got = name if names is None else names
            raise ValueError(f"CategorySet: the categories' names are a list, got {got!r}.")
        self.name = name
        self.names: list[str] = [*names]  # type: ignore[list-item]  # checked below
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
        flags = self.is_thing or []
        kinds = {type(flag) for flag in flags}
        if kinds <= {bool}:
            return
        if kinds != {int} or min(flags) < 0:
            raise ValueError(f"{self.name}: `is_thing` is one bool per category, or one group number per category.")
        if max(flags) < 2:
            raise ValueError(
                f"{self.name}: `is_thing` in 0 and 1 is ambiguous: write true and false. (Numbers are groups, "
                "0 thing and 1 stuff, where there are more than two.)"
            )

    def _check_names(self) -> None:
        if not self.names:
            raise ValueError(f"{self.name}: no categories.")
        for name in self.names:
            if not isinstance(name, str) or not name.strip():
                raise ValueError(f"{self.name}: a category's name is a string, got {name!r}.")
        groups = self.is_thing if self.is_thing is not None else [None] * len(self.names)
        for (name, group), count in Counter(zip(self.names, groups)).items():
            if count > 1:
                where = {True: " as a thing", False: " as stuff", None: ""}.get(group, f" in group {group}")
                raise ValueError(f"{self.name}: the name {name!r} occurs {count} times{where}. Remove one.")
        repeated = [name for name, count in Counter(self.names).items() if count > 1]
        if repeated:
            logger.warning_once(
                f"{self.name}: {', '.join(repeated)} occur in several groups with the same embedding; a region that "
                "matches one of them is assigned to the group listed first."
            )
        if self.ids is not None:
            for name, number in zip(self.names, self.ids):
                if isinstance(number, bool) or not isinstance(number, int | float) or number % 1 != 0:
                    raise ValueError(f"{self.name}: the id of {name!r} is an integer, got {number!r}.")
            self.ids = [int(number) for number in self.ids]
        if self.ids is not None and len(set(self.ids)) != len(self.ids):
            repeated = next(i for i, count in Counter(self.ids).items() if count > 1)
            raise ValueError(f"{self.name}: the id {repeated} occurs twice.")

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        things = "no flags" if self.is_thing is None else f"{sum(map(is_thing_group, self.is_thing))} things"
        return f"CategorySet({self.name}: {len(self)} categories, {things})"

    @classmethod
    def load(cls, name_or_file: str | PathLike) -> "CategorySet":
        """
        Loads a built-in set or a JSON file.

        Args:
            name_or_file (`str` or path):
                A built-in set (`coco_panoptic_133`, `coco_stuff_171`, `coco_stuff_ade20k_273`,
                `coco_stuff_ade20k_316`, `ade20k_panoptic_150`) or a JSON file
                `{"name": ..., "categories": [{"name": "kite", "is_thing": true, "synonyms": ["toy kite"]}, ...]}`;
                `is_thing` may also be written `"group": "thing" | "stuff"`.

        Returns:
            [`CategorySet`]

        Raises:
            `FileNotFoundError` if there is neither; `ValueError` for invalid content, naming file, category and field.
        """
        builtin = {file.stem: file for file in sorted(CATEGORY_SETS.glob("*.json"))}
        path = builtin.get(str(name_or_file), Path(name_or_file))
        if not path.is_file():
            known = ", ".join(builtin)
            raise FileNotFoundError(f"{name_or_file} is neither a file nor a built-in category set ({known}).")
        try:
            content = json.loads(path.read_bytes())  # bytes: any UTF encoding, with or without a byte order mark
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from None
        categories = content.get("categories") if isinstance(content, dict) else None
        if not isinstance(categories, list) or not categories:
            raise ValueError(f'{path}: expected {{"categories": [{{"name": ..., "is_thing": ...}}, ...]}}.')
        name = content.get("name", path.stem)
        if not isinstance(name, str):
            raise ValueError(f"{path}: the `name` of the set is a string, got {name!r}.")
        for index, category in enumerate(categories):
            _check_category(path, index, category)
        flags: list[Any] = [_read_flag(path, index, category) for index, category in enumerate(categories)]
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
        """Writes the set to a JSON file for [`CategorySet.load`]."""
        fields = {"id": self.ids, "name": self.names, "is_thing": self.is_thing, "synonyms": self.synonyms}
        rows = [
            {field: values[index] for field, values in fields.items() if values is not None and values[index] != []}
            for index in range(len(self))
        ]
        Path(file).write_text(json.dumps({"name": self.name, "categories": rows}, indent=1), encoding="utf-8")

    def require_flags(self, purpose: str) -> list[bool] | list[int]:
        """Returns `is_thing`, or raises a `ValueError` that names the `purpose` if the set has no flags."""
        if self.is_thing is None:
            raise ValueError(f"The category set {self.name} has no thing / stuff flags; {purpose} needs `is_thing`.")
        return self.is_thing

    def things(self, purpose: str = "separating things from stuff") -> list[bool]:
        """Whether each category is a thing, also for integer groups; raises a `ValueError` if the set has no flags."""
        return [is_thing_group(flag) for flag in self.require_flags(purpose)]


def is_thing_group(flag: bool | int) -> bool:
    """Whether a flag, a bool (`True` = thing) or the number of a group (0 = thing), is that of things."""
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


__all__ = ["CATEGORY_SETS", "CategorySet", "is_thing_group"]
