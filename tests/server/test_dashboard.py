"""The operator's page in a real browser, served by the real server while a robot drives through it."""

import contextlib
import hashlib
import json
import math
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from protos import policy_pb2 as pb
from protos.policy_pb2_grpc import PolicyServiceStub
from server.live import MAX_VIEWERS
from tests.server import small_bundle

ROOT = Path(__file__).parents[2]
STATIC = ROOT / "server" / "dashboard" / "static"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE_MS = 15_000


class Server:
    """`dst-serve` in a process of its own."""

    def __init__(self, bundle: Path, *, http: str = "127.0.0.1:0") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "server", str(bundle), "--grpc", "127.0.0.1:0", "--http", http],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert self.process.stdout is not None
        watchdog = threading.Timer(60, self.process.kill)
        watchdog.start()
        ready = next((line for line in self.process.stdout if line.startswith("ready ")), None)
        watchdog.cancel()
        assert ready is not None, f"the server ended with {self.process.wait(10)} before it was ready"
        addresses = dict(part.split("=", 1) for part in ready.split()[1:])
        self.grpc, self.url = addresses["grpc"], addresses["http"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        finally:
            self.process.kill()
            assert self.process.stdout is not None
            self.process.stdout.close()


class Robot:
    """A control session driven tick by tick: each observation waits for its decision."""

    def __init__(self, address: str, *, name: str = "pendulum-lab", detail: pb.Detail = pb.DETAIL_SUMMARY) -> None:
        self._channel = grpc.insecure_channel(address)
        self._requests: queue.SimpleQueue[pb.ControlRequest | None] = queue.SimpleQueue()
        stub = PolicyServiceStub(self._channel)
        self._replies = stub.Control(iter(self._requests.get, None), timeout=120)
        self._requests.put(pb.ControlRequest(open=pb.OpenSession(robot=name, detail=detail)))
        self.opened = next(self._replies).opened
        self.description = self.opened.description
        self.ticks = 0

    def step(
        self, *, guard: pb.GuardState = pb.GUARD_STATE_NOMINAL, reason: str = "", reach: float = 0.3
    ) -> pb.Decision:
        phase = self.ticks / 25
        observation = pb.Observation(
            tick=self.ticks,
            sent_ns=self.ticks,
            validity_ns=10_000_000_000,
            values=[reach * math.sin(phase + i) for i in range(len(self.description.observation))],
            status=pb.RobotStatus(guard=guard, guard_reason=reason, round_trip_ns=1_500_000, episode=2),
        )
        self.ticks += 1
        self._requests.put(pb.ControlRequest(observation=observation))
        answer = next(self._replies).decision
        assert answer.status == pb.DECISION_STATUS_OK, answer.error
        return answer.decision

    def close(self) -> None:
        self._requests.put(None)
        self._replies.cancel()
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass
class Visit:
    """An open page and what it did on the side."""

    page: Page
    requested: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def drive(self, robot: Robot, ticks: int, **status: Any) -> pb.Decision:
        """Moves the robot at about 50 Hz while the page lives on."""
        for _ in range(ticks):
            decision = robot.step(**status)
            self.page.wait_for_timeout(20)
        return decision


def find_browser() -> str | None:
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    executable = find_browser()
    if executable is None:
        reason = f"no browser on the PATH (looked for {', '.join(BROWSERS)}); install chromium to test the page"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=BROWSER_ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[Server]:
    with Server(bundle) as served:
        yield served


@pytest.fixture(scope="module")
def uncalibrated_server(uncalibrated: Path) -> Iterator[Server]:
    with Server(uncalibrated) as served:
        yield served


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Visit]]:
    """Opens pages: visit(url, **context options)."""
    contexts = []

    def open_page(url: str, **options: Any) -> Visit:
        context = browser.new_context(**options)
        contexts.append(context)
        context.set_default_timeout(PATIENCE_MS)
        opened = Visit(context.new_page())
        opened.page.on("request", lambda request: opened.requested.append(request.url))
        opened.page.on("console", lambda message: opened.complaints.append(f"{message.type}: {message.text}"))
        opened.page.on("pageerror", lambda error: opened.complaints.append(str(error)))
        opened.page.goto(url)
        return opened

    yield open_page
    for context in contexts:
        context.close()


def card_of(visit: Visit, robot: Robot) -> Any:
    return visit.page.locator(f'.robot[data-session="{robot.opened.session}"]')


def pixels_of_opacity(card: Any, chart: str, opacity: float) -> int:
    """Pixels of the chart's canvas drawn with about this opacity; the background is transparent."""
    return card.locator(f'[data-chart="{chart}"] canvas').evaluate(
        """(canvas, wanted) => {
            const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
            let count = 0;
            for (let i = 3; i < data.length; i += 4) if (Math.abs(data[i] - wanted) <= 4) count += 1;
            return count;
        }""",
        255 * opacity,
    )


def drawn(ticks: int) -> re.Pattern[str]:
    """How many points so many ticks are: one more for each pause of half a second, drawn as a gap; a busy machine may make some."""
    return re.compile("|".join(f"^{ticks + gaps}$" for gaps in range(4)))


def test_charts_get_new_points_while_the_robot_moves(server: Server, visit: Callable[..., Visit]) -> None:
    with Robot(server.grpc) as robot:
        seen = visit(server.url)
        card = card_of(seen, robot)
        for _ in range(2):
            seen.drive(robot, 20)
            expect(card).to_have_attribute("data-ticks", str(robot.ticks), timeout=PATIENCE_MS)
            for plot in card.locator(".plot").all():
                expect(plot).to_have_attribute("data-points", drawn(robot.ticks), timeout=PATIENCE_MS)
        assert card.locator("[data-chart]").count() == 5


def test_figures_are_those_of_the_decision_that_the_robot_got(server: Server, visit: Callable[..., Visit]) -> None:
    with Robot(server.grpc) as robot:
        seen = visit(server.url)
        summary = seen.drive(robot, 5).summary
        card = card_of(seen, robot)
        expect(card).to_have_attribute("data-ticks", "5", timeout=PATIENCE_MS)
        shown = {
            "return": summary.return_quantiles_corrected[1],
            "distance": summary.data_distance,
            "disagreement": summary.critic_disagreement,
            "worst": summary.return_cvar,
            "agreement": summary.gradient_resultant_length,
        }
        for field_name, value in shown.items():
            text = card.locator(f'[data-field="{field_name}"]').inner_text().replace("\N{MINUS SIGN}", "-")
            assert float(text) == pytest.approx(value, rel=0.01, abs=0.01)
        below = card.locator('[data-field="below"]').inner_text()
        assert float(below.removesuffix(" %")) == pytest.approx(100 * summary.return_below_threshold, abs=0.5)
        expect(card.locator('[data-field="distance-limit"]')).to_have_text("warns above 4.00")
        expect(card.locator('[data-field="round-trip"]')).to_have_text("1.50 ms")
        expect(card.locator('[data-field="episode"]')).to_have_text("2")


def test_return_fan_is_drawn_with_one_band_per_pair_of_quantiles(server: Server, visit: Callable[..., Visit]) -> None:
    with Robot(server.grpc) as robot:
        seen = visit(server.url)
        seen.drive(robot, 120)
        card = card_of(seen, robot)
        expect(card).to_have_attribute("data-ticks", "120", timeout=PATIENCE_MS)
        expect(card.locator('[data-chart="gradient"] .plot')).to_have_attribute(
            "data-points", drawn(120), timeout=PATIENCE_MS
        )
        levels = robot.description.return_quantile_levels
        assert len(levels) >= 3
        labels = card.locator('[data-chart="return"] .key').inner_text()
        for k in range(len(levels) // 2):
            assert f"middle {100 * (levels[-1 - k] - levels[k]):.0f} %" in labels
            assert pixels_of_opacity(card, "return", 1 - (1 - 0x38 / 255) ** (k + 1)) > 500
        assert pixels_of_opacity(card, "gradient", 0x38 / 255) > 500


def test_guard_hold_is_shown_with_its_reason_and_announced(server: Server, visit: Callable[..., Visit]) -> None:
    with Robot(server.grpc, name="arm-7") as robot:
        seen = visit(server.url)
        seen.drive(robot, 5)
        card = card_of(seen, robot)
        pill = card.locator('[data-field="guard"]')
        expect(pill).to_have_text("NOMINAL", timeout=PATIENCE_MS)
        expect(card.locator('[data-field="reason"]')).to_be_hidden()
        seen.drive(robot, 5, guard=pb.GUARD_STATE_HOLD, reason="decision 31 ms late")
        expect(pill).to_have_text("HOLD", timeout=PATIENCE_MS)
        expect(card.locator('[data-field="reason"]')).to_have_text("Guard: decision 31 ms late")
        expect(card.locator('[data-field="guard-shares"]')).to_contain_text("50 % hold")
        announcer = seen.page.locator("[aria-live]")
        expect(announcer).to_have_text("arm-7: HOLD, decision 31 ms late")
        expect(seen.page).to_have_title(re.compile("HOLD"))
        seen.drive(robot, 5, guard=pb.GUARD_STATE_STOP, reason="held too long")
        expect(announcer).to_have_text("arm-7: STOP, held too long", timeout=PATIENCE_MS)


def test_robot_that_leaves_is_shown_as_disconnected(server: Server, visit: Callable[..., Visit]) -> None:
    with Robot(server.grpc) as robot:
        seen = visit(server.url)
        seen.drive(robot, 5)
        card = card_of(seen, robot)
        expect(card.locator('[data-field="guard"]')).to_have_text("NOMINAL", timeout=PATIENCE_MS)
    expect(card.locator('[data-field="guard"]')).to_have_text("DISCONNECTED", timeout=PATIENCE_MS)
    expect(card).to_have_class(re.compile("stale"))


def test_robot_that_falls_silent_is_dimmed(server: Server, visit: Callable[..., Visit]) -> None:
    with Robot(server.grpc) as robot:
        seen = visit(server.url)
        seen.drive(robot, 5)
        card = card_of(seen, robot)
        expect(card).not_to_have_class(re.compile("stale"))
        expect(card).to_have_class(re.compile("stale"), timeout=PATIENCE_MS)
        expect(card.locator('[data-field="freshness"]')).to_contain_text("No new data")
        seen.drive(robot, 1)
        expect(card).not_to_have_class(re.compile("stale"), timeout=PATIENCE_MS)


def test_robot_name_with_markup_stays_text(server: Server, visit: Callable[..., Visit]) -> None:
    name = "<img src=x onerror=alert(1)><b>bold</b>"
    with Robot(server.grpc, name=name) as robot:
        seen = visit(server.url)
        seen.drive(robot, 5, guard=pb.GUARD_STATE_HOLD, reason="<script>alert(2)</script>")
        card = card_of(seen, robot)
        heading = card.locator("h2")
        expect(heading).to_contain_text(name, timeout=PATIENCE_MS)
        expect(card.locator('[data-field="reason"]')).to_have_text("Guard: <script>alert(2)</script>")
        assert heading.locator("*").count() == 0
        assert card.locator("img, script").count() == 0


def test_action_alone_shows_latency_and_says_why_there_is_no_more(server: Server, visit: Callable[..., Visit]) -> None:
    with Robot(server.grpc, detail=pb.DETAIL_NONE) as robot:
        seen = visit(server.url)
        seen.drive(robot, 5)
        card = card_of(seen, robot)
        expect(card.locator('[data-field="action-alone"]')).to_be_visible(timeout=PATIENCE_MS)
        assert [chart.get_attribute("data-chart") for chart in card.locator("[data-chart]").all()] == ["latency"]


def test_uncalibrated_policy_is_marked(uncalibrated_server: Server, visit: Callable[..., Visit]) -> None:
    with Robot(uncalibrated_server.grpc) as robot:
        assert not robot.description.calibrated
        seen = visit(uncalibrated_server.url)
        summary = seen.drive(robot, 20, reach=30.0).summary
        card = card_of(seen, robot)
        expect(card).to_have_attribute("data-ticks", "20", timeout=PATIENCE_MS)
        expect(card.locator('[data-field="uncalibrated"]')).to_be_visible()
        expect(seen.page.locator("#policies").get_by_text("not calibrated")).to_be_visible()
        fan = card.locator('[data-chart="return"]')
        expect(fan.locator('[data-field="tag"]')).to_have_text("not calibrated: the critics' own belief")
        expect(fan.locator(".key")).to_contain_text("middle 80 %")
        expect(fan.locator(".key")).not_to_contain_text("raw")
        expect(card.locator('[data-field="return-label"]')).to_have_text("Expected return")
        shown = card.locator('[data-field="return"]').inner_text().replace("\N{MINUS SIGN}", "-")
        assert float(shown) == pytest.approx(summary.return_mean, rel=0.01, abs=0.01)
        expect(card.locator('[data-field="distance-limit"]')).to_have_text("no threshold")
        expect(card.locator('[data-chart="familiar"] [data-field="tag"]')).to_contain_text("no thresholds")
        expect(card.locator('[data-field="warning"]')).to_be_hidden()
        expect(card.locator(".sensors")).to_have_count(0)


def test_calibrated_fan_is_the_corrected_one_and_says_what_it_held(server: Server, visit: Callable[..., Visit]) -> None:
    with Robot(server.grpc) as robot:
        seen = visit(server.url)
        summary = seen.drive(robot, 20).summary
        card = card_of(seen, robot)
        expect(card).to_have_attribute("data-ticks", "20", timeout=PATIENCE_MS)
        fan = card.locator('[data-chart="return"]')
        expect(fan.locator(".plot")).to_have_attribute("data-points", drawn(20), timeout=PATIENCE_MS)
        expect(fan.locator('[data-field="tag"]')).to_have_text("corrected")
        expect(fan.locator('[data-field="hint"]')).to_contain_text(
            "on 30 fresh simulated episodes its middle 80 % held 81 % on average; at one moment it may be too narrow."
        )
        expect(card.locator('[data-chart="familiar"] [data-field="hint"]')).to_contain_text(
            "On average at most 1 % of ordinary ticks exceed 1"
        )
        ranges = dict(re.findall(r"(middle 80 %(?:, raw)?) ([\d.-]+ to [\d.-]+)", key_of(fan)))
        for label, quantiles in (
            ("middle 80 %", summary.return_quantiles_corrected),
            ("middle 80 %, raw", summary.return_quantiles_raw),
        ):
            shown = [float(text) for text in ranges[label].split(" to ")]
            assert shown == pytest.approx([quantiles[0], quantiles[-1]], rel=0.01, abs=0.01)
        assert seen.page.get_by_text("not calibrated").locator("visible=true").count() == 0


def key_of(chart: Any) -> str:
    return " ".join(chart.locator(".key").inner_text().split()).replace("\N{MINUS SIGN}", "-")


def test_observation_far_from_training_data_is_marked_and_announced_until_it_is_near_again(
    server: Server, visit: Callable[..., Visit]
) -> None:
    with Robot(server.grpc, name="arm-7") as robot:
        seen = visit(server.url)
        seen.drive(robot, 10)
        card = card_of(seen, robot)
        warning, tile = card.locator('[data-field="warning"]'), card.locator(".tiles .above")
        expect(card).to_have_attribute("data-ticks", "10", timeout=PATIENCE_MS)
        expect(warning).to_be_hidden()
        expect(tile).to_have_count(0)
        distance = seen.drive(robot, 70, reach=30.0).summary.data_distance
        assert distance > robot.description.calibration.data_distance_threshold
        expect(warning).to_contain_text("Observation far from training data: distance ", timeout=PATIENCE_MS)
        expect(warning).to_contain_text("warns above 4.00.")
        expect(tile).to_contain_text("above 4.00")
        expect(seen.page.locator("[aria-live]")).to_have_text("arm-7: Observation far from training data")
        seen.drive(robot, 70)
        expect(warning).to_be_hidden(timeout=PATIENCE_MS)
        expect(tile).to_have_count(0)


def test_one_tick_alone_is_no_warning(server: Server, visit: Callable[..., Visit]) -> None:
    warned = visit(server.url).page.evaluate(
        """async (sample) => {
            const { History } = await import(new URL("static/history.js", document.baseURI));
            const history = new History(0.02, { data_distance: 2 });
            const warned = [];
            const distances = [...Array(50).fill(1), 9, ...Array(50).fill(1), ...Array(50).fill(9)];
            distances.forEach((data_distance, i) => {
                history.append([{ ...sample, data_distance, t: i / 50, tick: i }]);
                warned.push(history.warns("data_distance"));
            });
            return warned;
        }""",
        SAMPLE,
    )
    first = warned.index(True)
    assert 101 + 20 < first < 101 + 30
    assert warned[first:] == [True] * (151 - first)


def test_bars_show_which_sensor_the_return_depends_on(server: Server, visit: Callable[..., Visit]) -> None:
    with Robot(server.grpc) as robot:
        seen = visit(server.url)
        gradient = robot.step().summary.observation_gradient_mean
        effects = [slope * std for slope, std in zip(gradient, small_bundle.OBSERVATION_STD, strict=True)]
        card = card_of(seen, robot)
        rows = card.locator(".sensors li")
        expect(rows).to_have_count(3, timeout=PATIENCE_MS)
        shown = {row.locator(".name").inner_text(): row for row in rows.all()}
        assert list(shown) == [channel.name for channel in robot.description.observation]
        longest = max(abs(effect) for effect in effects)
        for row, effect in zip(shown.values(), effects, strict=True):
            text = row.locator(".value").inner_text().replace("\N{MINUS SIGN}", "-")
            assert float(text) == pytest.approx(effect, rel=0.01, abs=0.006)
            width = row.locator(".bar").evaluate("bar => bar.offsetWidth / bar.parentElement.offsetWidth")
            assert width == pytest.approx(abs(effect) / longest, abs=0.02)


def test_more_robots_than_two_start_compact_and_open_on_request(server: Server, visit: Callable[..., Visit]) -> None:
    with Robot(server.grpc) as first, Robot(server.grpc) as second, Robot(server.grpc) as third:
        seen = visit(server.url)
        for robot in (first, second, third):
            seen.drive(robot, 2)
        cards = seen.page.locator(".robot[data-connected=true]")
        expect(cards).to_have_count(3, timeout=PATIENCE_MS)
        expect(seen.page.locator("#fleet")).to_contain_text("3 robots")
        compact = seen.page.locator(".robot[data-connected=true]:not(.open)")
        assert compact.locator("canvas").count() == 1
        compact = seen.page.locator(f'.robot[data-session="{compact.get_attribute("data-session")}"]')
        compact.get_by_role("button").click()
        expect(compact.locator(".plot canvas")).to_have_count(5)
        compact.get_by_role("button").click()
        expect(compact.locator(".plot canvas")).to_have_count(0)


def test_page_says_when_the_server_goes_away_and_recovers(bundle: Path, visit: Callable[..., Visit]) -> None:
    with Server(bundle) as server:
        seen = visit(server.url)
        expect(seen.page.locator("#empty")).to_be_visible(timeout=PATIENCE_MS)
        expect(seen.page.locator("#empty-command")).to_contain_text("dst-drive --server")
        expect(seen.page.locator("#link")).to_contain_text("Live")
        with Robot(server.grpc) as robot:
            seen.drive(robot, 2)
            expect(card_of(seen, robot)).to_be_visible(timeout=PATIENCE_MS)
    banner = seen.page.locator("#banner")
    expect(banner).to_contain_text("does not answer", timeout=PATIENCE_MS)
    with Server(bundle, http=server.url.removeprefix("http://")) as again, Robot(again.grpc, name="back") as robot:
        expect(banner).to_be_hidden(timeout=PATIENCE_MS)
        seen.drive(robot, 3)
        expect(card_of(seen, robot)).to_have_attribute("data-ticks", "3", timeout=PATIENCE_MS)
        expect(seen.page.locator(".robot")).to_have_count(1)


def test_page_that_is_refused_says_what_the_server_says_and_recovers(bundle: Path, visit: Callable[..., Visit]) -> None:
    with Server(bundle) as server:
        with contextlib.ExitStack() as viewers:
            for _ in range(MAX_VIEWERS):
                viewers.enter_context(urllib.request.urlopen(f"{server.url}/v1/live", timeout=PATIENCE_MS / 1000))
            seen = visit(server.url)
            banner = seen.page.locator("#banner")
            expect(banner).to_contain_text(f"{MAX_VIEWERS} viewers are connected; close one", timeout=PATIENCE_MS)
        expect(banner).to_be_hidden(timeout=PATIENCE_MS)
        expect(seen.page.locator("#link")).to_contain_text("Live")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_asks_only_its_own_server_and_logs_nothing(
    server: Server, visit: Callable[..., Visit], scheme: str
) -> None:
    with Robot(server.grpc) as robot:
        seen = visit(server.url, color_scheme=scheme)
        seen.drive(robot, 30)
        expect(card_of(seen, robot)).to_have_attribute("data-ticks", "30", timeout=PATIENCE_MS)
        seen.page.mouse.move(300, 500)
        seen.page.emulate_media(color_scheme="dark" if scheme == "light" else "light")
        seen.drive(robot, 10)
    assert seen.complaints == []
    assert len(seen.requested) > 5
    assert [url for url in seen.requested if not url.startswith(f"{server.url}/")] == []


def test_injected_script_does_not_run(server: Server, visit: Callable[..., Visit]) -> None:
    seen = visit(server.url)
    seen.page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "window.injected = true";
            document.head.append(script);
        }"""
    )
    assert seen.page.evaluate("window.injected") is None
    assert any("Content Security Policy" in complaint for complaint in seen.complaints)


def test_page_fits_a_phone(server: Server, visit: Callable[..., Visit]) -> None:
    with Robot(server.grpc, name="a-robot-with-a-long-name-from-the-far-end-of-the-laboratory") as robot:
        seen = visit(server.url, viewport={"width": 360, "height": 740})
        seen.drive(robot, 5)
        expect(card_of(seen, robot).locator(".plot canvas")).to_have_count(5, timeout=PATIENCE_MS)
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= 360


SAMPLE = {
    "guard": "NOMINAL",
    "return_mean": 1.0,
    "return_std": 1.0,
    "return_quantiles_raw": [0.0, 1.0, 2.0],
    "return_quantiles_corrected": [],
    "return_cvar": 0.0,
    "return_below_threshold": 0.0,
    "gradient_mean": [1.0],
    "gradient_std": [0.1],
    "gradient_sign_agreement": [1.0],
    "gradient_resultant_length": 1.0,
    "critic_disagreement": 0.0,
    "data_distance": 0.0,
}
KEPT = """async ([sample, ticks, times]) => {
    const { History } = await import(new URL("static/history.js", document.baseURI));
    const history = new History(0.02);
    history.append(times.map((t, i) => ({ ...sample, t, tick: ticks[i] })));
    const [t, returns] = [history.column("t"), history.column("return_mean")];
    return { t: t.length > 10 ? [t[0], t.at(-1)] : t, rows: t.length, returns: returns.slice(0, 10) };
}"""


def test_page_keeps_the_last_minute_only(server: Server, visit: Callable[..., Visit]) -> None:
    times = [i / 10 for i in range(2000)]
    kept = visit(server.url).page.evaluate(KEPT, [SAMPLE, list(range(2000)), times])
    assert kept["t"] == pytest.approx([199.9 - 60, 199.9])
    assert kept["rows"] == 601


def test_page_keeps_a_bounded_number_of_ticks_however_fast_they_come(
    server: Server, visit: Callable[..., Visit]
) -> None:
    times = [i / 1000 for i in range(13_000)]
    kept = visit(server.url).page.evaluate(KEPT, [SAMPLE, list(range(13_000)), times])
    assert kept["t"] == [1.0, 12.999]
    assert kept["rows"] == 12_000


def test_pause_is_drawn_as_a_gap_and_known_ticks_are_not_repeated(server: Server, visit: Callable[..., Visit]) -> None:
    kept = visit(server.url).page.evaluate(KEPT, [SAMPLE, [0, 1, 1, 2], [0.0, 0.02, 0.03, 5.02]])
    assert kept["t"] == pytest.approx([0.0, 0.02, 2.52, 5.02])
    assert kept["returns"] == [1.0, 1.0, None, 1.0]


def test_vendored_chart_library_is_the_released_one() -> None:
    [folder] = (STATIC / "vendor").glob("uplot-*")
    version = folder.name.removeprefix("uplot-")
    assert f"(v{version})" in (folder / "uPlot.iife.min.js").read_text()[:200]
    assert "MIT License" in (folder / "LICENSE").read_text()
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split()
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert version in (STATIC / "vendor" / "README.md").read_text()
    assert f"uplot-{version}/" in (STATIC / "index.html").read_text()


def test_first_event_carries_what_the_page_draws(server: Server) -> None:
    with Robot(server.grpc) as robot:
        robot.step()
        with urllib.request.urlopen(f"{server.url}/v1/live", timeout=10) as stream:
            event = json.loads(stream.readline().removeprefix(b"data: "))
    [account] = [each for each in event["robots"] if each["session"] == robot.opened.session]
    [drawn] = account["samples"]
    names = set(re.findall(r'"([a-z_]+)"', "".join((STATIC / "history.js").read_text().split("const TIMES")[0])))
    assert {"return_mean", "gradient_std"} <= names
    assert names <= {*drawn}
