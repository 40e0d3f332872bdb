-- A div of one of these classes becomes a call of the Typst template's function of that name; HTML styles the class itself.
local boxes = { question = true, notice = true, provenance = true, float = true }

function Div(div)
  if not FORMAT:match("typst") then return nil end
  local name = div.identifier == "refs" and "reflist" or div.classes[1]
  if not (boxes[name] or name == "reflist") then return nil end
  local out = pandoc.List({ pandoc.RawBlock("typst", "#" .. name .. "[") })
  out:extend(div.content)
  out:insert(pandoc.RawBlock("typst", "]"))
  return out
end
