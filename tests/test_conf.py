"""Every preset in conf/ works with the defaults, says how it is run, and holds only what differs."""

import shlex
import tomllib
from pathlib import Path

import pytest

from fedsd.cli.main import app
from fedsd.cli.run import parse_setting, read_preset
from fedsd.config import defaults, flatten, from_run_config, keys

ROOT = Path(__file__).resolve().parents[1]
PRESETS = sorted((ROOT / "conf").glob("*.toml"))


def name_of(file: Path) -> str:
    return file.stem


def test_there_are_presets_but_not_too_many() -> None:
    assert {"demo", "emoji", "pacs", "sd15", "smoke"} <= {file.stem for file in PRESETS}
    assert len(PRESETS) <= 10
    assert [file.name for file in (ROOT / "conf").iterdir() if file.suffix != ".toml"] == []


@pytest.mark.parametrize("file", PRESETS, ids=name_of)
def test_a_preset_is_valid_over_the_defaults(file: Path) -> None:
    settings = read_preset(file.stem)
    assert settings == flatten(tomllib.loads(file.read_text(encoding="utf-8")))
    assert set(settings) <= set(keys())
    from_run_config(defaults() | settings)


@pytest.mark.parametrize("file", PRESETS, ids=name_of)
def test_a_preset_holds_only_what_differs(file: Path) -> None:
    same = {key for key, value in read_preset(file.stem).items() if value == defaults()[key]}
    assert not same, f"{file.name} repeats the default of {', '.join(sorted(same))}"


@pytest.mark.parametrize("file", PRESETS, ids=name_of)
def test_a_preset_starts_with_its_command(file: Path) -> None:
    first = file.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith(f"# fedsd run --preset {file.stem}")
    options = {
        option for command in app.registered_commands if command.name == "run" for option in _options(command.callback)
    }
    assert {word for word in shlex.split(first[2:]) if word.startswith("-")} <= options


def _options(callback: object) -> set[str]:
    import typer

    lone = typer.Typer(add_completion=False)
    lone.command()(callback)  # type: ignore[type-var]
    return {
        option
        for parameter in typer.main.get_command(lone).params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }


def test_a_preset_may_be_any_toml_file(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[run]\nrounds = 7\n")
    assert read_preset(str(tmp_path / "mine.toml")) == {"run.rounds": 7}


def test_an_unknown_preset_is_answered_with_those_there_are() -> None:
    with pytest.raises(
        ValueError, match="preset 'emojis' is neither a TOML file nor one of demo, emoji, mixed, pacs, sd15, smoke"
    ):
        read_preset("emojis")


def test_a_preset_that_is_no_toml_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("rounds: 7\n")
    with pytest.raises(ValueError, match=r"preset .*mine.toml is no TOML: "):
        read_preset(str(tmp_path / "mine.toml"))


def test_a_setting_is_read_as_toml_or_else_as_text() -> None:
    assert parse_setting("run.rounds=5") == ("run.rounds", 5)
    assert parse_setting("train.lr = 1e-4") == ("train.lr", 1e-4)
    assert parse_setting("run.resume=true") == ("run.resume", True)
    assert parse_setting('lora.ranks="4"') == ("lora.ranks", "4")
    assert parse_setting("lora.ranks=4,8") == ("lora.ranks", "4,8")
    assert parse_setting("lora.ranks=8") == ("lora.ranks", "8")
    assert parse_setting("base.name=/models/sd=15") == ("base.name", "/models/sd=15")


def test_a_setting_without_a_value_is_refused() -> None:
    with pytest.raises(ValueError, match=r"setting 'run.rounds' is not of the form key=value, e\.g\. run.rounds=5"):
        parse_setting("run.rounds")
