"""The training edge server's side; plugs into any Flower project and imports neither torch nor diffusers."""

from fedsd.strategies.aggregate import STRATEGIES, Settings, aggregate_round
from fedsd.strategies.lora_strategy import LoRAStrategy
from fedsd.strategies.round import Client, Cluster, Round, from_state, to_state
from fedsd.strategies.rules import RULES, Combination
from fedsd.strategies.schedule import Schedule
from fedsd.strategies.style_clustered import StyleClusteredLoRA
from fedsd.strategies.validate import Limits

__all__ = [
    "RULES",
    "STRATEGIES",
    "Client",
    "Cluster",
    "Combination",
    "Limits",
    "LoRAStrategy",
    "Round",
    "Schedule",
    "Settings",
    "StyleClusteredLoRA",
    "aggregate_round",
    "from_state",
    "to_state",
]
