"""A first-order DARTS search in the NAS-Bench-201 space (ICLR 2020); `--accelerate` adds one line to it.

python examples/nas_bench_201.py                 in seconds, on small random images
python examples/nas_bench_201.py --accelerate    the same search, faster
python examples/nas_bench_201.py --accelerate --data ./data --channels 16 --cells 5 --batch 64 --epochs 50
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


def relu_conv_bn(c_in: int, c_out: int, kernel: int, stride: int = 1, affine: bool = False) -> nn.Sequential:
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(c_out, affine=affine),
    )


class Zero(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 0.0


OPS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda c: Zero(),
    "skip_connect": lambda c: nn.Identity(),
    "nor_conv_1x1": lambda c: relu_conv_bn(c, c, 1),
    "nor_conv_3x3": lambda c: relu_conv_bn(c, c, 3),
    "avg_pool_3x3": lambda c: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
}


class SearchCell(nn.Module):
    """Four nodes; every node is the sum over its edges, of each op by its weight."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.edges = nn.ModuleDict(
            {
                f"{node}<-{source}": nn.ModuleList(new_op(channels) for new_op in OPS.values())
                for node in range(1, NODES)
                for source in range(node)
            }
        )
        self.rows = {key: row for row, key in enumerate(sorted(self.edges))}

    def forward(self, inputs: Tensor, weights: Tensor) -> Tensor:
        """inputs [N, C, H, W], weights [E, O] -> [N, C, H, W]."""
        nodes = [inputs]
        for node in range(1, NODES):
            terms = []
            for source in range(node):
                key = f"{node}<-{source}"
                row = weights[self.rows[key]]
                terms += [w * op(nodes[source]) for w, op in zip(row, self.edges[key], strict=True)]
            nodes.append(sum(terms))
        return nodes[-1]


class ResidualBlock(nn.Module):
    """Between two stages: halves the image and doubles the channels."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv_a = relu_conv_bn(c_in, c_out, 3, stride=2, affine=True)
        self.conv_b = relu_conv_bn(c_out, c_out, 3, affine=True)
        self.downsample = nn.Sequential(nn.AvgPool2d(2, 2), nn.Conv2d(c_in, c_out, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, 2 C, H / 2, W / 2]."""
        return self.downsample(x) + self.conv_b(self.conv_a(x))


class Network(nn.Module):
    """The supernet: three stages of cells, which share the alphas, and a residual block between them."""

    def __init__(self, channels: int, cells: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        self.cells = nn.ModuleList()
        for stage in range(3):
            if stage > 0:
                self.cells.append(ResidualBlock(channels, 2 * channels))
                channels *= 2
            self.cells.extend(SearchCell(channels) for _ in range(cells))
        self.last = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())
        self.classifier = nn.Linear(channels, CLASSES)
        self.alpha = nn.Parameter(1e-3 * torch.randn(NODES * (NODES - 1) // 2, len(OPS)))

    def alphas(self) -> list[nn.Parameter]:
        return [self.alpha]

    def weights(self) -> Iterator[nn.Parameter]:
        return (parameter for name, parameter in self.named_parameters() if name != "alpha")

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, classes]."""
        x = self.stem(images)
        weights = F.softmax(self.alpha, dim=-1)
        for cell in self.cells:
            x = cell(x, weights) if isinstance(cell, SearchCell) else cell(x)
        return self.classifier(self.last(x).mean((2, 3)))

    def genotype(self) -> str:
        """As NAS-Bench-201 writes it: the strongest op of every edge."""
        names = list(OPS)
        choices = iter(self.alpha.argmax(dim=1).tolist())
        nodes = []
        for node in range(1, NODES):
            ops = [f"{names[next(choices)]}~{source}" for source in range(node)]
            nodes.append("|" + "|".join(ops) + "|")
        return "+".join(nodes)


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
    model = Network(arguments.channels, arguments.cells)
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
    parser.add_argument("--cells", type=int, default=1, help="in each of the three stages")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return search(parser.parse_args(argv))


if __name__ == "__main__":
    main()
