# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""A dense pass without the attention of the last block, against one that computes and discards it."""

import torch

from benchmarks.timing import compare, print_row
from modeling_densevlm import DenseVLMModel
from modeling_densevlm.conversion.configs import convert_config, load_config
from modeling_densevlm.vision_tower import TransformerTower


def discard_attention(tower: TransformerTower) -> None:
    """Makes the dense pass compute and discard the attention of its last block, as in the reference."""
    block = tower.blocks[-1]
    forward = block.forward

    def both(hidden_states, *context, dense_residual=None, **options):
        if dense_residual is not None:  # the dense path dropped the prefix tokens, which take part in the attention
            tokens = torch.cat([hidden_states[:, : tower.num_prefix_tokens], hidden_states], dim=1)
            block.self_attn(block.layer_norm1(tokens), *context)
        return forward(hidden_states, *context, dense_residual=dense_residual, **options)

    block.forward = both


def main() -> None:
    dense, trunk = [], []
    for name in ("ViT-B-16", "EVA02-CLIP-B-16"):
        torch.manual_seed(0)
        config = convert_config(load_config(name), text=False)
        model, baseline = DenseVLMModel(config).eval(), DenseVLMModel(config).eval()
        discard_attention(baseline.vision_model)
        pixel_values = torch.randn(1, 3, 512, 512)
        print(f"{name}, one image of 512 x 512, {torch.get_num_threads()} threads")
        with torch.inference_mode():
            ratio = compare(
                "dense features",
                lambda m=model, x=pixel_values: m.get_dense_features(x),
                lambda m=baseline, x=pixel_values: m.get_dense_features(x),
                "last attention discarded",
            )
            dense.append(ratio)
            ratio = compare(
                "dense and global features of one trunk",
                lambda m=model, x=pixel_values: m(x, return_image_embeds=True),
                lambda m=model, x=pixel_values: (m.get_dense_features(x), m.get_image_features(x)),
                "two passes",
            )
            trunk.append(ratio)
    workload = "dense features at 512 pixels, ViT-B/16 and EVA-02 B/16"
    print_row(workload, "the last attention computed and discarded", dense)
    print_row("dense and global features of one trunk", "two passes", trunk)


if __name__ == "__main__":
    main()
