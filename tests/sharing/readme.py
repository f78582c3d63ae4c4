"""The table of decisions in Markdown, and its place in README.md."""

from dataclasses import dataclass
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"
BEGIN = "<!-- python -m tests.sharing --readme writes from here -->\n"
END = "<!-- to here -->\n"


@dataclass(frozen=True)
class Row:
    """A case ("section: name"), the right decision, and the two scripts' decisions."""

    name: str
    right: str
    stock: str
    vbdkit: str


def table(rows: list[Row]) -> str:
    """The decisions with a heading per section, wrong ones in bold."""
    lines = ["| case | right | stock | vbdkit |", "|---|---|---|---|"]
    section = ""
    for row in rows:
        title, _, name = row.name.partition(": ")
        if title != section:
            section = title
            lines.append(f"| **{section}** | | | |")
        lines.append(f"| {name} | {row.right} | {_cell(row.stock, row)} | {_cell(row.vbdkit, row)} |")
    return "\n".join(lines)


def count(rows: list[Row]) -> str:
    """How many of them each script decided wrong."""
    wrong = {who: sum(getattr(row, who) != row.right for row in rows) for who in ("stock", "vbdkit")}
    return ", ".join(f"{who}: {wrong[who]} of {len(rows)} wrong" for who in wrong)


def _cell(decision: str, row: Row) -> str:
    return decision if decision == row.right else f"**{decision}**"


def rows_of(text: str) -> list[Row]:
    """Read a table back."""
    rows, section = [], ""
    for line in text.splitlines():
        cells = [cell.strip().strip("*") for cell in line.removeprefix("|").removesuffix("|").split("|")]
        if len(cells) != 4 or cells[0] in ("case", "---"):
            continue
        if not any(cells[1:]):
            section = cells[0]
        else:
            rows.append(Row(f"{section}: {cells[0]}", *cells[1:]))
    return rows


def in_readme() -> str:
    """What README.md has between the two lines."""
    return README.read_text().partition(BEGIN)[2].partition(END)[0]


def put_into_readme(rows: list[Row]) -> None:
    """Write the count and the table between the two lines of README.md."""
    before, begin, rest = README.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin, f"README.md needs the line {BEGIN}"
    assert end, f"README.md needs the line {END}"
    details = f"<details>\n<summary>All {len(rows)} cases</summary>\n\n{table(rows)}\n\n</details>"
    README.write_text(f"{before}{begin}**{count(rows)}.**\n\n{details}\n{end}{after}")
