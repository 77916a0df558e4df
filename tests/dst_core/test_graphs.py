"""The graphs of a bundle: constant noise, the law of the critic itself, answers that hang on nothing but the question."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from dst_core.actor import Actor
from dst_core.calibration.conformal import corrected
from dst_core.critic import CRITICS, GenerativeCritic, LayerTwoNoiseCritic, NoiseEntry
from dst_core.graphs import (
    BATCH,
    CANDIDATES,
    CandidatesGraph,
    Correction,
    Outputs,
    PolicyGraph,
    UncertaintyGraph,
    baked_noise,
    export_graph,
)
from dst_core.networks import ActionScale, Standardiser
from dst_core.parity import autograd_gradients, check_graph
from dst_core.summary import RETURN_LEVELS, Summarise
from tests.dst_core.test_summary import plain

S, A, N = 5, 3, 12
THRESHOLD = 0.1
OFFSETS = (-0.3, 0.2, -0.1, 0.0, 0.1, 0.0, 0.3, -0.2, 0.1)
FLOOR = 1e-3
MEMBERS: dict[NoiseEntry, int] = {"layer-2": 2, "input": 3}
FREE = {"observation": (BATCH,), "action": (BATCH, CANDIDATES)}
Arrays = dict[str, NDArray[np.float32]]


def make_actor_and_critic(
    kind: type[GenerativeCritic], *, hidden: int = 16, members: int = 2
) -> tuple[Actor, GenerativeCritic]:
    """With scales that are not trivial."""
    generator = torch.Generator().manual_seed(5)
    observation = Standardiser(S)
    observation.update(3 * torch.randn(200, S, generator=generator) + torch.arange(S))
    action = ActionScale(-torch.tensor([1.0, 2.0, 0.5]), torch.tensor([1.0, 0.5, 3.0]))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        actor = Actor(observation=observation, action=action, hidden=hidden)
        critic = kind(observation=observation, action=action, hidden=hidden, noise_size=4, members=members)
    critic.return_scale.fill_(7.0)
    with torch.no_grad():
        critic.head.bias.add_(torch.arange(members).view(-1, 1, 1))
    return actor.eval(), critic.eval().requires_grad_(False)


def law_of(critic: GenerativeCritic, *, count: int = N) -> UncertaintyGraph:
    references = critic.observation.restore(torch.randn(60, S, generator=torch.Generator().manual_seed(3)))
    summarise = Summarise(count=count, critics=critic.members, return_threshold=THRESHOLD)
    return UncertaintyGraph(
        critic, noise=baked_noise(critic, count=count, seed=0), references=references, summarise=summarise
    ).eval()


def questions(critic: GenerativeCritic, rows: int, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Observations (B, S), some far beyond the data, and candidate actions (B, 5, A) within the limits."""
    generator = torch.Generator().manual_seed(seed)
    unusual = torch.where(torch.arange(rows) % 4 == 3, 8.0, 1.0).unsqueeze(1)
    observation = critic.observation.restore(unusual * torch.randn(rows, S, generator=generator))
    return observation, critic.action.from_unit(2 * torch.rand(rows, 5, A, generator=generator) - 1)


@pytest.fixture
def critic() -> GenerativeCritic:
    return make_actor_and_critic(LayerTwoNoiseCritic)[1]


def test_baked_noise_is_standardised_over_the_samples_of_each_critic(critic: GenerativeCritic) -> None:
    noise = baked_noise(critic, count=12, seed=0)
    assert noise.shape == (2, 1, 6, 4)
    torch.testing.assert_close(noise.mean(2), torch.zeros(2, 1, 4), rtol=0, atol=1e-6)
    torch.testing.assert_close(noise.square().mean(2), torch.ones(2, 1, 4))


def test_baked_noise_is_that_of_its_seed_and_differs_between_critics(critic: GenerativeCritic) -> None:
    noise = baked_noise(critic, count=12, seed=0)
    assert torch.equal(noise, baked_noise(critic, count=12, seed=0))
    assert not torch.allclose(noise, baked_noise(critic, count=12, seed=1))
    assert not torch.allclose(noise[0], noise[1])


def test_mean_of_a_return_that_is_affine_in_the_noise_is_exact_at_any_count(critic: GenerativeCritic) -> None:
    weight = torch.randn(4, generator=torch.Generator().manual_seed(7))
    for count in (4, 8, 32):
        samples = 3 + baked_noise(critic, count=count, seed=0) @ weight
        torch.testing.assert_close(samples.mean(2), torch.full((2, 1), 3.0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("kind", CRITICS.values(), ids=CRITICS)
def test_law_is_that_of_the_critic_and_its_gradients_are_autograds(kind: type[GenerativeCritic], members: int) -> None:
    _, critic = make_actor_and_critic(kind, members=members)
    law = law_of(critic)
    observation, candidates = questions(critic, 16)
    action = candidates[:, 0]
    summary = law(observation, action)
    returns = torch.cat(critic(observation, action, law.noise).unbind(), 1)
    torch.testing.assert_close(summary.return_samples, returns, rtol=1e-5, atol=1e-5)
    by_observation, by_action = autograd_gradients(law, observation, action)
    for got, truth in (
        (summary.gradient_samples, by_action),
        (summary.observation_gradient_mean.unsqueeze(1), by_observation.mean(1, keepdim=True)),
    ):
        size = truth.abs().amax((1, 2), keepdim=True)
        assert float(((got - truth).abs() / size).max()) < 1e-4, "of each row's own size"


@pytest.fixture(scope="module", params=CRITICS)
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, UncertaintyGraph, Outputs]:
    """Both graphs of two or three critics, calibrated and with the gradient by the observation."""
    actor, critic = make_actor_and_critic(CRITICS[request.param], hidden=64, members=MEMBERS[request.param])
    law = law_of(critic)
    outputs = Outputs(correction=Correction(OFFSETS, floor=FLOOR), observation_gradient=True)
    observation, candidates = questions(critic, 8)
    directory = tmp_path_factory.mktemp("graphs")
    inputs = {"observation": observation, "action": candidates}
    for name, graph, given in (
        ("policy.onnx", PolicyGraph(actor, law, outputs), {"observation": observation}),
        ("uncertainty.onnx", CandidatesGraph(law, outputs), inputs),
    ):
        names = list(outputs.names) if "action" in given else ["action", *outputs.names]
        axes = {key: FREE[key] for key in given}
        export_graph(graph.eval(), given, names, directory / name, axes=axes)
        check_graph(directory / name, graph, given, names, threshold=THRESHOLD)
    return directory, law, outputs


@pytest.mark.parametrize("floor", [1e-6, 0.03])
def test_collapsed_law_is_corrected_in_the_graph_as_in_numpy(tmp_path: Path, floor: float) -> None:
    """Certain of one return, at every tick or at some; the graph counts in float32."""
    error = np.array([-30.0, -20.0, -10.0, -5.0, 0.0, 5.0, 10.0, 20.0, 30.0])
    places = np.asarray(RETURN_LEVELS) + error / floor
    raw, std = torch.full((3, 9), 500.0), torch.tensor([0.0, floor / 2, 2 * floor])
    inputs = {"raw": raw, "std": std}
    export_graph(Correction(tuple(places), floor=floor), inputs, ["corrected"], tmp_path / "correction.onnx")
    found = run(tmp_path / "correction.onnx", **inputs)["corrected"]
    truth = corrected(raw.double().numpy(), std.double().numpy(), places, RETURN_LEVELS, floor=floor)
    np.testing.assert_allclose(found, truth, rtol=1e-6)
    np.testing.assert_allclose(found[0], 500 + error, rtol=1e-6, atol=floor)


def run(path: Path, *, threads: int = 1, **inputs: torch.Tensor) -> Arrays:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_outputs()]
    return dict(zip(names, session.run(None, {key: value.numpy() for key, value in inputs.items()}), strict=True))


Exported = tuple[Path, UncertaintyGraph, Outputs]


def test_outputs_are_named_and_ordered_as_the_contract_says(exported: Exported) -> None:
    table = (
        (Path(__file__).parents[2] / "docs" / "bundle.md").read_text().split("## Summary outputs")[1].split("\n## ")[0]
    )
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    contract = [name.strip(" `") for cell in cells for name in cell.split(",")]
    assert list(exported[2].names) == contract
    assert [node.name for node in onnx.load(exported[0] / "policy.onnx").graph.output] == ["action", *contract]


@pytest.mark.parametrize(("batch", "candidates"), [(1, 1), (3, 2), (8, 5)])
def test_every_candidate_gets_the_law_at_its_own_action(exported: Exported, batch: int, candidates: int) -> None:
    directory, law, outputs = exported
    observation, action = questions(law.critic, batch, seed=9)
    found = run(directory / "uncertainty.onnx", observation=observation, action=action[:, :candidates].contiguous())
    for column in range(candidates):
        alone = dict(zip(outputs.names, outputs(law(observation, action[:, column])), strict=True))
        for name, value in alone.items():
            np.testing.assert_allclose(found[name][:, column], value, rtol=1e-4, atol=1e-4, err_msg=name)


def test_policy_is_the_law_at_the_actors_action(exported: Exported) -> None:
    directory, law, _ = exported
    observation, _ = questions(law.critic, 6, seed=2)
    policy = run(directory / "policy.onnx", observation=observation)
    own = torch.from_numpy(policy.pop("action")).unsqueeze(1)
    for name, value in run(directory / "uncertainty.onnx", observation=observation, action=own).items():
        np.testing.assert_allclose(policy[name], value[:, 0], rtol=1e-4, atol=1e-4, err_msg=name)


def test_served_summary_equals_numpys_from_the_served_samples(exported: Exported) -> None:
    directory, law, _ = exported
    found = run(directory / "policy.onnx", observation=questions(law.critic, 32, seed=3)[0])
    z, g = found["return_samples"].astype(float), found["gradient_samples"].astype(float)
    for name, value in plain(z, g, critics=law.critic.members, threshold=THRESHOLD).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_row_is_the_same_alone_and_inside_a_batch(exported: Exported) -> None:
    directory, law, _ = exported
    observation, action = questions(law.critic, 64, seed=4)
    whole = run(directory / "policy.onnx", observation=observation)
    candidates = run(directory / "uncertainty.onnx", observation=observation, action=action)
    for row in (0, 3, 63):
        alone = run(directory / "policy.onnx", observation=observation[row : row + 1])
        one = {"observation": observation[row : row + 1], "action": action[row : row + 1, 2:3].contiguous()}
        for name, value in alone.items():
            np.testing.assert_array_equal(value[0], whole[name][row], err_msg=name)
        for name, value in run(directory / "uncertainty.onnx", **one).items():
            np.testing.assert_array_equal(value[0, 0], candidates[name][row, 2], err_msg=name)


@pytest.mark.parametrize("batch", [1, 64])
def test_results_are_the_same_with_one_and_two_threads(exported: Exported, batch: int) -> None:
    directory, law, _ = exported
    observation, _ = questions(law.critic, batch, seed=6)
    one, two = (run(directory / "policy.onnx", threads=count, observation=observation) for count in (1, 2))
    for name, value in one.items():
        np.testing.assert_array_equal(value, two[name], err_msg=name)


def test_gradients_that_vanish_are_numbers(tmp_path: Path) -> None:
    actor, critic = make_actor_and_critic(LayerTwoNoiseCritic)
    critic.head.weight.zero_()
    graph, outputs = law_of(critic), Outputs()
    observation, _ = questions(critic, 4)
    names = ["action", *outputs.names]
    export_graph(PolicyGraph(actor, graph, outputs).eval(), {"observation": observation}, names, tmp_path / "p.onnx")
    for name, value in run(tmp_path / "p.onnx", observation=observation).items():
        assert np.isfinite(value).all(), name


def test_products_of_the_observation_gradient_are_in_no_graph_that_does_not_give_it(
    exported: Exported, tmp_path: Path
) -> None:
    directory, law, given = exported
    kind = next(name for name, critic in CRITICS.items() if isinstance(law.critic, critic))
    actor, _ = make_actor_and_critic(CRITICS[kind], hidden=64, members=MEMBERS[kind])
    outputs = Outputs(correction=given.correction)
    graph = PolicyGraph(actor, law, outputs).eval()
    names = ["action", *outputs.names]
    export_graph(graph, {"observation": questions(law.critic, 4)[0]}, names, tmp_path / "without.onnx")
    without, with_it = (
        sum(node.op_type == "MatMul" for node in onnx.load(path).graph.node)
        for path in (tmp_path / "without.onnx", directory / "policy.onnx")
    )
    products: dict[NoiseEntry, int] = {"layer-2": 3, "input": 2}
    assert with_it - without == law.critic.members * products[kind]
