"""Schedules as functions of training time."""

import math
from types import SimpleNamespace

import pytest

from composer_ls.smoothing import as_schedule, constant, cosine, linear


def at(schedule, batch=0, epoch=0, batch_in_epoch=0, whole="10ep", length=4):
    core = pytest.importorskip("composer.core")  # imported here because the method does not depend on Composer
    timestamp = core.Timestamp(
        batch=batch, epoch=epoch, batch_in_epoch=batch_in_epoch, sample=8 * batch, token=80 * batch
    )
    state = SimpleNamespace(timestamp=timestamp, max_duration=core.Time.from_timestring(whole), dataloader_len=length)
    return schedule(state)


def test_a_share_of_training_counts_fractions_of_epochs():
    schedule = linear(0.0, 0.1, "0.5dur")
    values = [at(schedule, batch, batch // 4, batch % 4) for batch in range(40)]
    assert values == pytest.approx([min(0.1, 0.1 * batch / 20) for batch in range(40)])


@pytest.mark.parametrize(
    ("duration", "time", "progress"),
    [
        ("4ep", {"epoch": 1, "batch": 6, "batch_in_epoch": 2}, 1.5 / 4),
        ("4ep", {"epoch": 1, "batch": 6, "batch_in_epoch": 2, "length": None}, 1 / 4),
        ("12ba", {"batch": 6}, 0.5),
        ("96sp", {"batch": 6}, 0.5),
        ("960tok", {"batch": 6}, 0.5),
        ("1dur", {"batch": 6, "whole": "24ba"}, 0.25),
        ("1dur", {"batch": 6, "whole": "96sp"}, 0.5),
        ("0.25dur", {"batch": 6, "whole": "24ba"}, 1.0),
        ("3ba", {"batch": 6}, 1.0),
    ],
)
def test_every_unit_of_time_counts_and_the_end_is_kept(duration, time, progress):
    assert at(linear(0.2, 0.0, duration), **time) == pytest.approx(0.2 * (1 - progress), abs=1e-12)
    expected = 0.2 * (1 + math.cos(math.pi * progress)) / 2
    assert at(cosine(0.2, 0.0, duration), **time) == pytest.approx(expected, abs=1e-12)
    assert at(constant(0.3), **time) == 0.3


def test_a_mapping_spells_a_schedule():
    assert as_schedule({"schedule": "cosine", "start": 0.2, "end": 0.0}) == cosine(0.2, 0.0)
    assert as_schedule({"schedule": "linear", "start": 0, "end": 1, "duration": "5ep"}) == linear(0.0, 1.0, "5ep")
    assert as_schedule({"schedule": "constant", "value": 0.1}) == constant(0.1)
    assert as_schedule(0.1) == 0.1


def test_equal_schedules_are_equal_and_print_as_their_call():
    assert linear(0, 0.1, "0.5dur") == linear(0.0, 0.1, "0.5dur") != cosine(0.0, 0.1, "0.5dur")
    for schedule in (linear(0.0, 0.1, "0.5dur"), cosine(0.2, 0.0), constant(0.1)):
        assert eval(repr(schedule)) == schedule


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: linear("a", 0.1), "the start of a schedule must be a number, but is 'a'"),
        (lambda: linear(0.1, math.nan), "the end of a schedule must be a number, but is nan"),
        (lambda: linear(0.0, 0.1, "half"), "must be a positive number with a unit .* but is 'half'"),
        (lambda: linear(0.0, 0.1, "0ep"), "but is '0ep'"),
        (lambda: cosine(0.0, 0.1, 5), "but is 5"),
        (lambda: as_schedule({"schedule": "step", "start": 0, "end": 1}), "schedule is constant or linear or cosine"),
        (lambda: as_schedule({"schedule": "linear", "start": 0}), "a schedule is written as"),
        (lambda: as_schedule({"schedule": "linear", "start": 0, "end": 1, "over": "1ep"}), "'over': '1ep'"),
        (
            lambda: as_schedule({"schedule": "constant", "start": 0.1, "end": 0.2}),
            "constant schedule goes from 0.1 to 0.2",
        ),
        (
            lambda: as_schedule({"schedule": "constant", "value": 0.1, "start": 0.3, "end": 0.3}),
            "a schedule is written as",
        ),
    ],
)
def test_wrong_schedules_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_share_of_an_unknown_length_is_refused():
    state = SimpleNamespace(timestamp=None, max_duration=None, dataloader_len=None)
    with pytest.raises(ValueError, match="needs the Trainer's max_duration, which is not set"):
        linear(0.0, 0.1)(state)


def test_a_share_of_iterations_is_refused_because_their_number_stays_the_same_for_many_epochs():
    with pytest.raises(ValueError, match="needs a max_duration that grows with every step, but it is '1iter'"):
        at(linear(0.0, 0.1), batch=6, whole="1iter")
    assert at(linear(0.0, 0.1, "12ba"), batch=6, whole="1iter") == pytest.approx(0.05)
    assert at(constant(0.1), batch=6, whole="1iter") == 0.1
