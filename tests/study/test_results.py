"""docs/results.md is what its records say."""

import csv
import io
import pathlib

import pytest

from prompt_jax.config import resolve
from prompt_jax.study import page, records
from prompt_jax.study.study import STUDY

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs"
LEDGERS = sorted((DOCS / "ledger").glob("*.json"))


@pytest.mark.parametrize("ledger", LEDGERS, ids=lambda path: path.stem)
def test_every_figure_has_the_numbers_of_its_records(ledger):
    study = resolve([f"studies/{ledger.stem}.gin"], registry=STUDY, root="Study").run
    found = records.read([str(ledger)])
    assert {record["study"] for record in found} == {study.name}
    text = (DOCS / "results.md").read_text()
    assert study.report and page.facts_of(found) in text
    for part in study.report:
        rows = part.rows(part.differences(part.select(found)))
        there = (DOCS / "results" / f"{ledger.stem}-{part.name}.csv").read_text()
        assert page.csv_bytes(*page.flat(rows)).decode() == there
        assert len(list(csv.DictReader(io.StringIO(there)))) == len(rows) > 0
        if not part.cells(rows):
            assert f"(results/{ledger.stem}-{part.name}.png)" in text
            assert (DOCS / "results" / f"{ledger.stem}-{part.name}.png").stat().st_size > 5000


def test_every_page_of_findings_has_records():
    names = {path.stem for path in LEDGERS}
    assert {path.stem for path in (DOCS / "findings").glob("*.md")} <= names
