import math
import random

import pytest

from worker.engine.step_time import StepLoad, StepTimeModel

PREFILL = StepLoad(512, 512 * 256.0, 0, 0, 0)
DECODE = StepLoad(0, 0.0, 4, 800, 0)
MIXED = StepLoad(128, 128 * 700.0, 4, 900, 0)


def true_s(load: StepLoad) -> float:
    return (
        0.003
        + 7e-5 * load.num_prefill
        + 2e-9 * load.prefill_pairs
        + 2e-4 * load.num_decodes
        + 1e-7 * load.decode_context
        + 1e-4 * load.num_drafts
    )


def mixture(rng: random.Random) -> StepLoad:
    """Decodes; beside half of them a piece of a prompt, beside some guesses."""
    load = StepLoad(num_decodes=rng.randint(1, 16), decode_context=rng.randint(100, 8000))
    if rng.random() < 0.5:
        load.num_prefill = rng.randint(16, 512)
        load.prefill_pairs = load.num_prefill * rng.randint(100, 3000)
    elif rng.random() < 0.3:
        load.num_drafts = rng.randint(1, 8)
    return load


def learned(num_steps: int, noise: float = 0.0, slowness: float = 1.0) -> StepTimeModel:
    rng, model = random.Random(1), StepTimeModel()
    for _ in range(num_steps):
        load = mixture(rng)
        model.observe(load, slowness * true_s(load) * (1 + rng.gauss(0, noise)))
    return model


@pytest.mark.parametrize("load", [PREFILL, DECODE, MIXED])
def test_times_are_learned_from_steps(load: StepLoad) -> None:
    assert learned(300).predict_s(load) == pytest.approx(true_s(load), rel=0.04)
    assert learned(300, noise=0.1).predict_s(load) == pytest.approx(true_s(load), rel=0.15)


def test_prices_are_learned_from_steps() -> None:
    model = learned(500)
    assert model.prefill_token_s == pytest.approx(7e-5, rel=0.05)
    assert model.prefill_pair_s == pytest.approx(2e-9, rel=0.3)
    assert model.draft_s == pytest.approx(1e-4, rel=0.2)


def test_nothing_is_predicted_before_the_first_step() -> None:
    assert StepTimeModel().predict_s(MIXED) == 0


def test_a_step_that_something_else_delayed_changes_little() -> None:
    model = learned(300, noise=0.03)
    before = model.predict_s(MIXED)
    model.observe(MIXED, 20 * true_s(MIXED))
    assert model.predict_s(MIXED) == pytest.approx(before, rel=0.05)


@pytest.mark.parametrize("factor", [0.5, 2.0, 4.0])
def test_a_machine_that_changes_its_speed_is_followed_within_some_steps(factor: float) -> None:
    model = learned(400, noise=0.03)
    rng = random.Random(2)
    for _ in range(25):
        load = mixture(rng)
        model.observe(load, factor * true_s(load) * (1 + rng.gauss(0, 0.03)))
    assert model.predict_s(MIXED) == pytest.approx(factor * true_s(MIXED), rel=0.25)


def test_a_new_speed_seen_while_decoding_is_expected_of_prompts_too() -> None:
    model = learned(400)
    for _ in range(40):
        model.observe(DECODE, 2 * true_s(DECODE))
    assert model.predict_s(MIXED) > 1.3 * true_s(MIXED)


def test_hours_of_decoding_do_not_make_it_forget_what_prompts_cost() -> None:
    rng, model = random.Random(3), learned(300)
    for i in range(20_000):
        load = StepLoad(num_decodes=4, decode_context=4 * (i % 2000))
        model.observe(load, true_s(load) * (1 + rng.gauss(0, 0.05)))
    assert model.predict_s(MIXED) == pytest.approx(true_s(MIXED), rel=0.15)


def test_more_work_never_takes_less_time() -> None:
    rng, model = random.Random(4), StepTimeModel()
    for _ in range(500):
        model.observe(mixture(rng), rng.uniform(0.001, 0.5))  # times that say nothing
        assert model.prefill_token_s >= 0 and model.prefill_pair_s >= 0 and model.draft_s >= 0
        assert 0 <= model.predict_s(DECODE) <= model.predict_s(StepLoad(64, 64 * 100.0, 4, 800, 3))
        assert model.predict_s(MIXED) < 5.0


def test_the_same_times_teach_the_same() -> None:
    assert learned(200, noise=0.2).predict_s(MIXED) == learned(200, noise=0.2).predict_s(MIXED)


@pytest.mark.parametrize("seed", range(10))
def test_times_without_any_measure_end_nothing(seed: int) -> None:
    """Steps of a microsecond between stalls of hours, which no line fits."""
    chance = random.Random(seed)
    model = StepTimeModel()
    for _ in range(400):
        tokens = chance.choice((0, 16, 2048))
        load = StepLoad(tokens, chance.random() * 1e9, chance.randrange(256))
        model.observe(load, 10 ** chance.uniform(-7, 4))
        assert 0 <= model.predict_s(load) < math.inf


def test_a_fit_that_ran_away_begins_again() -> None:
    model = StepTimeModel()
    model.observe(DECODE, true_s(DECODE))
    model._coefficients[0] = math.inf
    for _ in range(50):
        model.observe(DECODE, true_s(DECODE))
    assert model.predict_s(DECODE) == pytest.approx(true_s(DECODE), rel=0.2)
