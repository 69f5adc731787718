import json
import os
import unicodedata
from pathlib import Path

import pytest

from fedsd.data.captions import Caption, clean, gather, keyed, table


def files(root: Path) -> dict[str, Path]:
    return {keyed(p.relative_to(root).as_posix()): p for p in sorted(root.rglob("*.png"))}


def lines(path: Path, *rows: object) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  a \n red\tcup ", "a red cup"),
        ("a\0cup", "a cup"),
        ("cafe\u0301", "caf\u00e9"),
        ("قطة حمراء", "قطة حمراء"),
        ("👩‍🎨 paints 🎨", "👩‍🎨 paints 🎨"),
        ("\ud800x", "\ufffd\ufffd\ufffdx"),
    ],
)
def test_clean_keeps_words_and_drops_what_breaks_files(text, expected):
    assert clean(text) == expected


def test_clean_survives_file_names_that_are_not_utf8():
    assert clean(os.fsdecode(b"caf\xe9")).startswith("caf")


def test_table_reads_columns_and_fills_short_lines(tmp_path):
    (tmp_path / "t.csv").write_bytes('\ufeffa, b\n1,"x, y"\n\n2\n'.encode())

    assert table(tmp_path / "t.csv") == (("a", "b"), [{"a": "1", "b": "x, y"}, {"a": "2", "b": ""}])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"t\.csv: the table is empty: give it a first line of column names"),
        (b"a,a\n", r"t\.csv: its first line names a column twice: rename one of a, a"),
        (b'a,b\n"x" y,z\n', r"t\.csv: line 2 is no CSV \(.*\): mend or delete that line"),
        (b"a,b\n\xff,z\n", r"t\.csv: not UTF-8 text \(byte 4\): save it as UTF-8"),
    ],
)
def test_table_refuses_damage(tmp_path, content, message):
    (tmp_path / "t.csv").write_bytes(content)

    with pytest.raises(ValueError, match=message):
        table(tmp_path / "t.csv")


def test_gather_prefers_metadata_then_csv_then_sidecar(picture, tmp_path):
    for name in "abcd":
        picture(f"s/{name}.png").with_suffix(".txt").write_text(f"sidecar {name}")
    (tmp_path / "s" / "d.txt").unlink()
    lines(tmp_path / "metadata.jsonl", {"file_name": "s/a.png", "text": "json a"})
    (tmp_path / "s" / "words.csv").write_text("file_name,text\na.png,csv a\nb.png,csv b\n")

    found, problems = gather(tmp_path, files(tmp_path))

    assert problems == []
    assert found == {
        "s/a.png": Caption("json a", "metadata.jsonl"),
        "s/b.png": Caption("csv b", "CSV"),
        "s/c.png": Caption("sidecar c", "sidecar .txt"),
    }


def test_gather_prefers_the_nearest_metadata(picture, tmp_path):
    picture("s/a.png")
    lines(tmp_path / "metadata.jsonl", {"file_name": "s/a.png", "text": "far"})
    lines(tmp_path / "s" / "metadata.jsonl", {"file_name": "a.png", "text": "near"})

    assert gather(tmp_path, files(tmp_path))[0] == {"s/a.png": Caption("near", "metadata.jsonl")}


def test_gather_matches_names_across_unicode_spellings_and_slashes(picture, tmp_path):
    picture(unicodedata.normalize("NFD", "s/é ق 🎨.png"))
    lines(tmp_path / "metadata.jsonl", {"file_name": "s\\é ق 🎨.png", "text": "naïve 猫"})

    found, problems = gather(tmp_path, files(tmp_path))

    assert problems == []
    assert found == {"s/é ق 🎨.png": Caption("naïve 猫", "metadata.jsonl")}


def test_gather_names_captions_without_a_picture(picture, tmp_path):
    picture("s/a.png")
    lines(tmp_path / "metadata.jsonl", {"file_name": "s/a.png", "text": "x"}, {"file_name": "../b.png", "text": "y"})
    (tmp_path / "c.csv").write_text("file_name,text\ns/lost.png,z\n")
    (tmp_path / "s" / "ghost.txt").write_text("w")
    (tmp_path / "s" / "README.txt").write_text("about these pictures")

    problems = [str(p).replace(str(tmp_path), "") for p in gather(tmp_path, files(tmp_path))[1]]

    assert problems == [
        "/metadata.jsonl: line 2 captions '../b.png', which is not there: add the picture or delete the line",
        "/c.csv: line 2 captions 's/lost.png', which is not there: add the picture or delete the line",
        "/s/ghost.txt: a caption without a picture of the same name: add the picture or delete the caption",
    ]


def test_gather_names_double_and_empty_captions(picture, tmp_path):
    picture("a.png")
    picture("b.png").with_suffix(".txt").write_text(" \n")
    lines(
        tmp_path / "metadata.jsonl",
        {"file_name": "a.png", "text": "first"},
        {"file_name": "./a.png", "text": "second"},
        {"file_name": "b.png", "text": ""},
    )

    found, problems = gather(tmp_path, files(tmp_path))

    assert found == {"a.png": Caption("first", "metadata.jsonl")}
    assert [(p.what, p.severity) for p in problems] == [
        ("lines 1 and 2 both caption './a.png'", "error"),
        ("line 3 has an empty caption for 'b.png'", "warning"),
        ("the caption is empty", "warning"),
    ]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{", "line 1 is no JSON"),
        ("[1]", "line 1 names no picture"),
        ('{"text": "x"}', "line 1 names no picture"),
        ('{"file_name": "a.png", "text": 3}', "line 1 has a caption that is no text (3)"),
    ],
)
def test_gather_names_damaged_metadata(picture, tmp_path, line, what):
    picture("a.png")
    (tmp_path / "metadata.jsonl").write_text(line + "\n")

    (problem,) = gather(tmp_path, files(tmp_path))[1]

    assert problem.what.startswith(what)
    assert problem.severity == "error"


def test_gather_names_captions_that_are_not_utf8(picture, tmp_path):
    picture("a.png").with_suffix(".txt").write_bytes(b"caf\xe9")

    (problem,) = gather(tmp_path, files(tmp_path))[1]

    assert str(problem).endswith("a.txt: not UTF-8 text (byte 3): save it as UTF-8")
