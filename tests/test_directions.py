"""Directions, how prompts say them, how they are drawn, and which reply is best along one."""

import math
import random
from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch

from step3_dpa.prompts import draw_directions
from step3_dpa.selection import best_replies, direction_bins, masked_mean, weighted_ratings
from utils.process.errors import UserError
from utils.steering.directions import Direction, Steering, at_angle, spread, steering_of

NAMES = ("helpfulness", "verbosity")
STEERING = Steering(NAMES)
QUESTION = {"role": "user", "content": "How?"}
TEXT = "Your response should maximize weighted rating = helpfulness*92 + verbosity*38."


def test_the_message_is_the_papers() -> None:
    direction = Direction.of(NAMES, (0.92, 0.38))
    assert math.hypot(*direction.weights) == pytest.approx(1) and direction.percents == (92, 38)
    assert STEERING.steered([QUESTION], direction) == [{"role": "system", "content": TEXT}, QUESTION]
    system = {"role": "system", "content": "Be brief."}
    assert STEERING.steered([system, QUESTION], direction)[0]["content"] == f"Be brief.\n\n{TEXT}"
    assert at_angle(NAMES, -45).said() == "helpfulness*71 + verbosity*-71"


@pytest.mark.parametrize("degrees", [-45, -1, 0, 22.5, 45, 90])
def test_angles(degrees: float) -> None:
    direction = at_angle(NAMES, degrees)
    assert direction.angle == pytest.approx(degrees, abs=1e-9)
    assert direction.weights == pytest.approx((math.cos(math.radians(degrees)), math.sin(math.radians(degrees))))
    assert at_angle(("a", "b", "c"), degrees, (0.6, 0.8)).angle == pytest.approx(degrees, abs=1e-9)


def test_directions_that_users_name() -> None:
    assert STEERING.direction({"verbosity": 3.0}, "--direction").weights == (0.0, 1.0)
    assert STEERING.direction({"helpfulness": 3.0, "verbosity": 4.0}, "--direction").weights == pytest.approx(
        (0.6, 0.8)
    )
    with pytest.raises(UserError, match=r"--direction honesty: no attribute of the policy \(it is steered by helpf"):
        STEERING.direction({"honesty": 1.0}, "--direction")
    for zero in ({}, {"helpfulness": 0.0}):
        with pytest.raises(UserError, match="at least one weight is other than 0"):
            STEERING.direction(zero, "--direction")


def test_a_configuration_says_what_a_policy_is_steered_by() -> None:
    assert steering_of(SimpleNamespace(steering=STEERING.as_config()), "x") == STEERING
    assert steering_of(SimpleNamespace(), "x") is None
    for wrong in (
        "text",
        {},
        {"attributes": ["a"], "message": "{weights}"},
        {"attributes": ["a", "b"], "message": "-"},
    ):
        with pytest.raises(UserError, match="x: config.json: 'steering' is not"):
            steering_of(SimpleNamespace(steering=wrong), "x")


def drawn(names: tuple[str, ...], number: int, draw: str = "uniform", least: float = -45.0) -> list[Direction]:
    args = Namespace(min_angle=least, max_angle=45.0, direction_draw=draw)
    return draw_directions(names, number, args, random.Random(1))


def test_draws() -> None:
    angles = sorted(direction.angle for direction in drawn(NAMES, 2000))
    assert -45 <= angles[0] < -44 and 44 < angles[-1] <= 45
    assert abs(angles[500] + 22.5) < 3 and abs(angles[1500] - 22.5) < 3
    even = [direction.angle for direction in drawn(NAMES, 9, "even")]
    assert sorted(even) == pytest.approx([-40, -30, -20, -10, 0, 10, 20, 30, 40]) and even != sorted(even)
    for direction in drawn(("a", "b", "c", "d"), 50, least=0.0):
        assert math.hypot(*direction.weights) == pytest.approx(1) and 0 <= direction.angle <= 45
        assert min(direction.weights) >= 0 and direction.weights[0] >= math.cos(math.radians(45)) - 1e-9
    assert len({direction.weights for direction in drawn(("a", "b", "c"), 50)}) == 50


def test_the_best_reply_by_hand() -> None:
    values = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.9, 0.9]], [[2.0, 5.0], [2.0, 5.0], [3.0, -5.0]]]).double()
    directions = torch.tensor([[0.6, 0.8], [1.0, 0.0]]).double()
    ratings = weighted_ratings(values, directions)
    torch.testing.assert_close(ratings, torch.tensor([[0.6, 0.8, 1.26], [2.0, 2.0, 3.0]]).double())
    everything = torch.ones(2, 3, dtype=torch.bool)
    assert best_replies(ratings, everything).tolist() == [2, 2]
    some = torch.tensor([[True, True, False], [True, True, False]])
    assert best_replies(ratings, some).tolist() == [1, 0]  # the first of equals
    assert best_replies(ratings, torch.zeros_like(some)).tolist() == [-1, -1]
    assert masked_mean(ratings, some) == pytest.approx((0.6 + 0.8 + 4) / 4)
    assert math.isnan(masked_mean(ratings, torch.zeros_like(some)))


def test_bins_and_spread() -> None:
    angles = torch.tensor([-45.0, -27.1, -26.9, 0.0, 45.0]).double()
    assert direction_bins(angles, -45.0, 45.0, 5).tolist() == [0, 0, 1, 2, 4]
    assert direction_bins(angles, 3.0, 3.0, 5).tolist() == [0] * 5
    assert spread(0, 90, 4) == [0, 30, 60, 90] and spread(0, 90, 1) == [45]
