# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Every public layout of weights, from its own implementation where that can be installed, converted and back."""

import dataclasses
import json
import re
import shutil

import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close
from transformers import SiglipConfig, SiglipModel

from modeling_densevlm import DenseVLMModel, DenseVLMProcessor
from modeling_densevlm.conversion import convert_with_report
from modeling_densevlm.conversion.configs import (
    config_kind,
    config_names,
    convert_config,
    load_config,
    siglip_architectures,
)
from modeling_densevlm.conversion.layouts import CHECKPOINT_LAYOUTS, rename
from modeling_densevlm.conversion.open_clip import image_processor_for
from modeling_densevlm.conversion.recognition import detect_config
from modeling_densevlm.convert_open_clip import convert_checkpoint, export_checkpoint, main


TEXT = {"context_length": 16, "vocab_size": 64, "width": 32, "heads": 4, "layers": 2}
VIT = {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 8}
RESNET = {"image_size": 64, "layers": [1, 2, 1, 1], "width": 8, "patch_size": None, "head_width": 16}
OPEN_CLIP = {
    "vit": {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": TEXT},
    "vit-quickgelu": {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": TEXT, "quick_gelu": True},
    "resnet-quickgelu": {"embed_dim": 24, "vision_cfg": RESNET, "text_cfg": TEXT, "quick_gelu": True},
    "convnext": {
        "embed_dim": 24,
        "vision_cfg": {"timm_model_name": "convnext_atto", "timm_pool": "", "timm_proj": "linear", "image_size": 64},
        "text_cfg": TEXT,
    },
    "timm-vit": {
        "embed_dim": 24,
        "vision_cfg": {
            "timm_model_name": "vit_xsmall_patch16_clip_224",
            "timm_pool": "token",
            "timm_proj": None,
            "image_size": 224,
        },
        "text_cfg": TEXT,
    },
    "eva02": {**load_config("EVA02-CLIP-B-16"), "custom_text": True, "text_cfg": TEXT},
    "siglip": load_config("ViT-B-16-SigLIP"),
}
"""As open_clip builds them; those that timm or open_clip knows by name only have their full size."""
OPEN_CLIP["eva02"]["vision_cfg"] = {
    "timm_model_name": "eva02_base_patch16_clip_224",
    "timm_pool": "token",
    "timm_proj": None,
    "image_size": 224,
}


@pytest.fixture(scope="module")
def build_open_clip():
    """A model of open_clip, all of whose parameters are random."""
    open_clip = pytest.importorskip("open_clip", reason="open_clip is not installed (extra `dev`)")

    def build(config):
        torch.manual_seed(0)
        config = dict(config)
        model = (open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP)(**config).eval()
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if name.endswith("running_var"):
                    tensor.uniform_(0.5, 1.5)
                elif tensor.is_floating_point() and not name.startswith("logit_"):
                    tensor.add_(0.05 * torch.randn_like(tensor))
        return model

    return build


@pytest.fixture
def exported(make_tower, tokenizer):
    """A model and its weights as the reference keeps them."""

    def make(tower):
        model = make_tower(tower, tokenizer)
        return model, *export_checkpoint(model)

    return make


def with_slow(names, slow):
    return [pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in names]


@pytest.mark.parametrize("name", with_slow(OPEN_CLIP, {"siglip"}))
@torch.no_grad()
def test_models_of_open_clip_give_the_same_features_after_conversion_and_export(build_open_clip, name):
    config = OPEN_CLIP[name]
    theirs = build_open_clip(config).double()  # so that what differs is the computation, not its rounding
    side, text = config["vision_cfg"]["image_size"], config["text_cfg"]
    image = torch.randn(1, 3, side, side, dtype=torch.float64)
    tokens = torch.randint(1, text["vocab_size"] - 1, (3, text["context_length"]))
    tokens[:, -2] = text["vocab_size"] - 1
    expected = theirs.encode_image(image), theirs.encode_text(tokens)

    model = convert_checkpoint(theirs.state_dict(), config).double()
    found = model.get_image_features(image).pooler_output, model.get_text_features(tokens).pooler_output
    for ours, reference in zip(found, expected):
        assert_close(ours, reference, atol=1e-6, rtol=1e-6)

    exported, exported_config = export_checkpoint(model)
    if name == "eva02":  # exported under EVA-CLIP's own names, not those of timm
        again = convert_checkpoint(exported, exported_config).double()
        assert torch.equal(again.get_image_features(image).pooler_output, found[0])
        return
    back = build_open_clip(exported_config).double()
    back.load_state_dict(exported)
    for ours, reference in zip((back.encode_image(image), back.encode_text(tokens)), expected):
        assert torch.equal(ours, reference)


@torch.no_grad()
def test_timms_own_eva02_converts():
    timm = pytest.importorskip("timm", reason="timm is not installed (extra `vision`)")
    torch.manual_seed(0)
    trunk = timm.create_model("eva02_base_patch16_clip_224", num_classes=512).eval()
    weights = trunk.state_dict()
    assert "blocks.0.mlp.fc1_g.weight" in weights
    model, report = convert_with_report(weights)
    assert report.config == "EVA02-CLIP-B-16" and report.layout == "timm" and model.text_model is None
    image = torch.randn(1, 3, 224, 224, dtype=torch.float64)
    found = model.double().get_image_features(image).pooler_output
    assert_close(found, trunk.double()(image), atol=1e-6, rtol=1e-6)


def test_the_table_of_siglip_towers_matches_timm():
    timm = pytest.importorskip("timm", reason="timm is not installed (extra `vision`)")
    names = [name for name in timm.list_models("vit_*_siglip_*") if "gap" not in name]
    assert set(siglip_architectures()) == set(names)
    activations = {"GELU": "gelu", "GELUTanh": "gelu_pytorch_tanh"}
    for name, fields in siglip_architectures().items():
        trunk = timm.create_model(name, device="meta")
        block = trunk.blocks[0]
        assert fields == {
            "hidden_size": trunk.embed_dim,
            "intermediate_size": block.mlp.fc1.out_features,
            "num_hidden_layers": len(trunk.blocks),
            "num_attention_heads": block.attn.num_heads,
            "image_size": trunk.patch_embed.img_size[0],
            "patch_size": trunk.patch_embed.patch_size[0],
            "hidden_act": activations[type(block.mlp.act).__name__],
        }, name


@pytest.mark.slow
def test_a_siglip_of_transformers_without_its_folder_keeps_the_activation_of_transformers():
    with torch.device("meta"):
        siglip = SiglipModel(SiglipConfig())
    weights = {key: torch.zeros(tensor.shape) for key, tensor in siglip.state_dict().items()}
    model, report = convert_with_report(weights)
    assert (report.layout, report.config) == ("transformers", "ViT-B-16-SigLIP")
    assert model.config.vision_config.hidden_act == model.config.text_config.hidden_act == "gelu_pytorch_tanh"
    with pytest.raises(ValueError, match="open_clip has no SigLIP tower of width 768.*with gelu_pytorch_tanh"):
        export_checkpoint(model)


@pytest.mark.parametrize("tower", ["eva02_clip", "clip_resnet", "convnext"])
def test_the_weights_in_a_densevlm_folder_convert_too(exported, tower):
    model, _, config = exported(tower)
    found = convert_checkpoint(model.state_dict(), config)
    assert all(torch.equal(found.state_dict()[key], tensor) for key, tensor in model.state_dict().items())


@torch.no_grad()
def test_a_model_that_open_clips_layout_cannot_express_is_not_exported(make_tower, tokenizer):
    mixed = make_tower("clip_vit", tokenizer)  # its text tower has QuickGELU as well
    mixed.config.vision_config.hidden_act = "gelu"
    with pytest.raises(
        ValueError, match="cannot express this model: `vision_config.hidden_act` is gelu, and would become quick"
    ):
        export_checkpoint(mixed)
    turned = make_tower("eva02_clip")
    turned.config.vision_config.rope_theta = 100.0
    with pytest.raises(ValueError, match="`vision_config.rope_theta` is 100.0, and would become 10000.0"):
        export_checkpoint(turned)
    pytest.importorskip("timm", reason="timm is not installed (extra `vision`)")
    with pytest.raises(ValueError, match="`vision_config.hidden_size` is 32, and would become 512"):
        export_checkpoint(make_tower("timm_vit"))


@pytest.mark.parametrize("name", ["MobileCLIP-S1", "PE-Core-B-16", "ViTamin-S", "swin_base_patch4_window7_224"])
def test_timm_towers_without_a_dense_path_are_refused_by_name(name):
    open_clip = pytest.importorskip("open_clip", reason="open_clip is not installed (extra `dev`)")
    with pytest.raises(ValueError, match=r"timm's \S+ is not a plain vision transformer|timm builds no \S+"):
        convert_config(open_clip.get_model_config(name))


@pytest.mark.parametrize("cut", [".stages.3.", ".stages.0.blocks.0.norm.weight"])
def test_the_error_for_half_a_convnext_names_the_missing_keys(exported, cut):
    _, weights, config = exported("convnext")
    kept = {key: tensor for key, tensor in weights.items() if cut not in key}
    with pytest.raises(ValueError, match=rf"missing: .*{re.escape(cut)}"):
        convert_checkpoint(kept, config)
    with pytest.raises(ValueError, match="is a CLIP ConvNeXt, but has the shapes of no known configuration"):
        convert_checkpoint(kept)


def test_the_error_for_a_wrong_known_configuration_names_those_that_fit(tmp_path):
    with torch.device("meta"):
        model = DenseVLMModel(convert_config(load_config("RN50")))
    weights, _ = rename(model.state_dict(), CHECKPOINT_LAYOUTS["clip_resnet_vision_model"].rules, to_ours=False)
    with pytest.raises(ValueError, match=r"\(RN50x4\). It has the shapes of RN50, RN50-quickgelu\. .* and \d+ more"):
        convert_checkpoint(weights, "RN50x4")


def test_without_a_configuration_mismatches_are_named_too():
    with torch.device("meta"):
        model = DenseVLMModel(convert_config(load_config("EVA02-CLIP-B-16")))
    weights, _ = rename(model.state_dict(), CHECKPOINT_LAYOUTS["eva02_clip_vision_model"].rules, to_ours=False)
    without = {key: tensor for key, tensor in weights.items() if key != "visual.head.bias"}
    with pytest.raises(
        ValueError, match=r"The most similar is EVA02-CLIP-B-16, but: missing: .*\(visual.head.bias\)\."
    ):
        detect_config(without)
    narrow = {**weights, "visual.head.weight": torch.empty(511, 768, device="meta")}
    with pytest.raises(ValueError, match=r"of another shape: visual_projection.weight \(511, 768\) instead of"):
        detect_config(narrow)
    with pytest.raises(ValueError, match="Left over: the key 'visual.decoder.weight' belongs to no part"):
        convert_checkpoint({**without, "visual.decoder.weight": torch.empty(1, device="meta")})


def test_transformers_clip_weights_convert_without_their_folder(clip, tmp_path):
    save_file(
        {**clip.state_dict(), "text_model.embeddings.position_ids": torch.arange(32)[None]}, tmp_path / "m.safetensors"
    )
    vision, text = clip.config.vision_config, clip.config.text_config
    config = {
        "embed_dim": clip.config.projection_dim,
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "layers": vision.num_hidden_layers,
            "width": vision.hidden_size,
            "head_width": vision.hidden_size // vision.num_attention_heads,
            "mlp_ratio": vision.intermediate_size / vision.hidden_size,
        },
        "text_cfg": {
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "width": text.hidden_size,
            "heads": text.num_attention_heads,
            "layers": text.num_hidden_layers,
            "mlp_ratio": text.intermediate_size / text.hidden_size,
        },
    }
    model, report = convert_with_report(tmp_path / "m.safetensors", config)
    assert report.layout == "transformers"
    expected = DenseVLMModel.from_clip(clip)
    assert all(torch.equal(model.state_dict()[key], tensor) for key, tensor in expected.state_dict().items())


def as_saved_in_training(weights, tmp_path, prefix="module."):
    file = tmp_path / "epoch_6.pt"
    optimizer = {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-5, "params": [0]}]}
    content = {"epoch": 6, "name": "run", "state_dict": {prefix + k: t for k, t in weights.items()}}
    torch.save({**content, "optimizer": optimizer}, file)
    return file


@pytest.mark.parametrize("tower", ["clip_vit", "eva02_clip", "clip_resnet"])
@pytest.mark.parametrize("prefix", ["module.", ""])
def test_training_checkpoints_of_clipself_fineclip_and_densevlm_are_unwrapped(exported, tmp_path, tower, prefix):
    model, weights, config = exported(tower)
    found = convert_checkpoint(as_saved_in_training(weights, tmp_path, prefix), config)
    assert all(torch.equal(found.state_dict()[key], tensor) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("tower", ["clip_vit", "eva02_clip", "clip_resnet"])
@pytest.mark.parametrize("prefix", ["visual.", ""])
@torch.no_grad()
def test_a_file_of_the_vision_tower_alone_gives_a_model_without_a_text_tower(exported, tmp_path, tower, prefix):
    model, weights, config = exported(tower)
    vision = {prefix + key.removeprefix("visual."): t for key, t in weights.items() if key.startswith("visual.")}
    save_file(vision, tmp_path / "vision.safetensors")
    found, report = convert_with_report(tmp_path / "vision.safetensors", config)
    assert found.text_model is None and found.config.text_config is None
    assert "logit_scale" in report.defaults[0]
    image = torch.randn(1, 3, 96, 96)
    assert torch.equal(found.get_dense_features(image), model.get_dense_features(image))


@torch.no_grad()
def test_files_of_regionclip_give_their_clip_without_the_detector(exported, tmp_path):
    model, weights, config = exported("clip_resnet")
    stored = {}
    for key, tensor in weights.items():
        if key.endswith("num_batches_tracked") or key == "logit_scale":
            continue  # its norms are frozen, its temperature is fixed
        name = "backbone." + key.removeprefix("visual.") if key.startswith("visual.") else f"lang_encoder.{key}"
        stored[name] = tensor
    detector = {
        "teacher_backbone.conv1.weight": torch.zeros(1),
        "offline_backbone.stem.conv1.weight": torch.zeros(1),
        "offline_proposal_generator.rpn_head.conv.weight": torch.zeros(1),
        "roi_heads.box_predictor.cls_bg_score.weight": torch.zeros(1),
    }
    file = tmp_path / "regionclip_pretrained.pth"
    torch.save({"model": {**stored, **detector}, "iteration": 10, "trainer": {}}, file)
    found, report = convert_with_report(file, config)
    assert report.layout == "RegionCLIP" and sorted(report.ignored) == sorted(detector)
    assert "4 tensors outside the CLIP ignored: offline_backbone" in str(report)
    image, tokens = torch.randn(1, 3, 64, 96), torch.tensor([[2, 5, 9, 74]])
    assert torch.equal(found.get_dense_features(image), model.get_dense_features(image))
    assert torch.equal(found.get_text_features(tokens).pooler_output, model.get_text_features(tokens).pooler_output)


@pytest.mark.parametrize("name", config_names())
def test_every_known_model_is_recognised_by_its_shapes_or_the_candidates_are_named(name):
    config = load_config(name)
    kind = config_kind(config)
    if kind.startswith("timm_"):
        pytest.importorskip("timm", reason="this tower is built by timm (extra `vision`)")
    with torch.device("meta"):
        model = DenseVLMModel(convert_config(config))
    weights, left = rename(model.state_dict(), CHECKPOINT_LAYOUTS[kind].rules, to_ours=False)
    assert not left
    if name.startswith(("convnext_base_w", "convnext_large_d")):  # its sizes are the same whatever the image's
        plain = name.removesuffix("_320")
        with pytest.raises(ValueError, match=f"2 known configurations, {plain}, {plain}_320"):
            detect_config(weights)
    elif kind in ("clip_vision_model", "clip_resnet_vision_model"):
        plain = name.removesuffix("-quickgelu")
        with pytest.raises(
            ValueError, match=f"{plain}, {plain}-quickgelu, which differ only in properties without tensors"
        ):
            detect_config(weights)
    else:
        assert detect_config(weights)[0] == name
    vision = {key: tensor for key, tensor in weights.items() if key.startswith("visual.")}
    if kind == "eva02_clip_vision_model":
        assert detect_config(vision)[0] == name


def test_regionclip_is_recognised_with_the_activation_it_was_trained_with():
    with torch.device("meta"):
        model = DenseVLMModel(convert_config(load_config("RN50x4")))
    weights, _ = rename(model.state_dict(), CHECKPOINT_LAYOUTS["clip_resnet_vision_model"].rules, to_ours=False)
    assert detect_config(weights, "RegionCLIP")[0] == "RN50x4-quickgelu"


def test_a_known_model_with_resized_positions_is_recognised():
    with torch.device("meta"):
        model = DenseVLMModel(convert_config(load_config("EVA02-CLIP-L-14-336")))
    weights, _ = rename(model.state_dict(), CHECKPOINT_LAYOUTS["eva02_clip_vision_model"].rules, to_ours=False)
    weights["visual.pos_embed"] = torch.empty(1, 37 * 37 + 1, 1024, device="meta")
    name, config = detect_config(weights)
    assert convert_config(config, weights).vision_config.image_size == 518
    assert name.startswith("EVA02-CLIP-L-14")


def test_the_error_for_unknown_sizes_lists_the_known_models(exported):
    _, weights, _ = exported("eva02_clip")
    with pytest.raises(
        ValueError, match="no known configuration .EVA02-CLIP-B-16, EVA02-CLIP-L-14, EVA02-CLIP-L-14-336"
    ) as error:
        convert_checkpoint(weights)
    assert "Left over" not in str(error.value)  # its rotary tables follow from the configuration


def test_rotary_tables_are_checked_and_those_of_another_model_refused(exported):
    _, weights, config = exported("eva02_clip")
    _, report = convert_with_report(weights, config)
    assert len(report.verified) == 8 and "8 rotary tables verified" in str(report)
    key = "visual.blocks.1.attn.rope.freqs_sin"
    half = {name: tensor.half() if ".rope." in name else tensor for name, tensor in weights.items()}
    convert_checkpoint(half, config)
    with pytest.raises(ValueError, match=f"The rotary table '{key}' .16, 8. differs from"):
        convert_checkpoint({**weights, key: weights[key] + 0.01}, config)
    other = {**config, "vision_cfg": {**config["vision_cfg"], "pt_hw_seq_len": 14}}
    with pytest.raises(ValueError, match="`pt_hw_seq_len` 14"):
        convert_checkpoint(weights, other)
    without = {name: tensor for name, tensor in weights.items() if ".rope." not in name}
    convert_checkpoint(without, config)  # EVA-CLIP's own loader drops them, too


def test_a_tower_of_another_kind_than_that_of_the_configuration_is_refused(exported):
    _, weights, _ = exported("clip_vit")
    _, _, config = exported("clip_resnet")
    with pytest.raises(ValueError, match=r"another tower \(CLIP ResNet\) than that of the checkpoint \(CLIP ViT\)"):
        convert_checkpoint(weights, config)


def test_the_error_for_halves_of_two_models_names_the_keys(exported):
    _, vit, config = exported("clip_vit")
    _, resnet, _ = exported("clip_resnet")
    mixed = {key: t for key, t in vit.items() if "resblocks.2" not in key}
    mixed |= {key: t for key, t in resnet.items() if key.startswith("visual.layer4")}
    with pytest.raises(ValueError) as error:
        convert_checkpoint(mixed, config)
    assert "Left over: the key 'visual.layer4.0.bn1.bias' belongs to no part of a CLIP ViT" in str(error.value)
    assert "missing: vision_model.encoder.layers.2.layer_norm1.bias (visual.transformer.resblocks.2.ln_1.bias)" in str(
        error.value
    )


def test_first_generation_evas_and_siglips_that_open_clip_cannot_express_are_refused(make_tower, exported):
    _, weights, config = exported("eva02_clip")
    flags = {**config["vision_cfg"], "naiveswiglu": False}
    with pytest.raises(ValueError, match="has naiveswiglu; EVA-01 towers are not supported"):
        convert_checkpoint(weights, {**config, "vision_cfg": flags})
    with pytest.raises(ValueError, match="It looks like an EVA-CLIP of the first generation"):
        convert_checkpoint({"visual.blocks.0.attn.qkv.weight": torch.zeros(3, 1)})
    with pytest.raises(ValueError, match="open_clip has no SigLIP tower of width 32"):
        export_checkpoint(make_tower("siglip"))
    with pytest.raises(ValueError, match="layout of open_clip has no equivalent of a siglip2_vision_model"):
        export_checkpoint(make_tower("siglip2"))


def test_open_clips_hub_configuration_gives_mean_and_deviation(exported, tmp_path):
    _, weights, config = exported("clip_vit")
    hub = {"model_cfg": config, "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}}
    processor = image_processor_for(convert_checkpoint(weights, hub), hub)
    assert processor.image_mean == [0.1, 0.2, 0.3] and processor.image_std == [0.4, 0.5, 0.6]
    assert processor.size == {"longest_edge": 32}
    for given, message in (
        (3, "`preprocess_cfg` is an object"),
        ({"std": [1]}, "`preprocess_cfg.std` is three numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            image_processor_for(convert_checkpoint(weights, hub), {**hub, "preprocess_cfg": given})


def test_the_command_line_converts_by_name_and_exports(exported, tokenizer, student, tmp_path, capsys):
    _, weights, config = exported("eva02_clip")
    save_file(weights, tmp_path / "c.safetensors")
    (tmp_path / "c.json").write_text(json.dumps(config))
    arguments = [
        tmp_path / "c.safetensors",
        tmp_path / "ours",
        "--config",
        tmp_path / "c.json",
        "--processor",
        student,
    ]
    main([str(argument) for argument in arguments])
    printed = capsys.readouterr().out
    assert f"EVA-02 CLIP ({tmp_path / 'c.json'})" in printed and "109 tensors matched" in printed
    tokenizer.save_pretrained(tmp_path / "tokenizer")  # nothing else is there
    with pytest.raises(SystemExit):  # another model's files are there
        main([str(part) for part in arguments])
    assert "exists already; give a new folder" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "ours")
    main([str(part) for part in (*arguments[:4], "--processor", tmp_path / "tokenizer")])
    assert len(DenseVLMProcessor.from_pretrained(tmp_path / "ours").tokenizer) == len(tokenizer)
    with pytest.raises(SystemExit, match="--processor .*: no tokenizer found"):
        main([str(part) for part in (arguments[0], tmp_path / "half", *arguments[2:4], "--processor", tmp_path)])
    assert not (tmp_path / "half").exists()
    main(["--export", str(tmp_path / "ours"), str(tmp_path / "back.pt")])
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert back.keys() == weights.keys() and all(torch.equal(back[key], tensor) for key, tensor in weights.items())
    assert json.loads((tmp_path / "back.json").read_text()) == config
    (tmp_path / "c.json").unlink()
    with pytest.raises(SystemExit, match=r"c\.safetensors: .* no known configuration .* more\.$"):
        main([str(tmp_path / "c.safetensors"), str(tmp_path / "other")])
    for name in ("open_clip_config.json", "c.json"):
        (tmp_path / name).write_text(json.dumps(config))
        with pytest.raises(SystemExit, match=rf"no known configuration.* `--config {tmp_path / name}`\.$"):
            main([str(tmp_path / "c.safetensors"), str(tmp_path / "other")])
    with pytest.raises(SystemExit, match="nowhere is neither a file nor a known configuration"):
        main([str(tmp_path / "c.safetensors"), str(tmp_path / "other"), "--config", "nowhere"])


@pytest.mark.parametrize("text", [True, False])
def test_a_conversion_without_a_tokenizer_reports_how_to_add_it_unless_there_is_no_text_tower(
    exported, tmp_path, capsys, text
):
    _, weights, config = exported("clip_vit")
    weights = {key: tensor for key, tensor in weights.items() if text or key.startswith("visual.")}
    save_file(weights, tmp_path / "c.safetensors")
    (tmp_path / "c.json").write_text(json.dumps(config))
    main([str(part) for part in (tmp_path / "c.safetensors", tmp_path / "ours", "--config", tmp_path / "c.json")])
    hint = (
        f"No tokenizer was saved, which training and evaluation need for texts: delete {tmp_path / 'ours'} and repeat"
    )
    assert (hint in capsys.readouterr().out) == text


OTHER_VALUES = {
    "vision_cfg": {
        "layers": 3,
        "width": 48,
        "head_width": 16,
        "mlp_ratio": 2.5,
        "patch_size": 16,
        "image_size": 64,
        "patch_dropout": 0.5,
        "attn_pooler_queries": 8,
        "attn_pooler_heads": 4,
        "pos_embed_type": "sin_cos_2d",
        "pool_type": "avg",
        "act_kwargs": {"approximate": "tanh"},
        "norm_kwargs": {"eps": 1e-3},
        "block_type": "custom",
        "timm_model_name": "convnext_atto",
        "timm_pool": "max",
        "timm_proj": "mlp",
        "timm_drop": 0.5,
        "timm_drop_path": 0.5,
    },
    "text_cfg": {
        "context_length": 20,
        "vocab_size": 70,
        "hf_tokenizer_name": "bert-base-uncased",
        "tokenizer_mode": "clips",
        "tokenizer_kwargs": {"clean": "canonicalize"},
        "width": 48,
        "heads": 2,
        "layers": 1,
        "mlp_ratio": 2.5,
        "pad_id": 1,
        "eos_id": 5,
        "pool_type": "last",
        "proj_type": "none",
        "act_kwargs": {"approximate": "tanh"},
        "norm_kwargs": {"eps": 1e-3},
        "block_type": "custom",
        "hf_model_name": "roberta-base",
        "hf_proj_type": "linear",
        "hf_pooler_type": "cls_pooler",
    },
}
"""Of each field of open_clip's configuration that is no flag, another value than its default."""

REFUSED = {
    "vision_cfg": {"ls_init_value", "attentional_pool", "no_ln_pre", "pool_type", "qk_norm", "scaled_cosine_attn"},
    "text_cfg": {"ls_init_value", "embed_cls", "no_causal_mask", "proj_bias", "proj_type", "pool_type", "qk_norm"}
    | {"scaled_cosine_attn", "hf_model_name"},
}
for fields in REFUSED.values():
    fields |= {"scale_heads", "scale_attn_inner", "scale_attn", "scale_fc"}


def first(features):
    return features[0] if isinstance(features, tuple) else features


@torch.no_grad()
def assert_same_features(theirs, config):
    """Converted, a model of open_clip gives its features, and again when it is exported and converted back."""
    side, text = config["vision_cfg"].get("image_size", 224), config["text_cfg"]
    image = torch.randn(1, 3, side, side)
    tokens = torch.randint(1, text["vocab_size"] - 1, (2, text["context_length"]))
    tokens[:, -2] = text["vocab_size"] - 1
    model = convert_checkpoint(theirs.state_dict(), config)
    for ours in (model, convert_checkpoint(*export_checkpoint(model))):
        found = ours.get_image_features(image).pooler_output, ours.get_text_features(tokens).pooler_output
        assert_close(found[0], first(theirs.visual(image)), atol=1e-5, rtol=1e-5)
        assert_close(found[1], first(theirs.encode_text(tokens)), atol=1e-5, rtol=1e-5)
    return model


@pytest.mark.parametrize("part", OTHER_VALUES)
def test_every_field_of_open_clips_configuration_is_converted_or_refused_by_name(build_open_clip, part):
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    fields = dataclasses.fields(CLIPVisionCfg if part == "vision_cfg" else CLIPTextCfg)
    for field in fields:
        value = OTHER_VALUES[part].get(field.name)
        if value is None:
            value = 1e-4 if field.name == "ls_init_value" else not field.default
            assert field.name == "ls_init_value" or isinstance(field.default, bool), f"{field.name} is new"
        changed = {**OPEN_CLIP["vit"], part: {**OPEN_CLIP["vit"][part], field.name: value}}
        if field.name in REFUSED[part]:
            with pytest.raises(ValueError, match=rf"`{part}` has fields that are not converted: {field.name}\b"):
                convert_config(changed)
        else:
            assert_same_features(build_open_clip(changed), changed)
    whole = {"vision_cfg": CLIPVisionCfg(**VIT), "text_cfg": CLIPTextCfg(**TEXT)}
    config = {"embed_dim": 24, **{name: dataclasses.asdict(cfg) for name, cfg in whole.items()}}
    assert_same_features(build_open_clip(config), config)


def test_every_configuration_of_open_clip_converts_or_the_error_names_the_field(build_open_clip):
    """Each form of a tower once, at a tiny size; timm's, which have one size only, in other tests."""
    import open_clip

    forms, refused = {}, {}
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        if "timm_model_name" in config["vision_cfg"]:
            continue  # those of timm's that have no dense path have their own test
        for part, sizes in (("vision_cfg", VIT), ("text_cfg", TEXT)):
            own = RESNET if part == "vision_cfg" and isinstance(config[part].get("layers"), list) else sizes
            config[part] = {**config[part], **own}
        try:
            convert_config(config)
            forms[json.dumps({**config, "embed_dim": 24}, sort_keys=True)] = name
        except ValueError as error:
            refused[name] = str(error)
    assert {"ViT-B-16", "RN50"} & set(forms.values()) or len(forms) > 3
    for form in forms:
        assert_same_features(build_open_clip(json.loads(form)), json.loads(form))
    telling = r"not converted: (no_ln_pre, pool_type|pool_type|hf_model_name|ls_init_value|multimodal_cfg|attentional)"
    for name, message in refused.items():
        assert re.search(telling, message), (name, message)


TIMM_HEADS = [
    ("convnext_atto", "", "mlp", False),
    ("convnext_atto", "avg", "mlp", True),
    ("convnext_atto", "avg", None, False),
    ("convnext_atto", "", "linear", True),
    ("vit_xsmall_patch16_clip_224", "token", "mlp", True),
    ("vit_xsmall_patch16_clip_224", "avg", "linear", True),
    ("vit_xsmall_patch16_clip_224", "", "mlp", False),
]


@pytest.mark.parametrize(("name", "pool", "head", "bias"), TIMM_HEADS)
@torch.no_grad()
def test_heads_of_timm_towers_convert_both_ways_and_are_applied_at_every_location(
    build_open_clip, tmp_path, name, pool, head, bias
):
    """The head of two layers is that of convnext_large_d, the backbone of FC-CLIP."""
    vision = {"timm_model_name": name, "timm_pool": pool, "timm_proj": head, "timm_proj_bias": bias}
    config = {**OPEN_CLIP["vit"], "vision_cfg": {**vision, "image_size": 224 if "vit" in name else 64}}
    theirs = build_open_clip(config)
    model = assert_same_features(theirs, config)
    image = torch.randn(1, 3, 96, 64)
    hidden = model.vision_model(image).dense
    if head is None:
        projected = theirs.visual.trunk.head.fc(hidden)
    else:
        projected = theirs.visual.head(hidden)
    expected = torch.nn.functional.normalize(projected, dim=-1).permute(0, 3, 1, 2)
    dense = model.get_dense_features(image)
    assert_close(dense, expected, atol=1e-5, rtol=1e-5)
    model.save_pretrained(tmp_path)
    assert torch.equal(DenseVLMModel.from_pretrained(tmp_path).get_dense_features(image), dense)


def test_the_error_for_unsupported_pools_and_heads_of_timm_towers_names_the_field():
    pytest.importorskip("timm", reason="timm is not installed (extra `vision`)")
    convnext, vit, siglip = "convnext_atto", "vit_xsmall_patch16_clip_224", "vit_base_patch16_siglip_224"
    wrong = [
        (convnext, {"timm_pool": "max"}, "timm_pool"),
        (convnext, {"timm_pool": "", "timm_proj": None}, "timm_pool"),
        (convnext, {"timm_proj": "none"}, "timm_proj"),
        (vit, {"timm_pool": "abs_attn"}, "timm_pool"),
        (vit, {"timm_proj": None}, "timm_pool"),  # open_clip's default is the mean, the network's own the class token
        (siglip, {"timm_pool": "map"}, "timm_proj"),  # the default is a matrix
        ("eva02_base_patch16_clip_224", {"timm_proj": None}, "timm_pool"),
    ]
    for name, fields, field in wrong:
        with pytest.raises(ValueError, match=rf"`vision_cfg` has fields that are not converted: {field} \("):
            convert_config({**OPEN_CLIP["vit"], "vision_cfg": {"timm_model_name": name, **fields}})
    hnf = {"timm_model_name": "convnext_tiny_hnf", "timm_pool": "", "timm_proj": "linear", "image_size": 64}
    with pytest.raises(ValueError, match="convnext_tiny_hnf norms before it pools: it has no dense path here"):
        DenseVLMModel(convert_config({**OPEN_CLIP["vit"], "vision_cfg": hnf}))
    for field, value in (("no_causal_mask", False), ("pool_type", "argmax"), ("proj_bias", False)):
        config = load_config("ViT-B-16-SigLIP")
        with pytest.raises(ValueError, match=rf"not converted: {field} "):
            convert_config({**config, "text_cfg": {**config["text_cfg"], field: value}})
        without = {key: value for key, value in config["text_cfg"].items() if key != field}
        with pytest.raises(ValueError, match=rf"the text tower of a SigLIP has `{field}`"):
            convert_config({**config, "text_cfg": without})
    with pytest.raises(ValueError, match=r"The open_clip configuration has fields that are not converted: adapters"):
        convert_config({**OPEN_CLIP["vit"], "adapters": {"rank": 4}})
    for bias in ("-10", True):
        with pytest.raises(ValueError, match="`init_logit_bias` is a number, got"):
            convert_config({**OPEN_CLIP["vit"], "init_logit_bias": bias})
    for wrong in (
        {"norm_kwargs": {"bias": False}},
        {"act_kwargs": {"approximate": "sigmoid"}},
        {"act_kwargs": "tanh"},
    ):
        with pytest.raises(ValueError, match=rf"`vision_cfg`: .*`{next(iter(wrong))}`"):
            convert_config({**OPEN_CLIP["vit"], "vision_cfg": {**VIT, **wrong}})
