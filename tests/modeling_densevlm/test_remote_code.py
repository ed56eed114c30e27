"""A saved folder carries its code: it works where the package is not installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from modeling_densevlm import DenseVLMModel


MODEL_CARDS = Path(__file__).parents[2] / "model_cards"


SCRIPT = """
import sys
sys.modules["modeling_densevlm"] = None  # as if it were not installed
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoProcessor
folder, out = sys.argv[1:]
model = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
image_processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
assert not type(model).__module__.startswith("modeling_densevlm."), type(model).__module__
image = Image.new("RGB", (120, 80), (200, 30, 60))
inputs = processor(images=image, text=["a photo of a kite"], return_tensors="pt")
assert (image_processor(image)["pixel_values"] == inputs["pixel_values"]).all()
with torch.no_grad():
    dense = model.get_dense_features(inputs["pixel_values"])
    text = model.get_text_features(inputs["input_ids"]).pooler_output
torch.save({"pixel_values": inputs["pixel_values"], "dense": dense, "text": text}, out)
"""


@pytest.mark.parametrize("shipped", [None, "densevlm-sandbox-u", "densevlm-sandbox-clipself-u", "densevlm-sandbox-p"])
def test_a_folder_loads_as_remote_code_in_a_process_without_the_package(student, shipped, tmp_path):
    folder = student if shipped is None else MODEL_CARDS / shipped
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), str(tmp_path / "out.pt")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    with torch.no_grad():
        model = DenseVLMModel.from_pretrained(folder, dtype=torch.float32).eval()
        assert torch.equal(found["dense"], model.get_dense_features(found["pixel_values"]))
