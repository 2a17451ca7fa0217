// Tests the dashboards of a notes service and of host/examples/dashboard.rs in Chromium. Needs chromium, chromedriver and mkfifo:
// `NOTES=path/to/notes-tokio SHOP=path/to/examples/dashboard node --test host/tests/dashboard.mjs`.
// If SCREENSHOTS names a folder, the tests also take the screenshots in docs/pictures/.
import { execFileSync, spawn } from "node:child_process";
import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { env } from "node:process";
import { after, afterEach, before, test } from "node:test";
import assert from "node:assert/strict";
import { once } from "node:events";
import { Browser, matchLines, until, within } from "../../testing/webdriver.mjs";

let browser, service;
let sockets = [];

const run = (script, ...args) => browser.run(script, ...args);
const go = (url) => browser.go(url);
const text = (id) => browser.text(id);
const shows = (id, expected) => browser.shows(id, expected);
const ended = async (outcome) => Number(await run("return document.querySelector(`#ended-${arguments[0]} dd`)?.innerText", outcome));
const losses = () => run("return [...document.querySelectorAll('.loss')].map((loss) => loss.id)");
const row = (name) => `[...document.querySelectorAll("#rows tr")].find((row) => row.querySelector("b").innerText === ${JSON.stringify(name)})`;
const listed = (name) => run(`return ${row(name)}?.innerText`);
const is_listed = (name) => until(`${name} in flight`, () => listed(name));
const has_ended = (name) => until(`the end of ${name}`, async () => !(await listed(name)));

/// Starts a notes service and opens its dashboard.
async function start(...options) {
  const folder = await mkdtemp(join(tmpdir(), "notes-"));
  const [dir, stalls] = [join(folder, "notes"), join(folder, "stalls")];
  await mkdir(stalls);
  const args = ["--listen", "127.0.0.1:0", "--dir", dir, "--stall", stalls, "--dashboard", ...options];
  const child = spawn(env.NOTES, args, { stdio: ["ignore", "pipe", "inherit"] });
  service = { folder, dir, stalls, child, exit: once(child, "exit") };
  [[, service.url]] = await matchLines(child.stdout, /^listening on (http:.*)$/);
  service.page = `${service.url}/background`;
  await go(service.page);
  await shows("state", /^Running$/);
}

/// Starts host/examples/dashboard.rs with this grace period and delay in seconds, and opens its dashboard.
async function open_shop(grace = 3600, delay = 0) {
  const child = spawn(env.SHOP, ["0", String(grace), String(delay)], { stdio: ["ignore", "pipe", "ignore"] });
  service = { child, exit: once(child, "exit") };
  [[, service.url]] = await matchLines(child.stdout, /^listening on (http:.*)$/);
  await go(service.url);
  await shows("state", /^Running$/);
}

/// Lets the tasks with these names in host/examples/dashboard.rs end.
const release = (...names) => Promise.all(names.map((name) => fetch(`${service.url}/release/${name}`, { method: "POST" })));
const shop_tasks = ["checkout", "import", "report", "export", "upload"];

const RECORD = `
  window.said = [];
  for (const region of document.querySelectorAll("[role=status], [role=alert], [aria-live]"))
    new MutationObserver(() => said.push(region.textContent)).observe(region, { childList: true, characterData: true, subtree: true });
`;

/// `record` starts to record the texts that screen readers announce. `go_and_record` opens a page and records the texts from its start.
const record = () => run(RECORD);
async function go_and_record(url) {
  const source = `addEventListener("DOMContentLoaded", () => { ${RECORD} })`;
  const { identifier } = await browser.devtools("Page.addScriptToEvaluateOnNewDocument", { source });
  await go(url);
  await browser.devtools("Page.removeScriptToEvaluateOnNewDocument", { identifier });
}
const said = () => run("return said");

const active = () => run("return document.activeElement.id || document.activeElement.getAttribute('aria-label') || document.activeElement.localName");
const [TAB, ENTER, ESCAPE] = ["\uE004", "\uE007", "\uE00C"];

/// Presses Tab until the expected element has the focus.
async function tab_to(expected) {
  for (let n = 0; n < 100; n += 1) {
    if ((await active()).match(expected)) return;
    await browser.press(TAB);
  }
  assert.fail(`Tab does not reach ${expected}`);
}

/// Clicks the abort button that the script `button` returns, and confirms the abort.
async function click_abort(button) {
  await browser.click(button);
  await browser.click("document.getElementById('abort')");
}

const put = async (name, body) => assert.equal((await fetch(`${service.url}/notes/${name}`, { method: "PUT", body })).status, 202);

/// Makes the write of a note block until `unblock` opens the named pipe for writing.
const block = (name) => execFileSync("mkfifo", [join(service.stalls, name)]);
const unblock = (name) => writeFile(join(service.stalls, name), "");

/// Sends the head and half of the body of a note, so that the connection stays in flight.
async function send_half() {
  const socket = connect(Number(new URL(service.url).port), "127.0.0.1").on("error", () => {});
  sockets.push(socket);
  await once(socket, "connect");
  socket.write("PUT /notes/half HTTP/1.1\r\nhost: localhost\r\ncontent-length: 8\r\n\r\nhalf");
  return socket;
}

/// Opens a connection that stays in flight. Returns the ID of its task, and a promise that resolves when the connection closes.
async function straggle() {
  const connections = () => run("return [...document.querySelectorAll('#rows tr:has(button:enabled)')].map((row) => row.dataset.id)");
  const before = await until("the page's own connection", async () => (await connections()).length && connections());
  const socket = await send_half();
  const id = await until("the straggler", async () => (await connections()).find((id) => !before.includes(id)));
  return { id, closed: within("the connection's end", once(socket, "close")) };
}

before(async () => {
  assert.ok(env.NOTES, "NOTES is the path of a notes service");
  assert.ok(env.SHOP, "SHOP is the path of the example with phases");
  browser = await Browser.start();
});

after(() => browser?.close());

afterEach(async () => {
  sockets.splice(0).forEach((socket) => socket.destroy());
  if (!service) return;
  service.child.kill("SIGKILL");
  await service.exit;
  if (service.folder) await rm(service.folder, { recursive: true, force: true });
  service = undefined;
});

test("a write is listed, ends, and is counted", async () => {
  await start();
  block("note");
  await put("note", "a text");
  assert.match(await is_listed("write"), /blocking closure\s+\S+handler\.rs:\d+:\d+\s+\d+\.\d s\s+Abort/);
  // An event may list the closure before the closure has started.
  const button = () => run(`const { disabled, title } = ${row("write")}.querySelector("button"); return disabled && title`);
  assert.equal(await until("a disabled button", button), "A blocking closure that has started cannot be aborted.");
  await shows("by-name", /connection\s+\d+[^]*request\s+1[^]*write\s+1/);
  assert.deepEqual(await losses(), [], "a count of zero is not highlighted");
  // A folder with the name of the note makes the write fail.
  await mkdir(join(service.dir, "note"));
  await unblock("note");
  await has_ended("write");
  await until("the counter", async () => (await ended("failed")) === 1);
  assert.deepEqual(await losses(), ["ended-failed"]);
  const before = await ended("completed");
  await put("another", "note");
  await until("a counter that has moved", async () => (await ended("completed")) > before);
  await shows("rate", /^[\d.]+$/);
});

test("a click aborts a straggler and removes its row", async () => {
  await start();
  const { id, closed } = await straggle();
  const line = `document.querySelector('#rows tr[data-id="${id}"]')`;
  await click_abort(`${line}.querySelector("button")`);
  await shows("announcement", /^connection: /);
  await until("the row's end", () => run(`return !${line}`));
  await closed;
  await until("the counter", async () => (await ended("aborted")) === 1);
  assert.deepEqual(await losses(), ["ended-abandoned", "ended-aborted"], "the request and its connection");
  await shows("state", /^Running$/);
});

test("a row shows why its task could not be aborted", async () => {
  await start();
  await send_half();
  await is_listed("connection");
  await run("window.original = fetch; window.fetch = (to, how) => original(to.replace(/=.*/, '=0-0'), how)");
  await click_abort(`${row("connection")}.querySelector("button")`);
  await until("the answer", async () => /Not aborted: no task with this ID is in flight; it may have ended \(404\)\./.test(await listed("connection")));
  await run("window.fetch = () => Promise.reject(new TypeError('Failed to fetch'))");
  await click_abort(`${row("connection")}.querySelector("button")`);
  await until("the answer", async () => /Not aborted: the service did not answer\./.test(await listed("connection")));
  assert.equal(await ended("aborted"), 0);
});

test("the keyboard alone cancels and confirms an abort, and keeps the focus on the page", async () => {
  await open_shop();
  await is_listed("checkout");
  const id = await run(`return ${row("checkout")}.dataset.id`);
  const button = `Abort checkout ${id}`;
  const is_open = () => run("return document.getElementById('confirm').open");
  await tab_to(`^${button}$`);
  for (const cancel of [ESCAPE, ENTER]) {
    await browser.press(ENTER);
    assert.equal(await active(), "keep", "the button that aborts nothing has the focus");
    assert.match(await text("confirm-title"), /^Abort checkout\?$/);
    assert.match(await text("confirm-text"), new RegExp(`^Future ${id}\\. `));
    await browser.press(cancel);
    assert.equal(await is_open(), false);
    assert.equal(await active(), button, "the focus returns to the row");
  }
  await browser.press(ENTER);
  await browser.press(TAB);
  assert.equal(await active(), "abort");
  assert.equal(await ended("aborted"), 0);
  await browser.press(ENTER);
  await has_ended("checkout");
  assert.notEqual(await run("return document.activeElement.localName"), "body");
  await until("the counter", async () => (await ended("aborted")) === 1);
});

test("the confirmation closes when its task ends", async () => {
  await open_shop();
  await is_listed("checkout");
  await shows("late-tasks", /indexer/); // so that the page announces nothing else
  await record();
  await browser.click(`${row("checkout")}.querySelector("button")`);
  assert.ok(await run("return document.getElementById('confirm').open"));
  await release("checkout");
  await until("the end of the dialog", () => run("return !document.getElementById('confirm').open"));
  assert.ok((await said()).includes("checkout has ended."));
  assert.notEqual(await run("return document.activeElement.localName"), "body");
});

test("an abort after a quick change of the dialog aborts the second task", async () => {
  await open_shop();
  await is_listed("checkout");
  await is_listed("import");
  const open = (name) => `document.getElementById("confirm").close(); ${row(name)}.querySelector("button").click();`;
  await run(open("checkout") + open("import"));
  await browser.click("document.getElementById('abort')");
  await has_ended("import");
  assert.ok(await listed("checkout"));
});

test("each late task has one line, even if two have the same name", async () => {
  await open_shop();
  await shows("late-tasks", /indexer/);
  const lines = await run(`const late = ["importer", "importer"].map((name) => ({ name, timeout: 1 }));
    for (let events = 0; events < 5; events += 1) {
      last.host.late = late;
      show_host();
    }
    return [...document.querySelectorAll("#late-tasks li")].map((line) => line.innerText)`);
  assert.deepEqual(lines, Array(2).fill("importer has reported no progress for more than 1 s"));
});

test("announcements of one event are said together, and equal announcements are said again", async () => {
  await open_shop();
  await shows("late-tasks", /indexer/); // so that the page announces nothing else
  await record();
  for (let events = 0; events < 2; events += 1) await run("announce('checkout has ended.'); announce('workers: Draining.')");
  const both = "checkout has ended. workers: Draining.";
  assert.deepEqual(await said(), [both, `${both}\u00a0`]);
});

test("services show their state, restarts and last loss", async () => {
  await open_shop();
  await shows("service-rows", /outbox in workers\s+\S+dashboard\.rs:\d+:\d+\s+Last loss: failed: no connection to the mail server\s+(Waiting|Running)\s+\d+/);
  await shows("service-rows", /prices in workers\s+\S+dashboard\.rs:\d+:\d+\s+Waiting\s+[1-9]/);
  const restarts = () => run("return Number(document.querySelector('#service-rows tr td:last-child').innerText)");
  const before = await restarts();
  await until("a restart", async () => (await restarts()) > before);
  await click_abort(`${row("outbox")}.querySelector("button")`);
  await until("the end of the service", async () => !(await text("service-rows")).includes("outbox"));
  assert.match(await text("service-rows"), /prices/);
});

test("child registries are groups, and tasks show their group", async () => {
  await open_shop();
  await shows("group-rows", /tenant-a in workers\s+\S+\s+3\s+\d[^]*tenant-b in workers\s+\S+\s+1\s[^]*connection in workers › tenant-a\s+\S+\s+1\s/);
  for (const [task, group] of [["checkout", "requests"], ["export", "workers › tenant-b"], ["upload", "workers › tenant-a › connection"]])
    assert.match(await listed(task), new RegExp(`future in ${group}\\s`));
  assert.equal(await listed("tenant-a"), null, "a group is not a task");
  await release("import");
  await shows("group-rows", /tenant-a in workers\s+\S+\s+2\s/);
});

test("phases show a drain from the request to its end", async () => {
  await open_shop(3600, 4);
  await shows("phase-list", /^requests\s+Open\s+1 in flight\s+workers\s+Open\s+7 in flight · 5 s reserved\s+admin\s+Open/);
  await shows("stop", /^Ready$/);
  await go_and_record(service.url);
  await shows("late-tasks", /^indexer has reported no progress for more than 1 s$/);
  service.child.kill("SIGTERM");
  await shows("stop", /^Asked to stop: the drain starts in [\d.]+ s\. Grace period: (1 h 00|59) min .*left\.$/);
  assert.equal(await text("state"), "Running");
  await shows("phase-list", /^requests\s+Draining\s+1 in flight\s+workers\s+Open\s+7 in flight · drain starts within 59 min/);
  await shows("state", /^Draining$/);
  await release("checkout");
  await shows("phase-list", /^requests\s+Drained\s+0 in flight\s+workers\s+Draining\s+4 in flight\s+admin\s+Open/);
  await until("the end of the warning", async () => !(await text("late-tasks")));
  await release(...shop_tasks);
  assert.deepEqual(await within("the end of the process", service.exit), [0, null]);
  await shows("phase-list", /workers\s+Drained\s+0 in flight\s+admin\s+Draining/);
  await shows("state", /^The service has exited or is exiting$/);
  const texts = (await said()).join("\n");
  const phases = ["requests", "workers", "admin"].map((name) => `${name}: Draining`);
  for (const text of ["indexer has reported no progress", "requests: Drained", "workers: Drained", ...phases])
    assert.equal(texts.split(text).length, 2, `"${text}" is said once: ${texts}`);
  assert.doesNotMatch(await text("last-update"), /Other phases/);
});

test("the page shows the rest of an expired grace period", async () => {
  await open_shop(6);
  await is_listed("checkout");
  service.child.kill("SIGTERM");
  // Five seconds are reserved for the second phase. Therefore the second phase starts to drain before the first phase has drained.
  await shows("phase-list", /^requests\s+Draining[^]*workers\s+Draining/);
  await shows("stop", /^Grace period: [0-4]\.\d s left\.$/);
  assert.deepEqual(await within("the end of the process", service.exit), [1, null]);
});

test("live regions are silent while only numbers change", async () => {
  await open_shop();
  await shows("late-tasks", /indexer/);
  await shows("service-rows", /Last loss/);
  await record();
  const completed = await ended("completed");
  await until("two more runs", async () => (await ended("completed")) >= completed + 2);
  assert.deepEqual(await said(), []);
});

test("the accessibility tree names every region, table, button and dialog", async () => {
  await open_shop();
  await is_listed("upload");
  await shows("late-tasks", /indexer/);
  const tree = async () => {
    await browser.devtools("Accessibility.enable");
    const { nodes } = await browser.devtools("Accessibility.getFullAXTree");
    return nodes.filter((node) => !node.ignored).map((node) => [node.role.value, node.name?.value ?? "", node.description?.value ?? ""]);
  };
  const nodes = await tree();
  const names = (...roles) => nodes.filter(([role]) => roles.includes(role)).map(([, name]) => name);
  for (const [role, name] of nodes)
    if (["region", "table", "button", "dialog", "progressbar", "list"].includes(role) && role !== "list") assert.ok(name, `${role} has a name`);
  for (const region of ["No progress", "Phases", "In flight", "Services", "Child registries", "Tasks in flight, oldest first"])
    assert.ok(names("region").includes(region), `${region}: ${names("region")}`);
  for (const table of ["Services", "Child registries", "Tasks in flight, oldest first"]) assert.ok(names("table").includes(table), table);
  assert.ok(names("columnheader").includes("Restarts"), names("columnheader").join());
  assert.ok(names("rowheader").some((name) => /^tenant-b in workers/.test(name)), names("rowheader").join());
  assert.ok(names("list").includes("Phases"));
  assert.ok(names("button").some((name) => /^Abort upload \d+-\d+$/.test(name)), names("button").join());
  assert.deepEqual(names("heading").slice(0, 1), ["Background tasks"]);
  await browser.click(`${row("upload")}.querySelector("button")`);
  const dialog = (await tree()).find(([role]) => role === "dialog");
  assert.equal(dialog?.[1], "Abort upload?");
  assert.match(dialog?.[2], /^Future \d+-\d+\. The future is dropped at its next await point\.$/);
});

test("a page that aborts its own connection reconnects", async () => {
  await start();
  await is_listed("connection");
  await run("window.states = []; new MutationObserver(() => states.push(state.dataset.is)).observe(state, { attributes: true })");
  await run("document.querySelectorAll('#rows button:enabled').forEach((button) => { button.click(); document.getElementById('abort').click(); })");
  await until("the reconnection", () => run("return states.includes('lost') && states.at(-1) === 'running'"));
  assert.ok((await ended("aborted")) >= 1);
});

test("a request from another origin aborts nothing", async (t) => {
  await start();
  await send_half();
  await is_listed("connection");
  const ids = await run("return [...document.querySelectorAll('#rows tr')].map((row) => row.dataset.id)");
  const foreign = createServer((_, response) => response.setHeader("content-type", "text/html").end("<title>foreign</title>"));
  foreign.listen(0, "127.0.0.1");
  await once(foreign, "listening");
  t.after(() => {
    foreign.close();
    foreign.closeAllConnections();
  });
  await go(`http://127.0.0.1:${foreign.address().port}/`);
  const answers = await run(
    `
      const [page, ids] = arguments;
      const abort = (id) => fetch(page + "/abort?id=" + id, { method: "POST", mode: "no-cors" });
      return Promise.all(ids.map((id) => abort(id).then((answer) => answer.type)));
    `,
    service.page,
    ids,
  );
  assert.deepEqual(answers, ids.map(() => "opaque"), "the requests were sent and answered");
  const read = await run("return fetch(arguments[0] + '/events').then(() => 'read', () => 'refused')", service.page);
  assert.equal(read, "refused", "another origin cannot read the events");
  await go(service.page);
  await shows("state", /^Running$/);
  assert.equal(await ended("aborted"), 0);
});

test("the page shows the drain, and the process exits with the page open", async () => {
  await start("--grace", "3600");
  block("note");
  await put("note", "in the end");
  await is_listed("write");
  service.child.kill("SIGTERM");
  await shows("state", /^Draining$/);
  await shows("elapsed", /^of \d+ left, after \d/);
  await is_listed("write");
  await unblock("note");
  const unblocked = Date.now();
  assert.deepEqual(await within("the end of the process", service.exit), [0, null]);
  assert.ok(Date.now() - unblocked < 5000, "the open page does not delay the exit");
  await shows("state", /^The service has exited or is exiting$/);
  await shows("last-update", /^Last update: .*\. Only serving tasks were left/);
  assert.equal(await listed("write"), null);
});

test("the page continues when the service has restarted", async () => {
  await start();
  const { port } = new URL(service.url);
  service.child.kill("SIGKILL");
  await service.exit;
  await shows("state", /^Connection lost, retrying$/);
  const child = spawn(env.NOTES, ["--listen", `127.0.0.1:${port}`, "--dir", service.dir, "--dashboard"], { stdio: ["ignore", "ignore", "inherit"] });
  Object.assign(service, { child, exit: once(child, "exit") });
  await shows("state", /^Running$/);
  assert.equal(await text("last-update"), "");
});

test("the oldest two hundred tasks are listed, and the others are counted", async () => {
  await start();
  await Promise.all(Array.from({ length: 120 }, send_half));
  // These are 120 connections with one request each, and the connections and requests of the page.
  await shows("more", /^and 4\d more$/);
  assert.equal(await run("return document.querySelectorAll('#rows tr').length"), 200);
  await shows("by-name", /request\s+121/);
});

/// An event without tasks, for the page as it is in the repository.
const STATE = {
  page: "00000000", in_flight: 3, summary: { completed: 1234, failed: 0, panicked: 0, abandoned: 0, aborted: 0, rejected: 2 },
  shutting_down: false, drained: false, last: false, inspected: false,
  names: {}, tasks: [], more: 0, groups: [], more_groups: 0, services: [], more_services: 0,
};

function send_state(response, state) {
  if (!response.headersSent) response.writeHead(200, { "content-type": "text/event-stream" });
  response.write(`data: ${JSON.stringify(state)}\n\n`);
  return response;
}

/// Starts a server that returns the page with the ID `page()`, and passes the requests for events to a function. Returns its URL.
async function serve_stub(t, events, page = () => STATE.page) {
  const html = await readFile(new URL("../src/dashboard/dashboard.html", import.meta.url), "utf8");
  const server = createServer((request, response) => {
    if (request.url !== "/") return events(response);
    response.setHeader("content-type", "text/html").end(html.replace(STATE.page, page()));
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  t.after(() => {
    server.close();
    server.closeAllConnections();
  });
  return `http://127.0.0.1:${server.address().port}/`;
}

test("the page shows the counts of a registry that is not inspected", async (t) => {
  const streams = [];
  const url = await serve_stub(t, (response) => {
    if (streams.length) return response.writeHead(503).end();
    streams.push(response);
    send_state(response, STATE);
  });
  await go(url);
  await shows("state", /^Running$/);
  await shows("in-flight", /^3$/);
  await shows("more", /not inspected/);
  assert.equal(await text("ended-completed"), "completed\n1,234");
  assert.deepEqual(await losses(), ["ended-rejected"]);
  send_state(streams[0], { ...STATE, shutting_down: true, last: true }).end();
  await shows("state", /^The service has exited or is exiting$/);
  await shows("last-update", /not inspected/);
  await shows("remaining", /^3$/);
});

test("the last update has the date and time of the event, even after a suspend", async (t) => {
  const streams = [];
  const url = await serve_stub(t, (response) => {
    if (streams.length) return response.writeHead(503).end();
    streams.push(send_state(response, STATE));
  });
  await go(url);
  await shows("state", /^Running$/);
  const day = await run("return new Date().toLocaleDateString()");
  // While the system is suspended, the clock of the page may stop, but the date advances.
  await run(`
    const Before = Date;
    const now = () => Before.now() + 25 * 3600_000;
    window.Date = class extends Before {
      static now = now;
      constructor(...parts) {
        super(...(parts.length ? parts : [now()]));
      }
    };
  `);
  streams[0].end();
  await shows("state", /^Connection lost/);
  const [update, today] = [await text("last-update"), await run("return new Date().toLocaleDateString()")];
  assert.ok(update.startsWith(`Last update: ${day}`), update);
  assert.notEqual(day, today);
});

test("a page of another release reloads, but not again and again", async (t) => {
  let [page, release, in_flight] = ["old", "old", 1];
  let [loads, connections] = [0, 0];
  const streams = [];
  const connect = (response) => {
    connections += 1;
    streams.push(send_state(response, { ...STATE, page: release, in_flight }));
  };
  const url = await serve_stub(t, connect, () => {
    loads += 1;
    return page;
  });
  const restart = () => streams.splice(0).forEach((stream) => stream.end());
  await go(url);
  await shows("in-flight", /^1$/);
  assert.equal(loads, 1);

  // A deployment replaces the process.
  [page, release, in_flight] = ["new", "new", 2];
  restart();
  await shows("in-flight", /^2$/);
  await shows("state", /^Running$/);
  assert.equal(loads, 2);

  // A proxy sends the next requests to the old release.
  [release, in_flight] = ["old", 3];
  restart();
  await shows("state", /^Another release of the service answered, retrying$/);
  const before = connections;
  await until("more connections", () => connections >= before + 2);
  assert.equal(await text("in-flight"), "2", "the page ignores the events of the other release");
  [release, in_flight] = ["new", 4];
  await shows("in-flight", /^4$/);
  await shows("state", /^Running$/);
  assert.equal(loads, 2);

  // The next deployment follows more than a minute later.
  await run("const now = performance.now.bind(performance); performance.now = () => now() + 60_000");
  [page, release, in_flight] = ["newest", "newest", 5];
  restart();
  await shows("in-flight", /^5$/);
  assert.equal(loads, 3);
});

test("both color schemes have enough contrast, and the page fits the window", async () => {
  await open_shop();
  const check = async (...texts) => {
    const contrasts = [];
    for (const scheme of ["light", "dark"]) {
      for (const width of [320, 400, 1280]) {
        const found = await browser.checkContrast(scheme, width);
        for (const text of texts) assert.ok(found.some(([other]) => other.includes(text)), `${text} is shown`);
        contrasts.push(found[0].toString());
      }
    }
    assert.equal(new Set(contrasts).size, 2, "the two schemes differ");
  };
  await shows("service-rows", /Last loss/);
  await shows("late-tasks", /indexer/);
  await check("No progress", "Last loss", "Waiting", "tenant-a", "Open", "Ready");
  await browser.click(`${row("checkout")}.querySelector("button")`);
  await check("Abort checkout?", "Keep it running");
  await run("document.getElementById('confirm').close()");
  service.child.kill("SIGTERM");
  await release("checkout");
  await shows("phase-list", /Drained/);
  await check("Drained", "Draining", "drain starts within");
});

test("the browser logs no errors", async () => {
  // The page of the previous test still tries to connect to a service that has exited.
  await go("about:blank");
  await browser.log();
  await start();
  await is_listed("request");
  assert.deepEqual(await browser.log(), []);
});

async function take(name, width, height) {
  await browser.resize(width, height);
  await browser.devtools("Emulation.setScrollbarsHidden", { hidden: true });
  await run("scrollTo(0, 0)");
  for (const scheme of ["light", "dark"]) {
    await browser.prefer(scheme);
    await new Promise((resolve) => setTimeout(resolve, 600));
    await browser.screenshot(join(env.SCREENSHOTS, `dashboard-${name}-${scheme}.png`));
  }
}

test("screenshots", { skip: !env.SCREENSHOTS && "no SCREENSHOTS" }, async () => {
  await start("--grace", "3600");
  block("blocked");
  await put("blocked", "blocked");
  const halves = [];
  for (let n = 0; n < 3; n += 1) halves.push(await send_half());
  await is_listed("connection");
  let stop = false;
  const load = [1, 2, 3].map(async (client) => {
    for (let n = 0; !stop; n += 1) {
      await put(`note-${client}-${n % 50}`, "a note").catch(() => {}); // its connection may be aborted below
      await new Promise((resolve) => setTimeout(resolve, 3 + 60 * Math.abs(Math.sin(Date.now() / 9000))));
    }
  });
  await new Promise((resolve) => setTimeout(resolve, 45_000));
  for (const half of halves.slice(0, 1)) half.destroy();
  await click_abort(`[...document.querySelectorAll("#rows button:enabled")].at(-1)`);
  await until("an abort", () => ended("aborted"));
  await new Promise((resolve) => setTimeout(resolve, 5000));
  await take("wide", 1280, 690);
  await take("narrow", 400, 1180);
  stop = true;
  await Promise.all(load);
});

test("screenshot of a drain", { skip: !env.SCREENSHOTS && "no SCREENSHOTS" }, async () => {
  await open_shop(25);
  await shows("late-tasks", /indexer/);
  await new Promise((resolve) => setTimeout(resolve, 20_000));
  service.child.kill("SIGTERM");
  await shows("state", /^Draining$/);
  // The first phase drains. When the first phase has drained, tasks of two tenants in the second phase end.
  for (const name of ["checkout", "import", "export"]) {
    await new Promise((resolve) => setTimeout(resolve, 2500));
    await release(name);
  }
  await new Promise((resolve) => setTimeout(resolve, 2500));
  await take("drain", 1280, 1200);
});
