import json

import numpy as np
from PIL import Image

from fedsd.data.check import check


def found(report) -> list[tuple[str, str, str]]:
    return [(p.severity, p.file.removeprefix(report.root), p.what) for p in report.problems]


def noise(path, seed=0, size=40):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)).save(path)


def test_check_counts_a_sound_folder(picture, tmp_path):
    picture("oil/cat/1.png", (1, 0, 0))
    picture("oil/cat/2.png", (2, 0, 0), (50, 40))
    picture("oil/dog/1.png", (3, 0, 0))
    picture("ink/cat/1.png", (4, 0, 0)).with_suffix(".txt").write_text("an ink cat")
    picture("ink/cat/2.png", (5, 0, 0)).with_suffix(".txt").write_text("another ink cat")

    report = check(tmp_path)

    assert report.problems == () and report.ok
    assert report.pictures == 5
    assert report.styles == {"ink": {"cat": 2}, "oil": {"cat": 2, "dog": 1}}
    assert report.sizes == {"40 x 40": 4, "50 x 40": 1}
    assert report.captions == {"folder name": 3, "sidecar .txt": 2}


def test_check_collects_damaged_files(tmp_path, bomb):
    for name in ("1", "2", "cut"):
        noise(tmp_path / f"oil/cup/{name}.png", seed=len(name) + ord(name[0]))
    cut = tmp_path / "oil/cup/cut.png"
    cut.write_bytes(cut.read_bytes()[:2000])
    (tmp_path / "oil/cup/zero.png").touch()
    (tmp_path / "oil/cup/page.jpg").write_text("<html>")
    bomb(7000).rename(tmp_path / "oil/cup/bomb.png")

    report = check(tmp_path)

    assert not report.ok and report.pictures == 2 and report.captions == {"folder name": 2}
    assert [(s, f, w.split(" (")[0]) for s, f, w in found(report)] == [
        ("error", "/oil/cup/bomb.png", "7000 x 7000 pixels, over the limit of 40000000"),
        ("error", "/oil/cup/cut.png", "truncated or corrupt"),
        ("error", "/oil/cup/page.jpg", "not a readable PNG, JPEG, WebP or BMP picture"),
        ("error", "/oil/cup/zero.png", "the file is empty"),
    ]
    assert all(p.remedy for p in report.problems)


def test_check_warns_of_small_double_and_lonely_pictures(picture, tmp_path):
    picture("oil/cup/1.png")
    picture("oil/cup/2.png")
    picture("ink/cup/1.png", size=(20, 50))

    report = check(tmp_path)

    assert report.ok
    assert found(report) == [
        ("warning", "", "style 'ink' has only 1 picture"),
        ("warning", "/ink/cup/1.png", "only 20 x 50 pixels"),
        ("warning", "/oil/cup/2.png", f"the same picture as {tmp_path}/oil/cup/1.png"),
    ]


def test_check_warns_of_missing_captions(picture, tmp_path):
    picture("oil/1.png", (1, 0, 0)).with_suffix(".txt").write_text("a cup")
    picture("oil/2.png", (2, 0, 0))
    picture("ink/1.png", (3, 0, 0))
    picture("ink/2.png", (4, 0, 0))

    assert found(check(tmp_path)) == [
        ("warning", "", "every picture of style 'ink' is captioned 'a picture of a ink'"),
        ("warning", "/oil/2.png", "no caption, so 'a picture of a oil' is used"),
    ]


def test_check_warns_of_captions_beyond_the_text_encoder(picture, tmp_path):
    picture("oil/1.png", (1, 0, 0)).with_suffix(".txt").write_text("one two three")
    picture("oil/2.png", (2, 0, 0)).with_suffix(".txt").write_text("one two")

    report = check(tmp_path, max_tokens=4, count_tokens=lambda caption: len(caption.split()) + 2)

    assert found(report) == [("warning", "/oil/1.png", "its caption has 5 tokens, and those after 4 are lost")]


def test_check_reports_an_empty_folder_and_captions_without_pictures(picture, tmp_path):
    assert [p.what for p in check(tmp_path).problems] == ["there are no pictures in this folder"]
    assert not check(tmp_path).ok

    picture("oil/1.png", (1, 0, 0)).with_suffix(".txt").write_text("a cup")
    picture("oil/2.png", (2, 0, 0)).with_suffix(".txt").write_text("a pot")
    (tmp_path / "oil/3.txt").write_text("lost")
    report = check(tmp_path)

    assert found(report) == [("error", "/oil/3.txt", "a caption without a picture of the same name")]
    assert not report.ok


def test_report_goes_through_json(picture, tmp_path):
    picture("é🎨/قطة/1.png")

    report = check(tmp_path)
    back = json.loads(json.dumps(report.as_dict()))

    assert back["styles"] == {"é🎨": {"قطة": 1}}
    assert back["problems"] == [
        {
            "file": str(tmp_path),
            "what": "style 'é🎨' has only 1 picture",
            "remedy": "add more: about 10 show a style",
            "severity": "warning",
        }
    ]
    assert back["ok"] is True
