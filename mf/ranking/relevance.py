"""The default relevance threshold."""

import numpy as np
import numpy.typing as npt

# As a share of the range of the training ratings: 4 on scales of 1 to 5 and of half stars, 8 of 1 to 10, 1 of 0 and 1.
# The mean would do as well, but on half stars it is near 3.5, so that a rating of 3.5 would be relevant in one run and
# not in the next.
UPPER_QUARTER = 0.75


def default_threshold(ratings: npt.NDArray[np.float32]) -> float:
    """The rating from which a movie counts as liked: three quarters up the range of ``ratings`` float32[N], N > 0."""
    low, high = float(ratings.min()), float(ratings.max())
    # In float32, as the ratings are: three quarters from 0.1 to 0.5 must not be a little more than 0.4.
    return float(np.float32(low + UPPER_QUARTER * (high - low)))
