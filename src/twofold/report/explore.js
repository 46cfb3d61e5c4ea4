(() => {
  "use strict";
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent), count = data.names.length;
  const LISTED = 100, SLOTS = 20, STEPS = 64, MISSING = "(none)";

  function bytes(text) {
    const raw = atob(text), out = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
    return out;
  }
  const array = (Kind, text) => new Kind(bytes(text).buffer);
  const xs = array(Float32Array, data.x), ys = array(Float32Array, data.y);
  const near = array(Int32Array, data.near), like = array(Int16Array, data.like);
  const columns = data.columns.map((column) => column.kind === "number"
    ? { ...column, values: array(Float64Array, column.values) }
    : { ...column, codes: array(Int32Array, column.codes) });
  const all = Array.from({ length: count }, (_, i) => i);
  const state = { here: null, cursor: null, chosen: new Set(), off: new Set(), column: null, hits: [], listed: 0, tip: null };
  let plot = null, lassoing = false;

  const element = (name, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  };
  const number = (value) => value.toLocaleString("en", { maximumSignificantDigits: 6 });
  const say = (words) => { $("status").textContent = words; };
  function value(column, i) {
    if (column.kind === "number") return Number.isNaN(column.values[i]) ? "" : number(column.values[i]);
    return column.codes[i] < 0 ? "" : column.names[column.codes[i]];
  }
  const kindOf = () => (state.column === null ? null : columns[state.column]);
  const spoken = (i) => [data.names[i], kindOf() ? value(kindOf(), i) : ""].filter(Boolean).join(", ");

  // Pictures: tiles of a few sheets, of which a browser decodes those that are looked at.
  const sheets = new Map();
  function sheet(place) {
    if (!sheets.has(place)) {
      const blob = new Blob([bytes($(`sheet${place}`).textContent)], { type: "image/webp" });
      sheets.set(place, URL.createObjectURL(blob));
    }
    return sheets.get(place);
  }
  function picture(i, size) {
    const made = element("span", { className: "picture" });
    if (!data.sheets) return made;
    const { side, across } = data.sheets, held = across * across, place = Math.floor(i / held), tile = i % held;
    const rows = Math.ceil(Math.min(held, count - place * held) / across);
    made.classList.toggle("fine", side < size);
    Object.assign(made.style, {
      width: `${size}px`, height: `${size}px`, backgroundImage: `url(${sheet(place)})`,
      backgroundSize: `${across * size}px ${rows * size}px`,
      backgroundPosition: `${-(tile % across) * size}px ${-Math.floor(tile / across) * size}px`,
    });
    return made;
  }
  function link(i) {
    if (data.links === null) return null;
    if (data.odd[i] !== undefined) return data.odd[i];
    const name = data.names[i];
    return data.links + (name.startsWith("/") ? "" : "/") + name.split("/").map(encodeURIComponent).join("/");
  }
  function sound(i) {
    const held = data.sounds ? $(`sound${i}`) : null;
    const source = held ? `data:${data.sounds};base64,${held.textContent}` : data.audio ? link(i) : null;
    return source === null ? null : element("audio", { controls: true, preload: "none", src: source, ariaLabel: data.names[i] });
  }

  // Colours: a slot for each of the most frequent values, or steps of a scale; slot 0 is for what is missing or rare.
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const VIRIDIS = ["#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725"];
  function scale(share) {
    const dark = style("color-scheme") === "dark", at = (dark ? 0.2 + 0.8 * share : 0.92 * share) * (VIRIDIS.length - 1);
    const low = Math.min(Math.floor(at), VIRIDIS.length - 2), part = at - low;
    const mixed = [1, 3, 5].map((k) => {
      const [a, b] = [low, low + 1].map((j) => parseInt(VIRIDIS[j].slice(k, k + 2), 16));
      return Math.round(a + (b - a) * part).toString(16).padStart(2, "0");
    });
    return `#${mixed.join("")}`;
  }
  const grey = () => style("--faint");
  const palette = () => [grey(), ...(kindOf() === null ? [style("--c0")] : kindOf().kind === "number"
    ? Array.from({ length: STEPS }, (_, i) => scale(i / (STEPS - 1)))
    : Array.from({ length: SLOTS }, (_, i) => style(`--c${i}`)))];
  function slots() {
    const column = kindOf(), out = new Array(count).fill(column === null ? 1 : 0);
    if (column === null) return out;
    if (column.kind === "number") {
      const span = column.high - column.low || 1;
      for (let i = 0; i < count; i++) {
        const share = (column.values[i] - column.low) / span;
        out[i] = Number.isNaN(share) ? 0 : 1 + Math.round(share * (STEPS - 1));
      }
    } else for (let i = 0; i < count; i++) out[i] = column.codes[i] < SLOTS ? column.codes[i] + 1 : 0;
    return out;
  }
  const keyOf = (i) => (kindOf()?.kind === "text" ? Math.min(kindOf().codes[i], SLOTS) : 0);
  const visible = (i) => !state.off.has(keyOf(i));

  async function paint() {
    if (!plot) return;
    const ink = style("--ink");
    plot.set({
      pointColor: palette(), pointColorActive: ink, pointColorHover: ink, backgroundColor: style("--card"),
      lassoColor: style("--accent"), colorBy: "valueA",
    });
    await plot.draw({ x: xs, y: ys, valueA: slots() }, { zDataType: "categorical" });
    filter();
  }
  function filter() {
    if (!plot) return;
    if (state.off.size) plot.filter(all.filter(visible), { preventEvent: true });
    else plot.unfilter({ preventEvent: true });
    mark();
  }
  function mark() {
    if (!plot) return;
    const shown = [...state.chosen].filter(visible);
    if (shown.length) plot.select(shown, { preventEvent: true });
    else plot.deselect({ preventEvent: true });
    rings();
  }

  function legend() {
    const column = kindOf(), box = $("legend");
    state.off.clear();
    box.replaceChildren();
    if (column === null) {
      box.append(element("p", { className: "note", textContent: "All in one colour." }));
    } else if (column.kind === "number") {
      const bar = element("div", { className: "scale" });
      bar.style.background = `linear-gradient(to right, ${Array.from({ length: 17 }, (_, i) => scale(i / 16)).join(", ")})`;
      const ends = [column.low, column.high].map((end) => element("span", { textContent: number(end) }));
      box.append(bar, element("div", { className: "ends" }, ...ends));
      const missing = column.values.reduce((sum, each) => sum + Number.isNaN(each), 0);
      if (missing) box.append(element("p", { className: "note", textContent: `grey: ${number(missing)} without a value` }));
    } else keys(column, box);
  }
  function keys(column, box) {
    const counts = new Map();
    for (const code of column.codes) counts.set(Math.min(code, SLOTS), (counts.get(Math.min(code, SLOTS)) ?? 0) + 1);
    const rest = column.names.length - SLOTS;
    for (const code of [...counts.keys()].sort((a, b) => (a < 0 ? SLOTS + 1 : a) - (b < 0 ? SLOTS + 1 : b))) {
      const name = code < 0 ? MISSING : code === SLOTS ? `${number(rest)} more` : column.names[code];
      const dot = element("i");
      dot.style.background = code < 0 || code === SLOTS ? "var(--faint)" : `var(--c${code})`;
      const key = element("button", { type: "button", className: "key", title: `Show or hide ${name}` },
        dot, element("span", { textContent: name }), element("small", { textContent: number(counts.get(code)) }));
      key.setAttribute("aria-pressed", "true");
      key.addEventListener("click", () => {
        const on = key.getAttribute("aria-pressed") !== "true";
        key.setAttribute("aria-pressed", on);
        state.off[on ? "delete" : "add"](code);
        filter();
      });
      box.append(key);
    }
    const group = (words, on) => {
      const button = element("button", { type: "button", textContent: words });
      button.addEventListener("click", () => box.querySelectorAll(".key").forEach((key) => {
        if ((key.getAttribute("aria-pressed") === "true") !== on) key.click();
      }));
      return button;
    };
    box.append(element("div", { className: "row" }, group("Show all", true), group("Hide all", false)));
  }

  // Where things are on the screen.
  const spot = (i) => (plot?.get("isPointsDrawn") ? plot.getScreenPosition(i) : undefined);
  function rings() {
    const circles = [];
    const ring = (i, radius, kind) => {
      const at = spot(i);
      if (!at) return;
      const made = document.createElementNS("http://www.w3.org/2000/svg", "circle");
      for (const [name, each] of [["cx", at[0]], ["cy", at[1]], ["r", radius], ["class", kind]]) made.setAttribute(name, each);
      circles.push(made);
    };
    if (state.here !== null) {
      for (const j of neighboursOf(state.here)) ring(j, 7, "near");
      ring(state.here, 10, "here");
    }
    if (state.cursor !== null) ring(state.cursor, 13, "cursor");
    $("rings").replaceChildren(...circles);
  }
  const neighboursOf = (i) => [...near.subarray(i * data.k, (i + 1) * data.k)].filter((j) => j >= 0);
  function tip(i) {
    const box = $("tip"), at = i === null ? undefined : spot(i);
    state.tip = i;
    box.hidden = !at;
    if (!at) return;
    const words = [element("b", { textContent: data.names[i] })];
    if (kindOf()) words.push(element("span", { textContent: value(kindOf(), i) || MISSING }));
    box.replaceChildren(...(data.sheets ? [picture(i, 112)] : []), ...words);
    const width = box.offsetWidth, height = box.offsetHeight, { clientWidth, clientHeight } = $("stage");
    box.style.left = `${at[0] + 16 + width < clientWidth ? at[0] + 16 : Math.max(0, at[0] - 16 - width)}px`;
    box.style.top = `${Math.max(0, Math.min(at[1] - height / 2, clientHeight - height))}px`;
  }

  // One example with its neighbours, the selection, and the search.
  function tile(i, words, act) {
    const button = element("button", { type: "button", title: spoken(i) }, ...(data.sheets ? [picture(i, 64)] : []),
      element("span", { textContent: words }));
    button.setAttribute("aria-label", `${spoken(i)}${words === data.names[i] ? "" : `, ${words}`}`);
    button.addEventListener("click", () => act(i));
    for (const enter of ["pointerenter", "focus"]) button.addEventListener(enter, () => tip(i));
    for (const leave of ["pointerleave", "blur"]) button.addEventListener(leave, () => tip(null));
    return element("li", {}, button);
  }
  function show(i) {
    state.here = state.cursor = i;
    $("detail").hidden = false;
    $("h-detail").textContent = data.names[i];
    const player = sound(i);
    $("shown").replaceChildren(...(data.sheets ? [picture(i, 144)] : []));
    $("player").replaceChildren(...(player ? [player] : []));
    $("facts").replaceChildren(...columns.map((column) => element("div", {},
      element("dt", { textContent: column.name }), element("dd", { textContent: value(column, i) || MISSING }))));
    const target = link(i);
    $("open").hidden = target === null;
    if (target !== null) $("open").href = target;
    $("neighbours").replaceChildren(...neighboursOf(i).map((j, rank) =>
      tile(j, (like[i * data.k + rank] / 1e4).toFixed(2), show)));
    toggled();
    rings();
    if (innerWidth > 800) $("detail").scrollIntoView({ block: "nearest" });
    say(`${spoken(i)}. ${neighboursOf(i).length} neighbours are listed.`);
  }
  function toggled() {
    if (state.here !== null) $("toggle").textContent = state.chosen.has(state.here) ? "Take out of the selection" : "Select";
  }
  function choose(rows) {
    state.chosen = new Set(rows);
    const size = state.chosen.size;
    $("count").textContent = number(size);
    $("many").textContent = `${number(size)} selected`;
    $("export").hidden = $("many").hidden = !size;
    $("how").hidden = size > 0;
    $("chosen").replaceChildren(...[...state.chosen].slice(0, LISTED).map((i) => tile(i, data.names[i].split("/").pop(), show)));
    if (size > LISTED) $("chosen").append(element("li", { className: "note", textContent: `and ${number(size - LISTED)} more` }));
    toggled();
    mark();
    say(`${number(size)} selected`);
  }
  const flip = (i) => {
    const next = new Set(state.chosen);
    if (!next.delete(i)) next.add(i);
    choose(next);
  };

  function search() {
    const words = $("search").value.trim().toLowerCase();
    state.hits = words ? all.filter((i) => data.names[i].toLowerCase().includes(words)) : all;
    state.listed = 0;
    $("found").replaceChildren();
    $("more").textContent = "List all";
    $("more").hidden = words !== "";
    $("found-count").textContent = words ? `${number(state.hits.length)} found` : `${number(count)} examples`;
    $("choose-found").hidden = !words || !state.hits.length;
    if (words) list();
  }
  function list() {
    for (const i of state.hits.slice(state.listed, state.listed + LISTED / 2)) {
      const button = element("button", { type: "button" }, ...(data.sheets ? [picture(i, 28)] : []), element("span", { textContent: data.names[i] }));
      button.addEventListener("click", () => { show(i); into(i); });
      $("found").append(element("li", {}, button));
    }
    state.listed += LISTED / 2;
    $("more").textContent = "Show more";
    $("more").hidden = state.listed >= state.hits.length;
  }

  // The list of what is selected, as tables and lists of Twofold have it.
  function save(name, text, type) {
    const made = element("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
    made.click();
    setTimeout(() => URL.revokeObjectURL(made.href), 1000);
  }
  const cell = (text) => (/[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  function table() {
    const label = $("label").value.trim(), own = columns.find((column) => column.name === data.label);
    const rows = [...state.chosen].sort((a, b) => a - b).map((i) => [data.names[i], label || (own ? value(own, i) : "")]);
    return [["path", "label"], ...rows].map((row) => row.map(cell).join(",")).join("\n") + "\n";
  }
  const names = () => [...state.chosen].sort((a, b) => a - b).map((i) => `${data.names[i]}\n`).join("");

  // The map: its library draws, moves, zooms by wheel and selects by lasso; keys, fingers and buttons are added here.
  function whole() {
    const { clientWidth, clientHeight } = $("stage");
    return plot?.zoomToLocation([0, 0], Math.max(1, clientHeight / Math.max(1, clientWidth)), { transition: false });
  }
  const zoom = (factor) => {
    if (!plot) return;
    plot.zoomToLocation(plot.get("cameraTarget"), plot.get("cameraDistance") * factor, { transition: false });
  };
  function into(i) {
    const at = spot(i), { clientWidth: width, clientHeight: height } = $("stage");
    if (at && (at[0] < 0 || at[1] < 0 || at[0] > width || at[1] > height)) {
      plot.zoomToLocation([xs[i], ys[i]], plot.get("cameraDistance"), { transition: false });
    }
  }
  function mode(lasso) {
    $("lasso").setAttribute("aria-pressed", lasso);
    $("move").setAttribute("aria-pressed", !lasso);
    plot?.set({ mouseMode: lasso ? "lasso" : "panZoom" });
  }
  function beside(from, right, up) {
    let best = null, least = Infinity;
    for (let i = 0; i < count; i++) {
      if (i === from || !visible(i)) continue;
      const dx = xs[i] - xs[from], dy = ys[i] - ys[from], along = dx * right + dy * up, aside = Math.abs(dx * up - dy * right);
      if (along < aside || (along === 0 && !(i > from && right + up > 0))) continue;
      const far = along * along + 4 * aside * aside;
      if (far < least) [best, least] = [i, far];
    }
    return best;
  }
  const STEP = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
  function press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { key } = event;
    if (STEP[key]) {
      const first = all.find(visible) ?? null;
      const next = state.cursor === null || !visible(state.cursor) ? first : beside(state.cursor, ...STEP[key]);
      if (next !== null) {
        state.cursor = next;
        into(next);
        tip(next);
        rings();
        say(spoken(next) + (state.chosen.has(next) ? ", selected" : ""));
      } else say("No further example in this direction");
    } else if (key === "Enter" && state.cursor !== null) show(state.cursor);
    else if (key === " " && state.cursor !== null) flip(state.cursor);
    else if (key === "+" || key === "=") zoom(1 / 1.5);
    else if (key === "-") zoom(1.5);
    else if (key === "0") whole();
    else if (key === "Escape") tip(null);
    else return;
    event.preventDefault();
  }
  // Fingers: one drags as the mouse does, two zoom as its wheel does.
  function fingers(canvas) {
    const held = new Map();
    let gap = 0;
    const pass = (type, target, event, buttons) => target.dispatchEvent(new MouseEvent(type, {
      bubbles: true, cancelable: true, clientX: event.clientX, clientY: event.clientY, buttons, view: window,
    }));
    const apart = () => { const [a, b] = [...held.values()]; return Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY); };
    canvas.addEventListener("pointerdown", (event) => {
      if (event.pointerType !== "touch") return;
      held.set(event.pointerId, event);
      pass("mousemove", canvas, event, 0);
      // The camera pans by how far the pointer has come since the last frame: it is to see the finger there first.
      if (held.size === 1) requestAnimationFrame(() => requestAnimationFrame(() => {
        if (held.has(event.pointerId) && held.size === 1) pass("mousedown", canvas, event, 1);
      }));
      else if (held.size === 2) { pass("mouseup", window, event, 0); gap = apart(); }
    });
    addEventListener("pointermove", (event) => {
      if (!held.has(event.pointerId)) return;
      held.set(event.pointerId, event);
      if (held.size === 1) pass("mousemove", canvas, event, 1);
      else if (held.size === 2 && gap) { zoom(gap / apart()); gap = apart(); }
    });
    for (const end of ["pointerup", "pointercancel"]) addEventListener(end, (event) => {
      if (held.delete(event.pointerId) && !held.size) { gap = 0; pass("mouseup", window, event, 0); }
    });
  }
  function begin() {
    const size = count < 500 ? 10 : count < 5000 ? 7 : count < 20000 ? 5 : 3;
    try {
      plot = createScatterplot({
        canvas: $("canvas"), pointSize: size, opacity: count < 20000 ? 0.85 : 0.6, opacityInactiveMax: 0.35, syncEvents: true,
        deselectOnDblClick: false, deselectOnEscape: false, spatialIndexUseWorker: false, pointSizeSelected: 1, pointScaleMode: "asinh",
      });
    } catch (error) {
      $("broken").textContent = `This browser cannot draw the map, for which it needs WebGL (${error.message}). Search, neighbours, selection and lists work without it.`;
      $("broken").hidden = false;
      for (const id of ["move", "lasso", "in", "out", "whole", "view"]) $(id).disabled = true;
      return;
    }
    const merge = /Mac/.test(navigator.platform) ? "cmd" : "ctrl";
    plot.set({ actionKeyMap: { lasso: "shift", merge, remove: "alt" } });  // and none that turns the map
    plot.subscribe("pointover", tip);
    plot.subscribe("pointout", () => tip(null));
    plot.subscribe("lassoStart", () => { lassoing = true; });
    plot.subscribe("lassoEnd", () => { lassoing = false; });
    plot.subscribe("select", ({ points }) => {
      if (lassoing) {
        choose(points);
        if (innerWidth > 800) $("h-chosen").scrollIntoView({ block: "nearest" });
        return undefined;
      }
      const fresh = points.find((i) => !state.chosen.has(i)) ?? points[0];
      mark();
      return show(fresh);
    });
    plot.subscribe("deselect", () => (lassoing ? choose([]) : mark()));
    plot.subscribe("view", () => tip(null));
    plot.subscribe("draw", () => { rings(); if (state.tip !== null) tip(state.tip); });
    fingers($("canvas"));
    new ResizeObserver(() => rings()).observe($("stage"));
  }

  const THEMES = ["auto", "light", "dark"];
  function theme() {
    const root = document.documentElement, next = THEMES[(THEMES.indexOf(root.dataset.theme ?? "auto") + 1) % 3];
    if (next === "auto") delete root.dataset.theme; else root.dataset.theme = next;
    $("theme").textContent = `Theme: ${next}`;
    repaint();
  }
  function repaint() {
    const off = new Set(state.off);
    if (kindOf()?.kind === "number") legend();
    state.off = off;
    return paint();
  }
  function wire() {
    const on = (id, act, type = "click") => $(id).addEventListener(type, act);
    on("theme", theme);
    on("colour", () => { state.column = $("colour").value === "" ? null : +$("colour").value; legend(); paint(); }, "change");
    on("search", search, "input");
    on("more", list);
    on("choose-found", () => { choose(state.hits); plot?.zoomToPoints(state.hits, { padding: 0.3 }); });
    on("move", () => mode(false));
    on("lasso", () => mode(true));
    on("in", () => zoom(1 / 1.5));
    on("out", () => zoom(1.5));
    on("whole", whole);
    on("view", () => choose(plot.get("pointsInView").filter(visible)));
    on("toggle", () => flip(state.here));
    on("with", () => choose([...state.chosen, state.here, ...neighboursOf(state.here)]));
    on("clear", () => choose([]));
    on("csv", () => save("selected.csv", table(), "text/csv"));
    on("txt", () => save("selected.txt", names(), "text/plain"));
    on("copy", () => navigator.clipboard.writeText(names()).then(() => say("Copied"), () => say("The browser refuses to copy")));
    on("stage", press, "keydown");
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
  }

  $("colour").append(element("option", { value: "", textContent: "one" }),
    ...columns.map((column, place) => element("option", { value: place, textContent: column.name })));
  if (columns.length) $("colour").value = state.column = 0;
  $("where").textContent = data.where;
  $("stage").setAttribute("aria-label", `Map of ${number(count)} examples`);
  begin();
  wire();
  legend();
  search();
  paint().then(whole).then(() => { document.documentElement.dataset.ready = "true"; });
})();
