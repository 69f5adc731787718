from collections import Counter
from pathlib import Path

import pytest

from fedsd.data.example import Example
from fedsd.data.partition import SCHEMES, partition


def examples(**styles: list[str]) -> list[Example]:
    return [
        Example(Path(f"{style}/{i}.png"), f"{name} {i}", style, name)
        for style, names in styles.items()
        for i, name in enumerate(names)
    ]


NAMES = [f"n{i}" for i in range(12)]
FOUR = examples(a=NAMES, b=NAMES, c=NAMES, d=NAMES)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_example_goes_to_exactly_one_client(scheme):
    parts = partition(FOUR, scheme, 8, seed=1)

    assert len(parts) == 8
    assert sorted(i for part in parts for i in part) == list(range(48))
    assert all(list(part) == sorted(part) for part in parts)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_seed_decides_the_parts(scheme):
    assert partition(FOUR, scheme, 8, seed=1) == partition(FOUR, scheme, 8, seed=1)
    assert partition(FOUR, scheme, 8, seed=1) != partition(FOUR, scheme, 8, seed=2)


def test_by_style_gives_each_client_one_style_and_its_own_pictures():
    parts = partition(FOUR, "by-style", 8, seed=0)

    assert [{FOUR[i].style for i in part} for part in parts] == [{s} for s in "aabbccdd"]
    assert [len(part) for part in parts] == [6] * 8
    for one, two in zip(parts[::2], parts[1::2], strict=True):
        assert {FOUR[i].label for i in one}.isdisjoint({FOUR[i].label for i in two})


def test_by_style_spreads_extra_clients_over_the_first_styles():
    parts = partition(FOUR, "by-style", 6, seed=0)

    assert [FOUR[part[0]].style for part in parts] == list("aabbcd")
    assert [len(part) for part in parts] == [6, 6, 6, 6, 12, 12]


def test_by_style_deals_every_name_to_every_client_of_its_style():
    mine = examples(a=["cat"] * 40 + ["dog"] * 40)

    parts = partition(mine, "by-style", 2, seed=0)

    assert [len(part) for part in parts] == [40, 40]
    for part in parts:
        assert 10 <= Counter(mine[i].label for i in part)["cat"] <= 30


def test_unequal_halves_each_further_share():
    mine = examples(a=[f"n{i}" for i in range(28)])

    # Shares 4 : 2 : 1 of 28.
    assert [len(part) for part in partition(mine, "unequal", 3, seed=0, ratio=2)] == [16, 8, 4]


def test_dirichlet_gives_equal_counts_and_mixes_by_concentration():
    mine = examples(**{s: [f"n{i}" for i in range(100)] for s in "abcd"})

    def largest_style(concentration: float) -> float:
        parts = [p for seed in range(8) for p in partition(mine, "dirichlet", 4, seed, concentration)]
        assert [len(part) for part in parts] == [100] * 32
        return sum(max(Counter(mine[i].style for i in part).values()) for part in parts) / 32

    assert largest_style(1000.0) < 35
    assert largest_style(0.05) > 50


def test_dirichlet_deals_out_everything_when_a_style_runs_out():
    mine = examples(a=NAMES, b=["x"])

    parts = partition(mine, "dirichlet", 3, seed=0, concentration=0.01)

    assert [len(part) for part in parts] == [5, 4, 4]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scheme": "iid"}, "partition scheme 'iid' is unknown: choose one of by-style, unequal, dirichlet"),
        ({"num_clients": 0}, "num_clients = 0 is too small: choose at least 1"),
        ({"num_clients": 3}, r"num_clients = 3 is fewer than the 4 styles \(a, b, c, d\): choose at least 4, or fewer"),
        ({"num_clients": 25}, "48 pictures are too few for 25 clients of at least 2: add .* num_clients to 24 or less"),
        ({"concentration": 0.0}, "concentration = 0.0 is out of range: choose a number above 0"),
        ({"concentration": float("nan")}, "concentration = nan is out of range"),
        ({"ratio": 0.5}, "ratio = 0.5 is out of range: choose 1 or more"),
        ({"min_pictures": 0}, "min_pictures = 0 is too small: choose at least 1"),
    ],
)
def test_partition_refuses_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        partition(FOUR, **{"scheme": "by-style", "num_clients": 4, "seed": 0, **settings})


def test_partition_refuses_a_client_of_one_picture_unless_told():
    mine = examples(a=["x", "y", "z"], b=NAMES)

    message = r"style 'a' has 3 pictures for 2 clients, and one of them would get 1 \(min_pictures = 2\): add pictures"
    with pytest.raises(ValueError, match=message):
        partition(mine, "by-style", 4, seed=0)
    assert [len(part) for part in partition(mine, "by-style", 4, seed=0, min_pictures=1)] == [2, 1, 6, 6]
    with pytest.raises(ValueError, match=r"style 'a' has 3 pictures for 4 clients, and one of them would get 0"):
        partition(mine, "by-style", 8, seed=0, min_pictures=1)
