"""The supervised tokens of one sample: what teacher and student make of each, and what each energy says to that.

N supervised tokens, V vocabulary, D hidden size.
"""

import itertools
from typing import Any

from torch import Tensor
from torch.nn.functional import linear

from betakd_stages.distillation.distiller import Distiller
from betakd_stages.encoding import IGNORED, EncodedSample, Encoder
from betakd_stages.ensemble.names import owner
from betakd_stages.inspection.views import Guess, TokenView
from betakd_stages.models.forward import answer_rows
from betakd_stages.statistics import Head


def token_views(
    distiller: Distiller, encoder: Encoder, batch: dict[str, Any], num_guesses: int
) -> tuple[TokenView, ...]:
    """What is to be seen of each of the N supervised tokens of a batch of one sample."""
    rows = answer_rows(distiller.student, batch)
    embeddings = distiller.student.get_output_embeddings()
    head = Head(embeddings.weight, embeddings.bias)
    student = _log_probabilities(rows.hidden, head, encoder.vocabulary_size)
    has_teacher = distiller.teacher is not None
    cached = distiller.cached(batch, rows)
    targets = cached.targets
    _, of_tokens = distiller.objective.token_energies(rows.hidden, head, targets, cached.experts)
    knows = None if cached.experts is None else cached.experts.held[0].tolist()
    energies = {name: each.tolist() for name, each in of_tokens.items() if knows is None or knows[owner(name)]}
    teacher, teacher_gold = targets.log_probabilities(), targets.gold_log_probability().exp().tolist()
    largest = student.topk(min(num_guesses, encoder.vocabulary_size))
    views = []
    for place, gold in enumerate(rows.gold_ids.tolist()):
        num_kept = min(num_guesses, int(targets.kept[place].sum())) if has_teacher else 0
        teacher_guesses = _guesses(encoder, targets.ids[place, :num_kept], teacher[place, :num_kept])
        student_guesses = _guesses(encoder, largest.indices[place], largest.values[place])
        views.append(
            TokenView(
                label=_text(encoder, gold),
                teacher_label_probability=teacher_gold[place] if has_teacher else None,
                student_label_probability=float(student[place, gold].exp()),
                teacher=teacher_guesses,
                teacher_rest=_rest(teacher_guesses),
                student=student_guesses,
                student_rest=_rest(student_guesses),
                energies={name: values[place] for name, values in energies.items()},
            )
        )
    return tuple(views)


def conversation(encoder: Encoder, encoded: EncodedSample) -> tuple[tuple[str, bool], ...]:
    """The sample's text in pieces, each with whether it is supervised; of visual tokens their number."""
    kinds = [
        (bool(label != IGNORED), token == encoder.image_token_id)
        for token, label in zip(encoded.input_ids.tolist(), encoded.labels.tolist(), strict=True)
    ]
    pieces = []
    for (supervised, visual), run in itertools.groupby(
        zip(kinds, encoded.input_ids.tolist(), strict=True), lambda pair: pair[0]
    ):
        ids = [token for _, token in run]
        pieces.append((f"[{len(ids)} visual tokens]" if visual else encoder.tokenizer.decode(ids), supervised))
    return tuple(pieces)


def _log_probabilities(hidden: Tensor, head: Head, vocabulary_size: int) -> Tensor:
    """Log-probabilities `[N, V]` of hidden states `[N, D]`, over the tokenizer's tokens."""
    bias = None if head.bias is None else head.bias[:vocabulary_size]
    return linear(hidden, head.weight[:vocabulary_size], bias).float().log_softmax(dim=1)


def _guesses(encoder: Encoder, ids: Tensor, log_probabilities: Tensor) -> tuple[Guess, ...]:
    pairs = zip(ids.tolist(), log_probabilities.exp().tolist(), strict=True)
    return tuple(Guess(_text(encoder, token), probability) for token, probability in pairs)


def _rest(guesses: tuple[Guess, ...]) -> float:
    return max(0.0, 1.0 - sum(guess.probability for guess in guesses))


def _text(encoder: Encoder, token: int) -> str:
    """A token as text; where that is blank, as the tokenizer writes it."""
    text = str(encoder.tokenizer.decode([token]))
    return text if text.strip() else str(encoder.tokenizer.convert_ids_to_tokens(token))
