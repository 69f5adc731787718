from pathlib import Path

import pytest

from fedsd.hybrid.credentials import admits, read_credentials

HELD = ("first-of-two-credentials", "second-of-two-credentials")


@pytest.mark.parametrize(
    ("header", "admitted"),
    [
        (f"Bearer {HELD[0]}", True), (f"bearer  {HELD[1]} ", True), (HELD[0], False), ("", False), ("Bearer ", False),
        (f"Basic {HELD[0]}", False), (f"Bearer {HELD[0][:-1]}", False), (f"Bearer {HELD[0]}x", False),
        ("Bearer é", False),
    ],
)  # fmt: skip
def test_only_who_holds_a_credential_is_admitted(header: str, admitted: bool) -> None:
    assert admits(HELD, header) is admitted


def test_with_none_to_hold_everybody_is() -> None:
    assert admits((), "")


def test_the_file_may_hold_comments(tmp_path: Path) -> None:
    file = tmp_path / "credentials"
    file.write_text(f"# devices\n{HELD[0]}\n\n  {HELD[1]}\n")
    assert read_credentials(file) == HELD


@pytest.mark.parametrize("text", ["", "# none\n", f"{HELD[0]}\nshort-secret\n"])
def test_no_credential_or_a_short_one_is_refused_and_not_shown(tmp_path: Path, text: str) -> None:
    file = tmp_path / "credentials"
    file.write_text(text)
    with pytest.raises(ValueError, match="one credential a line, each of at least 16 characters") as raised:
        read_credentials(file)
    assert "short-secret" not in str(raised.value)


def test_no_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none cannot be read: No such file"):
        read_credentials(tmp_path / "none")
