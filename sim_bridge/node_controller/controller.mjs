// An example robot controller: checks the policy's contract, opens a control session, asks for a decision at every
// control period, and prints a summary as one line of JSON.
//
//   node controller.mjs --server 127.0.0.1:50051 --ticks 500 --observation-size 3 --action-size 1
//
// Exit codes: 0 done, 2 refused before moving, 4 server lost.
import { createWriteStream } from "node:fs";
import { setImmediate, setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

import grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

const HELP = `Drives an example robot with a served policy.

  --server HOST:PORT       address of the policy server, or unix:PATH (127.0.0.1:50051)
  --policy NAME            which policy to ask; may be left out where the server has loaded exactly one
  --contract FINGERPRINT   contract that this controller was built for; another one is refused
  --observation-size N     numbers that the robot measures; a policy that wants more or fewer is refused
  --action-size N          numbers that the robot is driven by; likewise
  --ticks N                how many decisions to ask for (100)
  --budget-s SECONDS       time within which a tick's decision must be there (the control period)
  --give-up-s SECONDS      time without any reply after which the server counts as lost (2)
  --log FILE               one line of JSON per tick`;

const OPTIONS = {
  server: { type: "string", default: "127.0.0.1:50051" },
  policy: { type: "string", default: "" },
  contract: { type: "string", default: "" },
  "observation-size": { type: "string" },
  "action-size": { type: "string" },
  ticks: { type: "string", default: "100" },
  "budget-s": { type: "string" },
  "give-up-s": { type: "string", default: "2" },
  log: { type: "string" },
  help: { type: "boolean", default: false },
};

const CALL_TIMEOUT_MS = 5000;
const PROTO = fileURLToPath(new URL("../../protos/policy.proto", import.meta.url));

/** The robot does not begin to move. */
class Refused extends Error {}

/** The robot was moving, and its server is gone. */
class Lost extends Error {}

const now = () => process.hrtime.bigint(); // nanoseconds, monotonic

const inMs = (ns) => Number(ns) / 1e6;

/** Waits until a monotonic time; timers are coarse, so the last moments are polled. */
async function sleepUntil(time) {
  for (let left = inMs(time - now()); left > 0; left = inMs(time - now())) {
    await (left > 2 ? sleep(Math.floor(left) - 1) : setImmediate());
  }
}

function numberOption(options, name, { integer = false } = {}) {
  if (options[name] === undefined) return undefined;
  const value = Number(options[name]);
  if (!(value > 0 && Number.isFinite(value)) || (integer && !Number.isInteger(value))) {
    throw new Refused(`--${name} must be ${integer ? "a whole number" : "a number"} above 0, got '${options[name]}'`);
  }
  return value;
}

function readOptions() {
  let options;
  try {
    options = parseArgs({ options: OPTIONS }).values;
  } catch (error) {
    throw new Refused(`${error.message}; see --help`);
  }
  for (const name of ["observation-size", "action-size", "ticks"]) {
    options[name] = numberOption(options, name, { integer: true });
  }
  for (const name of ["budget-s", "give-up-s"]) options[name] = numberOption(options, name);
  return options;
}

/** Everything in which the policy does not fit this controller, for people. */
function differences(description, options) {
  const found = [];
  const differs = (what, here, there) => {
    if (here && here !== there) found.push(`${what} must be ${here}, got ${there}`);
  };
  differs("contract", options.contract, description.contract);
  differs("observation size", options["observation-size"], description.observation.length);
  differs("action size", options["action-size"], description.action.length);
  return found;
}

function describe(client, options) {
  return new Promise((resolve, reject) => {
    const deadline = Date.now() + CALL_TIMEOUT_MS;
    client.Describe({ policy: options.policy }, { deadline }, (error, description) => {
      if (error) reject(new Refused(`policy server at ${options.server} did not describe the policy: ${error.message}`));
      else resolve(description);
    });
  });
}

/** Server clock minus robot clock and the bound of its error, from the exchange with the least time on the wire. */
class ClockOffset {
  offset = null;
  error = null;

  add(sent, received, replied, returned) {
    const onTheWire = returned - sent - (replied - received);
    const error = (onTheWire + 1n) / 2n;
    if (onTheWire < 0n || (this.error !== null && error >= this.error)) return;
    this.error = error;
    this.offset = (received - sent + (replied - returned)) / 2n;
  }
}

/** One control stream: the newest observation goes out, and only the decision on it counts. */
class Session {
  clockOffset = new ClockOffset();
  stale = 0;
  failure = null;
  repliedAt = null;
  #call;
  #sending = false;
  #waiting = null; // at most one observation waits for the wire: the newest
  #asked = null;
  #opened;
  #openDeadline;

  constructor(client, opening) {
    this.#call = client.Control();
    this.opened = new Promise((resolve, reject) => {
      this.#opened = { resolve, reject };
    });
    this.#call.on("data", (response) => this.#receive(response));
    this.#call.on("error", (error) => this.#fail(error.message));
    this.#call.on("end", () => this.#fail("it ended the session"));
    this.#openDeadline = setTimeout(() => this.#fail("it was not confirmed in time"), CALL_TIMEOUT_MS);
    this.#send({ open: opening });
  }

  /** The server's answer to one observation, or null where none came before the deadline. */
  async decide(tick, values, deadline) {
    const sent = now();
    const asked = { tick, sent };
    const answered = new Promise((resolve) => {
      asked.answer = resolve;
    });
    this.#asked = asked;
    this.#send({
      observation: { tick, sent_ns: String(sent), validity_ns: String(deadline - sent), values },
    });
    const timeout = new AbortController();
    const late = sleep(Math.max(Math.ceil(inMs(deadline - now())), 0), null, { signal: timeout.signal });
    late.catch(() => {}); // aborted below
    const decision = await Promise.race([answered, late]);
    timeout.abort();
    return { decision, roundTrip: now() - sent };
  }

  close() {
    this.#call.removeAllListeners("end");
    this.#call.end();
  }

  #send(message) {
    if (this.failure) return;
    this.#waiting = message;
    if (!this.#sending) this.#flush();
  }

  #flush() {
    const message = this.#waiting;
    this.#waiting = null;
    this.#sending = message !== null;
    if (message !== null) this.#call.write(message, () => this.#flush());
  }

  #receive(response) {
    this.repliedAt = now();
    if (response.message === "opened") {
      clearTimeout(this.#openDeadline);
      this.#opened.resolve(response.opened);
      return;
    }
    const { decision } = response;
    const asked = this.#asked;
    if (asked === null || Number(decision.tick) !== asked.tick) {
      this.stale += 1;
      return;
    }
    this.#asked = null;
    this.clockOffset.add(asked.sent, BigInt(decision.received_ns), BigInt(decision.replied_ns), this.repliedAt);
    asked.answer(decision);
  }

  #fail(reason) {
    clearTimeout(this.#openDeadline);
    this.failure ??= reason;
    this.#opened.reject(new Refused(`control session was not opened: ${this.failure}`));
    this.#asked?.answer(null);
  }
}

/** Why an action must not reach the actuators; empty where it may. */
function problemOf(action, channels) {
  if (action.length !== channels.length) return `action must have ${channels.length} numbers, got ${action.length}`;
  const index = action.findIndex((value, i) => {
    const slack = 1e-6 * (channels[i].high - channels[i].low); // float32 on the way
    return !(value >= channels[i].low - slack && value <= channels[i].high + slack);
  });
  return index < 0 ? "" : `action '${channels[index].name}' must be within its limits, got ${action[index]}`;
}

/** What the robot measures: a stand-in that moves through the range the policy was trained in. */
function observe(description, tick) {
  return description.observation.map((_, i) => {
    const [low, high] = [description.observed_low[i], description.observed_high[i]].map((limit) => limit ?? 0);
    return (low + high) / 2 + ((high - low) / 2) * Math.sin(0.05 * tick + i);
  });
}

function percentiles(roundTrips) {
  const sorted = roundTrips.map((ns) => Number(ns) / 1e3).sort((a, b) => a - b);
  const at = (share) => (sorted.length ? sorted[Math.ceil(share * sorted.length) - 1] : null);
  return { p50: at(0.5), p99: at(0.99), max: at(1) };
}

async function drive(session, description, options, log) {
  const period = BigInt(Math.round(description.control_period_s * 1e9));
  const budget = options["budget-s"] ? BigInt(Math.round(options["budget-s"] * 1e9)) : period;
  const giveUp = BigInt(Math.round(options["give-up-s"] * 1e9));
  const outcomes = {};
  const roundTrips = [];
  let overruns = 0;
  let failure = "";
  let applied = description.action.map(() => 0); // held until the first good decision
  session.repliedAt = now();
  let due = now();
  for (let tick = 1; tick <= options.ticks && !failure; tick += 1) {
    await sleepUntil(due);
    const values = observe(description, tick);
    const { decision, roundTrip } = await session.decide(tick, values, now() + budget);
    const missing = session.failure ? "lost" : "late";
    let outcome = decision?.status.replace("DECISION_STATUS_", "").toLowerCase() ?? missing;
    let problem = decision?.error ?? "";
    if (outcome === "ok") {
      problem = problemOf(decision.decision.action, description.action);
      if (problem) outcome = "unusable";
      else applied = decision.decision.action; // a real controller hands this to the actuators
    }
    outcomes[outcome] = (outcomes[outcome] ?? 0) + 1;
    if (decision) roundTrips.push(roundTrip);
    log?.write(`${JSON.stringify({ tick, observation: values, outcome, problem, applied })}\n`);
    if (session.failure) failure = session.failure;
    else if (now() - session.repliedAt > giveUp) failure = `no reply for ${options["give-up-s"]} s`;
    // Ticks are due at whole periods after the first; those that were missed are left out, not hurried through.
    due += period;
    while (due + period <= now()) {
      due += period;
      overruns += 1;
    }
  }
  const clock = session.clockOffset;
  const summary = {
    ticks: Object.values(outcomes).reduce((sum, count) => sum + count, 0),
    outcomes,
    overruns,
    stale_replies: session.stale,
    round_trip_us: percentiles(roundTrips),
    clock_offset_ns: clock.offset === null ? null : Number(clock.offset),
    clock_offset_error_ns: clock.error === null ? null : Number(clock.error),
  };
  return { summary, failure };
}

async function main() {
  const options = readOptions();
  if (options.help) {
    console.log(HELP);
    return;
  }
  const loaded = loadSync(PROTO, { keepCase: true, longs: String, enums: String, defaults: true, oneofs: true });
  const { PolicyService } = grpc.loadPackageDefinition(loaded).dst.policy.v1;
  // A proxy meant for browsers has no place between a robot and its policy.
  const client = new PolicyService(options.server, grpc.credentials.createInsecure(), { "grpc.enable_http_proxy": 0 });
  const log = options.log ? createWriteStream(options.log) : null;
  try {
    const description = await describe(client, options);
    const found = differences(description, options);
    if (found.length) {
      const cure = "serve the policy that this controller was built for, or build it for this one";
      throw new Refused(`policy '${description.policy}' does not fit: ${found.join("; ")}; ${cure}`);
    }
    const session = new Session(client, {
      policy: description.policy,
      robot: "node",
      contract: description.contract,
      detail: "DETAIL_SUMMARY",
    });
    const opened = await session.opened;
    const { summary, failure } = await drive(session, description, options, log);
    session.close();
    const { policy, policy_version, contract } = description;
    console.log(JSON.stringify({ policy, policy_version, contract, session: opened.session, ...summary }));
    if (failure) throw new Lost(`policy server at ${options.server} was lost: ${failure}`);
  } finally {
    log?.end();
    client.close();
  }
}

try {
  await main();
} catch (error) {
  if (!(error instanceof Refused || error instanceof Lost)) throw error;
  console.error(`controller: ${error.message}`);
  process.exitCode = error instanceof Lost ? 4 : 2;
}
