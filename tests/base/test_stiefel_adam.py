import pytest
import torch

from fedsd.base.rotation import cayley
from fedsd.base.stiefel_adam import StiefelAdam


def test_it_finds_a_rotation_and_stays_orthogonal() -> None:
    target = cayley(torch.randn(28, generator=torch.Generator().manual_seed(0)), 8)
    X = torch.nn.Parameter(torch.eye(8))
    optimiser = StiefelAdam([X], lr=3e-2)
    losses = []
    for _ in range(300):
        optimiser.zero_grad()
        loss = (X - target).square().sum()
        loss.backward()
        losses.append(loss.item())
        optimiser.step()
    assert losses[-1] < 1e-3 * losses[0]
    torch.testing.assert_close(X @ X.T, torch.eye(8), rtol=0, atol=1e-5)


def test_first_step_turns_by_the_rate() -> None:
    """m̂ / √p̂ is the sign of f, so Q = -lr [[0, s], [-s, 0]], a turn by 2 arctan(lr / 2)."""
    X = torch.nn.Parameter(torch.eye(2))
    X.grad = torch.tensor([[0.0, 3.0], [0.0, 0.0]])
    StiefelAdam([X], lr=0.1).step()
    angle = 2 * torch.atan(torch.tensor(0.05))
    wanted = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]])
    torch.testing.assert_close(X.data, wanted, rtol=0, atol=1e-5)


def test_a_closure_is_refused() -> None:
    with pytest.raises(ValueError, match="evaluates no closure"):
        StiefelAdam([torch.nn.Parameter(torch.eye(2))]).step(lambda: 0.0)
