// Elements without markup: names from files only ever become text.

export function element(kind, { parent, className, text, title, children = [], ...properties } = {}) {
  const made = document.createElement(kind);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  if (title) made.title = title;
  Object.assign(made, properties);
  made.append(...children);
  parent?.append(made);
  return made;
}

// `face` is a text or an icon.
export function button(parent, face, title, onclick) {
  const made = element("button", { parent, className: "tool", title, type: "button", onclick, children: [face] });
  made.setAttribute("aria-label", title);
  return made;
}

export function slider(parent, label, { min, max, step, value, show = String }, changed) {
  const row = element("label", { parent, className: "slider" });
  element("span", { parent: row, text: label });
  const input = element("input", { parent: row, type: "range", min, max, step });
  input.value = value;
  input.setAttribute("aria-label", label);
  const told = element("output", { parent: row, text: show(value) });
  input.oninput = () => {
    told.textContent = show(Number(input.value));
    changed(Number(input.value));
  };
  return {
    input,
    set(next) {
      input.value = next;
      told.textContent = show(next);
    },
  };
}
