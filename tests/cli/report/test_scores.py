import re

from fedsd.cli.report.outcome import Scores
from fedsd.cli.report.scores import evaluation, verdict


def scores(n: int = 100) -> Scores:
    def cell(kid: float, clip: float, n: int = 100) -> dict[str, float]:
        return {"kid": kid / 1000, "clip_score": clip, "n": n}

    return Scores("embedded", {
        "cluster": {"a": cell(10, 24), "b": cell(5, 26)},
        "base": {"a": cell(40, 25), "b": cell(4, 27, n)},
        "my <run>": {"a": cell(20, 20)},
    })  # fmt: skip


def rows(html: str, title: str) -> list[list[str]]:
    """The cells of the table below a title, the best ones with a star."""
    part = html[html.index(title) :]
    part = part[: part.index("</table>")]
    marked = re.sub(r'<td class="number best">([^<]*)<', r"<td>\1 ★<", part)
    return [re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", row) for row in re.findall(r"<tr>.*?</tr>", marked)]


def test_each_metric_has_a_table_with_its_best_values_marked() -> None:
    html = evaluation(scores())
    assert rows(html, "KID × 1000") == [
        ["", "a", "b", "mean"],
        ["base alone", "40.0", "4.0 ★", "22.0"],
        ["cluster adapters", "10.0 ★", "5.0", "7.5 ★"],
        ["my &lt;run&gt;", "20.0", "–", "–"],
    ]
    assert rows(html, "CLIP score")[1:3] == [
        ["base alone", "25.0 ★", "27.0 ★", "26.0 ★"], ["cluster adapters", "24.0", "26.0", "25.0"],
    ]  # fmt: skip
    assert "FID</h3>" not in html and "<h3>FID" not in html
    assert "100 generated pictures" in html and "<code>embedded</code>" in html


def test_one_style_has_no_mean_and_one_method_no_best() -> None:
    html = evaluation(Scores("/x/net.pt", {"base": {"a": {"kid": 0.01}}}))
    assert rows(html, "KID × 1000") == [["", "a"], ["base alone", "10.0"]]
    assert "<code>net.pt</code>" in html and "An unknown number of generated" in html


def test_unequal_counts_are_said() -> None:
    assert "50 to 100 generated pictures" in evaluation(scores(n=50))


def test_the_verdict_is_one_sentence_with_the_means() -> None:
    assert verdict(scores()) == "<p>KID × 1000 over 2 styles: <b>cluster adapters 7.5</b>, base alone 22.0.</p>"
    assert verdict(None) == "" and evaluation(None) == ""
    assert verdict(Scores("e", {"base": {"a": {"kid": 0.01}}, "mix": {"a": {"kid": 0.02}}})) == ""
