import numpy as np

from fedsd.client_app import with_kept_feedback
from fedsd.codec import with_feedback
from fedsd.lowrank import Factor
from fedsd.store import PrivateFolder


def update(seed: int) -> dict[str, Factor]:
    rng = np.random.default_rng(seed)
    return {"unet.q": Factor(rng.standard_normal((9, 2)).astype("f4"), rng.standard_normal((2, 7)).astype("f4"))}


def test_what_is_owed_is_kept_on_the_node_for_the_next_round_of_the_same_run(tmp_path):
    private = PrivateFolder(tmp_path, "c0")
    first, owed = with_feedback(update(0), {})
    second, _ = with_feedback(update(1), owed)
    np.testing.assert_array_equal(with_kept_feedback(private, update(0), 5)["unet.q"].B, first["unet.q"].B)
    np.testing.assert_array_equal(with_kept_feedback(private, update(1), 5)["unet.q"].B, second["unet.q"].B)


def test_what_another_run_owes_is_forgotten(tmp_path):
    private = PrivateFolder(tmp_path, "c0")
    with_kept_feedback(private, update(0), 5)
    fresh, _ = with_feedback(update(1), {})
    np.testing.assert_array_equal(with_kept_feedback(private, update(1), 6)["unet.q"].B, fresh["unet.q"].B)
