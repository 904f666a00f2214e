"""Makes the tables of results/ from results/data/*.jsonl, where `<!-- table: … -->` asks for one.

    python benchmarks/pages.py [--check]

A row of data is one measurement: its `model`, `protocol` (what was cut and how; "" for the dense model), `row` (the
method) and `seed`, the `perplexity` and further measures, and the `commit` that recorded it. Where only a mean was
kept, `mean`, `deviation` and `draws` stand for perplexity and seed. A table is asked for in YAML:

    data: name of a file, or a list of them
    where: {key: value or list of values} that a row of data must have; `model: [a, b]` gives their order too
    split: key whose every value gets a table of its own, named in its head; default: none
    lines: keys of a line's label (default: row), or `names: [one, two]` for the lines wanted, in this order
    across: key that tells columns apart (default: protocol)
    columns: its values, or mappings {of: value, show: measure, as: title, digits: 2}; without `of`, of any value
    beside: measures that follow each column that is a mere value
    base: row from which `closed` counts the gap to the dense model (default: taylor)
    dense: true where the dense model has a line
    best: false where the best perplexity of each column is not to be bold

What stands from the comment up to `<!-- end -->` is made; the rest of a page is written by hand. `<!-- stamp -->` makes
a line of the data that the page's tables are from, and the commits that recorded it.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
DATA = ROOT / "results" / "data"
PAGES = sorted((ROOT / "results").glob("*.md"))
MARK = re.compile(r"(<!-- (table|stamp)(?::\s(.*?))?\s-->\n).*?(<!-- end -->)", re.S)
DENSE = "dense"


def read(name: str) -> list[dict[str, Any]]:
    """The rows of a file of data, each with a `perplexity` and its `perplexity_deviation` where a mean was kept."""
    rows = [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in rows:
        if "mean" in row:
            row |= {"perplexity": row.pop("mean"), "perplexity_deviation": row.pop("deviation", None)}
    return rows


def chosen(rows: list[dict[str, Any]], where: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that have these values; the dense model has every protocol and seed."""

    def fits(row: dict[str, Any], key: str, wanted: Any) -> bool:
        free = row["row"] == DENSE and key in ("protocol", "seed")
        return free or row.get(key) in (wanted if isinstance(wanted, list) else [wanted])

    return [row for row in rows if all(fits(row, key, wanted) for key, wanted in where.items())]


def mean(rows: list[dict[str, Any]], measure: str) -> float | None:
    """The mean over the draws, None of none."""
    values = [row[measure] for row in rows if row.get(measure) is not None]
    return statistics.mean(values) if values else None


class Table:
    """One table, as a page asks for it."""

    def __init__(self, rows: list[dict[str, Any]], asked: dict[str, Any], title: str = "") -> None:
        self.rows = rows
        self.title = title
        self.across = asked.get("across", "protocol")
        self.labels = asked.get("lines", ["row"])
        self.names = asked.get("names")
        self.base = asked.get("base", "taylor")
        self.dense = asked.get("dense", False)
        self.bold = asked.get("best", True)
        self.columns = self._columns(asked)

    def _columns(self, asked: dict[str, Any]) -> list[dict[str, Any]]:
        plain = list(dict.fromkeys(row[self.across] for row in self.rows if row["row"] != DENSE))
        columns = []
        for column in asked.get("columns", plain):
            if isinstance(column, dict):
                columns.append({"show": "perplexity", "as": column.get("show", column.get("of")), **column})
                continue
            columns.append({"of": column, "show": "perplexity", "as": column})
            columns += [{"of": column, "show": beside, "as": beside} for beside in asked.get("beside", ())]
        return columns

    def lines(self) -> list[dict[str, Any]]:
        """The labels of the lines: as named, or as they come in the data, those alike in the first label together."""
        if self.names:
            return [{self.labels[0]: name} for name in self.names]
        found = [row for row in self.rows if self.dense or row["row"] != DENSE]
        lines = [dict(pairs) for pairs in dict.fromkeys(tuple((k, row[k]) for k in self.labels) for row in found)]
        first = [line[self.labels[0]] for line in lines]
        return sorted(lines, key=lambda line: first.index(line[self.labels[0]]))

    def _found(self, line: dict[str, Any], column: dict[str, Any]) -> list[dict[str, Any]]:
        return chosen(self.rows, {**line, **({self.across: column["of"]} if "of" in column else {})})

    def _closed(self, line: dict[str, Any], column: dict[str, Any]) -> float | None:
        # share of the gap closed = (base − row) / (base − dense), of mean perplexities
        where = {**line, self.across: column["of"]}
        whole, start, value = (
            mean(chosen(self.rows, {**where, **change}), "perplexity")
            for change in ({"row": DENSE}, {"row": self.base}, {})
        )
        return None if None in (whole, start, value) or start == whole else (start - value) / (start - whole)

    def cell(self, line: dict[str, Any], column: dict[str, Any]) -> str:
        """One cell: mean ± deviation over the draws; the median of seconds; words as they are."""
        measure = column["show"]
        if measure == "closed":
            closed = self._closed(line, column)
            return "" if closed is None else f"{100 * closed:.0f} %"
        found = [row for row in self._found(line, column) if row.get(measure) is not None]
        values = [row[measure] for row in found]
        if not values:
            return ""
        if isinstance(values[0], str):
            return values[0]
        if measure == "seconds":
            return f"{statistics.median(values):.{column.get('digits', 1)}f}"
        if isinstance(values[0], int):
            return f"{values[0]:,}"
        digits = column.get("digits", 2)
        several = len(values) > 1 and "seed" in found[0]
        deviation = statistics.stdev(values) if several else found[0].get(f"{measure}_deviation")
        return f"{statistics.mean(values):.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")

    def markdown(self) -> list[str]:
        """The table's lines."""
        lines = self.lines()
        cells = [[self.cell(line, column) for column in self.columns] for line in lines]
        for number, column in enumerate(self.columns):
            means = [mean(self._found(line, column), "perplexity") for line in lines]
            if self.bold and column["show"] == "perplexity" and len([m for m in means if m is not None]) > 1:
                best = min(m for m in means if m is not None)
                for row, value in zip(cells, means, strict=True):
                    row[number] = f"**{row[number]}**" if value == best else row[number]
        names = [" | ".join(str(value) for value in line.values()) for line in lines]
        beside = [" " for _ in self.labels[1:]]
        return [
            f"| {' | '.join([self.title or self.labels[0], *(self.labels[1:] if not self.title else beside)])} | "
            + " | ".join(column["as"] for column in self.columns)
            + " |",
            f"|{'---|' * len(self.labels)}{'---:|' * len(self.columns)}",
            *(f"| {' | '.join([name, *row])} |" for name, row in zip(names, cells, strict=True)),
        ]


def tables(asked: dict[str, Any]) -> str:
    """The table that a page asks for, or one for each value of the key that splits it."""
    names = asked["data"] if isinstance(asked["data"], list) else [asked["data"]]
    where = asked.get("where", {})
    rows = chosen([row for name in names for row in read(name)], where)
    split = asked.get("split")
    if not split:
        return "\n".join(Table(rows, asked).markdown())
    made = []
    for value in dict.fromkeys(row[split] for row in rows):
        part = chosen(rows, {split: value})
        whole = mean(chosen(part, {"row": DENSE}), "perplexity")
        title = str(value) if whole is None else f"{value}, dense {whole:.2f}"
        made.append("\n".join(Table(part, asked, title).markdown()))
    return "\n\n".join(made)


def stamp(page: str) -> str:
    """What the tables of a page are from."""
    asked = [yaml.safe_load(found[3])["data"] for found in MARK.finditer(page) if found[2] == "table"]
    names = dict.fromkeys(name for data in asked for name in (data if isinstance(data, list) else [data]))
    parts = []
    for name in names:
        commits = dict.fromkeys(row["commit"] for row in read(name) if "commit" in row)
        parts.append(f"[{name}](data/{name}.jsonl)" + (f" ({', '.join(commits)})" if commits else ""))
    return f"Tables made by `python benchmarks/pages.py`, of the data recorded in these commits: {'; '.join(parts)}."


def made(page: str) -> str:
    """The page, with each table and stamp made anew."""

    def part(found: re.Match[str]) -> str:
        body = tables(yaml.safe_load(found[3])) if found[2] == "table" else stamp(page)
        return f"{found[1]}\n{body}\n\n{found[4]}"

    return MARK.sub(part, page)


def main() -> int:
    """Writes every page anew, or says which are not as the data has them."""
    parser = argparse.ArgumentParser(description="Makes the tables of results/ from results/data.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where a page would change")
    check = parser.parse_args().check
    changed = [file for file in PAGES if (page := file.read_text(encoding="utf-8")) != made(page)]
    for file in changed:
        print(f"{file.relative_to(ROOT)}: {'not as the data has it' if check else 'made anew'}")
        if not check:
            file.write_text(made(file.read_text(encoding="utf-8")), encoding="utf-8")
    return int(check and bool(changed))


if __name__ == "__main__":
    sys.exit(main())
