import json
import os

import pytest

from fedsd.data.example import Example, Layout
from fedsd.data.folder import read, scan


def test_read_a_folder_per_style_and_class(picture, tmp_path):
    b, a = picture("sketch/red_apple/1.png"), picture("oil/cat/1.jpg")

    assert read(tmp_path) == (
        Example(a, "a picture of a cat", "oil", "cat"),
        Example(b, "a picture of a red apple", "sketch", "red apple"),
    )


def test_read_a_folder_per_style_with_captions(picture, tmp_path):
    a, b = picture("oil/1.png"), picture("oil/2.png")
    a.with_suffix(".txt").write_text("a cat on a mat", encoding="utf-8")

    assert read(tmp_path, Layout(template="{label} picture")) == (
        Example(a, "a cat on a mat", "oil", "a cat on a mat"),
        Example(b, "oil picture", "oil", "oil"),
    )


def test_read_a_flat_folder_as_one_style(picture, tmp_path):
    a = picture("my_dog/1.png")

    assert read(tmp_path / "my_dog") == (Example(a, "a picture of a my dog", "my_dog", "my dog"),)


def test_read_drops_the_repeats_of_kohya_folders(picture, tmp_path):
    picture("10_oil/1.png")
    picture("3_ink/1.png")

    assert [e.style for e in read(tmp_path)] == ["oil", "ink"]
    assert [e.style for e in read(tmp_path / "3_ink")] == ["ink"]


def test_read_takes_captions_of_metadata_in_the_styles_folder(picture, tmp_path):
    picture("oil/1.png")
    (tmp_path / "oil" / "metadata.jsonl").write_text(json.dumps({"file_name": "1.png", "text": "a cup"}))

    assert [e.caption for e in read(tmp_path)] == ["a cup"]


def test_read_takes_an_index_before_everything_else(picture, tmp_path):
    a = picture("x/1.png")
    picture("x/2.png")
    a.with_suffix(".txt").write_text("sidecar")
    (tmp_path / "index.csv").write_text("path,style,caption\nx/1.png,oil,a cup\n")

    assert read(tmp_path) == (Example(a, "a cup", "oil", "a cup"),)


def test_read_keeps_only_the_chosen_styles(picture, tmp_path):
    for style in ("ink", "oil", "wax"):
        picture(f"{style}/cup/1.png")

    assert [e.style for e in read(tmp_path, Layout(styles=("wax", "ink")))] == ["ink", "wax"]
    with pytest.raises(ValueError, match="there is no style 'gum': choose from ink, oil, wax"):
        read(tmp_path, Layout(styles=("gum",)))


def test_read_survives_names_in_any_script(picture, tmp_path):
    picture("זה סגנון/قطة/🎨.png")
    picture("cafe\u0301/猫/1.png")

    examples = read(tmp_path)

    assert [(e.style, e.label) for e in examples] == [("caf\u00e9", "猫"), ("זה סגנון", "قطة")]
    assert examples[1].caption == "a picture of a قطة"


def test_read_survives_names_that_are_not_utf8(picture, tmp_path):
    picture(os.fsdecode(b"styl\xe9/cup/1.png"))

    (example,) = read(tmp_path)

    assert example.style.encode().startswith(b"styl") and example.path.is_file()


def test_read_skips_hidden_and_foreign_files(picture, tmp_path):
    a = picture("oil/cup/1.png")
    picture("oil/.thumbs/1.png")
    picture("__MACOSX/oil/1.png")
    (tmp_path / "notes.md").write_text("x")

    assert [e.path for e in read(tmp_path)] == [a]


def test_read_follows_links_but_never_in_a_circle(picture, tmp_path):
    a = picture("store/cup/1.png")
    root = tmp_path / "root"
    root.mkdir()
    (root / "oil").symlink_to(tmp_path / "store")
    (tmp_path / "store" / "loop").symlink_to(tmp_path / "store")

    (example,) = read(root)

    assert example == Example(root / "oil" / "cup" / "1.png", "a picture of a cup", "oil", "cup")
    assert example.path.samefile(a)


def test_read_refuses_a_folder_that_is_missing_or_empty(tmp_path):
    with pytest.raises(ValueError, match="gone: there is no such folder of pictures: check the path"):
        read(tmp_path / "gone")
    (tmp_path / "oil").mkdir()
    with pytest.raises(
        ValueError, match="there are no pictures in this folder: put PNG, JPEG, WebP or BMP files in it"
    ):
        read(tmp_path)


def test_read_refuses_a_caption_without_a_picture_and_counts_the_rest(picture, tmp_path):
    picture("oil/1.png")
    (tmp_path / "oil" / "2.txt").write_text("a cup")
    with pytest.raises(ValueError, match=r"2\.txt: a caption without a picture of the same name: add the picture or d"):
        read(tmp_path)

    (tmp_path / "oil" / "3.txt").write_text("a pot")
    with pytest.raises(ValueError, match=r"2\.txt: .*\(and 1 more: see `fedsd data check`\)"):
        read(tmp_path)


def test_read_refuses_a_filter_without_an_index(picture, tmp_path):
    picture("oil/1.png")

    with pytest.raises(ValueError, match="where = 'split=train' needs an index: set index to a CSV file"):
        read(tmp_path, Layout(where="split=train"))


def test_scan_warns_of_odd_nesting_and_formats(picture, tmp_path):
    picture("0.png")
    picture("oil/1.png")
    picture("oil/cup/2.png")
    picture("oil/cup/big/3.png")
    (tmp_path / "oil" / "4.heic").touch()

    found = scan(tmp_path)

    assert len(found.examples) == 4
    assert [(p.what, p.severity) for p in found.problems] == [
        ("a picture in a format that is not read (.heic)", "warning"),
        ("folders lie deeper than style/class (1 pictures)", "warning"),
        ("1 pictures lie beside the folders of styles", "warning"),
        ("1 pictures lie beside folders of classes", "warning"),
    ]
    assert set(found.sources.values()) == {"folder name"}
