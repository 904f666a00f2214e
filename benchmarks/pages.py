"""Makes the tables of results/ from results/data/*.jsonl, where `<!-- table: … -->` asks for one.

    python benchmarks/pages.py

A line of data is one run: its `model`, `protocol` (what was cut, how much), `row` (the method), `seed`, `perplexity`,
further measures, and the `commit` that made or recorded it. Where no draw was kept, `seed` is null, and `mean`,
`deviation` and `draws` stand for the perplexity, until there is a draw. A table is asked for in YAML:

    data: name of a file, or a list of them
    where: {key: value, or list of values}, of the lines of data that count
    split: key of which each value has a table of its own, and is named in its head
    lines: keys of a line's label (row)
    names: the labels wanted, in this order, instead of all, as they come
    across: key that tells columns apart (protocol)
    columns: values of that key; or {of: value, show: measure, as: title, digits: 2}, without `of` of any value, and
        with `range: true` from the least to the most; of `closed`, `by: loss` says what it is the share of (perplexity)
    beside: measures that follow each column that is a mere value
    base: the row from which `closed` counts the gap to the dense model (taylor)
    dense: true gives the dense model a line
    best: false leaves the best perplexity of each column as it is, not bold
    has: a measure; runs without it do not count

What stands from the comment to `<!-- end -->` is made, the rest of a page written by hand. `<!-- stamp -->` names the
data of a page, and their commits; `<!-- missing: NAME -->` lists what a study has not measured yet.
"""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
DATA = ROOT / "results" / "data"
MARK = re.compile(r"(<!-- (table|stamp|missing)(?::\s(.*?))?\s-->\n).*?(<!-- end -->)", re.S)
DENSE = "dense"
Run = dict[str, Any]


def read(name: str) -> list[Run]:
    """The lines of a file of data; `perplexity` and `perplexity_deviation` are there where a mean was kept."""
    names = {"mean": "perplexity", "deviation": "perplexity_deviation"}
    text = (DATA / f"{name}.jsonl").read_text(encoding="utf-8")
    return [{names.get(key, key): value for key, value in json.loads(line).items()} for line in text.splitlines()]


def listed(value: Any) -> list[Any]:
    """A list as it is, a value as a list of one."""
    return value if isinstance(value, list) else [value]


def chosen(runs: list[Run], where: dict[str, Any]) -> list[Run]:
    """The runs that have these values; the dense model has every protocol and seed."""

    def fits(run: Run, key: str, wanted: Any) -> bool:
        return (run["row"] == DENSE and key in ("protocol", "seed")) or run.get(key) in listed(wanted)

    return [run for run in runs if all(fits(run, key, wanted) for key, wanted in where.items())]


class Table:
    """One table of some runs, as a page asks for it."""

    def __init__(self, runs: list[Run], asked: dict[str, Any], title: str = "") -> None:
        self.runs = runs
        self.asked = {"lines": ["row"], "across": "protocol", "base": "taylor", "best": True, "dense": False} | asked
        self.title = title
        named = dict.fromkeys(run[self.asked["across"]] for run in runs if run["row"] != DENSE)
        self.columns: list[dict[str, Any]] = []
        for column in asked.get("columns", named):
            whole = column if isinstance(column, dict) else {"of": column}
            self.columns.append({"show": "perplexity", "as": whole.get("show", whole.get("of"))} | whole)
            if whole is not column:
                self.columns += [{"of": column, "show": beside, "as": beside} for beside in asked.get("beside", ())]

    def lines(self) -> list[dict[str, Any]]:
        """What labels the lines; those alike in the first label stand together."""
        keys = self.asked["lines"]
        if "names" in self.asked:
            return [{keys[0]: name} for name in self.asked["names"]]
        runs = [run for run in self.runs if self.asked["dense"] or run["row"] != DENSE]
        lines = [dict(pairs) for pairs in dict.fromkeys(tuple((key, run[key]) for key in keys) for run in runs)]
        first = [line[keys[0]] for line in lines]
        return sorted(lines, key=lambda line: first.index(line[keys[0]]))

    def found(self, where: dict[str, Any], measure: str) -> list[Run]:
        """The runs of a cell: its draws, or what was kept of them."""
        runs = [run for run in chosen(self.runs, where) if run.get(measure) is not None]
        if "row" not in where and where.get("protocol"):
            runs = [run for run in runs if run["row"] != DENSE]
        return [run for run in runs if run.get("seed") is not None] or runs

    def mean(self, where: dict[str, Any], measure: str = "perplexity") -> float | None:
        """The mean of a cell."""
        runs = self.found(where, measure)
        return statistics.mean(run[measure] for run in runs) if runs else None

    def closed(self, where: dict[str, Any], by: str | None) -> str:
        """(base − row) / (base − dense), of mean perplexities; of another measure also ± its deviation over draws."""
        measure, rows = by or "perplexity", ({}, {"row": self.asked["base"]}, {"row": DENSE})
        value, base, dense = (self.mean(where | of, measure) for of in rows)
        if value is None or base is None or dense is None or base == dense:
            return ""
        draws = [run[measure] for run in self.found(where, measure)] if by else []
        spread = 100 * statistics.stdev(draws) / abs(base - dense) if len(draws) > 1 else None
        share = f"{100 * (base - value) / (base - dense):.0f}"
        return f"{share} %" if spread is None else f"{share} ± {spread:.0f} %"

    def cell(self, where: dict[str, Any], column: dict[str, Any]) -> str:
        """Mean ± deviation over the draws; the median of seconds; a word or a whole number as it is."""
        measure = column["show"]
        if measure == "closed":
            return self.closed(where, column.get("by"))
        runs = self.found(where, measure)
        values = [value for run in runs for value in listed(run[measure])]
        if not values or isinstance(values[0], str):
            return values[0] if values else ""
        if isinstance(values[0], int) and len(values) == 1:
            return f"{values[0]:,}"
        digits = column.get("digits", 1 if measure == "seconds" else 2)
        if column.get("range"):
            return f"{min(values):.{digits}f}–{max(values):.{digits}f}"
        if measure == "seconds":
            return f"{statistics.median(values):.{digits}f}"
        spread = runs[0].get(f"{measure}_deviation")
        if len(values) > 1 and runs[0].get("seed") is not None:
            spread = statistics.stdev(values)
        return f"{statistics.mean(values):.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")

    def markdown(self) -> str:
        """The table."""
        lines, keys = self.lines(), self.asked["lines"]
        rows = [[" | ".join(line.values())] for line in lines]
        for column in self.columns:
            wheres = [line | ({self.asked["across"]: column["of"]} if "of" in column else {}) for line in lines]
            cells = [self.cell(where, column) for where in wheres]
            if column["show"] == "perplexity" and self.asked["best"]:
                means = [self.mean(where) for where in wheres]
                known = [mean for mean in means if mean is not None]
                cells = [
                    f"**{cell}**" if len(known) > 1 and mean == min(known) else cell
                    for cell, mean in zip(cells, means, strict=True)
                ]
            for row, cell in zip(rows, cells, strict=True):
                row.append(cell)
        head = [self.title or keys[0], *keys[1:], *(column["as"] for column in self.columns)]
        rule = "---|" * len(keys) + "---:|" * len(self.columns)
        return "\n".join([f"| {' | '.join(head)} |", f"|{rule}", *(f"| {' | '.join(row)} |" for row in rows)])


def tables(asked: dict[str, Any]) -> str:
    """The table that a page asks for, or one for each value of the key that splits it."""
    runs = chosen([run for name in listed(asked["data"]) for run in read(name)], asked.get("where", {}))
    runs = [run for run in runs if "has" not in asked or run.get(asked["has"]) is not None]
    if "split" not in asked:
        return Table(runs, asked).markdown()
    found = []
    for value in dict.fromkeys(run[asked["split"]] for run in runs if run["row"] != DENSE):
        part = chosen(runs, {asked["split"]: value})
        dense = Table(part, asked).mean({"row": DENSE})
        found.append(Table(part, asked, value if dense is None else f"{value}, dense {dense:.2f}").markdown())
    return "\n\n".join(found)


def stamp(page: str) -> str:
    """What the tables of a page are made of."""
    asked = [yaml.safe_load(found[3])["data"] for found in MARK.finditer(page) if found[2] == "table"]
    parts = []
    for name in dict.fromkeys(name for data in asked for name in listed(data)):
        commits = dict.fromkeys(one for run in read(name) if "commit" in run for one in run["commit"].split(", "))
        parts.append(f"[{name}](data/{name}.jsonl)" + (f" ({', '.join(commits)})" if commits else ""))
    return f"Tables made by `python benchmarks/pages.py`; data, and the commits it was recorded in: {'; '.join(parts)}."


def missing(name: str) -> str:
    """Which runs of a study are not there, by protocol and draw, and which are without some of their measures."""
    from study import read_study  # torch is needed here alone

    study, data = read_study(ROOT / "benchmarks" / "studies" / f"{name}.yaml"), DATA / f"{name}.jsonl"
    known = {(r["model"], r["protocol"], r["row"], r["seed"]): r for r in (read(name) if data.is_file() else ())}
    lines = []
    for model in study.models:
        every: dict[tuple, set[str]] = {}
        for protocol, row, seed in study.runs(model, study.rows, study.protocols, study.seeds):
            every.setdefault((protocol, seed), set()).add(row)
        left: dict[tuple, dict[str, str]] = {}
        for (protocol, row, seed), measures in study.missing(model, known):
            some = f" ({', '.join(measures)})" if (model, protocol, row, seed) in known else ""
            left.setdefault((protocol, seed), {})[row] = f"{row}{some}"
        places = ["", *study.protocols]
        for key, rows in sorted(left.items(), key=lambda one: (places.index(one[0][0]), one[0][1] or 0)):
            whole = rows.keys() == every.get(key) and not any((model, key[0], row, key[1]) in known for row in rows)
            lines.append(f"| {key[0] or DENSE} | {key[1]} | {'all' if whole else '; '.join(rows.values())} |")
    if not lines:
        return "Nothing is missing."
    return "\n".join(["| protocol | draw | rows that are not measured yet |", "|---|---:|---|", *lines])


def made(page: str) -> str:
    """The page, with each table and stamp made anew."""

    def part(found: re.Match[str]) -> str:
        kind, asked = found[2], yaml.safe_load(found[3] or "")
        body = tables(asked) if kind == "table" else missing(asked) if kind == "missing" else stamp(page)
        return f"{found[1]}\n{body}\n\n{found[4]}"

    return MARK.sub(part, page)


def main() -> None:
    """Writes every page anew."""
    for file in sorted((ROOT / "results").glob("*.md")):
        page = file.read_text(encoding="utf-8")
        if (new := made(page)) != page:
            file.write_text(new, encoding="utf-8")
            print(f"{file.relative_to(ROOT)}: made anew")


if __name__ == "__main__":
    main()
