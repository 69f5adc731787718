"""Algorithm 1 as a Flower strategy; the paper's baselines are the same strategy with another rule.

    strategy = StyleClusteredLoRA(Settings(rule="style-clustered"))
    strategy.start(grid, ArrayRecord(), num_rounds=3)

It moves messages and keeps the run going when nodes fail; what is computed from the replies is
`aggregate.aggregate_round`. It writes no file: events and rounds go to the two callbacks.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fedsd.lowrank import Array, LoRA, resize_lora
from fedsd.seeded import TOKEN, Rule
from fedsd.strategies.aggregate import Settings
from fedsd.strategies.bandwidth import Uplinks
from fedsd.strategies.events import client_done, client_suspected, round_clusters
from fedsd.strategies.exchange import Answer, answer, exchange, update_of
from fedsd.strategies.intake import Intake, open_intake
from fedsd.strategies.lifecycle import changes
from fedsd.strategies.replayed import replayed, with_moments
from fedsd.strategies.roster import ask_profiles, available, client_seed, misfits, sample, wait_for_nodes
from fedsd.strategies.round import Round
from fedsd.strategies.schedule import Schedule
from fedsd.strategies.starts import Start, start_for, warm_start
from fedsd.strategies.validate import Limits, check_update
from fedsd.tangent_mean import Arrays
from fedsd.values import strangers
from fedsd.wire import Order, Profile, lora_record, order_message, parse_lora

LOG = logging.getLogger("flwr.fedsd")


def _ignore(_: Any) -> None:
    """Take no notice: the callback when none is given."""


class StyleClusteredLoRA(Strategy):
    """Federated LoRA by style clusters (arXiv 2508.04745, Algorithm 1), or by the rule that `settings` names.

    replay: how clients' zeroth-order steps follow from seeds and scalars, where they send those;
    on_event: called with a dict for each event of the run; on_round: with each `Round` when it is complete. A round
    without a usable reply raises RuntimeError; so do more dead workers than the schedule allows.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        limits: Limits | None = None,
        schedule: Schedule | None = None,
        replay: Rule | None = None,
        on_event: Callable[[dict[str, Any]], None] = _ignore,
        on_round: Callable[[Round], None] = _ignore,
    ) -> None:
        self.settings = settings or Settings()
        self.limits = limits or Limits()
        self.schedule = schedule or Schedule()
        self.replay = replay
        self.previous: Round | None = None
        self._on_event = on_event
        self._on_round = on_round
        self._profiles: dict[int, Profile] = {}  # by Flower's node id, of the nodes that can take part
        self._uplinks = Uplinks(self.schedule.upload_encoding, self.schedule.upload_seconds, self.schedule.poll)
        self._strangers: set[str] = set()  # names in `schedule.availability` that nobody bears, as far as told
        self._tokens: dict[str, Array | None] = {}  # by client: the one in this round's order
        self._deaths: Counter[str] = Counter()  # by client: workers that died while it was training

    def resume(self, previous: Round) -> None:
        """Go on after `previous` as if the run had never stopped; call it before `start`."""
        self.previous = previous

    def summary(self) -> None:
        """Log the strategy's settings."""
        LOG.info("\t├──> %s", self.settings)
        LOG.info("\t├──> %s", self.limits)
        LOG.info("\t└──> %s", self.schedule)

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run rounds up to number `num_rounds`, from 1 or, after `resume`, from the one that comes next (l.1-27).

        initial_arrays: a LoRA that every node starts from, or empty; timeout: seconds a round waits for replies;
        evaluate_fn: called with the round and the mix. Nodes are not asked to evaluate: `evaluate_config` has no
        effect.
        """
        self.summary()
        try:
            result = self._run(grid, initial_arrays, num_rounds, timeout, train_config, evaluate_fn)
        except Exception as error:
            self._on_event({"event": "run.failed", "reason": str(error)})
            raise
        return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message for each client of the round, with its cluster's adapter at its own rank (l.3-4, l.25)."""
        return list(self._orders(server_round, arrays, config, grid))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Fold the replies and aggregate (l.5-21); the arrays returned are the mix."""
        after = self._fold(server_round, (answer(reply, reply.metadata.src_node_id) for reply in replies))
        metrics = MetricRecord({"clusters": len(after.clusters), "clients": len(after.present), "loss": after.loss})
        return lora_record(after.lora_mix), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """No message: adapters are evaluated where the base is, which is not on this server."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Nothing: no node was asked."""
        return None

    def _run(
        self,
        grid: Grid,
        arrays: ArrayRecord,
        num_rounds: int,
        timeout: float,
        train_config: ConfigRecord | None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None,
    ) -> Result:
        result, converged = Result(arrays=arrays), False
        server_round = self.previous.server_round if self.previous else 0
        if evaluate_fn and server_round == 0 and (metrics := evaluate_fn(0, arrays)) is not None:
            result.evaluate_metrics_serverapp[0] = metrics
        while server_round < num_rounds and not converged:
            server_round += 1
            began = time.monotonic()
            orders = self._orders(server_round, arrays, train_config or ConfigRecord(), grid)
            after = self._fold(server_round, exchange(grid, orders, timeout, self.schedule.poll))
            seconds, loss, change = time.monotonic() - began, after.loss, after.change
            self._tell("round.done", round=server_round, seconds=seconds, loss=loss, change=change)
            result.train_metrics_clientapp[server_round] = MetricRecord({"loss": loss, "seconds": seconds})
            result.arrays = lora_record(after.lora_mix)
            if evaluate_fn and (metrics := evaluate_fn(server_round, result.arrays)) is not None:
                result.evaluate_metrics_serverapp[server_round] = metrics
            # l.22-23: stop when converged
            converged = change is not None and change < self.schedule.tolerance
            if server_round < num_rounds:
                self._check_workers()
        self._tell("run.done", rounds=server_round, converged=converged)
        return result

    def _orders(self, server_round: int, first: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterator[Message]:
        """The round's messages, built one at a time."""
        self._meet(server_round, grid)
        by_client = {profile.client: node for node, profile in self._profiles.items()}
        self._name_strangers(server_round, by_client)
        # a client in whose hands two workers died is not asked a third time: it would take the last ones down
        able = [client for client in by_client if self._deaths[client] < 2]
        able = available(able, self.schedule.availability, self.schedule.seed, server_round)
        chosen = sample(able, self.schedule.fraction, client_seed(self.schedule.seed, server_round, "sample"))
        self._tell("round.start", round=server_round, clients=chosen)
        initial = parse_lora(first)
        resized: dict[tuple[int, int], tuple[LoRA, LoRA]] = {}  # holds the adapter, so that its id stays its own
        for client in chosen:
            node = by_client[client]
            profile = self._profiles[node]
            start = self._start_of(profile, initial)
            encoding, rank = self._uplinks.order(client, profile.rank, start.lora)
            key = id(start.lora), rank
            if key not in resized:
                resized[key] = start.lora, resize_lora(start.lora, rank)
            seed = client_seed(self.schedule.seed, server_round, client)
            lora = warm_start(resized[key][1], seed)
            self._tokens[client] = start.arrays.get(TOKEN)
            order = Order(server_round, rank, start.cluster, seed, lora, encoding, start.arrays, start.last_round)
            yield order_message(order, node, encoding=self.schedule.encoding, config=config)

    def _meet(self, server_round: int, grid: Grid) -> None:
        """Bring `_profiles` up to date with the nodes that are online; those not known yet are asked who they are."""
        schedule = self.schedule
        online = wait_for_nodes(grid, schedule.min_nodes, schedule.profile_timeout, schedule.poll)
        known = {node: profile for node, profile in self._profiles.items() if node in online}
        unknown = [node for node in online if node not in known]
        profiles, reasons, delays = ask_profiles(grid, unknown, schedule.profile_timeout, schedule.poll)
        unfit = misfits(known | profiles)
        for node, reason in (reasons | unfit).items():
            name = profiles[node].client if node in profiles else f"node {node}"
            self._fail(server_round, name, reason)
        self._profiles = {node: profile for node, profile in (known | profiles).items() if node not in unfit}
        for node in sorted(profiles.keys() & self._profiles.keys(), key=lambda node: profiles[node].client):
            profile = profiles[node]
            self._uplinks.met(profile.client, delays[node])
            told = {"client": profile.client, "method": profile.method, "rank": profile.rank, "n": profile.n}
            self._tell("client.profile", **told)
        if not self._profiles:
            raise RuntimeError(f"round {server_round}: no node can take part; " + _joined(reasons | unfit))

    def _name_strangers(self, server_round: int, clients: Collection[str]) -> None:
        """Tell of each name in the availability that no client bears, once: it may be misspelt, or come later."""
        for name, near in strangers(sorted(self.schedule.availability.keys() - self._strangers), clients).items():
            reason = f"run.availability names {name}, and no client online bears that name; did you mean {near}?"
            LOG.warning("round %d: %s", server_round, reason)
            self._tell("client.unknown", round=server_round, client=name, nearest=near, reason=reason)
            self._strangers.add(name)

    def _start_of(self, profile: Profile, initial: LoRA) -> Start:
        """What a client starts from; how it was decided for a new one is told."""
        start = start_for(profile, self.previous, initial, self.limits.parts[profile.method])
        if (found := start.arrival) is not None:
            self._tell("client.arrived", client=profile.client, **vars(found), reason=found.reason)
        return start

    def _fold(self, server_round: int, answers: Iterable[Answer]) -> Round:
        """Take the answers one at a time, drop and name the bad ones, and aggregate the good ones."""
        reasons: dict[str, str] = {}
        intake: Intake | None = None
        moved: dict[str, Arrays] = {}
        for found in answers:
            profile = self._profiles.get(found.node_id)
            name = profile.client if profile else f"node {found.node_id}"
            # opened late: the profiles are known when the first answer comes, after all orders were made
            intake = intake or self._intake()
            try:
                seed = client_seed(self.schedule.seed, server_round, name)
                read = update_of(found, name, profile.method if profile else "")
                update, moments = replayed(read, seed, self._tokens.get(name), self.previous, self.replay)
                intake.take(update, check_update(update, self.limits))
                moved[name] = moments
            except ValueError as error:
                reasons[name] = str(error)
                self._fail(server_round, name, str(error))
                continue
            bandwidth = self._uplinks.uploaded(name, update.bytes, found.delay)
            self._on_event(client_done(server_round, update, self._uplinks.encoding_of(name), bandwidth))
        outcome = (intake or self._intake()).finish(server_round)
        for name, reason in outcome.reasons.items():
            self._fail(server_round, name, reason)
        for name, scores in outcome.suspected.items():
            self._on_event(client_suspected(server_round, name, outcome.reasons[name], scores))
        for name, n in outcome.capped.items():
            LOG.warning("round %d: %s counts as %d images, which is the cap", server_round, name, n)
        if outcome.after is None:
            problem = _joined(reasons | dict(outcome.reasons)) or "no client was asked"
            raise RuntimeError(f"round {server_round} brought no usable reply; {problem}")
        for change in changes(self.previous, outcome.after):
            self._on_event(change.event(server_round))
        self.previous = after = with_moments(outcome.after, self.previous, moved)
        self._on_event(round_clusters(after, outcome.error_bound))
        self._on_round(after)
        return after

    def _intake(self) -> Intake:
        profiles = list(self._profiles.values())
        return open_intake(profiles, self.previous, self.settings, self.limits, self.schedule.stack_cap)

    def _tell(self, event: str, **fields: Any) -> None:
        self._on_event({"event": event, **fields})

    def _fail(self, server_round: int, client: str, reason: str) -> None:
        LOG.warning("round %d: %s dropped: %s", server_round, client, reason)
        self._tell("client.failed", round=server_round, client=client, reason=reason)
        # a dead simulation worker is never replaced by Flower, and answers every later message with this error
        if "ActorDied" in reason or "actor died" in reason:
            self._deaths[client] += 1

    def _check_workers(self) -> None:
        if self._deaths.total() > self.schedule.max_actor_deaths:
            raise RuntimeError(
                f"simulation workers died {self._deaths.total()} times, with {_joined(self._deaths)}; Flower does not "
                "replace them. They may have run out of memory: give each client more CPUs or a smaller batch, "
                "then resume"
            )


def _joined(entries: dict[Any, Any]) -> str:
    return "; ".join(f"{key}: {value}" for key, value in sorted(entries.items()))
