"""Several processes that run one program together, started by `torchrun`: what they ask of each other.

All of them take every step at the same time. What is asked of a single process costs nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vpdarts_fast.errors import UserError

PATIENCE = timedelta(days=7)
"""How long a process waits for the others, which may train for hours; it notices at once if one ends."""

_MOST_TEXT = 1 << 24
"""Letters that a process tells the others at once, at most."""


class Processes:
    """The processes of a program, this one among them. By default it is the only one.

    Args:
        number: of this process, from 0.
        count: how many there are.
        device: where tensors have to be to be sent, `cpu` or a GPU.
    """

    def __init__(self, number: int = 0, count: int = 1, device: torch.device | str = "cpu") -> None:
        self.number, self.count, self._device = number, count, torch.device(device)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks for all."""
        return self.number == 0

    @property
    def started_by(self) -> str:
        """What to start a module with, for as many processes on each machine."""
        if self.count == 1:
            return "python"
        return f"torchrun --nproc-per-node {os.environ.get('LOCAL_WORLD_SIZE', self.count)}"

    @property
    def of_threads(self) -> str:
        """Says how many threads compute, for people."""
        processes = f"{self.count} processes of " if self.count > 1 else ""
        return f"{processes}{torch.get_num_threads()} threads"

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """Lets the others enter once the first process has left: what is fetched or decoded, it does."""
        if not self.first:
            self.tell(None)
        yield
        if self.first:
            self.tell(None)

    def part(self, items: Tensor, least: int = 1) -> tuple[Tensor, float]:
        """Takes this process' part of items [..., N], and says which share of all it is.

        With fewer than `least` items a process every process takes all, each for an equal share.
        """
        if self.count == 1 or items.shape[-1] < least * self.count:
            return items, 1 / self.count
        mine = items.tensor_split(self.count, dim=-1)[self.number]
        return mine, mine.shape[-1] / items.shape[-1]

    def turns(self, wanted: Tensor) -> Tensor:
        """Marks those of the items marked in `wanted`, bool, that are this process': one in turn to each."""
        if self.count == 1:
            return wanted
        numbers = wanted.flatten().cumsum(0).view(wanted.shape) - 1
        return wanted & (numbers % self.count == self.number)

    def add_up(self, tensors: Sequence[Tensor], share: float = 1.0) -> None:
        """Replaces each tensor by its sum over all processes, each process' multiplied with its share.

        The tensors are of one dtype and device, and of the same shapes in all processes, which end with the
        same bits.
        """
        if self.count == 1 or not tensors:
            return
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors]).mul_(share).to(self._device)
        with _reachable():
            dist.all_reduce(flat)
        sums = torch.split(flat.to(tensors[0].device), [tensor.numel() for tensor in tensors])
        for tensor, of_all in zip(tensors, sums, strict=True):
            tensor.detach().copy_(of_all.view(tensor.shape))

    def any(self, flag: bool) -> bool:
        """Whether the flag is true in one of the processes."""
        if self.count == 1:
            return flag
        flags = torch.tensor(int(flag), device=self._device)
        with _reachable():
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags)

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Gives each tensor the values that it has in the first process."""
        for tensor in tensors if self.count > 1 else ():
            sent = tensor.detach().to(self._device).contiguous()
            with _reachable():
                dist.broadcast(sent, 0)
            tensor.detach().copy_(sent)

    def tell(self, value: Any) -> Any:
        """Returns what the first process has given, plain values as JSON knows them, in all processes."""
        if self.count == 1:
            return value
        text = json.dumps(value).encode() if self.first else b""
        size = torch.tensor(len(text), device=self._device)
        with _reachable():
            dist.broadcast(size, 0)
            if not 0 <= int(size) <= _MOST_TEXT:
                raise UserError(
                    f"a process was told {int(size):,} letters; at most {_MOST_TEXT:,} are allowed"
                )
            letters = torch.zeros(int(size), dtype=torch.uint8, device=self._device)
            if self.first:
                letters.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
            dist.broadcast(letters, 0)
        return json.loads(bytes(letters.cpu().tolist()))


ALONE = Processes()
"""A program of one process."""


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """Within, the processes that `torchrun` has started can reach each other: by gloo, or by NCCL on GPUs.

    Args:
        device: `auto`, `cpu` or `cuda`; on GPUs each process takes the one of its number on its machine.

    Raises:
        UserError: a machine has fewer GPUs than processes, or the others cannot be reached.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or not dist.is_available():
        yield ALONE
        return
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if on_gpu:
        place = int(os.environ.get("LOCAL_RANK", "0"))
        if place >= torch.cuda.device_count():
            raise UserError(
                f"{place + 1} or more processes on a machine with {torch.cuda.device_count()} GPUs: start "
                "one for each GPU"
            )
        torch.cuda.set_device(place)
    with _reachable():
        _join("nccl" if on_gpu else "gloo", count)
    try:
        yield Processes(dist.get_rank(), count, "cuda" if on_gpu else "cpu")
    finally:
        dist.destroy_process_group()


def restarted() -> bool:
    """Whether `torchrun --max-restarts` has started the processes anew after one of them had ended."""
    return _restarts() > 0


def _restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _join(backend: str, count: int) -> None:
    """Makes the group of all processes, as `init_process_group` does by itself, and again after a restart.

    The store of `torchrun` may be the same before and after. Under the same names there are still the
    addresses of processes that have ended, so each start has names of its own.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        dist.init_process_group(backend, timeout=PATIENCE)
        return
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    agent: Any = dist  # whose stores have no types
    store = agent.PrefixStore(
        f"start {_restarts()}", agent.TCPStore(*place, is_master=False, timeout=PATIENCE)
    )
    number = int(os.environ["RANK"])
    dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=PATIENCE)


@contextmanager
def _reachable() -> Iterator[None]:
    """Turns what PyTorch raises within into a `UserError`."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"another process of this run has ended or cannot be reached ({reason})") from error
