import base64
import re
from pathlib import Path

from PIL import Image, PngImagePlugin

from fedsd.cli.report.elements import cell, figure, folded, megabytes, number, pairs, row_title, table

EVIL = "<script>alert('1')</script>"


def test_whatever_comes_in_is_escaped(tmp_path: Path) -> None:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("Title", f'"{EVIL}')
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png", pnginfo=chunks)
    made = [cell(EVIL), number(EVIL), row_title(EVIL), folded(EVIL, ""), *pairs({EVIL: EVIL})[0]]
    made += [table((EVIL, f"#{EVIL}"), []), figure(tmp_path / "a.png", EVIL)]
    for text in made:
        assert "<script" not in text and "&lt;script&gt;" in text
    assert 'alt="&quot;&lt;script' in made[-1]


def test_a_table_aligns_numbers_and_marks_the_best() -> None:
    made = table(
        ("name", "#kid"), [[row_title("base", "#123456"), number(3)], [row_title("ours"), number(1, best=True)]]
    )
    assert '<th scope="col">name</th><th scope="col" class="number">kid</th>' in made
    assert '<th scope="row"><span class="swatch" style="background:#123456"></span>base</th>' in made
    assert '<td class="number">3</td>' in made and '<td class="number best">1</td>' in made
    assert 'class="marked"' not in made and 'class="marked"' in table((), [], marked=True)


def test_a_figure_carries_its_own_bytes(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20), (9, 8, 7)).save(tmp_path / "r01.png")
    made = figure(tmp_path / "r01.png", "", sheet=True)
    found = re.search(r'src="data:image/png;base64,([^"]+)"', made)
    assert found and base64.b64decode(found[1]) == (tmp_path / "r01.png").read_bytes()
    assert 'width="30" height="20" style="width: 45px"' in made and 'alt="r01"' in made and "figcaption" not in made
    assert "<figcaption>samples</figcaption>" in figure(tmp_path / "r01.png", "samples")


def test_bytes_in_words() -> None:
    assert [megabytes(count) for count in (0, 2_340_000, 123_456_789)] == ["0.00 MB", "2.34 MB", "123 MB"]
