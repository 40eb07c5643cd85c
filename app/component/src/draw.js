// Drawing on the image: rectangles and polygons in level-0 pixels.
import OpenSeadragon from "openseadragon";
import { BRUSHES } from "./correct.js";
import { apply, boxCorners, scaleOf } from "./geometry.js";

export class Draw {
  constructor(workspace) {
    this.workspace = workspace;
    this.clear();
  }

  clear() {
    this.corners = null;
    this.points = [];
    this.flashed = null;
  }

  use(tool) {
    this.tool = tool;
    this.points = [];
    const { toolButtons, panes } = this.workspace;
    for (const [name, item] of Object.entries(toolButtons ?? {})) {
      item.classList.toggle("on", name === tool);
      item.setAttribute("aria-pressed", name === tool);
    }
    panes.classList.toggle("drawing", tool !== "move");
    this.workspace.redraw();
  }

  listen(pane) {
    const { top } = pane;
    const place = (event) => {
      const box = pane.root.getBoundingClientRect();
      return pane.toImage(event.clientX - box.left, event.clientY - box.top);
    };
    top.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      if (event.button !== 0) {
        // Another button moves the image while one draws.
        top.setPointerCapture(event.pointerId);
        this.panned = event;
        return;
      }
      const at = place(event);
      if (BRUSHES.includes(this.tool)) {
        top.setPointerCapture(event.pointerId);
        this.workspace.correct.down(at);
      }
      if (this.tool === "rectangle") {
        top.setPointerCapture(event.pointerId);
        this.from = at;
      } else if (this.tool === "polygon" && event.detail < 2) {
        this.points.push([at.y, at.x]);
      }
      this.workspace.redraw();
    });
    top.addEventListener("pointermove", (event) => {
      if (this.panned) {
        const { viewport } = pane.viewer;
        const [dx, dy] = [this.panned.clientX - event.clientX, this.panned.clientY - event.clientY];
        viewport.panBy(viewport.deltaPointsFromPixels(new OpenSeadragon.Point(dx, dy)), true);
        this.panned = event;
      }
      this.hover = place(event);
      const brush = BRUSHES.includes(this.tool);
      if (brush) for (const e of event.getCoalescedEvents?.() ?? [event]) this.workspace.correct.move(place(e));
      if (brush || this.from || this.points.length) this.workspace.redraw();
    });
    top.addEventListener("contextmenu", (event) => event.preventDefault());
    top.addEventListener("pointercancel", () => (this.panned = null));
    top.addEventListener("pointerleave", () => {
      this.hover = null;
      this.workspace.redraw();
    });
    top.addEventListener("pointerup", (event) => {
      this.panned = null;
      this.workspace.correct.up();
      if (!this.from) return;
      const [from, to] = [this.from, place(event)];
      this.from = null;
      const smallest = 3 / scaleOf(pane.transform);
      if (Math.abs(to.x - from.x) < smallest || Math.abs(to.y - from.y) < smallest) return this.workspace.redraw();
      this.done(boxCorners(from, to));
    });
    top.addEventListener("dblclick", () => this.finish());
    // Zooming goes on while one draws.
    top.addEventListener("wheel", (event) => {
      event.preventDefault();
      const box = pane.root.getBoundingClientRect();
      const { viewport } = pane.viewer;
      const at = viewport.pointFromPixel(new OpenSeadragon.Point(event.clientX - box.left, event.clientY - box.top), true);
      viewport.zoomBy(event.deltaY < 0 ? 1.3 : 1 / 1.3, at);
      viewport.applyConstraints();
    }, { passive: false });
  }

  finish() {
    if (this.tool !== "polygon" || this.points.length < 3) return;
    const corners = this.points;
    this.points = [];
    this.done(corners);
  }

  escape() {
    if (this.points.length || this.from) {
      this.points = [];
      this.from = null;
    } else if (this.tool !== "move") this.use("move");
    else this.drop();
    this.workspace.redraw();
  }

  // Takes the drawn region away.
  drop() {
    this.corners = null;
    this.workspace.readout.measured(null);
    this.workspace.keep("region", null);
    this.workspace.redraw();
  }

  done(corners) {
    const { image } = this.workspace.data;
    // What was drawn beyond the edge is cut: the image ends there.
    const fit = (value, most) => Math.min(Math.max(value, 0), most);
    this.corners = corners.map(([y, x]) => [round(fit(y, image.height)), round(fit(x, image.width))]);
    this.use("move");
    // The table first: what the page then does with the region would take the server's time from it.
    const drawn = this.corners;
    this.workspace.readout.measure(drawn).finally(() => {
      if (this.corners === drawn) this.workspace.keep("region", { image: image.id, corners: drawn });
    });
  }

  flash(corners) {
    this.flashed = corners;
    this.workspace.redraw();
    setTimeout(() => {
      this.flashed = null;
      this.workspace.redraw();
    }, 2500);
  }

  paint(pane, context, transform) {
    const path = (corners, closed) => {
      context.beginPath();
      corners.forEach(([y, x], i) => {
        const at = apply(transform, x, y);
        if (i) context.lineTo(at.x, at.y);
        else context.moveTo(at.x, at.y);
      });
      if (closed) context.closePath();
    };
    const stroke = (colour) => {
      context.setLineDash([]);
      context.lineWidth = 3;
      context.strokeStyle = "rgba(0, 0, 0, 0.55)";
      context.stroke();
      context.lineWidth = 1.5;
      context.strokeStyle = colour;
      context.stroke();
    };
    this.workspace.correct?.paint(context, transform, this.hover, this.tool);
    if (this.flashed) {
      path(this.flashed, true);
      stroke("#ff3fd2");
    }
    if (this.corners) {
      path(this.corners, true);
      stroke("#ffe14d");
    }
    if (this.from && this.hover) {
      path(boxCorners(this.from, this.hover), true);
      stroke("#ffffff");
    }
    if (this.points.length) {
      path([...this.points, ...(this.hover ? [[this.hover.y, this.hover.x]] : [])], false);
      stroke("#ffffff");
    }
  }
}

const round = (value) => Math.round(value * 100) / 100;
