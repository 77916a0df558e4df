import math
import operator
import pickle

import gymnasium
import mujoco
import numpy as np
import pytest

from dst_core.evaluate import evaluation_seeds
from sim_bridge.tasks import TaskError, describe_task, make_task
from sim_bridge.tasks.pendulum_swing_up import PendulumSwingUp
from sim_bridge.tasks.perturbations import PERTURBATIONS

NOISY = ["actuation=0.3", "observation=0.2", "dynamics=0.05"]
EVERYTHING = [*NOISY, "friction=0.3", "mass=0.2", "gravity=0.1", "dropout=0.4", "delay=1"]


def rollout(env, seed, steps=6):
    """Observations and rewards under a fixed action sequence."""
    actions = np.random.default_rng(7).uniform(
        env.action_space.low, env.action_space.high, (steps, env.action_space.shape[0])
    )
    observations = [env.reset(seed=seed)[0]]
    rewards = []
    for action in actions.astype(np.float32):
        observation, reward, terminated, _, _ = env.step(action)
        observations.append(observation)
        rewards.append(reward)
        if terminated:
            break
    return np.concatenate([np.concatenate(observations), rewards])


def test_same_seed_gives_the_same_perturbed_episode():
    env = make_task("InvertedPendulum-v5", perturbations=NOISY)
    first = rollout(env, seed=3)
    other = rollout(env, seed=4)
    again = rollout(env, seed=3)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[:4], other[:4])
    np.testing.assert_array_equal(rollout(make_task("InvertedPendulum-v5", perturbations=NOISY), seed=3), first)


def test_order_and_company_of_perturbations_leave_each_noise_stream_alone():
    forward = rollout(make_task("InvertedPendulum-v5", perturbations=NOISY), seed=3)
    backward = rollout(make_task("InvertedPendulum-v5", perturbations=NOISY[::-1]), seed=3)
    np.testing.assert_array_equal(forward, backward)
    alone = make_task("InvertedPendulum-v5", perturbations=["observation=0.2"]).reset(seed=3)[0]
    np.testing.assert_array_equal(forward[:4], alone)


def test_unseeded_reset_continues_the_stream_of_the_last_seed():
    env = make_task("InvertedPendulum-v5", perturbations=["observation=0.2"])
    plain = make_task("InvertedPendulum-v5")

    def factors():
        return [env.reset(seed=seed)[0] / plain.reset(seed=seed)[0] for seed in (3, None)]

    first, second = factors()
    assert not np.allclose(first, second)
    np.testing.assert_array_equal(factors(), [first, second])


def test_actuation_noise_has_scale_times_half_the_range_and_respects_limits(probe):
    env = make_task(probe, perturbations=["actuation=0.1"])
    env.reset(seed=0)
    middle = np.float32([0.0, 0.5])
    applied = np.array([env.step(middle)[0] for _ in range(4000)])
    np.testing.assert_allclose(applied.mean(axis=0), middle, atol=0.02)
    np.testing.assert_allclose(applied.std(axis=0), [0.3, 0.05], rtol=0.05)
    at_limit = np.array([env.step(np.float32([3.0, 1.0]))[0] for _ in range(200)])
    assert (at_limit <= [3.0, 1.0]).all()
    assert (at_limit < [3.0, 1.0]).any()
    assert (at_limit == [3.0, 1.0]).any()


def test_noise_streams_share_no_numbers_with_each_other_or_the_task(probe):
    middle, sigma = np.float32([0.0, 0.5]), np.float32([0.3, 0.05])
    actuation = make_task(probe, perturbations=["actuation=0.1"])
    actuation.reset(seed=3)
    actuation_draw = (actuation.step(middle)[0] - middle) / sigma
    observation = make_task(probe, perturbations=["observation=0.2"]).reset(seed=3)[0]
    observation_draw = (observation - 0.8) / 0.4
    task_rng = gymnasium.utils.seeding.np_random(3)[0]
    assert not np.allclose(actuation_draw, task_rng.standard_normal(2), atol=1e-3)
    task_rng = gymnasium.utils.seeding.np_random(3)[0]
    assert not np.allclose(observation_draw, task_rng.uniform(size=2), atol=1e-3)
    streams = [wrapper.stream for wrapper in PERTURBATIONS.values()]
    assert len(set(streams)) == len(streams)


def test_observation_noise_is_a_uniform_factor_per_component(probe):
    env = make_task(probe, perturbations=["observation=0.2"])
    env.reset(seed=0)
    seen = np.array([env.step(np.float32([2.0, 1.0]))[0] for _ in range(4000)]) / [2.0, 1.0]
    assert seen.min() >= 0.8 - 1e-6
    assert seen.max() <= 1.2 + 1e-6
    np.testing.assert_allclose(seen.std(axis=0), 0.4 / np.sqrt(12.0), rtol=0.05)
    assert abs(np.corrcoef(seen.T)[0, 1]) < 0.06


def test_observation_noise_widens_the_space_and_not_the_contract():
    env = make_task("Pendulum-v1", perturbations=["observation=0.5"])
    np.testing.assert_allclose(env.observation_space.high, [1.5, 1.5, 12.0])
    np.testing.assert_allclose(env.observation_space.low, [-1.5, -1.5, -12.0])
    assert describe_task(env) == describe_task(make_task("Pendulum-v1"))


def test_dynamics_noise_has_the_stated_spread_and_spares_undriven_bodies():
    env = make_task("Reacher-v5", perturbations=["dynamics=0.5"])
    env.reset(seed=0)
    task = env.unwrapped
    kicks = []
    task.do_simulation = lambda ctrl, frames: kicks.append(task.data.qvel.copy())  # before physics: the kick alone
    while len(kicks) < 2000:
        if len(kicks) % 50 == 49:
            env.reset()  # the time limit
        task.data.qvel[:] = 0.0
        env.step(np.zeros(2, np.float32))
    kicks = np.array(kicks)
    np.testing.assert_allclose(kicks[:, :2].std(axis=0), 0.5, rtol=0.06)
    np.testing.assert_allclose(kicks[:, :2].mean(axis=0), 0.0, atol=0.05)
    np.testing.assert_array_equal(kicks[:, 2:], 0.0)  # the target is no joint of the arm


def test_perturbed_task_survives_pickle_and_gymnasium_make():
    env = make_task("Hopper-v5", perturbations=EVERYTHING)
    expected = rollout(env, seed=3)
    np.testing.assert_array_equal(rollout(pickle.loads(pickle.dumps(env)), seed=3), expected)
    np.testing.assert_array_equal(rollout(gymnasium.make(env.spec), seed=3), expected)


def test_zero_scale_is_the_unperturbed_task():
    plain = rollout(make_task("Hopper-v5"), seed=3)
    zero = rollout(make_task("Hopper-v5", perturbations=[f"{name}=0" for name in PERTURBATIONS]), seed=3)
    np.testing.assert_array_equal(plain, zero)


class SwingUpFromRest(PendulumSwingUp):
    """Starts in the same state whatever the seed, so that seeds act through perturbations alone."""

    def reset_model(self):
        super().reset_model()
        self.set_state(np.array([1.0]), np.zeros(1))
        return self._get_obs()


@pytest.fixture
def from_rest():
    gymnasium.register("FromRest-v0", entry_point=SwingUpFromRest)
    yield "FromRest-v0"
    del gymnasium.registry["FromRest-v0"]


@pytest.mark.parametrize("text", [text for text in EVERYTHING if not text.startswith("delay")])
def test_every_seed_has_noise_of_its_own_in_every_perturbation(from_rest, text):
    env = make_task(from_rest, perturbations=[text])
    training, evaluation = (0, 1, 17 * 1_000_000), evaluation_seeds(3)
    episodes = {seed: rollout(env, seed, steps=12).tobytes() for seed in (*training, *evaluation)}
    assert len(set(episodes.values())) == 6
    assert rollout(env, 1, steps=12).tobytes() == episodes[1]
    plain = make_task(from_rest)
    assert len({rollout(plain, seed).tobytes() for seed in episodes}) == 1


@pytest.mark.parametrize("environment", ["Hopper-v5", "PendulumSwingUp-v0"])
def test_episode_does_not_depend_on_the_one_before(environment):
    fresh = rollout(make_task(environment, perturbations=EVERYTHING), seed=1)
    env = make_task(environment, perturbations=EVERYTHING)
    rollout(env, seed=0, steps=3)
    np.testing.assert_array_equal(rollout(env, seed=1), fresh)


def test_order_in_which_perturbations_are_given_makes_no_difference():
    expected = rollout(make_task("Hopper-v5", perturbations=EVERYTHING), seed=3)
    for order in ([7, 6, 5, 4, 3, 2, 1, 0], [3, 7, 0, 5, 2, 6, 1, 4]):
        env = make_task("Hopper-v5", perturbations=[EVERYTHING[index] for index in order])
        np.testing.assert_array_equal(rollout(env, seed=3), expected)


def factors(perturbations, seed):
    """What sliding friction, damping, mass, inertia and gravity of the Hopper are multiplied by."""
    env = make_task("Hopper-v5", perturbations=perturbations)
    nominal = env.unwrapped.model
    before = [np.copy(value) for value in varied(nominal)]
    env.reset(seed=seed)
    with np.errstate(invalid="ignore"):
        return [np.nanmean(after / value) for after, value in zip(varied(env.unwrapped.model), before, strict=True)]


def varied(model):
    return (model.geom_friction[:, 0], model.dof_damping, model.body_mass, model.body_inertia, model.opt.gravity)


def test_company_leaves_the_draws_of_an_episode_alone():
    together = factors(EVERYTHING, seed=5)
    friction, mass, gravity = (factors([text], seed=5) for text in ("friction=0.3", "mass=0.2", "gravity=0.1"))
    assert together == [*friction[:2], *mass[2:4], gravity[4]]
    assert friction[0] == pytest.approx(friction[1])
    assert friction[2:] == [1.0, 1.0, 1.0]
    assert mass[2] == pytest.approx(mass[3])
    assert [*mass[:2], mass[4]] == [1.0, 1.0, 1.0]
    assert gravity[:4] == [1.0] * 4
    assert len({*map(float, together)}) >= 3


@pytest.mark.parametrize("name", ["friction", "mass", "gravity"])
def test_model_factor_is_uniform_and_never_compounds(name):
    env = make_task("PendulumSwingUp-v0", perturbations=[f"{name}=0.4"])
    field = {"friction": "dof_damping", "mass": "body_mass", "gravity": "opt.gravity"}[name]
    read = operator.attrgetter(field)
    nominal = read(env.unwrapped.model).flat[-1]
    drawn = []
    for seed in range(800):
        env.reset(seed=seed)
        drawn.append(read(env.unwrapped.model).flat[-1] / nominal)
    drawn = np.array(drawn)
    assert drawn.min() >= 0.6
    assert drawn.max() <= 1.4
    assert np.histogram(drawn, bins=4, range=(0.6, 1.4))[0] == pytest.approx(200, abs=45)
    assert abs(np.corrcoef(drawn[1:], drawn[:-1])[0, 1]) < 0.1
    env.reset()
    assert read(env.unwrapped.model).flat[-1] / nominal not in drawn


def test_model_factors_change_the_motion_as_physics_says():
    """From a horizontal rod with velocity: I dv/dt = m g l / 2 - damping v + torque, with I proportional to m."""

    def acceleration(perturbations, velocity, torque):
        env = make_task("PendulumSwingUp-v0", perturbations=perturbations)
        env.reset(seed=2)
        task = env.unwrapped
        task.set_state(np.array([math.pi / 2]), np.array([velocity]))
        task.data.ctrl[:] = torque
        mujoco.mj_forward(task.model, task.data)
        return task.data.qacc[0]

    weight = acceleration([], 0.0, 0.0)
    drag = acceleration([], 3.0, 0.0) - weight
    push = acceleration([], 0.0, 2.0) - weight
    swing = {"friction": "dof_damping", "mass": "body_mass", "gravity": "opt.gravity"}
    for name, field in swing.items():
        nominal = operator.attrgetter(field)(make_task("PendulumSwingUp-v0").unwrapped.model).copy()
        env = make_task("PendulumSwingUp-v0", perturbations=[f"{name}=0.5"])
        env.reset(seed=2)
        f = operator.attrgetter(field)(env.unwrapped.model).flat[-1] / nominal.flat[-1]
        assert abs(f - 1) > 0.02
        expected = {
            "friction": weight + f * drag + push,
            "mass": weight + (drag + push) / f,
            "gravity": f * weight + drag + push,
        }[name]
        assert acceleration([f"{name}=0.5"], 3.0, 2.0) == pytest.approx(expected, rel=1e-9)


def test_constants_that_mujoco_derives_follow_the_masses():
    plain = make_task("PendulumSwingUp-v0").unwrapped.model
    env = make_task("PendulumSwingUp-v0", perturbations=["mass=0.5"])
    env.reset(seed=2)
    model = env.unwrapped.model
    f = model.body_mass[1] / plain.body_mass[1]
    np.testing.assert_allclose(model.body_subtreemass, f * plain.body_subtreemass)
    np.testing.assert_allclose(model.dof_M0, f * plain.dof_M0)
    np.testing.assert_allclose(model.dof_invweight0, plain.dof_invweight0 / f)
    np.testing.assert_allclose(model.actuator_acc0, plain.actuator_acc0 / f)


def test_model_factors_leave_the_state_that_the_task_starts_in_alone():
    plain, env = (make_task("Hopper-v5", perturbations=texts) for texts in ((), ["friction=0.3", "mass=0.3"]))
    for seed in (0, 1):
        np.testing.assert_array_equal(env.reset(seed=seed)[0], plain.reset(seed=seed)[0])
    np.testing.assert_array_equal(env.unwrapped.data.qpos, plain.unwrapped.data.qpos)


def test_first_observation_belongs_to_the_model_of_the_episode():
    plain, env = (make_task("Humanoid-v5", perturbations=texts) for texts in ((), ["mass=0.3"]))
    torso_mass = [channel.name for channel in describe_task(plain).observation].index("torso_mass")
    ratio = env.reset(seed=4)[0][torso_mass] / plain.reset(seed=4)[0][torso_mass]
    assert ratio == pytest.approx(env.unwrapped.model.body_mass[1] / plain.unwrapped.model.body_mass[1])
    assert abs(ratio - 1) > 0.02


def test_torsional_and_rolling_friction_stay():
    env = make_task("Hopper-v5", perturbations=["friction=0.5"])
    nominal = env.unwrapped.model.geom_friction.copy()
    env.reset(seed=0)
    np.testing.assert_array_equal(env.unwrapped.model.geom_friction[:, 1:], nominal[:, 1:])


def counted(env, seed, ticks):
    """What is observed, (ticks, 2), where the sensors see (t, -t) at tick t; the reset is not among them."""
    env.reset(seed=seed)
    return np.array([env.step(np.float32([t, -t]))[0] for t in range(1, ticks + 1)])


def test_dropped_component_keeps_its_last_delivered_value(probe):
    delivered = counted(make_task(probe, perturbations=["dropout=0.3"]), seed=0, ticks=4000)
    seen = np.stack([np.arange(1, 4001), -np.arange(1, 4001)], -1)
    before = np.concatenate([np.ones((1, 2)), delivered[:-1]])
    dropped = delivered != seen
    np.testing.assert_array_equal(delivered[dropped], before[dropped])
    np.testing.assert_allclose(dropped.mean(axis=0), 0.3, atol=0.03)
    assert abs(np.corrcoef(dropped.T)[0, 1]) < 0.06
    assert abs(np.corrcoef(dropped[1:, 0], dropped[:-1, 0])[0, 1]) < 0.06


def test_first_observation_always_arrives_and_certain_dropout_keeps_it(probe):
    env = make_task(probe, perturbations=["dropout=1"])
    for seed in (0, 1):
        np.testing.assert_array_equal(env.reset(seed=seed)[0], [1.0, 1.0])
        np.testing.assert_array_equal(env.step(np.float32([2.0, 0.5]))[0], [1.0, 1.0])


def test_which_component_drops_does_not_depend_on_company(probe):
    alone = counted(make_task(probe, perturbations=["dropout=0.5"]), seed=3, ticks=50)
    noisy = counted(make_task(probe, perturbations=["dropout=0.5", "observation=0.1"]), seed=3, ticks=50)
    kept = [(delivered[1:] == delivered[:-1]) for delivered in (alone, noisy)]
    np.testing.assert_array_equal(*kept)
    assert 20 < kept[0].sum() < 80


@pytest.mark.parametrize("periods", [0, 1, 3])
def test_delayed_observation_is_that_of_so_many_periods_ago(periods):
    actions = np.random.default_rng(0).uniform(-2, 2, (9, 1)).astype(np.float32)
    plain, late = (make_task("Pendulum-v1", perturbations=texts) for texts in ((), [f"delay={periods}"]))
    for seed in (1, 2):
        now, delivered = [plain.reset(seed=seed)[0]], [late.reset(seed=seed)[0]]
        for action in actions:
            (seen, reward, *_), (got, same_reward, *_) = plain.step(action), late.step(action)
            now.append(seen)
            delivered.append(got)
            assert reward == same_reward
        expected = [now[max(0, tick - periods)] for tick in range(10)]
        np.testing.assert_array_equal(delivered, expected)


def test_what_is_delayed_is_what_noise_and_dropout_left(probe):
    def observed(perturbations):
        return counted(make_task(probe, perturbations=perturbations), seed=6, ticks=30)

    sensed = observed(["observation=0.2", "dropout=0.4"])
    late = observed(["delay=2", "dropout=0.4", "observation=0.2"])
    np.testing.assert_array_equal(late[2:], sensed[:-2])


@pytest.mark.parametrize(
    ("perturbations", "expected"),
    [
        (["wind=1"], f"one of {', '.join(PERTURBATIONS)}, got 'wind'"),
        (["actuation"], "name=scale"),
        (["actuation=much"], "must be a number, got 'much'"),
        (["actuation=nan"], "finite"),
        (["dynamics=-1"], ">= 0"),
        (["observation=1.5"], "at most 1"),
        (["mass=1"], "below 1, got 1"),
        (["friction=-0.1"], ">= 0 and below 1"),
        (["gravity=inf"], "below 1"),
        (["dropout=1.1"], "probability"),
        (["delay=1.5"], "whole number of control periods >= 0, got 1.5"),
        (["delay=-1"], "whole number of control periods >= 0"),
        (["actuation=0.1", "actuation=0.2"], "given once"),
    ],
)
def test_malformed_perturbation_is_refused(perturbations, expected):
    with pytest.raises(TaskError, match=expected):
        make_task("InvertedPendulum-v5", perturbations=perturbations)


@pytest.mark.parametrize("name", ["dynamics", "friction", "mass", "gravity"])
def test_disturbed_physics_needs_mujoco(name):
    with pytest.raises(TaskError, match=f"'{name}' must have a MuJoCo task, got 'Pendulum-v1'"):
        make_task("Pendulum-v1", perturbations=[f"{name}=0.1"])


def test_model_factor_of_nothing_is_refused():
    with pytest.raises(TaskError, match="'gravity' must have something to multiply"):
        make_task("Pusher-v5", perturbations=["gravity=0.1"])


def test_error_for_an_unknown_name_lists_all_names():
    for text in ("wind=1", "wind"):
        with pytest.raises(TaskError) as caught:
            make_task("InvertedPendulum-v5", perturbations=[text])
        for name in ("actuation", "observation", "dynamics", "friction", "mass", "gravity", "dropout", "delay"):
            assert name in str(caught.value)
