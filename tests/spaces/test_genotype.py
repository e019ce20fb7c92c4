"""Genotypes: the string form, the official numbering, and what is refused."""

from __future__ import annotations

import csv
import gzip

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vpdarts_fast.benchmark_table.table import PUBLISHED
from vpdarts_fast.errors import UserError
from vpdarts_fast.spaces.nas_bench_201.genotype import EDGES, NUM_ARCHITECTURES, OPS, Genotype, all_genotypes

PAPER = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|"


def test_the_space() -> None:
    assert EDGES == ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
    assert OPS == ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
    assert NUM_ARCHITECTURES == 15_625


def test_every_architecture_survives_its_string_and_its_index() -> None:
    genotypes = list(all_genotypes())
    assert len(set(genotypes)) == NUM_ARCHITECTURES
    for index, genotype in enumerate(genotypes):
        assert genotype.index == index
        assert Genotype.from_string(str(genotype)) == genotype
        assert Genotype.from_choices(genotype.choices) == genotype


def test_operations_are_read_in_edge_order() -> None:
    genotype = Genotype.from_string(PAPER)
    assert genotype.ops == ("nor_conv_3x3",) * 3 + ("skip_connect",) + ("nor_conv_3x3",) * 2
    assert genotype.choices == (3, 3, 3, 1, 3, 3)
    assert str(genotype) == PAPER


def test_index_zero_is_the_official_one() -> None:
    assert str(Genotype.from_index(0)) == (
        "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|"
    )


def test_the_numbering_is_that_of_the_benchmark() -> None:
    with gzip.open(PUBLISHED, "rt", newline="") as file:
        strings = [row["arch"] for row in csv.DictReader(file)]
    assert strings == [str(genotype) for genotype in all_genotypes()]


@given(st.text())
@example("")
@example("|none~0|+|none~0|none~1|")
@example(PAPER + "+")
@example(PAPER + "\n")
@example(PAPER.replace("skip_connect~0", "skip_connect~1"))
@example(PAPER.replace("skip_connect~0", "skip_connect"))
@example(PAPER.replace("skip_connect~0", "skip_connect~00"))
@example(PAPER.replace("skip_connect~0", "skip_connect~0~0"))
@example(PAPER.replace("skip_connect", "Skip_connect"))
@example(PAPER.replace("skip_connect", "max_pool_3x3"))
def test_other_strings_are_refused(text: str) -> None:
    with pytest.raises(UserError):
        Genotype.from_string(text)


@given(st.integers(0, len(PAPER)), st.integers(0, 3), st.text("|+~0123 nosekip_c", max_size=3))
def test_a_damaged_string_is_refused_or_is_another_architecture(start: int, cut: int, put: str) -> None:
    text = PAPER[:start] + put + PAPER[start + cut :]
    try:
        genotype = Genotype.from_string(text)
    except UserError:
        return
    assert str(genotype) == text  # strict: nothing but the canonical form is read


@pytest.mark.parametrize("index", [-1, NUM_ARCHITECTURES])
def test_an_index_outside_is_refused(index: int) -> None:
    with pytest.raises(UserError, match=rf"must be in 0\.\.15624; got {index}"):
        Genotype.from_index(index)


@pytest.mark.parametrize("choices", [(0, 0, 0, 0, 0, 5), (0, 0, 0, 0, 0, -1)])
def test_an_operation_number_outside_is_refused(choices: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"operation number must be in 0\.\.4"):
        Genotype.from_choices(choices)


def test_another_number_of_operations_is_refused() -> None:
    with pytest.raises(UserError, match="6 operations, one per edge; got 5"):
        Genotype(("none",) * 5)
    with pytest.raises(UserError, match="6 operations, one per edge; got 7"):
        Genotype.from_choices((0,) * 7)


def test_an_unknown_operation_is_named() -> None:
    with pytest.raises(UserError, match="unknown operation 'conv'; expected one of none, skip_connect"):
        Genotype((*("none",) * 5, "conv"))
