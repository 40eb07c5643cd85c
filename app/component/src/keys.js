// Keys, as people who look at slides all day want them.
import OpenSeadragon from "openseadragon";

export const KEYS = [
  ["0", "whole image"], ["1", "one to one"], ["+ −", "zoom"], ["← → ↑ ↓", "move"], ["R", "turn"], ["G", "go to a place"],
  ["M", "mask on or off"], ["O", "outlines"], ["[ ]", "opacity"], ["T", "keep thin classes"],
  ["D", "draw a rectangle"], ["P", "draw a polygon"], ["Esc", "back to moving"],
  ["B", "paint"], ["E", "erase"], ["V", "restore"], [", .", "brush size"], ["Z", "undo a stroke"],
  ["L", "copy a link to this view"], ["S", "save a picture"], ["F", "full screen"],
];

export function onKey(workspace, event) {
  if (event.target.closest?.("input, textarea, select") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape" && !workspace.message.hidden) {
    workspace.message.hidden = true;
    return;
  }
  const { viewport } = workspace.pane.viewer;
  const pan = (x, y) => {
    const { clientWidth, clientHeight } = workspace.pane.root;
    viewport.panBy(viewport.deltaPointsFromPixels(new OpenSeadragon.Point(x * clientWidth * 0.2, y * clientHeight * 0.2)));
    viewport.applyConstraints();
  };
  const does = {
    0: () => workspace.home(),
    1: () => workspace.zoomTo(1),
    "+": () => workspace.zoomBy(1.6),
    "=": () => workspace.zoomBy(1.6),
    "-": () => workspace.zoomBy(1 / 1.6),
    ArrowLeft: () => pan(-1, 0),
    ArrowRight: () => pan(1, 0),
    ArrowUp: () => pan(0, -1),
    ArrowDown: () => pan(0, 1),
    r: () => workspace.turn(90),
    R: () => workspace.turn(-90),
    m: () => workspace.layers.toggleMask(),
    o: () => workspace.layers.toggleOutline(),
    t: () => workspace.layers.toggleThin(),
    "[": () => workspace.layers.changeOpacity(-0.1),
    "]": () => workspace.layers.changeOpacity(0.1),
    d: () => workspace.draw.use("rectangle"),
    p: () => workspace.draw.use("polygon"),
    b: () => workspace.correct.use("brush"),
    e: () => workspace.correct.use("erase"),
    v: () => workspace.correct.use("restore"),
    z: () => workspace.correct.undo(),
    ",": () => workspace.correct.changeSize(1 / 1.25),
    ".": () => workspace.correct.changeSize(1.25),
    Escape: () => workspace.draw.escape(),
    Enter: () => workspace.draw.finish(),
    g: () => workspace.readout.askPlace(),
    l: () => workspace.copyLink(),
    s: () => workspace.savePicture(),
    f: () => workspace.fullScreen(),
    "?": () => workspace.showKeys(),
  }[event.key];
  if (!does) return;
  event.preventDefault();
  event.stopPropagation();
  does();
}
