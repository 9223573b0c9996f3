"""The report's page: one HTML file with style and script inside; nothing is fetched.

`#sort=COLUMN`, `#sort=-COLUMN` and `&filter=WORDS` in the address do what a click and the box do.
"""

STYLE = """
:root{color-scheme:light}
body{font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;color:#1c1c1c;
 background:#fff;margin:0 auto;padding:1.5rem 2rem 4rem;max-width:1240px}
h1{font-size:1.7rem;margin:.2rem 0}
h2{font-size:1.2rem;margin:2.4rem 0 .5rem;border-bottom:1px solid #ddd;padding-bottom:.25rem}
.about{color:#444;max-width:60rem;white-space:pre-line}
.facts{color:#555;margin:.5rem 0 1rem}
nav a{display:inline-block;margin:0 .9rem .2rem 0}
a{color:#0b5fa5}
.parts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(34rem,100%),1fr));gap:0 2rem}
.parts section{min-width:0}
.parts section.whole{grid-column:1/-1}
figure{margin:.6rem 0}
figure svg{max-width:100%;height:auto}
.missing{background:#fff4e5;border-left:4px solid #d55e00;padding:.5rem .8rem}
details{margin:.3rem 0}
summary{cursor:pointer;color:#555}
.wide{overflow-x:auto;max-width:100%}
table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums}
th,td{padding:.22rem .6rem;text-align:left;border-bottom:1px solid #eaeaea;white-space:nowrap}
thead th{border-bottom:2px solid #888;background:#fafafa;vertical-align:bottom}
td.n,th.n{text-align:right}
td.reason{white-space:normal;min-width:16rem;color:#a33}
tbody tr:hover{background:#f4f8fc}
tr.failed td{background:#fdf0ee}
tr.interrupted td{background:#fff8e6}
#runs th{cursor:pointer;user-select:none;position:sticky;top:0}
#runs th:focus-visible{outline:2px solid #0b5fa5}
#runs th::after{content:"\\2195";color:#bbb;padding-left:.35em}
#runs th[aria-sort=ascending]::after{content:"\\2191";color:#0b5fa5}
#runs th[aria-sort=descending]::after{content:"\\2193";color:#0b5fa5}
#runs-box{max-height:80vh;overflow:auto;border:1px solid #ddd}
input{font:inherit;padding:.3rem .6rem;border:1px solid #999;border-radius:4px;width:22rem;
 max-width:100%;margin-bottom:.5rem}
@media print{#runs-box{max-height:none}input{display:none}}
"""

SCRIPT = """
const table = document.getElementById('runs'), body = table.tBodies[0];
const heads = [...table.tHead.rows[0].cells], box = document.getElementById('filter');
const rows = [...body.rows], count = document.getElementById('count');
const state = new URLSearchParams(location.hash.slice(1));
const raw = (row, i) => row.cells[i].dataset.v ?? row.cells[i].textContent.trim();
function compare(a, b, sign) {
  if (a === '' || b === '') return (a === '') - (b === '');  // what is missing stands last
  const x = Number(a), y = Number(b);
  if (!isNaN(x) && !isNaN(y)) return sign * (x - y);
  if (isNaN(x) !== isNaN(y)) return isNaN(x) - isNaN(y);
  return sign * a.localeCompare(b, 'en', {numeric: true});
}
function show() {
  const wanted = state.get('sort') || '', down = wanted.startsWith('-');
  const i = heads.findIndex(h => h.dataset.c === (down ? wanted.slice(1) : wanted));
  heads.forEach((h, j) =>
    h.setAttribute('aria-sort', j !== i ? 'none' : down ? 'descending' : 'ascending'));
  const sorted = i < 0 ? rows
    : [...rows].sort((p, q) => compare(raw(p, i), raw(q, i), down ? -1 : 1));
  const words = (state.get('filter') || '').toLowerCase().split(/\\s+/);
  let seen = 0;
  for (const row of sorted) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every(word => text.includes(word));
    seen += !row.hidden;
  }
  body.append(...sorted);
  count.textContent = seen === rows.length ? `${seen} runs` : `${seen} of ${rows.length} runs`;
}
function put(key, value) {
  value ? state.set(key, value) : state.delete(key);
  try { history.replaceState(null, '', '#' + state); } catch (e) { }  // some frames forbid it
  show();
}
for (const head of heads) {
  head.tabIndex = 0;
  head.onclick = () =>
    put('sort', state.get('sort') === head.dataset.c ? '-' + head.dataset.c : head.dataset.c);
  head.onkeydown = e => { if (e.key === 'Enter') head.onclick(); };
}
box.oninput = () => put('filter', box.value);
box.value = state.get('filter') || '';
window.onhashchange = () => {
  const fresh = new URLSearchParams(location.hash.slice(1));
  for (const key of ['sort', 'filter'])
    fresh.has(key) ? state.set(key, fresh.get(key)) : state.delete(key);
  box.value = state.get('filter') || '';
  show();
};
show();
"""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
<p class="about">{about}</p>
<p class="facts">{facts}</p>
<nav>{links}</nav>
<div class="parts">
{sections}
</div>
<section id="all-runs">
<h2>All runs</h2>
<input id="filter" type="search" placeholder="filter: words that a row has" aria-label="filter">
<span id="count"></span>
<div id="runs-box">{runs}</div>
</section>
<script>{script}</script>
</body>
</html>
"""
