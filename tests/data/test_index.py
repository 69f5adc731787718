from pathlib import Path

import pytest

from fedsd.data import index
from fedsd.data.example import Example, Layout

LAYOUT = Layout(index="list.csv", path_column="file", style_column="vendor", caption_column="name")


def write(root: Path, *rows: str) -> Path:
    path = root / "list.csv"
    path.write_text("\n".join(("file,vendor,name,group,split", *rows)) + "\n", encoding="utf-8")
    return path


def test_read_uses_the_named_columns_and_filter(picture, tmp_path):
    a, b = picture("x/a.png"), picture("x/b.png")
    picture("x/c.png")
    picture("x/d.png")
    path = write(
        tmp_path,
        "x/a.png,noto,red cup,Objects,train",
        "x/b.png,blob,pear,Food & Drink,train",
        "x/c.png,noto,fig,Food & Drink,test",
        "x/d.png,noto,flag,Flags,train",
    )
    layout = Layout(**{**LAYOUT.__dict__, "where": "split=train;group=Food & Drink|Objects"})

    examples, problems = index.read(path, layout)

    assert problems == ()
    assert examples == (Example(a, "red cup", "noto", "red cup"), Example(b, "pear", "blob", "pear"))


def test_read_makes_captions_from_labels(picture, tmp_path):
    a = picture("a.png")
    path = write(tmp_path, "a.png,noto,cup,Objects,train")
    layout = Layout("list.csv", "file", "vendor", caption_column="", label_column="name", template="one {label}")

    assert index.read(path, layout)[0] == (Example(a, "one cup", "noto", "cup"),)


def test_read_names_rows_that_cannot_be_used(picture, tmp_path):
    picture("set/a.png")
    picture("set/b.png")
    picture("up.png")
    path = write(
        tmp_path / "set",
        "a.png,noto,cup,,",
        "./a.png,noto,mug,,",
        "gone.png,noto,x,,",
        "../up.png,noto,x,,",
        "b.png,noto,,,",
    )

    examples, problems = index.read(path, LAYOUT)

    assert [e.caption for e in examples] == ["cup"]
    assert [(p.what, p.severity) for p in problems] == [
        ("lines 2 and 3 both list './a.png'", "error"),
        ("line 4 captions 'gone.png', which is not there", "error"),
        ("line 5 captions '../up.png', which is not there", "error"),
        ("line 6 has no caption for 'b.png'", "error"),
    ]


def test_read_warns_of_an_empty_caption_that_a_label_replaces(picture, tmp_path):
    a = picture("a.png")
    path = write(tmp_path, "a.png,noto,,cup,")
    layout = Layout("list.csv", "file", "vendor", caption_column="name", label_column="group")

    examples, (problem,) = index.read(path, layout)

    assert examples == (Example(a, "a picture of a cup", "noto", "cup"),)
    assert (problem.what, problem.severity) == ("line 2 has an empty caption for 'a.png'", "warning")


def test_read_refuses_a_missing_column(tmp_path):
    path = write(tmp_path, "a.png,noto,cup,Objects,train")

    with pytest.raises(ValueError, match=r"list\.csv: there is no column 'style': set style_column to one of file, v"):
        index.read(path, Layout("list.csv", "file", caption_column="name"))
    with pytest.raises(ValueError, match=r"list\.csv: there is no column 'splt': set where to one of file, vendor"):
        index.read(path, Layout("list.csv", "file", "vendor", "name", where="splt=train"))
    with pytest.raises(ValueError, match=r"nothing says what is shown: set caption_column or label_column"):
        index.read(path, Layout("list.csv", "file", "vendor", caption_column=""))


def test_read_refuses_a_filter_that_leaves_nothing(tmp_path):
    path = write(tmp_path, "a.png,noto,cup,Objects,train", "b.png,noto,pot,Objects,test")

    message = r"no row is left by where = 'split=dev': choose values that it has \(split has 'test', 'train'\)"
    with pytest.raises(ValueError, match=message):
        index.read(path, Layout("list.csv", "file", "vendor", "name", where="split=dev"))


def test_find_takes_index_csv_only_where_it_lists_paths_and_styles(tmp_path):
    assert index.find(tmp_path, Layout()) is None
    (tmp_path / "index.csv").write_text("path,domain\n")
    assert index.find(tmp_path, Layout()) is None
    assert index.find(tmp_path, Layout(style_column="domain")) == tmp_path / "index.csv"

    with pytest.raises(ValueError, match=r"list\.csv: there is no such index: name a CSV file in the folder"):
        index.find(tmp_path, LAYOUT)
