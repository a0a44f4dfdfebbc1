// Tables sort by the column whose header is pressed: numbers first from high to low, texts from A to Z.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  table.querySelectorAll("thead th").forEach((header, column) => {
    header.querySelector("button").addEventListener("click", () => {
      const text = header.classList.contains("text");
      const before = header.getAttribute("aria-sort");
      const descending = before ? before === "ascending" : !text;
      const value = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const number = row => { const v = parseFloat(value(row)); return Number.isNaN(v) ? -Infinity : v; };
      const order = text
        ? (a, b) => value(a).localeCompare(value(b), "en", { numeric: true })
        : (a, b) => number(a) - number(b);
      const rows = [...body.rows].sort((a, b) => (descending ? -order(a, b) : order(a, b)));
      table.querySelectorAll("thead th").forEach(th => th.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", descending ? "descending" : "ascending");
      body.append(...rows);
    });
  });
}
