// The page in a real Chromium: what is clicked runs, what the user leaves drains as far as it can, and the rest is told at the next visit.
// Needs `pkg/`, chromium and chromedriver.
import { spawn } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, beforeEach, test } from "node:test";
import assert from "node:assert/strict";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { serve } from "../serve.mjs";

const text = "All of it, to the last word.";
/// Long enough that only a hang gets there.
const HANG = 30_000;

let server, url, driver, folder, session;
let drafts = [];
let answers = [];

/// One command of WebDriver (https://www.w3.org/TR/webdriver2/).
async function command(method, path, body) {
  const response = await fetch(`${driver.url}${path}`, { method, body: body && JSON.stringify(body), signal: AbortSignal.timeout(HANG) });
  const { value } = await response.json();
  if (!response.ok) throw new Error(`${method} ${path}: ${value.error}: ${value.message}`);
  return value;
}

const run = (script, ...args) => command("POST", `${session}/execute/sync`, { script, args });
const go = (to) => command("POST", `${session}/url`, { url: to });
const back = () => command("POST", `${session}/back`, {});
const lines = (id) => run("return [...document.getElementById(arguments[0]).children].map((line) => line.innerText)", id);
const draft = () => run("return localStorage.getItem('draft')");

async function click(id) {
  const element = await command("POST", `${session}/element`, { using: "css selector", value: `#${id}` });
  await command("POST", `${session}/element/${Object.values(element)[0]}/click`, {});
}

/// Looks until it finds something.
async function until(what, look) {
  const end = Date.now() + HANG;
  for (;;) {
    const found = await look();
    if (found) return found;
    assert.ok(Date.now() < end, `never came: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

async function open() {
  await go(url);
  await until("the page", () => run("return 'ready' in document.body.dataset"));
}

/// Goes away, which ends the page unless the browser keeps it.
const leave = () => go(`${url}serve.mjs`);

const in_flight = (...names) =>
  until(`${names} in flight`, async () => names.join() === (await lines("tasks")).map((line) => line.split(" ")[0]).join());

/// Has the page's timers elapse when they are told to, and not before.
const hold_timers = () => run("window.held = []; window.original = setTimeout; window.setTimeout = (then) => held.push(then)");
const elapse = () => run("window.setTimeout = original; held.splice(0).forEach((then) => then())");

/// Keeps from the page that it is hidden, of which not every browser tells a page that goes away.
const go_unseen = () => run("addEventListener('visibilitychange', (event) => event.stopImmediatePropagation(), true)");

before(async () => {
  server = await serve(0, (text) => {
    drafts.push(text);
    return new Promise((resolve) => answers.push(resolve));
  });
  url = `http://127.0.0.1:${server.address().port}/`;
  folder = await mkdtemp(join(tmpdir(), "drafts-"));
  const child = spawn("chromedriver", ["--port=0"], { stdio: ["ignore", "pipe", "inherit"] });
  driver = { child };
  for await (const line of createInterface(child.stdout)) {
    const port = line.match(/successfully on port (\d+)/)?.[1];
    if (port) {
      driver.url = `http://127.0.0.1:${port}`;
      break;
    }
  }
  const args = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", `--user-data-dir=${folder}`];
  const alwaysMatch = { browserName: "chrome", "goog:chromeOptions": { args } };
  const { sessionId } = await command("POST", "/session", { capabilities: { alwaysMatch } });
  session = `/session/${sessionId}`;
});

after(async () => {
  if (session) await command("DELETE", session);
  driver.child.kill();
  await once(driver.child, "exit");
  answers.forEach((answer) => answer());
  server.close();
  server.closeAllConnections();
  await rm(folder, { recursive: true, force: true, maxRetries: 5 });
});

beforeEach(async () => {
  await open();
  await run("localStorage.clear()");
  await open();
  await run("localStorage.clear(); document.getElementById('text').value = arguments[0]", text);
  drafts = [];
  answers = [];
});

test("a click is answered first; its task runs, is listed, and ends", async () => {
  await hold_timers();
  const [answer, before] = await run(`
    document.getElementById("save").click();
    return [document.getElementById("answer").innerText, localStorage.getItem("draft")];
  `);
  assert.equal(answer, "save: in the background");
  assert.equal(before, null, "nothing has run when the click has been answered");
  await in_flight("save");
  await elapse();
  await in_flight();
  assert.equal(await draft(), text);
});

test("a request is sent in the background", async () => {
  await click("send");
  await in_flight("send");
  await until("the draft at the server", () => drafts.length === 1 && answers.length === 1);
  answers[0]();
  await in_flight();
  assert.deepEqual(drafts, [text]);
});

test("who leaves loses nothing that can be done at once, and is told of the rest at the next visit", async () => {
  await go_unseen();
  await hold_timers();
  await click("index");
  await click("send");
  await until("the request", () => answers.length === 1);
  await click("save");
  await in_flight("index", "send", "save");
  assert.notEqual(await draft(), text, "the draft is not all saved yet");
  await leave();
  await until("the beacon", () => drafts.length === 2);
  assert.deepEqual(drafts, [text, text]);
  await open();
  assert.equal(await draft(), text, "what was left of the draft was saved at the end");
  assert.equal(await run("return document.getElementById('text').value"), text, "and is shown");
  const [left, ...more] = await lines("left");
  assert.match(left, /^1 background task still in flight \(3 completed, 0 failed, .*\n *1 × index at .*, for \d/);
  assert.deepEqual(more, []);
  await open();
  assert.deepEqual(await lines("left"), [], "it is told once");
});

test("a visit that drained says so", async () => {
  await hold_timers();
  await click("save");
  await leave();
  await open();
  assert.equal(await draft(), text);
  assert.deepEqual(await lines("left"), [drained(2)]);
});

test("what is aborted is no longer in flight", async () => {
  await click("index");
  await in_flight("index");
  await click("abort");
  await in_flight();
  await leave();
  await open();
  assert.deepEqual(await lines("left"), ["drained: 0 completed, 0 failed, 0 panicked, 0 abandoned, 1 aborted, 0 rejected"]);
});

const straggling = /^1 background task still in flight \(2 completed, 0 failed, .*\n *1 × index at /;
const drained = (completed) => `drained: ${completed} completed, 0 failed, 0 panicked, 0 abandoned, 0 aborted, 0 rejected`;

/// Leaves with a task in flight that needs a timer, by `away`; comes back, which is another visit; the timer elapses; goes and comes again.
async function twice(away) {
  await hold_timers();
  await click("index");
  await click("save");
  await away();
  const [left, ...more] = await until("what was left", async () => (await lines("left")).length && lines("left"));
  assert.match(left, straggling);
  assert.deepEqual(more, []);
  await click("save");
  await in_flight("save");
  await elapse();
  await until("the report", () => run("return Object.values(localStorage).some((report) => report.startsWith('drained'))"));
  await away();
  await until("more of it", async () => (await lines("left")).length === 3);
  assert.deepEqual((await lines("left")).slice(1), [drained(3), drained(2)], "the first visit drained after all");
}

test("who comes back to a page that the browser has kept begins a visit, and what was left in the air goes on", async (t) => {
  await run("window.kept = true");
  await leave();
  await back();
  await until("the page", () => run("return 'ready' in document.body.dataset"));
  await go_unseen();
  if (!(await run("return window.kept"))) return t.skip("this browser keeps no page");
  await twice(async () => {
    await leave();
    await back();
  });
});

test("a page that is hidden is left, and a visit begins when it is seen again", async () => {
  const page = await command("GET", `${session}/window`);
  await twice(async () => {
    const { handle } = await command("POST", `${session}/window/new`, { type: "tab" });
    await command("POST", `${session}/window`, { handle });
    await command("DELETE", `${session}/window`);
    await command("POST", `${session}/window`, { handle: page });
  });
});

test("a task that panics is told at the next visit, and the others go on", async () => {
  await hold_timers();
  await click("bug");
  await click("save");
  await in_flight("bug", "save");
  await elapse();
  await in_flight("bug");
  assert.equal(await draft(), text);
  await leave();
  await open();
  assert.match((await lines("left"))[0], /^1 background task still in flight \(2 completed, 0 failed, .*\n *1 × bug at /);
});
