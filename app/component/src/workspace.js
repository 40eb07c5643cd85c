// Everything around the image: tools, layers, read-out, and what is told to the page.
import { button, element } from "./dom.js";
import { Correct } from "./correct.js";
import { Draw } from "./draw.js";
import { Layers } from "./layers.js";
import { Live } from "./live.js";
import { Mask } from "./mask.js";
import { Pane } from "./pane.js";
import { Strip } from "./strip.js";
import { Regions } from "./regions.js";
import { Readout } from "./readout.js";
import { Adjust } from "./adjust.js";
import { scaleOf } from "./geometry.js";
import { icon } from "./icons.js";
import { KEYS, onKey } from "./keys.js";

export class Workspace {
  constructor(root) {
    this.root = root;
    this.data = null;
    this.tools = element("div", { className: "tools", parent: root });
    this.body = element("div", { className: "body", parent: root });
    this.strip = new Strip(this);
    this.panes = element("div", { className: "panes", parent: this.body });
    this.side = element("aside", { className: "side", parent: this.body });
    this.foot = element("div", { className: "foot", parent: root });
    this.draw = new Draw(this);
    this.layers = new Layers(this);
    this.correct = new Correct(this);
    this.regions = new Regions(this);
    this.adjust = new Adjust(this);
    this.readout = new Readout(this);
    this.live = new Live(this);
    this.pane = this.addPane(true);
    this.twin = null;
    this.makeTools();
    root.tabIndex = 0;
    root.addEventListener("keydown", (event) => onKey(this, event));
    root.addEventListener("pointerdown", (event) => {
      if (!event.target.closest("input, select")) root.focus({ preventScroll: true });
    }, true);
    // For tests and the curious: what is shown, and how often tiles were asked for.
    root.veca = this;
  }

  addPane(navigator) {
    const pane = new Pane(this.panes, {
      navigator,
      drawn: (which, context, transform) => this.draw.paint(which, context, transform),
    });
    pane.viewer.addHandler("animation", () => this.follow(pane));
    pane.viewer.addHandler("animation-finish", () => this.remember());
    pane.viewer.addHandler("rotate", () => this.follow(pane));
    pane.root.addEventListener("pointermove", (event) => this.readout.at(pane, event));
    pane.root.addEventListener("pointerleave", () => this.readout.leave());
    this.draw.listen(pane);
    return pane;
  }

  makeTools() {
    const bar = this.tools;
    this.toolButtons = {
      move: button(bar, icon("move"), "Move (Esc)", () => this.draw.use("move")),
      rectangle: button(bar, icon("rectangle"), "Draw a rectangle (D)", () => this.draw.use("rectangle")),
      polygon: button(bar, icon("polygon"), "Draw a polygon (P)", () => this.draw.use("polygon")),
    };
    element("span", { className: "gap", parent: bar });
    button(bar, icon("whole"), "Whole image (0)", () => this.home());
    button(bar, "1:1", "One pixel of the image on one of the screen (1)", () => this.zoomTo(1));
    button(bar, icon("minus"), "Zoom out (-)", () => this.zoomBy(1 / 1.6));
    button(bar, icon("plus"), "Zoom in (+)", () => this.zoomBy(1.6));
    button(bar, icon("turn"), "Turn by 90° (R)", () => this.turn(90));
    element("span", { className: "gap", parent: bar });
    button(bar, icon("goto"), "Go to coordinates (G)", () => this.readout.askPlace());
    button(bar, icon("link"), "Copy a link to this view (L)", () => this.copyLink());
    button(bar, icon("picture"), "Save what is shown as a picture (S)", () => this.savePicture());
    button(bar, icon("full"), "Full screen (F)", () => this.fullScreen());
    button(bar, icon("keys"), "Keys (?)", () => this.showKeys());
    this.message = element("div", { className: "message", parent: this.root, hidden: true });
    this.message.onclick = () => (this.message.hidden = true);
    this.message.setAttribute("role", "status");
    this.draw.use("move");
  }

  // What Streamlit gives: runs on each change of the page.
  update({ data: [data], setStateValue, setTriggerValue }) {
    const before = this.data;
    this.data = data;
    this.tell = setTriggerValue;
    this.keep = setStateValue;
    const { image, look, pass } = data;
    const anew = before?.image.id !== image.id || before?.image.version !== image.version;
    if (anew || before.look !== look) {
      const kept = anew ? parseView(data.view) : this.place();
      if (anew) this.draw.clear();
      this.pane.open(image, look, pass, () => (kept ? this.goTo(kept) : image.home && this.home(true)));
      this.twin?.open(image, look, pass, () => this.follow(this.pane));
    }
    this.setCompare(data);
    this.layers.update(data);
    this.correct.update();
    this.live.update(data);
    this.adjust.update(data);
    this.heat(data.heat);
    this.regions.update(data);
    this.readout.update(data);
    this.strip.update(data);
    this.redraw();
  }

  setCompare({ compare, image, look, pass }) {
    const side = compare === "side";
    if (side && !this.twin) {
      this.twin = this.addPane(false);
      this.twin.open(image, look, pass, () => this.follow(this.pane));
      this.adjust.apply();
    } else if (!side && this.twin) {
      this.twin.destroy();
      this.twin = null;
    }
    this.root.classList.toggle("swiping", compare === "swipe");
    this.pane.mode = compare;
    this.panes.querySelector(".handle")?.remove();
    if (compare === "swipe") this.makeHandle();
  }

  makeHandle() {
    const handle = element("div", { className: "handle", parent: this.panes, title: "Drag to compare" });
    const place = () => (handle.style.left = `${this.pane.split * 100}%`);
    handle.onpointerdown = (event) => {
      handle.setPointerCapture(event.pointerId);
      handle.onpointermove = (move) => {
        const box = this.panes.getBoundingClientRect();
        this.pane.split = Math.min(1, Math.max(0, (move.clientX - box.left) / box.width));
        place();
        this.pane.draw();
      };
      handle.onpointerup = () => (handle.onpointermove = null);
    };
    place();
  }

  setMasks(first, second) {
    if (this.twin) {
      this.pane.masks = [first, null];
      this.twin.masks = [second, null];
      this.twin.mode = "off";
      this.pane.title.textContent = first?.layer.name ?? "";
      this.twin.title.textContent = second?.layer.name ?? "";
    } else {
      this.pane.masks = [first, second];
      this.pane.title.textContent = "";
    }
  }

  makeMask(layer) {
    return new Mask(layer, this.data.pass, () => this.redraw());
  }

  allPanes() {
    return this.twin ? [this.pane, this.twin] : [this.pane];
  }

  redraw() {
    if (this.asked) return;
    this.asked = requestAnimationFrame(() => {
      this.asked = null;
      for (const pane of this.allPanes()) pane.draw();
    });
  }

  // Keeps two panes on the same place.
  follow(pane) {
    const other = pane === this.pane ? this.twin : this.pane;
    this.readout.scale();
    if (!other || this.following) return;
    this.following = true;
    const [from, to] = [pane.viewer.viewport, other.viewer.viewport];
    if (to && from) {
      to.zoomTo(from.getZoom(true), null, true);
      to.panTo(from.getCenter(true), true);
      to.setRotation(from.getRotation(true), true);
    }
    this.following = false;
  }

  async heat(heat) {
    const key = heat ? `${heat.id}/${heat.layer}/${heat.core}` : "";
    if (key === this.heatKey) return;
    this.heatKey = key;
    let shown = null;
    if (heat) {
      const answer = await fetch(`/veca/heat/${key}${this.data.pass ? `?pass=${this.data.pass}` : ""}`);
      if (answer.ok && key === this.heatKey) {
        const values = new Uint8Array(await answer.arrayBuffer());
        shown = { canvas: heatPicture(values, heat.shape), covers: heat.covers };
      }
    }
    if (key !== this.heatKey) return;
    for (const pane of this.allPanes()) pane.heatmap = shown;
    this.redraw();
  }

  // Where one looks: level-0 (x, y) of the middle, screen pixels a level-0 pixel, degrees.
  place() {
    const { viewport } = this.pane.viewer;
    const item = this.pane.viewer.world.getItemAt(0);
    if (!item) return null;
    const middle = item.viewportToImageCoordinates(viewport.getCenter());
    return { y: middle.y, x: middle.x, zoom: item.viewportToImageZoom(viewport.getZoom()), turn: viewport.getRotation() };
  }

  goTo({ y, x, zoom, turn = 0 }, now = true) {
    const { viewport } = this.pane.viewer;
    const item = this.pane.viewer.world.getItemAt(0);
    if (!item) return;
    if (turn === 0 && Number.isInteger(zoom)) {
      // Pixels of the image lie on whole pixels of the screen, so that they are sharp.
      const { clientWidth, clientHeight } = this.pane.root;
      x = (clientWidth / 2 - Math.round(clientWidth / 2 - x * zoom)) / zoom;
      y = (clientHeight / 2 - Math.round(clientHeight / 2 - y * zoom)) / zoom;
    }
    viewport.setRotation(turn, now);
    viewport.zoomTo(item.imageToViewportZoom(zoom), null, now);
    viewport.panTo(item.imageToViewportCoordinates(x, y), now);
  }

  // All of the image; on a map, all of the raster.
  home(now = false) {
    const { home } = this.data.image;
    if (!home) return this.pane.viewer.viewport.goHome(now);
    const { clientWidth, clientHeight } = this.pane.root;
    const zoom = Math.min(clientWidth / home.width, clientHeight / home.height) * 0.8;
    this.goTo({ y: home.y + home.height / 2, x: home.x + home.width / 2, zoom, turn: 0 }, now);
  }

  jumpTo({ y, x, height, width }) {
    const { clientWidth, clientHeight } = this.pane.root;
    const zoom = Math.min(4, clientWidth / (width * 1.6), clientHeight / (height * 1.6));
    this.goTo({ y: y + height / 2, x: x + width / 2, zoom, turn: this.place()?.turn ?? 0 }, false);
    this.draw.flash([[y, x], [y, x + width], [y + height, x + width], [y + height, x]]);
  }

  zoomBy(factor) {
    this.pane.viewer.viewport.zoomBy(factor);
    this.pane.viewer.viewport.applyConstraints();
  }

  zoomTo(zoom) {
    const place = this.place();
    if (place) this.goTo({ ...place, zoom }, false);
  }

  turn(degrees) {
    const { viewport } = this.pane.viewer;
    viewport.setRotation((viewport.getRotation() + degrees + 360) % 360);
  }

  // The address of this view, so that a reload or a link opens it again.
  address() {
    const place = this.place();
    const url = new URL(window.location.href);
    if (place) url.searchParams.set("view", [place.y, place.x, place.zoom, place.turn].map((n) => +n.toPrecision(9)).join(","));
    return url;
  }

  remember() {
    if (this.data) window.history.replaceState(window.history.state, "", this.address());
  }

  async copyLink() {
    const url = String(this.address());
    try {
      await navigator.clipboard.writeText(url);
      this.say("The link to this view is copied.");
    } catch {
      this.say(url);
    }
  }

  // The image with its masks and drawings, as it is on the screen.
  savePicture() {
    const { clientWidth: width, clientHeight: height } = this.panes;
    const canvas = Object.assign(document.createElement("canvas"), { width, height });
    const context = canvas.getContext("2d");
    const origin = this.panes.getBoundingClientRect();
    for (const pane of this.allPanes()) {
      const box = pane.root.getBoundingClientRect();
      const [x, y] = [box.left - origin.left, box.top - origin.top];
      context.filter = pane.viewer.drawer.canvas.style.filter ? pane.filter : "none";
      context.drawImage(pane.viewer.drawer.canvas, x, y, box.width, box.height);
      context.filter = "none";
      for (const layer of [pane.first, pane.second, pane.heat, pane.top]) {
        context.save();
        if (pane.mode === "swipe" && layer !== pane.top && layer !== pane.heat) {
          const cut = pane.split * box.width;
          context.beginPath();
          context.rect(layer === pane.first ? x : x + cut, y, layer === pane.first ? cut : box.width - cut, box.height);
          context.clip();
        }
        context.globalAlpha = Number(layer.style.opacity || 1);
        context.drawImage(layer, x, y);
        context.restore();
      }
    }
    this.readout.paintScale(context, width, height);
    canvas.toBlob((blob) => {
      const link = element("a", { href: URL.createObjectURL(blob), download: "veca-view.png" });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    });
  }

  fullScreen() {
    if (document.fullscreenElement) document.exitFullscreen();
    else this.root.requestFullscreen();
  }

  showKeys() {
    if (!this.message.hidden) return (this.message.hidden = true);
    this.message.replaceChildren(element("dl", { className: "keys", children: KEYS.flatMap(([key, does]) => [
      element("dt", { text: key }), element("dd", { text: does }),
    ]) }));
    this.message.hidden = false;
    clearTimeout(this.hush);
  }

  say(text) {
    this.message.textContent = text;
    this.message.hidden = false;
    clearTimeout(this.hush);
    this.hush = setTimeout(() => (this.message.hidden = true), 9000);
  }

  get scaleNow() {
    const transform = this.pane.transform;
    return transform ? scaleOf(transform) : null;
  }

  destroy() {
    this.live.stop();
    for (const pane of this.allPanes()) pane.destroy();
    this.root.replaceChildren();
  }
}

function parseView(text) {
  const numbers = (text ?? "").split(",").map(Number);
  if (numbers.length !== 4 || !numbers.every(Number.isFinite) || numbers[2] <= 0) return null;
  const [y, x, zoom, turn] = numbers;
  return { y, x, zoom, turn };
}

// Dark red to white, see-through where there is little.
function heatPicture(values, [height, width]) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d");
  const picture = context.createImageData(width, height);
  values.forEach((value, i) => {
    const t = value / 255;
    picture.data.set([Math.min(1, t * 1.6) * 255, Math.max(0, t - 0.35) * 350, Math.max(0, t - 0.75) * 700, t * 235], 4 * i);
  });
  context.putImageData(picture, 0, 0);
  return canvas;
}
