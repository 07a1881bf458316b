// Draws the figures of a report where the page has a place for them, in the colours of the page.
"use strict";

function inPageColours(layout) {
  const text = getComputedStyle(document.documentElement).getPropertyValue("--text").trim();
  return { ...layout, font: { ...layout.font, color: text } };
}

function drawFigures(figures, within = document) {
  for (const place of within.querySelectorAll("[data-figure]")) {
    const figure = figures[place.dataset.figure];
    if (!figure) continue;
    const options = { responsive: true, displaylogo: false, displayModeBar: "hover" };
    Plotly.react(place, figure.data, inPageColours(figure.layout), options);
  }
}

const written = document.getElementById("figures");
if (written) {
  const figures = JSON.parse(written.textContent);
  drawFigures(figures);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawFigures(figures));
}
