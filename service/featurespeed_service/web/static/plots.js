// Figures, drawn by plotly, which is loaded when the first one is shown.

let loading;

const script = address => new Promise((done, failed) => {
  const element = document.createElement("script");
  Object.assign(element, { src: address, onload: done, onerror: () => failed(new Error(`${address} cannot be loaded`)) });
  document.head.append(element);
});

const shown = new Map();  // figures by the element that they are within
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const [within, figures] of shown) {
    if (within.isConnected) window.drawFigures(figures, within);
    else shown.delete(within);
  }
});

export async function drawn(within, figures) {
  loading ??= script("static/plotly.js").then(() => script("static/figures.js"));
  await loading;
  shown.set(within, figures);
  window.drawFigures(figures, within);
}
