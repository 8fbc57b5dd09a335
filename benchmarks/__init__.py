"""Benchmarks of accuracy and speed against other libraries: ``make bench``."""
