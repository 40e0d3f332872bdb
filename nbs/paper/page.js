// Search, large figures, tables that sort and filter, and the origin of a number. Nothing is fetched.
"use strict";
(function () {
  var sources = JSON.parse(document.getElementById("sources").textContent || "{}");
  var main = document.querySelector("main"), side = document.querySelector("details.side");
  function make(tag, text) { var e = document.createElement(tag); if (text !== undefined) e.textContent = text; return e; }
  if (window.matchMedia("(max-width: 62rem)").matches) side.open = false;

  // Dialogs
  document.querySelectorAll("dialog").forEach(function (d) {
    d.querySelector("button").addEventListener("click", function () { d.close(); });
    d.addEventListener("click", function (e) { if (e.target === d) d.close(); });
  });
  function show(id, parts) {
    var d = document.getElementById(id), place = d.querySelector("div");
    place.replaceChildren.apply(place, parts);
    d.showModal();
  }

  // Figures open large
  main.querySelectorAll("figure img").forEach(function (img) {
    img.tabIndex = 0;
    function open() {
      var large = make("img"); large.src = img.src; large.alt = img.alt;
      show("large", [large, make("p", img.alt)]);
    }
    img.addEventListener("click", open);
    img.addEventListener("keydown", function (e) { if (e.key === "Enter") open(); });
  });

  // Search: blocks of text, rows of tables, captions
  var box = document.getElementById("search"), hits = document.getElementById("hits"), blocks = null;
  function heading(e) {
    var found = "";
    headings.some(function (h) {
      if (!(h.compareDocumentPosition(e) & Node.DOCUMENT_POSITION_FOLLOWING)) return h !== e;
      found = h.textContent; return false;
    });
    return found;
  }
  var headings = Array.from(main.querySelectorAll("h1, h2"));
  function search() {
    var words = box.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    hits.replaceChildren();
    hits.hidden = !words.length || box.value.trim().length < 2;
    if (hits.hidden) return;
    blocks = blocks || Array.from(main.querySelectorAll("h1, h2, h3, p, li, tr, caption, figcaption")).map(function (e) {
      return [e, e.textContent.toLowerCase()];
    });
    var found = blocks.filter(function (b) { return words.every(function (w) { return b[1].indexOf(w) >= 0; }); });
    found.slice(0, 40).forEach(function (b) {
      var item = make("li"), link = make("a", b[0].textContent.replace(/\s+/g, " ").trim().slice(0, 90));
      link.href = "#"; item.append(make("small", heading(b[0])), link);
      link.addEventListener("click", function (e) {
        e.preventDefault();
        if (window.matchMedia("(max-width: 62rem)").matches) side.open = false;
        b[0].scrollIntoView({ block: "center" });
        b[0].classList.add("hit"); setTimeout(function () { b[0].classList.remove("hit"); }, 2500);
      });
      hits.append(item);
    });
    if (!found.length) hits.append(make("li", "Nothing found."));
  }
  box.addEventListener("input", search);

  // Tables sort by a click on a head, and filter where they are long
  function key(cell) {
    var text = cell.textContent.trim().replace(/−/g, "-").replace(/(\d),(?=\d\d\d)/g, "$$1"), number = parseFloat(text);
    return [isNaN(number) ? Infinity : number, text.toLowerCase()];
  }
  function sort(table, column, button) {
    var down = button.getAttribute("aria-sort") === "ascending", body = table.tBodies[0];
    table.querySelectorAll("th").forEach(function (th) { th.removeAttribute("aria-sort"); });
    button.setAttribute("aria-sort", down ? "descending" : "ascending");
    var rows = Array.from(body.rows).map(function (row, k) { return [key(row.cells[column]), k, row]; });
    rows.sort(function (a, b) {
      var order = a[0][0] === b[0][0] ? a[0][1].localeCompare(b[0][1]) : a[0][0] < b[0][0] ? -1 : 1;
      return (down ? -order : order) || a[1] - b[1];
    });
    rows.forEach(function (r) { body.append(r[2]); });
  }
  function addFilter(table) {
    var filter = make("input"); filter.type = "search"; filter.placeholder = "Filter rows"; filter.className = "filter";
    filter.setAttribute("aria-label", "Filter rows of this table");
    filter.addEventListener("input", function () {
      var words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      Array.from(table.tBodies[0].rows).forEach(function (row) {
        var text = row.textContent.toLowerCase();
        row.hidden = !words.every(function (w) { return text.indexOf(w) >= 0; });
      });
    });
    table.parentNode.insertBefore(filter, table);
  }
  // A browser lays the page out anew for each field that is put in: only tables that come near get theirs
  var near = new IntersectionObserver(function (entries) {
    entries.forEach(function (e) { if (e.isIntersecting) { near.unobserve(e.target); addFilter(e.target.querySelector("table")); } });
  }, { rootMargin: "100%" });
  main.querySelectorAll("table").forEach(function (table) {
    table.querySelectorAll("thead th").forEach(function (th, column) {
      th.tabIndex = 0; th.title = "Sort by this column";
      th.addEventListener("click", function () { sort(table, column, th); });
      th.addEventListener("keydown", function (e) { if (e.key === "Enter") sort(table, column, th); });
    });
    if (table.tBodies[0] && table.tBodies[0].rows.length >= 12) near.observe(table.parentNode);
  });

  // Where a number comes from: the span says it, or the table that it stands in
  function origin(text, section, file, name) {
    var s = sources[section];
    if (!s) return;
    var list = make("dl");
    [["Number", text], ["Section", s.title], ["Notebook", s.notebook], ["File", file], ["Key", name], ["Code", s.code], ["Result", s.key],
     ["Data", s.data], ["Seed", s.seed], ["Precision", s.precision], ["Device", s.device]].forEach(function (pair) {
      if (pair[1]) list.append(make("dt", pair[0]), make("dd", pair[1]));
    });
    show("origin", [list]);
  }
  main.addEventListener("click", function (e) {
    var number = e.target.closest("span.number"), cell = e.target.closest("td");
    if (number) {
      var parts = number.dataset.from.match(/^(\w+)(?::|\/([\w.]+):)(.*)$$/);
      if (parts) origin(number.textContent, parts[1], parts[1] + "/" + (parts[2] || "results.json"), parts[3]);
    } else if (cell && /\d/.test(cell.textContent)) {
      var table = cell.closest("table"), place = (table.id || (table.closest("[id]") || {}).id || "").match(/^table-([a-z]\w*?)-(.+)$$/);
      if (place) {
        var head = table.tHead ? table.tHead.rows[0].cells[cell.cellIndex].textContent : "";
        origin(cell.textContent, place[1], place[1] + "/" + place[2] + ".csv", cell.parentNode.cells[0].textContent + " · " + head);
      }
    }
  });
  main.querySelectorAll("span.number").forEach(function (n) { n.tabIndex = 0; n.title = "Where this number comes from"; });
  main.addEventListener("keydown", function (e) { if (e.key === "Enter" && e.target.matches("span.number")) e.target.click(); });
})();
