"""Judges a model before it is published: evaluation, comparison, gate decision, report."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mf.evaluation.champion import Comparison, compare
from mf.evaluation.config import EvaluateConfig, GateConfig
from mf.evaluation.encoded import Part, scored_part
from mf.evaluation.evaluate import Evaluation, evaluate_with_lists
from mf.evaluation.examples import examples
from mf.evaluation.gate import Decision, decide
from mf.evaluation.metrics import METRICS
from mf.evaluation.report import Report, write_report
from mf.model_directory import TrainedModel
from mf.ratings.batches import Batches
from mf.ratings.schema import Provenance
from mf.supabase.target import Target


@dataclass(frozen=True)
class Judgement:
    """Outcome of ``judge``."""

    evaluation: Evaluation
    comparison: Comparison | None  # None: there is no published run, or no target
    decision: Decision
    html: Path  # the report
    document: Path  # the same as JSON

    def metrics(self) -> dict[str, float]:
        """Metrics by name, as KFP shows them: ``rmse``, ``user_movie_bias_rmse``, ``popularity_ndcg``, …"""
        logged: dict[str, float] = {}
        for name, scores in self.evaluation.scores().items():
            prefix = "" if name == "model" else f"{name}_"
            logged |= {f"{prefix}{m.name}": scores[m.name] for m in METRICS if scores.get(m.name) is not None}
        if self.comparison and self.comparison.figures:
            logged["champion_rmse"] = self.comparison.figures.champion_rmse
            logged["rmse_above_champion"] = self.comparison.figures.difference
        if self.comparison and self.comparison.lists:
            logged["champion_ndcg"] = self.comparison.lists.champion_ndcg
            logged["ndcg_above_champion"] = self.comparison.lists.difference
        return logged | {
            "test_rows": self.evaluation.test_rows,
            "unseen_users": self.evaluation.unseen_users.ids,
            "unseen_movies": self.evaluation.unseen_movies.ids,
            "publish": int(self.decision.publish),
        }

    def log_lines(self) -> list[str]:
        """Lines for the log: every metric, the main one as a sentence, the decision."""
        return [self.evaluation.log_line(), self.evaluation.headline(), self.decision.summary()]


def judge(
    model: TrainedModel,
    train: Part,
    test: Part,
    validation: Part | None = None,
    *,
    html: Path,
    document: Path,
    target: Target | None = None,
    config: EvaluateConfig | None = None,
    gate: GateConfig | None = None,
    titles: Mapping[str, str] = MappingProxyType({}),
    provenance: Provenance | None = None,
    parameters: Mapping[str, Any] = MappingProxyType({}),
    started: datetime | None = None,
) -> Judgement:
    """Evaluates ``model``, compares it with the published run, decides on publication and writes the report.

    Args:
        model: the trained model, on the device to evaluate on.
        train, test, validation: the parts of its ratings, with ids of the same types; validation may be None.
        html, document: where the report goes, as a page and as JSON; each is written atomically.
        target: where the model would be published; None: there is no published run to compare with.
        config: options of the evaluation; default: ``EvaluateConfig()``.
        gate: limits for publication; default: ``GateConfig()``.
        titles: movie titles by id as text, for the report.
        provenance: of the training part, for the report.
        parameters: of the pipeline's run, by name, for the report.
        started: when the run began, for the report; default: now.

    Raises:
        DataError: a part is empty, ids are of different types, or a number of the model is not finite.
        SupabaseError: ``target`` cannot be reached, or refused.
    """
    config, gate = config or EvaluateConfig(), gate or GateConfig()
    began = time.monotonic()
    drawn_from, scored = len(Batches(test)), scored_part(test, config.seed)
    evaluation, lists = evaluate_with_lists(train, scored, model, config, validation, drawn_from=drawn_from)
    comparison = compare(model, scored, target, config.seed, lists) if target else None
    decision = decide(evaluation, comparison, gate, users=len(model.users), movies=len(model.movies))
    users = examples(train, validation, scored, model, titles)
    epochs = model.metrics.get("epochs", [])
    seconds, now = time.monotonic() - began, datetime.now(UTC)
    facts = {**_facts(model, evaluation.train_rows, provenance), **_times(model, epochs, seconds)}
    whole = f", {duration((now - started).total_seconds())} after the run began" if started else ""
    report = Report(
        evaluation, decision, comparison, users, epochs, facts, _parameters(model, config, gate, parameters),
        f"{now.day} {now:%B %Y, %H:%M} UTC{whole}", model.metrics.get("sweep", {}),
    )  # fmt: skip
    write_report(report, html, document)
    return Judgement(evaluation, comparison, decision, html, document)


def _facts(model: TrainedModel, train_rows: int, provenance: Provenance | None) -> dict[str, str]:
    """Ratings, model and code of the run, by label."""
    how = f"solver {model.solver}" if model.module else "lists only"
    rows = "ratings" if model.module else "clicks"
    facts = {
        "model": f"{model.run_id}, {how}, {model.factors} factors",
        "trained on": f"{train_rows:,} {rows} of {len(model.users):,} users and {len(model.movies):,} movies",
    }
    if ranking := model.ranking:
        size = f"{len(ranking.users):,} users and {len(ranking.movies):,} movies of training and validation part"
        facts["ranking model"] = f"{ranking.factors} factors, {size}"
    if provenance:
        facts = {"ratings": provenance.summary(), **facts, "data hash": provenance.content_hash}
    return {**facts, "code": model.git_sha}


def _times(model: TrainedModel, epochs: Sequence[Mapping[str, Any]], seconds: float) -> dict[str, str]:
    """Durations of training and evaluation, by label."""
    found = {}
    if epochs:
        found["star model fitted in"] = f"{duration(sum(epoch['seconds'] for epoch in epochs))}, {len(epochs)} epochs"
    if model.ranking and "seconds" in model.ranking.metrics:
        found["ranking model fitted in"] = duration(model.ranking.metrics["seconds"])
    return {**found, "evaluated in": duration(seconds)}


def _parameters(
    model: TrainedModel, config: EvaluateConfig, gate: GateConfig, given: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """All options of the run by group: as given, and as the models, the evaluation and the gate used them."""
    swept = "sweep" in model.metrics
    groups = {
        "Pipeline": {name: value for name, value in given.items() if swept or not name.startswith("trial")},
        f"Star model ({model.solver})": dict(model.config) if model.module else {},
        "Ranking model": dict(model.ranking.config) if model.ranking else {},
        "Evaluation": config.model_dump(),
        "Gate": gate.model_dump(),
    }
    return {group: options for group, options in groups.items() if options}


def duration(seconds: float) -> str:
    """A time for people: ``3.4 s``, ``2 min 05 s``, ``1 h 02 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60:02} min"
