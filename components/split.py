from kfp.dsl import Dataset, Input, Output

from components.base import component


@component
def split(
    ratings: Input[Dataset],
    train_ratings: Output[Dataset],
    validation_ratings: Output[Dataset],
    test_ratings: Output[Dataset],
    split: str,
    val_size: float,
    test_size: float,
    seed: int,
):
    """Divides the ratings into a part to learn from, one to steer by and one to score once."""
    from pathlib import Path

    from mf.errors import ConfigError, reported
    from mf.ratings.config import SplitConfig
    from mf.ratings.schema import read_ratings, write_ratings
    from mf.ratings.split import split as divide

    with reported():
        config = SplitConfig.of(split=split, val_size=val_size, test_size=test_size, seed=seed)
        table, provenance = read_ratings(Path(ratings.path))
        parts = divide(table, config)
        if not len(parts.test):
            raise ConfigError(f"test_size is {test_size:g}: nothing is held out to score the model on, raise it")
        for artifact, part in zip((train_ratings, validation_ratings, test_ratings), parts, strict=True):
            artifact.path += ".parquet"
            written = write_ratings(part, Path(artifact.path), provenance)
            artifact.metadata.update(rows=len(part), content_hash=written.content_hash)
    print(f"{split} split: " + ", ".join(f"{len(p):,} {name}" for name, p in parts._asdict().items()))
