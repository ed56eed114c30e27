# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""The app of the Space: computes the metric from arguments given as JSON."""

import json
from pathlib import Path

import evaluate


NAME = "foreground_bias"
EXAMPLE = """{
  "predictions": [0, 0, 2, 2],
  "references": [2, 2, 2, 0],
  "category_is_thing": [true, true, false]
}
"""


def compute(text: str) -> dict:
    """Calls `metric.compute` with the arguments in a JSON object; raises a `ValueError` if it is malformed."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"This is not valid JSON: {error}") from error
    if not isinstance(values, dict) or not {"predictions", "references"} <= set(values):
        raise ValueError("A JSON object with `predictions` and `references` is needed.")
    return evaluate.load(str(Path(__file__).with_name(f"{NAME}.py"))).compute(**values)


def main() -> None:
    """Starts the web interface of the Space."""
    import gradio

    def shown(text: str) -> dict:
        try:
            return compute(text)
        except (ValueError, TypeError) as error:
            raise gradio.Error(str(error)) from error

    readme = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    gradio.Interface(
        fn=shown,
        inputs=gradio.Code(EXAMPLE, language="json", label="Arguments of compute"),
        outputs=gradio.JSON(label="Result"),
        title=f"Metric: {NAME}",
        article=readme.split("---", 2)[2],
        flagging_mode="never",
    ).launch()


if __name__ == "__main__":
    main()
