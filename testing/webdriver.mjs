// A headless Chromium for tests, controlled by WebDriver (https://www.w3.org/TR/webdriver2/). Needs chromium and chromedriver.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import assert from "node:assert/strict";

/// Longer than any step of a test takes: what takes longer hangs.
export const TIMEOUT = 30_000;

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

/// Waits for a promise that must resolve.
export const within = (what, promise) =>
  Promise.race([promise, new Promise((_, reject) => setTimeout(reject, TIMEOUT, new Error(`timed out: ${what}`)).unref())]);

/// Returns the first line of a child's stdout that matches, as the match.
export async function firstMatch(child, pattern) {
  for await (const line of createInterface(child.stdout)) {
    const match = line.match(pattern);
    if (match) return match;
  }
  throw new Error(`the process ended without a line that matches ${pattern}`);
}

export class Browser {
  #driver;
  #profile;
  #url;
  #session;

  static async start(capabilities = {}) {
    const browser = new Browser();
    browser.#profile = await mkdtemp(join(tmpdir(), "chromium-"));
    browser.#driver = spawn("chromedriver", ["--port=0"], { stdio: ["ignore", "pipe", "inherit"] });
    const [, port] = await firstMatch(browser.#driver, /successfully on port (\d+)/);
    browser.#url = `http://127.0.0.1:${port}`;
    const args = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", `--user-data-dir=${browser.#profile}`];
    const alwaysMatch = { browserName: "chrome", "goog:chromeOptions": { args }, ...capabilities };
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

  /// Clicks the element that a script returns, as a user does: it fails if another element covers it.
  async click(script) {
    const element = await this.run(`return ${script}`);
    await this.command("POST", `/element/${Object.values(element)[0]}/click`, {});
  }

  /// Presses and releases a key.
  press(key) {
    const actions = [{ type: "keyDown", value: key }, { type: "keyUp", value: key }];
    return this.command("POST", "/actions", { actions: [{ type: "key", id: "keys", actions }] });
  }

  /// Sends a command of the Chrome DevTools Protocol.
  devtools(cmd, params) {
    return this.command("POST", "/goog/cdp/execute", { cmd, params });
  }
}
