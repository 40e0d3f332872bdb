-- A div of one of these classes becomes a call of the Typst template's function of that name; HTML styles the class itself.
-- `print` and `web` stand in one of the two editions only. A link to the other document's page is one in the web edition alone.
local boxes = { question = true, notice = true, provenance = true }
local is_typst, is_web = FORMAT:match("typst") ~= nil, FORMAT:match("html") ~= nil
local gap = utf8.char(0x200B)  -- a place where a line may break

local function box(name, content)
  local out = pandoc.List({ pandoc.RawBlock("typst", "#" .. name .. "[") })
  out:extend(content)
  out:insert(pandoc.RawBlock("typst", "]"))
  return out
end

-- Names of models and of papers have no other place to break than behind an underscore and before a digit.
local function breakable(table)
  return table:walk({ Str = function(s)
    return pandoc.Str((s.text:gsub("_", "_" .. gap):gsub("(%a)(%d)", "%1" .. gap .. "%2")))
  end })
end

-- Width of a text in em. Wide letters are wide, points and blanks are narrow.
local function width(text)
  local _, narrow = text:gsub("[%s%.,;:%[%]|'()]", "")
  local _, capital = text:gsub("%u", "")
  return 0.51 * utf8.len(text) - 0.2 * narrow + 0.17 * capital
end

-- Widths of columns: of their longest cell, and of the longest piece that cannot be broken.
local function measure(table)
  local natural, least = {}, {}
  local function look(rows, scale)
    for _, row in ipairs(rows) do
      for k, cell in ipairs(row.cells) do
        local text, longest = pandoc.utils.stringify(cell.contents):gsub(gap, ""), 0
        for piece in text:gsub("_", "_ "):gsub("(%a)(%d)", "%1 %2"):gmatch("%S+") do longest = math.max(longest, width(piece)) end
        natural[k] = math.max(natural[k] or 0, scale * width(text))
        least[k] = math.max(least[k] or 0, scale * longest)
      end
    end
  end
  look(table.head.rows, 1.08)  -- bold
  for _, body in ipairs(table.bodies) do look(body.body, 1.06) end
  return natural, least
end

-- A table's size in points and the widths of its columns, as wide as they need to be, or else as the page is. Typst could find them
-- out, in twice the time.
local SIDES, LARGEST, SMALLEST, PAGE, COLUMN = 7, 8.5, 6.5, 487, 236
local function fit(table, available)
  local natural, least = measure(table)
  local n, sum, sum_least = #natural, 0, 0
  for k = 1, n do sum, sum_least = sum + natural[k], sum_least + least[k] end
  local room = available - SIDES * n
  local size = math.max(SMALLEST, math.min(LARGEST, room / sum))
  size = math.min(size, room / math.max(sum_least, 0.01))  -- rather small than over the margin
  local share = sum * size <= room * 1.001 and 1 or math.max(0, (room / size - sum_least) / math.max(sum - sum_least, 0.01))
  for k = 1, n do
    local column = (least[k] + share * (natural[k] - least[k])) * size + SIDES
    table.colspecs[k] = { table.colspecs[k][1], column / available }
  end
  return string.format("%.2fpt", size)
end

local function float(div)
  local wide = div.classes:includes("wide")
  local suffix, size = wide and "-wide" or "", "8pt"
  if div.classes:includes("figure") then return box("figure-box" .. suffix, div.content) end
  for k, block in ipairs(div.content) do
    if block.t == "Table" then
      size = fit(block, wide and PAGE or COLUMN)
      div.content[k] = breakable(block)
    end
  end
  return box("table-box" .. suffix .. "(" .. size .. ")", div.content)
end

function Div(div)
  if div.classes:includes("print") and is_web then return {} end
  if div.classes:includes("web") and not is_web then return {} end
  if not is_typst then return nil end
  if div.identifier == "refs" then return box("reflist", div.content) end
  if div.classes[1] == "float" then return float(div) end
  if boxes[div.classes[1]] then return box(div.classes[1], div.content) end
end

function Span(span)
  if not is_web and span.classes:includes("number") then return span.content end
end

function Link(link)
  if not is_web and link.target:match("^[%w]+%.html") then return link.content end
end
