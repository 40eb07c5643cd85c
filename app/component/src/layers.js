// The legend: classes with colours, switches and areas; opacity and outlines. Nothing here asks the server.
import { element, slider } from "./dom.js";
import { packed } from "./mask.js";
import { area, share, whole } from "./format.js";

export class Layers {
  constructor(workspace) {
    this.workspace = workspace;
    this.box = element("section", { className: "panel", parent: workspace.side });
    this.choices = new Map(); // class value and name -> { on, colour }: kept from layer to layer
    this.masks = new Map();
    this.shown = true;
    this.outline = false;
    this.opacity = 0.45;
    this.thin = false;
  }

  update({ layer, other, compare }) {
    const used = [layer, other].filter(Boolean);
    for (const id of [...this.masks.keys()]) if (!used.some((l) => l.id === id)) this.masks.delete(id);
    const mask = (l) => {
      if (!l) return null;
      const known = this.masks.get(l.id);
      if (known && known.layer.version === l.version) {
        known.layer = l;
        return known;
      }
      const made = this.workspace.makeMask(l);
      this.masks.set(l.id, made);
      return made;
    };
    this.first = mask(layer);
    this.second = compare === "off" ? null : mask(other);
    for (const made of [this.first, this.second]) made?.keepThin(this.thin);
    this.workspace.setMasks(this.first, this.second);
    this.list(used);
    this.recolour();
    // What was drawn is counted again in the masks that are shown now, once they are finished.
    const shown = [this.first, this.second].map((m) => m && !m.layer.running && m.layer.id + m.layer.version).join();
    if (shown !== this.counted && this.workspace.draw.corners) this.workspace.readout.measure(this.workspace.draw.corners);
    this.counted = shown;
  }

  list(used) {
    const classes = new Map(used.flatMap((l) => l.classes.map((c) => [`${c.value} ${c.name}`, c])));
    const { compare } = this.workspace.data;
    const mark = JSON.stringify([[...classes], used.map((l) => [l.name, l.areas]), compare]);
    if (mark === this.mark) return;
    this.mark = mark;
    this.box.replaceChildren();
    this.box.hidden = !classes.size;
    if (!classes.size) return;
    const head = element("div", { className: "row", parent: this.box });
    this.maskBox = check(head, "Mask", this.shown, "Show the mask (M)", (on) => this.toggleMask(on));
    this.outlineBox = check(head, "Outlines", this.outline, "Only the borders (O)", (on) => this.toggleOutline(on));
    this.opacitySlider = slider(
      this.box, "Opacity", { min: 0, max: 1, step: 0.01, value: this.opacity, show: (v) => `${Math.round(v * 100)} %` },
      (value) => this.setOpacity(value),
    );
    const more = element("div", { className: "row", parent: this.box });
    this.thinBox = check(more, "Keep thin classes", this.thin, "Zoomed out, a pixel shows the rarest class in it, not the most frequent (T)",
      (on) => this.toggleThin(on));
    for (const [key, entry] of classes) {
      const choice = this.choices.get(key) ?? { on: !entry.background, colour: entry.colour };
      this.choices.set(key, choice);
      const row = element("div", { className: "row class", parent: this.box });
      const toggle = check(row, entry.name, choice.on, `Show ${entry.name}`, (on) => {
        choice.on = on;
        this.recolour();
      });
      toggle.dataset.value = entry.value;
      const colour = element("input", { type: "color", value: choice.colour, title: `Colour of ${entry.name}` });
      colour.setAttribute("aria-label", `Colour of ${entry.name}`);
      row.prepend(colour);
      colour.oninput = () => {
        choice.colour = colour.value;
        this.recolour();
      };
      for (const l of used) {
        const found = l.areas?.find((a) => a.value === entry.value);
        if (!found) continue;
        const size = area(found.area, found.unit) || `${whole(found.pixels)} px`;
        const told = element("span", { className: "amount", parent: row, text: share(found.share), title: size });
        // Beside those of a second mask there is room for shares alone; the table below has both areas.
        if (used.length === 1) element("small", { parent: told, text: size });
      }
    }
    if (used.length > 1) element("p", { className: "note", parent: this.box, text: used.map((l) => l.name).join("  |  ") });
    if (compare === "difference") {
      const meanings = [["#5ac832", "only in the second"], ["#e63246", "only in the first"], ["#ffaa00", "another class"]];
      for (const [colour, text] of meanings) {
        const row = element("div", { className: "row class", parent: this.box });
        element("span", { className: "swatch", parent: row }).style.background = colour;
        element("span", { parent: row, text });
      }
    }
  }

  recolour() {
    const background = new Set();
    for (const mask of [this.first, this.second]) {
      if (!mask) continue;
      const table = new Uint32Array(256);
      for (const entry of mask.layer.classes) {
        const choice = this.choices.get(`${entry.value} ${entry.name}`);
        if (choice?.on) table[entry.value] = packed(choice.colour);
        if (entry.background) background.add(entry.value);
      }
      mask.paint(table, this.outline);
    }
    for (const pane of this.workspace.allPanes()) {
      pane.background = background;
      for (const canvas of [pane.first, pane.second]) {
        canvas.style.opacity = this.alpha(pane);
        canvas.style.visibility = this.shown ? "visible" : "hidden";
      }
    }
    this.workspace.redraw();
  }

  toggleMask(on = !this.shown) {
    this.shown = on;
    if (this.maskBox) this.maskBox.checked = on;
    this.recolour();
  }

  toggleOutline(on = !this.outline) {
    this.outline = on;
    if (this.outlineBox) this.outlineBox.checked = on;
    this.recolour();
  }

  toggleThin(on = !this.thin) {
    this.thin = on;
    if (this.thinBox) this.thinBox.checked = on;
    for (const mask of [this.first, this.second]) mask?.keepThin(on);
    this.workspace.redraw();
  }

  setOpacity(value) {
    this.opacity = value;
    for (const pane of this.workspace.allPanes()) {
      for (const canvas of [pane.first, pane.second]) canvas.style.opacity = this.alpha(pane);
    }
  }

  // Lines and differences are thin: they stay strong however faint areas are.
  alpha(pane) {
    return this.outline || pane.mode === "difference" ? Math.max(this.opacity, 0.9) : this.opacity;
  }

  changeOpacity(by) {
    this.setOpacity(Math.min(1, Math.max(0, this.opacity + by)));
    this.opacitySlider?.set(this.opacity);
  }

  // The class at a level-0 place, for the read-out.
  classAt(y, x) {
    for (const mask of [this.first, this.second]) {
      const found = mask?.valueAt(y, x);
      if (!found) continue;
      const entry = mask.layer.classes.find((c) => c.value === found.value);
      return { name: entry ? entry.name : "no data", mask, exact: found.exact };
    }
    return null;
  }
}

function check(parent, text, on, title, changed) {
  const label = element("label", { parent, className: "check", title });
  const box = element("input", { parent: label, type: "checkbox", checked: on });
  element("span", { parent: label, text });
  box.onchange = () => changed(box.checked);
  return box;
}
