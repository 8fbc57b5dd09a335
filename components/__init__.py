"""The pipeline's steps: thin typed adapters over ``mf``, one module each."""

from components.evaluate import evaluate
from components.export import export
from components.ingest import ingest
from components.split import split
from components.train import train

__all__ = ["evaluate", "export", "ingest", "split", "train"]
