import json
import os

from fedsd.data.problem import Problem, shown


def test_problem_reads_as_one_line():
    assert str(Problem("a.png", "cut off", "copy it again")) == "a.png: cut off: copy it again"
    assert Problem("a.png", "cut off", "copy it again").severity == "error"


def test_shown_survives_every_file_name():
    latin = os.fsdecode(b"caf\xe9.png")

    assert shown(latin).encode().startswith(b"caf")
    assert json.loads(json.dumps(shown("ملف🎨.png"))) == "ملف🎨.png"
    assert shown("a\nb\0.png") == "a?b?.png"
