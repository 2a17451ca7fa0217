// A headless Chromium for tests, controlled by WebDriver (https://www.w3.org/TR/webdriver2/). Needs chromium and chromedriver.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import assert from "node:assert/strict";

/// The time limit of each step of a test. A step that exceeds this limit counts as hung.
export const TIMEOUT = 60_000;

/// Calls `poll` until it returns a truthy value.
export async function until(what, poll) {
  const deadline = Date.now() + TIMEOUT;
  for (;;) {
    const value = await poll();
    if (value) return value;
    assert.ok(Date.now() < deadline, `timed out: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/// Waits for a promise. Throws an error if the promise does not resolve within the time limit.
export const within = (what, promise) =>
  Promise.race([promise, new Promise((_, reject) => setTimeout(reject, TIMEOUT, new Error(`timed out: ${what}`)).unref())]);

/// Reads a process's output until lines have matched all patterns, one after another. Returns the matches, and discards the rest of the output.
export async function matchLines(output, ...patterns) {
  const [lines, matches] = [[], []];
  for await (const line of createInterface(output)) {
    lines.push(line);
    const match = line.match(patterns[matches.length]);
    if (match) matches.push(match);
    if (matches.length === patterns.length) break;
  }
  output.resume();
  assert.equal(matches.length, patterns.length, `the process ended without ${patterns[matches.length]}: ${lines.join("\n")}`);
  return matches;
}

/// A script that returns the page's width, and the contrast of each text (https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio).
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
    if (!texts.currentNode.data.trim() || !element.checkVisibility() || element.closest("script, .visually-hidden")) continue;
    const [less, more] = [getComputedStyle(element).color, ground(element)].map(luminance).sort((a, b) => a - b);
    found.push([texts.currentNode.data.trim(), (more + 0.05) / (less + 0.05)]);
  }
  return found;
`;

export class Browser {
  #driver;
  #profile;
  #url;
  #session;

  static async start() {
    const browser = new Browser();
    browser.#profile = await mkdtemp(join(tmpdir(), "chromium-"));
    browser.#driver = spawn("chromedriver", ["--port=0"], { stdio: ["ignore", "pipe", "inherit"] });
    const [[, port]] = await matchLines(browser.#driver.stdout, /successfully on port (\d+)/);
    browser.#url = `http://127.0.0.1:${port}`;
    const args = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", `--user-data-dir=${browser.#profile}`];
    const alwaysMatch = { browserName: "chrome", "goog:chromeOptions": { args }, "goog:loggingPrefs": { browser: "ALL" } };
    try {
      const { sessionId } = await browser.#send("POST", "/session", { capabilities: { alwaysMatch } });
      browser.#session = `/session/${sessionId}`;
    } catch (error) {
      await browser.close();
      throw error;
    }
    return browser;
  }

  async close() {
    if (this.#session) await this.#send("DELETE", this.#session);
    this.#driver.kill();
    await once(this.#driver, "exit");
    await rm(this.#profile, { recursive: true, force: true, maxRetries: 5 });
  }

  async #send(method, path, body) {
    const signal = AbortSignal.timeout(TIMEOUT);
    const response = await fetch(`${this.#url}${path}`, { method, body: body && JSON.stringify(body), signal });
    const { value } = await response.json();
    if (!response.ok) throw new Error(`${method} ${path}: ${value.error}: ${value.message}`);
    return value;
  }

  /// Sends a command of the session.
  command(method, path, body) {
    return this.#send(method, `${this.#session}${path}`, body);
  }

  /// Runs a script in the page, and returns its result.
  run(script, ...args) {
    return this.command("POST", "/execute/sync", { script, args });
  }

  go(url) {
    return this.command("POST", "/url", { url });
  }

  back() {
    return this.command("POST", "/back", {});
  }

  /// Clicks the element that a script returns. The click fails if another element covers the element, because a user could not
  /// click it.
  async click(script) {
    const element = await this.run(`return ${script}`);
    await this.command("POST", `/element/${Object.values(element)[0]}/click`, {});
  }

  /// Returns the text of the element with this ID, or an empty text if the element is not visible.
  text(id) {
    return this.run("const it = document.getElementById(arguments[0]); return it?.checkVisibility() ? it.innerText : ''", id);
  }

  /// Waits until the text of the element with this ID matches `expected`.
  shows(id, expected) {
    return until(`${expected} in #${id}`, async () => (await this.text(id)).match(expected));
  }

  /// Presses and releases these keys, one after another.
  press(keys) {
    const actions = [...keys].flatMap((value) => [{ type: "keyDown", value }, { type: "keyUp", value }]);
    return this.command("POST", "/actions", { actions: [{ type: "key", id: "keys", actions }] });
  }

  /// Sends a command of the Chrome DevTools Protocol.
  devtools(cmd, params = {}) {
    return this.command("POST", "/goog/cdp/execute", { cmd, params });
  }

  resize(width, height) {
    return this.devtools("Emulation.setDeviceMetricsOverride", { width, height, deviceScaleFactor: 1, mobile: false });
  }

  /// Sets the preferred colour scheme.
  prefer(value) {
    return this.devtools("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value }] });
  }

  /// Shows the page with this colour scheme and width. Asserts that the page is not wider than the window, and that each text has
  /// enough contrast. Returns the texts with their contrasts.
  async checkContrast(scheme, width) {
    await this.prefer(scheme);
    await this.resize(width, 800);
    const [wide, ...found] = await this.run(CONTRASTS);
    assert.ok(wide <= width, `${wide} > ${width}`);
    for (const [what, ratio] of found) assert.ok(ratio >= 4.5, `${scheme}: ${what}: ${ratio}`);
    return found;
  }

  /// Returns and removes the messages in the console's log.
  log() {
    return this.command("POST", "/se/log", { type: "browser" });
  }

  async screenshot(path) {
    await writeFile(path, await this.command("GET", "/screenshot"), "base64");
  }
}
