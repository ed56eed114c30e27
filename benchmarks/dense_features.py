"""A dense pass that computes only what it uses, against one whose last block computes its attention and drops it."""

import torch
from torch import nn

from benchmarks.timing import compare
from modeling_densevlm import DenseVLMModel
from modeling_densevlm.checkpoint_configs import convert_config, load_config


def discard_attention(block: nn.Module) -> None:
    """As in the reference: the full attention of the last block is computed as well, and not used."""
    forward = block.forward

    def both(hidden_states, *context, dense=False):
        if dense:
            forward(hidden_states, *context)
        return forward(hidden_states, *context, dense=dense)

    block.forward = both


def without_class_token(block: nn.Module) -> None:
    """EVA's attention takes a class token in front, which the dense path has left behind."""
    forward = block.forward

    def padded(hidden_states, *context, dense=False):
        if dense:
            return forward(hidden_states, *context, dense=True)
        return forward(torch.cat([hidden_states[:, :1], hidden_states], dim=1), *context)

    block.forward = padded


def main() -> None:
    for name in ("ViT-B-16", "EVA02-CLIP-B-16"):
        torch.manual_seed(0)
        config = convert_config(load_config(name), text=False)
        model, baseline = DenseVLMModel(config).eval(), DenseVLMModel(config).eval()
        last = baseline.vision_model.blocks[-1]
        if name.startswith("EVA02"):
            without_class_token(last)
        discard_attention(last)
        pixel_values = torch.randn(1, 3, 512, 512)
        print(f"{name}, one image of 512 x 512, {torch.get_num_threads()} threads")
        with torch.inference_mode():
            compare(
                "dense features",
                lambda m=model, x=pixel_values: m.get_dense_features(x),
                lambda m=baseline, x=pixel_values: m.get_dense_features(x),
                "last attention discarded",
            )
            compare(
                "dense and global features of one trunk",
                lambda m=model, x=pixel_values: m(x, return_image_embeds=True),
                lambda m=model, x=pixel_values: (m.get_dense_features(x), m.get_image_features(x)),
                "two passes",
            )


if __name__ == "__main__":
    main()
