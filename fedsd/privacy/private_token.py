"""A device's private word: learnt on its own pictures, kept in its private folder, and never sent."""

from fedsd.base.load import Base
from fedsd.base.tokens import Placeholder, Token
from fedsd.base.training import Descent, Pictures, Shared
from fedsd.methods import textual_inversion
from fedsd.privacy.words import register
from fedsd.store import PrivateFolder

NAME = "private-token"
LR = 5e-3


def private_token(
    private: PrivateFolder, base: Base, pictures: Pictures, *, steps: int, batch: int, seed: int
) -> Token:
    """Return the word `<user-s>` of the node that has `private`: as kept, or learnt now in `steps` steps and kept.

    It is registered among the words that are never sent. Raises ValueError as textual inversion does.
    """
    placeholder = Placeholder()
    kept = private.load(NAME)
    if kept is None or kept[1]["base"] != base.sha:
        settings = textual_inversion.Settings(Descent(steps, batch, 0.0, "float32", 0.0), placeholder, LR)
        fit = textual_inversion.fit(base, pictures, Shared(), {}, seed=seed, settings=settings)
        private.save(NAME, {"token": fit.own["token"]}, {"base": base.sha})
        register(private, [placeholder.name])
        return Token(placeholder.name, fit.own["token"])
    return Token(placeholder.name, kept[0]["token"])
