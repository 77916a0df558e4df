"""The simulator's own step as mean of a world model: its value, its Jacobians, and the noise learned around it."""

import gymnasium
import mujoco
import numpy as np
import pytest
import torch
from torch import Tensor

from dst_core.networks import ActionScale, Standardiser
from dst_core.world_model import Transition
from dst_core.world_models.conditional_vae import ConditionalVae
from dst_core.world_models.mujoco_step import MujocoStep, mujoco_step_of
from sim_bridge.tasks import TaskError, make_task
from tests.dst_core.world_models.fitting import fit

RK4, IMPLICIT = int(mujoco.mjtIntegrator.mjINT_RK4), int(mujoco.mjtIntegrator.mjINT_IMPLICITFAST)
TASKS = (
    "InvertedPendulum-v5",
    "InvertedDoublePendulum-v5",
    "Hopper-v5",
    "HalfCheetah-v5",
    "Walker2d-v5",
    "Swimmer-v5",
    "PendulumSwingUp-v0",
)


def rollout(env: gymnasium.Env, steps: int) -> Transition:
    """Random actions from a few seeded episodes, in float64."""
    rng = np.random.default_rng(0)
    observation, _ = env.reset(seed=0)
    rows: list[tuple[np.ndarray, ...]] = []
    while len(rows) < steps:
        action = rng.uniform(env.action_space.low, env.action_space.high).astype(np.float32)
        following, reward, terminated, truncated, _ = env.step(action)
        rows.append((observation, action, np.asarray(reward), following, np.asarray(terminated)))
        observation = env.reset()[0] if terminated or truncated else following
    return Transition(*(torch.tensor(np.array(column), dtype=torch.float64) for column in zip(*rows, strict=True)))


def jacobian(step: MujocoStep, observation: Tensor, action: Tensor) -> Tensor:
    """(R, S, S + A) by autograd."""
    s, a = observation.clone().requires_grad_(), action.clone().requires_grad_()
    following = step(s, a)
    rows = [
        torch.cat(torch.autograd.grad(following[:, i].sum(), (s, a), retain_graph=True), -1) for i in range(s.shape[1])
    ]
    return torch.stack(rows, 1)


def central_difference(step: MujocoStep, observation: Tensor, action: Tensor) -> Tensor:
    """(R, S, S + A) from steps of the simulator alone."""
    rows, h = torch.cat([observation, action], -1), 1e-5
    columns = []
    for direction in torch.eye(rows.shape[1], dtype=rows.dtype):
        ahead, behind = (
            step(*(rows + sign * h * direction).split([observation.shape[1], action.shape[1]], -1)) for sign in (1, -1)
        )
        columns.append((ahead - behind) / (2 * h))
    return torch.stack(columns, -1)


@pytest.mark.parametrize("task", TASKS)
def test_step_is_that_of_the_task_wherever_the_task_integrates_alike(task: str) -> None:
    env = make_task(task)
    step = mujoco_step_of(env)
    model = env.unwrapped.model
    if model.opt.integrator == RK4:
        model.opt.integrator = IMPLICIT  # of the task, after the step has taken its copy
    data = rollout(env, 60)
    unclipped = (data.observation.abs() < 10).all(1)  # a clipped speed does not tell the state
    data = Transition(*(rows[unclipped] for rows in data))
    predicted = step(data.observation, data.action)
    told = [index for index, (kind, _) in enumerate(step.layout.components) if kind != "other"]
    torch.testing.assert_close(predicted[:, told], data.next_observation[:, told], rtol=1e-6, atol=1e-6)
    assert not torch.allclose(data.observation[:, told], data.next_observation[:, told], atol=1e-3)
    env.close()


@pytest.mark.parametrize(
    "task", ["InvertedPendulum-v5", "InvertedDoublePendulum-v5", "Swimmer-v5", "PendulumSwingUp-v0"]
)
def test_jacobians_are_the_central_differences_of_the_simulator(task: str) -> None:
    env = make_task(task)
    data = rollout(env, 12)
    step = mujoco_step_of(env)
    expected = central_difference(step, data.observation, data.action)
    found = jacobian(step, data.observation, data.action)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert float(expected[:, :, data.observation.shape[1] :].abs().max()) > 0.01  # the action does something
    env.close()


def test_jacobians_of_a_walker_are_the_central_differences_off_the_kinks_of_contact() -> None:
    env = make_task("Hopper-v5")
    data = rollout(env, 25)
    step = mujoco_step_of(env)
    wrong = jacobian(step, data.observation, data.action) - central_difference(step, data.observation, data.action)
    assert float(((wrong.abs().amax((1, 2))) < 1e-3).double().mean()) > 0.9
    env.close()


def test_action_beyond_its_limits_acts_as_the_limit_and_has_no_gradient() -> None:
    env = make_task("InvertedPendulum-v5")
    step = mujoco_step_of(env)
    observation = torch.tensor([[0.0, 0.05, 0.1, -0.1]], dtype=torch.float64)
    limit, beyond = (torch.tensor([[value]], dtype=torch.float64) for value in (3.0, 3.5))
    torch.testing.assert_close(step(observation, beyond), step(observation, limit))
    assert float(jacobian(step, observation, beyond)[..., -1].abs().max()) == 0.0
    assert float(jacobian(step, observation, 0.9 * limit)[..., -1].abs().max()) > 0.01
    env.close()


def test_speed_beyond_the_tasks_limit_is_clipped_and_has_no_gradient() -> None:
    """Hopper clips what it observes (found out), the swing-up task what it simulates (told)."""
    swing_up = make_task("PendulumSwingUp-v0")
    step = mujoco_step_of(swing_up)
    falling = torch.tensor([[0.0, 1.0, 7.9]], dtype=torch.float64)
    torque = torch.tensor([[2.0]], dtype=torch.float64)
    swing_up.reset(seed=0)
    swing_up.unwrapped.set_state(np.array([np.pi / 2]), np.array([7.9]))
    truth = swing_up.step(np.float32([2.0]))[0]
    np.testing.assert_allclose(step(falling, torque)[0], truth, atol=1e-12)
    assert truth[2] == 8.0
    assert float(jacobian(step, falling, torque)[0, 2].abs().max()) == 0.0
    hopper = make_task("Hopper-v5")
    assert (mujoco_step_of(hopper).layout.speed_limit == 10.0).all()
    for env in (swing_up, hopper):
        env.close()


def test_draw_around_the_step_is_differentiable_along_fixed_noise() -> None:
    env = make_task("PendulumSwingUp-v0")
    data = rollout(env, 200)
    model = hybrid(env, data).double()
    s, a = data.observation[50:53].clone().requires_grad_(), data.action[50:53].clone().requires_grad_()

    def draw(state: Tensor, action: Tensor) -> Tensor:
        return model.sample(state, action, torch.Generator().manual_seed(3)).next_observation

    assert torch.autograd.gradcheck(draw, (s, a), eps=1e-5, atol=1e-4, rtol=1e-4)
    env.close()


def hybrid(env: gymnasium.Env, data: Transition) -> ConditionalVae:
    torch.manual_seed(0)
    observation = Standardiser(data.observation.shape[1])
    observation.update(data.observation.float())
    scale = ActionScale(torch.tensor(env.action_space.low), torch.tensor(env.action_space.high))
    model = ConditionalVae(observation=observation, action=scale, hidden=32, latent=2, base=mujoco_step_of(env))
    model.observe(Transition(*(rows.float() for rows in data)))
    return model


def test_residual_learns_the_noise_on_the_dynamics() -> None:
    """Speeds are kicked by N(0, sigma²) before a step: what the step makes of it is sigma times its column of the Jacobian."""
    sigma = 0.2
    env = make_task("PendulumSwingUp-v0", perturbations=[f"dynamics={sigma}"])
    data = rollout(env, 3000)
    slow = data.observation[:, 2].abs() < 6  # away from the governor
    data = Transition(*(rows[slow].float() for rows in data))
    model = hybrid(env, data)
    fit(model, data, updates=600)
    assert isinstance(model.base, MujocoStep)
    inner = data.observation[:, 2].abs() < 4  # where the range of the data cuts nothing off
    s, a = data.observation[inner], data.action[inner]
    by_kick = jacobian(model.base, s.double(), a.double())[:, :, 2].float()
    with torch.no_grad():
        drawn = model.sample(s, a, torch.Generator().manual_seed(0)).next_observation - model.base(s, a)
    on_speed = drawn[:, 2] / by_kick[:, 2]
    on_angle = (drawn[:, :2] * by_kick[:, :2]).sum(1) / by_kick[:, :2].square().sum(1)
    for kick in (on_speed, on_angle):
        assert float(kick.std()) == pytest.approx(sigma, rel=0.1)
        assert abs(float(kick.mean())) < 0.1 * sigma
    assert float(torch.corrcoef(torch.stack([on_speed, on_angle]))[0, 1]) > 0.9  # one kick moves both
    s, a = s.clone().requires_grad_(), a.clone().requires_grad_()
    drawn = model.sample(s, a, torch.Generator().manual_seed(1)).next_observation[:, 2]
    (by_action,) = torch.autograd.grad(drawn.sum(), a)
    truth = jacobian(model.base, s.detach().double(), a.detach().double())[:, 2, -1]
    assert float(by_action.mean()) == pytest.approx(float(truth.mean()), rel=0.1)
    env.close()


def test_step_of_a_perturbed_task_is_the_undisturbed_one() -> None:
    plain, noisy = (
        make_task("PendulumSwingUp-v0", perturbations=noise) for noise in ([], ["dynamics=1", "actuation=1"])
    )
    data = rollout(plain, 20)
    torch.testing.assert_close(
        mujoco_step_of(noisy)(data.observation, data.action), data.next_observation, rtol=1e-9, atol=1e-9
    )
    for env in (plain, noisy):
        env.close()


@pytest.fixture
def jacobians(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Grows by one with every call of `mjd_transitionFD`: frames per control step of every row that is linearised."""
    calls: list[None] = []
    transition = mujoco.mjd_transitionFD

    def counted(*arguments: object) -> None:
        calls.append(None)
        transition(*arguments)

    monkeypatch.setattr(mujoco, "mjd_transitionFD", counted)
    return calls


def test_differentiated_rows_are_simulated_once_and_the_memory_is_bounded(jacobians: list[None]) -> None:
    env = make_task("InvertedPendulum-v5")
    data = rollout(env, 30)
    step = mujoco_step_of(env, remembered=20)
    s, a = (rows[:10].repeat_interleave(12, 0) for rows in (data.observation, data.action))
    a.requires_grad_()
    first = step(s, a)
    assert torch.equal(step(s, a), first)
    assert len(jacobians) == 10 * step.frames
    step(data.observation, data.action.clone().requires_grad_())
    assert len(jacobians) == 30 * step.frames
    assert len(step.memory) == 20
    assert torch.equal(step(s, a), first)  # simulated again, after other rows: the same to the last bit
    assert len(jacobians) == 40 * step.frames
    env.close()


@pytest.mark.parametrize("task", ["InvertedDoublePendulum-v5", "HalfCheetah-v5"])
def test_step_without_a_gradient_is_the_same_one_without_a_jacobian(task: str, jacobians: list[None]) -> None:
    env = make_task(task)
    data = rollout(env, 30)
    step, other = mujoco_step_of(env), mujoco_step_of(env)
    plain = step(data.observation, data.action)
    s, a = data.observation.clone().requires_grad_(), data.action.clone().requires_grad_()
    with torch.no_grad():
        assert torch.equal(step(s, a), plain)
    assert not jacobians
    assert not step.memory
    attached = other(s, a)
    assert attached.requires_grad
    assert torch.equal(attached.detach(), plain)
    assert len(jacobians) == 30 * step.frames
    env.close()


def test_step_without_a_gradient_of_a_row_once_differentiated_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    env = make_task("InvertedPendulum-v5")
    step = mujoco_step_of(env)
    s, a = torch.full((1, 4), 0.1), torch.ones(1, 1, requires_grad=True)
    known = step(s, a).detach()
    monkeypatch.setattr(mujoco, "mj_step", None)
    assert torch.equal(step(s, a.detach()), known)
    env.close()


def test_step_of_a_row_in_contact_depends_on_no_row_before_it() -> None:
    env = make_task("HalfCheetah-v5")
    data = rollout(env, 40)
    step = mujoco_step_of(env, remembered=1)
    forwards = step(data.observation, data.action)
    backwards = step(data.observation.flip(0), data.action.flip(0)).flip(0)
    assert torch.equal(forwards, backwards)
    env.close()


def test_taking_the_step_leaves_the_environment_as_it_is() -> None:
    def episode(take: bool) -> np.ndarray:
        env = make_task("Hopper-v5")
        env.reset(seed=1)
        if take:
            step = mujoco_step_of(env)
            step(torch.ones(1, 11), torch.zeros(1, 3))
        observations = [env.step(np.full(3, 0.3, np.float32))[0] for _ in range(10)]
        env.close()
        return np.array(observations)

    np.testing.assert_array_equal(episode(take=True), episode(take=False))


def test_row_that_is_no_number_gives_none_and_spoils_no_other() -> None:
    env = make_task("InvertedPendulum-v5")
    step = mujoco_step_of(env)
    s = torch.zeros(2, 4, requires_grad=True)
    a = torch.tensor([[0.5], [torch.nan]], requires_grad=True)
    for following in (step(s, a), step(s.detach(), a.detach())):
        assert following[0].isfinite().all()
        assert following[1].isnan().all()
    env.close()


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (lambda: make_task("Pendulum-v1"), "must have a MuJoCo task, got Pendulum-v1"),
        (lambda: make_task("Ant-v5"), "hinge and slide joints"),
        (lambda: make_task("Reacher-v5"), "ReacherEnv does not tell it"),
        (
            lambda: gymnasium.wrappers.RescaleAction(make_task("Hopper-v5"), np.float32(-0.5), np.float32(0.5)),
            "those of Hopper-v5 are scaled",
        ),
        (
            lambda: gymnasium.wrappers.TimeAwareObservation(make_task("InvertedPendulum-v5")),
            "task's own observation of 4 numbers",
        ),
    ],
)
def test_task_whose_step_cannot_be_had_is_refused_with_what_remains(make, wrong: str) -> None:
    env = make()
    with pytest.raises(TaskError, match=wrong) as refusal:
        mujoco_step_of(env)
    assert "cvae, ensemble or flow" in str(refusal.value)
    env.close()


@pytest.mark.parametrize(
    ("layout", "wrong"),
    [
        ((("cosine", 0), ("sine", 0), ("position", 0)), "velocity of joint 0"),
        ((("cosine", 0), ("other", 0), ("velocity", 0)), "angle of joint 0"),
        ((("sine", 0), ("cosine", 0), ("velocity", 0)), "does not observe what its observation layout says"),
    ],
)
def test_layout_that_misses_the_state_or_misleads_is_refused(monkeypatch, layout, wrong: str) -> None:
    env = make_task("PendulumSwingUp-v0")
    monkeypatch.setattr(env.unwrapped, "observation_state", layout, raising=False)
    with pytest.raises(TaskError, match=wrong):
        mujoco_step_of(env)
    env.close()
