"""The pipeline's steps: thin typed adapters over ``mf``, one module each."""

from components.evaluate import evaluate
from components.export import export
from components.ingest import ingest
from components.notify import notify
from components.refit import refit
from components.register import register
from components.split import split
from components.train import train

__all__ = ["evaluate", "export", "ingest", "notify", "refit", "register", "split", "train"]
