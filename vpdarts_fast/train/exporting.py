"""The network of a finished training as files: safetensors, ONNX, `torch.export`, and a model card."""

from __future__ import annotations

import importlib.util
import io
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vpdarts_fast.errors import UserError
from vpdarts_fast.runs import checkpoint
from vpdarts_fast.runs.files import write_atomically
from vpdarts_fast.runs.formats import TRAINED_NETWORK, TRAINING_CHECKPOINT
from vpdarts_fast.runs.values import mapping, tensors_like
from vpdarts_fast.search.settings_files import to_values
from vpdarts_fast.train.card import markdown
from vpdarts_fast.train.config import TrainConfig
from vpdarts_fast.train.folder import TrainFolder
from vpdarts_fast.train.images import Data
from vpdarts_fast.train.loading import CARD_FILE, WEIGHTS_FILE, check_card, digest_of, load
from vpdarts_fast.train.networks import exported_state, plain_network

TOLERANCE = 1e-4
"""By how much logits may differ from the module's, times the largest magnitude of a logit, or 1."""

CHECKED_IMAGES = 32
"""So many test images are compared."""

REPEATS = 20
"""Measurements of a latency, whose median is taken."""

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def export(folder: str | Path) -> list[str]:
    """Exports the network of a finished training again, as `python -m vpdarts_fast.train` does at its end.

    Args:
        folder: of the training.

    Returns:
        Lines that say what was written.

    Raises:
        UserError: the training is not finished, its files are damaged, or a format gives other logits.
    """
    from vpdarts_fast.train.running import prepared  # which exports too

    run, config = TrainFolder.open(Path(folder))
    result = run.result()
    if result is None:
        raise UserError(
            f"the training in {folder} is not finished: go on with "
            f"python -m vpdarts_fast.train --resume {folder}"
        )
    config, data, _ = prepared(config, quiet=True)
    return export_network(run, config, data, result)


def export_network(run: TrainFolder, config: TrainConfig, data: Data, result: dict[str, Any]) -> list[str]:
    """Writes model.safetensors, model.json, model.pt2, model.onnx and README.md.

    Each of them is read back, and has to give the logits of the module on test images.

    Args:
        run: where they go; its checkpoint has the weights.
        config: the settings.
        data: the images.
        result: what result.json holds.

    Returns:
        Lines that say what was written, and what was not.

    Raises:
        UserError: a format gives other logits, or a file cannot be written.
    """
    network = _final_network(run, config, data.num_classes)
    half = data.test_half()
    images, _ = half.batch(torch.arange(min(CHECKED_IMAGES, len(half)), device="cpu"))
    with torch.no_grad():
        logits = network(images)
        latency = {"pytorch": latency_ms(lambda: network(images[:1])), "threads": torch.get_num_threads()}
        card = _card(config, data, result, latency)
        weights = _write_weights(run.path, network, card)
        lines = [f"{WEIGHTS_FILE}, {CARD_FILE}: {len(weights):,} bytes of weights"]
        _check(load(run.path)(images), logits, WEIGHTS_FILE)
        metadata = _metadata(card)
        lines.append(_write_exported(run.path / "model.pt2", network, images, logits, metadata))
        if config.reporting.onnx:
            line, of_runtime = _write_onnx(run.path / "model.onnx", network, images, logits, metadata)
            lines.append(line)
            if of_runtime is not None:
                card["latency"]["onnxruntime"] = of_runtime
                _write_card(run.path, card)
    formats = [name for name in ("model.pt2", "model.onnx") if (run.path / name).exists()]
    write_atomically(run.path / "README.md", markdown(card, result, formats, TOLERANCE).encode())
    return [*lines, "README.md: the model card"]


def latency_ms(call: Callable[[], object]) -> float:
    """Milliseconds that a call takes: the median of `REPEATS` behind three that do not count."""
    for _ in range(3):
        call()
    taken = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return 1000 * statistics.median(taken)


def _final_network(run: TrainFolder, config: TrainConfig, num_classes: int) -> nn.Module:
    """The network of the checkpoint, on the CPU; of a moving average, that."""
    content = checkpoint.load(run.checkpoint, TRAINING_CHECKPOINT)
    source = str(run.checkpoint)
    network = plain_network(
        config.space, config.genotype, num_classes, config.network.channels, config.network.depth
    )
    with TRAINING_CHECKPOINT.reading(source):
        average = content["average"]
        state = content["network"] if average is None else mapping(average, "average")["tensors"]
        kept = exported_state(dict(mapping(state, "network")))
        tensors = tensors_like(kept, network.state_dict(), "network")
    network.load_state_dict(tensors)
    return network


def _card(config: TrainConfig, data: Data, result: dict[str, Any], latency: dict[str, Any]) -> dict[str, Any]:
    return {
        "architecture": config.cell,
        "space": to_values(config.space, None),
        "channels": config.network.channels,
        "depth": config.network.depth,
        "dataset": data.name,
        "classes": list(data.classes),
        "image_size": list(data.image_size),
        "mean": data.mean.tolist(),
        "std": data.std.tolist(),
        "preset": config.preset,
        "epochs": config.training.epochs,
        "seed": config.training.seed,
        "accuracy": result["test"]["accuracy"],
        "test_images": result["images"]["test"],
        "parameters": result["parameters"],
        "multiply_adds": result["multiply_adds"],
        "latency": latency,
    }


def _write_weights(folder: Path, network: nn.Module, card: dict[str, Any]) -> bytes:
    from safetensors.torch import save

    data = save({name: tensor.contiguous() for name, tensor in network.state_dict().items()})
    card["weights"] = digest_of(data)
    write_atomically(folder / WEIGHTS_FILE, data)
    _write_card(folder, card)
    return data


def _write_card(folder: Path, card: dict[str, Any]) -> None:
    check_card(card)
    write_atomically(folder / CARD_FILE, (TRAINED_NETWORK.to_json(card, indent=2) + "\n").encode())


def _metadata(card: dict[str, Any]) -> dict[str, str]:
    """What users of another runtime have to know, as text; means and deviations in units of 0..255."""
    names = ("architecture", "space", "dataset", "classes", "image_size", "mean", "std")
    return {name: json.dumps(card[name]) for name in names} | {"layout": "RGB, [N, 3, H, W], float32"}


def _write_exported(
    path: Path, network: nn.Module, images: Tensor, logits: Tensor, metadata: dict[str, str]
) -> str:
    """The program of `torch.export`, of any number of images."""
    example = images.contiguous()
    if len(example) < 2:  # one image would be taken for all there ever are
        example = example.expand(2, *example.shape[1:]).contiguous()
    program = torch.export.export(
        network, (example,), dynamic_shapes=({0: torch.export.Dim("images", min=1)},)
    )
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={"metadata.json": json.dumps(metadata)})
    buffer.seek(0)
    _check(torch.export.load(buffer).module()(images), logits, path.name)
    write_atomically(path, buffer.getvalue())
    return f"{path.name}: logits as the module's, of {len(images)} images"


def _write_onnx(
    path: Path, network: nn.Module, images: Tensor, logits: Tensor, metadata: dict[str, str]
) -> tuple[str, float | None]:
    """ONNX, of any number of images; a line and the latency of onnxruntime in milliseconds."""
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        return (
            f"no {path.name}: {', '.join(missing)} not installed (pip install 'vpdarts-fast[export]'; "
            "--no-onnx leaves it out)"
        ), None
    import onnx
    import onnxruntime

    example = images[:1].expand(2, *images.shape[1:]).contiguous()
    program = torch.onnx.export(
        network,
        (example,),
        dynamo=True,
        verbose=False,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("images_in_batch", min=1)},),
    )
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    data = model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    values = images.contiguous().numpy()
    found = torch.from_numpy(session.run(["logits"], {"images": values})[0])
    _check(found, logits, path.name)
    write_atomically(path, data)
    latency = latency_ms(lambda: session.run(["logits"], {"images": values[:1]}))
    return f"{path.name}: logits as the module's, of {len(images)} images", latency


def _check(found: Tensor, logits: Tensor, name: str) -> None:
    """Raises `UserError` unless logits are those of the module, within `TOLERANCE`."""
    largest = max(1.0, float(logits.abs().max()))
    difference = float((found - logits).abs().max()) if found.shape == logits.shape else math.inf
    if not difference <= TOLERANCE * largest:
        raise UserError(
            f"{name} gives other logits than the network: they differ by {difference:.3g}, and the largest "
            f"is {largest:.3g}. It is not to be used"
        )
