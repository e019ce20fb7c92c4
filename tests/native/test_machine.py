"""What a process does with memory that it has freed."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import pytest
from fresh_process import run_python
from places import ROOT

PROGRAM = """
import json, resource
import torch
from vpdarts_fast.runtime import machine

def faults():
    for _ in range(4):  # until the heap is as large as it gets
        torch.ones(1 << 24)  # 64 MiB, 16,384 pages
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(1 << 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
print(json.dumps([faults(), machine.reuse_memory(), faults()]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_memory_is_used_again(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = {"PYTHONPATH": str(ROOT), "THP_MEM_ALLOC_ENABLE": "0"}
    measured = []
    for _ in range(3):  # where a process happens to have something behind its heap, this cannot grow
        status, output = run_python([str(program)], tmp_path, environment)
        assert status == 0, output
        before, done, after = json.loads(output)
        assert done
        measured.append((before, after))
        if after < before / 2:
            return
    raise AssertionError(f"new pages more than once, of four times, in three processes: {measured}")
