// Places: level-0 pixels of the image on one side, pixels of the screen on the other.

// The affine from level-0 (x, y) to pixels of a pane, as canvas takes it: [a, b, c, d, e, f].
export function transformOf(viewer) {
  const item = viewer.world.getItemAt(0);
  if (!item) return null;
  const { x: width, y: height } = item.getContentSize();
  const at = (x, y) => viewer.viewport.pixelFromPoint(item.imageToViewportCoordinates(x, y, true), true);
  const [o, r, d] = [at(0, 0), at(width, 0), at(0, height)];
  return [(r.x - o.x) / width, (r.y - o.y) / width, (d.x - o.x) / height, (d.y - o.y) / height, o.x, o.y];
}

export function apply([a, b, c, d, e, f], x, y) {
  return { x: a * x + c * y + e, y: b * x + d * y + f };
}

export function invert([a, b, c, d, e, f]) {
  const det = a * d - b * c;
  return [d / det, -b / det, -c / det, a / det, (c * f - d * e) / det, (b * e - a * f) / det];
}

// Screen pixels that a level-0 pixel covers.
export function scaleOf([a, b]) {
  return Math.hypot(a, b);
}

// The smallest level-0 rectangle that holds everything on a pane.
export function visible(transform, width, height) {
  const back = invert(transform);
  const corners = [[0, 0], [width, 0], [0, height], [width, height]].map(([x, y]) => apply(back, x, y));
  const [xs, ys] = [corners.map((p) => p.x), corners.map((p) => p.y)];
  return { left: Math.min(...xs), top: Math.min(...ys), right: Math.max(...xs), bottom: Math.max(...ys) };
}

export function boxCorners(a, b) {
  const [top, bottom] = [Math.min(a.y, b.y), Math.max(a.y, b.y)];
  const [left, right] = [Math.min(a.x, b.x), Math.max(a.x, b.x)];
  return [[top, left], [top, right], [bottom, right], [bottom, left]];
}

export function inside(corners, y, x) {
  let odd = false;
  for (let i = 0, j = corners.length - 1; i < corners.length; j = i++) {
    const [[ay, ax], [by, bx]] = [corners[i], corners[j]];
    if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) odd = !odd;
  }
  return odd;
}
