// Elements from data: text stays text, whatever it says.

export function h(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name in made && !name.includes("-") && name !== "list") made[name] = value;
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter(child => child !== undefined && child !== null && child !== false));
  return made;
}

export const alertBox = (...children) => h("div", { className: "alert", role: "alert" }, ...children);

export function show(title, ...children) {
  document.title = title ? `${title} · featurespeed` : "featurespeed";
  document.getElementById("main").replaceChildren(...children.flat());
}

export function number(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e5) ? value.toExponential(3) : String(Number(value.toPrecision(4)));
}

export const when = iso => new Date(iso).toLocaleString();
