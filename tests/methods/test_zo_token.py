from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from models import WIDTH

from fedsd.base.denoise import encode_prompts, tokenize
from fedsd.base.load import Base, load
from fedsd.base.tokens import Placeholder, Token, token_embedding, with_token, word_vectors
from fedsd.base.training import Descent, Fit, Pictures, Shared, errors, noised
from fedsd.lowrank import Array
from fedsd.methods.zo_token import ESTIMATORS, SEEDED, TAU, Memory, Model, Settings, fit, steady_directions, train
from fedsd.seeded import begin, directions, from_arrays, gradient, seeded_mean
from fedsd.tangent_mean import tangent_mean

CAPTIONS = ["a cat", "two dogs", "the moon", "a red car"]
DESCENT = Descent(steps=3, batch_size=4, min_snr_gamma=0.0, precision="float32", caption_dropout=0.1)
SETTINGS = Settings(DESCENT, Placeholder(), lr=0.05, directions=2, timesteps=(0, 1000))
Spoken = tuple[Base, Pictures, torch.Tensor]


def pictures(colour: float = 1.0) -> Pictures:
    detail = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    return Pictures(0.3 * detail + colour * torch.tensor([1.0, -1.0, 0.5, 2.0]).view(1, 4, 1, 1), CAPTIONS)


def trained(
    base: Base,
    *,
    steps: int = 3,
    start: Shared | None = None,
    own: dict[str, Array] | None = None,
    seed: int = 0,
    **changes: object,
) -> Fit:
    settings = replace(SETTINGS, descent=replace(DESCENT, steps=steps), **changes)
    return fit(base, pictures(), start or Shared(), own or {}, seed=seed, settings=settings)


def spoken(base: Base, of: Pictures, vectors: Array) -> Spoken:
    carrying = with_token(base, Token("<user-s>", vectors))
    placeholder = Placeholder(vectors=len(vectors))
    return carrying, of, tokenize(carrying, placeholder.captions(carrying, of.captions))


def loss_with(base: Base, of: Pictures, vectors: Array) -> float:
    """The mean loss over 32 fixed draws of timestep and noise for each picture."""
    carrying, shown, ids = spoken(base, of, vectors)
    with torch.no_grad():
        states = carrying.text_encoder(ids).last_hidden_state.repeat(32, 1, 1)
        given = noised(base, shown.latents.repeat(32, 1, 1, 1), torch.Generator().manual_seed(9), 0.0)
        return float(errors(carrying, given, states).mean())


@pytest.fixture(autouse=True)
def base_stays(base: Base) -> Iterator[None]:
    words, table = len(base.tokenizer), base.text_encoder.get_input_embeddings()
    yield
    assert len(base.tokenizer) == words and base.text_encoder.get_input_embeddings() is table


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("bits", [0, 8])
def test_loss_falls_by_forward_passes_alone(
    base: Base, estimator: str, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a gradient was asked for")

    monkeypatch.setattr(torch.Tensor, "backward", forbidden)
    monkeypatch.setattr(torch.autograd, "grad", forbidden)
    result = trained(base, steps=60, estimator=estimator, bits=bits, directions=4)
    learnt = result.shared.arrays["token"]
    assert learnt.shape == (1, WIDTH) and learnt.dtype == np.float32
    assert loss_with(base, pictures(), learnt) < 0.998 * loss_with(base, pictures(), word_vectors(base, "style"))


def test_loss_falls_on_the_embedded_base() -> None:
    """A word that says nothing learns to mean the look of drawings, in 25 steps of 8 times 5 passes."""
    from fedsd.base.denoise import encode_pixels
    from fedsd.data import drawn

    base = load("tiny")
    names = drawn.OBJECTS[:8]
    shown = np.stack([np.asarray(drawn.draw(name, "sketch", 0), np.float32) for name in names])
    latents = encode_pixels(base, torch.from_numpy(shown).permute(0, 3, 1, 2) / 127.5 - 1)
    of = Pictures(latents, [f"a {name}" for name in names])
    descent = replace(DESCENT, steps=25, batch_size=8)
    settings = Settings(descent, Placeholder(), lr=0.03, timesteps=(200, 900))
    learnt = fit(base, of, Shared(), {}, seed=0, settings=settings).shared.arrays["token"]
    assert loss_with(base, of, learnt) < 0.97 * loss_with(base, of, word_vectors(base, "style"))


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("fresh", [True, False])
def test_scalars_are_directional_derivatives(base: Base, fresh: bool, k: int) -> None:
    """Against gradients: of each picture's own loss, or of the batch's."""
    theta = word_vectors(base, "red cat", k)
    carrying, of, ids = spoken(base, pictures(), theta)
    settings = replace(SETTINGS, estimator="orthogonal" if fresh else "rge", smoothing=1e-3, timesteps=(200, 800))
    model, index = Model(carrying, of.latents, ids, settings), torch.tensor([2, 0, 1])
    e = directions(0, 0, model.count(3), theta.size, "hadamard")
    loss, s = model.differences(theta, None, theta.flatten(), e, index, torch.Generator().manual_seed(4))

    given = noised(base, of.latents[index], torch.Generator().manual_seed(4), 0.0, (200, 800))
    assert given.t.min() >= 200 and given.t.max() < 800
    vectors = token_embedding(carrying).vectors.requires_grad_(True)
    found = errors(carrying, given, carrying.text_encoder(ids[index]).last_hidden_state)
    slopes = [torch.autograd.grad(part, vectors, retain_graph=True)[0].flatten().numpy() for part in found]
    wanted = [e[i] @ slopes[i % 3] for i in range(6)] if fresh else list(e @ np.mean(slopes, axis=0))
    assert loss == pytest.approx(float(found.mean().detach()), rel=1e-6)
    np.testing.assert_allclose(s, wanted, rtol=0.05, atol=0.02 * np.abs(wanted).max())
    assert np.abs(wanted).min() > 0


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_two_rounds_are_one(base: Base, estimator: str) -> None:
    """The moments go on, and so does what an estimator remembers."""
    first = trained(base, steps=2, estimator=estimator)
    second = trained(base, steps=2, estimator=estimator, start=first.shared, own=dict(first.own), seed=1)
    assert int(first.own["steps"][0]) == 2 and int(second.own["steps"][0]) == 4
    forgetful = trained(base, steps=2, estimator=estimator, start=first.shared, seed=1)
    assert not np.array_equal(forgetful.shared.arrays["token"], second.shared.arrays["token"])
    if estimator == "subspace-gradient":
        assert len(second.own["sg.tokens"]) == 4
    if estimator == "sensitive":
        np.testing.assert_array_equal(first.own["basis"], second.own["basis"])


def test_seed_decides_everything(base: Base) -> None:
    one, same, other = (trained(base, seed=seed).shared.arrays["token"] for seed in (5, 5, 6))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("estimator", SEEDED)
def test_server_knows_the_token_from_seeds_and_scalars(base: Base, estimator: str) -> None:
    """Two real clients, two rounds: the server's mean has the bits of the mean of the vectors."""
    settings, n = replace(SETTINGS, estimator=estimator, directions=3), [4, 9]
    start = word_vectors(base, settings.placeholder.initial)
    states, own = [begin(start.flatten()) for _ in n], [dict[str, Array](), dict[str, Array]()]
    for server_round in range(2):
        shared = Shared(arrays={"token": start})
        done = [
            train(base, pictures(colour), shared, own[i], seed=10 * server_round + i, settings=settings)
            for i, colour in enumerate((1.0, -1.0))
        ]
        sent = tangent_mean([result.shared.arrays for result, _ in done], n)["token"]
        mean, states = seeded_mean(states, [trace for _, trace in done], n, settings.rule)
        assert mean.tobytes() == sent.flatten().tobytes()
        own, start = [dict(result.own) for result, _ in done], sent
        for state, kept in zip(states, own, strict=True):
            assert from_arrays(kept).m.tobytes() == state.m.tobytes()


def test_server_cannot_know_a_projected_step(base: Base) -> None:
    """Why Subspace Gradient must send the vector."""
    start = word_vectors(base, "style")
    P = np.eye(WIDTH, dtype=np.float32)[:4]
    own = {**{key: np.zeros(WIDTH, np.float32) for key in "xmv"}, "steps": np.array([0]), "sg.P": P}
    settings = replace(SETTINGS, estimator="subspace-gradient")
    result, trace = train(base, pictures(), Shared(), own, seed=0, settings=settings)
    mean, _ = seeded_mean([begin(start.flatten())], [trace], [1], settings.rule)
    learnt = result.shared.arrays["token"][0]
    assert np.array_equal(learnt[:4], start[0, :4]) and not np.array_equal(mean[:4], start[0, :4])


def test_steady_directions_are_those_that_hardly_vary() -> None:
    """Standardised features that follow two hidden ones have two components; the other four directions are removed."""
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((TAU, 2))
    tokens = hidden @ rng.standard_normal((2, 6)) + 1e-4 * rng.standard_normal((TAU, 6))
    P = steady_directions(tokens, 1e-3)
    assert P.shape == (4, 6)
    np.testing.assert_allclose(P @ P.T, np.eye(4), rtol=0, atol=1e-5)
    standard = (tokens - tokens.mean(0)) / tokens.std(0)
    assert np.abs(standard @ P.T).max() < 0.02 < np.abs(standard).max()


def test_memory_finds_directions_after_tau_tokens() -> None:
    memory, rng = Memory.kept({}), np.random.default_rng(0)
    along = rng.standard_normal(3)
    for i in range(TAU - 1):
        memory = memory.with_token((i * along).astype(np.float32))
        np.testing.assert_array_equal(memory.projected(np.ones(3, np.float32)), np.ones(3))
    memory = memory.with_token((TAU * along).astype(np.float32))
    assert len(memory.tokens) == 0 and memory.P.shape == (2, 3)
    kept = Memory.kept({**memory.arrays(), "x": np.zeros(3, np.float32)})
    np.testing.assert_allclose(kept.P @ kept.projected(np.ones(3, np.float32)), 0, rtol=0, atol=1e-6)


def test_better_estimator_has_less_error_at_equal_passes(base: Base) -> None:
    """Error of the mean of many estimates of one gradient, for the same pictures, timesteps and noise."""
    theta = word_vectors(base, "style")
    carrying, of, ids = spoken(base, pictures(), theta)
    index = torch.arange(4)
    given = lambda: torch.Generator().manual_seed(1)  # noqa: E731
    vectors = token_embedding(carrying).vectors.requires_grad_(True)
    drawn_ = noised(base, of.latents, given(), 0.0, (0, 1000))
    errors(carrying, drawn_, carrying.text_encoder(ids).last_hidden_state).mean().backward()
    wanted = vectors.grad.numpy().flatten().copy()
    found = {}
    for estimator in ("rge", "orthogonal"):
        model = Model(carrying, of.latents, ids, replace(SETTINGS, estimator=estimator, directions=4))
        kind, off = model.settings.rule.kind, []
        for seed in range(12):
            e = directions(seed, 0, model.count(4), WIDTH, kind)
            _, s = model.differences(theta, None, theta.flatten(), e, index, given())
            off.append(float(((gradient(s, e) - wanted) ** 2).sum()))
        found[estimator] = np.mean(off) / float((wanted**2).sum())
    assert found["orthogonal"] < 0.6 * found["rge"]


def test_bad_input_is_refused(base: Base) -> None:
    for changes, said in [
        ({"estimator": "x"}, r"zo\.estimator must be one of rge, subspace-gradient, orthogonal, sensitive; got 'x'"),
        ({"directions": 0}, r"zo\.directions must be at least 1"), ({"smoothing": 0.0}, r"zo\.smoothing above 0"),
        ({"share": 0.0}, r"zo\.share must be above 0"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=said):
            replace(SETTINGS, **changes)
    with pytest.raises(ValueError, match=r"zo\.bits must be 8 or 4"):
        trained(base, bits=3)
    with pytest.raises(ValueError, match=r"zo\.timesteps must rise, from 0 or more to 1000 or less; got 900 to 500"):
        trained(base, timesteps=(900, 500))
    with pytest.raises(ValueError, match="cat is in the vocabulary already"):
        trained(base, placeholder=Placeholder(name="cat"))
    with pytest.raises(ValueError, match="vectors of one length"):
        trained(base, own=dict(trained(base, estimator="rge").own) | {"m": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match=r"lower zo\.lr"):
        trained(base, lr=1e38, steps=4)


def test_prompts_without_the_token_do_not_change(base: Base) -> None:
    carrying, _, _ = spoken(base, pictures(), word_vectors(base, "style"))
    assert torch.equal(encode_prompts(carrying, CAPTIONS), encode_prompts(base, CAPTIONS))
