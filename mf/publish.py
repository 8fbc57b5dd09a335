"""Judge a model on held-out ratings and publish it if the gate accepts it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pyarrow as pa

from mf.evaluation.config import EvaluateConfig, GateConfig
from mf.evaluation.judge import Judgement, judge
from mf.model_directory import TrainedModel
from mf.ratings.schema import Provenance
from mf.supabase.config import ExportConfig
from mf.supabase.target import ExportResult, Judged, Target

REPORT, EVALUATION = "report.html", "evaluation.json"  # in the model directory
NOTHING_HELD_OUT = "no ratings were held out to judge the model on"


@dataclass(frozen=True)
class Outcome:
    """Outcome of ``publish``."""

    decision: str  # one line: whether the model was accepted, and why
    export: ExportResult | None = None  # None: refused; the published run is as it was
    judgement: Judgement | None = None  # None: no ratings were held out, or the model is not finite


def publish(
    model: TrainedModel,
    target: Target,
    train: pa.Table,
    held_out: pa.Table | None,
    validation: pa.Table | None = None,
    *,
    directory: Path,
    views: ExportConfig | None = None,
    config: EvaluateConfig | None = None,
    gate: GateConfig | None = None,
    provenance: Provenance | None = None,
    titles: Mapping[str, str] = MappingProxyType({}),
) -> Outcome:
    """Evaluates ``model`` on ``held_out``, applies the gate and publishes what it accepts.

    A refused model changes nothing in Supabase. ``gate.force_publish`` publishes a model that a check refuses, or that
    cannot be judged because nothing was held out; the run's record says so. A model with a value that is not finite is
    never published.

    Args:
        model: the trained model.
        target: where it is published.
        train: the ratings that it was trained on.
        held_out: ratings that neither the star model nor the ranking model was trained on; None or empty: there are
            none.
        validation: ratings that steered the training, if they are not ``held_out``; the ranking model may have been
            trained on them.
        directory: the model's directory, as ``model.save`` wrote it; the report goes there too.
        views: names in the database; default: ``ExportConfig()``.
        config: options of the evaluation; default: ``EvaluateConfig()``.
        gate: limits for publication; default: ``GateConfig()``.
        provenance: of the ratings, for the report.
        titles: movie titles by id as text, for the report.

    Raises:
        DataError: ids are of different types, or the model directory is malformed.
        SupabaseError: Supabase cannot be reached, or refused; readers still see the previous run.
    """
    gate, judgement = gate or GateConfig(), None
    remove_report(directory)
    if problem := _not_finite(model):
        return Outcome(f"not published: {problem}")
    if held_out is not None and len(held_out):
        judgement = judge(
            model, train, held_out, validation,
            html=directory / REPORT, document=directory / EVALUATION,
            target=target, config=config, gate=gate, titles=titles, provenance=provenance,
        )  # fmt: skip
        decision = judgement.decision.summary()
        if not judgement.decision.publish:
            return Outcome(decision, judgement=judgement)
        judged = Judged(judgement.decision.forced, judgement.decision.reasons)
    elif gate.force_publish:
        decision = f"accepted by force_publish although {NOTHING_HELD_OUT}"
        judged = Judged(forced=True, reasons=(NOTHING_HELD_OUT,))
    else:
        return Outcome(f"not published: {NOTHING_HELD_OUT}: hold some out, give test ratings, or use --force_publish")
    return Outcome(decision, target.export(directory, views or ExportConfig(), judged), judgement)


def remove_report(directory: Path) -> None:
    """Remove the report that an earlier ``publish`` wrote into a model directory."""
    for file in (REPORT, EVALUATION):
        (directory / file).unlink(missing_ok=True)


def _not_finite(model: TrainedModel) -> str:
    """Which part of the model has a value that is not finite; empty if none has."""
    stars = model.module.state_dict() if model.module else {}
    arrays = {name: value.detach().cpu().numpy() for name, value in stars.items()}
    if ranking := model.ranking:
        own = ranking.model
        arrays |= {
            "ranking bias": own.bias,
            "ranking embedding": own.embedding,
            "ranking history": own.history,
            "ranking liking": own.liking,
            "ranking vectors": ranking.vectors,
        }
    bad = [name for name, values in arrays.items() if not np.isfinite(values).all()]
    return f"{', '.join(bad)} of model {model.run_id} hold values that are not finite" if bad else ""
