// Draws the figures of a report where the page has a place for them, in the colours of the page.
"use strict";

function inPageColours(layout) {
  const text = getComputedStyle(document.documentElement).getPropertyValue("--text").trim();
  const bar = { bgcolor: "rgba(0,0,0,0)", color: "#808080", activecolor: text };
  return { ...layout, font: { ...layout.font, color: text }, modebar: bar };
}

// Four panels, two beside two, come one below the other where there is little room.
function stacked(layout) {
  const found = { ...layout, height: 1.9 * layout.height, annotations: layout.annotations.map(own => ({ ...own, x: 0 })) };
  for (let i = 0; i < 4; i++) {
    const number = i ? i + 1 : "", low = 0.78 - 0.26 * i;
    found[`xaxis${number}`] = { ...layout[`xaxis${number}`], domain: [0, 1] };
    found[`yaxis${number}`] = { ...layout[`yaxis${number}`], domain: [low, low + 0.17] };
    found.annotations[i].y = low + 0.175;
  }
  return found;
}

// Where there is little room names stand upright, numbers are fewer, and the legend comes below.
function narrowed(layout) {
  const found = { ...(layout.xaxis4 ? stacked(layout) : layout) };
  for (const name of Object.keys(found).filter(key => key.startsWith("xaxis"))) {
    found[name] = { ...found[name], ...(found[name].ticktext ? { tickangle: -90 } : { nticks: 5 }) };
  }
  const below = { orientation: "h", x: 0, y: -0.02, yref: "container", yanchor: "bottom" };
  return { ...found, legend: below, height: found.height + 60, margin: { ...found.margin, l: 70, b: 140 } };
}

function drawFigures(figures, within = document) {
  for (const place of within.querySelectorAll("[data-figure]")) {
    const figure = figures[place.dataset.figure];
    if (!figure) continue;
    const narrow = place.clientWidth < 560;
    const layout = narrow ? narrowed(figure.layout) : figure.layout;
    if (layout.height) place.style.height = `${layout.height}px`;
    const options = { responsive: true, displaylogo: false, displayModeBar: narrow ? false : "hover" };
    Plotly.react(place, figure.data, inPageColours(layout), options);
  }
}

const written = document.getElementById("figures");
if (written) {
  const figures = JSON.parse(written.textContent);
  drawFigures(figures);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawFigures(figures));
}
