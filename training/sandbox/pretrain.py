# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
Pre-trains the sandbox's tiny CLIPs on captioned pictures: U, the future student, and P, the larger future teacher.

    python -m training.sandbox.pretrain U --output runs/pretrain/u
    python -m training.sandbox.pretrain P --output runs/pretrain/p [--seed 1]

The result is an ordinary CLIP, saved as a DenseVLM. It recognises pictures but not regions; CLIPSelf then makes P a
teacher (`training/recipes/sandbox_clipself.yaml`). The same command continues a run that was stopped. Needs the extra
`vision`: timm has the optimizer.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, log_softmax, normalize
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from modeling_densevlm import DenseVLMImageProcessor, DenseVLMModel, DenseVLMProcessor
from modeling_densevlm.canvas import pad_image, scaled

from ..data import resize_and_pad
from .scenes import CATEGORIES, Scene, caption, make_scene
from .tokenizer import category_sentences, word_tokenizer


try:
    from timm.optim import Muon
except ImportError as error:
    raise ImportError(
        "Pre-training needs timm's optimizers: install timm, or this package with the extra `vision`."
    ) from error


SIDE = 96
"""Side in pixels at which pictures are shown in pre-training: half of what they are drawn at."""

MAX_WORDS = 32

MUON_LEARNING_RATE = 0.006
"""Of the matrices of the blocks."""


@dataclass
class PretrainingConfig:
    """
    The size of a vision tower, and how it is pre-trained.

    Args:
        patch_size (`int`): side of a patch in pixels.
        hidden_size (`int`): width.
        intermediate_size (`int`): width of the MLPs.
        layers (`int`): number of blocks.
        heads (`int`): number of attention heads.
        split (`str`): of the pictures.
        stuff_probability (`float`): that a caption mentions a stuff category of the picture.
        parts (`float`): share of the views that show a part of a picture.
        muon (`bool`): whether matrices of the blocks are optimized by Muon instead of AdamW.
        learning_rate (`float`): of AdamW.
        seed (`int`): of the initial weights, pictures and captions.
        steps (`int`): number of batches.
        scenes (`int`): number of different pictures.
    """

    patch_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    split: str
    stuff_probability: float
    parts: float
    muon: bool
    learning_rate: float
    seed: int
    steps: int
    scenes: int


# Captions rarely mention stuff: this causes the foreground bias. P sees smaller patches, as L/14 beside B/16, more
# pictures, parts of them, stuff alone more often, and is better optimized.
TOWERS = {
    "U": PretrainingConfig(
        patch_size=16,
        hidden_size=128,
        intermediate_size=512,
        layers=4,
        heads=4,
        split="pretrain_u",
        stuff_probability=0.1,
        parts=0.0,
        muon=False,
        learning_rate=1.5e-3,
        seed=1,
        steps=3_000,
        scenes=20_000,
    ),
    "P": PretrainingConfig(
        patch_size=12,
        hidden_size=160,
        intermediate_size=640,
        layers=5,
        heads=5,
        split="pretrain_p",
        stuff_probability=0.1,
        parts=0.5,
        muon=True,
        learning_rate=1.2e-3,
        seed=2,
        steps=2_000,
        scenes=50_000,
    ),
}


def build_clip(tower: PretrainingConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> CLIPModel:
    """A randomly initialized CLIP with a small text tower."""
    config = CLIPConfig(
        vision_config={
            "hidden_size": tower.hidden_size,
            "intermediate_size": tower.intermediate_size,
            "num_hidden_layers": tower.layers,
            "num_attention_heads": tower.heads,
            "image_size": SIDE,
            "patch_size": tower.patch_size,
        },
        text_config={
            "hidden_size": 64,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": MAX_WORDS,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
        projection_dim=96,
    )
    torch.manual_seed(seed)
    return CLIPModel(config)


def draw(split: str, seed: int, index: int) -> Scene:
    """A picture of a split, its image reduced to `(3, height, width)` of at most 96 pixels, without masks."""
    scene = make_scene(seed, split, index)
    height, width = (scaled(side, SIDE / max(scene.image.shape)) for side in scene.image.shape[:2])
    scene.image = resize_and_pad(Image.fromarray(scene.image), SIDE)[:, :height, :width].numpy()
    scene.segment_ids = scene.segment_ids[:0]
    return scene


def random_view(image: Tensor, parts: float, rng: np.random.Generator) -> Tensor:
    """
    What a model is shown of a picture `(3, height, width)`, mirrored at random: with probability `parts` a part of at
    least 40 % of its area, stretched to a square `(3, 96, 96)`, as crops of regions are; otherwise the whole, padded.
    """
    image = image.flip(-1) if rng.random() < 0.5 else image
    if not parts or rng.random() >= parts:
        return pad_image(image, SIDE, SIDE)
    height, width = image.shape[-2:]
    area, aspect = rng.uniform(0.4, 1), 2 ** rng.uniform(-1, 1)
    crop_width = round(width * min((area * aspect) ** 0.5, 1))
    crop_height = round(height * min((area / aspect) ** 0.5, 1))
    x, y = int(rng.integers(0, width - crop_width + 1)), int(rng.integers(0, height - crop_height + 1))
    crop = image[:, y : y + crop_height, x : x + crop_width]
    return interpolate(crop[None], (SIDE, SIDE), mode="bicubic", antialias=True)[0]


class CaptionedScenes(torch.utils.data.Dataset):
    r"""
    All samples of a run in their order: a view of a picture, with a caption of its own at each visit.

    Args:
        split (`str`): of the pictures.
        seed (`int`): of the pictures, their order, views and captions.
        scenes (`int`): number of different pictures.
        samples (`int`): number of samples, `batch_size * steps`.
        stuff_probability (`float`): that a caption mentions a stuff category.
        parts (`float`): share of the views that show a part of a picture.
    """

    def __init__(self, split: str, seed: int, scenes: int, samples: int, stuff_probability: float, parts: float):
        with ProcessPoolExecutor() as pool:
            self.scenes = list(pool.map(partial(draw, split, seed), range(scenes), chunksize=64))
        rng = np.random.default_rng(seed)
        self.order = np.concatenate([rng.permutation(scenes) for _ in range(samples // scenes + 1)])[:samples]
        self.seed = seed
        self.stuff_probability = stuff_probability
        self.parts = parts

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, number: int) -> tuple[Tensor, str]:
        rng = np.random.default_rng((self.seed, number))
        scene = self.scenes[self.order[number]]
        view = random_view(torch.from_numpy(scene.image), self.parts, rng)
        return view, caption(scene, rng, self.stuff_probability)


def contrastive_loss(image_embeds: Tensor, text_embeds: Tensor, scale: Tensor, same_caption: Tensor) -> Tensor:
    """
    CLIP's loss between unit features `(batch, dim)`. Pictures with the same caption are no negatives of each other:
    among few categories there are such in every batch. Their targets are shared equally (Yang et al., UniCL, CVPR
    2022).
    """
    logits = scale * image_embeds @ text_embeds.T
    targets = same_caption / same_caption.sum(1, keepdim=True)
    of_images = -(targets * log_softmax(logits, dim=1)).sum(1).mean()
    of_texts = -(targets * log_softmax(logits.T, dim=1)).sum(1).mean()
    return (of_images + of_texts) / 2


class PretrainingTrainer(Trainer):
    """Contrastive pre-training: batches in the order of the dataset, weight decay on matrices only."""

    def _get_train_sampler(self, train_dataset=None):
        return torch.utils.data.SequentialSampler(train_dataset or self.train_dataset)

    def get_decay_parameter_names(self, model):
        return [name for name, parameter in model.named_parameters() if parameter.ndim >= 2]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        same_caption = inputs.pop("same_caption")
        outputs = model(**inputs)
        scale = self.model.logit_scale.exp().clamp(max=100)
        images, texts = (normalize(embeds, dim=-1) for embeds in (outputs.image_embeds, outputs.text_embeds))
        loss = contrastive_loss(images, texts, scale, same_caption)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs, *arguments, **options):
        super().log(logs | {"logit_scale": self.model.logit_scale.exp().item()}, *arguments, **options)


def collate(processor: DenseVLMProcessor, samples: list[tuple[Tensor, str]]) -> dict[str, Tensor]:
    """A batch of normalised images, tokens, and which samples have a caption of the same words."""
    images, captions = zip(*samples)
    tokens = processor.tokenizer(list(captions), padding=True, truncation=True, return_tensors="pt")
    words = [tuple(sorted(one.split())) for one in captions]
    return {
        "pixel_values": processor.image_processor.normalize(torch.stack(images)),
        "input_ids": tokens["input_ids"],
        "attention_mask": tokens["attention_mask"],
        "same_caption": torch.tensor([[float(one == other) for other in words] for one in words]),
    }


class MuonTrainer(PretrainingTrainer):
    """The same with Muon (Jordan et al., 2024) for the matrices of the blocks, and AdamW for all else."""

    def create_optimizer(self, model=None):
        named = list((model or self.model).named_parameters())
        in_blocks = [value for name, value in named if value.ndim == 2 and ".layers." in name]
        other_matrices = [value for name, value in named if value.ndim >= 2 and ".layers." not in name]
        vectors = [value for _, value in named if value.ndim < 2]
        self.optimizer = Muon(
            [
                {"params": in_blocks, "lr": MUON_LEARNING_RATE},
                {"params": other_matrices, "use_fallback": True},
                {"params": vectors, "use_fallback": True, "weight_decay": 0.0},
            ],
            lr=self.args.learning_rate,
            weight_decay=self.args.weight_decay,
            nesterov=True,
            betas=(self.args.adam_beta1, self.args.adam_beta2),
        )
        return self.optimizer


def build_trainer(
    name: str,
    output: Path,
    steps: int,
    scenes: int,
    batch_size: int = 96,
    repetition: int = 0,
    use_cpu: bool = True,
) -> PretrainingTrainer:
    """
    The trainer of a model from random weights.

    Args:
        name (`str`): `"U"` or `"P"`.
        output (`Path`): folder to save to.
        steps (`int`): number of batches.
        scenes (`int`): number of different captioned pictures.
        batch_size (`int`, *optional*, defaults to 96): pictures per batch.
        repetition (`int`, *optional*, defaults to 0):
            Selects other initial weights, pictures and captions; 0 is that of the shipped models.
        use_cpu (`bool`, *optional*, defaults to `True`): `False` takes the GPU.
    """
    tower = TOWERS[name]
    seed = tower.seed + 10 * repetition
    tokenizer = word_tokenizer(category_sentences(CATEGORIES), MAX_WORDS)
    processor = DenseVLMProcessor(DenseVLMImageProcessor(SIDE), tokenizer)
    arguments = TrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=batch_size,
        max_steps=steps,
        learning_rate=tower.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=min(100, steps // 10),
        weight_decay=0.1,
        adam_beta2=0.98,
        max_grad_norm=1.0,
        logging_steps=50,
        save_steps=200,
        save_total_limit=1,
        remove_unused_columns=False,
        report_to="none",
        use_cpu=use_cpu,
        seed=seed,
    )
    return (MuonTrainer if tower.muon else PretrainingTrainer)(
        build_clip(tower, tokenizer, seed),
        arguments,
        train_dataset=CaptionedScenes(
            tower.split, seed, scenes, steps * batch_size, tower.stuff_probability, tower.parts
        ),
        data_collator=partial(collate, processor),
        processing_class=processor,
    )


def pretrain(name: str, output: Path, **options: Any) -> DenseVLMModel:
    """Trains with the options of [`build_trainer`], from the last checkpoint in `output` if there is one; saves."""
    trainer = build_trainer(name, output, **options)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(output)))
    clip: Any = trainer.model
    processor: Any = trainer.processing_class
    model = DenseVLMModel.from_clip(clip.cpu().eval())
    model.save_pretrained(output)
    processor.save_pretrained(output)
    return model


def main() -> None:
    """Parses the command line and pre-trains."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=TOWERS, help="which of the two models")
    parser.add_argument("--output", type=Path, required=True, help="folder to save to")
    parser.add_argument("--steps", type=int, help="number of batches; by default that of the shipped models")
    parser.add_argument("--scenes", type=int, help="number of different pictures; by default likewise")
    parser.add_argument("--seed", type=int, default=0, help="0 is that of the shipped models")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to train")
    arguments = parser.parse_args()
    for key in ("steps", "scenes"):
        if getattr(arguments, key) is not None and getattr(arguments, key) < 1:
            parser.error(f"--{key} is a whole number from 1 on, got {getattr(arguments, key)}.")
    try:
        arguments.output.mkdir(parents=True, exist_ok=True)  # now, not after hours of training
    except OSError as error:
        parser.error(f"--output: the folder cannot be created: {error}")
    tower = TOWERS[arguments.name]
    pretrain(
        arguments.name,
        arguments.output,
        steps=arguments.steps or tower.steps,
        scenes=arguments.scenes or tower.scenes,
        repetition=arguments.seed,
        use_cpu=arguments.device == "cpu",
    )


if __name__ == "__main__":
    main()
