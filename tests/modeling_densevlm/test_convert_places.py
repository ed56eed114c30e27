# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""A CLIP is converted wherever it lies in a file, and messages name tensors as they stand there."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from modeling_densevlm.conversion import convert_with_report
from modeling_densevlm.conversion.files import unwrap
from modeling_densevlm.convert_open_clip import convert_checkpoint, export_checkpoint, main
from modeling_densevlm.modeling_eva_clip import rotary_tables


@pytest.fixture(scope="module")
def exported(make_tower, tokenizer):
    """A model, and its tensors and JSON in the names of open_clip; made once."""
    made = {}

    def make(tower):
        if tower not in made:
            model = make_tower(tower, tokenizer)
            made[tower] = model, *export_checkpoint(model)
        return made[tower]

    return make


TOWERS = ["clip_vit", "eva02_clip", "clip_resnet", "convnext"]


def same(found, model):
    expected = {key: tensor for key, tensor in model.state_dict().items() if key in found.state_dict()}
    return all(torch.equal(tensor, expected[key]) for key, tensor in found.state_dict().items())


def under(prefix, tensors):
    return {prefix + key: tensor for key, tensor in tensors.items()}


def vision(weights):
    return {key: tensor for key, tensor in weights.items() if key.startswith("visual.")}


EPOCH = {"epoch": 3, "optimizer_state_dict": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": []}}
WRAPPERS = ["model_state_dict", "state_dict", "model", "net", "state_dict_ema", "ema", "params", "student", "anything"]
PREFIXES = ["model.", "clip_model.", "student.", "module.model.", "sem_seg_head.predictor.clip_model.", "backbone."]


@pytest.mark.parametrize("tower", TOWERS)
def test_a_clip_is_found_under_any_key_and_prefix_and_other_tensors_are_reported(exported, tower):
    model, weights, config = exported(tower)
    for index, wrapper in enumerate(WRAPPERS):
        prefix = PREFIXES[index % len(PREFIXES)]
        content = {**EPOCH, wrapper: {**under(prefix, weights), "decoder.weight": torch.zeros(1)}}
        found, report = convert_with_report(content, config)
        assert same(found, model) and found.text_model is not None, (wrapper, prefix)
        place = f"{wrapper}.{prefix.removeprefix('module.')}"
        assert report.location == place and f"prefix in the file: {place}" in str(report)
        assert report.ignored == ["decoder.weight"] and "1 tensors outside the CLIP ignored: dec" in str(report)


@pytest.mark.parametrize("tower", TOWERS)
def test_parts_that_module_wrappers_insert_into_names_are_removed(exported, tower):
    model, weights, config = exported(tower)
    for part in ("_fsdp_wrapped_module.", "_orig_mod.", "_checkpoint_wrapped_module.", "module."):
        wrapped = {re.sub(r"(layer\d+|blocks|resblocks)\.(\d+)\.", rf"\1.\2.{part}", k): t for k, t in weights.items()}
        assert same(convert_checkpoint(under(part, wrapped), config), model), part


def test_names_of_transformers_and_of_a_vision_tower_alone_are_found_under_a_prefix(exported, make_tower, tokenizer):
    model, weights, config = exported("clip_vit")
    found, report = convert_with_report(under("model.clip.", model.state_dict()), config)
    assert same(found, model) and (report.layout, report.location) == ("transformers", "model.clip.")
    for tower in ("siglip", "siglip2", "timm_vit"):
        states = {"state_dict": under("densevlm.", make_tower(tower, tokenizer).state_dict())}
        assert unwrap(states, "it").prefix == "densevlm."
    for prefix in ("image_encoder.", "backbone.", "model.visual_encoder."):
        alone = under(prefix, {key.removeprefix("visual."): tensor for key, tensor in vision(weights).items()})
        found, report = convert_with_report(alone, config)
        assert same(found, model) and found.text_model is None and report.location == prefix
    # A program that keeps the encoder a second time names the same tensors twice.
    twice = under("clip_model.", weights) | under("image_encoder.", {k[7:]: t for k, t in vision(weights).items()})
    found, report = convert_with_report(twice, config)
    assert report.location == "clip_model." and len(report.ignored) == len(vision(weights))


def test_several_clips_are_listed_and_chosen_by_their_prefix(exported, tmp_path, capsys):
    model, weights, config = exported("clip_vit")
    other = {key: tensor + 1 for key, tensor in weights.items()}
    contents = {
        "nested": ({**EPOCH, "model": weights, "ema": under("module.", other)}, "model", "ema"),
        "flat": ({**under("student.", weights), **under("teacher.", other)}, "student.", "teacher."),
        "both": ({"state_dict": {**under("module.student.", weights), **under("module.teacher.", other)}},
                 "student", "state_dict.teacher."),
        "one at the top": ({**weights, **under("teacher.", other)}, "", "teacher"),
    }  # fmt: skip
    for name, (content, first, second) in contents.items():
        with pytest.raises(ValueError, match=r"holds 2 CLIPs, under .*Choose one as `prefix` \(`--prefix`\)") as error:
            convert_checkpoint(content, config)
        assert all(part in str(error.value) for part in (first, second.removeprefix("state_dict."))), name
        assert same(convert_checkpoint(content, config, prefix=first), model), name
        found, report = convert_with_report(content, config, prefix=second)
        assert torch.equal(found.logit_scale, other["logit_scale"]), name
        assert len(report.ignored) == len(weights), name
        with pytest.raises(ValueError, match=r"there is no CLIP under the prefix 'elsewhere'; there is one under"):
            convert_checkpoint(content, config, prefix="elsewhere")
    same_twice = {"model": weights, "state_dict": dict(weights), "optimizer": {"exp_avg": other}}
    found, report = convert_with_report({**same_twice, "class_weights": torch.zeros(3)}, config)
    assert same(found, model) and {"class_weights", "state_dict.visual.proj"} < set(report.ignored)
    with pytest.raises(ValueError, match="holds 2 CLIPs"):
        convert_checkpoint({"a": contents["flat"][0], "b": {}}, config, prefix="a")
    torch.save(contents["nested"][0], tmp_path / "c.pt")
    (tmp_path / "c.json").write_text(json.dumps(config))
    arguments = [tmp_path / "c.pt", tmp_path / "out", "--config", tmp_path / "c.json"]
    with pytest.raises(
        SystemExit, match=r"c\.pt holds 2 CLIPs, under `model\.`, `ema\.`\. Choose .* e\.g\. `--prefix ema\.`"
    ):
        main([str(part) for part in arguments])
    main([str(part) for part in (*arguments, "--prefix", "ema")])
    assert "prefix in the file: ema" in capsys.readouterr().out


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("names", ["backbone.visual.", "backbone."])
def test_a_detector_around_any_clip_gives_its_vision_tower(exported, tower, names):
    """CLIPSelf#13, CLIPSelf#24."""
    model, weights, config = exported(tower)
    tensors = {names + key.removeprefix("visual."): t for key, t in vision(weights).items()}
    heads = ["neck.lateral_convs.0.conv.weight", "rpn_head.rpn_conv.weight", "roi_head.bbox_head.0.fc_cls.weight"]
    tensors |= dict.fromkeys(heads, torch.zeros(1)) | {"backbone.fpn1.0.weight": torch.zeros(1)}
    found, report = convert_with_report({"meta": {"epoch": 3}, "state_dict": tensors}, config)
    assert same(found, model) and found.text_model is None and report.layout != "RegionCLIP"
    assert report.ignored == ["backbone.fpn1.0.weight", *sorted(heads)]
    found, report = convert_with_report({**weights, **dict.fromkeys(heads, torch.zeros(1))}, config)
    assert found.text_model is not None and report.ignored == sorted(heads)
    # Detectors freeze batch norms, which then count no batches.
    uncounted = {key: tensor for key, tensor in tensors.items() if not key.endswith("num_batches_tracked")}
    assert same(convert_checkpoint(uncounted, config), model)


def test_messages_give_tensors_their_names_in_the_file(exported):
    model, weights, config = exported("clip_vit")
    _, resnet, resnet_config = exported("clip_resnet")
    regionclip = {"roi_heads.x": torch.zeros(1)}
    for key, tensor in resnet.items():
        own = f"backbone.{key.removeprefix('visual.')}" if key.startswith("visual.") else f"lang_encoder.{key}"
        regionclip[own] = tensor
    fc1 = "visual.transformer.resblocks.1.mlp.c_fc"
    forms = {
        "prefix": (under("clip_model.", weights), config, f"clip_model.{fc1}", "clip_model.visual.more"),
        "wrapper": ({"ema": under("module.", weights)}, config, f"module.{fc1}", "module.visual.more"),
        "alone": (under("enc.", {k[7:]: t for k, t in vision(weights).items()}), config, f"enc.{fc1[7:]}", "enc.more"),
        "transformers": (under("clip.", model.state_dict()), config, "clip.vision_model.encoder.layers.1.mlp.fc1",
                         "clip.vision_model.more"),
        "RegionCLIP": (regionclip, resnet_config, "backbone.layer3.0.bn1", "lang_encoder.transformer.more"),
    }  # fmt: skip
    for form, (content, json_config, name, more) in forms.items():
        (wrapper, tensors) = next(iter(content.items())) if form == "wrapper" else (None, content)

        def convert(changed, wrapper=wrapper, json_config=json_config):
            convert_checkpoint({wrapper: changed} if wrapper else changed, json_config)

        key = f"{name}.bias"
        with pytest.raises(ValueError, match=rf"missing: .*\b{re.escape(key.removeprefix('module.'))}\b"):
            convert({k: t for k, t in tensors.items() if k != key})
        with pytest.raises(ValueError, match=rf"of another shape: .* \(7,\) instead of .*\b{re.escape(key)} in the f"):
            convert({**tensors, key: torch.zeros(7)})
        with pytest.raises(ValueError, match=rf"of another dtype: .*\b{re.escape(key)} in the file"):
            convert({**tensors, key: tensors[key].to(torch.int64)})
        with pytest.raises(ValueError, match=rf"(Left over: the key '|left over: .*){re.escape(more)}"):
            convert({**tensors, f"{more}.weight": torch.zeros(3)})
        with pytest.raises(ValueError, match=r"has the shapes of no known configuration") as error:
            convert_checkpoint({**tensors, key: torch.zeros(7), f"{more}.weight": torch.zeros(3)})
        assert re.search(rf"(Left over: the key '|left over: .*){re.escape(more)}", str(error.value)), form
    with pytest.raises(
        ValueError, match=r"holds clip\.visual\.proj twice, as clip\.visual\.proj and as module\.clip\.v"
    ):
        convert_checkpoint(
            {**under("clip.", weights), "module.clip.visual.proj": weights["visual.proj"]}, config, prefix="clip."
        )


def test_beside_a_text_tower_of_another_library_the_vision_tower_converts(exported):
    """open_clip#918: BiomedCLIP has the text tower of a BERT."""
    model, weights, config = exported("clip_vit")
    bert = {
        "text.transformer.embeddings.word_embeddings.weight": torch.zeros(10, 8),
        "text.proj.0.weight": torch.zeros(8),
    }
    file = {**vision(weights), "logit_scale": weights["logit_scale"], **bert}
    theirs = {**config, "text_cfg": {"hf_model_name": "microsoft/BiomedNLP", "hf_proj_type": "mlp"}}
    with pytest.raises(
        ValueError, match=r"'text\.proj\.0\.weight' .*The vision tower can be converted without it: `prefix=\"vis"
    ):
        convert_checkpoint(file, theirs)
    with pytest.raises(
        ValueError, match=r"not converted: hf_model_name \('microsoft/BiomedNLP'\). The vision tower can"
    ):
        convert_checkpoint(weights, theirs)
    for content in (file, under("model.", file)):
        found, report = convert_with_report(content, theirs, prefix="visual.")
        assert same(found, model) and found.text_model is None
        assert "no logit_scale in the file" in str(report) and "3 tensors outside the CLIP ignored" in str(report)


@pytest.mark.parametrize("tower", TOWERS)
def test_sizes_masks_and_position_ids_beside_the_weights_are_dropped_and_reported(exported, tower):
    """RemoteCLIP#8: state dicts of OpenAI's archives."""
    model, weights, config = exported(tower)
    text = config["text_cfg"]
    sizes = {
        "input_resolution": config["vision_cfg"]["image_size"],
        "context_length": text["context_length"],
        "vocab_size": text["vocab_size"],
    }
    mask = torch.full((text["context_length"],) * 2, float("-inf")).triu(1)
    for number in (torch.tensor, int):
        found, report = convert_with_report({**weights, **{key: number(size) for key, size in sizes.items()}}, config)
        assert same(found, model) and sorted(report.derived) == sorted(sizes)
        assert "3 entries derived from the configuration dropped" in str(report)
    masks = {"text.attn_mask": mask.half(), "text.transformer.position_ids": torch.arange(32)[None]}
    assert convert_with_report({**weights, **masks}, config)[1].derived == list(masks)
    _, report = convert_with_report({**weights, "vocab_size": torch.tensor(9), "attn_mask": 0 * mask.triu(1)}, config)
    assert f"vocab_size (9, but the learned tensors have {text['vocab_size']})" in str(report)


def test_rotary_tables_of_other_names_shapes_and_grids_are_verified(exported):
    """CLIPSelf#24, EVA#172."""
    model, weights, config = exported("eva02_clip")
    weights = {key: tensor for key, tensor in weights.items() if ".rope." not in key}
    cos, sin = rotary_tables((6, 6), 8, 16, 10000.0)  # of another grid than the positions'
    wide = rotary_tables((4, 6), 8, 16, 10000.0)[0]
    frequencies = 10000.0 ** -torch.tensor([0.0, 0.5])
    tables = {
        "visual.rope.freqs_cos": cos,
        "visual.blocks.0.attn.rope.freqs_sin": sin.double(),
        "visual.blocks.0.rope.freqs_cos": cos.unflatten(0, (6, 6)),
        "visual.blocks.1.attn.rope.freqs_cos": wide.unflatten(0, (4, 6)),
        "visual.rope_embed.cos": cos[:, ::2],
        "visual.rope_embed.sin": sin[None, None],
        "visual.rope.pos_embed": torch.cat([sin, cos], -1),
        "visual.rope.freqs_cis": torch.complex(cos, sin)[:, ::2],
        "visual.rope.bands": frequencies,
        "visual.rotary_emb.cos_cached": torch.cat([torch.ones(1, 8), cos]).bfloat16(),
    }
    found, report = convert_with_report({**weights, **tables}, config)
    assert same(found, model) and report.verified == list(tables)
    found, report = convert_with_report(under("backbone.", {**vision(weights), **tables}), config)
    assert report.verified == list(under("backbone.", tables))
    for name, table in tables.items():
        for wrong in (table + 0.1, table[:-1], table.flatten(0)[:0]):
            with pytest.raises(ValueError, match=rf"The rotary table 'clip\.{re.escape(name)}' .* differs from"):
                convert_checkpoint(under("clip.", {**weights, name: wrong}), config)


@pytest.mark.parametrize("tower", TOWERS)
def test_the_bias_of_a_sigmoid_loss_converts_both_ways_on_every_tower(exported, tower):
    """open_clip#824: a CLIP trained with `--siglip`, of which the JSON says nothing."""
    _, weights, config = exported(tower)
    for shape, fields in (((), {}), ((1,), {"init_logit_bias": -10, "nonscalar_logit_scale": True})):
        learned = {"logit_bias": torch.full(shape, -7.5), "logit_scale": torch.full(shape, 3.5)}
        model = convert_checkpoint({**weights, **learned}, {**config, **fields})
        assert (model.logit_bias.item(), model.logit_scale.item()) == (-7.5, 3.5)
        back, exported_config = export_checkpoint(model)
        assert (back["logit_bias"].shape, back["logit_scale"].shape) == ((), ()) and back["logit_bias"] == -7.5
        assert same(convert_checkpoint(back, exported_config), model)
        assert exported_config["init_logit_bias"] == fields.get("init_logit_bias", 0)
    scale = {"logit_scale": weights["logit_scale"][None]}
    assert convert_checkpoint({**weights, **scale}, config).logit_scale.shape == ()
    with pytest.raises(ValueError, match="missing: logit_bias"):
        convert_checkpoint(weights, {**config, "init_logit_bias": -10})
    found = convert_checkpoint(vision(weights), {**config, "init_logit_bias": -10})
    assert found.logit_bias.item() == -10  # dense features do not need it


def test_projections_that_are_layers_norms_of_tensorflow_and_halves_are_read(exported):
    model, weights, config = exported("clip_vit")
    layers = {key: t for key, t in weights.items() if key not in ("visual.proj", "text_projection")}
    layers |= {f"{key}.weight": weights[key].T for key in ("visual.proj", "text_projection")}
    assert same(convert_checkpoint(layers, config), model)
    with pytest.raises(ValueError, match=r"Left over: the key 'visual\.proj\.bias' belongs to no part of a CLIP ViT"):
        convert_checkpoint({**layers, "visual.proj.bias": torch.zeros(24)}, config)
    norms = re.compile(r"(.*ln_\w+\.)(weight|bias)")
    greek = {"weight": "gamma", "bias": "beta"}
    named = {(f"{m[1]}{greek[m[2]]}" if (m := norms.fullmatch(key)) else key): t for key, t in weights.items()}
    assert sum(key.endswith("gamma") for key in named) == 13
    assert same(convert_checkpoint(named, config), model)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        found = convert_checkpoint({key: tensor.to(dtype) for key, tensor in weights.items()}, config)
        assert all(tensor.dtype == torch.float32 for tensor in found.state_dict().values())
        assert torch.equal(found.visual_projection.weight, model.visual_projection.weight.to(dtype).float())


def test_an_index_of_shards_is_read_and_the_error_for_a_folder_suggests_it(exported, tmp_path):
    model, weights, config = exported("clip_vit")
    shards = {"model-1.safetensors": {}, "model-2.safetensors": {}}
    for key, tensor in weights.items():
        shards[f"model-{1 + key.startswith('visual.')}.safetensors"][key] = tensor.contiguous()
    for name, tensors in shards.items():
        save_file(tensors, tmp_path / name)
    index = tmp_path / "model.safetensors.index.json"
    places = {key: name for name, tensors in shards.items() for key in tensors}
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert same(convert_checkpoint(index, config), model)
    with pytest.raises(ValueError, match=r"give a file, such as its model\.safetensors\.index\.json"):
        convert_checkpoint(tmp_path, config)
    index.write_text(json.dumps({"weight_map": {**places, "visual.more": "model-2.safetensors"}}))
    with pytest.raises(ValueError, match=r"lists visual\.more in model-2\.safetensors, which does not contain it"):
        convert_checkpoint(index, config)
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"lists missing shards: .*model-2\.safetensors"):
        convert_checkpoint(index, config)
    index.write_text("{}")
    with pytest.raises(ValueError, match="is not an index of shards, a JSON with `weight_map`"):
        convert_checkpoint(index, config)
    (tmp_path / "dcp").mkdir()
    (tmp_path / "dcp" / ".metadata").touch()
    with pytest.raises(
        ValueError, match=r"torch\.distributed\.checkpoint\.format_utils dcp_to_torch .*dcp OUTPUT\.pt"
    ):
        convert_checkpoint(tmp_path / "dcp", config)
    (tmp_path / "deepspeed").mkdir()
    (tmp_path / "deepspeed" / "zero_to_fp32.py").touch()
    with pytest.raises(ValueError, match=r"shards of DeepSpeed, which its script `zero_to_fp32\.py` merges"):
        convert_checkpoint(tmp_path / "deepspeed", config)
