// The runtime loads this module, which starts the WebAssembly module and exports the handler.
import module from "./pkg/receipts_bg.wasm";
import { handle, initSync } from "./pkg/receipts.js";

initSync({ module });

export default { fetch: handle };
