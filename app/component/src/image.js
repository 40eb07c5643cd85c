// The image: OpenSeadragon over our tile routes.
import OpenSeadragon from "openseadragon";

// A software-rendered WebGL is slower than a plain canvas.
function isSoftware() {
  const gl = document.createElement("canvas").getContext("webgl2") || document.createElement("canvas").getContext("webgl");
  if (!gl) return true;
  const info = gl.getExtension("WEBGL_debug_renderer_info");
  const name = String(gl.getParameter(info ? info.UNMASKED_RENDERER_WEBGL : gl.RENDERER));
  gl.getExtension("WEBGL_lose_context")?.loseContext();
  return /swiftshader|llvmpipe|software|basic render/i.test(name);
}

let drawer = null;

export function createViewer(element, navigator) {
  drawer ??= isSoftware() ? "canvas" : "webgl";
  const viewer = OpenSeadragon({
    element,
    drawer,
    prefixUrl: "",
    showNavigationControl: false,
    showNavigator: Boolean(navigator),
    navigatorElement: navigator,
    navigatorAutoFade: false,
    navigatorBackground: "#ddd",
    navigatorDisplayRegionColor: "#d4351c",
    animationTime: 0.35,
    springStiffness: 10,
    maxZoomPixelRatio: 32,
    minZoomImageRatio: 0.5,
    visibilityRatio: 0.2,
    imageLoaderLimit: 8,
    // A server that is started again is waited for, about a minute; one tile after another is asked for again.
    tileRetryMax: 200,
    tileRetryDelay: 300,
    maxTilesPerFrame: 8,
    maxImageCacheCount: 500,
    zoomPerScroll: 1.3,
    gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true, flickEnabled: false },
    gestureSettingsTouch: { clickToZoom: false, dblClickToZoom: true },
    smoothTileEdgesMinZoom: Infinity,
    placeholderFillStyle: null,
  });
  viewer.innerTracker.keyHandler = null;
  viewer.innerTracker.keyDownHandler = null;
  if (drawer === "canvas") placeExactly(viewer);
  return viewer;
}

// OpenSeadragon's canvas makes each tile a pixel larger, to hide seams, and so draws it up to a pixel off its place. With
// edges on whole pixels there are no seams; a turned image needs the larger tiles.
function placeExactly(viewer) {
  const canvas = viewer.drawer;
  const turned = () => (viewer.viewport?.getRotation(true) ?? 0) % 90 !== 0;
  const draw = canvas._drawTile.bind(canvas);
  canvas.minimumOverlapRequired = turned;
  canvas._drawTile = (tile, ...rest) => {
    if (!turned()) {
      const ratio = OpenSeadragon.pixelDensityRatio;
      const whole = (value) => Math.round(value * ratio) / ratio;
      const { position: p, size: s } = tile;
      const [left, top] = [whole(p.x), whole(p.y)];
      tile.size = new OpenSeadragon.Point(whole(p.x + s.x) - left, whole(p.y + s.y) - top);
      tile.position = new OpenSeadragon.Point(left, top);
    }
    draw(tile, ...rest);
  };
}

// A source whose levels are those of the server, whatever their sizes: coarse first, as OpenSeadragon counts.
export function tileSource(image, look, pass) {
  const levels = [...image.levels].reverse();
  const { width, height } = image;
  const query = new URLSearchParams();
  if (pass) query.set("pass", pass);
  if (look) query.set("look", look);
  const tail = query.size ? `?${query}` : "";
  return {
    width,
    height,
    tileSize: 256,
    minLevel: 0,
    maxLevel: levels.length - 1,
    getLevelScale: (level) => 1 / levels[level].stepX,
    getNumTiles: (level) => new OpenSeadragon.Point(levels[level].across, levels[level].down),
    getTileWidth: (level) => levels[level].tileWidth,
    getTileHeight: (level) => levels[level].tileHeight,
    getTileAtPoint(level, point) {
      const l = levels[level];
      const column = Math.floor((point.x * width) / (l.tileWidth * l.stepX));
      const row = Math.floor((point.y * width) / (l.tileHeight * l.stepY));
      const fit = (value, count) => Math.min(Math.max(value, 0), count - 1);
      return new OpenSeadragon.Point(fit(column, l.across), fit(row, l.down));
    },
    getTileBounds(level, column, row, isSource) {
      const l = levels[level];
      const [w, h] = [
        Math.min(l.tileWidth, l.width - column * l.tileWidth),
        Math.min(l.tileHeight, l.height - row * l.tileHeight),
      ];
      if (isSource) return new OpenSeadragon.Rect(0, 0, w, h);
      const [x, y] = [column * l.tileWidth * l.stepX, row * l.tileHeight * l.stepY];
      const right = Math.min(x + w * l.stepX, width);
      const bottom = Math.min(y + h * l.stepY, height);
      return new OpenSeadragon.Rect(x / width, y / width, (right - x) / width, (bottom - y) / width);
    },
    hasTransparency: () => Boolean(image.base),
    getTileUrl: (level, column, row) => `/veca/image/${image.id}/${levels.length - 1 - level}/${row}/${column}${tail}`,
  };
}

// The tiles of a map service, for the same window of the world as a raster on a map.
export function baseSource(image) {
  const { url, zoom, x, y } = image.base;
  const own = tileSource(image, "", "");
  return {
    ...own,
    getTileUrl(level, column, row) {
      const coarser = own.maxLevel - level;
      const place = { z: zoom - coarser, x: x / 2 ** coarser + column, y: y / 2 ** coarser + row };
      return url.replace(/\{([zxy])\}/g, (_, name) => place[name]);
    },
  };
}

// One table for brightness (-1..1), contrast (0..3) and gamma (0.2..5), as an SVG filter's values.
export function toneTable({ brightness, contrast, gamma }) {
  return Array.from({ length: 256 }, (_, i) => {
    const value = ((i / 255) ** (1 / gamma) - 0.5) * contrast + 0.5 + brightness;
    return Math.min(1, Math.max(0, value)).toFixed(4);
  }).join(" ");
}
