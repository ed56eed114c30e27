# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""A dense pass that computes only what it uses, against one that computes its last attention as well, and drops it."""

import torch

from benchmarks.timing import compare, print_row
from modeling_densevlm import DenseVLMModel
from modeling_densevlm.conversion.configs import convert_config, load_config
from modeling_densevlm.vision_tower import TransformerTower


def discard_attention(tower: TransformerTower) -> None:
    """As in the reference: the dense pass computes the attention of its last block as well, and drops it."""
    block = tower.blocks[-1]
    forward = block.forward

    def both(hidden_states, *context, dense_residual=None, **options):
        if dense_residual is not None:  # the prefix, which the dense path has left behind, is a token of the attention
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
    what = "dense features at 512 pixels, ViT-B/16 and EVA-02 B/16"
    print_row(what, "the last attention computed as well and dropped", dense)
    print_row("dense and global features of one trunk", "two passes", trunk)


if __name__ == "__main__":
    main()
