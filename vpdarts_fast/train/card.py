"""The model card of a trained network: README.md of its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MOST_NAMED = 20
"""Up to so many classes the card has a row for each."""


def markdown(
    card: Mapping[str, Any], result: Mapping[str, Any], formats: Sequence[str], tolerance: float
) -> str:
    """Writes the card of a network.

    Args:
        card: what model.json holds.
        result: what result.json holds.
        formats: files beside the weights that hold the network too.
        tolerance: within which their logits are the module's, relative to the largest one.
    """
    height, width = card["image_size"]
    test, latency = result["test"], card["latency"]
    threads = f"{latency['threads']} thread{'s' if latency['threads'] > 1 else ''}"
    rows = {
        "cell": f"`{plain(card['architecture'])}`".replace("|", "\\|"),
        "space": plain(card["space"]["name"]),
        "data": f"{plain(card['dataset'])}: {result['images']['training']:,} training images of "
        f"{height}x{width}, {len(card['classes'])} classes",
        "training": f"preset {card['preset']}, {card['epochs']} epochs, seed {card['seed']}",
        "test accuracy": f"{test['accuracy']:.2f} % of {card['test_images']:,} images; balanced "
        f"{test['balanced_accuracy']:.2f} %, macro F1 {test['macro_f1']:.2f} %",
        "parameters": f"{card['parameters']:,}",
        "multiply-adds": f"{card['multiply_adds']:,} an image, of convolutions and the classifier",
        "latency": f"{latency['pytorch']:.2f} ms in PyTorch"
        + (f", {latency['onnxruntime']:.2f} ms in onnxruntime" if "onnxruntime" in latency else "")
        + f": one image, {threads} of the machine that exported it, the median of 20",
    }
    if result["compared"] is not None:
        found = result["compared"]
        rows["NAS-Bench-201"] = (
            f"{found['benchmark']:.2f} % ({found['column']}); here {found['ours']:.2f} % "
            f"{found['measured']} accuracy"
        )
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    others = "".join(f"\n- `{name}`: logits within {tolerance:g} of the largest one" for name in formats)
    return f"""# A network found by vpdarts_fast

| | |
| --- | --- |
{table}

## How to load it

```python
from vpdarts_fast.train import load
network = load(".")  # this folder
print(network.predict("photo.jpg")[0].label)
```

`python -m vpdarts_fast.train.predict FOLDER photo.jpg` prints the same. Without vpdarts_fast: the input
of each file is RGB, float32 [N, 3, {height}, {width}], of each channel (value in 0..255 - mean) / std, with
mean {numbers(card["mean"])} and std {numbers(card["std"])}.
These numbers and the names of the classes are in the files' metadata.

- `model.safetensors`, `model.json`: the weights, and what they are of{others}
{per_class(card, test)}"""


def per_class(card: Mapping[str, Any], test: Mapping[str, Any]) -> str:
    """A table of the share of each class that is right, where there are not too many."""
    if len(card["classes"]) > MOST_NAMED:
        return ""
    rows = "\n".join(
        f"| {plain(name)} | {'' if share is None else f'{share:.2f}'} |"
        for name, share in zip(card["classes"], test["per_class"], strict=True)
    )
    return f"\n| class | test images that are right, % |\n| --- | --- |\n{rows}\n"


def numbers(values: Sequence[float]) -> str:
    """Numbers with two decimals in brackets."""
    return "[" + ", ".join(f"{value:.2f}" for value in values) + "]"


def plain(text: str) -> str:
    """Text that cannot leave its place in a table of Markdown."""
    kept = "".join(letter if letter.isprintable() else " " for letter in text)
    return kept.replace("`", "'").replace("<", "&lt;")[:500]
