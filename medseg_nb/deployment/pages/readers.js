// The page of a reader: shows one reading after the other, keeps what is drawn and answered, and decides nothing.
import { Pane, attachBrush, markEdges, pack } from '/brush.js'

const $ = id => document.getElementById(id)
const make = (tag, text = '', more = {}) => Object.assign(document.createElement(tag), { textContent: text, ...more })
let study, now = null, panes = [], zoom = 1, erases = false, actions = [], changedMask = false, timer = 0, saving = Promise.resolve()
let seconds = 0, since = 0 // time with the reading in sight, and since when it is counted

async function ask(path, body) {
  const options = body ? { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) } : {}
  const answer = await fetch(path, options).catch(() => { throw new Error('The server does not answer. Nothing is lost: wait, and keep it again.') })
  if (answer.ok) return answer
  throw new Error((await answer.json().catch(() => ({}))).error || `The server answered ${answer.status}.`)
}
const json = async (path, body) => (await ask(path, body)).json()
const bytes = async path => new Uint8Array(await (await ask(path)).arrayBuffer())
const state = name => { document.body.dataset.state = name }
const spent = () => seconds + (since ? (performance.now() - since) / 1000 : 0)
const act = (kind, more = {}) => actions.push({ at: Math.round(spent() * 1000) / 1000, kind, ...more })

async function work(does) {
  state('busy'); $('message').hidden = true; $('submit').disabled = true
  try { await does() } catch (e) { $('message').textContent = e.message; $('message').hidden = false; $('form').hidden = false; state('error') }
  $('submit').disabled = false
}

// Questions

function options(question, values) {
  const several = question.kind === 'several'
  const box = make('div', '', { className: `options ${several ? 'choice several' : question.kind}${values.length === 3 ? ' short' : ''}` })
  for (const v of values) {
    const label = make('label'), input = make('input', '', { type: several ? 'checkbox' : 'radio', name: question.name, value: v })
    input.onchange = () => { act('answer', { question: question.name, value: v }); later() }
    label.append(input, v); box.append(label)
  }
  return box
}

function percent(question) {
  const box = make('div', '', { className: 'percent open' }), out = make('output', '– %')
  const input = make('input', '', { type: 'range', min: 0, max: 100, value: 50, name: question.name, ariaLabel: question.text })
  const take = () => { box.classList.remove('open'); out.textContent = `${input.value} %`; later() }
  input.oninput = input.onclick = take
  box.append(input, out)
  return box
}

function ask_one(question) {
  const set = make('fieldset', '', { id: `q-${question.name}` })
  set.append(make('legend', question.text + (question.required ? '' : ' (optional)')))
  if (question.kind === 'scale') set.append(options(question, ['1', '2', '3', '4', '5']))
  if (['choice', 'several'].includes(question.kind)) set.append(options(question, question.options))
  if (question.kind === 'percent') set.append(percent(question))
  if (question.kind === 'text') set.append(make('textarea', '', { name: question.name, maxLength: 4000, ariaLabel: question.text, oninput: later }))
  if (question.ends?.some(Boolean)) { const ends = make('div', '', { className: 'ends' }); ends.append(...question.ends.map(e => make('span', e))); set.append(ends) }
  return set
}

function answers() {
  const form = new FormData($('form')), names = [...new Set(form.keys())].filter(name => !$('form').elements[name].closest?.('.open'))
  return Object.fromEntries(names.map(name => [name, form.getAll(name).join('; ')]).filter(([, v]) => v !== ''))
}

function fill(kept) {
  for (const [name, value] of Object.entries(kept)) {
    const field = $('form').elements[name]
    if (!field) continue
    const boxes = field.length && field[0].type === 'checkbox' ? [...field] : []
    for (const box of boxes) box.checked = value.split('; ').includes(box.value)
    if (!boxes.length) field.value = value
    if (field.type === 'range') { field.parentElement.classList.remove('open'); field.nextSibling.textContent = `${value} %` }
  }
}

// A reading

const tool = () => ({ radius: +$('size').value / 2, label: +$('label').value, erases })
const colors = () => study.colors.map(c => [1, 3, 5].map(k => parseInt(c.slice(k, k + 2), 16)))

async function image() { return bytes(`/api/readings/${now.code}/image?channel=${$('channel').value || 0}`) }

async function masks() {
  if (now.draft) return [await bytes(`/api/readings/${now.code}/draft`)]
  if (!now.panes) return study.corrects ? [new Uint8Array(now.shape.reduce((a, b) => a * b))] : [null]
  return Promise.all([...Array(now.panes).keys()].map(k => bytes(`/api/readings/${now.code}/mask/${k}`)))
}

async function showReading() {
  for (const p of panes) p.host.closest('.pane').remove()
  $('channel').replaceChildren(...now.channels.map((name, n) => make('option', name, { value: n })))
  $('slice').max = now.shape[0] - 1; $('slice').value = Math.floor(now.shape[0] / 2); zoom = 1; erases = false; actions = []; changedMask = false
  $('slide').hidden = now.shape[0] === 1; $('which').hidden = now.channels.length < 2; $('brush-tools').hidden = !study.corrects
  $('show').hidden = !now.panes && !study.corrects; $('show-mask').checked = true; $('contrast').value = 100; $('level').value = 50
  const [pixels, found] = await Promise.all([image(), masks()])
  panes = found.map((mask, k) => {
    const host = make('div', '', { className: `stage${study.corrects ? ' draws' : ''}`, id: `stage-${k}` }), box = make('div', '', { className: 'pane' })
    if (found.length > 1) box.append(make('h2', ['Left', 'Right'][k]))
    const frame = make('div', '', { className: 'frame' }); frame.append(host); markEdges(frame, now.view)
    box.append(frame); $('stages').append(box)
    const pane = new Pane(host, now.view, colors())
    pane.slice = +$('slice').value; pane.load(now.shape, pixels, mask)
    if (study.corrects) attachBrush(pane, tool, stroke => { act('stroke', stroke); document.body.dataset.stroke = stroke.slowest.toFixed(2); changedMask = true; later() })
    return pane
  })
  $('number').textContent = `Reading ${now.number} of ${now.total}` + (now.sessions > 1 ? `, session ${now.session} of ${now.sessions}` : '')
  $('questions').replaceChildren(...study.questions.map(ask_one)); fill(now.answers)
  for (const id of ['form', 'tools', 'keys']) $(id).hidden = false
  $('hello').hidden = true; $('saved').textContent = ''; document.body.dataset.code = now.code
  seconds = now.seconds; since = document.hidden ? 0 : performance.now()
  pressed(); resize(); redraw(); state('reading')
}

function showUsability() {
  $('questions').replaceChildren(...study.statements.map((text, k) => ask_one({ name: `s${k + 1}`, kind: 'scale', text: `${k + 1}. ${text}`,
    ends: ['strongly disagree', 'strongly agree'], required: true })))
  alone('You have read all cases. Please say at last how you found this page to use.'); $('form').hidden = false; $('number').textContent = ''; state('usability')
}

function alone(text) {
  document.querySelector('main').classList.add('alone'); $('hello').textContent = text; $('hello').hidden = false
  for (const id of ['form', 'keys', 'tools']) $(id).hidden = true
}

async function next() {
  now = await json('/api/next'); since = 0
  document.querySelector('main').classList.remove('alone')
  if (now.state === 'reading') return showReading()
  if (now.state === 'usability') return showUsability()
  alone(now.state === 'wait' ? `This session is complete. The next one opens on ${new Date(now.until * 1000).toLocaleString()}.` : 'You have finished. Thank you.')
  state(now.state)
}

// What is kept

async function body(final) {
  const mask = study.corrects && (final || changedMask) ? { mask: await pack(panes[0].mask), shape: now.shape } : {}
  const sent = actions; actions = []; changedMask = false
  return { seat: study.seat, seconds: spent(), answers: answers(), actions: sent, final, ...mask }
}

function later() { clearTimeout(timer); $('saved').textContent = 'Not kept yet'; timer = setTimeout(() => { saving = draft() }, 700) }

async function draft() {
  if (now?.state !== 'reading') return
  const code = now.code, sent = await body(false)
  try { await json(`/api/readings/${code}`, sent); if (now.code === code) { $('saved').textContent = 'Draft kept'; document.body.dataset.kept = Date.now() } }
  catch (e) { actions = [...sent.actions, ...actions]; changedMask ||= !!sent.mask; $('saved').textContent = e.message }
}

$('form').onsubmit = event => {
  event.preventDefault(); clearTimeout(timer)
  work(async () => {
    await saving
    if (now.state === 'usability') await json('/api/usability', { seat: study.seat, answers: study.statements.map((_, k) => +(answers()[`s${k + 1}`] || 0)) })
    else {
      const sent = await body(true)
      try { await json(`/api/readings/${now.code}`, sent) } catch (e) { actions = [...sent.actions, ...actions]; changedMask = true; throw e }
    }
    await next()
  })
}

document.addEventListener('visibilitychange', () => {
  if (now?.state !== 'reading') return
  if (document.hidden) { seconds = spent(); since = 0; act('hidden') } else { since = performance.now(); act('visible') }
})

// Tools and keys

function pressed() {
  $('brush').setAttribute('aria-pressed', !erases); $('eraser').setAttribute('aria-pressed', erases); $('size-value').textContent = `${$('size').value} px`
}
function resize() { for (const p of panes) p.fit(p.host.clientWidth - 8, p.host.clientHeight - 8, zoom) }
function redraw() {
  const k = +$('slice').value, half = 127.5 * $('contrast').value / 100, middle = 255 - 2.55 * $('level').value
  $('at').textContent = `${k + 1} of ${now?.shape?.[0] ?? 1}`
  for (const p of panes) { p.window = [middle - half, middle + half]; p.showMask = $('show-mask').checked; p.show(k) }
  document.body.dataset.slice = k
}
const step = (id, by) => { $(id).value = +$(id).value + by; $(id).dispatchEvent(new Event('input')) }
const use = value => { erases = value; pressed() }
function history(does) { if (study.corrects && panes[0]?.[does]()) { $('slice').value = panes[0].slice; redraw(); act(does); changedMask = true; later() } }
const scaled = by => { zoom = Math.min(16, Math.max(1, zoom * by)); resize() }

$('brush').onclick = () => use(false); $('eraser').onclick = () => use(true); $('size').oninput = pressed
$('undo').onclick = () => history('undo'); $('redo').onclick = () => history('redo')
$('smaller').onclick = () => scaled(1 / 1.5); $('larger').onclick = () => scaled(1.5)
for (const id of ['slice', 'contrast', 'level', 'show-mask']) $(id).oninput = redraw
$('slice').onchange = () => act('slice', { slice: +$('slice').value })
$('channel').onchange = () => work(async () => { const found = await image(); for (const p of panes) p.image = found; redraw(); state('reading') })
$('stages').addEventListener('wheel', e => { if (now?.shape?.[0] > 1 && !e.ctrlKey) { e.preventDefault(); step('slice', Math.sign(e.deltaY)) } }, { passive: false })
addEventListener('resize', resize)

function answerNext(value) {
  const open = now.state === 'usability' ? study.statements.map((_, k) => `s${k + 1}`) : study.questions.filter(q => q.kind === 'scale').map(q => q.name)
  const here = document.activeElement.closest?.('fieldset')?.querySelector('.scale input')?.name, name = here || open.find(n => !answers()[n])
  const field = name && [...$('form').elements[name]].find(f => f.value === value)
  if (field) { field.click(); field.focus({ preventScroll: false }) }
}
const KEYS = { b: () => use(false), e: () => use(true), '[': () => step('size', -1), ']': () => step('size', 1), z: () => history('undo'), y: () => history('redo'),
  m: () => $('show-mask').click(), '+': () => scaled(1.5), '=': () => scaled(1.5), '-': () => scaled(1 / 1.5) }
addEventListener('keydown', e => {
  if (e.key === 'Enter' && (e.ctrlKey || e.metaKey)) { e.preventDefault(); return $('form').requestSubmit() }
  const field = e.target.closest?.('textarea, select, input'), typed = field && field.type !== 'radio' && field.type !== 'checkbox' && field.type !== 'range'
  if (typed || now?.state !== 'reading' && now?.state !== 'usability') return
  if ('12345'.includes(e.key) && e.key) return answerNext(e.key)
  if (now.state !== 'reading') return
  if ((e.ctrlKey || e.metaKey) && !'zy'.includes(e.key)) return
  if (['ArrowUp', 'ArrowDown'].includes(e.key) && (!field || field.type === 'checkbox')) { e.preventDefault(); return step('slice', e.key === 'ArrowUp' ? 1 : -1) }
  const does = KEYS[e.key.toLowerCase()]
  if (does) { e.preventDefault(); does() }
})

work(async () => {
  study = await json('/api/enter', {})
  document.title = study.title; document.querySelector('h1').textContent = study.title
  $('label').replaceChildren(...study.labels.map(l => make('option', l.name, { value: l.label }))); $('label-choice').hidden = study.labels.length < 2
  await next()
})
