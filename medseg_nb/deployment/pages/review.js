// What a person does with a mask: accept, correct, ask why, send. The server keeps it and decides what stands.
import { Pane, attachBrush, pack } from '/brush.js'

const $ = id => document.getElementById(id)
const make = (tag, text, more = {}) => Object.assign(document.createElement(tag), { textContent: text, ...more })
const post = body => ({ method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) })
const session = crypto.getRandomValues(new Uint32Array(3)).join('-') // of this tab: its new question ends its last one
const targetNames = { instance: 'object', contrast: 'class, and not another', uncertainty: 'uncertainty here', 'uncertainty:region': 'uncertainty of the region' }
const bytes = async path => { const found = await fetch(path); if (!found.ok) throw new Error((await found.json()).error); return found.arrayBuffer() }

async function* lines(body) { // of an answer that comes bit by bit, each from JSON; who leaves the loop ends the answer
  const reader = body.getReader(), decoder = new TextDecoder()
  try {
    for (let rest = '', part; !(part = await reader.read()).done;) {
      const found = (rest + decoder.decode(part.value, { stream: true })).split('\n')
      rest = found.pop()
      for (const line of found) yield JSON.parse(line)
    }
  } finally { reader.cancel().catch(() => {}) }
}

export class Review {
  constructor(page) { // {ask, work, redraw, changed, model, rgb} of the page
    Object.assign(this, { page, now: null, pane: null, erases: false, asks: false, point: null, begun: 0, undone: 0, running: false })
    $('brush').onclick = () => this.use(false); $('eraser').onclick = () => this.use(true); $('size').oninput = () => this.pressed()
    $('undo').onclick = () => this.step('undo'); $('redo').onclick = () => this.step('redo')
    $('accept').onclick = () => this.decide('accept'); $('restore').onclick = () => this.decide('restore')
    $('correct').onclick = () => this.begin(); $('save').onclick = () => this.save(); $('discard').onclick = () => this.discard()
    $('explain').onclick = () => this.toggleExplain(); $('cancel').onclick = () => this.cancel(); $('send').onclick = () => this.send()
    $('layers').onclick = event => this.clicked(event); $('what').onchange = () => this.offerTarget()
    addEventListener('keydown', event => this.key(event))
    addEventListener('beforeunload', event => { if (this.dirty) event.preventDefault() })
  }

  get busy() { return !!this.pane || this.asks }
  get dirty() { return !!this.pane && this.pane.strokes.length > 0 }

  show(c) {
    if (this.running) this.cancel()
    this.now = c; $('explained').hidden = $('cross').hidden = true; this.point = this.why = null; $('reason').textContent = $('sent').textContent = ''
    if (!c) return
    const d = c.change, unit = c.kind === 'volume' ? 'voxels' : 'pixels'
    $('verdict').textContent = { '': 'Not reviewed yet.', accepted: 'The model’s mask was accepted.' }[c.review]
      ?? `Corrected: ${d.added} ${unit} added, ${d.removed} removed${d.relabelled ? `, ${d.relabelled} relabelled` : ''}; Dice ${d.dice.toFixed(3)}.${c.review.includes('accepted') ? ' Accepted.' : ''}`
    $('restore').disabled = !d
    document.body.dataset.review = c.review
    this.offer()
  }

  // Decisions

  decide(kind) { if (!this.pane && this.now) this.page.work('Keeping …', async () => this.page.changed(await this.page.ask(`/api/cases/${this.now.id}/review`, post({ kind })))) }

  send() {
    this.page.work('Sending …', async () => { const found = await this.page.ask(`/api/cases/${this.now.id}/send`, { method: 'POST' }); $('sent').textContent = `Sent to ${found.to}.` })
  }

  // Correction

  async begin() {
    if (this.pane || !this.now) return
    if (this.asks) this.toggleExplain()
    await this.page.work('Loading …', async () => {
      const c = this.now, channel = $('which').hidden ? 0 : $('channel').value
      const shape = c.kind === 'volume' ? [c.slices, c.shape[1], c.shape[0]] : [1, ...c.shape]
      const [pixels, labels] = await Promise.all([bytes(`/api/cases/${c.id}/planes?channel=${channel}`), bytes(`/api/cases/${c.id}/labels`)])
      $('paint').replaceChildren(); $('paint').hidden = false
      this.pane = new Pane($('paint'), c.view, this.colors())
      this.pane.slice = +$('slice').value; this.pane.load(shape, new Uint8Array(pixels), new Uint16Array(labels))
      this.shape = shape; this.erases = false; this.undone = 0; this.begun = performance.now(); this.offerLabels()
      attachBrush(this.pane, () => this.tool(), stroke => { document.body.dataset.stroke = stroke.slowest.toFixed(2); this.drawn() })
      await this.page.redraw(); this.layout()
    })
    document.body.dataset.mode = 'correct'
  }

  colors() { return [...Array(Math.max(8, this.now.highest + 1)).keys()].map(v => [1, 3, 5].map(k => parseInt(this.page.rgb(v + 1).slice(k, k + 2), 16))) }
  tool() { return { radius: +$('size').value / 2, label: +$('label').value, erases: this.erases } }

  offerLabels() {
    const counts = this.page.model.instances, top = this.now.highest
    const known = counts ? [{ label: top + 1, name: 'a new object' }, ...[...Array(top).keys()].map(k => ({ label: k + 1, name: `object ${k + 1}` }))] : this.page.model.labels
    $('label').replaceChildren(...known.map(l => make('option', l.name, { value: l.label }))); $('label-choice').hidden = known.length < 2
  }

  layout() { // while a mask is corrected the canvases lie in the place of the pictures
    const on = !!this.pane
    $('layers').hidden = on || document.body.dataset.view === 'niivue'; $('brush-tools').hidden = !on; $('paint').hidden = !on
    for (const id of ['accept', 'correct', 'explain']) $(id).disabled = on
    $('restore').disabled = on || !this.now?.change
    if (on) { this.pressed(); this.fit(); this.turn() } else { $('paint').replaceChildren(); delete document.body.dataset.mode }
  }

  fit() { this.pane?.fit($('paint').clientWidth, $('paint').clientHeight, 1) }

  turn() { // the sliders of the page, while a mask is corrected
    if (!this.pane) return false
    const k = +$('slice').value
    this.pane.opacity = $('opacity').value / 100; this.pane.showMask = $('show-mask').checked; this.pane.show(k)
    $('at').textContent = `${k + 1} of ${this.now.slices}`; document.body.dataset.slice = k
    return true
  }

  use(value) { this.erases = value; this.pressed() }

  pressed() {
    $('brush').setAttribute('aria-pressed', !this.erases); $('eraser').setAttribute('aria-pressed', this.erases); $('size-value').textContent = `${$('size').value} px`
    $('undo').disabled = !this.pane?.strokes.length; $('redo').disabled = !this.pane?.undone.length; $('save').disabled = !this.dirty
  }

  drawn() { this.pressed(); document.body.dataset.strokes = this.pane.strokes.length }

  step(does) {
    if (!this.pane?.[does]()) return
    if (does === 'undo') this.undone++
    $('slice').value = this.pane.slice; this.turn(); this.drawn()
  }

  save() {
    if (!this.dirty) return
    this.page.work('Saving …', async () => {
      const mask = await pack(new Uint8Array(this.pane.mask.buffer, this.pane.mask.byteOffset, this.pane.mask.byteLength))
      const body = { kind: 'correct', mask, shape: this.shape, strokes: this.pane.strokes.length, undone: this.undone, seconds: (performance.now() - this.begun) / 1000 }
      const found = await this.page.ask(`/api/cases/${this.now.id}/review`, post(body))
      this.pane = null; this.layout(); await this.page.changed(found)
    })
  }

  discard() {
    if (!this.pane || this.dirty && !confirm('Discard what was drawn?')) return
    this.leave(); this.page.work('Loading …', () => this.page.redraw())
  }

  leave() { if (this.pane) { this.pane = null; this.layout() } if (this.asks) this.toggleExplain(false) }
  mayLeave() { return !this.dirty || confirm('Discard what was drawn?') }

  // Explanation

  async offer() {
    if (this.offered) return
    this.offered = true
    const found = await this.page.ask('/api/explanations').catch(e => ({ quick: [], slow: [], targets: [], reason: e.message }))
    const named = (list, note) => list.map(m => make('option', m.replaceAll('_', ' ').replace('grad cam pp', 'Grad-CAM++').replace('grad cam', 'Grad-CAM').replace(/^./, s => s.toUpperCase()) + note, { value: m }))
    $('method').replaceChildren(...named(found.quick, ''), ...named(found.slow, ' (slow)'))
    this.meanings = Object.fromEntries(found.targets.map(t => [t.name, t.meaning]))
    $('what').replaceChildren(...found.targets.map(t => make('option', targetNames[t.name] ?? t.name, { value: t.name })))
    const classes = [{ label: 0, name: 'background' }, ...this.page.model.labels.filter(l => l.label)]
    $('against').replaceChildren(make('option', 'next likely', { value: '' }), ...classes.map(l => make('option', l.name, { value: l.label })))
    for (const id of ['explain', 'method', 'what', 'against']) $(id).disabled = !found.quick.length
    this.offerTarget()
    if (found.reason) $('reason').textContent = `No explanation: ${found.reason}`
    document.body.dataset.explains = found.quick.length
  }

  offerTarget() {
    $('against-choice').hidden = $('what').value !== 'contrast'
    $('meaning').textContent = (this.meanings[$('what').value] || '').replace(/^./, s => s.toUpperCase())
  }

  toggleExplain(on = !this.asks) {
    if (this.pane || $('method').disabled) return
    if (!on && this.running) this.cancel()
    this.asks = on; $('explain').setAttribute('aria-pressed', on); $('layers').classList.toggle('asks', on); $('layers').tabIndex = on ? 0 : -1
    $('cross').hidden = true; this.point = null
    if (!on) { $('explained').hidden = true; this.why = null }
    if ($('view').value === 'niivue' && this.now?.kind === 'volume') this.page.work('Loading …', () => this.page.redraw())
    $('reason').textContent = on ? 'Click on the image.' : ''
  }

  size() { const c = this.now; return c.kind === 'volume' ? [c.shape[0], c.shape[1]] : [c.shape[1], c.shape[0]] }

  mark() { // where the point lies on the picture, which may be mirrored
    const [w, h] = this.size()
    Object.assign($('cross').style, { left: `${100 * (this.point[0] + .5) / w}%`, top: `${100 * (this.point[1] + .5) / h}%` }); $('cross').hidden = false
  }

  clicked(event) {
    if (!this.asks) return
    const box = $('layers').getBoundingClientRect(), part = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height]
    this.point = part.map((v, k) => Math.min(this.size()[k] - 1, Math.max(0, Math.floor((this.now.view.flip[k] ? 1 - v : v) * this.size()[k]))))
    this.mark(); this.explain()
  }

  question() {
    const [x, y] = this.point, what = $('what').value, against = what === 'contrast' && $('against').value
    return { x, y, k: +$('slice').value, what, method: $('method').value, session, ...against ? { against: +against } : {} }
  }

  async explain() {
    const c = this.now, asked = this.question(), ticket = this.ticket = {}
    this.why = null; this.running = true; this.wait(true); $('reason').textContent = 'Asking the model …'; document.body.dataset.why = 'asked'
    try {
      const answer = await fetch(`/api/cases/${c.id}/explanation/steps`, post(asked))
      if (!answer.ok) throw new Error((await answer.json()).error)
      for await (const { step, found, error } of lines(answer.body)) {
        if (ticket !== this.ticket || c !== this.now) return
        if (error) throw new Error(error)
        if (step) this.progress(step, asked.k); else this.answered(found)
      }
      if (!this.why?.label) throw new Error('The server stopped before it answered.')
    } catch (e) { if (ticket === this.ticket) { this.why = null; $('explained').hidden = true; $('reason').textContent = e.message; document.body.dataset.why = 'none' } }
    finally { if (ticket === this.ticket) { this.running = false; this.wait(false) } }
  }

  wait(on) { // while the server works
    $('cancel').hidden = $('progress').hidden = !on; $('so-far').textContent = ''; $('done').removeAttribute('value')
    if (on) $('explained').hidden = true
  }

  progress(step, k) {
    if (step.done !== null) $('done').value = step.done
    $('so-far').textContent = (step.done === null ? `${step.passes} passes` : `${Math.round(100 * step.done)} %`) + (step.picture ? ', provisional map' : '')
    if (!step.picture) return
    this.why = { k, picture: step.picture }; this.place(+$('slice').value); document.body.dataset.why = 'provisional'
  }

  answered(found) {
    this.why = found; this.place(+$('slice').value)
    $('reason').textContent = `${found.label.replace(/^./, s => s.toUpperCase())}: ${found.score_is} ${found.score.toFixed(2)}. Red speaks for it, blue against it. ${found.forward} passes, ${found.seconds.toFixed(2)} s.`
    document.body.dataset.why = 'shown'
  }

  place(k) { // an explanation belongs to the slice of which it was asked
    $('explained').hidden = !this.why || this.why.k !== k
    if (this.why && !$('explained').hidden) $('explained').src = this.why.picture
  }

  cancel() { fetch(`/api/explanation?session=${session}`, { method: 'DELETE' }) }

  // Keys

  move(key) {
    const [w, h] = this.size(), by = Math.max(1, Math.round(Math.max(w, h) / 64)), flip = this.now.view.flip.map(f => f ? -1 : 1)
    const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key]
    const [x, y] = this.point || [Math.floor(w / 2), Math.floor(h / 2)], within = (v, n) => Math.min(n - 1, Math.max(0, v))
    this.point = [within(x + dx * by * flip[0], w), within(y + dy * by * flip[1], h)]; this.mark()
  }

  slide(by) { $('slice').value = +$('slice').value + by; $('slice').dispatchEvent(new Event('input')) }
  resize(by) { $('size').value = +$('size').value + by; this.pressed() }

  key(event) {
    const field = event.target.closest?.('select, textarea, input:not([type=range]):not([type=checkbox])'), named = event.key.toLowerCase(), held = event.ctrlKey || event.metaKey
    if (!this.now || field && named !== 'escape') return
    const arrow = event.key.startsWith('Arrow')
    const does = held ? { s: () => this.save(), z: () => this.step('undo'), y: () => this.step('redo') }[named]
      : arrow && event.shiftKey ? this.asks && (() => this.move(event.key))
      : { b: () => this.use(false), e: () => this.use(true), z: () => this.step('undo'), y: () => this.step('redo'), '[': () => this.resize(-1), ']': () => this.resize(1),
        a: () => this.decide('accept'), c: () => this.begin(), x: () => this.toggleExplain(), m: () => $('show-mask').click(), escape: () => this.pane ? this.discard() : this.cancel(),
        arrowup: event.target.type !== 'range' && (() => this.slide(1)), arrowdown: event.target.type !== 'range' && (() => this.slide(-1)),
        enter: this.asks && this.point && !event.target.closest?.('button, a, summary, label') && (() => this.explain()) }[named]
    if (does) { event.preventDefault(); does() }
  }
}
