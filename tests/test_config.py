import dataclasses
import re
from typing import Any

import pytest

from fedsd import config as configuration
from fedsd.config import Config, defaults, flatten, from_run_config, keys, split_list


def changed(**settings: Any) -> Config:
    """The config of the defaults with some settings changed; "__" stands for the dot and "_" for the dash."""
    named = {key.replace("__", ".").replace("_", "-"): value for key, value in settings.items()}
    return from_run_config(defaults() | named)


def test_the_defaults_are_valid_and_typed() -> None:
    config = from_run_config(defaults())
    assert config.run.rounds == 3
    assert config.base.name == "tiny"
    assert config.lora.text_encoder is True
    assert config.train.lr == defaults()["train.lr"]
    assert isinstance(config.data.template, str)


def test_the_keys_of_pyproject_are_the_fields_of_the_dataclasses() -> None:
    assert set(defaults()) == set(keys())


def test_every_rule_is_about_a_setting_that_exists() -> None:
    assert set(configuration.RULES) <= set(keys())


def test_every_value_ends_in_its_own_field() -> None:
    config = from_run_config(defaults())
    for key, value in defaults().items():
        section, field = key.split(".")
        assert getattr(getattr(config, section), field.replace("-", "_")) == value


def test_the_config_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        from_run_config(defaults()).run.rounds = 4  # type: ignore[misc]


def test_ranks_are_handed_out_in_turn() -> None:
    lora = changed(lora__ranks=" 4, 8,16 ").lora
    assert [lora.rank_of(client) for client in range(7)] == [4, 8, 16, 4, 8, 16, 4]


def test_a_list_is_split_at_its_commas_and_blanks_are_dropped() -> None:
    assert split_list(" a, b c ,,d ") == ("a", "b c", "d")
    assert split_list("") == ()


def test_nested_tables_become_dotted_keys() -> None:
    assert flatten({"run": {"rounds": 3, "resume": False}, "mix": {"alpha": 0.5}}) == {
        "run.rounds": 3, "run.resume": False, "mix.alpha": 0.5,
    }  # fmt: skip


def test_a_toml_list_is_refused_with_the_form_to_use() -> None:
    with pytest.raises(ValueError, match=re.escape('lora.ranks is a list; write lists as text, e.g. "4,8,16"')):
        flatten({"lora": {"ranks": [4, 8, 16]}})


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("run.round", "run.rounds"),
        ("train.learning-rate", "train"),
        ("lora.rank", "lora.ranks"),
        ("mix.alhpa", "mix.alpha"),
    ],
)
def test_an_unknown_setting_is_answered_with_the_nearest_name(key: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"unknown setting {key!r}; did you mean '{nearest}")):
        from_run_config(defaults() | {key: 1})


def test_a_setting_without_a_value_is_named() -> None:
    flat = defaults()
    del flat["neutral.rank"]
    with pytest.raises(
        ValueError, match=re.escape("setting 'neutral.rank' is missing; every key needs a default in pyproject.toml")
    ):
        from_run_config(flat)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("run.rounds", "three", "run.rounds must be of type int; got 'three' (str)"),
        ("run.rounds", 3.0, "run.rounds must be of type int; got 3.0 (float)"),
        ("run.rounds", True, "run.rounds must be of type int; got True (bool)"),
        ("run.resume", 1, "run.resume must be of type bool; got 1 (int)"),
        ("train.lr", "1e-3", "train.lr must be of type float; got '1e-3' (str)"),
        ("lora.ranks", 8, "lora.ranks must be of type str; got 8 (int)"),
        ("data.root", False, "data.root must be of type str; got False (bool)"),
    ],
)
def test_a_wrong_type_is_named_with_the_value(key: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        from_run_config(defaults() | {key: value})


def test_a_whole_number_is_taken_where_a_fraction_is_asked_for() -> None:
    config = changed(mix__alpha=1, run__timeout=60)
    assert (config.mix.alpha, config.run.timeout) == (1.0, 60.0)
    assert isinstance(config.mix.alpha, float)


RANKS = "whole numbers of at least 1, separated by commas"


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("run.rounds", 0, "at least 1"),
        ("run.seed", -1, "at least 0"),
        ("run.tolerance", 1.5, "between 0 and 1"),
        ("run.timeout", 0.5, "at least 1"),
        ("run.min-nodes", 0, "at least 1"),
        ("base.name", " ", '"tiny", a folder, a file or a hub name'),
        ("base.size", -64, "at least 0"),
        ("data.per-style", 0, "at least 1"),
        ("data.template", "a picture", 'a text that holds "{label}"'),
        ("train.timesteps", "700", 'two whole numbers that rise, as "0,700", or empty'),
        ("train.timesteps", "700,700", 'two whole numbers that rise, as "0,700", or empty'),
        ("data.partition", "by-class", "one of by-style, unequal, dirichlet"),
        ("data.concentration", 0.0, "between 0.001 and 1e+06"),
        ("method.name", "dreambooth", "one of lora, spire, soda, zo-token"),
        ("lora.ranks", "0", RANKS),
        ("lora.ranks", "4,0,8", RANKS),
        ("lora.ranks", "-4", RANKS),
        ("lora.ranks", "4;8", RANKS),
        ("lora.ranks", "", RANKS),
        ("train.steps", 0, "at least 1"),
        ("train.batch-size", 0, "at least 1"),
        ("train.lr", 0.0, "between 1e-09 and 1"),
        ("train.lr", float("nan"), "between 1e-09 and 1"),
        ("train.text-lr", -1e-3, "between 0 and 1"),
        ("train.min-snr-gamma", -5.0, "at least 0"),
        ("train.precision", "int8", "one of float32, bfloat16, float16"),
        ("train.caption-dropout", 1.1, "between 0 and 1"),
        ("style.source", "words", "one of images, prompts"),
        ("strategy.name", "fedprox", "one of style-clustered, everyone, fedavg, geometric-median, flora, local"),
        ("cluster.method", "kmeans", "one of k-means, agglomerative, hdbscan"),
        ("cluster.threshold", 3.0, "between 0 and 2"),
        ("cluster.outliers", "drop", "one of singleton, nearest"),
        ("mix.alpha", -0.1, "between 0 and 1"),
        ("mix.formula", "paper", "one of normalised, literal"),
        ("neutral.rank", 0, "at least 1"),
    ],
)
def test_a_value_out_of_range_is_named_with_what_is_allowed(key: str, value: Any, allowed: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{key} must be {allowed}; got {value!r}")):
        from_run_config(defaults() | {key: value})


def test_all_faults_are_reported_together() -> None:
    with pytest.raises(ValueError) as caught:
        from_run_config(defaults() | {"run.rounds": 0, "mix.alpha": "half", "lora.rank": 4})
    lines = str(caught.value).splitlines()
    assert lines[0] == "the run config has faults:"
    assert [line.strip().split()[0] for line in lines[1:]] == ["run.rounds", "mix.alpha", "unknown"]


def test_the_rules_in_the_config_are_those_that_ask_nothing_of_clients():
    from fedsd.config import RULES_FOR_LORA, STRATEGIES
    from fedsd.strategies import RULES
    from fedsd.strategies import STRATEGIES as KNOWN

    assert set(RULES_FOR_LORA) == {name for name, entry in RULES.items() if not entry.asks_clients}
    assert tuple(KNOWN) == STRATEGIES


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"cluster.threshold": 0.3, "cluster.method": "hdbscan"},
            "cluster.threshold = 0.3 has no meaning with cluster.method = 'hdbscan'; use \"agglomerative\"",
        ),
        (
            {"strategy.participation": "inverse-rate", "strategy.inside": "trimmed-mean"},
            "strategy.participation = 'inverse-rate' weighs an exact mean of bounded rank",
        ),
        ({"strategy.participation": "inverse-rate", "strategy.name": "fedavg"}, "not 'fedavg' and 'flexlora'"),
        ({"run.availability": "c1"}, "run.availability must be pairs of a client and a share in (0, 1]"),
        ({"wire.upload-seconds": -1.0}, "wire.upload-seconds must be at least 0"),
        ({"cluster.leave-after": -1}, "cluster.leave-after must be at least 0"),
    ],
)
def test_settings_that_exclude_each_other_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        from_run_config(defaults() | settings)


def test_settings_that_go_together_are_taken() -> None:
    assert changed(cluster__threshold=0.3, cluster__method="agglomerative").cluster.threshold == 0.3
    assert changed(strategy__participation="inverse-rate").strategy.participation == "inverse-rate"
    assert changed(run__availability="c1=0.1, c3=0.5").run.availability == "c1=0.1, c3=0.5"


@pytest.mark.parametrize("method", [{"method__name": "soda"}, {"method__name": "spire", "spire__backbone": "full"}])
@pytest.mark.parametrize(
    "other",
    [
        {"strategy__name": "geometric-median"}, {"strategy__inside": "trimmed-mean"}, {"strategy__stack_cap": 64},
        {"strategy__detect": True}, {"strategy__across": "fedit"},
    ],
)  # fmt: skip
def test_what_works_on_factors_is_refused_where_there_are_none(method: dict, other: dict) -> None:
    (key,) = other
    with pytest.raises(ValueError, match=re.escape(key.replace("__", ".").replace("_", "-"))) as refused:
        changed(**method, **other)
    assert "works on LoRA factors alone, and method.name" in str(refused.value)
    changed(method__name="spire", **other)  # whose backbone is factors


def test_single_clients_may_train_another_method() -> None:
    mixed = changed(method__name="soda", method__of_clients="c0=lora, c3 = zo-token")
    assert mixed.methods == ("soda", "lora", "zo-token") and mixed.shares_factors
    assert [mixed.of(client).methods for client in ("c0", "c1", "c3")] == [("lora",), ("soda",), ("zo-token",)]
    assert mixed.of("c0").shares_factors and not mixed.of("c1").shares_factors
    with pytest.raises(ValueError, match=r"gives c1 a method that there is not: 'sira' .*Did you mean 'spire'"):
        changed(method__of_clients="c0=lora,c1=sira")
    for text in ("c0", "c0=", "=lora", "c0=lora,c0=soda"):
        with pytest.raises(ValueError, match=r"method\.of-clients must be pairs of a client and a method"):
            changed(method__of_clients=text)
    with pytest.raises(ValueError, match=r"alone, and method\.of-clients for c2 = 'zo-token' shares numbers"):
        changed(method__of_clients="c2=zo-token", strategy__detect=True)


def test_what_is_shared_follows_from_the_method() -> None:
    assert changed().shares_factors and changed(method__name="spire").shares_factors
    assert not changed(method__name="soda").shares_factors
    assert not changed(method__name="spire", spire__backbone="full").shares_factors
