// Serves the page and accepts drafts, each after a delay: `node serve.mjs [port]`.
import { createServer } from "node:http";
import { readFile } from "node:fs/promises";
import { argv } from "node:process";
import { pathToFileURL } from "node:url";

const types = { html: "text/html", js: "text/javascript", wasm: "application/wasm" };

/// Listens on `port`, or on a free port if `port` is 0, and resolves to the server. `onDraft` receives each draft. The response waits for the promise
/// that `onDraft` returns.
export function serve(port, onDraft) {
  const server = createServer(async (request, response) => {
    // `URL` removes `..` from the path.
    const path = URL.parse(request.url, "http://page")?.pathname.replace(/\/$/, "/index.html");
    if (request.method === "POST" && path === "/drafts") {
      let text = "";
      for await (const piece of request.setEncoding("utf8")) text += piece;
      await onDraft(text);
      return response.writeHead(204).end();
    }
    try {
      const file = await readFile(new URL(`.${path}`, import.meta.url));
      response.writeHead(200, { "content-type": types[path.split(".").pop()] ?? "text/plain" }).end(file);
    } catch {
      response.writeHead(404).end();
    }
  });
  return new Promise((resolve) => server.listen(port, "127.0.0.1", () => resolve(server)));
}

if (import.meta.url === pathToFileURL(argv[1]).href) {
  const server = await serve(Number(argv[2] ?? 8080), async (text) => {
    await new Promise((resolve) => setTimeout(resolve, 3000));
    console.log(`draft: ${text}`);
  });
  console.log(`http://127.0.0.1:${server.address().port}/`);
}
