// A form for a JSON Schema as pydantic writes it. Each part has `element`, `read()` (undefined: not given) and a path,
// by which the service's faults find their field.

import { h } from "./dom.js";

let count = 0;

export function schemaForm(root, schema, value) {
  const definitions = root.$defs || {};
  const resolve = part => {
    let found = part;
    while (found.$ref) found = { ...definitions[found.$ref.split("/").pop()], ...without(found, "$ref") };
    return found;
  };
  return build(schema, [], value, true, "");

  function build(raw, path, given, required, name) {
    const part = resolve(raw);
    const options = (part.anyOf || part.oneOf || []).filter(option => option.type !== "null");
    if (part.const !== undefined) return { element: "", read: () => required ? part.const : given };
    if (part.discriminator || part.oneOf?.[0]?.discriminator) return union(part, path, given, required, name);
    if (options.length === 1) return build({ ...without(part, "anyOf", "oneOf"), ...resolve(options[0]) }, path, given, false, name);
    if (options.length > 1 && options.some(option => resolve(option).discriminator)) {
      return union(resolve(options.find(option => resolve(option).discriminator)), path, given, required, name);
    }
    if (part.properties) return object(part, path, given, required, name);
    return leaf(part, path, given, required, name, options.map(resolve));
  }

  function object(part, path, given, required, name) {
    const wanted = new Set(part.required || []);
    const fields = Object.entries(part.properties).map(([key, own]) =>
      [key, wanted.has(key), build(own, [...path, key], given?.[key], wanted.has(key), key), given?.[key] !== undefined]);
    const shown = fields.filter(([, needed, , there]) => needed || there).map(([, , field]) => field.element);
    const rest = fields.filter(([, needed, , there]) => !needed && !there).map(([, , field]) => field.element).filter(Boolean);
    const more = rest.length ? h("details", {}, h("summary", {}, `${rest.length} more ${rest.length > 1 ? "options" : "option"}`), h("div", { className: "fields" }, rest)) : [];
    const inside = h("div", { className: "fields" }, shown.filter(Boolean), more);
    const element = path.length ? h("fieldset", { "data-path": path.join(".") }, h("legend", {}, label(name)), fault(), inside) : inside;
    const read = () => {
      const found = Object.fromEntries(fields.map(([key, , field]) => [key, field.read()]).filter(([, v]) => v !== undefined));
      return Object.keys(found).length || required ? found : undefined;
    };
    return { element, read };
  }

  function union(part, path, given, required, name) {
    const tag = part.discriminator.propertyName;
    const mapping = part.discriminator.mapping;
    const inside = h("div");
    const id = `field-${++count}`;
    let chosen;
    const choose = (kind, values) => {
      if (!kind) { chosen = { read: () => undefined }; return inside.replaceChildren(); }
      const own = resolve({ $ref: mapping[kind] });
      const rest = { ...own, properties: without(own.properties, tag), required: (own.required || []).filter(key => key !== tag) };
      if (own.discriminator) {
        chosen = union(own, path, values, true, "");
      } else {
        chosen = object(rest, [], values, true, "");
        relabel(chosen.element, path);
      }
      const read = chosen.read;
      chosen = { ...chosen, read: () => ({ [tag]: kind, ...read() }) };
      inside.replaceChildren(chosen.element);
    };
    const kinds = required ? Object.keys(mapping) : ["", ...Object.keys(mapping)];
    const start = given?.[tag] ?? kinds[0];
    const select = h("select", { id, onchange: () => choose(select.value) },
      kinds.map(kind => h("option", { value: kind, selected: kind === start }, kind || "default")));
    choose(start, given);
    const element = h("fieldset", { "data-path": path.join(".") },
      h("legend", {}, label(name)), fault(),
      h("div", { className: "field", "data-path": [...path, tag].join(".") }, h("label", { htmlFor: id }, label(tag)), select, fault()),
      inside);
    return { element, read: () => chosen.read() };
  }

  // what was built for the path [] is part of `path`
  function relabel(element, path) {
    for (const part of element.querySelectorAll("[data-path]")) part.dataset.path = [...path, part.dataset.path].join(".");
  }

  function leaf(part, path, given, required, name, options) {
    const id = `field-${++count}`;
    const fallback = part.default;
    const choices = part.enum;
    const plain = options.length === 0;
    let input, read;
    if (choices) {
      const all = required ? choices : ["", ...choices];
      input = h("select", { id }, all.map(choice =>
        h("option", { value: choice, selected: choice === (given ?? "") }, choice === "" ? `default${told(fallback)}` : String(choice))));
      read = () => input.value === "" ? undefined : choices.find(choice => String(choice) === input.value);
    } else if (part.type === "boolean" && plain) {
      input = h("input", { id, type: "checkbox", checked: given ?? fallback ?? false });
      read = () => input.checked === (fallback ?? false) && given === undefined ? undefined : input.checked;
    } else {
      const text = given === undefined ? "" : typeof given === "string" ? given : JSON.stringify(given);
      const long = part.type === "array" && !isNumber(part.items);
      input = h(long ? "textarea" : "input", { id, value: long && given ? JSON.stringify(given, null, 1) : text, placeholder: fallback === undefined || fallback === null ? "" : typeof fallback === "string" ? fallback : JSON.stringify(fallback), autocomplete: "off", spellcheck: false });
      read = () => input.value.trim() === "" ? undefined : parsed(input.value.trim());
    }
    const hint = bounds(part, options);
    const element = h("div", { className: "field", "data-path": path.join(".") },
      h("label", { htmlFor: id }, label(name), required ? "" : h("span", { className: "soft" }, " (optional)")), input,
      hint ? h("span", { className: "hint", id: `${id}-hint` }, hint) : [], fault());
    if (hint) input.setAttribute("aria-describedby", `${id}-hint`);
    return { element, read };
  }
}

// numbers, lists and objects as JSON; everything else is text
function parsed(text) {
  try { return JSON.parse(text); } catch { /* no JSON */ }
  const list = text.split(/[\s,]+/).filter(Boolean).map(Number);
  return list.length > 1 && list.every(Number.isFinite) ? list : text;
}

const without = (object, ...keys) => Object.fromEntries(Object.entries(object || {}).filter(([key]) => !keys.includes(key)));
const label = name => name.replaceAll("_", " ");
const told = value => value === undefined || value === null ? "" : ` (${value})`;
const fault = () => h("span", { className: "fault", hidden: true });

const isNumber = items => ["integer", "number"].includes(items?.type);

function bounds(part, options) {
  if (options.length > 1) return options.map(one => one.title || one.const || one.type).join(" or ") + ", as JSON";
  if (part.type === "array") return isNumber(part.items) ? "a list, as 0, 1, 2" : "a list, as JSON";
  if (part.type === "object") return "names and values, as JSON";
  const low = part.minimum ?? part.exclusiveMinimum, high = part.maximum ?? part.exclusiveMaximum;
  const kind = { integer: "whole number", number: "number", string: "" }[part.type] || "";
  if (part.minimum !== undefined && part.maximum !== undefined) return `${kind}, ${low} to ${high}`;
  return [kind, low !== undefined ? `${part.minimum !== undefined ? "≥" : ">"} ${low}` : "", high !== undefined ? `${part.maximum !== undefined ? "≤" : "<"} ${high}` : ""].filter(Boolean).join(" ");
}

/** Put the faults beside their fields; those that have no field come back. */
export function showFaults(element, errors) {
  for (const told of element.querySelectorAll(".fault")) told.hidden = true;
  for (const invalid of element.querySelectorAll("[aria-invalid]")) invalid.removeAttribute("aria-invalid");
  const places = new Map([...element.querySelectorAll("[data-path]")].map(place => [place.dataset.path, place]));
  return errors.filter(error => {
    const parts = error.field.split(".");
    let place;
    while (parts.length && !(place = places.get(parts.join(".")))) parts.pop();
    if (!place) return true;
    for (let part = place; part; part = part.parentElement?.closest("details")) if (part.tagName === "DETAILS") part.open = true;
    place.closest("details")?.setAttribute("open", "");
    const told = place.querySelector(".fault");
    told.textContent = `${error.bound}${error.value === null ? "" : ` (got ${JSON.stringify(error.value)})`}`;
    told.id ||= `fault-${++count}`;
    told.hidden = false;
    const input = place.querySelector("input, select, textarea");
    input?.setAttribute("aria-invalid", "true");
    input?.setAttribute("aria-describedby", [place.querySelector(".hint")?.id, told.id].filter(Boolean).join(" "));
    return false;
  });
}
