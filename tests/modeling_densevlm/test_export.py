# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Graphs of ONNX and torch.export: the model's values at any size, on every tower, without this package."""

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from modeling_densevlm import CategorySet, DenseVLMForSemanticSegmentation, DenseVLMModel, DenseVLMProcessor
from modeling_densevlm.export import export_model, main, onnx_session


ROOT = Path(__file__).parents[2]
CATEGORIES = CategorySet("three", ["kite", "boat", "sky"], [True, True, False])
needs_onnx = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("onnxruntime", "onnxscript")),
    reason="ONNX is written with the extra `export`",
)


def inputs_of(model: DenseVLMModel, batch: int, rows: int, columns: int, regions: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    stride = model.vision_model.stride
    corners = torch.rand(batch, regions, 2, 2, generator=generator).sort(dim=2).values.flatten(2)
    return torch.randn(batch, 3, rows * stride, columns * stride, generator=generator), corners


@needs_onnx
@torch.no_grad()
def test_an_onnx_graph_gives_the_probabilities_of_regions_at_any_size_for_every_tower(tower, folder_of, tmp_path):
    folder = folder_of(tower, 0)
    export_model(folder, tmp_path / "regions.onnx", regions=True, categories=CATEGORIES, templates="short")
    run = onnx_session(tmp_path / "regions.onnx")
    segmenter = DenseVLMForSemanticSegmentation.from_pretrained(folder)
    segmenter.set_categories(CATEGORIES, templates="short")
    for sizes in ((1, 4, 4, 2), (3, 3, 2, 1), (2, 2, 7, 9)):  # 3 or 4 cells are native: nothing is resized
        pixel_values, boxes = inputs_of(segmenter.densevlm, *sizes)
        region_embeds = segmenter.densevlm.get_region_features(pixel_values, boxes=list(boxes))
        cosines = torch.nn.functional.normalize(region_embeds, dim=-1) @ segmenter.category_embeds.T
        expected = (cosines * segmenter.densevlm.logit_scale.exp()).view(*boxes.shape[:2], 3)
        assert_close(run(pixel_values, boxes), expected, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def folder(folder_of) -> Path:
    return folder_of("clip_vit", 0)


@pytest.mark.parametrize("suffix", [pytest.param("onnx", marks=needs_onnx), "pt2"])
@torch.no_grad()
def test_graphs_give_dense_maps_maps_of_categories_and_region_features(folder, suffix, tmp_path):
    model = DenseVLMModel.from_pretrained(folder)
    segmenter = DenseVLMForSemanticSegmentation.from_pretrained(folder)
    segmenter.set_categories(CATEGORIES, templates="short")
    segmenter.config.thing_offset = 0.1
    segmenter.save_pretrained(tmp_path / "segmenter")
    DenseVLMProcessor.from_pretrained(folder).save_pretrained(tmp_path / "segmenter")
    pixel_values, boxes = inputs_of(model, 2, 5, 3, 4)
    expected = {
        "dense": model.get_dense_features(pixel_values),
        "regions": model.get_region_features(pixel_values, boxes=list(boxes)).unflatten(0, (2, 4)),
        "map": segmenter(pixel_values).logits,  # the vocabulary and the offset of the folder
    }
    for name, values in expected.items():
        file = tmp_path / f"{name}.{suffix}"
        source = tmp_path / "segmenter" if name == "map" else folder
        assert export_model(source, file, regions=name == "regions") < 1e-4
        run = onnx_session(file) if suffix == "onnx" else torch.export.load(file).module()
        inputs = (pixel_values, boxes) if name == "regions" else (pixel_values,)
        assert_close(run(*inputs), values, atol=1e-4, rtol=1e-4)
    if suffix == "pt2":
        files = {"metadata.json": ""}
        torch.export.load(tmp_path / "map.pt2", extra_files=files)
        assert json.loads(files["metadata.json"])["categories"] == ["kite", "boat", "sky"]


@torch.no_grad()
def test_in_a_graph_boxes_in_pixels_give_nan_and_padding_gives_zeros(folder, tmp_path):
    export_model(folder, tmp_path / "regions.pt2", regions=True)
    run = torch.export.load(tmp_path / "regions.pt2").module()
    pixel_values, _ = inputs_of(DenseVLMModel.from_pretrained(folder), 1, 4, 4, 1)
    boxes = torch.tensor([[[0.0, 0, 1, 1], [0, 0, 32, 20], [0, 0, 0, 0]]])
    whole, in_pixels, padding = run(pixel_values, boxes)[0]
    assert whole.isfinite().all() and in_pixels.isnan().all() and (padding == 0).all()


@needs_onnx
def test_int8_weights_take_less_space_at_nearly_the_same_values(folder, tmp_path):
    differences = [export_model(folder, tmp_path / f"{int8}.onnx", int8=int8) for int8 in (False, True)]
    assert differences[0] < 1e-4 < differences[1] < 0.1
    assert (tmp_path / "True.onnx").stat().st_size < 0.9 * (tmp_path / "False.onnx").stat().st_size


@needs_onnx
def test_the_documented_lines_label_a_photo_without_torch_or_this_package(folder, tmp_path, picture):
    main([str(folder), str(tmp_path / "map.onnx"), "--words", "boat, water, sky"])
    picture(90, 60).save(tmp_path / "photo.jpg")
    lines = re.search(r"```python\n(.+?)```", (ROOT / "docs" / "export.md").read_text(), re.DOTALL)[1]
    program = f"import sys\nsys.modules['torch'] = None\n{lines}\nprint(labels.shape, about['categories'])"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "(8, 12) ['boat', 'water', 'sky']\n", done.stderr


def test_what_cannot_be_exported_is_refused_by_one_line_and_writes_nothing(folder, tmp_path):
    segmenter = DenseVLMForSemanticSegmentation.from_pretrained(folder)
    segmenter.config.window_size = 32
    segmenter.save_pretrained(tmp_path / "windows")
    for arguments, message in (
        ([folder, tmp_path / "graph.pt"], r"graph\.pt ends in \.onnx, or in \.pt2"),
        ([folder, tmp_path / "graph.pt2", "--int8"], "--int8 is for ONNX"),
        ([tmp_path / "windows", tmp_path / "graph.pt2"], r"sliding windows \(`window_size` in config\.json\)"),
        ([tmp_path / "gone", tmp_path / "graph.pt2"], "gone"),
    ):
        with pytest.raises(SystemExit, match=message):
            main([*map(str, arguments)])
    assert not list(tmp_path.glob("graph*"))


def test_onnx_without_its_packages_names_the_extra(folder, tmp_path, monkeypatch):
    for name in ("onnxruntime", "onnxruntime.quantization", "onnxscript"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit, match=r"install this package with the extra `export`\."):
        main([str(folder), str(tmp_path / "dense.onnx")])
