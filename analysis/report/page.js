// Sort: the value is in data-key, missing ones stay last. The key of a rung is its place.
const keyOf = (row, column) => row.cells[column].dataset.key;
document.querySelectorAll("table.data").forEach(table => {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const compare = (a, b) => a === "" || b === "" ? (a === "") - (b === "")
      : (up ? 1 : -1) * (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b);
    body.append(...[...body.rows].sort((a, b) => compare(keyOf(a, column), keyOf(b, column))));
  }));
});
// Filter: rows that hold all words of the query, whatever their order.
document.querySelectorAll("input[data-filter]").forEach(input => input.addEventListener("input", () => {
  const rows = [...document.getElementById(input.dataset.filter).tBodies[0].rows];
  const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
  rows.forEach(row => { row.hidden = !words.every(word => row.textContent.toLowerCase().includes(word)); });
  const left = rows.filter(row => !row.hidden).length;
  input.nextElementSibling.textContent = words.length ? `${left} of ${rows.length}` : "";
}));
document.querySelectorAll("[data-copy]").forEach(button => button.addEventListener("click", async () => {
  const area = document.getElementById(button.dataset.copy), label = button.textContent;
  let copied = true;
  try { await navigator.clipboard.writeText(area.value); }
  catch { area.hidden = false; area.select(); copied = document.execCommand("copy"); area.hidden = true; }
  button.textContent = copied ? "Copied" : "Not allowed here";
  setTimeout(() => { button.textContent = label; }, 1500);
}));
