// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
//
// Rushes Generate previews the clip as an animated PNG. The classic canvas draws only the first frame of one, so there an
// <img> on the node shows it instead. Where nodes are made of HTML, or the node is inside a subgraph, nothing is done.
// Rushes Write Plate shows movies, which the frontend else expects only of nodes that take one.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

const GENERATE = "RushesGenerate";
const WRITE = "RushesWritePlate";
const HEIGHT = 160; // pixels, at least

function pictureOf(node) {
  const found = node.widgets?.find((widget) => widget.name === "preview");
  if (found) return found.element;
  const picture = document.createElement("img");
  picture.style.objectFit = "contain";
  const widget = node.addDOMWidget("preview", "rushes.preview", picture, {
    serialize: false, // of the prompt
    hideOnZoom: false,
    getMinHeight: () => HEIGHT,
  });
  widget.serialize = false; // of the saved graph
  return picture;
}

function show({ detail }) {
  const node = app.graph?.getNodeById(Number(detail.displayNodeId));
  if (node?.comfyClass !== GENERATE || detail.blob.type !== "image/png" || globalThis.LiteGraph?.vueNodesMode) return;
  const picture = pictureOf(node);
  if (picture.src) URL.revokeObjectURL(picture.src);
  picture.src = URL.createObjectURL(detail.blob);
  for (const still of app.nodePreviewImages?.[detail.displayNodeId] ?? []) URL.revokeObjectURL(still);
  delete app.nodePreviewImages?.[detail.displayNodeId];
}

app.registerExtension({
  name: "rushes.preview",
  nodeCreated(node) {
    if (node.comfyClass === WRITE) node.previewMediaType = "video";
  },
  setup() {
    api.addEventListener("b_preview_with_metadata", show);
  },
});
