// What the theme leaves out for readers who use a keyboard or a screen reader.
"use strict";

window.addEventListener("load", () => {
  for (const toggle of document.querySelectorAll("summary"))
    if (!toggle.textContent.trim()) toggle.setAttribute("aria-label", "Show or hide the pages below");

  // What is wider than the page scrolls in its own frame; the arrow keys must reach it.
  const reach = () => {
    for (const frame of document.querySelectorAll("mjx-container[display], .cell_output .text_html, .cell_output .text_html div"))
      if (frame.scrollWidth > frame.clientWidth && getComputedStyle(frame).overflowX !== "visible") frame.tabIndex = 0;
  };
  reach();
  window.MathJax?.startup?.promise?.then(reach);
});
