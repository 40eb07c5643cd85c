// A mask: bare class values from the server, coloured here by a table. Colours, classes and opacity fetch nothing.
import { apply, scaleOf, visible } from "./geometry.js";

export const NODATA = 255;
const SIDE = 512;
const KEPT = 240;
const AT_ONCE = 6;

export class Mask {
  constructor(layer, pass, changed) {
    this.layer = layer;
    this.pass = pass;
    this.changed = changed;
    this.tiles = new Map();
    this.loading = new Map();
    this.waiting = [];
    this.colours = new Uint32Array(256);
    this.version = 0;
    this.requests = 0;
  }

  // table: Uint32Array(256) of what canvas takes (ABGR); outline: only the borders of what is coloured.
  paint(table, outline) {
    this.colours = table;
    this.outline = outline;
    this.version += 1;
  }

  // The coarsest level whose pixels are not larger than those of the screen, or nearly so.
  levelFor(scale) {
    const { levels, place } = this.layer;
    const wanted = Math.floor(Math.log2(1 / (scale * place.stepX)) + 0.3);
    return Math.min(Math.max(wanted, 0), levels.length - 1);
  }

  // Draws what is visible; asks for what is missing, and shows the next coarser tile meanwhile.
  draw(context, transform, width, height) {
    const level = this.levelFor(scaleOf(transform));
    const wanted = this.inView(level, transform, width, height);
    this.visible = new Set(wanted.map((tile) => tile.key));
    this.waiting = wanted.filter((tile) => !this.tiles.has(tile.key) && !this.loading.has(tile.key));
    for (const [key, request] of this.loading) {
      if (!wanted.some((tile) => tile.key === key)) {
        request.abort();
        this.loading.delete(key);
      }
    }
    context.imageSmoothingEnabled = false;
    const stale = wanted.filter((tile) => !this.tiles.has(tile.key));
    for (const tile of this.ancestors(stale)) this.drawTile(context, transform, tile);
    for (const tile of wanted) if (this.tiles.has(tile.key)) this.drawTile(context, transform, tile, true);
    this.next();
    return stale.length === 0;
  }

  inView(level, transform, width, height) {
    const { place, levels } = this.layer;
    const [stepX, stepY] = [place.stepX * 2 ** level, place.stepY * 2 ** level];
    const box = visible(transform, width, height);
    const size = levels[level];
    const first = (low, origin, step) => Math.max(0, Math.floor((low - origin) / (step * SIDE)));
    const last = (high, origin, step, count) =>
      Math.min(Math.ceil(count / SIDE) - 1, Math.floor((high - origin) / (step * SIDE)));
    const found = [];
    for (let row = first(box.top, place.y, stepY); row <= last(box.bottom, place.y, stepY, size.height); row++) {
      for (let column = first(box.left, place.x, stepX); column <= last(box.right, place.x, stepX, size.width); column++) {
        found.push({ level, row, column, key: `${level}/${row}/${column}` });
      }
    }
    return found;
  }

  // Coarser tiles that are here and cover what is not, coarse first.
  ancestors(missing) {
    const found = new Map();
    for (const tile of missing) {
      for (let level = tile.level + 1; level < this.layer.levels.length; level++) {
        const shift = level - tile.level;
        const [row, column] = [tile.row >> shift, tile.column >> shift];
        const key = `${level}/${row}/${column}`;
        if (this.tiles.has(key)) {
          found.set(key, { level, row, column, key });
          break;
        }
      }
    }
    return [...found.values()].sort((a, b) => b.level - a.level);
  }

  drawTile(context, transform, { level, row, column, key }, fresh = false) {
    const tile = this.tiles.get(key);
    if (fresh) {
      this.tiles.delete(key);
      this.tiles.set(key, tile); // the last used is the last to go
    }
    if (tile.version !== this.version) this.colour(tile);
    if (tile.empty) return;
    const { place } = this.layer;
    const [sx, sy] = [place.stepX * 2 ** level, place.stepY * 2 ** level];
    const [x, y] = [place.x + column * SIDE * sx, place.y + row * SIDE * sy];
    // Not upside down: canvas takes sides below zero for a place, and does not turn what it draws there.
    const upright = Math.abs(transform[1]) < 1e-9 && Math.abs(transform[2]) < 1e-9 && transform[0] > 0 && transform[3] > 0;
    if (upright) {
      // Edges on whole pixels leave no seams between tiles.
      const [a, b] = [apply(transform, x, y), apply(transform, x + tile.width * sx, y + tile.height * sy)];
      const [left, top] = [Math.round(a.x), Math.round(a.y)];
      context.setTransform(1, 0, 0, 1, 0, 0);
      context.clearRect(left, top, Math.round(b.x) - left, Math.round(b.y) - top);
      context.drawImage(tile.canvas, left, top, Math.round(b.x) - left, Math.round(b.y) - top);
    } else {
      context.setTransform(...transform);
      context.drawImage(tile.canvas, x, y, tile.width * sx, tile.height * sy);
    }
  }

  colour(tile) {
    const { values, width, height } = tile;
    tile.canvas ??= Object.assign(document.createElement("canvas"), { width, height });
    const context = tile.canvas.getContext("2d");
    const picture = context.createImageData(width, height);
    const out = new Uint32Array(picture.data.buffer);
    const table = this.colours;
    let any = 0;
    if (this.outline) {
      for (let i = 0; i < values.length; i++) {
        const value = values[i];
        if (!table[value]) continue;
        const x = i % width;
        const edge =
          (x > 0 && values[i - 1] !== value) || (x < width - 1 && values[i + 1] !== value) ||
          (i >= width && values[i - width] !== value) || (i + width < values.length && values[i + width] !== value);
        if (edge) any |= out[i] = table[value];
      }
    } else {
      for (let i = 0; i < values.length; i++) any |= out[i] = table[values[i]];
    }
    context.putImageData(picture, 0, 0);
    tile.version = this.version;
    tile.empty = !any;
  }

  next() {
    while (this.loading.size < AT_ONCE && this.waiting.length) this.load(this.waiting.shift());
  }

  async load({ level, row, column, key }) {
    const abort = new AbortController();
    this.loading.set(key, abort);
    const { layer, pass } = this;
    this.requests += 1;
    try {
      const query = new URLSearchParams({ ...(pass ? { pass } : {}), ...(this.thin && level ? { thin: 1 } : {}) });
      const url = `/veca/mask/${layer.id}/${level}/${row}/${column}${query.size ? `?${query}` : ""}`;
      const answer = await fetch(url, { signal: abort.signal });
      if (!answer.ok) throw new Error(String(answer.status));
      if (answer.headers.get("X-Final") === "0") {
        // Levels that keep what is thin are being made: these tiles show the others meanwhile.
        clearTimeout(this.again);
        this.again = setTimeout(() => this.refreshAll(), 2000);
      }
      const values = new Uint8Array(await answer.arrayBuffer());
      const size = layer.levels[level];
      const [width, height] = [
        Math.min(SIDE, size.width - column * SIDE),
        Math.min(SIDE, size.height - row * SIDE),
      ];
      if (values.length !== width * height) throw new Error("a tile has another size than its level says");
      this.tiles.set(key, { values, width, height, version: -1, canvas: this.tiles.get(key)?.canvas });
      while (this.tiles.size > KEPT) this.tiles.delete(this.tiles.keys().next().value);
    } catch (error) {
      if (error.name !== "AbortError") {
        this.failed = (this.failed ?? 0) + 1;
        await new Promise((done) => setTimeout(done, Math.min(5000, 250 * this.failed)));
      }
    } finally {
      if (this.loading.get(key) === abort) this.loading.delete(key);
      this.changed();
    }
  }

  // Asks again for tiles that show what has changed, and keeps the old ones until the new are here; `anew` also for
  // those that are on their way.
  async refresh([y, x, height, width], anew = false) {
    const touched = (key) => {
      const [level, row, column] = key.split("/").map(Number);
      const side = SIDE * 2 ** level;
      return y < (row + 1) * side && y + height > row * side && x < (column + 1) * side && x + width > column * side;
    };
    const loads = [];
    for (const key of new Set([...this.tiles.keys(), ...this.loading.keys()])) {
      if (!touched(key) || (this.loading.has(key) && !anew)) continue;
      this.loading.get(key)?.abort();
      const [level, row, column] = key.split("/").map(Number);
      if (anew && !this.visible?.has(key)) this.tiles.delete(key);
      else loads.push(this.load({ level, row, column, key }));
    }
    await Promise.all(loads);
    this.changed();
  }

  // Whether a coarse pixel shows the rarest class below it, or the most frequent.
  keepThin(on) {
    if (Boolean(this.thin) === on) return;
    this.thin = on;
    this.refreshAll();
  }

  refreshAll() {
    const { height, width } = this.layer.levels[0];
    return this.refresh([0, 0, height, width], true);
  }

  // The class value at a level-0 place, of the finest tile that is here; null where none is.
  valueAt(y, x) {
    const { place, levels } = this.layer;
    const [row, column] = [(y - place.y) / place.stepY, (x - place.x) / place.stepX];
    if (row < 0 || column < 0 || row >= levels[0].height || column >= levels[0].width) return null;
    for (let level = 0; level < levels.length; level++) {
      const [r, c] = [Math.floor(row / 2 ** level), Math.floor(column / 2 ** level)];
      const tile = this.tiles.get(`${level}/${Math.floor(r / SIDE)}/${Math.floor(c / SIDE)}`);
      if (tile) return { value: tile.values[(r % SIDE) * tile.width + (c % SIDE)], exact: level === 0 };
    }
    return null;
  }
}

// What canvas takes for an opaque colour #rrggbb.
export function packed(colour) {
  const number = parseInt(colour.slice(1), 16);
  return ((255 << 24) | ((number & 255) << 16) | (number & 0xff00) | (number >> 16)) >>> 0;
}
