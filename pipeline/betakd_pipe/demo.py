"""`betakd-pipe demo`: both stages on real handwritten digits, several methods from one cache, a table and a report.

Teachers and students are tiny models in a real architecture; what is injected (label noise, a teacher that is ignorant
of some questions) is said in the report. The spec.yaml in a scenario's folder is for `betakd-pipe ablate`.
    D1  a good teacher; 30 % of the transfer labels wrong
    D2  a teacher that learned nothing about two question types; 40 % of the labels of the other two types wrong
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from betakd_pipe.ablation.rows import ResultRow
from betakd_pipe.ablation.run import Ablation, AblationResult, run_ablations
from betakd_pipe.ablation.spec import AblationSpec
from betakd_pipe.ablation.table import print_table
from betakd_pipe.config import load_settings
from betakd_pipe.demo_results import conclusions, teacher_rows, write_demo_results
from betakd_pipe.scenarios import DEMO_SCENARIOS, TEACHER_STEPS, Scenario, filled_in, prepare_all
from betakd_stages.errors import ConfigError
from betakd_stages.progress import Progress

RECIPE = Path(__file__).parent / "recipes" / "demo.yaml"
QUICK_STEPS = 60


def run_demo(
    out: Path,
    seeds: Sequence[int],
    quick: bool,
    progress: Progress,
    energies: Sequence[str] = (),
    weighting: str | None = None,
) -> int:
    """The exit code; writes `out`/report.html, results.csv and the runs of each scenario and seed.

    `energies` and `weighting` by name make one method more than the recipe's. Raises ConfigError for no seed, for
    unknown names, or where `out` holds the runs of other settings.
    """
    if not seeds:
        raise ConfigError("--seeds names no seed: give some, such as 0,1,2")
    added = added_method(energies, weighting)
    prepare_all(DEMO_SCENARIOS, out, seeds, QUICK_STEPS if quick else TEACHER_STEPS, progress)
    ablations = [_ablation(scenario, out / scenario.name, seeds, quick, added) for scenario in DEMO_SCENARIOS]
    results = run_ablations(ablations, progress=progress)
    rows = {
        scenario.name: [*teacher_rows(out / scenario.name, seeds), *result.rows]
        for scenario, result in zip(DEMO_SCENARIOS, results, strict=True)
    }
    write_demo_results(out, rows)
    return _show(out, rows, results, quick)


def added_method(energies: Sequence[str], weighting: str | None) -> dict[str, Any]:
    """The method `ENERGIES-WEIGHTING` as the recipe would hold it, fkl or task where only one is named; none for none.

    Raises ConfigError for an unknown name, listing the valid ones.
    """
    from betakd_stages.choices import pick
    from betakd_stages.energies import ENERGIES
    from betakd_stages.weightings import WEIGHTINGS

    if not energies and weighting is None:
        return {}
    energies, weighting = energies or ["fkl"], weighting or "task"
    for energy in energies:
        pick("energy", ENERGIES, energy)
    pick("weighting", WEIGHTINGS, weighting)
    name = f"{'+'.join(energies)}-{weighting}"
    return {name: {"objective": {"energies": list(energies)}, "weighting": {"name": weighting}}}


def _ablation(
    scenario: Scenario, folder: Path, seeds: Sequence[int], quick: bool, added: Mapping[str, Any]
) -> Ablation:
    """The recipe and an added method with the scenario's data and folders filled in."""
    tuning = [f"methods.fkl-fixed-tuned.tune.seed={seeds[0]}"]
    steps = [f"base.training.steps={QUICK_STEPS}"] if quick else []
    flags = {"seeds": list(seeds), "methods": added or None, **filled_in(scenario, folder)}
    spec = load_settings(AblationSpec, RECIPE, flags, [*tuning, *steps])
    return Ablation(spec, folder)


def _show(out: Path, rows: dict[str, list[ResultRow]], results: Sequence[AblationResult], quick: bool) -> int:
    from betakd_pipe.report import ReportScenario, write_report

    sentences = conclusions(rows)
    if quick:
        sentences = [f"A quick look with {QUICK_STEPS} steps a run: the students are not converged.", *sentences]
    page = write_report(
        out / "report.html",
        title="Beta-KD from a teacher cache: handwritten digits",
        summary=sentences,
        scenarios=[
            ReportScenario(scenario.name, scenario.description, rows[scenario.name], out / scenario.name)
            for scenario in DEMO_SCENARIOS
        ],
    )
    for scenario, result in zip(DEMO_SCENARIOS, results, strict=True):
        print(f"\n{scenario.name}: {scenario.description}")
        print_table(rows[scenario.name])
        for method, tuning in result.tuned.items():
            tried = ", ".join(f"{candidate.value:g}: {candidate.metric:.1f}" for candidate in tuning.candidates)
            print(f"{method}: beta {tuning.chosen:g} by validation accuracy on noisy labels ({tried})")
    print()
    for sentence in sentences:
        print(sentence)
    print(f"\nReport: {page}")
    failures = {run: reason for result in results for run, reason in result.failures.items()}
    for run, reason in failures.items():
        print(f"{run} failed: {reason}")
    return 1 if failures else 0
