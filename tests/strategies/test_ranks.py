import pytest
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from local_grid import LocalGrid, context

from fedsd.strategies.ranks import ask_configs, parse_rank

CONFIG = {"r": 8, "lora_alpha": 16, "use_rslora": True}


def answering(records: dict) -> LocalGrid:
    app = ClientApp()

    @app.query("lora")
    def lora(message: Message, node: Context) -> Message:
        return Message(RecordDict(records), reply_to=message)

    return LocalGrid(app, {7: context(7)})


def test_what_a_node_says_takes_the_place_of_the_config():
    configs, reasons = ask_configs(answering({"m": MetricRecord({"rank": 4, "lora-alpha": 2.5})}), [7], CONFIG)
    assert configs == {7: {"r": 4, "lora_alpha": 2.5, "use_rslora": True}}
    assert reasons == {}


def test_what_a_node_does_not_say_is_the_configs():
    configs, _ = ask_configs(answering({"m": MetricRecord({"rank": 4})}), [7], CONFIG)
    assert configs[7]["lora_alpha"] == 16


def test_a_node_without_an_answer_has_a_reason():
    configs, reasons = ask_configs(LocalGrid(ClientApp(), {7: context(7)}), [7], CONFIG)
    assert configs == {}
    assert reasons[7].startswith('it did not answer @app.query("lora"): ')


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ({}, "it must hold one MetricRecord with rank"),
        ({"c": ConfigRecord({"rank": 4})}, "it must hold one MetricRecord with rank"),
        ({"m": MetricRecord({"lora-alpha": 4})}, "it must hold one MetricRecord with rank"),
        ({"m": MetricRecord({"rank": 0})}, "rank must be a whole number from 1 to 4096, got 0"),
        ({"m": MetricRecord({"rank": 2.0})}, r"rank must be a whole number from 1 to 4096, got 2\.0"),
        ({"m": MetricRecord({"rank": [4]})}, r"rank must be a whole number from 1 to 4096, got \[4\]"),
        ({"m": MetricRecord({"rank": 4, "lora-alpha": 0})}, "lora-alpha must be a positive number, got 0"),
        ({"m": MetricRecord({"rank": 4, "lora-alpha": float("nan")})}, "lora-alpha must be a positive number, got nan"),
        ({"m": MetricRecord({"rank": 4, "lora-alpha": [1.0]})}, "lora-alpha must be a positive number"),
    ],
)
def test_an_answer_that_makes_no_sense_is_refused(records, message):
    grid = answering(records)
    _, reasons = ask_configs(grid, [7], CONFIG)
    assert reasons[7].startswith('its answer to @app.query("lora") is not valid: ')
    (query,) = grid.asked
    with pytest.raises(ValueError, match=message):
        parse_rank(Message(RecordDict(records), reply_to=query))
