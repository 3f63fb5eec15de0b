-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- What the pictures of the kit have in common.
--
-- @module scan.svg

local M = {}

M.INK, M.FAINT = "#222222", "#e6e6e6"

--- A text that can stand in XML: what can't is shown as "?".
function M.escape (text)
  text = text:gsub ("[%z\1-\8\11\12\14-\31]", "?")
  if not utf8.len (text) then text = text:gsub ("[\128-\255]", "?") end
  return (text:gsub ("[&<>\"]", { ["&"] = "&amp;", ["<"] = "&lt;", [">"] = "&gt;",
                                  ["\""] = "&quot;" }))
end

--- Write a text.
-- @tparam function out takes what is to be written
-- @tparam number x
-- @tparam number y of its base line
-- @tparam string anchor what of it is at x: "start", "middle" or "end"
-- @tparam integer size
-- @tparam string text
-- @tparam[opt] string more attributes
function M.text (out, x, y, anchor, size, text, more)
  out (('<text x="%.1f" y="%.1f" text-anchor="%s" font-size="%d"%s>%s</text>\n')
         :format (x, y, anchor, size, more or "", M.escape (text)))
end

--- Begin a picture with a white ground, a title and a line of facts.
-- @tparam function out
-- @tparam integer width
-- @tparam integer height
-- @tparam integer left where the title begins
-- @tparam string title
-- @tparam string facts
function M.begin (out, width, height, left, title, facts)
  out (('<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" '
        .. 'viewBox="0 0 %d %d" font-family="sans-serif" fill="%s">\n')
         :format (width, height, width, height, M.INK))
  out ("<title>" .. M.escape (title) .. "</title>\n")
  out ('<rect width="100%" height="100%" fill="#ffffff"/>\n')
  M.text (out, left, 30, "start", 18, title, ' font-weight="bold"')
  M.text (out, left, 52, "start", 13, facts)
end

return M
