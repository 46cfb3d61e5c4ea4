(() => {
  "use strict";
  const svgns = "http://www.w3.org/2000/svg";

  // Put `tip` beside the point (x, y) of `box`, on whichever side has room.
  function place(tip, box, x, y) {
    tip.hidden = false;
    const gap = 14, width = tip.offsetWidth, height = tip.offsetHeight;
    const left = x + gap + width <= box.clientWidth ? x + gap : x - gap - width;
    const top = y - height / 2;
    tip.style.left = `${Math.max(4 - box.offsetLeft, Math.min(left, box.clientWidth - width))}px`;
    tip.style.top = `${Math.max(0, Math.min(top, box.clientHeight - height))}px`;
  }

  // Curves: the numbers under the pointer, or step by step with the arrow keys.
  for (const box of document.querySelectorAll("[data-hover]")) {
    const data = JSON.parse(box.dataset.hover), svg = box.querySelector("svg");
    if (!data.x || !data.x.length) continue;
    const view = svg.viewBox.baseVal;
    const cursor = svg.appendChild(document.createElementNS(svgns, "line"));
    const tip = box.appendChild(document.createElement("div"));
    cursor.setAttribute("class", "cursor");
    cursor.setAttribute("visibility", "hidden");
    tip.className = "tip";
    tip.hidden = true;
    let at = null;

    const hide = () => {
      tip.hidden = true;
      at = null;
      cursor.setAttribute("visibility", "hidden");
    };
    const show = (i) => {
      at = i;
      tip.replaceChildren(data.at[i]);
      let first = null;
      for (const s of data.series) {
        if (s.text[i] === null) continue;
        first ??= s.y[i];
        const key = document.createElement("span"), line = document.createElement("div");
        key.className = "key";
        key.style.background = `var(${s.color})`;
        line.append(key, `${s.name} ${s.text[i]}`);
        tip.append(line);
      }
      for (const end of ["x1", "x2"]) cursor.setAttribute(end, data.x[i]);
      cursor.setAttribute("y1", 8);
      cursor.setAttribute("y2", view.height - 36);
      cursor.setAttribute("visibility", "visible");
      const scale = box.clientWidth / view.width;
      place(tip, box, data.x[i] * scale, (first ?? view.height / 2) * scale);
    };
    const nearest = (x) => data.x.reduce((best, v, i) => (Math.abs(v - x) < Math.abs(data.x[best] - x) ? i : best), 0);

    const follow = (event) => {
      const frame = svg.getBoundingClientRect();
      show(nearest(((event.clientX - frame.left) / frame.width) * view.width));
    };
    box.addEventListener("pointermove", follow);
    box.addEventListener("pointerdown", follow);
    box.addEventListener("pointerleave", hide);
    box.addEventListener("blur", hide);
    box.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (event.key === "Escape") hide();
      if (!step) return;
      event.preventDefault();
      const next = at === null ? (step > 0 ? 0 : data.x.length - 1) : at + step;
      show(Math.max(0, Math.min(data.x.length - 1, next)));
    });
  }

  // Map: the image under the pointer, and classes that can be shown, hidden and picked out.
  const map = document.querySelector(".map");
  if (!map) return;
  const stage = map.querySelector(".stage"), svg = map.querySelector(".points");
  const tip = stage.querySelector(".tip"), picture = tip.querySelector(".picture"), words = tip.querySelector("span");
  const marks = [...svg.querySelectorAll("use")];
  const points = marks.map((mark) => ({ mark, x: +mark.getAttribute("x"), y: +mark.getAttribute("y"), label: mark.dataset.l }));
  const toggles = [...map.querySelectorAll("[aria-pressed]")];
  const names = new Map(toggles.map((b) => [b.dataset.l, b.querySelector(".name").textContent]));
  const hidden = new Set();
  let here = null;

  function leave() {
    if (here !== null) marks[here].classList.remove("here");
    here = null;
    tip.hidden = true;
  }
  function meet(event) {
    const inside = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    const reach = (event.pointerType === "touch" ? 24 : 14) / svg.getScreenCTM().a;
    let best = null, least = reach * reach;
    points.forEach((p, i) => {
      const far = (p.x - inside.x) ** 2 + (p.y - inside.y) ** 2;
      if (far < least && !hidden.has(p.label)) [best, least] = [i, far];
    });
    if (best === here) return;
    leave();
    if (best !== null) show(best);
  }
  function show(i) {
    here = i;
    const mark = marks[i], { columns, rows } = map.dataset;
    mark.classList.add("here");
    if (columns) {
      const side = 112;
      picture.style.backgroundSize = `${columns * side}px ${rows * side}px`;
      picture.style.backgroundPosition = `${-(i % columns) * side}px ${-Math.floor(i / columns) * side}px`;
    }
    words.textContent = names.get(points[i].label) ?? "";
    const frame = stage.getBoundingClientRect(), spot = mark.getBoundingClientRect();
    if (columns || words.textContent) {
      place(tip, stage, spot.left + spot.width / 2 - frame.left, spot.top + spot.height / 2 - frame.top);
    }
  }
  svg.addEventListener("pointermove", meet);
  svg.addEventListener("pointerdown", meet);
  svg.addEventListener("pointerleave", (event) => event.pointerType === "touch" || leave());
  document.addEventListener("pointerdown", (event) => svg.contains(event.target) || leave());

  function set(button, on) {
    button.setAttribute("aria-pressed", on);
    hidden[on ? "delete" : "add"](button.dataset.l);
    for (const p of points) if (p.label === button.dataset.l) p.mark.classList.toggle("off", !on);
    leave();
  }
  function light(label) {
    svg.classList.toggle("dim", label !== null && !hidden.has(label));
    for (const p of points) p.mark.classList.toggle("lit", p.label === label);
  }
  for (const button of toggles) {
    button.addEventListener("click", () => {
      set(button, button.getAttribute("aria-pressed") !== "true");
      light(button.dataset.l);
    });
    for (const enter of ["pointerenter", "focus"]) button.addEventListener(enter, () => light(button.dataset.l));
    for (const exit of ["pointerleave", "blur"]) button.addEventListener(exit, () => light(null));
  }
  for (const button of map.querySelectorAll("[data-all]")) {
    button.addEventListener("click", () => toggles.forEach((b) => set(b, button.dataset.all === "true")));
  }
})();
