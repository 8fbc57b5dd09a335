"""Adam that moves only the rows a batch touches."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class RowAdam(torch.optim.Optimizer):
    """Adam (Kingma & Ba 2015, algorithm 1) on the rows of tables that have sparse gradients.

    A row that occurs several times in a batch gets the sum of its gradients, once. A row that does not occur keeps its
    weights and both moments as they are, and every row counts its own steps, so that the bias correction of a row that
    comes late is that of its first step. ``torch.optim.SparseAdam`` counts steps for the whole table instead.

    Args:
        tables: parameters of shape [rows, …] with sparse gradients.
        lr: step size.
        betas: decay of the two moments.
        eps: added to the denominator.
    """

    def __init__(
        self, tables: Iterable[Tensor], lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        super().__init__(tables, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step on the rows that the gradients name."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for table in group["params"]:
                if table.grad is None:
                    continue
                gradient = table.grad.coalesce()
                rows, g = gradient.indices()[0], gradient.values()
                state = self.state[table]
                if not state:
                    state["step"] = torch.zeros(len(table), device=table.device)
                    state["m"], state["v"] = torch.zeros_like(table), torch.zeros_like(table)
                t = state["step"].index_select(0, rows).add_(1)
                m = state["m"].index_select(0, rows).lerp_(g, 1 - beta1)
                v = state["v"].index_select(0, rows).mul_(beta2).addcmul_(g, g, value=1 - beta2)
                for name, value in (("step", t), ("m", m), ("v", v)):
                    state[name].index_copy_(0, rows, value)
                shape = (-1,) + (1,) * (table.dim() - 1)
                size = group["lr"] / (1 - beta1**t).view(shape)
                denominator = (v / (1 - beta2**t).view(shape)).sqrt_().add_(group["eps"])
                table.index_add_(0, rows, m.mul_(size).div_(denominator), alpha=-1)
