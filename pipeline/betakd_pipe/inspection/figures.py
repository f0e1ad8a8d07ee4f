"""How the numbers of a sample are written, the same on the terminal and on the page."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from betakd_stages.inspection import Guess, SampleView, TokenView

ABSENT = "-"


def guess_lines(guesses: "tuple[Guess, ...]", rest: float) -> list[tuple[str, str]]:
    """Tokens with their probabilities, and all other tokens last; nothing where nobody guessed."""
    if not guesses:
        return []
    return [*((guess.text, f"{guess.probability:.3f}") for guess in guesses), ("(all others)", f"{rest:.3f}")]


def token_figures(token: "TokenView") -> list[tuple[str, str]]:
    """The probability of the label by each side, the cross-entropy and the energies of a token."""
    teacher = token.teacher_label_probability
    return [
        *([] if teacher is None else [("teacher's p", f"{teacher:.3f}")]),
        ("student's p", f"{token.student_label_probability:.3f}"),
        ("cross_entropy", f"{token.cross_entropy:.3f}"),
        *((name, f"{energy:.3f}") for name, energy in token.energies.items()),
    ]


def channel_rows(view: "SampleView") -> list[tuple[str, str, str, str]]:
    """Name, mean over the tokens, weight and their product, of the cross-entropy and of each channel."""
    rows = []
    for channel in view.channels:
        if channel.value is None or channel.weight is None:
            rows.append((channel.name, ABSENT, ABSENT, ABSENT))
        else:
            product = channel.value * channel.weight
            rows.append((channel.name, f"{channel.value:.4f}", f"{channel.weight:.4g}", f"{product:.4f}"))
    return rows


def entropy_line(view: "SampleView") -> str:
    """The entropies of both sides, in nats, and the objective with its terms in log beta."""
    teacher = "" if view.teacher_entropy is None else f"teacher {view.teacher_entropy:.3f}, "
    return (
        f"entropy in nats, mean over tokens: {teacher}student {view.student_entropy:.3f}; "
        f"objective, with its terms in log beta: {view.objective:.4f}"
    )
