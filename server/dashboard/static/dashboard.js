// The operator's page: follows the server's live stream and shows one card per robot.

import { duration, shortVersion } from "./format.js";
import { LiveStream } from "./live_stream.js";
import { RobotCard } from "./robot_card.js";
import { onThemeChange } from "./theme.js";

const OPEN_AT_FIRST = 2; // more robots than this start compact
const cards = new Map();
let link = "connecting";
let drawing = false;

const byId = (id) => document.getElementById(id);

function onEvent(event, first) {
  showServer(event.server);
  const present = new Set(event.robots.map((robot) => robot.session));
  for (const [session, card] of cards) {
    if (present.has(session)) continue;
    card.remove();
    cards.delete(session);
  }
  for (const robot of event.robots) {
    cardOf(robot.session).update(robot, policyOf(event.server, robot), first);
  }
  byId("empty").hidden = cards.size > 0;
  showFleet();
  requestDraw();
}

function cardOf(session) {
  if (!cards.has(session)) {
    const open = [...cards.values()].filter((card) => card.open && card.guard !== "DISCONNECTED").length;
    const card = new RobotCard(session, open < OPEN_AT_FIRST, (text) => { byId("announcer").textContent = text; });
    cards.set(session, card);
    byId("robots").append(card.element);
  }
  return cards.get(session);
}

function policyOf(server, robot) {
  const named = server.policies.filter((policy) => policy.name === robot.policy);
  return named.find((policy) => policy.version === robot.policy_version) ?? null;
}

function onLink(state, refusal = "") {
  if (state === "lost") {
    const problem = refusal ? `The server refuses this page: ${refusal}.` : "The server does not answer.";
    byId("banner").textContent = `${problem} Trying again every second; what you see below is old.`;
    byId("link").textContent = refusal ? "Not connected" : "Connection lost";
  }
  if (state === link) return;
  link = state;
  document.body.dataset.link = state;
  byId("banner").hidden = state !== "lost";
  requestDraw();
}

function showServer(server) {
  byId("link").textContent = `Live · up ${duration(server.uptime_s)} · ${server.provider.replace("ExecutionProvider", "")}`;
  const list = byId("policies");
  const shown = JSON.stringify(server.policies.map((policy) => [policy.name, policy.version, policy.calibrated]));
  if (list.dataset.shown === shown) return;
  list.dataset.shown = shown;
  list.replaceChildren(...server.policies.map(policyItem));
  const environment = server.policies[0]?.environment ?? "ENVIRONMENT";
  const address = server.grpc ?? "HOST:PORT";
  byId("empty-command").textContent = `dst-drive --server ${address} --env ${environment} --realtime`;
  byId("empty-hint").textContent = server.grpc ? "" : "HOST:PORT is the gRPC address that dst-serve printed when it started.";
}

function policyItem(policy) {
  const item = document.createElement("li");
  const name = document.createElement("b");
  name.textContent = policy.name;
  const rate = `${Number((1 / policy.control_period_s).toFixed(1))} Hz`;
  item.append("Policy ", name, ` ${shortVersion(policy.version)} · ${policy.environment} · ${rate} `);
  if (!policy.calibrated) {
    const tag = document.createElement("span");
    tag.className = "tag warn";
    tag.textContent = "not calibrated";
    item.append(tag);
  }
  return item;
}

function showFleet() {
  const guards = [...cards.values()].map((card) => card.guard);
  const count = (state) => guards.filter((guard) => guard === state).length;
  const connected = guards.length - count("DISCONNECTED");
  const parts = [connected === 1 ? "1 robot" : `${connected || "no"} robots`];
  if (count("HOLD")) parts.push(`${count("HOLD")} on HOLD`);
  if (count("STOP")) parts.push(`${count("STOP")} on STOP`);
  byId("fleet").textContent = parts.join(" · ");
  const alarm = count("HOLD") + count("STOP") > 0;
  byId("fleet").classList.toggle("alarm", alarm);
  document.title = `${alarm ? `(${parts.slice(1).join(", ")}) ` : ""}Policy server`;
}

function requestDraw() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    for (const card of cards.values()) card.draw(link === "lost");
  });
}

onThemeChange(() => {
  for (const card of cards.values()) card.recolour();
  requestDraw();
});
setInterval(requestDraw, 500); // staleness shows even when nothing arrives
new LiveStream("v1/live", onEvent, onLink).open();
