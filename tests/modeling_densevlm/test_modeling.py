# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import cosine_similarity, normalize
from torch.testing import assert_close
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoProcessor, CLIPModel, pipeline

from modeling_densevlm import DenseVLMConfig, DenseVLMImageProcessor, DenseVLMModel, DenseVLMProcessor
from modeling_densevlm.modeling_densevlm import DenseVLMPreTrainedModel


@pytest.fixture
def pixel_values():
    return torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))


def reference_dense(clip: CLIPModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """The dense path written out with the parts of transformers' CLIP, for a square image of the native size."""
    vision = clip.vision_model
    hidden = vision.pre_layrnorm(vision.embeddings(pixel_values))
    for layer in vision.encoder.layers[:-1]:
        hidden = layer(hidden, None)
    last = vision.encoder.layers[-1]
    hidden = hidden + last.self_attn.out_proj(last.self_attn.v_proj(last.layer_norm1(hidden)))
    hidden = hidden + last.mlp(last.layer_norm2(hidden))
    tokens = clip.visual_projection(vision.post_layernorm(hidden[:, 1:]))
    side = int(tokens.shape[1] ** 0.5)
    return normalize(tokens, dim=-1).transpose(1, 2).unflatten(2, (side, side))


@torch.no_grad()
def test_dense_features_are_the_value_path_of_the_last_block(clip, model, pixel_values):
    dense = model.get_dense_features(pixel_values)
    assert dense.shape == (2, 24, 8, 8)
    assert_close(dense, reference_dense(clip, pixel_values))
    assert_close(dense.norm(dim=1), torch.ones(2, 8, 8))


@torch.no_grad()
def test_image_and_text_features_are_those_of_clip(clip, model, pixel_values, tokenizer):
    assert_close(
        model.get_image_features(pixel_values).pooler_output, clip.get_image_features(pixel_values).pooler_output
    )
    tokens = tokenizer(["a photo of a kite", "this is a bus"], padding=True, return_tensors="pt")
    expected = clip.get_text_features(**tokens).pooler_output
    assert_close(model.get_text_features(tokens.input_ids, tokens.attention_mask).pooler_output, expected)


@pytest.mark.parametrize("eos_token_id", [74, 2, 7])
@torch.no_grad()
def test_texts_are_pooled_at_the_same_token_as_in_clip(clip, eos_token_id):
    config = copy.deepcopy(clip.config)
    config.text_config.eos_token_id = eos_token_id
    theirs = CLIPModel(config).eval()
    theirs.load_state_dict(clip.state_dict())
    model = DenseVLMModel.from_clip(theirs)
    # Padded with the end, which is not the last or the largest token; 7 stands before it, 2 nowhere.
    tokens = torch.tensor([[73, 9, 7, 74, 74, 74], [73, 7, 8, 7, 70, 74]])
    expected = theirs.get_text_features(tokens).pooler_output
    assert_close(model.get_text_features(tokens).pooler_output, expected)
    ends = {74: [3, 5], 2: [3, 5], 7: [2, 1]}[eos_token_id]
    hidden_states = model.get_text_features(tokens).last_hidden_state[torch.arange(2), ends]
    assert_close(model.text_projection(hidden_states), expected)
    for no_token in (49407, None):  # transformers' default, for a vocabulary that is smaller
        config.text_config.eos_token_id = no_token
        misled = DenseVLMModel(DenseVLMConfig.from_dict(DenseVLMConfig.translate(config.to_dict()))).eval()
        misled.load_state_dict(clip.state_dict())
        output = misled.get_text_features(tokens)
        assert_close(output.pooler_output, misled.text_projection(output.last_hidden_state[torch.arange(2), [3, 5]]))


def test_from_clip_keeps_the_attention_implementation(tokenizer, make_clip):
    clip = make_clip(tokenizer)
    clip.set_attn_implementation("eager")
    model = DenseVLMModel.from_clip(clip)
    assert model.config._attn_implementation == model.vision_model.config._attn_implementation == "eager"


def test_the_error_for_a_folder_of_another_model_names_its_type(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip_vision_model", "hidden_size": 64}))
    with pytest.raises(ValueError, match="This is the configuration of a clip_vision_model"):
        DenseVLMModel.from_pretrained(tmp_path)


def test_from_clip_shares_nothing_with_the_clip(clip):
    model = DenseVLMModel.from_clip(clip)
    assert model.config.text_config is not clip.config.text_config
    model.visual_projection.weight.data.zero_()
    assert (clip.visual_projection.weight != 0).any()


@torch.no_grad()
def test_a_clip_folder_loads_without_conversion(clip, clip_folder, pixel_values):
    model = DenseVLMModel.from_pretrained(clip_folder)
    assert isinstance(model.config, DenseVLMConfig)
    assert_close(model.get_dense_features(pixel_values), reference_dense(clip, pixel_values))


def test_clip_configurations_of_older_versions_are_read_as_by_clip(tmp_path):
    # OpenAI's L/14 says its sizes in `vision_config_dict`; others leave out what was the default.
    sizes = {"hidden_size": 1024, "num_attention_heads": 16, "patch_size": 14}
    old = {"model_type": "clip", "projection_dim": 768, "vision_config_dict": sizes}
    old |= {"text_config_dict": {"hidden_size": 768}, "vision_config": {"image_size": 224}, "text_config": None}
    (tmp_path / "config.json").write_text(json.dumps(old))
    config = DenseVLMConfig.from_pretrained(tmp_path)
    assert (config.vision_config.hidden_size, config.vision_config.patch_size) == (1024, 14)
    assert config.text_config.hidden_size == 768 and config.projection_dim == 768
    assert config.model_type == "densevlm"


@torch.no_grad()
def test_save_and_load_keep_every_output(model, pixel_values, tmp_path):
    model.save_pretrained(tmp_path)
    for loaded in (DenseVLMModel.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert type(loaded) is DenseVLMModel
        assert torch.equal(loaded.get_dense_features(pixel_values), model.get_dense_features(pixel_values))
    assert AutoConfig.from_pretrained(tmp_path).model_type == "densevlm"


def test_auto_image_processor_finds_the_class_in_the_same_process(student):
    processor = AutoImageProcessor.from_pretrained(student, backend="pil")
    assert isinstance(processor, DenseVLMImageProcessor)
    assert processor.size == {"longest_edge": 96}
    assert isinstance(AutoProcessor.from_pretrained(student), DenseVLMProcessor)


@pytest.mark.parametrize("size", [(96, 96), (48, 48), (144, 144), (60, 132), (100, 101), (12, 12)])
@torch.no_grad()
def test_any_size_and_aspect_gives_a_map_of_whole_patches(model, size):
    image = torch.randn(1, 3, *size)
    assert model.get_dense_features(image).shape == (1, 24, size[0] // 12, size[1] // 12)
    assert model.get_image_features(image).pooler_output.shape == (1, 24)


@torch.no_grad()
def test_a_side_that_is_no_multiple_of_the_patch_is_floored(model):
    image = torch.randn(1, 3, 100, 101)
    assert_close(model.get_dense_features(image), model.get_dense_features(image[:, :, :96, :96]))


def test_an_image_without_a_batch_is_refused(model):
    with pytest.raises(ValueError, match=r"is \(batch, channels, height, width\), got \(3, 96, 96\)"):
        model.get_dense_features(torch.randn(3, 96, 96))


def test_an_image_smaller_than_a_patch_is_refused(model):
    with pytest.raises(ValueError, match="no patch"):
        model.get_dense_features(torch.randn(1, 3, 8, 40))


@torch.no_grad()
def test_a_batch_gives_the_same_as_its_images_one_by_one(model, pixel_values):
    boxes = [torch.tensor([[0.0, 0.0, 0.5, 0.7]]), torch.tensor([[0.2, 0.1, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]])]
    together = model.get_region_features(pixel_values, boxes=boxes)
    alone = [model.get_region_features(pixel_values[i : i + 1], boxes=boxes[i : i + 1]) for i in range(2)]
    assert_close(together, torch.cat(alone), atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_forward_gives_dense_region_and_image_features_of_one_pass(model, pixel_values):
    boxes = [torch.tensor([[0.0, 0.0, 0.5, 0.7]])] * 2
    calls = []
    model.vision_model.encoder.layers[0].register_forward_hook(lambda *_: calls.append(1))
    output = model(pixel_values, boxes=boxes, return_image_embeds=True)
    assert len(calls) == 1
    assert_close(output.dense_embeds, model.get_dense_features(pixel_values))
    assert_close(output.region_embeds, model.get_region_features(pixel_values, boxes=boxes))
    assert_close(output.image_embeds, model.get_image_features(pixel_values).pooler_output)
    assert model(pixel_values).region_embeds is None


@torch.no_grad()
def test_the_dense_pass_computes_no_query_and_no_key_in_the_last_block(model, pixel_values):
    attention = model.vision_model.encoder.layers[-1].self_attn
    called = []
    for name in ("q_proj", "k_proj", "v_proj"):
        getattr(attention, name).register_forward_hook(lambda *_, name=name: called.append(name))
    model.get_dense_features(pixel_values)
    assert called == ["v_proj"]


@torch.no_grad()
def test_the_model_accepts_every_output_of_its_processor(student, clip, model, picture):
    processor = DenseVLMProcessor.from_pretrained(student)
    image, texts = picture(90, 60), ["a photo of a kite", "this is a bus"]
    inputs = processor(images=image, text=texts, padding=True, return_tensors="pt")
    output = model(**inputs, boxes=[torch.tensor([[0.0, 0.0, 0.5, 0.7]])])
    theirs = clip(**{name: inputs[name] for name in ("pixel_values", "input_ids", "attention_mask")})
    assert_close(output.logits_per_image, theirs.logits_per_image, atol=1e-4, rtol=1e-5)
    assert_close(output.logits_per_text, theirs.logits_per_text, atol=1e-4, rtol=1e-5)
    assert_close(normalize(output.text_embeds, dim=-1), theirs.text_embeds)
    assert_close(normalize(output.image_embeds, dim=-1), theirs.image_embeds)
    assert output.region_embeds.shape == (1, 24)
    # One of both alone, and without the class of the output.
    only_images, only_texts = processor(images=image, return_tensors="pt"), processor(text=texts, padding=True)
    assert_close(model(**only_images).dense_embeds, output.dense_embeds)
    assert model(**only_images).keys() == {"dense_embeds", "feature_maps"}
    only_texts = model(**{name: torch.tensor(values) for name, values in only_texts.items()})
    assert only_texts.keys() == {"text_embeds"} and torch.equal(only_texts.text_embeds, output.text_embeds)
    dense_embeds, feature_maps = model(**only_images, return_dict=False)
    assert torch.equal(dense_embeds, feature_maps[0])
    with pytest.raises(ValueError, match="Give `pixel_values`, `input_ids` or both"):
        model()
    with pytest.raises(ValueError, match=r"Regions .* need `pixel_values`"):
        model(input_ids=inputs["input_ids"], boxes=[])


@torch.no_grad()
def test_the_logits_of_a_sigmoid_loss_have_its_bias(make_tower, tokenizer):
    model = make_tower("siglip", tokenizer)
    model.logit_bias.fill_(-3.0)
    tokens = tokenizer(["a photo of a kite"], padding="max_length", max_length=32, return_tensors="pt").input_ids
    output = model(torch.randn(2, 3, 32, 32), input_ids=tokens)
    cosine = cosine_similarity(output.image_embeds, output.text_embeds)[:, None]
    assert_close(output.logits_per_image, cosine * model.logit_scale.exp() - 3.0)


@torch.no_grad()
def test_arguments_that_wrappers_and_tasks_of_transformers_pass_are_accepted(student, model, pixel_values, picture):
    # PEFT passes all of these to whatever it wraps (peft#796).
    nothing = {"inputs_embeds": None, "output_attentions": False, "labels": None, "return_dict": None}
    output = model(pixel_values, **nothing, output_hidden_states=True)
    assert [tuple(m.shape) for m in output.hidden_states] == [(2, 32, 8, 8)] * 3
    tapped = DenseVLMModel.from_pretrained(student, out_indices=[0, 1, 2])
    assert all(map(torch.equal, output.hidden_states, tapped(pixel_values).feature_maps))
    with pytest.raises(TypeError, match="DenseVLMModel does not support labels, threshold"):
        model(pixel_values, labels=[1], threshold=0.5)
    processor = DenseVLMImageProcessor.from_pretrained(student)
    extract = pipeline("image-feature-extraction", model=model, image_processor=processor, device="cpu")
    dense = model.get_dense_features(torch.as_tensor(processor(picture(90, 60), return_tensors="pt")["pixel_values"]))
    assert_close(extract(picture(90, 60), return_tensors=True), dense)


def test_boxes_and_masks_at_once_or_neither_are_refused(model, pixel_values):
    with pytest.raises(ValueError, match="either"):
        model.get_region_features(pixel_values)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@torch.no_grad()
def test_attention_implementations_agree(clip_folder, pixel_values, implementation, model):
    other = DenseVLMModel.from_pretrained(clip_folder, attn_implementation=implementation)
    assert_close(other.get_dense_features(pixel_values), model.get_dense_features(pixel_values), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_bf16_is_float32_within_its_precision(clip_folder, pixel_values, model):
    half = DenseVLMModel.from_pretrained(clip_folder, dtype=torch.bfloat16)
    dense = half.get_dense_features(pixel_values.bfloat16())
    assert dense.dtype == torch.bfloat16
    assert_close(dense.float().norm(dim=1), torch.ones(2, 8, 8), atol=1e-2, rtol=0)
    assert cosine_similarity(dense.float(), model.get_dense_features(pixel_values)).min() > 0.999


def gradients_of(model, pixel_values):
    model.train().zero_grad()
    boxes = [torch.tensor([[0.1, 0.0, 0.5, 0.7]])] * 2
    model(pixel_values, boxes=boxes).region_embeds.square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_activation_checkpointing_changes_no_gradient_and_reaches_the_dense_block(clip, pixel_values):
    plain = gradients_of(DenseVLMModel.from_clip(clip), pixel_values)
    model = DenseVLMModel.from_clip(clip)
    model.activation_checkpointing_enable({"use_reentrant": False})
    passes = []
    model.vision_model.encoder.layers[-1].mlp.register_forward_pre_hook(lambda *_: passes.append(1))
    checkpointed = gradients_of(model, pixel_values)
    assert len(passes) == 2  # forward, and again in backward
    assert checkpointed.keys() == plain.keys()
    for name, gradient in plain.items():
        assert_close(checkpointed[name], gradient)


def test_trainable_blocks_are_exactly_the_block_parameters_that_get_gradients(model, pixel_values):
    names = {id(p): name for name, p in model.named_parameters()}
    listed = {names[id(p)] for block in model.vision_model.trainable_blocks() for p in block}
    reached = {name for name in gradients_of(model, pixel_values) if ".encoder.layers." in name}
    assert listed == reached
    assert not any("layers.2.self_attn.q_proj" in name for name in listed)


def test_without_a_text_tower_there_are_dense_features_and_a_clear_error_for_texts(
    clip_folder, pixel_values, tmp_path
):
    config = DenseVLMConfig.from_pretrained(clip_folder, text_config=None)
    model = DenseVLMModel.from_pretrained(clip_folder, config=config)
    assert model.text_model is None
    with pytest.raises(ValueError, match="no text tower"):
        model.get_text_features(torch.tensor([[1, 2]]))
    model.save_pretrained(tmp_path)
    again = DenseVLMModel.from_pretrained(tmp_path)
    assert torch.equal(again.get_dense_features(pixel_values), model.get_dense_features(pixel_values))


def test_the_error_for_a_checkpoint_with_a_missing_key_names_it(student, tmp_path):
    for file in student.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"Missing: visual_projection\.weight"):
        DenseVLMModel.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"Missing: visual_projection\.weight"):
        AutoModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("prefix", ["", "densevlm."])
def test_unexpected_learned_weights_are_refused_by_name_and_derived_ones_accepted(clip, tmp_path, caplog, prefix):
    clip.save_pretrained(tmp_path)
    weights = {prefix + name: tensor for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    derived = {
        "vision_model.embeddings.position_ids": torch.arange(65)[None],
        "text_model.attn_mask": torch.zeros(32, 32),
        "vision_model.rope.freqs_cos": torch.zeros(64, 8),
    }
    around = {"decoder.weight": torch.zeros(3)}  # of what stands around the model
    weights |= {prefix + name: tensor for name, tensor in derived.items()} | around
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    assert torch.equal(DenseVLMModel.from_pretrained(tmp_path).logit_scale, clip.logit_scale)
    for more in (
        "text_model.embeddings.position_embedding_res.weight",
        "vision_model.encoder.layers.0.adapter.weight",
        "visual_projection.bias",
        "logit_bias",
    ):
        save_file(weights | {prefix + more: torch.zeros(3)}, tmp_path / "model.safetensors", {"format": "pt"})
        for loader in (DenseVLMModel, AutoModel):
            with pytest.raises(ValueError, match=rf"learned weights that this model does not have: \S*{more}\."):
                loader.from_pretrained(tmp_path, config=DenseVLMConfig.from_pretrained(tmp_path))
        # They are another tower's where a model is wanted without texts.
        config = DenseVLMConfig.from_pretrained(tmp_path, text_config=None)
        if more.startswith(("text_", "logit_")):
            assert DenseVLMModel.from_pretrained(tmp_path, config=config).text_model is None


class Head(DenseVLMPreTrainedModel):
    """A head as users write it around the model."""

    def __init__(self, config):
        super().__init__(config)
        self.densevlm = DenseVLMModel(config)
        self.conv, self.deconv = nn.Conv2d(config.projection_dim, 8, 3), nn.ConvTranspose2d(8, 8, 2, 2)
        self.layer_norm, self.group_norm, self.batch_norm = nn.LayerNorm(8), nn.GroupNorm(2, 8), nn.BatchNorm2d(8)
        self.linear, self.embedding = nn.Linear(8, 5), nn.Embedding(4, 8)
        self.post_init()


@torch.no_grad()
def test_a_new_head_over_a_saved_model_is_initialized_and_the_model_in_it_is_loaded(tower, folder_of, tmp_path):
    folder = folder_of(tower, 0)
    model = DenseVLMModel.from_pretrained(folder)
    junk = [torch.full((4096,), float("nan")) for _ in range(300)]  # what memory may hold
    del junk
    head = Head.from_pretrained(folder)
    for name, tensor in model.state_dict().items():
        assert torch.equal(head.densevlm.state_dict()[name], tensor), name
    for name, tensor in head.state_dict().items():
        if name.startswith("densevlm."):
            continue
        assert tensor.isfinite().all() and tensor.abs().max() <= 1, name
        if name.endswith("norm.weight"):
            assert (tensor == 1).all(), name
        assert name.endswith(("bias", "running_mean", "tracked")) or tensor.std() > 0 or "norm" in name, name
    head.save_pretrained(tmp_path)
    again = Head.from_pretrained(tmp_path)
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in head.state_dict().items())
    # What is missing of the head is initialized, what is missing of the model in it is not.
    weights = load_file(tmp_path / "model.safetensors")
    del weights["densevlm.logit_scale"], weights["linear.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"Missing: densevlm\.logit_scale\. Of another shape: nothing"):
        Head.from_pretrained(tmp_path)


def test_the_error_for_an_unknown_tower_lists_the_known_ones():
    with pytest.raises(ValueError, match="'vit' is no tower of a DenseVLM; there are clip_vision_model, eva02_clip"):
        DenseVLMModel(DenseVLMConfig(vision_config={"model_type": "vit", "hidden_size": 12, "num_hidden_layers": 1}))
    with pytest.raises(ValueError, match="'eva03' is no tower of this package"):
        DenseVLMConfig(vision_config={"model_type": "eva03"})


@pytest.mark.parametrize("model_type", ["timm_convnext_vision_model", "timm_vit_vision_model"])
def test_the_error_for_a_timm_tower_without_timm_says_what_to_install(model_type, monkeypatch):
    monkeypatch.setattr("modeling_densevlm.modeling_timm_clip.timm", None)
    with pytest.raises(ImportError, match="is built by timm: `pip install timm`"):
        DenseVLMModel(DenseVLMConfig(vision_config={"model_type": model_type}))


def test_the_error_for_a_missing_folder_gives_the_remedy():
    with pytest.raises(
        OSError, match="There is no folder weights/eva02, and it is not available from the Hub.*convert"
    ):
        DenseVLMModel.from_pretrained("weights/eva02")
    with pytest.raises(OSError, match=r"test_modeling\.py is a file, not a folder. Convert checkpoints first"):
        DenseVLMModel.from_pretrained(__file__)


def test_a_truncated_checkpoint_is_refused(student, tmp_path):
    for file in student.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(Exception, match="(?i)safetensors|header|incomplete|corrupt"):
        DenseVLMModel.from_pretrained(tmp_path)


def test_the_spread_of_new_weights_depends_on_the_width(model):
    torch.manual_seed(0)
    fresh = DenseVLMModel(model.config)
    assert fresh.visual_projection.weight.std().item() == pytest.approx(32**-0.5, rel=0.15)
    assert fresh.logit_scale.item() == pytest.approx(2.6592)


def test_the_fingerprint_covers_weights_and_settings_without_tensors(clip_folder, tmp_path):
    model = DenseVLMModel.from_pretrained(clip_folder)
    model.save_pretrained(tmp_path)
    assert DenseVLMModel.from_pretrained(tmp_path).fingerprint() == model.fingerprint()
    assert DenseVLMModel.from_pretrained(clip_folder, out_indices=[0]).fingerprint() == model.fingerprint()
    config = DenseVLMConfig.from_pretrained(clip_folder)
    config.vision_config.hidden_act = "gelu" if config.vision_config.hidden_act != "gelu" else "quick_gelu"
    assert DenseVLMModel.from_pretrained(clip_folder, config=config).fingerprint() != model.fingerprint()
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    assert DenseVLMModel.from_pretrained(clip_folder).fingerprint() != model.fingerprint()
