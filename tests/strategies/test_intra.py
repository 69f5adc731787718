import pytest

from fedsd.strategies.intra import median_rank


@pytest.mark.parametrize(
    ("ranks", "middle"), [([8], 8), ([4, 16], 4), ([16, 4, 8], 8), ([4, 8, 8, 16], 8), ([16, 4, 8, 4], 4)]
)
def test_the_median_rank_is_the_lower_middle_one_for_an_even_count(ranks, middle):
    assert median_rank(ranks) == middle


def test_a_cluster_without_members_has_no_median_rank():
    with pytest.raises(ValueError, match="the median rank of no clients is undefined"):
        median_rank([])
