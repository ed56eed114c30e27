# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
import argparse
import json
import os
import pickle
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from modeling_densevlm import DenseVLMModel, DenseVLMProcessor
from modeling_densevlm.conversion.configs import convert_config
from modeling_densevlm.conversion.files import read_checkpoint
from modeling_densevlm.convert_open_clip import convert_checkpoint, main
from modeling_densevlm.processing_densevlm import load_processing


CONFIG = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 16, "patch_size": 16, "head_width": 8},
    "text_cfg": {"context_length": 6, "vocab_size": 10, "width": 12, "heads": 2, "layers": 1},
}


def block(prefix, width):
    shapes = {
        "ln_1.weight": (width,),
        "ln_1.bias": (width,),
        "ln_2.weight": (width,),
        "ln_2.bias": (width,),
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
        "mlp.c_fc.weight": (4 * width, width),
        "mlp.c_fc.bias": (4 * width,),
        "mlp.c_proj.weight": (width, 4 * width),
        "mlp.c_proj.bias": (width,),
    }
    return {f"{prefix}.{name}": torch.randn(shape) for name, shape in shapes.items()}


@pytest.fixture
def checkpoint():
    torch.manual_seed(0)
    shapes = {
        "visual.class_embedding": (16,),
        "visual.conv1.weight": (16, 3, 16, 16),
        "visual.positional_embedding": (5, 16),
        "visual.ln_pre.weight": (16,),
        "visual.ln_pre.bias": (16,),
        "visual.ln_post.weight": (16,),
        "visual.ln_post.bias": (16,),
        "visual.proj": (16, 8),
        "token_embedding.weight": (10, 12),
        "positional_embedding": (6, 12),
        "ln_final.weight": (12,),
        "ln_final.bias": (12,),
        "text_projection": (12, 8),
        "logit_scale": (),
    }
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    for layer in range(2):
        tensors.update(block(f"visual.transformer.resblocks.{layer}", 16))
    return tensors | block("transformer.resblocks.0", 12)


def test_every_key_is_converted(checkpoint):
    model = convert_checkpoint(checkpoint, CONFIG)
    weights = model.state_dict()
    assert sum(tensor.numel() for tensor in weights.values()) == sum(tensor.numel() for tensor in checkpoint.values())
    assert torch.equal(weights["visual_projection.weight"], checkpoint["visual.proj"].T)
    rows = checkpoint["visual.transformer.resblocks.1.attn.in_proj_weight"]
    assert torch.equal(weights["vision_model.encoder.layers.1.self_attn.v_proj.weight"], rows[32:])


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "training"])
def test_files_of_every_kind_are_read(checkpoint, tmp_path, suffix):
    file = tmp_path / f"checkpoint.{'pt' if suffix == 'training' else suffix}"
    if suffix == "safetensors":
        save_file(checkpoint, file)
    elif suffix == "pt":
        torch.save(checkpoint, file)
    else:
        torch.save({"epoch": 3, "state_dict": {f"module.{key}": tensor for key, tensor in checkpoint.items()}}, file)
    assert torch.equal(convert_checkpoint(file, CONFIG).logit_scale, checkpoint["logit_scale"])


def test_missing_unexpected_and_misshapen_keys_are_named(checkpoint):
    without = {key: tensor for key, tensor in checkpoint.items() if key != "visual.proj"}
    with pytest.raises(ValueError, match=r"missing: visual_projection\.weight"):
        convert_checkpoint(without, CONFIG)
    with pytest.raises(ValueError, match="Left over: the key 'visual.rope'"):
        convert_checkpoint({**checkpoint, "visual.rope": torch.zeros(1)}, CONFIG)
    with pytest.raises(ValueError, match=r"left over: vision_model\.encoder\.layers\.2\..*"):
        convert_checkpoint(checkpoint | block("visual.transformer.resblocks.2", 16), CONFIG)
    with pytest.raises(
        ValueError, match=r"of another shape: visual_projection\.weight \(9, 16\) instead of \(8, 16\)"
    ):
        convert_checkpoint({**checkpoint, "visual.proj": torch.zeros(16, 9)}, CONFIG)


class Harmful:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_file_with_code_is_not_unpickled(tmp_path, capsys):
    with open(tmp_path / "evil.pt", "wb") as file:
        pickle.dump({"state_dict": Harmful()}, file)
    with pytest.raises(ValueError, match="not unpickled"):
        read_checkpoint(tmp_path / "evil.pt")
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["garbage.pt", "garbage.pth", "garbage.bin", "garbage.safetensors", "garbage"])
@pytest.mark.parametrize("content", [b"no checkpoint at all", b"", bytes(range(256)) * 40])
def test_garbage_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} (is truncated or not a checkpoint|does not hold tensors only)"):
        read_checkpoint(tmp_path / name)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_a_truncated_file_is_refused(checkpoint, tmp_path, suffix, share):
    file = tmp_path / f"cut.{suffix}"
    save_file(checkpoint, file) if suffix == "safetensors" else torch.save(checkpoint, file)
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=r"cut\..* is truncated or not a checkpoint"):
        convert_checkpoint(file, CONFIG)


@pytest.mark.parametrize("damage", ["a bit", "a block"])
def test_a_safetensors_file_with_a_damaged_header_is_refused(checkpoint, tmp_path, damage):
    save_file(checkpoint, tmp_path / "c.safetensors")
    content = bytearray((tmp_path / "c.safetensors").read_bytes())
    content[8:9] = b"\x00" if damage == "a bit" else b"\xff" * 64
    (tmp_path / "c.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"c\.safetensors is truncated or not a checkpoint"):
        read_checkpoint(tmp_path / "c.safetensors")


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_a_torchscript_archive_is_not_executed_and_the_error_names_the_hub(tmp_path):
    program = torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2))
    program.save(str(tmp_path / "ViT-B-16.pt"))
    with pytest.raises(
        ValueError, match=r"TorchScript archive, which contains code, and was not executed.*openai/clip-"
    ):
        read_checkpoint(tmp_path / "ViT-B-16.pt")


@pytest.mark.parametrize(
    "content",
    [{}, {"state_dict": {}}, {"epoch": 3}, [torch.zeros(1)], {"state_dict": {"a": torch.zeros(1), "b": "text"}}],
)
def test_a_file_without_weights_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "empty.pt")
    with pytest.raises(
        ValueError, match=r"empty\.pt: expected a dict of tensors, (or one under `state_dict`|but '\w+' is)"
    ):
        read_checkpoint(tmp_path / "empty.pt")


def test_the_error_names_the_code_in_a_file_without_a_suggestion_to_run_it(checkpoint, tmp_path):
    torch.save({"state_dict": checkpoint, "args": argparse.Namespace(lr=1.0)}, tmp_path / "training.pt")
    with pytest.raises(ValueError) as error:
        read_checkpoint(tmp_path / "training.pt")
    assert "it refers to the code argparse.Namespace), and was not unpickled" in str(error.value)
    assert "\x1b" not in str(error.value) and "weights_only=False" not in str(error.value)


def test_a_file_whose_archive_is_damaged_anywhere_is_refused(checkpoint, tmp_path):
    torch.save(checkpoint, tmp_path / "c.pt")
    content = (tmp_path / "c.pt").read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        damaged = bytearray(content)
        for at in rng.integers(0, len(content), size=20):
            damaged[at] = rng.integers(256)
        damaged[-200:] = rng.integers(0, 256, size=200, dtype=np.uint8).tobytes()  # the directory is at the end
        (tmp_path / "damaged.pt").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"damaged\.pt"):
            read_checkpoint(tmp_path / "damaged.pt")
        refused += 1
    assert refused == 60


WRONG_NUMBERS = {
    "image_size": ([32, 32], "`vision_cfg.image_size` is a number above 0"),
    "width": (None, "`vision_cfg.width` is a number above 0, got None"),
    "head_width": (5, "the width 16 is not a multiple of the `head_width` 5"),
    "layers": (-1, "`vision_cfg.layers` is a number above 0, got -1"),
    "mlp_ratio": (float("nan"), "`vision_cfg.mlp_ratio` is a number above 0, got nan"),
    "patch_size": ("16", "`vision_cfg.patch_size` is a number above 0, got '16'"),
}


@pytest.mark.parametrize("field", WRONG_NUMBERS)
def test_the_error_for_an_impossible_number_in_a_configuration_names_its_field(checkpoint, field):
    value, message = WRONG_NUMBERS[field]
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(checkpoint, {**CONFIG, "vision_cfg": {**CONFIG["vision_cfg"], field: value}})
    if field in ("image_size", "width", "head_width", "patch_size"):
        with pytest.raises(ValueError, match=rf"`vision_cfg\.{field}` is an integer, got 16\.5"):
            convert_checkpoint(checkpoint, {**CONFIG, "vision_cfg": {**CONFIG["vision_cfg"], field: 16.5}})
    for layers in ([1, 2, "1", 1], [1, 2, 1]):
        with pytest.raises(ValueError, match=r"`vision_cfg\.layers` (is a number|of a ResNet are 4 depths)"):
            convert_config({**CONFIG, "vision_cfg": {"image_size": 64, "width": 8, "layers": layers}})


@pytest.mark.parametrize("part", ["vision_cfg", "text_cfg"])
@pytest.mark.parametrize("value", [None, 3, "ViT-B-16"])
def test_a_configuration_whose_parts_are_not_objects_is_refused(checkpoint, part, value):
    with pytest.raises(ValueError, match=f"`{part}` is an object, got"):
        convert_checkpoint(checkpoint, {**CONFIG, part: value})
    with pytest.raises(ValueError, match="`model_cfg` is an object, got"):
        convert_checkpoint(checkpoint, {"model_cfg": value})
    with pytest.raises(ValueError, match=r"`vision_cfg\.timm_model_name` is a name, got 3"):
        convert_checkpoint(checkpoint, {**CONFIG, "vision_cfg": {"timm_model_name": 3}})


@pytest.mark.parametrize(
    ("key", "tensor"),
    [
        ("visual.transformer.resblocks.0.attn.in_proj_weight", torch.zeros(47, 16)),  # no three equal parts
        ("visual.transformer.resblocks.0.attn.in_proj_bias", torch.zeros(())),
        ("visual.positional_embedding", torch.zeros(16)),
        ("positional_embedding", torch.zeros(0, 12)),
        ("visual.proj", torch.zeros(8)),
        ("visual.conv1.weight", torch.zeros(16, 3, 8, 8)),
    ],
)
def test_a_misshapen_tensor_is_named_whatever_its_shape(checkpoint, key, tensor):
    with pytest.raises(ValueError, match=r"(of another shape|missing|Left over): "):
        convert_checkpoint({**checkpoint, key: tensor}, CONFIG)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.complex64, torch.bool])
def test_a_tensor_that_is_not_floating_point_is_refused(checkpoint, dtype):
    with pytest.raises(
        ValueError, match=rf"of another dtype: visual_projection.weight {dtype} instead of a floating-point one"
    ):
        convert_checkpoint({**checkpoint, "visual.proj": checkpoint["visual.proj"].to(dtype)}, CONFIG)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module.module.", "_orig_mod.module."])
def test_prefixes_of_module_wrappers_are_removed(checkpoint, prefix):
    wrapped = {"state_dict": {prefix + key: tensor for key, tensor in checkpoint.items()}}
    assert torch.equal(convert_checkpoint(wrapped, CONFIG).logit_scale, checkpoint["logit_scale"])


@pytest.mark.parametrize("other", ["module.visual.proj", "text.ln_final.weight"])
def test_two_tensors_for_the_same_parameter_are_refused(checkpoint, other):
    name = other.removeprefix("module.").removeprefix("text.")
    with pytest.raises(ValueError, match=rf"holds {re.escape(name)} twice, as (\S+) and as (\S+)"):
        convert_checkpoint({**checkpoint, other: checkpoint[name] + 1}, CONFIG)


def test_a_value_that_is_not_a_tensor_is_named(checkpoint):
    with pytest.raises(ValueError, match="The checkpoint: expected a dict of tensors, but 'epoch' is int"):
        convert_checkpoint({**checkpoint, "epoch": 3}, CONFIG)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no checkpoint .*nowhere.pt"):
        convert_checkpoint(tmp_path / "nowhere.pt", CONFIG)
    with pytest.raises(ValueError, match="is a folder: `DenseVLMModel.from_pretrained` loads folders"):
        convert_checkpoint(tmp_path, CONFIG)


@pytest.mark.parametrize("text", ["no json", "[1, 2]", '"text"'])
def test_a_file_that_is_not_a_configuration_is_named(checkpoint, tmp_path, text):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(ValueError, match=r"c\.json(: expected open_clip| is not valid JSON)"):
        convert_checkpoint(checkpoint, tmp_path / "c.json")


def test_every_single_missing_tensor_is_named(checkpoint):
    for key in checkpoint:
        without = {name: tensor for name, tensor in checkpoint.items() if name != key}
        with pytest.raises(ValueError, match=rf"missing: .*\b{re.escape(key)}\b"):
            convert_checkpoint(without, CONFIG)


def test_an_incomplete_configuration_and_that_of_another_model_are_refused(checkpoint):
    with pytest.raises(ValueError, match="no field 'text_cfg'"):
        convert_checkpoint(checkpoint, {key: CONFIG[key] for key in ("embed_dim", "vision_cfg")})
    eva = {**CONFIG, "vision_cfg": {**CONFIG["vision_cfg"], "eva_model_name": "eva-clip-b-16"}}
    with pytest.raises(ValueError, match="another tower"):
        convert_checkpoint(checkpoint, eva)
    other = {**CONFIG, "vision_cfg": {**CONFIG["vision_cfg"], "no_ln_pre": True}}
    with pytest.raises(ValueError, match="`vision_cfg` has fields that are not converted: no_ln_pre"):
        convert_checkpoint(checkpoint, other)


def test_the_command_line_writes_a_folder_that_loads(checkpoint, tmp_path, run_module):
    save_file(checkpoint, tmp_path / "c.safetensors")
    (tmp_path / "c.json").write_text(json.dumps(CONFIG), encoding="utf-8-sig")  # as Windows' editors save it
    with pytest.raises(SystemExit):
        main([str(part) for part in (tmp_path / "c.safetensors", tmp_path / "c.json", "out", "--config", "ViT-B-16")])
    with pytest.raises(SystemExit):
        main([str(tmp_path / "c.safetensors"), str(tmp_path / "c.json")])  # the output is a file
    arguments = [tmp_path / "c.safetensors", tmp_path / "c.json", tmp_path / "out"]
    run_module("modeling_densevlm.convert_open_clip", arguments)
    model = DenseVLMModel.from_pretrained(tmp_path / "out")
    assert torch.equal(model.visual_projection.weight, checkpoint["visual.proj"].T)
    image_processor, tokenizer = load_processing(tmp_path / "out")
    assert image_processor.size == {"longest_edge": 32} and tokenizer is None
    with pytest.raises(ValueError, match="out has no tokenizer"):
        DenseVLMProcessor.from_pretrained(tmp_path / "out")


def test_every_error_of_the_command_is_one_line_and_leaves_no_files(checkpoint, tmp_path, make_tower, capsys):
    file, config, ours = tmp_path / "c.safetensors", tmp_path / "c.json", tmp_path / "ours"
    save_file(checkpoint, file)
    config.write_text(json.dumps(CONFIG))
    make_tower("clip_vit").save_pretrained(ours)
    (tmp_path / "empty").mkdir()
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("garbage")
    shutil.copytree(ours, tmp_path / "garbled")
    (tmp_path / "garbled" / "model.safetensors").write_bytes(b"garbage")
    shutil.copytree(ours, tmp_path / "unconfigured")
    (tmp_path / "unconfigured" / "config.json").write_text("garbage")
    (tmp_path / "back.json").mkdir()
    before = sorted(tmp_path.rglob("*"))
    out = tmp_path / "new" / "out"
    cases = {
        r"ours is a folder: .* give a file, such as its model\.safetensors": [ours, out],
        r"There is no checkpoint .*nothing\.pt": [tmp_path / "nothing.pt", out],
        r"empty is a folder: .* give a file\.$": [tmp_path / "empty", out],
        r"c\.json/out cannot be written: (Not a directory|File exists)\.$": [
            *(file, config / "out", "--config", config)
        ],
        "empty is neither a file nor a known configuration": [file, out, "--config", tmp_path / "empty"],
        "--processor .*tokenizer: no tokenizer found": [file, out, "--processor", tmp_path / "tokenizer"],
        r"c\.safetensors cannot be loaded": ["--export", file, tmp_path / "back.pt"],
        "nowhere cannot be loaded": ["--export", tmp_path / "nowhere", tmp_path / "back.pt"],
        "empty cannot be loaded": ["--export", tmp_path / "empty", tmp_path / "back.pt"],
        "garbled cannot be loaded": ["--export", tmp_path / "garbled", tmp_path / "back.pt"],
        "unconfigured cannot be loaded": ["--export", tmp_path / "unconfigured", tmp_path / "back.pt"],
        r"back\.json cannot be written: Is a directory\.$": ["--export", ours, tmp_path / "back.pt"],
    }
    for message, arguments in cases.items():
        with pytest.raises(SystemExit) as error:
            main([str(part) for part in arguments])
        assert re.search(message, error.value.code) and "\n" not in error.value.code, error.value.code
        assert str(tmp_path) in error.value.code
    for arguments, message in (
        ([file, config], "exists already; give a new folder"),
        (["--export", ours, tmp_path / "empty"], "is a folder; with --export it is a .pt or .safetensors file"),
        (["--export", ours, tmp_path / "b.json"], "ends in '.json'; with --export it is a .pt or .safetensors file"),
    ):
        with pytest.raises(SystemExit):
            main([str(part) for part in arguments])
        assert message in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
    file.chmod(0)
    if not os.access(file, os.R_OK):  # permissions do not bind root
        with pytest.raises(SystemExit, match=r"c\.safetensors cannot be read: Permission denied\.$"):
            main([str(part) for part in (file, out, "--config", config)])


def test_a_full_disk_leaves_no_partial_files(checkpoint, tmp_path, make_tower):
    resource = pytest.importorskip("resource", reason="files are limited in size by POSIX")
    save_file(checkpoint, tmp_path / "c.safetensors")
    (tmp_path / "c.json").write_text(json.dumps(CONFIG))
    make_tower("clip_vit").save_pretrained(tmp_path / "ours")
    before = sorted(tmp_path.rglob("*"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for arguments, name in (
        ([tmp_path / "c.safetensors", tmp_path / "out", "--config", tmp_path / "c.json"], "out"),
        (["--export", tmp_path / "ours", tmp_path / "back.pt"], r"back\.pt"),
        (["--export", tmp_path / "ours", tmp_path / "back.safetensors"], r"back\.safetensors"),
    ):
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        try:
            with pytest.raises(SystemExit, match=rf"^\S*/{name} cannot be written: .+$"):
                main([str(part) for part in arguments])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert sorted(tmp_path.rglob("*")) == before
