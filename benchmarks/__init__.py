"""Accuracy and speed of the solvers beside those of other libraries: ``make bench``."""
