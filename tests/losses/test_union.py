"""The union of matchings against its definition, written as loops."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from querybox.losses.union import union_of_matches
from querybox.structures import Matches


def matches(image: list[int], query: list[list[int]], object_: list[list[int]]) -> Matches:
    return Matches(image=torch.tensor(image), query=torch.tensor(query), object=torch.tensor(object_))


def triples(found: Matches) -> set[tuple[int, int, int]]:
    rows: list[Tensor] = [found.image, found.query[0], found.object[0]]
    return set(zip(*(row.tolist() for row in rows), strict=True))


def test_a_query_keeps_the_object_that_it_has_in_the_most_layers() -> None:
    # Query 4 of image 0 has object 1 in two layers and object 0 in one; object 0 also has query 2, twice.
    layers = matches([0, 0, 1], [[4, 2, 4], [2, 4, 4]], [[1, 0, 2], [0, 1, 2]])
    proposals = matches([0, 0, 1], [[4, 3, 0]], [[0, 1, 2]])
    found = triples(union_of_matches([layers, proposals], num_queries=5, num_objects=3))
    assert found == {(0, 2, 0), (0, 3, 1), (0, 4, 1), (1, 4, 2), (1, 0, 2)}


def test_of_equally_frequent_objects_a_query_keeps_the_first() -> None:
    found = union_of_matches(
        [matches([0, 0], [[1, 0], [0, 1]], [[0, 1], [0, 1]])], num_queries=2, num_objects=2
    )
    assert triples(found) == {(0, 0, 0), (0, 1, 0)}


def test_without_objects_it_is_empty() -> None:
    empty = Matches(
        image=torch.zeros(0, dtype=torch.long),
        query=torch.zeros(2, 0, dtype=torch.long),
        object=torch.zeros(2, 0, dtype=torch.long),
    )
    assert triples(union_of_matches([empty], num_queries=5, num_objects=0)) == set()


def test_many_random_matchings_are_as_counted_by_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, objects, images = 7, [3, 0, 4], 3
    starts = [0, 3, 3]
    image = [i for i in range(images) for _ in range(objects[i])]
    rows_q, rows_o = [], []
    for _ in range(6):
        rows_q.append(
            [
                int(q)
                for i in range(images)
                for q in torch.randperm(queries, generator=generator)[: objects[i]]
            ]
        )
        rows_o.append(
            [
                starts[i] + int(o)
                for i in range(images)
                for o in torch.randperm(objects[i], generator=generator)
            ]
        )
    counts = Counter(
        (i, q, o)
        for row_q, row_o in zip(rows_q, rows_o, strict=True)
        for i, q, o in zip(image, row_q, row_o, strict=True)
    )
    expected: dict[tuple[int, int], tuple[int, int]] = {}
    for (i, q, o), number in sorted(counts.items()):
        if number > expected.get((i, q), (0, 0))[0]:
            expected[i, q] = (number, o)
    found = union_of_matches([matches(image, rows_q, rows_o)], queries, sum(objects))
    assert triples(found) == {(i, q, o) for (i, q), (_, o) in expected.items()}
