"""Step 2 of Algorithm 1: the rank of a cluster's adapter (l.9-12); the mean itself is `rules.flexlora`."""

from collections.abc import Sequence


def median_rank(ranks: Sequence[int]) -> int:
    """r_median = median{r_i | i ∈ C_k} (arXiv 2508.04745, section 3.2); the lower middle one for an even count."""
    if not ranks:
        raise ValueError("the median rank of no clients is undefined; a cluster must have a member")
    return sorted(ranks)[(len(ranks) - 1) // 2]
