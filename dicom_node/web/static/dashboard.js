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

  // A live update changes what is different and leaves the rest as it is: focus, selection, what was scrolled or opened.
  if (window.Idiomorph) {
    const chosen = form => [...form.querySelectorAll("option")].some(o => o.selected !== o.defaultSelected);
    const callbacks = window.Idiomorph.defaults.callbacks;
    callbacks.beforeAttributeUpdated = (name, node) => !(name === "open" && node.tagName === "DETAILS");
    callbacks.beforeNodeMorphed = old =>
      !(old.tagName === "FORM" && old.classList.contains("filters") && (old.contains(document.activeElement) || chosen(old)));
  }

  // Log lines are read from their end, until somebody scrolls back.
  let atEnd = true;
  const lines = () => document.getElementById("lines");
  const toEnd = () => { const box = lines(); if (box && atEnd) box.scrollTop = box.scrollHeight; };
  document.addEventListener("scroll", event => {
    const box = event.target;
    if (box.id === "lines") atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 8;
  }, true);
  toEnd();

  // One stream a page. A page that nobody looks at asks for nothing.
  const state = document.getElementById("live-state");
  const LINES_MS = 2000, AGAIN_MS = 5000, CHANGES_MS = 2000;
  let source = null, again = null, due = null, told = -CHANGES_MS;
  const tell = what => { if (window.htmx) window.htmx.trigger(document.body, what); };
  // Of changes close together the last counts: htmx's own throttle would drop it, and the page stay as it was before.
  const changed = () => {
    due ??= setTimeout(() => { due = null; told = performance.now(); tell("changed"); }, told + CHANGES_MS - performance.now());
  };
  // The node leads to the login and back to here.
  const toLogin = () => location.reload();
  const close = () => {
    if (source) source.close();
    clearTimeout(again);
    clearTimeout(due);
    source = due = null;
  };
  // The browser itself tries again after a broken line, but not after an answer that it did not expect.
  const refused = async () => {
    close();
    try {
      const answer = await fetch("/api/v1/session", { headers: { "HX-Request": "true" } });
      if (answer.status === 401) return toLogin();
    } catch { /* no answer at all */ }
    again = setTimeout(() => { if (!document.hidden && !source) { open(); changed(); } }, AGAIN_MS);
  };
  const open = () => {
    source = new EventSource("/events");
    source.addEventListener("changed", changed);
    source.addEventListener("over", toLogin);
    source.addEventListener("open", () => { state.hidden = true; });
    source.addEventListener("error", () => {
      state.hidden = false;
      if (source && source.readyState === EventSource.CLOSED) refused();
    });
  };
  // What is shown may be old from now on, until an answer comes again.
  const late = () => { state.hidden = false; };
  document.body.addEventListener("htmx:sendError", late);
  document.body.addEventListener("htmx:responseError", event => { if (event.detail.xhr.status === 401) toLogin(); else late(); });
  document.body.addEventListener("htmx:afterOnLoad", event => {
    if (event.detail.successful && source && source.readyState === EventSource.OPEN) state.hidden = true;
  });
  // Log lines are no rows: while a job may say more they are asked for.
  setInterval(() => { if (source && document.querySelector("#log[data-live]")) tell("lines"); }, LINES_MS);
  // What a job made is drawn once: when it ends while its page is open, the whole page is loaded anew.
  const drawn = document.getElementById("live")?.dataset.state;
  document.body.addEventListener("htmx:afterSettle", () => {
    toEnd();
    const now = document.getElementById("live")?.dataset.state;
    if (now !== drawn && (now === "complete" || drawn === "complete")) location.reload();
  });
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) close(); else if (!source) { open(); changed(); }
  });
  window.addEventListener("pagehide", close);
  if (document.getElementById("live")) open();
})();
