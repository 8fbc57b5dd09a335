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
    """Splits the ratings into a training, a validation and a test part."""
    parameters = dict(locals())

    from dataclasses import replace
    from pathlib import Path

    from mf.errors import ConfigError, reported
    from mf.parameters import RUN, split_config
    from mf.ratings.schema import read_ratings, write_ratings
    from mf.ratings.split import split as split_ratings

    with reported():
        config = split_config(parameters)
        table, provenance = read_ratings(Path(ratings.path))
        print(f"{split} split of {len(table):,} ratings", flush=True)
        parts = split_ratings(table, config)
        if split == "hash":
            provenance = replace(provenance, split={"seed": seed, "test_size": test_size})
        if not len(parts.test):
            raise ConfigError(f"test_size {test_size:g} of {len(table):,} ratings leaves the test part empty: raise it")
        for artifact, part in zip((train_ratings, validation_ratings, test_ratings), parts, strict=True):
            artifact.path += ".parquet"
            written = write_ratings(part, Path(artifact.path), provenance)
            artifact.metadata.update(rows=len(part), content_hash=written.content_hash)
            if RUN in ratings.metadata:
                artifact.metadata[RUN] = ratings.metadata[RUN]
    print(f"{split} split: " + ", ".join(f"{len(p):,} {name}" for name, p in parts._asdict().items()))
