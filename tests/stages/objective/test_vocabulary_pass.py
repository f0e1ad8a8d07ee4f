"""The operation in tiles: its gradients, its independence of tile and chunk, and its edge cases."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tests.stages.objective import oracles
from tests.stages.objective.batches import VOCABULARY, Batch, make_batch
from torch import Tensor

from betakd_stages import vocabulary_tiles
from betakd_stages.statistics import Head, Needs, StudentStatistics, student_statistics
from betakd_stages.targets import TeacherTargets

EVERYTHING = Needs(temperatures=(0.5, 1.0, 2.0, 3.0), tail_means=True, moments=True)
KEEPING: list[dict[str, Any]] = [{}, {"top_k": 8}, {"top_p": 0.8}]
DIFFERENTIABLE = ("kept_logits", "gold_logit", "tail_lse", "logit_mean", "logit_variance")


def finite_outputs(statistics: StudentStatistics) -> tuple[Tensor, ...]:
    """The differentiable outputs, an empty tail left out."""
    values = [getattr(statistics, name) for name in DIFFERENTIABLE]
    return tuple(value.masked_fill(torch.isneginf(value), 0.0) for value in values)


@pytest.mark.parametrize("keeping", KEEPING, ids=str)
@pytest.mark.parametrize("save_bytes", [0, 2000, 2**30])
def test_gradcheck_of_every_input_through_every_output(keeping: dict[str, Any], save_bytes: int) -> None:
    batch = make_batch(4, num_tokens=3)
    targets = batch.targets(**keeping)
    generator = torch.Generator().manual_seed(0)
    bias = torch.randn(VOCABULARY + 2, generator=generator).double()
    weight = torch.cat([batch.weight, torch.ones(2, batch.weight.shape[1]).double()])
    learned = torch.tensor([1.3, 0.8, 3.0]).double()

    def operation(hidden: Tensor, weight: Tensor, bias: Tensor, learned: Tensor) -> tuple[Tensor, ...]:
        head = Head(weight, bias, logit_scale=0.5, soft_cap=4.0)
        needs = EVERYTHING | Needs(learned={"own": learned})
        return finite_outputs(
            student_statistics(hidden, head, targets, needs, save_bytes=save_bytes, row_chunk=2, tile_columns=17)
        )

    inputs = [tensor.clone().requires_grad_() for tensor in (batch.hidden, weight, bias, learned)]
    assert torch.autograd.gradcheck(operation, inputs, fast_mode=True)


def dense_statistics(hidden: Tensor, head: Head, targets: TeacherTargets) -> tuple[Tensor, ...]:
    """The same outputs by plain autograd on full logits."""
    logits = hidden @ head.weight[: targets.vocabulary_size].T
    ids = torch.where(targets.kept, targets.ids, targets.ids[:, :1])
    tail = logits.scatter(1, ids, -torch.inf)
    if not bool(torch.isfinite(tail).any()):
        columns = torch.zeros(len(hidden), 4, dtype=logits.dtype)
    else:
        columns = torch.stack([torch.logsumexp(tail / t, dim=1) for t in (3.0, 2.0, 1.0, 0.5)], dim=1)
    kept = logits.gather(1, ids).masked_fill(~targets.kept, 0.0)
    gold = logits.gather(1, targets.gold_ids.unsqueeze(1)).squeeze(1)
    return kept, gold, columns, logits.mean(dim=1), logits.var(dim=1, correction=0)


def gradients(outputs: tuple[Tensor, ...], inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of a fixed random combination of all outputs."""
    generator = torch.Generator().manual_seed(1)
    total = torch.stack([(out * torch.randn(out.shape, generator=generator)).sum() for out in outputs]).sum()
    return torch.autograd.grad(total, inputs)


@pytest.mark.parametrize("keeping", KEEPING, ids=str)
@pytest.mark.parametrize("save_bytes", [0, 1500, 2**30])
@pytest.mark.parametrize(
    ("row_chunk", "tile_columns"), [(1, 7), (1, VOCABULARY), (7, 7), (7, VOCABULARY), (9, 1), (9, 7), (9, VOCABULARY)]
)
def test_no_tile_chunk_or_budget_changes_the_result(
    keeping: dict[str, Any], row_chunk: int, tile_columns: int, save_bytes: int
) -> None:
    batch = make_batch(5, num_tokens=9)
    targets = batch.targets(**keeping)
    inputs = [batch.hidden.clone().requires_grad_(), batch.weight.clone().requires_grad_()]
    head = Head(inputs[1])
    statistics = student_statistics(
        inputs[0], head, targets, EVERYTHING, row_chunk=row_chunk, tile_columns=tile_columns, save_bytes=save_bytes
    )
    found, expected = finite_outputs(statistics), dense_statistics(inputs[0], head, targets)
    for value, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(value, reference, rtol=1e-12, atol=1e-12)
    for value, reference in zip(gradients(found, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(value, reference, rtol=1e-11, atol=1e-11)


def test_a_second_backward_through_saved_tiles_gives_the_same_gradients(batch: Batch) -> None:
    hidden = batch.hidden.clone().requires_grad_()
    total = student_statistics(hidden, Head(batch.weight), batch.targets(top_k=4), EVERYTHING).cross_entropy().sum()
    (first,) = torch.autograd.grad(total, hidden, retain_graph=True)
    (second,) = torch.autograd.grad(total, hidden)
    assert torch.equal(first, second)


def test_saved_tiles_give_the_gradients_of_recomputed_ones_bit_for_bit(batch: Batch) -> None:
    targets = batch.targets(top_k=4)
    found = []
    for save_bytes in (0, 2**30):
        inputs = [batch.hidden.clone().requires_grad_(), batch.weight.clone().requires_grad_()]
        statistics = student_statistics(
            inputs[0], Head(inputs[1]), targets, EVERYTHING, tile_columns=7, save_bytes=save_bytes
        )
        found.append(gradients(finite_outputs(statistics), inputs))
    for recomputed, saved in zip(*found, strict=True):
        assert torch.equal(recomputed, saved)


def test_rows_of_the_head_beyond_the_vocabulary_change_nothing_and_get_zero_gradient(batch: Batch) -> None:
    targets = batch.targets(top_k=4)
    padded = torch.cat([batch.weight, torch.full((24, batch.weight.shape[1]), 9.0).double()]).requires_grad_()
    plain, found = batch.statistics(targets), student_statistics(batch.hidden, Head(padded), targets)
    assert torch.equal(plain.cross_entropy(), found.cross_entropy())
    found.cross_entropy().sum().backward()
    assert padded.grad is not None
    assert not bool(padded.grad[VOCABULARY:].any())
    assert bool(padded.grad[:VOCABULARY].any())


def test_a_head_tied_to_the_embeddings_collects_both_gradients(batch: Batch) -> None:
    targets = batch.targets(top_k=4)

    def loss(weight: Tensor, cross_entropy: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        return cross_entropy(torch.tanh(weight[targets.ids[:, 1]]), weight).sum()

    def tiled(hidden: Tensor, weight: Tensor) -> Tensor:
        return student_statistics(hidden, Head(weight), targets, tile_columns=7).cross_entropy()

    def dense(hidden: Tensor, weight: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(hidden @ weight.T, targets.gold_ids, reduction="none")

    found, expected = (
        torch.autograd.grad(loss(weight, function), weight)[0]
        for function in (tiled, dense)
        for weight in [batch.weight.clone().requires_grad_()]
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("top_k", [None, 4])
def test_no_tokens_give_empty_statistics_and_a_head_gradient_of_zero(batch: Batch, top_k: int | None) -> None:
    targets = TeacherTargets.from_logits(batch.teacher_logits[:0], batch.gold_ids[:0], top_k=top_k)
    inputs = [batch.hidden[:0].clone().requires_grad_(), torch.cat([batch.weight] * 3).requires_grad_()]
    statistics = student_statistics(inputs[0], Head(inputs[1]), targets, EVERYTHING)
    assert statistics.cross_entropy().shape == (0,)
    statistics.cross_entropy().sum().backward()
    assert inputs[0].grad is not None
    assert inputs[0].grad.shape == (0, batch.hidden.shape[1])
    assert inputs[1].grad is not None
    assert not bool(inputs[1].grad.any())


def test_everything_kept_leaves_no_nan_in_any_value_or_gradient(batch: Batch) -> None:
    targets = batch.targets()
    inputs = [batch.hidden.clone().requires_grad_(), batch.weight.clone().requires_grad_()]
    learned = torch.full((len(batch.hidden),), 1.5).double().requires_grad_()
    statistics = student_statistics(
        inputs[0], Head(inputs[1]), targets, EVERYTHING | Needs(learned={"own": learned}), tile_columns=7
    )
    assert bool(torch.isneginf(statistics.tail_lse).all())
    assert bool((statistics.tail_mean_at(1.0) == 0).all())
    total = statistics.log_partition(learned).sum() + statistics.log_partition(0.5).sum()
    for gradient in torch.autograd.grad(total, [*inputs, learned]):
        assert bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize("scale", [1.0, 40.0])
@pytest.mark.parametrize("weight_dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("as_on_a_gpu", [False, True])
def test_bfloat16_inputs_are_accumulated_in_float32(
    scale: float, weight_dtype: torch.dtype, as_on_a_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = make_batch(6, num_tokens=5)
    targets = batch.targets(top_k=4)
    hidden = (batch.hidden * scale).bfloat16().requires_grad_()
    weight = batch.weight.bfloat16().to(weight_dtype).requires_grad_()
    exact_inputs = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    exact = student_statistics(exact_inputs[0], Head(exact_inputs[1]), targets, EVERYTHING)
    exact.cross_entropy().sum().backward()
    if as_on_a_gpu:
        monkeypatch.setattr(vocabulary_tiles, "operand_dtype", lambda device, dtype: torch.bfloat16)
        monkeypatch.setattr(torch, "mm", multiply_bfloat16_into_float32)
    statistics = student_statistics(hidden, Head(weight), targets, EVERYTHING, tile_columns=16)
    assert statistics.tail_lse.dtype == torch.float32
    torch.testing.assert_close(statistics.tail_lse.double(), exact.tail_lse, rtol=3e-6, atol=3e-6 * scale)
    statistics.cross_entropy().sum().backward()
    for tensor, reference in zip((hidden, weight), exact_inputs, strict=True):
        assert tensor.grad is not None
        assert tensor.grad.dtype == tensor.dtype
        assert reference.grad is not None
        error = (tensor.grad.double() - reference.grad).abs().max() / reference.grad.abs().max()
        assert float(error) < 0.01


def multiply_bfloat16_into_float32(left: Tensor, right: Tensor, *, out_dtype: torch.dtype, out: Tensor) -> Tensor:
    """What `torch.mm(out_dtype=float32)` does on a GPU; it has no kernel for the CPU."""
    assert left.dtype == right.dtype == torch.bfloat16
    assert out.dtype == out_dtype == torch.float32
    return out.copy_(left.float() @ right.float())


@pytest.mark.parametrize(
    ("device", "capability", "dtype", "expected"),
    [
        ("cuda", (9, 0), torch.bfloat16, torch.bfloat16),
        ("cuda", (8, 0), torch.bfloat16, torch.bfloat16),
        ("cuda", (7, 5), torch.bfloat16, torch.float32),
        ("cuda", (9, 0), torch.float16, torch.float32),
        ("cuda", (9, 0), torch.float64, torch.float64),
        ("cpu", (0, 0), torch.bfloat16, torch.float32),
        ("cpu", (0, 0), torch.float64, torch.float64),
    ],
)
def test_operands_stay_narrow_only_where_the_gpu_can_sum_them_in_float32(
    device: str,
    capability: tuple[int, int],
    dtype: torch.dtype,
    expected: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", None)
    assert vocabulary_tiles.operand_dtype(torch.device(device), dtype) == expected
    assert "dtype_out" in torch.ops.aten.mm.overloads()


def test_float32_tails_stay_exact_where_the_tail_is_tiny() -> None:
    batch = make_batch(7, num_tokens=4, scale=6.0)
    targets = batch.targets(top_k=30)
    statistics = student_statistics(batch.hidden.float(), Head(batch.weight.float()), targets)
    for token, logits in enumerate((batch.hidden.float() @ batch.weight.float().T).double().numpy()):
        tail = np.setdiff1d(np.arange(VOCABULARY), targets.ids[token].numpy())
        log_sigma = oracles.logsumexp(logits[tail]) - oracles.logsumexp(logits)
        np.testing.assert_allclose(statistics.tail_log_probability()[token], log_sigma, rtol=3e-6, atol=3e-6)


def test_frozen_inputs_get_no_gradient_and_trainable_ones_the_same(batch: Batch) -> None:
    targets = batch.targets(top_k=4)
    hidden, weight = batch.hidden.clone().requires_grad_(), batch.weight.clone().requires_grad_()
    both = torch.autograd.grad(
        student_statistics(hidden, Head(weight), targets).cross_entropy().sum(), (hidden, weight)
    )
    only_hidden = student_statistics(hidden, Head(weight.detach()), targets).cross_entropy().sum()
    only_weight = student_statistics(hidden.detach(), Head(weight), targets).cross_entropy().sum()
    assert torch.equal(torch.autograd.grad(only_hidden, hidden)[0], both[0])
    assert torch.equal(torch.autograd.grad(only_weight, weight)[0], both[1])
