"""A first-order DARTS search in the DARTS space (ICLR 2019); `--accelerate` adds one line to it.

python examples/darts.py                 in seconds, on small random images
python examples/darts.py --accelerate    the same search, faster
python examples/darts.py --accelerate --data ./data --channels 16 --layers 8 --batch 64 --epochs 50
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

import vpdarts_fast

CLASSES, NODES = 10, 4


def norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, affine=False)


def relu_conv_bn(c_in: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(nn.ReLU(), nn.Conv2d(c_in, c_out, 1, bias=False), norm(c_out))


def separable(channels: int, kernel: int, stride: int, dilation: int = 1) -> nn.Sequential:
    """ReLU, depthwise convolution, 1x1 convolution, batch norm."""
    padding = dilation * (kernel - 1) // 2
    depthwise = nn.Conv2d(channels, channels, kernel, stride, padding, dilation, groups=channels, bias=False)
    return nn.Sequential(nn.ReLU(), depthwise, nn.Conv2d(channels, channels, 1, bias=False), norm(channels))


def sep_conv(channels: int, kernel: int, stride: int) -> nn.Sequential:
    return nn.Sequential(*separable(channels, kernel, stride), *separable(channels, kernel, 1))


class Zero(nn.Module):
    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            return x * 0.0
        return x[:, :, :: self.stride, :: self.stride] * 0.0


class FactorizedReduce(nn.Module):
    """Halves the image: half of the channels from its even pixels, half from its odd ones."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.conv_1 = nn.Conv2d(c_in, c_out // 2, 1, stride=2, bias=False)
        self.conv_2 = nn.Conv2d(c_in, c_out // 2, 1, stride=2, bias=False)
        self.bn = norm(c_out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(x)
        return self.bn(torch.cat([self.conv_1(x), self.conv_2(x[:, :, 1:, 1:])], dim=1))


OPS: dict[str, Callable[[int, int], nn.Module]] = {
    "none": lambda c, stride: Zero(stride),
    "max_pool_3x3": lambda c, stride: nn.Sequential(nn.MaxPool2d(3, stride, 1), norm(c)),
    "avg_pool_3x3": lambda c, stride: nn.Sequential(
        nn.AvgPool2d(3, stride, 1, count_include_pad=False), norm(c)
    ),
    "skip_connect": lambda c, stride: nn.Identity() if stride == 1 else FactorizedReduce(c, c),
    "sep_conv_3x3": lambda c, stride: sep_conv(c, 3, stride),
    "sep_conv_5x5": lambda c, stride: sep_conv(c, 5, stride),
    "dil_conv_3x3": lambda c, stride: separable(c, 3, stride, dilation=2),
    "dil_conv_5x5": lambda c, stride: separable(c, 5, stride, dilation=2),
}


class MixedOp(nn.Module):
    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self._ops = nn.ModuleList(new_op(channels, stride) for new_op in OPS.values())

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """x [N, C, H, W], weights [O] -> [N, C, H', W']."""
        return sum(weight * op(x) for weight, op in zip(weights, self._ops, strict=True))


class Cell(nn.Module):
    """Two inputs, four nodes; every node is the sum of a mixed operation of each node before it."""

    def __init__(self, c_before: tuple[int, int], channels: int, reduction: bool, halve: bool) -> None:
        super().__init__()
        self.reduction = reduction
        first, second = c_before
        self.preprocess0 = FactorizedReduce(first, channels) if halve else relu_conv_bn(first, channels)
        self.preprocess1 = relu_conv_bn(second, channels)
        self._ops = nn.ModuleList(
            MixedOp(channels, 2 if reduction and source < 2 else 1)
            for node in range(NODES)
            for source in range(2 + node)
        )

    def forward(self, s0: Tensor, s1: Tensor, weights: Tensor) -> Tensor:
        """s0, s1 [N, C', H, W], weights [E, O] -> [N, 4 C, H', W']."""
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        edges = iter(zip(self._ops, weights, strict=True))
        for _ in range(NODES):
            incoming = [next(edges) for _ in states]
            states.append(sum(op(x, row) for x, (op, row) in zip(states, incoming, strict=True)))
        return torch.cat(states[2:], dim=1)


class Network(nn.Module):
    """The supernet; at a third and at two thirds of its layers cells halve the image."""

    def __init__(self, channels: int, layers: int) -> None:
        super().__init__()
        before = (3 * channels, 3 * channels)
        self.stem = nn.Sequential(
            nn.Conv2d(3, before[0], 3, padding=1, bias=False), nn.BatchNorm2d(before[0])
        )
        self.cells = nn.ModuleList()
        halve = False
        for layer in range(layers):
            reduction = layer in (layers // 3, 2 * layers // 3)
            channels *= 2 if reduction else 1
            self.cells.append(Cell(before, channels, reduction, halve))
            before, halve = (before[1], NODES * channels), reduction
        self.classifier = nn.Linear(before[1], CLASSES)
        edges = sum(2 + node for node in range(NODES))
        self.alphas_normal = nn.Parameter(1e-3 * torch.randn(edges, len(OPS)))
        self.alphas_reduce = nn.Parameter(1e-3 * torch.randn(edges, len(OPS)))

    def alphas(self) -> list[nn.Parameter]:
        return [self.alphas_normal, self.alphas_reduce]

    def weights(self) -> Iterator[nn.Parameter]:
        return (p for name, p in self.named_parameters() if not name.startswith("alphas"))

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, classes]."""
        s0 = s1 = self.stem(images)
        normal, reduce = (F.softmax(alphas, dim=-1) for alphas in self.alphas())
        for cell in self.cells:
            s0, s1 = s1, cell(s0, s1, reduce if cell.reduction else normal)
        return self.classifier(s1.mean((2, 3)))

    def genotype(self) -> dict[str, list[tuple[str, int]]]:
        """Of each kind of cell, for each node: the ops and the sources of its two strongest edges."""
        return {
            "normal": strongest(F.softmax(self.alphas_normal, dim=-1)),
            "reduce": strongest(F.softmax(self.alphas_reduce, dim=-1)),
        }


def strongest(weights: Tensor) -> list[tuple[str, int]]:
    """weights [E, O] -> (op, source); `none` does not count."""
    names = list(OPS)
    found = []
    for rows in weights.detach().split([2 + node for node in range(NODES)]):
        values, ops = rows[:, 1:].max(dim=1)
        sources = sorted(values.topk(2).indices.tolist())
        found += [(names[1 + int(ops[source])], source) for source in sources]
    return found


def random_images(count: int, size: int) -> Dataset:
    """Noise over one blurred picture for each class."""
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn(CLASSES, 3, 4, 4, generator=generator)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    noise = torch.randn(count, 3, size, size, generator=generator)
    return TensorDataset(F.interpolate(pictures, size, mode="bilinear")[labels] + noise, labels)


def cifar10(folder: str) -> Dataset:
    from torchvision import datasets, transforms

    steps = [
        transforms.RandomCrop(32, padding=4),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize((0.491, 0.482, 0.447), (0.247, 0.243, 0.262)),
    ]
    return datasets.CIFAR10(folder, transform=transforms.Compose(steps), download=True)


def halves(dataset: Dataset, batch: int) -> tuple[DataLoader, DataLoader]:
    """For the weights, and for the alphas."""
    count = len(dataset)
    parts = range(count // 2), range(count // 2, count)
    return tuple(DataLoader(Subset(dataset, part), batch, shuffle=True, drop_last=True) for part in parts)


def search(arguments: argparse.Namespace) -> list[float]:
    """Prints the genotype; returns the mean training loss of every epoch."""
    torch.manual_seed(arguments.seed)
    images = cifar10(arguments.data) if arguments.data else random_images(arguments.images, arguments.size)
    training, validation = halves(images, arguments.batch)
    model = Network(arguments.channels, arguments.layers)
    if arguments.accelerate:
        report = vpdarts_fast.accelerate(model)
        print(str(report).splitlines()[0])
    weights_optimizer = torch.optim.SGD(model.weights(), lr=0.025, momentum=0.9, weight_decay=3e-4)
    alphas_optimizer = torch.optim.Adam(model.alphas(), lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(weights_optimizer, arguments.epochs, eta_min=1e-3)
    losses, seconds = [], []
    for epoch in range(arguments.epochs):
        epoch_losses = []
        for batch, validation_batch in zip(training, validation, strict=True):
            started = perf_counter()
            epoch_losses.append(step(model, batch, validation_batch, weights_optimizer, alphas_optimizer))
            seconds.append(perf_counter() - started)
        schedule.step()
        losses.append(sum(epoch_losses) / len(epoch_losses))
        print(f"epoch {epoch + 1}/{arguments.epochs}  loss {losses[-1]:.4f}")
    print(f"{median(seconds):.3f} s per step")
    print(model.genotype())
    return losses


def step(
    model: Network,
    batch: Sequence[Tensor],
    validation_batch: Sequence[Tensor],
    weights_optimizer: torch.optim.Optimizer,
    alphas_optimizer: torch.optim.Optimizer,
) -> float:
    """The alphas on a validation batch, then the weights on a training batch, whose loss it returns."""
    images, labels = validation_batch
    model.zero_grad()
    F.cross_entropy(model(images), labels).backward()
    alphas_optimizer.step()

    images, labels = batch
    model.zero_grad()
    loss = F.cross_entropy(model(images), labels)
    loss.backward()
    nn.utils.clip_grad_norm_(model.weights(), 5.0)
    weights_optimizer.step()
    return loss.item()


def main(argv: Sequence[str] | None = None) -> list[float]:
    """Returns the mean training loss of every epoch."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--accelerate", action="store_true", help="add the one line")
    parser.add_argument(
        "--data", help="folder of CIFAR-10, downloaded if it is not there; else random images"
    )
    parser.add_argument("--images", type=int, default=64, help="how many random images")
    parser.add_argument("--size", type=int, default=16, help="their height and width")
    parser.add_argument("--channels", type=int, default=4)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return search(parser.parse_args(argv))


if __name__ == "__main__":
    main()
