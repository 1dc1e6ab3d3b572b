// Pointing at a rung, or focusing it, marks it in every figure and table; a click pins it, Escape lets go. A contrast
// lights its rungs everywhere, a rung all contrasts it is in. Without script all is readable.
(() => {
  const all = [...document.querySelectorAll("[data-r]")], told = document.getElementById("pinned");
  let pinned = null;
  const show = source => {
    document.body.classList.toggle("hovering", !!source);
    const mine = source ? source.dataset.r.split(" ") : [];
    for (const one of all) {
      const theirs = one.dataset.r.split(" ");
      const hit = mine.length > 1 && theirs.length > 1 ? one.dataset.r === source.dataset.r : theirs.some(r => mine.includes(r));
      one.classList.toggle("hot", !!source && hit);
    }
  };
  const pin = source => {
    pinned = source;
    const named = source && (source.querySelector("b, span, th") || source);
    told.textContent = source ? `${named.textContent.trim()} is marked; Escape lets go` : "";
    show(source);
  };
  const of = event => event.target.closest ? event.target.closest("[data-r]") : null;
  document.addEventListener("pointerover", event => pinned || show(of(event)));
  document.addEventListener("focusin", event => pinned || show(of(event)));
  document.addEventListener("focusout", () => pinned || show(null));
  document.addEventListener("click", event => event.target.closest("button, a, summary") || pin(of(event)));
  document.addEventListener("keydown", event => {
    if (event.key === "Escape") pin(null);
    if (event.key === "Enter" && of(event)) pin(of(event));
  });
})();
// Sort by the text or, where that is not it, by data-key; missing ones stay last. The key of a row's name is its place.
document.querySelectorAll("table.data").forEach(table => {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  [...body.rows].forEach((row, place) => { row.cells[0].dataset.key = place; });
  const keyOf = (row, column) => row.cells[column].dataset.key ?? row.cells[column].textContent;
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const compare = (a, b) => a === "" || b === "" ? (a === "") - (b === "")
      : (up ? 1 : -1) * (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b);
    body.append(...[...body.rows].sort((a, b) => compare(keyOf(a, column), keyOf(b, column))));
  }));
});
