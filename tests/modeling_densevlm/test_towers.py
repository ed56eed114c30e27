# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""What holds for every vision tower, whatever it is made of."""

import copy
import pickle

import pytest
import torch
from torch.export import Dim, export
from torch.nn.functional import cosine_similarity
from torch.testing import assert_close
from transformers import (
    AutoBackbone,
    AutoModel,
    AutoTokenizer,
    CLIPVisionModel,
    DPTConfig,
    DPTForDepthEstimation,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    pipeline,
)

from modeling_densevlm import DenseVLMConfig, DenseVLMModel, DenseVLMProcessor


BOXES = torch.tensor(
    [
        [0.0, 0.0, 1.0, 1.0],  # the whole image
        [0.1, 0.2, 0.7, 0.9],
        [0.30, 0.30, 0.31, 0.31],  # far smaller than a cell
        [-0.2, 0.5, 0.4, 1.3],  # reaching outside
        [0.5, 0.5, 0.5, 0.5],  # no area
    ]
)


@pytest.fixture
def model(tower, make_tower) -> DenseVLMModel:
    return make_tower(tower)


def side_of(model: DenseVLMModel) -> int:
    """A small side in pixels: three cells of the map."""
    return 3 * model.vision_model.stride


def images(model: DenseVLMModel, count: int = 2, height: int | None = None, width: int | None = None):
    side = side_of(model)
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, height or side, width or side, generator=generator)


@pytest.mark.parametrize("cells", [(3, 3), (4, 4), (7, 7), (1, 1), (2, 5), (6, 3)])
@torch.no_grad()
def test_any_size_and_aspect_gives_a_map_of_its_cells_with_unit_norm(model, cells):
    stride = model.vision_model.stride
    dense = model.get_dense_features(images(model, 1, cells[0] * stride, cells[1] * stride))
    assert dense.shape == (1, model.config.projection_dim, *cells)
    assert_close(dense.norm(dim=1), torch.ones(1, *cells))


@torch.no_grad()
def test_a_remainder_that_fills_no_cell_is_dropped_with_a_warning(model, caplog):
    side, stride = side_of(model), model.vision_model.stride
    image = images(model, 1, side + stride // 2, side + 1)
    assert_close(model.get_dense_features(image), model.get_dense_features(image[:, :, :side, :side]))
    with pytest.raises(ValueError, match="holds no patch"):
        model.get_dense_features(image[:, :, : stride - 1])
    with pytest.raises(ValueError, match=r"is \(batch, channels, height, width\)"):
        model.get_dense_features(image[0])


@torch.no_grad()
def test_every_map_keeps_the_layout_of_the_image(model):
    # A change in the upper right corner changes that corner of each map most.
    stride = model.vision_model.stride
    model.out_features = model.stage_names
    image = images(model, 1, 3 * stride, 6 * stride)
    changed = image.clone()
    changed[:, :, :stride, -stride:] += 3.0
    for name, before, after in zip(model.stage_names, model(image).feature_maps, model(changed).feature_maps):
        difference = (before - after).norm(dim=1)[0]
        row, column = divmod(int(difference.argmax()), difference.shape[1])
        assert row < difference.shape[0] / 3 and column >= difference.shape[1] * 5 / 6, name


@torch.no_grad()
def test_extreme_boxes_give_finite_features_and_empty_ones_zeros(model):
    image = images(model)
    pooled = model.get_region_features(image, boxes=[BOXES, BOXES[:0]])
    assert pooled.shape == (len(BOXES), model.config.projection_dim)
    assert pooled.isfinite().all()
    dense = model.get_dense_features(image)
    assert_close(pooled[0], dense[0].mean((1, 2)), atol=1e-5, rtol=1e-4)
    assert (pooled[-1] == 0).all()
    none = model.get_region_features(image, boxes=[BOXES[:0]] * 2)
    assert none.shape == (0, model.config.projection_dim)


@torch.no_grad()
def test_extreme_masks_give_weighted_means_and_empty_ones_zeros(model):
    image = images(model)
    dense = model.get_dense_features(image)
    masks = torch.zeros(4, *dense.shape[2:])
    masks[1] = 1
    masks[2, 0, 0] = 1
    masks[3, 0, :2] = torch.tensor([0.25, 0.75])
    pooled = model.get_region_features(image, masks=[masks, masks[:0]])
    assert (pooled[0] == 0).all()
    assert_close(pooled[1], dense[0].mean((1, 2)))
    assert_close(pooled[2], dense[0, :, 0, 0])
    assert_close(pooled[3], 0.25 * dense[0, :, 0, 0] + 0.75 * dense[0, :, 0, 1])


@torch.no_grad()
def test_a_batch_gives_the_same_as_its_images_one_by_one(model):
    image = images(model)
    boxes = [BOXES[:2], BOXES[1:4]]
    together = model(image, boxes=boxes, return_image_embeds=True)
    alone = [model(image[i : i + 1], boxes=boxes[i : i + 1], return_image_embeds=True) for i in range(2)]
    for name in ("dense_embeds", "region_embeds", "image_embeds"):
        assert_close(together[name], torch.cat([output[name] for output in alone]), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_one_pass_gives_the_same_as_separate_passes(model):
    image = images(model)
    output = model(image, boxes=[BOXES] * 2, return_image_embeds=True)
    assert_close(output.dense_embeds, model.get_dense_features(image))
    assert_close(output.region_embeds, model.get_region_features(image, boxes=[BOXES] * 2))
    assert_close(output.image_embeds, model.get_image_features(image).pooler_output)


@torch.no_grad()
def test_eager_and_fused_attention_agree_and_each_is_used_on_request(model, tower, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path)
    fused, calls = torch.nn.functional.scaled_dot_product_attention, []

    def counted(*args, **kwargs):
        calls.append(1)
        return fused(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    outputs, counts = [], []
    for implementation in ("eager", "sdpa"):
        other = DenseVLMModel.from_pretrained(tmp_path, attn_implementation=implementation)
        assert other.vision_model.config._attn_implementation == implementation
        calls.clear()
        dense = other.get_dense_features(images(model))
        counts.append(len(calls))
        outputs.append((dense, other.get_image_features(images(model)).pooler_output))
    for eager, sdpa in zip(*outputs):
        assert_close(eager, sdpa, atol=1e-5, rtol=1e-4)
    # The last block has none where it takes the dense path; CNNs have none but in the attention pool.
    expected = {"clip_vit": 2, "eva02_clip": 2, "timm_vit": 2, "siglip": 3, "siglip2": 3, "tipsv2": 3}
    assert counts == [0, expected.get(tower, 0)]
    other.set_attn_implementation("eager")
    calls.clear()
    other.get_dense_features(images(model))
    assert not calls


@torch.no_grad()
def test_bf16_weights_give_bf16_features_within_their_precision(model, tmp_path):
    model.save_pretrained(tmp_path)
    half = DenseVLMModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    output = half(images(model).bfloat16(), boxes=[BOXES] * 2, return_image_embeds=True)
    expected = model(images(model), boxes=[BOXES] * 2, return_image_embeds=True)
    for name in ("dense_embeds", "image_embeds", "region_embeds"):
        assert output[name].dtype == torch.bfloat16
        seen = expected[name].norm(dim=1) > 0
        assert (cosine_similarity(output[name].float(), expected[name])[seen] > 0.995).all(), name


@torch.no_grad()
def test_autocast_changes_features_within_its_precision(model):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        dense = model.get_dense_features(images(model))
    expected = model.get_dense_features(images(model))
    assert not torch.equal(dense.float(), expected)
    assert (cosine_similarity(dense.float(), expected) > 0.995).all()


@torch.no_grad()
def test_the_model_compiles_without_a_break_and_can_be_copied_and_pickled(model):
    image = images(model)
    expected = model.get_dense_features(image)
    extract = torch.compile(lambda pixels: model.vision_model(pixels).dense, backend="aot_eager", fullgraph=True)
    assert_close(model.project_dense(extract(image)), expected, atol=1e-5, rtol=1e-4)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other.get_dense_features(image), expected)


class Adapted(torch.nn.Module):
    """
    A linear layer as quantisers and adapters leave it: its `weight` is integers, a part of it is in other parameters,
    it takes no more than `(batch, tokens, hidden)`.
    """

    def __init__(self, layer: torch.nn.Linear):
        super().__init__()
        self.weight = torch.nn.Parameter((layer.weight * 50).round().to(torch.int8), requires_grad=False)
        self.bias = layer.bias
        self.low_rank = torch.nn.Parameter(0.1 * torch.randn(2, sum(layer.weight.shape)))
        self.calls = 0

    @property
    def merged(self) -> torch.Tensor:
        down, up = self.low_rank.split([self.weight.shape[1], self.weight.shape[0]], dim=1)
        return self.weight / 50 + up.T @ down

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        assert hidden_states.ndim <= 3 and hidden_states.is_floating_point()
        self.calls += 1
        return torch.nn.functional.linear(hidden_states, self.merged, self.bias)


def outputs_of(model: DenseVLMModel, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """By each way into the model."""
    image = images(model)
    output = model(image, boxes=[BOXES] * 2, input_ids=tokens)
    return {
        **{name: tensor for name, tensor in output.items() if isinstance(tensor, torch.Tensor)},
        "get_dense_features": model.get_dense_features(image),
        "get_image_features": model.get_image_features(image).pooler_output,
        "get_text_features": model.get_text_features(tokens).pooler_output,
    }


@pytest.fixture
def tokens(tokenizer):
    return tokenizer(["a photo of a kite", "sky"], padding="max_length", max_length=32, return_tensors="pt").input_ids


@torch.no_grad()
def test_a_replacement_of_any_linear_layer_is_called(tower, make_tower, tokenizer, tokens):
    # Adapters before and after merging, quantised layers (peft#2291, bitsandbytes#963).
    model, merged = (make_tower(tower, tokenizer) for _ in range(2))
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    for name in linear:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, Adapted(model.get_submodule(name)))
        merged.get_submodule(name).weight.copy_(model.get_submodule(name).merged)
    expected = outputs_of(merged, tokens)
    for name, found in outputs_of(model, tokens).items():
        assert_close(found, expected[name], atol=1e-4, rtol=1e-3, msg=lambda text, name=name: f"{name} {text}")
    uncalled = [name for name in linear if not model.get_submodule(name).calls]
    assert not uncalled
    # The dense pass calls all that it trains.
    for name in linear:
        model.get_submodule(name).calls = 0
    model.get_dense_features(images(model))
    trained = {id(p) for block in model.vision_model.trainable_blocks() for p in block}
    layers = [module for module in model.modules() if isinstance(module, Adapted) and id(module.low_rank) in trained]
    assert layers or tower == "clip_resnet"  # its blocks are convolutions
    assert all(layer.calls for layer in (*layers, *model.visual_projection.modules()) if isinstance(layer, Adapted))


@torch.no_grad()
def test_weights_offloaded_by_module_hooks_give_the_same_features(tower, make_tower, tokenizer, tokens):
    accelerate = pytest.importorskip("accelerate")
    model = make_tower(tower, tokenizer)
    expected = outputs_of(model, tokens)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    assert all(parameter.is_meta for parameter in model.parameters())
    for name, found in outputs_of(model, tokens).items():
        assert torch.equal(found, expected[name]), name


class DenseFeatures(torch.nn.Module):
    def __init__(self, model: DenseVLMModel):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model.get_dense_features(pixel_values)


@torch.no_grad()
def test_an_exported_graph_is_valid_for_other_batches_and_sizes(model):
    stride = model.vision_model.stride
    rows, columns = (stride * Dim(name, min=2, max=64) for name in ("rows", "columns"))
    image = images(model, 2, 3 * stride, 5 * stride)
    graph = export(DenseFeatures(model), (image,), dynamic_shapes=({0: Dim("batch"), 2: rows, 3: columns},)).module()
    for batch, height, width in ((1, 4, 4), (3, 3, 2)):  # 3 or 4 cells are native: nothing is resized
        image = images(model, batch, height * stride, width * stride)
        assert_close(graph(image), model.get_dense_features(image), atol=1e-5, rtol=1e-4)


def gradients_of(model: DenseVLMModel) -> dict[str, torch.Tensor]:
    model.train().zero_grad()
    # Weights keep the sum from being constant, which that of unit vectors' squares is.
    pooled = model(images(model), boxes=[BOXES] * 2).region_embeds
    (pooled * torch.linspace(-1, 1, pooled.numel()).view_as(pooled)).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_in_the_blocks_gradients_reach_exactly_the_trainable_parameters(model):
    names = {id(p): name for name, p in model.named_parameters()}
    blocks = model.vision_model.trainable_blocks()
    listed = [names[id(p)] for block in blocks for p in block]
    assert len(listed) == len(set(listed))
    found = gradients_of(model)
    assert set(listed) <= set(found)
    assert all(found[name].abs().max() > 0 for name in listed)
    # Beside the blocks stand embedding or stem, final norm, head and projection: frozen by training.
    in_blocks = (
        "encoder.layers.",
        "encoder.layer.",
        "layer1.",
        "layer2.",
        "layer3.",
        "layer4.",
        "trunk.blocks.",
        "trunk.stages.",
    )
    reached = {name for name in found if name.removeprefix("vision_model.").startswith(in_blocks)}
    assert reached == set(listed)


def test_activation_checkpointing_changes_no_gradient_and_reaches_every_block(model, tower, make_tower):
    plain = gradients_of(model)
    other = make_tower(tower)
    other.activation_checkpointing_enable({"use_reentrant": False})
    norms = ("layer_norm2", "bn3", "norm2", "conv_dw")  # one in every block
    parts = {name: part for name, part in other.vision_model.named_modules() if name.rpartition(".")[2] in norms}
    parts.pop("bn3", None)  # the ResNet's stem has one, too
    runs = dict.fromkeys(parts, 0)
    for name, part in parts.items():
        part.register_forward_pre_hook(lambda *_, name=name: runs.update({name: runs[name] + 1}))
    checkpointed = gradients_of(other)
    assert len(runs) == len(model.vision_model.trainable_blocks())
    assert set(runs.values()) == {2}, runs  # forward, and again in backward
    assert checkpointed.keys() == plain.keys()
    for name, gradient in plain.items():
        assert_close(checkpointed[name], gradient, atol=1e-6, rtol=1e-4, msg=lambda text, name=name: f"{name} {text}")


def test_re_entrant_checkpointing_gives_the_gradients_behind_a_frozen_stem(tower, make_tower):
    # As in training, and as with adapters (transformers#21381): what stands before the first block is frozen.
    def trained(model):
        model.requires_grad_(False)
        for block in model.vision_model.trainable_blocks()[1:]:
            for parameter in block:
                parameter.requires_grad_(True)
        return model

    plain = gradients_of(trained(make_tower(tower)))
    for ask in (False, True):
        model = trained(make_tower(tower))
        model.activation_checkpointing_enable({"use_reentrant": True})
        if ask:  # as PEFT does
            model.enable_input_require_grads()
        found = gradients_of(model)
        assert found.keys() == plain.keys()
        for name, gradient in plain.items():
            assert_close(found[name], gradient, atol=1e-6, rtol=1e-4)
    # Nothing is computed for a stem where re-entrance does not ask for it.
    model.activation_checkpointing_enable({"use_reentrant": False})
    hidden_states = torch.zeros(1)
    block = next(m for m in model.vision_model.modules() if hasattr(m, "gradient_checkpointing"))
    assert model.vision_model.require_input_grad(hidden_states, block) is hidden_states


def test_the_input_embeddings_are_the_first_layer_and_run_once(model):
    seen = []
    model.get_input_embeddings().register_forward_hook(lambda *_: seen.append("embedding"))
    for module in model.vision_model.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            module.register_forward_hook(lambda *_: seen.append("layer"))
    model.get_dense_features(images(model))
    assert seen[0] == "embedding" and seen.count("embedding") == 1
    assert model.get_input_embeddings() is model.vision_model.get_input_embeddings()


@torch.no_grad()
def test_every_stage_can_be_tapped_in_the_dense_pass(tower, make_tower, tmp_path):
    model = make_tower(tower)
    model.save_pretrained(tmp_path)
    count = len(model.config.stage_names)
    tapped = DenseVLMModel.from_pretrained(tmp_path, out_indices=list(range(count)))
    stride = model.vision_model.stride
    image = images(model, 1, 2 * stride, 5 * stride)
    passes = []
    stem = next(m for m in tapped.vision_model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear))
    stem.register_forward_hook(lambda *_: passes.append(1))
    output = tapped(image)
    assert len(passes) == 1
    assert tapped.out_features == [*tapped.stage_names[:-1], "dense"]
    assert len(output.feature_maps) == count == len(tapped.channels) == len(tapped.strides)
    for feature_map, channels, cell in zip(output.feature_maps, tapped.channels, tapped.strides):
        assert feature_map.shape == (1, channels, 2 * stride // cell, 5 * stride // cell)
    assert torch.equal(output.feature_maps[-1], model.get_dense_features(image))


@torch.no_grad()
def test_transformers_auto_backbone_takes_the_model(tower, make_tower, tmp_path):
    model = make_tower(tower)
    config = DenseVLMConfig(**{**model.config.to_dict(), "out_features": None, "out_indices": [0, -1]})
    backbone = AutoBackbone.from_config(config).eval()
    backbone.load_state_dict(model.state_dict())
    first, dense = backbone(images(model)).feature_maps
    assert first.shape[1] == backbone.channels[0]
    assert torch.equal(dense, model.get_dense_features(images(model)))
    with pytest.raises(ValueError, match="out_features"):
        DenseVLMConfig(**{**model.config.to_dict(), "out_features": ["block99"], "out_indices": None})


def test_a_segmenter_of_transformers_takes_the_maps_and_reaches_every_block(tower, make_tower):
    config = make_tower(tower).config
    config.out_indices = [0, 1, 2, -1]
    segmenter = UperNetForSemanticSegmentation(
        UperNetConfig(
            backbone_config=config, hidden_size=16, num_labels=5, auxiliary_in_channels=32, use_auxiliary_head=False
        )
    )
    side = segmenter.backbone.strides[-1] * 3
    output = segmenter(torch.randn(2, 3, side, side), labels=torch.randint(5, (2, side, side)))
    assert output.logits.shape == (2, 5, side, side)
    output.loss.backward()
    blocks = segmenter.backbone.vision_model.trainable_blocks()
    assert all(p.grad is not None for block in blocks for p in block)


@torch.no_grad()
def test_a_depth_head_of_transformers_takes_the_maps_as_sequences(tower, make_tower):
    vision = make_tower(tower).config.vision_config
    if not hasattr(vision, "patch_size"):
        with pytest.raises(AttributeError, match="patch_size"):
            _ = make_tower(tower).config.patch_size
        return  # its maps are of several sizes: heads that read a patch size take those of one size
    config = DenseVLMConfig(
        vision_config=vision, projection_dim=32, out_indices=[0, 1, 2], reshape_hidden_states=False
    )
    assert (config.patch_size, config.hidden_size) == (8, 32)
    depth = DPTForDepthEstimation(
        DPTConfig(
            backbone_config=config,
            hidden_size=32,
            fusion_hidden_size=16,
            neck_hidden_sizes=[16] * 3,
            reassemble_factors=[2, 1, 0.5],
            readout_type="project",
            is_hybrid=False,
        )
    ).eval()
    assert type(depth.backbone) is DenseVLMModel
    assert depth(torch.randn(1, 3, 32, 48)).predicted_depth.isfinite().all()
    in_planes = DenseVLMConfig(**{**config.to_dict(), "reshape_hidden_states": True})
    planes = DenseVLMModel(in_planes).eval()
    planes.load_state_dict(depth.backbone.state_dict())
    image = torch.randn(1, 3, 32, 48)
    for sequence, plane in zip(depth.backbone(image).feature_maps, planes(image).feature_maps):
        assert_close(sequence[:, 1:].transpose(1, 2).unflatten(2, (4, 6)), plane)
        assert_close(sequence[:, 0], plane.mean((2, 3)))


@torch.no_grad()
def test_save_and_load_keep_every_output_and_every_number(model, tmp_path):
    model.save_pretrained(tmp_path / "first")
    for loader in (DenseVLMModel, AutoModel):
        loaded = loader.from_pretrained(tmp_path / "first")
        assert type(loaded) is DenseVLMModel
        loaded.save_pretrained(tmp_path / "second")
        again = DenseVLMModel.from_pretrained(tmp_path / "second")
        assert again.config.to_diff_dict() == loaded.config.to_diff_dict()
        for name, tensor in model.state_dict().items():
            assert torch.equal(again.state_dict()[name], tensor), name
        expected = model(images(model), return_image_embeds=True)
        found = again(images(model), return_image_embeds=True)
        assert torch.equal(found.dense_embeds, expected.dense_embeds)
        assert torch.equal(found.image_embeds, expected.image_embeds)


@torch.no_grad()
def test_sharded_weights_an_automatic_device_map_and_half_precision_load(model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    expected = model.get_dense_features(images(model))
    for options in ({}, {"device_map": "auto"}, {"device_map": "cpu"}):
        loaded = DenseVLMModel.from_pretrained(tmp_path, **options)
        assert torch.equal(loaded.get_dense_features(images(model)), expected)
    assert DenseVLMModel.from_pretrained(tmp_path, dtype=torch.float16).dtype == torch.float16


@torch.no_grad()
def test_a_model_built_on_the_meta_device_is_complete_once_its_weights_are_loaded(model, tmp_path):
    with torch.device("meta"):
        empty = DenseVLMModel(model.config)
    assert all(tensor.is_meta for tensor in (*empty.parameters(), *empty.buffers()))
    # No table of ours that a checkpoint would not hold: what is left are transformers' own, which it makes itself.
    assert all(
        name.endswith("position_ids") for name in dict(empty.named_buffers()).keys() - empty.state_dict().keys()
    )
    # `from_pretrained` builds the model in this way, here among numbers left in memory by others.
    model.save_pretrained(tmp_path)
    junk = [torch.full((4096,), float("nan")) for _ in range(100)]
    del junk
    loaded = DenseVLMModel.from_pretrained(tmp_path, low_cpu_mem_usage=True)
    native = getattr(model.config.vision_config, "image_size", 32)
    for side in (native, side_of(model)):
        image = images(model, 1, side, side)
        assert torch.equal(loaded.get_dense_features(image), model.get_dense_features(image))


def steps(vision, image):
    """The tokens that enter the last block (what the last stage gives, of a CNN), and the grid."""
    hidden_states, grid = vision.embed(image)
    return vision.run(hidden_states, grid, last=len(vision.stage_names) - vision.dense_last_block), grid


@torch.no_grad()
def test_the_three_steps_give_the_same_as_one_pass_for_any_division_of_the_blocks(model):
    vision, image = model.vision_model, images(model)
    features = vision(image, stages=vision.stage_names)
    hidden_states, grid = vision.embed(image)
    assert (grid.height, grid.width) == features.dense.shape[1:3]
    for name in vision.stage_names[:-1]:
        index = vision.stage_names.index(name)
        hidden_states = vision.run(hidden_states, grid, index, index + 1)
        assert torch.equal(vision.to_map(hidden_states, grid), features.stages[name]), name
    dense = vision.run(hidden_states, grid, -1, dense_residual="token")
    assert torch.equal(vision.to_map(dense, grid), features.stages[vision.stage_names[-1]])
    assert torch.equal(vision.read(dense, grid), features.dense)
    with pytest.raises(ValueError, match=rf"`stages` are names of {vision.stage_names[0]}, .*; got stem"):
        vision(image, stages=["stem"])
    at_once = vision.run(*vision.embed(image))
    assert torch.equal(vision.run(hidden_states, grid, -1), at_once)
    assert torch.equal(at_once, features.last_hidden_state)
    assert torch.equal(vision.read(at_once, grid, pooled=True), features.pooler_output)


@torch.no_grad()
def test_the_dense_path_of_the_last_block_is_the_block_on_each_location_alone(model):
    # A token that sees itself alone attends to itself with weight 1: attention is its value path.
    vision, image = model.vision_model, images(model)
    hidden_states, grid = steps(vision, image)
    if vision.dense_last_block:
        alone = torch.eye(hidden_states.shape[1], dtype=torch.bool)[None, None]
        hidden_states = vision.run(hidden_states, grid, -1, attention_mask=alone)
    assert_close(vision.read(hidden_states, grid), vision(image).dense, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_heads_can_run_the_last_blocks_with_their_own_tokens_and_mask(model, tower):
    vision, image = model.vision_model, images(model)
    hidden_states, grid = vision.embed(image)
    if tower in ("clip_resnet", "convnext"):
        with pytest.raises(ValueError, match="have no attention to mask"):
            vision.run(hidden_states, grid, attention_mask=torch.ones(1, 1, 9, 9))
        return
    hidden_states = vision.run(hidden_states, grid, last=1)
    tokens, queries = hidden_states.shape[1], 5
    # Copies of the first token, which no token looks at; a bias for each head keeps the others from the first patch.
    extended = torch.cat([hidden_states[:, :1].expand(-1, queries, -1), hidden_states], dim=1)
    seen = torch.ones(queries + tokens, queries + tokens, dtype=torch.bool)
    seen[:, :queries] = False
    extended_bias, bias = (torch.zeros(2, 4, n, n) for n in (queries + tokens, tokens))
    extended_bias.masked_fill_(~seen, torch.finfo().min)
    for mask in (extended_bias, bias):
        mask[:, 1:, -1, vision.num_prefix_tokens - tokens] = -2.0
    together = vision.run(extended, grid, 1, attention_mask=extended_bias)
    apart = vision.run(hidden_states, grid, 1, attention_mask=bias)
    assert_close(together[:, queries:], apart, atol=1e-5, rtol=1e-4)
    assert_close(vision.read(together, grid), vision.read(apart, grid), atol=1e-5, rtol=1e-4)
    if vision.num_prefix_tokens:  # what stands first has a rotary position in no tower
        class_token = apart[:, :1].expand(-1, queries, -1)
        assert_close(vision.read_tokens(together[:, :queries]), vision.read_tokens(class_token), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(apart, vision.run(hidden_states, grid, 1), atol=1e-4)
    boolean = vision.run(extended, grid, 1, attention_mask=seen[None, None])
    assert_close(boolean[:, queries:], vision.run(hidden_states, grid, 1), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_value_path_is_added_to_each_token_or_to_the_class_token(model, tower):
    image = images(model)
    with pytest.raises(
        ValueError, match="`dense_residual` is 'token', or 'cls' where the last block has a class token; got 'm"
    ):
        model.get_dense_features(image, dense_residual="mean")
    if tower not in ("clip_vit", "eva02_clip"):  # one of timm with a class token is in test_timm_clip.py
        with pytest.raises(ValueError, match="`dense_residual` is 'token', .*; got 'cls' for a"):
            model.get_dense_features(image, dense_residual="cls")
        return
    for dense_residual in ("token", "cls"):
        assert_value_path(model, image, dense_residual)


def assert_value_path(model, image, dense_residual, attention="self_attn", norm="layer_norm2"):
    seen, last = {}, model.vision_model.blocks[-1]
    last.register_forward_pre_hook(lambda _, inputs: seen.update(tokens=inputs[0]))
    getattr(last, attention).register_forward_hook(lambda _, __, output: seen.update(values=output))
    getattr(last, norm).register_forward_pre_hook(lambda _, inputs: seen.update(sum=inputs[0]))
    dense = model.get_dense_features(image, dense_residual=dense_residual)
    values = seen["values"][0] if isinstance(seen["values"], tuple) else seen["values"]
    tokens, grid = steps(model.vision_model, image)
    residual = tokens[:, :1] if dense_residual == "cls" else model.vision_model.patch_tokens(tokens, grid)
    assert_close(seen["sum"], values + residual)
    assert dense.shape[2:] == (grid.height, grid.width)


@torch.no_grad()
def test_the_map_is_returned_without_normalisation_on_request(model):
    dense = model.get_dense_features(images(model), normalize=False)
    assert dense.norm(dim=1).std() > 0
    assert_close(torch.nn.functional.normalize(dense, dim=1), model.get_dense_features(images(model)))


@torch.no_grad()
def test_a_tower_called_alone_returns_the_outputs_of_vision_models_of_transformers(model, tower):
    vision, image = model.vision_model, images(model)
    features = vision(pixel_values=image, output_hidden_states=True)
    assert torch.equal(model.visual_projection(features.pooler_output), model.get_image_features(image).pooler_output)
    assert torch.equal(model.get_image_features(image).last_hidden_state, features.last_hidden_state)
    assert torch.equal(model.project_dense(features.dense), model.get_dense_features(image))
    # What enters the first block and what each one gives, whichever paths the pass takes.
    for dense, pooled in ((True, True), (False, True), (True, False)):
        found = vision(image, dense=dense, pooled=pooled, output_hidden_states=True)
        assert (found.dense is not None, found.pooler_output is not None) == (dense, pooled)
        assert len(found.hidden_states) == len(vision.stage_names) + 1
        assert all(map(torch.equal, found.hidden_states[:-1], features.hidden_states))
    assert torch.equal(features.hidden_states[-1], features.last_hidden_state)
    assert torch.equal(features.hidden_states[0], vision.embed(image)[0])
    assert torch.equal(vision(image, return_dict=False)[0], features.last_hidden_state)
    if tower == "clip_vit":
        theirs = CLIPVisionModel(vision.config).eval()
        theirs.load_state_dict(vision.state_dict())
        native = images(model, 2, 32, 32)
        ours, theirs = (part(native, output_hidden_states=True) for part in (vision, theirs))
        for name in ("last_hidden_state", "pooler_output", "hidden_states"):
            assert_close(ours[name], theirs[name])


@torch.no_grad()
def test_attentions_are_returned_with_eager_attention_for_blocks_that_compute_them(model, tower):
    image, vision = images(model), model.vision_model
    tokens = vision.embed(image)[0].shape[1]
    for _ in range(2):
        with pytest.raises(ValueError, match="`output_attentions` is for eager attention"):
            model(image, output_attentions=True)
        if tower in ("clip_resnet", "convnext", "timm_vit"):
            model.set_attn_implementation("eager")
    model.set_attn_implementation("eager")
    if tower in ("clip_resnet", "convnext", "timm_vit"):
        return
    dense, both, alone = (
        model(image, output_attentions=True).attentions,
        model(image, output_attentions=True, return_image_embeds=True).attentions,
        vision(image, dense=False, output_attentions=True).attentions,
    )
    assert len(both) == len(alone) == 3 and len(dense) == 3 - vision.dense_last_block
    for attentions in (dense, both, alone):
        assert all(map(torch.equal, attentions, alone))
        for attention in attentions:
            assert attention.shape == (2, 4, tokens, tokens)
            assert_close(attention.sum(-1), torch.ones(2, 4, tokens))
    model.config.output_attentions = True
    assert len(model(image).attentions) == len(dense)
    assert model(image, output_attentions=False).attentions is None


@torch.no_grad()
def test_the_model_accepts_the_processors_output_for_texts_of_different_lengths(tower, folder_of, picture):
    folder, image = folder_of(tower, 0), picture(90, 60)
    model, processor = DenseVLMModel.from_pretrained(folder), DenseVLMProcessor.from_pretrained(folder)
    texts = ["a kite", "this is a photo of a boat"]
    inputs = processor(images=image, text=texts, return_tensors="pt")
    output = model(**inputs)
    assert output.logits_per_image.shape == (1, 2) and torch.equal(output.logits_per_text, output.logits_per_image.T)
    assert output.image_embeds.shape == (1, model.config.projection_dim)
    for padding in ("longest", "max_length"):  # pipelines of transformers pad to the longest, whatever the tower
        texts_alone = processor(text=texts, padding=padding, return_tensors="pt")
        assert_close(output.text_embeds, model(**texts_alone).text_embeds, atol=1e-5, rtol=1e-4)
    hidden_states = model(**inputs, output_hidden_states=True).hidden_states
    assert [m.shape[1] for m in hidden_states] == model.vision_model.stage_channels
    fields = model(**inputs, return_dict=False)
    assert isinstance(fields, tuple) and torch.equal(fields[0], output.dense_embeds)


@torch.no_grad()
def test_pipelines_of_transformers_load_and_run_a_folder(tower, folder_of, picture):
    folder, image = folder_of(tower, 0), picture(90, 60)
    model, tokenizer = DenseVLMModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    extract = pipeline("image-feature-extraction", model=folder, device="cpu")
    assert type(extract.model) is DenseVLMModel
    pixel_values = extract.image_processor(image, return_tensors="pt")["pixel_values"]
    assert_close(extract(image, return_tensors=True), model.get_dense_features(pixel_values))
    classify = pipeline("zero-shot-image-classification", model=folder, device="cpu")
    labels = ["kite", "a red boat"]
    found = {entry["label"]: entry["score"] for entry in classify(image, candidate_labels=labels)}
    texts = [f"This is a photo of {label}." for label in labels]
    tokens = tokenizer(texts, padding="max_length", max_length=32, return_tensors="pt")
    expected = model(pixel_values, **tokens).logits_per_image.softmax(-1)[0]
    assert_close(torch.tensor([found[label] for label in labels]), expected, atol=1e-4, rtol=1e-4)


def test_names_of_maps_remain_valid_after_a_change_of_the_tower(tower, make_tower):
    config = make_tower(tower).config
    if "num_hidden_layers" not in config.vision_config.to_dict():
        return  # a CNN has four stages
    content = config.to_dict()
    content["vision_config"]["num_hidden_layers"] = 2
    assert DenseVLMConfig(**content).out_indices == [2]  # still the dense map
    shorter = copy.deepcopy(config)
    shorter.vision_config.num_hidden_layers = 2
    model = DenseVLMModel(shorter)
    assert model.out_features == ["dense"] and len(model.channels) == 1
    content["out_features"], content["out_indices"] = ["block2", "dense"], None
    with pytest.raises(ValueError, match="block2"):
        DenseVLMConfig(**content)
