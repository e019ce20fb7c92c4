"""Peak memory of a training step beyond its parameters: C=16, 32x32, 64 images."""

from __future__ import annotations

import sys

import pytest
from contenders import FORMS, OURS
from memory import NotMeasurable, measure
from pytest_benchmark.fixture import BenchmarkFixture

pytestmark = pytest.mark.full


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("cells", [1, 5], ids=lambda n: f"N={n}")
@pytest.mark.parametrize("phase", ["weights", "alpha"])
def test_peak_memory(phase: str, cells: int, benchmark: BenchmarkFixture) -> None:
    """The row times the whole measurement of ours; the peaks are in its extra_info."""
    peaks = {}
    try:
        for form in FORMS[:-1]:
            peaks[form.name] = measure(form.name, phase, cells)
        peaks[OURS.name] = benchmark.pedantic(measure, (OURS.name, phase, cells), rounds=1)
    except NotMeasurable as reason:
        pytest.skip(str(reason))
    own = peaks[OURS.name]
    benchmark.extra_info["peaks"] = peaks
    benchmark.extra_info["notes"] = {
        name: f"ours is {own / peak:.2f} of it" for name, peak in peaks.items() if name != OURS.name
    }
    benchmark.extra_info["ratios"] = {name: peak / own for name, peak in peaks.items() if name != OURS.name}
