// Images with a label map over them, and a brush that changes it. A pane shows one slice of planes (slice, row, column).

export class Pane {
  constructor(host, view, colors) {
    Object.assign(this, { host, view, colors, slice: 0, window: [0, 255], opacity: .35, showMask: true, undone: [], strokes: [] })
    this.layers = host.appendChild(Object.assign(document.createElement('div'), { className: 'layers' }))
    this.base = this.layers.appendChild(document.createElement('canvas'))
    this.over = this.layers.appendChild(document.createElement('canvas'))
  }

  load(shape, image, mask) { // [slices, rows, columns]; bytes, one or three a pixel; bytes of labels
    [this.slices, this.rows, this.columns] = shape
    Object.assign(this, { image, mask, components: image.length / (shape[0] * shape[1] * shape[2]) })
    for (const c of [this.base, this.over]) { c.width = this.columns; c.height = this.rows }
    this.drawImage(); this.drawMask()
  }

  fit(width, height, zoom) { // CSS pixels of the room
    const ratio = this.columns / (this.rows * this.view.aspect), wide = Math.min(width, height * ratio) * zoom
    this.scale = wide / this.columns
    Object.assign(this.layers.style, { width: `${wide}px`, height: `${wide / ratio}px`,
      transform: `scale(${this.view.flip.map(f => f ? -1 : 1)})` })
  }

  show(slice) { this.slice = slice; this.drawImage(); this.drawMask() }

  drawImage() {
    const n = this.rows * this.columns, m = this.components, from = this.slice * n * m, [low, high] = this.window
    const out = new ImageData(this.columns, this.rows), span = Math.max(1, high - low)
    const look = Uint8ClampedArray.from({ length: 256 }, (_, v) => 255 * (v - low) / span)
    for (let p = 0; p < n; p++) {
      for (let c = 0; c < 3; c++) out.data[4 * p + c] = look[this.image[from + p * m + (m === 3 ? c : 0)]]
      out.data[4 * p + 3] = 255
    }
    this.base.getContext('2d').putImageData(out, 0, 0)
  }

  drawMask(left = 0, top = 0, right = this.columns, bottom = this.rows) { // labels are tinted, their outlines opaque
    const context = this.over.getContext('2d')
    left = Math.max(0, left); top = Math.max(0, top); right = Math.min(this.columns, right); bottom = Math.min(this.rows, bottom)
    if (right <= left || bottom <= top) return
    if (!this.mask || !this.showMask) return context.clearRect(left, top, right - left, bottom - top)
    const out = new ImageData(right - left, bottom - top), w = this.columns, at = this.slice * this.rows * w, m = this.mask
    for (let y = top, q = 0; y < bottom; y++) {
      for (let x = left; x < right; x++, q += 4) {
        const p = at + y * w + x, v = m[p]
        if (!v) continue
        const edge = x > 0 && m[p - 1] !== v || x < w - 1 && m[p + 1] !== v || y > 0 && m[p - w] !== v || y < this.rows - 1 && m[p + w] !== v
        const [r, g, b] = this.colors[(v - 1) % this.colors.length]
        out.data[q] = r; out.data[q + 1] = g; out.data[q + 2] = b; out.data[q + 3] = edge ? 255 : 255 * this.opacity
      }
    }
    context.putImageData(out, left, top)
  }

  pixel(event) { // fractional column and row under a pointer
    const box = this.over.getBoundingClientRect()
    const part = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height]
    return part.map((v, k) => (this.view.flip[k] ? 1 - v : v) * (k ? this.rows : this.columns))
  }

  disc(x, y, radius, label) {
    const at = this.slice * this.rows * this.columns, [top, bottom] = [Math.max(0, Math.ceil(y - radius - .5)), Math.min(this.rows - 1, Math.floor(y + radius - .5))]
    for (let row = top; row <= bottom; row++) {
      const half = Math.sqrt(Math.max(0, radius * radius - (row + .5 - y) ** 2))
      const from = Math.max(0, Math.ceil(x - half - .5)), to = Math.min(this.columns - 1, Math.floor(x + half - .5))
      if (from <= to) this.mask.fill(label, at + row * this.columns + from, at + row * this.columns + to + 1)
    }
  }

  line([x0, y0], [x1, y1], radius, label) {
    const n = Math.max(1, Math.ceil(Math.hypot(x1 - x0, y1 - y0) / Math.max(.5, radius / 2)))
    for (let k = 0; k <= n; k++) this.disc(x0 + (x1 - x0) * k / n, y0 + (y1 - y0) * k / n, radius, label)
    const margin = radius + 2
    this.drawMask(Math.floor(Math.min(x0, x1) - margin), Math.floor(Math.min(y0, y1) - margin),
      Math.ceil(Math.max(x0, x1) + margin), Math.ceil(Math.max(y0, y1) + margin))
  }

  get plane() { const n = this.rows * this.columns; return this.mask.subarray(this.slice * n, this.slice * n + n) }

  begin() { this.strokes.push({ slice: this.slice, before: this.plane.slice() }); this.undone = []; if (this.strokes.length > 200) this.strokes.shift() }

  swap(from, to) { // undo and redo are one step each way
    const step = from.pop()
    if (!step) return false
    this.slice = step.slice
    to.push({ slice: step.slice, before: this.plane.slice() })
    this.plane.set(step.before)
    return true
  }

  undo() { return this.swap(this.strokes, this.undone) }
  redo() { return this.swap(this.undone, this.strokes) }
}

export function attachBrush(pane, tool, changed) { // tool() gives {label, radius, erases}; changed(stroke) when a stroke ends
  const ring = pane.host.appendChild(Object.assign(document.createElement('i'), { className: 'ring' }))
  let last = null, slowest = 0, points = 0
  const timed = does => { const start = performance.now(); does(); slowest = Math.max(slowest, performance.now() - start) }
  const follow = event => {
    const size = 2 * tool().radius * pane.scale, box = pane.host.getBoundingClientRect()
    Object.assign(ring.style, { width: `${size}px`, height: `${size}px`, left: `${event.clientX - box.left + pane.host.scrollLeft - size / 2}px`,
      top: `${event.clientY - box.top + pane.host.scrollTop - size / 2}px`, display: 'block' })
  }
  const paint = event => timed(() => {
    const { radius, label, erases } = tool()
    for (const e of event.getCoalescedEvents?.().length ? event.getCoalescedEvents() : [event]) {
      const to = pane.pixel(e)
      pane.line(last || to, to, radius, erases ? 0 : label); last = to; points++
    }
  })
  pane.over.addEventListener('pointerdown', event => {
    if (event.button || !pane.mask || !pane.showMask) return
    event.preventDefault(); pane.over.setPointerCapture(event.pointerId)
    pane.begin(); points = slowest = 0; last = null; paint(event)
  })
  pane.over.addEventListener('pointermove', event => { follow(event); if (last) paint(event) })
  const end = () => { if (last) { last = null; changed({ ...tool(), slice: pane.slice, points, slowest }) } }
  pane.over.addEventListener('pointerup', end); pane.over.addEventListener('pointercancel', end)
  pane.over.addEventListener('pointerleave', () => { ring.style.display = 'none' })
}

export function markEdges(frame, view) { // which side of the patient each edge of a slice is: left, right, top, bottom
  for (const [k, letter] of (view.letters || []).entries()) frame.append(Object.assign(document.createElement('i'), { className: `edge ${['left', 'right', 'top', 'bottom'][k]}`, textContent: letter }))
}

export async function pack(bytes) { // zlib, then base64
  const packed = new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(new CompressionStream('deflate'))).arrayBuffer())
  let text = ''
  for (let k = 0; k < packed.length; k += 32768) text += String.fromCharCode(...packed.subarray(k, k + 32768))
  return btoa(text)
}
