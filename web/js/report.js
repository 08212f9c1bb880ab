// Shows a node's report on the node itself, as the frontend shows the text of a node that is running.
// The host sends a node's outputs again when its result comes from the cache, but not its progress text: so reports travel with the outputs.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

const name = "PURE.Report";
const ROOM = [680, 960]; // heights of PURE Erase Concept in which its boxes show some lines: empty, with text and pictures
const isEraser = (node) => node?.comfyClass === "PURE_EraseConcept";
const grow = (node, height) => node.setSize([Math.max(node.size[0], 420), Math.max(node.size[1], height)]);
if (!app.extensions.some((e) => e.name === name)) app.registerExtension({ // a second copy of the pack brings the same file
  name,
  nodeCreated(node) {
    if (!isEraser(node)) return;
    grow(node, ROOM[0]);
    node.pureIsNew = true;
  },
  loadedGraphNode(node) {
    if (isEraser(node)) node.pureIsNew = false; // it has the size that its user gave it
  },
  setup() {
    api.addEventListener("executed", ({ detail }) => {
      const { pure_report: report, pure_last: last } = detail.output ?? {};
      const id = String(detail.display_node ?? detail.node);
      const shown = app.graph.nodes.find((n) => String(n.id) === id);
      const inner = isEraser(shown) && id !== String(detail.node); // a node inside it: one of them speaks for all
      if (report && (!inner || last)) api.dispatchCustomEvent("progress_text", { nodeId: id, text: report[0] });
      if (!inner || !last || !shown.pureIsNew) return;
      grow(shown, ROOM[1]);
      shown.pureIsNew = false;
    });
  },
});
