import pytest

from server.interception import request_id
from tests.server.process import ANYWHERE, Process
from tests.server.running import Robot


@pytest.mark.parametrize("given", ["a", "cell-3:arm_1.42", "x" * 64])
def test_id_that_the_client_gave_is_kept(given, running):
    assert request_id({"x-request-id": given}) == given
    assert running.client.get("/healthz", headers={"X-Request-ID": given}).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "x" * 65, "two words", "a\nb", "a\x1b[2J", "é"])
def test_id_that_is_no_plain_word_is_replaced(given):
    replaced = {request_id({"x-request-id": given}) for _ in range(2)}
    assert len(replaced) == 2
    assert all(new.isalnum() for new in replaced)


def test_lines_of_a_session_carry_its_ids(bundle):
    with Process(bundle, *ANYWHERE, "--log-format", "json") as server:
        sessions = []
        for name in ("arm", "leg"):
            with Robot(server.grpc, robot=name) as robot:
                sessions.append((name, robot.opened.session))
                robot.observe(1, [1.25, 2.5, 3.75])
                robot.answer()
                robot.half_close()
                assert not list(robot.responses)
        assert server.stop() == 0
    requests = set()
    for name, session in sessions:
        opened, closed = (line for line in server.logged() if line.get("session") == session)
        assert opened["request"] == closed["request"]
        assert (opened["robot"], opened["policy"], closed["robot"]) == (name, "reacher", name)
        assert "opened" in opened["message"]
        assert closed["message"].endswith("closed after 1 decisions")
        requests.add(opened["request"])
    assert len(requests) == 2
    assert not any("session" in line for line in server.logged() if line["message"] == "draining")
    assert "3.75" not in server.stderr


def test_level_keeps_lesser_lines_away(bundle):
    with Process(bundle, *ANYWHERE, "--log-level", "error") as server:
        assert server.stop() == 0
    assert server.stderr == ""
