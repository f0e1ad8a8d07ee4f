"""The student on held-out data."""

from betakd_stages.data import load_samples
from betakd_stages.evaluation.generation import greedy_answers
from betakd_stages.evaluation.metrics import exact_match, percent
from betakd_stages.models.loading import LoadedModel
from betakd_stages.processes import gather_from_processes


def validation_accuracy(
    student: LoadedModel, specification: str, process_index: int = 0, num_processes: int = 1
) -> float:
    """The share of validation labels that the student answers word for word, in percent.

    Of several processes, all of which have to call this, each measures a part, and all get the whole.
    """
    samples = load_samples(specification)
    part = [samples[place] for place in range(process_index, len(samples), num_processes)]
    answers = [
        answer.text for batch in greedy_answers(student, part, batch_size=256, max_new_tokens=16) for answer in batch
    ]
    matches = [exact_match(a, s.turns[0].answer) for a, s in zip(answers, part, strict=True)]
    parts = gather_from_processes(matches) if num_processes > 1 else [matches]
    return percent([match for part in parts for match in part])
