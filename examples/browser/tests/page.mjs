// Tests the page in Chromium. Clicks start tasks. When the user leaves, the tasks finish immediately if they can. The next visit reports
// the unfinished tasks. Needs the folder `pkg/`, chromium and chromedriver.
import { after, before, beforeEach, test } from "node:test";
import assert from "node:assert/strict";
import { Browser, until } from "../../../testing/webdriver.mjs";
import { serve } from "../serve.mjs";

const text = "All of it, to the last word.";

let server, url, browser;
let drafts = [];
let answers = [];

const run = (script, ...args) => browser.run(script, ...args);
const go = (url) => browser.go(url);
const click = (id) => browser.click(`document.getElementById(${JSON.stringify(id)})`);
const lines = (id) => run("return [...document.getElementById(arguments[0]).children].map((line) => line.innerText)", id);
const draft = () => run("return localStorage.getItem('draft')");

async function open() {
  await go(url);
  await until("the page", () => run("return 'ready' in document.body.dataset"));
}

/// Leaves the page. The browser then closes the page, or keeps it in case the user returns.
const leave = () => go(`${url}serve.mjs`);

const in_flight = (...names) =>
  until(`${names} in flight`, async () => names.join() === (await lines("tasks")).map((line) => line.split(" ")[0]).join());

/// Stops the timers of the page until `run_timers` is called.
const stop_timers = () => run("window.timers = []; window.original = setTimeout; window.setTimeout = (callback) => timers.push(callback)");
const run_timers = () => run("window.setTimeout = original; timers.splice(0).forEach((callback) => callback())");

/// Hides the event `visibilitychange` from the page, because not every browser sends this event to a page that closes.
const block_visibility_events = () => run("addEventListener('visibilitychange', (event) => event.stopImmediatePropagation(), true)");

before(async () => {
  server = await serve(0, (text) => {
    drafts.push(text);
    return new Promise((resolve) => answers.push(resolve));
  });
  url = `http://127.0.0.1:${server.address().port}/`;
  browser = await Browser.start();
});

after(async () => {
  await browser?.close();
  answers.forEach((answer) => answer());
  server.close();
  server.closeAllConnections();
});

beforeEach(async () => {
  await open();
  await run("localStorage.clear()");
  await open();
  await run("localStorage.clear(); document.getElementById('text').value = arguments[0]", text);
  drafts = [];
  answers = [];
});

test("a click returns before its task runs, is listed, and ends", async () => {
  await stop_timers();
  const [answer, before] = await run(`
    document.getElementById("save").click();
    return [document.getElementById("answer").innerText, localStorage.getItem("draft")];
  `);
  assert.equal(answer, "save: in the background");
  assert.equal(before, null, "no task has run when the click handler returns");
  await in_flight("save");
  await run_timers();
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

test("leaving drains the tasks that can finish, and the next visit reports the others", async () => {
  await block_visibility_events();
  await stop_timers();
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
  assert.equal(await draft(), text, "the rest of the draft was saved when the user left");
  assert.equal(await run("return document.getElementById('text').value"), text, "the page shows the draft");
  const [report, ...more] = await lines("reports");
  assert.match(report, /^1 background task still in flight \(3 completed, 0 failed, .*\n *1 × index at .*, for \d/);
  assert.deepEqual(more, []);
  await open();
  assert.deepEqual(await lines("reports"), [], "a report is shown once");
});

test("a visit that drained is reported", async () => {
  await stop_timers();
  await click("save");
  await leave();
  await open();
  assert.equal(await draft(), text);
  assert.deepEqual(await lines("reports"), [drained(2)]);
});

test("aborted tasks are no longer in flight", async () => {
  await click("index");
  await in_flight("index");
  await click("abort");
  await in_flight();
  await leave();
  await open();
  assert.deepEqual(await lines("reports"), ["drained: 0 completed, 0 failed, 0 panicked, 0 abandoned, 1 aborted, 0 rejected"]);
});

const straggling = /^1 background task still in flight \(2 completed, 0 failed, .*\n *1 × index at /;
const drained = (completed) => `drained: ${completed} completed, 0 failed, 0 panicked, 0 abandoned, 0 aborted, 0 rejected`;

/// Leaves and returns while a task waits for a stopped timer. After that, runs the timer, and leaves and returns a second time.
async function leave_twice(leave_and_return) {
  await stop_timers();
  await click("index");
  await click("save");
  await leave_and_return();
  const [report, ...more] = await until("the report", async () => (await lines("reports")).length && lines("reports"));
  assert.match(report, straggling);
  assert.deepEqual(more, []);
  await click("save");
  await in_flight("save");
  await run_timers();
  await until("the report", () => run("return Object.values(localStorage).some((report) => report.startsWith('drained'))"));
  await leave_and_return();
  await until("more reports", async () => (await lines("reports")).length === 3);
  assert.deepEqual((await lines("reports")).slice(1), [drained(3), drained(2)], "the first visit has drained");
}

test("returning to a kept page starts a visit, and its tasks continue", async (t) => {
  await run("window.kept = true");
  await leave();
  await browser.back();
  await until("the page", () => run("return 'ready' in document.body.dataset"));
  await block_visibility_events();
  if (!(await run("return window.kept"))) return t.skip("this browser does not keep pages");
  await leave_twice(async () => {
    await leave();
    await browser.back();
  });
});

test("hiding the page ends a visit, and showing it starts another", async () => {
  const page = await browser.command("GET", "/window");
  await leave_twice(async () => {
    const { handle } = await browser.command("POST", "/window/new", { type: "tab" });
    await browser.command("POST", "/window", { handle });
    await browser.command("DELETE", "/window");
    await browser.command("POST", "/window", { handle: page });
  });
});

test("a task that panics is reported at the next visit, and the others continue", async () => {
  await stop_timers();
  await click("bug");
  await click("save");
  await in_flight("bug", "save");
  await run_timers();
  await in_flight("bug");
  assert.equal(await draft(), text);
  await leave();
  await open();
  assert.match((await lines("reports"))[0], /^1 background task still in flight \(2 completed, 0 failed, .*\n *1 × bug at /);
});
