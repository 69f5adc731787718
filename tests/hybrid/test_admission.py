import pytest

from fedsd.hybrid.admission import Limits, Offer, Refused, check
from fedsd.hybrid.protocol import Ask

BASE, SAMPLER, LORA, OTHER = (digit * 64 for digit in "1234")
OFFER = Offer(BASE, 64, 8, {"ddim": SAMPLER, "lcm": SAMPLER}, {"ddim": 999, "lcm": 50}, (77, 16))
ASK = Ask(
    prompt="a dog", seed=7, steps=20, server_steps=6, guidance=3, size=64, base_sha=BASE, scheduler_sha=SAMPLER,
)  # fmt: skip


def refusal(limits: Limits | None = None, **changes: object) -> Refused:
    with pytest.raises(Refused) as raised:
        check(ASK.model_copy(update=changes), OFFER, limits or Limits(), LORA)
    return raised.value


def test_a_good_ask_is_taken() -> None:
    check(ASK, OFFER, Limits(), LORA)
    check(ASK.model_copy(update={"lora_sha": LORA, "server_steps": 20, "steps": 20}), OFFER, Limits(), LORA)
    check(ASK.model_copy(update={"size": 128}), OFFER, Limits(max_size=128), LORA)


@pytest.mark.parametrize("name", ["pndm", "dpm++", "unipc", "DDIM"])
def test_samplers_with_memory_are_refused_with_the_reason(name: str) -> None:
    found = refusal(scheduler=name)
    assert found.status == 422 and "memory of earlier steps" in str(found) and "choose from ddim, lcm" in str(found)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": 101}, "steps is 101; this server takes at most 100 with ddim"),
        ({"steps": 51, "scheduler": "lcm"}, "steps is 51; this server takes at most 50 with lcm"),
        ({"server_steps": 21}, "server_steps is 21, more than all 20 steps"),
        ({"size": 72}, "size is 72; it must be a multiple of 8 and at most 64"),
        ({"size": 60}, "size is 60; it must be a multiple of 8"),
    ],
)
def test_what_is_too_much_is_refused(changes: dict[str, int], said: str) -> None:
    found = refusal(**changes)
    assert found.status == 422 and said in str(found)


@pytest.mark.parametrize(
    ("field", "what"), [("base_sha", "base"), ("scheduler_sha", "scheduler config"), ("lora_sha", "neutral adapter")]
)
def test_both_sides_must_hold_the_same(field: str, what: str) -> None:
    found = refusal(**{field: OTHER})
    assert found.status == 409 and f"the device's {what} is 444444444444, the server's" in str(found)
