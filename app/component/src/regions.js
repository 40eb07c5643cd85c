// The regions of a mask as a table: the largest of a class; a click goes there.
import { button, element } from "./dom.js";
import { area, length, whole } from "./format.js";

const COLUMNS = { size: 2, perimeter: 4 };

export class Regions {
  constructor(workspace) {
    this.workspace = workspace;
    this.box = element("details", { className: "panel regions", parent: workspace.side, hidden: true });
    this.box.ontoggle = () => this.fill();
  }

  update({ layer }) {
    const usable = layer && !layer.running && layer.regions !== "none";
    this.box.hidden = !usable;
    if (!usable) return (this.mark = null);
    const mark = [layer.id, layer.version, layer.regions].join();
    if (mark === this.mark) return;
    this.mark = mark;
    this.layer = layer;
    this.filled = null;
    this.box.replaceChildren(element("summary", { text: "Regions" }));
    if (layer.regions === "find") {
      element("p", { className: "note", parent: this.box, text: "The regions of this mask were not written out." });
      const find = button(this.box, "Find them", "Find the regions of this mask", () => {
        find.disabled = true;
        this.workspace.tell("find", layer.id);
      });
      return;
    }
    const row = element("label", { className: "row", parent: this.box });
    this.only = element("select", { parent: row, onchange: () => this.fill() });
    this.only.setAttribute("aria-label", "Class of the regions");
    for (const { name } of layer.classes) element("option", { parent: this.only, text: name, value: name });
    this.only.value = (layer.classes.find((c) => !c.background) ?? layer.classes[0]).name;
    this.told = element("p", { className: "note", parent: this.box });
    this.list = element("div", { className: "rows", parent: this.box });
    this.fill();
  }

  async fill() {
    if (!this.box.open || this.box.hidden || this.layer.regions !== "table") return;
    const { layer, mark } = this;
    const wanted = [mark, this.only.value].join();
    if (wanted === this.filled) return;
    this.filled = wanted;
    const { pass } = this.workspace.data;
    const query = new URLSearchParams({ class: this.only.value, ...(pass ? { pass } : {}) });
    const answer = await fetch(`/veca/mask/${layer.id}/regions?${query}`).catch(() => null);
    if (this.filled !== wanted) return;
    if (!answer?.ok) {
      this.filled = null;
      this.told.textContent = "The regions cannot be read.";
      return;
    }
    Object.assign(this, await answer.json(), { order: "size", down: true });
    this.show();
  }

  show() {
    const { rows, unit, most, list } = this;
    const column = COLUMNS[this.order];
    rows.sort((a, b) => (this.down ? b[column] - a[column] : a[column] - b[column]));
    const many = rows.length === most ? `The ${whole(most)} largest. ` : "";
    this.told.textContent = rows.length ? `${many}Choose one to go there.` : "There is no region of this class.";
    list.replaceChildren();
    if (!rows.length) return;
    const table = element("table", { parent: list });
    const head = element("tr", { parent: table });
    const title = (text, order) => {
      const cell = element("th", { parent: head });
      const sort = () => {
        this.down = this.order === order ? !this.down : true;
        this.order = order;
        this.show();
      };
      element("button", { parent: cell, text: text + (this.order === order ? (this.down ? " ▾" : " ▴") : ""), onclick: sort });
    };
    title("Size", "size");
    if (rows[0][4] !== null) title("Perimeter", "perimeter");
    element("th", { parent: head, text: "Row, column" });
    const metres = unit === "um2" ? 1e-6 : 1;
    for (const row of rows) {
      const [y, x, pixels, size, perimeter] = row;
      const line = element("tr", { parent: table, tabIndex: 0, className: row === this.chosen ? "on" : "" });
      const go = () => {
        this.chosen = row;
        for (const other of table.rows) other.classList.toggle("on", other === line);
        const side = 2.5 * Math.sqrt(pixels) + 20;
        this.workspace.jumpTo({ y: y - side / 2, x: x - side / 2, height: side, width: side });
      };
      line.onclick = go;
      line.onkeydown = (event) => {
        const next = { ArrowDown: line.nextSibling, ArrowUp: line.previousSibling, Enter: line }[event.key];
        if (!next) return;
        event.preventDefault();
        event.stopPropagation();
        next.focus();
        next.click();
      };
      element("td", { parent: line, text: size === null ? `${whole(pixels)} px` : area(size, unit) });
      if (perimeter !== null) element("td", { parent: line, text: length(perimeter * metres) });
      element("td", { parent: line, text: `${Math.round(y)}, ${Math.round(x)}` });
    }
  }
}
