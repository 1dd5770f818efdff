// Sorts a table by the column whose head is clicked or chosen with Enter; by its first number where there is one.
for (const table of document.querySelectorAll("table[id]")) {
  const body = table.tBodies[0], first = [...body.rows];
  const key = (row, column) => {
    const text = row.cells[column].textContent.trim(), found = text.match(/^[-+]?\d+(\.\d+)?(e[-+]?\d+)?/);
    return found ? Number(found[0]) : text;
  };
  const compare = (a, b) => typeof a === "number" && typeof b === "number" ? a - b
    : typeof a === typeof b ? a.localeCompare(b) : typeof a === "number" ? -1 : 1;
  [...table.tHead.rows[0].cells].forEach((head, column, heads) => {
    head.tabIndex = 0;
    head.classList.add("sorts");
    const sort = () => {
      const order = head.ariaSort === "descending" ? "ascending" : head.ariaSort === "ascending" ? "none" : "descending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      const sign = order === "ascending" ? 1 : -1, rows = [...first];
      if (order !== "none") {
        head.setAttribute("aria-sort", order);
        rows.sort((a, b) => sign * compare(key(a, column), key(b, column)));
      }
      body.append(...rows);
    };
    head.addEventListener("click", sort);
    head.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(); });
  });
}
