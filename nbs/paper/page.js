// Search, large figures, tables that sort and filter, and the origin of a number. Nothing is fetched.
"use strict";
(function () {
  var sources = JSON.parse(document.getElementById("sources").textContent || "{}");
  var main = document.querySelector("main"), side = document.querySelector("details.side");
  function make(tag, text) { var e = document.createElement(tag); if (text !== undefined) e.textContent = text; return e; }
  function isNarrow() { return window.matchMedia("(max-width: 62rem)").matches; }
  if (isNarrow()) side.open = false;
  side.querySelector("nav").addEventListener("click", function (e) { if (isNarrow() && e.target.closest("a")) side.open = false; });
  // The key that opens a dialog must not press the button that then has the focus
  function press(element, action) {
    element.addEventListener("keydown", function (e) {
      if ((e.key === "Enter" || e.key === " ") && e.target === element) { e.preventDefault(); action(); }
    });
  }

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
    img.tabIndex = 0; img.setAttribute("role", "button");
    function open() {
      var large = make("img"); large.src = img.src; large.alt = img.alt;
      show("large", [large, make("p", img.alt)]);
    }
    img.addEventListener("click", open);
    press(img, open);
  });

  // Search: blocks of text, rows of tables, captions
  var box = document.getElementById("search"), hits = document.getElementById("hits"), blocks = null;
  function heading(e) {  // of both levels
    var found = ["", ""];
    headings.some(function (h) {
      if (!(h.compareDocumentPosition(e) & Node.DOCUMENT_POSITION_FOLLOWING)) return h !== e;
      found = h.tagName === "H1" ? [h.textContent, ""] : [found[0], h.textContent];
      return false;
    });
    return found.filter(Boolean).join(" › ");
  }
  function plain(text) { return text.replace(/−/g, "-").replace(/\u00a0/g, " ").replace(/\s+/g, " ").trim().toLowerCase(); }
  function excerpt(text, word) {  // around the first hit
    var all = text.replace(/\s+/g, " ").trim(), at = plain(text).indexOf(word), start = Math.max(0, Math.min(at - 30, all.length - 90));
    return (start ? "…" : "") + all.slice(start, start + 90) + (start + 90 < all.length ? "…" : "");
  }
  var MOST = 40;
  var headings = Array.from(main.querySelectorAll("h1, h2"));
  function search() {
    var words = plain(box.value).split(" ").filter(Boolean);
    hits.replaceChildren();
    hits.hidden = !words.length || box.value.trim().length < 2;
    if (hits.hidden) return;
    blocks = blocks || Array.from(main.querySelectorAll("h1, h2, h3, p, li, tr, caption, figcaption")).map(function (e) {
      return [e, plain(e.textContent)];
    });
    var found = blocks.filter(function (b) { return words.every(function (w) { return b[1].indexOf(w) >= 0; }); });
    if (found.length > MOST) hits.append(make("li", "The first " + MOST + " of " + found.length + ":"));
    found.slice(0, MOST).forEach(function (b) {
      var item = make("li"), link = make("a", excerpt(b[0].textContent, words[0]));
      link.href = "#"; item.append(make("small", heading(b[0])), link);
      link.addEventListener("click", function (e) {
        e.preventDefault();
        if (isNarrow()) side.open = false;
        b[0].hidden = false; b[0].tabIndex = -1;
        b[0].scrollIntoView({ block: "center" }); b[0].focus({ preventScroll: true });
        b[0].classList.add("hit"); setTimeout(function () { b[0].classList.remove("hit"); }, 2500);
      });
      hits.append(item);
    });
    if (!found.length) hits.append(make("li", "Nothing found."));
  }
  box.addEventListener("input", search);

  // Tables sort by a click on a head, and filter where they are long
  function key(cell) {
    var text = plain(cell.textContent).replace(/(\d),(?=\d\d\d)/g, "$$1"), sign = text.match(/^[<>]/);
    var number = parseFloat(text.replace(/^[<>]\s*/, ""));  // what is below a number comes before it
    if (sign && !isNaN(number)) number += (sign[0] === "<" ? -1e-9 : 1e-9);
    return [isNaN(number) ? Infinity : number, text];
  }
  function sort(table, column, button) {
    var down = button.getAttribute("aria-sort") === "ascending", body = table.tBodies[0];
    table.querySelectorAll("th").forEach(function (th) { th.removeAttribute("aria-sort"); });
    button.setAttribute("aria-sort", down ? "descending" : "ascending");
    var rows = Array.from(body.rows).map(function (row, k) { return [key(row.cells[column]), k, row]; });
    rows.sort(function (a, b) {
      var isEmpty = [a, b].map(function (r) { return /^–?$$/.test(r[0][1]); });
      if (isEmpty[0] !== isEmpty[1]) return isEmpty[0] ? 1 : -1;  // last, in both directions
      var order = a[0][0] === b[0][0] ? a[0][1].localeCompare(b[0][1]) : a[0][0] < b[0][0] ? -1 : 1;
      return (down ? -order : order) || a[1] - b[1];
    });
    rows.forEach(function (r) { body.append(r[2]); });
  }
  function addFilter(table) {
    var filter = make("input"); filter.type = "search"; filter.placeholder = "Filter rows"; filter.className = "filter";
    filter.setAttribute("aria-label", "Filter rows of this table");
    var count = make("small"), rows = Array.from(table.tBodies[0].rows);
    count.setAttribute("aria-live", "polite");
    filter.addEventListener("input", function () {
      var words = plain(filter.value).split(" ").filter(Boolean), shown = 0;
      rows.forEach(function (row) {
        var text = plain(row.textContent);
        row.hidden = !words.every(function (w) { return text.indexOf(w) >= 0; });
        shown += !row.hidden;
      });
      count.textContent = words.length ? shown + " of " + rows.length + " rows" : "";
    });
    table.parentNode.insertBefore(filter, table); filter.after(count);
  }
  // Columns of prose keep a width that can be read, and a table that is longer than a screen scrolls below its heads
  function layOut(table) {
    var rows = Array.from(table.tBodies[0] ? table.tBodies[0].rows : []), box = table.parentNode;
    if (rows.length > 20) box.classList.add("tall");
    Array.from(rows.length ? rows[0].cells : []).forEach(function (_, k) {
      var sizes = rows.map(function (row) { return row.cells[k].textContent.length; }).sort(function (a, b) { return a - b; });
      if (sizes[Math.floor(.75 * sizes.length)] > 30) rows.forEach(function (row) { row.cells[k].classList.add("l"); });
    });
    if (box.scrollWidth > box.clientWidth || rows.length > 20) { box.tabIndex = 0; box.setAttribute("role", "region"); box.setAttribute("aria-label", "Table"); }
  }
  function prepare(table) {
    layOut(table);
    if (table.tBodies[0] && table.tBodies[0].rows.length >= 12) addFilter(table);
  }
  // A browser lays the page out anew for each field that is put in: only tables that come near get theirs
  var near = new IntersectionObserver(function (entries) {
    entries.forEach(function (e) { if (e.isIntersecting) { near.unobserve(e.target); prepare(e.target.querySelector("table")); } });
  }, { rootMargin: "100%" });
  main.querySelectorAll("table").forEach(function (table) {
    table.querySelectorAll("thead th").forEach(function (th, column) {
      th.tabIndex = 0; th.title = "Sort by this column";
      th.addEventListener("click", function () { sort(table, column, th); });
      press(th, function () { sort(table, column, th); });
    });
    near.observe(table.parentNode);
  });

  // Where a number comes from: the span says it, or the table that it stands in
  function origin(text, section, file, name) {
    var s = sources[section];
    if (!s) return;
    var list = make("dl"), place = make("dd"), link = make("a", file), line = name.match(/^(\d+):(.*)$$/);
    link.href = file; place.append(link);
    if (line) name = "line " + line[1] + ", column " + line[2];
    [["Number", text], ["Section", s.title], ["Notebook", s.notebook], ["File", s.code ? place : ""], ["Key", name], ["Hash of code", s.code],
     ["Hash of result", s.key], ["Data of the section", s.data], ["Seed", s.seed], ["Precision", s.precision],
     ["Section executed on", s.device]].forEach(function (pair) {
      if (pair[1]) list.append(make("dt", pair[0]), pair[1] === place ? place : make("dd", pair[1]));
    });
    show("origin", [list]);
  }
  main.addEventListener("click", function (e) {
    var number = e.target.closest("span.number"), cell = e.target.closest("td");
    if (number) {
      var parts = number.dataset.from.match(/^(\w+)(?::|\/([\w.]+):)(.*)$$/);
      if (parts) origin(number.textContent, parts[1], parts[1] + "/" + (parts[2] || "results.json"), parts[3]);
    } else if (cell && /^[<>−+\d[]/.test(cell.textContent.trim()) && String(window.getSelection()) === "") {
      var table = cell.closest("table"), place = (table.id || (table.closest("[id]") || {}).id || "").match(/^table-([a-z]\w*?)-(.+)$$/);
      if (place) {
        var head = table.tHead ? table.tHead.rows[0].cells[cell.cellIndex].textContent : "";
        origin(cell.textContent, place[1], place[1] + "/" + place[2] + ".csv", cell.parentNode.cells[0].textContent + " · " + head);
      }
    }
  });
  main.querySelectorAll("span.number").forEach(function (n) {
    n.tabIndex = 0; n.title = "Where this number comes from"; n.setAttribute("role", "button");
    press(n, function () { n.click(); });
  });
})();
