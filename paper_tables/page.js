// Tables sort by a click on a head (up, down, as made) and filter by words; a figure's picture opens at its full size. Without script
// the pages are the same, at rest.
"use strict";

const text = (cell) => cell.textContent.replace(/\s+/g, " ").trim();

// The cell of a row that stands in column `at`, merged ones counted.
function cellAt(row, at) {
  for (const cell of row.cells) {
    at -= cell.colSpan;
    if (at < 0) return cell;
  }
  return null;
}

// A number as the tables write it, 1,234 or −0.5 [−0.6, −0.4]; NaN where there is none.
function number(words) {
  const found = words.replace(/−/g, "-").replace(/,(?=\d{3})/g, "").match(/^[^\d\-.]{0,2}(-?\d*\.?\d+(?:e[-+]?\d+)?)/i);
  return found ? parseFloat(found[1]) : NaN;
}

function order(head, at, direction) {
  const numeric = head.classList.contains("n");
  return (one, other) => {
    const [a, b] = [one, other].map((row) => (cellAt(row, at) ? text(cellAt(row, at)) : ""));
    if (!numeric) return (!a - !b) || direction * a.localeCompare(b, "en", {numeric: true});
    const [x, y] = [number(a), number(b)];
    return (isNaN(x) - isNaN(y)) || (isNaN(x) ? 0 : direction * (x - y)); // what has no number stays below
  };
}

function equip(table) {
  const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  const body = table.tBodies[0], made = [...body.rows];
  const lines = made.filter((row) => !row.classList.contains("s"));
  if (lines.length < 2) return;
  let section = null, lead = "";
  for (const row of made) {
    if (row.classList.contains("s")) { section = row; continue; }
    lead = text(row.cells[0]) || lead; // a row without a name goes on with that of the row above
    Object.assign(row, {section, lead, nameless: !text(row.cells[0])});
  }
  const search = Object.assign(document.createElement("input"), {type: "search", placeholder: "filter rows", className: "filter"});
  search.setAttribute("aria-label", "filter the rows of this table");
  table.parentElement.before(search);
  let sorted = -1, direction = 0;

  function show() {
    const wanted = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const moved = wanted.length > 0 || direction !== 0;
    const rows = direction ? [...lines].sort(order(heads[sorted], sorted, direction)) : made;
    const filled = new Set();
    for (const row of lines) {
      const all = `${row.section ? text(row.section) : ""} ${row.lead} ${text(row)}`.toLowerCase();
      row.hidden = !wanted.every((word) => all.includes(word));
      if (!row.hidden) filled.add(row.section);
      if (row.nameless) row.cells[0].textContent = moved ? row.lead : "";
    }
    for (const row of made) if (row.classList.contains("s")) row.hidden = direction !== 0 || !filled.has(row);
    body.append(...rows);
    heads.forEach((head, at) => {
      const state = at === sorted ? direction : 0;
      head.setAttribute("aria-sort", state ? (state > 0 ? "ascending" : "descending") : "none");
    });
  }

  function turn(at) {
    direction = at === sorted ? (direction === 1 ? -1 : direction === -1 ? 0 : 1) : 1;
    sorted = at;
    show();
  }

  heads.forEach((head, at) => {
    Object.assign(head, {tabIndex: 0, title: "sort by this column"});
    head.setAttribute("aria-sort", "none");
    head.addEventListener("click", () => turn(at));
    head.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); turn(at); }
    });
  });
  search.addEventListener("input", show);
}

document.querySelectorAll(".scroll > table").forEach(equip);

const close = () => document.querySelectorAll("figure.zoom").forEach((figure) => figure.classList.remove("zoom"));
document.querySelectorAll("figure img").forEach((image) => {
  image.addEventListener("click", () => image.closest("figure").classList.toggle("zoom"));
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") close(); });
