// One view of the image with what lies on it: masks, heat, drawings. Two panes are kept on the same place.
import { apply, invert, scaleOf, transformOf } from "./geometry.js";
import { baseSource, createViewer, tileSource, toneTable } from "./image.js";
import { NODATA } from "./mask.js";
import { element } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";
let count = 0;

export class Pane {
  constructor(parent, { navigator, drawn }) {
    this.root = element("div", { className: "pane", parent });
    this.stage = element("div", { className: "osd", parent: this.root });
    this.first = element("canvas", { className: "layer", parent: this.root });
    this.second = element("canvas", { className: "layer", parent: this.root });
    this.heat = element("canvas", { className: "layer heat", parent: this.root });
    this.top = element("canvas", { className: "layer top", parent: this.root });
    this.title = element("div", { className: "pane-title", parent: this.root });
    this.credit = element("div", { className: "credit", parent: this.root });
    const map = navigator ? element("div", { className: "navigator", parent: this.root }) : null;
    this.viewer = createViewer(this.stage, map);
    this.drawn = drawn;
    this.masks = [null, null];
    this.mode = "off";
    this.split = 0.5;
    this.makeFilter();
    const again = () => this.draw();
    for (const event of ["update-viewport", "open", "resize", "rotate"]) this.viewer.addHandler(event, again);
    this.observer = new ResizeObserver(again);
    this.observer.observe(this.root);
  }

  // An SVG filter on the image's canvas alone: tones change without a tile being fetched or drawn anew.
  makeFilter() {
    const id = `veca-tone-${(count += 1)}`;
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("width", "0");
    svg.setAttribute("height", "0");
    svg.style.position = "absolute";
    const filter = document.createElementNS(SVG, "filter");
    filter.id = id;
    filter.setAttribute("color-interpolation-filters", "sRGB");
    const transfer = document.createElementNS(SVG, "feComponentTransfer");
    this.curves = ["feFuncR", "feFuncG", "feFuncB"].map((name) => {
      const curve = document.createElementNS(SVG, name);
      curve.setAttribute("type", "table");
      transfer.append(curve);
      return curve;
    });
    filter.append(transfer);
    svg.append(filter);
    this.root.append(svg);
    this.filter = `url(#${id})`;
  }

  tone(values) {
    const plain = values.brightness === 0 && values.contrast === 1 && values.gamma === 1;
    const table = toneTable(values);
    for (const curve of this.curves) curve.setAttribute("tableValues", table);
    const canvas = this.viewer.drawer?.canvas;
    if (canvas) canvas.style.filter = plain ? "" : this.filter;
    this.toneValues = values;
  }

  open(image, look, pass, then) {
    this.viewer.addOnceHandler("open", () => {
      if (image.base) {
        // The raster stays the first item, which places are counted in; the map is drawn below it.
        const below = { crossOriginPolicy: "Anonymous", compositeOperation: "destination-over", width: 1 };
        this.viewer.addTiledImage({ tileSource: baseSource(image), ...below });
      }
      this.credit.textContent = image.base?.credit ?? "";
      if (this.toneValues) this.tone(this.toneValues);
      then?.();
      this.draw();
    });
    this.viewer.open(tileSource(image, look, pass));
  }

  get transform() {
    return transformOf(this.viewer);
  }

  toImage(x, y) {
    const transform = this.transform;
    return transform && apply(invert(transform), x, y);
  }

  // Draws all layers for the place where the image is now.
  draw() {
    if (this.broken) return;
    const transform = this.transform;
    const { clientWidth: width, clientHeight: height } = this.root;
    if (!transform || !width || !height) return;
    for (const canvas of [this.first, this.second, this.heat, this.top]) fit(canvas, width, height);
    const [a, b] = this.masks;
    if (this.mode === "difference" && a && b) this.drawDifference(transform, width, height);
    else {
      clear(this.first);
      clear(this.second);
      if (a) a.draw(this.first.getContext("2d"), transform, width, height);
      if (b && this.mode === "swipe") b.draw(this.second.getContext("2d"), transform, width, height);
    }
    const cut = `${this.split * 100}%`;
    this.first.style.clipPath = this.mode === "swipe" ? `inset(0 calc(100% - ${cut}) 0 0)` : "";
    this.second.style.clipPath = this.mode === "swipe" ? `inset(0 0 0 ${cut})` : "";
    clear(this.heat);
    if (this.heatmap) this.drawHeat(transform);
    clear(this.top);
    this.drawn(this, this.top.getContext("2d"), transform);
  }

  // Where two masks say something else, pixel by pixel of the screen, whatever grids they have.
  drawDifference(transform, width, height) {
    const [a, b] = this.masks.map((mask) => {
      const table = Uint32Array.from({ length: 256 }, (_, value) => ((255 << 24) | (value << 8) | value) >>> 0);
      const plain = (mask.plain ??= Object.create(mask, {
        tiles: { value: new Map(), writable: true },
        version: { value: 1, writable: true },
        colours: { value: table, writable: true },
        outline: { value: false, writable: true },
        load: { value: (tile) => mask.load(tile) },
      }));
      // The same values under another table: nothing is fetched twice.
      for (const key of plain.tiles.keys()) if (!mask.tiles.has(key)) plain.tiles.delete(key);
      for (const [key, tile] of mask.tiles) {
        if (plain.tiles.get(key)?.values !== tile.values) {
          plain.tiles.set(key, { values: tile.values, width: tile.width, height: tile.height, version: -1 });
        }
      }
      const canvas = (mask.plainCanvas ??= readable());
      fit(canvas, width, height);
      clear(canvas);
      const context = canvas.getContext("2d", { willReadFrequently: true });
      mask.draw.call(plain, context, transform, width, height);
      return context.getImageData(0, 0, width, height).data;
    });
    clear(this.second);
    const context = this.first.getContext("2d");
    const picture = context.createImageData(width, height);
    const out = new Uint32Array(picture.data.buffer);
    const [gained, lost, other] = [0xff32c85a, 0xff4632e6, 0xff00aaff];
    const hidden = this.background;
    for (let i = 0; i < out.length; i++) {
      const j = 4 * i;
      if (a[j + 3] < 255 || b[j + 3] < 255) continue;
      const [one, two] = [a[j], b[j]];
      if (one === two || one === NODATA || two === NODATA) continue;
      out[i] = hidden.has(one) ? gained : hidden.has(two) ? lost : other;
    }
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.putImageData(picture, 0, 0);
  }

  drawHeat(transform) {
    const { canvas, covers: [y, x, height, width] } = this.heatmap;
    const context = this.heat.getContext("2d");
    context.setTransform(...transform);
    context.imageSmoothingEnabled = true;
    context.drawImage(canvas, x, y, width, height);
    context.lineWidth = 1.5 / scaleOf(transform);
    context.strokeStyle = "#ffd23f";
    context.strokeRect(x, y, width, height);
  }

  destroy() {
    this.broken = true;
    this.observer.disconnect();
    this.viewer.destroy();
    this.root.remove();
  }
}

function fit(canvas, width, height) {
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = width;
    canvas.height = height;
  }
}

function readable() {
  const canvas = document.createElement("canvas");
  canvas.getContext("2d", { willReadFrequently: true });
  return canvas;
}

function clear(canvas) {
  const context = canvas.getContext("2d");
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, canvas.width, canvas.height);
}
