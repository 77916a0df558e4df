import gymnasium
import numpy as np
import pytest

from sim_bridge.tasks import Channel, TaskError, describe_task, make_task
from sim_bridge.tasks.point_mass import PointMass, next_position, reward

REST = np.zeros(2, np.float32)


def test_contract_names_every_channel_with_its_unit():
    contract = describe_task(make_task("PointMass-v0", perturbations=["observation=0.1"]))
    assert contract.observation == tuple(
        Channel(name=name, unit="m", low=-np.inf, high=np.inf) for name in ("x_position", "y_position")
    )
    assert contract.action == tuple(
        Channel(name=name, unit="m/s", low=-1.0, high=1.0) for name in ("x_velocity", "y_velocity")
    )
    assert contract.control_period_s == 0.1
    assert contract.environment == "PointMass-v0"


@pytest.mark.parametrize(
    ("environment", "locations"),
    [("PointMass-v0", 2), *((f"PointMass{locations}-v0", locations) for locations in (1, 2, 4, 8))],
)
def test_number_of_locations_is_chosen_by_the_id(environment, locations):
    task = make_task(environment).unwrapped
    gaps = np.linalg.norm(task.positions - np.roll(task.positions, 1, axis=0), axis=1)
    np.testing.assert_allclose(np.linalg.norm(task.positions, axis=1), 1.0)
    np.testing.assert_allclose(gaps, 2 * np.sin(np.pi / locations), atol=1e-12)
    assert task.worths.shape == (locations,)
    assert len(set(task.worths)) == locations
    assert task.worths[0] == 1.0
    assert task.worths.min() == (0.5 if locations > 1 else 1.0)


def test_motion_is_the_commanded_velocity_and_gaussian_noise():
    env = make_task("PointMass-v0").unwrapped
    before, _ = env.reset(seed=0)
    moves = []
    for _ in range(4000):
        after, *_ = env.step(np.float32([0.5, -0.2]))
        moves.append(after - before)
        before = after
    moves = np.array(moves)
    np.testing.assert_allclose(moves.mean(axis=0), [0.05, -0.02], atol=0.003)
    np.testing.assert_allclose(np.cov(moves.T), 0.05**2 * np.eye(2), atol=0.15e-3)
    assert abs(np.corrcoef(moves[1:, 0], moves[:-1, 0])[0, 1]) < 0.06


def test_reward_at_a_location_is_its_worth_and_falls_off_like_a_gaussian():
    task = PointMass(locations=2)
    at = np.array([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.3], [0.0, 5.0]])
    got = reward(at, np.zeros(2), task.positions, task.worths)
    np.testing.assert_allclose(got, [1.0, 0.5, np.exp(-0.5), 0.0], atol=1e-8)
    moving = reward(at, np.array([0.6, -0.8]), task.positions, task.worths)
    np.testing.assert_allclose(moving, got - 0.01)


def test_step_rewards_the_position_it_arrives_at():
    env = make_task("PointMass4-v0")
    env.reset(seed=1)
    task = env.unwrapped
    for action in np.random.default_rng(0).uniform(-1, 1, (50, 2)).astype(np.float32):
        arrived, gained, *_ = env.step(action)
        assert gained == pytest.approx(reward(arrived, action.astype(float), task.positions, task.worths), abs=1e-15)


def test_command_beyond_the_limits_acts_and_costs_as_the_limits():
    results = []
    for command in ([1.0, -1.0], [3.0, -7.0]):
        env = make_task("PointMass-v0")
        env.reset(seed=3)
        position, gained, *_ = env.step(np.float32(command))
        results.append([*position, gained])
    assert results[0] == results[1]


def test_episode_never_terminates_and_is_truncated_at_50_steps():
    env = make_task("PointMass-v0")
    env.reset(seed=1)
    assert [env.step(REST)[2:4] for _ in range(50)] == [(False, False)] * 49 + [(False, True)]


def test_start_is_near_the_middle_and_the_seed_is_the_episode():
    env = make_task("PointMass-v0")
    starts = np.array([env.reset(seed=seed)[0] for seed in range(500)])
    np.testing.assert_allclose(starts.mean(axis=0), 0.0, atol=0.02)
    np.testing.assert_allclose(starts.std(axis=0), 0.1, rtol=0.1)
    np.testing.assert_array_equal(env.reset(seed=7)[0], starts[7])
    walks = []
    for seed in (7, 8, 7):
        env.reset(seed=seed)
        walks.append([env.step(REST)[0] for _ in range(5)])
    np.testing.assert_array_equal(walks[0], walks[2])
    assert not np.allclose(np.diff(walks[0], axis=0), np.diff(walks[1], axis=0))


def test_position_has_no_walls():
    far = np.array([[1e3, -1e3]])
    np.testing.assert_array_equal(next_position(far, np.ones(2), np.zeros(2)), far + 0.1)


@pytest.mark.parametrize("locations", [0, -2])
def test_point_mass_without_locations_is_refused(locations):
    with pytest.raises(TaskError, match=f"at least 1, got {locations}"):
        gymnasium.make("PointMass-v0", locations=locations)


def test_unregistered_number_of_locations_is_answered_with_the_ids_there_are():
    with pytest.raises(TaskError, match="PointMass"):
        make_task("PointMass3-v0")


def test_picture_shows_the_point_where_it_is_and_the_locations_in_green():
    env = make_task("PointMass-v0", render_mode="rgb_array")
    env.reset(seed=0)
    for _ in range(20):
        position, *_ = env.step(np.float32([-0.6, 0.4]))
    picture = env.render().astype(int)
    assert picture.shape == (256, 256, 3)
    red = (picture[..., 0] > 150) & (picture[..., 1] < 100)
    row, column = np.argwhere(red).mean(axis=0)
    metre = 255 / 3.6
    np.testing.assert_allclose([(column - 127.5) / metre, (127.5 - row) / metre], position, atol=0.02)
    best, worst = (picture[128, int(127.5 + side * metre)] for side in (1, -1))
    assert best[1] - best[0] > worst[1] - worst[0] > 30
    assert picture[0, 0].tolist() == [255, 255, 255]
