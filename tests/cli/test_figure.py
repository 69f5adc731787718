from pathlib import Path

from PIL import Image

from fedsd.cli.figure import PALETTE, canvas, colours, headline, markers, plain, save


def test_colours_follow_the_number_of_the_cluster_and_start_again_with_another_marker() -> None:
    ids = [str(number) for number in range(20)]
    shade, shape = colours(reversed(ids)), markers(reversed(ids))
    assert [shade[key] for key in ids[:9]] == [*PALETTE, PALETTE[0]]
    assert len({(shade[key], shape[key]) for key in ids}) == 20


def test_a_plot_is_saved_with_its_title_and_its_numbers(tmp_path: Path) -> None:
    figure = canvas(4, 3)
    plain(figure.subplots(), "x", "y")
    headline(figure, "Loss falls", "from left to right")
    file = save(figure, tmp_path / "plots" / "loss.png", ("client", "loss"), [("c0", 0.25), ("a, b", 1)])
    with Image.open(file) as picture:
        assert picture.size == (600, 450)
        assert picture.info["Title"] == "Loss falls"
    assert file.with_suffix(".csv").read_text() == 'client,loss\nc0,0.25\n"a, b",1\n'
    assert sorted(f.name for f in file.parent.iterdir()) == ["loss.csv", "loss.png"]
