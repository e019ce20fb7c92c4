"""The DARTS space: how a choice is written down, selected and varied, and the tables of all its kinds."""

from __future__ import annotations

import dataclasses
from itertools import combinations, product

import pytest
import torch
from darts_textbook import DARTS_V1, DARTS_V2
from torch import Tensor

from vpdarts_fast.errors import UserError
from vpdarts_fast.spaces.darts import (
    DARTS_OPS,
    Darts,
    DartsNetwork,
    DartsS1,
    DartsS2,
    DartsS3,
    DartsS4,
    DartsSupernet,
    Genotype,
)

SPACES = [Darts, DartsS1, DartsS2, DartsS3, DartsS4]
CONCAT = "range(2, 6)"
EDGES = [(source, node) for node in range(2, 6) for source in range(node)]


def random_order(space: Darts, seed: int) -> Tensor:
    """Different numbers for all operations there are."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(space.present.numel(), generator=generator).view(space.shape)
    return order.masked_fill(~space.present, -1)


# Genotypes.


@pytest.mark.parametrize("text", [DARTS_V1, DARTS_V2])
def test_published_genotypes_are_read_and_printed_as_they_are(text: str) -> None:
    genotype = Genotype.from_string(text)
    assert str(genotype) == text
    assert genotype.normal[:2] == (
        (("sep_conv_3x3", 1), ("sep_conv_3x3", 0))
        if text is DARTS_V1
        else (("sep_conv_3x3", 0), ("sep_conv_3x3", 1))
    )
    assert hash(genotype) == hash(Genotype.from_string(text.replace(CONCAT, "[2, 3, 4, 5]")))
    assert Darts().parse(text) == genotype


def test_white_space_and_quotes_are_free() -> None:
    genotype = Genotype.from_string(DARTS_V2)
    spread = "".join(f" {c}\n" if c in "[](),=" else c for c in DARTS_V2).replace("'", '"')
    listing = DARTS_V2.replace("], ", ",\n  ],\n  ").replace("=", " = ")
    for text in (spread, listing, DARTS_V2.replace(" ", ""), DARTS_V2.replace(CONCAT, "[2,3,4,5]")):
        assert Genotype.from_string(text) == genotype, text


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("Genotype(", "genotype(", "is no DARTS genotype; expected is Genotype"),
        ("('sep_conv_3x3', 0), ", "", "is no DARTS genotype"),
        ("'dil_conv_3x3', 2", "'dil_conv_3x3', 2), ('skip_connect', 0", "with 8 pairs"),
        (CONCAT, "range(2, 7)", "is no DARTS genotype"),
        (CONCAT, "[2, 3, 4]", "is no DARTS genotype"),
        ("reduce=", "more=", "is no DARTS genotype"),
        ("'dil_conv_3x3'", "dil_conv_3x3", "is no DARTS genotype"),
        ("'dil_conv_3x3'", "'dil_ conv_3x3'", "is no DARTS genotype"),
        ("'dil_conv_3x3'", "__import__('os')", "is no DARTS genotype"),
        ("('dil_conv_3x3', 2)", "('dil_conv_3x3', 23)", "is no DARTS genotype"),
        ("6))", "6)) #", "is no DARTS genotype"),
        ("'dil_conv_3x3'", "'none'", "normal: unknown operation 'none'; expected one of max_pool_3x3, "),
        ("'dil_conv_3x3'", "'dil_conv_7x7'", "normal: unknown operation 'dil_conv_7x7'"),
        ("('dil_conv_3x3', 2)", "('dil_conv_3x3', 5)", "normal: a source of node 5 is one of 0..4; got 5"),
        ("('dil_conv_3x3', 2)", "('dil_conv_3x3', 0)", "normal: node 5 has two operations of 0"),
    ],
)
def test_other_texts_are_refused(old: str, new: str, complaint: str) -> None:
    assert old in DARTS_V2
    with pytest.raises(UserError) as error:
        Genotype.from_string(DARTS_V2.replace(old, new, 1))
    assert complaint in str(error.value)


def test_long_texts_are_refused_in_a_moment() -> None:
    for text in ("Genotype(normal=[" + "(" * 10**5, "Genotype(" + " " * 10**5, DARTS_V2 + " " * 10**5 + "x"):
        with pytest.raises(UserError) as error:
            Genotype.from_string(text)
        assert len(str(error.value)) < 1000


def test_a_genotype_holds_pairs_of_two_for_each_node() -> None:
    pairs = Genotype.from_string(DARTS_V2).normal
    for normal, complaint in (
        (pairs[:-1], "normal has 8 pairs (operation, source); got 7"),
        ((("skip_connect", True), *pairs[1:]), "a source of node 2 is one of 0..1; got True"),
    ):
        with pytest.raises(UserError) as error:
            Genotype(normal, pairs)
        assert complaint in str(error.value)
    listed = Genotype(list(pairs), list(pairs))  # type: ignore[arg-type]
    assert listed == Genotype(pairs, pairs) and hash(listed) == hash(Genotype(pairs, pairs))


# Spaces.


def test_the_tables() -> None:
    space = Darts()
    assert [table.name for table in space.tables] == ["normal", "reduction"]
    assert (
        space.tables[0].edges == space.tables[1].edges == tuple(f"{source}->{node}" for source, node in EDGES)
    )
    assert space.shape == (28, 8) and set(space.tables[1].ops) == {DARTS_OPS}
    assert [kind().shape for kind in SPACES[1:]] == [(28, 2), (28, 2), (28, 3), (28, 2)]
    assert [kind.name for kind in SPACES] == ["darts", "darts-s1", "darts-s2", "darts-s3", "darts-s4"]
    for kind, names in (
        (DartsS2, ("skip_connect", "sep_conv_3x3")),
        (DartsS3, ("none", "skip_connect", "sep_conv_3x3")),
        (DartsS4, ("noise", "sep_conv_3x3")),
    ):
        assert all(set(table.ops) == {names} for table in kind().tables)


def test_the_pairs_of_s1() -> None:
    """By how often they occur, and at some edges."""
    normal, reduction = (dict(zip(table.edges, table.ops, strict=True)) for table in DartsS1().tables)
    counts = [
        [ops.count(name) for name in DARTS_OPS]
        for ops in ([*sum(t.values(), ())] for t in (normal, reduction))
    ]
    assert counts == [[0, 2, 0, 12, 4, 0, 6, 4], [0, 8, 6, 6, 1, 0, 2, 5]]
    assert normal["0->2"] == ("skip_connect", "dil_conv_3x3")
    assert normal["0->4"] == ("max_pool_3x3", "skip_connect")
    assert normal["4->5"] == ("dil_conv_3x3", "dil_conv_5x5")
    assert reduction["1->2"] == ("max_pool_3x3", "dil_conv_3x3")
    assert reduction["1->4"] == ("max_pool_3x3", "sep_conv_3x3")
    assert reduction["2->5"] == ("skip_connect", "dil_conv_5x5")


def test_every_setting_is_bounded() -> None:
    for field in dataclasses.fields(Darts):
        if field.name != "auxiliary":
            with pytest.raises(UserError, match="--" + field.name.replace("_", "-")):
                Darts(**{field.name: -1})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="--layers must be at least 3"):
        Darts(layers=2)


def brute_force(order: Tensor, ops: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, int], ...]:
    """Of one type of cells: of each node, of all pairs of operations from two sources, the strongest pair."""
    pairs: list[tuple[str, int]] = []
    for node in range(2, 6):
        rows = {source: EDGES.index((source, node)) for source in range(node)}
        candidates = [
            (int(order[row, o]), op, source)
            for source, row in rows.items()
            for o, op in enumerate(ops[row])
            if op != "none"
        ]
        couples = [couple for couple in combinations(candidates, 2) if couple[0][2] != couple[1][2]]
        best = max(couples, key=lambda couple: sorted((strength for strength, *_ in couple), reverse=True))
        pairs += sorted(((op, source) for _, op, source in best), key=lambda pair: pair[1])
    return tuple(pairs)


@pytest.mark.parametrize("kind", SPACES)
def test_the_two_strongest_predecessors_of_each_node_are_selected(kind: type[Darts]) -> None:
    space = kind()
    for seed in range(20):
        order = random_order(space, seed)
        genotype = space.select(order)
        assert genotype.normal == brute_force(order[:14], space.normal_ops)
        assert genotype.reduce == brute_force(order[14:], space.reduction_ops)
        assert genotype == genotype.sorted() == space.parse(str(genotype))
        mask = space.chosen(genotype)
        assert mask.sum() == 16 and not (mask & ~space.present).any() and mask.any(1).sum() == 16
        assert space.select(order + mask * order.numel()) == genotype


def test_the_order_of_a_nodes_operations_is_kept_until_it_is_sorted() -> None:
    space = Darts()
    genotype = space.parse(DARTS_V1)
    assert genotype.normal[0] == ("sep_conv_3x3", 1) and genotype.sorted().normal[0] == ("sep_conv_3x3", 0)
    assert torch.equal(space.chosen(genotype), space.chosen(genotype.sorted()))
    assert genotype != genotype.sorted()


@pytest.mark.parametrize("kind", SPACES)
def test_neighbours_are_all_choices_with_one_other_operation(kind: type[Darts]) -> None:
    space = kind()
    genotype = space.select(random_order(space, 0))
    mask = space.chosen(genotype)
    names = [ops for table in space.tables for ops in table.ops]
    expected = set()
    for row, op in mask.nonzero().tolist():
        for new_row, new_op in product(range(28), range(space.shape[1])):
            same_node = EDGES[row % 14][1] == EDGES[new_row % 14][1] and row // 14 == new_row // 14
            free = new_row == row or not mask[new_row].any()
            if same_node and free and names[new_row][new_op] != "none" and (new_row, new_op) != (row, op):
                exchanged = mask.clone()
                exchanged[row, op], exchanged[new_row, new_op] = False, True
                expected.add(tuple(exchanged.flatten().tolist()))
    neighbours = list(space.neighbours(genotype))
    assert len(set(neighbours)) == len(neighbours) == len(expected) and genotype not in neighbours
    assert {tuple(space.chosen(neighbour).flatten().tolist()) for neighbour in neighbours} == expected
    if kind is Darts:
        assert len(neighbours) == 2 * (8 * 6 + 2 * 7 * (1 + 2 + 3))


def test_operations_that_an_edge_has_not_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"0->2 in the space darts-s1; expected one of skip_connect, dil_conv_3x3"
    ):
        DartsS1().parse(DARTS_V2)
    with pytest.raises(
        UserError, match=r"reduce: max_pool_3x3 is .* expected one of skip_connect, sep_conv_3x3"
    ):
        DartsS3().parse(DARTS_V2.replace("dil_conv_3x3", "sep_conv_3x3"))
    noisy = DARTS_V2.replace("dil_conv_3x3", "noise")
    with pytest.raises(UserError, match="noise is no operation of the edge 2->5 in the space darts;"):
        Darts().parse(noisy)


def test_drawings_show_both_types_of_cells() -> None:
    normal, reduction = Darts().drawings(Genotype.from_string(DARTS_V2))
    assert (normal.name, reduction.name) == ("normal", "reduction")
    assert normal.nodes == ("c_{k-2}", "c_{k-1}", "0", "1", "2", "3", "c_{k}")
    assert normal.edges[6:9] == ((0, 5, "skip_connect"), (2, 5, "dil_conv_3x3"), (2, 6, "concat"))
    assert len(normal.edges) == len(reduction.edges) == 12


# What a space builds.


def test_a_space_builds_its_networks() -> None:
    space = DartsS4(
        channels=2, layers=3, found_channels=2, found_layers=3, finalist_channels=2, finalist_layers=3
    )
    genotype = space.select(random_order(space, 1))
    images = torch.randn(2, 3, 8, 8)
    supernet, network = space.supernet(5), space.network(genotype, 5)
    assert isinstance(supernet, DartsSupernet) and isinstance(network, DartsNetwork)
    assert network.drop_path_prob == 0.2 and network.auxiliary_head is not None
    finalist = space.finalist_network(genotype, 5)
    assert isinstance(finalist, DartsNetwork)
    assert finalist.auxiliary_head is None and finalist.drop_path_prob == 0
    for logits in (supernet(images, torch.rand(28, 2)), network(images), finalist(images)):
        assert logits.shape == (2, 5) and logits.isfinite().all()


def test_networks_of_finalists_begin_alike_where_they_share_an_operation() -> None:
    space = Darts(finalist_channels=2, finalist_layers=3)
    genotype = space.select(random_order(space, 2))
    neighbours = [choice for choice in space.neighbours(genotype) if choice.reduce == genotype.reduce]
    states = []
    for choice in (genotype, neighbours[-1], genotype):
        torch.manual_seed(3)
        network = space.finalist_network(choice, 5)
        states.append((network.state_dict(), torch.rand(())))
    (first, after), (other, other_after), (again, _) = states
    assert after == other_after, "whatever follows draws the same"
    assert all(torch.equal(first[name], again[name]) for name in first)
    exchanged = [i for i in range(8) if genotype.normal[i] != neighbours[-1].normal[i]]
    assert exchanged in ([6], [7])
    shared = [name for name in first if not name.startswith(f"cells.0._ops.{exchanged[0]}.")]
    assert len(shared) > 100
    for name in shared:
        assert torch.equal(first[name], other[name]), name
    convolutions = [tensor for name, tensor in first.items() if tensor.dim() == 4]
    assert len({tuple(tensor.flatten().tolist()) for tensor in convolutions}) == len(convolutions)
