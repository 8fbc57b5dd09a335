"""The published run, the champion, on the test ratings of the run that would take its place, the challenger."""

from dataclasses import dataclass

from mf.evaluation.bootstrap import Interval


@dataclass(frozen=True)
class Figures:
    """Both on the same test ratings; in rating units."""

    rows: int  # test ratings that both were scored on
    rmse: float  # the challenger's
    champion_rmse: float
    difference: float  # rmse - champion_rmse: above 0 the challenger is worse
    interval: Interval | None  # of the difference, a paired bootstrap over users; None with one user alone
    clean: bool  # whether the champion cannot have trained on these ratings; else its figure is flattered


@dataclass(frozen=True)
class Comparison:
    """The published run beside this one, as far as they can be compared."""

    run_id: str  # the champion's
    published_at: str  # ISO 8601
    note: str  # one sentence: what the figures say, or why there are none
    figures: Figures | None = None
