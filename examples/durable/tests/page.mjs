// Tests the page for users in Chromium: `SIGNUPS=path/to/durable-signups node --test examples/durable/tests/page.mjs`.
// Needs chromium and chromedriver. If SCREENSHOTS names a folder, the tests also take screenshots.
import { spawn } from "node:child_process";
import { mkdir, mkdtemp, readdir, rename, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { env } from "node:process";
import { after, afterEach, before, beforeEach, test } from "node:test";
import assert from "node:assert/strict";
import { once } from "node:events";
import { Browser, matchLines, until } from "../../../testing/webdriver.mjs";

let browser, dir;
let processes = [];

const run = (script, ...args) => browser.run(script, ...args);
const go = (url) => browser.go(url);
const text = (id) => browser.text(id);
const shows = (id, expected) => browser.shows(id, expected);
const TAB = "\uE004";
const ENTER = "\uE007";

/// Starts the program, and waits until each pattern has matched a line of its output. Returns the process and the matches.
async function start(patterns, ...args) {
  const child = spawn(resolve(env.SIGNUPS), args, { cwd: dir, env: { ...env, DATABASE_URL: "signups.db" }, stdio: ["ignore", "ignore", "pipe"] });
  const started = { child, exit: once(child, "exit") };
  processes.push(started);
  return { ...started, matches: await matchLines(child.stderr, ...patterns) };
}

async function serve(port = 0) {
  const patterns = [/listening on (.*)/, /the board is at (.*)/];
  const server = await start(patterns, "server", "--listen", `127.0.0.1:${port}`, "--board", "127.0.0.1:0");
  const [[, url], [, board]] = server.matches;
  return { ...server, url, board };
}

const work = () => start([/the worker is ready/], "worker", "--lease", "3");

async function end(...them) {
  for (const { child, exit } of them) {
    child.kill("SIGKILL");
    await exit;
  }
}

/// Signs up with the keyboard, as a user does. Waits for the page that shows the status of the mail.
async function sign_up(url, address) {
  await go(url);
  await browser.press(`${TAB}${address}${ENTER}`);
  await until("the page of the mail", async () => (await run("return location.pathname")).startsWith("/signups/"));
  await shows("address", address);
}

before(async () => {
  assert.ok(env.SIGNUPS, "SIGNUPS is the path of durable-signups");
  browser = await Browser.start();
});

after(() => browser?.close());

beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), "signups-"));
});

afterEach(async () => {
  // Failed requests of this page must not appear in the console log of the next test.
  await go("about:blank");
  await browser.log();
  await end(...processes.splice(0));
  await rm(dir, { recursive: true, force: true });
});

test("the page shows when the mail is sent", async () => {
  const { url } = await serve();
  await sign_up(url, "ada@example.com");
  await run("window.same = true");
  await shows("message", /^The mail is about to be sent\.$/);
  assert.deepEqual(await readdir(dir).then((files) => files.filter((file) => file === "outbox")), []);
  await work();
  await shows("message", /^The mail has been sent\.$/);
  assert.equal(await run("return document.title"), "The mail has been sent.");
  assert.equal(await run("return document.querySelector('main').dataset.state"), "done");
  assert.ok(await run("return window.same"), "the page is not reloaded");
  const mails = (await readdir(join(dir, "outbox"))).filter((file) => file.endsWith(".eml"));
  assert.equal(mails.length, 1);
  assert.ok((await run("return location.pathname")).includes(mails[0].split(".")[0]), "the file is named after the job");
  assert.deepEqual(await browser.log(), []);
});

test("the page shows a retried mail and a failed mail", async () => {
  const { url } = await serve();
  await sign_up(url, "bob@flaky.example");
  await run("window.messages = []; new MutationObserver(() => messages.push(says.innerText)).observe(says, { childList: true })");
  await work();
  await shows("message", /^The mail has been sent, at attempt 2\.$/);
  const messages = await run("return window.messages");
  assert.ok(messages.includes("The mail could not be sent yet: the mailbox is busy. It will be retried."), messages);
  await sign_up(url, "eve@bounce.example");
  await shows("message", /^The mail could not be sent: the mailbox does not exist\.$/);
  assert.equal(await run("return document.querySelector('main').dataset.state"), "dead");
});

test("the page reconnects to a restarted server", async () => {
  const server = await serve();
  await sign_up(server.url, "ada@example.com");
  await run("window.same = true");
  await end(server);
  await shows("lost", /^No connection, reconnecting\. The mail is sent anyway\.$/);
  const { port } = new URL(server.url);
  // The next server has an empty database, so it responds to the page with 404. Even after a 404, the page must try to reconnect.
  const files = (await readdir(dir)).filter((file) => file.startsWith("signups.db"));
  await mkdir(join(dir, "away"));
  for (const file of files) await rename(join(dir, file), join(dir, "away", file));
  await run("window.answers = []; window.original = EventSource; window.EventSource = function (to) { answers.push(to); return new original(to); }; EventSource.CLOSED = 2");
  const other = await serve(port);
  await until("a second request", () => run("return window.answers.length"));
  await end(other);
  for (const file of (await readdir(dir)).filter((file) => file.startsWith("signups.db"))) await rm(join(dir, file));
  for (const file of files) await rename(join(dir, "away", file), join(dir, file));
  await Promise.all([serve(port), work()]);
  await shows("message", /^The mail has been sent\.$/);
  assert.ok(await run("return window.same"), "the page is not reloaded");
  assert.equal(await text("lost"), "");
});

test("a killed worker only delays the mail", async () => {
  const { url } = await serve();
  await sign_up(url, "ada@example.com");
  await end(await work());
  await work();
  await shows("message", /^The mail has been sent(, at attempt \d)?\.$/);
});

test("without scripts the page reloads itself", async (t) => {
  const { url } = await serve();
  const answer = await fetch(`${url}/signups`, { method: "POST", body: new URLSearchParams({ email: "ada@example.com" }) });
  assert.equal(answer.status, 202);
  await browser.devtools("Emulation.setScriptExecutionDisabled", { value: true });
  t.after(() => browser.devtools("Emulation.setScriptExecutionDisabled", { value: false }));
  await go(new URL(answer.headers.get("location"), url).href);
  await shows("message", /^The mail is about to be sent\.$/);
  assert.ok(await run("return document.querySelector('noscript a').checkVisibility()"), "there is a link to reload");
  await work();
  await shows("message", /^The mail has been sent\.$/);
});

test("the browser and the server reject an invalid address", async () => {
  const { url } = await serve();
  await go(url);
  await browser.press(`${TAB}ada${ENTER}`);
  assert.equal(await run("return document.querySelector('input').matches(':invalid') && location.pathname"), "/");
  await run("document.forms[0].noValidate = true");
  await browser.press(ENTER);
  await shows("refusal", /^This is not a valid mail address\.$/);
  assert.equal(await text("signup"), "");
});

test("the page is accessible", async () => {
  const { url } = await serve();
  await sign_up(url, "ada@example.com");
  const { nodes } = await browser.devtools("Accessibility.getFullAXTree");
  const has = (role, name) => nodes.some((node) => node.role?.value === role && node.name?.value === name);
  assert.ok(has("textbox", "Another address") && has("button", "Sign up") && has("heading", "ada@example.com") && has("region", "ada@example.com"));
  const live = nodes.filter((node) => node.properties?.some(({ name, value }) => name === "live" && value.value === "polite"));
  assert.ok(live.some((node) => node.role.value === "status"), "changes are announced");
  assert.equal(await run("return document.documentElement.lang"), "en");
});

test("both colour schemes have enough contrast, and the page fits the window", async () => {
  const { url } = await serve();
  await sign_up(url, `${"long".repeat(15)}@bounce.example`);
  const seen = [];
  for (const state of ["waiting", "dead"]) {
    if (state === "dead") {
      await work();
      await shows("message", /mailbox does not exist/);
    }
    for (const scheme of ["light", "dark"]) {
      for (const width of [320, 1280]) {
        const found = await browser.checkContrast(scheme, width);
        assert.ok(found.length >= 6);
        seen.push(found.toString());
        if (env.SCREENSHOTS) await browser.screenshot(join(env.SCREENSHOTS, `signups-${state}-${scheme}-${width}.png`));
      }
    }
  }
  assert.ok(new Set(seen).size >= 4, "the colours differ between schemes and statuses");
});

test("the board counts the mails, and requests nothing from other hosts", async () => {
  const { url, board } = await serve();
  await sign_up(url, "ada@example.com");
  await work();
  await shows("message", /^The mail has been sent\.$/);
  await go(`${board}/`);
  // The first cell contains the queue. The next cells contain the numbers of waiting, running, retrying, done, dead and cancelled mails.
  assert.deepEqual(await run("return [...document.querySelectorAll('td')].slice(0, 7).map((cell) => cell.innerText.trim())"), ["mail", "0", "0", "0", "1", "0", "0"]);
  const hosts = await run("return [...new Set(performance.getEntriesByType('resource').map(({ name }) => new URL(name).origin))]");
  assert.deepEqual(hosts, [new URL(board).origin]);
  assert.deepEqual(await browser.log(), []);
});

test("the board's buttons operate the queue", async () => {
  const { url, board } = await serve();
  const press = async (description) => {
    const button = `document.querySelector("button[aria-label='${description}']")`;
    await until(description, () => run(`return !!${button}`));
    await browser.click(button);
  };
  const shown = async (pattern) => await until(`${pattern}`, async () => pattern.test(await run("return document.body.innerText")));
  const sign_up = async (email) => {
    const answer = await fetch(`${url}/signups`, { method: "POST", body: new URLSearchParams({ email }) });
    return (await answer.json()).id;
  };
  const [ada, eve, ann] = [await sign_up("ada@example.com"), await sign_up("eve@bounce.example"), await sign_up("ann@bounce.example")];
  await go(`${board}/`);
  await press("Pause mail");
  await shown(/mail paused/);
  await press(`Cancel ${ada}`);
  await until("the job is cancelled", () => run(`return !document.body.innerText.includes("${ada}")`));
  await work();
  await press("Resume mail");
  const dead = async (count) => {
    await until(`${count} dead jobs`, async () => {
      await go(`${board}/`);
      return (await run("return document.querySelectorAll('[aria-labelledby=dead] tr').length")) === (count ? count + 1 : 0);
    });
  };
  await dead(2);
  await shown(/the mailbox does not exist/);
  for (const scheme of ["light", "dark"]) {
    for (const width of [320, 1280]) {
      assert.ok((await browser.checkContrast(scheme, width)).length >= 20);
      if (env.SCREENSHOTS) await browser.screenshot(join(env.SCREENSHOTS, `board-${scheme}-${width}.png`));
    }
  }
  await press(`Retry ${eve}`);
  await dead(2);
  await press("Retry all dead jobs");
  await dead(2);
  await press(`Discard ${eve}`);
  await dead(1);
  assert.ok((await run("return document.body.innerText")).includes(ann));
  // The deletion needs two clicks: the first click only shows the button.
  await browser.click("document.querySelector('summary')");
  await press("Delete all dead jobs");
  await dead(0);
  // A page of another site must not be able to press a button of the board.
  await go(`${url}/`);
  const status = await run(`return fetch("${board}/queues/mail/pause", { method: "POST", mode: "no-cors" }).then(() => "sent", () => "refused")`);
  await go(`${board}/`);
  assert.ok(["sent", "refused"].includes(status) && !/paused/.test(await run("return document.body.innerText")), status);
  const forged = await fetch(`${board}/queues/mail/pause`, { method: "POST", headers: { origin: url, "sec-fetch-site": "same-site" } });
  assert.equal(forged.status, 403);
});
