"use strict";
(() => {
  const root = document.documentElement, button = document.getElementById("theme");
  const next = { auto: "dark", dark: "light", light: "auto" };
  const shown = () => {
    const now = root.dataset.theme || "auto";
    button.textContent = `Theme: ${now}`;
  };
  button.addEventListener("click", () => {
    const to = next[root.dataset.theme || "auto"];
    if (to === "auto") delete root.dataset.theme; else root.dataset.theme = to;
    try { if (to === "auto") localStorage.removeItem("theme"); else localStorage.setItem("theme", to); } catch { /* not kept */ }
    shown();
  });
  shown();

  // One stream a page. A page that nobody looks at asks for nothing.
  const state = document.getElementById("live-state");
  let source = null;
  const changed = () => { if (window.htmx) window.htmx.trigger(document.body, "changed"); };
  const open = () => {
    source = new EventSource("/events");
    source.addEventListener("changed", changed);
    source.addEventListener("open", () => { state.hidden = true; });
    source.addEventListener("error", () => { state.hidden = false; });
  };
  // What a job made is drawn once: when it ends while its page is open, the whole page is loaded anew.
  const drawn = document.getElementById("live")?.dataset.state;
  document.body.addEventListener("htmx:afterSettle", () => {
    const now = document.getElementById("live")?.dataset.state;
    if (now !== drawn && (now === "complete" || drawn === "complete")) location.reload();
  });
  const close = () => { if (source) source.close(); source = null; };
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) close(); else if (!source) { open(); changed(); }
  });
  window.addEventListener("pagehide", close);
  if (document.getElementById("live")) open();
})();
