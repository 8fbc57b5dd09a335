"""``make doctor``: checks everything that a run needs. It changes nothing and shows no secret."""
