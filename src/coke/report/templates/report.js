"use strict"
const one = (query, inside = document) => inside.querySelector(query)
const all = (query, inside = document) => [...inside.querySelectorAll(query)]
document.documentElement.classList.add("js")

async function unpacked(id) {  // base64 of gzip, as the page holds what is large
  const bytes = Uint8Array.from(atob(one("#" + id).textContent), (letter) => letter.charCodeAt(0))
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text()
}

const grid = one("#cards"), find = one("#find"), large = one("#large"), chosen = new Set()
let data, head = 0, place_of, large_at

function fill(inside) {  // pictures that stand elsewhere already, or that the page holds packed
  const row_of = (image) => image.closest("figure").dataset.row
  for (const image of all("[data-row] img[src]", inside)) data.pictures[row_of(image)] ??= image.src
  for (const image of all("[data-row] img", inside)) {
    const picture = data.pictures[row_of(image)]
    if (picture) image.src = picture
    else image.parentElement.disabled = true
    const exact = () => image.classList.toggle("exact", image.naturalWidth <= 32)
    image.complete ? exact() : image.addEventListener("load", exact, {once: true})
  }
}

const matches = () => {
  const text = find.value.trim().toLowerCase()
  return text ? data.keys.flatMap((key, place) => key.toLowerCase().includes(text) ? [place] : []) : null
}

function arrange() {
  const order = one("#order").value, key = order.replace("-", ""), sign = order[0] == "-" ? -1 : 1
  const last = (card) => card.dataset[key] === "" ? Infinity : sign * card.dataset[key]
  const cards = all(".card", grid).sort((a, b) => last(a) - last(b) || a.dataset.number - b.dataset.number)
  const found = matches(), inside = found && new Set(found.map((place) => data.heads[head][0][place]))
  const wanted = {
    chosen: (card) => chosen.has(+card.dataset.number), doubt: (card) => card.dataset.doubt >= 1 / 3,
    short: (card) => "short" in card.dataset,
  }[one("#which").value] ?? (() => true)
  const shown = cards.filter((card) => wanted(card) && (!inside || inside.has(+card.dataset.number)))
  const rest = cards.filter((card) => !shown.includes(card))
  for (const card of [...shown, ...rest]) card.hidden = rest.includes(card)
  grid.append(...shown, ...rest)
  one("#said").textContent = `${shown.length} of ${cards.length} clusters`
    + (found ? `, ${found.length} file names match` : "") + (chosen.size ? `, ${chosen.size} chosen` : "")
    + (data.sampled ? `; names and exports are of ${data.sampled}` : "")
  list_hits(found)
  one("#all").hidden = !grid.classList.contains("few") || shown.length <= 8
}

function list_hits(found) {
  one("#hits").replaceChildren(...(found ?? []).slice(0, 60).map((place) => {
    const item = document.createElement("li"), button = item.appendChild(document.createElement("button"))
    button.textContent = `${data.keys[place]} → cluster ${data.heads[head][0][place]}`
    button.onclick = () => enlarge(place)
    return item
  }))
}

function choose_head(number) {
  data.cards[head] = all(".card", grid)
  head = number
  if (typeof data.cards[head][0] == "string") {
    grid.innerHTML = data.cards[head].join("")
    fill(grid)
  } else grid.replaceChildren(...data.cards[head])
  chosen.clear()
  all("input", grid).forEach((box) => (box.checked = false))
  arrange()
  draw_map()
}

const label_of = (place) => data.labels?.[place] >= 0 ? data.classes?.[data.labels[place]] ?? data.labels[place] : null

function enlarge(place) {
  const row = data.rows[place], [clusters, scores, margins] = data.heads[head], label = label_of(place)
  const thousandth = (value) => value === null ? "–" : (value / 1000).toFixed(2)
  const shown = all(`figure[data-row="${row}"]`), link = shown.map((figure) => one("a", figure)).find((a) => a)
  const image = one("img", large), small = data.pictures[row] ?? ""
  image.src = small
  image.hidden = !small
  image.alt = data.keys[place]
  image.onload = () => image.classList.toggle("exact", image.naturalWidth <= 32)
  if (link) {  // the file itself, where it still lies there
    const whole = new Image()
    whole.onload = () => { if (large_at == place) { image.src = whole.src; image.hidden = false } }
    whole.src = link.href
  }
  one("p", large).textContent = `${data.keys[place]}\ncluster ${clusters[place]}, `
    + `score ${thousandth(scores[place])}, margin ${thousandth(margins[place])}` + (label === null ? "" : `, label “${label}”`)
    + (small || link ? "" : "\nIts picture is not among those on this page.")
  large_at = place
  if (!large.open) large.showModal()
}

function step(by) {  // to the next picture on the page that is another image
  const seen = all("figure[data-row]").filter((figure) => figure.offsetParent)
  const rows = [...new Set(seen.map((figure) => +figure.dataset.row))]
  const at = rows.indexOf(data.rows[large_at])
  if (rows.length) enlarge(place_of.get(rows[(at + by + rows.length) % rows.length]))
}

function export_chosen() {
  const [clusters, scores, margins] = data.heads[head]
  const quoted = (text) => `"${String(text).replaceAll('"', '""')}"`
  const lines = data.keys.flatMap((key, place) => chosen.has(clusters[place]) ? [[quoted(key), clusters[place],
    (scores[place] ?? 0) / 1000, margins[place] === null ? "" : margins[place] / 1000,
    label_of(place) === null ? "" : quoted(label_of(place))].join(",")] : [])
  const link = document.createElement("a")
  link.download = `clusters-head-${head}.csv`
  const text = ["key,cluster,score,margin,label", ...lines, ""].join("\n")
  link.href = URL.createObjectURL(new Blob([text], {type: "text/csv"}))
  link.click()
  one("#said").textContent = `${lines.length} images written to ${link.download}`
}

function draw_map() {
  const plane = one("#plane")
  if (!plane || !window.Plotly) return  // yet
  const webgl = document.createElement("canvas").getContext("webgl"), clusters = data.heads[head][0]
  const step = webgl ? 1 : Math.ceil(data.keys.length / 5000)  // what a page of SVG bears
  const places = data.keys.map((_, place) => place).filter((place) => place % step == 0)
  const colour = (place) => chosen.size && !chosen.has(clusters[place]) ? "rgba(128,128,128,.15)"
    : `hsl(${(clusters[place] * 137.5) % 360},60%,52%)`
  one("#map-said").textContent = (data.sampled ? `Shown are ${data.sampled}. ` : "")
    + (webgl ? "" : step > 1 ? `This browser has no WebGL: every ${step}th image is drawn. ` : "")
    + "Click on a dot to see its image; chosen clusters stand out."
  const trace = {
    type: webgl ? "scattergl" : "scatter", mode: "markers", customdata: places, hoverinfo: "text",
    x: places.map((place) => data.places[0][place]), y: places.map((place) => data.places[1][place]),
    text: places.map((place) => `cluster ${clusters[place]}: ${data.keys[place].replaceAll("<", "&lt;")}`),
    marker: {size: places.length > 20000 ? 3 : places.length > 2000 ? 5 : 8, color: places.map(colour), opacity: 0.8},
  }
  const axis = {visible: false}
  Plotly.react(plane, [trace], {xaxis: axis, yaxis: {...axis, scaleanchor: "x"}, margin: {l: 0, r: 0, t: 0, b: 0},
    ...clear, hovermode: "closest", dragmode: "pan"},
  {responsive: true, scrollZoom: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d"]})
  plane.removeAllListeners?.("plotly_click")
  plane.on("plotly_click", (event) => enlarge(event.points[0].customdata))
}

const colours = ["#2f83ab", "#b8801f", "#9a5a8c", "#5b9150"], level = "#c0664a"  // legible on light and on dark
const is_level = (name) => /bound|share|guess|untrained/.test(name)
const clear = {paper_bgcolor: "transparent", plot_bgcolor: "transparent"}

function draw_chart(plot, {across, unit, x, lines}) {
  const traces = Object.entries(lines).map(([name, y], number) => {
    if (name == "images") return {type: "bar", name, x, y, marker: {line: {width: 0},
      color: y.map((size) => size < lines.bound?.[0] ? level : colours[0])}}
    const color = is_level(name) && name != "equal share" ? level : colours[number]
    return {name, x, y, mode: x.length < 40 && !is_level(name) ? "lines+markers" : "lines",
      line: {color, width: 2, dash: is_level(name) ? "dash" : "solid"}}
  })
  const layout = {...clear, height: 250, margin: {l: 54, r: 10, t: 8, b: 40}, hovermode: "x unified", bargap: 0.1,
    legend: {orientation: "h", y: 1.16}, showlegend: traces.length > 1, xaxis: {title: {text: across}},
    yaxis: {title: {text: unit}, rangemode: unit.includes("nats") ? "normal" : "tozero"}}
  return Plotly.newPlot(plot, traces, layout, {responsive: true, displayModeBar: false})
}

async function copy(button) {
  const code = one("code", button.parentElement)
  try { await navigator.clipboard.writeText(code.textContent) } catch {
    getSelection().selectAllChildren(code)
    document.execCommand("copy")
  }
  button.textContent = "copied"
}

function listen() {
  for (const id of ["order", "which"]) one("#" + id).onchange = arrange
  one("form.controls").onsubmit = (event) => event.preventDefault()
  find.oninput = arrange
  if (one("#head")) one("#head").onchange = (event) => choose_head(+event.target.value)
  one("#all").onclick = () => { grid.classList.remove("few"); arrange() }
  one("#export").onclick = export_chosen
  one("#choose").onclick = () => {
    all(".card:not([hidden]) input[type=checkbox]", grid).forEach((box) => { box.checked = true; chosen.add(+box.closest(".card").dataset.number) })
    arrange()
    draw_map()
  }
  grid.onchange = (event) => {
    const cluster = +event.target.closest(".card").dataset.number
    event.target.checked ? chosen.add(cluster) : chosen.delete(cluster)
    arrange()
    draw_map()
  }
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button, .card a[href^='#c']")
    if (!button) return
    if (button.parentElement.dataset.row) enlarge(place_of.get(+button.parentElement.dataset.row))
    if (button.classList.contains("show")) {
      button.setAttribute("aria-expanded", button.closest(".strip").classList.toggle("open"))
    }
    if (button.matches("a")) {  // to a card that may be hidden now
      grid.classList.remove("few")
      one("#which").value = "all"
      find.value = ""
      arrange()
    }
  })
  one("#before").onclick = () => step(-1)
  one("#after").onclick = () => step(1)
  large.onkeydown = (event) => { if (event.key.startsWith("Arrow")) step(/Left|Up/.test(event.key) ? -1 : 1) }
}

async function start() {
  all(".copy").forEach((button) => (button.onclick = () => copy(button)))
  data = JSON.parse(await unpacked("data"))
  data.cards.unshift([])
  for (const row in data.pictures) data.pictures[row] = "data:image/webp;base64," + data.pictures[row]
  place_of = new Map(data.rows.map((row, place) => [row, place]))
  fill(document)
  if (grid) {
    grid.classList.add("few")
    listen()
    arrange()
  }
  const script = document.createElement("script")
  script.textContent = await unpacked("plotly")
  document.head.append(script)
  draw_map()
  for (const plot of all("[data-chart]")) {
    draw_chart(plot, JSON.parse(plot.dataset.chart))
    await new Promise((done) => setTimeout(done))  // the page stays awake
  }
  document.documentElement.dataset.ready = performance.now().toFixed()  // ms since it was opened
}
start().catch((error) => { console.error(error); all(".script").forEach((part) => (part.hidden = true)) })
