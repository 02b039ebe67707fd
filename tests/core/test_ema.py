"""The momentum teacher against its closed form and its published schedule."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mmcl.core.ema import MomentumTeacher, cosine_momentum
from tests.narrow import of_type


def moving_student(student: nn.Module, step: int) -> None:
    rng = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for p in student.parameters():
            p.add_(torch.randn(p.shape, generator=rng, dtype=p.dtype))


def test_is_the_closed_form_of_the_average() -> None:
    """After n updates: m^n theta_0 + (1 - m) sum of m^(n - i) theta_i."""
    student, momentum, steps = nn.Linear(3, 2).double(), 0.9, 7
    teacher = MomentumTeacher(student, momentum=momentum)
    expected = momentum**steps * student.weight.detach().clone()
    for step in range(1, steps + 1):
        moving_student(student, step)
        teacher.update(student)
        expected += (1 - momentum) * momentum ** (steps - step) * student.weight.detach()
    torch.testing.assert_close(teacher.net.weight.data, expected, rtol=1e-13, atol=0)
    assert int(teacher.step) == steps


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_the_ends_are_exact(momentum: float) -> None:
    student = nn.Linear(3, 2)
    teacher, start = MomentumTeacher(student, momentum=momentum), copy.deepcopy(student)
    moving_student(student, 1)
    teacher.update(student)
    weight = of_type(nn.Linear, teacher.net).weight
    assert torch.equal(weight, student.weight if momentum == 0 else start.weight)


def test_starts_as_a_copy_that_needs_no_gradient_and_shares_no_memory() -> None:
    student = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    teacher = MomentumTeacher(student, momentum=0.5)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in student.parameters())
    before = copy.deepcopy(teacher.net.state_dict())
    moving_student(student, 1)
    assert all(torch.equal(before[name], value) for name, value in teacher.net.state_dict().items())


def test_batch_norm_statistics_are_its_own() -> None:
    student = nn.Sequential(nn.BatchNorm1d(2))
    teacher = MomentumTeacher(student, momentum=0.5)
    student(torch.randn(8, 2) + 5)
    teacher.update(student)
    own = of_type(nn.Sequential, teacher.net)[0].get_buffer("running_mean")
    assert not own.any()
    teacher.net(torch.ones(8, 2))
    assert torch.equal(own, torch.full((2,), 0.1))


def test_the_cosine_schedule_rises_from_its_start_to_one() -> None:
    values = [cosine_momentum(step, 100, 0.996) for step in range(102)]
    assert values[0] == pytest.approx(0.996)
    assert values[50] == pytest.approx(0.998)
    assert values[100] == values[101] == 1
    assert values == sorted(values)
    teacher = MomentumTeacher(nn.Linear(1, 1), momentum=0.9, cosine=True)
    assert teacher.momentum == 0.9  # the length of the run is not known yet
    teacher.total_steps = 4
    teacher.update(nn.Linear(1, 1))
    assert teacher.momentum == cosine_momentum(1, 4, 0.9)


def test_a_momentum_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"momentum 1\.1"):
        MomentumTeacher(nn.Linear(1, 1), momentum=1.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("momentum", [0.99, 0.999, 0.9999])
@pytest.mark.parametrize("cast_later", [False, True])
def test_a_teacher_of_low_precision_weights_moves_as_one_of_float32(
    dtype: torch.dtype, momentum: float, cast_later: bool
) -> None:
    """A step of 1 - m of a difference is rounded away where it is added to a bfloat16 weight."""
    student = nn.Linear(3, 2).to(dtype)
    wide = MomentumTeacher(copy.deepcopy(student).float(), momentum=momentum)
    if cast_later:
        teacher = MomentumTeacher(copy.deepcopy(student).float(), momentum=momentum).to(dtype)
    else:
        teacher = MomentumTeacher(student, momentum=momentum)
    with torch.no_grad():
        student.weight.add_(1)
    for step in range(200):
        if step == 100:  # a resumed run
            state = copy.deepcopy(teacher.state_dict())
            teacher = MomentumTeacher(student, momentum=momentum)
            teacher.load_state_dict(state)
        teacher.update(student)
        wide.update(student.float())
        student.to(dtype)
    weight, expected = (of_type(nn.Linear, one.net).weight for one in (teacher, wide))
    assert weight.dtype == dtype
    assert torch.equal(weight, expected.to(dtype))


def test_averages_stay_float32_whatever_the_weights_become() -> None:
    teacher = MomentumTeacher(nn.Linear(3, 2), momentum=0.5)
    assert list(dict(teacher.named_buffers())) == ["step"]
    for _ in range(2):
        teacher.to(torch.bfloat16)
        averages = {name: value.dtype for name, value in teacher.named_buffers() if name.startswith("average")}
        assert averages == {"average_0": torch.float32, "average_1": torch.float32}
