"""One picture with its caption, and how a folder of pictures is to be read."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Example:
    """A picture on disk, what it shows in words, the style it is drawn in, and the name of what it shows."""

    path: Path
    caption: str
    style: str
    label: str


@dataclass(frozen=True)
class Layout:
    """How a folder of pictures is to be read; the defaults read plain folders.

    Attributes:
        index: name of a CSV in the folder that lists the pictures; empty: index.csv where it has the path and style
            columns, else the folders themselves.
        path_column: column of the index with each picture's path below the folder.
        style_column: column of the index with each picture's style.
        caption_column: column of the index with the caption; empty: captions are made from the label.
        label_column: column of the index with the name of what is shown; empty: the caption is the name.
        where: rows of the index to keep, as "split=train;group=Food & Drink|Objects"; empty keeps all.
        template: caption of a picture that has none, with {label} for the name.
        styles: styles to keep; empty keeps all.
    """

    index: str = ""
    path_column: str = "path"
    style_column: str = "style"
    caption_column: str = "caption"
    label_column: str = ""
    where: str = ""
    template: str = "a picture of a {label}"
    styles: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a template that does not use the label, and a filter that is no filter.

        Raises:
            ValueError: naming the template or the part of where that is wrong.
        """
        if "{label}" not in self.template:
            raise ValueError(
                f'template {self.template!r} lacks {{label}}: write "a picture of a {{label}}" or the like'
            )
        self.wanted()

    def wanted(self) -> dict[str, frozenset[str]]:
        """Return where as column -> values to keep."""
        wanted = {}
        for part in filter(str.strip, self.where.split(";")):
            column, mark, values = part.partition("=")
            if not mark or not column.strip():
                raise ValueError(f"where has the part {part.strip()!r}: write column=value|value;column=value")
            wanted[column.strip()] = frozenset(v.strip() for v in values.split("|"))
        return wanted

    def caption(self, label: str) -> str:
        """Return the caption of a picture that shows label and has no caption of its own."""
        return self.template.replace("{label}", label)
