import pytest

from fedsd.data.example import Layout


def test_wanted_splits_columns_and_values():
    layout = Layout(where="split = train; group=Food & Drink|Objects;")

    assert layout.wanted() == {"split": {"train"}, "group": {"Food & Drink", "Objects"}}
    assert Layout().wanted() == {}


def test_layout_refuses_a_filter_without_values():
    with pytest.raises(ValueError, match=r"where has the part 'train': write column=value\|value;column=value"):
        Layout(where="split=train;train")


def test_caption_puts_the_label_into_the_template_as_it_is():
    assert Layout().caption("{x} cat") == "a picture of a {x} cat"


def test_layout_refuses_a_template_without_label():
    with pytest.raises(ValueError, match=r"template 'a picture' lacks \{label\}: write"):
        Layout(template="a picture")
