"""The sections of the run config: one small frozen dataclass each, whose fields are the keys with "_" for "-"."""

from dataclasses import dataclass, replace

from fedsd.values import methods_by_name, span_of, split_list


@dataclass(frozen=True)
class RunConfig:
    """The run as a whole. timeout: seconds per round; tolerance: relative change of the mix that ends it; availability:
    shares of the rounds in which clients are asked, by name.
    """

    rounds: int
    seed: int
    folder: str
    resume: bool
    tolerance: float
    timeout: float
    min_nodes: int
    availability: str
    record: bool


@dataclass(frozen=True)
class BaseConfig:
    """The frozen model. size: side of training pictures in pixels, 0 for the base's own."""

    name: str
    size: int


@dataclass(frozen=True)
class DataConfig:
    """Where pictures and captions come from, and how a simulation deals them out; see `fedsd.data.example.Layout`."""

    root: str
    styles: str
    index: str
    path_column: str
    style_column: str
    caption_column: str
    label_column: str
    where: str
    template: str
    per_style: int
    objects: str
    partition: str
    concentration: float


@dataclass(frozen=True)
class NodeConfig:
    """What a node does on its own disk. private_dir: empty for ~/.fedsd/nodes."""

    private_dir: str


@dataclass(frozen=True)
class MethodConfig:
    """What a client trains. of_clients: other methods than `name`, by client."""

    name: str
    of_clients: str


@dataclass(frozen=True)
class RankConfig:
    """LoRA ranks, handed out to simulated clients in turn, and whether text encoder and residual blocks are adapted."""

    ranks: str
    text_encoder: bool
    convolutions: bool

    def rank_of(self, client: int) -> int:
        """Return the rank of client number `client`: the listed ranks in turn."""
        listed = split_list(self.ranks)
        return int(listed[client % len(listed)])


@dataclass(frozen=True)
class SpireConfig:
    """See `methods.spire.Settings`. size: of the projected form's e."""

    embedding_lr: float
    drop: float
    form: str
    size: int
    backbone: str


@dataclass(frozen=True)
class SodaConfig:
    """See `methods.soda.Settings`. shift_lr, turn_lr: of the spectrum and of the rotation."""

    shift_lr: float
    turn_lr: float
    form: str
    optimiser: str
    convolutions: bool


@dataclass(frozen=True)
class TokenConfig:
    """The word that a device learns, see `base.tokens.Placeholder`."""

    name: str
    vectors: int
    initial: str
    template: str


@dataclass(frozen=True)
class ZoConfig:
    """See `methods.zo_token.Settings`. timesteps: T_L and T_U."""

    lr: float
    directions: int
    smoothing: float
    estimator: str
    timesteps: str
    bits: int
    share: float

    @property
    def span(self) -> tuple[int, int]:
        """T_L and T_U as numbers."""
        return span_of(self.timesteps)


@dataclass(frozen=True)
class TrainConfig:
    """Local training (line 29). lr, text_lr: of U-Net and text encoder; lr_ratio: the rate of B over that of A;
    caption_dropout: share in [0, 1]; timesteps: "0,700" for those below 700, "" for all.
    """

    steps: int
    batch_size: int
    lr: float
    text_lr: float
    lr_ratio: float
    min_snr_gamma: float
    precision: str
    caption_dropout: float
    timesteps: str

    @property
    def span(self) -> tuple[int, int] | None:
        """The first timestep and the one after the last, None for all."""
        return span_of(self.timesteps) if self.timesteps else None


@dataclass(frozen=True)
class StyleConfig:
    """What the style embedding z is taken from (line 30), and by what key it is hidden from the server."""

    source: str
    key: str


@dataclass(frozen=True)
class StrategyConfig:
    """How the server combines adapters."""

    name: str
    inside: str
    across: str
    stack_cap: int
    participation: str
    detect: bool


@dataclass(frozen=True)
class WireConfig:
    """How uploads are encoded. upload_seconds: that one may take at the bandwidth measured, 0 for no limit."""

    encoding: str
    upload_seconds: float


@dataclass(frozen=True)
class ClusterConfig:
    """How clients are grouped (line 8). threshold: cosine distance in [0, 2), 0 to take it from the data; leave_after:
    rounds without a client after which it leaves the grouping, 0 for never.
    """

    method: str
    threshold: float
    outliers: str
    leave_after: int


@dataclass(frozen=True)
class MixConfig:
    """Weights of the mix (line 16). alpha: balance in [0, 1]."""

    alpha: float
    formula: str


@dataclass(frozen=True)
class NeutralConfig:
    """The style-neutral adapter (lines 18-19). rank: cap."""

    rank: int


@dataclass(frozen=True)
class Config:
    """One field per section of the run config."""

    run: RunConfig
    base: BaseConfig
    data: DataConfig
    node: NodeConfig
    method: MethodConfig
    lora: RankConfig
    spire: SpireConfig
    soda: SodaConfig
    token: TokenConfig
    zo: ZoConfig
    train: TrainConfig
    style: StyleConfig
    strategy: StrategyConfig
    wire: WireConfig
    cluster: ClusterConfig
    mix: MixConfig
    neutral: NeutralConfig

    @property
    def methods(self) -> tuple[str, ...]:
        """What the clients of the run train: `method.name`, and what single clients train instead."""
        return tuple(dict.fromkeys((self.method.name, *methods_by_name(self.method.of_clients).values())))

    @property
    def shares_factors(self) -> bool:
        """Whether clients, or some of them, share LoRA factors, which fit into LoRA files."""
        return "lora" in self.methods or ("spire" in self.methods and self.spire.backbone == "lora")

    def of(self, client: str) -> "Config":
        """Return the settings as they are for one client, whose method is the only one in them."""
        return self.training(methods_by_name(self.method.of_clients).get(client, self.method.name))

    def training(self, method: str) -> "Config":
        """Return the settings of a client that trains `method`."""
        return replace(self, method=MethodConfig(method, ""))
