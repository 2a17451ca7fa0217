// Tests the user's page in a real Chromium: `SIGNUPS=path/to/durable-signups node --test examples/durable/tests/page.mjs`.
// Needs chromium and chromedriver. With SCREENSHOTS=folder it also takes screenshots.
import { spawn } from "node:child_process";
import { mkdir, mkdtemp, readdir, rename, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { env } from "node:process";
import { after, afterEach, before, beforeEach, test } from "node:test";
import assert from "node:assert/strict";
import { once } from "node:events";
import { createInterface } from "node:readline";

/// The time limit of a step, which only a hang exceeds.
const HANG = 60_000;

let driver, folder, session, dir;
let processes = [];

/// Sends a WebDriver command (https://www.w3.org/TR/webdriver2/).
async function command(method, path, body) {
  const response = await fetch(`${driver.url}${path}`, { method, body: body && JSON.stringify(body), signal: AbortSignal.timeout(HANG) });
  const { value } = await response.json();
  if (!response.ok) throw new Error(`${method} ${path}: ${value.error}: ${value.message}`);
  return value;
}

const run = (script, ...args) => command("POST", `${session}/execute/sync`, { script, args });
const go = (to) => command("POST", `${session}/url`, { url: to });
const devtools = (cmd, params = {}) => command("POST", `${session}/goog/cdp/execute`, { cmd, params });
const resize = (width, height) => devtools("Emulation.setDeviceMetricsOverride", { width, height, deviceScaleFactor: 1, mobile: false });
const prefer = (value) => devtools("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value }] });

/// Polls a condition until it is truthy, and returns its value.
async function until(what, condition) {
  const end = Date.now() + HANG;
  for (;;) {
    const value = await condition();
    if (value) return value;
    assert.ok(Date.now() < end, `timed out waiting for: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

const text = (id) => run("const element = document.getElementById(arguments[0]); return element?.checkVisibility() ? element.innerText : ''", id);
const shows = (id, expected) => until(`${expected} in #${id}`, async () => (await text(id)).match(expected));
const type = (keys) =>
  command("POST", `${session}/actions`, {
    actions: [{ type: "key", id: "keys", actions: [...keys].flatMap((value) => [{ type: "keyDown", value }, { type: "keyUp", value }]) }],
  });
const TAB = "\uE004";
const ENTER = "\uE007";

/// Starts the program, and waits for a line that contains this text.
async function start(text, ...args) {
  const child = spawn(resolve(env.SIGNUPS), args, { cwd: dir, env: { ...env, DATABASE_URL: "signups.db" }, stdio: ["ignore", "ignore", "pipe"] });
  const started = { child, exit: once(child, "exit"), lines: [] };
  processes.push(started);
  await new Promise((resolve, reject) => {
    createInterface(child.stderr).on("line", (line) => {
      started.lines.push(line);
      if (line.includes(text)) resolve();
    });
    started.exit.then(() => reject(new Error(`the program has exited: ${started.lines.join("\n")}`)));
  });
  const after = (text) => started.lines.find((line) => line.includes(text))?.split(text)[1];
  return { ...started, url: after("listening on "), board: after("the board is at ") };
}

const serve = (port = 0) => start("the board is at", "server", "--listen", `127.0.0.1:${port}`, "--board", "127.0.0.1:0");
const work = () => start("the worker is ready", "worker", "--lease", "3");

async function end(...them) {
  for (const { child, exit } of them) {
    child.kill("SIGKILL");
    await exit;
  }
}

/// Signs up as a user does, and waits for the page of the mail.
async function sign_up(url, address) {
  await go(url);
  await type(`${TAB}${address}${ENTER}`);
  await until("the page of the mail", async () => (await run("return location.pathname")).startsWith("/signups/"));
  await shows("address", address);
}

before(async () => {
  assert.ok(env.SIGNUPS, "SIGNUPS is the path of durable-signups");
  folder = await mkdtemp(join(tmpdir(), "chromium-"));
  const child = spawn("chromedriver", ["--port=0"], { stdio: ["ignore", "pipe", "inherit"] });
  driver = { child };
  for await (const line of createInterface(child.stdout)) {
    const port = line.match(/successfully on port (\d+)/)?.[1];
    if (port) {
      driver.url = `http://127.0.0.1:${port}`;
      break;
    }
  }
  assert.ok(driver.url, "chromedriver does not start: is it installed?");
  const args = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", `--user-data-dir=${folder}`];
  const alwaysMatch = { browserName: "chrome", "goog:chromeOptions": { args }, "goog:loggingPrefs": { browser: "ALL" } };
  const { sessionId } = await command("POST", "/session", { capabilities: { alwaysMatch } });
  session = `/session/${sessionId}`;
});

after(async () => {
  if (session) await command("DELETE", session);
  driver.child.kill();
  await once(driver.child, "exit");
  await rm(folder, { recursive: true, force: true, maxRetries: 5 });
});

beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), "signups-"));
});

afterEach(async () => {
  // Failed requests of this test's page must not appear in the console log of the next test.
  await go("about:blank");
  await command("POST", `${session}/se/log`, { type: "browser" });
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
  const messages = await command("POST", `${session}/se/log`, { type: "browser" });
  assert.deepEqual(messages, []);
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
  // Starts a server with an empty database, which responds 404: the page must reconnect after that response too.
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
  await devtools("Emulation.setScriptExecutionDisabled", { value: true });
  t.after(() => devtools("Emulation.setScriptExecutionDisabled", { value: false }));
  await go(new URL(answer.headers.get("location"), url).href);
  await shows("message", /^The mail is about to be sent\.$/);
  assert.ok(await run("return document.querySelector('noscript a').checkVisibility()"), "there is a link to reload");
  await work();
  await shows("message", /^The mail has been sent\.$/);
});

test("the browser and the server reject an invalid address", async () => {
  const { url } = await serve();
  await go(url);
  await type(`${TAB}ada${ENTER}`);
  assert.equal(await run("return document.querySelector('input').matches(':invalid') && location.pathname"), "/");
  await run("document.forms[0].noValidate = true");
  await type(ENTER);
  await shows("refusal", /^This is not a valid mail address\.$/);
  assert.equal(await text("signup"), "");
});

test("the page is accessible", async () => {
  const { url } = await serve();
  await sign_up(url, "ada@example.com");
  const { nodes } = await devtools("Accessibility.getFullAXTree");
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
      await prefer(scheme);
      for (const width of [320, 1280]) {
        await resize(width, 800);
        const [wide, ...found] = await run(CONTRASTS);
        assert.ok(wide <= width, `${wide} > ${width}`);
        assert.ok(found.length >= 6);
        for (const [what, ratio] of found) assert.ok(ratio >= 4.5, `${scheme}: ${what}: ${ratio}`);
        seen.push(found.toString());
        if (env.SCREENSHOTS) {
          const picture = await command("GET", `${session}/screenshot`);
          await writeFile(join(env.SCREENSHOTS, `signups-${state}-${scheme}-${width}.png`), picture, "base64");
        }
      }
    }
  }
  assert.ok(new Set(seen).size >= 4, "the colours differ between schemes and statuses");
});

/// Returns the page's width, and the contrast of each text (https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio).
const CONTRASTS = `
  const parts = (color) => color.match(/[\\d.]+/g).map(Number);
  const luminance = (color) => {
    const [r, g, b] = parts(color).map((part) => part / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    const own = element ? getComputedStyle(element).backgroundColor : "rgb(255, 255, 255)";
    return parts(own)[3] === 0 ? ground(element.parentElement) : own;
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [document.documentElement.scrollWidth];
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !element.checkVisibility() || element.closest("script")) continue;
    const [less, more] = [getComputedStyle(element).color, ground(element)].map(luminance).sort((a, b) => a - b);
    found.push([texts.currentNode.data.trim(), (more + 0.05) / (less + 0.05)]);
  }
  return found;
`;

test("the engine's board shows the queue, and requests nothing from other hosts", async () => {
  const { url, board } = await serve();
  await sign_up(url, "ada@example.com");
  await work();
  await shows("message", /^The mail has been sent\.$/);
  await go(`${board}/queues/mail/Done`);
  const id = new RegExp((await readdir(join(dir, "outbox")))[0].split(".")[0]);
  const shown = async () => await run("return document.body.innerText");
  await until("the mail's job", async () => id.test(await shown()));
  await until("the board is healthy", async () => !/unhealthy/i.test(await shown()));
  const hosts = await run("return [...new Set(performance.getEntriesByType('resource').map(({ name }) => new URL(name).origin))]");
  assert.deepEqual(hosts, [board]);
  if (env.SCREENSHOTS) await writeFile(join(env.SCREENSHOTS, "board.png"), await command("GET", `${session}/screenshot`), "base64");
});
