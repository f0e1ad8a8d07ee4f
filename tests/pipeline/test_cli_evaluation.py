"""evaluate and score through the command line: what they print, write and refuse, and that they agree."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.stages.evaluation.official_files import write_gqa, write_lines, write_mme, write_pope
from tests.stages.models.world import folder_of

from betakd_pipe.cli import main

OPTIONS = ("--set", "max_new_tokens=3", "--set", "batch_size=8")


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, str]:
    """What a call that must succeed prints, a line per number."""
    assert main(arguments) == 0
    return dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())


def test_evaluate_writes_what_score_scores_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gqa, pope, out = write_gqa(tmp_path / "gqa"), write_pope(tmp_path / "pope"), tmp_path / "scores"
    asked = ("--benchmark", gqa, "--benchmark", pope, *OPTIONS, "--out", str(out))
    evaluated = printed(capsys, "evaluate", str(folder_of("llava (CLIP)")), *asked)
    for name, specification in (("gqa", gqa), ("pope", pope)):
        predictions, file = str(out / name / "predictions.jsonl"), tmp_path / f"{name}.json"
        scored = printed(
            *(capsys, "score", "--benchmark", specification, "--predictions", predictions, "--json", str(file))
        )
        assert {line: evaluated[f"{name}.{line}"] for line in scored} == scored
        written = json.loads(file.read_text(encoding="utf-8"))
        there = json.loads((out / name / "scores.json").read_text(encoding="utf-8"))
        assert written == {key: there[key] for key in written}
    assert "(95 %: " in evaluated["gqa.official.accuracy"]
    assert not [line for line in evaluated if "reliability" in line]


def test_score_says_how_far_one_file_is_above_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    specification = write_gqa(tmp_path)
    answers = {"201": "Yes", "202": "dog.", "203": "left", "204": "blue"}
    files = [
        write_lines(tmp_path / f"{name}.jsonl", [{"question_id": key, "text": text} for key, text in rows.items()])
        for name, rows in (("good", answers), ("bad", dict.fromkeys(answers, "yes")))
    ]
    common = ("score", "--benchmark", specification, "--predictions", str(files[0]))
    found = printed(capsys, *common, "--against", str(files[1]))
    assert found["official.accuracy"].startswith("75 (95 %: ")
    assert found["difference.accuracy.difference"] == "50"
    assert found["difference.mcnemar_p_value"] == "0.5"


def test_score_needs_no_images_and_no_torch(tmp_path: Path) -> None:
    specification = write_mme(tmp_path / "mme")
    rows = []
    for file in sorted((tmp_path / "mme").rglob("*.png")):
        task, prompts = file.relative_to(tmp_path / "mme").parts[0], ("Is it 0?", "Is it 1?")
        rows += [{"question_id": f"{task}/{file.name}", "prompt": prompts[int(file.stem)], "text": "yes"}]
        rows += [{"question_id": f"{task}/{file.name}", "prompt": f"Is it not?  {task}", "text": "yes"}]
        file.unlink()
    answers = write_lines(tmp_path / "answers.jsonl", rows)
    script = (
        "import sys\nfrom betakd_pipe.cli import main\n"
        f"assert main(['score', '--benchmark', {specification!r}, '--predictions', {str(answers)!r}]) == 0\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "official.perception: 500 (95 %: 500 to 500)" in done.stdout


def test_what_cannot_be_scored_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    specification, absent = write_gqa(tmp_path), str(tmp_path / "absent.jsonl")
    for arguments, message in (
        (("--benchmark", specification, "--predictions", absent), "absent.jsonl cannot be read"),
        (("--benchmark", "gqa", "--predictions", absent), "benchmark 'gqa' names no files: expected gqa=PATH"),
        (("--benchmark", specification), "Missing option '--predictions'"),
    ):
        assert main(["score", *arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        assert message in captured.err


def test_a_refused_evaluation_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, model = tmp_path / "scores", str(folder_of("llava (CLIP)"))
    assert main(["evaluate", model, "--benchmark", "mmbench=absent.tsv", "--out", str(out)]) == 2
    assert "data file absent.tsv cannot be read" in capsys.readouterr().err
    assert main(["evaluate", model, "--out", str(out)]) == 2
    assert "benchmark is missing; expected NAME=PATH" in capsys.readouterr().err
    assert not out.exists()
