"""Adam for square orthogonal matrices, in the manner of momentum Stiefel optimisers (Kong, Wang and Tao 2023, arXiv
2205.14173): momentum in the Lie algebra, and steps that stay on the group.

    f = ½ (Xᵀ G - Gᵀ X)      m = β1 m + (1 - β1) f      p = β2 p + (1 - β2) f∘f
    X <- X cay(-lr m̂ / (√p̂ + eps))                      cay(Q) = (I - Q/2)^{-1} (I + Q/2)

m / √p stays skew, as p is symmetric, so cay is orthogonal.
"""

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor


class StiefelAdam(torch.optim.Optimizer):
    """Adam on matrices X with Xᵀ X = I. Groups take "lr"; computed in float64, as rounding would add up."""

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step; the parameters stay orthogonal."""
        if closure is not None:
            raise ValueError("this optimiser evaluates no closure; compute the gradients before the step")
        for group in self.param_groups:
            for X in group["params"]:
                if X.grad is not None:
                    X.copy_(_moved(X.double(), X.grad.double(), self.state[X], group))
        return None


def _moved(X: Tensor, G: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    """X after a step along its gradient G; `state` keeps the two moments."""
    f = (X.T @ G - G.T @ X) / 2
    if not state:
        state.update(step=0, m=torch.zeros_like(f), p=torch.zeros_like(f))
    (beta1, beta2), state["step"] = group["betas"], state["step"] + 1
    m = state["m"].mul_(beta1).add_(f, alpha=1 - beta1)
    p = state["p"].mul_(beta2).addcmul_(f, f, value=1 - beta2)
    m_hat, p_hat = m / (1 - beta1 ** state["step"]), p / (1 - beta2 ** state["step"])
    Q = -group["lr"] * m_hat / (p_hat.sqrt() + group["eps"])
    identity = torch.eye(len(Q), dtype=Q.dtype, device=Q.device)
    return X @ torch.linalg.solve(identity - Q / 2, identity + Q / 2)
