# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Shared fixtures: small real components."""

import os


os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is downloaded; read when transformers is imported
# One test process per core: more threads of torch would wait for each other in busy loops. Read when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers import CLIPConfig, CLIPModel

from modeling_densevlm import DenseVLMConfig, DenseVLMImageProcessor, DenseVLMModel, DenseVLMProcessor
from tests import fork_server
from training.sandbox.scenes import CATEGORIES, write_scenes
from training.sandbox.tokenizer import category_sentences, word_tokenizer


ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"


def pytest_collection_finish() -> None:
    # accelerate collects garbage in every run: exclude what was imported.
    gc.freeze()


class Golden:
    """Tensors of a golden file of the reference by name, and its metadata."""

    def __init__(self, file: Path):
        self.file = safe_open(file, framework="pt")
        self.folder = file.parent
        self.metadata = self.file.metadata()
        self.same_as = json.loads(self.metadata.get("same_as", "{}"))
        self.keys = {*self.file.keys(), *self.same_as}

    def __getitem__(self, key: str) -> torch.Tensor:
        if key not in self.same_as:
            return self.file.get_tensor(key)
        file, _, name = self.same_as[key].partition("/")
        return Golden(self.folder / f"{file}.safetensors")[name]

    @property
    def config(self) -> dict:
        return json.loads(self.metadata["config"])

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return {key.removeprefix("weights."): self[key] for key in self.keys if key.startswith("weights.")}


NOT_SHIPPED = {
    "preproc": "it contains crops of COCO images",
    "loss_densevlm_real_embeddings": "it contains text embeddings of released models",
}
"""Golden files that cannot be redistributed, in a folder `shared/golden` beside the checkout."""


@pytest.fixture(scope="session")
def golden():
    def load(name: str) -> Golden:
        folder = SHARED / "golden" if name in NOT_SHIPPED else ROOT / "tests" / "golden" / "tensors"
        file = folder / f"{name}.safetensors"
        if name in NOT_SHIPPED and not file.is_file():
            pytest.skip(f"needs {file.name} in ../shared/golden: {NOT_SHIPPED[name]}, not shipped")
        return Golden(file)

    return load


@pytest.fixture(scope="session")
def coco_sample() -> Path:
    folder = SHARED / "data" / "coco_panoptic_sample"
    if not folder.is_dir():
        pytest.skip("needs two images of COCO in ../shared/data/coco_panoptic_sample")
    return folder


_TRANSFORMER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}

TOWERS = {
    "clip_vit": {"model_type": "clip_vision_model", **_TRANSFORMER, "image_size": 32, "patch_size": 8},
    "eva02_clip": {"model_type": "eva02_clip_vision_model", **_TRANSFORMER, "image_size": 32, "patch_size": 8},
    "clip_resnet": {
        "model_type": "clip_resnet_vision_model",
        "stem_size": 4,
        "depths": [1, 2, 1, 1],
        "num_attention_heads": 4,
        "image_size": 96,
    },
    "convnext": {
        "model_type": "timm_convnext_vision_model",
        "architecture": "convnext_tiny",
        "depths": [1, 2, 1, 1],
        "dims": [8, 16, 24, 32],
        "image_size": 96,
    },
    "timm_vit": {
        "model_type": "timm_vit_vision_model",
        "architecture": "vit_medium_patch16_gap_256",
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
    },
    "siglip": {"model_type": "siglip_vision_model", **_TRANSFORMER, "image_size": 32, "patch_size": 8},
    "siglip2": {"model_type": "siglip2_vision_model", **_TRANSFORMER, "num_patches": 16, "patch_size": 8},
    "tipsv2": {
        "model_type": "tipsv2_vision_model",
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "mlp_ratio": 1.5,
        "image_size": 32,
        "patch_size": 8,
    },
}
"""Tiny versions of every vision tower: native maps of 4 x 4 locations, 3 x 3 for the CNNs."""


NEED_TIMM = ("convnext", "timm_vit")


def tower_config(tower: str, tokenizer=None) -> DenseVLMConfig:
    """Configuration of a model with this tower; with a tokenizer, also with a text tower of its family."""
    vision = TOWERS[tower]
    family = tower if tower.startswith(("siglip", "tipsv2")) else "clip"
    text = None
    if tokenizer is not None:
        text = {
            "model_type": f"{family}_text_model",
            **_TRANSFORMER,
            "num_hidden_layers": 2,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 32,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        }
    siglip = family.startswith("siglip")
    return DenseVLMConfig(
        vision_config=dict(vision),
        text_config=text,
        projection_dim=24 if family == "clip" else None,
        logit_bias_init_value=0.0 if siglip else None,
    )


@torch.no_grad()
def make_tower(tower: str, tokenizer=None, seed: int = 0) -> DenseVLMModel:
    """
    A model with this tower in eval mode. All parameters are random: no zero hides a path, no batch norm is neutral.
    """
    available(tower)
    torch.manual_seed(seed)
    model = DenseVLMModel(tower_config(tower, tokenizer)).eval()
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif tensor.is_floating_point() and not name.startswith("logit_"):
            tensor.add_(torch.randn_like(tensor) * 0.1)
    return model


def available(tower: str) -> str:
    if tower in NEED_TIMM:
        pytest.importorskip("timm", reason="this tower is built by timm (extra `vision`)")
    return tower


@pytest.fixture(scope="session")
def tower_names() -> list[str]:
    """Every vision tower that can be built here."""
    return [name for name in TOWERS if name not in NEED_TIMM or importlib.util.find_spec("timm")]


@pytest.fixture(params=TOWERS)
def tower(request) -> str:
    """The name of a vision tower; tests that use it run for every tower."""
    return available(request.param)


@pytest.fixture(params=TOWERS)
def teacher_tower(request) -> str:
    """The same, for the teacher of a pair."""
    return available(request.param)


@pytest.fixture(scope="session", name="make_tower")
def make_tower_fixture():
    return make_tower


@pytest.fixture(scope="session")
def folder_of(make_tower, tokenizer, tmp_path_factory):
    """Saved folders of the towers with their text towers, created once; teachers use another seed."""
    saved = {}

    def folder(tower, seed):
        if (tower, seed) not in saved:
            model = make_tower(tower, tokenizer, seed=seed)
            saved[tower, seed] = tmp_path_factory.mktemp(f"{tower}{seed}")
            model.save_pretrained(saved[tower, seed])
            mean = [0.5] * 3 if tower.startswith("siglip") else None
            image_processor = DenseVLMImageProcessor(96, image_mean=mean, image_std=mean)
            DenseVLMProcessor(image_processor, tokenizer).save_pretrained(saved[tower, seed])
        return saved[tower, seed]

    return folder


@pytest.fixture(scope="session", name="make_clip")
def make_clip_fixture():
    return make_clip


def make_clip(tokenizer, hidden_size=32, layers=3, image_size=96, patch_size=12, projection_dim=24, seed=0):
    """A tiny, randomly initialized CLIP."""
    torch.manual_seed(seed)
    config = CLIPConfig(
        vision_config={
            "hidden_size": hidden_size,
            "intermediate_size": 2 * hidden_size,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "image_size": image_size,
            "patch_size": patch_size,
        },
        text_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 32,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
        projection_dim=projection_dim,
    )
    return CLIPModel(config).eval()


@pytest.fixture(scope="session")
def tokenizer():
    return word_tokenizer(category_sentences(CATEGORIES), 32)


@pytest.fixture(scope="session")
def clip(tokenizer) -> CLIPModel:
    return make_clip(tokenizer)


@pytest.fixture(scope="session")
def clip_folder(clip, tokenizer, tmp_path_factory) -> Path:
    """A CLIP checkpoint of transformers, as on the Hub."""
    from transformers import CLIPImageProcessor

    folder = tmp_path_factory.mktemp("clip")
    clip.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 96}, crop_size=96).save_pretrained(folder)
    return folder


@pytest.fixture
def model(clip) -> DenseVLMModel:
    return DenseVLMModel.from_clip(clip)


@pytest.fixture(scope="session")
def student(clip, tokenizer, tmp_path_factory) -> Path:
    """A saved student: 96 pixels, 24 dimensions."""
    return save_folder(DenseVLMModel.from_clip(clip), tokenizer, 96, tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="session")
def teacher(tokenizer, tmp_path_factory) -> Path:
    """A saved teacher of another width, another space and another patch size."""
    clip = make_clip(tokenizer, hidden_size=48, image_size=112, patch_size=14, projection_dim=40, seed=1)
    return save_folder(DenseVLMModel.from_clip(clip), tokenizer, 112, tmp_path_factory.mktemp("teacher"))


def save_folder(model: DenseVLMModel, tokenizer, size: int, folder: Path) -> Path:
    model.save_pretrained(folder)
    DenseVLMProcessor(DenseVLMImageProcessor(size), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    """Sandbox scenes as files: 24 for training, 6 for validation, 10 for testing, 12 pictures of single things."""
    folder = tmp_path_factory.mktemp("scenes")
    CATEGORIES.save(folder / "categories.json")
    for split, count in (("train", 24), ("val", 6), ("test", 10), ("single", 12)):
        write_scenes(folder, 0, split, count)
    return folder


def command_line(values: dict) -> list[str]:
    """`--key value` for each item, several values for a list; an empty key is a positional argument."""
    words = []
    for key, value in values.items():
        words += [f"--{key}"] if key else []
        words += value if isinstance(value, list) else [value]
    return [str(word) for word in words]


UNUSED_KEYS = {
    "clipself": ("teacher", "categories", "templates", "temperature", "threshold"),
    "feature_distillation": ("categories", "templates", "temperature", "threshold"),
}
"""Keys of [`recipe`] that a method rejects."""


@pytest.fixture
def recipe(scenes, student, teacher, tmp_path):
    """Command-line arguments of a small run; keyword arguments override them."""

    def arguments(**overrides) -> list[str]:
        values = {
            "model": student,
            "teacher": teacher,
            "images": scenes / "train" / "images",
            "categories": scenes / "categories.json",
            "templates": "short",
            "output_dir": tmp_path / "run",
            # Randomly initialized models are never confident: a low threshold keeps some of their regions.
            "temperature": 0.01,
            "threshold": 0.15,
            "per_device_train_batch_size": 8,
            "max_steps": 3,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "dataloader_drop_last": True,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
        }
        for key in UNUSED_KEYS.get(overrides.get("method"), ()):
            del values[key]
        values |= overrides
        return command_line(values)

    return arguments


@pytest.fixture(scope="session")
def run_module():
    """Runs `python -m module arguments`, on ranks or with a launcher, and returns the finished process."""

    def run(module: str, arguments, ranks=None, launcher=None, check=True) -> subprocess.CompletedProcess:
        if launcher is None:
            done = fork_server.run(module, arguments, ranks)
        else:
            environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
            command = [sys.executable, *launcher, module, *map(str, arguments)]
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
        if check and done.returncode:
            raise AssertionError(f"{module} {arguments}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        return done

    return run


@pytest.fixture(scope="session")
def picture():
    """Creates a small colour image."""

    def make(width: int, height: int, mode: str = "RGB") -> Image.Image:
        pixels = torch.arange(width * height * 3).reshape(height, width, 3) * 7 % 256
        return Image.fromarray(pixels.to(torch.uint8).numpy()).convert(mode)

    return make
