"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const charts = [...document.querySelectorAll(".chart")];
  const drawn = new Set();
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const print = matchMedia("print");
  const PRINTED = { wide: 680, narrow: 330 }; // CSS pixels: what fits on A4 and Letter
  let printing = false;

  // Ink and paper are the page's, whatever its theme is just now.
  const template = (chart) => {
    const page = getComputedStyle(chart);
    const lines = { gridcolor: page.borderTopColor, linecolor: page.borderTopColor, zerolinecolor: page.borderTopColor };
    return {
      layout: {
        paper_bgcolor: "rgba(0,0,0,0)",
        plot_bgcolor: "rgba(0,0,0,0)",
        font: { color: page.color, family: page.fontFamily, size: 12 },
        hoverlabel: { bgcolor: page.backgroundColor, font: { color: page.color } },
        xaxis: lines,
        yaxis: lines,
      },
    };
  };

  const draw = (chart) => {
    if (!window.Plotly) load();
    const { data, layout } = figures[chart.id];
    const size = printing
      ? { autosize: false, width: chart.classList.contains("wide") ? PRINTED.wide : PRINTED.narrow }
      : { autosize: true, width: chart.clientWidth };
    Plotly.react(chart, data, { ...layout, ...size, template: template(chart) }, { displayModeBar: false });
    drawn.add(chart);
    chart.dataset.drawn = "";
  };
  const redraw = () => drawn.forEach(draw);

  // Plotly is 5 MB that need not hold up the text: it is run when the first chart is drawn.
  const load = () => {
    const script = document.createElement("script");
    script.textContent = document.getElementById("plotly").textContent;
    document.head.append(script);
  };

  // A chart is drawn when it comes near the window: a report can have hundreds.
  const nearby = new IntersectionObserver(
    (entries) => entries.filter((e) => e.isIntersecting).forEach(({ target }) => {
      nearby.unobserve(target);
      if (!drawn.has(target)) draw(target);
    }),
    { rootMargin: "400px" },
  );
  charts.forEach((chart) => nearby.observe(chart));
  let width = root.clientWidth;
  new ResizeObserver(() => {
    if (printing || root.clientWidth === width) return;
    width = root.clientWidth;
    redraw();
  }).observe(root);

  const button = document.getElementById("theme");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  const themed = () => {
    button.setAttribute("aria-pressed", isDark());
    redraw();
  };
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    themed();
  });
  dark.addEventListener("change", themed);
  button.hidden = false;
  button.setAttribute("aria-pressed", isDark());

  // On paper there is nothing to scroll to or to open.
  let opened = [];
  let theme;
  const printed = (begins) => {
    if (begins === printing) return;
    printing = begins;
    if (begins) {
      opened = [...document.querySelectorAll("details:not([open])")];
      theme = root.dataset.theme;
    }
    opened.forEach((details) => { details.open = begins; });
    // the paper's style is not there yet before printing, and no more before the end of it
    if (begins) root.dataset.theme = "light";
    else if (theme) root.dataset.theme = theme;
    else delete root.dataset.theme;
    charts.forEach((chart) => (begins || drawn.has(chart)) && draw(chart));
  };
  addEventListener("beforeprint", () => printed(true));
  addEventListener("afterprint", () => printed(false));
  print.addEventListener("change", () => printed(print.matches));
})();
