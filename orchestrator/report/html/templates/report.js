"use strict";
// The page needs no script to be read. This one offers the other theme, and opens what is folded
// for paper, where there is nothing to open.
(() => {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const button = document.getElementById("theme");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  const show = () => button.setAttribute("aria-pressed", isDark());
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    show();
  });
  dark.addEventListener("change", show);
  button.hidden = false;
  show();

  const print = matchMedia("print");
  let opened = null;
  const printed = (begins) => {
    if (begins === (opened !== null)) return;
    if (begins) opened = [...document.querySelectorAll("details:not([open])")];
    opened.forEach((details) => { details.open = begins; });
    if (!begins) opened = null;
  };
  addEventListener("beforeprint", () => printed(true));
  addEventListener("afterprint", () => printed(false));
  print.addEventListener("change", () => printed(print.matches));
})();
