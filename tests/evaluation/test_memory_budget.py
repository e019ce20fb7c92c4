"""What leave-one-out evaluation holds at once is within the budget asked for, or an error says the least."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from random import Random

import pytest
import torch
from leave_one_out_cases import make_alpha, make_batches, make_supernet

from vpdarts_fast import native
from vpdarts_fast.data import Augmentation, ImageData
from vpdarts_fast.errors import UserError
from vpdarts_fast.evaluation.leave_one_out import leave_one_out
from vpdarts_fast.evaluation.memory_budget import Need, few_images, few_variants, whole_batches
from vpdarts_fast.search import PRESETS, preflight

MIB = 1 << 20


def pieces(cut: str, need: Need, variants: int, images: int, budget: int | None) -> tuple[int, int]:
    """Variants and images that are evaluated together."""
    if cut == "whole batches":
        return whole_batches(need, variants, images, budget, MIB, "batch")
    return (few_images if cut == "few images" else few_variants)(need, variants, images, budget, MIB)


def test_pieces_hold_what_was_asked_for_or_the_error_says_the_least() -> None:
    rng = Random(0)
    refused = 0
    for _ in range(2000):
        need = Need(rng.randint(1, 1 << rng.randint(0, 30)), rng.choice([0, rng.randint(1, 1 << 30)]))
        variants, images = rng.randint(1, 400), rng.randint(1, 5000)
        cut = rng.choice(["whole batches", "few images", "few variants"])
        whole = cut == "whole batches"
        budget = rng.randint(1, 1 << rng.randint(1, 50))
        least = need.total(1, images if whole else 1)
        if budget < least:
            refused += 1
            with pytest.raises(
                UserError, match=f"memory_budget must be at least {least:,} bytes, .* got {budget:,}"
            ):
                pieces(cut, need, variants, images, budget)
            assert pieces(cut, need, variants, images, least) == (1, images if whole else 1)
            continue
        together, some = pieces(cut, need, variants, images, budget)
        assert need.total(together, some) <= budget
        assert 1 <= together <= variants and (some == images if whole else some >= 1)
        # Neither a variant more nor an image more has room.
        if cut == "few variants":
            assert together == variants or need.total(together + 1, some) > budget
            assert some == images or need.total(1, some + 1) > budget
        else:
            assert together == variants or need.total(together + 1, images if whole else 1) > budget
            assert whole or need.total(together, some + 1) > budget
    assert 200 < refused < 1800


@pytest.mark.parametrize("variants", [1, 25])
@pytest.mark.parametrize("cut", ["whole batches", "few images", "few variants"])
def test_without_a_budget_nothing_is_refused(variants: int, cut: str) -> None:
    together, images = pieces(cut, Need(1 << 40, 1 << 40), variants, 256, None)
    assert (together, images) == (1, 256 if cut == "whole batches" else 1)


def test_a_budget_that_is_too_small_is_refused_with_the_least_that_works() -> None:
    supernet, batches, alpha = make_supernet(), make_batches(4, 3), make_alpha()
    for mode in ("running", "batch", "variant"):
        with pytest.raises(UserError, match=r"memory_budget must be at least [0-9,]+ bytes") as caught:
            leave_one_out(supernet, batches, alpha, batch_norm=mode, memory_budget=1)
        if mode != "running":
            assert f"a batch of 4 images, which batch_norm='{mode}' cannot cut" in str(caught.value)
        least = int(str(caught.value).split("at least ")[1].split(" bytes")[0].replace(",", ""))
        with pytest.raises(UserError, match=f"got {least - 1:,}"):
            leave_one_out(supernet, batches, alpha, batch_norm=mode, memory_budget=least - 1)
        found = leave_one_out(supernet, batches, alpha, batch_norm=mode, memory_budget=least)
        usual = leave_one_out(supernet, batches, alpha, batch_norm=mode)
        torch.testing.assert_close(found.loss, usual.loss)


def test_a_search_says_so_before_it_begins() -> None:
    """In the words of the flags; 40 validation images are evaluated, in batches of 16."""
    images, labels = torch.zeros(80, 32, 32, 3, dtype=torch.uint8), torch.arange(80) % 2
    data = ImageData("tiny", images, labels, images, labels, ("a", "b"), Augmentation(1, True))
    config = PRESETS["quick"].replaced(
        channels=1024, evaluation_batch_size=16, validation_proportion=1.0, max_images=None
    )
    cpu = torch.device("cpu")
    for mode, what in (
        ("batch", "a batch of 16 images (--evaluation-batch-size), which"),
        ("variant", "a batch of 16 images (--evaluation-batch-size), which"),
        ("running", "an image;"),
    ):
        asked = config.replaced(batch_norm=mode, memory_budget_mib=1)
        with pytest.raises(UserError) as caught:
            preflight.check_memory_budget(asked, data, cpu)
        said = re.match(
            r"--memory-budget-mib must be at least ([0-9,]+), of one variant of (.*)", str(caught.value)
        )
        assert said is not None and said[2].startswith(what) and said[2].endswith("got 1")
        least = int(said[1].replace(",", ""))
        preflight.check_memory_budget(asked.replaced(memory_budget_mib=least), data, cpu)
        with pytest.raises(UserError):
            preflight.check_memory_budget(asked.replaced(memory_budget_mib=least - 1), data, cpu)
        preflight.check_memory_budget(asked.replaced(memory_budget_mib=None), data, cpu)
        preflight.check_memory_budget(asked.replaced(fused=False), data, cpu)


PROGRAM = """
import re, sys
from pathlib import Path
import torch
from vpdarts_fast.evaluation.leave_one_out import leave_one_out
from vpdarts_fast.spaces.nas_bench_201 import Supernet

torch.set_num_threads(1)
supernet = Supernet(cells_per_stage=1, fused=True)
images, labels = torch.randn(64, 3, 32, 32), torch.zeros(64, dtype=torch.int64)
alpha = torch.zeros(6, 5)
alpha[:, 3] = alpha[4:, 1] = 0.5

def resident(kind):
    return 1024 * int(re.search(kind + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

mode, *budgets = sys.argv[1:]
leave_one_out(supernet, [(images[:2], labels[:2])], alpha, batch_norm=mode)
before = resident("VmRSS")
for budget in map(int, budgets):
    leave_one_out(supernet, [(images, labels)], alpha, batch_norm=mode, memory_budget=budget)
    print(resident("VmHWM") - before)
"""


@pytest.mark.skipif(not native.available(), reason=f"no native extension: {native.why_not()}")
@pytest.mark.parametrize(
    ("mode", "budgets"),
    # One node of 64 images takes 4 MiB, so that the least with batch statistics is 64 MiB.
    [("running", [4, 16, 64]), ("batch", [64, 96, 160])],
)
def test_a_process_holds_what_was_asked_for(mode: str, budgets: list[int]) -> None:
    """Native scratch memory counts; weights in the kernels' layout and the code itself come on top."""
    # Blocks of more than 256 KiB go back to the system when they are freed, whatever came before.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**18), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, mode, *(str(budget * MIB) for budget in budgets)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    peaks = [int(line) / MIB for line in run.stdout.split()]
    for budget, peak in zip(budgets, peaks, strict=True):
        assert peak <= 1.1 * budget + 20, (mode, budgets, peaks)
    assert peaks[-1] >= 0.4 * budgets[-1], (mode, budgets, peaks)
