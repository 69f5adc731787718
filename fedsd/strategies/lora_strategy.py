"""A drop-in for Flower's FedAvg that combines the LoRA adapters of any PEFT model by any rule.

    strategy = LoRAStrategy(rule="flexlora", peft_config=lora_config.to_dict())
    strategy.start(grid=grid, initial_arrays=ArrayRecord(get_peft_model_state_dict(model)), num_rounds=3)

Messages are FedAvg's: the arrays are the state of the PEFT model, and a reply holds such a state and num-examples. What
is computed from them is in `rules`; docs/lora-strategy.md says what a rule asks of clients.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fedsd.lowrank import Factor, LoRA, stack_loras, truncate
from fedsd.strategies.lora_replies import Trained, of_one_form, read_state, read_trained, read_weight, sort_out
from fedsd.strategies.peft_parts import Parts, State, fit, mean_whole, put_together, share_cut, take_apart
from fedsd.strategies.peft_state import check_config, is_lora
from fedsd.strategies.ranks import ask_configs
from fedsd.strategies.rules import RULES, Combination
from fedsd.strategies.rules.rolora import rolora, trained_side
from fedsd.wire import lora_record

LOG = logging.getLogger("flwr.fedsd")
FROZEN = "lora-frozen"  # in the train config: the factor, A or B, that clients must not train
RESIDUAL = "residual"  # record beside the arrays: <layer>.B and <layer>.A, whose product clients add to their base


class LoRAStrategy(FedAvg):
    """FedAvg with another rule for what is LoRA; everything else in the arrays is averaged as FedAvg does it.

    rule: a key of `RULES`. peft_config: of the model whose state is the initial arrays, as LoraConfig.to_dict() or
    adapter_config.json has it; its r should be the largest of all clients', as the global adapter is kept at it.
    ask_ranks: ask each node for its rank before it is sent anything (`ranks`), so that it gets adapters of its own
    rank; otherwise all nodes have the config's. fedavg: the options of FedAvg.

    combination: what the rule made of the last round, before it was cut to r. residual: what clients must add to their
    base so far, empty but for FedEx-LoRA. Raises ValueError for an unknown rule and for adapters that are no
    products. A round without a usable reply raises RuntimeError.
    """

    def __init__(
        self, rule: str = "flexlora", *, peft_config: Mapping[str, Any], ask_ranks: bool = False, **fedavg: Any
    ) -> None:
        if rule not in RULES:
            raise ValueError(f"rule must be one of {', '.join(RULES)}; got {rule!r}")
        if not isinstance(peft_config, Mapping) or not {"r", "lora_alpha"} <= set(peft_config):
            raise ValueError("peft_config must be a mapping with r and lora_alpha; pass LoraConfig.to_dict()")
        check_config(peft_config)
        super().__init__(**fedavg)
        self.rule = rule
        self.peft_config = dict(peft_config)
        self.ask_ranks = ask_ranks
        self.combination: Combination | None = None
        self.residual: LoRA = {}
        self._arrays = ArrayRecord()  # the global state as sent
        self._like: dict[str, Any] = {}  # and as numpy
        self._asked: list[Message] = []
        self._configs: dict[int, dict[str, Any]] = {}  # by node id, of the nodes that were asked for their rank
        self._personal: dict[int, LoRA] = {}  # by node id: the adapter of which the node keeps B, for FedSA-LoRA

    def summary(self) -> None:
        """Log the rule, what it asks of clients, and FedAvg's settings."""
        super().summary()
        LOG.info("\t└──> Rule: %s", self.rule)
        if RULES[self.rule].asks_clients:
            LOG.warning("the rule %s asks something of clients: %s", self.rule, RULES[self.rule].asks_clients)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """FedAvg's messages, each with the global adapter at its node's rank.

        Raises ValueError when the arrays are no adapter of `peft_config`, and RuntimeError when no node can take part.
        """
        self._open(arrays)
        messages = list(super().configure_train(server_round, arrays, config, grid))
        self._asked = self._addressed(server_round, messages, grid)
        side = frozen_side(self.rule, server_round)
        if side:
            for message in self._asked:
                sent = dict(message.content.config_records[self.configrecord_key]) | {FROZEN: side}
                message.content = RecordDict({**message.content, self.configrecord_key: ConfigRecord(sent)})
        return self._asked

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The state of the global model by the rule, loadable wherever the initial arrays are, and the mean metrics."""
        asked, self._asked = self._asked, []
        side = frozen_side(self.rule, server_round)
        found, reasons = sort_out(asked, replies, partial(self._read, side))
        if not found and not reasons:  # no node was asked to train, as with fraction_train = 0
            return None, None
        _warn(server_round, reasons)
        if not found:
            raise RuntimeError(f"round {server_round} brought no usable reply; {_joined(reasons)}")
        combination = self._combine(server_round, found)
        parts = Parts(combination.lora, self._mean_whole(found))
        by_index = self._by_index
        state = put_together(parts, self.peft_config, self._like, [server_round], by_index=by_index)
        cut = share_cut(combination.lora, take_apart(state, self.peft_config).lora)
        LOG.info("round %d: %s of %d replies; %.2g of a layer's energy cut", server_round, self.rule, len(found), cut)
        contents = of_one_form([one.content for one in found])
        return _record(state), self.train_metrics_aggr_fn(contents, self.weighted_by_key)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """FedAvg's messages, each with the adapter that its node would train from."""
        self._open(arrays)
        messages = list(super().configure_evaluate(server_round, arrays, config, grid))
        self._asked = self._addressed(server_round, messages, grid)
        return self._asked

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """The mean metrics of the good replies, None where there is none."""
        asked, self._asked = self._asked, []
        contents, reasons = sort_out(asked, replies, self._read_metrics)
        _warn(server_round, reasons)
        contents = of_one_form(contents)
        return self.evaluate_metrics_aggr_fn(contents, self.weighted_by_key) if contents else None

    @property
    def _by_index(self) -> bool:
        """Whether the rule depends on the factors, so that none may be turned; see `peft_parts.fit`."""
        return "gauge" not in RULES[self.rule].holds

    def _open(self, arrays: ArrayRecord) -> None:
        """Take `arrays` as the global state from here on."""
        self._arrays, self._like = arrays, read_state(arrays)
        take_apart(self._like, self.peft_config)

    def _addressed(self, server_round: int, messages: Sequence[Message], grid: Grid) -> list[Message]:
        """The messages with each node's own arrays; nodes that cannot take part are named and left out."""
        nodes = [message.metadata.dst_node_id for message in messages]
        reasons = self._ask(nodes, grid) if self.ask_ranks else {}
        if RULES[self.rule].one_rank:
            reasons |= self._of_other_rank(nodes)
        _warn(server_round, reasons)
        able = [message for message in messages if message.metadata.dst_node_id not in reasons]
        if messages and not able:
            raise RuntimeError(f"round {server_round}: no node can take part; {_joined(reasons)}")
        written: dict[Any, ArrayRecord] = {}
        for message in able:
            node_id = message.metadata.dst_node_id
            config = self._config_of(node_id)
            key = config["r"], config["lora_alpha"], node_id if node_id in self._personal else None
            if key not in written:
                written[key] = self._arrays_for(node_id, config, server_round)
            records = {self.arrayrecord_key: written[key]}
            if self.residual:
                records[RESIDUAL] = lora_record(self.residual)
            message.content = RecordDict({**message.content, **records})
        return able

    def _arrays_for(self, node_id: int, config: Mapping[str, Any], server_round: int) -> ArrayRecord:
        """The global state at the ranks of a node, with the node's own B where the rule leaves it that."""
        if config == self.peft_config and node_id not in self._personal:
            return self._arrays
        parts = take_apart(self._like, self.peft_config)
        if node_id in self._personal:
            parts = Parts(_with_own_b(self._personal[node_id], parts.lora), parts.whole)
        return _record(put_together(parts, config, self._like, [server_round], by_index=self._by_index))

    def _ask(self, nodes: Sequence[int], grid: Grid) -> dict[int, str]:
        """Learn the rank of those nodes that are not known yet; the reasons of those that did not say."""
        unknown = [node_id for node_id in nodes if node_id not in self._configs]
        found, reasons = ask_configs(grid, unknown, self.peft_config)
        self._configs |= found
        return reasons

    def _of_other_rank(self, nodes: Sequence[int]) -> dict[int, str]:
        ours = self.peft_config
        return {
            node_id: f"it has rank {config['r']} and lora_alpha {config['lora_alpha']}, and {self.rule} needs "
            f"{ours['r']} and {ours['lora_alpha']} of all; use flexlora"
            for node_id in nodes
            if (config := self._config_of(node_id)) != ours
        }

    def _config_of(self, node_id: int) -> dict[str, Any]:
        return self._configs.get(node_id, self.peft_config)

    def _read(self, side: str, node_id: int, content: RecordDict) -> Trained:
        found = read_trained(node_id, content, self.weighted_by_key, self._like, self._config_of(node_id))
        if side:
            (record,) = content.array_records.values()
            _check_frozen(read_state(record), self._like, side, self.rule)
        return found

    def _read_metrics(self, node_id: int, content: RecordDict) -> RecordDict:
        read_weight(content, self.weighted_by_key)
        return content

    def _mean_whole(self, found: Sequence[Trained]) -> dict[str, Any]:
        return mean_whole([one.parts.whole for one in found], [one.weight for one in found])

    def _combine(self, server_round: int, found: Sequence[Trained]) -> Combination:
        """The rule's result, and what it leaves to the clients, kept for the next messages."""
        loras, weights = [one.parts.lora for one in found], [one.weight for one in found]
        rank = max(factor.rank for factor in take_apart(self._like, self.peft_config).lora.values())
        rule = RULES[self.rule].combine
        if self.rule == "rolora":
            rule = partial(rolora, side=trained_side(server_round))
        combination = rule(loras, weights, rank)
        self._personal |= {one.node_id: own for one, own in zip(found, combination.personal, strict=False)}
        if combination.residual:
            self.residual = _sum(self.residual, combination.residual)
        self.combination = combination
        return combination


def frozen_side(rule: str, server_round: int) -> str:
    """The factor that clients must not train under `rule` in a round: "A", "B", or "" for none."""
    if rule == "rolora":
        return "A" if trained_side(server_round) == "B" else "B"
    return RULES[rule].shared


def _check_frozen(state: State, like: State, side: str, rule: str) -> None:
    for key, array in state.items():
        if is_lora(key) and f".lora_{side}." in key and not np.array_equal(array, like[key]):
            raise ValueError(
                f"it has trained {key}, which {rule} keeps as it was sent; freeze lora_{side} in the clients when "
                f"the train config says {FROZEN} = {side}"
            )


def _with_own_b(own: LoRA, shared: LoRA) -> dict[str, Factor]:
    """(B_k, Ā), at the rank of Ā."""
    return {layer: Factor(fit(own[layer], factor.rank, by_index=True).B, factor.A) for layer, factor in shared.items()}


def _sum(before: LoRA, after: LoRA) -> dict[str, Factor]:
    """The sum of two adapters at no more than full rank, which loses nothing."""
    total = stack_loras([before, after], [1, 1]) if before else dict(after)
    return {layer: truncate(f, min(f.shape))[0] if f.rank > min(f.shape) else f for layer, f in total.items()}


def _record(state: State) -> ArrayRecord:
    return ArrayRecord({key: Array(np.ascontiguousarray(array)) for key, array in state.items()})


def _warn(server_round: int, reasons: Mapping[int, str]) -> None:
    for node_id, reason in sorted(reasons.items()):
        LOG.warning("round %d: node %d dropped: %s", server_round, node_id, reason)


def _joined(reasons: Mapping[int, str]) -> str:
    return "; ".join(f"node {node_id}: {reason}" for node_id, reason in sorted(reasons.items()))
