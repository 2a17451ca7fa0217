// The module that the runtime loads: it starts the wasm module, and exports the handler.
import module from "./pkg/receipts_bg.wasm";
import { handle, initSync } from "./pkg/receipts.js";

initSync({ module });

export default { fetch: handle };
