# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
Pre-trains the sandbox's tiny CLIPs on captioned scenes: U, the future student, and P, the larger future teacher.

    python -m training.sandbox.pretrain U --output runs/pretrain/u
    python -m training.sandbox.pretrain P --output runs/pretrain/p [--seed 1]

The result is an ordinary CLIP, saved as a DenseVLM. It recognises scenes but not regions; CLIPSelf then makes P a
teacher (`training/recipes/sandbox_clipself.yaml`).
"""

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerBase, get_cosine_schedule_with_warmup

from modeling_densevlm import DenseVLMImageProcessor, DenseVLMModel, DenseVLMProcessor

from .scenes import CATEGORIES, SIZE, caption, make_scene
from .tokenizer import category_sentences, word_tokenizer


MAX_WORDS = 32


@dataclass
class PretrainingConfig:
    """The size of a vision tower and how it is pre-trained."""

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    learning_rate: float
    stuff_probability: float
    seed: int
    steps: int


TOWERS = {
    # Captions rarely mention stuff: this causes the foreground bias.
    "U": PretrainingConfig(128, 512, 4, 4, 1.5e-3, stuff_probability=0.1, seed=1, steps=1_800),
    "P": PretrainingConfig(192, 576, 6, 6, 1.0e-3, stuff_probability=0.3, seed=2, steps=2_400),
}


def build_clip(tower: PretrainingConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> CLIPModel:
    """A randomly initialized CLIP with a patch size of 12 and a small text tower."""
    config = CLIPConfig(
        vision_config={
            "hidden_size": tower.hidden_size,
            "intermediate_size": tower.intermediate_size,
            "num_hidden_layers": tower.layers,
            "num_attention_heads": tower.heads,
            "image_size": SIZE,
            "patch_size": 12,
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


def pretrain(
    name: str, output: Path, steps: int, scenes: int, batch_size: int = 96, repetition: int = 0
) -> DenseVLMModel:
    """
    Contrastive training; saves model and processor.

    Args:
        name (`str`): `"U"` or `"P"`.
        output (`Path`): folder to save to.
        steps (`int`): number of batches.
        scenes (`int`): number of different captioned scenes.
        batch_size (`int`, *optional*, defaults to 96): scenes per batch.
        repetition (`int`, *optional*, defaults to 0):
            Selects other initial weights, scenes and captions; 0 is that of the shipped models.
    """
    tower = TOWERS[name]
    seed = tower.seed + 10 * repetition
    tokenizer = word_tokenizer(category_sentences(CATEGORIES), MAX_WORDS)
    clip = build_clip(tower, tokenizer, seed).train()
    with ProcessPoolExecutor() as pool:
        drawn = list(pool.map(partial(make_scene, seed, "pretrain"), range(scenes), chunksize=64))
    images = torch.from_numpy(np.stack([scene.image for scene in drawn]))
    processor = DenseVLMProcessor(DenseVLMImageProcessor(SIZE), tokenizer)
    mean, std = (torch.tensor(v)[:, None, None] for v in (processor.image_processor.image_mean,
                                                          processor.image_processor.image_std))  # fmt: skip
    matrices = [p for p in clip.parameters() if p.ndim >= 2]
    others = [p for p in clip.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=tower.learning_rate, betas=(0.9, 0.98))
    schedule = get_cosine_schedule_with_warmup(optimizer, min(100, steps // 10), steps)
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(scenes) for _ in range(steps * batch_size // scenes + 1)])
    start = time.time()
    for step in range(steps):
        chosen = order[step * batch_size : (step + 1) * batch_size]
        pixel_values = (images[chosen].permute(0, 3, 1, 2).float() / 255 - mean) / std
        if rng.random() < 0.5:
            pixel_values = pixel_values.flip(-1)
        captions = [caption(drawn[i], rng, tower.stuff_probability) for i in chosen]
        tokens = tokenizer(captions, padding=True, truncation=True, return_tensors="pt")
        loss = clip(**tokens, pixel_values=pixel_values, return_loss=True).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        clip.logit_scale.data.clamp_(max=np.log(100))
        if step % 50 == 49:
            speed = (step + 1) / (time.time() - start)
            print(f"{name} step {step + 1}: loss {loss.item():.3f}, {speed:.2f} steps/s, "
                  f"scale {clip.logit_scale.exp().item():.1f}", flush=True)  # fmt: skip
    model = DenseVLMModel.from_clip(clip.eval())
    model.save_pretrained(output)
    processor.save_pretrained(output)
    return model


def main() -> None:
    """Parses the command line and pre-trains."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=TOWERS, help="which of the two models")
    parser.add_argument("--output", type=Path, required=True, help="folder to save to")
    parser.add_argument("--steps", type=int, help="number of batches; by default that of the shipped models")
    parser.add_argument("--scenes", type=int, default=20_000, help="number of different scenes")
    parser.add_argument("--seed", type=int, default=0, help="0 is that of the shipped models")
    arguments = parser.parse_args()
    for key in ("steps", "scenes"):
        if getattr(arguments, key) is not None and getattr(arguments, key) < 1:
            parser.error(f"--{key} is a whole number from 1 on, got {getattr(arguments, key)}.")
    try:
        arguments.output.mkdir(parents=True, exist_ok=True)  # now, not after hours of training
    except OSError as error:
        parser.error(f"--output: the folder cannot be created: {error}")
    steps = arguments.steps or TOWERS[arguments.name].steps
    pretrain(arguments.name, arguments.output, steps, arguments.scenes, repetition=arguments.seed)


if __name__ == "__main__":
    main()
