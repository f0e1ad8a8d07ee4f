"""Inside vLLM's worker: the head, top-k and the tail on answer rows only, and the features, in the teacher's one pass.

Asks vLLM for a `worker_extension_cls`, which is public, and takes the place of the runner's method that makes prompt
log probabilities, which is not: it is called once per step with the hidden states of every scheduled token, behind the
last norm. Known releases stand in `versions`.
B requests that end in a step, N supervised tokens of theirs, D hidden size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from betakd_cache import TokenRule
from betakd_stages.features import arrange
from betakd_stages.targets import CHUNK_ELEMENTS
from betakd_stages.teachers.records import flat_columns, targets_of

EXTRA = "betakd"
"""The key of SamplingParams.extra_args: `number`, the sample's place in its call, and `answers`, its spans."""
FINITE = "finite"
"""The column that says, bool `[N]`, where all logits are numbers."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is wanted of every request."""

    token_rule: TokenRule
    vocabulary_size: int
    layouts: Mapping[str, str]
    """Feature name -> layout."""


@dataclass(slots=True)
class Ended:
    """What is known of requests that have ended, in the order of `numbers`."""

    numbers: list[int] = field(default_factory=list)
    columns: list[dict[str, Tensor]] = field(default_factory=list)
    features: list[dict[str, Tensor]] = field(default_factory=list)

    def packed(self) -> bytes:
        """All tensors as one file of safetensors: columns by name, features as NAME.PLACE."""
        tensors = {name: torch.cat([part[name] for part in self.columns]) for name in self.columns[0]}
        for place, features in enumerate(self.features):
            tensors |= {f"{name}.{place}": values.contiguous() for name, values in features.items()}
        return safetensors.torch.save(tensors)


@dataclass(slots=True)
class Progress:
    """What of one request has been seen so far; chunked prefill takes several steps."""

    rows: list[Tensor] = field(default_factory=list)
    prompt_sum: Tensor | float = 0.0
    vision: Tensor | None = None


class AnswerScoring:
    """Mixed into the worker; its methods are called by name."""

    model_runner: Any

    def betakd_start(self, token_rule: dict[str, Any], vocabulary_size: int, layouts: dict[str, str]) -> None:
        """Score, from now on, every request that asks for it."""
        asked = Asked(TokenRule.from_json(token_rule), vocabulary_size, layouts)
        self.betakd_scorer = Scorer(self.model_runner, asked)
        self.model_runner._get_prompt_logprobs_dict = self.betakd_scorer.step

    def betakd_collect(self) -> tuple[list[int], bytes]:
        """The numbers of the requests that have ended since the last call, and their columns; none where another
        worker has them."""
        return self.betakd_scorer.collect()


class Scorer:
    """Collects the rows of open requests, and scores them when the prompt is at its end."""

    def __init__(self, runner: Any, asked: Asked) -> None:
        self._runner, self._asked = runner, asked
        self._open: dict[str, Progress] = {}
        self._ended = Ended()

    @torch.inference_mode()
    def step(self, hidden_states: Tensor, num_scheduled_tokens: Mapping[str, int]) -> dict[str, Any]:
        """Take what a step has computed `[scheduled tokens, D]`; vLLM itself gets no log probabilities."""
        ended = []
        for name, num_tokens in num_scheduled_tokens.items():
            request = self._runner.requests[name]
            asked = ((request.sampling_params and request.sampling_params.extra_args) or {}).get(EXTRA)
            first = request.num_computed_tokens
            if asked is None or first >= request.num_prompt_tokens:
                continue
            if first == 0:  # also where a request was put back and starts again
                self._open[name] = Progress()
            place = int(self._runner.query_start_loc.np[self._runner.input_batch.req_id_to_index[name]])
            stop = min(first + num_tokens, request.num_prompt_tokens)
            self._take(self._open[name], request, asked["answers"], first, hidden_states[place : place + stop - first])
            if stop == request.num_prompt_tokens:
                ended.append((asked, request, self._open.pop(name)))
        if ended:
            self._score(ended)
        return {}

    def collect(self) -> tuple[list[int], bytes]:
        """See `AnswerScoring.betakd_collect`."""
        ended, self._ended = self._ended, Ended()
        return (ended.numbers, ended.packed()) if ended.columns else ([], b"")

    def _take(self, progress: Progress, request: Any, answers: Sequence[list[int]], first: int, states: Tensor) -> None:
        """The rows, and the parts of the features, that the positions from `first` on give."""
        stop = first + len(states)
        for start, end in answers:  # a position's state predicts the token behind it
            low, high = max(start - 1, first), min(end - 1, stop)
            if low < high:
                progress.rows.append(states[low - first : high - first].clone())
        before_answer = states[: max(answers[0][0] - first, 0)]
        if "prompt" in self._asked.layouts and len(before_answer):
            progress.prompt_sum = progress.prompt_sum + before_answer.float().sum(dim=0)
        for image in request.mm_features if "vision" in self._asked.layouts and progress.vision is None else ():
            if image.mm_position.offset < stop:
                # Some families append features for deeper layers to what enters the first.
                tokens = self._runner.encoder_cache[image.identifier][None, :, : states.shape[1]]
                progress.vision = arrange(tokens, self._asked.layouts["vision"])[0].float().cpu()

    def _score(self, requests: Sequence[tuple[Mapping[str, Any], Any, Progress]]) -> None:
        hidden = torch.cat([row for _, _, progress in requests for row in progress.rows])
        gold = [
            token
            for asked, request, _ in requests
            for start, end in asked["answers"]
            for token in request.prompt_token_ids[start:end]
        ]
        gold_ids = torch.tensor(gold, device=hidden.device)
        num_rows = max(1, CHUNK_ELEMENTS // self._asked.vocabulary_size)
        for start in range(0, len(gold), num_rows):
            chunk = slice(start, start + num_rows)
            logits = self._runner.model.compute_logits(hidden[chunk])
            if logits is None:  # with tensor parallelism one worker has them
                continue
            self._ended.columns.append(self._columns(logits[:, : self._asked.vocabulary_size].float(), gold_ids[chunk]))
        for asked, _, progress in requests:
            self._ended.numbers.append(asked["number"])
            features = {"vision": progress.vision}
            if "prompt" in self._asked.layouts:
                features["prompt"] = (progress.prompt_sum / asked["answers"][0][0]).cpu()
            self._ended.features.append({name: value for name, value in features.items() if value is not None})

    def _columns(self, logits: Tensor, gold_ids: Tensor) -> dict[str, Tensor]:
        targets, finite = targets_of(logits, gold_ids, self._asked.token_rule)
        return {name: values.cpu() for name, values in (flat_columns(targets) | {FINITE: finite}).items()}
