// What is under the cursor, how long a micrometre is, and what a drawn region holds.
import { button, element } from "./dom.js";
import { area, length, round125, share, whole } from "./format.js";

export class Readout {
  constructor(workspace) {
    this.workspace = workspace;
    this.bar = element("div", { className: "scale", parent: workspace.panes });
    this.barText = element("span", { parent: this.bar });
    this.text = element("span", { className: "cursor", parent: workspace.foot, text: " " });
    this.status = element("span", { className: "status", parent: workspace.foot });
    this.status.setAttribute("role", "status");
    this.table = element("section", { className: "panel measured", hidden: true });
    workspace.side.prepend(this.table);
  }

  update({ image }) {
    this.scale();
    clearTimeout(this.timer);
    if (image.progress < 1) this.watch(image.id);
  }

  // Looks at how far the coarse levels of a large image are, and shows what is there.
  async watch(id) {
    const { workspace } = this;
    if (workspace.data.image.id !== id) return;
    const pass = workspace.data.pass ? `?pass=${workspace.data.pass}` : "";
    const answer = await fetch(`/veca/image/${id}/state${pass}`).catch(() => null);
    const progress = answer?.ok ? (await answer.json()).progress : 0;
    if (workspace.data.image.id !== id) return;
    this.status.textContent = progress < 1 ? `Making the overview: ${Math.floor(progress * 100)} %` : "";
    if (progress !== this.seen) for (const pane of workspace.allPanes()) pane.viewer.world.resetItems();
    this.seen = progress;
    if (progress < 1) this.timer = setTimeout(() => this.watch(id), 1500);
  }

  scale() {
    const { data } = this.workspace;
    const scale = this.workspace.scaleNow;
    if (!data || !scale) return;
    const { spacing } = data.image;
    const metres = spacing ? spacing.x * (spacing.unit === "um" ? 1e-6 : 1) : null;
    const size = round125((130 / scale) * (metres ?? 1));
    this.scaleBar = { pixels: (size / (metres ?? 1)) * scale, text: metres ? length(size) : `${whole(size)} px` };
    this.bar.style.width = `${this.scaleBar.pixels}px`;
    this.barText.textContent = this.scaleBar.text;
  }

  paintScale(context, _width, height) {
    if (!this.scaleBar) return;
    const { pixels, text } = this.scaleBar;
    context.fillStyle = "rgba(255, 255, 255, 0.85)";
    context.fillRect(12, height - 42, pixels + 16, 32);
    context.fillStyle = "#111";
    context.fillRect(20, height - 20, pixels, 3);
    context.font = "12px sans-serif";
    context.fillText(text, 20, height - 26);
  }

  at(pane, event) {
    const { data, layers } = this.workspace;
    const box = pane.root.getBoundingClientRect();
    const place = pane.toImage(event.clientX - box.left, event.clientY - box.top);
    if (!data || !place) return;
    const { image } = data;
    const outside = place.x < 0 || place.y < 0 || place.x >= image.width || place.y >= image.height;
    if (outside) return this.leave();
    this.here = place;
    this.parts = [`row ${whole(Math.floor(place.y))}  column ${whole(Math.floor(place.x))}`];
    const [a, b, c, d, e, f] = image.transform;
    const world = [a * place.x + b * place.y + c, d * place.x + e * place.y + f];
    if (image.unit === "um") this.parts.push(`${world[0].toFixed(1)}, ${world[1].toFixed(1)} µm`);
    else if (image.unit === "crs") this.parts.push(`${world[0].toFixed(2)}, ${world[1].toFixed(2)} (${image.crs})`);
    const found = layers.classAt(place.y, place.x);
    this.parts.push(found ? (found.exact ? found.name : `about ${found.name}`) : "");
    this.show();
    clearTimeout(this.rest);
    this.rest = setTimeout(() => this.ask(place, found), 90);
  }

  // Longitude, latitude and confidence are the server's to know: asked for where the cursor rests.
  async ask(place, found) {
    const { image, pass } = this.workspace.data;
    const tail = pass ? `&pass=${pass}` : "";
    const question = async (url) => {
      const answer = await fetch(url + tail).catch(() => null);
      return answer?.ok ? answer.json() : {};
    };
    const more = [];
    if (image.unit === "crs") {
      const { lonlat } = await question(`/veca/image/${image.id}/where?y=${place.y}&x=${place.x}`);
      if (lonlat) more.push(`lon ${lonlat[0].toFixed(6)}  lat ${lonlat[1].toFixed(6)}`);
    }
    const layer = found?.mask.layer;
    if (layer?.confident) {
      const { place: at, id } = layer;
      const [y, x] = [Math.floor((place.y - at.y) / at.stepY), Math.floor((place.x - at.x) / at.stepX)];
      const { confidence } = await question(`/veca/mask/${id}/confidence?y=${y}&x=${x}`);
      if (confidence) more.push(`confidence ${Math.round(confidence * 100)} %`);
    }
    if (place !== this.here || !more.length) return;
    this.parts.push(...more);
    this.show();
  }

  show() {
    this.text.textContent = this.parts.filter(Boolean).join("   ·   ");
  }

  leave() {
    clearTimeout(this.rest);
    this.here = null;
    this.text.textContent = " ";
  }

  progress({ state, done, reason }) {
    const words = {
      waiting: "Waiting for the network",
      running: `Segmenting: ${Math.round(done * 100)} %`,
      finished: "Segmented",
      stopped: "Stopped; what is finished is kept",
      failed: reason,
      lost: "The server was started again: this region was not finished",
    };
    this.status.textContent = words[state] ?? "";
  }

  // Areas of the classes in what was drawn, from each mask that is shown.
  async measure(corners) {
    const asked = performance.now();
    const { data, layers } = this.workspace;
    const masks = [layers.first, layers.second].filter((mask) => mask && !mask.layer.running);
    const tail = new URLSearchParams({ image: data.image.id, ...(data.pass ? { pass: data.pass } : {}) });
    const found = await Promise.all(
      masks.map(async (mask) => {
        const answer = await fetch(`/veca/mask/${mask.layer.id}/measure?${tail}`, {
          method: "POST",
          body: JSON.stringify({ corners }),
        }).catch(() => null);
        return answer?.ok ? { mask, ...(await answer.json()) } : null;
      }),
    );
    this.measured(corners, found.filter(Boolean));
    this.took = performance.now() - asked;
  }

  measured(corners, found = []) {
    this.table.replaceChildren();
    this.table.hidden = !corners;
    if (!corners) return;
    const [ys, xs] = [corners.map((c) => c[0]), corners.map((c) => c[1])];
    const [height, width] = [Math.max(...ys) - Math.min(...ys), Math.max(...xs) - Math.min(...xs)];
    const head = element("div", { className: "row", parent: this.table });
    element("strong", { parent: head, text: "Drawn region" });
    const drop = button(head, "×", "Take the region away", () => this.workspace.draw.drop());
    drop.classList.add("small");
    element("p", { className: "note", parent: this.table, text: `${whole(width)} × ${whole(height)} px` });
    for (const { mask, rows, exact } of found) {
      const table = element("table", { parent: this.table });
      element("caption", { parent: table, text: mask.layer.name + (exact ? "" : " (counted coarsely)") });
      for (const row of rows) {
        const entry = mask.layer.classes.find((c) => c.value === row.value);
        const line = element("tr", { parent: table });
        element("td", { parent: line, text: entry ? entry.name : "no data" });
        element("td", { parent: line, text: share(row.share) });
        element("td", { parent: line, text: area(row.area, row.unit) || `${whole(row.pixels)} px` });
      }
      if (!rows.length) element("p", { className: "note", parent: this.table, text: "The mask does not reach here." });
    }
  }

  // In what places can be written: name -> [what to write, (a, b) -> {y, x} or null].
  ways() {
    const { image, pass } = this.workspace.data;
    const [a, b, c, d, e, f] = image.transform;
    const fromWorld = (x, y) => {
      const det = a * e - b * d;
      return { x: (e * (x - c) - b * (y - f)) / det, y: (a * (y - f) - d * (x - c)) / det };
    };
    const ways = { pixels: ["row, column", (y, x) => ({ y, x })] };
    if (image.unit === "um") ways["µm"] = ["x, y in µm", fromWorld];
    if (image.unit === "crs") {
      ways[image.crs ?? "CRS"] = ["x, y", fromWorld];
      ways["lat, lon"] = ["latitude, longitude", async (lat, lon) => {
        const query = new URLSearchParams({ lat, lon, ...(pass ? { pass } : {}) });
        const answer = await fetch(`/veca/image/${image.id}/at?${query}`).catch(() => null);
        const { place } = answer?.ok ? await answer.json() : {};
        return place && { y: place[0], x: place[1] };
      }];
    }
    return ways;
  }

  askPlace() {
    const { workspace } = this;
    const ways = this.ways();
    workspace.message.hidden = false;
    workspace.message.replaceChildren();
    const form = element("form", { parent: workspace.message });
    form.onclick = (event) => event.stopPropagation();
    const way = element("select", { parent: form });
    for (const name of Object.keys(ways)) element("option", { parent: way, text: name, value: name });
    way.setAttribute("aria-label", "Kind of coordinates");
    way.value = ways[this.way] ? this.way : "pixels";
    way.hidden = Object.keys(ways).length < 2;
    const input = element("input", { parent: form });
    const name = () => {
      input.placeholder = ways[way.value][0];
      input.setAttribute("aria-label", `Go to ${ways[way.value][0]}`);
    };
    way.onchange = () => {
      this.way = way.value;
      name();
      input.focus();
    };
    name();
    form.onkeydown = (event) => {
      event.stopPropagation();
      if (event.key === "Escape") workspace.message.hidden = true;
    };
    form.onsubmit = (event) => {
      event.preventDefault();
      this.goTo(input.value, ...ways[way.value]);
    };
    element("button", { parent: form, text: "Go", type: "submit" });
    clearTimeout(workspace.hush);
    input.focus();
  }

  async goTo(text, words, find) {
    const { workspace } = this;
    const { image } = workspace.data;
    const numbers = text.split(/[\s,;]+/).filter(Boolean).map(Number);
    const at = numbers.length === 2 && numbers.every(Number.isFinite) ? await find(...numbers) : null;
    if (!at || !(at.y >= 0 && at.y <= image.height && at.x >= 0 && at.x <= image.width)) {
      const outside = at ? "That lies outside of the image. " : "";
      workspace.say(`${outside}Write ${words}, like ${this.example(words)}.`);
      return;
    }
    const { y, x } = at;
    workspace.message.hidden = true;
    workspace.goTo({ ...workspace.place(), y, x, zoom: Math.max(workspace.place().zoom, 0.5) }, false);
    workspace.draw.flash([[y - 8, x - 8], [y - 8, x + 8], [y + 8, x + 8], [y + 8, x - 8]]);
  }

  // The middle of the image in the same words.
  example(words) {
    const { image } = this.workspace.data;
    const [a, b, c, d, e, f] = image.transform;
    const [y, x] = [Math.floor(image.height / 2), Math.floor(image.width / 2)];
    if (words.startsWith("row")) return `${y}, ${x}`;
    if (words.startsWith("x")) return `${(a * x + b * y + c).toFixed(1)}, ${(d * x + e * y + f).toFixed(1)}`;
    return "48.8583, 2.2945";
  }
}
