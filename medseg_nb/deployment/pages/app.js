// The page: opens cases, shows them, and decides nothing.
import { Review } from '/review.js'

const $ = id => document.getElementById(id)
const make = (tag, text, more = {}) => Object.assign(document.createElement(tag), { textContent: text, ...more })
const webgl = () => { try { return !!document.createElement('canvas').getContext('webgl2') } catch { return false } }
let model, cases = [], now = null, viewer = null, review = null

async function ask(path, options) {
  const answer = await fetch(path, options).catch(() => { throw new Error('The server does not answer; is it still running?') })
  if (answer.ok) return answer.json()
  throw new Error((await answer.json().catch(() => ({}))).error || `the server answered ${answer.status}`)
}

async function work(what, does) {
  document.body.dataset.state = 'busy'; $('message').hidden = true; $('busy').hidden = false; $('busy').textContent = what
  try { await does(); document.body.dataset.state = now ? 'shown' : 'ready' }
  catch (e) { $('message').textContent = e.message; $('message').hidden = false; document.body.dataset.state = 'error' }
  $('busy').hidden = true
}

const facts = (list, rows) => list.replaceChildren(...rows.flatMap(([k, v]) => [make('dt', k), make('dd', v)]))
const number = v => v.toLocaleString('en', { maximumFractionDigits: v < 100 ? 2 : 0 })
const units = { mm3: 'mm³', mm2: 'mm²', px: 'px' }
const size = r => `${number(r.size)}\u00a0${units[r.unit]}` + (r.unit === 'mm3' ? ` (${number(r.size / 1000)}\u00a0ml)` : '')

function list() {
  $('none').hidden = cases.length > 0
  $('cases').replaceChildren(...cases.map(c => {
    const row = make('li', ''), name = make('button', c.name, { className: 'name', title: c.name, onclick: () => show(c) })
    name.setAttribute('aria-current', c === now)
    row.append(name, make('button', '×', { title: `Close ${c.name}`, ariaLabel: `Close ${c.name}`, onclick: () => close(c) }))
    return row
  }))
}

const sums = Uint32Array.from({ length: 256 }, (_, n) => { for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ n >>> 1 : n >>> 1; return n })
const checksum = bytes => { let c = ~0; for (const b of bytes) c = sums[(c ^ b) & 255] ^ c >>> 8; return ~c >>> 0 }
const record = fields => new Uint8Array(fields.flatMap(([value, size]) => [...Array(size).keys()].map(k => value / 2 ** (8 * k) & 255)))

async function zipped(files) {
  const parts = [], index = []
  let at = 0
  for (const f of files) {
    const bytes = new Uint8Array(await f.arrayBuffer()), name = new TextEncoder().encode(f.name), n = bytes.length
    const common = [[20, 2], [0x800, 2], [0, 2], [0, 2], [33, 2], [checksum(bytes), 4], [n, 4], [n, 4], [name.length, 2], [0, 2]]
    parts.push(record([[0x04034b50, 4], ...common]), name, f)
    index.push(record([[0x02014b50, 4], [20, 2], ...common, [0, 2], [0, 2], [0, 2], [0, 4], [at, 4]]), name)
    at += 30 + name.length + n
  }
  const size = index.reduce((sum, p) => sum + p.length, 0), n = files.length
  return new File([...parts, ...index, record([[0x06054b50, 4], [0, 2], [0, 2], [n, 2], [n, 2], [size, 4], [at, 4], [0, 2]])], `${n} slices.zip`)
}

function offer(files, total) {
  const most = model.limits, can = files.length < 65536 && total < most.upload
  const why = `These are ${number(files.length)} files; one upload may have ${number(most.files)}. ${can ? '' : 'Open one series at a time.'}`
  $('message').replaceChildren(why, ...can ? [make('button', 'Send as one zip', { id: 'pack',
    onclick: async () => { let packed; await work('Packing …', async () => { packed = await zipped(files) }); if (packed) await openAll([packed]) } })] : [])
  $('message').hidden = false; document.body.dataset.state = 'error'; $('file').value = ''
}

async function open(chosen) {
  const files = [...chosen], total = files.reduce((sum, f) => sum + f.size, 0)
  if (files.length > model.limits.files) offer(files, total); else await openAll(files)
}

async function openAll(files) {
  if (!files.length || !review.mayLeave()) return
  const form = new FormData(), total = files.reduce((sum, f) => sum + f.size, 0)
  for (const f of files) form.append('files', f, f.name)
  await work('The model works …', async () => {
    if (total > model.limits.upload) throw new Error(`These files have ${number(total)} bytes; one upload may have ${number(model.limits.upload)}.`)
    const found = await ask('/api/cases', { method: 'POST', body: form })
    cases.push(found); await select(found)
  })
  $('file').value = ''
}

const show = c => review.mayLeave() && work('Loading …', () => select(c))
const close = c => review.mayLeave() && work('Closing …', async () => {
  await ask(`/api/cases/${c.id}`, { method: 'DELETE' })
  cases = cases.filter(x => x !== c)
  if (c === now) await select(cases.at(-1) || null); else list()
})

let shownCase = ''

async function select(c) {
  if (c !== now) review.leave()
  now = c; list(); review.show(c)
  for (const id of ['facts', 'controls']) $(id).hidden = !c
  document.body.dataset.version = c ? c.version : ''
  $('hello').hidden = !!c
  if (!c) { for (const id of ['layers', 'volume']) $(id).hidden = true; letters(null); return }
  $('title').textContent = c.name
  facts($('about'), [['Size', c.shape.join(' × ')], ['Spacing', c.spacing ? c.spacing.map(v => number(v)).join(' × ') + ' mm' : 'unknown']])
  $('counted').textContent = model.instances ? 'Objects' : c.kind === 'volume' ? 'Voxels' : 'Pixels'
  $('sizes').replaceChildren(...c.sizes.map(r => {
    const row = make('tr', ''), name = make('td', ''), chip = make('i', '')
    if (!model.instances) { chip.style.background = r.colour; name.append(chip) }
    name.append(r.name)
    row.append(name, make('td', size(r), { className: 'number' }), make('td', number(model.instances ? r.objects : r.pixels), { className: 'number' }))
    return row
  }))
  const names = { png: 'PNG', 'nii.gz': 'NIfTI', dcm: 'DICOM SEG' }
  $('exports').replaceChildren(...Object.entries(c.exports).sort((a, b) => a[1].length - b[1].length).map(([kind, why]) => why ? make('p',
                                                            `${names[kind]}: ${why}.`, { className: 'soft' })
    : make('a', names[kind], { className: 'button', href: `/api/cases/${c.id}/mask.${kind}`, download: '' })),
    make('a', 'Report (PDF)', { className: 'button', id: 'report', href: `/api/cases/${c.id}/report.pdf`, download: '' }))
  $('send').hidden = !model.archive || !!c.exports.dcm
  $('slice').max = c.slices - 1; if (shownCase !== c.id) $('slice').value = c.busiest
  shownCase = c.id
  $('which').hidden = model.channels.length < 2 || c.kind === 'picture' && model.channels.length === 3
  await draw()
}

function letters(v) { ['left', 'right', 'top', 'bottom'].forEach((id, n) => { $(id).textContent = v?.letters?.[n] || '' }) }

async function draw() {
  const volume = now.kind === 'volume', able = volume && model.niivue && webgl(), inside = able && $('view').value === 'niivue' && !review.busy
  $('how').hidden = !able; $('slide').hidden = !volume || inside; $('layers').hidden = inside; $('volume').hidden = !inside
  $('scale').hidden = !$('show-uncertainty').checked
  $('remark').textContent = [volume && !model.niivue ? 'Slices as pictures: NiiVue is not here (make app brings it).' : '',
    volume && model.niivue && !webgl() ? 'Slices as pictures: this browser has no WebGL2.' : '',
    model.uncertainty ? '' : model.instances ? 'A model that counts objects gives no uncertainty.' 
      : 'This model gives no uncertainty.'].filter(Boolean).join(' ')
  letters(inside ? null : now.view)
  document.body.dataset.view = inside ? 'niivue' : 'pictures'
  await (inside ? drawVolume() : drawSlice())
}

async function drawSlice() {
  const k = +$('slice').value, at = `/api/cases/${now.id}`
  const [w, h] = now.kind === 'volume' ? [now.shape[0], now.shape[1]] : [now.shape[1], now.shape[0]], ratio = w / (h * now.view.aspect)
  $('at').textContent = `${k + 1} of ${now.slices}`
  const stage = $('stage'), width = stage.clientWidth - 52, height = stage.clientHeight - 52, wide = Math.min(width, height * ratio)
  Object.assign($('layers').style, { width: `${wide}px`, height: `${wide / ratio}px`, transform: `scale(${now.view.flip.map(f => f ? -1 : 1)})` })
  const part = { image: `image/${k}.png?channel=${$('which').hidden ? 0 : $('channel').value}`, mask: `mask/${k}.png?version=${now.version}`, uncertainty: `uncertainty/${k}.png` }
  await Promise.all(Object.entries(part).map(async ([id, address]) => {
    const shown = id === 'image' || $(`show-${id}`).checked
    $(id).hidden = !shown
    if (!shown) return
    $(id).style.opacity = id === 'mask' ? $('opacity').value / 100 : 1
    if (!$(id).src.endsWith(`${at}/${address}`)) $(id).src = `${at}/${address}`
    await $(id).decode().catch(() => { 
      if ($(id).src.endsWith(`${at}/${address}`)) throw new Error('A picture of this slice did not come; look at the terminal.') })
  }))
  document.body.dataset.slice = k; review.place(k)
}

const rgb = v => (model.instances ? model.palette[(v - 1) % model.palette.length] : model.labels.find(l => l.label === v)?.colour) || '#ffffff'

async function changed(c) { cases[cases.findIndex(x => x.id === c.id)] = c; await select(c) }

function labels(c) {
  const top = Math.max(1, c.highest), n = [...Array(top + 1).keys()]
  const part = at => n.map(v => v ? parseInt(rgb(v).slice(at, at + 2), 16) : 0)
  return { R: part(1), G: part(3), B: part(5), A: n.map(v => v ? 255 : 0), I: n, labels: n.map(v => v ? String(v) : '') }
}

async function drawVolume() {
  const { Niivue } = await import('/niivue.js'), at = `/api/cases/${now.id}`, channel = $('which').hidden ? 0 : +$('channel').value
  if (!viewer) {
    viewer = new Niivue({ backColor: [0, 0, 0, 1], dragAndDropEnabled: false, show3Dcrosshair: true, loadingText: '', crosshairWidth: .4,
                         crosshairColor: [1, .82, .4, .6],
      fontColor: [1, .82, .4, 1], fontMinPx: 16, isRadiologicalConvention: true })
    viewer.addColormap('unsure', { R: [255, 212, 128], G: [220, 148, 3], B: [0, 85, 255], A: [0, 57, 170], I: [0, 85, 255] })
    await viewer.attachToCanvas($('gl'))
  }
  const wanted = `${at} ${now.version} ${channel} ${$('show-uncertainty').checked}`
  if (viewer.shown !== wanted) {
    const [low, high] = now.window[channel]
    await viewer.loadVolumes([{ url: `${at}/image.nii.gz?channel=${channel}`, name: 'image.nii.gz', colormap: 'gray', cal_min: low, cal_max: high },
      { url: `${at}/mask.nii.gz?version=${now.version}`, name: 'mask.nii.gz', opacity: 0 },
      ...$('show-uncertainty').checked ? [{ url: `${at}/uncertainty.nii.gz`, name: 'uncertainty.nii.gz', colormap: 'unsure', cal_min: 0, cal_max: 1,
                                           opacity: .6 }] : []])
    viewer.volumes[1].setColormapLabel(labels(now)); viewer.updateGLVolume(); viewer.shown = wanted
  }
  viewer.setOpacity(1, $('show-mask').checked ? $('opacity').value / 100 : 0)
  document.body.dataset.slice = 'all'
}

const redraw = () => now && work('Loading …', draw)
for (const id of ['slice', 'opacity']) $(id).oninput = () => review.turn() || redraw()
for (const id of ['show-mask', 'show-uncertainty', 'channel', 'view']) $(id).onchange = () => review.turn() || redraw()
addEventListener('resize', () => now && document.body.dataset.view === 'pictures' && (review.fit(), drawSlice()))
$('file').onchange = () => open($('file').files)
$('drop').onkeydown = e => { if (e.key === 'Enter' || e.key === ' ') { e.preventDefault(); $('file').click() } }
for (const kind of ['dragover', 'dragleave', 'drop']) addEventListener(kind,
                                                            e => { e.preventDefault(); $('drop').classList.toggle('over', kind === 'dragover') })
addEventListener('drop', e => open(e.dataTransfer.files))

work('Loading …', async () => {
  model = await ask('/api/model'); cases = await ask('/api/cases')
  review = new Review({ ask, work, redraw: draw, changed, model, rgb })
  facts($('model'), [['Name', model.name], ['Takes', model.channels.join(', ')], ['Segments', model.labels.map(l => l.name).join(', ')]])
  $('channel').replaceChildren(...model.channels.map((name, n) => make('option', name, { value: n })))
  $('view').value = webgl() ? 'niivue' : 'pictures'
  $('sure').hidden = !model.uncertainty
  if (cases.length) await select(cases.at(-1)); else list()
})
