"""Teacher backends side by side: what each takes to score the same ready samples, in rounds of one after the other.

Scoring alone is timed: samples are read and encoded before, records are not written. Beside transformers run two
engines of vLLM, the one with the one-pass extension and the other without; each is also asked for nothing but its one
new token, which is its plain prefill. An engine that waits takes no processor time. Every image is a new one to the
engines, which would else not run the tower a second time.

Processor seconds, of this process and of those it has started, say on a shared machine what wall time does not; on a
GPU they say little.
"""

import contextlib
import dataclasses
import importlib.util
import statistics
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import psutil  # type: ignore[import-untyped]  # comes with accelerate, without types
import torch

from benchmark_work import Work
from betakd_cache import TokenRule
from betakd_stages.caching.batching import length_buckets
from betakd_stages.encoding import EncodedSample
from betakd_stages.models.loading import LoadedModel
from betakd_stages.settings import CacheTeacherSettings
from betakd_stages.teachers.base import Teacher
from betakd_stages.teachers.opening import open_hf_teacher, token_rule

PLAIN = "vLLM: plain prefill"
PROMPT_LOGPROBS = (20, 64)
"""K of the stable interface: the limit that vLLM has unless told otherwise, and this project's default."""
RATIOS = {"wall / plain": "seconds", "CPU / plain": "processor_seconds"}
HAS_VLLM = importlib.util.find_spec("vllm") is not None


@dataclass(frozen=True, slots=True)
class Contestant:
    """A way to score samples."""

    title: str
    score: Callable[[Sequence[EncodedSample]], None]


@dataclass(frozen=True, slots=True)
class Taken:
    """What scoring all samples once has taken."""

    seconds: float
    processor_seconds: float


def compare_backends(
    settings: CacheTeacherSettings, loaded: LoadedModel, encoded: Sequence[EncodedSample], num_rounds: int
) -> dict[str, list[Taken]]:
    """What each backend of this environment takes, by title, one per round."""
    taken: dict[str, list[Taken]] = {}
    with contextlib.ExitStack() as stack:
        contestants = [_transformers(settings, loaded)]
        if HAS_VLLM:
            contestants += [*_one_pass(settings, stack), *_prompt_log_probabilities(settings, stack)]
        for contestant in contestants:
            contestant.score(_with_new_images(encoded[: settings.batch_size]))  # the first call is always slow
        for number in range(num_rounds):
            for contestant in contestants:
                taken.setdefault(contestant.title, []).append(_timed(contestant, _with_new_images(encoded)))
            seconds = ", ".join(f"{title} {rounds[-1].seconds:.1f}" for title, rounds in taken.items())
            print(f"round {number + 1} of {num_rounds}, seconds: {seconds}", file=sys.stderr, flush=True)
    return taken


def _timed(contestant: Contestant, encoded: Sequence[EncodedSample]) -> Taken:
    start_s, processor_s = time.perf_counter(), _processor_seconds()
    contestant.score(encoded)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return Taken(time.perf_counter() - start_s, _processor_seconds() - processor_s)


def _processor_seconds() -> float:
    """Those of this process and of all that it has started and that are at work."""
    this = psutil.Process()
    times = [process.cpu_times() for process in (this, *this.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def _with_new_images(encoded: Sequence[EncodedSample]) -> list[EncodedSample]:
    """The samples with images of names that no engine has met."""
    return [dataclasses.replace(sample, image_sha256=sample.image_sha256 and uuid.uuid4().hex) for sample in encoded]


def _transformers(settings: CacheTeacherSettings, loaded: LoadedModel) -> Contestant:
    teacher = open_hf_teacher(settings, loaded)

    def score(encoded: Sequence[EncodedSample]) -> None:
        for bucket in length_buckets([len(sample.input_ids) for sample in encoded], settings.batch_size):
            _require_all(teacher, [encoded[place] for place in bucket])

    return Contestant("transformers, buckets", score)


def _one_pass(settings: CacheTeacherSettings, stack: contextlib.ExitStack) -> Iterator[Contestant]:
    """The engine with the extension: asked for nothing, then for everything."""
    from betakd_stages.teachers.vllm.opening import open_vllm_teacher

    teacher = open_vllm_teacher(settings.model_copy(update={"backend": "vllm"}), token_rule(settings))
    stack.enter_context(contextlib.closing(teacher))
    yield Contestant(PLAIN, lambda encoded: _prefill(teacher, encoded))
    yield Contestant("vLLM: one pass", lambda encoded: _require_all(teacher, encoded))


def _prompt_log_probabilities(settings: CacheTeacherSettings, stack: contextlib.ExitStack) -> Iterator[Contestant]:
    """The engine without it: asked for nothing, then for log probabilities of several K."""
    from betakd_stages.teachers.vllm.opening import open_vllm_teacher

    rules = [TokenRule(top_k=k, top_p=settings.top_p, temperatures=(1.0,)) for k in PROMPT_LOGPROBS]
    changes = {"backend": "vllm_prompt_logprobs", "temperatures": (1.0,), "features": ()}
    teacher = open_vllm_teacher(settings.model_copy(update=changes), rules[-1])  # the engine takes up to the last K
    stack.enter_context(contextlib.closing(teacher))

    def score(rule: TokenRule, encoded: Sequence[EncodedSample]) -> None:
        teacher.token_rule = rule
        _require_all(teacher, encoded)

    yield Contestant("no extension: plain", lambda encoded: _prefill(teacher, encoded))
    for rule in rules:
        title = f"prompt logprobs, K = {rule.top_k}"
        yield Contestant(title, lambda encoded, rule=rule: score(rule, encoded))  # type: ignore[misc]


def _require_all(teacher: Teacher, encoded: Sequence[EncodedSample]) -> None:
    """Score, and see that every sample has a record: a rejected one would cost less."""
    scored = teacher.score(encoded)
    if len(scored.records) != len(encoded):
        raise SystemExit(f"{len(scored.rejected)} samples have no record: {next(iter(scored.rejected.values()))}")


def _prefill(teacher: Any, encoded: Sequence[EncodedSample]) -> None:
    """The same inputs through the engine of a teacher, asked for one new token and nothing else."""
    from vllm import SamplingParams

    parameters = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False)
    teacher._engine.run(encoded, [parameters] * len(encoded), teacher.encoder.image_token_id)


def backend_rows(taken: dict[str, list[Taken]], work: Work, peak: float) -> list[dict[str, Any]]:
    """One backend's figures each: medians over the rounds."""
    rows = []
    for title, rounds in taken.items():
        seconds = statistics.median(each.seconds for each in rounds)
        rows.append(
            {
                "run": title,
                "seconds": seconds,
                "samples_per_s": work.num_samples / seconds,
                "answer_positions_per_s": work.num_answer_tokens / seconds,
                "share_of_peak": work.operations / seconds / peak,
                "rounds": [dataclasses.asdict(each) for each in rounds],
                **{name: _ratios(rounds, taken.get(PLAIN, []), name) for name in RATIOS},
            }
        )
    return rows


def _ratios(rounds: Sequence[Taken], plain: Sequence[Taken], ratio: str) -> list[float]:
    """Least, median and greatest of what a backend takes over what the plain prefill of the same round takes."""
    name = RATIOS[ratio]
    ratios = [getattr(mine, name) / getattr(base, name) for mine, base in zip(rounds, plain, strict=False)]
    return [min(ratios), statistics.median(ratios), max(ratios)] if ratios else []
