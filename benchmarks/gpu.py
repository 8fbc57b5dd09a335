"""Speed and correctness of the solvers on a GPU: ``make bench ONLY=gpu``, one unattended run within a time budget.

A failing measurement is reported and the others go on; once the budget is spent, the rest is skipped. The most
important ones come first. ``build/benchmarks/gpu.json`` is written after each.
"""

import gc
import json
import math
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import planted
from benchmarks.apart import Result
from benchmarks.data import CACHE
from benchmarks.report import table
from mf.checkpoint import CheckpointFile
from mf.evaluation.topk import top_k_by_product
from mf.model import MatrixFactorization
from mf.ranking import Interactions, RankingConfig, RankingModel
from mf.ranking.fit import fit as fit_ranking
from mf.solvers import SOLVERS, EpochReport, RatingTensors, configure, fit
from mf.solvers.base import Share
from mf.solvers.minibatch import MiniBatchTraining, layouts
from mf.solvers.sorting import Segments

Data = tuple[RatingTensors, RatingTensors]  # training and held-out ratings
CPU = torch.device("cpu")
BUDGET_S = 340.0
SIZES = {"small": 2_000_000, "full": planted.FULL, "huge": 100_000_000}
TINY_SIZES = {"small": 20_000, "full": 60_000, "huge": 100_000}

# Label: solver, options, seconds that must be left of the budget.
SPEED: dict[str, tuple[str, dict[str, Any], float]] = {
    "sgd": ("sgd", {"epochs": 4}, 15),
    "adam, default batch": ("adam", {"epochs": 2}, 25),
    "adam, batch 65,536": ("adam", {"epochs": 3, "batch_size": 65_536}, 15),
    "vb": ("vb", {"epochs": 4}, 20),
    "gibbs": ("gibbs", {"epochs": 6, "burn_in": 2}, 25),
    "adam, batch 2,048": ("adam", {"epochs": 1, "batch_size": 2048}, 40),
}
# Compared with the CPU.
SAME: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("sgd", {"epochs": 7}),
    "adam": ("adam", {"epochs": 3}),
    "adam, dropout and clip": ("adam", {"epochs": 1, "dropout": 0.1, "clip_grad": 1.0}),
    "vb": ("vb", {"epochs": 8, "fits": 1}),
    "gibbs": ("gibbs", {"epochs": 30, "burn_in": 10}),
}
# Searched for operations that wait for the device.
WAITS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("sgd", {"epochs": 1}),
    "adam": ("adam", {"epochs": 1, "batch_size": 65_536}),
    "adam, dropout and clip": ("adam", {"epochs": 1, "batch_size": 65_536, "dropout": 0.1, "clip_grad": 1.0}),
    "vb": ("vb", {"epochs": 1, "fits": 1}),
    "gibbs": ("gibbs", {"epochs": 2, "burn_in": 1}),
}


def section(budget_s: float = BUDGET_S) -> str:
    """All measurements on the GPU, as Markdown."""
    if not torch.cuda.is_available():
        return f"Not measured: no GPU is available to this PyTorch ({torch.__version__})."
    return markdown(Bench(torch.device("cuda"), budget_s).run())


def markdown(results: Mapping[str, Result]) -> str:
    """A table per section: one row per value."""
    parts = []
    for name, result in results.items():
        rows = []
        for key, value in result.items():
            values = value if isinstance(value, dict) else {"": value}
            rows += [(key, label, _text(shown)) for label, shown in values.items() if label != "where"]
        parts.append(f"### {name}\n\n{table(('', '', 'measured'), rows)}")
    return "\n\n".join(parts)


def _text(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value).replace("|", "/")


class Bench:
    """One run of all measurements.

    Args:
        device: device to measure.
        budget_s: seconds after which no further measurement starts.
        tiny: small sizes and no budget, for a smoke test.
        output: JSON file for the results.
    """

    def __init__(
        self, device: torch.device, budget_s: float, tiny: bool = False, output: Path = CACHE / "gpu.json"
    ) -> None:
        self.device, self.budget_s, self.tiny, self.output = device, budget_s, tiny, output
        self.cuda = device.type == "cuda"
        self.sizes = TINY_SIZES if tiny else SIZES
        self.started = time.perf_counter()
        self.results: dict[str, Result] = {}

    def run(self) -> dict[str, Result]:
        """Runs the measurements in order of importance; results by section."""
        self.section("environment", 0, self.environment)
        self.section("limits", 5, self.limits)
        self.section("linear algebra", 5, self.linear_algebra)
        self.section("padded scatter", 5, self.padded_scatter)
        full = self.ratings("full")
        self.section("steps", 20, partial(self.steps, full))
        main = [label for label in SPEED if label != "adam, batch 2,048"]
        self.section("speed", 20, partial(self.speed, full, main))
        self.section("naive loops", 20, partial(self.naive_loops, full))
        self.section("DataLoader loop", 5, partial(self.loader_loop, full[0]))
        self.section("between epochs", 10, partial(self.between_epochs, full))
        self.section("ranking model", 20, partial(self.ranking_model, full))
        self.section("lists", 20, partial(self.lists, full))
        self.section("speed, small batch", 40, partial(self.speed, full, ["adam, batch 2,048"]))
        del full
        small = self.ratings("small")
        self.section("waits", 10, partial(self.waits, small))
        self.section("same as the CPU", 60, partial(self.same_as_cpu, small))
        del small
        self.section("speed, 100 M", 45, lambda: self.speed(self.ratings("huge"), ["sgd", "adam, batch 65,536", "vb"]))
        print(f"done in {time.perf_counter() - self.started:.0f} s: {self.output}", flush=True)
        return self.results

    def section(self, name: str, needs_s: float, measure: Callable[[], Result]) -> None:
        """Runs a measurement if ``needs_s`` seconds are left, and saves all results."""
        print(f"{name}:", flush=True)
        started = time.perf_counter()
        self.results[name] = {**self.guarded(name, needs_s, measure), "section_s": time.perf_counter() - started}
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
        self.output.parent.mkdir(parents=True, exist_ok=True)
        self.output.write_text(json.dumps(self.results, indent=1, default=str) + "\n")

    def guarded(self, label: str, needs_s: float, measure: Callable[[], Result]) -> Result:
        """The result of a measurement, or the reason that there is none; prints it."""
        left = self.budget_s - (time.perf_counter() - self.started)
        if not self.tiny and left < needs_s:
            result: Result = {"skipped": f"{left:.0f} s left, needs about {needs_s:.0f} s"}
        else:
            try:
                result = measure()
            except Exception as error:  # a benchmark goes on whatever fails
                where = traceback.format_exc()[-1500:]
                result = {"error": f"{type(error).__name__}: {error}", "where": where}
        shown = ", ".join(
            f"{key} {_text(value)}" for key, value in result.items() if not isinstance(value, dict | list)
        )
        print(f"  {label}: {shown}", flush=True)
        return result

    def wait(self) -> None:
        """Waits for all work on the device."""
        if self.cuda:
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object], times: int, warm: int = 2) -> float:
        """Mean seconds of ``work``, after ``warm`` calls that are not counted."""
        times = min(times, 3) if self.tiny else times
        for _ in range(warm):
            work()
        self.wait()
        started = time.perf_counter()
        for _ in range(times):
            work()
        self.wait()
        return (time.perf_counter() - started) / times

    def ratings(self, size: str) -> Data:
        """Planted ratings on the device; ``benchmarks.planted`` needs minutes on a CPU for the largest size."""
        started = time.perf_counter()
        data = draw_planted(self.sizes[size], self.device)
        self.wait()
        print(f"planted {len(data[0]):,} ratings in {time.perf_counter() - started:.1f} s", flush=True)
        return data

    def environment(self) -> Result:
        """Versions and the GPU."""
        result: Result = {"torch": torch.__version__, "cuda": str(torch.version.cuda), "python": sys.version.split()[0]}
        if self.cuda:
            gpu = torch.cuda.get_device_properties(0)
            result |= {"gpu": gpu.name, "memory_gb": gpu.total_memory / 1e9, "sms": gpu.multi_processor_count}
        return result

    def limits(self) -> Result:
        """Copy and gather bandwidth, time per small operation eager and in a CUDA graph, float32 matrix product."""
        n, rows, ids, width = (1 << 20, 2000, 1 << 12, 256) if self.tiny else (1 << 28, 219_000, 1 << 22, 8192)
        result: Result = {}
        source, target = torch.ones(n, device=self.device), torch.empty(n, device=self.device)
        result["copy_gb_s"] = 2 * source.nbytes / self.seconds(partial(target.copy_, source), 20) / 1e9
        del source, target
        vectors = torch.randn(rows, 64, device=self.device)
        drawn = torch.randint(rows, (ids,), device=self.device)
        result["gather_gb_s"] = 2 * ids * 256 / self.seconds(lambda: vectors.index_select(0, drawn), 20) / 1e9
        small = torch.ones(64, device=self.device)
        result["eager_operation_us"] = self.seconds(lambda: small.add_(1), 2000, 100) * 1e6
        if self.cuda:
            replay = captured(lambda: [small.add_(1) for _ in range(100)])
            result["graph_operation_us"] = self.seconds(replay, 50, 5) / 100 * 1e6
        matrix = torch.randn(width, width, device=self.device)
        result["gemm_tflops"] = 2 * width**3 / self.seconds(lambda: matrix @ matrix, 5) / 1e12
        return result

    def padded_scatter(self) -> Result:
        """``Segments.scatter`` with padding, and repeatability of a float64 cumsum."""
        n, slots, long = (1000, 500, 10_000) if self.tiny else (56_000, 56_000, 1 << 16)
        used = slots * 3 // 10
        vectors, values = torch.randn(n, 64, device=self.device), torch.randn(slots, 64, device=self.device)
        ordered = torch.arange(used, dtype=torch.int32, device=self.device)
        ordered = torch.cat([ordered, torch.full((slots - used,), used - 1, dtype=torch.int32, device=self.device)])
        segments = Segments.of_known_size(ordered, n)
        column = torch.randn(long, device=self.device).double()
        first = column.cumsum(0)
        repeats = 5 if self.tiny else 200
        return {
            "slots": slots,
            "padding": slots - used,
            "scatter_us": self.seconds(lambda: segments.scatter(vectors, values), 20) * 1e6,
            "cumsum_repeats": repeats,
            "cumsum_differs": sum(not torch.equal(column.cumsum(0), first) for _ in range(repeats)),
        }

    def linear_algebra(self) -> Result:
        """The batched matrices of vb and gibbs: one block of rows at rank 20."""
        n, d, tall_rows = (100, 21, 2000) if self.tiny else (38_000, 21, 143_000)
        x = torch.randn(n, d, 2 * d, device=self.device)
        precision = x @ x.mT + torch.eye(d, device=self.device)
        lower = torch.linalg.cholesky(precision)
        vector, eye = torch.randn(n, d, 1, device=self.device), torch.eye(d, device=self.device).expand(n, d, d)
        tall, square = torch.randn(tall_rows, 66, device=self.device), torch.randn(66, 66, device=self.device)

        def inverse() -> Any:
            half: Tensor = torch.linalg.solve_triangular(lower, eye, upper=False)
            return half.mT @ half

        works: dict[str, Callable[[], object]] = {
            "cholesky": lambda: torch.linalg.cholesky(precision),
            "cholesky_ex": lambda: torch.linalg.cholesky_ex(precision),
            "cholesky_inverse": lambda: torch.cholesky_inverse(lower),
            "inverse by solve and product": inverse,
            "solve_triangular of a vector": lambda: torch.linalg.solve_triangular(lower, vector, upper=False),
            "inv": lambda: torch.linalg.inv(precision),
            "qr, tall": lambda: torch.linalg.qr(tall),
            "svd 66 × 66, float64": lambda: torch.linalg.svd(square.double()),
        }
        result: Result = {f"{name}, ms": self.seconds(work, 3, 1) * 1e3 for name, work in works.items()}
        result["cholesky_inverse, largest difference"] = float((torch.cholesky_inverse(lower) - inverse()).abs().max())
        return {"matrices": n, **result}

    def speed(self, data: Data, labels: list[str]) -> Result:
        """Seconds per epoch, RMSE and memory of each solver."""
        result: Result = {"ratings": len(data[0]), "users": data[0].n_users, "movies": data[0].n_movies}
        for label in labels:
            solver, options, needs_s = SPEED[label]
            result[label] = self.guarded(label, needs_s, partial(self.trained, data, solver, options))
        return result

    def trained(self, data: Data, solver: str, options: Mapping[str, Any]) -> Result:
        """The times and the RMSE of a training on the device."""
        return self.train(data, solver, options)[0]

    def train(
        self, data: Data, solver: str, options: Mapping[str, Any], device: torch.device | None = None
    ) -> tuple[Result, MatrixFactorization]:
        """Trains a model; seconds in all, before the first epoch and per epoch, RMSE on the held-out ratings."""
        device = device or self.device
        reports: list[EpochReport] = []
        ends: list[float] = []

        def record(report: EpochReport) -> None:
            self.wait()
            ends.append(time.perf_counter())
            reports.append(report)

        if device.type == "cuda":
            self.wait()
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        model = fit(*data, configure(solver, options), device, [record])
        self.wait()
        epoch_s = median(report.seconds for report in reports)
        result: Result = {
            "total_s": time.perf_counter() - started,
            "preparation_s": ends[0] - started - reports[0].seconds,
            "epoch_s": epoch_s,
            "first_epoch_s": reports[0].seconds,
            "ratings_per_s": len(data[0]) / epoch_s,
            "epochs": len(reports),
            "rmse": reports[-1].validation_rmse,
            "curve": [round(report.validation_rmse or math.nan, 5) for report in reports],
        }
        if device.type == "cuda":
            result["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
        return result, model

    def steps(self, data: Data) -> Result:
        """Milliseconds per mini-batch step, eager and as a CUDA graph, and its kernels."""
        result: Result = {}
        for solver, batch_size in (("sgd", 65_536), ("adam", 2048), ("adam", 8192), ("adam", 65_536)):
            label = f"{solver}, batch {batch_size:,}"
            size = min(batch_size, len(data[0]) // 4)
            result[label] = self.guarded(label, 5, partial(self.step, data, solver, size))
        return result

    @torch.no_grad()
    def step(self, data: Data, solver: str, batch_size: int) -> Result:
        """One solver's step on the first batch."""
        train = Share.of(data[0])
        training = SOLVERS[solver].start(train, _none(data[1]), configure(solver, {"batch_size": batch_size}))
        assert isinstance(training, MiniBatchTraining)
        lane = training.ratings.lanes[0]
        batches = training.ratings.batches(lane, 0, 0, seed=1)
        rng = torch.Generator(self.device).manual_seed(0)
        rows = lane.blocks[0], training.ratings.movie_spans[0]
        sizes = len(training.tables.p), len(training.tables.q)
        lr, layout = torch.tensor(0.01, dtype=torch.float64, device=self.device), next(layouts(batches, *sizes))

        def step() -> Tensor:
            return training.step(batches[0], lr, rng, rows, layout)

        def all_layouts() -> None:
            for _ in layouts(batches, *sizes):
                pass

        result: Result = {"steps_per_epoch": len(batches), "eager_ms": self.seconds(step, 50, 5) * 1e3}
        result["layouts_s"] = self.seconds(all_layouts, 3, 1)  # the sorts and runs of an epoch's batches
        result["eager_epoch_s"] = result["eager_ms"] * len(batches) / 1e3 + result["layouts_s"]
        if self.cuda:
            result |= self.guarded("kernels", 0, lambda: self.kernels(step))
            result |= self.guarded("graph", 0, lambda: {"graph_ms": self.seconds(captured(step), 50, 5) * 1e3})
        return result

    @torch.no_grad()
    def between_epochs(self, data: Data) -> Result:
        """adam's validation, the finished model, and a checkpoint: what the training waits for, and what a thread
        writes meanwhile."""
        training = SOLVERS["adam"].start(Share.of(data[0]), data[1], configure("adam", {}))
        assert isinstance(training, MiniBatchTraining)
        result: Result = {
            "validation_s": self.seconds(training.validation_rmse, 3, 1),
            "kept_s": self.seconds(training.keep, 3, 1),
            "finished_model_s": self.seconds(training.model, 3, 1),
        }
        with TemporaryDirectory() as folder:
            file = CheckpointFile(Path(folder) / "state")
            for time_of in ("first", "second"):  # the first allocates the pinned memory
                started = time.perf_counter()
                file.save({"solver_state": training.state(), "settings": {}, "reports": []})
                result[f"{time_of}_save_waited_s"] = time.perf_counter() - started
                file.wait()
                result[f"{time_of}_save_s"] = time.perf_counter() - started
            result["checkpoint_gb"] = file.path.stat().st_size / 1e9
        return result

    def kernels(self, step: Callable[[], object]) -> Result:
        """Kernels per step, the GPU's busy time, and the longest kernels."""
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
            for _ in range(5):
                step()
            self.wait()
        events = [e for e in profiled.events() or [] if e.device_type.name == "CUDA"]
        microseconds: dict[str, float] = {}
        for event in events:
            name = event.name[:70]
            microseconds[name] = microseconds.get(name, 0.0) + event.self_device_time_total / 5
        longest = sorted(microseconds.items(), key=lambda item: -item[1])[:12]
        busy_ms = sum(microseconds.values()) / 1e3
        return {"kernels_per_step": len(events) / 5, "gpu_busy_ms": busy_ms, "longest_kernels_us": str(dict(longest))}

    def naive_loops(self, data: Data) -> Result:
        """Tutorial loops on tensors on the device: milliseconds per step, seconds per epoch (extrapolated)."""
        optimisers: dict[str, tuple[bool, Callable[[Any], torch.optim.Optimizer]]] = {
            "Adam": (False, lambda p: torch.optim.Adam(p, lr=1e-3)),
            "Adam, fused": (False, lambda p: torch.optim.Adam(p, lr=1e-3, fused=self.cuda or None)),
            "SparseAdam": (True, lambda p: torch.optim.SparseAdam(p, lr=1e-3)),
        }
        result: Result = {}
        for batch_size in (2048, 8192, 65_536):
            for name, (sparse, make) in optimisers.items():
                label = f"{name}, batch {batch_size:,}"
                result[label] = self.guarded(label, 5, partial(self.naive_loop, data[0], batch_size, sparse, make))
            if self.cuda:
                label = f"Adam, fused, in a CUDA graph, batch {batch_size:,}"
                result[label] = self.guarded(label, 5, partial(self.graphed_loop, data[0], batch_size))
        return result

    def naive_loop(
        self, train: RatingTensors, batch_size: int, sparse: bool, make: Callable[[Any], torch.optim.Optimizer]
    ) -> Result:
        """One loop with autograd and a torch optimiser."""
        users, movies, ratings = train.users.long(), train.movies.long(), train.ratings - train.ratings.mean()
        model = Naive(train.n_users, train.n_movies, sparse).to(self.device)
        optimiser = make(list(model.parameters()))
        batches = torch.split(torch.randperm(len(train), device=self.device), batch_size)
        number = 0

        def step() -> None:
            nonlocal number
            rows = batches[number % len(batches)]
            number += 1
            loss = mse_loss(model(users[rows], movies[rows]), ratings[rows])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()

        seconds = self.seconds(step, 60, 5)
        return {"step_ms": seconds * 1e3, "epoch_s": seconds * len(batches)}

    def graphed_loop(self, train: RatingTensors, batch_size: int) -> Result:
        """Fused Adam in a CUDA graph, on one batch."""
        users, movies = train.users[:batch_size].long(), train.movies[:batch_size].long()
        ratings = train.ratings[:batch_size] - train.ratings.mean()
        model = Naive(train.n_users, train.n_movies).to(self.device)
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True, capturable=True)

        def step() -> None:
            loss = mse_loss(model(users, movies), ratings)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()

        seconds = self.seconds(captured(step), 60, 5)
        return {"step_ms": seconds * 1e3, "epoch_s": seconds * math.ceil(len(train) / batch_size)}

    def loader_loop(self, train: RatingTensors) -> Result:
        """The loop of ``benchmarks.naive`` with the model on the device: DataLoader over TensorDataset."""
        n, batch_size = min(len(train), 2_000_000), 2048
        columns = (train.users[:n].long().cpu(), train.movies[:n].long().cpu(), train.ratings[:n].cpu())
        loader = DataLoader(TensorDataset(*columns), batch_size, shuffle=True)
        batches = chain.from_iterable(repeat(loader))
        model = Naive(train.n_users, train.n_movies).to(self.device)
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)

        def step() -> None:
            users, movies, ratings = (column.to(self.device) for column in next(batches))
            loss = mse_loss(model(users, movies), ratings)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()

        seconds = self.seconds(step, 60, 5)
        return {"step_ms": seconds * 1e3, "epoch_s": seconds * math.ceil(len(train) / batch_size)}

    def same_as_cpu(self, data: Data) -> Result:
        """RMSE on the device and on the CPU, which should agree within 1e-3; two runs on the device: the same bits?"""
        on_cpu = data[0].to(CPU), data[1].to(CPU)
        result: Result = {}
        for label, (solver, options) in SAME.items():
            result[label] = self.guarded(label, 25, partial(self.compared, data, on_cpu, solver, options))
        result["ranking model"] = self.guarded("ranking model", 25, partial(self.compared_lists, on_cpu[0]))
        return result

    def compared_lists(self, data: RatingTensors) -> Result:
        """Scores of the ranking model fitted on the device and on the CPU: differences in standard deviations."""
        scores = []
        for device in (self.device, CPU):
            model = fit_ranking(of_ratings(data), RankingConfig(), device)
            scores.append(model.scores(model.user_vectors(of_ratings(data))[:500]))
        difference = (scores[0] - scores[1]) / scores[1].std()
        return {"rms": float(np.sqrt(np.square(difference).mean())), "largest": float(np.abs(difference).max())}

    def compared(self, data: Data, on_cpu: Data, solver: str, options: Mapping[str, Any]) -> Result:
        """Two trainings on the device and one on the CPU."""
        (first, model), (again, other) = (self.train(data, solver, options) for _ in range(2))
        cpu, _ = self.train(on_cpu, solver, options, CPU)
        pairs = list(zip(model.state_dict().values(), other.state_dict().values(), strict=True))
        return {
            "rmse_device": first["rmse"],
            "rmse_again": again["rmse"],
            "rmse_cpu": cpu["rmse"],
            "within_1e_3": abs(first["rmse"] - cpu["rmse"]) < 1e-3,
            "same_bits_twice": all(torch.equal(a, b) for a, b in pairs),
            "largest_difference": max(float((a - b).abs().max()) for a, b in pairs),
            "epoch_s_device": first["epoch_s"],
            "epoch_s_cpu": cpu["epoch_s"],
        }

    def waits(self, data: Data) -> Result:
        """How often an epoch waits for the device, and where. adam and sgd should not (docs/performance.md)."""
        if not self.cuda:
            return {"skipped": "not a GPU"}
        return {label: self.waits_of(data, solver, options) for label, (solver, options) in WAITS.items()}

    @torch.no_grad()
    def waits_of(self, data: Data, solver: str, options: Mapping[str, Any]) -> Result:
        """The waits in one solver's first epoch."""
        training = SOLVERS[solver].start(Share.of(data[0]), data[1], configure(solver, options))
        self.wait()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                training.epoch(1)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        found = [f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)]
        return {"waits": len(found), "places": ", ".join(sorted(set(found)))}

    def ranking_model(self, data: Data) -> Result:
        """Seconds and memory of a fit of the ranking model and of its user vectors, twice, and whether the bits of both
        fits are the same."""
        fits: list[RankingModel] = []
        result: Result = {"ratings": len(data[0])}
        given = of_ratings(data[0])
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        for label in ("first_fit_s", "second_fit_s"):
            started = time.perf_counter()
            fits.append(fit_ranking(given, RankingConfig(), self.device))
            result[label] = time.perf_counter() - started
        if self.cuda:
            result["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
        started = time.perf_counter()
        fits[0].user_vectors(given)
        result["user_vectors_s"] = time.perf_counter() - started
        result["same_bits_twice"] = bool(np.array_equal(fits[0].embedding, fits[1].embedding))
        return {**result, "teacher_rank": fits[0].teacher_rank, "energy_beyond": fits[0].energy_beyond}

    def lists(self, data: Data) -> Result:
        """Top-10 lists of all users out of all movies, and for some users compared with the CPU's."""
        train = data[0]
        rng = torch.Generator(self.device).manual_seed(1)
        p, q = (0.1 * torch.randn(n, 64, generator=rng, device=self.device) for n in (train.n_users, train.n_movies))
        b_m = 0.3 * torch.randn(train.n_movies, generator=rng, device=self.device)
        pairs = train.users.cpu().numpy(), train.movies.cpu().numpy()
        rated = csr_array((np.ones(len(train), bool), pairs), (train.n_users, train.n_movies))
        some = min(2000, train.n_users)
        top_k_by_product(p[:some], q, b_m, rated[:some], 10)
        self.wait()
        started = time.perf_counter()
        lists = top_k_by_product(p, q, b_m, rated, 10)
        seconds = time.perf_counter() - started
        on_cpu = top_k_by_product(p[:some].cpu(), q.cpu(), b_m.cpu(), rated[:some], 10)
        return {
            "users": train.n_users,
            "movies": train.n_movies,
            "seconds": seconds,
            "lists_equal_cpu": float((lists[:some] == on_cpu).all(1).mean()),
            "tflops": 2 * 65 * train.n_users * train.n_movies / seconds / 1e12,
        }


def of_ratings(data: RatingTensors) -> Interactions:
    """Ratings as the ranking model takes them."""
    return Interactions(data.users.cpu(), data.movies.cpu(), data.ratings.cpu(), data.n_users, data.n_movies)


def captured(work: Callable[[], object]) -> Callable[[], None]:
    """``work`` as a CUDA graph."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


class Naive(nn.Module):
    """b_u + b_m + p_u·q_m, as in ``benchmarks.naive``, with optionally sparse gradients."""

    def __init__(self, n_users: int, n_movies: int, sparse: bool = False) -> None:
        super().__init__()
        self.p, self.q = (nn.Embedding(n, 64, sparse=sparse) for n in (n_users, n_movies))
        self.b_u, self.b_m = (nn.Embedding(n, 1, sparse=sparse) for n in (n_users, n_movies))

    def forward(self, users: Tensor, movies: Tensor) -> Tensor:
        score: Tensor = (self.b_u(users) + self.b_m(movies)).squeeze(1) + (self.p(users) * self.q(movies)).sum(1)
        return score


def _none(data: RatingTensors) -> RatingTensors:
    return RatingTensors(data.users[:0], data.movies[:0], data.ratings[:0], data.n_users, data.n_movies)


def draw_planted(n: int, device: torch.device, seed: int = 0, held_out: float = 0.02) -> Data:
    """Ratings as ``benchmarks.planted`` shapes them, drawn on the device, where a pair may occur twice.

    Returns:
        Training ratings, with a rating for every row, and at most a million held-out ones.
    """
    rng = torch.Generator(device).manual_seed(seed)
    n_users = max(200, round(planted.FULL_USERS * n / planted.FULL))
    n_movies = min(planted.FULL_MOVIES, max(500, round(planted.FULL_MOVIES * (n / planted.FULL) ** 0.55)))
    popularity = torch.from_numpy(planted._popularity(n_movies)).to(device)
    activity = (1.25 * torch.randn(n_users, generator=rng, device=device, dtype=torch.float64)).exp()
    activity = (18 + activity * (n / n_users - 18) / activity.mean()).clamp(max=n_movies * 0.12)
    users, movies = (_draw_rows(weights, n, rng) for weights in (activity, popularity))

    b_u = planted.USER_BIAS * torch.randn(n_users, generator=rng, device=device)
    b_m = planted.MOVIE_BIAS * torch.randn(n_movies, generator=rng, device=device)
    strength = torch.arange(1, planted.RANK + 1, device=device).float().rsqrt()
    strength = (strength * planted.TASTE / strength.square().sum().sqrt()).sqrt()
    p, q = (torch.randn(rows, planted.RANK, generator=rng, device=device) * strength for rows in (n_users, n_movies))
    ratings = torch.empty(n, device=device)
    for rows in torch.split(torch.arange(n, device=device), 1 << 22):
        u, m = users[rows].long(), movies[rows].long()
        noise = planted.NOISE * torch.randn(len(rows), generator=rng, device=device)
        score = planted.MEAN + b_u[u] + b_m[m] + (p[u] * q[m]).sum(1) + noise
        ratings[rows] = ((score * 2).round() / 2).clamp(planted.LOWEST, planted.HIGHEST)

    held = min(max(1000, int(n * held_out)), 1_000_000)
    users, n_users = _renumbered(users, held, n_users)
    movies, n_movies = _renumbered(movies, held, n_movies)
    train = RatingTensors(users[held:].int(), movies[held:].int(), ratings[held:], n_users, n_movies)
    return train, RatingTensors(users[:held], movies[:held], ratings[:held], n_users, n_movies)


def _draw_rows(weights: Tensor, n: int, rng: torch.Generator) -> Tensor:
    """n random rows with probabilities proportional to ``weights``, int32[n]."""
    ends = (weights / weights.sum()).cumsum(0)
    rows = torch.empty(n, dtype=torch.int32, device=weights.device)
    for part in torch.split(rows, 1 << 24):
        uniform = torch.rand(len(part), generator=rng, device=weights.device, dtype=torch.float64)
        part.copy_(torch.searchsorted(ends, uniform).clamp(max=len(weights) - 1))
    return rows


def _renumbered(rows: Tensor, held: int, n: int) -> tuple[Tensor, int]:
    """Consecutive numbers for the rows with a rating after the first ``held``; -1 for the others; and their number."""
    seen = torch.bincount(rows[held:], minlength=n) > 0
    number = torch.where(seen, seen.cumsum(0) - 1, -1)
    return number[rows.long()], int(seen.sum())
