import pytest
import torch
from models import unet_output

from fedsd.base.load import Base
from fedsd.base.weights import replaced, weight

NAME = "unet.conv_in.weight"


def test_base_computes_with_other_weights_and_has_its_own_again(base: Base) -> None:
    plain, own = unet_output(base), weight(base, NAME).data
    doubled = 2 * own
    with replaced(base, {NAME: doubled}) as parameters:
        assert torch.equal(parameters[NAME], doubled)
        assert not torch.equal(unet_output(base), plain)
        with torch.no_grad():
            parameters[NAME].zero_()
    assert not doubled.any()  # the given tensor is the one that was trained
    assert weight(base, NAME).data is own or weight(base, NAME).data_ptr() == own.data_ptr()
    assert torch.equal(unet_output(base), plain)


def test_base_has_its_own_again_after_an_exception(base: Base) -> None:
    plain = unet_output(base)
    with pytest.raises(RuntimeError, match="stop"), replaced(base, {NAME: 2 * weight(base, NAME).data}) as parameters:
        parameters[NAME].requires_grad_(True)
        raise RuntimeError("stop")
    assert torch.equal(unet_output(base), plain)
    assert not weight(base, NAME).requires_grad


def test_weights_of_another_base_are_refused(base: Base) -> None:
    with pytest.raises(ValueError, match=r"has no weight unet\.nowhere\.weight; it belongs to another base"):
        weight(base, "unet.nowhere.weight")
    with (
        pytest.raises(ValueError, match=r"conv_in\.weight has shape \(1, 2\) but the base's has \(16, 4, 3, 3\)"),
        replaced(base, {NAME: torch.zeros(1, 2)}),
    ):
        pass
