"""Fills a template with the results of scenarios.

    render.py TEMPLATE FOLDER SECONDS

FOLDER holds one JSON file per scenario, as `amoe simulate --json` prints it. In the template

    {=ID}              is the measured value of a result
    {run FILE ID KEY}  is a measurement of a run (the first of its sweep; FILE without .json), `a.b` for a nested one
    {table ID ...}     is a table of results, a row each; an ID that ends with * takes all that begin so
    {pivot REGEX}      is a table of all results whose ids match; groups `row` and `col` name rows and columns
    {seconds}          is how long everything took

A result that nothing in the template shows is an error, as is one that does not exist.
"""

import json
import pathlib
import re
import sys


def figure(value):
    """Three significant digits, or whole numbers from 1000 on."""
    if value is None:
        return "–"
    if abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) >= 1 else f"{value:.2f}"


def with_paper(result):
    paper = result.get("paper")
    return figure(result["measured"]) + (f" (paper {figure(paper)})" if paper is not None else "")


class Report:
    def __init__(self, folder, seconds):
        self.files = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
        self.results = {result["id"]: result for file in self.files.values() for result in file["results"]}
        self.seconds = seconds
        self.shown = set()

    def take(self, wanted):
        found = [key for key in self.results if key == wanted or (wanted.endswith("*") and key.startswith(wanted[:-1]))]
        if not found:
            sys.exit(f"the template shows {wanted}, which no scenario works out")
        self.shown.update(found)
        return [self.results[key] for key in found]

    def table(self, wanted):
        rows = [result for name in wanted.split() for result in self.take(name)]
        lines = ["| | | paper | measured |", "|---|---|---|---|"]
        for row in rows:
            lines.append(f"| {row['id']} | {row['quantity']} | {figure(row.get('paper'))} | {figure(row['measured'])} |")
        return "\n".join(lines)

    def pivot(self, pattern):
        found = {key: match for key in self.results if (match := re.fullmatch(pattern, key))}
        if not found:
            sys.exit(f"the template shows {pattern}, which no scenario works out")
        self.shown.update(found)
        rows, cols, cells = [], [], {}
        for key, match in found.items():
            row, col = match["row"], match["col"]
            rows += [row] if row not in rows else []
            cols += [col] if col not in cols else []
            cells[row, col] = with_paper(self.results[key])
        lines = ["| | " + " | ".join(cols) + " |", "|---" * (len(cols) + 1) + "|"]
        lines += [f"| {row} | " + " | ".join(cells.get((row, col), "–") for col in cols) + " |" for row in rows]
        return "\n".join(lines)

    def run(self, arguments):
        file, run, key = arguments.split()
        value = next((each["outcome"] for each in self.files[file]["runs"] if each["id"] == run), None)
        if value is None:
            sys.exit(f"the template shows run {run}, which {file} does not have")
        for part in key.split("."):
            value = value[part]
        return figure(value)

    def fill(self, match):
        kind, rest = match[1], match[2].strip()
        if kind == "=":
            return figure(self.take(rest)[0]["measured"])
        if kind == "seconds":
            return str(self.seconds)
        return {"run": self.run, "table": self.table, "pivot": self.pivot}[kind](rest)


def main():
    template, folder, seconds = sys.argv[1:]
    report = Report(pathlib.Path(folder), seconds)
    text = pathlib.Path(template).read_text()
    text = re.sub(r"\{(=|run|table|pivot|seconds)((?:[^{}\n]|\{\d+\})*)\}", report.fill, text)
    unseen = sorted(set(report.results) - report.shown)
    if unseen:
        sys.exit(f"nothing shows {', '.join(unseen)}")
    print(text, end="")


main()
