"""docs/results.md and its figures, from the committed records alone.

    prompt-jax ledger out/prompt_length_micro --json=docs/ledger/prompt_length_micro.json
    python tools/make_results.py

For each docs/ledger/STUDY.json the figures that gin/studies/STUDY.gin names are drawn into
docs/results/; what they say is written by hand in docs/findings/STUDY.md and is put above them.
"""

import argparse
import pathlib

from prompt_jax.config import resolve
from prompt_jax.study import page, records
from prompt_jax.study.study import STUDY

DOCS = pathlib.Path(__file__).resolve().parents[1] / "docs"
# The headline first.
ORDER = (
    *("power_of_scale_micro", "prompt_length_micro", "prompt_init_micro", "learning_rate_micro"),
    *("pretraining_micro", "lm_adaptation_steps_micro", "domain_shift_micro", "ensemble_micro"),
    *("few_shot_micro", "transfer_micro", "methods_micro"),
    "methods_taught_micro",
)
HEAD = """# What was measured

The studies of Lester et al. 2021 and SPoT, and the methods beside prompt tuning, on the embedded
family (its card: `prompt_jax/assets/MODEL_CARD.md`): 0.8, 1.8 and 5.0 million parameters,
pretrained by this project for minutes. What holds at this size says little about XXL; the same
files run the published sizes (`gin/studies/`). Made from `docs/ledger` by
`python tools/make_results.py`; every number of a figure is in the CSV beside it.
"""


def section(name: str, out: pathlib.Path) -> str:
    """A study's part of the page; its figures are written."""
    study = resolve([f"studies/{name}.gin"], registry=STUDY, root="Study").run
    found = records.read([str(DOCS / "ledger" / f"{name}.json")])
    lines = [f"## {study.description}", ""]
    findings = DOCS / "findings" / f"{name}.md"
    if findings.exists():
        lines += [findings.read_text().strip(), ""]
    for part in study.report:
        drawn, file = part.draw(found), f"{name}-{part.name}"
        (out / f"{file}.csv").write_bytes(page.csv_bytes(*page.flat(drawn.rows)))
        if drawn.cells:
            lines += [page.markdown(drawn.cells[0], drawn.cells[1:]), ""]
            continue
        (out / f"{file}.png").write_bytes(drawn.png)
        (out / f"{file}.svg").write_text(drawn.svg)
        lines += [f"![{drawn.title}](results/{file}.png)", ""]
    lines += [f"`studies/{name}.gin`: {page.facts_of(found)}.", ""]
    return "\n".join(lines)


def main() -> None:
    """Writes the page."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    out = DOCS / "results"
    out.mkdir(exist_ok=True)
    for old in out.iterdir():
        old.unlink()
    names = [path.stem for path in (DOCS / "ledger").glob("*.json")]
    names.sort(key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))
    text = "\n".join([HEAD, *(section(name, out) for name in names)])
    (DOCS / "results.md").write_text(text)
    print(f"{DOCS / 'results.md'}: {len(names)} studies")


if __name__ == "__main__":
    main()
