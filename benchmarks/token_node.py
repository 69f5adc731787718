"""Simulated clients that learn a private word, then their LoRA on captions with it; `tokens.py` puts this into a run.

The word stays in the private folder and the reply is the product's: adapter, z, n, rank, loss.
"""

from dataclasses import replace

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedsd import client_app, wire
from fedsd import config as configuration
from fedsd.base import load
from fedsd.base.tokens import Placeholder, with_token
from fedsd.base.training import Pictures, Shared
from fedsd.privacy.private_token import private_token
from fedsd.strategies.roster import client_seed

STEPS = 40  # for the word

app = ClientApp()


@app.query("profile")
def profile(message: Message, context: Context) -> Message:
    """Answer as the product does."""
    return client_app.app(message, context)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train on captions that end in ", <user-s> style"."""
    config, order = configuration.from_run_config(context.run_config), wire.parse_order(message)
    base = load.load(config.base.name)
    node, prepared = client_app.ready(context, config, base)
    pictures = Pictures(prepared.latents, [example.caption for example in node.examples])
    token = private_token(
        node.private, base, pictures, steps=STEPS, batch=config.train.batch_size,
        seed=client_seed(config.run.seed, 0, node.client),
    )  # fmt: skip
    carrying = with_token(base, token)
    spoken = Placeholder().captions(carrying, pictures.captions)
    place = replace(node.place, rank=order.rank)
    spoken_pictures, start = Pictures(pictures.latents, spoken), Shared(order.lora)
    fit = node.method.fit(carrying, spoken_pictures, start, {}, seed=order.seed, settings=node.method.settings(place))
    update = wire.Update(
        node.client, fit.shared.lora, prepared.z, len(spoken), order.rank, base.sha, **vars(fit.progress)
    )
    return wire.update_reply(update, message, encoding=order.encoding)
