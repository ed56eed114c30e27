# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
import json
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize
from torch.testing import assert_close

from modeling_densevlm import CategoryEmbeddings, CategorySet, DenseVLMModel
from modeling_densevlm.category_embeddings import encoder_fingerprint, region_cosines
from modeling_densevlm.templates import (
    DEFAULT_TEMPLATES,
    SHORT_TEMPLATES,
    VILD_TEMPLATES,
    fill_template,
    get_templates,
)
from training.arguments import DataArguments


ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "count", "things"),
    [
        ("coco_panoptic_133", 133, 80),
        ("coco_stuff_171", 171, 80),
        ("coco_stuff_ade20k_273", 273, 160),
        ("coco_stuff_ade20k_316", 316, 204),
        ("ade20k_panoptic_150", 150, 100),
    ],
)
def test_the_sets_of_the_paper_are_built_in(name, count, things):
    categories = CategorySet.load(name)
    assert len(categories.names) == count
    assert sum(categories.is_thing) == things


def test_the_last_thing_of_the_316_is_a_thing():
    categories = CategorySet.load("coco_stuff_ade20k_316")
    assert categories.is_thing == [True] * 204 + [False] * 112
    assert categories.names[203] == "house"


def write(path, categories):
    path.write_text(json.dumps({"name": "mine", "categories": categories}))
    return path


def test_a_category_file_gives_names_synonyms_and_groups(tmp_path):
    rows = [
        {"name": "kite", "is_thing": True, "synonyms": ["toy kite"]},
        {"name": "sky", "group": "stuff"},
    ]
    categories = CategorySet.load(write(tmp_path / "c.json", rows))
    assert categories.names == ["kite", "sky"]
    assert categories.is_thing == [True, False]
    assert categories.synonyms == [["toy kite"], []]
    categories.save(tmp_path / "again.json")
    assert CategorySet.load(tmp_path / "again.json").__dict__ == categories.__dict__


def test_a_number_per_category_gives_finer_groups(tmp_path):
    rows = [{"name": name, "is_thing": group} for name, group in (("kite", 0), ("sky", 1), ("person", 2))]
    assert CategorySet.load(write(tmp_path / "c.json", rows)).is_thing == [0, 1, 2]


def test_a_set_without_flags_loads_but_is_refused_where_flags_are_needed(tmp_path):
    categories = CategorySet.load(write(tmp_path / "c.json", [{"name": "kite"}, {"name": "sky"}]))
    assert categories.is_thing is None
    with pytest.raises(ValueError, match="mine has no thing / stuff flags; training needs"):
        categories.require_flags("training")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"name": "kite", "is_thing": True}] * 2, "'kite' occurs 2 times as a thing"),
        ([{"name": "kite", "is_thing": "yes"}], r"category 0 \('kite'\): `is_thing` is true, false"),
        ([{"name": "kite", "group": "animal"}], r"category 0 \('kite'\): `group` is"),
        ([{"name": "kite", "isthing": True}], "unknown field 'isthing'"),
        ([{"name": "kite", "is_thing": True}, {"name": "sky"}], "'sky' has no `is_thing`, others have"),
        ([{"name": "kite", "is_thing": 1}, {"name": "sky", "is_thing": 0}], "ambiguous: write true and false"),
        ([{"name": "kite", "is_thing": True}, {"name": "sky", "is_thing": 0}], "one bool per category"),
        ([{"name": " "}], "category 0: expected an object with a `name`"),
        ([{"name": "kite", "synonyms": "toy"}], "`synonyms` is a list"),
        ([{"name": "a", "id": 1}, {"name": "b", "id": 1}], "the id 1 occurs twice"),
        ([{"name": "a", "id": 1}, {"name": "b"}], "'b' has no `id`, others have"),
        ([{"name": "a", "id": "1"}], "the id of 'a' is an integer, got '1'"),
        ([{"name": "a", "id": True}], "the id of 'a' is an integer, got True"),
        ([{"name": "a", "synonyms": [" "]}], "`synonyms` is a list"),
        ([None, {"name": "a"}], "category 0: expected an object with a `name`, got None"),
        ([{"name": None}], "category 0: expected an object with a `name`"),
        ([], "expected"),
    ],
)
def test_the_error_for_an_invalid_category_file_names_file_and_field(tmp_path, rows, message):
    with pytest.raises(ValueError, match=rf"c\.json.*{message}"):
        CategorySet.load(write(tmp_path / "c.json", rows))


def test_a_file_that_is_not_json_and_an_unknown_set_are_refused(tmp_path):
    (tmp_path / "c.json").write_text("{")
    with pytest.raises(ValueError, match=r"c\.json is not valid JSON"):
        CategorySet.load(tmp_path / "c.json")
    with pytest.raises(FileNotFoundError, match=r"nor a built-in category set .*coco_panoptic_133"):
        CategorySet.load("coco_134")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_category_file_may_have_a_byte_order_mark(tmp_path, encoding):
    content = {"name": "mine", "categories": [{"name": "café", "is_thing": True}]}
    (tmp_path / "c.json").write_text(json.dumps(content, ensure_ascii=False), encoding=encoding)
    assert CategorySet.load(tmp_path / "c.json").names == ["café"]


def test_a_category_file_is_found_by_its_exact_name(tmp_path):
    """Not the one whose name has another `.json` at its end."""
    write(tmp_path / "c.json", [{"name": "kite"}])
    write(tmp_path / "c.json.json", [{"name": "sky"}])
    assert CategorySet.load(tmp_path / "c.json").names == ["kite"]


@pytest.mark.parametrize("names", [[None], [" "], ["kite", 3]])
def test_names_must_be_strings(names):
    with pytest.raises(ValueError, match="x: a category's name is a string, got"):
        CategorySet("x", names)


def test_ids_may_be_an_array():
    assert CategorySet("x", ["kite", "sky"], ids=torch.tensor([3, 7])).ids == [3, 7]
    assert CategorySet("x", ["kite", "sky"], ids=[3.0, 7]).ids == [3, 7]
    with pytest.raises(ValueError, match="the id of 'sky' is an integer, got nan"):
        CategorySet("x", ["kite", "sky"], ids=[3, float("nan")])


def test_a_set_can_be_built_from_names_with_or_without_flags():
    boats = CategorySet(["boat", "water"])
    assert (boats.names, boats.is_thing, boats.ids, boats.name) == (["boat", "water"], None, None, "categories")
    for flagged in (
        CategorySet(["boat", "water"], [True, False]),
        CategorySet(["boat", "water"], is_thing=[True, False]),
        CategorySet(names=["boat", "water"], is_thing=[True, False]),
        CategorySet("categories", ["boat", "water"], [True, False]),
    ):
        assert flagged.__dict__ == {**boats.__dict__, "is_thing": [True, False]}
    for arguments, message in (
        (("boat",), "the categories' names are a list, got 'boat'"),
        (("mine", "boat"), "the categories' names are a list, got 'boat'"),
        ((["boat", "water"], [True, False], [1, 2]), "the first arguments are the categories' names and their flags"),
        ((["boat", "water"], [True]), "categories: 2 names but 1 values of `is_thing`"),
        (([],), "categories: no categories"),
    ):
        with pytest.raises(ValueError, match=message):
            CategorySet(*arguments)


def test_a_name_in_both_groups_is_allowed_with_a_warning(caplog):
    import logging

    logger = logging.getLogger("modeling_densevlm.categories")
    logger.addHandler(caplog.handler)
    CategorySet("both", ["fruit", "sky", "fruit"], [True, False, False])
    logger.removeHandler(caplog.handler)
    assert "both: fruit occur in several groups" in caplog.text


def test_the_63_templates_of_vild():
    assert len(set(VILD_TEMPLATES)) == 63
    assert all(template.count("{}") == 1 for template in VILD_TEMPLATES)


@pytest.mark.parametrize(
    ("template", "name", "sentence"),
    [
        ("a photo of {article} {}.", "Airplane", "This is a photo of an airplane."),
        ("the plastic {}.", "traffic_light", "This is the plastic traffic light."),
        ("itap of my {}.", "sea/ocean.", "itap of my sea or ocean."),
        ("There is {article} {} in the scene.", "kite", "There is a kite in the scene."),
    ],
)
def test_a_template_is_filled_as_in_vild(template, name, sentence):
    assert fill_template(template, name) == sentence


def test_templates_are_a_name_or_a_list_and_each_needs_a_placeholder():
    assert get_templates("short") == list(SHORT_TEMPLATES) and get_templates(("a {}",)) == ["a {}"]
    for templates, message in (
        ("vidl", "`templates` is one of short, vild, or a list of them, got 'vidl'"),
        (["a {}", "a photo"], r"'a photo' has no \{\} for"),
        ([], "the list is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            get_templates(templates)


def test_the_default_templates_are_defined_in_one_place(model, tokenizer, categories):
    assert get_templates(DEFAULT_TEMPLATES) == list(VILD_TEMPLATES)
    assert CategoryEmbeddings.compute(categories, model, tokenizer).templates == list(VILD_TEMPLATES)
    assert DataArguments(images="x").templates == DEFAULT_TEMPLATES
    naming = [
        file.name
        for package in ("modeling_densevlm", "training", "evaluation")
        for file in (ROOT / package).rglob("*.py")
        if re.search(r"""["'](vild|short)["']""", file.read_text())
    ]
    assert sorted(naming) == ["sandbox_scores.py", "templates.py"]  # the sandbox's evaluation is of one recipe


@pytest.fixture
def categories():
    return CategorySet("two", ["kite", "sky", "bus"], [True, False, True], synonyms=[["airplane"], [], []])


def test_embeddings_average_normalised_sentences_over_templates_and_synonyms(model, tokenizer, categories):
    templates = ("a photo of {article} {}.", "a toy {}.")
    embeddings = CategoryEmbeddings.compute(categories, model, tokenizer, templates, batch_size=3)
    sentences = [fill_template(t, name) for name in ("kite", "airplane") for t in templates]
    rows = []
    with torch.no_grad():
        for sentence in sentences:
            tokens = tokenizer(sentence, return_tensors="pt")
            rows.append(normalize(model.get_text_features(tokens.input_ids).pooler_output[0], dim=0))
    assert_close(embeddings.embeds[0], normalize(torch.stack(rows).mean(0), dim=0), atol=1e-6, rtol=1e-5)
    assert_close(embeddings.embeds.norm(dim=1), torch.ones(3))


def test_any_clip_of_transformers_can_embed_categories(clip, model, tokenizer, categories):
    ours, theirs = (CategoryEmbeddings.compute(categories, m, tokenizer) for m in (model, clip))
    assert_close(ours.embeds, theirs.embeds)
    assert ours.encoder == theirs.encoder


def test_an_embedding_file_carries_names_flags_templates_and_encoder(model, tokenizer, categories, tmp_path):
    embeddings = CategoryEmbeddings.compute(categories, model, tokenizer, "short")
    embeddings.save(tmp_path / "e.safetensors")
    loaded = CategoryEmbeddings.load(tmp_path / "e.safetensors")
    assert torch.equal(loaded.embeds, embeddings.embeds)
    for field in ("names", "is_thing", "synonyms", "templates", "encoder"):
        assert getattr(loaded, field) == getattr(embeddings, field)
    assert loaded.templates == list(SHORT_TEMPLATES)
    loaded.check(categories, 24, encoder_fingerprint(model, tokenizer))


def test_embeddings_of_another_width_set_flag_or_encoder_are_refused_by_name(model, make_clip, tokenizer, categories):
    embeddings = CategoryEmbeddings.compute(categories, model, tokenizer)
    with pytest.raises(ValueError, match="24 dimensions, but the model's space has 512"):
        embeddings.check(categories, 512)
    other = CategorySet("other", ["kite", "sea", "bus"], [True, False, True])
    with pytest.raises(ValueError, match="the first difference is at 1: 'sky', 'sea'"):
        embeddings.check(other, 24)
    with pytest.raises(ValueError, match="`is_thing` differs"):
        embeddings.check(CategorySet("other", categories.names, [True] * 3, synonyms=categories.synonyms), 24)
    another = DenseVLMModel.from_clip(make_clip(tokenizer, seed=5))
    with pytest.raises(ValueError, match="computed with other templates"):
        embeddings.check(categories, 24, templates=SHORT_TEMPLATES)
    with pytest.raises(ValueError, match="computed with the text encoder .* Compute them again"):
        embeddings.check(categories, 24, encoder_fingerprint(another, tokenizer))


def test_the_fingerprint_is_the_same_in_half_precision(model, tokenizer):
    fingerprint = encoder_fingerprint(model, tokenizer)
    assert encoder_fingerprint(model.half(), tokenizer) == fingerprint


def test_a_file_without_embeddings_is_refused(tmp_path):
    (tmp_path / "e.safetensors").write_bytes(b"garbage")
    with pytest.raises(ValueError, match=r"e\.safetensors is not a file of category embeddings"):
        CategoryEmbeddings.load(tmp_path / "e.safetensors")


def test_embeddings_that_are_not_of_unit_norm_are_refused(model, tokenizer, categories, tmp_path):
    embeddings = CategoryEmbeddings.compute(categories, model, tokenizer)
    for index, factor in enumerate((0.9, float("nan"))):
        embeddings.embeds[1] *= factor
        embeddings.save(tmp_path / f"{index}.safetensors")
        with pytest.raises(ValueError, match="not of unit norm"):
            CategoryEmbeddings.load(tmp_path / f"{index}.safetensors")


def test_a_name_with_unknown_tokens_is_refused(model, tokenizer):
    with pytest.raises(ValueError, match="does not know 'zebra'"):
        CategoryEmbeddings.compute(CategorySet("z", ["kite", "zebra"], [True, True]), model, tokenizer)


def test_embeddings_are_given_or_else_cached_or_else_computed(model, make_clip, tokenizer, categories, tmp_path):
    given, cached = tmp_path / "given.safetensors", tmp_path / "run" / "cached.safetensors"
    resolve = partial(CategoryEmbeddings.resolve, categories, model, tokenizer)
    assert resolve().templates == list(VILD_TEMPLATES) and not cached.parent.exists()
    resolve("short", cached=cached, write_cache=False)
    assert not cached.exists()
    computed = resolve("short", cached=cached)
    assert torch.equal(CategoryEmbeddings.load(cached).embeds, computed.embeds)
    marked = CategoryEmbeddings.load(cached)
    marked.embeds = marked.embeds.flip(0)
    marked.save(cached)
    assert torch.equal(resolve("short", cached=cached).embeds, marked.embeds)  # taken from the file
    assert resolve("vild", cached=cached).templates == list(VILD_TEMPLATES)  # of other templates: computed again
    assert CategoryEmbeddings.load(cached).templates == list(VILD_TEMPLATES)
    cached.write_bytes(b"garbage")
    assert torch.equal(resolve("short", cached=cached).embeds, computed.embeds)
    marked.save(given)
    assert torch.equal(resolve("vild", given=given, cached=cached).embeds, marked.embeds)  # with its own templates
    other = DenseVLMModel.from_clip(make_clip(tokenizer, seed=5))
    with pytest.raises(ValueError, match=r"^--file .*given\.safetensors: computed with the text encoder"):
        CategoryEmbeddings.resolve(categories, other, tokenizer, given=given, option="--file")
    with pytest.raises(FileNotFoundError, match="gone"):
        resolve(given=tmp_path / "gone")


def test_without_a_text_tower_or_a_tokenizer_embeddings_must_be_given(model, tokenizer, categories, tmp_path):
    embeddings = CategoryEmbeddings.compute(categories, model, tokenizer, "short")
    embeddings.save(tmp_path / "e.safetensors")
    model.text_model = None
    for arguments in ((categories, model, tokenizer), (categories, model, None)):
        found = CategoryEmbeddings.resolve(*arguments, given=tmp_path / "e.safetensors")
        assert torch.equal(found.embeds, embeddings.embeds)
        with pytest.raises(ValueError, match="has no text tower or no tokenizer: give --embeddings"):
            CategoryEmbeddings.resolve(*arguments, option="--embeddings")


def test_cosines_of_regions_are_float32_under_any_autocast():
    regions, texts = torch.randn(5, 8), normalize(torch.randn(3, 8), dim=-1)
    expected = normalize(regions, dim=-1) @ texts.T
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(region_cosines(regions, texts), expected)
    halves = region_cosines(regions.bfloat16(), texts.bfloat16())
    assert halves.dtype == torch.float32
    assert_close(halves, expected, atol=1e-2, rtol=0)
