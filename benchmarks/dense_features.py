"""A dense pass that computes only what it uses, against one whose last block computes its attention and drops it."""

import torch
from transformers import CLIPVisionConfig

from benchmarks.timing import compare
from modeling_densevlm import DenseVLMConfig, DenseVLMModel
from modeling_densevlm.modeling_densevlm import DenseCLIPEncoderLayer


class WithDiscardedAttention(DenseCLIPEncoderLayer):
    """As in the reference: the full attention of the last block is computed as well, and not used."""

    def forward(self, hidden_states, attention_mask=None, dense=False, **kwargs):
        if dense:
            super().forward(hidden_states, attention_mask, dense=False)
        return super().forward(hidden_states, attention_mask, dense=dense, **kwargs)


def main() -> None:
    torch.manual_seed(0)
    vision = CLIPVisionConfig(patch_size=16)
    model = DenseVLMModel(DenseVLMConfig(vision_config=vision)).eval()
    baseline = DenseVLMModel(DenseVLMConfig(vision_config=vision)).eval()
    baseline.vision_model.encoder.layers[-1].__class__ = WithDiscardedAttention
    pixel_values = torch.randn(1, 3, 512, 512)
    print(f"CLIP ViT-B/16, one image of 512 x 512, {torch.get_num_threads()} threads")
    with torch.inference_mode():
        compare(
            "dense features",
            lambda: model.get_dense_features(pixel_values),
            lambda: baseline.get_dense_features(pixel_values),
            "last attention discarded",
        )
        compare(
            "dense and global features of one trunk",
            lambda: model(pixel_values, return_image_embeds=True),
            lambda: (model.get_dense_features(pixel_values), model.get_image_features(pixel_values)),
            "two passes",
        )


if __name__ == "__main__":
    main()
