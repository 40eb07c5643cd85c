// Numbers for people.

const group = (value, digits) =>
  value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });

export function length(metres) {
  if (metres < 1e-3) return `${nice(metres * 1e6)} µm`;
  if (metres < 1) return `${nice(metres * 1e3)} mm`;
  return metres < 1000 ? `${nice(metres)} m` : `${nice(metres / 1000)} km`;
}

export function area(value, unit) {
  if (value === null || value === undefined) return "";
  const steps = unit === "um2" ? [["mm²", 1e-6, 1e5], ["µm²", 1, 0]] : [["km²", 1e-6, 1e6], ["ha", 1e-4, 1e4], ["m²", 1, 0]];
  const [name, factor] = steps.find(([, , least]) => value >= least);
  const shown = value * factor;
  return `${group(shown, shown >= 100 ? 0 : shown >= 1 ? 2 : 4)} ${name}`;
}

export function share(value) {
  if (value === null || value === undefined) return "";
  return value > 0 && value < 0.001 ? "<0.1 %" : `${(value * 100).toFixed(1)} %`;
}

export const whole = (value) => group(value, 0);

// 1, 2 or 5 times a power of ten, at most `value`.
export function round125(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [5, 2, 1].find((step) => step * power <= value * 1.0001) * power;
}

function nice(value) {
  return Number(value.toPrecision(3)).toString();
}
