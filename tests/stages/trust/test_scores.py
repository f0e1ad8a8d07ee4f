"""From pi to s: the skill switch, the reference of a group and the ramp, from their formulas."""

import numpy as np

from betakd_stages.trust.evidence import Evidence
from betakd_stages.trust.groups import OTHERS, Groups, make_groups
from betakd_stages.trust.scores import better_by_group, score_groups, skills, trust_of, weighted_quantile


def evidence_of(p: np.ndarray, b: np.ndarray, margin: np.ndarray) -> Evidence:
    none = np.zeros((len(p), 1), np.float32)
    teacher, background = (np.log(values).astype(np.float32) for values in (p, b))
    held = np.ones((len(p), 1), bool)
    return Evidence(none, teacher[:, None], background, held, margin.astype(np.float32)[:, None], none)


def test_skill_is_what_the_mixture_gains_over_the_background() -> None:
    generator = np.random.default_rng(0)
    p, b, pi = generator.random((9, 2)), generator.random((9, 2)), generator.random(9)
    expected = np.log((pi[:, None] * p + (1 - pi[:, None]) * b) / b).sum(axis=1)
    found = skills(pi.astype(np.float32)[:, None], evidence_of(p, b, np.ones(9)))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_skill_of_several_teachers_is_what_their_mixture_gains() -> None:
    generator = np.random.default_rng(1)
    p, b, pi = generator.random((9, 3, 2)), generator.random((9, 2)), generator.dirichlet(np.ones(4), 9)
    mixture = np.einsum("st,stl->sl", pi[:, :3], p) + pi[:, 3:] * b
    none = np.zeros((9, 3), np.float32)
    teachers, background = (np.log(values).astype(np.float32) for values in (p, b))
    evidence = Evidence(none, teachers, background, np.ones((9, 3), bool), none, none)
    found = skills(pi[:, :3].astype(np.float32), evidence)
    np.testing.assert_allclose(found, np.log(mixture / b).sum(axis=1), atol=1e-5)


def test_skill_is_finite_for_a_certain_pi_of_a_teacher_that_rules_the_label_out() -> None:
    p, b = np.full((2, 1), 1e-30), np.full((2, 1), 0.5)
    assert np.isfinite(skills(np.array([[1.0], [0.0]], np.float32), evidence_of(p, b, np.ones(2)))).all()


def test_a_group_without_skill_is_switched_off_and_others_are_relative_to_their_best() -> None:
    pi = np.array([0.8, 0.4, 0.2, 0.8, 0.8, 0.8], np.float32)
    p = np.array([[0.9], [0.9], [0.9], [0.01], [0.01], [0.9]])  # skill of 0.5, 0.2 and 0.1 nats, surely above 0
    groups = Groups(("good", "bad"), np.array([0, 0, 0, 1, 1, 1], np.int32))
    evidence = evidence_of(p, np.full((6, 1), 0.3), np.array([1, 1, 1, 1, 1, 1]))
    good, bad = score_groups(pi, evidence, groups)
    assert (good.is_trusted, bad.is_trusted) == (True, False)
    np.testing.assert_allclose(good.reference, 0.8, rtol=1e-6)
    np.testing.assert_allclose(trust_of(pi, groups, [good, bad]), [1, 0.5, 0, 0, 0, 0], atol=1e-6)


def test_skill_that_may_be_chance_does_not_count() -> None:
    """Of 100 labels the teacher gains on 60 what it loses on 40: two standard errors; of 25, one."""
    for number, is_trusted in ((100, True), (25, False)):
        gains = np.where(np.arange(number) < 0.6 * number, 0.2, -0.2)
        p = 0.5 * np.exp(gains)[:, None]
        groups = Groups(("all",), np.zeros(number, np.int32))
        certain = np.ones(number, np.float32)
        (score,) = score_groups(certain, evidence_of(p, np.full((number, 1), 0.5), certain), groups)
        error = gains.std(ddof=1) / number**0.5
        np.testing.assert_allclose((score.skill, score.skill_error), (gains.mean(), error), rtol=1e-4)
        assert score.is_trusted == is_trusted


def test_a_single_sample_shows_nothing() -> None:
    one = np.ones(1, np.float32)
    evidence = evidence_of(np.array([[0.9]]), np.array([[0.1]]), one)
    (score,) = score_groups(one, evidence, Groups(("all",), np.zeros(1, np.int32)))
    assert not score.is_trusted


def test_each_group_takes_the_pi_that_predicts_its_labels_better() -> None:
    p = np.array([[0.9], [0.9], [0.01], [0.01]])
    groups = Groups(("known", "unknown"), np.array([0, 0, 1, 1], np.int32))
    high, low = np.full((4, 1), 0.9, np.float32), np.full((4, 1), 0.1, np.float32)
    found = better_by_group([low, high], evidence_of(p, np.full((4, 1), 0.3), np.ones(4)), groups)
    np.testing.assert_array_equal(found[:, 0], np.array([0.9, 0.9, 0.1, 0.1], np.float32))


def test_the_reference_is_never_below_a_fifth() -> None:
    pi = np.full(4, 0.05, np.float32)
    evidence = evidence_of(np.full((4, 1), 0.9), np.full((4, 1), 0.3), np.ones(4))
    (score,) = score_groups(pi, evidence, Groups(("all",), np.zeros(4, np.int32)))
    assert score.reference == 0.2
    assert (trust_of(pi, Groups(("all",), np.zeros(4, np.int32)), [score]) == 0).all()


def test_samples_of_which_the_teacher_is_unsure_do_not_set_the_reference() -> None:
    values, weights = np.array([0.9, 0.5, 0.4], np.float32), np.array([0.01, 1, 1], np.float32)
    assert weighted_quantile(values, weights, 0.9) == np.float32(0.5)
    assert weighted_quantile(values, np.zeros(3, np.float32), 0.9) == np.float32(0.9)


def test_small_groups_are_put_together() -> None:
    groups = make_groups(["b", "a", "b", "c", "a"], smallest=2)
    assert groups.names == ("a", "b", OTHERS)
    assert groups.of_sample.tolist() == [1, 0, 1, 2, 0]
    assert make_groups(["a", "a"], smallest=2).names == ("a",)
