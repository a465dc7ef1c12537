// Draws a report from the JSON beside it. Names come from a user's model: they become text, never markup.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { run, timeline: line, first = 0 } = data;
  const rank = ["error", "warning", "info"];
  const findings = (data.findings ?? []).sort((a, b) => rank.indexOf(a.severity) - rank.indexOf(b.severity));
  const groups = (line?.groups ?? Object.keys(run.groups)).filter((name) => name in run.groups).map((name) => [name, run.groups[name]]);
  const counts = []; // of updates, planned and done, by the index of a group
  const $ = (id) => document.getElementById(id);
  const number = new Intl.NumberFormat("en");
  const clamp = (value, low, high) => Math.max(low, Math.min(high, value));
  const percent = (part) => (part > 0 && part < 0.005 ? "<1%" : part < 1 && part > 0.995 ? ">99%" : `${Math.round(100 * part)}%`);

  // --- words and numbers --------------------------------------------------------------------------------------------

  const NONE = "–";
  const counted = (count, what) => `${number.format(count)} ${what}${count === 1 ? "" : "s"}`;
  const sum = (values) => values.reduce((a, b) => a + b, 0);

  function bytes(count) {
    let power = 0;
    for (; Math.round(count) >= 1024 && power < 5; power++) count /= 1024;
    return `${count < 999.5 ? Number(count.toPrecision(3)) : Math.round(count)} ${["B", "KiB", "MiB", "GiB", "TiB", "PiB"][power]}`;
  }

  /** Groups in few words: members of a family as ranges. */
  function folded(names) {
    const families = new Map();
    for (const name of names) {
      const [family, ...rest] = name.split("/");
      if (!families.has(family)) families.set(family, []);
      families.get(family).push(rest.join("/"));
    }
    return [...families].map(([family, members]) => (members.length === 1 && members[0] === "" ? family : `${family}/${ranges(members)}`)).join(", ");
  }

  function ranges(members) {
    if (!members.every((each) => /^\d+$/.test(each))) return members.join(",");
    const found = [];
    for (const each of members.map(Number).sort((a, b) => a - b)) {
      if (found.length && found.at(-1)[1] === each - 1) found.at(-1)[1] = each;
      else found.push([each, each]);
    }
    return found.map(([first, last]) => (first === last ? first : `${first}–${last}`)).join(",");
  }

  /** The message of a finding in three: what was found, why, and the fix. */
  function parts({ audit, message }) {
    const colon = message.indexOf(": ");
    if ((audit === "frozen" || audit === "buffers") && colon > 0) {
      const [why, ...fix] = message.slice(colon + 2).split(". ");
      return { head: message.slice(0, colon), why, fix: fix.join(". ") };
    }
    const [head, ...rest] = message.split(". ");
    return { head: head.replace(/\.$/, ""), why: rest.slice(0, -1).join(". "), fix: rest.slice(-1).join("") };
  }

  const sentence = (text) => text && `${text[0].toUpperCase()}${text.slice(1)}${/[.?!]$/.test(text) ? "" : "."}`;

  /** Findings in lists of those that differ in nothing but the parameter, the module or the time. */
  function alike(findings) {
    const found = new Map();
    for (const each of findings) {
      const key = JSON.stringify([each.severity, each.audit, each.kind, each.cause, each.group, each.module_class, each.argument]);
      if (!found.has(key)) found.set(key, []);
      found.get(key).push(each);
    }
    return [...found.values()];
  }

  // --- elements -----------------------------------------------------------------------------------------------------

  function element(tag, properties = {}, ...children) {
    const made = document.createElement(tag);
    for (const [key, value] of Object.entries(properties)) {
      if (key in made) made[key] = value;
      else made.setAttribute(key, value);
    }
    made.append(...children);
    return made;
  }

  function svg(tag, attributes = {}, ...children) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  function pairs(list, className) {
    const made = element("dl", { className });
    for (const [name, value] of list) made.append(element("div", {}, element("dt", {}, name), element("dd", {}, value)));
    return made;
  }

  function bar(done, planned) {
    const made = element("div", { className: "bar" });
    for (const [className, share] of [["planned", planned], ["done", done]]) {
      if (!share) continue;
      const part = element("i", { className });
      part.style.width = `${100 * share}%`;
      made.append(part);
    }
    return made;
  }

  function cell(value, column) {
    const made = element(column.head ? "th" : "td", { className: column.kind ?? "" });
    if (column.head) made.scope = "row";
    if (Array.isArray(value)) made.append(bar(...value));
    else if (value !== null && typeof value === "object") made.append(element("span", { className: "off" }, value.off));
    else made.append(String(value));
    return made;
  }

  function table({ columns, rows }, label) {
    const head = columns.map((column) => element("th", { scope: "col", className: column.kind === "number" ? "number" : "" }, column.name));
    const body = rows.map((row) => element("tr", {}, ...row.map((value, index) => cell(value, columns[index]))));
    const made = element("table", {}, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...body));
    return element("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": `${label}, the table` }, made);
  }

  function copyButton(text, source) {
    const made = element("button", { type: "button" }, "Copy");
    made.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(text);
        made.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(source); // a page without a clipboard: one more keystroke copies it
        made.textContent = "Selected";
      }
      setTimeout(() => { made.textContent = "Copy"; }, 1600);
    });
    return made;
  }

  /** Text whose parts between backticks are code. */
  function prose(text) {
    return text.split("`").map((part, index) => (index % 2 ? element("code", {}, part) : part));
  }

  function show(id, ...children) {
    const section = $(id);
    section.append(...children);
    section.hidden = false;
  }

  // --- when a group trains: the updates at which that begins and ends, in turn --------------------------------------

  function nibbles(hex, width) {
    const made = new Uint8Array(width);
    for (let index = 0; index < hex.length; index++) made[index] = parseInt(hex[hex.length - 1 - index], 16);
    return made;
  }

  function edgesOf(line, sets, which, count) {
    const edges = Array.from({ length: count }, () => []);
    let current = new Uint8Array(Math.ceil(count / 4));
    let at = 0;
    const turn = (next) => {
      for (let index = 0; index < next.length; index++) {
        let changed = next[index] ^ current[index];
        for (let group = 4 * index; changed; group++, changed >>= 1) if (changed & 1) edges[group].push(at);
      }
      current = next;
    };
    for (let index = 0; index < line.runs.length; index += 2) {
      const next = sets[line.kinds[line.runs[index]][which]];
      if (next !== current) turn(next);
      at += line.runs[index + 1];
    }
    turn(new Uint8Array(current.length));
    return edges;
  }

  /** The first index whose value is above `value`. */
  function above(sorted, value) {
    let low = 0;
    let high = sorted.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (sorted[middle] > value) high = middle;
      else low = middle + 1;
    }
    return low;
  }

  /** Adds to each column the share of its updates that lie between edges. */
  function addShares(edges, from, to, shares) {
    const columns = shares.length;
    const width = (to - from) / columns;
    for (let index = above(edges, from) & ~1; index < edges.length && edges[index] < to; index += 2) {
      const begin = (Math.max(edges[index], from) - from) / width;
      const end = (Math.min(edges[index + 1], to) - from) / width;
      const first = Math.floor(begin);
      const last = Math.min(Math.floor(end), columns - 1);
      if (first === last) {
        shares[first] += end - begin;
        continue;
      }
      shares[first] += first + 1 - begin;
      for (let column = first + 1; column < last; column++) shares[column] += 1;
      shares[last] += end - last;
    }
  }

  function sharesOf(tracks, members, from, to, columns) {
    const shares = new Float32Array(columns);
    for (const member of members) addShares(tracks[member], from, to, shares);
    if (members.length > 1) for (let column = 0; column < columns; column++) shares[column] /= members.length;
    return shares;
  }

  // --- the card -----------------------------------------------------------------------------------------------------

  function drawCard() {
    const errors = findings.filter((each) => each.severity === "error");
    const buffers = new Set(findings.filter((each) => each.audit === "buffers").map((each) => each.parameter)).size;
    const state = errors.length ? "moved" : data.intervals ? "held" : "empty";
    const mark = svg("svg", { class: "mark", viewBox: "0 0 24 24", "aria-hidden": "true", fill: "none", "stroke-width": 2.6 });
    mark.append(svg("path", { d: state === "moved" ? "M12 3 22.5 21h-21Z M12 10v5 M12 17.6v.6" : "M2.5 13 9 19.5 21.5 5" }));
    $("verdict").append(...(state === "empty" ? [] : [mark]), data.verdict[0].toUpperCase() + data.verdict.split("; ")[0].slice(1));
    $("verdict").classList.add(state);
    const detail = [...(errors.length ? [`${parts(errors[0]).head}.`] : []), ...(buffers ? [`${counted(buffers, "buffer")} of frozen modules moved.`] : [])];
    $("detail").append(...prose(detail.join(" ")));
    $("detail").hidden = !detail.length;
    $("facts").replaceWith(pairs(facts(), "facts"));
    $("small").textContent = origin();
  }

  function facts() {
    const elements = groups.map(([, size]) => size.elements);
    const skips = run.skip_backward?.skips;
    const trained = line && sum(elements.map((each, index) => each * counts[index].updated)) / line.total / sum(elements);
    return [
      ["Model", run.model],
      ["Optimizer", [...new Set((run.optimizers ?? []).map((each) => each.name))].join(", ")],
      ["Trained on average", line && `${percent(trained)} of the parameters`],
      ["Backward of what is frozen", skips === undefined ? null : skips ? "skipped" : "not skipped"],
      ["Updates", line && `${number.format(line.total)} in ${counted(line.epochs.length, "epoch")}`],
      ["Parameters", `${number.format(sum(elements))} in ${counted(groups.length, "group")}`],
    ].filter(([, value]) => value);
  }

  function origin() {
    const date = run.time && new Date(run.time);
    const day = { day: "numeric", month: "long", year: "numeric", hour: "2-digit", minute: "2-digit", hourCycle: "h23", timeZone: "UTC" };
    const when = date ? [`${date.toLocaleString("en-GB", day)} UTC`] : [];
    return [...when, ...versions().map(([name, version]) => `${name} ${version}`)].join(" · ");
  }

  function versions() {
    const found = Object.entries(run.versions ?? {}).filter(([, version]) => version);
    return found.map(([name, version]) => (name === "lightning" && version.includes(" ") ? version.split(" ") : [name.replace("_", "-").replace("python", "Python"), version]));
  }

  // --- the timeline -------------------------------------------------------------------------------------------------

  const RIBBON = 20;
  const EPOCHS = 20;
  const LEVELS = 8;
  const colors = {};
  let sets, updated, planned, starts, rows, marks;
  let beyond = false; // whether an update was made that was not planned
  const window_ = { from: 0, to: 0 };
  const size = { width: 0, left: 0, row: 22, head: 0 };
  const at = { update: -1, row: 0 };
  const charts = [];

  function readColors() {
    const style = getComputedStyle(document.documentElement);
    for (const name of ["surface", "ink", "muted", "line", "rule", "never", "accent", "faint", "bad", "tint0", "tint1", "tint2", "tint3"]) {
      colors[name] = style.getPropertyValue(`--${name}`).trim();
    }
    const parts = (color) => [1, 3, 5].map((index) => parseInt(color.slice(index, index + 2), 16));
    const [faint, accent] = [parts(colors.faint), parts(colors.accent)];
    colors.levels = Array.from({ length: LEVELS + 1 }, (_, level) => {
      const share = Math.max(0, level - 1) / (LEVELS - 1);
      return `rgb(${faint.map((value, index) => Math.round(value + share * (accent[index] - value))).join(" ")})`;
    });
    colors.sans = style.getPropertyValue("--sans");
  }

  /** A row for each family, and for each of its groups where it is unfolded. */
  function makeRows() {
    const families = new Map();
    line.groups.forEach((name, index) => {
      const family = name.includes("/") ? name.slice(0, name.indexOf("/")) : null;
      const key = family ?? `\n${name}`;
      if (!families.has(key)) families.set(key, { family, members: [] });
      families.get(key).members.push(index);
    });
    const unfolded = new Set((rows ?? []).filter((row) => row.folded === false).map((row) => row.family));
    const first = rows === undefined;
    rows = [];
    for (const { family, members } of families.values()) {
      if (family === null || members.length === 1) {
        rows.push({ label: line.groups[members[0]], members, family: null });
        continue;
      }
      const open = first ? line.groups.length <= 40 : unfolded.has(family);
      rows.push({ label: family, members, family, folded: !open });
      if (open) for (const member of members) rows.push({ label: line.groups[member], members: [member], family: null, parent: family });
    }
    $("fold").hidden = !rows.some((row) => row.family);
    $("fold").textContent = rows.some((row) => row.folded) ? "Unfold all" : "Fold all";
    at.row = clamp(at.row, 0, rows.length - 1);
  }

  function fold(family, folded) {
    for (const row of rows) if (row.family !== null && (family === null || row.family === family)) row.folded = folded;
    makeRows();
    layout();
  }

  const plot = () => size.width - size.left - 1;
  const toX = (update) => size.left + ((update - window_.from) / (window_.to - window_.from)) * plot();
  const toUpdate = (x) => window_.from + ((x - size.left) / plot()) * (window_.to - window_.from);
  const columnCount = () => Math.max(1, Math.min(Math.floor(plot()), Math.ceil((window_.to - window_.from) / line.bin)));

  function fitted(context, text, width) {
    if (context.measureText(text).width <= width) return text;
    let kept = text.length - 1;
    const cut = () => `${text.slice(0, Math.ceil(kept / 2))}…${text.slice(text.length - Math.floor(kept / 2))}`;
    while (kept > 2 && context.measureText(cut()).width > width) kept--;
    return cut();
  }

  function layout() {
    const view = $("view");
    size.width = view.clientWidth;
    size.row = rows.length > 80 ? 16 : rows.length > 10 ? 22 : 30;
    size.head = EPOCHS + (line.places.length > 1 ? RIBBON : 0) + 8;
    const context = $("canvas").getContext("2d");
    context.font = `12px ${colors.sans}`;
    const longest = Math.max(40, ...rows.map((row) => context.measureText(row.label).width + (row.family !== null ? 44 : row.parent ? 16 : 0)));
    size.left = Math.ceil(Math.min(longest + 22, size.width * 0.36, 260));
    const height = size.head + rows.length * size.row + 10;
    $("space").style.height = `${height}px`;
    draw();
  }

  function draw() {
    const view = $("view");
    const canvas = $("canvas");
    const height = Math.min(view.clientHeight, $("space").clientHeight);
    const ratio = Math.min(devicePixelRatio || 1, 3);
    canvas.style.height = `${height}px`;
    canvas.width = Math.round(size.width * ratio);
    canvas.height = Math.round(height * ratio);
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    context.fillStyle = colors.surface;
    context.fillRect(0, 0, size.width, height);
    const scrolled = view.scrollTop;
    context.save();
    context.beginPath();
    context.rect(0, size.head - 2, size.width, height);
    context.clip();
    const first = Math.max(0, Math.floor(scrolled / size.row));
    const last = Math.min(rows.length, Math.ceil((scrolled + height) / size.row));
    for (let index = first; index < last; index++) drawRow(context, rows[index], size.head + index * size.row - scrolled);
    drawEpochLines(context, height);
    context.restore();
    drawHead(context);
    drawCursor();
    for (const chart of charts) chart();
    $("reset").disabled = window_.from === 0 && window_.to === line.total;
  }

  function drawRow(context, row, top) {
    const inner = size.row - (size.row > 24 ? 12 : size.row > 18 ? 8 : 5);
    const y = top + (size.row - inner) / 2;
    const columns = columnCount();
    const width = plot() / columns;
    context.font = `${row.family !== null ? "500 " : ""}12px ${colors.sans}`;
    context.textBaseline = "middle";
    context.textAlign = "left";
    const indent = row.family !== null ? 12 : row.parent ? 12 : 0;
    context.fillStyle = colors.ink;
    const label = fitted(context, row.label, size.left - 16 - indent);
    context.fillText(label, 4 + indent, top + size.row / 2);
    if (row.family !== null) {
      const after = 4 + indent + context.measureText(label).width + 6;
      drawTriangle(context, 7, top + size.row / 2, row.folded);
      context.fillStyle = colors.muted;
      context.font = `11px ${colors.sans}`;
      if (after + 20 < size.left) context.fillText(`×${row.members.length}`, after, top + size.row / 2);
    }
    const done = sharesOf(updated, row.members, window_.from, window_.to, columns);
    const meant = planned === updated ? done : sharesOf(planned, row.members, window_.from, window_.to, columns);
    const level = (value) => (value > 1e-4 ? Math.max(1, Math.round(value * LEVELS)) : 0);
    const gap = width >= 7 ? 1.5 : 0;
    context.fillStyle = colors.never;
    context.fillRect(size.left, y, plot(), inner);
    runsOf(columns, (column) => level(done[column]), gap > 0, (begin, end, value) => {
      context.fillStyle = colors.levels[value];
      context.fillRect(size.left + begin * width, y, Math.max((end - begin) * width - gap, 1), inner);
    });
    context.strokeStyle = colors.accent;
    context.lineWidth = 1;
    runsOf(columns, (column) => Number(meant[column] > 1e-4), false, (begin, end) => {
      const x = Math.round(size.left + begin * width) + 0.5;
      context.strokeRect(x, Math.round(y) + 0.5, Math.max((end - begin) * width - 1 - gap, 1), inner - 1);
    });
    context.strokeStyle = colors.bad;
    context.lineWidth = 2;
    if (meant !== done) {
      runsOf(columns, (column) => Number(done[column] > meant[column] + 1e-3), false, (begin, end) => {
        context.strokeRect(size.left + begin * width + 1, y + 1, Math.max((end - begin) * width - 2 - gap, 1), inner - 2);
      });
    }
    drawMarks(context, row, y, inner);
  }

  /** Calls with each longest sequence of columns of one value, where it is not 0. */
  function runsOf(columns, value, apart, each) {
    let begin = 0;
    for (let column = 1; column <= columns; column++) {
      if (column < columns && !apart && value(column) === value(begin)) continue;
      if (value(begin)) each(begin, column, value(begin));
      begin = column;
    }
  }

  function drawTriangle(context, x, y, folded) {
    context.fillStyle = colors.muted;
    context.beginPath();
    if (folded) context.moveTo(x - 2, y - 4), context.lineTo(x + 3, y), context.lineTo(x - 2, y + 4);
    else context.moveTo(x - 4, y - 2), context.lineTo(x + 4, y - 2), context.lineTo(x, y + 3);
    context.fill();
  }

  function drawMarks(context, row, y, inner) {
    for (const mark of marks) {
      if (!row.members.includes(mark.group) || mark.last < window_.from || mark.first > window_.to) continue;
      const begin = clamp(toX(mark.first), size.left, size.width);
      const end = clamp(toX(mark.last), begin + 2, size.width);
      context.fillStyle = context.strokeStyle = colors.bad;
      context.lineWidth = 2;
      context.strokeRect(begin, y - 1, Math.max(2, end - begin), inner + 2);
      const [x, middle, r] = [(begin + end) / 2, y + inner / 2, 5.5];
      context.beginPath();
      context.moveTo(x, middle - r), context.lineTo(x + r, middle), context.lineTo(x, middle + r), context.lineTo(x - r, middle);
      context.fill();
      context.strokeStyle = colors.surface;
      context.lineWidth = 1.5;
      context.closePath();
      context.stroke();
    }
  }

  const visibleEpochs = () => line.epochs.filter(([, update]) => update >= window_.from && update < window_.to);

  function drawEpochLines(context, height) {
    const shown = visibleEpochs();
    if (shown.length * 6 > plot()) return;
    context.strokeStyle = colors.muted;
    context.globalAlpha = 0.55;
    context.lineWidth = 1;
    context.setLineDash([2, 3]);
    context.beginPath();
    for (const [, update] of shown) {
      const x = Math.round(toX(update)) + 0.5;
      if (update > 0) context.moveTo(x, size.head - 4), context.lineTo(x, height);
    }
    context.stroke();
    context.setLineDash([]);
    context.globalAlpha = 1;
  }

  function drawHead(context) {
    context.font = `11px ${colors.sans}`;
    context.textBaseline = "middle";
    context.textAlign = "left";
    context.fillStyle = colors.muted;
    let free = size.left;
    for (const [epoch, update] of visibleEpochs()) {
      const text = free === size.left ? `epoch ${epoch}` : String(epoch);
      const x = toX(update);
      if (x < free || x + context.measureText(text).width > size.width) continue;
      context.fillText(text, x, EPOCHS / 2 + 2);
      free = x + context.measureText(text).width + 14;
    }
    if (line.places.length > 1) drawRibbon(context);
  }

  /** The name of a phase: `phases[1].phases[0]` is phase 2.1. */
  function phaseName(place) {
    const found = place.match(/\[\d+\]/g);
    return found === null ? place : `phase ${found.map((part) => Number(part.slice(1, -1)) + 1).join(".")}`;
  }

  function drawRibbon(context) {
    context.fillStyle = colors.muted;
    context.fillText("phase", 4, EPOCHS + (RIBBON - 4) / 2 + 0.5);
    const columns = columnCount();
    const width = plot() / columns;
    const places = Array.from({ length: columns }, (_, column) => {
      const begin = Math.floor(window_.from + (column * (window_.to - window_.from)) / columns);
      const end = Math.max(begin + 1, Math.floor(window_.from + ((column + 1) * (window_.to - window_.from)) / columns));
      return (placeIn(begin, end) ?? line.places.length) + 1;
    });
    runsOf(columns, (column) => places[column], false, (begin, end, value) => {
      const [x, length] = [size.left + begin * width, (end - begin) * width];
      const mixed = value > line.places.length;
      context.fillStyle = mixed ? colors.rule : colors[`tint${(value - 1) % 4}`];
      context.fillRect(x, EPOCHS, Math.max(1, length - (length > 6 ? 1 : 0)), RIBBON - 4);
      const name = mixed ? "phases in turn" : line.places[value - 1] && phaseName(line.places[value - 1]);
      if (!name) return;
      const text = [name, name.replace("phase ", "")].find((each) => context.measureText(each).width + 10 < length);
      context.fillStyle = colors.ink;
      if (text) context.fillText(text, x + 5, EPOCHS + (RIBBON - 4) / 2 + 0.5);
    });
  }

  const runAt = (update) => above(starts, update) - 1;
  const placeOfRun = (index) => line.kinds[line.runs[2 * index]][3];

  /** The place in the schedule of some updates; undefined where they have several. */
  function placeIn(begin, end) {
    const [first_, last] = [runAt(begin), runAt(end - 1)];
    for (let index = first_ + 1; index <= last; index++) if (placeOfRun(index) !== placeOfRun(first_)) return undefined;
    return placeOfRun(first_);
  }

  // --- what is said of a place in it --------------------------------------------------------------------------------

  function binAt(update) {
    const columns = columnCount();
    const width = (window_.to - window_.from) / columns;
    const column = clamp(Math.floor((update - window_.from) / width), 0, columns - 1);
    const begin = Math.floor(window_.from + column * width);
    return [begin, Math.max(begin + 1, Math.min(line.total, Math.floor(window_.from + (column + 1) * width)))];
  }

  function describe(row, update) {
    const [begin, end] = binAt(update);
    const epoch = line.epochs[Math.max(0, above(line.epochs.map(([, first]) => first), begin) - 1)];
    const place = line.places[placeIn(begin, end)] ?? "phases in turn";
    const many = end - begin > 1;
    const span = many ? `updates ${number.format(first + begin + 1)}–${number.format(first + end)}` : `update ${number.format(first + begin + 1)}`;
    const where = [span, `epoch ${epoch[0]}`, ...(place ? [phaseName(place)] : [])];
    const kind = line.kinds[line.runs[2 * runAt(begin)]];
    if (!many && run.optimizers?.length > 1) where.push(run.optimizers[kind[0]]?.name ?? `optimizer ${kind[0]}`);
    const [done] = sharesOf(updated, row.members, begin, end, 1);
    const [meant] = sharesOf(planned, row.members, begin, end, 1);
    const off = marks.filter((mark) => row.members.includes(mark.group) && mark.first <= end && mark.last >= begin);
    return { where: where.join(", "), what: whatOf(done, meant, many || row.members.length > 1), off: off.map((mark) => mark.text) };
  }

  function whatOf(done, meant, shared) {
    if (!done && !meant) return "frozen";
    if (Math.abs(done - meant) < 1e-6) return done > 1 - 1e-6 ? "updated as planned" : `${percent(done)} updated as planned`;
    if (shared) return `${percent(done)} updated, ${percent(meant)} planned`;
    return meant ? "planned, not updated" : "updated, not planned";
  }

  function drawCursor() {
    const visible = at.update >= window_.from && at.update < window_.to;
    $("cursor").hidden = !visible;
    if (!visible) return;
    const [begin, end] = binAt(at.update);
    $("cursor").style.left = `${toX((begin + end) / 2)}px`;
    $("cursor").style.height = `${$("space").clientHeight}px`;
  }

  function point(update, row, { tip = null, announce = false } = {}) {
    Object.assign(at, { update: clamp(update, 0, line.total - 1), row: clamp(row, 0, rows.length - 1) });
    const said = describe(rows[at.row], at.update);
    const label = rows[at.row].family !== null ? `${rows[at.row].label} (${rows[at.row].members.length} groups)` : rows[at.row].label;
    if (announce) $("said").textContent = [`${label}: ${said.what}`, said.where, ...said.off].join(". ");
    drawCursor();
    for (const chart of charts) chart(true);
    $("tip").hidden = tip === null;
    if (tip === null) return;
    $("tip").replaceChildren(element("b", {}, label), element("div", {}, said.what), element("div", {}, said.where),
      ...said.off.map((text) => element("div", { className: "bad" }, text)));
    $("tip").style.left = `${clamp(tip.x + 14, 4, size.width - $("tip").offsetWidth - 4)}px`;
    $("tip").style.top = `${tip.y + 20}px`;
  }

  function leave() {
    at.update = -1;
    $("tip").hidden = true;
    drawCursor();
    for (const chart of charts) chart(true);
  }

  // --- zoom, pointer, keyboard --------------------------------------------------------------------------------------

  function look(from, to) {
    const whole = (updates) => Math.round(updates / line.bin) * line.bin; // within a bin the order of updates is not known
    const length = clamp(whole(to - from), Math.min(line.total, 8 * line.bin), line.total);
    window_.from = clamp(whole(from), 0, line.total - length);
    window_.to = window_.from + length;
    $("tip").hidden = true;
    draw();
  }

  function zoom(factor, around = (window_.from + window_.to) / 2) {
    const length = (window_.to - window_.from) * factor;
    const share = (around - window_.from) / (window_.to - window_.from);
    look(around - share * length, around + (1 - share) * length);
  }

  function listenToPointer() {
    const canvas = $("canvas");
    let begin = null;
    const place = (event) => {
      const box = canvas.getBoundingClientRect();
      return { x: event.clientX - box.left, y: event.clientY - box.top };
    };
    const rowAt = (y) => Math.floor((y - size.head + $("view").scrollTop) / size.row);
    canvas.addEventListener("pointerdown", (event) => {
      begin = { ...place(event), id: event.pointerId };
      if (begin.x >= size.left && event.button === 0) canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      const { x, y } = place(event);
      if (begin && begin.x >= size.left && Math.abs(x - begin.x) > 4) return brush(begin.x, x);
      if (x < size.left || rowAt(y) < 0 || rowAt(y) >= rows.length) return leave();
      return point(Math.floor(toUpdate(x)), rowAt(y), { tip: { x, y } });
    });
    const end = (event) => {
      const from = begin;
      begin = null;
      $("brush").hidden = true;
      const { x, y } = place(event);
      if (from === null || event.type === "pointercancel") return;
      if (from.x >= size.left && Math.abs(x - from.x) > 4) {
        const [low, high] = [from.x, x].map((each) => toUpdate(clamp(each, size.left, size.width))).sort((a, b) => a - b);
        look(Math.floor(low), Math.ceil(high));
      } else if (from.x < size.left && rows[rowAt(y)]?.family != null) {
        fold(rows[rowAt(y)].family, !rows[rowAt(y)].folded);
      }
    };
    canvas.addEventListener("pointerup", end);
    canvas.addEventListener("pointercancel", end);
    canvas.addEventListener("pointerleave", () => { if (begin === null && document.activeElement !== canvas) leave(); else $("tip").hidden = true; });
    canvas.addEventListener("dblclick", () => look(0, line.total));
    canvas.addEventListener("wheel", (event) => {
      const sideways = Math.abs(event.deltaX) > Math.abs(event.deltaY) || event.shiftKey;
      if (!sideways && !event.ctrlKey && !event.metaKey) return; // the page scrolls
      event.preventDefault();
      if (event.ctrlKey || event.metaKey) zoom(Math.exp(clamp(event.deltaY, -120, 120) / 240), toUpdate(clamp(place(event).x, size.left, size.width)));
      else pan(((event.deltaX || event.deltaY) / plot()) * (window_.to - window_.from));
    }, { passive: false });
  }

  function pan(by) {
    const length = window_.to - window_.from;
    const from = clamp(window_.from + (by > 0 ? Math.ceil(by) : Math.floor(by)), 0, line.total - length);
    look(from, from + length);
  }

  function brush(a, b) {
    const [low, high] = [a, b].map((x) => clamp(x, size.left, size.width)).sort((x, y) => x - y);
    Object.assign($("brush").style, { left: `${low}px`, width: `${high - low}px`, height: `${$("space").clientHeight}px` });
    $("brush").hidden = false;
    $("tip").hidden = true;
  }

  function listenToKeys() {
    const step = () => Math.max(1, Math.round((window_.to - window_.from) / columnCount()));
    const move = (updates, byRows = 0) => {
      const start = at.update < 0 ? window_.from : at.update + updates;
      const update = clamp(start, 0, line.total - 1);
      if (update < window_.from) pan(update - window_.from);
      if (update >= window_.to) pan(update + 1 - window_.to);
      point(update, at.row + byRows, { announce: true });
      const [top, view] = [at.row * size.row, $("view")];
      if (top < view.scrollTop) view.scrollTop = top;
      else if (size.head + top + size.row > view.scrollTop + view.clientHeight) view.scrollTop = size.head + top + size.row - view.clientHeight;
      const x = toX(update + 0.5);
      point(at.update, at.row, { tip: { x, y: size.head + top + size.row / 2 - view.scrollTop } });
    };
    const center = () => (at.update < 0 ? undefined : at.update);
    const keys = {
      ArrowLeft: (event) => move(-step() * (event.shiftKey ? 10 : 1)),
      ArrowRight: (event) => move(step() * (event.shiftKey ? 10 : 1)),
      ArrowUp: () => move(0, -1),
      ArrowDown: () => move(0, 1),
      Home: () => move(-line.total),
      End: () => move(line.total),
      "+": () => zoom(0.5, center()),
      "=": () => zoom(0.5, center()),
      "-": () => zoom(2, center()),
      0: () => look(0, line.total),
      Escape: leave,
      Enter: () => {
        const family = rows[at.row].family ?? rows[at.row].parent;
        if (family == null) return;
        const row = rows.find((each) => each.family === family);
        fold(family, !row.folded);
        at.row = rows.findIndex((each) => each.family === family);
        $("said").textContent = `${family}: ${rows[at.row].folded ? "folded" : "unfolded"}, ${rows[at.row].members.length} groups`;
      },
    };
    $("canvas").addEventListener("keydown", (event) => {
      if (!(event.key in keys) || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      keys[event.key](event);
      if ("+=-0".includes(event.key)) {
        const [from, to] = [window_.from, window_.to].map((update) => number.format(update));
        $("said").textContent = `Showing updates ${from} to ${to} of ${number.format(line.total)}.`;
      }
    });
  }

  function drawLegend() {
    const item = (text, ...shapes) => element("li", {}, svg("svg", { viewBox: "0 0 22 12", "aria-hidden": "true" }, ...shapes), text);
    const box = (attributes) => svg("rect", { x: 0.5, y: 0.5, width: 21, height: 11, stroke: "var(--accent)", fill: "none", ...attributes });
    const binned = line.total > plot();
    $("legend").append(
      item("updated", box({ fill: "var(--accent)" })),
      ...(binned || rows.some((row) => row.family !== null) ? [item("part of the updates or groups", box({ fill: "var(--faint)" }))] : []),
      item("planned", box({})),
      ...(!beyond ? [] : [item("updated, not planned", box({ fill: "var(--accent)", stroke: "var(--bad)", "stroke-width": 2.5 }))]),
      item("frozen", box({ fill: "var(--never)", stroke: "none" })),
      ...(marks.length ? [item("violation", svg("path", { d: "M11 0 17 6 11 12 5 6Z", fill: "var(--bad)" }))] : []),
    );
  }

  function readTimeline() {
    const width = Math.ceil(line.groups.length / 4);
    sets = line.sets.map((hex) => nibbles(hex, width));
    updated = edgesOf(line, sets, 1, line.groups.length);
    planned = line.kinds.some((kind) => kind[1] !== kind[2]) ? edgesOf(line, sets, 2, line.groups.length) : updated;
    beyond = line.kinds.some(([, done, meant]) => sets[done].some((bits, index) => bits & ~sets[meant][index]));
    starts = new Float64Array(line.runs.length / 2);
    for (let index = 1; index < starts.length; index++) starts[index] = starts[index - 1] + line.runs[2 * index - 1];
    const length = (edges) => edges.reduce((made, edge, index) => made + (index % 2 ? edge : -edge), 0);
    line.groups.forEach((_, index) => counts.push({ updated: length(updated[index]), planned: length(planned[index]) }));
    marks = findings.filter((each) => each.severity === "error" && line.groups.includes(each.group) && each.first_update !== undefined)
      .map((each) => ({ group: line.groups.indexOf(each.group), first: each.first_update - first, last: each.last_update - first, text: parts(each).head }));
    window_.to = line.total;
  }

  function drawTimeline() {
    show("timeline");
    makeRows();
    layout();
    drawLegend();
    for (const { name, points } of overUpdates(Object.entries(data.metrics ?? {}))) charts.push(metricChart(name, points));
    for (const chart of charts) chart();
    listenToPointer();
    listenToKeys();
    $("in").addEventListener("click", () => zoom(0.5));
    $("out").addEventListener("click", () => zoom(2));
    $("reset").addEventListener("click", () => look(0, line.total));
    $("fold").addEventListener("click", () => fold(null, !rows.some((row) => row.folded)));
    $("view").addEventListener("scroll", draw);
  }

  // --- lines over the updates ---------------------------------------------------------------------------------------

  function short(value) {
    if (value === 0) return "0";
    const large = Math.abs(value);
    return large < 1e-3 || large >= 1e5 ? value.toExponential(2).replace(/\.?0*e\+?/, "e") : String(Number(value.toPrecision(3)));
  }

  /** Round values from `low` to `high`, some four of them; powers of ten where `log`. */
  function ticks(low, high, log) {
    if (log) {
      const [a, b] = [Math.ceil(Math.log10(low) - 1e-9), Math.floor(Math.log10(high) + 1e-9)];
      const every = Math.max(1, Math.ceil((b - a + 1) / 4));
      return Array.from({ length: Math.max(0, Math.floor((b - a) / every) + 1) }, (_, index) => 10 ** (a + index * every));
    }
    const raw = (high - low) / 4 || 1;
    const power = 10 ** Math.floor(Math.log10(raw));
    const every = [1, 2, 2.5, 5, 10].map((each) => each * power).find((each) => each >= raw);
    const first = Math.ceil(low / every - 1e-9);
    const count = Math.floor(high / every + 1e-9) - first + 1;
    return Array.from({ length: count }, (_, index) => (first + index) * every);
  }

  /** Draws lines of [update, value] into an empty SVG, between its left edge and its right. */
  function drawLines(canvas, series, { from, to, left, width, height, log, steps }) {
    const values = series.flatMap((each) => each.points.map((each_) => each_[1]).filter((value) => value !== null));
    let [low, high] = [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))];
    if (log) [low, high] = [low / 1.3, high * 1.3];
    else if (low === high) [low, high] = [low - Math.abs(low || 1) * 0.1, high + Math.abs(high || 1) * 0.1];
    const scale = log ? Math.log : (value) => value;
    const y = (value) => 8 + (1 - (scale(value) - scale(low)) / (scale(high) - scale(low))) * (height - 16);
    const x = (update) => left + ((update - from) / (to - from)) * (width - left - 1);
    const clip = `clip-${drawLines.count++}`;
    canvas.replaceChildren(svg("clipPath", { id: clip }, svg("rect", { x: left, y: 0, width: Math.max(0, width - left), height })));
    canvas.setAttribute("viewBox", `0 0 ${width} ${height}`);
    canvas.setAttribute("height", height);
    for (const tick of ticks(low, high, log)) {
      canvas.append(svg("line", { class: "axis", x1: left, x2: width, y1: y(tick), y2: y(tick) }));
      canvas.append(svg("text", { x: left - 8, y: y(tick) + 4, "text-anchor": "end" }, short(tick)));
    }
    const epochs = line.epochs.filter(([, update]) => update > from && update < to);
    if (epochs.length * 6 < width) for (const [, update] of epochs) canvas.append(svg("line", { class: "epoch", x1: x(update), x2: x(update), y1: 0, y2: height }));
    for (const { points, style } of series) {
      const first = Math.max(0, above(points.map((each) => each[0]), from) - 1);
      const last = Math.min(points.length, above(points.map((each) => each[0]), to) + 1);
      const shown = points.slice(first, last);
      const path = svg("path", { class: "series", d: steps ? stepsOf(points, x, y, to) : lineOf(shown, x, y), "clip-path": `url(#${clip})` });
      Object.assign(path.style, style);
      canvas.append(path);
      if (!steps && shown.length < 40) for (const [update, value] of shown) if (update >= from && update <= to) canvas.append(svg("circle", { class: "dot", cx: x(update), cy: y(value), r: 2.2 }));
    }
    return x;
  }
  drawLines.count = 0;

  const lineOf = (points, x, y) => points.map(([update, value], index) => `${index ? "L" : "M"}${x(update).toFixed(1)} ${y(value).toFixed(1)}`).join("");

  /** Each value holds until the next point; none where it is null. */
  function stepsOf(points, x, y, to) {
    const drawn = points.map(([update, value], index) => {
      if (value === null) return "";
      const joined = index && points[index - 1][1] !== null;
      return `${joined ? "V" : `M${x(update).toFixed(1)} `}${y(value).toFixed(1)}H${x(points[index + 1]?.[0] ?? to).toFixed(1)}`;
    });
    return drawn.join("");
  }

  /** The points of metrics over the updates: their logger counts batches, in which several optimizers may have stepped. */
  function overUpdates(metrics) {
    const begins = new Map(line.epochs);
    const ends = new Map();
    const read = ([name, points]) => [name, points.filter((each) => each[1] !== "").map((each) => each.map(Number)).filter((each) => each.every(Number.isFinite))];
    const shown = metrics.map(read).filter(([, points]) => points.length)
      .sort(([a], [b]) => Number(b.includes("loss")) - Number(a.includes("loss"))).slice(0, 8);
    for (const [, points] of shown) for (const [epoch, step] of points) ends.set(epoch, Math.max(ends.get(epoch) ?? 0, step));
    const update = (epoch, step) => {
      if ((run.optimizers?.length ?? 1) < 2 || !begins.has(epoch)) return step + 1 - first;
      const before = ends.get(epoch - 1) ?? -1;
      const updates = (begins.get(epoch + 1) ?? line.total) - begins.get(epoch);
      return begins.get(epoch) + (updates * (step - before)) / Math.max(1, ends.get(epoch) - before);
    };
    return shown.map(([name, points]) => ({ name, points: points.map(([epoch, step, value]) => [update(epoch, step), value]) }));
  }

  function metricChart(name, points) {
    const canvas = svg("svg", { role: "img", "aria-label": `${name} over the updates` });
    const value = element("span", {});
    $("metrics").append(element("div", { className: "chart" }, element("h3", {}, name, value), canvas));
    const updates = points.map((each) => each[0]);
    const hair = svg("line", { class: "hair", y1: 0, y2: 78 });
    let x = null;
    return (cursorOnly = false) => {
      if (!cursorOnly || x === null) x = drawLines(canvas, [{ points }], { ...window_, left: size.left, width: size.width, height: 78 });
      const index = at.update < 0 ? points.length - 1 : Math.max(0, above(updates, at.update + 1) - 1);
      value.textContent = at.update < 0 ? `last ${short(points[index][1])}` : `${short(points[index][1])} at update ${number.format(first + points[index][0])}`;
      hair.remove();
      if (at.update < window_.from || at.update >= window_.to) return;
      const [begin, end] = binAt(at.update);
      hair.setAttribute("x1", x((begin + end) / 2));
      hair.setAttribute("x2", x((begin + end) / 2));
      canvas.append(hair);
    };
  }

  const STYLES = ["none", "6 3", "2 2"].flatMap((dash) => ["accent", "bad", "warn", "muted"].map((color) => [color, dash]));

  /** The learning rate of each epoch in which a group trained, null in the others; groups alike as one. */
  function rateSeries() {
    const numbers = new Map(line.groups.map((group, index) => [group, index]));
    const points = new Map(line.groups.map((group) => [group, []]));
    let begin = 0;
    for (const [total, rates] of data.rates) {
      const end = total - first;
      for (const [group, rate] of Object.entries(rates)) {
        if (!points.has(group)) continue;
        const [done] = sharesOf(updated, [numbers.get(group)], begin, Math.max(end, begin + 1), 1);
        points.get(group).push([begin, done ? rate : null]);
      }
      begin = end;
    }
    const same = new Map();
    for (const [group, each] of points) {
      if (each.every(([, rate]) => rate === null)) continue;
      const key = JSON.stringify(each);
      if (!same.has(key)) same.set(key, { names: [], points: each });
      same.get(key).names.push(group);
    }
    return [...same.values()].map(({ names, points: each }) => ({ name: folded(names), points: each }));
  }

  function drawRates() {
    const found = rateSeries();
    const canvas = svg("svg", { role: "img", "aria-label": "Learning rate of the groups over the updates" });
    const keys = element("ul", { className: "keys" });
    const series = found.slice(0, STYLES.length).map((each, index) => {
      const [color, dash] = STYLES[index];
      const style = { stroke: `var(--${color})`, strokeDasharray: dash };
      const path = svg("path", { class: "series", d: "M0 5H26" });
      Object.assign(path.style, style);
      keys.append(element("li", {}, svg("svg", { viewBox: "0 0 26 10", "aria-hidden": "true" }, path), each.name));
      return { points: each.points, style };
    });
    const more = found.length > series.length ? ` ${counted(found.length - series.length, "more rate")} not shown.` : "";
    const note = `Of what trained, as it was at the end of each epoch, with the factor of its phase.${more}`;
    if (!series.length) return () => {};
    show("rates", element("div", { className: "chart" }, canvas), keys, element("p", { className: "note" }, note));
    const all = series.flatMap((each) => each.points.map((each_) => each_[1]).filter((value) => value !== null));
    const least = all.reduce((a, b) => Math.min(a, b));
    const log = least > 0 && all.reduce((a, b) => Math.max(a, b)) / least > 15;
    return () => drawLines(canvas, series, { from: 0, to: line.total, left: 52, width: $("rates").clientWidth, height: 190, log, steps: true });
  }

  // --- the rest -----------------------------------------------------------------------------------------------------

  /** A table with a head column; of the other columns some are numbers. */
  function tableOf(label, columns, rows) {
    return table({ columns: columns.map(([name, kind], index) => ({ name, kind: index ? kind : kind ?? "name", head: !index })), rows }, label);
  }

  function drawGroups() {
    const found = (group, severity) => findings.filter((each) => each.group === group && each.severity === severity).length;
    const off = (text, wrong) => (wrong ? { off: text } : text);
    const total = line?.total ?? 0;
    const columns = [["group"], ["elements", "number"], ["planned", "number"], ["updated", "number"], ["share", "number"], ["of all updates"], ["violations", "number"], ["warnings", "number"]];
    const rows_ = groups.map(([name, size], index) => {
      const { planned: meant, updated: done } = counts[index] ?? { planned: 0, updated: 0 };
      const bad = found(name, "error");
      return [
        name, number.format(size.elements), number.format(meant), off(number.format(done), meant !== done),
        total ? percent(done / total) : NONE, [done / (total || 1), meant / (total || 1)], off(bad, bad), found(name, "warning"),
      ];
    });
    show("groups", tableOf("Updates by group", columns, rows_));
  }

  function drawFindings() {
    const chosen = findings.filter((each) => each.severity !== "info" || (each.audit !== "buffers" && each.audit !== "inputs"));
    if (chosen.length) show("findings", ...alike(chosen).map(drawFinding));
  }

  function drawFinding([finding, ...others]) {
    const { head, why, fix } = parts(finding);
    const span = finding.first_update === finding.last_update ? finding.last_update : `${finding.first_update}–${finding.last_update}`;
    const where = [
      `${finding.audit}: ${finding.cause ?? finding.kind}`,
      finding.group !== undefined && `group ${finding.group}`,
      finding.epoch !== undefined && `epoch ${finding.epoch}`,
      finding.first_update !== undefined && `between updates ${span}`,
      finding.ranks !== undefined && `ranks ${finding.ranks.join(", ")}`,
    ].filter(Boolean);
    const message = element("dl", {});
    for (const [name, text] of [["Cause", why], ["Fix", fix]]) {
      if (text) message.append(element("dt", {}, name), element("dd", {}, ...prose(sentence(text))));
    }
    const made = element("article", { className: `finding ${finding.severity}` }, element("h3", {}, ...prose(head)),
      element("p", { className: "where" }, element("b", {}, finding.severity), ...where.map((each) => ` · ${each}`)), message);
    if (others.length) {
      const list = element("ul", { tabIndex: 0 }, ...others.map((each) => element("li", {}, ...prose(parts(each).head))));
      made.append(element("details", {}, element("summary", {}, `${number.format(others.length)} more alike`), list));
    }
    made.append(element("p", { className: "foot" }, copyButton(finding.message, message), element("code", {}, `lightning-freeze explain ${finding.kind}`)));
    return made;
  }

  const [ELEMENTS, GRADIENT, STATE] = [0, 1, 2]; // of the sizes of a group

  /** A size of what an update trained: its mean and the most over the updates, and that of everything. */
  function trained(which) {
    const sizes = data.sizes.map((each) => each[which]);
    const ofSet = sets.map((set) => {
      let total = 0;
      set.forEach((bits, index) => {
        for (let group = 4 * index; bits; group++, bits >>= 1) if (bits & 1) total += sizes[group] ?? 0;
      });
      return total;
    });
    const most = line.kinds.reduce((most_, kind) => Math.max(most_, ofSet[kind[1]]), 0);
    return { mean: sum(sizes.map((each, index) => each * counts[index].updated)) / line.total, most, all: sum(sizes) };
  }

  function drawSavings() {
    if (!line) return;
    const parts_ = (write, { mean, most, all }) => [`${write(mean)} of ${write(all)} on average, ${percent(mean / all)}; at most ${write(most)}`, mean / all];
    const [elements, gradient, state] = [trained(ELEMENTS), trained(GRADIENT), sum(data.sizes.map((each) => each[STATE]))];
    const lines = [["Parameters that train", ...parts_((value) => number.format(Math.round(value)), elements)]];
    if (gradient.all) lines.push(["Gradients", ...parts_(bytes, gradient)]);
    if (data.sizes.every((each) => each[STATE]) && data.state_bytes) lines.push(["Optimizer state", `${bytes(data.state_bytes)} of ${bytes(state)} at the end, ${percent(data.state_bytes / state)}`, data.state_bytes / state]);
    show("savings", element("div", { className: "saved" }, ...lines.map(([label, text, share]) => (
      element("div", {}, element("div", { className: "line" }, label, element("span", {}, text)), bar(Math.min(1, share), 0))))));
    if (run.skip_backward && !run.skip_backward.skips) {
      show("savings", element("p", { className: "note" }, "Backward was not skipped: it made gradients of frozen groups, too, which were then set to None."));
    }
    drawTimes();
  }

  function drawTimes() {
    if (!data.seconds) return;
    const all = data.seconds.find(([names]) => names.length === groups.length);
    const each = ([, steps, seconds]) => (1000 * seconds) / steps;
    const rows_ = data.seconds.map((set) => [folded(set[0]) || "nothing", number.format(set[1]), each(set).toPrecision(3), all ? percent(each(set) / each(all)) : NONE]);
    const columns = [["trains"], ["steps", "number"], ["ms a step", "number"], ["beside everything", "number"]];
    const note = all ? "Wall time of the batches that ended in such a step, warm-up included." : "Time beside training everything was not measured: no step trained everything.";
    show("savings", element("h3", {}, "Time of a step"), tableOf("Time of a step", columns, rows_), element("p", { className: "note" }, note));
  }

  function drawInputs() {
    const found = alike(findings.filter((each) => each.audit === "inputs"));
    if (!found.length) return;
    const rows_ = found.map(([each, ...others]) => [
      `${each.module_class}.${each.argument}`, each.kind, each.confirmed ? "yes" : "no", each.calls ? `${each.calls[0]} of ${each.calls[1]} calls` : NONE,
      bytes(each.bytes_passed ?? 0), `${each.module || "the root"}${others.length ? ` and ${others.length} more` : ""}`, each.source ? each.source.join(":") : NONE,
    ]);
    show("inputs", tableOf("Unused inputs", [["input"], ["verdict"], ["confirmed"], ["used in"], ["bytes a call", "number"], ["module"], ["source"]], rows_));
  }

  function drawBuffers() {
    const found = findings.filter((each) => each.audit === "buffers");
    if (!found.length) return;
    const seen = new Set(); // of those that moved in several epochs, the first
    const once = found.filter((each) => !seen.has(each.parameter) && seen.add(each.parameter));
    const rows_ = once.map((each) => [each.parameter, each.group ?? NONE, `${each.epoch}`, each.cause]);
    const fixes = new Set(found.map((each) => parts(each)).map(({ why, fix }) => `${sentence(why)} ${fix}`));
    show("buffers", tableOf("Buffers that moved", [["buffer"], ["group"], ["first in epoch", "number"], ["cause"]], rows_),
      ...[...fixes].map((text) => element("p", { className: "note" }, ...prose(text))));
  }

  function drawOptimizers() {
    const list = (run.optimizers ?? []).filter((each) => "skips_none" in each);
    if (!list.length) return;
    const word = (value) => (value == null ? "not known" : value ? "yes" : "no");
    const traits = [
      ["groups", (each) => folded(each.groups ?? []) || NONE],
      ["holds a parameter whose gradient is None", (each) => word(each.skips_none)],
      ["frozen parameters are excluded from its param groups", (each) => word(each.excludes)],
      ["its step counters run on while a parameter is frozen", (each) => each.step_counters?.join(", ") || "no"],
      ["a parameter may be frozen from its first step on", (each) => word(each.late_first_step_ok)],
      ["note", (each) => each.why || NONE],
    ].filter(([name, value]) => name !== "note" || list.some((each) => value(each) !== NONE));
    const columns = [["trait", "wide"], ...list.map((each) => [each.name, "wide"])];
    show("optimizers", tableOf("Optimizers", columns, traits.map(([name, value]) => [name, ...list.map(value)])));
  }

  function drawSchedule() {
    const text = element("pre", { tabIndex: 0, role: "region", "aria-label": "The schedule as YAML" }, element("code", {}, data.schedule));
    show("schedule", text, element("p", { className: "note" }, copyButton(data.schedule, text)));
  }

  function drawRun() {
    const skip = run.skip_backward;
    show("run", pairs([
      ["Run", run.run], ["Goes on from", (data.resumes ?? []).join(", ") || run.resumes], ["Started", run.time], ["Strategy", run.strategy],
      ["Precision", run.precision], ["Processes", run.processes], ["Device", run.device], ["Seed", run.seed],
      ["skip_backward", skip && `${skip.asked}: ${skip.skips ? "skipped" : "not skipped"}, ${skip.why}`],
      ["optimizer_state", run.optimizer_state], ["frozen_modules", run.frozen_modules], ["rest", run.rest],
      ["Frozen by the user", (run.users_own ?? []).join(", ")],
      ...Object.entries(run.moved_by ?? {}).map(([name, why]) => [`${name.replace("exempt.", "")}, exempt`, why]),
      ...versions(), ["Records", data.path],
    ].filter(([, value]) => value != null && value !== "").map(([name, value]) => [name, String(value)]), "pairs"));
  }

  function main() {
    readColors();
    if (line) readTimeline();
    drawCard();
    const resized = [];
    if (line) {
      drawTimeline();
      resized.push(layout);
    }
    drawGroups();
    drawFindings();
    drawSavings();
    if (data.rates && line) resized.push(drawRates());
    drawInputs();
    drawBuffers();
    drawOptimizers();
    if (data.schedule) drawSchedule();
    drawRun();
    for (const each of resized) each();
    addEventListener("resize", () => resized.forEach((each) => each()));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      readColors();
      resized.forEach((each) => each());
    });
    performance.mark("drawn");
  }

  main();
})();
