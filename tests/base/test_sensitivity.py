import numpy as np
import pytest
import torch
from models import WIDTH

from fedsd.base.denoise import tokenize
from fedsd.base.load import Base
from fedsd.base.sensitivity import sensitive_basis
from fedsd.base.tokens import Token, encode_variants, token_embedding, with_token, word_vectors

PROMPTS = ["a cat in <user-s> style", "<user-s>"]


@pytest.mark.parametrize("k", [1, 2])
def test_basis_is_that_of_the_jacobian(base: Base, k: int) -> None:
    """Against automatic differentiation: the singular vectors of the stacked Jacobians."""
    carrying = with_token(base, Token("<user-s>", word_vectors(base, "red cat", k)))
    ids, theta = tokenize(carrying, PROMPTS), token_embedding(carrying).vectors

    def states(vectors: torch.Tensor) -> torch.Tensor:
        embedded = {"embeddings.token_embedding.vectors": vectors}
        return torch.func.functional_call(carrying.text_encoder, embedded, (ids,)).last_hidden_state.flatten()

    J = torch.autograd.functional.jacobian(states, theta.detach()).flatten(1).double().numpy()
    _, S, Vt = np.linalg.svd(J, full_matrices=False)
    basis = sensitive_basis(carrying, ids, 0.6)
    q = len(basis)
    assert q & (q - 1) == 0 and basis.shape == (q, k * WIDTH) and q < k * WIDTH
    np.testing.assert_allclose(basis @ basis.T, np.eye(q), rtol=0, atol=1e-5)
    held = (S[:q] ** 2).sum() / (S**2).sum()
    assert held >= 0.6 and ((basis @ J.T) ** 2).sum() / (S**2).sum() == pytest.approx(held, rel=1e-3)
    overlap = np.linalg.svd(basis @ Vt[:q].T, compute_uv=False)
    assert overlap.min() > 0.99


def test_everything_is_all_directions(base: Base) -> None:
    carrying = with_token(base, Token("<user-s>", word_vectors(base, "style")))
    assert sensitive_basis(carrying, tokenize(carrying, PROMPTS), 1.0).shape == (WIDTH, WIDTH)


def test_variants_are_encoded_as_each_alone(base: Base) -> None:
    tokens = np.random.default_rng(0).standard_normal((3, 2, WIDTH)).astype(np.float32)
    carrying = with_token(base, Token("<user-s>", tokens[0]))
    ids = tokenize(carrying, PROMPTS)
    with torch.no_grad():
        found = encode_variants(carrying, ids[[0, 1, 0, 1]], torch.tensor([2, 1, 0, 0]), tokens)
        for i, (row, which) in enumerate([(0, 2), (1, 1), (0, 0), (1, 0)]):
            alone = with_token(base, Token("<user-s>", tokens[which])).text_encoder(ids[row : row + 1])
            torch.testing.assert_close(found[i], alone.last_hidden_state[0], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(token_embedding(carrying).vectors.numpy(), tokens[0])
