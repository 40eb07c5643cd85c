// Correcting a mask with a brush. Each stroke is sent when it ends, in order; the server keeps it beside the result.
import { button, element, slider } from "./dom.js";
import { apply, scaleOf } from "./geometry.js";
import { length } from "./format.js";
import { icon } from "./icons.js";
import { NODATA } from "./mask.js";

export const BRUSHES = ["brush", "erase", "restore"];
const LONGEST = 5000; // points of a stroke: a longer one is sent in parts
const AGAIN = 1500; // ms until a stroke is sent again that nobody took

export class Correct {
  constructor(workspace) {
    this.workspace = workspace;
    this.box = element("section", { className: "panel correct", parent: workspace.side, hidden: true });
    this.size = 24; // pixels of the screen
    this.queue = [];
    this.points = null;
    window.addEventListener("beforeunload", (event) => this.queue.length && event.preventDefault());
  }

  // The mask that can be painted on; null where none of those shown can.
  get mask() {
    const { first, second } = this.workspace.layers;
    return [first, second].find((mask) => Number.isInteger(mask?.layer.strokes)) ?? null;
  }

  get radius() {
    const scale = this.workspace.scaleNow;
    return scale ? this.size / 2 / scale : 1;
  }

  update() {
    const { mask } = this;
    this.box.hidden = !mask;
    if (!mask && BRUSHES.includes(this.workspace.draw.tool)) this.workspace.draw.use("move");
    const mark = mask && mask.layer.id;
    if (mask && mark !== this.mark) this.build(mask.layer);
    this.mark = mark;
    if (mask && this.count !== mask.layer.strokes && !this.queue.length) {
      // Another page has painted too.
      if (this.counted === mark) mask.refreshAll();
      this.count = mask.layer.strokes;
    }
    this.counted = mark;
    this.tell();
  }

  build({ classes }) {
    const { draw } = this.workspace;
    this.box.replaceChildren(element("strong", { text: "Correct" }));
    this.background = classes.find((c) => c.background)?.value ?? NODATA;
    if (!classes.some((c) => c.value === this.value)) this.value = classes.find((c) => !c.background)?.value ?? classes[0].value;
    for (const entry of classes) {
      const row = element("label", { className: "row class check", parent: this.box });
      const choice = element("input", { type: "radio", name: "veca-class", parent: row, checked: entry.value === this.value });
      choice.onchange = () => {
        this.value = entry.value;
        if (draw.tool !== "brush") draw.use("brush");
      };
      const swatch = element("span", { className: "swatch", parent: row });
      swatch.style.background = this.colourOf(entry.value);
      element("span", { parent: row, text: entry.name });
    }
    this.slider = slider(this.box, "Brush", { min: 2, max: 200, step: 1, value: this.size, show: () => this.sizeText() }, (value) => {
      this.size = value;
      this.workspace.redraw();
    });
    const row = element("div", { className: "row tight", parent: this.box });
    const tool = (name, text, title) => (this.workspace.toolButtons[name] = button(row, text, title, () => draw.use(name)));
    tool("brush", "Paint", "Paint the chosen class (B)");
    tool("erase", "Erase", this.background === NODATA ? "Paint no data (E)" : "Paint background (E)");
    tool("restore", "Restore", "Give back what the mask said (V)");
    const more = element("div", { className: "row tight", parent: this.box });
    button(more, "Fill region", "Fill the drawn region with the chosen class", () => this.fill());
    const undo = button(more, icon("undo"), "Take the last stroke back (Z)", () => this.undo());
    undo.append(" Undo");
    undo.classList.add("with-text");
    this.told = element("p", { className: "note", parent: this.box });
    draw.use(draw.tool);
  }

  colourOf(value) {
    const entry = this.mask?.layer.classes.find((c) => c.value === value);
    return (entry && this.workspace.layers.choices.get(`${entry.value} ${entry.name}`)?.colour) ?? entry?.colour ?? "#888888";
  }

  sizeText() {
    const { spacing } = this.workspace.data.image;
    if (!spacing) return `${Math.round(2 * this.radius)} px`;
    return length(2 * this.radius * spacing.x * (spacing.unit === "um" ? 1e-6 : 1));
  }

  tell() {
    if (!this.told || this.box.hidden) return;
    const open = this.queue.length;
    this.slider.set(this.size);
    this.told.textContent = open ? `${open} not saved yet …` : `${this.count} ${this.count === 1 ? "stroke" : "strokes"}, all saved`;
  }

  changeSize(factor) {
    this.size = Math.min(200, Math.max(2, Math.round(this.size * factor)));
    this.tell();
    this.workspace.redraw();
  }

  use(tool) {
    if (this.mask) this.workspace.draw.use(tool);
    else this.workspace.say("First press “Correct this mask” on the left: corrections are kept beside it.");
  }

  // The brush is down at a level-0 place, moves, and is lifted.
  down({ y, x }) {
    this.points = [[y, x]];
    this.drawn = this.radius;
  }

  move({ y, x }) {
    if (!this.points) return;
    const [lastY, lastX] = this.points.at(-1);
    if (Math.hypot(y - lastY, x - lastX) >= this.drawn / 4) this.points.push([y, x]);
    if (this.points.length >= LONGEST) {
      this.up();
      this.down({ y, x });
    }
  }

  up() {
    if (!this.points) return;
    const { tool } = this.workspace.draw;
    const value = { brush: this.value, erase: this.background, restore: null }[tool];
    const points = this.points.map((p) => p.map((n) => +n.toFixed(2)));
    this.points = null;
    this.send({ value, radius: this.drawn, points });
  }

  fill() {
    const { corners } = this.workspace.draw;
    if (!corners) return this.workspace.say("Draw a rectangle (D) or a polygon (P) first; this fills it.");
    this.send({ value: this.value, radius: 0, points: corners });
  }

  undo() {
    if (this.mask && this.count) this.send({ undo: true });
  }

  send(stroke) {
    this.queue.push({ stroke, mask: this.mask });
    this.tell();
    if (this.queue.length === 1) this.pump();
  }

  async pump() {
    while (this.queue.length) {
      const { stroke, mask } = this.queue[0];
      try {
        const tail = this.workspace.data.pass ? `?pass=${this.workspace.data.pass}` : "";
        const answer = await fetch(`/veca/mask/${mask.layer.id}/paint${tail}`, { method: "POST", body: JSON.stringify(stroke) });
        if (answer.ok) await this.took(mask, await answer.json());
        else this.workspace.say(`Not saved: ${await answer.text()}`);
      } catch {
        this.workspace.say("The server does not answer. What was painted is kept here and sent again.");
        await new Promise((done) => setTimeout(done, AGAIN));
        continue;
      }
      this.queue.shift();
      this.tell();
      this.workspace.redraw();
    }
  }

  async took(mask, { count, touched }) {
    this.count = count;
    mask.layer.strokes = count;
    if (touched) await mask.refresh(touched, true);
    const { draw, readout } = this.workspace;
    if (draw.corners) readout.measure(draw.corners);
  }

  // What is painted and not shown by the mask yet, and the brush itself.
  paint(context, transform, hover, tool) {
    const scale = scaleOf(transform);
    for (const { stroke } of this.queue) if (stroke.points) this.trace(context, transform, stroke, scale);
    const value = { brush: this.value, erase: this.background, restore: null }[tool];
    if (this.points) this.trace(context, transform, { value, radius: this.drawn, points: this.points }, scale);
    if (!BRUSHES.includes(tool) || !hover) return;
    const at = apply(transform, hover.x, hover.y);
    for (const [width, colour] of [[3, "rgba(0, 0, 0, 0.6)"], [1.5, tool === "brush" ? this.colourOf(this.value) : "#ffffff"]]) {
      context.beginPath();
      context.arc(at.x, at.y, this.size / 2, 0, 2 * Math.PI);
      context.lineWidth = width;
      context.strokeStyle = colour;
      context.stroke();
    }
  }

  trace(context, transform, { value, radius, points }, scale) {
    context.save();
    context.globalAlpha = 0.55;
    context.beginPath();
    points.forEach(([y, x], i) => {
      const at = apply(transform, x, y);
      if (i) context.lineTo(at.x, at.y);
      else context.moveTo(at.x, at.y);
      if (!i && points.length === 1) context.lineTo(at.x + 0.01, at.y);
    });
    const colour = value === null || value === this.background ? "#ffffff" : this.colourOf(value);
    if (radius) {
      Object.assign(context, { lineWidth: 2 * radius * scale, lineCap: "round", lineJoin: "round", strokeStyle: colour });
      context.stroke();
    } else {
      context.fillStyle = colour;
      context.fill();
    }
    context.restore();
  }
}
