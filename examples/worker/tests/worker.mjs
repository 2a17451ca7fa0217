// Runs the Worker in workerd, with a mail service on this computer. The test needs the folder `pkg/`, and the variable WORKERD with the
// path of workerd.
import { after, before, test } from "node:test";
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { EventEmitter, on, once } from "node:events";
import { createServer } from "node:http";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const events = new EventEmitter();
const responded = new Set();
const receipts = [];
const lines = [];
events.setMaxListeners(0);
let mail, workerd, url;

/// Waits until the condition is true. Checks the condition after each receipt and each line that workerd prints. If the condition never
/// becomes true, the time limit of the CI job ends the wait.
async function until(condition) {
  if (condition()) return;
  for await (const _ of on(events, "change")) if (condition()) return;
}

const has_receipts = (order) => ["customer", "accounting"].every((recipient) => receipts.includes(`${order} to ${recipient}`));
const has_line = (text) => lines.some((line) => line.includes(text));

/// Posts an order. The mail service answers only after this client has received the Worker's response. So a Worker that waited for its
/// tasks before it responds would hang.
async function post(order, query = "") {
  const response = await fetch(`${url}/orders/${order}${query}`, { method: "POST" });
  assert.equal(response.status, 202);
  assert.equal(await response.text(), `${order} is accepted\n`);
  responded.add(order);
  events.emit("change");
}

before(async () => {
  mail = createServer(async (request, response) => {
    const receipt = (await request.toArray()).join("");
    // The mail service never answers the receipts of the order `hang`.
    if (receipt.startsWith("hang")) return;
    await until(() => responded.has(receipt.split(" ")[0]));
    receipts.push(receipt);
    response.writeHead(receipt.startsWith("refuse") ? 503 : 200).end();
    events.emit("change");
  }).listen(0, "127.0.0.1");
  await once(mail, "listening");

  const folder = fileURLToPath(new URL("..", import.meta.url));
  const env = { ...process.env, MAIL: `http://127.0.0.1:${mail.address().port}/`, GRACE: "5" };
  const words = ["serve", "config.capnp", "--socket-addr=http=127.0.0.1:0", "--control-fd=3"];
  workerd = spawn(process.env.WORKERD, words, { cwd: folder, env, stdio: ["ignore", "pipe", "pipe", "pipe"] });
  for (const output of [workerd.stdout, workerd.stderr])
    createInterface({ input: output }).on("line", (line) => {
      console.log(line);
      lines.push(line);
      events.emit("change");
    });
  const [listens] = await Promise.race([
    once(createInterface({ input: workerd.stdio[3] }), "line"),
    once(workerd, "exit").then(([code]) => assert.fail(`workerd exited with code ${code}`)),
  ]);
  url = `http://127.0.0.1:${JSON.parse(listens).port}`;
});

after(() => {
  workerd.kill();
  mail.close();
  mail.closeAllConnections();
});

test("receipts are sent after the response", async () => {
  await post("book");
  await until(() => has_receipts("book") && has_line("drained: 2 completed"));
});

test("receipts are lost without waitUntil", async () => {
  await post("forgotten", "?forget");
  // The receipts of both orders take the same time. When the receipts of `later` have arrived, the receipts of `forgotten` would have
  // arrived too.
  await post("later");
  await until(() => has_receipts("later"));
  await post("last");
  await until(() => has_receipts("last"));
  assert.ok(!receipts.some((receipt) => receipt.startsWith("forgotten")), receipts.join());
});

test("requests at the same time drain separately", async () => {
  const orders = Array.from({ length: 20 }, (_, index) => `order-${index}`);
  await Promise.all(orders.map((order) => post(order)));
  await until(() => orders.every(has_receipts));
});

test("a failed task is logged", async () => {
  await post("refuse");
  await until(() => has_line("receipt at examples/worker/src/lib.rs") && has_line("failed: the mail service responded with status 503"));
});

test("a task that hangs is aborted after the grace period", async () => {
  await post("hang");
  await until(() => has_line("2 aborted"));
});

test("other requests are rejected", async () => {
  assert.equal((await fetch(`${url}/orders/book`)).status, 404);
  assert.equal((await fetch(url, { method: "POST" })).status, 404);
});
