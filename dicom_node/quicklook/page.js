"use strict";
(() => {
  const scene = JSON.parse(document.getElementById("scene").textContent);
  if (!scene.images) return;
  const by = (id) => document.getElementById(id);
  const [stage, film, picture, marks, slider] = ["stage", "film", "slice", "marks", "slider"].map(by);
  const findings = scene.findings.filter((found) => found.key !== null);
  const ZOOMS = [1, 2, 4], PIXELS_A_SLICE = 6, WHEEL_A_SLICE = 40;
  // focus: the point of the film, in parts of its size, that the stage is centred on as far as its edges let it.
  const state = { slice: 0, finding: -1, overlay: true, window: 0, zoom: 0, focus: [0.5, 0.5] };

  const between = (value, low, high) => Math.min(high, Math.max(low, value));
  const svg = (name, attributes) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };

  function drawMarks() {
    marks.replaceChildren();
    marks.classList.toggle("hidden", !state.overlay);
    // A pixel of the screen in units of the drawing, which the film's zoom enlarges.
    const unit = scene.columns / (stage.clientWidth || 1) / ZOOMS[state.zoom];
    for (const found of findings) {
      const paths = found.slices[state.slice];
      if (!paths) continue;
      for (const path of paths) {
        const halo = svg("path", { d: path, class: "halo", "stroke-width": 4 * unit });
        marks.append(halo, svg("path", { d: path, stroke: found.colour, "stroke-width": 2 * unit }));
      }
      const numbers = paths.join(" ").match(/-?[\d.]+/g).map(Number);
      const right = Math.max(...numbers.filter((_, at) => at % 2 === 0));
      const top = Math.min(...numbers.filter((_, at) => at % 2 === 1));
      const left = right + 24 * unit > scene.columns;
      const text = svg("text", {
        x: left ? right - 30 * unit : right + 5 * unit, y: Math.max(top, 16 * unit), fill: found.colour,
        "stroke-width": 3 * unit,
      });
      text.style.fontSize = `${15 * unit}px`;
      text.textContent = found.number;
      marks.append(text);
    }
  }

  const centre = () => {
    const half = 0.5 / ZOOMS[state.zoom];
    return state.focus.map((at) => between(at, half, 1 - half));
  };

  function place() {
    const zoom = ZOOMS[state.zoom];
    const [x, y] = centre().map((at) => 0.5 - at * zoom);
    film.style.transform = `translate(${x * 100}%, ${y * 100}%) scale(${zoom})`;
    stage.style.cursor = zoom > 1 ? "move" : "ns-resize";
    by("zoom").textContent = `Zoom ${zoom}x`;
  }

  function here() {
    const named = findings.filter((found) => found.slices[state.slice]).map((found) => found.label);
    const count = scene.images.length;
    return `Slice ${state.slice + 1} of ${count} from the feet, z ${scene.z_mm[state.slice].toFixed(1)} mm`
      + (named.length ? `: ${named.join(", ")}` : "");
  }

  let told = 0;
  function show(slice) {
    state.slice = between(slice, 0, scene.images.length - 1);
    picture.src = scene.images[state.slice];
    slider.value = state.slice;
    slider.setAttribute("aria-valuetext", here());
    by("place").textContent = `${state.slice + 1} / ${scene.images.length}`;
    stage.setAttribute("aria-label", `CT slices. ${here()}`);
    drawMarks();
    // Not each slice of a fast scroll: a screen reader would never come to an end.
    clearTimeout(told);
    told = setTimeout(() => { by("status").textContent = here(); }, 150);
  }

  function go(index) {
    if (!findings.length) return;
    state.finding = (index + findings.length) % findings.length;
    const found = findings[state.finding];
    state.focus = [found.middle[0] / scene.columns, found.middle[1] / scene.rows];
    for (const button of document.querySelectorAll("[data-finding]")) {
      const current = button.dataset.finding === String(found.number);
      button.setAttribute("aria-current", current);
      button.closest("tr").classList.toggle("current", current);
    }
    place();
    show(found.key);
  }

  function setWindow(index) {
    state.window = (index + scene.windows.length) % scene.windows.length;
    const { slope, intercept } = scene.windows[state.window];
    for (const part of document.querySelectorAll("#cut feComponentTransfer > *")) {
      part.setAttribute("slope", slope);
      part.setAttribute("intercept", intercept);
    }
    by("window").value = state.window;
  }

  function toggleOverlay() {
    state.overlay = !state.overlay;
    by("overlay").setAttribute("aria-pressed", state.overlay);
    drawMarks();
  }

  function zoomOn() {
    state.zoom = (state.zoom + 1) % ZOOMS.length;
    place();
    drawMarks();
  }

  const keys = {
    ArrowUp: () => show(state.slice + 1), ArrowDown: () => show(state.slice - 1),
    ArrowRight: () => show(state.slice + 1), ArrowLeft: () => show(state.slice - 1),
    PageUp: () => show(state.slice + 10), PageDown: () => show(state.slice - 10),
    Home: () => show(0), End: () => show(scene.images.length - 1),
    o: toggleOverlay, z: zoomOn, w: () => setWindow(state.window + 1),
    n: () => go(state.finding + 1), p: () => go(state.finding < 0 ? -1 : state.finding - 1),
  };
  stage.addEventListener("keydown", (event) => {
    const act = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    act();
  });

  let turned = 0;
  stage.addEventListener("wheel", (event) => {
    if (event.ctrlKey) return;
    event.preventDefault();
    // One notch of a wheel is 100 or 120; a touch pad sends many small steps.
    turned += event.deltaMode === 0 ? event.deltaY : event.deltaY * WHEEL_A_SLICE;
    const steps = Math.trunc(turned / WHEEL_A_SLICE);
    if (steps) {
      turned -= steps * WHEEL_A_SLICE;
      show(state.slice - between(steps, -3, 3));
    }
  }, { passive: false });

  let dragged = null;
  stage.addEventListener("pointerdown", (event) => {
    dragged = { x: event.clientX, y: event.clientY, slice: state.slice, focus: centre() };
    stage.setPointerCapture(event.pointerId);
  });
  stage.addEventListener("pointermove", (event) => {
    if (!dragged) return;
    const [x, y] = [event.clientX - dragged.x, event.clientY - dragged.y];
    const zoom = ZOOMS[state.zoom];
    if (zoom === 1) {
      show(dragged.slice - Math.round(y / PIXELS_A_SLICE));
    } else {
      state.focus = [dragged.focus[0] - x / stage.clientWidth / zoom, dragged.focus[1] - y / stage.clientHeight / zoom];
      place();
    }
  });
  for (const name of ["pointerup", "pointercancel"]) stage.addEventListener(name, () => { dragged = null; });

  slider.addEventListener("input", () => show(Number(slider.value)));
  by("overlay").addEventListener("click", toggleOverlay);
  by("zoom").addEventListener("click", zoomOn);
  by("next").addEventListener("click", () => go(state.finding + 1));
  by("previous").addEventListener("click", () => go(state.finding < 0 ? -1 : state.finding - 1));
  by("window").addEventListener("change", (event) => setWindow(Number(event.target.value)));
  for (const button of document.querySelectorAll("[data-finding]")) {
    button.addEventListener("click", () => {
      go(findings.findIndex((found) => String(found.number) === button.dataset.finding));
      stage.focus({ preventScroll: true });
      stage.scrollIntoView({ block: "nearest" });
    });
  }
  window.addEventListener("resize", drawMarks);

  stage.style.aspectRatio = scene.aspect;
  marks.setAttribute("viewBox", `0 0 ${scene.columns} ${scene.rows}`);
  ["left", "right", "top", "bottom"].forEach((side, at) => { stage.querySelector(`.${side}`).textContent = scene.sides[at]; });
  slider.max = scene.images.length - 1;
  by("window").append(...scene.windows.map((each, at) => new Option(each.name, at)));
  for (const id of ["previous", "next"]) by(id).disabled = !findings.length;
  setWindow(0);
  place();
  if (findings.length) go(0); else show(Math.floor(scene.images.length / 2));
})();
