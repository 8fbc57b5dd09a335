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

    from pathlib import Path

    from mf.errors import ConfigError, reported
    from mf.parameters import RUN, split_config
    from mf.ratings.schema import read_provenance
    from mf.reuse import split_once

    with reported():
        config = split_config(parameters)
        count = read_provenance(Path(ratings.path)).rows_kept
        print(f"{split} split of {count:,} ratings", flush=True)
        if not test_size:
            raise ConfigError(f"test_size {test_size:g} of {count:,} ratings leaves the test part empty: raise it")
        artifacts = (train_ratings, validation_ratings, test_ratings)
        for artifact in artifacts:
            artifact.path += ".parquet"
        outputs = [Path(artifact.path) for artifact in artifacts]
        written, reused = split_once(Path(ratings.path), outputs, config)
        if reused:
            print("the ratings are unchanged and not split again (FRESH=1 splits them)")
        for artifact, rows, provenance in zip(artifacts, *written, strict=True):
            artifact.metadata.update(rows=rows, content_hash=provenance.content_hash)
            if RUN in ratings.metadata:
                artifact.metadata[RUN] = ratings.metadata[RUN]
    print(
        f"{split} split: "
        + ", ".join(f"{n:,} {name}" for n, name in zip(written.rows, ("train", "validation", "test"), strict=True))
    )
