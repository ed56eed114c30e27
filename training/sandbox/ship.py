"""
Writes the sandbox's models as complete Hub folders: weights in half precision, processor, tokenizer, remote code.

    python -m training.sandbox.ship runs/pretrain/u densevlm-sandbox-u  # a newly trained one
    python -m training.sandbox.ship                                     # all again, after the model code has changed

The cards (`README.md`) are written by hand and stay as they are.
"""

import argparse
from pathlib import Path

import torch

from modeling_densevlm import DenseVLMModel, DenseVLMProcessor


MODEL_CARDS = Path(__file__).parents[2] / "model_cards"


def ship(source: Path, name: str) -> None:
    """Saves the model of a folder to `model_cards/name`."""
    model = DenseVLMModel.from_pretrained(source, dtype=torch.float16)
    processor = DenseVLMProcessor.from_pretrained(source)
    model.save_pretrained(MODEL_CARDS / name)
    processor.save_pretrained(MODEL_CARDS / name)
    print(f"{source} → {MODEL_CARDS / name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, nargs="?", help="folder of the trained model")
    parser.add_argument("name", nargs="?", help="folder below model_cards")
    arguments = parser.parse_args()
    if arguments.source is not None:
        ship(arguments.source, arguments.name or arguments.source.name)
        return
    for config in sorted(MODEL_CARDS.glob("*/config.json")):
        ship(config.parent, config.parent.name)


if __name__ == "__main__":
    main()
