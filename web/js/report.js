// Shows a node's report on the node itself, as the frontend shows the text of a node that is running.
// The host sends a node's outputs again when its result comes from the cache, but not its progress text: so reports travel with the outputs.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

const name = "PURE.Report";
const ROOM = [680, 960]; // heights of PURE Erase Concept in which its boxes show some lines: empty, with text and pictures
const grow = (node, height) => node.setSize([Math.max(node.size[0], 420), Math.max(node.size[1], height)]);
if (!app.extensions.some((e) => e.name === name)) app.registerExtension({ // a second copy of the pack brings the same file
  name,
  nodeCreated(node) { // room for a list in each box; a saved graph brings its own size afterwards
    if (node.comfyClass === "PURE_EraseConcept") grow(node, ROOM[0]);
  },
  setup() {
    api.addEventListener("executed", ({ detail }) => {
      const text = detail.output?.pure_report?.[0];
      const inner = detail.display_node && detail.display_node !== detail.node; // of a node inside PURE Erase Concept
      if (text && (!inner || detail.output.pure_last)) api.dispatchCustomEvent("progress_text", { nodeId: detail.display_node ?? detail.node, text });
      const shown = inner && detail.output?.pure_last && app.graph.nodes.find((n) => String(n.id) === String(detail.display_node));
      if (shown?.comfyClass === "PURE_EraseConcept") grow(shown, ROOM[1]);
    });
  },
});
