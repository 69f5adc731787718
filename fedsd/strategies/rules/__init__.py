"""Rules for combining LoRAs, one paper to a file, on the interface of `combination`; `table.RULES` lists them all."""

from fedsd.strategies.rules.combination import Combination, LayerReport, Rule, shares
from fedsd.strategies.rules.table import RULES, Entry

__all__ = ["RULES", "Combination", "Entry", "LayerReport", "Rule", "shares"]
