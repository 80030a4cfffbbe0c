// A click on a column's title sorts the table: first from high to low or from A to Z, then the other way.
document.addEventListener("click", (event) => {
  const title = event.target.closest("article table:not(.highlighttable) th");
  if (!title) return;
  const table = title.closest("table"), column = title.cellIndex;
  const descending = title.dataset.order !== "descending";
  const cell = (row) => row.cells[column].textContent.trim();
  const number = (text) => Number.parseFloat(text.replaceAll(",", ""));
  const rows = [...table.tBodies[0].rows];
  const numeric = rows.every((row) => !cell(row) || !Number.isNaN(number(cell(row))));
  const order = (first, second) => {
    if (!cell(first) || !cell(second)) return !cell(first) - !cell(second);  // empty cells stay last
    const result = numeric
      ? number(cell(second)) - number(cell(first))
      : cell(first).localeCompare(cell(second), document.documentElement.lang);
    return descending ? result : -result;
  };
  for (const other of title.parentNode.cells) delete other.dataset.order;
  title.dataset.order = descending ? "descending" : "ascending";
  table.tBodies[0].append(...rows.sort(order));
});
