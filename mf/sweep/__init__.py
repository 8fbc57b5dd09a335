"""Hyper-parameter sweep: trainings with other options, of which the best on the validation part is kept."""
