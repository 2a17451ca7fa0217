# The configuration for workerd.
using Workerd = import "/workerd/workerd.capnp";

const config :Workerd.Config = (
  services = [
    (name = "receipts", worker = .receipts),
    # Allows requests to private addresses, because the mail service runs on this computer.
    (name = "internet", network = (allow = ["private"])),
  ],
  sockets = [(name = "http", address = "127.0.0.1:8787", http = (), service = "receipts")],
);

const receipts :Workerd.Worker = (
  compatibilityDate = "2026-01-01",
  modules = [
    (name = "index.js", esModule = embed "index.js"),
    (name = "pkg/receipts.js", esModule = embed "pkg/receipts.js"),
    (name = "pkg/receipts_bg.wasm", wasm = embed "pkg/receipts_bg.wasm"),
  ],
  bindings = [
    (name = "MAIL", fromEnvironment = "MAIL"),
    (name = "GRACE", fromEnvironment = "GRACE"),
  ],
);
