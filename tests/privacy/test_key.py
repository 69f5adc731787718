import multiprocessing
import stat
from pathlib import Path

import numpy as np
import pytest

from fedsd.lowrank import Factor, dense, inner, singular_values
from fedsd.privacy import key
from fedsd.strategies.clustering import cluster
from fedsd.strategies.rules.flexlora import flexlora

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))


def styles(groups: int = 3, each: int = 4, size: int = 24, spread: float = 0.1) -> np.ndarray:
    """z of groups x each clients, float32, of length 1."""
    rng = np.random.default_rng(5)
    centres = np.repeat(rng.standard_normal((groups, size)), each, axis=0)
    Z = centres / np.linalg.norm(centres, axis=1, keepdims=True) + spread * rng.standard_normal(
        (groups * each, size)
    ) / np.sqrt(size)
    return (Z / np.linalg.norm(Z, axis=1, keepdims=True)).astype(np.float32)


def adapters() -> list[dict[str, Factor]]:
    rng = np.random.default_rng(1)
    return [{"unet.a": Factor(rng.standard_normal((9, r)), rng.standard_normal((r, 7)))} for r in (2, 3)]


def test_the_matrix_is_orthogonal_and_follows_from_key_name_and_size() -> None:
    Q = key.orthogonal(KEY, "style", 30)
    np.testing.assert_allclose(Q @ Q.T, np.eye(30), atol=1e-12)
    np.testing.assert_array_equal(Q, key.orthogonal(KEY, "style", 30))
    for other in (key.orthogonal(OTHER, "style", 30), key.orthogonal(KEY, "else", 30)):
        assert np.abs(Q - other).max() > 0.1


def test_matrices_of_many_keys_have_no_preferred_direction() -> None:
    drawn = np.stack([key.orthogonal(bytes([i, j] * 16), "style", 3) for i in range(40) for j in range(40)])
    assert np.abs(drawn.mean(axis=0)).max() < 0.06  # without the signs of R the diagonal would lie near -0.5
    assert np.abs((drawn**2).mean(axis=0) - 1 / 3).max() < 0.03


def test_cosines_stay_and_the_direction_does_not() -> None:
    Z = styles()
    turned = key.turn(Z, KEY)
    assert turned.dtype == np.float32 and turned.shape == Z.shape
    np.testing.assert_allclose(turned @ turned.T, Z @ Z.T, atol=1e-6)
    assert np.abs(np.sum(turned * Z, axis=1)).max() < 0.9
    np.testing.assert_allclose(turned[3], key.turn(Z[3], KEY), atol=1e-6)


@pytest.mark.parametrize("method", ["hdbscan", "k-means", "agglomerative"])
def test_the_clusters_are_the_same_under_a_key(method: str) -> None:
    Z, n = styles(each=2), [100] * 6
    plain = cluster(Z, n, method=method).labels
    assert plain == (0, 0, 1, 1, 2, 2)
    assert cluster(key.turn(Z, KEY), n, method=method).labels == plain


def test_blurred_cosines_are_a_kernel_of_the_distance() -> None:
    Z = styles()
    blurred = key.blur(Z, KEY, width=0.5, size=20_000)
    np.testing.assert_allclose(np.linalg.norm(blurred, axis=1), 1, atol=1e-6)
    squared = np.square(Z[:, None] - Z[None]).sum(-1)
    np.testing.assert_allclose(blurred @ blurred.T, np.exp(-squared / (2 * 0.5**2)), atol=0.03)


def test_blurred_styles_are_all_equally_far() -> None:
    centres = styles(each=1)
    apart = (key.blur(centres, KEY) @ key.blur(centres, KEY).T)[np.triu_indices(3, 1)]
    assert np.abs(apart).max() < 0.15


def test_a_sum_and_its_cut_are_those_of_the_turned_adapters() -> None:
    plain = adapters()
    turned = [key.turn_adapter(lora, KEY) for lora in plain]
    want, got = (flexlora(loras, [1.0, 2.0], 2).lora["unet.a"] for loras in (plain, turned))
    revealed = key.turn_adapter_back({"unet.a": got}, KEY)["unet.a"]
    np.testing.assert_allclose(dense(revealed), dense(want), atol=1e-10)
    assert np.abs(dense(got) - dense(want)).max() > 0.1
    np.testing.assert_allclose(singular_values(got), singular_values(want), atol=1e-10)
    a, b = (lora["unet.a"] for lora in plain)
    assert inner(turned[0]["unet.a"], turned[1]["unet.a"]) == pytest.approx(inner(a, b))


def test_noise_has_the_length_asked_for() -> None:
    Z = styles(size=400)
    noisy = key.noisy(Z, 0.5, np.random.default_rng(0))
    np.testing.assert_allclose(np.linalg.norm(noisy, axis=1), 1, atol=1e-6)
    # cosine of z and z + e with |e| = 0.5, orthogonal to z in nearly all of its length
    np.testing.assert_allclose(np.sum(noisy * Z, axis=1), 1 / np.sqrt(1.25), atol=0.05)


def _draw(root: Path, kept: list) -> None:
    kept.append(key.simulated_key(root))


def test_many_processes_agree_on_one_key_that_only_its_owner_reads(tmp_path: Path) -> None:
    root = tmp_path / "nodes"
    with multiprocessing.Manager() as manager:
        kept = manager.list()
        processes = [multiprocessing.Process(target=_draw, args=(root, kept)) for _ in range(4)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        found = set(kept)
    assert len(found) == 1 and len(found.pop()) == 32
    assert key.simulated_key(root) == key.read_key(root / key.FILE)
    assert stat.S_IMODE((root / key.FILE).stat().st_mode) == 0o600
    assert [path.name for path in root.iterdir()] == [key.FILE]


@pytest.mark.parametrize("text", ["", "abc", "g" * 64, "ab" * 33])
def test_a_file_without_a_key_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "k").write_text(text)
    with pytest.raises(ValueError, match="holds no key of 64 hexadecimal digits; make one with `openssl rand"):
        key.read_key(tmp_path / "k")


def test_a_missing_key_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot be read .FileNotFoundError.; make one with"):
        key.read_key(tmp_path / "none")
