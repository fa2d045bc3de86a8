// What the theme leaves out for readers who use a keyboard or a screen reader.
"use strict";

window.addEventListener("load", () => {
  for (const toggle of document.querySelectorAll("summary"))
    if (!toggle.textContent.trim()) toggle.setAttribute("aria-label", "Show or hide the pages below");

  // A formula that is wider than the page scrolls in its own frame; the arrow keys must reach it.
  const reach = () => {
    for (const formula of document.querySelectorAll("mjx-container[display]"))
      if (formula.scrollWidth > formula.clientWidth) formula.tabIndex = 0;
  };
  const started = window.MathJax?.startup?.promise;
  if (started) started.then(reach);
});
