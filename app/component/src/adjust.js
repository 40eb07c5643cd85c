// Brightness, contrast and gamma, in the browser; and which bands are shown in which colours, on the server.
import { button, element, slider } from "./dom.js";

const PLAIN = { brightness: 0, contrast: 1, gamma: 1 };

export class Adjust {
  constructor(workspace) {
    this.workspace = workspace;
    this.values = { ...PLAIN };
    const box = element("details", { className: "panel", parent: workspace.side });
    element("summary", { parent: box, text: "Brightness, contrast, gamma" });
    const two = (value) => value.toFixed(2);
    const make = (name, label, min, max) =>
      slider(box, label, { min, max, step: 0.01, value: PLAIN[name], show: two }, (value) => {
        this.values[name] = value;
        this.apply();
      });
    this.sliders = {
      brightness: make("brightness", "Brightness", -0.5, 0.5),
      contrast: make("contrast", "Contrast", 0.2, 3),
      gamma: make("gamma", "Gamma", 0.3, 3),
    };
    button(box, "Reset", "As the image is", () => {
      this.values = { ...PLAIN };
      for (const [name, item] of Object.entries(this.sliders)) item.set(PLAIN[name]);
      this.apply();
    });
    this.bands = element("details", { className: "panel", parent: workspace.side, hidden: true });
  }

  apply() {
    for (const pane of this.workspace.allPanes()) pane.tone(this.values);
  }

  // Channels of images that are more than a picture: each has a switch, a colour and a range.
  update({ image, look }) {
    const mark = JSON.stringify([image.id, look]);
    if (mark === this.mark) return;
    this.mark = mark;
    this.bands.hidden = !image.channels;
    if (!image.channels) return;
    this.bands.replaceChildren(element("summary", { text: "Channels" }));
    const shown = new Map((look || image.look).split(",").map((part) => [Number(part.split(":")[0]), part.split(":")]));
    const send = () => {
      const parts = [...rows].filter((row) => row.on.checked).map((row) => {
        return [row.band, row.colour.value.slice(1), row.low.value, row.high.value].join(":");
      });
      if (parts.length) this.workspace.keep("look", { image: image.id, text: parts.join(",") });
    };
    const rows = image.channels.map(({ band, name, color, low, high }) => {
      const known = shown.get(band);
      const row = element("div", { className: "row class", parent: this.bands });
      const colour = element("input", { type: "color", parent: row, value: `#${known ? known[1] : color}`, onchange: send });
      const label = element("label", { className: "check", parent: row });
      const on = element("input", { type: "checkbox", parent: label, checked: Boolean(known), onchange: send });
      element("span", { parent: label, text: name });
      const number = (value, what) => {
        const box = element("input", { type: "number", parent: row, step: "any", value, title: `${what} of ${name}`, onchange: send });
        box.setAttribute("aria-label", `${what} of ${name}`);
        return box;
      };
      return { band, on, colour, low: number(known ? known[2] : low, "Black"), high: number(known ? known[3] : high, "White") };
    });
  }
}
