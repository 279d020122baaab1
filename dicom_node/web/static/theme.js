"use strict";
// Before the page is drawn: no flash of the other scheme.
(() => {
  let kept = null;
  try { kept = localStorage.getItem("theme"); } catch { /* a browser that keeps nothing follows its own scheme */ }
  if (kept === "light" || kept === "dark") document.documentElement.dataset.theme = kept;
})();
