// Zoom, search and keys of a flame graph. Embedded into the SVG by svg.py, which draws the frames.
// Names in the frames are untrusted: nothing here may make markup of a text.
(() => {
  "use strict";

  const SVG = "http://www.w3.org/2000/svg";
  const HTML = "http://www.w3.org/1999/xhtml";
  const MARGIN = 10;
  const LEAST_WIDTH = 900; // the notes are wrapped for it; a narrower window scales the picture down
  const CELL = 7.25; // a character of 12 px monospace
  const ROW = 18;
  const BAR = 44;
  const HELP = "Click or Enter: zoom · arrows: move · / or Ctrl-F: search · Esc: back";

  const svg = document.getElementById("flame");
  const canvas = document.getElementById("frames");
  const height = Number(svg.getAttribute("height"));
  const toolbarY = Number(canvas.getAttribute("y")) - 32;
  const frames = read();
  const byElement = new Map(frames.map((frame) => [frame.element, frame]));
  const rows = [];
  for (const frame of frames) (rows[frame.depth] ??= []).push(frame);
  const whole = frames[0];
  let zoomed = whole;
  let width = 0;

  // Frames are in the order of a walk from the root: the callees of a frame follow it, up to `last`.
  function read() {
    const path = [];
    const found = [];
    for (const element of canvas.querySelectorAll(".frame")) {
      const { start, width, bytes, before, label } = element.dataset;
      const depth = Number(element.getAttribute("aria-level")) - 1;
      const text = element.querySelector("text");
      const [name, numbers] = element.querySelector("title").textContent.split("\n");
      const frame = {
        element, text, name, numbers, depth,
        index: found.length,
        last: found.length,
        parent: depth ? path[depth - 1] : null,
        label: label ?? text.textContent,
        start: Number(start),
        width: Number(width),
        bytes: Number(bytes ?? width),
        before: before === undefined ? null : Number(before),
      };
      path.length = depth;
      for (const above of path) above.last = frame.index;
      path.push(frame);
      found.push(frame);
    }
    return found;
  }

  function make(parent, name, attributes, text) {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    parent.append(element);
    return element;
  }

  // Layout

  function cells(char) {
    return char.codePointAt(0) >= 0x1100 ? 2 : 1; // roughly as in svg.py
  }

  function cut(label, room) {
    let used = 0;
    let kept = "";
    for (const char of label) {
      used += cells(char);
      if (used > room) return kept.length < 2 ? "" : kept + "…";
      if (used < room) kept += char;
    }
    return label;
  }

  function place(frame, start, share) {
    const pixels = share * (width - 2 * MARGIN);
    const shown = pixels >= 0.3;
    frame.element.style.display = shown ? "" : "none";
    if (!shown) return;
    frame.element.setAttribute("x", `${100 * start}%`);
    frame.element.setAttribute("width", `${100 * share}%`);
    frame.text.textContent = cut(frame.label, Math.floor((pixels - 7) / CELL));
  }

  function layout() {
    const above = new Set();
    for (let frame = zoomed.parent; frame; frame = frame.parent) above.add(frame);
    for (const frame of frames) {
      frame.element.classList.toggle("above", above.has(frame));
      if (above.has(frame)) place(frame, 0, 1);
      else if (frame.index < zoomed.index || frame.index > zoomed.last) place(frame, 0, 0);
      else place(frame, (frame.start - zoomed.start) / zoomed.width, frame.width / zoomed.width);
    }
    reset.setAttribute("aria-disabled", String(zoomed === whole));
  }

  function scale() {
    return Math.min(1, svg.getBoundingClientRect().width / LEAST_WIDTH);
  }

  function resize() {
    width = Math.max(LEAST_WIDTH, Math.round(svg.getBoundingClientRect().width));
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("height", height * scale());
    canvas.setAttribute("width", width - 2 * MARGIN);
    layout();
    moveBar();
  }

  function zoom(frame) {
    zoomed = frame;
    layout();
  }

  // Details at the bottom of the window

  const bar = make(svg, "g", { class: "bar", "aria-hidden": "true" });
  make(bar, "rect", { x: "-1%", y: 0.5, width: "102%", height: BAR });
  const barName = make(bar, "text", { class: "name", x: MARGIN, y: 18 });
  const barNumbers = make(bar, "text", { x: MARGIN });

  function moveBar() {
    const bottom = Math.min(height, (window.scrollY + window.innerHeight) / scale());
    bar.setAttribute("transform", `translate(0 ${bottom - BAR})`);
  }

  function showDetails(frame) {
    barName.textContent = frame ? cut(frame.name, Math.floor((width - 2 * MARGIN) / CELL)) : "";
    barNumbers.textContent = frame ? frame.numbers : HELP;
    barNumbers.setAttribute("y", frame ? 36 : 27);
  }

  // Search

  function showBytes(size) {
    if (size < 1024) return `${size} B`;
    let unit = "";
    for (unit of ["KiB", "MiB", "GiB", "TiB"]) {
      size /= 1024;
      if (size < 999.5) break;
    }
    return `${size.toFixed(size >= 99.95 ? 0 : 1)} ${unit}`;
  }

  // By regular expression or as plain text: `Twig\Environment` is a valid pattern, but of another text.
  function matcher(sought) {
    const plain = sought.toLowerCase();
    let pattern = null;
    try {
      pattern = new RegExp(sought, "i");
    } catch {
      // not a pattern: search as plain text
    }
    return (name) => name.toLowerCase().includes(plain) || Boolean(pattern?.test(name));
  }

  function search(sought) {
    const matches = sought ? matcher(sought) : () => false;
    const sum = { width: 0, bytes: 0, before: 0 };
    let counted = -1; // the outer match has the bytes of a match inside it
    let count = 0;
    for (const frame of frames) {
      const match = matches(frame.name) || matches(frame.label);
      frame.element.classList.toggle("match", match);
      if (!match) continue;
      count += 1;
      if (frame.index <= counted) continue;
      counted = frame.last;
      sum.width += frame.width;
      sum.bytes += frame.bytes;
      sum.before += frame.before ?? 0;
    }
    svg.classList.toggle("searching", Boolean(sought));
    if (!sought) {
      matched.textContent = "";
      return;
    }
    const bytes =
      whole.before === null ? showBytes(sum.bytes) : `before ${showBytes(sum.before)}, after ${showBytes(sum.bytes)}`;
    const share = ((100 * sum.width) / whole.width).toFixed(1);
    matched.textContent = `matched: ${share} % (${bytes}) in ${count} frame${count === 1 ? "" : "s"}`;
  }

  const toolbar = make(svg, "g", { class: "toolbar" });
  svg.insertBefore(toolbar, canvas); // so that Tab goes from the top to the bottom

  function button(x, label, act) {
    const group = make(toolbar, "g", { class: "button", role: "button", tabindex: 0, "aria-label": label });
    make(group, "rect", { x, y: toolbarY + 0.5, width: 84, height: 23, rx: 4 });
    make(group, "text", { x: x + 42, y: toolbarY + 16, "text-anchor": "middle" }, label);
    group.addEventListener("click", act);
    group.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      act();
    });
    return group;
  }

  // An HTML input; null if the viewer has no HTML.
  function searchBox() {
    const holder = make(toolbar, "foreignObject", { x: MARGIN, y: toolbarY, width: 270, height: 24 });
    const input = document.createElementNS(HTML, "input");
    input.setAttribute("class", "search");
    input.setAttribute("type", "text");
    input.setAttribute("spellcheck", "false");
    input.setAttribute("placeholder", "Search names (regular expression)");
    input.setAttribute("aria-label", "Search names");
    holder.append(input);
    if (typeof input.select !== "function" || !input.getBoundingClientRect().width) {
      holder.remove();
      return null;
    }
    input.addEventListener("input", () => search(input.value));
    return input;
  }

  const input = searchBox();
  if (!input) button(MARGIN, "Search", askSearch);
  const reset = button(input ? 290 : 104, "Reset zoom", () => zoom(whole));
  const matched = make(toolbar, "text", { class: "matched", "aria-live": "polite", x: input ? 386 : 200, y: toolbarY + 16 });

  function askSearch() {
    if (!input) {
      search(window.prompt("Search names (regular expression)") ?? "");
      return;
    }
    input.focus();
    input.select();
  }

  // Keys and mouse

  function frameOf(event) {
    return event.target instanceof Element ? byElement.get(event.target.closest(".frame")) : undefined;
  }

  function shown(frame) {
    return frame && frame.element.style.display !== "none";
  }

  function beside(frame, step) {
    const row = rows[frame.depth];
    for (let at = row.indexOf(frame) + step; at >= 0 && at < row.length; at += step) {
      if (shown(row[at])) return row[at];
    }
    return undefined;
  }

  function below(frame) {
    const inside = frames.slice(frame.index + 1, frame.last + 1);
    const contains = (one) => one.index <= zoomed.index && zoomed.index <= one.last;
    return inside.find((one) => one.depth === frame.depth + 1 && shown(one) && (contains(one) || frame.index >= zoomed.index));
  }

  function focus(frame) {
    if (!shown(frame)) return;
    frame.element.focus({ preventScroll: true });
    // The bar covers the last rows of the window.
    const box = frame.element.getBoundingClientRect();
    const lowest = window.innerHeight - (BAR + ROW) * scale();
    if (box.bottom > lowest) window.scrollBy(0, box.bottom - lowest);
    else if (box.top < 0) window.scrollBy(0, box.top - ROW);
    moveBar(); // before the scroll event, which is a frame late
  }

  const MOVES = {
    ArrowUp: (frame) => frame.parent,
    ArrowDown: below,
    ArrowLeft: (frame) => beside(frame, -1),
    ArrowRight: (frame) => beside(frame, 1),
    Home: () => whole,
  };

  canvas.addEventListener("click", (event) => {
    const frame = frameOf(event);
    if (frame) zoom(frame);
  });
  canvas.addEventListener("mouseover", (event) => showDetails(frameOf(event)));
  canvas.addEventListener("mouseleave", () => showDetails(byElement.get(document.activeElement)));
  // Not on the canvas: Chromium makes an SVG element focusable if it listens for focus (156).
  document.addEventListener("focusin", (event) => {
    const frame = frameOf(event);
    showDetails(frame);
    if (!frame) return;
    // All frames share one tab stop: the frame that had the focus last.
    for (const one of canvas.querySelectorAll('.frame[tabindex="0"]')) one.setAttribute("tabindex", "-1");
    frame.element.setAttribute("tabindex", "0");
  });
  canvas.addEventListener("keydown", (event) => {
    const frame = frameOf(event);
    if (!frame || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Enter" || event.key === " ") zoom(frame);
    else if (MOVES[event.key]) focus(MOVES[event.key](frame));
    else return;
    event.preventDefault();
  });
  window.addEventListener("keydown", (event) => {
    const typing = input !== null && event.target === input;
    if (event.key === "Escape") {
      if (typing && input.value) {
        input.value = "";
        search("");
      } else if (typing) {
        input.blur();
      } else {
        zoom(whole);
      }
    } else if ((event.ctrlKey || event.metaKey) && event.key === "f") {
      askSearch();
    } else if (event.key === "/" && !typing) {
      askSearch();
    } else {
      return;
    }
    event.preventDefault();
  });
  window.addEventListener("resize", resize);
  window.addEventListener("scroll", moveBar, { passive: true });
  whole.element.setAttribute("tabindex", "0");
  showDetails();
  resize();
})();
